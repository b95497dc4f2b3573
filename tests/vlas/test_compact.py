"""The compact VLA: saved and read back it is the same policy; cached decoding says what the full forward
says.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.utils import are_progress_bars_disabled
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from refinevla_kit.conventions import GOOGLE_ROBOT
from refinevla_kit.episodes import DatasetWriter, Episode, open_dataset
from refinevla_kit.episodes.contract import ACTION_NAMES, STATE_NAMES
from refinevla_kit.errors import KitError
from refinevla_kit.policies.conversion import ActionConversion
from refinevla_kit.policies.vla_policy import DECODINGS, VLAPolicy, load_policy
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.training.examples import load_examples
from refinevla_kit.vlas.action_tokens import BINS, STATISTICS, UniformBins
from refinevla_kit.vlas.compact import CompactConfig, CompactVLA, build, load
from refinevla_kit.vlas.compact_parts import (
    ACTION,
    ACTION_TOKENS,
    LOCATION_TOKENS,
    first_action_id,
    token_id,
    train_vocabulary,
)
from refinevla_kit.vlas.sequence import answer_ids
from refinevla_kit.vlas.spherical_grid import SphericalGrid

Weights = dict[str, torch.Tensor]
SMALL = CompactConfig(layers=2, hidden=64, heads=2, feedforward=96, channels=16)
INSTRUCTION = "put carrot on plate"
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 120, 160, 3), dtype=np.uint8)


TEXTS = [INSTRUCTION, "stack the green block on the yellow block"]
UNIFORM = UniformBins((0.04, 0.04, 0.04, 0.01, 0.01, 0.3, 1.0))
SPHERICAL = SphericalGrid.fit(np.random.default_rng(0).normal(0, 0.4, (500, 7)).clip(-1, 1) * UNIFORM.limits)


@pytest.fixture(scope="module", params=[UNIFORM, SPHERICAL], ids=["uniform", "spherical"])
def vla(request: pytest.FixtureRequest) -> CompactVLA:
    return build(SMALL, train_vocabulary(TEXTS, action_words=request.param.words), request.param, seed=0)


def test_the_same_seed_builds_the_same_weights(vla: CompactVLA) -> None:
    again = build(SMALL, vla.tokenizer, vla.bins, seed=0)
    assert all(
        torch.equal(a, b)
        for a, b in zip(vla.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    )


def test_one_action_token_a_bin_in_a_row(vla: CompactVLA) -> None:
    first = first_action_id(vla.tokenizer)
    assert vla.tokenizer.convert_tokens_to_ids(list(ACTION_TOKENS)) == list(range(first, first + BINS))


def test_a_saved_policy_acts_as_before(vla: CompactVLA, tmp_path: Path) -> None:
    before = VLAPolicy(vla, "p").act_batch(IMAGES, [INSTRUCTION] * 3)
    after = load_policy(vla.save(tmp_path / "checkpoint")).act_batch(IMAGES, [INSTRUCTION] * 3)
    for one, other in zip(before, after, strict=True):
        assert np.array_equal(one.tokens, other.tokens) and np.array_equal(one.processed, other.processed)
    assert not [
        path.name for path in (tmp_path / "checkpoint").iterdir() if path.suffix in (".bin", ".pt", ".pkl")
    ]


@pytest.mark.parametrize("given", [None, "the yellow block", ""])
@pytest.mark.parametrize("decoding", DECODINGS)
def test_cached_decoding_equals_teacher_forcing(vla: CompactVLA, decoding: str, given: str | None) -> None:
    """Acting first, and after a rationale that was given (an empty one: none, as in training)."""
    if decoding == "median" and not isinstance(vla.bins, UniformBins):
        with pytest.raises(KitError, match=r"cannot decode by 'median'.*choose 'greedy'"):
            VLAPolicy(vla, "p", decoding=decoding)
        return
    policy = VLAPolicy(
        vla, "p", order="action_first" if given is None else "rationale_first", decoding=decoding
    )
    action = policy.act_batch(IMAGES[:1], [INSTRUCTION], rationales=given if given is None else [given])[0]
    prefix = vla.prefix_ids(INSTRUCTION)
    answer, _ = answer_ids(vla, action.tokens.tolist(), given or "", policy.order)
    types = [0] * len(prefix) + [1] * len(answer)
    begin = len(prefix) + answer.index(vla.tokenizer.convert_tokens_to_ids(ACTION))
    assert action.rationale == (given or "")
    with torch.no_grad():
        inputs = {"input_ids": torch.tensor([prefix + answer]), "token_type_ids": torch.tensor([types])}
        logits = vla.model(**inputs, pixel_values=vla.pixel_values(IMAGES[:1])).logits[0]
    first = first_action_id(vla.tokenizer)
    assert len(action.tokens) == len(vla.bins.ranges)
    for place, (low, high) in enumerate(vla.bins.ranges):
        scores = logits[begin + place, first + low : first + high].log_softmax(-1)
        said = int(action.tokens[place]) - first - low
        assert float(scores[said]) == pytest.approx(float(action.log_probability[place]), abs=1e-5)
        if decoding == "greedy":
            assert said == int(scores.argmax())
        else:
            below, up_to = float(scores[:said].exp().sum()), float(scores[: said + 1].exp().sum())
            assert below < 0.5 + 1e-5 and up_to > 0.5 - 1e-5, (
                "as much is held likely on one side as on the other"
            )


def test_a_rationale_is_only_given_to_who_acts_after_it(vla: CompactVLA) -> None:
    with pytest.raises(KitError, match=r"p acts before its rationale.*rationale_first"):
        VLAPolicy(vla, "p").act_batch(IMAGES[:1], [INSTRUCTION], rationales=["the yellow block"])


def test_a_batch_of_mixed_instructions_equals_one_by_one(vla: CompactVLA) -> None:
    policy = VLAPolicy(vla, "p")
    instructions = [INSTRUCTION, "stack the green block on the yellow block", INSTRUCTION]
    together = policy.act_batch(IMAGES, instructions)
    for image, instruction, action in zip(IMAGES, instructions, together, strict=True):
        policy.reset(instruction)
        alone = policy.act(image)
        assert np.array_equal(alone.tokens, action.tokens)
        assert action.log_probability == pytest.approx(alone.log_probability, abs=1e-4)


def test_a_batch_that_is_given_texts_of_other_lengths_equals_one_by_one(vla: CompactVLA) -> None:
    """A shorter one waits for the others, and sees nothing of it."""
    policy = VLAPolicy(vla, "p", order="rationale_first")
    instructions = [INSTRUCTION, "stack the green block on the yellow block", INSTRUCTION]
    given = ["the yellow block", "", "a"]
    together = policy.act_batch(IMAGES, instructions, rationales=given)
    for row, action in enumerate(together):
        one = slice(row, row + 1)
        (alone,) = policy.decide(IMAGES[one], instructions[one], rationales=given[one])
        assert np.array_equal(alone.tokens, action.tokens) and action.rationale == given[row]
        assert action.log_probability == pytest.approx(alone.log_probability, abs=1e-4)


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (IMAGES[:1] / 255, r"float64 \(\d+, \d+, 3\) -> give RGB"),
        (IMAGES[:1, :, :, 0], r"uint8 \(\d+, \d+\) -> give RGB"),
        (np.concatenate([IMAGES[:1], IMAGES[:1, :, :, :1]], -1), r"uint8 \(\d+, \d+, 4\) -> give RGB"),
    ],
)
def test_other_pictures_than_the_cameras_are_refused(vla: CompactVLA, picture: np.ndarray, says: str) -> None:
    with pytest.raises(KitError, match=says):
        VLAPolicy(vla, "p").act_batch(picture, [INSTRUCTION])


@pytest.mark.parametrize("order", ["action_first", "rationale_first"])
def test_it_acts_and_explains_in_both_orders(vla: CompactVLA, order: str) -> None:
    policy = VLAPolicy(vla, "p", order=order)
    action = policy.act_batch(IMAGES[:2], [INSTRUCTION] * 2)[1]
    assert (
        action.processed.shape == (7,) and (np.abs(action.normalised) <= np.sqrt(3)).all()
    )  # a spherical grid fills a ball around the box
    assert np.array_equal(policy.round_trip(action.processed), action.processed)
    assert isinstance(policy.explain(IMAGES[0], INSTRUCTION), str)


def test_a_policy_that_reads_its_own_state_acts_on_it_and_asks_for_it(
    vla: CompactVLA, tmp_path: Path
) -> None:
    sighted = build(replace(SMALL, proprioception=True), vla.tokenizer, vla.bins, seed=0)
    assert (sighted.image_tokens, sighted.patches, vla.image_tokens) == (49, 48, 48)
    sighted.model.model.vision_tower.state_mean.fill_(0.3001)
    policy = load_policy(sighted.save(tmp_path / "checkpoint", torch.bfloat16))
    assert torch.equal(
        policy.vla.model.model.vision_tower.state_mean, sighted.model.model.vision_tower.state_mean
    ), "metres are not rounded"
    poses = np.tile(
        np.array([0.3, 0, 0.1, 0.7, 0, 0.7, 0, 1, 0.3, 0, 0.1, 0.7, 0, 0.7, 0], np.float32), (2, 1)
    )
    poses[1, 8] += 0.03  # the same arm, sent on by three centimetres
    assert policy.needs_proprioception and not VLAPolicy(vla, "p").needs_proprioception
    before, after = policy.act_batch(IMAGES[[0, 0]], [INSTRUCTION] * 2, poses)
    assert not np.array_equal(before.log_probability, after.log_probability)
    policy.reset(INSTRUCTION)
    assert np.array_equal(policy.act(IMAGES[0], poses[1]).tokens, after.tokens)
    with pytest.raises(KitError, match=r"reads the robot.s own state.*none was given"):
        policy.act(IMAGES[0])
    with pytest.raises(KitError, match=r"shape \(2, 8\).*reads 15 numbers"):
        policy.act_batch(IMAGES[:2], [INSTRUCTION] * 2, poses[:, :8])


def test_another_picture_size_is_resampled(vla: CompactVLA) -> None:
    large = np.repeat(np.repeat(IMAGES[:1], 4, axis=1), 4, axis=2)
    assert torch.allclose(vla.pixel_values(large), vla.pixel_values(IMAGES[:1]), atol=1e-5)


def test_patches_of_ten_pixels_make_a_grid_four_times_as_fine(vla: CompactVLA, tmp_path: Path) -> None:
    fine = build(replace(SMALL, patch=10), vla.tokenizer, vla.bins, seed=0)
    assert fine.grid == (2 * vla.grid[0], 2 * vla.grid[1])
    pictures = torch.rand(2, 3, *reversed(fine.image_size)) * 2 - 1
    assert fine.look(pictures).shape[1] == 4 * vla.look(pictures).shape[1] == fine.patches
    fine.save(tmp_path / "fine")
    assert torch.equal(load(tmp_path / "fine").look(pictures), fine.look(pictures))
    with pytest.raises(KitError, match="patches of 7 pixels on a picture of 160 x 120"):
        replace(SMALL, patch=7)


def test_a_folder_that_is_no_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(KitError, match="no checkpoint of the compact VLA"):
        load(tmp_path)


def test_a_checkpoint_of_another_vocabulary_says_so(vla: CompactVLA, tmp_path: Path) -> None:
    vla.save(tmp_path / "one")
    other = train_vocabulary(["other words entirely, and many more of them"], action_words=vla.bins.words)
    other.save_pretrained(tmp_path / "one")
    with pytest.raises(KitError, match="words, its tokenizer"):
        load(tmp_path / "one")


def test_a_vocabulary_without_the_action_words_says_so() -> None:
    with pytest.raises(
        KitError, match=r"no <act8193>, and the action tokens have 8194 words .* action_words=tokens.words"
    ):
        build(SMALL, train_vocabulary(TEXTS), SPHERICAL, seed=0)


def test_a_checkpoint_keeps_its_kind_of_action_tokens(vla: CompactVLA, tmp_path: Path) -> None:
    assert load(vla.save(tmp_path / "one")).bins == vla.bins


@pytest.mark.parametrize("name", ["acting_base", "compact_base", "with_reasoning"])
def test_a_shipped_checkpoint_has_the_vocabulary_it_was_trained_with(name: str) -> None:
    shipped = load(REPOSITORY / "data" / "checkpoints" / name)
    first = first_action_id(shipped.tokenizer)
    assert (
        first + BINS == len(shipped.tokenizer)
        and first == token_id(shipped.tokenizer, LOCATION_TOKENS[-1]) + 1
    )
    assert isinstance(shipped.bins, UniformBins) and shipped.bins.ranges == ((0, BINS),) * 7


def test_a_checkpoint_of_a_later_format_says_so(vla: CompactVLA, tmp_path: Path) -> None:
    path = vla.save(tmp_path / "one") / STATISTICS
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": "refinevla-compact-9"}))
    with pytest.raises(KitError, match="refinevla-compact-9"):
        load(tmp_path / "one")


def test_a_checkpoint_knows_whose_robot_it_learned(vla: CompactVLA, tmp_path: Path) -> None:
    of_google = replace(vla, provenance={"robot": "google_robot"}).save(tmp_path / "one")
    found = load(of_google).conventions
    expected = {"image_size": vla.image_size, "normalisation": "own", "gripper": "relative_opening+1"}
    assert found == replace(GOOGLE_ROBOT, **expected)
    assert vla.conventions.robot == "widowx"
    other = replace(vla, provenance={"robot": ["franka"]}).save(tmp_path / "two")
    with pytest.raises(KitError, match=r"unknown robot, in .*two: \['franka'\] -> choose one of widowx"):
        load(other)


def test_what_it_learns_of_the_google_robots_gripper_is_what_it_does_with_it(
    vla: CompactVLA, tmp_path: Path
) -> None:
    """The robot closes at 1, a little at 0.25 and stays at 0; the examples open at 1, and acting turns it
    back.
    """
    command = np.array([-1, 0, 0.25, 1], np.float32)
    actions = np.column_stack([np.zeros((4, 6), np.float32), command])
    names = {"action_names": ACTION_NAMES, "state_names": STATE_NAMES}
    with DatasetWriter(tmp_path / "data", 3, "google_robot", **names) as writer:
        images = np.zeros((4, 32, 48, 3), np.uint8)
        writer.add(Episode(images, actions, np.zeros((4, 15), np.float32), "pick coke can"))
    learned = load_examples(tmp_path / "data").actions
    assert learned[:, 6].tolist() == [1, 0, -0.25, -1]
    of_google = replace(vla, provenance={"robot": "google_robot"})
    acting = ActionConversion(of_google.conventions, GOOGLE_ROBOT)
    assert not acting.remembers, "it can be asked about many pictures at once"
    done = np.stack([acting.convert(of_google.kit_actions(row[None])[0]) for row in learned])
    np.testing.assert_array_equal(done, open_dataset(tmp_path / "data").actions(0))


def test_a_pointer_of_git_lfs_in_the_place_of_weights_is_called_one(vla: CompactVLA, tmp_path: Path) -> None:
    (vla.save(tmp_path / "one") / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    )
    with pytest.raises(KitError, match="is a pointer of Git LFS"):
        load(tmp_path / "one")


def test_a_state_that_is_no_number_and_a_picture_of_no_size_are_refused(vla: CompactVLA) -> None:
    with pytest.raises(KitError, match=r"pictures are uint8 \(0, 16, 3\)"):
        vla.pixel_values([np.zeros((0, 16, 3), np.uint8)])
    if vla.reads_state:
        with pytest.raises(KitError, match="holds what is no number"):
            vla.states(np.full((1, 15), np.nan, np.float32))


@pytest.mark.parametrize("name", ["model.safetensors", STATISTICS, "config.json"])
def test_a_damaged_checkpoint_is_one_line(vla: CompactVLA, tmp_path: Path, name: str) -> None:
    path = vla.save(tmp_path / "one") / name
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(KitError, match=r"checkpoint .* is damaged"):
        load(tmp_path / "one")


FOREIGN: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "layer missing": (
        lambda w: {k: v for k, v in w.items() if ".layers.1." not in k},
        r"11 missing: .*layers\.1\..* and 8 more",
    ),
    "other names": (
        lambda w: {f"base_model.{k}": v for k, v in w.items()},
        r"\d+ missing: .*; \d+ unknown: base_model\.",
    ),
    "one more": (lambda w: w | {"x.lora_A.weight": torch.zeros(2, 2)}, r"1 unknown: x\.lora_A\.weight"),
    "other shape": (
        lambda w: w | {"language_model.lm_head.weight": torch.zeros(9, 64)},
        r"1 of another shape: lm_head\.weight \(9, 64\) for \(",
    ),
    "no number": (
        lambda w: w | {"vision_tower.norm.bias": torch.full((64,), torch.nan)},
        r"1 not finite: model\.vision_tower\.norm\.bias",
    ),
    "integers": (
        lambda w: w | {"vision_tower.norm.bias": torch.zeros(64, dtype=torch.int8)},
        r"vision_tower\.norm\.bias of I8 -> .*BF16",
    ),
    "nothing": (lambda w: {}, r"\d+ missing"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_weights_that_are_not_the_models_are_refused_by_name(
    vla: CompactVLA, tmp_path: Path, kind: str
) -> None:
    change, says = FOREIGN[kind]
    file = vla.save(tmp_path / "one") / "model.safetensors"
    save_file(
        {name: x.contiguous() for name, x in change(load_file(file)).items()}, file, metadata={"format": "pt"}
    )
    with pytest.raises(KitError, match=says):
        load(tmp_path / "one")


def test_a_config_of_another_size_is_not_filled_with_random_weights(vla: CompactVLA, tmp_path: Path) -> None:
    path = vla.save(tmp_path / "one") / "config.json"
    config = json.loads(path.read_text())
    config["text_config"] |= {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
    path.write_text(json.dumps(config))
    with pytest.raises(KitError, match=r"11 missing: model\.language_model\.layers\.2\."):
        load(tmp_path / "one")


@pytest.mark.parametrize(
    ("statistics", "says"),
    [
        ({"action_tokens": None}, "is damaged"),
        ({"provenance": None}, "is damaged"),
        (
            {"action_tokens": {"kind": "uniform", "bins": BINS, "limits": [0.0, float("nan"), 1.0]}},
            r"limits .*nan",
        ),
    ],
)
def test_statistics_that_say_no_action_are_refused(
    vla: CompactVLA, tmp_path: Path, statistics: dict[str, Any], says: str
) -> None:
    path = vla.save(tmp_path / "one") / STATISTICS
    path.write_text(json.dumps(json.loads(path.read_text()) | statistics))
    with pytest.raises(KitError, match=says):
        load(tmp_path / "one")


def test_parts_of_a_model_and_adapters_are_told_apart_from_a_checkpoint(
    vla: CompactVLA, tmp_path: Path
) -> None:
    folder = vla.save(tmp_path / "one")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/else"}')
    with pytest.raises(KitError, match=r"the base of the adapters in .* cannot be opened"):
        load(folder)
    (folder / "adapter_config.json").unlink()
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(KitError, match=r"has no model\.safetensors, only parts of one \(model-00001-of-"):
        load(folder)


@pytest.mark.parametrize("bars", [True, False])
def test_the_users_own_progress_bars_and_messages_stay_as_they_were(
    vla: CompactVLA, tmp_path: Path, bars: bool
) -> None:
    (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
    before, level = are_progress_bars_disabled(), logging.get_verbosity()
    try:
        load(vla.save(tmp_path / "one"))
        assert (logging.is_progress_bar_enabled(), are_progress_bars_disabled(), logging.get_verbosity()) == (
            bars,
            before,
            level,
        )
    finally:
        logging.enable_progress_bar()


def test_a_full_disk_leaves_no_half_checkpoint(vla: CompactVLA, small_disk: Path) -> None:
    with pytest.raises(KitError, match="no space left"):
        vla.save(small_disk / "one")
    assert not list(small_disk.iterdir())
