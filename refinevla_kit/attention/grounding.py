"""How much of a policy's attention falls on the things that matter, scored against the simulator's own masks.

The policy resizes any picture to its own size without cropping or padding, then cuts it into a grid. So patch
(r, c) covers the picture's rows [r, r + 1) * H / rows and columns [c, c + 1) * W / columns. A pixel on a
border belongs to its patches by area. Maps and masks are carried from one to the other by these areas, so
scores computed on patches and on pixels agree exactly.

The measures are pure functions of arrays, for attention and for any other map that is not negative. All
compare with chance. A map spread evenly scores the thing's share of the picture in `shares` and `pointing`,
0.5 in `auc`, 1 in `nuisance`; a map shaped like the thing scores 1, 1, 1 and 0. A thing that is not visible
has a share of 0 and no other score (NaN): there is nothing to point at.

Scores are kept a frame, layer and query (one row each, parquet). What is claimed is a mean over episodes with
an interval over episodes, because frames of one episode repeat each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from refinevla_kit.attention.captured import ACTION_QUERY, STAGES, Capture, Frame
from refinevla_kit.errors import KitError, as_kit_error, check_choice
from refinevla_kit.files import replacing
from refinevla_kit.simulator.contract import Array

REST = "rest"
THINGS = ("source", "target", "gripper", "arm", REST)
# What the next action is about; anything else in the picture is a nuisance
RELEVANT = ("source", "target", "gripper")
COLUMNS = (
    "policy",
    "checkpoint_hash",
    "task",
    "episode",
    "step",
    "phase",
    "layer",
    "kind",
    "dimension",
    "thing",
    "share",
    "area",
    "image_share",
    "pointing",
    "auc",
    "nuisance",
)
ALL = "all"  # stages of the task together
MEASURES = ("share", "ratio", "pointing", "auc", "nuisance", "image_share")
RESAMPLES = 2**14  # sign flips that are counted: all of them up to 14 episodes, random ones beyond


def to_pixels(patch_map: Array, image_shape: tuple[int, ...]) -> Array:
    """Spread a map over the picture.

    Args:
        patch_map: float (..., rows, columns).
        image_shape: (H, W) or (H, W, 3) of the picture the policy was given.

    Returns:
        float64 (..., H, W): each pixel has its patch's value, pixels on a border the mean by area. Block
        edges are kept: nothing is smoothed.

    Raises:
        KitError: a picture smaller than the grid.
    """
    _check_size(image_shape, np.shape(patch_map)[-2:])
    return resample(patch_map, image_shape)


def to_patches(mask: Array, grid: tuple[int, ...]) -> Array:
    """How much of each patch a mask covers: bool or float (..., H, W) -> float64 (..., rows, columns) in [0,
    1].
    """
    _check_size(np.shape(mask)[-2:], grid)
    return resample(mask, grid)


def resample(pixel_map: Array, image_shape: tuple[int, ...]) -> Array:
    """A map over the picture at another resolution, by area: float (..., h, w) -> float64 (..., H, W); the
    mean stays the same.
    """
    rows, columns = np.shape(pixel_map)[-2:]
    down, across = _overlap(image_shape[0], rows), _overlap(image_shape[1], columns)
    return down @ np.asarray(pixel_map, np.float64) @ across.T


def _overlap(pixels: int, cells: int) -> Array:
    """Fraction of each pixel that lies in each cell along one axis: (pixels, cells), rows add up to 1."""
    edges = np.arange(cells + 1) * pixels / cells
    pixel = np.arange(pixels)[:, None]
    return np.clip(np.minimum(edges[1:], pixel + 1) - np.maximum(edges[:-1], pixel), 0.0, None)


def _check_size(image_shape: tuple[int, ...], grid: tuple[int, ...]) -> None:
    for pixels, patches in zip(image_shape, grid):
        if pixels < patches:
            raise KitError(
                f"a picture {pixels} pixels across cannot show {patches} patches",
                "give a picture at least as large as the patch grid",
            )


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
    patch_map, things, covered = _on_patches(patch_map, masks)
    found = np.einsum("...rc,trc->t...", patch_map, covered) / patch_map.sum((-2, -1))
    return dict(zip(things, found, strict=True))


def areas(masks: Mapping[str, Array]) -> dict[str, float]:
    """Share of the picture each thing takes up, `rest` included; they add up to 1."""
    return {name: float(mask.mean()) for name, mask in _things(masks).items()}


def pointing(patch_map: Array, masks: Mapping[str, Array]) -> dict[str, Array]:
    """Pointing game (Zhang et al. 2018): does the map's highest point lie on the thing?

    The highest point of a patch map is a whole patch, or several that tie, so the score is the part of it
    that the thing covers: the chance of a pixel drawn from it. Arguments, errors and names as in `shares`;
    name -> float64 (...) in [0, 1].
    """
    patch_map, things, _ = _on_patches(patch_map, masks)
    on_thing = shares(patch_map == np.max(patch_map, (-2, -1), keepdims=True), masks)
    return {
        name: share if things[name].any() else np.full_like(share, nan) for name, share in on_thing.items()
    }


def auc(patch_map: Array, masks: Mapping[str, Array]) -> dict[str, Array]:
    """Area under the ROC curve of the map as a classifier of each thing's pixels. It is the chance that a
    pixel of the thing has a higher value than another, equal values counting half (the Mann-Whitney
    statistic).

    Arguments, errors and names as in `shares`; name -> float64 (...) in [0, 1]; NaN where a thing fills none
    of the picture or all of it.
    """
    patch_map, things, covered = _on_patches(patch_map, masks)
    inside = covered.reshape(len(things), -1)  # things, patches: part of a patch on the thing
    values = patch_map.reshape(*patch_map.shape[:-2], -1)  # ..., patches
    # ..., patches, patches: 1 where the first is higher, 0.5 where they tie, 0
    higher = 0.5 * (1 + np.sign(values[..., :, None] - values[..., None, :]))
    pairs = inside.sum(-1) * (1 - inside).sum(-1)  # things
    won = np.einsum("tp,...pq,tq->t...", inside, higher, 1 - inside, optimize=True)
    return {
        name: won[number] / pairs[number] if pairs[number] > 1e-9 else np.full_like(won[number], nan)
        for number, name in enumerate(things)
    }


def nuisance(patch_map: Array, masks: Mapping[str, Array]) -> Array:
    """Attention to an average pixel of what does not matter over that of one that does (`RELEVANT`), float64
    (...); NaN where neither is seen.

    1 is even attention, 0 none on nuisances. Arguments and errors as in `shares`.
    """
    share, area = shares(patch_map, masks), areas(masks)
    relevant = [name for name in share if name in RELEVANT]
    size = sum(area[name] for name in relevant)
    if not 0 < size < 1:
        return np.full(np.shape(share[REST]), nan)
    on = np.sum([share[name] for name in relevant], axis=0)
    return np.asarray(((1 - on) / (1 - size)) / np.maximum(on / size, 1e-12))


def _on_patches(patch_map: Array, masks: Mapping[str, Array]) -> tuple[Array, dict[str, Array], Array]:
    """The map as float64, `_things`, and the part of each patch on each of them (things, rows, columns)."""
    patch_map = np.asarray(patch_map, np.float64)
    if (patch_map < 0).any() or not (patch_map.sum((-2, -1)) > 0).all():
        raise KitError(
            "an attention map is negative or empty",
            "give attention weights: not negative, with a sum above 0",
        )
    things = _things(masks)
    return patch_map, things, to_patches(np.stack([*things.values()]), patch_map.shape[-2:])


def _things(masks: Mapping[str, Array]) -> dict[str, Array]:
    """The masks and the rest of the picture."""
    if not masks:
        raise KitError(
            "there are no object masks to score against",
            "give frames of the simulator: a real robot's dataset has none",
        )
    count = np.sum([np.asarray(mask, bool) for mask in masks.values()], axis=0)
    if count.max() > 1:
        raise KitError("object masks overlap", "give masks of visible pixels, each pixel in one mask at most")
    return {name: np.asarray(mask, bool) for name, mask in masks.items()} | {REST: count == 0}


def score_captures(
    frames: Sequence[Frame], captures: Sequence[Capture], kinds: Sequence[str] = (ACTION_QUERY,)
) -> pd.DataFrame:
    """One row a frame, layer, query and thing (columns `COLUMNS`); heads are averaged.

    `layer` counts from 1, the lowest; `dimension` is the query's label, `kind` what it is. `share` is of the
    attention to the picture, `image_share` the part of the whole row that went to the picture; `nuisance` is
    of the whole map, the same for all its things.

    Args:
        frames: what was seen.
        captures: one a frame.
        kinds: of the captured queries, those to score.
    """
    rows = []
    for frame, capture in zip(frames, captures, strict=True):
        chosen = [number for number, query in enumerate(capture.queries) if query.kind in kinds]
        maps = capture.patches[:, :, chosen].mean(1)  # layers, Q, patches
        maps = maps.reshape(capture.layers, len(chosen), *capture.grid)
        share, point, curve = (measure(maps, frame.masks) for measure in (shares, pointing, auc))
        beside, to_image = nuisance(maps, frame.masks), capture.image_share.mean(1)[:, chosen]
        whose = (capture.policy, capture.checkpoint_hash, frame.task, frame.episode, frame.step, frame.phase)
        for layer, number in np.ndindex(maps.shape[:2]):
            query, at = capture.queries[chosen[number]], (layer, number)
            for thing, area in areas(frame.masks).items():
                scores = share[thing][at], area, to_image[at], point[thing][at], curve[thing][at], beside[at]
                rows.append((*whose, layer + 1, query.kind, query.label, thing, *map(float, scores)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def save_scores(table: pd.DataFrame, path: str | Path) -> Path:
    """Write the table of `score_captures` as parquet."""
    with replacing(path) as part:
        table.to_parquet(part, index=False)
    return Path(path)


def load_scores(path: str | Path) -> pd.DataFrame:
    """What `save_scores` wrote. Raises `KitError` for another file, or one of no scores."""
    remedy = "give the scores.parquet that notebook 04 wrote"
    with as_kit_error(f"{path} holds no attention scores", remedy):
        table = pd.read_parquet(path)
        if not len(table[["policy", "thing", "task", "episode", "layer", "phase", "share", "area"]]):
            raise ValueError("an empty table")
    return table


def summarise_scores(
    table: pd.DataFrame, layer: int, measure: str = "share", stages: bool = False
) -> pd.DataFrame:
    """Mean of one measure a policy and thing at one layer, over frames and queries, with Student's interval
    over episodes.

    Args:
        table: of `score_captures`.
        layer: from 1.
        measure: one of `MEASURES`; "ratio" is share / area.
        stages: a row for each stage of the task (`STAGES`), instead of one for "all".

    Returns:
        Columns stage, policy, thing, the measure under its own name, low, high, area, ratio (share / area;
        NaN for a thing never visible), image_share, episodes. With a single episode low and high are NaN:
        nothing can be said about another one. Episodes in which a measure does not exist (the thing is never
        visible) are left out.
    """
    names = ["stage", "policy", "thing"]
    rows = []
    for key, group in _by_episode(table, layer, measure, stages).groupby(names, sort=False):
        mean, low, high = mean_with_interval(known := group[measure].dropna())
        share, area, image_share = group[["share", "area", "image_share"]].mean()
        # Of a ratio the mean over episodes, which its interval is about. Of shares the ratio of the means,
        # which an episode with a sliver of the object in it cannot dominate.
        values = {measure: mean, "low": low, "high": high, "area": area}
        values |= {"ratio": share / area if area > 0 else nan, "image_share": image_share}
        row = dict(zip(names, key, strict=True)) | values | {"episodes": len(known)}
        rows.append(row | {measure: mean})
    return pd.DataFrame(rows)


def compare_scores(
    table: pd.DataFrame, layer: int, a: str, b: str, measure: str = "share", stages: bool = False
) -> pd.DataFrame:
    """A measure of policy `b` minus that of `a` on the very same frames, paired by episode.

    Returns:
        Columns stage, thing, difference, low, high, p_value (`paired_p_value`, of this row alone: of twenty
        rows one falls below 0.05 by chance), episodes in which both have the measure.
    """
    names = ["stage", "thing"]
    episodes = _by_episode(table, layer, measure, stages)
    wide = episodes.pivot(index=[*names, "task", "episode"], columns="policy", values=measure)
    for name in (a, b):
        check_choice("policy", name, [*wide])
    difference, rows = wide[b] - wide[a], []
    for key in episodes[names].drop_duplicates().itertuples(index=False):  # in the order of the table
        known = difference.xs(tuple(key), level=tuple(names)).dropna()
        rows.append((*key, *mean_with_interval(known), paired_p_value(known), len(known)))
    return pd.DataFrame(rows, columns=[*names, "difference", "low", "high", "p_value", "episodes"])


def compare_measures(
    table: pd.DataFrame, layer: int, a: str, b: str, measures: Sequence[str] = ("share", "pointing", "auc")
) -> pd.DataFrame:
    """`compare_scores` by each measure, in all and by stage; the column measure says which."""
    tests = [
        compare_scores(table, layer, a, b, measure, stages).assign(measure=measure)
        for measure in measures
        for stages in (False, True)
    ]
    return pd.concat(tests, ignore_index=True)


def paired_p_value(differences: Array | pd.Series, seed: int = 0) -> float:
    """Two-sided p-value of a mean difference over episodes: if two policies look alike, an episode's
    difference could as well have the other sign.

    All sign flips are counted where they are at most `RESAMPLES`, so many random ones else. It tests the very
    mean that is reported, which Wilcoxon's test does not, and nothing has to be normal, as for Student's.
    With n episodes it is at least 2 / 2**n: 0.25 with three, 0.03 with six. NaN for fewer than two.
    """
    if len(differences) < 2:
        return nan
    flips = {"permutation_type": "samples", "n_resamples": RESAMPLES, "random_state": seed}
    return float(stats.permutation_test((np.asarray(differences),), np.mean, **flips).pvalue)


def mean_interval(values: Array | pd.Series) -> tuple[float, float]:
    """Student's t interval (95 %) of a mean; NaN for fewer than two values.

    For few episodes a bootstrap would be too narrow.
    """
    values = np.asarray(values)
    if len(values) < 2:
        return nan, nan
    mean, spread = float(values.mean()), np.std(values, ddof=1)
    half = float(stats.t.ppf(0.975, len(values) - 1) * spread / np.sqrt(len(values)))
    return mean - half, mean + half


def mean_with_interval(values: Array | pd.Series) -> tuple[float, float, float]:
    """The mean, NaN of no values, and the ends of its interval."""
    values = np.asarray(values)
    return float(values.mean()) if len(values) else nan, *mean_interval(values)


def over_episodes(table: pd.DataFrame, measure: str, keys: Sequence[str]) -> pd.DataFrame:
    """Mean of a measure, with Student's interval over episodes.

    Args:
        table: with the columns policy, task, episode, the measure and the keys.
        measure: "total_variation", "divergence", "recovered", ...
        keys: columns to tell apart beside the policy.

    Returns:
        Columns policy, keys, the measure, low, high (NaN with one episode), episodes.
    """
    _check_one_checkpoint(table)
    kept = ["policy", *keys]
    means = table.groupby([*kept, "task", "episode"], sort=False)[measure].mean().reset_index()
    rows = [
        (*key, *mean_with_interval(group[measure]), len(group))
        for key, group in means.groupby(kept, sort=False)
    ]
    return pd.DataFrame(rows, columns=[*kept, measure, "low", "high", "episodes"])


def _check_one_checkpoint(table: pd.DataFrame) -> None:
    """Raises `KitError` where a policy's rows are of several checkpoints, which no mean should mix."""
    if "checkpoint_hash" in table:
        counts = table.groupby("policy")["checkpoint_hash"].nunique()
        if (counts > 1).any():
            what = f"the rows of {counts.idxmax()!r} are of {counts.max()} checkpoints"
            raise KitError(what, "keep those of one, or give each a name of its own")


def _by_episode(table: pd.DataFrame, layer: int, measure: str, stages: bool) -> pd.DataFrame:
    """Means over the frames and queries of an episode (of an episode's stage)."""
    _check_one_checkpoint(table)
    if measure not in MEASURES or measure not in (*table.columns, "ratio"):
        raise KitError(
            f"these scores have no {measure!r}", f"choose one of {', '.join(MEASURES)}, or score again"
        )
    chosen = table[table["layer"] == layer]
    if not len(chosen):
        raise KitError(
            f"no scores of layer {layer}",
            f"choose a layer from {table['layer'].min()} to {table['layer'].max()}",
        )
    keys = ["stage", "policy", "thing", "task", "episode"]
    columns = ["area", *(name for name in MEASURES if name in chosen)]
    staged = chosen.assign(stage=chosen["phase"].map(STAGES) if stages else ALL)
    means = staged.groupby(keys, sort=False)[columns].mean().reset_index()
    means["ratio"] = means["share"] / means["area"].where(means["area"] > 0)
    return means
