"""The script that is launched on GPUs trains a policy that notebooks can take, and says what is wrong in one
line. The shipped configurations are what accelerate reads.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig

from refinevla_kit.policies import load_policy
from refinevla_kit.settings import REPOSITORY

BASE, DEMO = REPOSITORY / "data" / "checkpoints" / "compact_base", REPOSITORY / "data" / "demo"
CONFIGURATIONS = sorted((REPOSITORY / "scripts" / "accelerate").glob("*.yaml"))


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.train", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_policy_is_trained_and_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    how = ("-p", "steps=2", "-p", "batch_size=4", "-p", "freeze_layers=3", "-p", "cache=off")
    done = run(BASE, DEMO, tmp_path, *how)
    assert done.returncode == 0, done.stderr[-2000:]
    policy = load_policy(tmp_path / "with_reasoning")
    training = policy.vla.provenance["training"]
    assert (training["steps"], training["batch_size"], training["lambda_reasoning"]) == (2, 4, 0.3)
    written = (tmp_path / "with_reasoning" / "model.safetensors").read_bytes()
    assert run(BASE, DEMO, tmp_path, *how).returncode == 0
    assert (tmp_path / "with_reasoning" / "model.safetensors").read_bytes() == written


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    done = run(BASE, DEMO, tmp_path, "-p", "step=2")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "train: step is no setting of training -> give one of steps, batch_size" in done.stderr


def test_what_a_dataset_was_told_to_be_is_told_to_training_too(tmp_path: Path) -> None:
    done = run(BASE, DEMO, tmp_path, "--column", "action=command")
    assert done.returncode == 1 and "train: " in done.stderr and "'command'" in done.stderr


def test_columns_are_given_as_parameters_are(tmp_path: Path) -> None:
    done = run(BASE, DEMO, tmp_path, "--column", "command")
    assert done.returncode == 1 and "train: 'command' is not name=value" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", [("--without-rationales",), ("-p", "lambda_reasoning=0"), ()])
def test_rationales_are_asked_for_where_they_are_trained_on_alone(
    how: tuple[str, ...], tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(DEMO, bare, ignore=shutil.ignore_patterns("rationales"))
    done = run(tmp_path / "no_base", bare, tmp_path / "out", *how)
    assert done.returncode == 1
    assert ("has no rationales beside it" in done.stderr) == (not how)
    assert ("no_base" in done.stderr) == bool(how), "the dataset is read, and the base comes next"


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_accelerate_reads_the_shipped_configurations(path: Path) -> None:
    config = ClusterConfig.from_yaml_file(str(path))
    assert config.num_machines == 1 and config.mixed_precision == "no"
    told = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert (path.stem == "fsdp") == (told["distributed_type"] == "FSDP")
    assert (path.stem == "one_gpu") == (config.num_processes == 1)
