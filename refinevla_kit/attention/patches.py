"""The one mapping between a policy's grid of image patches and the pixels of the picture it was given.

The policy resizes any picture to its own size without cropping or padding, then cuts it into a grid. So patch
(r, c) of a (rows, columns) grid covers the picture's rows [r, r + 1) * H / rows and columns [c, c + 1) * W /
columns, whatever its size and aspect ratio; a pixel on a border belongs to its patches by area. Both
directions below use the same areas, so scores computed on patches and on pixels agree exactly.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import Array


def to_pixels(patch_map: Array, image_shape: tuple[int, ...]) -> Array:
    """Spread a map over the picture.

    Args:
        patch_map: float (..., rows, columns).
        image_shape: (H, W) or (H, W, 3) of the picture the policy was given.

    Returns:
        float64 (..., H, W): each pixel has its patch's value, pixels on a border the mean by area. Block
        edges are kept: nothing is smoothed.
    """
    return _spread(patch_map, image_shape, _shared)


def to_patches(mask: Array, grid: tuple[int, int]) -> Array:
    """How much of each patch a mask covers: bool or float (..., H, W) -> float64 (..., rows, columns) in [0,
    1].
    """
    height, width = np.shape(mask)[-2:]
    covered = (
        _shared(height, grid[0]).T @ np.asarray(mask, np.float64) @ _shared(width, grid[1])
    )  # pixels in each patch
    return np.asarray(covered * (grid[0] * grid[1] / (height * width)))


def resample(pixel_map: Array, image_shape: tuple[int, ...]) -> Array:
    """A map over the picture at another resolution, by area: float (..., h, w) -> float64 (..., H, W); the
    mean stays the same.

    With maps of fewer cells than pixels this is `to_pixels`, with more cells it is the mean of those in each
    pixel.
    """
    return _spread(pixel_map, image_shape, _overlap)


def _spread(cells: Array, image_shape: tuple[int, ...], along: Callable[[int, int], Array]) -> Array:
    """float (..., rows, columns) -> float64 (..., H, W), by what `along` gives for each axis."""
    height, width = image_shape[:2]
    rows, columns = np.shape(cells)[-2:]
    return np.asarray(along(height, rows) @ np.asarray(cells, np.float64) @ along(width, columns).T)


def _shared(pixels: int, patches: int) -> Array:
    """Fraction of each pixel that lies in each patch along one axis: (pixels, patches), rows add up to 1."""
    if pixels < patches:
        raise KitError(
            f"a picture {pixels} pixels across cannot show {patches} patches",
            "give a picture at least as large as the patch grid",
        )
    return _overlap(pixels, patches)


def _overlap(pixels: int, cells: int) -> Array:
    """The same whichever are more: (pixels, cells), rows add up to 1."""
    edges = np.arange(cells + 1) * pixels / cells
    pixel = np.arange(pixels)[:, None]
    return np.clip(np.minimum(edges[1:], pixel + 1) - np.maximum(edges[:-1], pixel), 0.0, None)
