"""Success rates as a picture: policies by tasks, both success rules, and how sure each number is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from refinevla_kit.evaluation.statistics import AVERAGE, Comparison, Rate, Score
from refinevla_kit.figures.style import GREY, INK, MUTED, canvas, colours, label, name_policies, points


def success_bars(scores: Sequence[Score]) -> Figure:
    """Bars of success per task and policy, with Wilson intervals.

    The filled bar is success at the last step (SIMPLER's rule) with its interval; the outline above it is success at any step. The count under the
    bar is that of the last step.

    Args:
        scores: of both rules, from `statistics.summarise`.
    """
    policies = list(dict.fromkeys(score.policy for score in scores))
    tasks = _tasks(scores)
    rates = {(score.policy, score.task, score.rule): score.rate for score in scores}
    colour, step = colours(policies), 0.84 / len(policies)
    with canvas(max(6.0, 1.1 + 0.48 * len(policies) * len(tasks)), 3.6) as (figure, (axes,)):
        for index, policy in enumerate(policies):
            for place, task in enumerate(tasks):
                x = place + (index - (len(policies) - 1) / 2) * step
                last, any_step = rates.get((policy, task, "last")), rates.get((policy, task, "any"))
                if any_step:
                    axes.bar(x, any_step.rate, step * 0.86, facecolor="none", edgecolor=colour[policy], linewidth=1.0)
                if last:
                    axes.bar(x, last.rate, step * 0.86, color=colour[policy], alpha=0.85)
                    _interval(axes, x, last)
                    text = f"{last.rate:.0%}" if task == AVERAGE else f"{last.successes}/{last.episodes}"
                    axes.text(x, -0.025, text, ha="center", va="top", fontsize=7, color=MUTED)
        axes.set_xticks(range(len(tasks)), [label(task) for task in tasks])
        axes.tick_params(axis="x", pad=14)
        axes.grid(axis="x", visible=False)
        axes.set_xlim(-0.55, len(tasks) - 0.45)
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_title("filled: success at the last step, with its 95 % interval; outline: at any step", fontweight="normal", fontsize=8, color=MUTED)
        name_policies(figure, colour)
    return figure


def paired_differences(comparisons: Sequence[Comparison]) -> Figure:
    """The difference between two policies on the same episodes, one line a task, with its bootstrap interval and the exact p-value."""
    first = comparisons[0]
    with canvas(7.2, 1.2 + 0.34 * len(comparisons)) as (figure, (axes,)):
        for y, one in enumerate(reversed(comparisons)):
            axes.plot([one.low, one.high], [y, y], color=GREY, linewidth=2.4, solid_capstyle="round")
            axes.plot(one.difference, y, "o", color=colours([one.a])[one.a], markersize=7)
            axes.text(
                1.03,
                y,
                f"{one.only_a} : {one.only_b}    p = {one.p_value:.2g}",
                transform=axes.get_yaxis_transform(),
                va="center",
                fontsize=7.5,
                color=MUTED,
            )
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(comparisons)), [label(one.task) for one in reversed(comparisons)])
        axes.set_ylim(-0.6, len(comparisons) - 0.4)
        widest = max(0.1, *(abs(value) for one in comparisons for value in (one.low, one.high)))
        axes.set_xlim(-1.08 * widest, 1.08 * widest)
        points(axes)
        axes.grid(axis="y", visible=False)
        axes.text(1.03, len(comparisons) - 0.4, "won alone", transform=axes.get_yaxis_transform(), va="bottom", fontsize=7.5, color=MUTED)
        figure.suptitle(
            f"{label(first.a)} minus {label(first.b)}, same episodes, {first.rule} step", x=0.01, ha="left", fontsize=10, fontweight="bold"
        )
    return figure


def _tasks(scores: Sequence[Score]) -> list[str]:
    tasks = list(dict.fromkeys(score.task for score in scores if score.task != AVERAGE))
    return [*tasks, AVERAGE] if len(tasks) > 1 else tasks


def _interval(axes: Axes, x: float, rate: Rate) -> None:
    error = np.array([[rate.rate - rate.low], [rate.high - rate.rate]])
    axes.errorbar(x, rate.rate, yerr=np.clip(error, 0, None), color=INK, linewidth=1.0, capsize=2.5, capthick=1.0)
