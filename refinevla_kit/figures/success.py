"""Success rates as pictures and as tables: policies by tasks, both success rules, and how sure each number
is. Tables are data frames of text, so that a notebook shows them as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

import pandas as pd
from matplotlib.figure import Figure

from refinevla_kit.evaluation.statistics import AVERAGE, AVERAGES, Comparison, Score, shown_tasks
from refinevla_kit.figures.style import (
    DASHED,
    MUTED,
    bar,
    beside,
    beside_each_other,
    canvas,
    check_shown,
    colours,
    dot,
    interval_text,
    label,
    name_bars,
    name_lines,
    name_policies,
    note,
    p_text,
    per_cent,
    points,
    points_text,
    rate_text,
    rows_by,
    text_table,
)
from refinevla_kit.tasks import BASE


def success_bars(scores: Sequence[Score]) -> Figure:
    """Bars of success per task and policy, with Wilson intervals.

    The filled bar is success at the last step (SIMPLER's rule) with its interval; the outline above it is
    success at any step. The count under the bar is that of the last step.

    Args:
        scores: of both rules and one setting, from `statistics.summarise`.
    """
    colour, tasks = colours(score.policy for score in scores), shown_tasks(scores)
    tasks = tasks if len(tasks) > 2 else tasks[:1]
    places, thick = beside_each_other(colour, 0.84), 0.84 / len(colour) * 0.86
    with canvas(max(6.0, 1.1 + max(1.15, 0.48 * len(colour)) * len(tasks)), 3.6) as (figure, (axes,)):
        for score in (score for score in scores if score.task in tasks):
            rate, shade = score.rate, colour[score.policy]
            x = tasks.index(score.task) + places[score.policy]
            if score.rule == "any":
                axes.bar(x, rate.rate, thick, facecolor="none", edgecolor=shade, linewidth=1.0)
                continue
            bar(axes, x, rate.bounded, thick, shade)
            average = score.task in AVERAGES
            text = f"{rate.rate:.0%}" if average else f"{rate.successes}/{rate.episodes}"
            axes.text(x, -0.025, text, ha="center", va="top", fontsize=7, color=MUTED)
        name_bars(axes, [fill(label(task), 18, break_long_words=False) for task in tasks])
        axes.set(xlim=(-0.55, len(tasks) - 0.45), ylim=(0, 1.02))
        per_cent(axes.yaxis)
        note(axes, "filled: success at the last step, with its 95 % interval; outline: at any step")
        name_policies(figure, colour)
    return figure


def paired_differences(comparisons: Sequence[Comparison]) -> Figure:
    """The difference between two policies on the same episodes, one line a task, with its bootstrap interval
    and the exact p-value.
    """
    check_shown(comparisons)
    first = comparisons[0]
    a, b = label(first.a), label(first.b)
    title = f"{a} minus {b}, same episodes, {first.rule} step"
    with canvas(7.2, 1.2 + 0.34 * len(comparisons), title=title) as (figure, (axes,)):
        for y, comparison in enumerate(comparisons):
            dot(axes, y, comparison.bounded, colours([first.a])[first.a])
            won = f"{comparison.only_a} : {comparison.only_b}"
            beside(axes, y, won, p_text(comparison.p_value), width=54)
        beside(axes, -0.75, "won alone*", "exact p", width=54, color=MUTED)
        name_lines(axes, [label(comparison.task) for comparison in comparisons])
        points(axes, [end for comparison in comparisons for end in comparison.bounded])
        explained = f"* episodes that only {a} solved : only {b}"
        figure.supxlabel(explained, fontsize=7.5, color=MUTED, x=0.98, ha="right")
    return figure


def variant_rates(scores: Sequence[Score], changes: Mapping[str, Sequence[Comparison]]) -> Figure:
    """Success in each variant of the scene, and what it differs from the unchanged scene on the same starts;
    one line a variant, one colour a policy.

    Args:
        scores: of one rule and setting, from `statistics.summarise_variants`; the averages are drawn.
        changes: policy -> its comparisons, from `statistics.against_base`.
    """
    scores = [score for score in scores if score.task == AVERAGE]
    variants = list(dict.fromkeys(score.variant for score in scores))
    colour = colours(score.policy for score in scores)
    places = beside_each_other(colour, 0.62)
    height = 1.3 + 0.16 * len(variants) * (1 + len(colour))
    layout = {"wspace": 0.1, "width_ratios": [1.1, 1]}
    with canvas(8.6, height, columns=2, sharey=True, gridspec_kw=layout) as (figure, (left, right)):
        for score in scores:
            shade = colour[score.policy]
            dot(left, variants.index(score.variant) + places[score.policy], score.rate.bounded, shade)
            if score.variant == BASE:
                left.axvline(score.rate.rate, color=shade, linewidth=0.8, linestyle=DASHED)
        ends = [0.0]
        for policy, comparisons in changes.items():
            for change in comparisons:
                dot(right, variants.index(change.a) + places[policy], change.bounded, colour[policy])
                ends += change.bounded
        left.set(xlim=(-0.02, 1.04), xticks=[0, 0.25, 0.5, 0.75, 1], title="success")
        per_cent(left.xaxis)
        right.set_title("minus base, same starts")
        points(right, ends)
        right.grid(axis="y", visible=False)
        name_lines(left, [variant.replace("_", " ") for variant in variants])
        name_policies(figure, colour)
    return figure


def success_table(scores: Sequence[Score]) -> pd.DataFrame:
    """Policies and rules by tasks: successes of episodes, the rate and its 95 % interval in per cent."""
    policies, rows = list(dict.fromkeys(score.policy for score in scores)), dict[object, dict[str, str]]()
    for score in sorted(scores, key=lambda score: policies.index(score.policy)):  # its rules under each other
        key = (label(score.policy), label(score.setting), f"{score.rule} step")
        text = rate_text(score.rate, counts=score.task not in AVERAGES)
        rows.setdefault(key, {})[score.task] = text
    table = text_table(rows, shown_tasks(scores), ["policy", "setting", "success at"])
    return table.droplevel("setting") if len({score.setting for score in scores}) == 1 else table


def comparison_table(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """One line a task: the episodes only one policy won, the difference with its interval, the exact p-value,
    the episodes it would need.
    """
    rows = [
        {
            "task": label(comparison.task),
            "success at": f"{comparison.rule} step",
            "episodes": comparison.episodes,
            "both": comparison.both,
            f"only {label(comparison.a)}": comparison.only_a,
            f"only {label(comparison.b)}": comparison.only_b,
            "neither": comparison.neither,
            "difference, points": points_text(comparison.difference),
            "95 % interval": interval_text(comparison.low, comparison.high),
            "exact McNemar p": p_text(comparison.p_value),
            "episodes a gain of this size needs": f"{comparison.needed:,}" if comparison.needed else "-",
        }
        for comparison in comparisons
    ]
    return rows_by("task", rows)
