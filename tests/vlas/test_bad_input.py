"""What can be wrong with a released model, its files, its download or its dataset: one line each that says
how to mend it, and nothing half-written.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file, save_file

from refinevla_kit.errors import KitError
from refinevla_kit.policies import load_policy
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.policy_run import train_policy
from refinevla_kit.vlas import load_vla
from refinevla_kit.vlas.openvla import to_square
from tests.training.launched import noise
from tests.vlas.reference import FOLDER

MODELS = ("spatialvla", "openvla")
HEAD = "language_model.lm_head.weight"
INDEX = "model.safetensors.index.json"
CONFIG = TrainingConfig(steps=1, freeze_layers=2, precision="fp32", cache="off", batch_size=2)


@pytest.fixture(params=MODELS)
def copy(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a tiny checkpoint."""
    return Path(shutil.copytree(FOLDER / request.param, tmp_path / request.param))


def refused(path: Path | str, says: str, **how: Any) -> None:
    """Loading it ends with one line that holds `says` and a remedy."""
    with pytest.raises(KitError) as caught:
        load_vla(path, **how)
    line = str(caught.value)
    assert says in line and " -> " in line and "\n" not in line, line


def edited(file: Path, **changed: Any) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({key: x for key, x in (content | changed).items() if x is not None}))


def test_another_model(copy: Path) -> None:
    edited(copy / "config.json", model_type="llama")
    refused(copy, "holds a 'llama', which the kit does not know -> give a compact VLA, a Spatial")


def test_no_model_at_all(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "there is no checkpoint")
    refused(tmp_path, "has no config.json")


def test_odd_settings_of_any_kind(copy: Path) -> None:
    content = json.loads((copy / "config.json").read_text())
    edited(copy / "config.json", text_config=content["text_config"] | {"num_attention_heads": 3})
    refused(copy, "is damaged")


def test_adapters_that_name_their_own_folder(copy: Path) -> None:
    (copy / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(copy)}))
    refused(copy, "name their own folder as their base")


def test_pictures_that_are_none_of_rgb() -> None:
    for picture in (np.zeros((50, 80), np.uint8), np.zeros((50, 80, 4), np.uint8), np.ones((50, 80, 3))):
        for strategy in ("letterbox", "resize-crop", "resize-naive"):
            with pytest.raises(KitError, match="a picture is"):
                to_square(picture, (56, 56), strategy, (1, 2, 3))


@pytest.mark.parametrize("model", MODELS)
def test_a_sentence_that_spells_a_mark_of_the_model_is_acted_on(model: str) -> None:
    policy = VLAPolicy(load_vla(FOLDER / model), model)
    picture = np.zeros((64, 64, 3), np.uint8)
    (action,) = policy.decide([picture], ["put the <image> on the <pad> plate"])
    assert np.isfinite(action.processed).all()


def test_an_unknown_statistics_key_is_told_the_known_ones(copy: Path) -> None:
    refused(copy, "no dataset's statistics 'droid' -> choose one of bridge_orig", dataset="droid")


def test_no_matrix_for_this_camera(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FOLDER / "spatialvla", tmp_path / "one"))
    refused(folder, "no camera's matrix (intrinsic_config) 'wrist' -> choose one of", camera="wrist")
    edited(folder / "processor_config.json", intrinsic_config={})
    refused(folder, "has no camera's matrix (intrinsic_config)")


def test_a_base_without_a_head_for_texts(copy: Path) -> None:
    """Actions come out of the same head, so such a base neither speaks nor acts."""
    weights = json.loads((copy / INDEX).read_text())["weight_map"]
    shard = copy / weights[HEAD]
    save_file({k: v for k, v in load_file(shard).items() if k != HEAD}, shard, {"format": "pt"})
    edited(copy / INDEX, weight_map={k: v for k, v in weights.items() if k != HEAD})
    refused(copy, f"1 missing: {HEAD}")


def test_a_dataset_that_does_not_fit_the_action_words(copy: Path, tmp_path: Path) -> None:
    examples = noise(12)
    far = replace(examples, actions=examples.actions * 50)
    with pytest.raises(
        KitError, match=r"the actions do not fit .*: \d+ of 12 outside .* -> check units"
    ) as caught:
        train_policy(copy, far, CONFIG, tmp_path / "out", "p", progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    train_policy(copy, far, replace(CONFIG, action_words="refitted"), tmp_path / "out", "p", progress=False)
    assert (tmp_path / "out" / "p").is_dir(), "fitted to the data they fit"


# --- an interrupted download ---


def test_an_index_that_names_a_part_which_is_not_there(copy: Path) -> None:
    gone = sorted(copy.glob("*.safetensors"))[1]
    gone.unlink()
    refused(copy, f"has no {gone.name} -> copy or download the whole folder again")


def test_a_part_that_ends_in_the_middle(copy: Path) -> None:
    part = sorted(copy.glob("*.safetensors"))[0]
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    refused(copy, f"is damaged ({part.name}:")


def test_parts_without_their_index(copy: Path) -> None:
    (copy / INDEX).unlink()
    refused(copy, "only parts of one (model-00001-of-")


def test_a_download_that_was_cut_off_is_found_in_the_hubs_cache(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, the hub's cache gives the folder as far as it came."""
    cache = tmp_path / "hub"
    snapshot = cache / "models--somebody--model" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    (cache / "models--somebody--model" / "refs").mkdir()
    (cache / "models--somebody--model" / "refs" / "main").write_text("abc")
    shutil.copytree(copy, snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    whole = load_policy("somebody/model")
    assert whole.name == "model" and whole.checkpoint_hash == load_policy(copy).checkpoint_hash
    gone = sorted(snapshot.glob("*.safetensors"))[-1]
    gone.unlink()
    refused("somebody/model", f"has no {gone.name} -> copy or download the whole folder again")
    refused(
        "somebody/else", "is no folder here, not in the hub's cache, and the hub cannot be reached -> connect"
    )


@pytest.mark.parametrize("error", [ConnectionResetError("connection reset"), OSError(28, "No space left")])
def test_a_download_that_breaks_off_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", broken)
    refused("somebody/model", f"could not be downloaded ({type(error).__name__}")
    assert issubclass(HfHubHTTPError, OSError), "an answer of the hub is one too"


# --- an interrupted save ---


@pytest.fixture
def saved(copy: Path, tmp_path: Path) -> Iterator[Path]:
    """A checkpoint that another is going to replace; afterwards it is as it was."""
    target = load_vla(copy).save(tmp_path / "out" / "one")
    before = {file.name: file.read_bytes() for file in target.iterdir()}
    yield target
    assert {file.name: file.read_bytes() for file in target.iterdir()} == before
    load_vla(target)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_save_that_breaks_off_leaves_what_was_there(
    saved: Path, error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    vla = load_vla(saved)

    def half(part: Path, **_: Any) -> None:
        (part / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(vla.model, "save_pretrained", half)
    with pytest.raises((KeyboardInterrupt, KitError)) as caught:
        vla.save(saved)
    assert "\n" not in str(caught.value)
    assert list(saved.parent.iterdir()) == [saved], "no part of it is left"


def test_a_save_that_is_killed_leaves_what_was_there_and_the_next_one_tidies_up(saved: Path) -> None:
    program = f"""
        import os, signal
        from pathlib import Path
        from refinevla_kit.vlas import load_vla
        vla = load_vla({str(saved)!r})
        def half(part, **_):
            (Path(part) / "model.safetensors").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        vla.model.save_pretrained = half
        vla.save({str(saved)!r})
    """
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(saved.parent.iterdir())) == 2, "what it had written is not at the checkpoint's place"
    vla = load_vla(saved)
    with torch.no_grad():
        pixels = vla.pixel_values(np.zeros((1, 48, 64, 3), np.uint8))
        assert torch.isfinite(vla.look(pixels)).all()
    vla.save(saved)
    assert list(saved.parent.iterdir()) == [saved]


# --- files beside the weights ---


@pytest.mark.parametrize("content", [None, b'{"version": "1.0"', b"[]"])
def test_a_tokenizer_that_is_missing_or_damaged(copy: Path, content: bytes | None) -> None:
    if content is None:
        (copy / "tokenizer.json").unlink()
    else:
        (copy / "tokenizer.json").write_bytes(content)
    refused(copy, f"the tokenizer of {copy} cannot be read (")


@pytest.mark.parametrize(
    ("model", "file", "changed"),
    [
        *((model, "config.json", {"text_config": odd}) for model in MODELS for odd in (None, 3)),
        *((model, INDEX, {"weight_map": []}) for model in MODELS),
        ("openvla", "config.json", {"image_sizes": None}),
        ("openvla", "preprocessor_config.json", {"means": None}),
        ("openvla", "preprocessor_config.json", {"stds": [[1.0]]}),
        ("spatialvla", "processor_config.json", {"statistics": []}),
        ("spatialvla", "processor_config.json", {"statistics": {"bridge_orig": 3}}),
        ("spatialvla", "processor_config.json", {"intrinsic_config": ["default"]}),
        ("spatialvla", "processor_config.json", {"intrinsic_config": {"default": {}}}),
        ("spatialvla", "processor_config.json", {"action_chunk_size": None}),
        ("spatialvla", "processor_config.json", {"action_config": "spherical"}),
        ("spatialvla", "processor_config.json", {"bin_policy": []}),
    ],
)
def test_settings_that_are_missing_or_of_another_kind(
    model: str, file: str, changed: dict[str, Any], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(FOLDER / model, tmp_path / model))
    edited(folder / file, **changed)
    refused(folder, "")
