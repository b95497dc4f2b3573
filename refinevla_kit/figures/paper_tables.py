"""The paper's Tables 1 to 3 in their own layout, printed numbers with their mark, the kit's rows below with
95 % intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from refinevla_kit.evaluation.intervals import Rate, rate
from refinevla_kit.evaluation.published import TABLE_1, TABLE_2, TABLE_3, Published, select
from refinevla_kit.evaluation.records import EpisodeRecord
from refinevla_kit.evaluation.statistics import AVERAGE, summarise
from refinevla_kit.evaluation.training_seeds import as_one_policy, compare_seeds
from refinevla_kit.figures.style import label
from refinevla_kit.figures.tables import interval_text, markdown, rate_text
from refinevla_kit.files import replacing, write_json
from refinevla_kit.tasks import SETTINGS, VARIANT_AGGREGATION, VISUAL_MATCHING, WIDOWX_TASKS

MARK = "mark"
OWN, FIGURE_8 = "this kit", "ReFineVLA Figure 8"
GOOGLE = ("pick_coke_can", "move_near", "open_close_drawer", AVERAGE)
ABLATION = ("action_only", "shuffled_rationales", "with_reasoning")


def table_1(published: Sequence[Published], own: Sequence[EpisodeRecord]) -> pd.DataFrame:
    """WidowX: models by tasks, each with grasp and success, and the average success; per cent. Ours: success
    at the last step, Wilson intervals.

    Args:
        own: of visual matching.
    """
    tasks = [task.name for task in WIDOWX_TASKS]
    columns = [(task, metric) for task in tasks for metric in ("grasp", "success")] + [(AVERAGE, "success")]
    numbers = [
        one
        for metric in ("grasp", "success")
        for one in select(published, table=TABLE_1, setting=VISUAL_MATCHING, metric=metric)
    ]
    rows = _printed(numbers, {(one.task, one.metric): one for one in numbers}.keys())
    for policy in dict.fromkeys(one.policy for one in own):
        played = [one for one in own if one.policy == policy and one.setting == VISUAL_MATCHING]
        if played:
            cells = {(score.task, "success"): score.rate for score in summarise(played)}
            for task in tasks:
                if grasped := [one.grasped for one in played if one.task == task]:
                    cells[task, "grasp"] = rate(sum(grasped), len(grasped))
            rows[label(policy)] = {key: _cell(value) for key, value in cells.items()} | {
                MARK: f"{OWN}, {len(played)} episodes"
            }
    return _frame(rows, columns)


def table_2(published: Sequence[Published]) -> pd.DataFrame:
    """Google Robot: models by tasks in both settings; per cent. The kit has no row: its compact policy is of
    the WidowX.
    """
    numbers = [
        one
        for setting in SETTINGS
        for one in select(published, table=TABLE_2, setting=setting, metric="success")
    ]
    columns = [(setting, task) for setting in SETTINGS for task in GOOGLE]
    return _frame(_printed(numbers, columns, by_setting=True), columns)


def table_3(published: Sequence[Published], own: Sequence[EpisodeRecord]) -> pd.DataFrame:
    """The ablation: with and without the reasoning loss, in both settings. The paper's is of the Google
    Robot, ours of the WidowX over several seeds.

    Args:
        own: of a controlled experiment, `policy` an arm's name. Its difference to the control is Student's t
            over seeds.
    """
    columns = [
        (setting, task) for setting in SETTINGS for task in ("move_near", "open_close_drawer", AVERAGE)
    ] + [(setting, "minus actions only") for setting in SETTINGS]
    numbers = [
        one
        for setting in SETTINGS
        for one in select(published, table=TABLE_3, setting=setting, metric="success")
    ]
    rows = _printed(numbers, columns, by_setting=True)
    present = {one.policy for one in own}
    for policy in (name for name in ABLATION if name in present):
        played = as_one_policy(one for one in own if one.policy == policy)
        cells: dict[Any, str] = {
            (score.setting, AVERAGE): _cell(score.rate)
            for score in summarise(played)
            if score.task == AVERAGE
        }
        for setting in (VISUAL_MATCHING, VARIANT_AGGREGATION):
            both = [
                {one.seed for one in own if one.policy == name and one.setting == setting}
                for name in (policy, ABLATION[0])
            ]
            if policy != ABLATION[0] and both[0] & both[1]:
                found = compare_seeds(own, policy, ABLATION[0], setting=setting).estimate
                interval = f" ({interval_text(found.low, found.high)})" if found.known else ""
                cells[setting, "minus actions only"] = f"{100 * found.mean:+.1f}{interval}"
        seeds = len({one.seed for one in played})
        rows[f"{label(policy)} (WidowX)"] = cells | {
            MARK: f"{OWN}, {seeds} training runs, {len(played):,} episodes"
        }
    return _frame(rows, columns)


def save_table(frame: pd.DataFrame, path: str | Path, made_from: Mapping[str, Any]) -> Path:
    """Write a table as Markdown and, beside it, a JSON with what made it and its cells. Returns the
    Markdown's path.
    """
    path = Path(path).with_suffix(".md")
    heads = [
        "",
        *(
            " ".join(map(str, column)).strip() if isinstance(column, tuple) else str(column)
            for column in frame.columns
        ),
    ]
    rows = [
        [str(name), *map(str, row)] for name, row in zip(frame.index, frame.to_numpy().tolist(), strict=True)
    ]
    with replacing(path) as part:
        part.write_text(markdown(heads, rows) + "\n", encoding="utf-8")
    values = {name: str(value) if isinstance(value, Path) else value for name, value in made_from.items()}
    cells = {row[0]: dict(zip(heads[1:], row[1:], strict=True)) for row in rows}
    write_json(path.with_suffix(".json"), {"table": path.name, "made_from": values, "cells": cells})
    return path


def _printed(
    numbers: Sequence[Published], columns: Any, by_setting: bool = False
) -> dict[str, dict[Any, str]]:
    """Model -> column -> what is printed; the mark is that of the weakest cell."""
    rows: dict[str, dict[Any, str]] = {}
    for one in numbers:
        key = (one.setting, one.task) if by_setting else (one.task, one.metric)
        if key in columns and one.value is not None:
            row = rows.setdefault(one.model, {})
            row[key] = f"{one.value:.1f}"
            row[MARK] = "secondary" if "secondary" in (one.tier, row.get(MARK)) else one.tier
    return rows


def _frame(rows: Mapping[str, Mapping[Any, str]], columns: Sequence[tuple[str, str]]) -> pd.DataFrame:
    heads = pd.MultiIndex.from_tuples(
        [(label(first), label(second)) for first, second in columns] + [(MARK, "")]
    )
    return pd.DataFrame(
        [[row.get(column, "") for column in [*columns, MARK]] for row in rows.values()], list(rows), heads
    )


def _cell(value: Rate) -> str:
    return rate_text(value, counts=False, decimals=1)


def peaks(published: Sequence[Published]) -> dict[str, str]:
    """Figure 8: what was varied (`experiment.FACTORS`) -> the paper's peak in words. The figure's other
    points are not known.
    """
    factors = {"lambda": "lambda_reasoning", "frozen": "freeze_layers"}
    found = {
        factor: one
        for word, factor in factors.items()
        for one in published
        if one.table == FIGURE_8 and word in one.task
    }
    return {
        factor: f"the paper ({one.tier}): {one.percent:+.1f} points at\n{one.task.replace('_', ' ')}"
        for factor, one in found.items()
    }
