"""What is said to be needed is what training takes, and what fits is found."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from typer.testing import CliRunner

from refinevla_kit.cli import app
from refinevla_kit.errors import KitError
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.training import loop
from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.examples import Examples
from refinevla_kit.training.freezing import freeze_lower, lighten
from refinevla_kit.training.loop import fine_tune
from refinevla_kit.training.plan import CARDS, WORDS, Job, parse_gpus, plan, skeleton_of, table
from refinevla_kit.training.step_cost import step_cost
from refinevla_kit.vlas import load_vla
from refinevla_kit.vlas.contract import VLA
from refinevla_kit.vlas.random_start import (
    random_openvla,
    random_spatialvla,
    small_openvla,
    small_spatialvla,
)
from tests.vlas.reference import FOLDER

FRAMES = 4
UPPER = ("upper layers",)
COMPACT = REPOSITORY / "data" / "checkpoints" / "compact_base"
MAKERS: dict[str, Any] = {
    "spatialvla": (random_spatialvla, small_spatialvla),
    "openvla": (random_openvla, small_openvla),
}
COUNTED = ("compact", *MAKERS)
WAYS: dict[str, dict[str, Any]] = {
    "upper": {"freeze_layers": 1},
    "lora": {"mode": "lora", "freeze_layers": 0},
    "full": {"mode": "full"},
    "recomputed": {"mode": "full", "gradient_checkpointing": True},
    "light": {"freeze_layers": 1, "precision": "bf16", "frozen_weights": "bf16"},
}


def examples(vla: VLA, frames: int = FRAMES) -> Examples:
    """Noise of the size that the model takes."""
    width, height = vla.image_size
    rng = np.random.default_rng(0)
    return Examples(
        rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8),
        rng.uniform(-0.004, 0.004, (frames, 7)).astype(np.float32),
        np.zeros(frames, np.int64),
        ("put carrot on plate",) * frames,
        (WORDS,) * frames,
        proprioception=np.zeros((frames, 15), np.float32) if vla.reads_state else None,
    )


def model(name: str, device: str) -> VLA:
    if name == "compact":
        vla = load_vla(COMPACT)
        vla.model.to(torch.device(device))
        return vla
    make, sizes = MAKERS[name]
    actions = np.random.default_rng(0).uniform(-0.004, 0.004, (FRAMES, 7))
    made: VLA = make(sizes(), ["put carrot on plate", WORDS], actions, device=device)
    return made


def measured(vla: VLA, data: Examples, config: TrainingConfig, folder: Path) -> int:
    """Bytes that torch's own allocator gave out at most, weights included, in two steps of the loop."""
    weights = sum(parameter.nbytes for parameter in vla.model.parameters())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        fine_tune(vla, data, config, folder, "measured", progress=False)
    now = most = 0
    for event in profiled.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return weights + most


def said_and_measured(name: str, way: str, folder: Path) -> tuple[int, int]:
    """Bytes at most, pictures looked at in each step: what is said, and what two steps take."""
    fixed: dict[str, Any] = {"cache": "off", "validate_every": 0, "save_every": 0, "precision": "fp32"}
    config = TrainingConfig(2, batch_size=FRAMES, **{**fixed, **WAYS[way]})
    vla = model(name, "cpu")
    data = examples(vla)
    said = step_cost(model(name, "meta"), config, data, at_once=False)
    assert said.flops > 0 and said.activations > 0
    if config.frozen_weights == "bf16":  # before it is weighed
        freeze_lower(vla, config.depth, config.tower_frozen)
        lighten(vla)
    with patch.object(loop._Run, "_keep", lambda *_: None):  # looked at in each step
        return said.peak, measured(vla, data, config, folder)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", COUNTED)
def test_what_is_said_is_what_a_step_takes(name: str, way: str, tmp_path: Path) -> None:
    said, taken = said_and_measured(name, way, tmp_path)
    assert said == pytest.approx(taken, rel=0.15)


def test_more_frames_at_once_take_more_and_computing_again_takes_less() -> None:
    config = TrainingConfig(1, batch_size=FRAMES, mode="full", precision="fp32")
    data = examples(model("openvla", "meta"))
    whole = step_cost(model("openvla", "meta"), config, data)
    one = step_cost(model("openvla", "meta"), config, examples(model("openvla", "meta"), 1))
    again = step_cost(model("openvla", "meta"), replace(config, gradient_checkpointing=True), data)
    assert one.activations < again.activations < whole.activations
    assert one.flops < whole.flops < again.flops
    assert whole.flops == pytest.approx(FRAMES * one.flops, rel=0.05)


def test_a_small_card_gets_smaller_parts_until_nothing_fits() -> None:
    job = Job(1000, batch=8)
    (roomy,) = plan(COMPACT, job, parse_gpus("1x80"), ways=UPPER)
    assert roomy.fits and roomy.config.accumulate == 1
    assert roomy.cache > 0, "its frozen part can be kept"
    tight = replace(parse_gpus("1x16"), gigabytes=0.9 * roomy.peak / 0.92e9)
    (smaller,) = plan(COMPACT, job, tight, ways=UPPER)
    assert smaller.fits and smaller.config.accumulate > 1 and smaller.peak <= tight.usable
    (none,) = plan(COMPACT, job, replace(tight, gigabytes=1e-6), ways=UPPER)
    assert not none.fits and none.config.accumulate == 8 and none.config.gradient_checkpointing


def test_several_gpus_share_what_one_cannot_hold() -> None:
    job = Job(1000, batch=8)
    (whole,) = plan(COMPACT, job, parse_gpus("1x80"), ways=["everything"])
    tight = replace(parse_gpus("4x80"), gigabytes=1e-3)
    (shared,) = plan(COMPACT, job, tight, ways=["everything"])
    assert shared.sharded and not shared.fits
    assert shared.cost.memory.total == whole.cost.memory.total
    assert shared.peak < whole.peak


def test_hours_and_money_follow_from_what_is_assumed() -> None:
    job = Job(10_000, batch=8, epochs=2)
    one = parse_gpus("1x80", tflops=100, price=3)
    (first,) = plan(COMPACT, job, one, ways=UPPER)
    assert first.hours == pytest.approx(first.cost.flops / 8 * 20_000 / (100e12 * 0.3) / 3600)
    text = table([first], job, one)
    assert "2,500 steps" in text and "100 TFLOPS" in text and f"{3 * first.hours:,.0f} |" in text


def test_the_command_plans_for_the_frames_of_a_dataset() -> None:
    arguments = [
        "plan",
        "--base",
        str(COMPACT),
        "--dataset",
        str(REPOSITORY / "data" / "demo"),
        "--gpus",
        "2x24",
    ]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    said = json.loads(result.stdout.splitlines()[-1])
    info = json.loads((REPOSITORY / "data" / "demo" / "meta" / "info.json").read_text(encoding="utf-8"))
    assert said["frames"] == info["total_frames"]
    assert all(way["fits"] for way in said["ways"].values())
    assert CARDS[24][0] in result.stdout


@pytest.mark.parametrize("wrong", ["", "80", "1x", "0x80", "1x0", "ax80", "1 x 80"])
def test_gpus_are_written_in_one_way(wrong: str) -> None:
    with pytest.raises(KitError, match="write COUNTxGIGABYTES"):
        parse_gpus(wrong)


def test_what_cannot_be_planned_is_one_line() -> None:
    with pytest.raises(KitError, match="give either --dataset or --frames"):
        CliRunner().invoke(app, ["plan", "--base", "openvla"], catch_exceptions=False)
    with pytest.raises(KitError, match="16 GPUs share steps of 8 frames -> raise the batch"):
        plan(COMPACT, Job(1000, batch=8), parse_gpus("16x80"))


def test_of_a_model_of_the_hub_its_sizes_alone_are_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(name: str, files: Any, *_: Any) -> Path:
        asked.append((name, tuple(files)))
        return FOLDER / "openvla"

    monkeypatch.setattr("refinevla_kit.hub.download", download)
    assert len(skeleton_of("somebody/openvla").layers) == 3
    assert asked == [("somebody/openvla", ("config.json",))]


@pytest.mark.parametrize(
    "numbers", [(0.0, None), (-5.0, None), (math.inf, None), (None, -3.0), (None, math.nan)]
)
def test_speed_and_price_are_above_zero(numbers: tuple[float | None, float | None]) -> None:
    with pytest.raises(KitError, match=r"(tflops|price) is .* -> give a number above 0"):
        parse_gpus("1x80", *numbers)


@pytest.mark.parametrize("kind", ["spatialvla", "openvla"])
def test_sizes_that_make_no_model_are_one_line(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(KitError, match=f"its config.json makes no {kind}"):
        skeleton_of(tmp_path)
