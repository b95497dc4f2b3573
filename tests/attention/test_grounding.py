"""Shares are what theory says for maps whose answer is known, and intervals are over episodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinevla_kit.attention.capture import capture
from refinevla_kit.attention.frames import Frame
from refinevla_kit.attention.grounding import COLUMNS, REST, areas, compare, interval, save_scores, score, shares, summarise
from refinevla_kit.attention.patches import to_pixels
from refinevla_kit.errors import KitError
from refinevla_kit.policies.compact_policy import CompactPolicy
from refinevla_kit.simulator.contract import Array

from .conftest import INSTRUCTION, small_policy


def scene(seed: int = 0, height: int = 120, width: int = 160) -> dict[str, Array]:
    """Masks like the simulator's: rectangles that do not overlap."""
    rng = np.random.default_rng(seed)
    masks = {name: np.zeros((height, width), bool) for name in ("source", "target", "gripper", "arm")}
    for i, mask in enumerate(masks.values()):
        top, left = rng.integers(0, height - 20), i * width // 4 + rng.integers(0, width // 4 - 20)
        mask[top : top + rng.integers(3, 20), left : left + rng.integers(3, 20)] = True
    return masks


def frames(policy_image: Array, episodes: int = 2, steps: int = 2) -> list[Frame]:
    rng = np.random.default_rng(5)
    return [
        Frame(rng.integers(0, 255, policy_image.shape, dtype=np.uint8), scene(e), INSTRUCTION, "widowx_carrot_on_plate", e, t, "reach")
        for e in range(episodes)
        for t in range(steps)
    ]


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


def test_a_hidden_object_has_no_share_and_no_ratio(policy: CompactPolicy, image: Array) -> None:
    masks = scene() | {"arm": np.zeros((120, 160), bool)}
    frame = Frame(image, masks, INSTRUCTION, "widowx_carrot_on_plate", 0, 0, "reach")
    table = summarise(score([frame], [capture(policy, image, INSTRUCTION)]), 2).set_index("thing")
    assert table.loc["arm", "share"] == 0 and np.isnan(table.loc["arm", "ratio"])
    assert np.isnan(table.loc["source", "low"])  # one episode says nothing about another


@pytest.mark.parametrize("masks", [{}, {"a": np.ones((120, 160), bool), "b": np.ones((120, 160), bool)}])
def test_unusable_masks_are_refused(masks: dict[str, Array]) -> None:
    with pytest.raises(KitError, match="mask"):
        shares(np.ones((6, 8)), masks)


def test_an_empty_map_is_refused() -> None:
    with pytest.raises(KitError, match="empty"):
        shares(np.zeros((6, 8)), scene())


def test_a_row_a_frame_layer_dimension_and_thing(policy: CompactPolicy, image: Array, tmp_path: Path) -> None:
    seen = frames(image)
    captures = [capture(policy, frame.image, frame.instruction) for frame in seen]
    table = score(seen, captures)
    assert tuple(table.columns) == COLUMNS and len(table) == 4 * 3 * 7 * 5
    np.testing.assert_allclose(table.groupby(["episode", "step", "layer", "dimension"])["share"].sum(), 1.0)
    one = table.query("episode == 1 and step == 1 and layer == 2 and dimension == 'yaw' and thing == 'target'").iloc[0]
    expected = shares(captures[3].map(1, 5), seen[3].masks)["target"]
    assert one["share"] == pytest.approx(float(expected), rel=1e-5)
    assert one["image_share"] == pytest.approx(float(captures[3].image_share[1, :, 5].mean()), rel=1e-5)
    pd.testing.assert_frame_equal(pd.read_parquet(save_scores(table, tmp_path / "scores.parquet")), table)
    with pytest.raises(KitError, match="layer from 1 to 3"):
        summarise(table, 4)


def test_policies_are_compared_on_the_same_frames(policy: CompactPolicy, image: Array) -> None:
    seen = frames(image, episodes=3)
    tables = [score(seen, [capture(p, f.image, f.instruction) for f in seen]) for p in (policy, small_policy(3, name="other"))]
    both = pd.concat(tables)
    means = summarise(both, 2).set_index(["policy", "thing"])["share"]
    found = compare(both, 2, "small", "other").set_index("thing")
    for thing in ("source", REST):
        assert found.loc[thing, "difference"] == pytest.approx(means["other", thing] - means["small", thing])
        assert found.loc[thing, "low"] < found.loc[thing, "difference"] < found.loc[thing, "high"]
    same = compare(pd.concat([tables[0], tables[0].assign(policy="twin")]), 2, "small", "twin")
    assert (same["difference"] == 0).all()


def test_the_interval_is_students() -> None:
    """Critical value of the t distribution with 4 degrees of freedom: 2.776 (NIST/SEMATECH e-Handbook, table 1.3.6.7.2)."""
    low, high = interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert (high - low) / 2 == pytest.approx(2.776 * np.sqrt(2.5 / 5), rel=1e-3)
    assert (high + low) / 2 == pytest.approx(3.0)
