"""Joint training: the objective is the two averages it claims to be, frozen stays frozen, and a killed run
continues bit for bit.
"""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from refinevla_kit.errors import KitError
from refinevla_kit.policies.vla_policy import load_policy
from refinevla_kit.settings import LOOP, REPOSITORY, read_settings
from refinevla_kit.training import loop
from refinevla_kit.training.examples import Examples, find_rationales, join, rationales_of
from refinevla_kit.training.freezing import freeze_lower
from refinevla_kit.training.loop import TrainingConfig, fine_tune
from refinevla_kit.training.objective import Batch, WholeModel, forward, make_batch, tower_tokens
from refinevla_kit.training.policy_run import made_from, train_policy
from refinevla_kit.training.resume import HISTORY, read_history
from refinevla_kit.vlas.action_tokens import ActionTokens, UniformBins
from refinevla_kit.vlas.compact import CompactConfig, CompactVLA, build, load
from refinevla_kit.vlas.compact_parts import train_vocabulary
from refinevla_kit.vlas.contract import VLA
from refinevla_kit.vlas.sequence import ACTION_KIND, RATIONALE_KIND, pad_batch
from refinevla_kit.vlas.spherical_grid import SphericalGrid

SMALL = CompactConfig(layers=2, hidden=64, heads=2, feedforward=96, channels=16)
CONFIG = TrainingConfig(
    steps=6, batch_size=4, freeze_layers=1, precision="fp32", save_every=3, validate_every=3
)


@pytest.fixture
def examples() -> Examples:
    rng = np.random.default_rng(0)
    n = 24
    return Examples(
        images=rng.integers(0, 256, (n, 120, 160, 3), dtype=np.uint8),
        actions=rng.uniform(-0.04, 0.04, (n, 7)).astype(np.float32),
        episodes=np.repeat(np.arange(12), 2),
        instructions=("put carrot on plate", "stack the green block on the yellow block") * (n // 2),
        rationales=tuple(f"the carrot is {i} cm left of the plate" if i % 3 else "" for i in range(n)),
    )


@pytest.fixture
def vla(examples: Examples) -> CompactVLA:
    return build(
        SMALL,
        train_vocabulary([*examples.instructions, *examples.rationales]),
        UniformBins.fit(examples.actions),
        seed=0,
    )


def test_the_objective_is_the_mean_over_action_tokens_plus_lambda_times_that_over_rationale_tokens(
    vla: CompactVLA, examples: Examples
) -> None:
    batch = make_batch(vla, examples, np.arange(6), CONFIG)
    s = batch.sequences
    inputs = {
        "input_ids": s.input_ids,
        "attention_mask": s.attention_mask,
        "token_type_ids": s.token_type_ids,
    }
    with torch.no_grad():
        logits = vla.model(**inputs, pixel_values=batch.pixel_values).logits
    sums, counts = {ACTION_KIND: 0.0, RATIONALE_KIND: 0.0}, {ACTION_KIND: 0, RATIONALE_KIND: 0}
    for row in range(6):  # token by token, as the paper's formula reads
        for place in range(1, s.input_ids.shape[1]):
            kind = int(s.kinds[row, place])
            if kind in sums:
                sums[kind] -= float(logits[row, place - 1].log_softmax(-1)[s.input_ids[row, place]])
                counts[kind] += 1
    losses = forward(WholeModel(vla), vla, batch, CONFIG)
    assert counts[ACTION_KIND] == 6 * 7
    assert float(losses.action) == pytest.approx(sums[ACTION_KIND] / counts[ACTION_KIND], rel=1e-4)
    assert float(losses.reasoning) == pytest.approx(sums[RATIONALE_KIND] / counts[RATIONALE_KIND], rel=1e-4)
    assert float(losses.total) == pytest.approx(
        float(losses.action) + 0.3 * float(losses.reasoning), rel=1e-5
    )


def test_short_texts_count_as_much_as_long_ones_where_that_is_asked_for(
    vla: CompactVLA, examples: Examples
) -> None:
    texts = ("left.", "", "the carrot is 3 cm left of the plate, and the gripper is above it.")
    mixed = replace(examples, rationales=texts * 8)
    alike = replace(CONFIG, texts_alike=True)
    batches = [
        make_batch(vla, mixed, rows, alike) for rows in (np.array([0, 2]), np.array([0]), np.array([2]))
    ]
    both, short, long = (float(forward(WholeModel(vla), vla, one, alike).reasoning) for one in batches)
    assert both == pytest.approx((short + long) / 2, rel=1e-4) and abs(short - long) > 1e-2
    words = float(forward(WholeModel(vla), vla, batches[0], CONFIG).reasoning)
    assert abs(words - long) < abs(words - short)


def test_a_policy_that_is_always_right_has_no_action_error(vla: CompactVLA, examples: Examples) -> None:
    s = make_batch(vla, examples, np.arange(4), CONFIG).sequences
    certain = (
        50.0 * torch.nn.functional.one_hot(s.input_ids.roll(-1, 1), len(vla.tokenizer)).float()
    )  # place t names token t + 1
    losses = forward(lambda _: certain, vla, Batch(s), CONFIG)
    assert float(losses.action_accuracy) == 1 and float(losses.action_l1) == 0 and float(losses.total) < 1e-5


class Speaks(NamedTuple):
    """Of a VLA what the objective asks for."""

    first_action: int
    bins: ActionTokens
    is_action = VLA.is_action


@pytest.mark.parametrize("kind", [UniformBins, SphericalGrid])
def test_the_action_error_is_that_of_the_decoded_actions(kind: Any, examples: Examples) -> None:
    bins: ActionTokens = kind.fit(examples.actions)
    first, generator = 20, torch.Generator().manual_seed(0)
    words = bins.encode(examples.actions[:6])  # 6, T
    s = pad_batch(
        [[0]] * 6, [([1, *(first + row).tolist()], [0, *[ACTION_KIND] * len(row)]) for row in words], 0
    )
    logits = torch.randn((*s.input_ids.shape, first + bins.words), generator=generator)
    said = [
        logits[:, 1 + t, first + low : first + high].argmax(-1) + low
        for t, (low, high) in enumerate(bins.ranges)
    ]
    error = np.abs(
        bins.decode_normalised(torch.stack(said, 1).numpy()) - bins.decode_normalised(words)
    ).mean()
    vla: Any = Speaks(first, bins)
    losses = forward(lambda _: logits, vla, Batch(s), CONFIG)
    assert float(losses.action_l1) == pytest.approx(float(error), rel=1e-5)
    if kind is UniformBins:  # as it was when there was only one scheme
        assert float(error) == pytest.approx(
            np.abs(torch.stack(said, 1).numpy() - words).mean() * 2 / bins.words, rel=1e-5
        )


def test_spherical_words_train_act_and_come_back_from_disk(examples: Examples, tmp_path: Path) -> None:
    bins = SphericalGrid.fit(examples.actions)
    vla = build(
        SMALL,
        train_vocabulary([*examples.instructions, *examples.rationales], action_words=bins.words),
        bins,
        seed=0,
    )
    history = train_policy(
        vla.save(tmp_path / "base"), examples, replace(CONFIG, steps=2), tmp_path, "spherical", progress=False
    )
    assert {"action_accuracy", "action_l1", "loss_reasoning"} <= set(history[-1]) and np.isfinite(
        history[-1]["action_l1"]
    )
    action = load_policy(tmp_path / "spherical").act_batch(examples.images[:2], examples.instructions[:2])[1]
    assert action.tokens.shape == (3,) and action.processed.shape == (7,)


def test_data_of_another_unit_are_refused(vla: CompactVLA, examples: Examples, tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"do not fit the checkpoint's action tokens \(x: .*gripper: "):
        fine_tune(
            vla, replace(examples, actions=examples.actions * 1000), CONFIG, tmp_path, "p", progress=False
        )


def test_tokens_of_a_frozen_tower_are_as_good_as_the_picture(vla: CompactVLA, examples: Examples) -> None:
    rows = np.arange(4)
    from_pixels = forward(WholeModel(vla), vla, make_batch(vla, examples, rows, CONFIG), CONFIG)
    from_tokens = forward(
        WholeModel(vla),
        vla,
        make_batch(vla, examples, rows, CONFIG, tower_tokens(vla, examples.images)),
        CONFIG,
    )
    assert float(from_tokens.total) == pytest.approx(
        float(from_pixels.total), rel=1e-3
    )  # stored in half precision


def test_without_the_reasoning_loss_no_rationale_enters_the_sequence(
    vla: CompactVLA, examples: Examples
) -> None:
    batch = make_batch(vla, examples, np.arange(6), replace(CONFIG, lambda_reasoning=0.0))
    assert not (batch.sequences.kinds == RATIONALE_KIND).any()


def test_what_is_frozen_stays_as_it_was_and_the_rest_moves(
    vla: CompactVLA, examples: Examples, tmp_path: Path
) -> None:
    before = {name: p.detach().clone() for name, p in vla.model.named_parameters()}
    fine_tune(vla, examples, CONFIG, tmp_path, "p", progress=False)
    moved = {name for name, p in vla.model.named_parameters() if not torch.equal(p, before[name])}
    assert not [
        name
        for name in moved
        if "vision_tower" in name or "projector" in name or "embed_tokens" in name or "layers.0." in name
    ]
    assert "lm_head.weight" in moved and any("layers.1." in name for name in moved)


def test_freezing_more_layers_than_there_are_is_an_error(vla: CompactVLA) -> None:
    with pytest.raises(KitError, match="choose 0 to 2"):
        freeze_lower(vla, 3)


def test_training_lowers_both_losses(vla: CompactVLA, examples: Examples, tmp_path: Path) -> None:
    history = fine_tune(
        vla,
        examples,
        replace(CONFIG, steps=40, learning_rate=3e-3, freeze_layers=0),
        tmp_path,
        "p",
        progress=False,
    )
    train = [row for row in history if row["split"] == "train"]
    for part in ("loss_action", "loss_reasoning"):
        assert np.mean([row[part] for row in train[-5:]]) < 0.7 * np.mean([row[part] for row in train[:5]])


def test_a_killed_run_continues_as_if_nothing_had_happened(
    vla: CompactVLA, examples: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = {name: value.clone() for name, value in vla.model.state_dict().items()}
    whole = fine_tune(vla, examples, CONFIG, tmp_path / "whole", "p", progress=False)
    expected = {name: value.clone() for name, value in vla.model.state_dict().items()}

    vla.model.load_state_dict(start)
    from refinevla_kit.training import loop

    calls = []
    original = loop.make_batch

    def killed(*args: object) -> object:
        calls.append(1)
        if len(calls) == 7:  # in the fourth step or its evaluation: after the state of step 3
            raise KeyboardInterrupt
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "make_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(vla, examples, CONFIG, tmp_path / "killed", "p", progress=False)
    monkeypatch.undo()
    vla.model.load_state_dict(start)
    continued = fine_tune(vla, examples, CONFIG, tmp_path / "killed", "p", progress=False)
    assert all(torch.equal(value, expected[name]) for name, value in vla.model.state_dict().items())
    for one, other in zip(continued, whole, strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}
    assert read_history(tmp_path / "killed" / HISTORY) == continued


def test_a_state_of_another_configuration_is_refused(
    vla: CompactVLA, examples: Examples, tmp_path: Path
) -> None:
    fine_tune(vla, examples, CONFIG, tmp_path, "p", progress=False)
    with pytest.raises(KitError, match="another learning_rate"):
        fine_tune(vla, examples, replace(CONFIG, learning_rate=1e-3), tmp_path, "p", progress=False)


def test_the_reasoning_loss_without_rationales_is_an_error(
    vla: CompactVLA, examples: Examples, tmp_path: Path
) -> None:
    with pytest.raises(KitError, match="no frame has a rationale"):
        fine_tune(
            vla, replace(examples, rationales=("",) * len(examples)), CONFIG, tmp_path, "p", progress=False
        )


def test_bins_are_refitted_where_another_robot_moves_further(
    vla: CompactVLA, examples: Examples, tmp_path: Path
) -> None:
    """Its actions come back, to half a bin but for a few; with the base's bins they are refused."""
    base = vla.save(tmp_path / "base")
    far = replace(examples, actions=np.concatenate([5 * examples.actions[:, :6], examples.actions[:, 6:]], 1))
    with pytest.raises(KitError, match=r"do not fit .* train with action_words=\"refitted\""):
        train_policy(base, far, CONFIG, tmp_path, "policy", progress=False)
    refitted = replace(CONFIG, action_words="refitted")
    train_policy(base, far, refitted, tmp_path, "policy", progress=False)
    bins = load(tmp_path / "policy").bins
    lost = np.abs(bins.decode(bins.encode(far.actions)) - far.actions)
    assert np.quantile(lost, 0.9) <= max(bins.limits) / bins.words  # what is beyond the limits is cut
    with pytest.raises(KitError, match='have no grid to adapt -> take "refitted"'):
        train_policy(base, far, replace(CONFIG, action_words="adapted"), tmp_path, "other", progress=False)


def test_a_policy_run_leaves_a_checkpoint_that_says_where_it_came_from(
    vla: CompactVLA, examples: Examples, tmp_path: Path
) -> None:
    base = vla.save(tmp_path / "base")
    history = train_policy(base, examples, CONFIG, tmp_path, "with_reasoning", progress=False)
    origin = load(tmp_path / "with_reasoning").provenance
    assert origin["training"]["lambda_reasoning"] == 0.3 and origin["order"] == "action_first"
    assert origin["validation"] == history[-1]


def test_a_base_with_other_action_tokens_is_another_base(
    vla: CompactVLA, examples: Examples, tmp_path: Path
) -> None:
    wider = replace(vla, bins=UniformBins(tuple(2 * limit for limit in vla.bins.limits)))
    bases = [vla.save(tmp_path / "base"), wider.save(tmp_path / "wider"), vla.save(tmp_path / "copy")]
    first, other, same = (made_from(base, examples, CONFIG) for base in bases)
    assert first != other and first == same


def test_a_few_episodes_train_without_anything_held_out(
    vla: CompactVLA, examples: Examples, tmp_path: Path
) -> None:
    history = fine_tune(
        vla, replace(examples, episodes=examples.episodes % 2), CONFIG, tmp_path, "p", progress=False
    )
    assert {row["split"] for row in history} == {"train"}


def test_a_state_made_from_another_base_or_other_rationales_is_refused(
    vla: CompactVLA, examples: Examples, tmp_path: Path
) -> None:
    other = build(SMALL, vla.tokenizer, vla.bins, seed=1)
    fine_tune(vla, examples, CONFIG, tmp_path, "p", progress=False)
    with pytest.raises(KitError, match="another base"):
        fine_tune(other, examples, CONFIG, tmp_path, "p", progress=False)
    first = build(SMALL, vla.tokenizer, vla.bins, seed=0)
    with pytest.raises(KitError, match="another data"):
        fine_tune(
            first,
            replace(examples, rationales=examples.rationales[::-1]),
            CONFIG,
            tmp_path,
            "p",
            progress=False,
        )


def test_a_damaged_state_says_how_to_start_again(vla: CompactVLA, examples: Examples, tmp_path: Path) -> None:
    fine_tune(vla, examples, CONFIG, tmp_path, "p", progress=False)
    (tmp_path / "resume" / "state.safetensors").write_bytes(b"half")
    with pytest.raises(KitError, match="delete that folder"):
        fine_tune(
            build(SMALL, vla.tokenizer, vla.bins, seed=0), examples, CONFIG, tmp_path, "p", progress=False
        )


WRONG = [
    ({"steps": 0}, "steps is 0 -> give a whole number, 1 or more"),
    ({"steps": -3}, "steps is -3"),
    ({"steps": 2.5}, "steps is 2.5"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"freeze_layers": -1}, "freeze_layers is -1"),
    ({"save_every": -1}, "save_every is -1"),
    ({"seed": -1}, "seed is -1"),
    ({"learning_rate": -1.0}, "learning_rate is -1.0 -> give a number, 0 or more"),
    ({"learning_rate": float("nan")}, "learning_rate is nan"),
    ({"learning_rate": float("inf")}, "learning_rate is inf"),
    ({"learning_rate": "1e-4"}, "learning_rate is '1e-4'"),
    ({"lambda_reasoning": -1.0}, "lambda_reasoning is -1.0"),
    ({"lambda_reasoning": float("nan")}, "lambda_reasoning is nan"),
    ({"weight_decay": -0.1}, "weight_decay is -0.1"),
    (
        {"warmup": 2.0, "steps": 100},
        r"warmup is 2 -> give the share of the steps .*; for 2 of the 100 steps give 0\.02",
    ),
    ({"warmup": 1}, "warmup is 1 "),
    ({"base_share": 1.0}, "base_share is 1 -> give the share of the base in the average, 0 to less than 1"),
    ({"freeze_tower": "no"}, "freeze_tower is 'no'"),
    ({"seed": 2**64}, "seed is 18446744073709551616"),
    ({"accumulate": 5}, "4 frames a step cannot be computed in 5 parts"),
    ({"early_stop": 2, "validate_every": 0}, "validate_every=0 makes none"),
]


@pytest.mark.parametrize(("setting", "says"), WRONG, ids=[str(setting) for setting, _ in WRONG])
def test_a_setting_that_cannot_work_is_refused_when_it_is_made(setting: dict[str, Any], says: str) -> None:
    with pytest.raises(KitError, match=says):
        replace(CONFIG, **setting)


def test_more_layers_than_there_are_cannot_be_frozen(
    vla: CompactVLA, examples: Examples, tmp_path: Path
) -> None:
    with pytest.raises(KitError, match=r"cannot freeze 3 of 2 .* choose 0 to 2"):
        fine_tune(vla, examples, replace(CONFIG, freeze_layers=3), tmp_path, "p", progress=False)
    assert not list(tmp_path.iterdir())


def test_numpys_own_numbers_are_settings(vla: CompactVLA, examples: Examples, tmp_path: Path) -> None:
    config = replace(CONFIG, steps=np.int64(2), learning_rate=np.float32(1e-3), seed=np.int32(1))
    assert fine_tune(vla, examples, config, tmp_path, "p", progress=False)[-1]["step"] == 2


def test_zero_is_never(vla: CompactVLA, examples: Examples, tmp_path: Path) -> None:
    config = replace(CONFIG, validate_every=0, save_every=0, warmup=0, clip=0, base_share=0.5)
    history = fine_tune(vla, examples, config, tmp_path, "p", progress=False)
    assert {row["split"] for row in history} == {"train"} and len(history) == 6
    assert read_history(tmp_path / HISTORY) == history and not (tmp_path / "resume").exists()


def test_a_run_that_never_validated_says_so_in_its_checkpoint(
    vla: CompactVLA, examples: Examples, tmp_path: Path
) -> None:
    train_policy(
        vla.save(tmp_path / "base"),
        examples,
        replace(CONFIG, steps=1, validate_every=0),
        tmp_path,
        "p",
        progress=False,
    )
    assert load(tmp_path / "p").provenance["validation"] is None


@pytest.mark.parametrize("name", ["", "..", "a/b", "training"])
def test_a_name_that_is_no_folders_is_refused(
    vla: CompactVLA, examples: Examples, tmp_path: Path, name: str
) -> None:
    base = vla.save(tmp_path / "base")
    with pytest.raises(KitError, match=r"cannot be its folder's name -> choose another"):
        train_policy(base, examples, CONFIG, tmp_path, name, progress=False)
    with pytest.raises(KitError, match="is the base itself"):
        train_policy(base, examples, CONFIG, tmp_path, "base", progress=False)


def test_episodes_that_would_all_be_held_out_are_trained_on(
    vla: CompactVLA, examples: Examples, tmp_path: Path
) -> None:
    alone = replace(examples, episodes=np.full(len(examples), 9))
    training, validation = alone.split()
    assert len(training) == len(alone) and not len(validation)
    assert [
        row["split"] for row in fine_tune(vla, alone, replace(CONFIG, steps=2), tmp_path, "p", progress=False)
    ] == ["train"] * 2


@pytest.mark.parametrize("width", [None, 0, 7])
def test_data_without_the_kits_own_state_train_a_policy_that_reads_none(
    examples: Examples, tmp_path: Path, width: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = train_vocabulary([*examples.instructions, *examples.rationales])
    base = build(replace(SMALL, proprioception=True), words, UniformBins.fit(examples.actions), seed=0).save(
        tmp_path / "base"
    )
    assert load_policy(base).needs_proprioception
    own = None if width is None else np.zeros((len(examples), width), np.float32)
    train_policy(base, replace(examples, proprioception=own), replace(CONFIG, cache="on"), tmp_path, "p")
    policy = load_policy(tmp_path / "p")
    assert not policy.needs_proprioception and policy.vla.image_tokens == policy.vla.patches
    assert not policy.vla.provenance["reads_state"]
    alone, given = (
        policy.act_batch(examples.images[:2], examples.instructions[:2], state)
        for state in (None, np.ones((2, 15), np.float32))
    )
    assert np.array_equal(alone[1].log_probability, given[1].log_probability)
    assert "p will not read the robot's own state" in "".join(capsys.readouterr())


def test_a_state_that_is_no_number_is_named(vla: CompactVLA, examples: Examples, tmp_path: Path) -> None:
    own = np.zeros((len(examples), 15), np.float32)
    own[5, 3] = np.nan
    with pytest.raises(KitError, match="no number, first in episode 2"):
        fine_tune(vla, replace(examples, proprioception=own), CONFIG, tmp_path, "p", progress=False)


def test_what_is_held_out_does_not_depend_on_what_it_is_joined_with(examples: Examples) -> None:
    many = replace(examples, episodes=np.arange(len(examples)) % 13)
    many = replace(many, episodes=np.sort(many.episodes))
    _, alone = many.split()
    _, joined = join([many, many]).split()
    assert len(alone) and joined.tolist() == [*alone, *(alone + len(many))]


def test_pictures_of_two_sizes_are_not_joined(examples: Examples) -> None:
    with pytest.raises(KitError, match=r"pictures of 2 sizes \(80 x 60 and 160 x 120\)"):
        join([examples, replace(examples, images=examples.images[:, ::2, ::2])])


STATES: dict[str, tuple[Any, str]] = {
    "a tensor less": (
        lambda s: {k: v for k, v in s.items() if k != "model.lm_head.weight"},
        r"1 tensors differ: model\.lm_head\.weight",
    ),
    "a tensor more": (
        lambda s: s | {"model.x.lora_A": torch.zeros(2)},
        r"1 tensors differ: model\.x\.lora_A",
    ),
    "another shape": (
        lambda s: s | {"optimizer.0.exp_avg": torch.zeros(2)},
        r"1 tensors differ: optimizer\.0\.exp_avg",
    ),
    "no number": (
        lambda s: s | {"optimizer.0.step": torch.tensor(torch.nan)},
        r"no number \(optimizer\.0\.step\)",
    ),
}


@pytest.mark.parametrize("kind", STATES)
def test_a_state_whose_tensors_are_not_the_models_is_refused(
    vla: CompactVLA, examples: Examples, tmp_path: Path, kind: str
) -> None:
    change, says = STATES[kind]
    fine_tune(vla, examples, CONFIG, tmp_path, "p", progress=False)
    file = tmp_path / "resume" / "state.safetensors"
    save_file(change(load_file(file)), file)
    with pytest.raises(KitError, match=says):
        fine_tune(
            build(SMALL, vla.tokenizer, vla.bins, seed=0), examples, CONFIG, tmp_path, "p", progress=False
        )


def test_a_state_without_its_history_says_how_to_start_again(
    vla: CompactVLA, examples: Examples, tmp_path: Path
) -> None:
    fine_tune(vla, examples, CONFIG, tmp_path, "p", progress=False)
    (tmp_path / "resume" / "rows.jsonl").unlink()
    with pytest.raises(KitError, match=r"cannot be read .*rows\.jsonl.* delete that folder"):
        fine_tune(
            build(SMALL, vla.tokenizer, vla.bins, seed=0), examples, CONFIG, tmp_path, "p", progress=False
        )


def test_rationales_in_the_run_folder_come_before_those_beside_the_dataset(tmp_path: Path) -> None:
    dataset, run = tmp_path / "mine", tmp_path / "run"
    for folder in (dataset / "rationales", run):
        folder.mkdir(parents=True)
    (dataset / "rationales" / "oracle-segment.parquet").touch()
    assert find_rationales(dataset, run) == dataset / "rationales" / "oracle-segment.parquet"
    (run / "mine-oracle-segment.parquet").touch()
    (run / "other-oracle-segment.parquet").touch()
    (run / "mine-2-oracle-segment.parquet").touch()  # of a dataset called mine-2
    assert find_rationales(dataset, run) == run / "mine-oracle-segment.parquet"
    with pytest.raises(KitError, match="no rationales beside it"):
        find_rationales(tmp_path)


def test_a_notebook_takes_the_table_that_it_is_given_else_what_its_run_wrote_last(tmp_path: Path) -> None:
    annotation, tuning = (read_settings(name, "smoke", str(tmp_path)) for name in LOOP[:2])
    dataset, tables = annotation.folder / "dataset", annotation.folder / "rationales"
    tables.mkdir()
    for teacher in ("gemini", "oracle"):
        (tables / f"dataset-{teacher}-segment.parquet").touch()
    last = annotation.remember(f"rationales of {dataset}", tables / "dataset-gemini-segment.parquet")
    assert rationales_of(tuning, dataset) == last
    given = str(tables / "dataset-oracle-segment.parquet")
    assert rationales_of(tuning, dataset, given) == Path(given)


def test_of_several_tables_the_runs_own_is_taken_else_the_newest_and_that_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "rationales"
    folder.mkdir(parents=True)
    for age, teacher in enumerate(("zephyr", "gemini", "oracle")):
        (folder / f"{teacher}-segment.parquet").touch()
        os.utime(folder / f"{teacher}-segment.parquet", (1e9 - age, 1e9 - age))
    with pytest.warns(
        UserWarning,
        match=r"zephyr-segment\.parquet .*newest.*gemini-segment\.parquet, oracle-segment\.parquet",
    ):
        assert find_rationales(tmp_path / "mine").name == "zephyr-segment.parquet"
    assert (
        find_rationales(tmp_path / "mine", last=folder / "gemini-segment.parquet").name
        == "gemini-segment.parquet"
    )


def test_a_table_of_refusals_alone_is_not_preferred(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "rationales"
    folder.mkdir(parents=True)
    told = REPOSITORY / "data" / "demo" / "rationales" / "oracle-segment.parquet"
    shutil.copyfile(told, folder / "gemini-segment.parquet")
    rows = pq.read_table(told)
    nothing = pa.array(["no_state"] * len(rows))
    for name in ("observation", "situation_analysis", "spatial_reasoning", "task_planning"):
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.nulls(len(rows), pa.string()))
    rows = rows.set_column(rows.schema.get_field_index("refusal_kind"), "refusal_kind", nothing)
    pq.write_table(rows, folder / "oracle-segment.parquet")
    os.utime(folder / "gemini-segment.parquet", (1e9, 1e9))
    assert find_rationales(tmp_path / "mine").name == "gemini-segment.parquet"


def test_a_folder_that_is_no_checkpoint_is_never_replaced(examples: Examples, tmp_path: Path) -> None:
    mine = tmp_path / "policy" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(KitError, match=r"policy is no checkpoint and would be replaced -> give another name"):
        train_policy("nowhere", examples, CONFIG, tmp_path, "policy", progress=False)
    assert mine.read_text() == "mine"


def test_frames_without_an_action_teach_none(vla: CompactVLA, examples: Examples, tmp_path: Path) -> None:
    none = replace(examples, actions=np.full_like(examples.actions, np.nan))
    with pytest.raises(KitError, match="no frame has an action of seven numbers"):
        fine_tune(vla, none, replace(CONFIG, lambda_reasoning=0), tmp_path, "p", progress=False)


def test_a_lack_of_memory_is_one_line(
    vla: CompactVLA, examples: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("refinevla_kit.training.loop.forward", full)
    with pytest.raises(KitError, match=r"a step of p does not fit \(CUDA out .*\) -> raise accumulate"):
        fine_tune(vla, examples, CONFIG, tmp_path, "p", progress=False)


def test_each_process_has_as_many_parts_of_a_step(vla: CompactVLA, examples: Examples) -> None:
    """Dividing a model, they wait for one another at each."""
    counts = []
    for number in range(8):
        run: Any = SimpleNamespace(
            accelerator=SimpleNamespace(num_processes=8, process_index=number),
            config=replace(CONFIG, batch_size=30, accumulate=4),
            examples=join([examples] * 3),
            training=np.arange(30),
        )
        counts.append(len(loop._Run._parts(run, 0)))
    assert counts == [3] * 8
