"""The paper's own figures, drawn from the kit's data: 1 and 6 (attention), 2 (how a rationale is made and
used). 4 and 8 are `training_curves` and `experiment.sensitivity`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from refinevla_kit.attention.captured import Frame
from refinevla_kit.episodes import EpisodeDataset
from refinevla_kit.figures.overlays import (
    EVEN,
    LARGEST,
    OUTLINES,
    THING_LABELS,
    Array,
    draw_overlay,
    times_even,
)
from refinevla_kit.figures.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MUTED,
    ORANGE,
    VERMILION,
    canvas,
    colours,
    label,
)
from refinevla_kit.teacher.answers import StoredRationale
from refinevla_kit.teacher.schema import PARTS

PART_NAMES = {
    "observation": "Observation",
    "situation_analysis": "Situation analysis",
    "spatial_reasoning": "Spatial reasoning",
    "task_planning": "Task planning",
}
PART_COLOURS = (BLUE, GREEN, ORANGE, VERMILION)


def attention_rows(frames: Sequence[Frame], maps: Mapping[str, Sequence[Array]], title: str = "") -> Figure:
    """Figures 1 and 6: moments of an episode in a row, the attention of each policy in a row below, all on
    one scale.

    Args:
        frames: the moments.
        maps: policy -> float (rows, columns) a moment, as `fused_maps` gives them.
    """
    images, masks = [frame.image for frame in frames], [frame.masks for frame in frames]
    heats = {
        policy: [times_even(one, image.shape) for one, image in zip(row, images, strict=True)]
        for policy, row in maps.items()
    }
    norm, columns, shape = Normalize(0, LARGEST), len(images), images[0].shape[0] / images[0].shape[1]
    colour, rows, outlined = (
        colours([*maps]),
        len(maps) + 1,
        [name for name in OUTLINES if any(name in one for one in masks)],
    )
    with canvas(2.1 * columns + 0.9, (2.1 * shape + 0.08) * rows + 0.75, rows, columns) as (figure, axes):
        for column, frame in enumerate(frames):
            axes[column].imshow(frame.image)
            axes[column].set_axis_off()
            axes[column].set_title(
                f"step {frame.step}: {frame.phase}", loc="center", fontweight="normal", fontsize=8.5
            )
        for row, (policy, stack) in enumerate(heats.items(), 1):
            for column, heat in enumerate(stack):
                draw_overlay(
                    axes[row * columns + column], images[column], heat, masks[column], norm, thickness=4
                )
            first = axes[row * columns]
            name = textwrap.fill(label(policy), 16)
            first.text(
                -0.04,
                0.5,
                name,
                rotation=90,
                ha="right",
                va="center",
                transform=first.transAxes,
                color=colour[policy],
                fontweight="bold",
            )
        bar = figure.colorbar(
            axes[columns].images[1], ax=axes, shrink=0.85, pad=0.01, aspect=28, extend="max"
        )
        bar.set_label(EVEN, fontsize=7.5)
        bar.outline.set_visible(False)  # type: ignore[operator]
        handles = [
            Line2D([], [], color=OUTLINES[name], linewidth=2, label=THING_LABELS[name]) for name in outlined
        ]
        if handles:
            figure.legend(
                handles=handles, loc="outside lower left", ncols=len(handles), fontsize=8, handlelength=1.2
            )
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    return figure


def fused_maps(policy: Any, frames: Sequence[Frame], k: int = 3) -> list[Array]:
    """What `attention_rows` draws of a policy: for each frame its k strongest maps of the upper layers as
    one.
    """
    from refinevla_kit.attention.captured import upper_middle  # needs torch; the pictures alone do not
    from refinevla_kit.attention.flows import fuse_top
    from refinevla_kit.attention.forward import capture

    seen = [capture(policy, one.image, one.instruction, None, None, one.proprioception) for one in frames]
    return [fuse_top(one.patches, k, upper_middle(one.layers)).reshape(one.grid) for one in seen]


def annotated_segment(dataset: EpisodeDataset, answer: StoredRationale, keyframes: int = 3) -> Figure:
    """`annotation_pipeline` of one answered segment of a dataset. `answer` must hold a rationale."""
    assert answer.rationale is not None
    rows = [answer.start + place for place in moments(answer.end - answer.start, keyframes)]
    moved = dataset.actions(answer.episode)[answer.start : answer.end].sum(0)
    instruction = next(one.instruction for one in dataset.episodes if one.index == answer.episode)
    names = ", ".join(
        f"{name} {value:+.3f}" for name, value in zip(dataset.action_names, moved[:6], strict=False)
    )
    says = f"<action> a_1 ... a_n <rationale> {answer.rationale.text()}"
    return annotation_pipeline(
        list(dataset.images(answer.episode, rows)),
        instruction,
        f"frames {answer.start} to {answer.end - 1}; sum of actions: {names}",
        answer.teacher,
        {part: getattr(answer.rationale, part) for part in PARTS},
        _short(says, 150),
    )


def annotation_pipeline(
    images: Sequence[Array],
    instruction: str,
    actions: str,
    teacher: str,
    rationale: Mapping[str, str],
    sequence: str,
    weight: float = 0.3,
) -> Figure:
    """Figure 2: from a piece of a trajectory through the teacher to a four-part rationale, and to what is
    trained on.

    Args:
        images: keyframes, uint8 (H, W, 3).
        actions: what the robot does in the piece, in a line.
        teacher: its name.
        rationale: part -> text, in order.
        sequence: the training sequence's answer, in a line.
        weight: of the reasoning loss.
    """
    with canvas(13.5, 5.6) as (figure, (axes,)):
        figure.set_layout_engine("none")
        axes.set_position((0, 0, 1, 1))
        axes.set(xlim=(0, 13.5), ylim=(0, 5.6), xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        _box(axes, 0.15, 1.2, 2.9, 4.15, "Trajectory  (o, a)", INK)
        height = 2.9 / len(images) - 0.08
        width = min(2.4, height * images[0].shape[1] / images[0].shape[0])
        for number, image in enumerate(images):
            top = 4.9 - number * (height + 0.08)
            axes.imshow(
                image, extent=(1.6 - width / 2, 1.6 + width / 2, top - height, top), zorder=3, aspect="auto"
            )
        _text(axes, 0.3, 1.98, f"“{instruction}”\n{actions}", 42, size=7.5)
        _box(axes, 3.75, 2.45, 1.6, 1.6, "Teacher", GREY)
        _text(axes, 4.55, 3.15, teacher, 18, ha="center", va="center", size=10)
        _box(axes, 6.05, 1.2, 7.3, 4.15, "Rationale  r", INK)
        step = 3.7 / len(rationale)
        for number, ((part, text), colour) in enumerate(zip(rationale.items(), PART_COLOURS, strict=True)):
            top = 4.98 - number * step
            axes.text(
                6.2, top, PART_NAMES.get(part, part), color=colour, fontweight="bold", fontsize=10.5, va="top"
            )
            _text(axes, 6.2, top - 0.25, _short(text, 330), 96, size=9.5)
        _box(axes, 0.15, 0.12, 13.2, 0.8, "", INK)
        _text(
            axes,
            0.3,
            0.66,
            f"training sequence: [picture] {instruction} | {sequence}",
            190,
            va="center",
            size=8,
        )
        axes.text(
            0.3,
            0.3,
            f"L = L_action + {weight:g} L_reasoning,   on (o, a, r)",
            fontsize=9.5,
            color=VERMILION,
            fontweight="bold",
            va="center",
        )
        for start, end in (
            ((3.1, 3.25), (3.7, 3.25)),
            ((5.4, 3.25), (6.0, 3.25)),
            ((1.6, 1.18), (1.6, 0.96)),
            ((9.7, 1.18), (9.7, 0.96)),
        ):
            axes.add_patch(
                FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color=MUTED, linewidth=1.6)
            )
    return figure


def _box(axes: Axes, x: float, y: float, width: float, height: float, title: str, colour: str) -> None:
    style = "round,pad=0,rounding_size=0.12"
    axes.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle=style, facecolor="white", edgecolor=colour, linewidth=1.2
        )
    )
    if title:
        axes.text(x + 0.15, y + height - 0.2, title, fontsize=10, fontweight="bold", va="center", color=INK)


def _text(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    width: int,
    ha: str = "left",
    va: str = "top",
    size: float = 8.5,
) -> None:
    wrapped = "\n".join(textwrap.fill(line, width) for line in text.split("\n"))
    axes.text(x, y, wrapped, fontsize=size, ha=ha, va=va, color=INK, linespacing=1.2)


def _short(text: str, longest: int) -> str:
    return textwrap.shorten(text, longest, placeholder=" ...")


def moments(length: int, count: int) -> list[int]:
    """`count` numbers evenly spread over 0 ... length - 1, ends included."""
    return sorted({round(float(one)) for one in np.linspace(0, length - 1, count)})
