"""Scores are what theory says for maps whose answer is known, and those of the map over pixels for any other.
They are kept a frame, layer and query; what is said about policies is over episodes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from refinevla_kit.attention.captured import STAGES, Frame
from refinevla_kit.attention.forward import capture, capture_frames
from refinevla_kit.attention.grounding import (
    COLUMNS,
    MEASURES,
    RELEVANT,
    REST,
    areas,
    auc,
    compare_measures,
    compare_scores,
    load_scores,
    mean_interval,
    nuisance,
    paired_p_value,
    pointing,
    resample,
    save_scores,
    score_captures,
    shares,
    summarise_scores,
    to_patches,
    to_pixels,
)
from refinevla_kit.errors import KitError
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.simulator.contract import PHASES, Array

from .conftest import INSTRUCTION, scene, small_policy

CARROT = "widowx_carrot_on_plate"


def frames(
    policy_image: Array, episodes: int = 2, steps: int = 2, phases: Sequence[str] = ("reach",)
) -> list[Frame]:
    rng = np.random.default_rng(5)
    return [
        Frame(
            rng.integers(0, 255, policy_image.shape, dtype=np.uint8),
            scene(e),
            INSTRUCTION,
            CARROT,
            e,
            t,
            phases[t % len(phases)],
        )
        for e in range(episodes)
        for t in range(steps)
    ]


def test_a_hidden_object_has_no_share_and_no_ratio(policy: VLAPolicy, image: Array) -> None:
    masks = scene() | {"arm": np.zeros((120, 160), bool)}
    frame = Frame(image, masks, INSTRUCTION, CARROT, 0, 0, "reach")
    table = summarise_scores(score_captures([frame], [capture(policy, image, INSTRUCTION)]), 2).set_index(
        "thing"
    )
    assert table.loc["arm", "share"] == 0 and np.isnan(table.loc["arm", "ratio"])
    assert np.isnan(table.loc["source", "low"])  # one episode says nothing about another


def test_a_row_a_frame_layer_dimension_and_thing(policy: VLAPolicy, image: Array, tmp_path: Path) -> None:
    seen = frames(image)
    captures = [capture(policy, frame.image, frame.instruction) for frame in seen]
    table = score_captures(seen, captures)
    assert tuple(table.columns) == COLUMNS and len(table) == 4 * 3 * 7 * 5
    np.testing.assert_allclose(table.groupby(["episode", "step", "layer", "dimension"])["share"].sum(), 1.0)
    one = table.query(
        "episode == 1 and step == 1 and layer == 2 and dimension == 'yaw' and thing == 'target'"
    ).iloc[0]
    expected = shares(captures[3].map(1, 5), seen[3].masks)["target"]
    assert one["share"] == pytest.approx(float(expected), rel=1e-5)
    assert one["image_share"] == pytest.approx(float(captures[3].image_share[1, :, 5].mean()), rel=1e-5)
    pd.testing.assert_frame_equal(pd.read_parquet(save_scores(table, tmp_path / "scores.parquet")), table)
    with pytest.raises(KitError, match="layer from 1 to 3"):
        summarise_scores(table, 4)


def test_policies_are_compared_on_the_same_frames(policy: VLAPolicy, image: Array) -> None:
    seen = frames(image, episodes=3)
    tables = [
        score_captures(seen, [capture(p, f.image, f.instruction) for f in seen])
        for p in (policy, small_policy(3, name="other"))
    ]
    both = pd.concat(tables)
    means = summarise_scores(both, 2).set_index(["policy", "thing"])["share"]
    found = compare_scores(both, 2, "small", "other").set_index("thing")
    for thing in ("source", REST):
        assert found.loc[thing, "difference"] == pytest.approx(means["other", thing] - means["small", thing])
        assert found.loc[thing, "low"] < found.loc[thing, "difference"] < found.loc[thing, "high"]
    every = compare_measures(both, 2, "small", "other").query("measure == 'share' and stage == 'all'")
    assert every.set_index("thing")["difference"].equals(found["difference"])
    again = score_captures(seen, capture_frames(policy, seen))
    np.testing.assert_allclose(again["share"], tables[0]["share"], atol=1e-5)
    same = compare_scores(pd.concat([tables[0], tables[0].assign(policy="twin")]), 2, "small", "twin")
    assert (same["difference"] == 0).all()


def test_the_interval_is_students() -> None:
    """Critical value of the t distribution with 4 degrees of freedom: 2.776 (NIST/SEMATECH e-Handbook, table
    1.3.6.7.2).
    """
    low, high = mean_interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert (high - low) / 2 == pytest.approx(2.776 * np.sqrt(2.5 / 5), rel=1e-3)
    assert (high + low) / 2 == pytest.approx(3.0)


def test_every_measure_is_averaged_by_episode_and_stage(policy: VLAPolicy, image: Array) -> None:
    seen = frames(image, episodes=3, steps=4, phases=("reach", "descend", "grasp", "retreat"))
    table = score_captures(seen, [capture(policy, f.image, f.instruction) for f in seen])
    for measure in MEASURES:
        found = summarise_scores(table, 3, measure=measure, stages=True).set_index(["stage", "thing"])
        assert list(dict.fromkeys(found.index.get_level_values("stage"))) == ["approach", "grasp", "place"], (
            measure
        )
        assert (
            (found["episodes"] == 3).all()
            and (found["low"] <= found[measure]).all()
            and (found[measure] <= found["high"]).all()
        ), measure
        by_hand = table.query("layer == 3 and phase == 'grasp' and thing == 'source'")
        if measure != "ratio":
            assert found.loc[("grasp", "source"), measure] == pytest.approx(
                by_hand.groupby("episode")[measure].mean().mean()
            ), measure
    one = compare_scores(
        pd.concat([table, table.assign(policy="twin", share=0.5)]), 3, "small", "twin", stages=True
    ).set_index(["stage", "thing"])
    expected = (
        0.5
        - table.query("layer == 3 and thing == 'target' and phase in ('reach', 'descend')")
        .groupby("episode")["share"]
        .mean()
        .mean()
    )
    assert (
        one.loc[("approach", "target"), "difference"] == pytest.approx(expected)
        and one.loc[("approach", "target"), "episodes"] == 3
    )


def test_each_phase_belongs_to_a_stage() -> None:
    assert list(STAGES) == list(PHASES) and list(dict.fromkeys(STAGES.values())) == [
        "approach",
        "grasp",
        "carry",
        "place",
    ]


def test_frames_without_the_object_do_not_count(policy: VLAPolicy, image: Array) -> None:
    """Where a thing is not visible it has no AUC; episodes in which it never is are left out of the mean, and
    said to be.
    """
    seen = frames(image, episodes=3, steps=1)
    hidden = [*seen[:2], replace(seen[2], masks=seen[2].masks | {"source": np.zeros((120, 160), bool)})]
    table = score_captures(hidden, [capture(policy, f.image, f.instruction) for f in hidden])
    found = summarise_scores(table, 1, measure="auc").set_index("thing")
    assert (found.loc["source", "episodes"], found.loc["target", "episodes"]) == (2, 3)
    two = summarise_scores(table[table["episode"] < 2], 1, measure="auc").set_index("thing")
    assert found.loc["source", "auc"] == pytest.approx(two.loc["source", "auc"])
    paired = compare_scores(
        pd.concat([table, table.assign(policy="twin")]), 1, "small", "twin", measure="auc"
    ).set_index("thing")
    assert paired.loc["source", "episodes"] == 2


def test_words_can_be_scored_too(policy: VLAPolicy, image: Array) -> None:
    seen = frames(image, episodes=1, steps=1)
    captures = [
        capture(
            policy,
            seen[0].image,
            INSTRUCTION,
            rationale="the carrot",
            queries=("action", "rationale", "instruction"),
        )
    ]
    assert set(score_captures(seen, captures)["kind"]) == {"action"}
    words = score_captures(seen, captures, kinds=("rationale", "instruction"))
    assert list(dict.fromkeys(zip(words["kind"], words["dimension"], strict=True))) == [
        ("rationale", "the"),
        ("rationale", "carrot"),
        *(("instruction", word) for word in INSTRUCTION.split()),
    ]


@pytest.mark.parametrize("episodes", [2, 5, 9])
def test_the_p_value_counts_all_sign_flips(episodes: int) -> None:
    differences = np.random.default_rng(episodes).normal(0.4, 1, episodes)
    flips = np.array(list(itertools.product([-1, 1], repeat=episodes)))  # all of them
    extreme = np.abs(flips @ differences) >= abs(differences.sum()) - 1e-12
    assert paired_p_value(differences) == pytest.approx(extreme.mean())
    assert paired_p_value(np.ones(episodes)) == pytest.approx(2 / 2**episodes), (
        "the least that so few episodes can give"
    )
    assert paired_p_value(np.zeros(episodes)) == 1 and np.isnan(paired_p_value(differences[:1]))


def test_the_p_value_is_right_where_nothing_differs() -> None:
    """Under the null hypothesis it is below 0.05 in 5 % of experiments; twenty episodes, where flips are
    drawn.
    """
    random = np.random.default_rng(0)
    low = np.mean([paired_p_value(random.standard_t(3, 20), seed) <= 0.05 for seed in range(200)])
    assert 0.01 < low < 0.1


def test_what_was_not_scored_is_said(policy: VLAPolicy, image: Array) -> None:
    seen = frames(image, episodes=1, steps=1)
    table = score_captures(seen, [capture(policy, image, INSTRUCTION)])
    with pytest.raises(KitError, match="no 'beauty'"):
        summarise_scores(table, 1, measure="beauty")
    with pytest.raises(KitError, match="no 'auc'"):
        summarise_scores(table.drop(columns="auc"), 1, measure="auc")
    with pytest.raises(KitError, match="unknown policy 'other'"):
        compare_scores(table, 1, "small", "other")


MAP_MEASURES: tuple[Callable[[Array, dict[str, Array]], object], ...] = (shares, pointing, auc, nuisance)


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
    for measure in MAP_MEASURES:
        with pytest.raises(KitError, match="mask"):
            measure(np.ones((6, 8)), masks)


def test_an_empty_map_is_refused() -> None:
    for measure in MAP_MEASURES:
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


def test_rows_of_two_checkpoints_are_not_averaged(policy: VLAPolicy, image: Array) -> None:
    looked = frames(image)
    scores = score_captures(looked, capture_frames(policy, looked))
    both = pd.concat([scores, scores.assign(checkpoint_hash="another", share=0.0)])
    with pytest.raises(KitError, match=r"the rows of .* are of 2 checkpoints -> keep those of one"):
        summarise_scores(both, 1)


@pytest.mark.parametrize("table", [{"policy": ["a"], "layer": [1]}, {"success": [True]}])
def test_a_table_of_something_else_holds_no_scores(table: dict[str, list], tmp_path: Path) -> None:
    pd.DataFrame(table).to_parquet(tmp_path / "other.parquet")
    (tmp_path / "words.parquet").write_text("no table")
    shipped = REPOSITORY / "data/records/attention_scores.parquet"
    pd.read_parquet(shipped)[:0].to_parquet(tmp_path / "empty.parquet")
    for name in ("other", "words", "empty", "none"):
        with pytest.raises(KitError, match=r"holds no attention scores .* -> give the scores.parquet"):
            load_scores(tmp_path / f"{name}.parquet")
    assert len(load_scores(shipped))
