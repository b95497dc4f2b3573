"""Runs a VLA's decoder: embeddings with the picture in its place, masks, layers, logits. The same for every
VLA.

transformers' own layers, rotary embedding and mask functions are called one by one, because the cache of
activations, cached decoding and attention each need a piece of the pass and none of them may differ from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import (
    blockwise_overlay,
    create_causal_mask,
    create_sliding_window_causal_mask,
    sliding_window_overlay,
)

from refinevla_kit.vlas.contract import VLA

Masks = dict[str, Tensor | None]
Rotary = tuple[Tensor, Tensor]  # cosines and sines
Edit = Callable[[int, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
"""A layer's number from 0, the states (B, N, d) and the mask that it is to get -> those that it gets."""
MASKS: dict[str, Any] = {
    "full_attention": create_causal_mask,
    "sliding_attention": create_sliding_window_causal_mask,
}


def in_turn(edits: Sequence[Edit]) -> Edit | None:
    """Edits one after the other as one; None of none."""
    if not edits:
        return None

    def edit(number: int, words: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        for each in edits:
            words, mask = each(number, words, mask)
        return words, mask

    return edit


def embed(vla: VLA, ids: Tensor, image_words: Tensor | None) -> Tensor:
    """Words of a sequence (B, N, d); `image_words` (B, image_tokens, d) take the first places of `image_id`,
    None where there are none. Further ones are in a text that spells it.
    """
    words = vla.words(ids)
    if image_words is None:
        return words
    places = ids == vla.image_id
    places &= places.cumsum(1) <= vla.image_tokens
    return words.masked_scatter(places[..., None], image_words.to(words.dtype))


def positions_of(vla: VLA, length: int, device: torch.device) -> Tensor:
    """Positions (1, N) of a sequence without padding on its left."""
    return torch.arange(vla.first_position, length + vla.first_position, device=device)[None]


def masks_of(
    vla: VLA, words: Tensor, seen: Tensor | None, types: Tensor | None, positions: Tensor, cache: Any = None
) -> Masks:
    """Attention masks by kind of layer.

    Args:
        words: (B, N, d), for size and dtype.
        seen: int (B, tokens so far), 0 on padding; None where there is no padding.
        types: int (B, N), 0 in the prefix, 1 in the answer. None: all is answer.
        positions: int (B or 1, N).
        cache: key-value cache of the tokens before these.
    """
    wanted: dict[str, Any] = {
        "config": vla.decoder.config,
        "inputs_embeds": words,
        "attention_mask": seen,
        "past_key_values": cache,
        "position_ids": positions,
    }
    if vla.two_way and types is not None:
        wanted["block_sequence_ids"] = torch.where(types == 0, 0, -1)
    masks = {kind: MASKS[kind](**wanted) for kind in dict.fromkeys(kinds_of(vla))}
    window: int = getattr(vla.decoder.config, "sliding_window", None) or 0
    if "sliding_attention" in masks and "block_sequence_ids" in wanted and words.shape[1] > window:
        # transformers lets a prefix see all of itself; SpatialVLA's authors hide there, too, what is behind
        # the window
        prefix = blockwise_overlay(wanted.pop("block_sequence_ids"))
        masks["sliding_attention"] = create_sliding_window_causal_mask(
            **wanted, or_mask_function=prefix, and_mask_function=sliding_window_overlay(window)
        )
    return masks


def kinds_of(vla: VLA) -> list[str]:
    """The kind of each layer's attention."""
    return list(getattr(vla.decoder.config, "layer_types", None) or ["full_attention"] * len(vla.layers))


def run_layers(
    vla: VLA,
    words: Tensor,
    masks: Masks,
    positions: Tensor,
    layers: slice = slice(None),
    cache: Any = None,
    rotary: Rotary | None = None,
    edit: Edit | None = None,
) -> Tensor:
    """States (B, N, d) after these layers, all by default; the final norm is not in it. `rotary`: where it is
    known already. `edit`: changes what each layer gets.
    """
    rotary, kinds = rotary or vla.decoder.rotary_emb(words, positions), kinds_of(vla)
    for number in range(len(vla.layers))[layers]:
        layer: Any = vla.layers[number]
        words = words.to(layer.input_layernorm.weight.dtype)  # frozen layers may be kept in bfloat16
        mask = masks[kinds[number]]
        if edit is not None:
            words, mask = edit(number, words, mask)
        words = layer(
            words,
            position_embeddings=rotary,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
        )
    return words


def hidden_states(
    vla: VLA,
    image_words: Tensor,
    ids: Tensor,
    types: Tensor,
    seen: Tensor | None = None,
    edit: Edit | None = None,
) -> Tensor:
    """The decoder's output (B, N, d) after its final norm, for whole sequences padded on the right at most.

    Args:
        image_words: (B, image_tokens, d).
        ids: int (B, N).
        types: int (B, N), 0 in the prefix.
        seen: int (B, N), 0 on padding.
        edit: see `run_layers`.
    """
    words, positions = embed(vla, ids, image_words), positions_of(vla, ids.shape[1], ids.device)
    masks = masks_of(vla, words, seen, types, positions)
    return vla.decoder.norm(run_layers(vla, words, masks, positions, edit=edit))


def capped(vla: VLA, logits: Tensor) -> Tensor:
    """Logits under the decoder's soft cap, where it has one (Gemma 2)."""
    cap = getattr(vla.decoder.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def logits_of(vla: VLA, hidden: Tensor, words: slice = slice(None)) -> Tensor:
    """Logits (..., words) of hidden states (..., d); of the head only the rows that may be said are
    multiplied.
    """
    head = vla.head
    plain = type(head) is nn.Linear  # an adapter around the head has to be run as a whole
    if plain and head.bias is None and words != slice(None):
        return capped(vla, nn.functional.linear(hidden, head.weight[words]))
    return capped(vla, head(hidden)[..., words])
