"""The objective: L = L_action + lambda_r * L_reasoning, each an average over its own tokens.

ReFineVLA v2 (secondary source): both terms are teacher-forced negative log-likelihoods and lambda_r = 0.3 was
best. Averaging each kind over its own tokens keeps the balance when a rationale has fifteen times as many
tokens as an action.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from refinevla_kit.vlas.action_tokens import ActionTokens
from refinevla_kit.vlas.sequence import ACTION_KIND, RATIONALE_KIND, Sequences


@dataclass(frozen=True)
class Losses:
    """Scalars of one batch. total carries the gradient; the others are for the history.

    Attributes:
        action_accuracy: share of action tokens whose most likely token is the right one.
        action_l1: mean distance between the action of the most likely words allowed at each place and that of
            the right ones, over dimensions, in multiples of `ActionTokens.limits`.
        action_tokens, rationale_tokens: how many there were.
    """

    total: Tensor
    action: Tensor
    reasoning: Tensor
    action_accuracy: Tensor
    action_l1: Tensor
    action_tokens: int
    rationale_tokens: int

    def to_floats(self) -> dict[str, float]:
        """For the history: loss; loss_action, action_accuracy, action_l1 where there were action tokens;
        loss_reasoning where there were others.
        """
        values = {"loss": self.total}  # and no tokens is not a loss of zero
        if self.action_tokens:
            values |= {
                "loss_action": self.action,
                "action_accuracy": self.action_accuracy,
                "action_l1": self.action_l1,
            }
        if self.rationale_tokens:
            values["loss_reasoning"] = self.reasoning
        return {name: float(value.detach()) for name, value in values.items()}


def joint_loss(
    logits: Tensor, sequences: Sequences, lambda_reasoning: float, first_action: int, bins: ActionTokens
) -> Losses:
    """The objective on one batch.

    Args:
        logits: (B, K, V): of the last K places of the sequences (the image places before them predict
            nothing).
        sequences: as `pad_batch` gives them, (B, N) with N >= K.
        lambda_reasoning: weight of the rationale tokens' loss; 0 trains on actions alone.
        first_action: vocabulary id of action word 0.
        bins: the policy's action tokens.
    """
    keep = logits.shape[1]
    predicted = logits[
        :, :-1
        # B, K-1, V: place t predicts token t + 1; float, because bf16 sums of a thousand exponentials are too
        # coarse
    ].float()
    target, kind = (x[:, -keep:][:, 1:] for x in (sequences.input_ids, sequences.kinds))  # B, K-1
    is_action, is_rationale = kind == ACTION_KIND, kind == RATIONALE_KIND
    action_logits, action_target = predicted[is_action], target[is_action]  # A, V and A
    action = _mean_loss(action_logits, action_target)
    reasoning = _mean_loss(predicted[is_rationale], target[is_rationale])
    with torch.no_grad():
        accuracy = (action_logits.argmax(-1) == action_target).float().mean()
        l1 = _distance(action_logits, action_target, first_action, bins)
    return Losses(
        action + lambda_reasoning * reasoning,
        action,
        reasoning,
        accuracy,
        l1,
        len(action_target),
        int(is_rationale.sum()),
    )


def _distance(logits: Tensor, target: Tensor, first_action: int, bins: ActionTokens) -> Tensor:
    """Mean |decoded best - decoded right| of logits (A, V) and targets (A,): the T words of an action stand
    in a row, so A is a multiple of T.
    """
    places = len(bins.ranges)
    by_place = logits.view(-1, places, logits.shape[-1])  # actions, T, V
    best = [
        by_place[:, t, first_action + low : first_action + high].argmax(-1) + low
        for t, (low, high) in enumerate(bins.ranges)
    ]
    said, right = (
        words.cpu().numpy() for words in (torch.stack(best, 1), target.view(-1, places) - first_action)
    )
    difference = np.abs(bins.decode_normalised(said) - bins.decode_normalised(right))
    return torch.from_numpy(difference).to(logits.device).mean()


def _mean_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy; 0 when there is no such token."""
    return torch.nn.functional.cross_entropy(logits, target) if len(target) else logits.sum() * 0.0
