"""Success rates as pictures and as tables: policies by tasks, both success rules, and how sure each number
is. Tables are data frames of text, so that a notebook shows them as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from refinevla_kit.evaluation.statistics import (
    AVERAGE,
    AVERAGES,
    PUBLISHED_AVERAGE,
    Comparison,
    Score,
    shown_tasks,
)
from refinevla_kit.figures.style import (
    DASHED,
    GREY,
    INK,
    MUTED,
    bar,
    beside,
    canvas,
    colours,
    dot,
    interval_text,
    label,
    name_policies,
    note,
    offsets,
    p_text,
    per_cent,
    points,
    points_text,
    rate_text,
)
from refinevla_kit.tasks import BASE


def success_bars(scores: Sequence[Score]) -> Figure:
    """Bars of success per task and policy, with Wilson intervals.

    The filled bar is success at the last step (SIMPLER's rule) with its interval; the outline above it is
    success at any step. The count under the bar is that of the last step.

    Args:
        scores: of both rules and one setting, from `statistics.summarise`.
    """
    policies = list(dict.fromkeys(score.policy for score in scores))
    tasks = shown_tasks(scores)
    tasks = tasks if len(tasks) > 2 else tasks[:1]
    rates = {(score.policy, score.task, score.rule): score.rate for score in scores}
    colour, thick = colours(policies), 0.84 / len(policies) * 0.86
    with canvas(max(6.0, 1.1 + max(1.15, 0.48 * len(policies)) * len(tasks)), 3.6) as (figure, (axes,)):
        for policy, offset in zip(policies, offsets(len(policies), 0.84), strict=True):
            for place, task in enumerate(tasks):
                x, shade = place + offset, colour[policy]
                if rate := rates.get((policy, task, "any")):
                    axes.bar(x, rate.rate, thick, facecolor="none", edgecolor=shade, linewidth=1.0)
                if rate := rates.get((policy, task, "last")):
                    bar(axes, x, rate.rate, (rate.low, rate.high), thick, shade)
                    text = f"{rate.rate:.0%}" if task in AVERAGES else f"{rate.successes}/{rate.episodes}"
                    axes.text(x, -0.025, text, ha="center", va="top", fontsize=7, color=MUTED)
        axes.set_xticks(range(len(tasks)), [fill(label(task), 18, break_long_words=False) for task in tasks])
        axes.tick_params(axis="x", pad=14)
        axes.grid(axis="x", visible=False)
        axes.set(xlim=(-0.55, len(tasks) - 0.45), ylim=(0, 1.02))
        per_cent(axes.yaxis)
        note(axes, "filled: success at the last step, with its 95 % interval; outline: at any step")
        name_policies(figure, colour)
    return figure


def paired_differences(comparisons: Sequence[Comparison]) -> Figure:
    """The difference between two policies on the same episodes, one line a task, with its bootstrap interval
    and the exact p-value.
    """
    first, count = comparisons[0], len(comparisons)
    with canvas(7.2, 1.2 + 0.34 * count) as (figure, (axes,)):
        for y, one in enumerate(reversed(comparisons)):
            axes.plot([one.low, one.high], [y, y], color=GREY, linewidth=2.4, solid_capstyle="round")
            axes.plot(one.difference, y, "o", color=colours([one.a])[one.a], markersize=7)
            beside(axes, y, f"{one.only_a} : {one.only_b}", p_text(one.p_value), width=54)
        beside(axes, count - 0.25, "won alone*", "exact p", width=54, color=MUTED)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(count), [label(one.task) for one in reversed(comparisons)])
        widest = max(0.1, *(abs(value) for one in comparisons for value in (one.low, one.high)))
        axes.set(xlim=(-1.08 * widest, 1.08 * widest), ylim=(-0.6, count - 0.4))
        points(axes)
        axes.grid(axis="y", visible=False)
        a, b = label(first.a), label(first.b)
        explained = f"* episodes that only {a} solved : only {b}"
        figure.supxlabel(explained, fontsize=7.5, color=MUTED, x=0.98, ha="right")
        title = f"{a} minus {b}, same episodes, {first.rule} step"
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure


def variant_rates(scores: Sequence[Score], changes: Mapping[str, Sequence[Comparison]]) -> Figure:
    """Success in each variant of the scene, and what it differs from the unchanged scene on the same starts;
    one line a variant, one colour a policy.

    Args:
        scores: of one rule and setting, from `statistics.summarise_variants`; the averages are drawn.
        changes: policy -> its comparisons, from `statistics.against_base`.
    """
    rates = {(score.policy, score.variant): score.rate for score in scores if score.task == AVERAGE}
    variants = list(dict.fromkeys(variant for _, variant in rates))
    colour = colours(list(dict.fromkeys(policy for policy, _ in rates)))
    differences = {(policy, one.a): one for policy, each in changes.items() for one in each}
    height = 1.3 + 0.16 * len(variants) * (1 + len(colour))
    layout = {"wspace": 0.1, "width_ratios": [1.1, 1]}
    with canvas(8.6, height, columns=2, sharey=True, gridspec_kw=layout) as (figure, (left, right)):
        for (policy, shade), offset in zip(colour.items(), offsets(len(colour), 0.62), strict=True):
            for place, variant in enumerate(variants):
                y = -place - offset
                if rate := rates.get((policy, variant)):
                    dot(left, y, rate.rate, (rate.low, rate.high), shade)
                if one := differences.get((policy, variant)):
                    dot(right, y, one.difference, (one.low, one.high), shade)
            if base := rates.get((policy, BASE)):
                left.axvline(base.rate, color=shade, linewidth=0.8, linestyle=DASHED)
        left.set_yticks([-place for place in range(len(variants))], [_spaced(name) for name in variants])
        left.set(xlim=(-0.02, 1.04), ylim=(0.6 - len(variants), 0.6), xticks=[0, 0.25, 0.5, 0.75, 1])
        per_cent(left.xaxis)
        left.set_title("success")
        widest = max([0.1, *(abs(value) for one in differences.values() for value in (one.low, one.high))])
        right.axvline(0, color=INK, linewidth=0.8)
        right.set_xlim(-1.05 * widest, 1.05 * widest)
        right.set_title("minus base, same starts")
        points(right)
        for axes in (left, right):
            axes.grid(axis="y", visible=False)
        name_policies(figure, colour)
    return figure


def success_table(scores: Sequence[Score]) -> pd.DataFrame:
    """Policies and rules by tasks: successes of episodes, the rate and its 95 % interval in per cent."""
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for policy in dict.fromkeys(score.policy for score in scores):  # its rules under each other
        for score in (score for score in scores if score.policy == policy):
            key = (label(policy), label(score.setting), f"{score.rule} step")
            text = rate_text(score.rate, counts=score.task not in AVERAGES)
            rows.setdefault(key, {})[score.task] = text
    frame = _frame(rows, shown_tasks(scores), ["policy", "setting", "success at"])
    return frame.droplevel("setting") if len({score.setting for score in scores}) == 1 else frame


def results_table(published: Sequence[Score], own: Sequence[Score] = ()) -> pd.DataFrame:
    """Published success and the kit's own below it, by rows of the published tables: per cent, 95 % interval,
    episodes and mark.

    Args:
        published: from `published.published_scores`; ordered by their average, best first.
        own: from `statistics.summarise`, one rule and setting; their average is the one with the published
            weights.
    """
    rows: dict[tuple[str, str], dict[str, str]] = {}
    order: dict[tuple[str, str], float] = {}
    for score in [*published, *own]:
        key = ("published" if score.mark else "this kit", label(score.policy))
        row = rows.setdefault(key, {"episodes": "", "mark": score.mark})
        task = AVERAGE if score.task == PUBLISHED_AVERAGE else score.task
        row[task] = rate_text(score.rate, counts=False, decimals=1)
        if score.mark == "secondary":
            row["mark"] = score.mark
        if task == AVERAGE:
            row["episodes"] = f"{score.rate.episodes:,}"
            if score.mark:
                order[key] = -score.rate.rate
    rows = dict(sorted(rows.items(), key=lambda item: order.get(item[0], 1.0)))
    columns = [*shown_tasks(published), "episodes", "mark"]
    return _frame(rows, columns, ["", "success (95 % interval)"])


def variants_table(scores: Sequence[Score], comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """What each change of the scene does to a policy's average: its success, and the difference from the
    unchanged scene on the same starts.

    Args:
        scores: of one policy and rule, from `statistics.summarise_variants`.
        comparisons: of the same, from `statistics.against_base`.
    """
    changes = {one.a: one for one in comparisons}
    rows = {}
    for score in (score for score in scores if score.task == AVERAGE):
        row = {"success": rate_text(score.rate)}
        if one := changes.get(score.variant):
            row["minus base, points"] = points_text(one.difference)
            row |= {"95 % interval": interval_text(one.low, one.high), "exact p": p_text(one.p_value)}
        rows[score.variant] = row
    return pd.DataFrame.from_dict(rows, orient="index").fillna("").rename_axis("variant")


def comparison_table(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """One line a task: the episodes only one policy won, the difference with its interval, the exact p-value,
    the episodes it would need.
    """
    rows = [
        {
            "task": label(one.task),
            "success at": f"{one.rule} step",
            "episodes": one.episodes,
            "both": one.both,
            f"only {label(one.a)}": one.only_a,
            f"only {label(one.b)}": one.only_b,
            "neither": one.neither,
            "difference, points": points_text(one.difference),
            "95 % interval": interval_text(one.low, one.high),
            "exact McNemar p": p_text(one.p_value),
            "episodes a gain of this size needs": "-" if one.needed is None else f"{one.needed:,}",
        }
        for one in comparisons
    ]
    return pd.DataFrame(rows).set_index("task")


def _frame(rows: Mapping[Any, Mapping[str, str]], columns: Sequence[str], names: list[str]) -> pd.DataFrame:
    """Text by row and column, "" where there is none."""
    cells = [[row.get(column, "") for column in columns] for row in rows.values()]
    index = pd.MultiIndex.from_tuples(list(rows), names=names)
    return pd.DataFrame(cells, index, [label(column) for column in columns])


def _spaced(variant: str) -> str:
    return variant.replace("_", " ")
