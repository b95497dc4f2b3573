"""The published numbers are consistent with themselves: gains follow from cells, cells from counts, and each
number says where it was seen.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation import published
from refinevla_kit.evaluation.statistics import AVERAGE
from refinevla_kit.tasks import PUBLISHED_WEIGHTS, VARIANT_AGGREGATION, VISUAL_MATCHING, WIDOWX_TASKS

NUMBERS = published.load_published()


def value(**conditions: str) -> float:
    """The one printed number that meets the conditions."""
    (found,) = published.select(NUMBERS, **conditions)
    assert found.value is not None
    return found.value


def test_every_number_has_a_source_and_a_mark() -> None:
    assert len(NUMBERS) > 350
    assert {number.tier for number in NUMBERS} == {"primary", "secondary"}
    assert all(number.source for number in NUMBERS)


@pytest.mark.parametrize(
    ("robot", "setting", "table", "base", "gain"),
    [
        ("widowx", "visual_matching", "ReFineVLA Table 1", "SpatialVLA (fine-tuning)", 5.0),
        (
            "google_robot",
            "visual_matching",
            "ReFineVLA Table 2",
            "SpatialVLA (as reported in ReFineVLA)",
            2.3,
        ),
        (
            "google_robot",
            "variant_aggregation",
            "ReFineVLA Table 2",
            "SpatialVLA (as reported in ReFineVLA)",
            3.5,
        ),
    ],
)
def test_headline_gains_follow_from_the_tables(
    robot: str, setting: str, table: str, base: str, gain: float
) -> None:
    cell = {"robot": robot, "setting": setting, "table": table, "task": AVERAGE, "metric": "success"}
    headline = value(
        table="ReFineVLA abstract",
        robot=robot,
        setting=setting,
        model="ReFineVLA v2",
        metric="gain over second best",
    )
    assert headline == gain == pytest.approx(value(model="ReFineVLA", **cell) - value(model=base, **cell))


def test_episode_counts_of_the_protocol_are_the_published_ones() -> None:
    stated = {
        (one.robot, one.setting, one.task): one.value for one in published.select(NUMBERS, metric="episodes")
    }
    for (robot, setting, task), episodes in stated.items():
        if task in PUBLISHED_WEIGHTS[robot]:
            assert published.stated_episodes(robot, setting, task) == episodes
    assert (
        published.stated_episodes("widowx", VISUAL_MATCHING, AVERAGE)
        == stated["widowx", VISUAL_MATCHING, "all tasks"]
        == 96
    )
    assert published.stated_episodes("google_robot", VARIANT_AGGREGATION, "pick_coke_can", starts=True) == 75


def test_inconsistent_numbers_are_found_and_consistent_ones_are_not() -> None:
    found = {
        (one.number.table, one.number.setting, one.number.metric, one.number.model, one.number.task): one
        for one in published.inconsistencies(NUMBERS)
    }
    matching = ("ReFineVLA Table 1", VISUAL_MATCHING, "success", "ReFineVLA")
    assert found[(*matching, "widowx_spoon_on_towel")].fits == 21
    assert (*matching, "widowx_carrot_on_plate") not in found, "33.3 is 8 of 24 as well as 7 of 21"
    assert "47.60" in found[(*matching, AVERAGE)].why
    assert ("ReFineVLA Table 2", VISUAL_MATCHING, "success", "ReFineVLA", "move_near") in found, (
        "95.3 is no count out of 240"
    )
    readme = {key[3:] for key in found if key[:3] == ("SpatialVLA README", VISUAL_MATCHING, "success")}
    assert not [key for key in readme if key[0].startswith("SpatialVLA")], (
        "SpatialVLA's own cells and averages are consistent"
    )
    assert len(found) == 40


def test_published_rates_are_as_printed_with_intervals_from_the_counts_behind_them() -> None:
    scores = {(score.policy, score.task): score for score in published.published_scores(NUMBERS)}
    ours, base = scores["ReFineVLA", AVERAGE].rate, scores["SpatialVLA (fine-tuning)", AVERAGE].rate
    assert (ours.successes, ours.episodes, base.successes, base.episodes) == (40, 84, 41, 96)
    assert (ours.rate, base.rate) == pytest.approx((0.477, 0.427))
    assert (round(ours.low, 2), round(ours.high, 2), round(base.low, 2), round(base.high, 2)) == (
        0.37,
        0.58,
        0.33,
        0.53,
    )
    assert all(scores["Octo-Small", task.name].rate.episodes == 72 for task in WIDOWX_TASKS)
    assert scores["ReFineVLA", AVERAGE].mark == "secondary", (
        "the count of its episodes was deduced from secondary cells"
    )


def test_a_number_printed_in_another_models_row_is_left_out() -> None:
    scores = {
        (score.policy, score.task): score
        for score in published.published_scores(NUMBERS, "google_robot", VARIANT_AGGREGATION)
    }
    assert (
        scores["RT-1-X", "open_close_drawer"].rate.rate == pytest.approx(0.294)
        and ("RT-1-X", AVERAGE) not in scores
    )
    assert scores["RT-2-X", AVERAGE].rate.rate == pytest.approx(0.643)
    assert scores["SpatialVLA (fine-tuning)", "open_close_drawer"].rate.episodes == 378


def test_google_averages_weigh_the_tasks_by_their_sub_tasks() -> None:
    weights = PUBLISHED_WEIGHTS["google_robot"]
    for model in ("SpatialVLA (fine-tuning)", "SpatialVLA (zero-shot)", "RoboVLM (fine-tuning)"):
        cell = {
            "table": "SpatialVLA README",
            "robot": "google_robot",
            "setting": "visual_matching",
            "metric": "success",
            "model": model,
        }
        mean = sum(weight * value(task=task, **cell) for task, weight in weights.items()) / sum(
            weights.values()
        )
        assert mean == pytest.approx(value(task=AVERAGE, **cell), abs=0.1)


def test_claims_say_what_their_counts_support() -> None:
    claims = {(claim.version, claim.name): claim for claim in published.claims(NUMBERS)}
    widowx = claims["v2", "WidowX average, over SpatialVLA"]
    assert (
        widowx.difference == pytest.approx(0.05)
        and widowx.verdict == "not resolved"
        and 1500 < widowx.needed < 1700
    )
    near = claims["v2", "Google matching move near, over SpatialVLA"]
    assert near.supported and near.verdict == "supported if variants are independent", (
        "60 starts in four colours of the robot"
    )
    assert claims["v2", "Google variants average, over SpatialVLA's own table"].difference < 0
    assert {
        one.name.split(",")[0]: round(100 * one.difference, 1)
        for one in claims.values()
        if one.version == "v1"
    } == {
        "WidowX average": 5.0,
        "Google variants average": 8.6,
        "Google matching average": 1.7,
    }
    for one in claims.values():
        assert one.widest[0] <= one.low + 1e-9 and one.high <= one.widest[1] + 1e-9
        assert bool(one.assumed) == (one.version == "v1")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "published.json").write_text('{"groups": [{}]}')
    with pytest.raises(KitError, match="published numbers cannot be read"):
        published.load_published(tmp_path / "published.json")
