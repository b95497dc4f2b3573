"""Reads the oracle's sentences back and holds each claim against simulator state, with its own geometry;
nothing of the teacher's code is used here.
"""

from __future__ import annotations

import re

import numpy as np

from refinevla_kit.simulator.contract import ORDERS, SceneState
from refinevla_kit.teacher.schema import Rationale

PHASES = ORDERS["place"]  # of pick and place
SUB_TASKS = {
    "reach": r"(move|reach) over the",
    "descend": r"(descend|go down) to the",
    "grasp": r"close the gripper on the|grasp the",
    "lift": r"(lift|raise) the",
    "carry": r"carry the .* to the|bring the .* over to the",
    "lower": r"lower the .*to the|set the .* down .*to the",
    "release": r"release the|let go of the",
    "retreat": r"(retreat|back away) from the",
}
FOLLOWING = {
    "descend": "descend",
    "grasp": "grasp it",
    "lift": "(lift|raise) it",
    "carry": "(carry|bring) it over",
    "lower": "lower it|set it down",
    "release": "release it|let go of it",
    "retreat": "retreat|back away",
}
MOTIONS = {
    "forward": (0, 1),
    "backward": (0, -1),
    "left": (1, 1),
    "right": (1, -1),
    "up": (2, 1),
    "down": (2, -1),
}


def claims_checked(
    rationale: Rationale,
    state: SceneState,
    masks: dict[str, np.ndarray],
    actions: np.ndarray,
    source: str,
    target: str,
) -> int:
    """Assert every claim of a rationale; returns how many there were. A clause that cannot be read fails
    too.
    """
    return (
        _observation(rationale.observation, state, masks, source, target)
        + _situation(rationale.situation_analysis, state, source)
        + _spatial(rationale.spatial_reasoning, state, masks, source, target)
        + _plan(rationale.task_planning, state, actions)
    )


def _read(pattern: str, text: str) -> re.Match[str]:
    match = re.fullmatch(pattern, text)
    assert match, f"{text!r} is no sentence of the grammar"
    return match


def _clauses(part: str, separator: str) -> list[str]:
    assert part.endswith(".")
    assert part[0].isupper()
    return (part[0].lower() + part[1:-1]).split(separator)


def _middle(mask: np.ndarray) -> np.ndarray:
    """Mean (row, column) of a mask, each from 0 to 1."""
    return (np.argwhere(mask) + 0.5).mean(axis=0) / mask.shape


def _observation(part: str, state: SceneState, masks: dict[str, np.ndarray], source: str, target: str) -> int:
    clauses = _clauses(part, ", ")
    assert len(clauses) == 3
    for clause in clauses:
        seen = re.fullmatch(
            r"(?:the )?(.+?)(?: (?:is|lies))? at the (top |bottom )?(left|right|top|bottom|centre)", clause
        )
        hidden = None if seen else _read(r"(?:the )?(.+?) (?:is out of view|not in view)", clause)
        thing = (seen or hidden).group(1)
        grip = re.fullmatch(rf"(?:(open|closed|half open) )?gripper(?: with the ({source}))?", thing)
        if grip:
            assert bool(grip[2]) == bool(state.grasped)
            low, high = {
                "open": (0.75, 1.0),
                "closed": (0.0, 0.2),
                "half open": (0.2, 0.75),
                None: (0.0, 1.0),
            }[grip[1]]
            assert low <= state.opening <= high
        mask = masks["gripper" if grip else thing]
        if hidden:
            assert mask.sum() <= 10
            continue
        row, column = _middle(mask)
        words = " ".join(word for word in seen.groups()[1:] if word)
        assert ("left" in words) == (column < 0.4)
        assert ("right" in words) == (column > 0.6)
        assert ("top" in words) == (row < 0.4)
        assert ("bottom" in words) == (row > 0.6)
    assert sum(source in clause and "gripper" not in clause for clause in clauses) == 1
    assert sum(target in clause for clause in clauses) == 1
    return len(clauses)


def _situation(part: str, state: SceneState, source: str) -> int:
    text = part.lower().rstrip(".")
    assert re.search(
        rf"the {source} is held|the gripper holds the {source}|the {source} is not (held|gripped)", text
    )
    assert bool(re.search(r"is not (held|gripped)", text)) == (not state.grasped)
    assert bool(re.search(r"the task is (done|finished)", text)) == bool(state.placed)
    assert bool(re.search(r"the task is not done|still open", text)) == (not state.placed)
    named = re.search(r"(?:it is time to|time to|now) (\w+)", text)
    assert named and named[1] == PHASES[int(state.phase)]
    return 3


def _spatial(part: str, state: SceneState, masks: dict[str, np.ndarray], source: str, target: str) -> int:
    clauses = _clauses(part, "; ")
    assert len(clauses) == (1 if state.grasped else 2)
    count = 0
    for clause in clauses:
        side_words = "left of it|right of it|higher in view|lower in view"
        match = _read(
            rf"(?:the )?(gripper|{source}) (?:is )?(.+?) the ({source}|{target})( by \d+ cm)?(?:, "
            rf"({side_words}))?",
            clause,
        )
        one, words, other = match[1], match[2] + (match[4] or ""), match[3]
        assert (one, other) in {("gripper", source), (source, target)}
        place = {"gripper": state.tcp, source: state.source, target: state.target}
        offset = 100.0 * (place[one][:3].astype(float) - place[other][:3])
        across = float(np.hypot(offset[0], offset[1]))
        beside, height = re.search(r"about (\d+) cm", words), re.search(r"(?<!about )\b(\d+) cm", words)
        assert beside or height or words in {"right at", "exactly at", "far away from", "very far from"}
        if beside:
            assert "beside" in words
            assert abs(int(beside[1]) - across) <= (0.51 if across < 10 else 2.51)
        if height:
            assert abs(int(height[1]) - abs(offset[2])) <= (0.51 if abs(offset[2]) < 10 else 2.51)
            assert ("above" in words) == (offset[2] > 0)
            assert ("below" in words) == (offset[2] < 0)
        if "straight" in words or words in {"right at", "exactly at"}:
            assert across < 0.51
        if words in {"right at", "exactly at"}:
            assert abs(offset[2]) < 1.01
        if "far" in words:
            assert np.abs([across, offset[2]]).max() > 97
        if match[5]:
            rows, columns = _middle(masks[one]) - _middle(masks[other])
            side = {
                "left of it": -columns,
                "right of it": columns,
                "higher in view": -rows,
                "lower in view": rows,
            }[match[5]]
            assert side > 0.05 - 1e-9
            assert side >= max(abs(rows), abs(columns)) - 1e-9
        count += bool(beside) + bool(height) + bool(match[5])
    return count


def _plan(part: str, state: SceneState, actions: np.ndarray) -> int:
    text = part[0].lower() + part[1:-1]
    first, after = _read(r"(.+?)(?:; then |, after that )(.+)", re.sub(r"^(first|now) ", "", text)).groups()
    phrase = first.split(", ")[0]
    assert [name for name, pattern in SUB_TASKS.items() if re.match(pattern, phrase)] == [
        PHASES[int(state.phase)]
    ]
    remaining = [*PHASES[int(state.phase) + 1 :], "end"]
    for step, expected in zip(after.split(" and "), remaining, strict=False):
        assert re.fullmatch(FOLLOWING.get(expected, "the task ends|nothing is left"), step)
    moving = re.search(r", moving (\w+)", first)
    if moving:
        axis, sign = MOTIONS[moving[1]]
        assert sign * actions[0, axis] > 0.0149
        assert abs(actions[0, axis]) == np.abs(actions[0, :3]).max()
    else:
        assert np.abs(actions[0, :3]).max() < 0.0151
    return 2 + bool(moving)
