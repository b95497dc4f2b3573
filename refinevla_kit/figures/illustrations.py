"""Pictures that explain: how a piece of a trajectory becomes a rationale and a training sequence (the paper's
Figure 2), and a whole run on one page.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.image import imread
from matplotlib.patches import FancyBboxPatch

from refinevla_kit.episodes import EpisodeDataset
from refinevla_kit.episodes.columns import filled
from refinevla_kit.figures.episodes import HEADINGS
from refinevla_kit.figures.sensitivity import PAPERS_WEIGHT
from refinevla_kit.figures.style import BLUE, GREEN, GREY, INK, MUTED, ORANGE, VERMILION, canvas, page
from refinevla_kit.teacher.answers import StoredRationale
from refinevla_kit.teacher.schema import PARTS

ARROWS = (  # of Figure 2, inches: x and y, from and to
    ((3.1, 3.25), (3.7, 3.25)),
    ((5.4, 3.25), (6.0, 3.25)),
    ((1.6, 1.18), (1.6, 0.96)),
    ((9.7, 1.18), (9.7, 0.96)),
)


def annotated_segment(dataset: EpisodeDataset, answer: StoredRationale) -> Figure:
    """Figure 2: from a piece of a trajectory through the teacher to a four-part rationale, and to what is
    trained on.

    Args:
        dataset: whose episode it is.
        answer: must hold a rationale.
    """
    assert answer.rationale is not None
    rows = [answer.start + place for place in moments(answer.end - answer.start, 3)]
    acted = filled(dataset.actions(answer.episode)[answer.start : answer.end], dataset.deltas)
    moved = acted.sum(0) if dataset.deltas else acted[-1] - acted[0]
    motion = ", ".join(f"{name} {value:+.3f}" for name, value in zip(dataset.action_names, moved[:6]))
    instruction = dataset.instructions(answer.episode)[answer.start]
    what = "sum" if dataset.deltas else "change"  # of positions a sum means nothing
    frames = f"frames {answer.start} to {answer.end - 1}; {what} of actions: {motion}"
    written = _short(f"<action> a_1 ... a_n <rationale> {answer.rationale.text()}", 150)
    with canvas(13.5, 5.6) as (figure, (axes,)):
        figure.set_layout_engine("none")
        axes.set(position=(0, 0, 1, 1), xlim=(0, 13.5), ylim=(0, 5.6))
        axes.set_axis_off()
        _box(axes, (0.15, 1.2, 2.9, 4.15), "Trajectory  (o, a)")
        height = 2.9 / len(rows)
        for number, image in enumerate(dataset.images(answer.episode, rows)):  # below each other
            top, half = 4.9 - number * height, (height - 0.08) * image.shape[1] / image.shape[0] / 2
            place = (1.6 - half, 1.6 + half, top - height + 0.08, top)
            axes.imshow(image, extent=place, zorder=3, aspect="auto")
        _text(axes, 0.3, 1.98, f"“{instruction}”\n{frames}", 42, fontsize=7.5)
        _box(axes, (3.75, 2.45, 1.6, 1.6), "Teacher", GREY)
        _text(axes, 4.55, 3.15, answer.teacher, 18, ha="center", va="center", fontsize=10)
        _box(axes, (6.05, 1.2, 7.3, 4.15), "Rationale  r")
        shades = (BLUE, GREEN, ORANGE, VERMILION)
        for number, (part, heading, colour) in enumerate(zip(PARTS, HEADINGS, shades, strict=True)):
            top = 4.98 - number * 3.7 / len(PARTS)
            _text(axes, 6.2, top, heading, 96, color=colour, fontweight="bold", fontsize=10.5)
            _text(axes, 6.2, top - 0.25, _short(getattr(answer.rationale, part), 330), 96, fontsize=9.5)
        _box(axes, (0.15, 0.12, 13.2, 0.8), "")
        sequence = f"training sequence: [picture] {instruction} | {written}"
        _text(axes, 0.3, 0.66, sequence, 190, va="center", fontsize=8)
        loss = f"L = L_action + {PAPERS_WEIGHT:g} L_reasoning,   on (o, a, r)"
        _text(axes, 0.3, 0.3, loss, 96, va="center", fontsize=9.5, color=VERMILION, fontweight="bold")
        for start, end in ARROWS:
            axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": MUTED, "linewidth": 1.6})
    return figure


def moments(length: int, count: int) -> list[int]:
    """`count` numbers evenly spread over 0 ... length - 1, ends included."""
    return sorted({round(float(place)) for place in np.linspace(0, length - 1, count)})


def _box(axes: Axes, place: tuple[float, float, float, float], title: str, colour: str = INK) -> None:
    """A frame at (x, y, width, height) with its title inside."""
    x, y, width, height = place
    style = "round,pad=0,rounding_size=0.12"
    box = FancyBboxPatch((x, y), width, height, style, facecolor="white", edgecolor=colour, linewidth=1.2)
    axes.add_patch(box)
    _text(axes, x + 0.15, y + height - 0.2, title, 96, va="center", fontsize=10, fontweight="bold")


def _text(axes: Axes, x: float, y: float, text: str, width: int, va: str = "top", **look: Any) -> None:
    wrapped = "\n".join(textwrap.fill(line, width) for line in text.split("\n"))
    axes.text(x, y, wrapped, va=va, linespacing=1.2, **look)


def _short(text: str, longest: int) -> str:
    return textwrap.shorten(text, longest, placeholder=" ...")


OVERVIEW = {
    "01_teacher_annotation/rationale_cards.png": "A teacher explains each piece of the robot's trajectory",
    "04_attention_maps/overlays.png": "Where each action token looks, with the simulator's own outlines",
    "03_simpler_evaluation/success.png": "How often each policy succeeds, and how sure that is",
}


def overview(run: str | Path) -> Figure | None:
    """A run on one page: what the teacher wrote at the left, where the policies look above how often they
    succeed at the right; of the pictures that notebooks 1, 4 and 3 left in its folder, None without them.
    """
    pictures = [Path(run) / name for name in OVERVIEW]
    if not all(picture.is_file() for picture in pictures):
        return None
    with page(16, 8.2) as figure:
        grid = GridSpec(2, 2, figure=figure, width_ratios=(6, 10), height_ratios=(37, 63))
        cells = grid[:, 0], grid[0, 1], grid[1, 1]
        for cell, picture, title in zip(cells, pictures, OVERVIEW.values(), strict=True):
            axes = figure.add_subplot(cell)
            axes.imshow(imread(picture), interpolation="antialiased")
            axes.set_axis_off()
            axes.set_anchor("NW")
            axes.set_title(title, fontsize=11)
    return figure
