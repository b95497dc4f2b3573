"""The scripted demonstrator of the Google Robot's tasks, from privileged state; the WidowX's: `demonstrator`.

The sub-task follows from the state alone, as there. Each motion is goal minus *measured* pose, clipped: that
is what this robot's actions are added to, and the arm's lag of two steps is all the filtering it needs.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from refinevla_kit.simulator.contract import PHASES, Array, SceneState
from refinevla_kit.tasks import Task

REACH, DESCEND, GRASP, LIFT, CARRY, LOWER, RELEASE, RETREAT, APPROACH, HOOK, PULL, PUSH = range(len(PHASES))
SPEED, GENTLE, TURN = 0.08, 0.05, 0.3  # m and rad a step; with closed fingers
OPEN, CLOSED, FINGERS = 0.0, 1.3, 1.31  # rad of the fingers; what a command of 1 moves them by
# Of the robot before table and cabinet (m); the tool leans outwards from it, the more the farther it reaches
# (m, rad): else the wrist, which starts 0.2 rad from its limit, runs into that.
BASES = {"table": np.array([0.35, 0.20]), "cabinet": np.array([0.65, 0.0])}
LEANS = (0.42, 0.60, 0.78), np.deg2rad((17.0, 30.0, 45.0))
LOWEST = 0.895  # m, of the tool over the table
# Of the cabinet (m): a closed drawer's origin, its front's middle and half thickness relative to that, the
# fronts' upper edges.
CLOSED_AT, FRONT, HALF = -0.295, 0.305, 0.0075
EDGES = {"top": 0.755, "middle": 0.510, "bottom": 0.265}
PULLED, PUSHED = 0.20, 0.01  # m that a drawer is left open


def act(task: Task, state: SceneState) -> Array:
    """float32 (7,), as `Simulator.step` takes it."""
    place, frame, fingers = (_drawer_goal if _at_drawer(task, state) else _pick_goal)(task, state)
    move = _clipped(place - state.tcp[:3], SPEED if fingers < CLOSED else GENTLE)
    error = _clipped((Rotation.from_matrix(frame) * _tool(state).inv()).as_rotvec(), TURN)
    # the robot's base is turned by 180 degrees about z
    turn = Rotation.from_rotvec(error * [-1, -1, 1]).as_euler("xyz")
    gripper = np.sign(fingers - CLOSED / 2)
    if OPEN < fingers < CLOSED:
        gripper = np.clip((fingers - CLOSED * (1 - state.opening)) / FINGERS, -1, 1)
    return np.array([-move[0], -move[1], move[2], *turn, gripper], np.float32)


def phase_of(task: Task, state: SceneState) -> int:
    """Index into `PHASES` of the sub-task that `state` calls for."""
    return (_drawer_phase if _at_drawer(task, state) else _pick_phase)(task, state)


def finished(task: Task, state: SceneState) -> bool:
    """See `Demonstrator.finished`."""
    return bool(task.target) and _at_drawer(task, state) and _drawer_phase(task, state) == RETREAT


def _at_drawer(task: Task, state: SceneState) -> bool:
    """Whether a drawer is to be moved. Before the apple it is, as long as the drawer is the source: then
    source and target lie on the drawer's rail.
    """
    if task.target == "top drawer":
        return bool(np.allclose(state.source[1:], state.target[1:], atol=1e-3))
    return task.group == "open_close_drawer"


def _opens(task: Task) -> bool:
    return "close_" not in task.name


def _clipped(vector: Array, longest: float) -> Array:
    return np.asarray(vector * min(1.0, longest / max(float(np.linalg.norm(vector)), 1e-9)), np.float64)


def _tool(state: SceneState) -> Rotation:
    return Rotation.from_quat(state.tcp[[4, 5, 6, 3]])


def _frame(approach: Array, closing: Array) -> Array:
    """3 x 3: the tool looks along `approach`, the fingers close along what is across it of `closing`."""
    closing = closing - (closing @ approach) * approach
    closing /= np.linalg.norm(closing)
    if closing[0] + closing[1] < 0:  # the other way the gripper's joint comes to its limit
        closing = -closing
    return np.stack([np.cross(closing, approach), closing, approach], axis=1)


# Things to pick


def _pick_phase(task: Task, state: SceneState) -> int:
    source, tool, place = state.source[:3], state.tcp[:3], _place(task, state)
    if not task.target:
        lifted = source[2] > state.target[2] + 0.02
        return LIFT if state.grasped or lifted else _grasp_phase(state, task)
    if state.grasped:
        if np.linalg.norm(source[:2] - place[:2]) > 0.03:
            return CARRY if tool[2] > _carrying(task, state) - 0.03 else LIFT
        # what stands on the table slides up between the fingers
        return RELEASE if source[2] < place[2] + 0.005 or source[2] > tool[2] + 0.015 else LOWER
    arrived = state.placed
    if task.target == "top drawer":
        beside = np.abs(source[:2] - state.target[:2])
        arrived = source[2] < place[2] + 0.03 and beside[0] < 0.28 and beside[1] < 0.26
    if arrived:
        return RELEASE if state.opening < 0.6 else RETREAT
    return _grasp_phase(state, task)


def _grasp_phase(state: SceneState, task: Task) -> int:
    off, height, turn = _to_grip(task, state)
    low = height < 0.05
    if off > (0.025 if low else 0.015) or turn > (0.3 if low else 0.15):
        return REACH
    return DESCEND if height > 0.02 else GRASP  # far away the leaning fingers touch the table


def _to_grip(task: Task, state: SceneState) -> tuple[float, float, float]:
    """How far the tool is beside and above the place to grip (m), and still to turn (rad)."""
    offset = state.tcp[:3] - _grip(state)
    turn = (Rotation.from_matrix(_tool_frame(task, state)) * _tool(state).inv()).magnitude()
    return float(np.linalg.norm(offset[:2])), float(offset[2]), float(turn)


def _grip(state: SceneState) -> Array:
    """Where the tool takes the source, (3,)."""
    return np.append(state.source[:2], max(float(state.source[2]), LOWEST))


def _pick_goal(task: Task, state: SceneState) -> tuple[Array, Array, float]:
    """Tool position (3,) and orientation (3, 3), and the fingers' angle (rad)."""
    phase, frame = _pick_phase(task, state), _tool_frame(task, state)
    tool, grip, place = state.tcp[:3].astype(np.float64), _grip(state), _place(task, state)
    height = np.array([0.0, 0.0, _carrying(task, state)])
    held = tool - state.source[:3]  # keeps the thing, not the tool, on its way
    if phase == REACH:
        off, _, turn = _to_grip(task, state)
        share = np.clip(max((off - 0.015) / 0.03, (turn - 0.15) / 0.3), 0, 1)
        grip[2] += (0.15 if task.target or _upright(state) else 0.10) * share
        if grip[2] - tool[2] > 0.08:
            grip[:2] = tool[:2]  # first up
        return grip, frame, OPEN
    if phase in (DESCEND, GRASP):
        return grip, frame, OPEN if phase == DESCEND else CLOSED
    if phase == LIFT:
        return tool * [1, 1, 0] + height, frame, CLOSED
    if phase == CARRY:
        return (place + held) * [1, 1, 0] + height, frame, CLOSED
    if phase == LOWER:
        return np.append((place + held)[:2], tool[2] - 0.04), frame, CLOSED
    return (tool if phase == RELEASE else tool * [1, 1, 0] + [0, 0, 1.05]), frame, OPEN


def _carrying(task: Task, state: SceneState) -> float:
    """Height of the tool (m) to lift to."""
    if not task.target:
        return float(state.target[2]) + 0.12
    return 1.03 if _upright(state) else 0.98


def _place(task: Task, state: SceneState) -> Array:
    """Where the source is to be let go, (3,)."""
    source, target = state.source.astype(np.float64), state.target.astype(np.float64)
    if task.target == "top drawer":
        return np.array([target[0] + 0.20, np.clip(source[1], -0.1, 0.1), 0.80])
    away = source[:2] - target[:2]
    away /= max(float(np.linalg.norm(away)), 1e-6)
    return np.append(target[:2] + 0.13 * away, 0.945 if _upright(state) else 0.915)


def _long_axis(state: SceneState) -> Array:
    return Rotation.from_quat(state.source[[4, 5, 6, 3]]).as_matrix()[:, 1]


def _upright(state: SceneState) -> bool:
    return bool(abs(_long_axis(state)[2]) > 0.5)


def _tool_frame(task: Task, state: SceneState) -> Array:
    """3 x 3, world: leaning outwards from the robot, the fingers closing across the thing."""
    away = state.source[:2] - BASES["cabinet" if task.target == "top drawer" else "table"]
    distance = float(np.linalg.norm(away))
    lean, outward = np.interp(distance, *LEANS), away / distance
    approach = np.array([*(outward * np.sin(lean)), -np.cos(lean)])
    axis = _long_axis(state)
    # over the drawer, fingers that open along x touch its front
    across = outward if _upright(state) or task.target == "top drawer" else axis
    return _frame(approach, np.array([-across[1], across[0], 0.0]))


# Drawers


def _hold(task: Task, state: SceneState) -> Array:
    """Where the tool takes the drawer's front: over its upper edge to open, before it to close."""
    name = next(word for word in EDGES if f"{word}_drawer" in task.name)
    edge = np.array([state.source[0] + FRONT, 0.0, EDGES[name]])
    if _opens(task):
        return edge + np.array([-0.0045, 0.0, -0.012])
    beside = float(np.clip(state.tcp[1], -0.15, 0.15))  # anywhere along it, the nearer the better
    return edge + np.array([HALF + 0.035, beside, -0.045])


def _drawer_phase(task: Task, state: SceneState) -> int:
    opening = state.source[0] - CLOSED_AT
    off = state.tcp[:3] - _hold(task, state)
    if not _opens(task):
        if opening < PUSHED:
            return RETREAT
        before = abs(off[1]) < 0.05 and abs(off[2]) < 0.03 and -0.06 < off[0] < 0.03
        return PUSH if before else APPROACH
    if opening > PULLED or (opening > PULLED - 0.03 and state.opening > 0.4):
        return RETREAT
    if not -0.02 < off[0] < 0.04 or abs(off[1]) > 0.04 or not -0.06 < off[2] < 0.012:
        return APPROACH
    return PULL if state.opening < 0.315 else HOOK


def _drawer_goal(task: Task, state: SceneState) -> tuple[Array, Array, float]:
    """Tool position (3,) and orientation (3, 3), and the fingers' angle (rad)."""
    phase, hold, top = _drawer_phase(task, state), _hold(task, state), "top" in task.name
    # an open drawer is near the robot, whose arm is in its own way further out
    slope, farthest = np.deg2rad(40.0 if top else 50.0), 0.25
    if not _opens(task):
        slope, farthest = np.deg2rad(60.0), 0.12
    approach = np.array([-np.cos(slope), 0.0, -np.sin(slope)])
    frame, tool = _frame(approach, np.array([1.0, 0.0, 0.0])), state.tcp[:3].astype(np.float64)
    if phase == APPROACH:
        off = tool - hold
        beside = float(np.linalg.norm(off - (off @ approach) * approach))
        back = np.clip(4 * (beside - 0.01), 0, farthest)  # comes from outside
        return hold - back * approach, frame, CLOSED if not _opens(task) else 0.85 if top else 0.65
    if phase == HOOK:
        return hold, frame, CLOSED
    if phase == PULL:  # the top one slips out upwards unless pressed down
        step, down = (0.04, 0.03) if top else (0.06, 0.0)
        return np.array([tool[0] + step, hold[1], hold[2] - down]), frame, CLOSED
    if phase == PUSH:
        return np.array([tool[0] - 0.06, *hold[1:]]), frame, CLOSED
    return hold - 0.15 * approach, frame, OPEN if _opens(task) else CLOSED
