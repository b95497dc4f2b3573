"""A controlled experiment as pictures: differences with their training seeds, and success against what was varied (the paper's Figure 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from refinevla_kit.evaluation.intervals import Rate
from refinevla_kit.evaluation.records import EpisodeRecord
from refinevla_kit.evaluation.sweeps import WEIGHT, sweep
from refinevla_kit.evaluation.training_seeds import SeedComparison
from refinevla_kit.figures.style import BLUE, GREY, INK, MUTED, VERMILION, beside, canvas, colours, label, p_text, points

FACTORS = {  # title and x axis
    WEIGHT: ("weight of the reasoning loss", "lambda"), "freeze_layers": ("selective transfer", "frozen language layers"),
    "share": ("fine-tuning data", "share of the demonstrations"),
}  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """One quantity that was varied.

    Attributes:
        title, axis: of the panel and its x axis.
        lines: policy's name -> its points (x, rate).
        mark: the value of x at which the paper has its peak, None where it has none on this scale. claim: what the paper says, in words.
    """

    title: str
    axis: str
    lines: Mapping[str, Sequence[tuple[float, Rate]]]
    mark: float | None = None
    claim: str = ""


def seed_differences(groups: Mapping[str, Mapping[str, SeedComparison]], claimed: float | None = None) -> Figure:
    """One line a contrast: the mean difference with its 95 % interval over training seeds, each seed's own difference as a tick beneath.

    The thin line is the interval with the checkpoints taken as they are. Lines without an interval over seeds (one seed) have the thin one alone.

    Args:
        groups: heading -> what a line is called -> the comparison.
        claimed: a gain to compare with, drawn across.
    """
    rows, y = list[tuple[float, str, SeedComparison]](), 0.0
    headings = dict[str, float]()
    for heading, group in groups.items():
        headings[heading] = y - 0.13
        y -= 0.75
        for name, one in group.items():
            rows.append((y, name, one))
            y -= 1.0
    with canvas(8.8, 1.2 + 0.36 * -y) as (figure, (axes,)):
        for height, _, one in rows:
            found = one.estimate
            told = found.known and found.low * found.high > 0
            if one.pooled:
                axes.plot([one.pooled.low, one.pooled.high], [height] * 2, color=GREY, linewidth=1.0)
            if found.known:
                axes.plot([found.low, found.high], [height] * 2, color=VERMILION, linewidth=4.5, alpha=0.4, solid_capstyle="butt")
            axes.plot(one.differences, [height - 0.3] * len(one.differences), "|", color=MUTED, markersize=6, markeredgewidth=1.1)
            axes.plot(found.mean, height, "o", color=VERMILION, markerfacecolor=VERMILION if told else "white", markersize=7)
            beside(axes, height, f"{100 * found.mean:+.1f}", p_text(found.p_value) if found.known else "one seed", f"{len(one.seeds)}", width=52)
        for heading, height in headings.items():
            axes.text(0, height, heading, transform=axes.get_yaxis_transform(), fontsize=9, fontweight="bold", va="center",
                      bbox={"color": "white", "pad": 1.0})  # fmt: skip
        beside(axes, 0.5, "points", "p", "seeds", width=52, color=MUTED)
        axes.axvline(0, color=INK, linewidth=0.8)
        if claimed is not None:
            axes.axvline(claimed, color=BLUE, linewidth=1.0, linestyle=(0, (4, 3)))
            text, place = f"the paper's {100 * claimed:+.1f}", ("data", "axes fraction")
            axes.annotate(text, (claimed, 1.0), (3, 1), place, "offset points", fontsize=8, color=BLUE)
        axes.set_yticks([height for height, _, _ in rows], [name for _, name, _ in rows])
        axes.set_ylim(y + 0.3, 0.8)
        points(axes)
        axes.grid(axis="y", visible=False)
        handles = [
            Line2D([], [], color=VERMILION, marker="o", markerfacecolor="white", markersize=7, linestyle="",
                   label="mean (filled: interval without 0)"),
            Line2D([], [], color=VERMILION, linewidth=4.5, alpha=0.4, label="95 %, over training seeds"),
            Line2D([], [], color=GREY, linewidth=1.0, label="95 %, these checkpoints"),
            Line2D([], [], color=MUTED, marker="|", markersize=6, markeredgewidth=1.1, linestyle="", label="one training seed"),
        ]  # fmt: skip
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    return figure


def sweep_panels(records: Sequence[EpisodeRecord], arms: Mapping[str, Mapping[str, Any]], claims: Mapping[str, str] | None = None) -> list[Panel]:
    """Panels of what was varied, by `sweeps.sweep`: those with more than the main comparison's own value.

    Args:
        records: of one setting. arms: see `sweep`. claims: factor -> what the paper says about it.
    """
    found = {factor: sweep(records, arms, factor) for factor in FACTORS}
    varied = {factor: lines for factor, lines in found.items() if max(map(len, lines.values()), default=0) > (2 if factor == WEIGHT else 1)}
    said = claims or {}
    return [Panel(*FACTORS[factor], lines, 0.3 if factor == WEIGHT else None, said.get(factor, "")) for factor, lines in varied.items()]


def sensitivity(panels: Sequence[Panel]) -> Figure:
    """Success against what was varied, one panel each, as the paper's Figure 8 has it; bars are 95 % intervals with the checkpoints as they are."""
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
                axes.annotate(panel.claim, (0.03, 0.98), xycoords="axes fraction", fontsize=8, color=MUTED, va="top", bbox=box)
            axes.set_title(panel.title)
            axes.set_xlabel(panel.axis)
            axes.set_xticks(values, [f"{value:g}" for value in values])
            axes.set_ylim(-0.02, 1.02)
        all_axes[0].yaxis.set_major_formatter(PercentFormatter(1.0))
        all_axes[0].set_ylabel("success, average of the tasks")
        handles = [all_axes[0].plot([], [], "o-", color=value, label=label(name))[0] for name, value in colour.items()]
        if len(colour) > 1:
            figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), labelcolor="linecolor", fontsize=9.5)
    return figure
