"""Episodes that a policy drives and the demonstrator labels: where the policy goes wrong, the data say what
would have been right (DAgger).

    python -m experiments.driving CHECKPOINT OUTPUT [--task NAME ...] [--episodes 1] [--seed 0] [--workers 1]

OUTPUT is a LeRobot dataset as `refinevla record` writes it, with the options of that command; every episode
is kept, however it ends.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from refinevla_kit.errors import KitError
from refinevla_kit.rollouts.recording import record
from refinevla_kit.simulator.contract import Array, Observation
from refinevla_kit.tasks import SETTINGS, VISUAL_MATCHING, WIDOWX_TASKS, Task, find_task


@dataclass(frozen=True)
class PolicyDrive:
    """`rollouts.recording.record`'s `drive`: the policy of a checkpoint. Picklable, and read once a
    process.
    """

    checkpoint: Path

    def __call__(self, observation: Observation, task: Task) -> Array:
        """float32 (7,), as `Simulator.step` takes it."""
        (action,) = _policy(self.checkpoint).act_batch(
            observation.image[None], [observation.instruction], observation.proprioception[None]
        )
        processed: Array = action.processed
        return processed


@cache
def _policy(checkpoint: Path) -> Any:
    from refinevla_kit.policies import load_policy  # here: a worker that never drives needs no torch

    return load_policy(checkpoint)


def main(arguments: list[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.driving",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="of the policy that acts")
    add("output", type=Path, help="folder of the dataset to write")
    add("--task", nargs="+", action="extend", help="default the four WidowX tasks")
    add("--episodes", type=int, default=1, help="a task and variant")
    add("--assets", default="embedded", help="embedded | official | a folder")
    add("--start", default="random", help="random | grid")
    add("--setting", choices=SETTINGS, default=VISUAL_MATCHING)
    add("--variant", nargs="+", action="extend", help="default those that SIMPLER scores")
    add("--random-moves", type=int, default=0, help="random actions before the recording starts")
    add("--disturb", type=float, default=0.0, help="chance a step that random moves take over")
    add("--noise", type=float, default=0.0, help="noise in each motion, part of 15 mm, 0.15 rad")
    add("--settle", type=int, default=3, help="frames of success after which a recording ends")
    add("--seed", type=int, default=0)
    add("--workers", type=int, default=1, help="processes")
    given = vars(parser.parse_args(arguments))
    drive, path = PolicyDrive(given.pop("checkpoint")), given.pop("output")
    tasks = given.pop("task") or [task.name for task in WIDOWX_TASKS]
    named, episodes = given.pop("variant"), given.pop("episodes")
    try:
        if given["settle"] < 1 or not (0 <= given["disturb"] <= 1 and 0 <= given["noise"] <= 1):
            what = f"settle {given['settle']}, disturb {given['disturb']:g}, noise {given['noise']:g}"
            raise KitError(what, "settle is 1 or more, the others are shares of 0 to 1")
        scored = find_task(tasks[0]).protocol(given["setting"]).scored_variants
        _policy(drive.checkpoint)  # before a simulator starts: a folder that holds none is said at once
        made = record(path, tasks, episodes, variants=named or scored, drive=drive, **given)
    except KitError as error:
        raise SystemExit(f"driving: {error}") from None
    print(json.dumps(made, default=str))


if __name__ == "__main__":
    main()
