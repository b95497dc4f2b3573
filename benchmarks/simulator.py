"""What a control step costs at several camera sizes, physics and picture apart, and how many actions a second
the compact VLA decodes.

    python benchmarks/simulator.py [--steps 40]

"physics" is ManiSkill's step without its observation: controller, 100 substeps (171 of the Google Robot),
success rule. "picture" is rendering, photograph and proprioception. "own" is the same step with ManiSkill's
own observation instead (WidowX).
Prints a table of ratios taken in one run and, as its last line, one JSON object. Medians, with the least in
brackets: on a shared machine that is the one that comes again. One process, one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import torch

from refinevla_kit.policies import load_policy
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.simulator import make
from refinevla_kit.tasks import SETTINGS, VISUAL_MATCHING, Task, find_task
from refinevla_kit.vlas.compact_parts import PROPRIOCEPTION

SIZES = {
    "widowx": ((640, 480), (320, 240), (160, 120), (64, 48)),
    "google_robot": ((640, 512), (160, 128)),
}
BATCHES = (1, 2, 4, 8)
# Milliseconds that others' programs took for the same on two cores, from and to, not measured again here: the
# original SimplerEnv (a whole step), and the first trial of these Google Robot tasks on ManiSkill 3.
KNOWN = {
    ("widowx", "640x480", "step"): (110, 190),
    ("google_robot", "640x512", "physics"): (45, 50),
    ("google_robot", "640x512", "picture"): (70, 80),
    ("google_robot", "160x128", "physics"): (45, 50),
    ("google_robot", "160x128", "picture"): (8, 12),
}
TASKS_TIMED = ("widowx_carrot_on_plate", "widowx_put_eggplant_in_basket")
TASKS_TIMED += ("google_robot_pick_horizontal_coke_can", "google_robot_open_middle_drawer")


def milliseconds(call: Callable[[], object]) -> float:
    """What one call takes."""
    began = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - began)


def step_parts(
    task: Task, width: int, height: int, setting: str, steps: int, assets: str
) -> dict[str, list[float]]:
    """Milliseconds of `steps` control steps, by part. The arm moves at random, so that nothing sleeps."""
    simulator = make(task, assets, width, height, setting=setting)
    environment: Any = simulator._env  # type: ignore[attr-defined]
    moves = np.random.default_rng(0).normal(0, 0.012, (steps, 7)).astype(np.float32)
    parts: dict[str, list[float]] = {"physics": [], "picture": [], "own": []}
    simulator.reset(0)
    for number, move in enumerate(moves):
        parts["physics"].append(milliseconds(lambda m=move: environment.step(m)))  # type: ignore[misc]
        parts["picture"].append(milliseconds(lambda: simulator._observe(False, False)))  # type: ignore[attr-defined]
        if setting == VISUAL_MATCHING and task.robot == "widowx":
            environment._obs_mode = "rgb+segmentation"
            parts["own"].append(milliseconds(lambda m=moves[-1 - number]: environment.step(m)))  # type: ignore[misc]
            environment._obs_mode = "none"
    simulator.close()
    return {part: times for part, times in parts.items() if times}


def against_known(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was measured in visual matching, the dearest task of each robot and camera, over `KNOWN`."""
    rows = []
    for (robot, camera, part), known in KNOWN.items():
        parts = ("physics", "picture") if part == "step" else (part,)
        least = [
            sum(row[each]["least"] for each in parts)
            for row in found
            if (find_task(row["task"]).robot, row["camera"], row["setting"])
            == (robot, camera, VISUAL_MATCHING)
        ]
        if least:
            ratio = [max(least) / bound for bound in known]
            rows.append(
                {"robot": robot, "camera": camera, "part": part, "least": max(least), "known": known}
                | {"ratio": ratio}
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--assets", default="embedded")
    parser.add_argument("--robot", choices=list(SIZES), help="of both if not given")
    arguments = parser.parse_args()
    times = arguments.steps
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    timed = [task for task in map(find_task, TASKS_TIMED) if arguments.robot in (None, task.robot)]
    cells = [
        (size, setting, task) for task, setting in product(timed, SETTINGS) for size in SIZES[task.robot]
    ]
    for (width, height), setting, task in cells:
        parts = step_parts(task, width, height, setting, times, arguments.assets)
        row = {"camera": f"{width}x{height}", "setting": setting, "task": task.name}
        found.append(
            row | {part: {"median": statistics.median(ms), "least": min(ms)} for part, ms in parts.items()}
        )
    policy = load_policy(REPOSITORY / "data/checkpoints/compact_base")
    image, own = np.zeros((120, 160, 3), np.uint8), np.zeros((1, PROPRIOCEPTION), np.float32)
    action_ms = {}
    for batch in BATCHES:
        asked = np.stack([image] * batch), ["put carrot on plate"] * batch, own.repeat(batch, 0)
        decode = [milliseconds(lambda asked=asked: policy.act_batch(*asked)) for _ in range(4)]  # type: ignore[misc]
        action_ms[batch] = statistics.median(decode[1:]) / batch
    print(
        f"{'camera':<8} {'setting':<20} {'task':<38} {'physics':>14} {'picture':>14} {'own':>14}   "
        "ms, median (least)"
    )
    for row in found:
        shown = [
            f"{row[part]['median']:.1f} ({row[part]['least']:.1f})" if part in row else ""
            for part in ("physics", "picture", "own")
        ]
        print(
            f"{row['camera']:<8} {row['setting']:<20} {row['task']:<38} {shown[0]:>14} "
            f"{shown[1]:>14} {shown[2]:>14}"
        )
    ratios = against_known(found)
    print(f"{'robot':<13} {'camera':<8} {'part':<8} {'least ms':>9} {'known':>10} {'ratio':>12}")
    for row in ratios:
        print(
            f"{row['robot']:<13} {row['camera']:<8} {row['part']:<8} {row['least']:>9.1f} "
            f"{'{}-{}'.format(*row['known']):>10} {'{:.2f}-{:.2f}'.format(*row['ratio']):>12}"
        )
    print(f"{'batch':<8} {'ms an action':>12} {'ratio':>7}")
    for batch, value in action_ms.items():
        print(f"{batch:<8} {value:>12.1f} {value / action_ms[1]:>7.2f}")
    result = {"benchmark": "simulator", "steps": times, "parts": found, "known": ratios}
    print(json.dumps(result | {"action_ms": action_ms}))


if __name__ == "__main__":
    main()
