"""Whether what a map shows matters: deletion and insertion curves, how far the action moves when things are
covered, shuffled weights, and differences between policies with their p-values.

Panels that are compared share their scale. Bands and whiskers are Student's intervals over episodes where
there are at least two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from refinevla_kit.attention.grounding import mean_interval
from refinevla_kit.figures.overlays import THING_LABELS
from refinevla_kit.figures.style import (
    MUTED,
    bar,
    beside_each_other,
    canvas,
    colours,
    label,
    name_bars,
    name_policies,
    note,
    p_text,
    per_cent,
    text_table,
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


def deletion_insertion(curves: Mapping[str, Sequence[Curves]], title: str = "") -> Figure:
    """Log-probability of the policy's own action while patches go (left) and come (right), against random
    orders.

    Args:
        curves: policy -> one `Curves` an episode.
        title: above the panels.
    """
    colour = colours(curves)
    headings = ("deletion: lower is better", "insertion: higher is better")
    with canvas(8.0, 3.4, 1, 2, title, sharey=True) as (figure, both):
        for panel, kind, heading in zip(both, ("deletion", "insertion"), headings, strict=True):
            for policy, episodes in curves.items():
                mapped = np.array([getattr(episode, kind) for episode in episodes])
                chance = np.mean([episode.random for episode in episodes], 0)
                gain = np.mean([getattr(episode, f"{kind}_gain") for episode in episodes])
                fractions, shade = episodes[0].fractions, colour[policy]
                panel.plot(fractions, mapped.mean(0), color=shade, label=f"{label(policy)}: {gain:+.2f} nats")
                panel.plot(fractions, chance if kind == "deletion" else chance[::-1], color=shade, **RANDOM)
                if len(episodes) > 1:
                    low, high = np.transpose([mean_interval(column) for column in mapped.T])
                    high = np.minimum(high, 0)
                    panel.fill_between(fractions, low, high, color=shade, alpha=0.15, linewidth=0)
            panel.plot([], [], color=MUTED, label="random order", **RANDOM)
            panel.legend(title="better than random by", title_fontsize=8, alignment="left")
            per_cent(panel.xaxis)
            panel.set_title(heading)
            panel.set_xlabel("patches taken away" if kind == "deletion" else "patches put back")
        both[0].set_ylabel("log-probability of the own action (nats)")
    return figure


def cover_bars(summary: pd.DataFrame, title: str = "") -> Figure:
    """How far the action moves when each thing is covered: a bar a policy and fill, with its interval.

    Args:
        summary: of `faithfulness.summarise_cover`.
        title: above the bars.
    """
    measure = next(name for name in MEASURE_LABELS if name in summary)
    things, fills = (list(dict.fromkeys(summary[name])) for name in ("covered", "fill"))
    colour = colours(summary["policy"])
    places = beside_each_other(product(colour, fills))
    with canvas(8.0, 3.6) as (figure, (axes,)):
        for row in summary.itertuples():
            x = things.index(row.covered) + places[row.policy, row.fill]
            look = {"hatch": HATCHES[fills.index(row.fill) % 3], "edgecolor": "white"}
            bounded = (getattr(row, measure), row.low, row.high)
            bar(axes, x, bounded, 0.8 / len(places) * 0.86, colour[row.policy], **look)
        for number, fill in enumerate(fills):
            name = FILL_LABELS.get(fill, f"covered with {fill}")
            axes.bar(0, 0, color=MUTED, hatch=HATCHES[number % 3], edgecolor="white", label=name)
        area = summary.groupby("covered")["area"].mean()
        names = [f"{COVER_LABELS.get(thing, thing)}\n{area[thing]:.1%} of the area" for thing in things]
        name_bars(axes, names)
        axes.tick_params(axis="x", pad=3)
        axes.set_ylim(0, None)
        axes.set_ylabel(MEASURE_LABELS[measure])
        axes.legend(loc="upper left")
        note(axes, title)
        name_policies(figure, colour)
    return figure


def differences_table(tests: pd.DataFrame) -> pd.DataFrame:
    """Differences between two policies as text with their intervals and p-values: a row a measure and stage,
    a column a thing.

    Args:
        tests: tables of `grounding.compare_scores` put together, with columns measure and stage.

    Returns:
        Of text; shares and scores as fractions, so +0.010 is a percentage point of a share.
    """
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for row in tests.itertuples():
        sure = "one episode"
        if row.episodes > 1:
            sure = f"{row.low:+.3f} to {row.high:+.3f}, p {p_text(row.p_value)}"
        text = f"{row.difference:+.3f} ({sure})" if row.episodes else "not visible"
        rows.setdefault((row.measure, row.stage), {})[THING_LABELS.get(row.thing, row.thing)] = text
    columns = list(dict.fromkeys(thing for row in rows.values() for thing in row))
    return text_table(rows, columns, ["measure", "stage"])
