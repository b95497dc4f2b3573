"""What a control step costs at several camera sizes, and how many actions a second the compact VLA decodes, alone and in batches.

    python benchmarks/simulator.py [--steps 40]

Prints a table of ratios taken in one run and, as its last line, one JSON object. Medians; one process, one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from refinevla_kit.policies.compact_policy import load_policy
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.simulator import make

SIZES = ((640, 480), (320, 240), (160, 120), (64, 48))
BATCHES = (1, 2, 4, 8)


def milliseconds(call: Callable[[], object], times: int) -> float:
    """Median time of `call` in milliseconds, after one call that does not count."""
    call()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    times = parser.parse_args().steps
    torch.set_num_threads(1)
    rest = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)
    step_ms: dict[str, float] = {}
    for width, height in SIZES:
        simulator = make("widowx_carrot_on_plate", width=width, height=height)
        simulator.reset(0)
        step_ms[f"{width}x{height}"] = milliseconds(lambda s=simulator: s.step(rest), times)  # type: ignore[misc]
        simulator.close()
    policy = load_policy(REPOSITORY / "data/checkpoints/compact_base")
    image = np.zeros((120, 160, 3), np.uint8)
    action_ms = {
        batch: milliseconds(lambda b=batch: policy.act_batch(np.stack([image] * b), ["put carrot on plate"] * b), max(3, times // 4)) / batch  # type: ignore[misc]
        for batch in BATCHES
    }
    slowest, alone = max(step_ms.values()), action_ms[1]
    print(f"{'camera':<10} {'ms a step':>10} {'ratio':>7}")
    for size, value in step_ms.items():
        print(f"{size:<10} {value:>10.1f} {value / slowest:>7.2f}")
    print(f"{'batch':<10} {'ms an action':>10} {'ratio':>7}")
    for batch, value in action_ms.items():
        print(f"{batch:<10} {value:>10.1f} {value / alone:>7.2f}")
    print(json.dumps({"benchmark": "simulator", "steps": times, "step_ms": step_ms, "action_ms": action_ms}))


if __name__ == "__main__":
    main()
