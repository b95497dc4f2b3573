"""The check of a machine runs the same way in little on a CPU: every part of it, for both models."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from refinevla_kit.settings import REPOSITORY


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "scripts" / "gpu_check.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
def test_both_models_look_decode_and_learn() -> None:
    finished = run("--small", "--device", "cpu", "--batch", "2")
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout.splitlines()[-1])
    assert [world["steps_a_second"] > 0 for world in found["simulator"]] == [True, True]
    assert found["vulkan"] and found["compact"]["upper"]["step_s"] > 0
    assert [row["model"] for row in found["models"]] == ["spatialvla", "openvla"]
    for row in found["models"]:
        size = {"bf16": 2, "fp32": 4}[found["precision"]]
        assert row["weights_gb"] == row["parameters"] * size / 1e9, "one precision throughout"
        assert row["words_a_second_batch_2"] > row["answers_a_second_batch_2"] > 0
        assert row["sequence_tokens"] > 64 + 7
        for mode in ("lora", "upper"):
            assert row[mode]["loss_last"] < row[mode]["loss_first"], mode
            assert row[mode]["memory_gb"] > row["weights_gb"]


def test_a_machine_without_a_gpu_is_told_what_it_can_do() -> None:
    if torch.cuda.is_available():
        return
    finished = run()
    assert finished.returncode == 1
    assert finished.stderr.count("\n") == 1
    assert "--small --device cpu" in finished.stderr
