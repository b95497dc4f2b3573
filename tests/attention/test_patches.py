"""Patch to pixel and back, against the policy's own resize, for any size and aspect ratio."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinevla_kit.attention.grounding import resample, to_patches, to_pixels
from refinevla_kit.errors import KitError
from refinevla_kit.policies.vla_policy import VLAPolicy

sizes = st.tuples(st.integers(8, 70), st.integers(8, 70))
grids = st.tuples(st.integers(1, 8), st.integers(1, 8))


@pytest.mark.parametrize(("height", "width"), [(120, 160), (480, 640), (256, 256), (200, 90), (131, 77)])
def test_a_painted_patch_is_found_back(policy: VLAPolicy, height: int, width: int) -> None:
    """Paint what the map says is patch (r, c) into a picture; after the policy's own resize, that patch is
    the bright one.
    """
    rows, columns = policy.vla.grid
    for row, column in ((0, 0), (2, 5), (rows - 1, columns - 1)):
        one = np.zeros((rows, columns))
        one[row, column] = 1
        painted = (
            np.repeat((255 * to_pixels(one, (height, width)))[..., None], 3, -1).round().astype(np.uint8)
        )
        seen = policy.vla.pixel_values(painted[None])[0, 0].numpy()  # resized height and width, in [-1, 1]
        in_patches = seen.reshape(rows, seen.shape[0] // rows, columns, seen.shape[1] // columns).mean((1, 3))
        assert np.unravel_index(in_patches.argmax(), in_patches.shape) == (row, column)
        assert in_patches[row, column] > 0.6
        in_patches[row, column] = -1
        assert in_patches.max() < -0.6


@given(sizes, grids, st.integers(0, 2**32 - 1))
def test_both_directions_use_the_same_areas(size: tuple[int, int], grid: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    patches, mask = rng.random(grid), rng.random(size) < 0.3
    pixels = to_pixels(patches, size)
    assert pixels.shape == size
    np.testing.assert_allclose(pixels.mean(), patches.mean())  # nothing is lost or made
    np.testing.assert_allclose((pixels * mask).mean(), (patches * to_patches(mask, grid)).mean())


@given(sizes, grids)
def test_a_flat_map_stays_flat(size: tuple[int, int], grid: tuple[int, int]) -> None:
    np.testing.assert_allclose(to_pixels(np.full(grid, 3.0), size), 3.0)
    np.testing.assert_allclose(to_patches(np.ones(size, bool), grid), 1.0)


def test_a_picture_smaller_than_the_grid_is_refused() -> None:
    with pytest.raises(KitError, match="4 pixels across"):
        to_pixels(np.ones((6, 8)), (4, 160))


@given(sizes, sizes, st.integers(0, 2**32 - 1))
def test_another_resolution_keeps_the_mean(size: tuple[int, int], other: tuple[int, int], seed: int) -> None:
    fine = np.random.default_rng(seed).random(size)
    np.testing.assert_allclose(resample(fine, other).mean(), fine.mean())
    np.testing.assert_allclose(resample(fine, size), fine, atol=1e-12)


@given(sizes, grids)
def test_of_patches_it_is_the_map_over_pixels_and_of_pixels_the_means(
    size: tuple[int, int], grid: tuple[int, int]
) -> None:
    patches = np.random.default_rng(0).random(grid)
    np.testing.assert_allclose(resample(patches, size), to_pixels(patches, size))
    mask = np.random.default_rng(1).random(size) < 0.3
    np.testing.assert_allclose(resample(mask, grid), to_patches(mask, grid))
