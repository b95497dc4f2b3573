"""Random models of any size are SpatialVLA and OpenVLA in all but their numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from refinevla_kit.policies import load_policy
from refinevla_kit.vlas import load_vla
from refinevla_kit.vlas.contract import VLA
from refinevla_kit.vlas.random_start import random_openvla, random_spatialvla, small_openvla, small_spatialvla
from tests.vlas.reference import FOLDER

MODELS = ("spatialvla", "openvla")
TEXTS = ("put carrot on plate", "Observation: the open gripper is above the carrot.")


def make(model: str, **settings: Any) -> VLA:
    actions = np.random.default_rng(0).normal(0, 0.02, (300, 7))
    actions[:, 6] = np.sign(actions[:, 6])
    if model == "spatialvla":
        return random_spatialvla(small_spatialvla(32, 2, 56, 32), TEXTS, actions, **settings)
    return random_openvla(small_openvla(32, 2, 56, 32), TEXTS, actions, **settings)


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(model).save(tmp_path_factory.mktemp("random") / model)


def kinds(names: Any) -> set[str]:
    """Names of tensors without the numbers of layers."""
    return {re.sub(r"\d+", "#", name) for name in names}


def test_what_is_written_is_what_was_made(model: str, folder: Path) -> None:
    made, read = make(model), load_vla(folder)
    for name, values in made.model.state_dict().items():
        assert torch.equal(values, read.model.state_dict()[name]), "the same seed gives the same weights"
    assert made.bins == read.bins
    other = make(model, seed=1).model.state_dict()
    assert not torch.equal(other["language_model.lm_head.weight"], read.head.weight)  # type: ignore[arg-type]


def test_its_tensors_are_named_as_in_a_real_checkpoint(model: str, folder: Path) -> None:
    real = json.loads((FOLDER / f"real_keys_{model}.json").read_text())["shapes"]
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        names = kinds(tensors.keys())
    outside = {name for name in kinds(real) if "relative_position_bias" not in name}
    assert names == outside


def test_its_words_are_laid_out_as_the_authors_do(model: str, folder: Path) -> None:
    vla = load_vla(folder)
    prompt = vla.tokenizer.decode(vla.prefix_ids("put carrot on plate")[vla.image_end :])
    rationale = vla.tokenizer.encode(TEXTS[1], add_special_tokens=False)
    assert vla.tokenizer.decode(rationale).strip() == TEXTS[1]
    if model == "spatialvla":
        assert prompt == "<bos> put carrot on plate\n"
        assert vla.tokenizer.convert_ids_to_tokens(vla.first_action) == "<ACTION00000>"
        assert vla.first_action + vla.bins.words == len(vla.tokenizer)
        assert vla.bins.words == 8194
    else:
        assert "What action should the robot take to put carrot on plate?\nOut:" in prompt
        assert (vla.first_action, vla.bins.words, vla.marks.pad, vla.marks.action) == (
            31744,
            256,
            32000,
            29871,
        )


def test_it_acts(folder: Path) -> None:
    policy = load_policy(folder)
    policy.reset(TEXTS[0])
    action = policy.act(np.zeros((120, 160, 3), np.uint8))
    assert np.isfinite(action.processed).all()
    assert policy.conventions.normalisation == "refinevla"


def test_it_is_made_in_the_precision_asked_for(model: str) -> None:
    vla = make(model, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in vla.model.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32
