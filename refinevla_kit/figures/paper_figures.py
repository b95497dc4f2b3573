"""The paper's own figures that are neither attention (`overlays`, 1 and 6) nor training curves (4): how a
rationale is made and used (2) and what the training's choices do (8). And a run on one page.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.image import imread
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from refinevla_kit.episodes import EpisodeDataset
from refinevla_kit.evaluation.intervals import Rate
from refinevla_kit.evaluation.records import EpisodeRecord
from refinevla_kit.evaluation.training_seeds import WEIGHT, sweep
from refinevla_kit.figures.episodes import HEADINGS
from refinevla_kit.figures.style import (
    BLUE,
    DASHED,
    GREEN,
    GREY,
    INK,
    MUTED,
    ORANGE,
    VERMILION,
    canvas,
    colours,
    label,
    per_cent,
)
from refinevla_kit.simulator.contract import Array
from refinevla_kit.teacher.answers import StoredRationale
from refinevla_kit.teacher.schema import PARTS

FACTORS = {  # title and x axis
    WEIGHT: ("weight of the reasoning loss", "lambda"),
    "freeze_layers": ("selective transfer", "frozen language layers"),
    "share": ("fine-tuning data", "share of the demonstrations"),
}
PAPERS_WEIGHT = 0.3  # of the reasoning loss, where the paper has its peak
ARROWS = (  # of Figure 2: x and y, from and to
    ((3.1, 3.25), (3.7, 3.25)),
    ((5.4, 3.25), (6.0, 3.25)),
    ((1.6, 1.18), (1.6, 0.96)),
    ((9.7, 1.18), (9.7, 0.96)),
)


def annotated_segment(dataset: EpisodeDataset, answer: StoredRationale, keyframes: int = 3) -> Figure:
    """Figure 2: from a piece of a trajectory through the teacher to a four-part rationale, and to what is
    trained on.

    Args:
        dataset: whose episode it is.
        answer: must hold a rationale.
        keyframes: pictures of the piece.
    """
    assert answer.rationale is not None
    rows = [answer.start + place for place in moments(answer.end - answer.start, keyframes)]
    moved = dataset.actions(answer.episode)[answer.start : answer.end].sum(0)
    numbers = zip(dataset.action_names, moved[:6], strict=False)
    motion = ", ".join(f"{name} {value:+.3f}" for name, value in numbers)
    instruction = dataset.info(answer.episode).instruction
    frames = f"frames {answer.start} to {answer.end - 1}; sum of actions: {motion}"
    written = _short(f"<action> a_1 ... a_n <rationale> {answer.rationale.text()}", 150)
    loss = f"L = L_action + {PAPERS_WEIGHT:g} L_reasoning,   on (o, a, r)"
    with canvas(13.5, 5.6) as (figure, (axes,)):
        figure.set_layout_engine("none")
        axes.set_position((0, 0, 1, 1))
        axes.set(xlim=(0, 13.5), ylim=(0, 5.6), xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        _box(axes, (0.15, 1.2, 2.9, 4.15), "Trajectory  (o, a)", INK)
        _column(axes, dataset.images(answer.episode, rows))
        _text(axes, 0.3, 1.98, f"“{instruction}”\n{frames}", 42, fontsize=7.5)
        _box(axes, (3.75, 2.45, 1.6, 1.6), "Teacher", GREY)
        _text(axes, 4.55, 3.15, answer.teacher, 18, ha="center", va="center", fontsize=10)
        _box(axes, (6.05, 1.2, 7.3, 4.15), "Rationale  r", INK)
        shades = (BLUE, GREEN, ORANGE, VERMILION)
        for number, (part, heading, colour) in enumerate(zip(PARTS, HEADINGS, shades, strict=True)):
            top = 4.98 - number * 3.7 / len(PARTS)
            axes.text(6.2, top, heading, color=colour, fontweight="bold", fontsize=10.5, va="top")
            _text(axes, 6.2, top - 0.25, _short(getattr(answer.rationale, part), 330), 96, fontsize=9.5)
        _box(axes, (0.15, 0.12, 13.2, 0.8), "", INK)
        sequence = f"training sequence: [picture] {instruction} | {written}"
        _text(axes, 0.3, 0.66, sequence, 190, va="center", fontsize=8)
        axes.text(0.3, 0.3, loss, fontsize=9.5, color=VERMILION, fontweight="bold", va="center")
        for start, end in ARROWS:
            look: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 14, "linewidth": 1.6}
            axes.add_patch(FancyArrowPatch(start, end, color=MUTED, **look))
    return figure


def moments(length: int, count: int) -> list[int]:
    """`count` numbers evenly spread over 0 ... length - 1, ends included."""
    return sorted({round(float(place)) for place in np.linspace(0, length - 1, count)})


def _column(axes: Axes, images: Array) -> None:
    """Pictures below each other in the box of the trajectory."""
    height = 2.9 / len(images) - 0.08
    half = min(2.4, height * images.shape[2] / images.shape[1]) / 2
    for number, image in enumerate(images):
        top = 4.9 - number * (height + 0.08)
        axes.imshow(image, extent=(1.6 - half, 1.6 + half, top - height, top), zorder=3, aspect="auto")


def _box(axes: Axes, place: tuple[float, float, float, float], title: str, colour: str) -> None:
    """A frame at (x, y, width, height) with its title inside."""
    x, y, width, height = place
    look: dict[str, Any] = {"facecolor": "white", "edgecolor": colour, "linewidth": 1.2}
    round_corners = "round,pad=0,rounding_size=0.12"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=round_corners, **look))
    axes.text(x + 0.15, y + height - 0.2, title, fontsize=10, fontweight="bold", va="center", color=INK)


def _text(axes: Axes, x: float, y: float, text: str, width: int, va: str = "top", **look: Any) -> None:
    wrapped = "\n".join(textwrap.fill(line, width) for line in text.split("\n"))
    axes.text(x, y, wrapped, va=va, color=INK, linespacing=1.2, **look)


def _short(text: str, longest: int) -> str:
    return textwrap.shorten(text, longest, placeholder=" ...")


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
    """Panels of what was varied, by `sweeps.sweep`: those with more than the main comparison's own value.

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
    """Figure 8: success against what was varied, one panel each; bars are 95 % intervals with the checkpoints
    as they are.
    """
    colour = colours(list(dict.fromkeys(name for panel in panels for name in panel.lines)))
    with canvas(max(4.2, 3.3 * len(panels)), 3.2, columns=len(panels), sharey=True) as (figure, all_axes):
        for axes, panel in zip(all_axes, panels, strict=True):
            values = sorted({x for line in panel.lines.values() for x, _ in line})
            step = 0.06 * min([b - a for a, b in pairwise(values)], default=1.0)
            for number, (name, line) in enumerate(panel.lines.items()):
                shift, shade = step * (number - (len(panel.lines) - 1) / 2), colour[name]
                rates = [rate.rate for _, rate in line]
                axes.plot([x + shift for x, _ in line], rates, "o-", color=shade, markersize=5)
                for x, rate in line:
                    axes.plot([x + shift] * 2, [rate.low, rate.high], color=shade, linewidth=2.0, alpha=0.4)
            if panel.mark is not None:
                axes.axvline(panel.mark, color=MUTED, linewidth=1.0, linestyle=DASHED)
            look: dict[str, Any] = {"fontsize": 8, "color": MUTED, "va": "top"}
            look["bbox"] = {"color": "white", "pad": 1.0}
            axes.text(0.03, 0.98, panel.claim, transform=axes.transAxes, **look)
            axes.set_title(panel.title)
            axes.set_xlabel(panel.axis)
            axes.set_xticks(values, [f"{value:g}" for value in values])
            axes.set_ylim(-0.02, 1.02)
        per_cent(all_axes[0].yaxis)
        all_axes[0].set_ylabel("success, average of the tasks")
        if len(colour) > 1:
            for name, value in colour.items():
                all_axes[0].plot([], [], "o-", color=value, label=label(name))
            look = {"ncols": len(colour), "labelcolor": "linecolor", "fontsize": 9.5}
            figure.legend(loc="outside upper left", **look)
    return figure


def overview(rationales: str | Path, overlays: str | Path, success: str | Path) -> Figure:
    """A run on one page: what the teacher wrote at the left, where the policies look above how often they
    succeed at the right; pictures that notebooks 1, 4 and 3 saved (PNG).
    """
    with canvas(16, 8.2) as (figure, (only,)):
        only.remove()
        grid = GridSpec(2, 2, figure=figure, width_ratios=(6, 10), height_ratios=(37, 63))
        for cell, picture, title in (
            (grid[:, 0], rationales, "A teacher explains each piece of the robot's trajectory"),
            (grid[0, 1], overlays, "Where each action token looks, with the simulator's own outlines"),
            (grid[1, 1], success, "How often each policy succeeds, and how sure that is"),
        ):
            axes = figure.add_subplot(cell)
            axes.imshow(imread(picture), interpolation="antialiased")
            axes.set_axis_off()
            axes.set_anchor("NW")
            axes.set_title(title, fontsize=11)
    return figure
