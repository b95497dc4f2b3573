"""What training takes is said before it is taken, and the guide's table is what the function computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from refinevla_kit.errors import KitError
from refinevla_kit.training import memory
from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.freezing import freeze_lower, lighten
from refinevla_kit.training.memory import check_training_memory, training_memory
from refinevla_kit.vlas import checkpoint, load_vla
from scripts import memory_table
from scripts.memory_table import GPU, GUIDE, long_table, memories, short_table
from tests.vlas.reference import FOLDER

MODELS = ("spatialvla", "openvla")
CONFIG = TrainingConfig(steps=1, freeze_layers=2, precision="bf16")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("mode", ["upper", "lora", "full"])
def test_what_is_said_is_what_the_optimiser_holds(model: str, mode: str) -> None:
    config = replace(CONFIG, mode=mode)
    vla = load_vla(FOLDER / model)
    before = {name: value.clone() for name, value in vla.model.state_dict().items()}
    found = training_memory(vla, config)
    assert before.keys() == vla.model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in vla.model.state_dict().items())
    total = sum(parameter.numel() for parameter in vla.model.parameters())
    if mode == "lora":
        assert found.trainable > 0 and found.frozen == total
    else:
        counts = freeze_lower(vla, config.depth, config.tower_frozen)
        assert (found.trainable, found.frozen) == (counts["trainable"], counts["frozen"])
        trained: list[Any] = [p for p in vla.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained)
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        state = [x for each in optimizer.state.values() for x in each.values() if x.dim()]
        assert found.moments == sum(x.numel() * x.element_size() for x in state)
        assert found.gradients == sum(p.grad.numel() * p.grad.element_size() for p in trained)
    light = training_memory(vla, replace(config, frozen_weights="bf16"))
    assert found.weights - light.weights == 2 * found.frozen
    assert f"{found.total / 1e9:.3g} GB" in str(found)


def test_the_tables_of_the_pages_are_computed() -> None:
    """From models of the released sizes that hold no numbers."""
    found = {name: memories(name) for name in memory_table.MODELS}
    assert long_table(found) in GUIDE.read_text(encoding="utf-8")
    assert short_table(found) in GPU.read_text(encoding="utf-8")


def free(monkeypatch: pytest.MonkeyPatch, *modules: Any, size: int) -> None:
    for module in modules:
        monkeypatch.setattr(module.psutil, "virtual_memory", lambda: SimpleNamespace(available=size))


def test_too_little_memory_is_said_before_loading_and_before_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vla = load_vla(FOLDER / "openvla")
    freeze_lower(vla, 2)
    free(monkeypatch, memory, size=1000)
    with pytest.raises(KitError, match=r"GB more, and 0\.0 GB of cpu are free -> freeze more"):
        check_training_memory(vla, torch.device("cpu"))
    copies = 4 * vla.model.num_parameters(only_trainable=True)
    free(monkeypatch, memory, size=3 * copies)
    check_training_memory(vla, torch.device("cpu"))
    with pytest.raises(KitError, match="GB more"):
        check_training_memory(vla, torch.device("cpu"), averaged=True)
    free(monkeypatch, checkpoint, size=1000)
    opened: list[Callable[..., Any]] = []
    monkeypatch.setattr(checkpoint, "quiet", opened.append)
    with pytest.raises(KitError, match=r"GB in torch\.float32, and 0\.0 GB of memory are free"):
        load_vla(FOLDER / "openvla")
    assert not opened, "nothing was read"


def test_a_base_is_in_memory_once_while_it_trains() -> None:
    """Of `load_vla` in half precision only what trains grows."""
    vla = load_vla(FOLDER / "spatialvla", torch.bfloat16)
    freeze_lower(vla, 2)
    frozen = [parameter for parameter in vla.model.parameters() if not parameter.requires_grad]
    places = [parameter.data_ptr() for parameter in frozen]
    lighten(vla)
    assert places == [parameter.data_ptr() for parameter in frozen]
