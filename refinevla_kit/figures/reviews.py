"""What a reviewer sees of one answer: the keyframes with the motion drawn in, the actions, the rationale, and
what the truth audit found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from refinevla_kit.episodes import EpisodeDataset
from refinevla_kit.episodes.columns import filled
from refinevla_kit.figures.episodes import BUSIEST, HEADINGS
from refinevla_kit.figures.style import BLUE, GREEN, INK, MUTED, ORANGE, SETTINGS, VERMILION
from refinevla_kit.simulator.geometry import project
from refinevla_kit.tasks import TASKS
from refinevla_kit.teacher.answers import StoredRationale
from refinevla_kit.teacher.audit import Audit
from refinevla_kit.teacher.prompt import AXES
from refinevla_kit.teacher.reviews import VERDICTS, Decision, applied
from refinevla_kit.teacher.schema import PARTS, Array, Request

WIDTH = 84  # characters of a line
LINE = 12.5  # points from one line of text to the next
Line = tuple[str, str, bool]  # text, colour, bold


def action_paths(dataset: EpisodeDataset, request: Request) -> list[Array]:
    """Where the actions lead the tool, in the pixels of each keyframe: float (n, 2), from its place to where
    it is sent until the next keyframe.

    Empty without simulator state, or where the camera is not that of the WidowX scenes.
    """
    task, states = TASKS.get(dataset.info(request.episode).task), dataset.states(request.episode)
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
    texts = (_rationale(answer, found, decision), _findings(found))
    count, height, width = request.keyframes.shape[:3]
    top, bottom = 0.4 + 12 / (count + 1) * min(1.0, height / width), 0.1 + max(map(len, texts)) * LINE / 72
    with rc_context(SETTINGS):
        figure = Figure(figsize=(12, 0.4 + top + bottom), layout="constrained")
        (upper,), (lower,) = figure.subfigures(2, 1, squeeze=False, height_ratios=[top, bottom])
        *pictures, panel = upper.subplots(1, count + 1, squeeze=False)[0]
        for i, (ax, image, frame) in enumerate(
            zip(pictures, request.keyframes, request.keyframe_indices, strict=True)
        ):
            _picture(ax, image, f"frame {frame}", paths[i] if i < len(paths) else None)
        _actions(panel, request)
        for ax, lines in zip(lower.subplots(1, 2), texts, strict=True):
            ax.set_axis_off()
            for i, (text, colour, bold) in enumerate(lines):
                weight, down = "bold" if bold else "normal", (0, -i * LINE)
                style: dict[str, Any] = {"va": "top", "fontsize": 9, "color": colour, "fontweight": weight}
                ax.annotate(text, (0, 1), down, "axes fraction", "offset points", parse_math=False, **style)
        state = VERDICTS[decision.verdict] if decision else "not reviewed"
        if decision and decision.reviewer:
            state += f" by {decision.reviewer}"
        frames = f"episode {request.episode}, frames {request.start} to {request.end - 1}"
        title = f"{frames}: {request.instruction}   ({answer.teacher}, {state})"
        figure.suptitle(title, fontsize=10, parse_math=False)
    return figure


def _picture(ax: Axes, image: Array, title: str, path: Array | None) -> None:
    ax.imshow(image)
    ax.set_axis_off()
    ax.set_title(title, fontsize=8, fontweight="normal")
    if path is not None:
        outline = [withStroke(linewidth=4, foreground="white")]
        line: dict[str, Any] = {"color": ORANGE, "path_effects": outline, "scalex": False, "scaley": False}
        ax.plot(*path.T, linewidth=2, **line)
        ax.plot(*path[0], "o", markersize=5, **line)
        across, down = path[-1] - path[0]
        if np.hypot(across, down) > 0.02 * image.shape[1]:
            head = (3, 0, np.degrees(np.arctan2(-down, across)) - 90)
            ax.plot(*path[-1], marker=head, markersize=9, **line)


def _actions(ax: Axes, request: Request) -> None:
    """What the actions amount to, as arrows from zero."""
    actions, names = filled(request.actions, request.deltas), request.action_names
    values, known = actions.sum(0) if request.deltas else actions[-1] - actions[0], request.tool
    if known:
        values = 100 * values[:3]
        labels = []
        for value, words in zip(values, AXES, strict=True):
            labels.append(f"{words[int(value < 0)]} {abs(value):.1f} cm")
        values = values * (1, -1, 1)  # left is drawn to the left
    else:
        busiest = np.sort(np.argsort(-np.abs(values), kind="stable")[:BUSIEST])
        if len(names) != actions.shape[1]:
            names = tuple(f"action {i}" for i in range(actions.shape[1]))
        values, labels = values[busiest], [f"{names[i]} {values[i]:+.2g}" for i in busiest]
    reach = 1.3 * max(np.abs(values).max(initial=0), 1e-6)
    for row, (value, label) in enumerate(zip(values, labels, strict=True)):
        if abs(value) > 0.02 * reach:
            arrow = {"color": BLUE, "arrowstyle": "-|>", "lw": 2, "mutation_scale": 14}
            ax.annotate("", (value, row), (0, row), arrowprops={**arrow, "shrinkA": 0, "shrinkB": 0})
        beside, side = (-6, "right") if value > 0 else (6, "left")  # where the arrow is not
        text: dict[str, Any] = {"ha": side, "va": "center", "fontsize": 8, "parse_math": False}
        ax.annotate(label, (0, row), (beside, 0), textcoords="offset points", **text)
    ax.vlines(0, -0.2, len(values) - 0.8, color=MUTED, linewidth=0.8)
    ax.set(xlim=(-reach, reach), ylim=(len(values) - 0.5 + known, -0.9))
    ax.set_axis_off()
    title = f"{len(actions)} actions together{'' if known else ', as recorded'}"
    ax.set_title(title, fontsize=8, fontweight="normal")
    if known and request.open is not None:
        ax.text(0, len(values), _gripper(request.open, request.start), ha="center", va="center", fontsize=8)


def _gripper(is_open: Array, start: int) -> str:
    if (changes := np.flatnonzero(is_open[1:] != is_open[:-1]) + 1).size:
        return f"gripper {'opens' if is_open[changes[0]] else 'closes'} at frame {start + changes[0]}"
    return f"gripper {'open' if is_open[0] else 'closed'} throughout"


def _rationale(answer: StoredRationale, found: Audit | None, decision: Decision | None) -> list[Line]:
    edits = decision.edits if decision else {}
    rationale = applied(answer, decision).rationale if decision and edits else answer.rationale
    notes = []
    if decision and decision.reason:
        notes.append(f"Rejected: {decision.reason}")
    if answer.refusal:
        notes.append(f"Refused ({answer.refusal.kind}): {answer.refusal.reason}")
    if rationale and not rationale.instruction_matches:
        notes.append(f"The instruction does not match: {rationale.mismatch}")
    lines = [line for note in notes for line in _wrapped(note, VERMILION)]
    if rationale is None:
        return lines + [(line, INK, False) for line in wrap(answer.raw, WIDTH, max_lines=12)]
    texts = {part: getattr(rationale, part) for part in PARTS}
    if rationale.facts:
        known = {name: value for name, value in asdict(rationale.facts).items() if value is not None}
        texts["facts"] = "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in known.items())
    for (part, text), heading in zip(texts.items(), (*HEADINGS, "Facts"), strict=False):
        score = found.parts[part] if found else None
        if score:
            heading += f"   {score.true} true, {score.false} false, {score.undecided} undecided"
        heading += "   (edited)" if part in edits else ""
        lines.append((heading, VERMILION if score and score.false else INK, True))
        lines += _wrapped(text, BLUE if part in edits else INK)
    return lines


def _findings(found: Audit | None) -> list[Line]:
    """What is doubted, with the reason; then what else was read."""
    if found is None:
        return [("There is nothing to audit.", MUTED, False)]
    lines: list[Line] = []
    for finding in found.findings:
        if finding.doubt:
            mark = "✗" if finding.verdict == "false" else "?"
            lines += _wrapped(f"{mark} {finding.text!r}: {finding.reason}", VERMILION, "   ")
    for verdict, mark, colour in (("true", "✓ true: ", GREEN), ("undecided", "? undecided: ", MUTED)):
        kinds = Counter(
            finding.text if finding.part == "facts" else f"{finding.kind} in {finding.part.replace('_', ' ')}"
            for finding in found.findings
            if finding.verdict == verdict and not finding.doubt
        )
        words = ", ".join(text + (f" ({count} x)" if count > 1 else "") for text, count in kinds.items())
        lines += _wrapped(mark + words, colour, "   ") if words else []
    return lines or [("The audit read no claim.", MUTED, False)]


def _wrapped(text: str, colour: str, indent: str = "") -> list[Line]:
    return [(line, colour, False) for line in wrap(text, WIDTH, subsequent_indent=indent)]
