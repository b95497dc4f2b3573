"""The published numbers are consistent with themselves: gains follow from cells, cells from counts, and each
number says where it was seen.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation import published
from refinevla_kit.evaluation.intervals import unpaired_difference
from refinevla_kit.evaluation.statistics import AVERAGE
from refinevla_kit.tasks import PUBLISHED_WEIGHTS, VARIANT_AGGREGATION, VISUAL_MATCHING, WIDOWX_TASKS

NUMBERS = published.load_published()
FIELD = published.load_leaderboard()
STANDINGS = published.standings(NUMBERS, FIELD)


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


def test_the_leaderboard_is_numbers_and_links() -> None:
    marks = {(row["mark"], row["training"]) for row in FIELD}
    assert len(FIELD) > 400
    assert marks <= {("secondary", training) for training in ("imitation", "rl", "unknown")}
    for row in FIELD:
        values = [float(row[column]) for column in published.COLUMNS if row[column]]
        assert values and all(0 <= value <= 100 for value in values), row
        assert row["paper"].startswith("https://arxiv.org/abs/") and "(from" not in row["model"]
        assert row["stands"].split("; ")[0] in {"own", "repeated", "played again", "by others"}
        assert max(map(len, row.values())) < 100, "short columns, no sentences"


@pytest.mark.parametrize("standing", STANDINGS, ids=lambda one: one.column)
def test_the_place_is_one_more_than_the_rows_above(standing: published.Standing) -> None:
    same_tasks = [row for row in FIELD if f"{standing.column}:" not in row["stands"]]
    values = [float(row[standing.column]) for row in same_tasks if row[standing.column]]
    printed = 100 * standing.ours.rate
    assert standing.place == 1 + sum(value > printed for value in values)
    shown = [100 * value.rate for _, value in standing.rows]
    assert shown == pytest.approx(sorted(values, reverse=True))
    place, models = standing.place_of_models
    assert models - 1 == len({row["model"] for row, _ in standing.rows}) and place <= standing.place
    filled = sum(bool(row[standing.column]) for row in FIELD)
    assert standing.left_out == filled - len(values) > 0


@pytest.mark.parametrize("standing", STANDINGS, ids=lambda one: one.column)
def test_rows_alike_are_next_to_it_and_more_if_only_starts_count(standing: published.Standing) -> None:
    up, down = standing.alike
    assert 0 < up < standing.place and standing.place - 1 + down <= len(standing.rows)
    beyond = [standing.rows[standing.place - up - 2], standing.rows[standing.place - 1 + down]]
    for _, value in beyond:
        low, high = unpaired_difference(value, standing.ours)
        assert low > -0.005 if value.rate > standing.ours.rate else high < 0.005
    wider = [more >= fewer for more, fewer in zip(standing.alike_starts, standing.alike, strict=True)]
    assert all(wider) and (standing.alike_starts == standing.alike) == (standing.column == "widowx_vm")


def a_row(model: str, value: str, stands: str = "own", paper: str = "a") -> dict[str, str]:
    row = {"model": model, "paper": paper, "mark": "secondary", "training": "unknown", "stands": stands}
    return row | dict.fromkeys(published.COLUMNS, value)


def test_the_lists_google_averages_are_plain_and_the_printed_ones_weighted() -> None:
    (listed,) = [row for row in FIELD if row["model"] == "SpatialVLA" and "fine-tuned" in row["stands"]]
    for column, gap in (("google_vm", 1.3), ("google_va", 3.2)):
        robot, setting = published.COLUMNS[column]
        where = {"table": published.README, "robot": robot, "setting": setting, "metric": "success"}
        cells = {
            task: value(model="SpatialVLA (fine-tuning)", task=task, **where)
            for task in (*PUBLISHED_WEIGHTS[robot], AVERAGE)
        }
        average = cells.pop(AVERAGE)
        assert float(listed[column]) == pytest.approx(sum(cells.values()) / len(cells), abs=0.05)
        assert average - float(listed[column]) == pytest.approx(gap)


def test_ties_share_the_upper_place_and_count_as_alike_below() -> None:
    rows = [a_row("far above", "99"), a_row("tied", "47.7"), a_row("tied", "47.7", paper="b")]
    standing, *_ = published.standings(NUMBERS, [*rows, a_row("other", "48", "own; widowx_vm: 3 tasks")])
    assert standing.place == 2 and standing.place_of_models == (2, 3)
    assert standing.alike == (0, 2) and standing.left_out == 1


def test_the_spread_of_a_model_is_its_lowest_and_highest_number() -> None:
    rows = [a_row("many", "10"), a_row("many", "30", "repeated", "b"), a_row("many", "20", paper="b")]
    found = published.spreads(
        [*rows, a_row("one", "5"), a_row("close", "5"), a_row("close", "5.2", paper="b")]
    )
    assert [(one.column, one.points, one.papers) for one in found] == [
        (column, 20.0, 2) for column in published.COLUMNS
    ]
    assert found[0].high["stands"] == "repeated" and published.spreads(rows, papers=3) == []
    listed = {(one.low["model"], one.column): one for one in published.spreads(FIELD)}
    openvla = [float(row["widowx_vm"]) for row in FIELD if row["model"] == "OpenVLA" and row["widowx_vm"]]
    assert listed["OpenVLA", "widowx_vm"].points == pytest.approx(max(openvla) - min(openvla))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "published.json").write_text('{"groups": [{}]}')
    with pytest.raises(KitError, match="published numbers cannot be read"):
        published.load_published(tmp_path / "published.json")
