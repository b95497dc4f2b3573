"""Success rates as a picture: policies by tasks, both success rules, and how sure each number is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from refinevla_kit.evaluation.intervals import Rate
from refinevla_kit.evaluation.statistics import AVERAGE, AVERAGES, Comparison, Score, shown_tasks
from refinevla_kit.figures.style import (
    GREY,
    INK,
    MUTED,
    beside,
    canvas,
    colours,
    label,
    name_policies,
    p_text,
    points,
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
    colour, step = colours(policies), 0.84 / len(policies)
    with canvas(max(6.0, 1.1 + max(1.15, 0.48 * len(policies)) * len(tasks)), 3.6) as (figure, (axes,)):
        for index, policy in enumerate(policies):
            for place, task in enumerate(tasks):
                x = place + (index - (len(policies) - 1) / 2) * step
                last, any_step = rates.get((policy, task, "last")), rates.get((policy, task, "any"))
                if any_step:
                    axes.bar(
                        x,
                        any_step.rate,
                        step * 0.86,
                        facecolor="none",
                        edgecolor=colour[policy],
                        linewidth=1.0,
                    )
                if last:
                    axes.bar(x, last.rate, step * 0.86, color=colour[policy], alpha=0.85)
                    _interval(axes, x, last)
                    text = f"{last.rate:.0%}" if task in AVERAGES else f"{last.successes}/{last.episodes}"
                    axes.text(x, -0.025, text, ha="center", va="top", fontsize=7, color=MUTED)
        axes.set_xticks(range(len(tasks)), [fill(label(task), 18, break_long_words=False) for task in tasks])
        axes.tick_params(axis="x", pad=14)
        axes.grid(axis="x", visible=False)
        axes.set_xlim(-0.55, len(tasks) - 0.45)
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_title(
            "filled: success at the last step, with its 95 % interval; outline: at any step",
            fontweight="normal",
            fontsize=8,
            color=MUTED,
        )
        name_policies(figure, colour)
    return figure


def paired_differences(comparisons: Sequence[Comparison]) -> Figure:
    """The difference between two policies on the same episodes, one line a task, with its bootstrap interval
    and the exact p-value.
    """
    first = comparisons[0]
    with canvas(7.2, 1.2 + 0.34 * len(comparisons)) as (figure, (axes,)):
        for y, one in enumerate(reversed(comparisons)):
            axes.plot([one.low, one.high], [y, y], color=GREY, linewidth=2.4, solid_capstyle="round")
            axes.plot(one.difference, y, "o", color=colours([one.a])[one.a], markersize=7)
            beside(axes, y, f"{one.only_a} : {one.only_b}", p_text(one.p_value), width=54)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(comparisons)), [label(one.task) for one in reversed(comparisons)])
        axes.set_ylim(-0.6, len(comparisons) - 0.4)
        widest = max(0.1, *(abs(value) for one in comparisons for value in (one.low, one.high)))
        axes.set_xlim(-1.08 * widest, 1.08 * widest)
        points(axes)
        axes.grid(axis="y", visible=False)
        beside(axes, len(comparisons) - 0.25, "won alone*", "exact p", width=54, color=MUTED)
        figure.supxlabel(
            f"* episodes that only {label(first.a)} solved : only {label(first.b)}",
            fontsize=7.5,
            color=MUTED,
            x=0.98,
            ha="right",
        )
        figure.suptitle(
            f"{label(first.a)} minus {label(first.b)}, same episodes, {first.rule} step",
            x=0.01,
            ha="left",
            fontsize=10,
            fontweight="bold",
        )
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
    differences = {(policy, one.a): one for policy, comparisons in changes.items() for one in comparisons}
    height = 1.3 + 0.16 * len(variants) * (1 + len(colour))
    with canvas(
        8.6, height, columns=2, sharey=True, gridspec_kw={"wspace": 0.1, "width_ratios": [1.1, 1]}
    ) as (figure, (left, right)):
        for index, (policy, shade) in enumerate(colour.items()):
            for place, variant in enumerate(variants):
                y = -place - (index - (len(colour) - 1) / 2) * 0.62 / len(colour)
                for axes, one in (
                    (left, rates.get((policy, variant))),
                    (right, differences.get((policy, variant))),
                ):
                    if one is not None:
                        axes.plot(
                            [one.low, one.high],
                            [y, y],
                            color=shade,
                            linewidth=2.2,
                            alpha=0.45,
                            solid_capstyle="butt",
                        )
                        axes.plot(
                            one.rate if isinstance(one, Rate) else one.difference,
                            y,
                            "o",
                            color=shade,
                            markersize=5,
                        )
            if base := rates.get((policy, BASE)):
                left.axvline(base.rate, color=shade, linewidth=0.8, linestyle=(0, (4, 3)))
        left.set_yticks(
            [-place for place in range(len(variants))], [variant.replace("_", " ") for variant in variants]
        )
        left.set_ylim(0.6 - len(variants), 0.6)
        left.set_xlim(-0.02, 1.04)
        left.set_xticks([0, 0.25, 0.5, 0.75, 1])
        left.xaxis.set_major_formatter(PercentFormatter(1.0))
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


def _interval(axes: Axes, x: float, rate: Rate) -> None:
    error = np.array([[rate.rate - rate.low], [rate.high - rate.rate]])
    axes.errorbar(
        x, rate.rate, yerr=np.clip(error, 0, None), color=INK, linewidth=1.0, capsize=2.5, capthick=1.0
    )
