"""Figures show the numbers they are given: bars and dots lie at the rates, tables print the counts, files carry what made them."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.patches import Rectangle

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.published import claims, load_published, widowx_scores
from refinevla_kit.evaluation.statistics import AVERAGE, RULES, compare, summarise
from refinevla_kit.figures.paper import claim_intervals, widowx_results
from refinevla_kit.figures.saving import save_figure
from refinevla_kit.figures.success import paired_differences, success_bars
from refinevla_kit.figures.tables import claims_table, comparison_table, published_table, success_table
from refinevla_kit.figures.training_curves import load_histories, training_curves
from refinevla_kit.tasks import WIDOWX_TASKS
from tests.evaluation.rows import row

RECORDS = [
    row(policy, episode, success=episode < wins, success_any=episode < wins + 1, task=task.name)
    for policy, wins in (("action_only", 3), ("with_reasoning", 6))
    for task in WIDOWX_TASKS[:2]
    for episode in range(8)
]
SCORES = [score for rule in RULES for score in summarise(RECORDS, rule)]
PUBLISHED = load_published()


def test_bars_reach_the_rates_of_both_rules() -> None:
    (axes,) = success_bars(SCORES).axes
    heights = sorted(patch.get_height() for patch in axes.patches if isinstance(patch, Rectangle))
    assert heights == pytest.approx(sorted([3 / 8, 4 / 8, 6 / 8, 7 / 8] * 3))


def test_the_difference_is_drawn_where_it_is() -> None:
    comparison = compare(RECORDS, "with_reasoning", "action_only")
    (axes,) = paired_differences([comparison]).axes
    assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"] == [pytest.approx(3 / 8)]


def test_tables_print_counts_intervals_and_both_rules() -> None:
    table = success_table(SCORES)
    assert list(table.index) == [(policy, f"{rule} step") for policy in ("actions only", "with reasoning loss") for rule in RULES]
    assert table.loc[("actions only", "last step"), "spoon on towel"] == "3/8 = 38 % (14-69)"
    compared = comparison_table([compare(RECORDS, "with_reasoning", "action_only")])
    assert compared.loc["average", "difference, points"] == "+37.5"
    assert compared.loc["average", "only with reasoning loss"] == 6


def test_published_tables_carry_their_marks() -> None:
    table = published_table(PUBLISHED, "ReFineVLA Table 1", "visual_matching")
    assert table.loc["ReFineVLA", "average"] == "47.7"
    assert table.loc["ReFineVLA", "mark"] == "secondary" and table.loc["SpatialVLA (fine-tuning)", "mark"] == "primary"
    assert claims_table(claims(PUBLISHED)).loc["WidowX average, over SpatialVLA", "above zero"] == "no"


def test_published_and_own_results_share_one_picture() -> None:
    figure = widowx_results(widowx_scores(PUBLISHED), [score for score in SCORES if score.rule == "last"])
    assert [axes.get_title(loc="left") for axes in figure.axes][-1] == AVERAGE
    rows = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert rows[0] == "ReFineVLA" and rows[-2:] == ["actions only, this kit", "with reasoning loss, this kit"]
    dots = [round(line.get_xdata()[0], 3) for line in figure.axes[-1].lines if line.get_marker() == "o"]
    assert dots[0] == round(40 / 84, 3) and dots[-2:] == [0.375, 0.75]


def test_claims_are_filled_only_where_the_interval_excludes_zero() -> None:
    found = claims(PUBLISHED)
    dots = [line for line in claim_intervals(found).axes[0].lines if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() != "white" for dot in dots] == [claim.supported for claim in reversed(found)]


def test_training_curves_show_each_policy_and_split(tmp_path: Path) -> None:
    for policy in ("action_only", "with_reasoning"):
        (tmp_path / policy).mkdir()
        rows = [
            {"step": step, "split": split, "policy": policy, "action_l1": 1 / (1 + step)} for split in ("train", "validation") for step in range(4)
        ]
        (tmp_path / policy / "history.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    histories = load_histories(tmp_path)
    assert list(histories) == ["action_only", "with_reasoning"]
    (axes,) = training_curves(histories).axes
    assert len(axes.lines) == 4
    assert list(axes.lines[0].get_ydata()) == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])


def test_a_foreign_history_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"epoch": [1]}).to_parquet(tmp_path / "history.parquet")
    with pytest.raises(KitError, match="no column policy, split, step"):
        load_histories(tmp_path)
    with pytest.raises(KitError, match="no training history"):
        load_histories(tmp_path / "absent")


def test_a_saved_picture_says_what_made_it_and_is_the_same_each_time(tmp_path: Path) -> None:
    source = tmp_path / "input.txt"
    source.write_text("numbers")
    pictures = [save_figure(success_bars(SCORES), tmp_path / name, {"records": source, "rule": "both"}) for name in ("one", "two")]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    made = json.loads((tmp_path / "one.json").read_text())
    assert made["made_from"] == {"records": source.as_posix(), "rule": "both"}
    assert list(made["sha256"]) == ["records"]
