"""The paper's numbers as pictures and as tables, with the intervals their episode counts give them, beside
the kit's own. Tables are data frames of text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from refinevla_kit.evaluation.intervals import Rate, rate, resolvable_gain
from refinevla_kit.evaluation.published import (
    TABLE_1,
    TABLE_2,
    TABLE_3,
    Claim,
    Inconsistency,
    Published,
    select,
)
from refinevla_kit.evaluation.records import EpisodeRecord
from refinevla_kit.evaluation.statistics import AVERAGE, PUBLISHED_AVERAGE, Score, shown_tasks, summarise
from refinevla_kit.evaluation.training_seeds import as_one_policy, compare_seeds
from refinevla_kit.figures.style import (
    BLUE,
    DASHED,
    GREEN,
    GREY,
    INK,
    MUTED,
    VERMILION,
    beside,
    canvas,
    colours,
    dot,
    interval_text,
    label,
    markdown,
    per_cent,
    points,
    points_text,
    rate_text,
)
from refinevla_kit.files import replacing, write_json
from refinevla_kit.tasks import SETTINGS, VARIANT_AGGREGATION, VISUAL_MATCHING, WIDOWX_TASKS, find_task

MARK, SECONDARY, OWN = "mark", "secondary", "this kit"
FIGURE_8 = "ReFineVLA Figure 8"
PEAKS = {"lambda": "lambda_reasoning", "frozen": "freeze_layers"}  # in its task's name -> what was varied
GOOGLE = ("pick_coke_can", "move_near", "open_close_drawer", AVERAGE)
ABLATION = ("action_only", "shuffled_rationales", "with_reasoning")
MINUS = "minus actions only"


def published_results(published: Sequence[Score], own: Sequence[Score] = ()) -> Figure:
    """Published success and the kit's own, one line a model, one panel a row of the published table, each
    with its 95 % interval.

    Args:
        published: from `published.published_scores`; ordered here by their average, best on top.
        own: from `statistics.summarise`, one rule and setting; shown below a rule, because base models, data
            and assets differ. Their average is the one with the published weights.
    """
    rates = {(score.policy, score.task): score.rate for score in [*published, *own]}
    rates |= {(score.policy, AVERAGE): score.rate for score in own if score.task == PUBLISHED_AVERAGE}
    best = {score.policy: -score.rate.rate for score in published if score.task == AVERAGE}
    theirs = sorted(dict.fromkeys(score.policy for score in published), key=lambda model: best.get(model, 1))
    ours = list(dict.fromkeys(score.policy for score in own))
    tasks = shown_tasks(published)
    places = {model: -float(index) for index, model in enumerate(theirs)}
    places |= {model: -len(theirs) - index - 0.6 for index, model in enumerate(ours)}
    colour = {model: VERMILION if model == "ReFineVLA" else GREY for model in theirs} | colours(ours)
    with canvas(11.0, 1.0 + 0.27 * len(places), columns=len(tasks), sharey=True) as (figure, panels):
        for axes, task in zip(panels, tasks, strict=True):
            for model, y in places.items():
                if found := rates.get((model, task)):
                    dot(axes, y, found.rate, (found.low, found.high), colour[model])
            axes.set_title(label(task))
            axes.set(xlim=(-0.03, 1.03), xticks=[0, 0.5, 1])
            per_cent(axes.xaxis)
            axes.grid(axis="y", visible=False)
            if ours:
                axes.axhline(0.2 - len(theirs), color=INK, linewidth=0.6)
        names = [f"{label(model)}, this kit" if model in ours else model for model in places]
        panels[0].set_yticks([*places.values()], names)
        for tick, model in zip(panels[0].get_yticklabels(), places, strict=True):
            tick.set_color(colour[model] if colour[model] != GREY else INK)
        text = "success, with its 95 % interval; models by their average, those without one last"
        figure.supxlabel(text, fontsize=8, color=MUTED)
    return figure


def claim_intervals(claims: Sequence[Claim]) -> Figure:
    """Each published gain with the interval its counts allow: thick for independent episodes, thin where a
    start's variants always fare alike.

    Coloured where the first excludes zero, filled where both do.
    """
    names = [claim.name + (" (v1)" if claim.version == "v1" else "") for claim in reversed(claims)]
    with canvas(9.6, 1.5 + 0.28 * len(claims)) as (figure, (axes,)):
        for y, claim in enumerate(reversed(claims)):
            colour = GREY if claim.low <= 0 <= claim.high else VERMILION if claim.supported else BLUE
            full = colour != GREY and not claim.widest[0] <= 0 <= claim.widest[1]
            thick: dict[str, Any] = {"linewidth": 4.0, "alpha": 0.45, "solid_capstyle": "butt"}
            axes.plot(claim.widest, [y, y], color=colour, linewidth=1.0)
            axes.plot([claim.low, claim.high], [y, y], color=colour, **thick)
            middle = colour if full else "white"
            axes.plot(claim.difference, y, "o", color=colour, markerfacecolor=middle, markersize=7)
            beside(axes, y, points_text(claim.difference), f"{claim.needed:,}")
        beside(axes, len(claims) - 0.1, "gain", "needs", color=MUTED)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(claims)), names)
        axes.set_ylim(-0.6, len(claims) - 0.4)
        points(axes)
        axes.grid(axis="y", visible=False)
        text = (
            "Thick: 95 % interval if all episodes are independent; thin: if only starts count. "
            "Coloured where the thick one excludes zero,\n"
            "filled where both do. Needs: independent episodes a side that would find such a gain "
            "four times in five."
        )
        figure.suptitle(text, x=0.01, ha="left", fontsize=8.5, color=MUTED)
    return figure


def resolvable_gains(
    base: float = 0.45, gain: float = 0.05, gain_name: str = "ReFineVLA on\nthe WidowX, +5.0"
) -> Figure:
    """The smallest gain over a success rate of `base` that so many episodes find four times in five, for
    independent and for shared episodes.

    A line begins where there are enough episodes to find any gain at all. Policies that fail independently
    gain nothing from sharing episodes.

    Args:
        base: success rate.
        gain: a gain to read off, drawn across; the published one by default.
        gain_name: what it is called.
    """
    sizes = np.unique(np.geomspace(12, 5000, 200).astype(int))
    ways = {
        "independent": (None, INK),
        "shared, 20 % differ": (0.2, BLUE),
        "shared, 10 % differ": (0.1, GREEN),
    }
    with canvas(7.4, 4.2) as (figure, (axes,)):
        for name, (discordant, colour) in ways.items():
            gains = [resolvable_gain(base, int(size), discordant) for size in sizes]
            known = [(size, found) for size, found in zip(sizes, gains, strict=True) if found is not None]
            axes.plot(*zip(*known), color=colour)
            if discordant:
                look: dict[str, Any] = {"fontsize": 8.5, "color": colour, "ha": "right", "va": "center"}
                axes.plot(*known[0], "o", color=colour, markersize=5)
                axes.annotate("fewer find none", known[0], (-6, -9), textcoords="offset points", **look)
            axes.text(5400, known[-1][1], name, color=colour, fontsize=9, va="center")
        axes.axhline(gain, color=VERMILION, linewidth=1.0, linestyle=DASHED)
        axes.text(5400, gain, gain_name, color=VERMILION, fontsize=9, va="center")
        for size, name in ((24, "24: one task"), (96, "96: four tasks")):
            axes.axvline(size, color=MUTED, linewidth=0.8)
            axes.text(size * 1.05, 0.57, name, fontsize=9, color=MUTED, va="top")
        axes.set(xscale="log", yscale="log", xlim=(12, 5000), ylim=(0.01, 0.6))
        axes.set_xlabel("episodes of each policy: independent, or shared by the two")
        axes.minorticks_off()
        shown = [24, 96, 300, 1000, 3000]
        axes.set_xticks(shown, [f"{size:,}" for size in shown])
        marks = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]
        axes.set_yticks(marks, [f"+{100 * mark:.0f}" for mark in marks])
        title = f"smallest gain over {base:.0%} that is found four times in five, points"
        axes.set_title(title, fontweight="normal", fontsize=9, color=MUTED)
    return figure


def claims_table(claims: Sequence[Claim]) -> pd.DataFrame:
    """The published gains and what their episode counts support."""
    rows = [
        {
            "gain": claim.name,
            "paper": claim.version,
            "rates, %": f"{100 * claim.a.rate:.1f} against {100 * claim.b.rate:.1f}",
            "episodes": f"{claim.a.episodes:,} and {claim.b.episodes:,}",
            "gain, points": points_text(claim.difference),
            "95 % interval": interval_text(claim.low, claim.high),
            "if only starts count": interval_text(*claim.widest),
            "verdict": claim.verdict,
            "episodes a side it needs": f"{claim.needed:,}",
            MARK: claim.tier,
            "assumed": claim.assumed,
        }
        for claim in claims
    ]
    return pd.DataFrame(rows).set_index("gain")


def inconsistency_table(found: Sequence[Inconsistency]) -> pd.DataFrame:
    """The printed numbers that cannot be what they should be, one line each."""
    rows = [
        {
            "table": one.number.table,
            "setting": label(one.number.setting),
            "model": one.number.model,
            "number": f"{one.number.metric}, {label(one.number.task)}",
            "printed, %": f"{one.number.value:.1f}",
            "but": one.why,
            "the row fits": f"{one.fits} episodes a task" if one.fits else "",
            MARK: one.number.tier,
        }
        for one in found
    ]
    return pd.DataFrame(rows).set_index("table")


def resolution_table(
    base: float = 0.45,
    episodes: Sequence[int] = (24, 96, 300, 1000, 3000),
    discordant: Sequence[float] = (0.2, 0.1),
) -> pd.DataFrame:
    """What so many episodes can tell: the smallest gain over a success rate of `base` that they find four
    times in five, in percentage points.

    Args:
        base: success rate.
        episodes: of each policy; a row each.
        discordant: shares of the episodes on which the two policies differ, where both play the same ones; a
            column each.
    """
    ways = {"independent episodes": None, "the same, failing independently": 2 * base * (1 - base)}
    ways |= {f"the same, differing on {share:.0%}": share for share in discordant}
    columns = {}
    for name, share in ways.items():
        gains = [resolvable_gain(base, size, share) for size in episodes]
        columns[name] = ["none" if gain is None else f"{100 * gain:.1f}" for gain in gains]
    return pd.DataFrame(columns, pd.Index([f"{size:,}" for size in episodes], name="episodes a policy"))


def published_table(
    numbers: Sequence[Published], table: str, setting: str, metric: str = "success"
) -> pd.DataFrame:
    """A published table as printed: models by tasks, per cent, and the mark of its weakest cell."""
    chosen = select(numbers, table=table, setting=setting, metric=metric)
    rows = _printed([(number, label(number.task)) for number in chosen])
    frame = pd.DataFrame.from_dict(rows, orient="index").fillna("")
    return frame[[column for column in frame if column != MARK] + [MARK]] if len(frame) else frame


def table_1(published: Sequence[Published], own: Sequence[EpisodeRecord]) -> pd.DataFrame:
    """The paper's Table 1, WidowX: models by tasks, each with grasp and success, and the average success; per
    cent. Ours: success at the last step, Wilson intervals.

    Args:
        published: the printed numbers.
        own: of visual matching.
    """
    tasks = [task.name for task in WIDOWX_TASKS]
    columns = [(task, metric) for task in tasks for metric in ("grasp", "success")] + [(AVERAGE, "success")]
    numbers = []
    for metric in ("grasp", "success"):
        numbers += select(published, table=TABLE_1, setting=VISUAL_MATCHING, metric=metric)
    rows = _printed([(number, (number.task, number.metric)) for number in numbers])
    own = [record for record in own if record.setting == VISUAL_MATCHING]
    for policy in dict.fromkeys(record.policy for record in own):
        played = [record for record in own if record.policy == policy]
        cells: dict[Any, str] = {(score.task, "success"): _cell(score.rate) for score in summarise(played)}
        for task in tasks:
            if grasped := [record.grasped for record in played if record.task == task]:
                cells[task, "grasp"] = _cell(rate(sum(grasped), len(grasped)))
        rows[label(policy)] = cells | {MARK: f"{OWN}, {len(played)} episodes"}
    return _frame(rows, columns)


def table_2(published: Sequence[Published], own: Sequence[EpisodeRecord] = ()) -> pd.DataFrame:
    """The paper's Table 2, Google Robot: models by tasks in both settings; per cent.

    Args:
        published: the printed numbers.
        own: of any robot; those of this one get a row a policy, their average with the published weights.
            The demonstrator sees the simulator's state: its row is the ceiling.
    """
    columns = [(setting, task) for setting in SETTINGS for task in GOOGLE]
    rows = _by_setting(published, TABLE_2)
    own = [record for record in own if find_task(record.task).robot == "google_robot"]
    for policy in dict.fromkeys(record.policy for record in own):
        played = [record for record in own if record.policy == policy]
        scores = {(score.setting, score.task): score.rate for score in summarise(played)}
        cells: dict[Any, str] = {}
        for setting, task in columns:
            key = setting, PUBLISHED_AVERAGE if task == AVERAGE else task
            if key in scores:
                cells[setting, task] = _cell(scores[key])
        rows[label(policy)] = cells | {MARK: f"{OWN}, {len(played)} episodes"}
    return _frame(rows, columns)


def table_3(published: Sequence[Published], own: Sequence[EpisodeRecord]) -> pd.DataFrame:
    """The paper's Table 3, the ablation: with and without the reasoning loss, in both settings. The paper's
    is of the Google Robot, ours of the WidowX over several seeds.

    Args:
        published: the printed numbers.
        own: of a controlled experiment, `policy` an arm's name. Its difference to the control is Student's t
            over seeds.
    """
    tasks, control = ("move_near", "open_close_drawer", AVERAGE), ABLATION[0]
    columns = [(setting, task) for setting in SETTINGS for task in tasks]
    columns += [(setting, MINUS) for setting in SETTINGS]
    rows = _by_setting(published, TABLE_3)
    for policy in ABLATION:
        played = as_one_policy(record for record in own if record.policy == policy)
        if not played:
            continue
        scores = [score for score in summarise(played) if score.task == AVERAGE]
        cells: dict[Any, str] = {(score.setting, AVERAGE): _cell(score.rate) for score in scores}
        for setting in (VISUAL_MATCHING, VARIANT_AGGREGATION):
            here = [record for record in own if record.setting == setting]
            seeds, others = ({one.seed for one in here if one.policy == name} for name in (policy, control))
            if policy != control and seeds & others:
                found = compare_seeds(own, policy, control, setting=setting).estimate
                interval = f" ({interval_text(found.low, found.high)})" if found.known else ""
                cells[setting, MINUS] = f"{points_text(found.mean)}{interval}"
        runs = len({record.seed for record in played})
        mark = f"{OWN}, {runs} training runs, {len(played):,} episodes"
        rows[f"{label(policy)} (WidowX)"] = cells | {MARK: mark}
    return _frame(rows, columns)


def save_table(frame: pd.DataFrame, path: str | Path, made_from: Mapping[str, Any]) -> Path:
    """Write a table as Markdown and, beside it, a JSON with what made it and its cells. Returns the
    Markdown's path.
    """
    path = Path(path).with_suffix(".md")
    heads = [" ".join(column).strip() if isinstance(column, tuple) else str(column) for column in frame]
    rows = {str(name): list(map(str, row)) for name, row in zip(frame.index, frame.to_numpy(), strict=True)}
    with replacing(path) as part:
        text = markdown(["", *heads], [[name, *row] for name, row in rows.items()])
        part.write_text(text + "\n", encoding="utf-8")
    values = {name: str(value) if isinstance(value, Path) else value for name, value in made_from.items()}
    cells = {name: dict(zip(heads, row, strict=True)) for name, row in rows.items()}
    write_json(path.with_suffix(".json"), {"table": path.name, "made_from": values, "cells": cells})
    return path


def peaks(published: Sequence[Published]) -> dict[str, str]:
    """Figure 8: what was varied (`paper_figures.FACTORS`) -> the paper's peak in words. The figure's other
    points are not known.
    """
    found = {}
    for word, factor in PEAKS.items():
        for one in published:
            if one.table == FIGURE_8 and word in one.task:
                place = one.task.replace("_", " ")
                found[factor] = f"the paper ({one.tier}): {one.percent:+.1f} points at\n{place}"
    return found


def _by_setting(published: Sequence[Published], table: str) -> dict[str, dict[Any, str]]:
    numbers = []
    for setting in SETTINGS:
        numbers += select(published, table=table, setting=setting, metric="success")
    return _printed([(number, (number.setting, number.task)) for number in numbers])


def _printed(numbers: Sequence[tuple[Published, Any]]) -> dict[str, dict[Any, str]]:
    """Model -> column -> what is printed, of numbers with their columns; the mark is that of the weakest
    cell.
    """
    rows: dict[str, dict[Any, str]] = {}
    for number, column in numbers:
        row = rows.setdefault(number.model, {})
        row[column] = f"{number.value:.1f}"
        row[MARK] = SECONDARY if SECONDARY in (number.tier, row.get(MARK)) else number.tier
    return rows


def _frame(rows: Mapping[str, Mapping[Any, str]], columns: Sequence[tuple[str, str]]) -> pd.DataFrame:
    heads = [(label(first), label(second)) for first, second in columns]
    cells = [[row.get(column, "") for column in [*columns, MARK]] for row in rows.values()]
    return pd.DataFrame(cells, list(rows), pd.MultiIndex.from_tuples([*heads, (MARK, "")]))


def _cell(value: Rate) -> str:
    return rate_text(value, counts=False, decimals=1)
