"""Whether what a map shows matters, as pictures: deletion and insertion curves, how far the action moves when
things are covered, shuffled weights.

Panels that are compared share their scale. Bands and whiskers are Student's intervals over episodes where
there are at least two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from refinevla_kit.attention.grounding import mean_interval
from refinevla_kit.figures.overlays import THING_LABELS
from refinevla_kit.figures.style import INK, MUTED, canvas, colours, label, name_policies

if TYPE_CHECKING:
    from refinevla_kit.attention.faithfulness import Curves

COVER_LABELS = THING_LABELS | {"image": "the whole picture"}
MEASURE_LABELS = {
    "total_variation": "total variation of an action token's distribution (0: as before, 1: nothing shared)",
    "action_change": "mean change of the greedy action (its range is -1 to 1)",
}
FILL_LABELS = {"mean": "covered with the picture's mean colour", "blur": "blurred away"}
HATCHES = ("", "////", "....")


def deletion_insertion(found: Mapping[str, Sequence[Curves]], title: str = "") -> Figure:
    """Log-probability of the policy's own action while patches go (left) and come (right), against random
    orders.

    Args:
        found: policy -> one `Curves` an episode.
    """
    colour = colours([*found])
    with canvas(8.0, 3.4, 1, 2, sharey=True) as (figure, axes):
        for policy, each in found.items():
            fractions = each[0].fractions
            gains = [
                float(np.mean([getattr(one, f"{name}_gain") for one in each]))
                for name in ("deletion", "insertion")
            ]
            lines = ([one.deletion for one in each], [one.insertion for one in each])
            random = ([one.random for one in each], [one.random[::-1] for one in each])
            for panel, mapped, chance, gain in zip(axes, lines, random, gains, strict=True):
                panel.plot(
                    fractions,
                    np.mean(mapped, 0),
                    color=colour[policy],
                    label=f"{label(policy)}: {gain:+.2f} nats",
                )
                panel.plot(
                    fractions, np.mean(chance, 0), color=colour[policy], linestyle=(0, (4, 2)), linewidth=1.2
                )
                if len(each) > 1:
                    low, high = np.transpose([mean_interval(column) for column in np.transpose(mapped)])
                    panel.fill_between(
                        fractions, low, np.minimum(high, 0), color=colour[policy], alpha=0.15, linewidth=0
                    )
        for panel, words in zip(axes, ("patches taken away", "patches put back"), strict=True):
            panel.xaxis.set_major_formatter(PercentFormatter(1.0))
            panel.set_xlabel(words)
            handles, names = panel.get_legend_handles_labels()
            handles.append(Line2D([], [], color=MUTED, linestyle=(0, (4, 2)), linewidth=1.2))
            panel.legend(
                handles,
                [*names, "random order"],
                title="better than random by",
                title_fontsize=7.5,
                fontsize=7.5,
                alignment="left",
            )
        axes[0].set_title("deletion: lower is better")
        axes[1].set_title("insertion: higher is better")
        axes[0].set_ylabel("log-probability of the own action (nats)")
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    return figure


def cover_bars(summary: Any, title: str = "") -> Figure:
    """How far the action moves when each thing is covered: a bar a policy and fill, with its interval.

    Args:
        summary: pandas table of `faithfulness.summarise_cover`.
    """
    measure = next(name for name in MEASURE_LABELS if name in summary)
    policies, things, fills = (list(dict.fromkeys(summary[name])) for name in ("policy", "covered", "fill"))
    colour, step = colours(policies), 0.8 / (len(policies) * len(fills))
    with canvas(8.0, 3.6) as (figure, (axes,)):
        for row in summary.itertuples():
            place = policies.index(row.policy) * len(fills) + fills.index(row.fill)
            x, height = (
                things.index(row.covered) + (place - (len(policies) * len(fills) - 1) / 2) * step,
                getattr(row, measure),
            )
            axes.bar(
                x,
                height,
                step * 0.86,
                color=colour[row.policy],
                alpha=0.85,
                hatch=HATCHES[fills.index(row.fill) % 3],
                edgecolor="white",
            )
            if np.isfinite(row.low):
                axes.errorbar(
                    x,
                    height,
                    yerr=[[height - max(row.low, 0)], [row.high - height]],
                    color=INK,
                    linewidth=1,
                    capsize=2,
                )
        area = summary.groupby("covered")["area"].mean()
        axes.set_xticks(
            range(len(things)),
            [f"{COVER_LABELS.get(thing, thing)}\n{area[thing]:.1%} of the area" for thing in things],
        )
        axes.grid(axis="x", visible=False)
        axes.set_ylim(0, None)
        axes.set_ylabel(MEASURE_LABELS[measure].replace(" (", "\n("), fontsize=8)
        handles = [
            axes.bar(0, 0, color=MUTED, hatch=HATCHES[i % 3], edgecolor="white") for i in range(len(fills))
        ]
        axes.legend(
            handles,
            [FILL_LABELS.get(fill, f"covered with {fill}") for fill in fills],
            loc="upper left",
            fontsize=8,
        )
        axes.set_title(title, fontweight="normal", fontsize=8, color=MUTED)
        name_policies(figure, colour)
    return figure


def sanity_lines(found: Mapping[str, Any], title: str = "") -> Figure:
    """Rank correlation with the trained policy's map while weights are shuffled from the top down; 1 all
    along: the map does not show the policy.

    Args:
        found: method (or policy) -> pandas table of `faithfulness.sanity`.
    """
    colour = colours([*found])
    with canvas(6.4, 3.2) as (figure, (axes,)):
        for name, table in found.items():
            means = table.groupby("shuffled", sort=False)["correlation"].mean()
            axes.plot(
                range(len(means)),
                means.to_numpy(),
                color=colour[name],
                marker="o",
                markersize=4,
                label=label(name).replace("_", " "),
            )
            axes.set_xticks(
                range(len(means)), [f"{one}" if not i else f"+ {one}" for i, one in enumerate(means.index)]
            )
        axes.axhline(0, color=MUTED, linewidth=1)
        axes.set_ylim(-1.05, 1.05)
        axes.set_xlabel("weights shuffled, from the top down")
        axes.set_ylabel("rank correlation of patches (-1 to 1)")
        axes.set_title(title, fontweight="normal", fontsize=8, color=MUTED)
        axes.legend(fontsize=8)
    return figure
