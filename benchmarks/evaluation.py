"""What an evaluation costs: a run of 96 WidowX episodes, or of as many a task of the Google Robot's, and the
same the way the original evaluator does it.

    python benchmarks/evaluation.py [--episodes 24] [--sizes 160x120,640x480] [--tasks widowx]

The policy keeps still and costs nothing, so what is measured is the simulator and the run around it. "One
make an episode" is one process that makes an environment for every episode, as SIMPLER's own evaluator does,
timed on two episodes a task. Prints a table of ratios taken in one run and, as its last line, one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refinevla_kit.evaluation import evaluate
from refinevla_kit.simulator import make
from refinevla_kit.simulator.contract import Array
from refinevla_kit.tasks import Task, find_tasks

REST = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)  # of the WidowX's gripper; the Google Robot's closes


class Still:
    """Keeps the arm where it is."""

    name, checkpoint_hash = "still", ""

    def act_batch(self, images: Array, instructions: Sequence[str]) -> list[Array]:
        return [REST] * len(images)


def run_seconds(
    tasks: tuple[Task, ...], episodes: int, workers: int, size: tuple[int, int], batch: int
) -> float:
    """Seconds that `evaluate` takes, from its call to its file, processes and environments included."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        evaluate(
            Still(),
            [task.name for task in tasks],
            episodes,
            workers=workers,
            batch=batch,
            output=Path(folder),
            width=size[0],
            height=size[1],
        )
        return time.perf_counter() - began


def original_seconds(tasks: tuple[Task, ...], size: tuple[int, int], episodes: int = 2) -> float:
    """Seconds an episode when every episode makes its environment, averaged over the tasks as a run of all of
    them weighs them.
    """
    began = time.perf_counter()
    for task in tasks:
        for episode in range(episodes):
            simulator = make(task, width=size[0], height=size[1])
            simulator.reset(episode)
            for _ in range(task.max_steps):
                simulator.step(REST)
            simulator.close()
    return (time.perf_counter() - began) / (episodes * len(tasks))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=24, help="a task")
    parser.add_argument("--sizes", default="160x120,640x480")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tasks", default="widowx", help="a task, a row of the tables or a robot")
    arguments = parser.parse_args()
    tasks = find_tasks(arguments.tasks)
    found: dict[str, Any] = {}
    for text in arguments.sizes.split(","):
        width, height = map(int, text.split("x"))
        one, two = (
            run_seconds(tasks, arguments.episodes, workers, (width, height), arguments.batch)
            for workers in (1, 2)
        )
        count = arguments.episodes * len(tasks)
        each = original_seconds(tasks, (width, height))
        found[text] = {
            "episodes": count,
            "one_worker_s": one,
            "two_workers_s": two,
            "make_each_s": each * count,
        }
    print(f"{'camera':<10} {'way':<24} {'episodes':>9} {'s a run':>9} {'x slower than two workers':>27}")
    for text, row in found.items():
        for way, key in (
            ("two workers", "two_workers_s"),
            ("one worker", "one_worker_s"),
            ("one make an episode", "make_each_s"),
        ):
            print(
                f"{text:<10} {way:<24} {row['episodes']:>9} {row[key]:>9.1f} "
                f"{row[key] / row['two_workers_s']:>27.2f}"
            )
    print(json.dumps({"benchmark": "evaluation", "batch": arguments.batch, "runs": found}))


if __name__ == "__main__":
    main()
