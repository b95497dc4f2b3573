"""What the simulator knows about one frame, as words that are true of it. Every word has a threshold, and
where a case is borderline there is no word: the oracle's sentences are built from these facts alone, so
whether a rationale is true is decided here.

Image words come from mask centroids (left / right / top / bottom as the viewer sees them), distances and
heights from the world-frame state, motion words from the first action, a displacement in the robot base frame
(x forward, y left, z up; the camera looks over the robot's shoulder, so left is left in both).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refinevla_kit.simulator.contract import PHASES, SceneState

Array = NDArray[Any]

VISIBLE_SHARE = 0.0003  # of the picture's pixels (6 of 160 x 120): a smaller mask counts as not in view
# Of the picture's side: closer to an edge than this is "left", "top", ...; the fifth between is the centre
NEAR_SIDE = 0.4
SIDE_SHARE = 0.05  # of the picture's side: image relations smaller than this are not said
OPEN_ABOVE, CLOSED_BELOW = (
    0.8,
    0.15,
)  # finger opening; "half open" is said from 0.25 to 0.7, nothing in between
LEVEL_M = 0.01  # height differences up to this are "level"
MOVING_M = 0.015  # displacement along an axis, in one step, from which it is said


@dataclass(frozen=True)
class Facts:
    """Words and numbers that hold in one frame; None where nothing can be said.

    Attributes:
        source, target: names.
        source_zone, target_zone, gripper_zone: "left", "top right", "centre", ... or None when not in view.
        grip: "open", "closed", "half open" or None.
        grasped, placed: the simulator's own truth.
        reach_cm, reach_height_cm: gripper to source, horizontally and up (signed; 0 = level), rounded by
            `round_cm`.
        goal_cm, goal_height_cm: source to target, likewise (height of the source above the target's origin).
        reach_side: where the gripper is in the image, seen from the source ("left of it", "right of it",
            "higher in view", "lower in view"), or None.
        goal_side: where the source is in the image, seen from the target.
        phase: name of the sub-task.
        motion: dominant direction of the first action, which belongs to this sub-task (a segment may hold the
            next one's actions too), or None.
    """

    source: str
    target: str
    source_zone: str | None
    target_zone: str | None
    gripper_zone: str | None
    grip: str | None
    grasped: bool
    placed: bool
    reach_cm: int | None
    reach_height_cm: int | None
    reach_side: str | None
    goal_cm: int | None
    goal_height_cm: int | None
    goal_side: str | None
    phase: str
    motion: str | None


def roles(instruction: str, names: Iterable[str]) -> list[str]:
    """Those of the scene's `names` that the instruction speaks of, in its order: what is to be moved, then
    where it goes.
    """
    return sorted((name for name in names if name in instruction), key=instruction.index)


def round_cm(metres: float) -> int | None:
    """Whole centimetres up to 10, multiples of 5 beyond (so that "about 15 cm" is a class a small model can
    learn); None from one metre on.
    """
    cm = abs(metres) * 100
    if not np.isfinite(cm) or cm >= 100:
        return None
    rounded = round(cm) if cm < 10 else 5 * round(cm / 5)
    return int(np.sign(metres)) * rounded


def centroid(mask: Array | None) -> tuple[float, float] | None:
    """Centre of a mask as fractions (x from the left, y from the top) of the picture; None when too little of
    it is visible.
    """
    if mask is None or mask.sum() < max(4.0, VISIBLE_SHARE * mask.size):
        return None
    rows, columns = np.nonzero(mask)
    return (float(columns.mean()) + 0.5) / mask.shape[1], (float(rows.mean()) + 0.5) / mask.shape[0]


def zone(centre: tuple[float, float] | None) -> str | None:
    """One of nine zones of the picture: "top left", "left", "centre", "bottom", ... None when not in view."""
    if centre is None:
        return None
    column = "left" if centre[0] < NEAR_SIDE else "right" if centre[0] > 1 - NEAR_SIDE else ""
    row = "top" if centre[1] < NEAR_SIDE else "bottom" if centre[1] > 1 - NEAR_SIDE else ""
    return f"{row} {column}".strip() or "centre"


def side(of: tuple[float, float] | None, seen_from: tuple[float, float] | None) -> str | None:
    """The larger of the two image offsets of `of` from `seen_from` in words, None when both are within
    `SIDE_SHARE` or one is not in view.
    """
    if of is None or seen_from is None:
        return None
    across, down = of[0] - seen_from[0], of[1] - seen_from[1]
    if max(abs(across), abs(down)) <= SIDE_SHARE:
        return None
    if abs(across) >= abs(down):
        return "left of it" if across < 0 else "right of it"
    return "higher in view" if down < 0 else "lower in view"


def grip_word(opening: float) -> str | None:
    """The finger opening (0 closed, 1 open) as a word, None between the words."""
    if opening > OPEN_ABOVE:
        return "open"
    if opening < CLOSED_BELOW:
        return "closed"
    return "half open" if 0.25 <= opening <= 0.7 else None


def motion_word(action: Array) -> str | None:
    """Dominant direction of a displacement (>= 3,) in the robot base frame (m); None when it hardly moves."""
    moved = np.asarray(action[:3], np.float64)
    axis = int(np.abs(moved).argmax())
    if not abs(moved[axis]) >= MOVING_M:
        return None
    return (("forward", "backward"), ("left", "right"), ("up", "down"))[axis][int(moved[axis] < 0)]


def scene_facts(
    source: str, target: str, state: SceneState, masks: dict[str, Array], actions: Array
) -> Facts:
    """Facts of the frame that `state` and `masks` describe, and of the first of the `actions` (T, 7)."""
    centres = {name: centroid(masks.get(name)) for name in (source, target, "gripper")}
    reach = np.asarray(state.tcp[:3], np.float64) - state.source[:3]
    goal = np.asarray(state.source[:3], np.float64) - state.target[:3]
    return Facts(
        source,
        target,
        zone(centres[source]),
        zone(centres[target]),
        zone(centres["gripper"]),
        grip_word(float(state.opening)),
        bool(state.grasped),
        bool(state.placed),
        round_cm(float(np.hypot(*reach[:2]))),
        _height(reach[2]),
        side(centres["gripper"], centres[source]),
        round_cm(float(np.hypot(*goal[:2]))),
        _height(goal[2]),
        side(centres[source], centres[target]),
        PHASES[int(state.phase)],
        motion_word(actions[0]),
    )


def _height(metres: float) -> int | None:
    return 0 if abs(metres) <= LEVEL_M else round_cm(metres)
