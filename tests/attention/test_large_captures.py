"""A capture of a large model takes memory for the rows that are asked for, not for every layer's square."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch

from refinevla_kit.attention import capture
from refinevla_kit.attention.captured import KINDS
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.vlas.random_start import random_openvla, random_spatialvla, small_openvla, small_spatialvla
from tests.training.launched import noise

INSTRUCTION, RATIONALE = "put carrot on plate", "The carrot is left of the plate."
MADE: dict[str, tuple[Any, Any]] = {
    "spatialvla": (random_spatialvla, small_spatialvla),
    "openvla": (random_openvla, small_openvla),
}


@pytest.mark.parametrize("model", MADE)
@pytest.mark.parametrize("layers", [2, 6])
def test_one_square_at_a_time_is_alive(model: str, layers: int) -> None:
    make, sizes = MADE[model]
    examples = noise(4)
    texts = [*examples.instructions, RATIONALE]
    vla = make(sizes(layers=layers), texts, examples.actions)
    policy = VLAPolicy(vla, "p", "abc")
    alive: list[int] = []

    def count(*_: Any) -> None:
        """Squares of attention (B, heads, N, N) in memory, by their storage."""
        found = [x for x in gc.get_objects() if type(x) is torch.Tensor and x.dim() == 4]
        squares = [x for x in found if x.shape[-1] == x.shape[-2] > vla.patches and x.shape[1] > 1]
        alive.append(len({x.untyped_storage().data_ptr() for x in squares}))

    for layer in vla.layers:
        layer.self_attn.register_forward_hook(count)
    action = policy.decide(examples.images[:1], [INSTRUCTION])[0]
    alive.clear()
    found = capture(policy, examples.images[0], INSTRUCTION, action, RATIONALE, queries=KINDS)
    assert len(alive) == layers and 1 <= max(alive) <= 2, "this layer's, and what it was made of"
    asked, heads = len(found.queries), found.patches.shape[1]
    length = found.patches.shape[-1] + found.others.shape[-1]
    kept = found.patches.nbytes + found.others.nbytes
    assert kept == 4 * layers * heads * asked * length
    assert np.isfinite(found.patches).all()
