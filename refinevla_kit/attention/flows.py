"""Attribution by attention: one layer's rows, rows fused, attention followed through the layers, and
attention weighted by its gradient.

Each gives a row over all tokens; what falls on patches is the map. Tokens that collect attention without
being looked at ("sinks": Xiao et al. 2024) can be left out, where each layer's rows are divided anew among
the others; how much they held is said either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refinevla_kit.attention.capture import watching
from refinevla_kit.attention.captured import upper_middle
from refinevla_kit.attention.forward import Asked, Found, hidden_states, score
from refinevla_kit.attention.fusion import fuse_top
from refinevla_kit.attention.queries import TokenSequence
from refinevla_kit.errors import KitError
from refinevla_kit.policies.contract import Array
from refinevla_kit.policies.vla_policy import VLAPolicy

SINKS = ("bos", "newline", "registers", "state")


def sinks(policy: VLAPolicy, sequence: TokenSequence) -> dict[str, list[int]]:
    """Positions of what may be left out: the begin-of-sequence token, line ends of the prefix (PaliGemma ends
    its prompt with one), image tokens that are no patch, and the robot's own state. Empty for what this
    policy does not have.
    """
    vla, prefix = policy.vla, range(policy.vla.image_end, sequence.prefix)
    return {
        "bos": [
            at
            for at, token in enumerate(sequence.ids)
            if vla.tokenizer.bos_token_id is not None and token == vla.tokenizer.bos_token_id
        ],
        "newline": [at for at in prefix if str(vla.tokenizer.decode([sequence.ids[at]])) == "\n"],
        "registers": list(range(vla.on_patches.stop, vla.image_end - vla.reads_state)),
        "state": [vla.image_end - 1] if vla.reads_state else [],
    }


def raw(asked: Asked, layer: int | None = None, head: int = 0, exclude: Sequence[str] = ()) -> Found:
    """One layer's and head's attention, both from 0; `layer` None is `upper_middle`."""
    return _of_layer(asked, layer, head, exclude)


def head_mean(asked: Asked, layer: int | None = None, exclude: Sequence[str] = ()) -> Found:
    """One layer's attention, mean over heads."""
    return _of_layer(asked, layer, None, exclude)


def top_k(asked: Asked, k: int = 3, layers: Sequence[int] | None = None) -> Found:
    """For each patch the mean of the `k` strongest maps among heads and `layers` (from 0; None:
    `upper_middle` and above): `fusion.fuse_top`.
    """
    rows = _rows(asked)  # layers, heads, N
    chosen = (
        list(range(upper_middle(len(rows)), len(rows)))
        if layers is None
        else [_in_range("layer", one, len(rows)) for one in layers]
    )
    fused = fuse_top(rows[chosen, :, None, asked.policy.vla.on_patches], k)
    held = {
        name: float(rows[chosen][..., at].sum(-1).mean())
        for name, at in sinks(asked.policy, asked.sequence).items()
    }
    details = {
        "k": k,
        "layers": chosen,
        "sinks": held,
        "fusion": "the kit's own reading of the paper's top-k attention fusion",
    }
    return Found(fused.reshape(asked.policy.vla.grid), None, details)


@torch.no_grad()
def rollout(asked: Asked, exclude: Sequence[str] = ()) -> Found:
    """Attention rollout (Abnar and Zuidema 2020): the layers' head means, each half with the identity for the
    residual, multiplied.
    """
    size, places = len(asked.sequence.ids), _excluded(asked, exclude)
    flow, held = torch.eye(size, dtype=torch.float64), []

    def follow(weights: Tensor) -> None:
        nonlocal flow
        mean = weights[0].mean(0).double().cpu()  # N, N
        held.append(_held(asked, mean[list(asked.query.positions)].mean(0).numpy()))
        flow = _add_identity(_without(mean, places)) @ flow

    with watching(asked.policy, follow):
        hidden_states(asked.policy, asked.words(asked.pixels()), asked.sequence)
    row = flow[list(asked.query.positions)].mean(0).numpy()
    return _found(
        asked,
        row,
        {
            "exclude": list(exclude),
            "sinks": {name: float(np.mean([one[name] for one in held])) for name in SINKS},
        },
    )


@torch.enable_grad()
def relevance(asked: Asked, exclude: Sequence[str] = ()) -> Found:
    """Gradient-weighted attention (Chefer, Gur and Wolf 2021, rule for self-attention): R <- R + mean over
    heads of (gradient * attention)+ R.

    The gradient is the score's. It needs all layers' squares at once, as every backward pass does.
    """
    weights: list[Tensor] = []
    picture, places = asked.words(asked.pixels()), _excluded(asked, exclude)
    picture = picture.detach().requires_grad_()  # so that frozen weights do not matter
    with watching(asked.policy, weights.append):
        reached = score(asked.policy, picture, asked.sequence, asked.query).sum()
    gradients = torch.autograd.grad(reached, weights)  # nothing is left in the parameters' .grad
    size = len(asked.sequence.ids)
    flow = torch.eye(size, dtype=torch.float64)
    for layer, gradient in zip(weights, gradients, strict=True):
        moved = (layer * gradient).clamp(min=0)[0].mean(0).detach().double().cpu()  # N, N
        moved[:, places] = 0
        flow = flow + moved @ flow
    row = (flow - torch.eye(size, dtype=torch.float64))[list(asked.query.positions)].mean(0).numpy()
    return _found(
        asked, row, {"exclude": list(exclude), "sinks": _held(asked, row / max(float(row.sum()), 1e-300))}
    )


def _of_layer(asked: Asked, layer: int | None, head: int | None, exclude: Sequence[str]) -> Found:
    rows = _rows(asked)  # layers, heads, N
    layer = upper_middle(len(rows)) if layer is None else _in_range("layer", layer, len(rows))
    row = rows[layer].mean(0) if head is None else rows[layer, _in_range("head", head, rows.shape[1])]
    held = _held(asked, row)
    left = _without(torch.from_numpy(row)[None], _excluded(asked, exclude))[0].numpy()
    details: dict[str, Any] = (
        {"layer": layer}
        | ({} if head is None else {"head": head})
        | {"exclude": list(exclude), "sinks": held}
    )
    return _found(asked, left, details)


@torch.no_grad()
def _rows(asked: Asked) -> Array:
    """float64 (layers, heads, N): the query's attention, mean over its tokens."""
    rows: list[Tensor] = []
    with watching(
        asked.policy, lambda weights: rows.append(weights[0, :, list(asked.query.positions)].mean(1))
    ):
        hidden_states(asked.policy, asked.words(asked.pixels()), asked.sequence)
    return np.asarray(torch.stack(rows).double().cpu().numpy())


def _found(asked: Asked, row: Array, details: dict[str, Any]) -> Found:
    """Of a row over all tokens (N,)."""
    vla = asked.policy.vla
    shares = row[vla.on_patches]
    return Found(
        shares.reshape(vla.grid),
        None,
        details | {"image_share": float(shares.sum() / max(float(row.sum()), 1e-300))},
    )


def _held(asked: Asked, row: Array) -> dict[str, float]:
    return {name: float(row[at].sum()) for name, at in sinks(asked.policy, asked.sequence).items()}


def _excluded(asked: Asked, names: Sequence[str]) -> list[int]:
    if unknown := [name for name in names if name not in SINKS]:
        raise KitError(f"{unknown[0]!r} cannot be left out of the attention", f"choose of {', '.join(SINKS)}")
    return [at for name in names for at in sinks(asked.policy, asked.sequence)[name]]


def _without(rows: Tensor, places: list[int]) -> Tensor:
    """Rows (..., N) with some columns set to 0 and the rest scaled to add up to 1 again."""
    left = rows.clone()
    left[..., places] = 0
    return left / left.sum(-1, keepdim=True).clamp(min=1e-300)


def _add_identity(square: Tensor) -> Tensor:
    both = square + torch.eye(len(square), dtype=square.dtype)
    return both / both.sum(-1, keepdim=True)


def _in_range(name: str, value: int, size: int) -> int:
    if not 0 <= value < size:
        raise KitError(f"there is no {name} {value}", f"choose 0 to {size - 1}")
    return value
