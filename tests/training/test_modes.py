"""What trains in each mode, adapters that end as plain weights, runs that stop early, and runs that are
stopped because the policy is lost.
"""

import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from refinevla_kit.errors import KitError
from refinevla_kit.policies import vla_policy
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.training import loop
from refinevla_kit.training.config import native_precision
from refinevla_kit.training.examples import Examples
from refinevla_kit.training.freezing import adapters, preset_of
from refinevla_kit.training.loop import check_collapse, fine_tune, validate
from refinevla_kit.training.objective import WholeModel, forward, lay_out, make_batch
from refinevla_kit.training.resume import RESUME
from refinevla_kit.vlas.compact import CompactVLA, load
from refinevla_kit.vlas.compact_parts import first_action_id
from tests.training.test_activation_cache import CONFIG, made, some

LORA = replace(CONFIG, mode="lora", freeze_layers=1, lora_rank=4, lora_alpha=8.0)
HELD_OUT = np.arange(24)


def moved(vla: CompactVLA, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in vla.model.state_dict().items() if not torch.equal(value, before[name])}


def copied(vla: CompactVLA) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in vla.model.state_dict().items()}


def test_everything_trains_in_full_mode_but_a_frozen_tower(tmp_path: Path) -> None:
    vla, examples = made(some()), some()
    before = copied(vla)
    fine_tune(vla, examples, replace(CONFIG, mode="full", freeze_layers=2), tmp_path, "p", progress=False)
    names = moved(vla, before)
    assert not [name for name in names if "vision_tower" in name]
    for part in ("projector", "embed_tokens", "layers.0.", "layers.2.", "lm_head"):
        assert any(part in name for name in names), part


def test_adapters_alone_train_and_touch_the_upper_language_layers_alone() -> None:
    vla = made(some())
    with adapters(vla, preset_of(vla, LORA), seed=0):
        trained = [name for name, p in vla.model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 7 * 2  # A and B of seven maps of layers 1 and 2
    assert all(
        ".lora_" in name and (".layers.1." in name or ".layers.2." in name) and "language_model" in name
        for name in trained
    )


@pytest.mark.slow
def test_adapters_print_no_warning_that_nobody_here_can_mend() -> None:
    code = "from tests.training.test_modes import *\nvla = made(some())\n"
    code += "with adapters(vla, preset_of(vla, LORA), seed=0): print('adapted')"
    command = [sys.executable, "-W", "default::FutureWarning", "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("adapted\n") and "is_gradient_checkpointing" not in done.stderr


@pytest.mark.parametrize("cache", ["on", "off"])
def test_a_run_with_adapters_lowers_the_loss_and_leaves_plain_weights(cache: str, tmp_path: Path) -> None:
    vla, examples = made(some()), some()
    before = copied(vla)
    config = replace(LORA, steps=25, learning_rate=1e-2, cache=cache, validate_every=25, save_every=25)
    history = fine_tune(vla, examples, config, tmp_path, "p", progress=False)
    losses = [row["loss"] for row in history if row["split"] == "train"]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    names = moved(vla, before)  # the same names as before: no trace of the adapters
    assert names and all(
        "proj.weight" in name and ("layers.1." in name or "layers.2." in name) for name in names
    )
    held_out = examples.split()[1]
    assert validate(vla, examples, held_out, config)["loss"] == pytest.approx(
        history[-1]["loss"], abs=5e-3
    )  # merged acts as the adapters did
    read = load(vla.save(tmp_path / "checkpoint"))
    assert all(
        torch.equal(value, vla.model.state_dict()[name]) for name, value in read.model.state_dict().items()
    )
    assert VLAPolicy(read, "p").act_batch(examples.images[:1], examples.instructions[:1])[0].tokens.shape == (
        7,
    )


def test_merging_changes_nothing_about_what_the_model_says() -> None:
    vla, examples = made(some()), some()
    batch = make_batch(vla, examples, np.arange(4), LORA)
    with adapters(vla, preset_of(vla, LORA), seed=0), torch.no_grad():
        for name, p in vla.model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
        adapted = forward(WholeModel(vla), vla, batch, LORA).total
    assert float(forward(WholeModel(vla), vla, batch, LORA).total.detach()) == pytest.approx(
        float(adapted), abs=1e-5
    )


@pytest.mark.parametrize(
    "config",
    [
        replace(CONFIG, cache="on", base_share=0.25),
        replace(CONFIG, mode="full", freeze_tower=False, base_share=0.5),
        replace(LORA, base_share=0.25),
    ],
    ids=["upper", "full", "lora"],
)
def test_a_policy_may_keep_a_share_of_its_base(config: loop.TrainingConfig, tmp_path: Path) -> None:
    """Its weights lie between the base's and those that it would have; the same when it is made again."""
    examples, base = some(), copied(made(some()))
    held_out, share = examples.split()[1], config.base_share
    vlas, histories = [], []
    for name in ("averaged", "averaged", "alone"):
        own = config if name == "averaged" else replace(config, base_share=0.0)
        vlas.append(made(some()))
        histories.append(fine_tune(vlas[-1], examples, own, tmp_path / name, "p", progress=False))
    averaged, again, alone = map(copied, vlas)
    assert moved(vlas[2], base), "it has learned something"
    for name, tensor in averaged.items():
        torch.testing.assert_close(
            tensor, share * base[name] + (1 - share) * alone[name], rtol=1e-4, atol=1e-6
        )
        assert torch.equal(tensor, again[name])
    last = histories[0][-1]
    assert histories[1] == histories[0] and last["split"] == "averaged" and last["step"] == config.steps
    assert validate(vlas[0], examples, held_out, config)["loss"] == pytest.approx(last["loss"], abs=5e-3)
    for one, other in zip(histories[0][:-1], histories[2], strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}, "until then the training is the same"


@pytest.mark.parametrize("config", [replace(LORA, base_share=0.5), replace(CONFIG, cache="on")])
def test_a_killed_run_continues_bit_for_bit_in_every_mode(
    config: loop.TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vla, examples = made(some()), some()
    whole = fine_tune(vla, examples, config, tmp_path / "whole", "p", progress=False)
    original, calls = loop.make_batch, []

    def killed(*args: object) -> object:
        calls.append(1)
        if len(calls) == 6:  # after the state of step 3
            raise KeyboardInterrupt
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "make_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(made(some()), examples, config, tmp_path / "killed", "p", progress=False)
    monkeypatch.undo()
    again = made(some())
    continued = fine_tune(again, examples, config, tmp_path / "killed", "p", progress=False)
    assert not moved(again, vla.model.state_dict())
    assert [row | {"seconds": 0} for row in continued] == [row | {"seconds": 0} for row in whole]
    assert fine_tune(made(some()), examples, config, tmp_path / "killed", "p", progress=False) == continued


def test_adapters_without_a_layer_to_sit_in_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(KitError, match="all 3 language layers are frozen"):
        fine_tune(made(some()), some(), replace(LORA, freeze_layers=3), tmp_path, "p", progress=False)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("mode", "half"), ("cache", "yes"), ("cache_precision", "fp8"), ("precision", "fp16")],
)
def test_unknown_settings_name_the_choices(setting: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(KitError, match=f"unknown {setting} {value!r}.* -> choose one of"):
        fine_tune(made(some()), some(), replace(CONFIG, **{setting: value}), tmp_path, "p", progress=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("alike", [False, True])
def test_frames_in_parts_are_the_same_step(alike: bool, tmp_path: Path) -> None:
    ends = []
    for parts in (1, 3):  # parts with unequal numbers of rationale tokens
        vla, config = made(some()), replace(CONFIG, accumulate=parts, texts_alike=alike)
        history = fine_tune(vla, some(), config, tmp_path / str(parts), "p", progress=False)
        ends.append((vla.model.state_dict(), history))
    for one, other in zip(ends[0][1], ends[1][1], strict=True):
        assert one | {"seconds": 0} == pytest.approx(other | {"seconds": 0}, abs=2e-4)
    assert all(torch.allclose(value, ends[1][0][name], atol=1e-3) for name, value in ends[0][0].items())


def test_frames_with_texts_of_like_lengths_are_computed_together() -> None:
    examples = replace(some(), rationales=tuple("far" * (row % 3) for row in range(24)))
    parts = loop._parts(np.arange(24), examples, 3)
    assert [{len(examples.rationales[row]) for row in part} for part in parts] == [{0}, {3}, {6}]
    (whole,) = loop._parts(np.arange(24), examples, 1)
    assert sorted(np.concatenate(parts)) == whole.tolist()


def test_every_other_frame_is_answered_the_other_way_round() -> None:
    examples, both = some(), replace(CONFIG, order="both", lambda_reasoning=1.0)
    rows = np.flatnonzero([bool(text) for text in examples.rationales])[:6]
    vla = made(examples)
    mixed = lay_out(vla, examples, rows, both)
    for place, row in enumerate(rows):
        one = replace(both, order=("action_first", "rationale_first")[row % 2])
        alone = lay_out(vla, examples, rows[place : place + 1], one)
        size = alone.input_ids.shape[1]
        assert torch.equal(mixed.input_ids[place, :size], alone.input_ids[0])
        assert torch.equal(mixed.kinds[place, :size], alone.kinds[0])
    assert both.orders[0] == "action_first" and CONFIG.orders == ("action_first",)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_run_without_progress_ends_early_and_stays_ended(share: float, tmp_path: Path) -> None:
    config = replace(CONFIG, steps=30, learning_rate=0.0, validate_every=2, early_stop=2, base_share=share)
    history = fine_tune(made(some()), some(), config, tmp_path, "p", progress=False)
    # the first evaluation, then two no better
    assert history[-1]["step"] == 6 and history[-1]["split"] == ("averaged" if share else "validation")
    assert fine_tune(made(some()), some(), config, tmp_path, "p", progress=False) == history


@pytest.mark.parametrize("order", ["action_first", "rationale_first"])
def test_the_same_action_everywhere_is_a_collapse(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vla_policy, "LONGEST_RATIONALE", 3)
    vla, examples, config = made(some()), some(), replace(CONFIG, order=order)
    favoured = torch.zeros(len(vla.tokenizer), 64)
    favoured[first_action_id(vla.tokenizer) + 5] = 1.0
    vla.model.lm_head.weight.data.copy_(favoured)
    vla.model.model.language_model.norm.register_forward_hook(
        lambda _, __, out: torch.ones_like(out)
    )  # blind: one state for all
    with pytest.raises(
        KitError,
        match=r"p has collapsed at step 7: its action is the same on 16 different held-out frames of \d+ "
        r"episodes",
    ):
        check_collapse(vla, examples, HELD_OUT, config, None, "p", 7)
    for judged in (
        replace(examples, actions=np.repeat(examples.actions[:1], 24, 0)),
        replace(examples, images=np.repeat(examples.images[:1], 24, 0)),
        replace(examples, episodes=np.zeros(24, np.int64)),
    ):
        check_collapse(vla, judged, HELD_OUT, config, None, "p", 7)  # then one action may be right
    check_collapse(vla, examples, HELD_OUT[:7], config, None, "p", 7)  # too few to judge


def test_a_policy_that_looks_has_not_collapsed() -> None:
    vla, examples = made(some()), some()
    vla.model.lm_head.weight.data[: first_action_id(vla.tokenizer)] = 0  # only actions can be likely
    check_collapse(vla, examples, HELD_OUT, CONFIG, None, "p", 7)


def silenced(examples: Examples) -> CompactVLA:
    """A policy whose most likely token is never an action."""
    vla = made(examples)
    first = first_action_id(vla.tokenizer)
    vla.model.lm_head.weight.data[first:] = 0
    return vla


def test_no_action_token_anywhere_is_an_error() -> None:
    examples = some()
    vla = silenced(examples)
    with pytest.raises(KitError, match="gives no action tokens at step 9: in 16 held-out frames"):
        check_collapse(vla, examples, HELD_OUT, CONFIG, None, "p", 9)


def test_a_collapse_stops_the_run_after_the_grace_and_leaves_the_state_before(tmp_path: Path) -> None:
    examples = replace(some(), episodes=np.array([0, 1] * 6 + [9] * 6 + [19] * 6))
    config = replace(CONFIG, learning_rate=1e-6, save_every=2, validate_every=2, collapse_grace=3, cache="on")
    with pytest.raises(KitError, match="gives no action tokens at step 4"):
        fine_tune(silenced(examples), examples, config, tmp_path, "p", progress=False)
    assert '"step": 2' in (tmp_path / RESUME / "state.json").read_text()
    fine_tune(
        silenced(examples), examples, replace(config, collapse_grace=None), tmp_path, "p", progress=False
    )  # too short a run to judge


def test_automatic_precision_is_settled_once_and_recorded_as_what_it_became() -> None:
    config = loop.TrainingConfig(steps=1)
    assert config.precision == native_precision()
    assert config.precision in ("bf16", "fp32")
    assert replace(config, precision="bf16").precision == "bf16"


def test_tensorboard_is_asked_for_by_name_and_gets_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(KitError, match="pip install tensorboard"):
        fine_tune(made(some()), some(), replace(CONFIG, tensorboard=True), tmp_path, "p", progress=False)
    seen: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str) -> None: ...
        def __enter__(self) -> "Writer":
            return self

        def __exit__(self, *_: object) -> None: ...
        def add_scalar(self, tag: str, value: float, step: int) -> None:
            seen.append((tag, value, step))

    stand_in = types.ModuleType("torch.utils.tensorboard")
    stand_in.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    history = fine_tune(
        made(some()), some(), replace(CONFIG, tensorboard=True), tmp_path, "p", progress=False
    )
    assert [(tag, step) for tag, _, step in seen if tag == "train/loss"] == [
        ("train/loss", step) for step in range(1, 7)
    ]
    assert ("validation/loss_action", history[-1]["loss_action"], 6) in seen
