"""The line between frozen and trained layers: the states that cross it, and the upper layers run on them
alone.

What crosses is the input of language layer k (of the final norm, when all layers are frozen). The lower part
runs as the whole model does, and is stopped there; the upper part builds masks and positions with
transformers' own functions, so both halves together are the whole model. One thing is saved in passing: the
last layer's image places predict nothing, so only their keys and values are computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import apply_rotary_pos_emb

from refinevla_kit.training.batches import Batch
from refinevla_kit.vlas.contract import VLA
from refinevla_kit.vlas.decoder import Rotary, embed, kinds_of, logits_of, masks_of, positions_of, run_layers


@torch.no_grad()
def boundary_states(vla: VLA, batch: Batch, depth: int) -> Tensor:
    """What language layer `depth` is given: (B, N, d)."""
    sequences = batch.sequences
    assert batch.tokens is not None
    words = embed(vla, sequences.input_ids, vla.image_words(batch.tokens, batch.states))
    positions = positions_of(vla, words.shape[1], words.device)
    masks = masks_of(vla, words, sequences.attention_mask, sequences.token_type_ids, positions)
    return run_layers(vla, words, masks, positions, slice(depth))


class UpperLayers(nn.Module):
    """Language layers from `depth` on, final norm and head; the very modules of `vla`, not copies."""

    def __init__(self, vla: VLA, depth: int) -> None:
        super().__init__()
        self.layers, self.norm, self.head = vla.layers[depth:], vla.decoder.norm, vla.head
        self._vla, self._depth = vla, depth

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, K, V) of the last K = `batch.predicting` places of a batch of boundary states."""
        vla, x, keep = self._vla, batch.boundary, batch.predicting
        assert x is not None
        positions = positions_of(vla, x.shape[1], x.device)
        masks = masks_of(vla, x, batch.sequences.attention_mask, batch.sequences.token_type_ids, positions)
        if not len(self.layers):
            return logits_of(vla, self.norm(x[:, -keep:]))
        rotary = vla.decoder.rotary_emb(x, positions)
        x = run_layers(vla, x, masks, positions, slice(self._depth, -1), rotary=rotary)
        x = _last_places(self.layers[-1], x, rotary, masks[kinds_of(vla)[-1]], keep)
        return logits_of(vla, self.norm(x))


class _Earlier:
    """Stands where a layer expects its key-value cache: keys and values (B, H, n, h) of the places before
    those it is run on.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)


def _last_places(layer: Any, x: Tensor, rotary: Rotary, mask: Tensor | None, keep: int) -> Tensor:
    """The layer's output at the last `keep` places, (B, keep, d); x: (B, N, d)."""
    attention, early = layer.self_attn, layer.input_layernorm(x[:, :-keep])
    shape = (*early.shape[:-1], -1, attention.head_dim)  # B, N - keep, H, h
    keys, values = (
        project(early).view(shape).transpose(1, 2) for project in (attention.k_proj, attention.v_proj)
    )
    (cos, sin), (late_cos, late_sin) = (
        (part[:, :-keep] for part in rotary),
        (part[:, -keep:] for part in rotary),
    )
    keys, _ = apply_rotary_pos_emb(keys, keys, cos, sin)
    late = None if mask is None else mask[:, :, -keep:]
    out: Tensor = layer(
        x[:, -keep:],
        position_embeddings=(late_cos, late_sin),
        attention_mask=late,
        past_key_values=_Earlier(keys, values),
    )
    return out
