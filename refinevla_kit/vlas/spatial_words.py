"""SpatialVLA's action words: cells of a grid over directions, distances and turns, numbered as its authors
do, and how they move the grid and the words' embeddings to other data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.interpolate import griddata
from scipy.stats import norm
from torch import Tensor

from refinevla_kit.errors import as_kit_error
from refinevla_kit.simulator.contract import Array
from refinevla_kit.vlas.released import Quantiles, QuantileWords

SPANS = {
    "theta": (0.0, math.pi),
    "phi": (-math.pi, math.pi),
    "r": (0.0, math.sqrt(3)),
    "roll": (-1.0, 1.0),
    "pitch": (-1.0, 1.0),
    "yaw": (-1.0, 1.0),
}
"""Ranges of the coordinates: radians, radians, and multiples of the quantiles."""
COORDINATES = {"translation": ("theta", "phi", "r"), "rotation": ("roll", "pitch", "yaw")}
LEAST_DEVIATION = 0.05  # of a coordinate that hardly changes: its cells stay apart


class PolarWords:
    """Three words a step, translation, rotation and gripper, numbered through the cells of `edges`."""

    edges: tuple[tuple[float, ...], ...]  # cell edges of theta, phi, r, roll, pitch, yaw, ascending

    names = ("translation", "rotation", "gripper")

    @property
    def cells(self) -> tuple[int, ...]:
        """Cells of each coordinate."""
        return tuple(len(each) - 1 for each in self.edges)

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """First and one past the last word of each of the three places."""
        translations = math.prod(self.cells[:3])
        rotations = translations + math.prod(self.cells[3:])
        return (0, translations), (translations, rotations), (rotations, rotations + 2)

    @property
    def words(self) -> int:
        return self.ranges[-1][1]

    def of_coordinates(self, coordinates: Iterable[Array], opens: Array) -> Array:
        """Six coordinates, float (...), and bool (...) -> int64 (..., 3). A value on an edge belongs to the
        cell above it, one out of range to the nearest.
        """
        cells = tuple(np.digitize(x, edges[1:-1]) for x, edges in zip(coordinates, self.edges))
        _, turn, grip = (low for low, _ in self.ranges)
        moves = np.ravel_multi_index(cells[:3], self.cells[:3])
        turns = np.ravel_multi_index(cells[3:], self.cells[3:])
        return np.stack([moves, turns + turn, opens + grip], -1).astype(np.int64)

    def to_actions(self, words: Array, centres: Sequence[Array]) -> Array:
        """Words (..., 3) -> float64 (..., 7): x, y, z, three turns, gripper 0 or 1."""
        moves, turns, grip = (words[..., i] - low for i, (low, _) in enumerate(self.ranges))
        cells = (*np.unravel_index(moves, self.cells[:3]), *np.unravel_index(turns, self.cells[3:]))
        theta, phi, r, *angles = (centre[cell] for centre, cell in zip(centres, cells, strict=True))
        position = [r * np.sin(theta) * np.cos(phi), r * np.sin(theta) * np.sin(phi), r * np.cos(theta)]
        return np.stack([*position, *angles, grip], -1)


@dataclass(frozen=True)
class SpatialWords(PolarWords, QuantileWords):
    """SpatialVLA's three words a step, as its authors number them: translation, rotation, gripper.

    Unlike `SphericalGrid` it is exact to their code: cells decode to mid-points, and translations are clipped
    to the cube afterwards.

    Attributes:
        edges: cell edges of theta, phi, r, roll, pitch, yaw, ascending.
        quantiles: how the dataset's actions are scaled.
    """

    edges: tuple[tuple[float, ...], ...]
    quantiles: Quantiles

    @classmethod
    def from_processor(cls, policy: Mapping[str, Any], quantiles: Quantiles) -> SpatialWords:
        """From `bin_policy` of processor_config.json."""
        with as_kit_error(
            "the action cells (bin_policy) cannot be read",
            "copy the base's processor_config.json again",
            (KeyError, TypeError, ValueError),
        ):
            edges = [policy[part][f"{name}_bins"] for part, names in COORDINATES.items() for name in names]
            return cls(tuple(tuple(map(float, each)) for each in edges), quantiles)

    def to_processor(self) -> dict[str, dict[str, list[float]]]:
        """Inverse of `from_processor`."""
        edges = iter(self.edges)
        return {
            part: {f"{name}_bins": list(next(edges)) for name in names} for part, names in COORDINATES.items()
        }

    def encode_normalised(self, actions: Array) -> Array:
        """float (..., 7) in [-1, 1], gripper 0 or 1 -> int64 (..., 3)."""
        unit = np.clip(np.asarray(actions, np.float64), -1, 1)
        x, y, z = (unit[..., i] for i in range(3))
        # not by `polar`: roots as the authors take them
        place = [np.arctan2(np.sqrt(x**2 + y**2), z), np.arctan2(y, x), np.sqrt(x**2 + y**2 + z**2)]
        return self.of_coordinates([*place, *(unit[..., i] for i in (3, 4, 5))], unit[..., 6] >= 0.5)

    def decode_normalised(self, words: Array) -> Array:
        """int (..., 3) -> float64 (..., 7) in [-1, 1], gripper 0 or 1; a word of another place becomes the
        nearest of its own.
        """
        lows, highs = np.transpose(self.ranges)
        words = np.clip(words, lows, highs - 1)
        return np.clip(self.to_actions(words, [middles(each) for each in self.edges]), -1.0, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """For records; the checkpoint has them in its own form."""
        return {"kind": "spatialvla", "bin_policy": self.to_processor(), **self.quantiles.to_dict()}


def polar(x: Array, y: Array, z: Array) -> list[Array]:
    """theta, phi and r of translations."""
    across = np.hypot(x, y)
    return [np.arctan2(across, z), np.arctan2(y, x), np.hypot(across, z)]


def middles(edges: Sequence[float]) -> Array:
    """float64 (cells,): the mid-point between each two neighbouring edges."""
    return (np.asarray(edges)[1:] + np.asarray(edges)[:-1]) / 2


def edges_of(
    gaussians: Mapping[str, Mapping[str, float]], cells: Sequence[int], least_deviation: float = 0.0
) -> tuple[tuple[float, ...], ...]:
    """Cell edges at equally probable quantiles of a Gaussian for each coordinate, cut at its range.

    Args:
        gaussians: coordinate -> {"mu", "sigma"} of the normalised actions.
        cells: how many of each coordinate.
        least_deviation: a smaller sigma is taken to be this.
    """
    edges = []
    for (name, (low, high)), count in zip(SPANS.items(), cells, strict=True):
        gauss = norm(gaussians[name]["mu"], max(gaussians[name]["sigma"], least_deviation))
        inner = gauss.ppf(np.linspace(gauss.cdf(low), gauss.cdf(high), count + 1))
        edges.append(tuple(float(x) for x in np.clip(inner, low, high)))
    return tuple(edges)


def gaussians_of(actions: Array) -> dict[str, dict[str, float]]:
    """Mean and deviation of each coordinate of normalised actions, float (N, 7), for `edges_of`."""
    columns = [*polar(*np.asarray(actions, np.float64)[:, :3].T), *np.asarray(actions)[:, 3:6].T]
    return {
        name: {"mu": float(column.mean()), "sigma": float(column.std())}
        for name, column in zip(SPANS, columns, strict=True)
    }


def adapted(
    embeddings: Tensor, before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]
) -> Tensor:
    """Embeddings of action words (words, h), moved from one grid's cells to another's by linear
    interpolation, as the authors do before they fine-tune. The gripper's two stay.

    Their points are laid out with the first two coordinates exchanged against their values; that is kept, so
    that both give the same table.
    """
    parts, start = [], 0
    for first in (0, 3):
        spans = list(SPANS.values())[first : first + 3]
        grids = [_centres(edges[first : first + 3], spans) for edges in (before, after)]
        sizes = [len(edge) - 1 for edge in before[first : first + 3]]
        count = math.prod(sizes)
        values = embeddings[start : start + count].float().cpu().numpy().reshape(*sizes, -1)
        padded = np.pad(values, ((1, 1), (1, 1), (1, 1), (0, 0)), mode="edge")
        moved = griddata(grids[0], padded.reshape(len(grids[0]), -1), grids[1], method="linear")
        parts.append(moved.reshape(padded.shape)[1:-1, 1:-1, 1:-1].reshape(count, -1))
        start += count
    table = torch.from_numpy(np.concatenate(parts)).to(embeddings)
    return torch.cat([table, embeddings[start:]])


def _centres(edges: Sequence[Sequence[float]], spans: Sequence[tuple[float, float]]) -> Array:
    """Points (cells + 2)³ x 3 in 0..1: centres of the cells, and the ends of the range around them."""
    axes = []
    for edge, (low, high) in zip(edges, spans, strict=True):
        axes.append((np.concatenate([[low], middles(edge), [high]]) - low) / (high - low))
    return np.stack(np.meshgrid(*axes), -1).reshape(-1, 3)
