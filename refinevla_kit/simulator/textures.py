"""Textures as functions of a point of the world: what paints the embedded pack's backgrounds, and what covers
the boxes of variant aggregation.

Each takes x, y, z of n points (metres, world frame, each (n,)) and returns a factor on the linear colour,
(n,) or (3, n). Deterministic.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

Floats = NDArray[np.float32]


def noise(across: Floats, along: Floats, seed: int) -> Floats:
    """Smooth noise of about -1 to 1, one bump a unit."""
    lattice = np.random.default_rng(seed).uniform(-1, 1, (256, 256))
    return map_coordinates(lattice, np.stack([across, along]), order=3, mode="grid-wrap").astype(np.float32)


def wood(x: Floats, y: Floats, z: Floats) -> Floats:
    """Grain along y: broad figure, streaks and fine pores."""
    across = x + 0.3 * z
    figure = noise(22 * across + 1.5 * noise(5 * across, 3 * y, 1), 2.5 * y, 2)
    shade = 1 + 0.16 * figure + 0.10 * noise(160 * across, 7 * y, 3) + 0.07 * noise(520 * across, 26 * y, 4)
    return np.stack([shade, shade**1.25, shade**1.4])


def fabric(x: Floats, y: Floats, z: Floats) -> Floats:
    """Woven threads: two crossed fine noises."""
    level = x + y
    return 1 + 0.12 * (noise(420 * level, 110 * z, 5) + noise(110 * level, 420 * z, 6))


def tiles(x: Floats, y: Floats, z: Floats) -> Floats:
    """Joints every 15 cm."""
    return np.where((y % 0.15 < 0.003) | (z % 0.15 < 0.003), np.float32(0.72), np.float32(1))


def bricks(x: Floats, y: Floats, z: Floats) -> Floats:
    """A wall of courses 7 cm high in running bond, pale joints, each brick of its own shade."""
    level, course = x + y, np.floor(z / 0.07)
    shifted = level / 0.21 + 0.5 * (course % 2)
    joint = (z % 0.07 < 0.010) | (shifted % 1 < 0.05)
    shade = 1 + 0.3 * noise(np.floor(shifted) * 1.7, course * 1.3, 7) + 0.12 * noise(150 * level, 150 * z, 8)
    return np.stack([np.where(joint, pale, shade) for pale in (1.6, 4.0, 5.5)]).astype(np.float32)


def stone(x: Floats, y: Floats, z: Floats) -> Floats:
    """Granite: dark and light specks of a few millimetres on soft clouds."""
    across, along = x + z, y + z
    specks = noise(260 * across, 260 * along, 11) + 0.7 * noise(560 * across, 560 * along, 12)
    return (1 + 0.12 * noise(14 * across, 14 * along, 13) + 0.22 * np.clip(specks, -0.9, 0.5)).astype(
        np.float32
    )


def checks(x: Floats, y: Floats, z: Floats) -> Floats:
    """Squares of 6 cm in two shades."""
    return np.where((np.floor(x / 0.06) + np.floor(y / 0.06)) % 2 == 0, np.float32(1), np.float32(0.45))


TEXTURES: dict[str, Callable[[Floats, Floats, Floats], Floats]] = {
    "plain": lambda x, y, z: np.ones_like(x),
    "wood": wood,
    "fabric": fabric,
    "tiles": tiles,
    "bricks": bricks,
    "stone": stone,
    "checks": checks,
}
