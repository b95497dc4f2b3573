"""From examples to what the model sees, and from there to the objective.

Whatever is frozen is computed once and kept: the tower's tokens of each picture, or (see activation_cache.py)
the hidden states of each whole sequence at the boundary between frozen and trained layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from refinevla_kit.policies.contract import Array
from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.examples import Examples
from refinevla_kit.training.objective import Losses, joint_loss
from refinevla_kit.vlas.contract import VLA
from refinevla_kit.vlas.decoder import hidden_states, logits_of
from refinevla_kit.vlas.sequence import Sequences, answer_ids, pad_batch

if TYPE_CHECKING:
    from refinevla_kit.training.activation_cache import ActivationCache


@dataclass(frozen=True)
class Batch:
    """What the model sees: pixel_values float32 (B, 3, H, W), or the frozen tower's patches (B, P, d)
    instead; states (B, 22) where the policy reads the robot's own; and the sequences over them. Or boundary
    (B, N, d), what the frozen layers make of all that.
    """

    sequences: Sequences
    pixel_values: Tensor | None
    tokens: Tensor | None
    states: Tensor | None
    boundary: Tensor | None = None

    @property
    def predicting(self) -> int:
        """Places from the first answer's first token to the end: the only ones whose logits anything is
        compared with.
        """
        types = self.sequences.token_type_ids
        return types.shape[1] - int((types == 0).sum(1).min())


@torch.no_grad()
def tower_tokens(vla: VLA, images: Array, chunk: int = 64) -> Tensor:
    """The vision tower's tokens of every picture: uint8 (N, H, W, 3) -> float16 (N, P, d). Frozen is computed
    once: 18 kB a frame, on the CPU.
    """
    parts = (vla.look(vla.pixel_values(images[i : i + chunk])) for i in range(0, len(images), chunk))
    return torch.cat([part.half().cpu() for part in parts])


def lay_out(vla: VLA, examples: Examples, rows: Array, config: TrainingConfig) -> Sequences:
    """The sequences of the frames `rows` (int (B,)), on the CPU."""
    acts: Array = np.asarray(
        np.isfinite(examples.actions[rows]).all(axis=1)
    )  # B; a frame that is only spoken about has no action
    bins = vla.bins.encode(np.nan_to_num(examples.actions[rows])) + vla.first_action  # B, A
    prefixes = [vla.prefix_ids(examples.instructions[row]) for row in rows]
    texts = [examples.rationales[row] if config.lambda_reasoning > 0 else "" for row in rows]
    actions = [action.tolist() if acted else [] for action, acted in zip(bins, acts, strict=True)]
    answers = [
        answer_ids(vla, action, text, config.order) for action, text in zip(actions, texts, strict=True)
    ]
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
        kept: what is frozen, of all examples: the tower's tokens, or a cache of the states at the boundary.
    """
    device = vla.device
    if kept is not None and not isinstance(kept, Tensor):
        sequences, boundary = kept.read(rows)
        return Batch(on_device(sequences, device), None, None, None, boundary.to(device))
    sequences = on_device(lay_out(vla, examples, rows, config), device)
    states = vla.states(None if examples.proprioception is None else examples.proprioception[rows])
    if kept is not None:
        return Batch(sequences, None, kept[torch.from_numpy(rows)].to(device).float(), states)
    return Batch(sequences, vla.pixel_values(examples.images[rows]), None, states)


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


def predict(model: Any, vla: VLA, batch: Batch) -> Tensor:
    """Logits (B, K, V) of the last K = `batch.predicting` places.

    Args:
        model: `vla.model`, or `UpperLayers` for a batch of boundary states; or what accelerate made of
            either.
        vla: whose model it is.
        batch: what it sees.
    """
    logits: Tensor = (WholeModel(vla) if model is vla.model else model)(batch)
    return logits


def forward(model: Any, vla: VLA, batch: Batch, config: TrainingConfig) -> Losses:
    """Run the model on a batch and take the objective. `model`: see `predict`."""
    return joint_loss(
        predict(model, vla, batch), batch.sequences, config.lambda_reasoning, vla.first_action, vla.bins
    )


def on_device(sequences: Sequences, device: torch.device) -> Sequences:
    """The same sequences on `device`."""
    return Sequences(*(getattr(sequences, field).to(device) for field in Sequences.__dataclass_fields__))
