"""The contract carries: a causal VLA that shares no code with the compact one goes through training,
decoding, capture and figures.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from refinevla_kit.attention.attribution import METHODS, ask, attribute
from refinevla_kit.attention.captured import Frame
from refinevla_kit.attention.forward import capture, capture_batch, token_sequence
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.training.examples import Examples
from refinevla_kit.training.loop import TrainingConfig, fine_tune
from refinevla_kit.vlas.decoder import hidden_states, logits_of
from refinevla_kit.vlas.sequence import answer_ids
from refinevla_kit.widgets.attention_explorer import AttentionExplorer
from tests.vlas.causal import CausalVLA, build_causal

TEXTS = ("the carrot is left of the plate. move left", "the gripper holds the carrot. move to the plate")
INSTRUCTIONS = ("put carrot on plate", "put the spoon on the towel and then stop")
CONFIG = TrainingConfig(
    steps=6,
    batch_size=4,
    learning_rate=3e-3,
    freeze_layers=1,
    validate_every=3,
    precision="fp32",
    collapse_grace=100,
)
PLAIN = replace(CONFIG, cache="off")


@pytest.fixture(scope="module")
def examples() -> Examples:
    random = np.random.default_rng(0)
    frames = 40
    return Examples(
        random.integers(0, 256, (frames, 32, 48, 3), np.uint8),
        random.uniform(-0.1, 0.1, (frames, 7)).astype(np.float32),
        np.repeat(np.arange(10), 4),
        tuple(INSTRUCTIONS[i % 2] for i in range(frames)),
        tuple(TEXTS[i // 4 % 2] for i in range(frames)),
    )


@pytest.fixture(scope="module")
def policy() -> VLAPolicy:
    return VLAPolicy(build_causal(TEXTS), "causal", "abc")


@pytest.fixture(scope="module")
def images(examples: Examples) -> np.ndarray:
    return examples.images[:3]


def plain_logits(vla: CausalVLA, image: np.ndarray, ids: list[int]) -> torch.Tensor:
    """(N, V), by transformers' own forward pass over embeddings that are put together here."""
    words = vla.model.get_input_embeddings()(torch.tensor([ids]))
    seen = vla.see(vla.pixel_values(image[None]), None)
    start = ids.index(vla.image_id)
    words = torch.cat([words[:, :start], seen, words[:, start + seen.shape[1] :]], dim=1)
    return vla.model(inputs_embeds=words).logits[0]


@torch.no_grad()
def test_the_decoder_is_run_as_transformers_runs_it(policy: VLAPolicy, images: np.ndarray) -> None:
    vla = policy.vla
    prefix = vla.prefix_ids(INSTRUCTIONS[0])
    answer, _ = answer_ids(vla, [vla.first_action + i for i in range(7)], TEXTS[0], "action_first")
    ids = torch.tensor([[*prefix, *answer]])
    types = torch.tensor([[0] * len(prefix) + [1] * len(answer)])
    ours = logits_of(vla, hidden_states(vla, vla.see(vla.pixel_values(images[:1]), None), ids, types))[0]
    torch.testing.assert_close(ours, plain_logits(vla, images[0], ids[0].tolist()), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("order", ["action_first", "rationale_first"])
def test_cached_decoding_equals_teacher_forcing(policy: VLAPolicy, images: np.ndarray, order: str) -> None:
    vla = policy.vla
    given = (
        None if order == "action_first" else TEXTS[:2]
    )  # a text of random words would not be tokenized into the same tokens again
    actions = VLAPolicy(vla, "causal", order=order).act_batch(images[:2], INSTRUCTIONS, rationales=given)
    for image, instruction, action in zip(images, INSTRUCTIONS, actions, strict=False):
        answer, _ = answer_ids(vla, action.tokens.tolist(), action.rationale, order)
        ids = [*vla.prefix_ids(instruction), *answer]
        first = len(ids) - len(answer) + answer.index(vla.marks.action)
        logits = plain_logits(vla, image, ids)[first : first + 7]
        allowed = [
            row[vla.first_action + low : vla.first_action + high]
            for row, (low, high) in zip(logits, vla.bins.ranges, strict=True)
        ]
        said = torch.stack(
            [
                row.log_softmax(-1)[token - vla.first_action]
                for row, token in zip(allowed, action.tokens, strict=True)
            ]
        )
        np.testing.assert_allclose(action.log_probability, said, atol=1e-4)
        assert [int(row.argmax()) + vla.first_action for row in allowed] == action.tokens.tolist(), (
            "greedy, as its words have no order of bins"
        )


@pytest.mark.parametrize("mode", ["upper", "lora", "full"])
def test_it_trains_in_every_mode_and_keeps_what_is_frozen(
    examples: Examples, tmp_path: Path, mode: str
) -> None:
    vla = build_causal(TEXTS)
    before = {name: value.clone() for name, value in vla.model.state_dict().items()}
    history = fine_tune(
        vla,
        examples,
        replace(PLAIN, mode=mode, freeze_tower=mode != "full"),
        tmp_path,
        "causal",
        progress=False,
    )
    changed = {name for name, value in vla.model.state_dict().items() if not torch.equal(value, before[name])}
    assert before.keys() == vla.model.state_dict().keys(), "adapters are merged"
    assert any(name.startswith("model.layers.2") for name in changed)
    assert any(
        name.startswith(("patches", "projector", "model.embed", "model.layers.0")) for name in changed
    ) == (mode == "full")
    assert {"loss_action", "loss_reasoning", "action_accuracy"} <= history[0].keys()


def test_cached_training_equals_plain_training(examples: Examples, tmp_path: Path) -> None:
    histories = {
        cache: fine_tune(
            build_causal(TEXTS),
            examples,
            replace(CONFIG, cache=cache),
            tmp_path / cache,
            "causal",
            progress=False,
        )
        for cache in ("on", "off")
    }
    for on, off in zip(*histories.values(), strict=True):
        for key in ("loss", "loss_action", "loss_reasoning"):
            assert on[key] == pytest.approx(off[key], rel=1e-3), (on["step"], key)


def test_a_killed_run_goes_on_bit_for_bit(examples: Examples, tmp_path: Path) -> None:
    whole, resumed = build_causal(TEXTS), build_causal(TEXTS)
    fine_tune(whole, examples, replace(PLAIN, save_every=3), tmp_path / "whole", "causal", progress=False)

    class Killed(Exception):
        pass

    def kill(row: dict[str, object]) -> None:
        if row["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        fine_tune(
            build_causal(TEXTS),
            examples,
            replace(PLAIN, save_every=3),
            tmp_path / "cut",
            "causal",
            progress=False,
            watch=kill,
        )
    fine_tune(resumed, examples, replace(PLAIN, save_every=3), tmp_path / "cut", "causal", progress=False)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


@torch.no_grad()
def test_captured_attention_is_the_models_own(policy: VLAPolicy, images: np.ndarray) -> None:
    vla, kinds = policy.vla, ("action", "rationale", "instruction")
    found = capture(policy, images[0], INSTRUCTIONS[0], rationale=TEXTS[0], queries=kinds)
    laid = token_sequence(policy, INSTRUCTIONS[0], found.action.tokens.tolist(), TEXTS[0], kinds)
    words = vla.model.get_input_embeddings()(torch.tensor([laid.ids]))
    words[:, vla.image_start : vla.image_end] = vla.see(vla.pixel_values(images[:1]), None)
    own = torch.stack(vla.model(inputs_embeds=words, output_attentions=True).attentions, 1)[
        0
    ].numpy()  # layers, heads, N, N
    patches = slice(vla.image_start, vla.image_start + vla.patches)
    for number, query in enumerate(laid.queries):
        rows = own[:, :, list(query.positions)].mean(2)
        np.testing.assert_allclose(found.patches[:, :, number], rows[..., patches], atol=1e-6)
        np.testing.assert_allclose(
            found.patches[:, :, number].sum(-1) + found.others[:, :, number].sum(-1), 1, atol=1e-5
        )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_map_of_its_patches(policy: VLAPolicy, images: np.ndarray, method: str) -> None:
    frame = Frame(images[0], {}, INSTRUCTIONS[0], "widowx_carrot_on_plate", 0, 0, "reach")
    found = attribute(policy, frame, "yaw", method)
    assert (
        found.patch_map.shape == policy.vla.grid
        and np.isfinite(found.patch_map).all()
        and found.pixel_map.shape == (32, 48)
    )


def test_grad_cam_without_convolutions_sums_to_the_scores_slope(
    policy: VLAPolicy, images: np.ndarray
) -> None:
    """All patches together are what the score gains when every patch's words move along their mean."""
    frame = Frame(images[0], {}, INSTRUCTIONS[0], "widowx_carrot_on_plate", 0, 0, "reach")
    assert policy.vla.convolutions is None
    found = attribute(policy, frame, "yaw", "grad_cam", part="signed")
    question = ask(policy, frame, "yaw")
    with torch.no_grad():
        words = question.words(question.pixels()).double()
        step = torch.zeros_like(words)
        step[:, : policy.vla.patches] = words[:, : policy.vla.patches].mean(1, keepdim=True)
        further, back = (float(question.score_words((words + 0.01 * s * step).float())[0]) for s in (1, -1))
    assert found.patch_map.sum() == pytest.approx((further - back) / 0.02, rel=0.02, abs=1e-4)
    assert found.provenance["at"] == "words of the picture"


def test_the_explorer_shows_it_beside_another(policy: VLAPolicy, images: np.ndarray, tmp_path: Path) -> None:
    frames = [
        Frame(image, {}, INSTRUCTIONS[0], "widowx_carrot_on_plate", 0, step, "reach")
        for step, image in enumerate(images)
    ]
    policies = {"one": policy, "other": VLAPolicy(build_causal(TEXTS, seed=1), "other", "def")}
    seen = {
        name: capture_batch(each, images, [INSTRUCTIONS[0]] * 3, queries=("action", "instruction"))
        for name, each in policies.items()
    }
    explorer = AttentionExplorer(frames, seen)
    assert isinstance(explorer.figure(), Figure)
    assert explorer.export(tmp_path / "explorer.html").stat().st_size > 1000
