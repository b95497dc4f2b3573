"""Pictures of an episode: its frames with the segments they belong to, its actions over time, a rationale
beside the frames it speaks of, and what a played one came to.
"""

from __future__ import annotations

import textwrap
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from refinevla_kit.episodes import EpisodeDataset
from refinevla_kit.episodes.columns import filled
from refinevla_kit.episodes.segments import Segment
from refinevla_kit.evaluation.replay import Rollout
from refinevla_kit.figures.overlays import Line, Plot, outline, show_picture
from refinevla_kit.figures.style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PINK,
    SKY,
    VERMILION,
    canvas,
    label,
    note,
)
from refinevla_kit.simulator.contract import ACTION_NAMES, Array
from refinevla_kit.teacher.answers import StoredRationale
from refinevla_kit.teacher.schema import PARTS

COLOURS = (BLUE, VERMILION, GREEN, ORANGE, SKY, PINK)  # of segments, in turn; of x, y, z
HEADINGS = ("Observation", "Situation analysis", "Spatial reasoning", "Task planning")
BUSIEST = 6  # curves drawn of a robot whose action is not the seven of this kit
SCALES = (0.5, 1.0, 2.0, 4.0, 5.0, 10.0, 20.0, 40.0, 50.0, 100.0, 200.0, 400.0)
ENDINGS = {
    "budget": "",
    "terminated": ", ended by the policy",
    "physics": ", the physics broke",
    "crash": ", its simulator crashed",
}


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
    starts = [segment.start for segment in segments]
    with canvas(2.0 * columns, rows * tall + 0.4, rows, columns, title) as (figure, axes):
        for ax, image, frame in zip(axes, images, frames):
            number = max(0, bisect_right(starts, frame) - 1)
            _framed(ax, image, COLOURS[number % len(COLOURS)], f"frame {frame}, segment {number}")
        for ax in axes[len(images) :]:
            ax.set_axis_off()
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
        actions: float (T, A). With `deltas` (of a dataset: `metric`) and A = 7 these are metres and radians a
            step and the gripper command, drawn as cm, degrees and command. Of others the `BUSIEST` dimensions
            with the largest range are drawn as recorded. A missing number is a gap.
        segments: of the whole episode.
        names: of the A dimensions, () for numbers.
        fps: frames a second.
        deltas: the numbers are displacements.
        title: above the curves.
    """
    count = actions.shape[1]
    if len(names) != count:
        names = [f"action {number}" for number in range(count)]
    if deltas and count == 7:
        panels: dict[str, tuple[list[int], float]] = {
            "move (cm a step)": ([0, 1, 2], 100.0),
            "turn (degrees a step)": ([3, 4, 5], 180 / np.pi),
            "gripper (as commanded)": ([6], 1.0),
        }
    else:
        busiest = busiest_of(np.ptp(filled(actions, deltas), axis=0))
        panels = {f"as recorded, the {len(busiest)} of {count} with the largest range": (busiest, 1.0)}
    time = np.arange(len(actions) + 1) / fps  # an action lasts until the next frame
    drawn = np.where(np.isfinite(actions), actions, np.nan)
    drawn = np.concatenate([drawn, drawn[-1:]])
    tall = 0.6 + (1.5 if len(panels) > 1 else 3.2) * len(panels)
    with canvas(10, tall, len(panels), title=title, sharex=True) as (figure, axes):
        for ax, (heading, (dimensions, scale)) in zip(axes, panels.items(), strict=True):
            for number, segment in enumerate(segments):
                colour = COLOURS[number % len(COLOURS)]
                ax.axvspan(segment.start / fps, segment.end / fps, color=colour, alpha=0.15, linewidth=0)
            for place in dimensions:
                ax.step(time, drawn[:, place] * scale, where="post", label=names[place], linewidth=1.2)
            note(ax, heading)
            ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
            ax.margins(x=0)
        for number, segment in enumerate(segments):
            middle, inside = (segment.start + segment.end) / 2 / fps, axes[0].get_xaxis_transform()
            axes[0].text(middle, 1.0, f"{number}", ha="center", va="top", fontsize=7, transform=inside)
        axes[-1].set_xlabel("time (s); the bands are the segments")
    return figure


def busiest_of(moved: Array) -> list[int]:
    """The dimensions that moved most of float (A,), at most `BUSIEST`, in their order."""
    return sorted(np.argsort(-np.abs(moved), kind="stable")[:BUSIEST].tolist())


def rationale_cards(dataset: EpisodeDataset, answers: Sequence[StoredRationale]) -> Figure:
    """One row an answer: on the left the frame it speaks of, with the outlines of the simulator's masks where
    there are any; on the right the four parts, or the refusal. `answers` must not be empty.
    """
    with canvas(10, 2.25 * len(answers), len(answers), 2, width_ratios=[1, 2.4]) as (figure, axes):
        for left, right, answer in zip(axes[::2], axes[1::2], answers, strict=True):
            title = f"episode {answer.episode}, frames {answer.start} to {answer.end - 1}"
            _framed(left, dataset.images(answer.episode, [answer.start])[0], MUTED, title)
            masks = dataset.masks(answer.episode) or {}
            shown = {name: mask[answer.start] for name, mask in masks.items() if name != "arm"}
            for (name, mask), colour in zip(shown.items(), COLOURS):
                _name_thing(left, name, mask, colour)
            right.set_axis_off()
            look: dict[str, Any] = {
                "va": "top",
                "linespacing": 1.25,
                "transform": right.transAxes,
                "parse_math": True,
            }
            right.text(0, 1, _card_text(answer), fontsize=9.5, **look)
    return figure


def _name_thing(ax: Axes, name: str, mask: Array, colour: str) -> None:
    """The outline of a thing, with its name above it, or below where there is no room."""
    outline(ax, mask, colour)
    rows, columns = np.nonzero(mask)
    if rows.size:
        above = rows.min() > mask.shape[0] // 8
        y, align = (rows.min() - 2, "bottom") if above else (rows.max() + 3, "top")
        box = {"facecolor": colour, "edgecolor": "none", "pad": 1, "alpha": 0.8}
        ax.text(columns.mean(), y, name, fontsize=6, ha="center", va=align, color="white", bbox=box)


def _framed(ax: Axes, image: Array, colour: str, title: str) -> None:
    """A picture in a frame of this colour."""
    show_picture(ax, image)
    ax.set_axis_on()
    ax.grid(visible=False)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(color=colour, linewidth=3, visible=True)
    note(ax, title)


def _card_text(answer: StoredRationale) -> str:
    """With headings in bold, as Matplotlib's formulas have it; what was written is none."""
    if answer.refusal:
        said = textwrap.fill(f"Refused ({answer.refusal.kind}): {answer.refusal.reason}", 88)
        return said.replace("$", r"\$")
    parts = []
    for heading, part in zip(HEADINGS, PARTS, strict=True):
        bold = f"$\\bf{{{heading.replace(' ', '~')}}}$"
        said = textwrap.fill(getattr(answer.rationale, part), 88).replace("$", r"\$")  # no formula
        parts.append(f"{bold}\n{said}")
    return "\n".join(parts)


def action_plots(rollout: Rollout) -> tuple[Plot, ...]:
    """Curves over the T + 1 observations of a played episode. An action is drawn where it was decided (none
    at the last), what came of a step where it is seen.
    """
    actions = np.concatenate([rollout.actions, np.full((1, rollout.actions.shape[1]), np.nan)])
    held, solved = (np.array([0.0, *values]) for values in (rollout.grasped, rollout.success))
    state = (Line("held", BLUE, held, steps=True), Line("solved", GREEN, solved, steps=True))
    return (
        _about_zero("move (cm)", 100 * actions[:, :3], ACTION_NAMES[:3]),
        _about_zero("turn (degrees)", np.degrees(actions[:, 3:6]), ACTION_NAMES[3:6]),
        Plot("gripper (1 open)", (Line("command", INK, actions[:, 6], steps=True),), -1.0, 1.0),
        Plot("state (1 yes)", state, 0.0, 1.0),
    )


def _about_zero(title: str, values: Array, names: Sequence[str]) -> Plot:
    """Curves on a scale that holds them all."""
    largest = float(np.nanmax(np.abs(values)))
    reach = next((scale for scale in SCALES if largest <= scale), SCALES[-1])
    lines = [Line(*each, steps=True) for each in zip(names, COLOURS, values.T)]
    return Plot(title, tuple(lines), -reach, reach)


def outcome(record: Any) -> str:
    """How an episode ended, in words."""
    if record.success_last:
        how = "solved"
    elif record.success_any:
        how = "solved, then lost"
    else:
        how = "held, not placed" if record.grasped else "never held"
    return f"{how} ({record.steps} steps{ENDINGS.get(record.reason, '')})"


def episode_title(record: Any) -> str:
    """Which episode a record is of."""
    variant = "" if record.variant == "base" else f", {record.variant}"
    start = "dense start" if record.start == "dense" else "episode"
    place = f"{label(record.policy)}, {label(record.task)}{variant}, {start} {record.episode_id}"
    return f"{place}: {outcome(record)}"
