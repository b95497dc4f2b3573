"""A policy small enough to be built in a moment; its attention is as real as a large one's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.simulator.contract import Array
from refinevla_kit.vlas.action_tokens import UniformBins
from refinevla_kit.vlas.compact import CompactConfig, build
from refinevla_kit.vlas.compact_parts import train_vocabulary

INSTRUCTION = "put carrot on plate"


def small_policy(
    seed: int = 0, order: str = "action_first", name: str = "small", proprioception: bool = False
) -> VLAPolicy:
    torch.set_num_threads(1)
    words = train_vocabulary([INSTRUCTION, "the carrot is left of the plate"])
    size = CompactConfig(
        layers=3, hidden=32, heads=2, feedforward=48, channels=8, proprioception=proprioception
    )
    return VLAPolicy(
        build(size, words, UniformBins((0.04, 0.04, 0.04, 0.01, 0.01, 0.3, 1.0)), seed),
        name,
        f"hash-{seed}",
        order,
        "greedy",
    )


@pytest.fixture(scope="session")
def policy() -> VLAPolicy:
    return small_policy()


@pytest.fixture(scope="session")
def image() -> Array:
    return np.random.default_rng(1).integers(0, 255, (120, 160, 3), dtype=np.uint8)


def scene(seed: int = 0, height: int = 120, width: int = 160) -> dict[str, Array]:
    """Masks like the simulator's: rectangles that do not overlap."""
    rng = np.random.default_rng(seed)
    masks = {name: np.zeros((height, width), bool) for name in ("source", "target", "gripper", "arm")}
    for i, mask in enumerate(masks.values()):
        top, left = rng.integers(0, height - 20), i * width // 4 + rng.integers(0, width // 4 - 20)
        mask[top : top + rng.integers(3, 20), left : left + rng.integers(3, 20)] = True
    return masks
