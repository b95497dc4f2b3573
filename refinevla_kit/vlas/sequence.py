"""How a policy's input and answer are laid out as one sequence of tokens.

    [image patches] [instruction]  |  <action> a1 .. a7 <rationale> text <eos>        order="action_first":
                                   acting costs no rationale tokens
    [image patches] [instruction]  |  <rationale> text <action> a1 .. a7 <eos>        order="rationale_first":
                                   thinks aloud before acting

Left of the bar: the prefix, attended to in both directions (token type 0). Right: the answer, causal (token
type 1). The first token of the answer is given, never predicted. Kinds say which loss a token belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refinevla_kit.errors import KitError
from refinevla_kit.settings import ORDERS
from refinevla_kit.vlas.contract import VLA

NOT_PREDICTED, ACTION_KIND, RATIONALE_KIND = 0, 1, 2


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


def answer_ids(vla: VLA, action: Sequence[int], rationale: str, order: str) -> tuple[list[int], list[int]]:
    """The answer as (ids, kinds).

    Args:
        vla: whose words they are.
        action: vocabulary ids, may be empty.
        rationale: a text, may be empty; then its mark is left out.
        order: one of `ORDERS`.
    """
    if order not in ORDERS:
        raise KitError(f"unknown order {order!r}", f"choose one of {', '.join(ORDERS)}")
    marks = vla.marks
    text = vla.tokenizer.encode(rationale, add_special_tokens=False) if rationale else []
    act = ([marks.action, *action], [RATIONALE_KIND, *[ACTION_KIND] * len(action)]) if action else ([], [])
    think = ([marks.rationale, *text], [RATIONALE_KIND] * (len(text) + 1)) if text else ([], [])
    first, second = (act, think) if order == "action_first" else (think, act)
    ids, kinds = [*first[0], *second[0]], [*first[1], *second[1]]
    if text:  # the end of a text has to be predicted; the end of a fixed number of action tokens has not
        ids, kinds = [*ids, marks.end], [*kinds, RATIONALE_KIND if order == "action_first" else NOT_PREDICTED]
    kinds[0] = NOT_PREDICTED
    if order == "action_first" and act[0] and think[0]:
        kinds[len(act[0])] = (
            NOT_PREDICTED  # the mark is given to whoever asks for a rationale after the action
        )
    return ids, kinds


def pad_batch(
    prefixes: Sequence[list[int]], answers: Sequence[tuple[list[int], list[int]]], pad: int
) -> Sequences:
    """Put prefixes and answers together and pad on the right."""
    longest = max(len(p) + len(a[0]) for p, a in zip(prefixes, answers, strict=True))
    shape = (len(prefixes), longest)
    ids, mask = torch.full(shape, pad), torch.zeros(shape, dtype=torch.int64)
    types, kinds = torch.ones(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    for row, (prefix, (answer, kind)) in enumerate(zip(prefixes, answers, strict=True)):
        n, m = len(prefix), len(prefix) + len(answer)
        ids[row, :m] = torch.tensor(prefix + answer)
        mask[row, :m] = 1
        types[row, :n] = 0
        kinds[row, n:m] = torch.tensor(kind)
    return Sequences(ids, mask, types, kinds)
