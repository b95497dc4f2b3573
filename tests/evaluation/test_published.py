"""The published numbers are consistent with themselves: gains follow from cells, cells from counts, and each number says where it was seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation import published
from refinevla_kit.evaluation.statistics import AVERAGE
from refinevla_kit.tasks import WIDOWX_TASKS

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
        ("WidowX", "visual_matching", "ReFineVLA Table 1", "SpatialVLA (fine-tuning)", 5.0),
        ("GoogleRobot", "visual_matching", "ReFineVLA Table 2", "SpatialVLA (as reported in ReFineVLA)", 2.3),
        ("GoogleRobot", "variant_aggregation", "ReFineVLA Table 2", "SpatialVLA (as reported in ReFineVLA)", 3.5),
    ],
)
def test_headline_gains_follow_from_the_tables(robot: str, setting: str, table: str, base: str, gain: float) -> None:
    cell = {"robot": robot, "setting": setting, "table": table, "task": AVERAGE, "metric": "success"}
    headline = value(table="ReFineVLA abstract", robot=robot, setting=setting, model="ReFineVLA v2", metric="gain over second best")
    assert headline == gain == pytest.approx(value(model="ReFineVLA", **cell) - value(model=base, **cell))


def test_widowx_cells_of_refinevla_come_from_21_episodes_and_its_baseline_from_24() -> None:
    scores = {(score.policy, score.task): score.rate for score in published.widowx_scores(NUMBERS)}
    ours, base = scores["ReFineVLA", AVERAGE], scores["SpatialVLA (fine-tuning)", AVERAGE]
    assert (ours.successes, ours.episodes) == (40, 84)
    assert (base.successes, base.episodes) == (41, 96)
    assert (round(ours.low, 2), round(ours.high, 2)) == (0.37, 0.58)
    assert (round(base.low, 2), round(base.high, 2)) == (0.33, 0.53)
    assert all(scores["Octo-Small", task.name].episodes == 72 for task in WIDOWX_TASKS)


@pytest.mark.parametrize(("percent", "episodes", "count"), [(38.1, 21, 8), (38.1, 24, None), (4.1, 24, 1), (100.0, 24, 24), (0.0, 24, 0)])
def test_a_percentage_that_no_count_gives_is_found(percent: float, episodes: int, count: int | None) -> None:
    assert published.count_behind(percent, episodes) == count


def test_google_averages_weigh_the_tasks_by_their_sub_tasks() -> None:
    for model in ("SpatialVLA (fine-tuning)", "SpatialVLA (zero-shot)", "RoboVLM (fine-tuning)"):
        cell = {"table": "SpatialVLA README", "robot": "GoogleRobot", "setting": "visual_matching", "metric": "success", "model": model}
        mean = sum(weight * value(task=task, **cell) for task, weight in published.GOOGLE_WEIGHTS.items()) / 6
        assert mean == pytest.approx(value(task=AVERAGE, **cell), abs=0.1)


def test_claims_say_what_their_counts_support() -> None:
    claims = {claim.name: claim for claim in published.claims(NUMBERS)}
    widowx = claims["WidowX average, over SpatialVLA"]
    assert widowx.difference == pytest.approx(0.049, abs=0.001)
    assert not widowx.supported and 1500 < widowx.needed < 1700
    assert claims["Google matching move near, over SpatialVLA"].supported
    assert claims["Google variants average, over SpatialVLA's own table"].difference < 0


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "published.json").write_text('{"groups": [{}]}')
    with pytest.raises(KitError, match="published numbers cannot be read"):
        published.load_published(tmp_path / "published.json")
