"""The paper's numbers as pictures, with the intervals their episode counts give them, beside the kit's own."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from refinevla_kit.evaluation.published import Claim
from refinevla_kit.evaluation.statistics import AVERAGE, Score
from refinevla_kit.figures.style import GREY, INK, MUTED, VERMILION, canvas, colours, label, points
from refinevla_kit.tasks import WIDOWX_TASKS


def widowx_results(published: Sequence[Score], own: Sequence[Score] = ()) -> Figure:
    """Published WidowX success and the kit's own, one line a model, one panel a task, each with its 95 % Wilson interval.

    Args:
        published: from `published.widowx_scores`; ordered here by their average, best on top.
        own: from `statistics.summarise`, one rule; shown below a rule, because base models, data and assets differ.
    """
    rates = {(score.policy, score.task): score.rate for score in [*published, *own]}
    theirs = sorted({score.policy for score in published}, key=lambda model: -rates[model, AVERAGE].rate)
    ours = list(dict.fromkeys(score.policy for score in own))
    rows, tasks = [*theirs, *ours], [*(task.name for task in WIDOWX_TASKS), AVERAGE]
    colour = {model: VERMILION if model == "ReFineVLA" else GREY for model in theirs} | colours(ours)
    with canvas(11.0, 1.0 + 0.27 * len(rows), columns=len(tasks), sharey=True) as (figure, panels):
        for axes, task in zip(panels, tasks, strict=True):
            for index, model in enumerate(rows):
                if (rate := rates.get((model, task))) is not None:
                    y = -index - 0.6 * (index >= len(theirs))
                    axes.plot([rate.low, rate.high], [y, y], color=colour[model], linewidth=2.2, alpha=0.45, solid_capstyle="round")
                    axes.plot(rate.rate, y, "o", color=colour[model], markersize=5)
            axes.set_title(label(task))
            axes.set_xlim(-0.03, 1.03)
            axes.set_xticks([0, 0.5, 1])
            axes.xaxis.set_major_formatter(PercentFormatter(1.0))
            axes.grid(axis="y", visible=False)
            if ours:
                axes.axhline(0.2 - len(theirs), color=INK, linewidth=0.6)
        places = [-index - 0.6 * (index >= len(theirs)) for index in range(len(rows))]
        panels[0].set_yticks(places, [f"{label(model)}, this kit" if model in ours else model for model in rows])
        for tick, model in zip(panels[0].get_yticklabels(), rows, strict=True):
            tick.set_color(colour[model] if colour[model] != GREY else INK)
    return figure


def claim_intervals(claims: Sequence[Claim]) -> Figure:
    """Each published gain with the interval its counts allow; filled where the interval excludes zero."""
    with canvas(8.2, 0.9 + 0.33 * len(claims)) as (figure, (axes,)):
        for y, claim in enumerate(reversed(claims)):
            colour = VERMILION if claim.supported else GREY
            axes.plot([claim.low, claim.high], [y, y], color=colour, linewidth=2.4, alpha=0.5, solid_capstyle="round")
            axes.plot(claim.difference, y, "o", color=colour, markerfacecolor=colour if claim.supported else "white", markersize=7)
            text = f"{100 * claim.difference:+.1f};  would need {claim.needed:,} a side"
            axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=7.5, color=MUTED)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(claims)), [claim.name for claim in reversed(claims)])
        axes.set_ylim(-0.6, len(claims) - 0.4)
        points(axes)
        axes.grid(axis="y", visible=False)
        axes.set_title("Published gains, with the 95 % interval of the difference")
    return figure
