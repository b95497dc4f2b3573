"""From examples to sequences, from there to logits, and from those to the objective:

    L = L_action + lambda_r * L_reasoning, each an average over its own tokens.

ReFineVLA v2 (secondary source): both terms are teacher-forced negative log-likelihoods and lambda_r = 0.3 was
best. Averaging each kind over its own tokens keeps the balance when a rationale has fifteen times as many
tokens as an action.

Whatever is frozen is computed once and kept: the tower's tokens of each picture, or (see activation_cache.py)
the hidden states of each whole sequence at the boundary between frozen and trained layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from refinevla_kit.simulator.contract import Array
from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.examples import Examples
from refinevla_kit.training.pictures import StreamedPictures
from refinevla_kit.vlas.contract import VLA
from refinevla_kit.vlas.decoder import hidden_states, logits_of
from refinevla_kit.vlas.sequence import (
    ACTION_KIND,
    NOT_PREDICTED,
    RATIONALE_KIND,
    Sequences,
    answer_ids,
    pad_batch,
)

if TYPE_CHECKING:
    from refinevla_kit.training.activation_cache import ActivationCache


@dataclass(frozen=True)
class Batch:
    """What the model sees of B frames.

    Attributes:
        sequences: their sequences, (B, N).
        pixel_values: float32 (B, C, H, W); None where `tokens` or `boundary` stand for them.
        tokens: the frozen tower's tokens, (B, P, d).
        states: the robot's own state as the policy takes it; None for one that reads none.
        boundary: (B, N, d), what the frozen layers make of all that.
    """

    sequences: Sequences
    pixel_values: Tensor | None = None
    tokens: Tensor | None = None
    states: Tensor | None = None
    boundary: Tensor | None = None

    @property
    def predicting(self) -> int:
        """Places from the one before the first token that is predicted, in any row, to the end. Only their
        logits are compared with anything.
        """
        predicted = self.sequences.kinds != NOT_PREDICTED  # B, N
        first = predicted.any(0).int().argmax()
        return int(predicted.shape[1] - (first - 1).clamp(min=0))


@torch.no_grad()
def tower_tokens(vla: VLA, images: Array | StreamedPictures) -> Tensor:
    """The vision tower's tokens of every picture, on the CPU: uint8 (N, H, W, 3) -> float16 (N, P, d)."""
    parts = (vla.look(vla.pixel_values(images[i : i + 64])) for i in range(0, len(images), 64))
    return torch.cat([part.half().cpu() for part in parts])  # half: 18 kB a frame


def lay_out(vla: VLA, examples: Examples, rows: Array, config: TrainingConfig) -> Sequences:
    """The sequences of the frames `rows` (int (B,)), on the CPU."""
    plans = examples.plans(rows, vla.chunk)  # B, steps, A
    known = [bool(np.isfinite(plan).all()) for plan in plans]  # a frame only spoken about has no action
    plans = np.nan_to_num(plans)
    words = vla.bins.encode(vla.own_actions(plans)).reshape(len(rows), -1) + vla.first_action  # B, T
    prefixes, answers = [], []
    for row, action, acted in zip(rows, words, known, strict=True):
        text = examples.rationales[row] if config.lambda_reasoning > 0 else ""
        order = config.orders[int(row) % len(config.orders)]
        prefixes.append(vla.prefix_ids(examples.instructions[row]))
        answers.append(answer_ids(vla, action.tolist() if acted else [], text, order))
    return pad_batch(prefixes, answers, vla.marks.pad)


def make_batch(
    vla: VLA,
    examples: Examples,
    rows: Array,
    config: TrainingConfig,
    kept: Tensor | ActivationCache | None = None,
) -> Batch:
    """Lay out the frames `rows` (int (B,)) as sequences on the model's device.

    Args:
        kept: what is frozen: the tower's tokens of all pictures, or a cache of the states at the boundary of
            all examples.
    """
    device = vla.device
    if kept is not None and not isinstance(kept, Tensor):
        sequences, boundary = kept.read(rows)
        return Batch(sequences.to(device), boundary=boundary.to(device))
    seen: dict[str, Tensor] = {}
    if kept is None:
        rows, images = examples.look(rows)
        seen["pixel_values"] = vla.pixel_values(images)
    else:
        seen["tokens"] = kept[torch.from_numpy(examples.pictures(rows))].to(device).float()
    sequences = lay_out(vla, examples, rows, config).to(device)
    states = vla.states(None if examples.proprioception is None else examples.proprioception[rows])
    return Batch(sequences, states=states, **seen)


class WholeModel(nn.Module):
    """A VLA as one module, whose forward pass gives logits."""

    def __init__(self, vla: VLA) -> None:
        super().__init__()
        self.model, self._vla = vla.model, vla

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, K, V) of the last K = `batch.predicting` places."""
        vla, sequences, tokens = self._vla, batch.sequences, batch.tokens
        if tokens is None:
            assert batch.pixel_values is not None
            tokens = vla.look(batch.pixel_values)
        words = vla.image_words(tokens, batch.states)
        hidden = hidden_states(
            vla, words, sequences.input_ids, sequences.token_type_ids, sequences.attention_mask
        )
        return logits_of(vla, hidden[:, -batch.predicting :])


def forward(model: Any, vla: VLA, batch: Batch, config: TrainingConfig) -> Losses:
    """Run a model on a batch and take the objective.

    Args:
        model: `WholeModel`, or `UpperLayers` for a batch of boundary states; or what accelerate made of
            either.
        vla: whose model it is.
        batch: what it sees.
        config: how the reasoning loss is weighed.
    """
    logits, sequences = model(batch), batch.sequences
    kinds = sequences.kinds[:, -logits.shape[1] :][:, 1:]
    action, reasoning, action_logits, action_target = objective(logits, sequences, config.texts_alike)
    with torch.no_grad():
        accuracy = (action_logits.argmax(-1) == action_target).float().mean()
        spoken = vla.is_action(action_target)
        l1 = _distance(action_logits[spoken], action_target[spoken], vla)
    total = action + config.lambda_reasoning * reasoning
    rationale_tokens = int((kinds == RATIONALE_KIND).sum())
    return Losses(total, action, reasoning, accuracy, l1, len(action_target), rationale_tokens)


@dataclass(frozen=True)
class Losses:
    """Scalars of one batch. total carries the gradient; the others are for the history.

    Attributes:
        total, action, reasoning: the objective and its two parts.
        action_accuracy: share of action tokens whose most likely token is the right one.
        action_l1: mean absolute difference between the likeliest allowed action and the right one, over
            dimensions, in multiples of `ActionTokens.limits`.
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
        """For the history: the loss, and of each kind of token that there was, its own numbers."""
        values = {"loss": self.total}  # and no tokens is not a loss of zero
        if self.action_tokens:
            values["loss_action"] = self.action
            values["action_accuracy"] = self.action_accuracy
            values["action_l1"] = self.action_l1
        if self.rationale_tokens:
            values["loss_reasoning"] = self.reasoning
        return {name: float(value.detach()) for name, value in values.items()}


def objective(
    logits: Tensor, sequences: Sequences, texts_alike: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two losses, and what the first one compares.

    Args:
        logits: (B, K, V): of the last K places of the sequences (the image places before them predict
            nothing).
        sequences: as `pad_batch` gives them, (B, N) with N >= K.
        texts_alike: see `TrainingConfig`.

    Returns:
        The mean loss of action tokens and that of rationale tokens; logits (A, V) and targets (A,) of the A
        action tokens.
    """
    keep = logits.shape[1]
    # Place t predicts token t + 1. Float, because bf16 sums of a thousand exponentials are too coarse.
    predicted = logits[:, :-1].float()  # B, K-1, V
    target = sequences.input_ids[:, -keep:][:, 1:]  # B, K-1
    kind = sequences.kinds[:, -keep:][:, 1:]
    is_action, is_rationale = kind == ACTION_KIND, kind == RATIONALE_KIND
    action_logits, action_target = predicted[is_action], target[is_action]  # A, V and A
    action = _mean_loss(action_logits, action_target)
    shares = None
    if texts_alike:  # what each of the R tokens counts, 1 in all
        lengths, rows = is_rationale.sum(1), torch.where(is_rationale)[0]  # B and R
        shares = 1 / lengths[rows] / (lengths > 0).sum()
    reasoning = _mean_loss(predicted[is_rationale], target[is_rationale], shares)
    return action, reasoning, action_logits, action_target


def _distance(logits: Tensor, target: Tensor, vla: VLA) -> Tensor:
    """Mean |decoded best - decoded right| of logits (A, V) and targets (A,).

    The T words of an action stand in a row, so A is a multiple of T.
    """
    bins, first = vla.bins, vla.first_action
    places = len(bins.ranges)
    by_place = logits.view(-1, places, logits.shape[-1])  # actions, T, V
    best = [
        by_place[:, t, first + low : first + high].argmax(-1) + low
        for t, (low, high) in enumerate(bins.ranges)
    ]
    likeliest = torch.stack(best, 1).cpu().numpy()
    right = (target.view(-1, places) - first).cpu().numpy()
    difference = np.abs(bins.decode_normalised(likeliest) - bins.decode_normalised(right))
    return torch.from_numpy(difference).to(logits.device).mean()


def _mean_loss(logits: Tensor, target: Tensor, shares: Tensor | None = None) -> Tensor:
    """Mean cross-entropy, where tokens have `shares` by these; 0 when there is no such token."""
    if not len(target):
        return logits.sum() * 0.0
    if shares is None:
        return nn.functional.cross_entropy(logits, target)
    return nn.functional.cross_entropy(logits, target, reduction="none") @ shares
