"""How much of a policy's attention falls on the things that matter, scored against the simulator's own masks.

A share is of the attention that goes to the picture, so it compares with the share of the picture's area a
thing takes up: attention spread evenly scores exactly the area share. Scores are kept a frame, layer and
query (one row each, parquet); what is claimed is a mean over episodes with an interval over episodes, because
frames of one episode repeat each other. `measures` has the scores themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refinevla_kit.attention.captured import ACTION_QUERY, Capture
from refinevla_kit.attention.frames import STAGES, Frame
from refinevla_kit.attention.measures import RELEVANT, REST, THINGS, areas, auc, nuisance, pointing, shares
from refinevla_kit.errors import KitError
from refinevla_kit.files import replacing
from refinevla_kit.simulator.contract import Array

__all__ = [
    "COLUMNS",
    "MEASURES",
    "RELEVANT",
    "REST",
    "THINGS",
    "areas",
    "auc",
    "compare",
    "interval",
    "nuisance",
    "paired_p_value",
    "pointing",
    "save_scores",
    "score",
    "shares",
    "summarise",
]
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
MEASURES = ("share", "ratio", "pointing", "auc", "nuisance", "image_share")
MOST_EXACT, RESAMPLES = 14, 2**14  # episodes whose sign flips are all counted; random flips beyond


def score(
    frames: Sequence[Frame], captures: Sequence[Capture], kinds: Sequence[str] = (ACTION_QUERY,)
) -> Any:
    """One row a frame, layer, query and thing (columns `COLUMNS`) as a pandas table; heads are averaged.

    `layer` counts from 1, the lowest; `dimension` is the query's label, `kind` what it is. `share` is of the
    attention to the picture, `image_share` the part of the whole row that went to the picture; `nuisance` is
    of the whole map, the same for all its things.

    Args:
        kinds: of the captured queries, those to score.
    """
    import pandas as pd

    rows = []
    for frame, seen in zip(frames, captures, strict=True):
        chosen = [i for i, query in enumerate(seen.queries) if query.kind in kinds]
        area, start = (
            areas(frame.masks),
            (seen.policy, seen.checkpoint_hash, frame.task, frame.episode, frame.step, frame.phase),
        )
        maps = (
            seen.patches[:, :, chosen].mean(1).reshape(seen.layers, len(chosen), *seen.grid)
        )  # layers, Q, rows, columns
        found, points, curves = (measure(maps, frame.masks) for measure in (shares, pointing, auc))
        aside, to_image = nuisance(maps, frame.masks), seen.image_share.mean(1)[:, chosen]
        for layer, number in np.ndindex(maps.shape[:2]):
            at, query = (layer, number), seen.queries[chosen[number]]
            for thing, share in found.items():
                measured = (
                    share[at],
                    area[thing],
                    to_image[at],
                    points[thing][at],
                    curves[thing][at],
                    aside[at],
                )
                rows.append((*start, layer + 1, query.kind, query.label, thing, *map(float, measured)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def save_scores(table: Any, path: str | Path) -> Path:
    """Write the table of `score` as parquet."""
    with replacing(path) as part:
        table.to_parquet(part, index=False)
    return Path(path)


def summarise(
    table: Any, layer: int, level: float = 0.95, measure: str = "share", stages: bool = False
) -> Any:
    """Mean of one measure a policy and thing at one layer, over frames and queries, with Student's interval
    over episodes.

    Args:
        measure: one of `MEASURES`; "ratio" is share / area.
        stages: a row for each stage of the task (`frames.STAGES`) too.

    Returns:
        pandas table: (stage,) policy, thing, the measure under its own name, low, high, area, ratio (share /
            area; NaN for a thing never visible),
        image_share, episodes. With a single episode low and high are NaN: nothing can be said about another
        one. Episodes in which a measure does not exist (the thing is never visible) are left out.
    """
    import pandas as pd

    rows = []
    for key, group in _by_episode(table, layer, measure, stages).groupby(
        [*["stage"][: int(stages)], "policy", "thing"], sort=False
    ):
        known = group[group[measure].notna()]
        low, high = interval(known[measure].to_numpy(), level)
        share, area = float(group["share"].mean()), float(group["area"].mean())
        ratio = share / area if area > 0 else float("nan")
        # of a ratio the mean over episodes, which its interval is about; of shares the ratio of the means,
        # which an episode with a sliver of the
        # object in it cannot dominate
        row = {
            measure: float(known[measure].mean()) if len(known) else float("nan"),
            "low": low,
            "high": high,
            "area": area,
        }
        others = {"ratio": ratio, "image_share": float(group["image_share"].mean()), "episodes": len(known)}
        rows.append((*key, row | {name: value for name, value in others.items() if name not in row}))
    names = [*["stage"][: int(stages)], "policy", "thing"]
    return pd.DataFrame([dict(zip(names, row[:-1], strict=True)) | row[-1] for row in rows])


def compare(
    table: Any, layer: int, a: str, b: str, level: float = 0.95, measure: str = "share", stages: bool = False
) -> Any:
    """A measure of policy `b` minus that of `a` on the very same frames, paired by episode.

    Returns:
        pandas table: (stage,) thing, difference, low, high, p_value (`paired_p_value`, of this row alone: of
            twenty rows one falls below 0.05 by
        chance), episodes in which both have the measure.
    """
    import pandas as pd

    names = [*["stage"][: int(stages)], "thing"]
    episodes = _by_episode(table, layer, measure, stages)
    wide = episodes.set_index([*names, "task", "episode", "policy"])[measure].unstack(
        "policy"
    )  # one column a policy
    if missing := [name for name in (a, b) if name not in wide]:
        raise KitError(f"there are no scores of {missing[0]}", f"choose two of {', '.join(wide)}")
    difference, rows = wide[b] - wide[a], []
    for key in episodes[names].drop_duplicates().itertuples(index=False):  # in the order of the table
        known = difference.xs(tuple(key), level=tuple(names)).dropna().to_numpy()
        mean = float(known.mean()) if len(known) else float("nan")
        rows.append((*key, mean, *interval(known, level), paired_p_value(known), len(known)))
    return pd.DataFrame(rows, columns=[*names, "difference", "low", "high", "p_value", "episodes"])


def paired_p_value(differences: Array, seed: int = 0) -> float:
    """Two-sided p-value of a mean difference over episodes: if two policies look alike, an episode's
    difference could as well have the other sign.

    All sign flips are counted up to `MOST_EXACT` episodes, `RESAMPLES` random ones beyond. Chosen over
    Wilcoxon's test because it tests the very mean that is reported, and over Student's because nothing has to
    be normal. n episodes can give no less than 2 / 2**n: 0.25 with three, 0.03 with six. NaN for fewer than
    two.
    """
    differences = np.asarray(differences, np.float64)
    count = len(differences)
    if count < 2:
        return float("nan")
    if count <= MOST_EXACT:
        signs = 1 - 2 * (
            np.arange(2**count)[:, None] >> np.arange(count) & 1
        )  # every combination, this one among them
    else:
        drawn = np.random.default_rng(seed).choice([-1, 1], (RESAMPLES, count))
        signs = np.concatenate([np.ones((1, count), np.int64), drawn])  # with this one, so that p is never 0
    sums = np.abs(signs @ differences)
    return float((sums >= sums[0] * (1 - 1e-12)).mean())


def interval(values: Array, level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of a mean (for few episodes a bootstrap would be too narrow); NaN for fewer than
    two values.
    """
    from scipy import stats

    if len(values) < 2:
        return float("nan"), float("nan")
    half = float(
        stats.t.ppf((1 + level) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    )
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def _by_episode(table: Any, layer: int, measure: str, stages: bool) -> Any:
    """Means over the frames and queries of an episode (of an episode's stage)."""
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
    keys = ["policy", "thing", "task", "episode"]
    if stages:
        chosen, keys = chosen.assign(stage=chosen["phase"].map(STAGES)), ["stage", *keys]
    means = (
        chosen.groupby(keys, sort=False)[
            list(dict.fromkeys(["share", "area", "image_share", *{measure} - {"ratio"}]))
        ]
        .mean()
        .reset_index()
    )
    means["ratio"] = means["share"] / means["area"].where(means["area"] > 0)
    return means
