"""Scores are what theory says for maps whose answer is known, and those of the map over pixels for any
other.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from refinevla_kit.attention.grounding import (
    RELEVANT,
    REST,
    areas,
    auc,
    nuisance,
    pointing,
    shares,
    to_pixels,
)
from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import Array

from .conftest import scene

MEASURES: tuple[Callable[[Array, dict[str, Array]], object], ...] = (shares, pointing, auc, nuisance)


@given(st.integers(0, 1000))
def test_even_attention_scores_the_area(seed: int) -> None:
    masks = scene(seed)
    found = shares(np.full((6, 8), 0.3), masks)
    assert list(found) == [*masks, REST]
    for name, area in areas(masks).items():
        assert found[name] == pytest.approx(area)


def test_attention_the_shape_of_a_mask_scores_one() -> None:
    mask = np.zeros((120, 160), bool)
    mask[20:60, 40:80] = True  # patches (1..2, 2..3) of 20 x 20 pixels
    patches = np.zeros((6, 8))
    patches[1:3, 2:4] = 0.1
    assert shares(patches, {"source": mask}) == {"source": pytest.approx(1.0), REST: pytest.approx(0.0)}


@given(st.integers(0, 1000))
def test_shares_are_those_of_the_pixel_map_and_add_up(seed: int) -> None:
    masks, patches = scene(seed), np.random.default_rng(seed).random((3, 6, 8))
    found, pixels = shares(patches, masks), to_pixels(patches, (120, 160))
    np.testing.assert_allclose(sum(found.values()), 1.0)
    for name, mask in masks.items():
        np.testing.assert_allclose(found[name], (pixels * mask).sum((1, 2)) / pixels.sum((1, 2)))


@pytest.mark.parametrize("masks", [{}, {"a": np.ones((120, 160), bool), "b": np.ones((120, 160), bool)}])
def test_unusable_masks_are_refused(masks: dict[str, Array]) -> None:
    for measure in MEASURES:
        with pytest.raises(KitError, match="mask"):
            measure(np.ones((6, 8)), masks)


def test_an_empty_map_is_refused() -> None:
    for measure in MEASURES:
        with pytest.raises(KitError, match="empty"):
            measure(np.zeros((6, 8)), scene())


@given(st.integers(0, 1000))
def test_an_even_map_is_chance_in_every_score(seed: int) -> None:
    masks, even = scene(seed), np.full((2, 6, 8), 0.3)
    for name, area in areas(masks).items():
        np.testing.assert_allclose(pointing(even, masks)[name], area)
        np.testing.assert_allclose(auc(even, masks)[name], 0.5)
    np.testing.assert_allclose(nuisance(even, masks), 1.0)


def test_a_map_the_shape_of_a_mask_is_perfect_in_every_score() -> None:
    mask = np.zeros((120, 160), bool)
    mask[20:60, 40:80] = True
    patches = np.zeros((6, 8))
    patches[1:3, 2:4] = 0.1
    for measure in (pointing, auc):
        assert measure(patches, {"source": mask})["source"] == pytest.approx(1.0)
        assert measure(patches, {"source": mask})[REST] == pytest.approx(0.0)
        assert measure(1 - patches / 0.1, {"source": mask})["source"] == pytest.approx(0.0), (
            "and the opposite of it is as wrong as can be"
        )
    assert nuisance(patches, {"source": mask}) == pytest.approx(0.0)


@given(st.integers(0, 1000))
def test_the_auc_is_that_of_the_pixels(seed: int) -> None:
    masks, patches = scene(seed), np.random.default_rng(seed).integers(0, 5, (6, 8)) + 1.0  # with ties
    pixels = to_pixels(patches, (120, 160))
    for name, mask in masks.items():
        statistic = mannwhitneyu(pixels[mask], pixels[~mask]).statistic
        assert auc(patches, masks)[name] == pytest.approx(statistic / (mask.sum() * (~mask).sum()))


@given(st.integers(0, 1000))
def test_pointing_is_where_the_highest_pixels_are(seed: int) -> None:
    masks, patches = scene(seed), np.random.default_rng(seed).random((6, 8))
    pixels = to_pixels(patches, (120, 160))
    for name, mask in masks.items():
        assert pointing(patches, masks)[name] == pytest.approx(mask[pixels == pixels.max()].mean())


@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_a_scale_changes_nothing(seed: int, scale: float) -> None:
    masks, patches = scene(seed), np.random.default_rng(seed).random((3, 6, 8))
    for measure in (shares, pointing, auc):
        for name, value in measure(patches, masks).items():
            np.testing.assert_allclose(measure(scale * patches, masks)[name], value)
    np.testing.assert_allclose(nuisance(scale * patches, masks), nuisance(patches, masks))


def test_nuisance_compares_an_average_pixel_of_each_side() -> None:
    masks = scene(4)
    patches = np.random.default_rng(4).random((6, 8))
    pixels, matters = to_pixels(patches, (120, 160)), np.any([masks[name] for name in RELEVANT], axis=0)
    assert nuisance(patches, masks) == pytest.approx(pixels[~matters].mean() / pixels[matters].mean())
    nothing = {name: np.zeros((120, 160), bool) for name in masks}
    assert np.isnan(nuisance(patches, nothing))


def test_what_is_not_visible_has_no_score() -> None:
    masks = scene() | {"target": np.zeros((120, 160), bool)}
    patches = np.random.default_rng(0).random((2, 6, 8))
    assert (shares(patches, masks)["target"] == 0).all()
    assert (
        np.isnan(pointing(patches, masks)["target"]).all() and np.isnan(auc(patches, masks)["target"]).all()
    )
    everything = {"source": np.ones((120, 160), bool)}
    assert (
        pointing(patches, everything)["source"] == pytest.approx(1.0)
        and np.isnan(auc(patches, everything)["source"]).all()
    )
