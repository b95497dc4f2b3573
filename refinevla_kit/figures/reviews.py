"""What a reviewer sees of one answer: the keyframes with the motion drawn in, the actions, the rationale, and
what the truth audit found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from textwrap import shorten, wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from refinevla_kit.episodes import EpisodeDataset
from refinevla_kit.episodes.columns import filled
from refinevla_kit.figures.episodes import HEADINGS, busiest_of
from refinevla_kit.figures.overlays import show_picture
from refinevla_kit.figures.style import BLUE, GREEN, INK, MUTED, ORANGE, VERMILION, note, page
from refinevla_kit.simulator.geometry import project
from refinevla_kit.tasks import ALL_TASKS
from refinevla_kit.teacher.answers import StoredRationale
from refinevla_kit.teacher.audit import Audit
from refinevla_kit.teacher.prompt import AXES
from refinevla_kit.teacher.reviews import VERDICTS, Decision, shown
from refinevla_kit.teacher.schema import PARTS, Array, Request

WIDTH = 84  # characters of a line
LINE = 12.5  # points from one line of text to the next
Paragraph = tuple[str, str, str]  # text, colour, font weight


def action_paths(dataset: EpisodeDataset, request: Request) -> list[Array]:
    """Where the actions lead the tool, in the pixels of each keyframe: float (n, 2), from its place to where
    it is sent until the next keyframe.

    Empty without simulator state, or where the camera is not that of the WidowX scenes.
    """
    task, states = ALL_TASKS.get(dataset.info(request.episode).task), dataset.states(request.episode)
    if task is None or task.robot != "widowx" or states is None or not request.tool:
        return []
    paths = []
    height, width = request.keyframes.shape[1:3]
    for frame, end in pairwise([*request.keyframe_indices, request.end]):
        moves = filled(request.actions[frame - request.start : end - request.start, :3], True)
        moves = np.concatenate([np.zeros((1, 3)), moves * (-1, -1, 1)])  # the base is turned half round
        points = np.asarray(states[frame].tcp[:3], np.float64) + np.cumsum(moves, 0)
        paths.append(project(task, points, width, height))
    return paths


def review_card(
    request: Request,
    answer: StoredRationale,
    found: Audit | None = None,
    decision: Decision | None = None,
    paths: Sequence[Array] = (),
) -> Figure:
    """One answer to review.

    Args:
        request: what the teacher was asked, with its keyframes.
        decision: what was decided so far; its edits are shown instead of the teacher's text.
        found: the audit of the text that is shown.
        paths: of `action_paths`.
    """
    columns = [_lines(_rationale(answer, found, decision)), _lines(_findings(found))]
    count, height, width = request.keyframes.shape[:3]
    top, bottom = 0.4 + 12 / (count + 1) * min(1.0, height / width), 0.1 + max(map(len, columns)) * LINE / 72
    state = VERDICTS[decision.verdict] if decision else "not reviewed"
    if decision and decision.reviewer:
        state += f" by {decision.reviewer}"
    frames = f"episode {request.episode}, frames {request.start} to {request.end - 1}"
    title = f"{frames}: {request.instruction}   ({answer.teacher}, {state})"
    with page(12, 0.4 + top + bottom, title) as figure:
        upper, lower = figure.subfigures(2, 1, height_ratios=[top, bottom], squeeze=False)[:, 0]
        *pictures, panel = upper.subplots(1, count + 1)
        for number, (ax, frame) in enumerate(zip(pictures, request.keyframe_indices, strict=True)):
            show_picture(ax, request.keyframes[number])
            note(ax, f"frame {frame}")
            if number < len(paths):
                _path(ax, paths[number])
        _actions(panel, request)
        for ax, lines in zip(lower.subplots(1, 2), columns, strict=True):
            write_lines(ax, lines)
    return figure


def write_lines(ax: Axes, lines: Sequence[Paragraph], size: float = 9) -> None:
    """Lines of text in their colours, one under the other from the top of an empty panel."""
    ax.set_axis_off()
    for number, (text, colour, weight) in enumerate(lines):
        ax.annotate(
            text,
            (0, 1),
            (0, -number * LINE),
            "axes fraction",
            "offset points",
            color=colour,
            fontweight=weight,
            fontsize=size,
            va="top",
            parse_math=False,
        )


def _path(ax: Axes, path: Array) -> None:
    """A line from where the tool is to where it is sent, with an arrow's head."""
    look: dict[str, Any] = {"color": ORANGE, "path_effects": [withStroke(linewidth=4, foreground="white")]}
    ax.plot(*path.T, linewidth=2, **look)
    ax.plot(*path[0], "o", markersize=5, **look)
    across, down = path[-1] - path[0]
    if np.hypot(across, down) > 0.02 * ax.get_xlim()[1]:
        head = (3, 0, np.degrees(np.arctan2(-down, across)) - 90)
        ax.plot(*path[-1], marker=head, markersize=9, **look)


def _actions(ax: Axes, request: Request) -> None:
    """What the actions amount to, as bars from zero."""
    actions, title = filled(request.actions, request.deltas), f"{len(request.actions)} actions together"
    values = actions.sum(0) if request.deltas else actions[-1] - actions[0]
    if request.tool:
        values = 100 * values[:3]
        labels = [f"{AXES[i][int(value < 0)]} {abs(value):.1f} cm" for i, value in enumerate(values)]
        values = values * (1, -1, 1)  # left is drawn to the left
        if request.open is not None:
            title += f"\n{_gripper(request.open, request.start)}"
    else:
        names = request.action_names
        if len(names) != len(values):
            names = tuple(f"action {i}" for i in range(len(values)))
        busiest = busiest_of(values)
        values, labels = values[busiest], [f"{names[i]} {values[i]:+.2g}" for i in busiest]
        title += ", as recorded"
    bars = ax.barh(range(len(values)), values, height=0.3, color=BLUE)
    ax.bar_label(bars, labels, padding=4, fontsize=8, parse_math=False)
    ax.axvline(0, color=MUTED, linewidth=0.8)
    reach = 2 * max(np.abs(values).max(initial=0), 1e-6)  # with room for the labels
    ax.set(xlim=(-reach, reach), ylim=(len(values) - 0.3, -0.7))
    ax.set_axis_off()
    note(ax, title)


def _gripper(is_open: Array, start: int) -> str:
    if (changes := np.flatnonzero(is_open[1:] != is_open[:-1]) + 1).size:
        return f"gripper {'opens' if is_open[changes[0]] else 'closes'} at frame {start + changes[0]}"
    return f"gripper {'open' if is_open[0] else 'closed'} throughout"


def _rationale(answer: StoredRationale, found: Audit | None, decision: Decision | None) -> list[Paragraph]:
    edits = decision.edits if decision else {}
    rationale = shown(answer, decision)
    notes = []
    if decision and decision.reason:
        notes.append(f"Rejected: {decision.reason}")
    if answer.refusal:
        notes.append(f"Refused ({answer.refusal.kind}): {answer.refusal.reason}")
    if rationale and not rationale.instruction_matches:
        notes.append(f"The instruction does not match: {rationale.mismatch}")
    paragraphs = [(note, VERMILION, "normal") for note in notes]
    if rationale is None:
        return [*paragraphs, (shorten(answer.raw, 12 * WIDTH, placeholder=" ..."), INK, "normal")]
    texts = {part: getattr(rationale, part) for part in PARTS}
    if rationale.facts:
        known = {name: value for name, value in asdict(rationale.facts).items() if value is not None}
        texts["facts"] = "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in known.items())
    for (part, text), heading in zip(texts.items(), (*HEADINGS, "Facts")):
        score = found.parts[part] if found else None
        if score:
            heading += f"   {score.true} true, {score.false} false, {score.undecided} undecided"
        heading += "   (edited)" if part in edits else ""
        paragraphs.append((heading, VERMILION if score and score.false else INK, "bold"))
        paragraphs.append((text, BLUE if part in edits else INK, "normal"))
    return paragraphs


def _findings(found: Audit | None) -> list[Paragraph]:
    """What is doubted, with the reason; then what else was read."""
    if found is None:
        return [("There is nothing to audit.", MUTED, "normal")]
    paragraphs = []
    for finding in found.findings:
        if finding.doubt:
            mark = "✗" if finding.verdict == "false" else "?"
            paragraphs.append((f"{mark} {finding.text!r}: {finding.reason}", VERMILION, "normal"))
    for verdict, mark, colour in (("true", "✓ true: ", GREEN), ("undecided", "? undecided: ", MUTED)):
        kinds = Counter(
            finding.text if finding.part == "facts" else f"{finding.kind} in {finding.part.replace('_', ' ')}"
            for finding in found.findings
            if finding.verdict == verdict and not finding.doubt
        )
        if kinds:
            words = (text + (f" ({count} x)" if count > 1 else "") for text, count in kinds.items())
            paragraphs.append((mark + ", ".join(words), colour, "normal"))
    return paragraphs or [("The audit read no claim.", MUTED, "normal")]


def _lines(paragraphs: Sequence[Paragraph]) -> list[Paragraph]:
    """The same, a line each."""
    return [(line, colour, weight) for text, colour, weight in paragraphs for line in wrap(text, WIDTH)]
