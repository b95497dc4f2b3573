"""The paper's numbers as pictures, with the intervals their episode counts give them, beside the kit's
own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from refinevla_kit.evaluation.intervals import resolvable_gain
from refinevla_kit.evaluation.published import Claim
from refinevla_kit.evaluation.statistics import AVERAGE, PUBLISHED_AVERAGE, Score, shown_tasks
from refinevla_kit.figures.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MUTED,
    VERMILION,
    beside,
    canvas,
    colours,
    label,
    points,
)


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
    best = {score.policy: score.rate.rate for score in published if score.task == AVERAGE}
    theirs = sorted(
        dict.fromkeys(score.policy for score in published), key=lambda model: -best.get(model, -1.0)
    )
    ours = list(dict.fromkeys(score.policy for score in own))
    rows, tasks = [*theirs, *ours], shown_tasks(published)
    colour = {model: VERMILION if model == "ReFineVLA" else GREY for model in theirs} | colours(ours)
    with canvas(11.0, 1.0 + 0.27 * len(rows), columns=len(tasks), sharey=True) as (figure, panels):
        for axes, task in zip(panels, tasks, strict=True):
            for index, model in enumerate(rows):
                if (rate := rates.get((model, task))) is not None:
                    y = -index - 0.6 * (index >= len(theirs))
                    axes.plot(
                        [rate.low, rate.high],
                        [y, y],
                        color=colour[model],
                        linewidth=2.2,
                        alpha=0.45,
                        solid_capstyle="round",
                    )
                    axes.plot(rate.rate, y, "o", color=colour[model], markersize=5)
            axes.set_title(label(task))
            axes.set_xlim(-0.03, 1.03)
            axes.set_xticks([0, 0.5, 1])
            axes.xaxis.set_major_formatter(PercentFormatter(1.0))
            axes.grid(axis="y", visible=False)
            if ours:
                axes.axhline(0.2 - len(theirs), color=INK, linewidth=0.6)
        places = [-index - 0.6 * (index >= len(theirs)) for index in range(len(rows))]
        panels[0].set_yticks(
            places, [f"{label(model)}, this kit" if model in ours else model for model in rows]
        )
        for tick, model in zip(panels[0].get_yticklabels(), rows, strict=True):
            tick.set_color(colour[model] if colour[model] != GREY else INK)
        said = "success, with its 95 % interval; models by their average, those without one last"
        figure.supxlabel(said, fontsize=8, color=MUTED)
    return figure


def claim_intervals(claims: Sequence[Claim]) -> Figure:
    """Each published gain with the interval its counts allow: thick for independent episodes, thin where a
    start's variants always fare alike.

    Coloured where the first excludes zero, filled where both do.
    """
    with canvas(9.6, 1.5 + 0.28 * len(claims)) as (figure, (axes,)):
        for y, claim in enumerate(reversed(claims)):
            colour = GREY if claim.low <= 0 <= claim.high else VERMILION if claim.supported else BLUE
            filled = colour != GREY and not claim.widest[0] <= 0 <= claim.widest[1]
            axes.plot(claim.widest, [y, y], color=colour, linewidth=1.0)
            axes.plot(
                [claim.low, claim.high],
                [y, y],
                color=colour,
                linewidth=4.0,
                alpha=0.45,
                solid_capstyle="butt",
            )
            axes.plot(
                claim.difference,
                y,
                "o",
                color=colour,
                markerfacecolor=colour if filled else "white",
                markersize=7,
            )
            beside(axes, y, f"{100 * claim.difference:+.1f}", f"{claim.needed:,}")
        beside(axes, len(claims) - 0.1, "gain", "needs", color=MUTED)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(
            range(len(claims)),
            [claim.name + (" (v1)" if claim.version == "v1" else "") for claim in reversed(claims)],
        )
        axes.set_ylim(-0.6, len(claims) - 0.4)
        points(axes)
        axes.grid(axis="y", visible=False)
        figure.suptitle(
            "Thick: 95 % interval if all episodes are independent; thin: if only starts count. "
            "Coloured where the thick one excludes zero,\n"
            "filled where both do. Needs: independent episodes a side that would find such a gain "
            "four times in five.",
            x=0.01,
            ha="left",
            fontsize=8.5,
            color=MUTED,
        )
    return figure


def resolvable_gains(
    base: float = 0.45, gain: float = 0.05, gain_name: str = "ReFineVLA on\nthe WidowX, +5.0"
) -> Figure:
    """The smallest gain over a success rate of `base` that so many episodes find four times in five, for
    independent and for shared episodes.

    A line begins where there are enough episodes to find any gain at all. Policies that fail independently
    gain nothing from sharing episodes.

    Args:
        gain: a gain to read off, drawn across; the published one by default.
    """
    sizes = np.unique(np.geomspace(12, 5000, 200).astype(int))
    ways = {
        "independent": (None, INK),
        "shared, 20 % differ": (0.2, BLUE),
        "shared, 10 % differ": (0.1, GREEN),
    }
    with canvas(7.4, 4.2) as (figure, (axes,)):
        for name, (discordant, colour) in ways.items():
            gains = [
                (size, found)
                for size in sizes
                if (found := resolvable_gain(base, int(size), discordant)) is not None
            ]
            axes.plot(*zip(*gains), color=colour)
            if discordant:
                axes.plot(*gains[0], "o", color=colour, markersize=5)
                axes.annotate(
                    "fewer find none",
                    gains[0],
                    (-6, -9),
                    textcoords="offset points",
                    fontsize=8.5,
                    color=colour,
                    ha="right",
                    va="center",
                )
            axes.text(5400, gains[-1][1], name, color=colour, fontsize=9, va="center")
        axes.axhline(gain, color=VERMILION, linewidth=1.0, linestyle=(0, (4, 3)))
        axes.text(5400, gain, gain_name, color=VERMILION, fontsize=9, va="center")
        for size, name in ((24, "24: one task"), (96, "96: four tasks")):
            axes.axvline(size, color=MUTED, linewidth=0.8)
            axes.text(size * 1.05, 0.57, name, fontsize=9, color=MUTED, va="top")
        axes.set(xscale="log", yscale="log", xlim=(12, 5000), ylim=(0.01, 0.6))
        axes.set_xlabel("episodes of each policy: independent, or shared by the two")
        axes.minorticks_off()
        axes.set_xticks([24, 96, 300, 1000, 3000], ["24", "96", "300", "1,000", "3,000"])
        axes.set_yticks([0.01, 0.02, 0.05, 0.1, 0.2, 0.5], ["+1", "+2", "+5", "+10", "+20", "+50"])
        axes.set_title(
            f"smallest gain over {base:.0%} that is found four times in five, points",
            fontweight="normal",
            fontsize=9,
            color=MUTED,
        )
    return figure
