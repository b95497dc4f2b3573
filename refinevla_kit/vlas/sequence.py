"""How a policy's input and answer are laid out as one sequence of tokens.

    [image patches] [instruction]  |  <action> a1 .. a7 <rationale> text <eos>        order="action_first":
                                   acting costs no rationale tokens
    [image patches] [instruction]  |  <rationale> text <action> a1 .. a7 <eos>        order="rationale_first":
                                   thinks aloud before acting

Left of the bar: the prefix, attended to in both directions (token type 0). Right: the answer, causal (token
type 1). The marks `<action>` and `<rationale>` are given where an answer begins with them, never predicted. A
VLA that has no such marks goes on from the prefix, and one that closes its answers ends an action with
`<eos>`, too. Kinds say which loss a token belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from refinevla_kit.errors import check_choice
from refinevla_kit.settings import ORDERS
from refinevla_kit.vlas.contract import VLA

NOT_PREDICTED, ACTION_KIND, RATIONALE_KIND = 0, 1, 2
ROLES = IMAGE, STATE, INSTRUCTION, RATIONALE, ACTION = "image", "state", "instruction", "rationale", "action"


@dataclass(frozen=True)
class Sequences:
    """A padded batch. All are int64 (B, N).

    Attributes:
        input_ids: token ids, image placeholders first.
        attention_mask: 0 on padding (right).
        token_type_ids: 0 prefix, 1 answer.
        kinds: `NOT_PREDICTED`, `ACTION_KIND` or `RATIONALE_KIND`, of the token at that place.
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor
    kinds: Tensor

    def to(self, device: torch.device) -> Sequences:
        """The same sequences on `device`."""
        return Sequences(*(getattr(self, field.name).to(device) for field in fields(self)))


def answer_ids(vla: VLA, action: Sequence[int], rationale: str, order: str) -> tuple[list[int], list[int]]:
    """The answer as (ids, kinds).

    Args:
        vla: whose words they are.
        action: vocabulary ids, may be empty.
        rationale: a text, may be empty; then its mark is left out.
        order: one of `ORDERS`.
    """
    check_choice("order", order, ORDERS)
    marks = vla.marks
    text = vla.tokenizer.encode(rationale, add_special_tokens=False) if rationale else []
    acts = [(word, ACTION_KIND) for word in action]  # (id, kind) of each token
    thinks = [(word, RATIONALE_KIND) for word in text]
    if acts and marks.action is not None:
        given = order == "action_first" or not thinks
        acts.insert(0, (marks.action, NOT_PREDICTED if given else RATIONALE_KIND))
    if thinks and marks.rationale is not None:  # whoever asks for a rationale gives its mark
        thinks.insert(0, (marks.rationale, NOT_PREDICTED))
    answer = thinks + acts if order == "rationale_first" else acts + thinks
    ends_with_text = bool(thinks) and (order == "action_first" or not acts)
    if marks.closes:
        answer.append((marks.end, RATIONALE_KIND if ends_with_text else ACTION_KIND))
    elif text:  # the end of a fixed number of action tokens need not be predicted
        answer.append((marks.end, RATIONALE_KIND if ends_with_text else NOT_PREDICTED))
    return [token for token, _ in answer], [kind for _, kind in answer]


def pad_batch(
    prefixes: Sequence[list[int]], answers: Sequence[tuple[list[int], list[int]]], pad: int
) -> Sequences:
    """Put prefixes and answers together and pad on the right."""
    ids, types, kinds = list[Tensor](), list[Tensor](), list[Tensor]()
    for prefix, (answer, kind) in zip(prefixes, answers, strict=True):
        ids.append(torch.tensor(prefix + answer))
        types.append(torch.tensor([0] * len(prefix) + [1] * len(answer)))
        kinds.append(torch.tensor([NOT_PREDICTED] * len(prefix) + kind))
    return padded_sequences(pad, ids, types, kinds)


def padded_sequences(pad: int, ids: list[Tensor], types: list[Tensor], kinds: list[Tensor]) -> Sequences:
    """Put B rows, int64 each, together and pad on the right."""
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    types_and_kinds = pad_sequence(types, True, 1), pad_sequence(kinds, True, NOT_PREDICTED)
    return Sequences(pad_sequence(ids, True, pad), mask, *types_and_kinds)


def roles_of(vla: VLA, ids: Tensor, prefix: int) -> dict[str, Tensor]:
    """Which tokens are what, bool (B, N) a role. The mark that an answer begins with has its answer's role,
    and what opens or closes the prompt the instruction's.

    Args:
        vla: whose.
        ids: int (B, N), padded on the left at most.
        prefix: tokens before the answer, with the padding.
    """
    answer = torch.arange(ids.shape[1], device=ids.device) >= prefix
    picture = (ids == vla.image_id) & ~answer
    state = picture & (picture.cumsum(1) > vla.image_tokens - vla.reads_state)
    acting = vla.is_action(ids) | (ids == (-1 if vla.marks.action is None else vla.marks.action))
    return {
        IMAGE: picture & ~state,
        STATE: state,
        INSTRUCTION: ~picture & ~answer & (ids != vla.marks.pad),
        RATIONALE: answer & ~acting,
        ACTION: answer & acting,
    }
