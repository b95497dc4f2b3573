"""Whether what a map shows matters: deletion and insertion curves, how far the action moves when things are
covered, shuffled weights, and differences between policies with their p-values.

Panels that are compared share their scale. Bands and whiskers are Student's intervals over episodes where
there are at least two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from refinevla_kit.attention.grounding import mean_interval
from refinevla_kit.figures.overlays import THING_LABELS
from refinevla_kit.figures.style import (
    MUTED,
    bar,
    canvas,
    colours,
    label,
    name_policies,
    note,
    offsets,
    p_text,
    per_cent,
)

if TYPE_CHECKING:
    from refinevla_kit.attention.faithfulness import Curves

COVER_LABELS = THING_LABELS | {"image": "the whole picture"}
MEASURE_LABELS = {
    "total_variation": "total variation of an action token's distribution\n(0: as before, 1: nothing shared)",
    "action_change": "mean change of the greedy action\n(its range is -1 to 1)",
}
FILL_LABELS = {"mean": "covered with the picture's mean colour", "blur": "blurred away"}
HATCHES = ("", "////", "....")
RANDOM: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 1.2}


def deletion_insertion(found: Mapping[str, Sequence[Curves]], title: str = "") -> Figure:
    """Log-probability of the policy's own action while patches go (left) and come (right), against random
    orders.

    Args:
        found: policy -> one `Curves` an episode.
        title: above the panels.
    """
    colour = colours([*found])
    with canvas(8.0, 3.4, 1, 2, sharey=True) as (figure, (left, right)):
        for policy, each in found.items():
            random = np.array([one.random for one in each])
            lost, won = np.mean([(one.deletion_gain, one.insertion_gain) for one in each], axis=0)
            panels = (
                (left, [one.deletion for one in each], random, lost),
                (right, [one.insertion for one in each], random[:, ::-1], won),
            )
            fractions, shade = each[0].fractions, colour[policy]
            for panel, mapped, chance, gain in panels:
                name = f"{label(policy)}: {gain:+.2f} nats"
                panel.plot(fractions, np.mean(mapped, 0), color=shade, label=name)
                panel.plot(fractions, np.mean(chance, 0), color=shade, **RANDOM)
                if len(each) > 1:
                    low, high = np.transpose([mean_interval(column) for column in np.transpose(mapped)])
                    high = np.minimum(high, 0)
                    panel.fill_between(fractions, low, high, color=shade, alpha=0.15, linewidth=0)
        for panel, words in ((left, "patches taken away"), (right, "patches put back")):
            per_cent(panel.xaxis)
            panel.set_xlabel(words)
            handles, _ = panel.get_legend_handles_labels()
            panel.legend(
                handles=[*handles, Line2D([], [], color=MUTED, label="random order", **RANDOM)],
                title="better than random by",
                title_fontsize=7.5,
                fontsize=7.5,
                alignment="left",
            )
        left.set_title("deletion: lower is better")
        right.set_title("insertion: higher is better")
        left.set_ylabel("log-probability of the own action (nats)")
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    return figure


def cover_bars(summary: Any, title: str = "") -> Figure:
    """How far the action moves when each thing is covered: a bar a policy and fill, with its interval.

    Args:
        summary: pandas table of `faithfulness.summarise_cover`.
        title: above the bars.
    """
    measure = next(name for name in MEASURE_LABELS if name in summary)
    policies, things, fills = (list(dict.fromkeys(summary[name])) for name in ("policy", "covered", "fill"))
    count, colour = len(policies) * len(fills), colours(policies)
    places = offsets(count)
    with canvas(8.0, 3.6) as (figure, (axes,)):
        for row in summary.itertuples():
            fill = fills.index(row.fill)
            x = things.index(row.covered) + places[policies.index(row.policy) * len(fills) + fill]
            look = {"hatch": HATCHES[fill % 3], "edgecolor": "white"}
            height, shade = getattr(row, measure), colour[row.policy]
            bar(axes, x, height, (row.low, row.high), 0.8 / count * 0.86, shade, **look)
        area = summary.groupby("covered")["area"].mean()
        names = [f"{COVER_LABELS.get(thing, thing)}\n{area[thing]:.1%} of the area" for thing in things]
        axes.set_xticks(range(len(things)), names)
        axes.grid(axis="x", visible=False)
        axes.set_ylim(0, None)
        axes.set_ylabel(MEASURE_LABELS[measure], fontsize=8)
        for number, fill in enumerate(fills):
            name = FILL_LABELS.get(fill, f"covered with {fill}")
            axes.bar(0, 0, color=MUTED, hatch=HATCHES[number % 3], edgecolor="white", label=name)
        axes.legend(loc="upper left", fontsize=8)
        note(axes, title)
        name_policies(figure, colour)
    return figure


def sanity_lines(found: Mapping[str, Any], title: str = "") -> Figure:
    """Rank correlation with the trained policy's map while weights are shuffled from the top down; 1 all
    along: the map does not show the policy.

    Args:
        found: method (or policy) -> pandas table of `faithfulness.sanity`.
        title: above the lines.
    """
    colour = colours([*found])
    with canvas(6.4, 3.2) as (figure, (axes,)):
        for name, table in found.items():
            means = table.groupby("shuffled", sort=False)["correlation"].mean()
            look: dict[str, Any] = {"marker": "o", "markersize": 4, "label": label(name).replace("_", " ")}
            axes.plot(range(len(means)), means.to_numpy(), color=colour[name], **look)
            first, *others = means.index
            axes.set_xticks(range(len(means)), [first, *(f"+ {part}" for part in others)])
        axes.axhline(0, color=MUTED, linewidth=1)
        axes.set_ylim(-1.05, 1.05)
        axes.set_xlabel("weights shuffled, from the top down")
        axes.set_ylabel("rank correlation of patches (-1 to 1)")
        note(axes, title)
        axes.legend(fontsize=8)
    return figure


def differences_table(tests: pd.DataFrame) -> pd.DataFrame:
    """Differences between two policies as text with their p-values: a row a measure and stage, a column a
    thing.

    Args:
        tests: tables of `grounding.compare_scores` put together, with columns measure and stage.

    Returns:
        Of text; shares and scores as fractions, so +0.010 is a percentage point of a share.
    """
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for row in tests.itertuples():
        sure = f"p {p_text(row.p_value)}" if row.episodes > 1 else "one episode"
        text = f"{row.difference:+.3f} ({sure})" if row.episodes else "not visible"
        rows.setdefault((row.measure, row.stage), {})[THING_LABELS.get(row.thing, row.thing)] = text
    index = pd.MultiIndex.from_tuples(rows, names=["measure", "stage"])
    return pd.DataFrame(rows.values(), index=index).fillna("")
