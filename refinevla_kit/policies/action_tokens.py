"""Actions as words of a vocabulary: uniform bins a dimension between robust quantiles (OpenVLA's scheme, with an odd number of bins).

Odd, because with an even number zero cannot be said, and dimensions that should rest drift. The range is symmetric about zero for the same reason:
the middle bin's centre is exactly zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refinevla_kit.errors import KitError
from refinevla_kit.policies.contract import Array

BINS = 255
SMALLEST_RANGE = 1e-2  # a dimension that never moves (roll, pitch) still needs a range to divide


@dataclass(frozen=True)
class UniformBins:
    """`BINS` equal bins a dimension over [-limit, limit].

    Attributes:
        limits: half range of each dimension, in the action's own units (m, rad, gripper command).
    """

    limits: tuple[float, ...]

    @classmethod
    def fit(cls, actions: Array, quantile: float = 0.01) -> UniformBins:
        """Limits from data: float (N, A) actions; the larger of |1 %| and |99 %| quantiles of each dimension."""
        if len(actions) == 0:
            raise KitError("no actions to fit action tokens to", "record at least one episode")
        low, high = np.quantile(actions, [quantile, 1 - quantile], axis=0)  # A, A
        limits = np.maximum(np.maximum(np.abs(low), np.abs(high)), SMALLEST_RANGE)
        return cls(tuple(float(x) for x in limits))

    def normalise(self, actions: Array) -> Array:
        """float (..., A) in units -> float32 (..., A) in [-1, 1]; values outside the limits are clipped."""
        return np.clip(np.asarray(actions, np.float64) / np.asarray(self.limits), -1.0, 1.0).astype(np.float32)

    def encode(self, actions: Array) -> Array:
        """float (..., A) in units -> int64 (..., A) bin numbers 0 .. BINS - 1."""
        unit = (self.normalise(actions).astype(np.float64) + 1.0) / 2.0
        return np.minimum((unit * BINS).astype(np.int64), BINS - 1)

    def decode_normalised(self, bins: Array) -> Array:
        """int (..., A) bin numbers -> float32 (..., A), the bins' centres in [-1, 1]."""
        bins = np.asarray(bins)
        if bins.size and (bins.min() < 0 or bins.max() >= BINS):
            what = f"action bin {bins.min()}..{bins.max()} is outside 0..{BINS - 1}"
            raise KitError(what, "the token is no action token: restrict decoding to them")
        return ((2.0 * bins.astype(np.float64) + 1.0) / BINS - 1.0).astype(np.float32)

    def decode(self, bins: Array) -> Array:
        """int (..., A) bin numbers -> float32 (..., A) in units."""
        return (self.decode_normalised(bins) * np.asarray(self.limits)).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """For the checkpoint's statistics file."""
        return {"kind": "uniform", "bins": BINS, "limits": list(self.limits)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> UniformBins:
        """Inverse of `to_dict`. Raises `KitError` for another kind or number of bins."""
        if value.get("kind") != "uniform" or value.get("bins") != BINS:
            raise KitError(f"action tokens {value.get('kind')!r} with {value.get('bins')} bins", f"this policy reads uniform tokens with {BINS} bins")
        return cls(tuple(float(x) for x in value["limits"]))
