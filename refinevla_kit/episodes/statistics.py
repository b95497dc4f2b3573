"""The statistics LeRobot keeps of each feature, per episode and over the dataset: exact, from values or from
a histogram of pixel levels.

min, max, mean, std, count and the quantiles q01 q10 q50 q90 q99; pictures as (3, 1, 1) a channel in [0, 1],
everything else as (D,).
"""

from __future__ import annotations

import numpy as np

from refinevla_kit.simulator.contract import Array

QUANTILES = (0.01, 0.10, 0.50, 0.90, 0.99)
Statistics = dict[str, list]


def of_values(values: Array) -> Statistics:
    """values: (T,) or (T, D)."""
    table = values.reshape(len(values), -1)
    result = {
        "min": table.min(0),
        "max": table.max(0),
        "mean": table.mean(0, dtype=np.float64),
        "std": table.std(0, dtype=np.float64),
    }
    for q, row in zip(QUANTILES, np.quantile(table.astype(np.float64), QUANTILES, axis=0), strict=True):
        result[f"q{round(q * 100):02d}"] = row
    return {name: value.tolist() for name, value in result.items()} | {"count": [len(table)]}


def pixel_levels(images: Array) -> Array:
    """Histogram of uint8 (T, H, W, 3): int64 (3, 256). Histograms of episodes add up to the dataset's."""
    return np.stack([np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(3)])


def of_pixel_levels(levels: Array, frames: int) -> Statistics:
    """levels: as `pixel_levels` counts them; frames: how many pictures they came from."""
    share = levels / levels.sum(1, keepdims=True)
    grey, cumulated = np.arange(256) / 255, np.cumsum(share, axis=1)
    mean = share @ grey
    result = {
        "min": grey[(levels > 0).argmax(1)],
        "max": grey[255 - (levels[:, ::-1] > 0).argmax(1)],
        "mean": mean,
    }
    result["std"] = np.sqrt((share * (grey - mean[:, None]) ** 2).sum(1))
    for q in QUANTILES:
        result[f"q{round(q * 100):02d}"] = grey[(cumulated >= q - 1e-12).argmax(1)]
    return {name: value.reshape(3, 1, 1).tolist() for name, value in result.items()} | {"count": [frames]}
