"""Figures show the numbers they are given: bars and dots lie at the rates, tables print the counts, files
carry what made them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.patches import Rectangle

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.published import (
    claims,
    inconsistencies,
    load_leaderboard,
    load_published,
    published_scores,
    spreads,
    standings,
)
from refinevla_kit.evaluation.statistics import (
    AVERAGE,
    PUBLISHED_AVERAGE,
    RULES,
    against_base,
    compare,
    compare_each,
    shown_tasks,
    summarise,
    summarise_variants,
)
from refinevla_kit.figures.published import (
    all_results,
    claim_intervals,
    claims_table,
    inconsistency_table,
    leaderboard,
    published_results,
    published_table,
    resolution_table,
    resolvable_gains,
    results_table,
    spread_table,
    standing_table,
)
from refinevla_kit.figures.style import save_figure
from refinevla_kit.figures.success import (
    comparison_table,
    paired_differences,
    success_bars,
    success_table,
    variant_rates,
)
from refinevla_kit.figures.training_curves import load_histories, training_curves
from refinevla_kit.tasks import GROUPS, VARIANT_AGGREGATION, WIDOWX_TASKS
from tests.evaluation.rows import row

RECORDS = [
    row(policy, episode, success=episode < wins, success_any=episode < wins + 1, task=task.name)
    for policy, wins in (("action_only", 3), ("with_reasoning", 6))
    for task in WIDOWX_TASKS[:2]
    for episode in range(8)
]
ALL_FOUR = RECORDS + [
    replace(record, task=task.name)
    for record, task in zip(RECORDS, [each for each in WIDOWX_TASKS[2:] for _ in range(8)] * 2, strict=True)
]
SCORES = [score for rule in RULES for score in summarise(RECORDS, rule)]
PUBLISHED = load_published()


def test_bars_reach_the_rates_of_both_rules() -> None:
    (axes,) = success_bars(SCORES).axes
    heights = sorted(patch.get_height() for patch in axes.patches if isinstance(patch, Rectangle))
    assert heights == pytest.approx(sorted([3 / 8, 4 / 8, 6 / 8, 7 / 8] * 3))


@pytest.mark.parametrize(
    "table", [comparison_table, claims_table, inconsistency_table, standing_table, spread_table]
)
def test_a_table_of_nothing_is_an_empty_one(table: Callable[[list[object]], pd.DataFrame]) -> None:
    assert len(table([])) == 0


def test_all_results_have_a_name_a_picture_and_a_table_and_ours_is_on_the_widowx() -> None:
    found = {name: table for name, figure, table in all_results(PUBLISHED, summarise(RECORDS)) if figure.axes}
    assert list(found) == ["widowx_results", "google_visual_matching", "google_variant_aggregation"]
    assert ["this kit" in table.index for table in found.values()] == [True, False, False]
    changed = [replace(record, setting=VARIANT_AGGREGATION) for record in RECORDS]
    for _, _, table in all_results(PUBLISHED, summarise(changed)):
        assert "this kit" not in table.index, "nothing is published of the WidowX in this setting"


def test_each_task_is_compared_and_then_the_average() -> None:
    comparisons = compare_each(RECORDS, "with_reasoning", "action_only")
    tasks = [task.name for task in WIDOWX_TASKS[:2]]
    found = [(one.rule, one.task) for one in comparisons]
    assert found == [(rule, task) for rule in RULES for task in (*tasks, AVERAGE)]
    assert "with_reasoning minus action_only: +37.5 points" in str(comparisons[2])
    assert "these 16 shared episodes" in str(comparisons[2])
    single = [record for record in RECORDS if record.task == tasks[0]]
    assert [one.task for one in compare_each(single, "with_reasoning", "action_only", ["last"])] == tasks[:1]
    assert compare_each(RECORDS, "with_reasoning", "nobody") == []


def test_the_difference_is_drawn_where_it_is() -> None:
    comparison = compare(RECORDS, "with_reasoning", "action_only")
    (axes,) = paired_differences([comparison]).axes
    assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"] == [pytest.approx(3 / 8)]


def test_tables_print_counts_intervals_and_both_rules() -> None:
    table = success_table(SCORES)
    assert list(table.index) == [
        (policy, f"{rule} step") for policy in ("actions only", "with reasoning loss") for rule in RULES
    ]
    assert table.loc[("actions only", "last step"), "spoon on towel"] == "3/8 = 38 % (14-69)"
    compared = comparison_table([compare(RECORDS, "with_reasoning", "action_only")])
    assert compared.loc["average", "difference, points"] == "+37.5"
    assert compared.loc["average", "only with reasoning loss"] == 6


def test_published_tables_carry_their_marks() -> None:
    table = published_table(PUBLISHED, "ReFineVLA Table 1", "visual_matching")
    assert table.loc["ReFineVLA", "average"] == "47.7"
    assert (
        table.loc["ReFineVLA", "mark"] == "secondary"
        and table.loc["SpatialVLA (fine-tuning)", "mark"] == "primary"
    )


def test_published_and_own_results_stand_in_one_table_with_intervals() -> None:
    table = results_table(published_scores(PUBLISHED), summarise(RECORDS))
    assert table.index[0] == ("published", "ReFineVLA") and list(table.index)[-2:] == [
        ("this kit", "actions only"),
        ("this kit", "with reasoning loss"),
    ]
    assert table.loc[("published", "ReFineVLA"), "spoon on towel"] == "38.1 % (21-59)"
    assert table.loc[("this kit", "actions only"), "stack cubes"] == ""
    assert table.loc[("this kit", "actions only"), AVERAGE] == "", "of two tasks, beside averages of four"
    whole = results_table(published_scores(PUBLISHED), summarise(ALL_FOUR))
    assert whole.loc[("this kit", "actions only"), AVERAGE].startswith("37.5 %")
    assert list(table["mark"])[:2] == ["secondary", "primary"]


def test_google_results_show_the_published_rows_and_the_published_average() -> None:
    wins = {"pick_coke_can": 6, "move_near": 2, "open_close_drawer": 0}
    records = [
        row("a", episode, episode < wins[group], task=task, variant="table_1")
        for group in wins
        for task in GROUPS[group].tasks
        for episode in range(8)
    ]
    scores = summarise(records)
    assert shown_tasks(scores) == [*wins, AVERAGE, PUBLISHED_AVERAGE]
    table = results_table(published_scores(PUBLISHED, "google_robot", VARIANT_AGGREGATION), scores)
    assert list(table.columns[:4]) == ["pick coke can", "move near", "open or close drawer", "average"]
    assert table.loc[("this kit", "a"), "average"].startswith("41.7 %"), "3 x 75 + 25 + 2 x 0, of 6"
    assert (
        published_results(published_scores(PUBLISHED, "google_robot", VARIANT_AGGREGATION), scores)
        .axes[-1]
        .get_title(loc="left")
        == AVERAGE
    )


def test_claims_and_inconsistencies_are_listed_with_their_verdicts() -> None:
    table = claims_table(claims(PUBLISHED))
    assert table.loc["WidowX average, over SpatialVLA", "verdict"] == "not resolved"
    assert table.loc["WidowX average, over the second best", "paper"] == "v1"
    found = inconsistency_table(inconsistencies(PUBLISHED))
    assert "21 episodes a task" in set(found.loc["ReFineVLA Table 1", "the row fits"])


def test_what_so_many_episodes_can_tell_is_one_table_and_one_picture() -> None:
    table = resolution_table(0.427, (24, 1555), discordant=(0.2,))
    assert (
        table.loc["1,555", "independent episodes"] == "5.0"
        and table.loc["24", "the same, differing on 20%"] == "none"
    )
    lines = {
        line.get_color(): line for line in resolvable_gains(0.427).axes[0].lines if len(line.get_xdata()) > 2
    }
    assert len(lines) == 3
    for line in lines.values():
        assert (line.get_ydata()[1:] < line.get_ydata()[:-1]).all(), "more episodes find smaller gains"


def test_variants_lie_at_their_rates_and_differences() -> None:
    wins = {"base": 6, "dark": 3, "wood": 7}
    records = [
        replace(row("action_only", episode, episode < won, variant=name), setting=VARIANT_AGGREGATION)
        for name, won in wins.items()
        for episode in range(8)
    ]
    scores, changes = summarise_variants(records), against_base(records, "action_only")
    left, right = variant_rates(scores, {"action_only": changes}).axes
    dots = [
        [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"] for axes in (left, right)
    ]
    assert dots == [pytest.approx([6 / 8, 3 / 8, 7 / 8]), pytest.approx([-3 / 8, 1 / 8])]
    assert [tick.get_text() for tick in left.get_yticklabels()] == list(wins)


def test_published_and_own_results_share_one_picture() -> None:
    figure = published_results(published_scores(PUBLISHED), summarise(ALL_FOUR))
    assert [axes.get_title(loc="left") for axes in figure.axes][-1] == AVERAGE
    rows = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert rows[0] == "ReFineVLA" and rows[-2:] == ["actions only, this kit", "with reasoning loss, this kit"]
    dots = [round(line.get_xdata()[0], 3) for line in figure.axes[-1].lines if line.get_marker() == "o"]
    assert dots[0] == 0.477 and dots[-2:] == [0.375, 0.75]
    partial = published_results(published_scores(PUBLISHED), summarise(RECORDS)).axes[-1]
    assert [round(line.get_xdata()[0], 3) for line in partial.lines if line.get_marker() == "o"] == dots[:-2]


def test_claims_are_filled_only_where_both_intervals_exclude_zero() -> None:
    found = claims(PUBLISHED)
    dots = [line for line in claim_intervals(found).axes[0].lines if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() != "white" for dot in dots] == [
        claim.verdict in ("supported", "the opposite") for claim in found
    ]


def test_the_leaderboard_shows_every_row_once_and_marks_two_models() -> None:
    rows = load_leaderboard()
    found = standings(PUBLISHED, rows)
    for axes, one in zip(leaderboard(found).axes, found, strict=True):
        drawn = {y: x for dots in axes.collections for x, y in dots.get_offsets()}
        assert drawn == {place: value.rate for place, (_, value) in enumerate(one.rows, 1)}
        (ours,) = [line for line in axes.lines if line.get_marker() == "o"]
        assert (ours.get_xdata()[0], ours.get_ydata()[0]) == (one.ours.rate, one.place)
        (text,) = [text.get_text() for text in axes.texts]
        assert f"place {one.place} of {len(one.rows) + 1}" in text
    table = standing_table(found)
    assert list(table["rows of other tasks, left out"]) == [one.left_out for one in found]
    assert set(table["mark"]) == {"secondary"}


def test_the_table_of_spreads_says_what_is_known_of_its_own_column_only() -> None:
    table = spread_table(spreads(load_leaderboard()))
    row = table[table["column"] == "Google Robot, variant aggregation"].loc["RT-1"]
    assert (row["lowest, %"], row["highest, %"]) == ("57.4", "89.7")
    assert row["the highest is"] == "repeated, 1 task"


def test_training_curves_show_each_policy_and_split(tmp_path: Path) -> None:
    for policy in ("action_only", "with_reasoning"):
        (tmp_path / policy).mkdir()
        rows = [
            {"step": step, "split": split, "policy": policy, "action_l1": 1 / (1 + step)}
            for split in ("train", "validation")
            for step in range(4)
        ]
        rows.append(rows[-1] | {"split": "averaged", "action_l1": 0.2})
        (tmp_path / policy / "history.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    histories = load_histories(tmp_path)
    assert list(histories) == ["action_only", "with_reasoning"]
    (axes,) = training_curves(histories).axes
    assert len(axes.lines) == 6
    averaged, training = axes.lines[:2]
    assert list(training.get_ydata()) == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert averaged.get_marker() == "D" and list(averaged.get_ydata()) == [0.2]


def test_two_histories_of_one_policy_are_not_told_apart(tmp_path: Path) -> None:
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "history.jsonl").write_text('{"step": 1, "split": "train", "policy": "p"}\n')
    with pytest.raises(KitError, match="several histories of p -> give the folder of one run"):
        load_histories(tmp_path)


def test_a_foreign_history_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"epoch": [1]}).to_parquet(tmp_path / "history.parquet")
    with pytest.raises(KitError, match="no column policy, split, step"):
        load_histories(tmp_path)
    with pytest.raises(KitError, match="no training history"):
        load_histories(tmp_path / "absent")


def test_a_saved_picture_says_what_made_it_and_is_the_same_each_time(tmp_path: Path) -> None:
    source = tmp_path / "input.txt"
    source.write_text("numbers")
    pictures = [
        save_figure(success_bars(SCORES), tmp_path / name, {"records": source, "rule": "both"})
        for name in ("one", "two")
    ]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    made = json.loads((tmp_path / "one.json").read_text())
    assert made["made_from"] == {"records": source.as_posix(), "rule": "both"}
    assert list(made["sha256"]) == ["records"]


def test_pictures_whose_names_differ_behind_a_dot_are_two(tmp_path: Path) -> None:
    made = [save_figure(success_bars(SCORES), tmp_path / f"lambda_0.{tenth}", {}) for tenth in (1, 3)]
    assert [path.name for path in made] == ["lambda_0.1.png", "lambda_0.3.png"]
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["lambda_0.1.json", "lambda_0.3.json"]
    assert save_figure(success_bars(SCORES), tmp_path / "one.svg", {}) == tmp_path / "one.png"
