"""The paper's own figures, drawn from the kit's data: 1 and 6 (attention), 2 (how a rationale is made and used). 4 and 8 are `training_curves` and
`experiment.sensitivity`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from refinevla_kit.figures.overlays import EVEN, Array, _name_outlines, _top, draw_overlay, times_even
from refinevla_kit.figures.style import BLUE, GREEN, GREY, INK, MUTED, ORANGE, VERMILION, canvas, colours, label

PART_NAMES = {
    "observation": "Observation", "situation_analysis": "Situation analysis", "spatial_reasoning": "Spatial reasoning",
    "task_planning": "Task planning",
}  # fmt: skip
PART_COLOURS = (BLUE, GREEN, ORANGE, VERMILION)


def attention_rows(
    images: Sequence[Array], maps: Mapping[str, Sequence[Array]], masks: Sequence[Mapping[str, Array]], captions: Sequence[str], title: str = ""
) -> Figure:
    """Figures 1 and 6: moments of an episode in a row, the attention of each policy in a row below, all on one scale.

    Args:
        images: uint8 (H, W, 3) each. maps: policy -> float (rows, columns) an image. masks: thing -> bool (H, W), an image. captions: one an image.
    """
    heats = {policy: [times_even(one, image.shape) for one, image in zip(row, images, strict=True)] for policy, row in maps.items()}
    norm, columns, shape = Normalize(0, _top([heat for row in heats.values() for heat in row])), len(images), images[0].shape[0] / images[0].shape[1]
    colour, rows = colours([*maps]), len(maps) + 1
    with canvas(2.1 * columns + 0.9, (2.1 * shape + 0.08) * rows + 0.75, rows, columns) as (figure, axes):
        for column, (image, caption) in enumerate(zip(images, captions, strict=True)):
            axes[column].imshow(image)
            axes[column].set_axis_off()
            axes[column].set_title(caption, loc="center", fontweight="normal", fontsize=8.5)
        for row, (policy, stack) in enumerate(heats.items(), 1):
            for column, heat in enumerate(stack):
                draw_overlay(axes[row * columns + column], images[column], heat, masks[column], norm, thickness=4)
            first = axes[row * columns]
            name = textwrap.fill(label(policy), 16)
            first.text(-0.04, 0.5, name, rotation=90, ha="right", va="center", transform=first.transAxes, color=colour[policy], fontweight="bold")
        bar = figure.colorbar(axes[columns].images[1], ax=axes, shrink=0.85, pad=0.01, aspect=28, extend="max")
        bar.set_label(EVEN, fontsize=7.5)
        bar.outline.set_visible(False)  # type: ignore[operator]
        _name_outlines(figure, masks[0])
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    return figure


def annotation_pipeline(
    images: Sequence[Array], instruction: str, actions: str, teacher: str, rationale: Mapping[str, str], sequence: str, weight: float = 0.3
) -> Figure:
    """Figure 2: from a piece of a trajectory through the teacher to a four-part rationale, and to what is trained on.

    Args:
        images: keyframes, uint8 (H, W, 3). actions: what the robot does in the piece, in a line. teacher: its name.
        rationale: part -> text, in order. sequence: the training sequence's answer, in a line. weight: of the reasoning loss.
    """
    with canvas(13.5, 5.6) as (figure, (axes,)):
        figure.set_layout_engine("none")
        axes.set_position((0, 0, 1, 1))
        axes.set(xlim=(0, 13.5), ylim=(0, 5.6), xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        _box(axes, 0.15, 1.2, 2.9, 4.15, "Trajectory  (o, a)", INK)
        height = 3.3 / len(images) - 0.1
        width = min(2.4, height * images[0].shape[1] / images[0].shape[0])
        for number, image in enumerate(images):
            top = 4.9 - number * (height + 0.08)
            axes.imshow(image, extent=(1.6 - width / 2, 1.6 + width / 2, top - height, top), zorder=3, aspect="auto")
        _text(axes, 0.3, 1.52, f"“{instruction}”\n{actions}", 34, va="center", size=8)
        _box(axes, 3.75, 2.45, 1.6, 1.6, "Teacher", GREY)
        _text(axes, 4.55, 3.15, teacher, 18, ha="center", va="center", size=10)
        _box(axes, 6.05, 1.2, 7.3, 4.15, "Rationale  r", INK)
        step = 3.7 / len(rationale)
        for number, ((part, text), colour) in enumerate(zip(rationale.items(), PART_COLOURS, strict=True)):
            top = 4.98 - number * step
            axes.text(6.2, top, PART_NAMES.get(part, part), color=colour, fontweight="bold", fontsize=9.5, va="top")
            _text(axes, 6.2, top - 0.21, _short(text, 320), 112, va="top", size=8)
        _box(axes, 0.15, 0.12, 13.2, 0.8, "", INK)
        _text(axes, 0.3, 0.66, f"training sequence: [picture] {instruction} | {sequence}", 190, va="center", size=8)
        axes.text(0.3, 0.3, f"L = L_action + {weight:g} L_reasoning,   on (o, a, r)", fontsize=9.5, color=VERMILION, fontweight="bold", va="center")
        for start, end in (((3.1, 3.25), (3.7, 3.25)), ((5.4, 3.25), (6.0, 3.25)), ((1.6, 1.18), (1.6, 0.96)), ((9.7, 1.18), (9.7, 0.96))):
            axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color=MUTED, linewidth=1.6))
    return figure


def _box(axes: Axes, x: float, y: float, width: float, height: float, title: str, colour: str) -> None:
    style = "round,pad=0,rounding_size=0.12"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor="white", edgecolor=colour, linewidth=1.2))
    if title:
        axes.text(x + 0.15, y + height - 0.2, title, fontsize=10, fontweight="bold", va="center", color=INK)


def _text(axes: Axes, x: float, y: float, text: str, width: int, ha: str = "left", va: str = "top", size: float = 8.5) -> None:
    wrapped = "\n".join(textwrap.fill(line, width) for line in text.split("\n"))
    axes.text(x, y, wrapped, fontsize=size, ha=ha, va=va, color=INK, linespacing=1.2)


def _short(text: str, longest: int) -> str:
    return textwrap.shorten(text, longest, placeholder=" ...")


def moments(length: int, count: int) -> list[int]:
    """`count` numbers evenly spread over 0 ... length - 1, ends included."""
    return sorted({round(float(one)) for one in np.linspace(0, length - 1, count)})
