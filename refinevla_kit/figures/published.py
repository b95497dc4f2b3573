"""The paper's numbers as pictures and as tables, with the intervals their episode counts give them, beside
the kit's own. Tables are data frames of text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from refinevla_kit.evaluation.intervals import Rate, rate, resolvable_gain
from refinevla_kit.evaluation.published import (
    BASE,
    OURS,
    TABLE_1,
    TABLE_2,
    TABLE_3,
    Claim,
    Inconsistency,
    Published,
    Spread,
    Standing,
    published_scores,
    select,
)
from refinevla_kit.evaluation.records import EpisodeRecord, load_records
from refinevla_kit.evaluation.statistics import (
    AVERAGE,
    PUBLISHED_AVERAGE,
    Rule,
    Score,
    shown_tasks,
    summarise,
)
from refinevla_kit.evaluation.training_seeds import as_one_policy, by_seed, difference_over_seeds
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
    name_lines,
    note,
    per_cent,
    points,
    points_text,
    rate_text,
    rows_by,
    text_table,
)
from refinevla_kit.files import read_json
from refinevla_kit.tasks import SETTINGS, VARIANT_AGGREGATION, VISUAL_MATCHING, WIDOWX_TASKS, find_task

MARK, SECONDARY, OWN = "mark", "secondary", "this kit"
CLAIMED_GAIN = 0.05  # of ReFineVLA on the WidowX
FIGURE_8 = "ReFineVLA Figure 8"
PEAKS = {"lambda": "lambda_reasoning", "frozen": "freeze_layers"}  # in its task's name -> what was varied
GOOGLE = ("pick_coke_can", "move_near", "open_close_drawer", AVERAGE)
ABLATION = ("action_only", "shuffled_rationales", "with_reasoning")
MINUS = "minus actions only"
EXPERIMENTS: dict[str, Rule] = {"experiment": "last", "experiment_2": "named"}  # folder -> rule of success
COLUMN_NAMES = {
    "widowx_vm": "WidowX, visual matching",
    "google_vm": "Google Robot, visual matching",
    "google_va": "Google Robot, variant aggregation",
}
DOTS = (  # of the leaderboard: name, training or model, shape, colour, size
    ("trained by imitation", "imitation", "o", GREY, 14),
    ("not known", "unknown", "x", GREY, 14),
    ("by reinforcement learning", "rl", "^", INK, 50),
    (f"{BASE}, as various papers print it", BASE, "o", BLUE, 34),
)
RESULTS = {"widowx_results": ("widowx", VISUAL_MATCHING)}  # file -> robot and setting
RESULTS |= {f"google_{setting}": ("google_robot", setting) for setting in SETTINGS}
Rows = dict[Any, dict[Any, str]]  # of a table: name -> column -> text


def published_results(published: Sequence[Score], own: Sequence[Score] = ()) -> Figure:
    """Published success and the kit's own, one line a model, one panel a row of the published table, each
    with its 95 % interval.

    Args:
        published: from `published.published_scores`; ordered here by their average, best on top.
        own: from `statistics.summarise`, one rule and setting; shown below a rule, because base models, data
            and assets differ. Their average is the one with the published weights, of all published rows.
    """
    theirs, ours = _best_first(published), colours(score.policy for score in own)
    tasks = shown_tasks(published)
    rates = {(score.policy, _column(score)): score.rate for score in [*published, *_whole(own, tasks)]}
    names = [*theirs, *(f"{label(model)}, this kit" for model in ours)]
    colour = {model: VERMILION if model == "ReFineVLA" else GREY for model in theirs} | ours
    with canvas(11.0, 1.0 + 0.27 * len(names), columns=len(tasks), sharey=True) as (figure, panels):
        for axes, task in zip(panels, tasks, strict=True):
            for y, (model, shade) in enumerate(colour.items()):
                if (model, task) in rates:
                    dot(axes, y, rates[model, task].bounded, shade)
            axes.set(xlim=(-0.03, 1.03), xticks=[0, 0.5, 1], title=label(task))
            per_cent(axes.xaxis)
            axes.grid(axis="y", visible=False)
            if ours:
                axes.axhline(len(theirs) - 0.5, color=INK, linewidth=0.6)
        name_lines(panels[0], names)
        for tick, shade in zip(panels[0].get_yticklabels(), colour.values(), strict=True):
            tick.set_color(INK if shade == GREY else shade)
        text = "success, with its 95 % interval; models by their average, those without one last"
        figure.supxlabel(text, fontsize=8, color=MUTED)
    return figure


def results_table(published: Sequence[Score], own: Sequence[Score] = ()) -> pd.DataFrame:
    """The same as a table: per cent, 95 % interval, episodes and mark. Arguments of `published_results`."""
    order, rows = _best_first(published), dict[tuple[str, str], dict[str, str]]()
    tasks = shown_tasks(published)
    for score in [*sorted(published, key=lambda score: order.index(score.policy)), *_whole(own, tasks)]:
        group = "published" if score.mark else OWN
        row = rows.setdefault((group, label(score.policy)), {MARK: score.mark})
        if score.mark == SECONDARY:
            row[MARK] = SECONDARY
        row[_column(score)] = _cell(score.rate)
        if _column(score) == AVERAGE:
            row["episodes"] = f"{score.rate.episodes:,}"
    return text_table(rows, [*tasks, "episodes", MARK], ["", "success (95 % interval)"])


def all_results(
    numbers: Sequence[Published], own: Sequence[Score]
) -> Iterator[tuple[str, Figure, pd.DataFrame]]:
    """A name for the file, `published_results` and `results_table` of each of `RESULTS`.

    Args:
        numbers: the printed ones.
        own: the kit's on the WidowX, from `statistics.summarise`; shown beside its own setting.
    """
    for name, (robot, setting) in RESULTS.items():
        theirs = published_scores(numbers, robot, setting)
        ours = [score for score in own if robot == "widowx" and score.setting == setting]
        yield name, published_results(theirs, ours), results_table(theirs, ours)


def _best_first(published: Sequence[Score]) -> list[str]:
    """The models by their average; those without one are last."""
    best = {score.policy: -score.rate.rate for score in published if score.task == AVERAGE}
    return sorted(dict.fromkeys(score.policy for score in published), key=lambda model: best.get(model, 1))


def _whole(own: Sequence[Score], rows: Sequence[str]) -> list[Score]:
    """The kit's scores, of averages only those of all the published `rows`."""
    return [
        score
        for score in own
        if _column(score) != AVERAGE or {*rows} <= {each.task for each in own if each.policy == score.policy}
    ]


def _column(score: Score) -> str:
    """The column of the published tables; the average with their weights comes later, and so counts."""
    return AVERAGE if score.task == PUBLISHED_AVERAGE else score.task


def claim_intervals(claims: Sequence[Claim]) -> Figure:
    """Each published gain with the interval its counts allow: thick for independent episodes, thin where a
    start's variants always fare alike.

    Coloured where the first excludes zero, filled where both do.
    """
    text = (
        "Thick: 95 % interval if all episodes are independent; thin: if only starts count. "
        "Coloured where the thick one excludes zero,\n"
        "filled where both do. Needs: independent episodes a side that would find such a gain "
        "four times in five."
    )
    with canvas(9.6, 1.5 + 0.28 * len(claims), title=text) as (figure, (axes,)):
        for y, claim in enumerate(claims):
            colour = GREY if claim.low <= 0 <= claim.high else VERMILION if claim.supported else BLUE
            full = colour != GREY and not claim.widest[0] <= 0 <= claim.widest[1]
            axes.plot(claim.widest, [y, y], color=colour, linewidth=1.0)
            axes.hlines(y, claim.low, claim.high, color=colour, linewidth=4.0, alpha=0.45)
            middle = colour if full else "white"
            axes.plot(claim.difference, y, "o", color=colour, markerfacecolor=middle, markersize=7)
            beside(axes, y, points_text(claim.difference), f"{claim.needed:,}")
        beside(axes, -0.9, "gain", "needs", color=MUTED)
        name_lines(axes, [claim.name + (" (v1)" if claim.version == "v1" else "") for claim in claims])
        points(axes)
    return figure


def resolvable_gains(base: float = 0.45) -> Figure:
    """The smallest gain over a success rate of `base` that so many episodes find four times in five, for
    independent and for shared episodes.

    A line begins where there are enough episodes to find any gain at all. Policies that fail independently
    gain nothing from sharing episodes.

    The published gain is drawn across, to read off how many episodes it needs.
    """
    sizes = np.unique(np.geomspace(12, 5000, 200).astype(int))
    ways = (
        ("independent", None, INK),
        ("shared, 20 % differ", 0.2, BLUE),
        ("shared, 10 % differ", 0.1, GREEN),
    )
    with canvas(7.4, 4.2) as (figure, (axes,)):
        for name, discordant, colour in ways:
            gains = [resolvable_gain(base, int(size), discordant) for size in sizes]
            known = [(size, found) for size, found in zip(sizes, gains, strict=True) if found is not None]
            axes.plot(*zip(*known), color=colour, label=name)
            axes.plot(*zip(*known[:1]), "o", color=colour, markersize=5)
        published = f"ReFineVLA on the WidowX, {points_text(CLAIMED_GAIN)}"
        axes.axhline(CLAIMED_GAIN, color=VERMILION, linewidth=1.0, linestyle=DASHED, label=published)
        axes.legend(labelcolor="linecolor")
        for size, name in ((24, "24: one task"), (96, "96: four tasks")):
            axes.axvline(size, color=MUTED, linewidth=0.8)
            axes.text(size * 1.05, 0.011, name, fontsize=9, color=MUTED)
        axes.set(xscale="log", yscale="log", xlim=(12, 5000), ylim=(0.01, 0.6))
        axes.set_xlabel("episodes of each policy: independent, or shared by the two")
        axes.minorticks_off()
        shown, marks = [24, 96, 300, 1000, 3000], [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]
        axes.set_xticks(shown, [f"{size:,}" for size in shown])
        axes.set_yticks(marks, [f"+{100 * mark:.0f}" for mark in marks])
        note(axes, f"smallest gain over {base:.0%} that is found four times in five, points")
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
    return rows_by("gain", rows)


def leaderboard(standings: Sequence[Standing]) -> Figure:
    """All rows of the leaderboard, one panel a column, best on top; the shape is the training, the band the
    rows that cannot be told from ReFineVLA's.
    """
    title = (
        "Success of the rows of a third-party list, by place; band: cannot be told from ReFineVLA's at 95 %"
    )
    with canvas(11.0, 6.0, columns=len(standings), title=title) as (figure, panels):
        for axes, one in zip(panels, standings, strict=True):
            up, down = one.alike
            axes.axhspan(
                one.place - up - 0.5, one.place + down + 0.5, color=VERMILION, alpha=0.14, linewidth=0
            )
            kinds = [row["model"] if row["model"] == BASE else row["training"] for row, _ in one.rows]
            for name, kind, shape, colour, size in DOTS:
                places = [place for place, other in enumerate(kinds, 1) if other == kind]
                rates = [one.rows[place - 1][1].rate for place in places]
                axes.scatter(rates, places, s=size, c=colour, marker=shape, linewidths=0.9, label=name)
            dot(axes, one.place, one.ours.bounded, VERMILION)
            text = f"{OURS} {100 * one.ours.rate:.1f} %\nplace {one.place} of {len(one.rows) + 1}"
            text += f"\nin the band: {up} above, {down} below"
            axes.text(0.03, 0.96, text, color=VERMILION, va="top", fontsize=9, transform=axes.transAxes)
            axes.set(xlim=(0, 1.02), ylim=(len(one.rows) + 2, -1), title=COLUMN_NAMES[one.column])
            axes.set_yticks([1, *range(50, len(one.rows), 50)])
            per_cent(axes.xaxis)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(DOTS))
    return figure


def standing_table(standings: Sequence[Standing]) -> pd.DataFrame:
    """ReFineVLA's place in each column, and the rows that cannot be told from it."""
    rows = [
        {
            "column": COLUMN_NAMES[one.column],
            "ReFineVLA": _cell(one.ours),
            "place": f"{one.place} of {len(one.rows) + 1}",
            "of the models' best": "{} of {}".format(*one.place_of_models),
            "cannot be told from it": "{} above, {} below".format(*one.alike),
            "if only starts count": "{} above, {} below".format(*one.alike_starts),
            "rows of other tasks, left out": one.left_out,
            MARK: SECONDARY,
        }
        for one in standings
    ]
    return rows_by("column", rows)


def spread_table(spreads: Sequence[Spread]) -> pd.DataFrame:
    """One model's different numbers, and what the list says of the lowest and the highest."""
    rows = [
        {
            "model": one.low["model"],
            "column": COLUMN_NAMES[one.column],
            "lowest, %": f"{float(one.low[one.column]):.1f}",
            "highest, %": f"{float(one.high[one.column]):.1f}",
            "papers": one.papers,
            "the lowest is": _stands(one.low, one.column),
            "the highest is": _stands(one.high, one.column),
        }
        for one in spreads
    ]
    return rows_by("model", rows)


def experiments_table(folder: Path) -> pd.DataFrame:
    """What the kit's experiments in `folder` gave under changed scenes: with the reasoning loss minus without
    it, over training runs.
    """
    rows = []
    for name, rule in EXPERIMENTS.items():
        if (folder / name / "records.parquet").exists():
            records = load_records(folder / name)
            seeds = by_seed(records, ABLATION[2], ABLATION[0], rule, setting=VARIANT_AGGREGATION)
            gain = difference_over_seeds(seeds)
            planned = read_json(folder / name / "study.json").get("seeds", len(seeds))
            row = {"experiment": name, "gain, points": points_text(gain.mean)}
            row |= {"95 % interval": interval_text(gain.low, gain.high)}
            rows.append(row | {"seeds, of those planned": f"{len(seeds)} of {planned}"})
    return rows_by("experiment", rows)


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
    return rows_by("table", rows)


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
    rows = _printed(chosen, lambda number: number.task)
    return text_table(rows, [*dict.fromkeys(number.task for number in chosen), MARK])


def table_1(published: Sequence[Published], own: Sequence[EpisodeRecord]) -> pd.DataFrame:
    """The paper's Table 1, WidowX: models by tasks, each with grasp and success, and the average success; per
    cent. Ours: success at the last step, Wilson intervals.

    Args:
        published: the printed numbers.
        own: any; of visual matching and these tasks some are taken. An average is of all four.
    """
    tasks = [task.name for task in WIDOWX_TASKS]
    columns = [(task, metric) for task in tasks for metric in ("grasp", "success")] + [(AVERAGE, "success")]
    chosen = select(published, table=TABLE_1, setting=VISUAL_MATCHING)
    rows = _printed(chosen, lambda number: (number.task, number.metric))

    def counts(record: EpisodeRecord) -> bool:
        return record.setting == VISUAL_MATCHING and record.task in tasks

    for policy, played in _by_policy(own, counts).items():
        rates = {(score.task, "success"): score.rate for score in _whole(summarise(played), tasks)}
        for task in tasks:
            if grasped := [record.grasped for record in played if record.task == task]:
                rates[task, "grasp"] = rate(sum(grasped), len(grasped))
        rows[label(policy)] = _own_row(rates, played)
    return text_table(rows, [*columns, MARK])


def table_2(published: Sequence[Published], own: Sequence[EpisodeRecord] = ()) -> pd.DataFrame:
    """The paper's Table 2, Google Robot: models by tasks in both settings; per cent.

    Args:
        published: the printed numbers.
        own: of any robot; those of this one get a row a policy, their average with the published weights.
            The demonstrator sees the simulator's state: its row is the ceiling.
    """
    columns = [(setting, task) for setting in SETTINGS for task in GOOGLE]
    rows = _by_setting(published, TABLE_2)
    google = _by_policy(own, lambda record: find_task(record.task).group in GOOGLE)
    for policy, played in google.items():
        scores = [score for score in summarise(played) if score.task != AVERAGE]
        rows[label(policy)] = _own_row({(each.setting, _column(each)): each.rate for each in scores}, played)
    return text_table(rows, [*columns, MARK])


def table_3(published: Sequence[Published], own: Sequence[EpisodeRecord]) -> pd.DataFrame:
    """The paper's Table 3, the ablation: with and without the reasoning loss, in both settings. The paper's
    is of the Google Robot, ours of the WidowX over several seeds.

    Args:
        published: the printed numbers.
        own: of a controlled experiment, `policy` an arm's name. Its difference to the control is Student's t
            over seeds.
    """
    columns = [
        (setting, task) for setting in SETTINGS for task in ("move_near", "open_close_drawer", AVERAGE)
    ]
    columns += [(setting, MINUS) for setting in SETTINGS]
    rows, control = _by_setting(published, TABLE_3), ABLATION[0]
    for policy in ABLATION:
        played = as_one_policy(record for record in own if record.policy == policy)
        if not played:
            continue
        scores = [score for score in summarise(played) if score.task == AVERAGE]
        cells: dict[Any, str] = {(each.setting, AVERAGE): _cell(each.rate) for each in scores}
        for setting in SETTINGS:
            if policy != control and (each := by_seed(own, policy, control, setting=setting)):
                found = difference_over_seeds(each)
                interval = f" ({interval_text(found.low, found.high)})" if found.known else ""
                cells[setting, MINUS] = f"{points_text(found.mean)}{interval}"
        runs = len({record.seed for record in played})
        cells[MARK] = f"{OWN}, {runs} training runs, {len(played):,} episodes"
        rows[f"{label(policy)} (WidowX)"] = cells
    return text_table(rows, [*columns, MARK])


def peaks(published: Sequence[Published]) -> dict[str, str]:
    """Figure 8: what was varied (`sensitivity.FACTORS`) -> the paper's peak in words. The figure's other
    points are not known.
    """
    found = {}
    for word, factor in PEAKS.items():
        for number in select(published, table=FIGURE_8):
            if word in number.task:
                place = number.task.replace("_", " ")
                found[factor] = f"the paper ({number.tier}): {number.percent:+.1f} points at\n{place}"
    return found


def _by_policy(
    records: Sequence[EpisodeRecord], wanted: Callable[[EpisodeRecord], bool]
) -> dict[str, list[EpisodeRecord]]:
    played: dict[str, list[EpisodeRecord]] = {}
    for record in filter(wanted, records):
        played.setdefault(record.policy, []).append(record)
    return played


def _own_row(rates: Mapping[Any, Rate], played: Sequence[EpisodeRecord]) -> dict[Any, str]:
    cells = {column: _cell(value) for column, value in rates.items()}
    return cells | {MARK: f"{OWN}, {len(played)} episodes"}


def _stands(row: Mapping[str, str], column: str) -> str:
    """What is said of a row, without what is said of its other columns."""
    parts = [part.removeprefix(f"{column}: ") for part in row["stands"].split("; ")]
    return ", ".join(part for part in parts if ": " not in part)


def _by_setting(published: Sequence[Published], table: str) -> Rows:
    chosen = select(published, table=table, metric="success")
    return _printed(chosen, lambda number: (number.setting, number.task))


def _cell(value: Rate) -> str:
    return rate_text(value, counts=False, decimals=1)


def _printed(numbers: Sequence[Published], column_of: Callable[[Published], Any]) -> Rows:
    """What is printed, by model and column; a row's mark is that of its weakest cell."""
    rows: Rows = {}
    for number in numbers:
        row = rows.setdefault(number.model, {})
        row[column_of(number)] = f"{number.value:.1f}"
        row[MARK] = SECONDARY if SECONDARY in (number.tier, row.get(MARK)) else number.tier
    return rows
