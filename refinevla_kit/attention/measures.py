"""How well a map over the picture fits the things in it: pure functions of arrays, for attention and for any
other map that is not negative.

All compare with chance. A map spread evenly scores the thing's share of the picture in `shares` and
`pointing`, 0.5 in `auc`, 1 in `nuisance`; a map shaped like the thing scores 1, 1, 1 and 0. A thing that is
not visible has a share of 0 and no other score (NaN): there is nothing to point at. Scores are computed on
patches, which weighs each pixel by its patch's value exactly (patches.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from refinevla_kit.attention.patches import to_patches
from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import Array

REST = "rest"
THINGS = ("source", "target", "gripper", "arm", REST)
RELEVANT = (
    "source",
    "target",
    "gripper",
)  # what the next action is about; anything else in the picture is a nuisance


def shares(patch_map: Array, masks: Mapping[str, Array]) -> dict[str, Array]:
    """Share of a map's attention on each thing.

    Args:
        patch_map: float (..., rows, columns), not negative.
        masks: name -> bool (H, W) of the picture; no pixel in two.

    Returns:
        name -> float64 (...), and `rest` for the pixels in no mask; they add up to 1. A uniform map gives
        `areas(masks)`.

    Raises:
        KitError: no masks, masks that overlap, or a map without any attention.
    """
    patch_map = _checked(patch_map)
    names, stack = _stack(masks)
    covered = to_patches(stack, patch_map.shape[-2:])  # things, rows, columns
    found = np.einsum("...rc,trc->...t", patch_map, covered) / patch_map.sum((-2, -1))[..., None]
    return {name: found[..., i] for i, name in enumerate(names)}


def areas(masks: Mapping[str, Array]) -> dict[str, float]:
    """Share of the picture each thing takes up, `rest` included; they add up to 1."""
    names, stack = _stack(masks)
    return {name: float(mask.mean()) for name, mask in zip(names, stack, strict=True)}


def pointing(patch_map: Array, masks: Mapping[str, Array]) -> dict[str, Array]:
    """Pointing game (Zhang et al. 2018): does the map's highest point lie on the thing?

    The highest point of a patch map is a whole patch, or several that tie, so the score is the part of it
    that the thing covers: the chance of a pixel drawn from it. Arguments, errors and names as in `shares`;
    name -> float64 (...) in [0, 1].
    """
    patch_map = _checked(patch_map)
    names, stack = _stack(masks)
    covered = to_patches(stack, patch_map.shape[-2:])
    highest = (patch_map == patch_map.max((-2, -1), keepdims=True)).astype(np.float64)
    found = np.einsum("...rc,trc->...t", highest, covered) / highest.sum((-2, -1))[..., None]
    return {
        name: found[..., i] if stack[i].any() else np.full_like(found[..., i], np.nan)
        for i, name in enumerate(names)
    }


def auc(patch_map: Array, masks: Mapping[str, Array]) -> dict[str, Array]:
    """Area under the ROC curve of the map as a classifier of each thing's pixels: the chance that a pixel of
    the thing has a higher value than one that is not, equal values counting half (the Mann-Whitney
    statistic).

    Arguments, errors and names as in `shares`; name -> float64 (...) in [0, 1]; NaN where a thing fills none
    of the picture or all of it.
    """
    patch_map = _checked(patch_map)
    names, stack = _stack(masks)
    inside = to_patches(stack, patch_map.shape[-2:]).reshape(
        len(stack), -1
    )  # things, patches: part of a patch on the thing
    values = patch_map.reshape(*patch_map.shape[:-2], -1)  # ..., patches
    higher = 0.5 * (
        1 + np.sign(values[..., :, None] - values[..., None, :])
    )  # ..., patches, patches: 1, 0.5 or 0
    pairs = inside.sum(-1) * (1 - inside).sum(-1)  # things
    won = np.einsum("tp,...pq,tq->...t", inside, higher, 1 - inside, optimize=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(pairs > 1e-9, won / pairs, np.nan)
    return {name: found[..., i] for i, name in enumerate(names)}


def nuisance(patch_map: Array, masks: Mapping[str, Array]) -> Array:
    """Attention to an average pixel of what does not matter over that of one that does (`RELEVANT`), float64
    (...); NaN where neither is seen.

    1 is even attention, 0 none on nuisances. Arguments and errors as in `shares`.
    """
    found, area = shares(patch_map, masks), areas(masks)
    relevant = [name for name in found if name in RELEVANT]
    on, size = (
        sum((found[name] for name in relevant), np.zeros(np.shape(patch_map)[:-2])),
        sum(area[name] for name in relevant),
    )
    if not 0 < size < 1:
        return np.full(np.shape(on), np.nan)
    return np.asarray(((1 - on) / (1 - size)) / np.maximum(on / size, 1e-12))


def _checked(patch_map: Array) -> Array:
    patch_map = np.asarray(patch_map, np.float64)
    if (patch_map < 0).any() or not (patch_map.sum((-2, -1)) > 0).all():
        raise KitError(
            "an attention map is negative or empty",
            "give attention weights: not negative, with a sum above 0",
        )
    return patch_map


def _stack(masks: Mapping[str, Array]) -> tuple[list[str], Array]:
    if not masks:
        raise KitError(
            "there are no object masks to score against",
            "give frames of the simulator: a real robot's dataset has none",
        )
    stack = np.stack([np.asarray(mask, bool) for mask in masks.values()])  # things, H, W
    if stack.sum(0).max() > 1:
        raise KitError("object masks overlap", "give masks of visible pixels, each pixel in one mask at most")
    return [*masks, REST], np.concatenate([stack, ~stack.any(0, keepdims=True)])
