"""Scores are kept a frame, layer and query; what is said about policies is over episodes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from refinevla_kit.attention.captured import STAGES, Frame
from refinevla_kit.attention.forward import capture
from refinevla_kit.attention.grounding import (
    COLUMNS,
    MEASURES,
    REST,
    compare_scores,
    mean_interval,
    paired_p_value,
    save_scores,
    score_captures,
    shares,
    summarise_scores,
)
from refinevla_kit.errors import KitError
from refinevla_kit.policies.vla_policy import VLAPolicy
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
    with pytest.raises(KitError, match="no scores of other"):
        compare_scores(table, 1, "small", "other")
