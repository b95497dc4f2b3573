"""The paper's Figure 8: success against what was varied in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from refinevla_kit.evaluation.intervals import Rate
from refinevla_kit.evaluation.records import EpisodeRecord
from refinevla_kit.evaluation.training_seeds import WEIGHT, sweep
from refinevla_kit.figures.style import DASHED, MUTED, canvas, colours, name_policies, offsets, per_cent

FACTORS = {  # title and x axis
    WEIGHT: ("weight of the reasoning loss", "lambda"),
    "freeze_layers": ("selective transfer", "frozen language layers"),
    "share": ("fine-tuning data", "share of the demonstrations"),
}
PAPERS_WEIGHT = 0.3  # of the reasoning loss, where the paper has its peak


@dataclass(frozen=True)
class Panel:
    """One quantity that was varied.

    Attributes:
        title, axis: of the panel and its x axis.
        lines: policy's name -> its points (x, rate).
        mark: the value of x at which the paper has its peak, None where it has none on this scale.
        claim: what the paper says, in words.
    """

    title: str
    axis: str
    lines: Mapping[str, Sequence[tuple[float, Rate]]]
    mark: float | None = None
    claim: str = ""


def sweep_panels(
    records: Sequence[EpisodeRecord],
    arms: Mapping[str, Mapping[str, Any]],
    claims: Mapping[str, str] | None = None,
) -> list[Panel]:
    """Panels of what was varied, by `training_seeds.sweep`: those with more than the main comparison's own
    value.

    Args:
        records: of one setting.
        arms: see `sweep`.
        claims: factor -> what the paper says about it.
    """
    panels = []
    for factor, (title, axis) in FACTORS.items():
        lines = sweep(records, arms, factor)
        own, mark = (2, PAPERS_WEIGHT) if factor == WEIGHT else (1, None)
        if max(map(len, lines.values()), default=0) > own:
            panels.append(Panel(title, axis, lines, mark, (claims or {}).get(factor, "")))
    return panels


def sensitivity(panels: Sequence[Panel]) -> Figure:
    """Success against what was varied, one panel each; bars are 95 % intervals with the checkpoints as they
    are.
    """
    colour = colours(list(dict.fromkeys(name for panel in panels for name in panel.lines)))
    with canvas(max(4.2, 3.3 * len(panels)), 3.2, columns=len(panels), sharey=True) as (figure, all_axes):
        for axes, panel in zip(all_axes, panels, strict=True):
            values = sorted({x for line in panel.lines.values() for x, _ in line})
            step = 0.06 * min([b - a for a, b in pairwise(values)], default=1.0)
            shifts = offsets(len(panel.lines), step * len(panel.lines))
            for shift, (name, line) in zip(shifts, panel.lines.items(), strict=True):
                places, rates, low, high = np.transpose([(x, *rate.bounded) for x, rate in line])
                reach = np.abs([low - rates, high - rates])
                axes.errorbar(places + shift, rates, reach, fmt="o-", color=colour[name], markersize=5)
            if panel.mark is not None:
                axes.axvline(panel.mark, color=MUTED, linewidth=1.0, linestyle=DASHED)
            look: dict[str, Any] = {"fontsize": 8, "color": MUTED, "bbox": {"color": "white", "pad": 1.0}}
            axes.text(0.03, 0.98, panel.claim, transform=axes.transAxes, va="top", **look)
            axes.set_title(panel.title)
            axes.set_xlabel(panel.axis)
            axes.set_xticks(values, [f"{value:g}" for value in values])
            axes.set_ylim(-0.02, 1.02)
        per_cent(all_axes[0].yaxis)
        all_axes[0].set_ylabel("success, average of the tasks")
        name_policies(figure, colour)
    return figure
