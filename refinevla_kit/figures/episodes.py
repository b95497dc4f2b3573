"""Pictures of an episode: its frames with the segments they belong to, its actions over time, and a rationale
beside the frames it speaks of.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from refinevla_kit.episodes import EpisodeDataset
from refinevla_kit.episodes.columns import filled
from refinevla_kit.episodes.segments import Segment
from refinevla_kit.figures.style import BLUE, GREEN, MUTED, ORANGE, PINK, SKY, VERMILION, canvas
from refinevla_kit.teacher.answers import StoredRationale
from refinevla_kit.teacher.schema import PARTS

Array = NDArray[Any]

COLOURS = (BLUE, VERMILION, GREEN, ORANGE, SKY, PINK)  # of segments, in turn
HEADINGS = ("Observation", "Situation analysis", "Spatial reasoning", "Task planning")
BUSIEST = 6  # curves drawn of a robot whose action is not the seven of this kit


def contact_sheet(
    images: Array, frames: Sequence[int], segments: Sequence[Segment], title: str = "", columns: int = 6
) -> Figure:
    """Pictures in reading order, each framed in the colour of its segment.

    Args:
        images: uint8 (K, H, W, 3).
        frames: their K frame numbers.
        segments: of the whole episode.
        title: above the sheet.
        columns: pictures a row.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    tall = 2.0 * images.shape[1] / images.shape[2] + 0.3
    with canvas(2.0 * columns, rows * tall + 0.4, rows, columns) as (figure, axes):
        for ax, image, frame in zip(axes, images, frames, strict=False):
            number = next(
                (i for i, segment in enumerate(segments) if segment.start <= frame < segment.end), 0
            )
            _picture(ax, image, COLOURS[number % len(COLOURS)])
            ax.set_title(f"frame {frame}, segment {number}", fontsize=8, fontweight="normal")
        for ax in axes[len(images) :]:
            ax.set_axis_off()
        figure.suptitle(title, fontsize=10)
    return figure


def action_curves(
    actions: Array,
    segments: Sequence[Segment],
    names: Sequence[str] = (),
    fps: float = 5,
    deltas: bool | None = True,
    title: str = "",
) -> Figure:
    """Actions over time with the segments as bands.

    Args:
        actions: float (T, A). With `deltas` (of a dataset: `metric`) and A = 7: metres and radians a step and
            the gripper command, drawn as cm, degrees and command; otherwise the `BUSIEST` dimensions with the
            largest range are drawn as recorded. A missing number is a gap.
        segments: of the whole episode.
        names: of the A dimensions, () for numbers.
        fps: frames a second.
        title: above the curves.
    """
    labels = (
        list(names) if len(names) == actions.shape[1] else [f"action {i}" for i in range(actions.shape[1])]
    )
    if deltas and actions.shape[1] == 7:
        panels = [
            ("move (cm a step)", [0, 1, 2], 100.0),
            ("turn (degrees a step)", [3, 4, 5], 180 / np.pi),
            ("gripper (as commanded)", [6], 1.0),
        ]
    else:
        busiest = np.sort(np.argsort(-np.ptp(filled(actions, deltas), axis=0), kind="stable")[:BUSIEST])
        panels = [
            (
                f"as recorded, the {len(busiest)} of {actions.shape[1]} with the largest range",
                busiest.tolist(),
                1.0,
            )
        ]
    time = np.append(np.arange(len(actions)), len(actions)) / fps  # an action lasts until the next frame
    with canvas(10, 0.6 + (1.5 if len(panels) > 1 else 3.2) * len(panels), len(panels), sharex=True) as (
        figure,
        axes,
    ):
        for ax, (label, dimensions, scale) in zip(axes, panels, strict=True):
            for i, segment in enumerate(segments):
                ax.axvspan(
                    segment.start / fps,
                    segment.end / fps,
                    color=COLOURS[i % len(COLOURS)],
                    alpha=0.15,
                    linewidth=0,
                )
                if ax is axes[0]:
                    middle = (segment.start + segment.end) / 2 / fps
                    ax.text(
                        middle,
                        1.0,
                        f"{i}",
                        ha="center",
                        va="top",
                        fontsize=7,
                        transform=ax.get_xaxis_transform(),
                    )
            drawn = np.where(np.isfinite(actions), actions, np.nan)
            for i in dimensions:
                ax.step(
                    time,
                    np.append(drawn[:, i], drawn[-1, i]) * scale,
                    where="post",
                    label=labels[i],
                    linewidth=1.2,
                )
            ax.set_title(label, fontsize=8, fontweight="normal")
            ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
            ax.margins(x=0)
        axes[-1].set_xlabel("time (s); the bands are the segments")
        figure.suptitle(title, fontsize=10)
    return figure


def rationale_cards(dataset: EpisodeDataset, answers: Sequence[StoredRationale]) -> Figure:
    """One row an answer: on the left the frame it speaks of, with the outlines of the simulator's masks where
    there are any; on the right the four parts, or the refusal. `answers` must not be empty.
    """
    with canvas(10, 2.25 * len(answers), len(answers), 2, width_ratios=[1, 2.4]) as (figure, axes):
        for left, right, answer in zip(axes[::2], axes[1::2], answers, strict=True):
            _picture(left, dataset.images(answer.episode, [answer.start])[0], MUTED)
            left.set_title(
                f"episode {answer.episode}, frames {answer.start} to {answer.end - 1}",
                fontsize=8,
                fontweight="normal",
            )
            shown = {
                name: mask[answer.start]
                for name, mask in (dataset.masks(answer.episode) or {}).items()
                if name != "arm"
            }
            for (name, mask), colour in zip(shown.items(), COLOURS, strict=False):
                _outline(left, name, mask, colour)
            right.set_axis_off()
            right.text(
                0, 1, _card_text(answer), fontsize=9.5, va="top", linespacing=1.25, transform=right.transAxes
            )
    return figure


def _outline(ax: Axes, name: str, mask: Array, colour: str) -> None:
    if not mask.any():
        return
    if not mask.all():
        ax.contour(mask, levels=[0.5], colors=colour, linewidths=1)
    rows, columns = np.nonzero(mask)
    y, align = (rows.min() - 2, "bottom") if rows.min() > mask.shape[0] // 8 else (rows.max() + 3, "top")
    box = {"facecolor": colour, "edgecolor": "none", "pad": 1, "alpha": 0.8}
    ax.text(columns.mean(), y, name, fontsize=6, ha="center", va=align, color="white", bbox=box)


def _picture(ax: Axes, image: Array, colour: str) -> None:
    ax.imshow(image)
    ax.grid(visible=False)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set(color=colour, linewidth=3, visible=True)


def _card_text(answer: StoredRationale) -> str:
    if answer.rationale is None:
        assert answer.refusal is not None
        return textwrap.fill(f"Refused ({answer.refusal.kind}): {answer.refusal.reason}", 88)
    wrapped = (textwrap.fill(getattr(answer.rationale, part), 88) for part in PARTS)
    return "\n".join(
        f"$\\bf{{{heading.replace(' ', '~')}}}$\n{text}"
        for heading, text in zip(HEADINGS, wrapped, strict=True)
    )
