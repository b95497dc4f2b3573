"""From examples to what the model sees, and from there to the objective.

Whatever is frozen is computed once and kept: the tower's tokens of each picture, or (see activation_cache.py) the hidden states of each whole
sequence at the boundary between frozen and trained layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from refinevla_kit.policies.compact_vla import CompactVLA
from refinevla_kit.policies.contract import Array
from refinevla_kit.policies.sequence import Sequences, answer_ids, pad_batch, prefix_ids
from refinevla_kit.policies.vocabulary import PAD, first_action_id, token_id
from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.examples import Examples
from refinevla_kit.training.objective import Losses, joint_loss

if TYPE_CHECKING:
    from refinevla_kit.training.activation_cache import ActivationCache


@dataclass(frozen=True)
class Batch:
    """What the model sees: pixel_values float32 (B, 3, H, W), or the frozen tower's patches (B, P, d) instead; states (B, 22) where the policy reads
    the robot's own; and the sequences over them. Or boundary (B, N, d), what the frozen layers make of all that."""

    sequences: Sequences
    pixel_values: Tensor | None
    tokens: Tensor | None
    states: Tensor | None
    boundary: Tensor | None = None

    @property
    def predicting(self) -> int:
        """Places from the first answer's first token to the end: the only ones whose logits anything is compared with."""
        types = self.sequences.token_type_ids
        return types.shape[1] - int((types == 0).sum(1).min())


@torch.no_grad()
def tower_tokens(vla: CompactVLA, images: Array, chunk: int = 64) -> Tensor:
    """The vision tower's tokens of every picture: uint8 (N, H, W, 3) -> float16 (N, P, d). Frozen is computed once: 18 kB a frame, on the CPU."""
    tower = vla.model.model.vision_tower
    parts = (tower(pixel_values=vla.pixel_values(images[i : i + chunk])) for i in range(0, len(images), chunk))
    return torch.cat([part.last_hidden_state.half().cpu() for part in parts])


def lay_out(vla: CompactVLA, examples: Examples, rows: Array, config: TrainingConfig) -> Sequences:
    """The sequences of the frames `rows` (int (B,)), on the CPU."""
    first = first_action_id(vla.tokenizer)
    acts: Array = np.asarray(np.isfinite(examples.actions[rows]).all(axis=1))  # B; a frame that is only spoken about has no action
    bins = vla.bins.encode(np.nan_to_num(examples.actions[rows])) + first  # B, A
    prefixes = [prefix_ids(vla.tokenizer, vla.image_tokens, examples.instructions[row]) for row in rows]
    texts = [examples.rationales[row] if config.lambda_reasoning > 0 else "" for row in rows]
    actions = [action.tolist() if acted else [] for action, acted in zip(bins, acts, strict=True)]
    answers = [answer_ids(vla.tokenizer, action, text, config.order) for action, text in zip(actions, texts, strict=True)]
    return pad_batch(prefixes, answers, token_id(vla.tokenizer, PAD))


def make_batch(
    vla: CompactVLA, examples: Examples, rows: Array, config: TrainingConfig, kept: Tensor | ActivationCache | None = None
) -> Batch:
    """Lay out the frames `rows` (int (B,)) as sequences on the model's device.

    Args:
        kept: what is frozen, of all examples: the tower's tokens, or a cache of the states at the boundary.
    """
    device = vla.model.device
    if kept is not None and not isinstance(kept, Tensor):
        sequences, boundary = kept.read(rows)
        return Batch(on_device(sequences, device), None, None, None, boundary.to(device))
    sequences = on_device(lay_out(vla, examples, rows, config), device)
    states = vla.states(None if examples.proprioception is None else examples.proprioception[rows])
    if kept is not None:
        return Batch(sequences, None, kept[torch.from_numpy(rows)].to(device).float(), states)
    return Batch(sequences, vla.pixel_values(examples.images[rows]), None, states)


def predict(model: Any, vla: CompactVLA, batch: Batch) -> Tensor:
    """Logits (B, K, V) of the last K = `batch.predicting` places.

    Args:
        model: `vla.model`, or `UpperLayers` for a batch of boundary states; or what accelerate made of either.
    """
    sequences = batch.sequences
    masks = {"attention_mask": sequences.attention_mask, "token_type_ids": sequences.token_type_ids, "logits_to_keep": batch.predicting}
    logits: Tensor
    if batch.boundary is not None:
        logits = model(batch.boundary, **masks)
        return logits
    if batch.tokens is not None:
        features = vla.image_features(batch.tokens, batch.states)
    else:
        assert batch.pixel_values is not None
        features = vla.encode(batch.pixel_values, batch.states)
    logits = model(input_ids=sequences.input_ids, mm_encoder_outputs=features, use_cache=False, **masks).logits
    return logits


def forward(model: Any, vla: CompactVLA, batch: Batch, config: TrainingConfig) -> Losses:
    """Run the model on a batch and take the objective. `model`: see `predict`."""
    return joint_loss(predict(model, vla, batch), batch.sequences, config.lambda_reasoning, first_action_id(vla.tokenizer), vla.bins)


def on_device(sequences: Sequences, device: torch.device) -> Sequences:
    """The same sequences on `device`."""
    return Sequences(*(getattr(sequences, field).to(device) for field in Sequences.__dataclass_fields__))
