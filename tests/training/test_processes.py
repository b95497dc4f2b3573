"""`accelerate launch` with two processes trains the policy that one process trains, from pictures and from an
activation cache.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from refinevla_kit.settings import REPOSITORY
from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.policy_run import train_policy
from refinevla_kit.training.resume import read_history
from refinevla_kit.vlas import load_vla
from refinevla_kit.vlas.action_tokens import UniformBins
from refinevla_kit.vlas.compact import CompactConfig, build
from refinevla_kit.vlas.compact_parts import train_vocabulary
from tests.training.launched import noise
from tests.vlas.reference import FOLDER

CONFIG = TrainingConfig(
    steps=4,
    batch_size=5,
    freeze_layers=1,
    precision="fp32",
    save_every=2,
    validate_every=2,
    learning_rate=1e-3,
)
CACHES = ("off", "on")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    examples = noise()
    small = CompactConfig(layers=2, hidden=32, heads=2, feedforward=48, channels=8)
    vla = build(
        small,
        train_vocabulary([*examples.instructions, *examples.rationales]),
        UniformBins.fit(examples.actions),
        seed=0,
    )
    return vla.save(tmp_path_factory.mktemp("launched") / "base")


def launch(
    processes: int, base: Path, output: Path, *configs: TrainingConfig, **environment: str
) -> subprocess.CompletedProcess[str]:
    # with --cpu it starts a single process, unless MPI is there; with --multi_gpu it calls torchrun, and
    # where there is no GPU that is gloo on CPUs
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_machines",
        "1",
        "--num_processes",
        str(processes),
    ]
    command += [
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
        "--module",
        "tests.training.launched",
    ]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(
        [*command, str(base), str(output), *(json.dumps(asdict(config)) for config in configs)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def two(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes trained, in a folder for each `cache`. One launch, as starting takes longest."""
    folder = tmp_path_factory.mktemp("two")
    done = launch(2, base, folder, *(replace(CONFIG, cache=cache) for cache in CACHES))
    assert done.returncode == 0, done.stderr[-2000:]
    assert {"process 0 of 2", "process 1 of 2"} <= set(done.stdout.split("\n"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("cache", CACHES)
def test_two_processes_train_what_one_does(cache: str, base: Path, two: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, cache=cache)
    alone = train_policy(base, noise(), config, tmp_path / "alone", "policy", progress=False)
    together = read_history(two / cache / "training" / "policy" / "history.jsonl")
    assert [(row["step"], row["split"]) for row in together] == [(row["step"], row["split"]) for row in alone]
    for one, other in zip(alone, together, strict=True):
        assert {
            key: value for key, value in other.items() if key.startswith(("loss", "action_"))
        } == pytest.approx(
            {key: value for key, value in one.items() if key.startswith(("loss", "action_"))},
            rel=1e-4,
            abs=1e-5,
        )
    weights, others = (
        load_file(folder / "training" / "policy" / "resume" / "state.safetensors")
        for folder in (tmp_path / "alone", two / cache)
    )
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(
            others[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert (two / cache / "policy" / "model.safetensors").is_file()
    assert (two / cache / "training" / "activations").exists() == (cache == "on")


@pytest.mark.slow
def test_more_processes_than_frames_a_step_are_refused(base: Path, tmp_path: Path) -> None:
    done = launch(2, base, tmp_path / "two", replace(CONFIG, batch_size=1))
    assert done.returncode != 0 and "2 processes share steps of 1 frames" in done.stderr


WAYS: dict[str, dict[str, Any]] = {
    "upper": {"freeze_layers": 2},
    "full": {"mode": "full", "freeze_tower": False},
    "lora": {
        "mode": "lora",
        "adapter_preset": "authors",
        "adapter_form": "peft",
        "gradient_checkpointing": True,
        "base_share": 0.25,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", ["spatialvla", "openvla"])
def test_two_processes_train_released_models_as_one_does(model: str, way: str, tmp_path: Path) -> None:
    """Every part that trains gets a gradient in each process, or they would wait for each other for ever."""
    config = replace(CONFIG, cache="off", steps=2, batch_size=3, action_words="refitted", **WAYS[way])
    train_policy(FOLDER / model, noise(), config, tmp_path / "alone", "policy", progress=False)
    done = launch(2, FOLDER / model, tmp_path / "two", config)
    assert done.returncode == 0, done.stderr[-2000:]
    folders = (tmp_path / "alone", tmp_path / "two" / config.cache)
    states = [
        load_file(folder / "training" / "policy" / "resume" / "state.safetensors") for folder in folders
    ]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        torch.testing.assert_close(
            states[1][name], tensor, rtol=1e-3, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    saved = [load_vla(folder / "policy").model.state_dict() for folder in folders]
    assert all(torch.allclose(value, saved[1][name], atol=1e-2) for name, value in saved[0].items())


SHARDED = {"ACCELERATE_USE_FSDP": "true"}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["compact", "spatialvla", "openvla"])
def test_divided_among_two_processes_a_model_learns_what_it_learns_in_one(
    model: str, base: Path, tmp_path: Path
) -> None:
    """Everything trains. The run is stopped, and goes on in one process from what two have left.

    A weight whose gradient is nothing but rounding goes a step of 1e-3 this way or that, by the processor.
    """
    source = base if model == "compact" else FOLDER / model
    more = {} if model == "compact" else {"action_words": "refitted"}
    config = replace(CONFIG, cache="off", mode="full", freeze_tower=False, base_share=0.25, **more)
    train_policy(source, noise(), config, tmp_path / "alone", "policy", progress=False)
    stopped = launch(2, source, tmp_path / "two", config, **SHARDED, STOP_IN_THE_THIRD_STEP="yes")
    folder = tmp_path / "two" / config.cache
    state = folder / "training" / "policy" / "resume" / "state.json"
    assert stopped.returncode != 0 and json.loads(state.read_text())["step"] == 2, stopped.stderr[-2000:]
    shutil.copytree(folder, tmp_path / "one")
    train_policy(source, noise(), config, tmp_path / "one", "policy", progress=False)
    done = launch(2, source, tmp_path / "two", config, **SHARDED)
    assert done.returncode == 0, done.stderr[-2000:]
    folders = (tmp_path / "alone", tmp_path / "one", folder)
    for where in folders:
        *_, validated, averaged = read_history(where / "training" / "policy" / "history.jsonl")
        assert (validated["split"], averaged["split"]) == ("validation", "averaged")
        assert abs(averaged["loss"] - validated["loss"]) > 1e-3, "the average is another policy"
    alone, *others = (load_vla(where / "policy").model.state_dict() for where in folders)
    for other in others:
        assert alone.keys() == other.keys()
        for name, value in alone.items():
            torch.testing.assert_close(
                other[name], value, rtol=1e-2, atol=4e-3, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.slow
def test_weights_of_two_precisions_are_not_divided(base: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, cache="off", precision="bf16", frozen_weights="bf16")
    done = launch(2, base, tmp_path / "two", config, **SHARDED)
    assert done.returncode != 0 and "weights of 2 precisions cannot be divided" in done.stderr
