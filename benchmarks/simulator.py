"""What a control step costs at several camera sizes, physics and picture apart, and how many actions a second
the compact VLA decodes.

    python benchmarks/simulator.py [--steps 40]

"physics" is ManiSkill's step without its observation: controller, 100 substeps, success rule. "picture" is
rendering, photograph and proprioception. "own" is the same step with ManiSkill's own observation instead.
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
from refinevla_kit.tasks import SETTINGS, VISUAL_MATCHING
from refinevla_kit.vlas.compact_parts import PROPRIOCEPTION

SIZES = ((640, 480), (320, 240), (160, 120), (64, 48))
BATCHES = (1, 2, 4, 8)
TASKS_TIMED = ("widowx_carrot_on_plate", "widowx_put_eggplant_in_basket")


def milliseconds(call: Callable[[], object]) -> float:
    """What one call takes."""
    began = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - began)


def step_parts(task: str, width: int, height: int, setting: str, steps: int) -> dict[str, list[float]]:
    """Milliseconds of `steps` control steps, by part. The arm moves at random, so that nothing sleeps."""
    simulator = make(task, width=width, height=height, setting=setting)
    environment: Any = simulator._env  # type: ignore[attr-defined]
    moves = np.random.default_rng(0).normal(0, 0.012, (steps, 7)).astype(np.float32)
    parts: dict[str, list[float]] = {"physics": [], "picture": [], "own": []}
    simulator.reset(0)
    for number, move in enumerate(moves):
        parts["physics"].append(milliseconds(lambda m=move: environment.step(m)))  # type: ignore[misc]
        parts["picture"].append(milliseconds(lambda: simulator._observe(False, False)))  # type: ignore[attr-defined]
        if setting == VISUAL_MATCHING:
            environment._obs_mode = "rgb+segmentation"
            parts["own"].append(milliseconds(lambda m=moves[-1 - number]: environment.step(m)))  # type: ignore[misc]
            environment._obs_mode = "none"
    simulator.close()
    return {part: times for part, times in parts.items() if times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    times = parser.parse_args().steps
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    for (width, height), setting, task in product(SIZES, SETTINGS, TASKS_TIMED):
        parts = step_parts(task, width, height, setting, times)
        row = {"camera": f"{width}x{height}", "setting": setting, "task": task}
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
        f"{'camera':<8} {'setting':<20} {'task':<30} {'physics':>14} {'picture':>14} {'own':>14}   "
        "ms, median (least)"
    )
    for row in found:
        cells = [
            f"{row[part]['median']:.1f} ({row[part]['least']:.1f})" if part in row else ""
            for part in ("physics", "picture", "own")
        ]
        print(
            f"{row['camera']:<8} {row['setting']:<20} {row['task']:<30} {cells[0]:>14} "
            f"{cells[1]:>14} {cells[2]:>14}"
        )
    print(f"{'batch':<8} {'ms an action':>12} {'ratio':>7}")
    for batch, value in action_ms.items():
        print(f"{batch:<8} {value:>12.1f} {value / action_ms[1]:>7.2f}")
    print(json.dumps({"benchmark": "simulator", "steps": times, "parts": found, "action_ms": action_ms}))


if __name__ == "__main__":
    main()
