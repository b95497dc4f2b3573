"""The average of a fine-tuned policy's weights and its base's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.averaged_weights import BASE, average
from refinevla_kit.vlas.compact import load

POLICY = BASE.with_name("with_reasoning")


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_each_weight_lies_between_both(tmp_path: Path, share: float) -> None:
    found, own, base = (
        dict(load(path).model.named_parameters())
        for path in (average(POLICY, share, tmp_path / "a"), POLICY, BASE)
    )
    assert found.keys() == own.keys() == base.keys()
    assert any(not torch.equal(own[name], base[name]) for name in own), "fine-tuning has changed some"
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, (1 - share) * own[name] + share * base[name])
