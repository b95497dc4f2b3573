"""SpatialVLA's action tokens: three words an action, the translation on a grid of directions and distances.

Facts of SpatialVLA's action tokenizer that are kept: the translation is one of 16 x 32 x 8 cells in polar
form (theta from the z axis, phi about it, r), the rotation one of 16 x 16 x 16 cells of roll, pitch and yaw,
the gripper one of two, 8194 words together and in that order; coordinates are those of the normalised action;
edges lie at equally probable percentiles of a Gaussian fitted to the data and cut at the coordinate's range
(theta 0 to pi, phi -pi to pi, r 0 to sqrt(3), angles -1 to 1); a cell decodes to its mid-point.

Three things differ. So that every word decodes to an action that encodes to it again, the translation is
limited by its distance and not by dimension (SpatialVLA clips to the cube after decoding, where cells outside
become one): an action beyond the ball keeps its direction, and a word may say up to sqrt(3) times a
dimension's limit. The cell of an angle that zero falls into decodes to zero, so that a robot can keep its
orientation; with 16 bins it could not. And ranges are symmetric, so that zero is zero before and after
normalisation.

What cannot be said is standing still: all 512 innermost cells keep a direction, so none has distance 0;
the shortest step is taken instead (with a grid fitted to the shipped demonstrations, 5 mm where 40 mm is the
limit). Nor can a motion straight along z be said: the cells at theta = 0 and pi are centred beside it. A
policy that sees corrects that, an open-loop replay drifts. Where theta or phi have no value (r = 0, phi on
the z axis) arctan2 gives 0 for them, and phi = -pi becomes pi: both are cells at that place, nothing is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import norm

from refinevla_kit.errors import KitError, as_kit_error
from refinevla_kit.simulator.contract import Array
from refinevla_kit.vlas.action_tokens import check_words, fit_limits
from refinevla_kit.vlas.spatial_words import SPANS, PolarWords, middles, polar

CELLS = (16, 32, 8, 16, 16, 16)
# of a coordinate's span: cells of one that never changes stay wide enough for float32
SMALLEST_DEVIATION = 0.05


@dataclass(frozen=True)
class SphericalGrid(PolarWords):
    """See `ActionTokens` and the top of this module.

    A decoded translation is off by up to half a cell in r and, across, by r times half a cell of angle: far
    moves are coarser than near ones.

    Attributes:
        limits: half range of x, y, z (m), roll, pitch, yaw (rad) and gripper (+1 open, -1 closed in this
            kit).
        edges: cell edges of each of `SPANS`, ascending, one more than `CELLS`.
    """

    limits: tuple[float, ...]
    edges: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if len(self.limits) != 7 or min(self.limits) <= 0:
            raise KitError(
                f"a spherical grid with limits {self.limits}",
                "give seven positive numbers: x, y, z, roll, pitch, yaw, gripper",
            )
        if self.cells != CELLS:
            raise KitError(
                f"a spherical grid of {list(self.cells)} cells",
                f"give edges of {' x '.join(map(str, CELLS))} cells",
            )
        for name, each in zip(SPANS, self.edges, strict=True):
            if min(np.diff(each)) < 1e-5:  # float32 actions could not keep the cells apart
                what = f"the cell edges of {name} do not ascend by at least 1e-5"
                raise KitError(what, "fit the grid again, with a larger deviation")

    @classmethod
    def fit(cls, actions: Array) -> SphericalGrid:
        """From data, float (N, 7): limits as `fit_limits`, and a Gaussian for each coordinate of the clipped,
        normalised actions.

        Actions of no translation have no direction and are left out of theta and phi.
        """
        limits = fit_limits(actions)
        unit = np.clip(np.asarray(actions, np.float64) / np.asarray(limits), -1.0, 1.0)
        coordinates = _coordinates(unit)  # N, 6
        moving = coordinates[:, 2] > 1e-3
        edges = []
        for index, (cells, (low, high)) in enumerate(zip(CELLS, SPANS.values(), strict=True)):
            values = coordinates[moving, index] if index < 2 else coordinates[:, index]
            mean, deviation = (low + high) / 2, high - low
            if len(values):
                mean, deviation = float(values.mean()), float(values.std())
            gauss = norm(mean, max(deviation, SMALLEST_DEVIATION * (high - low)))
            inner = gauss.ppf(np.linspace(gauss.cdf(low), gauss.cdf(high), cells + 1)[1:-1])
            edges.append((low, *(float(x) for x in inner), high))
        return cls(limits, tuple(edges))

    @cached_property
    def centres(self) -> tuple[Array, ...]:
        """float64 (cells,) of each of `SPANS`: mid-points, but zero in the cell of an angle that zero
        falls into.
        """
        centres = tuple(map(middles, self.edges))
        for middle, edges in zip(centres[3:], self.edges[3:], strict=True):
            middle[np.digitize(0, edges[1:-1])] = 0.0
        return centres

    def encode(self, actions: Array) -> Array:
        """float (..., 7) in units -> int64 (..., 3). r beyond sqrt(3) and angles beyond the limits go to the
        outermost cell; gripper: the second word opens.
        """
        unit = np.asarray(actions, np.float64) / np.asarray(self.limits)
        return self.of_coordinates(np.moveaxis(_coordinates(unit), -1, 0), unit[..., 6] >= 0)

    def decode_normalised(self, words: Array) -> Array:
        """int (..., 3) -> float32 (..., 7) in multiples of the limits: x, y, z in a ball of radius sqrt(3),
        angles in [-1, 1], gripper -1 or 1.
        """
        actions = self.to_actions(check_words(words, self.ranges).astype(np.int64), self.centres)
        actions[..., 6] = 2 * actions[..., 6] - 1
        return actions.astype(np.float32)

    def decode(self, words: Array) -> Array:
        """int (..., 3) -> float32 (..., 7) in units."""
        return (self.decode_normalised(words) * np.asarray(self.limits)).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": "spherical",
            "limits": list(self.limits),
            "edges": dict(zip(SPANS, map(list, self.edges), strict=True)),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> SphericalGrid:
        """Inverse of `to_dict`. Raises `KitError` for another kind, or cells that are not a grid's."""
        with as_kit_error(
            "spherical action tokens cannot be read",
            "copy the checkpoint's statistics file again",
            (KeyError, TypeError, ValueError),
        ):
            edges = [value["edges"][name] for name in SPANS]
            return cls(tuple(map(float, value["limits"])), tuple(tuple(map(float, each)) for each in edges))


def _coordinates(unit: Array) -> Array:
    """float64 (..., 7) normalised actions -> (..., 6), as `SPANS`. Zeros lose their sign first, so that
    arctan2 answers 0 or pi and never -pi.
    """
    place = polar(*(unit[..., i] + 0.0 for i in range(3)))
    return np.stack([*place, *(unit[..., i] for i in (3, 4, 5))], axis=-1)
