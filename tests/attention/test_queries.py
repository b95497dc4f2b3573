"""Queries are where the model decides: each position's output predicts the query's tokens."""

from __future__ import annotations

import pytest
import torch

from refinevla_kit.attention.captured import KINDS
from refinevla_kit.attention.forward import token_sequence
from refinevla_kit.errors import KitError
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.vlas.compact_parts import first_action_id
from refinevla_kit.vlas.sequence import ORDERS, answer_ids

from .conftest import INSTRUCTION, small_policy

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
