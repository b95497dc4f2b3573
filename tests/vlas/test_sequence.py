"""The layout of a training sequence: which token is predicted, and which loss it belongs to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from refinevla_kit.errors import KitError
from refinevla_kit.vlas.action_tokens import UniformBins
from refinevla_kit.vlas.compact import CompactConfig, build
from refinevla_kit.vlas.compact_parts import ACTION, EOS, IMAGE, RATIONALE, token_id, train_vocabulary
from refinevla_kit.vlas.sequence import ACTION_KIND, NOT_PREDICTED, RATIONALE_KIND, answer_ids, pad_batch

TOKENIZER: PreTrainedTokenizerFast = train_vocabulary(
    ["put carrot on plate", "the gripper is left of the plate"]
)
VLA = build(
    CompactConfig(layers=1, hidden=8, heads=1, feedforward=8, channels=8),
    TOKENIZER,
    UniformBins((0.1,) * 7),
    seed=0,
)
ACTIONS = TOKENIZER.convert_tokens_to_ids([f"<act{i:03d}>" for i in (127, 0, 254, 127, 127, 3, 254)])


def test_acting_first_predicts_seven_actions_then_the_text() -> None:
    ids, kinds = answer_ids(VLA, ACTIONS, "the plate", "action_first")
    tokens = TOKENIZER.convert_ids_to_tokens(ids)
    assert tokens[0] == ACTION and tokens[8] == RATIONALE and tokens[-1] == EOS
    assert kinds[:9] == [NOT_PREDICTED, *[ACTION_KIND] * 7, NOT_PREDICTED]
    assert set(kinds[9:]) == {RATIONALE_KIND}


def test_thinking_first_predicts_the_text_then_the_turn_to_act() -> None:
    ids, kinds = answer_ids(VLA, ACTIONS, "the plate", "rationale_first")
    tokens = TOKENIZER.convert_ids_to_tokens(ids)
    turn = tokens.index(ACTION)
    assert tokens[0] == RATIONALE and kinds[0] == NOT_PREDICTED
    assert kinds[turn] == RATIONALE_KIND  # the policy has to decide when it has thought enough
    assert kinds[turn + 1 : turn + 8] == [ACTION_KIND] * 7


def test_without_a_rationale_only_the_actions_remain() -> None:
    for order in ("action_first", "rationale_first"):
        ids, kinds = answer_ids(VLA, ACTIONS, "", order)
        assert len(ids) == 8 and kinds == [NOT_PREDICTED, *[ACTION_KIND] * 7]


def test_what_is_only_spoken_about_ends_with_a_predicted_end_in_either_order() -> None:
    for order in ("action_first", "rationale_first"):
        ids, kinds = answer_ids(VLA, [], "the plate", order)
        tokens = TOKENIZER.convert_ids_to_tokens(ids)
        assert tokens[0] == RATIONALE and tokens[-1] == EOS
        assert kinds == [NOT_PREDICTED, *[RATIONALE_KIND] * (len(ids) - 1)]


def test_an_unknown_order_names_the_known_ones() -> None:
    with pytest.raises(KitError, match="action_first"):
        answer_ids(VLA, ACTIONS, "", "sideways")


def test_padding_is_masked_and_never_predicted() -> None:
    prefixes = [VLA.prefix_ids("put carrot on plate"), VLA.prefix_ids("put")]
    answers = [answer_ids(VLA, ACTIONS, text, "action_first") for text in ("the plate", "")]
    batch = pad_batch(prefixes, answers, VLA.marks.pad)
    assert (batch.kinds[batch.attention_mask == 0] == NOT_PREDICTED).all()
    assert (batch.token_type_ids[:, : VLA.image_tokens] == 0).all()  # image patches belong to the prefix
    assert (batch.input_ids[:, : VLA.image_tokens] == token_id(TOKENIZER, IMAGE)).all()
    assert batch.attention_mask.sum(1).tolist() == [
        len(prefix) + len(ids) for prefix, (ids, _) in zip(prefixes, answers, strict=True)
    ]


@given(st.text(max_size=60))
def test_any_text_survives_the_vocabulary(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    decoded = TOKENIZER.decode(ids, clean_up_tokenization_spaces=False)
    assert decoded in (text, " " + text)  # the byte-level pre-tokenizer puts a blank before the first word
