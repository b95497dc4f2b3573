"""What an evaluation costs: a run of 96 WidowX episodes, or of as many a task of the Google Robot's, and the
same the way the original evaluator does it.

    python benchmarks/evaluation.py [--episodes 24] [--sizes 160x120,640x480] [--tasks widowx]
        [--batches 32] [--policy CHECKPOINT]

The policy keeps still and costs nothing, so what is measured is the simulator and the run around it; or it is
a checkpoint, whose answers get cheaper the more are asked for at once. "One make an episode" is one process
that makes an environment for every episode, as SIMPLER's own evaluator does, timed on two episodes a task; it
is left out for a checkpoint. Prints a table of ratios taken in one run and, as its last line, one JSON
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
import torch

from refinevla_kit.evaluation import evaluate
from refinevla_kit.policies import load_policy
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
    policy: Any, tasks: tuple[Task, ...], episodes: int, workers: int, size: tuple[int, int], batch: int
) -> float:
    """Seconds that `evaluate` takes, from its call to its file, processes and environments included."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        evaluate(
            policy,
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
    parser.add_argument("--batches", default="32", help="episodes played at a time, comma-separated")
    parser.add_argument("--tasks", default="widowx", help="a task, a row of the tables or a robot")
    parser.add_argument("--policy", help="a checkpoint; default one that keeps still")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    policy = load_policy(arguments.policy) if arguments.policy else Still()
    tasks, episodes = find_tasks(arguments.tasks), arguments.episodes
    rows: list[dict[str, Any]] = []
    for text in arguments.sizes.split(","):
        width, height = map(int, text.split("x"))
        found = {}
        for batch in map(int, arguments.batches.split(",")):
            for workers in (2, 1):
                way = f"{workers} workers, {batch} at a time"
                found[way] = run_seconds(policy, tasks, episodes, workers, (width, height), batch)
        if not arguments.policy:
            count = episodes * len(tasks)
            found["one make an episode"] = original_seconds(tasks, (width, height)) * count
        least = min(found.values())
        rows += [
            {"camera": text, "way": way, "seconds": seconds, "ratio": seconds / least}
            for way, seconds in found.items()
        ]
    print(f"{'camera':<10} {'way':<28} {'s a run':>9} {'x slower than the fastest':>27}")
    for row in rows:
        print(f"{row['camera']:<10} {row['way']:<28} {row['seconds']:>9.1f} {row['ratio']:>27.2f}")
    report = {"benchmark": "evaluation", "policy": arguments.policy, "episodes": episodes * len(tasks)}
    print(json.dumps({**report, "runs": rows}))


if __name__ == "__main__":
    main()
