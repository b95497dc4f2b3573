"""The sequence is training's, and what is captured is the model's own attention: that of cached decoding, and
that of a plain forward pass.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from refinevla_kit.attention.captured import KINDS, OWN_STATE, load_captures, save_captures, upper_middle
from refinevla_kit.attention.forward import capture, capture_batch, token_sequence
from refinevla_kit.errors import KitError
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.rollouts.players import DemonstratorPolicy
from refinevla_kit.simulator.contract import Array
from refinevla_kit.vlas.compact import CompactConfig, build
from refinevla_kit.vlas.compact_parts import first_action_id, train_vocabulary
from refinevla_kit.vlas.sequence import ORDERS, answer_ids
from refinevla_kit.vlas.spherical_grid import SphericalGrid
from tests.vlas.paligemma import features

from .conftest import INSTRUCTION, small_policy


def test_equals_what_cached_decoding_used(policy: VLAPolicy, image: Array) -> None:
    steps: list[list[Tensor]] = [[] for _ in policy.vla.model.model.language_model.layers]
    handles = [
        layer.self_attn.register_forward_hook(
            lambda _, __, output, kept=kept: kept.append(output[1][0, :, -1].clone())
        )
        for layer, kept in zip(policy.vla.model.model.language_model.layers, steps, strict=True)
    ]
    action = policy.act_batch(image[None], [INSTRUCTION])[0]
    for handle in handles:
        handle.remove()
    found = capture(policy, image, INSTRUCTION)
    np.testing.assert_array_equal(found.action.tokens, action.tokens)
    rows = np.concatenate([found.patches, found.others], -1)  # layers, heads, 7, N
    for layer, kept in enumerate(steps):
        assert len(kept) == 7
        for token, row in enumerate(kept):  # heads, length so far
            np.testing.assert_allclose(rows[layer, :, token, : row.shape[-1]], row.numpy(), atol=1e-6)
            assert np.all(rows[layer, :, token, row.shape[-1] :] == 0)


def test_three_words_are_three_rows_with_their_own_names(image: Array) -> None:
    size = CompactConfig(layers=2, hidden=32, heads=2, feedforward=48, channels=8)
    grid = SphericalGrid.fit(np.random.default_rng(0).normal(0, 0.02, (200, 7)))
    found = capture(
        VLAPolicy(build(size, train_vocabulary([INSTRUCTION], action_words=grid.words), grid, 0), "grid"),
        image,
        INSTRUCTION,
    )
    assert found.dimensions == ("translation", "rotation", "gripper") and found.patches.shape[2] == 3


def test_equals_a_plain_forward(policy: VLAPolicy, image: Array) -> None:
    found = capture(policy, image, INSTRUCTION)
    prefix = policy.vla.prefix_ids(INSTRUCTION)
    answer, _ = answer_ids(policy.vla, found.action.tokens.tolist(), "", "action_first")
    ids = torch.tensor([prefix + answer])
    types = torch.tensor([[0] * len(prefix) + [1] * len(answer)])
    with torch.inference_mode():
        out = policy.vla.model(
            input_ids=ids,
            token_type_ids=types,
            pixel_values=policy.vla.pixel_values(image[None]),
            output_attentions=True,
        )
    first = len(prefix)  # the action marker
    for layer, weights in enumerate(out.attentions):
        np.testing.assert_allclose(
            found.patches[layer], weights[0, :, first : first + 7, : policy.vla.image_tokens], atol=1e-6
        )
    decided = out.logits[0, first : first + 7]
    actions = decided[:, found.action.tokens.min() : found.action.tokens.max() + 1].argmax(-1) + int(
        found.action.tokens.min()
    )
    np.testing.assert_array_equal(
        actions.numpy(), found.action.tokens
    )  # these very positions decide the action


@pytest.mark.parametrize("order", ORDERS)
def test_every_query_equals_a_plain_forward(order: str, image: Array) -> None:
    """Action dimensions, words of the rationale and of the instruction, in both orders, with a policy that
    reads its own state.
    """
    policy = small_policy(order=order, proprioception=True)
    own, vla = np.linspace(0, 1, 15, dtype=np.float32), policy.vla
    found = capture(
        policy, image, INSTRUCTION, rationale="the carrot is unhurried.", proprioception=own, queries=KINDS
    )
    laid = token_sequence(
        policy, INSTRUCTION, found.action.tokens.tolist(), "the carrot is unhurried.", KINDS
    )
    types = torch.tensor([[0] * laid.prefix + [1] * (len(laid.ids) - laid.prefix)])
    words = features(vla.see(vla.pixel_values(image[None]), vla.states(own[None])))
    with torch.inference_mode():
        out = vla.model(
            input_ids=torch.tensor([laid.ids]),
            token_type_ids=types,
            mm_encoder_outputs=words,
            output_attentions=True,
        )
    assert [query.label for query in found.queries] == [
        *found.dimensions,
        "the",
        "carrot",
        "is",
        "unhurried",
        *INSTRUCTION.split(),
    ]
    for layer, weights in enumerate(out.attentions):  # 1, heads, N, N
        for i, query in enumerate(found.queries):
            row = weights[0, :, list(query.positions)].mean(1)
            np.testing.assert_allclose(found.patches[layer, :, i], row[:, : vla.patches], atol=1e-6)
            np.testing.assert_allclose(found.others[layer, :, i, :-1], row[:, vla.image_tokens :], atol=1e-6)
            np.testing.assert_allclose(found.others[layer, :, i, -1], row[:, vla.patches], atol=1e-6)
    assert found.labels[-1] == OWN_STATE and found.rationale == "the carrot is unhurried."


def test_a_rationale_not_given_is_the_policys_own(policy: VLAPolicy, image: Array) -> None:
    found = capture(policy, image, INSTRUCTION, queries=("rationale",))
    assert found.rationale == policy.explain(image, INSTRUCTION) and found.dimensions == ()
    np.testing.assert_allclose(found.map(1), found.patches[1].mean((0, 1)).reshape(found.grid), rtol=1e-5)
    with pytest.raises(KitError, match="the rationale has no words"):
        capture(policy, image, INSTRUCTION, rationale="", queries=("rationale",))


def test_a_batch_is_the_same_as_one_by_one(policy: VLAPolicy) -> None:
    """Pictures with sequences of different length, instructions and texts too, in any mixture."""
    images = np.random.default_rng(2).integers(0, 255, (4, 120, 160, 3), dtype=np.uint8)
    instructions = [INSTRUCTION, "put plate on carrot", "plate", INSTRUCTION]
    texts = ["the carrot is left", "plate is the carrot", "left", "the carrot is left of the plate"]
    together = capture_batch(policy, images, instructions, rationales=texts, queries=KINDS, batch_size=2)
    for one, image, instruction, text in zip(together, images, instructions, texts, strict=True):
        alone = capture(policy, image, instruction, rationale=text, queries=KINDS)
        assert (one.labels, one.queries, one.words, one.image_hash) == (
            alone.labels,
            alone.queries,
            alone.words,
            alone.image_hash,
        )
        np.testing.assert_array_equal(one.action.tokens, alone.action.tokens)
        np.testing.assert_allclose(one.patches, alone.patches, atol=1e-6)
        np.testing.assert_allclose(one.others, alone.others, atol=1e-6)


def test_every_row_is_accounted_for(policy: VLAPolicy, image: Array) -> None:
    found = capture(policy, image, INSTRUCTION)
    assert (found.layers, found.heads, found.patches.shape[-1]) == (3, 2, found.grid[0] * found.grid[1])
    np.testing.assert_allclose(found.image_share + found.others.sum(-1), 1.0, atol=1e-5)
    assert " ".join(found.labels[: found.words]) == INSTRUCTION
    assert found.labels[found.words] == "<action>" and len(found.labels) == found.others.shape[-1]
    assert (found.policy, found.checkpoint_hash) == ("small", "hash-0+decoding=greedy")


def test_another_action_changes_only_later_rows(policy: VLAPolicy, image: Array) -> None:
    own = capture(policy, image, INSTRUCTION)
    tokens = own.action.tokens.copy()
    tokens[3] = tokens[3] + 1 if tokens[3] == tokens.min() else tokens.min()
    other = capture(
        policy,
        image,
        INSTRUCTION,
        type(own.action)(own.action.processed, own.action.normalised, tokens, own.action.log_probability),
    )
    np.testing.assert_allclose(
        other.patches[:, :, :4], own.patches[:, :, :4], atol=1e-6
    )  # decided before the fourth token was said
    assert np.abs(other.patches[-1, :, 4:] - own.patches[-1, :, 4:]).max() > 1e-6


def test_a_rationale_comes_before_the_action_of_a_policy_that_thinks_aloud(image: Array) -> None:
    thinker = small_policy(order="rationale_first")
    found = capture(thinker, image, INSTRUCTION, rationale="the carrot is left of the plate")
    words = list(found.labels[found.words :])
    assert words[0] == "<rationale>" and words.index("<action>") > words.index("carrot")
    assert capture(thinker, image, INSTRUCTION, rationale="carrot").others.shape[-1] < found.others.shape[-1]


def test_maps_pick_layer_head_and_token(policy: VLAPolicy, image: Array) -> None:
    found = capture(policy, image, INSTRUCTION)
    np.testing.assert_array_equal(found.map(1, 2, 0).ravel(), found.patches[1, 0, 2])
    np.testing.assert_allclose(found.map(2), found.patches[2].mean((0, 1)).reshape(found.grid), rtol=1e-5)
    with pytest.raises(KitError, match="from 0 to 2"):
        found.map(3)
    with pytest.raises(KitError, match=r"head of .* is 2"):
        found.map(0, head=2)


def test_pictures_of_two_sizes_are_captured_as_each_alone(policy: VLAPolicy, image: Array) -> None:
    large = np.repeat(np.repeat(image, 2, axis=0), 2, axis=1)[:, :-20]
    together = capture_batch(policy, [image, large], [INSTRUCTION] * 2)
    for one, picture in zip(together, (image, large), strict=True):
        alone = capture(policy, picture, INSTRUCTION)
        assert np.allclose(one.patches, alone.patches, atol=1e-6) and one.image_hash == alone.image_hash


def test_a_policy_without_a_checkpoint_is_captured_and_kept(image: Array, tmp_path: Path) -> None:
    policy = small_policy()
    found = replace(
        capture(policy, image, INSTRUCTION), checkpoint_hash=None
    )  # what policies of other people say
    (again,) = load_captures(save_captures([found], tmp_path / "one.safetensors"))
    assert again.checkpoint_hash == "" and np.array_equal(again.patches, found.patches)


def test_the_remedy_for_no_attention_works(image: Array) -> None:
    blind = small_policy()
    blind.vla.model.set_attn_implementation("eager")
    assert capture(blind, image, INSTRUCTION).layers == 3


def test_says_so_when_there_is_no_attention(image: Array) -> None:
    blind = small_policy()
    for layer in blind.vla.model.model.language_model.layers:
        layer.self_attn.config._attn_implementation = "sdpa"  # computes outputs but no weights ...
        layer.self_attn.attn_logit_softcapping = None  # ... and refuses a model with soft-capping
    with pytest.raises(
        KitError, match=r"'sdpa' gives no weights -> call policy\.vla\.model\.set_attn_implementation"
    ):
        capture(blind, image, INSTRUCTION)
    assert not any(
        layer.self_attn._forward_hooks for layer in blind.vla.model.model.language_model.layers
    )  # nothing is left behind
    with pytest.raises(KitError, match="no attention"):
        capture(DemonstratorPolicy(), image, INSTRUCTION)  # type: ignore[arg-type]


def test_the_layer_shown_is_above_the_middle() -> None:
    assert [upper_middle(layers) for layers in (1, 4, 5, 26)] == [0, 2, 3, 15]


def test_nothing_to_capture_is_nothing_and_lists_of_other_lengths_are_told(policy, image) -> None:
    assert capture_batch(policy, [], []) == []
    with pytest.raises(KitError, match="instructions: 1 for 2 pictures"):
        capture_batch(policy, [image, image], [INSTRUCTION])
    with pytest.raises(KitError, match="instructions: one text for 1 pictures"):
        capture_batch(policy, [image], INSTRUCTION)


TEXT = "the carrot is left of the plate, unhurriedly."


def action_of(policy: VLAPolicy) -> list[int]:
    return [first_action_id(policy.vla.tokenizer) + 10 * i for i in range(7)]


@pytest.mark.parametrize("order", ORDERS)
def test_the_sequence_is_the_one_of_training(order: str) -> None:
    policy = small_policy(order=order)
    vla, action = policy.vla, action_of(policy)
    laid = token_sequence(policy, INSTRUCTION, action, TEXT, KINDS)
    trained, _ = answer_ids(vla, action, TEXT, order)
    prefix = vla.prefix_ids(INSTRUCTION)
    assert laid.prefix == len(prefix) and list(laid.ids) == [*prefix, *trained][: len(laid.ids)]
    for query in laid.queries:  # answers are predicted one place ahead, the instruction is not predicted
        ahead = 0 if query.kind == "instruction" else 1
        assert [[*prefix, *trained][position + ahead] for position in query.positions] == list(
            query.tokens
        ), query.label


def test_words_are_joined_and_punctuation_is_left_out(policy: VLAPolicy) -> None:
    laid = token_sequence(policy, INSTRUCTION, action_of(policy), TEXT, ["rationale", "instruction"])
    said = {kind: [query.label for query in laid.queries if query.kind == kind] for kind in KINDS}
    text = ["the", "carrot", "is", "left", "of", "the", "plate", "unhurriedly"]
    assert said == {"action": [], "rationale": text, "instruction": INSTRUCTION.split()}
    longest = next(
        query for query in laid.queries if query.label == "unhurriedly"
    )  # a word the tokenizer never saw
    assert len(longest.positions) == len(longest.tokens) > 1


def test_words_of_any_script_are_words(image: Array) -> None:
    """A letter of several tokens is no sign, and none of it is lost."""
    policy = small_policy()
    for text, labels in (
        ("naïve café", ["naïve", "café"]),
        ("把胡萝卜 放在盘子上", ["把胡萝卜", "放在盘子上"]),
    ):
        found = capture(policy, image, text, queries=("instruction",))
        assert [query.label for query in found.queries] == labels
    with pytest.raises(KitError, match="has no words"):
        capture(policy, image, "?! …", queries=("instruction",))


def test_a_rationale_that_nothing_asks_about_comes_only_where_it_is_read(policy: VLAPolicy) -> None:
    assert (
        token_sequence(policy, INSTRUCTION, action_of(policy), TEXT).ids
        == token_sequence(policy, INSTRUCTION, action_of(policy)).ids
    )
    thinker = small_policy(order="rationale_first")
    assert len(token_sequence(thinker, INSTRUCTION, action_of(thinker), TEXT).ids) > len(
        token_sequence(thinker, INSTRUCTION, action_of(thinker)).ids
    )


@pytest.mark.parametrize(
    ("kinds", "says"),
    [
        (["actions"], "unknown queries 'actions'"),
        ([], "no queries"),
        ("action", "give a sequence"),
        (["rationale"], "the rationale has no words"),
    ],
)
def test_what_cannot_be_asked_is_said(policy: VLAPolicy, kinds: list[str], says: str) -> None:
    with pytest.raises(KitError, match=says):
        token_sequence(policy, INSTRUCTION, action_of(policy), "", kinds)
    with pytest.raises(KitError, match="3 tokens"):
        token_sequence(policy, INSTRUCTION, action_of(policy)[:3])


def test_these_positions_say_the_policys_own_words(policy: VLAPolicy) -> None:
    """Greedy decoding and teacher forcing agree: the output at each query's positions is the query's
    tokens.
    """
    image = torch.randint(
        0, 255, (120, 160, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8
    ).numpy()
    vla, action = policy.vla, policy.act_batch(image[None], [INSTRUCTION])[0]
    laid = token_sequence(policy, INSTRUCTION, action.tokens.tolist())
    types = torch.tensor([[0] * laid.prefix + [1] * (len(laid.ids) - laid.prefix)])
    with torch.inference_mode():
        logits = vla.model(
            input_ids=torch.tensor([laid.ids]),
            token_type_ids=types,
            pixel_values=vla.pixel_values(image[None]),
        ).logits[0]
    first = first_action_id(vla.tokenizer)
    for query, (low, high) in zip(laid.queries, vla.bins.ranges, strict=True):
        assert (
            int(logits[query.positions[0], first + low : first + high].argmax()) + first + low
            == query.tokens[0]
        )
