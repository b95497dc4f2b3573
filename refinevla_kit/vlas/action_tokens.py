"""Actions as words of a vocabulary: what every scheme offers (`ActionTokens`), OpenVLA's uniform bins, and
whether data fit a scheme at all.

Two schemes stand behind the interface. `UniformBins`, here: a word a dimension, seven an action, all from one
shared range of words. `SphericalGrid` (spherical_grid.py): SpatialVLA's three words an action, each place
with its own range. Words are numbered from 0; in the vocabulary they lie in a row behind the id of
`<act000>`. A policy may say at each place only the words that `ranges` allows there.

OpenVLA's scheme is kept with an odd number of bins: with an even number zero cannot be said, and dimensions
that should rest drift. The range is symmetric about zero for the same reason: the middle bin's centre is
exactly zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import ACTION_NAMES, Array

STATISTICS = "dataset_statistics.json"  # of a checkpoint: which action tokens it speaks, and what made it
BINS = 255
SMALLEST_RANGE = 1e-2  # a dimension that never moves (roll, pitch) still needs a range to divide
# Times the range: clipping a tenth does no harm, and saturated commands may lie just outside what was fitted.
BEYOND, FAR = 1.1, 2.0
# Shares of actions that may be so: at most 2 % + 2 of the very data that a range was fitted to lie outside.
MOST_OUTSIDE, MOST_FAR = 0.05, 0.02


class ActionTokens(Protocol):
    """A way to write actions of A numbers as T words. Exact: `encode(decode(words)) == words` for all words
    that `ranges` allows.

    Attributes:
        limits: half range of each of the A dimensions, in the action's own units (m, rad, gripper command);
            what `fit` found in the data.
        ranges: first and one past the last allowed word of each of the T places.
        names: what each of the T words says.
    """

    @property
    def limits(self) -> tuple[float, ...]: ...

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def words(self) -> int:
        """Distinct words of all places together: how many the vocabulary has to have."""

    def encode(self, actions: Array) -> Array:
        """float (..., A) in units -> int64 (..., T) words; what is out of range is moved to the range's
        end.
        """

    def decode_normalised(self, words: Array) -> Array:
        """int (..., T) words -> float32 (..., A), the cells' centres in multiples of `limits`."""

    def decode(self, words: Array) -> Array:
        """int (..., T) words -> float32 (..., A) in units."""

    def to_dict(self) -> dict[str, Any]:
        """For the checkpoint's statistics file; `kind` names the scheme."""


def fit_limits(actions: Array) -> tuple[float, ...]:
    """Half ranges from data, float (N, A) actions: the larger of |1 %| and |99 %| quantiles of each
    dimension.
    """
    if len(actions) == 0:
        raise KitError("no actions to fit action tokens to", "record at least one episode")
    low, high = np.quantile(actions, [0.01, 0.99], axis=0)  # A, A
    limits = np.maximum(np.maximum(np.abs(low), np.abs(high)), SMALLEST_RANGE)
    return tuple(float(x) for x in limits)


def check_words(words: Array, ranges: tuple[tuple[int, int], ...]) -> Array:
    """int (..., T) -> the same as an array. Raises `KitError` when a word is not allowed at its place."""
    words = np.asarray(words)
    for place, (first, end) in enumerate(ranges):
        said = words[..., place]
        if said.size and (said.min() < first or said.max() >= end):
            what = f"action word {said.min()}..{said.max()} at place {place} is outside {first}..{end - 1}"
            raise KitError(what, "the token is no action token of that place: restrict decoding to `ranges`")
    return words


def dimension_names(count: int) -> tuple[str, ...]:
    """Of the numbers of an action: the kit's own where there are as many."""
    return ACTION_NAMES if count == len(ACTION_NAMES) else tuple(f"a{i + 1}" for i in range(count))


def check_actions(limits: Sequence[float], actions: Array) -> None:
    """Stop when data were not made for action tokens with these `limits`.

    They were not when in a dimension more than 5 % lie a tenth beyond the range, or 2 % beyond twice it.
    A few outside are intended (they are clipped), so data that the tokens were fitted to always pass,
    whatever their tails.

    Args:
        limits: see `ActionTokens`.
        actions: float (N, A) in units; rows that are not finite (frames without an action) are left out.

    Raises:
        KitError: names each dimension with how many actions are outside it.
    """
    actions = np.asarray(actions, np.float64)
    actions = actions[np.isfinite(actions).all(axis=-1)]
    if actions.size == 0:
        return
    count = len(actions)
    if actions.shape[-1] != len(limits):
        what = f"actions of {actions.shape[-1]} numbers, action tokens of {len(limits)}"
        raise KitError(what, "give the data set this checkpoint's robot was recorded in")
    sizes = np.abs(actions) / np.asarray(limits)  # N, A
    bad = []
    for name, limit, size in zip(dimension_names(len(limits)), limits, sizes.T, strict=True):
        outside, far = int((size > BEYOND).sum()), int((size > FAR).sum())
        if outside > 2 + MOST_OUTSIDE * count or far > 2 + MOST_FAR * count:
            bad.append(
                f"{name}: {outside} of {count} outside ±{limit:.3g}, up to {size.max():.3g} times that"
            )
    if bad:
        what = f"the actions do not fit the checkpoint's action tokens ({'; '.join(bad)})"
        remedy = (
            'check units and robot of the data set; where they are right, train with action_words="refitted"'
        )
        raise KitError(what, remedy)


@dataclass(frozen=True)
class UniformBins:
    """`BINS` equal bins a dimension over [-limit, limit]; a decoded action is off by at most half a bin,
    limit / BINS. See `ActionTokens`.
    """

    limits: tuple[float, ...]

    @classmethod
    def fit(cls, actions: Array) -> UniformBins:
        """From data; see `fit_limits`."""
        return cls(fit_limits(actions))

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        return ((0, BINS),) * len(self.limits)

    @property
    def names(self) -> tuple[str, ...]:
        return dimension_names(len(self.limits))

    @property
    def words(self) -> int:
        return BINS

    def encode(self, actions: Array) -> Array:
        """float (..., A) in units -> int64 (..., A) bin numbers 0 .. BINS - 1; what is beyond is clipped."""
        unit = np.clip(np.asarray(actions, np.float64) / np.asarray(self.limits), -1.0, 1.0)
        unit = unit.astype(np.float32).astype(np.float64)  # as it was when the shipped checkpoints were made
        return np.minimum(((unit + 1.0) / 2.0 * BINS).astype(np.int64), BINS - 1)

    def decode_normalised(self, words: Array) -> Array:
        """int (..., A) bin numbers -> float32 (..., A), the bins' centres in [-1, 1]."""
        numbers = check_words(words, self.ranges).astype(np.float64)
        return ((2.0 * numbers + 1.0) / BINS - 1.0).astype(np.float32)

    def decode(self, words: Array) -> Array:
        """int (..., A) bin numbers -> float32 (..., A) in units."""
        return (self.decode_normalised(words) * np.asarray(self.limits)).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "uniform", "bins": BINS, "limits": list(self.limits)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> UniformBins:
        """Inverse of `to_dict`. Raises `KitError` for another kind or number of bins."""
        if value.get("kind") != "uniform" or value.get("bins") != BINS:
            what = f"action tokens {value.get('kind')!r} with {value.get('bins')} bins"
            raise KitError(
                what, f"this version reads 'spherical' tokens, and 'uniform' ones with {BINS} bins"
            )
        return cls(tuple(float(x) for x in value["limits"]))
