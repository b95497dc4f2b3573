"""What a reviewer sees of one answer: the keyframes with the motion drawn in, the actions, the rationale, and
what the truth audit found.
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

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
    paths, ends = [], [*request.keyframe_indices[1:], request.end]
    for frame, end in zip(request.keyframe_indices, ends, strict=True):
        moves = filled(request.actions[frame - request.start : end - request.start, :3], True)
        moves *= (-1, -1, 1)  # the base is turned half round against the world
        points = np.asarray(states[frame].tcp[:3], np.float64) + np.concatenate(
            [np.zeros((1, 3)), np.cumsum(moves, 0)]
        )
        paths.append(project(task, points, *request.keyframes.shape[2:0:-1]))
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
    texts, (count, height, width) = (
        (_rationale(answer, found, decision), _findings(found)),
        request.keyframes.shape[:3],
    )
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
                ax.annotate(
                    text,
                    (0, 1),
                    (0, -i * LINE),
                    "axes fraction",
                    "offset points",
                    va="top",
                    fontsize=9,
                    color=colour,
                    fontweight="bold" if bold else "normal",
                    parse_math=False,
                )
        state = (
            f"{VERDICTS[decision.verdict]}{f' by {decision.reviewer}' if decision.reviewer else ''}"
            if decision
            else "not reviewed"
        )
        title = (
            f"episode {request.episode}, frames {request.start} to {request.end - 1}: {request.instruction}"
        )
        figure.suptitle(f"{title}   ({answer.teacher}, {state})", fontsize=10, parse_math=False)
    return figure


def _picture(ax: Axes, image: Array, title: str, path: Array | None) -> None:
    ax.imshow(image)
    ax.set_axis_off()
    ax.set_title(title, fontsize=8, fontweight="normal")
    if path is not None:
        outline = [withStroke(linewidth=4, foreground="white")]
        ax.plot(*path.T, color=ORANGE, linewidth=2, path_effects=outline, scalex=False, scaley=False)
        ax.plot(*path[0], "o", color=ORANGE, markersize=5, path_effects=outline, scalex=False, scaley=False)
        across, down = path[-1] - path[0]
        if np.hypot(across, down) > 0.02 * image.shape[1]:
            head = (3, 0, np.degrees(np.arctan2(-down, across)) - 90)
            ax.plot(
                *path[-1],
                marker=head,
                color=ORANGE,
                markersize=9,
                path_effects=outline,
                scalex=False,
                scaley=False,
            )


def _actions(ax: Axes, request: Request) -> None:
    """What the actions amount to, as arrows from zero."""
    actions, names = filled(request.actions, request.deltas), request.action_names
    values, known = actions.sum(0) if request.deltas else actions[-1] - actions[0], request.tool
    if known:
        values = 100 * values[:3]
        labels = [
            f"{words[int(value < 0)]} {abs(value):.1f} cm" for words, value in zip(AXES, values, strict=True)
        ]
        values = values * (1, -1, 1)  # left is drawn to the left
    else:
        busiest = np.sort(np.argsort(-np.abs(values), kind="stable")[:BUSIEST])
        values, labels = (
            values[busiest],
            [
                f"{names[i] if len(names) == actions.shape[1] else f'action {i}'} {values[i]:+.2g}"
                for i in busiest
            ],
        )
    reach = 1.3 * max(np.abs(values).max(initial=0), 1e-6)
    for row, (value, label) in enumerate(zip(values, labels, strict=True)):
        if abs(value) > 0.02 * reach:
            arrow = {
                "color": BLUE,
                "arrowstyle": "-|>",
                "lw": 2,
                "mutation_scale": 14,
                "shrinkA": 0,
                "shrinkB": 0,
            }
            ax.annotate("", (value, row), (0, row), arrowprops=arrow)
        beside, side = (-6, "right") if value > 0 else (6, "left")  # where the arrow is not
        ax.annotate(
            label,
            (0, row),
            (beside, 0),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=8,
            parse_math=False,
        )
    ax.vlines(0, -0.2, len(values) - 0.8, color=MUTED, linewidth=0.8)
    ax.set(xlim=(-reach, reach), ylim=(len(values) - 0.5 + known, -0.9))
    ax.set_axis_off()
    ax.set_title(
        f"{len(actions)} actions together{'' if known else ', as recorded'}", fontsize=8, fontweight="normal"
    )
    if known and request.open is not None:
        ax.text(0, len(values), _gripper(request.open, request.start), ha="center", va="center", fontsize=8)


def _gripper(is_open: Array, start: int) -> str:
    if (changes := np.flatnonzero(is_open[1:] != is_open[:-1]) + 1).size:
        return f"gripper {'opens' if is_open[changes[0]] else 'closes'} at frame {start + changes[0]}"
    return f"gripper {'open' if is_open[0] else 'closed'} throughout"


def _rationale(answer: StoredRationale, found: Audit | None, decision: Decision | None) -> list[Line]:
    edits = decision.edits if decision else {}
    rationale = applied(answer, decision).rationale if decision and edits else answer.rationale
    said = [f"Rejected: {decision.reason}"] if decision and decision.reason else []
    said += [f"Refused ({answer.refusal.kind}): {answer.refusal.reason}"] if answer.refusal else []
    said += (
        [f"The instruction does not match: {rationale.mismatch}"]
        if rationale and not rationale.instruction_matches
        else []
    )
    lines: list[Line] = [(line, VERMILION, False) for text in said for line in wrap(text, 84)]
    if rationale is None:
        return lines + [(line, INK, False) for line in wrap(answer.raw, 84, max_lines=12)]
    for part, heading in zip(PARTS, HEADINGS, strict=True):
        score = found.parts[part] if found else None
        checked = f"   {score.true} true, {score.false} false, {score.undecided} undecided" if score else ""
        lines += [
            (
                f"{heading}{checked}{'   (edited)' if part in edits else ''}",
                VERMILION if score and score.false else INK,
                True,
            )
        ]
        lines += [
            (line, BLUE if part in edits else INK, False) for line in wrap(getattr(rationale, part), 84)
        ]
    return lines


def _findings(found: Audit | None) -> list[Line]:
    """What is doubted, with the reason; then what else was read."""
    if found is None:
        return [("There is nothing to audit.", MUTED, False)]
    doubts = [
        f"{'✗' if one.verdict == 'false' else '?'} {one.claim.text!r}: {one.reason}"
        for one in found.findings
        if one.doubt
    ]
    lines: list[Line] = [
        (line, VERMILION, False) for text in doubts for line in wrap(text, 84, subsequent_indent="   ")
    ]
    for verdict, mark, colour in (("true", "✓ true: ", GREEN), ("undecided", "? undecided: ", MUTED)):
        words = ", ".join(
            repr(one.claim.text) for one in found.findings if one.verdict == verdict and not one.doubt
        )
        lines += (
            [(line, colour, False) for line in wrap(mark + words, 84, subsequent_indent="   ")]
            if words
            else []
        )
    return lines or [("The audit read no claim.", MUTED, False)]
