"""How much of a policy's attention falls on the things that matter, scored against the simulator's own masks.

A share is of the attention that goes to the picture, so it compares with the share of the picture's area a thing takes up: attention spread evenly
scores exactly the area share. Shares are kept a frame, layer and action dimension (one row each, parquet); what is claimed is a mean over episodes
with an interval over episodes, because frames of one episode repeat each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refinevla_kit.attention.frames import Frame
from refinevla_kit.attention.patches import to_patches
from refinevla_kit.errors import KitError
from refinevla_kit.files import replacing
from refinevla_kit.simulator.contract import Array

if TYPE_CHECKING:
    from refinevla_kit.attention.capture import Capture

REST = "rest"
THINGS = ("source", "target", "gripper", "arm", REST)
COLUMNS = ("policy", "checkpoint_hash", "task", "episode", "step", "phase", "layer", "dimension", "thing", "share", "area", "image_share")


def shares(patch_map: Array, masks: Mapping[str, Array]) -> dict[str, Array]:
    """Share of a map's attention on each thing.

    Args:
        patch_map: float (..., rows, columns), not negative.
        masks: name -> bool (H, W) of the picture; no pixel in two.

    Returns:
        name -> float64 (...), and `rest` for the pixels in no mask; they add up to 1. A uniform map gives `areas(masks)`.

    Raises:
        KitError: no masks, masks that overlap, or a map without any attention.
    """
    patch_map = np.asarray(patch_map, np.float64)
    names, stack = _stack(masks)
    total = np.asarray(patch_map.sum((-2, -1)))
    if (patch_map < 0).any() or not (total > 0).all():
        raise KitError("an attention map is negative or empty", "give attention weights: not negative, with a sum above 0")
    covered = to_patches(stack, patch_map.shape[-2:])  # things, rows, columns
    found = np.einsum("...rc,trc->...t", patch_map, covered) / total[..., None]
    return {name: found[..., i] for i, name in enumerate(names)}


def areas(masks: Mapping[str, Array]) -> dict[str, float]:
    """Share of the picture each thing takes up, `rest` included; they add up to 1."""
    names, stack = _stack(masks)
    return {name: float(mask.mean()) for name, mask in zip(names, stack, strict=True)}


def _stack(masks: Mapping[str, Array]) -> tuple[list[str], Array]:
    if not masks:
        raise KitError("there are no object masks to score against", "give frames of the simulator: a real robot's dataset has none")
    stack = np.stack([np.asarray(mask, bool) for mask in masks.values()])  # things, H, W
    if stack.sum(0).max() > 1:
        raise KitError("object masks overlap", "give masks of visible pixels, each pixel in one mask at most")
    return [*masks, REST], np.concatenate([stack, ~stack.any(0, keepdims=True)])


def score(frames: Sequence[Frame], captures: Sequence[Capture]) -> Any:
    """One row a frame, layer, action dimension and thing (columns `COLUMNS`) as a pandas table; heads are averaged.

    `layer` counts from 1, the lowest. `share` is of the attention to the picture, `image_share` the part of the whole row that went to the picture.
    """
    import pandas as pd

    rows = []
    for frame, seen in zip(frames, captures, strict=True):
        area = areas(frame.masks)
        actions = len(seen.dimensions)  # the first queries; what else was asked about is not scored here
        maps = seen.patches[:, :, :actions].mean(1).reshape(seen.layers, actions, *seen.grid)  # layers, A, rows, columns
        found, to_image = shares(maps, frame.masks), seen.image_share.mean(1)
        start = (seen.policy, seen.checkpoint_hash, frame.task, frame.episode, frame.step, frame.phase)
        for layer, dimension in np.ndindex(maps.shape[:2]):
            for thing, share in found.items():
                row = (layer + 1, seen.dimensions[dimension], thing, float(share[layer, dimension]), area[thing], float(to_image[layer, dimension]))
                rows.append(start + row)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def save_scores(table: Any, path: str | Path) -> Path:
    """Write the table of `score` as parquet."""
    with replacing(path) as part:
        table.to_parquet(part, index=False)
    return Path(path)


def summarise(table: Any, layer: int, level: float = 0.95) -> Any:
    """Mean share a policy and thing at one layer, over frames and action dimensions, with Student's interval over episodes.

    Returns:
        pandas table: policy, thing, share, low, high, area, ratio (share / area; NaN for a thing never visible), image_share, episodes. With a single
        episode low and high are NaN: nothing can be said about another one.
    """
    import pandas as pd

    episodes = _by_episode(table, layer)
    rows = []
    for (policy, thing), group in episodes.groupby(["policy", "thing"], sort=False):
        low, high = interval(group["share"].to_numpy(), level)
        share, area = float(group["share"].mean()), float(group["area"].mean())
        ratio = share / area if area > 0 else float("nan")
        rows.append((policy, thing, share, low, high, area, ratio, float(group["image_share"].mean()), len(group)))
    return pd.DataFrame(rows, columns=["policy", "thing", "share", "low", "high", "area", "ratio", "image_share", "episodes"])


def compare(table: Any, layer: int, a: str, b: str, level: float = 0.95) -> Any:
    """Share of policy `b` minus that of `a` on the very same frames: pandas table thing, difference, low, high, episodes."""
    import pandas as pd

    episodes = _by_episode(table, layer)
    wide = episodes.pivot_table(index=["task", "episode"], columns=["thing", "policy"], values="share", sort=False)
    rows = []
    for thing in dict.fromkeys(wide.columns.get_level_values(0)):
        difference = (wide[thing][b] - wide[thing][a]).dropna().to_numpy()
        rows.append((thing, float(difference.mean()), *interval(difference, level), len(difference)))
    return pd.DataFrame(rows, columns=["thing", "difference", "low", "high", "episodes"])


def interval(values: Array, level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of a mean (for few episodes a bootstrap would be too narrow); NaN for fewer than two values."""
    from scipy import stats

    if len(values) < 2:
        return float("nan"), float("nan")
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def _by_episode(table: Any, layer: int) -> Any:
    chosen = table[table["layer"] == layer]
    if not len(chosen):
        raise KitError(f"no scores of layer {layer}", f"choose a layer from {table['layer'].min()} to {table['layer'].max()}")
    keys = ["policy", "thing", "task", "episode"]
    return chosen.groupby(keys, sort=False)[["share", "area", "image_share"]].mean().reset_index()
