"""Success against what was varied in training, as the paper's Figure 8 has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from refinevla_kit.evaluation.intervals import Rate
from refinevla_kit.evaluation.records import EpisodeRecord
from refinevla_kit.evaluation.training_seeds import WEIGHT, sweep
from refinevla_kit.figures.style import MUTED, canvas, colours, label

FACTORS = {  # title and x axis
    WEIGHT: ("weight of the reasoning loss", "lambda"),
    "freeze_layers": ("selective transfer", "frozen language layers"),
    "share": ("fine-tuning data", "share of the demonstrations"),
}


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
    """Panels of what was varied, by `sweep`: those with more than the main comparison's own value.

    Args:
        records: of one setting.
        arms: see `sweep`.
        claims: factor -> what the paper says about it.
    """
    found = {factor: sweep(records, arms, factor) for factor in FACTORS}
    varied = {
        factor: lines
        for factor, lines in found.items()
        if max(map(len, lines.values()), default=0) > (2 if factor == WEIGHT else 1)
    }
    said = claims or {}
    return [
        Panel(*FACTORS[factor], lines, 0.3 if factor == WEIGHT else None, said.get(factor, ""))
        for factor, lines in varied.items()
    ]


def sensitivity(panels: Sequence[Panel]) -> Figure:
    """Success against what was varied, one panel each, as the paper's Figure 8 has it; bars are 95 %
    intervals with the checkpoints as they are.
    """
    colour = colours(list(dict.fromkeys(name for panel in panels for name in panel.lines)))
    with canvas(max(4.2, 3.3 * len(panels)), 3.2, columns=len(panels), sharey=True) as (figure, all_axes):
        for axes, panel in zip(all_axes, panels, strict=True):
            values = sorted({x for line in panel.lines.values() for x, _ in line})
            step = min([b - a for a, b in pairwise(values)], default=1.0)
            for number, (name, line) in enumerate(panel.lines.items()):
                shift = 0.06 * step * (number - (len(panel.lines) - 1) / 2)
                at = [x + shift for x, _ in line]
                axes.plot(at, [rate.rate for _, rate in line], "o-", color=colour[name], markersize=5)
                for x, (_, rate) in zip(at, line, strict=True):
                    axes.plot([x, x], [rate.low, rate.high], color=colour[name], linewidth=2.0, alpha=0.4)
            if panel.mark is not None:
                axes.axvline(panel.mark, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
            if panel.claim:
                box = {"color": "white", "pad": 1.0}
                axes.annotate(
                    panel.claim,
                    (0.03, 0.98),
                    xycoords="axes fraction",
                    fontsize=8,
                    color=MUTED,
                    va="top",
                    bbox=box,
                )
            axes.set_title(panel.title)
            axes.set_xlabel(panel.axis)
            axes.set_xticks(values, [f"{value:g}" for value in values])
            axes.set_ylim(-0.02, 1.02)
        all_axes[0].yaxis.set_major_formatter(PercentFormatter(1.0))
        all_axes[0].set_ylabel("success, average of the tasks")
        handles = [
            all_axes[0].plot([], [], "o-", color=value, label=label(name))[0]
            for name, value in colour.items()
        ]
        if len(colour) > 1:
            figure.legend(
                handles=handles,
                loc="outside upper left",
                ncols=len(handles),
                labelcolor="linecolor",
                fontsize=9.5,
            )
    return figure
