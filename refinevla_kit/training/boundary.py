"""The line between frozen and trained layers: the states that cross it, and the upper layers run on them alone.

What crosses is the input of language layer k (of the final norm, when all layers are frozen). The lower part runs as the whole model does, and is
stopped there; the upper part builds masks and positions with transformers' own functions, so both halves together are the whole model. One thing
is saved in passing: the last layer's image places predict nothing, so only their keys and values are computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.gemma2.modeling_gemma2 import apply_rotary_pos_emb

from refinevla_kit.policies.compact_vla import CompactVLA
from refinevla_kit.training.batches import Batch, predict


class _Reached(Exception):
    """Thrown out of the forward pass by the first layer that is not wanted."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


@torch.no_grad()
def boundary_states(vla: CompactVLA, batch: Batch, depth: int) -> Tensor:
    """What language layer `depth` is given: (B, N, d)."""

    def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise _Reached(inputs[0])

    language: Any = vla.model.model.language_model
    handle = (*language.layers, language.norm)[depth].register_forward_pre_hook(stop)
    try:
        predict(vla.model, vla, batch)
    except _Reached as reached:
        return reached.states
    finally:
        handle.remove()
    raise AssertionError("a forward pass that never reaches its layers")


class UpperLayers(nn.Module):
    """Language layers from `depth` on, final norm and head; the very modules of `vla`, not copies."""

    def __init__(self, vla: CompactVLA, depth: int) -> None:
        super().__init__()
        language: Any = vla.model.model.language_model
        self.layers, self.norm, self.rotary, self.head = language.layers[depth:], language.norm, language.rotary_emb, vla.model.lm_head
        self.config = language.config
        self.kinds = list(language.config.layer_types[depth:])

    def forward(self, boundary: Tensor, attention_mask: Tensor, token_type_ids: Tensor, logits_to_keep: int) -> Tensor:
        """Logits (B, K, V) of the last K = `logits_to_keep` places.

        Args:
            boundary: (B, N, d), see `boundary_states`. attention_mask, token_type_ids: (B, N), see `Sequences`.
        """
        positions = torch.arange(1, boundary.shape[1] + 1, device=boundary.device)[None]  # PaliGemma counts from 1
        rotary, masks, x = self.rotary(boundary, positions), self._masks(boundary, attention_mask, token_type_ids, positions), boundary
        for layer, kind in zip(self.layers[:-1], self.kinds[:-1], strict=True):
            x = layer(x, position_embeddings=rotary, attention_mask=masks[kind], position_ids=positions)
        x = _last_places(self.layers[-1], x, rotary, masks[self.kinds[-1]], logits_to_keep) if self.kinds else x[:, -logits_to_keep:]
        logits: Tensor = self.head(self.norm(x))
        cap = self.config.final_logit_softcapping
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _masks(self, boundary: Tensor, attention_mask: Tensor, token_type_ids: Tensor, positions: Tensor) -> dict[str, Tensor]:
        """Additive masks (B, 1, N, N) by kind of layer: the prefix (type 0) in both directions, the answer causal."""
        wanted = {
            "config": self.config, "inputs_embeds": boundary, "attention_mask": attention_mask, "past_key_values": None,
            "position_ids": positions, "block_sequence_ids": torch.where(token_type_ids == 0, 0, -1),
        }  # fmt: skip
        makers: dict[str, Any] = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
        return {kind: makers[kind](**wanted) for kind in set(self.kinds)}


class _Earlier:
    """Stands where a layer expects its key-value cache: keys and values (B, H, n, h) of the places before those it is run on."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)


def _last_places(layer: Any, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor, keep: int) -> Tensor:
    """The layer's output at the last `keep` places, (B, keep, d); x: (B, N, d)."""
    attention, early = layer.self_attn, layer.input_layernorm(x[:, :-keep])
    shape = (*early.shape[:-1], -1, attention.head_dim)  # B, N - keep, H, h
    keys, values = (project(early).view(shape).transpose(1, 2) for project in (attention.k_proj, attention.v_proj))
    (cos, sin), (late_cos, late_sin) = (part[:, :-keep] for part in rotary), (part[:, -keep:] for part in rotary)
    keys, _ = apply_rotary_pos_emb(keys, keys, cos, sin)
    out: Tensor = layer(
        x[:, -keep:], position_embeddings=(late_cos, late_sin), attention_mask=mask[:, :, -keep:], past_key_values=_Earlier(keys, values)
    )
    return out
