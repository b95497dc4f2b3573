"""What blocked attention, patched states, probes and edited texts show, each beside its control."""

from __future__ import annotations

import re

import pandas as pd
from matplotlib.figure import Figure

from refinevla_kit.figures.style import MUTED, beside_each_other, canvas, colours, label, name_policies

MEASURES = {
    "divergence": "the action moves by (nats)",
    "recovered": "turned into the other instruction's run\n(0: not at all, 1: wholly)",
    "accuracy": "read rightly on unseen episodes",
}
HEADINGS = {
    "image": "the picture",
    "state": "the robot's state",
    "instruction": "the instruction",
    "rationale": "the rationale",
    "action": "the action so far",
}


def by_layer(summary: pd.DataFrame, panels: str, layer: str = "layer", title: str = "") -> Figure:
    """A panel for each thing that was tried, a dot a policy and layer with its interval, controls hollow.

    Args:
        summary: of `grounding.over_episodes` or, with a column policy, of `interventions.probe`: columns
            policy, control, low, high, the layer's, the panels' and one of `MEASURES`.
        panels: column that has a panel for each of its values ("read", "place", "label").
        layer: column with the layer or band of layers; or with names, such as those of edits.
        title: below the panels.
    """
    measure = next(name for name in MEASURES if name in summary)
    things, layers = (list(dict.fromkeys(summary[name])) for name in (panels, layer))
    colour = colours(summary["policy"])
    beside = beside_each_other(colour, 0.5)
    with canvas(1.6 + 2.6 * len(things), 3.2, 1, len(things), sharey=True) as (figure, all_axes):
        for axes, thing in zip(all_axes, things, strict=True):
            for row in summary[summary[panels] == thing].to_dict("records"):
                x, y = layers.index(row[layer]) + beside[row["policy"]], row[measure]
                shade = colour[row["policy"]]
                axes.plot([x, x], [row["low"], row["high"]], color=shade, linewidth=2, alpha=0.45)
                axes.plot(x, y, "o", color=shade, markersize=5, mfc="white" if row["control"] else shade)
            axes.axhline(0, color=MUTED, linewidth=0.8)
            axes.set_xticks(range(len(layers)), [_from_one(name) for name in layers])
            if str(layers[0])[0].isdigit():
                axes.set_xlabel("layer, from the lowest")
            axes.set_title(HEADINGS.get(thing, label(thing)))
        all_axes[0].set_ylabel(MEASURES[measure])
        all_axes[-1].plot([], [], "o", color=MUTED, mfc="white", label="control")
        all_axes[-1].legend(loc="best")
        figure.supxlabel(title, fontsize=8, color=MUTED, x=0.01, ha="left")
        name_policies(figure, colour)
    return figure


def _from_one(layers: object) -> str:
    """Layers counted from 0 as they are shown, from 1: "0-4" as "1-5"; names as they are."""
    return re.sub(r"\d+", lambda number: str(int(number[0]) + 1), str(layers))
