"""The scripted demonstrator: solves the WidowX tasks, SIMPLER's four and those of the language suite, from
privileged state, and, by `google_demonstrator`, those of the Google Robot.

The sub-task ("phase") follows from the state alone, so any state can be labelled with the action the
demonstrator would take there: also states a policy has driven into. Commands steer the controller's *target*
to the goal, per axis and clipped, so errors do not add up.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transforms3d.quaternions import rotate_vector

from refinevla_kit.errors import KitError
from refinevla_kit.simulator import google_demonstrator
from refinevla_kit.simulator.contract import Array, Observation, SceneState
from refinevla_kit.tasks import Task

REACH, DESCEND, GRASP, LIFT, CARRY, LOWER, RELEASE, RETREAT = range(8)
HOVER = 0.08  # m above the object before descending
LEAN = (
    0.016,
    0.3,
)  # m beside the object and rad turned away, beyond what allows to descend, at which the full height is kept
SPEED = 0.04  # m a step and axis
TURN = 0.3  # rad a step
UP = np.array([0.0, 0.0, 1.0])
START_YAW = -np.pi / 2  # the tool's y axis, along which the fingers open, points to world -y at rest


@dataclass(frozen=True)
class Recipe:
    """What differs between sources and targets; metres and radians, heights relative to the object's origin
    unless said otherwise.

    Attributes:
        lift: height of the tool in the world (m) while carrying.
        release: height of the source above the target when the fingers open.
        tolerance: distance in the table plane at which the source counts as above the target.
        grasp_height: tool height relative to the source's origin when the fingers close.
        symmetry: angle after which the object looks the same to the fingers.
        balance: how far along the object's long axis its weight is off its origin.
    """

    lift: float
    release: float
    tolerance: float = 0.02
    grasp_height: float = 0.0
    symmetry: float = np.pi
    balance: float = 0.0


RECIPES = {
    "widowx_carrot_on_plate": Recipe(lift=0.98, release=0.030),
    "widowx_spoon_on_towel": Recipe(lift=0.97, release=0.022),
    "widowx_stack_cube": Recipe(lift=0.98, release=0.034, tolerance=0.010, symmetry=np.pi / 2),
    "widowx_put_eggplant_in_basket": Recipe(lift=1.05, release=0.060, grasp_height=0.010),
}
# Of the language tasks: how far what is let go lies over the place it was let go at, in two parts: from the
# source's origin down, from the target's origin up; what differs from `Recipe`'s own values.
LANGUAGE_LIFT = 1.0
BELOW = {"carrot": 0.019, "spoon": 0.013, "green block": 0.017, "eggplant": 0.021}
ABOVE = {"plate": 0.011, "towel": 0.009, "yellow block": 0.017}
TOLERANCES = {"yellow block": 0.006}  # what lies on it aslant falls off
SYMMETRIES = {"green block": np.pi / 2}
BALANCES = {"carrot": 0.006, "spoon": -0.003}


def recipe_of(task: Task, state: SceneState) -> Recipe:
    """Of what `state` asks for."""
    if not task.goals:
        if task.name not in RECIPES:
            raise KitError(f"no demonstrator is written for {task.name}", "play it with a policy of your own")
        return RECIPES[task.name]
    source, target = task.goals[_goal_of(state)]
    return Recipe(
        LANGUAGE_LIFT,
        BELOW[source] + ABOVE[target],
        TOLERANCES.get(target, Recipe.tolerance),
        symmetry=SYMMETRIES.get(source, Recipe.symmetry),
        balance=BALANCES.get(source, 0.0),
    )


def _carried(recipe: Recipe, source: Array) -> Array:
    """The point of the source that is to come over the target, (3,)."""
    if not recipe.balance:
        return source[:3]
    return source[:3] + rotate_vector([recipe.balance, 0.0, 0.0], source[3:])


def _goal_of(state: SceneState) -> int:
    return 0 if state.goal is None else int(state.goal)


class Demonstrator:
    """Stateless expert of one task: `act(state)` is the action, `phase_of(task, state)` the sub-task it
    belongs to.
    """

    def __init__(self, task: Task) -> None:
        self.task = task

    def act(self, state: SceneState) -> Array:
        """float32 (7,), as `Simulator.step` takes it."""
        if self.task.robot == "google_robot":
            return google_demonstrator.act(self.task, state)
        goal, yaw_error, gripper = _goal(self.task, state)
        move = np.clip(goal - state.tcp_target[:3], -SPEED, SPEED)
        action = [
            -move[0],
            -move[1],
            move[2],
            0.0,
            0.0,
            np.clip(yaw_error, -TURN, TURN),
            gripper,
        ]  # base frame: turned 180 degrees about z
        return np.asarray(action, np.float32)

    def finished(self, state: SceneState) -> bool:
        """A sub-task is done and another one follows: `Simulator.advance` (drawer opened for the apple, the
        first of two things put down).
        """
        if self.task.robot == "google_robot":
            return google_demonstrator.finished(self.task, state)
        more = _goal_of(state) + 1 < len(self.task.goals)
        away = float(state.tcp[2] - state.source[2]) > HOVER / 2
        return more and away and bool(state.placed) and phase_of(self.task, state) == RETREAT


def observed(
    task: Task, image: Array, instruction: str, pose: Array, opening: float, steered: Array, **state: Any
) -> Observation:
    """What a simulator shows after a step.

    Args:
        pose, steered: of the tool, measured and commanded, float (7,), in the robot's frame.
        state: of `SceneState` what is neither the opening nor the phase; nothing without privileges.
    """
    proprioception = np.concatenate([pose, [opening], steered]).astype(np.float32)
    if not state:
        return Observation(image, proprioception, instruction)
    for name in ("grasped", "placed"):
        state[name] = np.array(state[name])
    known = SceneState(**state, opening=np.array(opening, np.float32), phase=np.array(0, np.int8))
    known = replace(known, phase=np.array(phase_of(task, known), np.int8))
    return Observation(image, proprioception, instruction, known)


def phase_of(task: Task, state: SceneState) -> int:
    """Index into `PHASES` of the sub-task that `state` calls for."""
    if task.robot == "google_robot":
        return google_demonstrator.phase_of(task, state)
    recipe = recipe_of(task, state)
    source, target, tool = state.source[:3], state.target[:3], state.tcp[:3]
    off_target = float(np.linalg.norm(_carried(recipe, state.source)[:2] - target[:2]))
    above = float(source[2] - target[2])
    if (
        state.grasped and state.opening > 0.03
    ):  # fingers closed to their limit hold nothing, whatever the contacts say
        low = above < recipe.release + 0.03
        if off_target > recipe.tolerance * (1.5 if low else 1.0):
            return CARRY if tool[2] > recipe.lift - 0.03 else LIFT
        return LOWER if above > recipe.release + 0.01 else RELEASE
    if (
        off_target < 2.5 * recipe.tolerance + 0.01
        and -0.01 < above < recipe.release + 0.05
        and (state.placed or state.opening > 0.4)
    ):
        return RELEASE if state.opening < 0.7 else RETREAT
    off_source = float(np.linalg.norm(source[:2] - tool[:2]))
    turn = abs(_yaw_error(recipe, state.source, state.tcp))
    height = float(tool[2] - source[2] - recipe.grasp_height)
    closing = height < 0.012 and off_source < 0.02
    if off_source > (0.02 if height < 0.04 else 0.012) or turn > (0.3 if height < 0.04 else 0.15):
        return REACH
    return GRASP if closing else DESCEND


def _goal(task: Task, state: SceneState) -> tuple[Array, float, float]:
    """(tool position in the world float64 (3,), yaw still to turn in rad, gripper command) for the phase of
    `state`.
    """
    recipe, phase = recipe_of(task, state), phase_of(task, state)
    source, target, tool = (pose[:3].astype(np.float64) for pose in (state.source, state.target, state.tcp))
    held_offset = tool - _carried(recipe, state.source)  # keeps the object, not the tool, on its way
    turn = _yaw_error(recipe, state.source, state.tcp_target)
    grip = source + recipe.grasp_height * UP
    if phase == REACH:
        return grip + _hover(recipe, state) * UP, turn, 1.0
    if phase == DESCEND:
        return grip, turn, 1.0
    if phase == GRASP:
        return grip, 0.0, -1.0
    if phase == LIFT:
        return np.append(tool[:2], recipe.lift), 0.0, -1.0
    if phase == CARRY:
        return np.append((target + held_offset)[:2], recipe.lift), 0.0, -1.0
    if phase == LOWER:
        return target + recipe.release * UP + held_offset, 0.0, -1.0
    if phase == RELEASE:
        return state.tcp_target[:3].astype(np.float64), 0.0, 1.0
    return np.append(state.tcp_target[:2], recipe.lift), 0.0, 1.0


def _hover(recipe: Recipe, state: SceneState) -> float:
    """Height (m) to keep above the place to grasp while the tool is not yet over it: the less is missing, the
    lower. A drop at a threshold could only be learned as a coin toss by whoever sees the threshold less
    exactly.
    """
    beside = float(np.linalg.norm(state.source[:2] - state.tcp[:2])) - 0.012
    turned = abs(_yaw_error(recipe, state.source, state.tcp)) - 0.15
    return HOVER * float(np.clip(max(beside / LEAN[0], turned / LEAN[1]), 0.0, 1.0))


def _yaw_error(recipe: Recipe, source: Array, tool: Array) -> float:
    """Angle (rad) the tool has still to turn so that the fingers close across the object's long axis, by the
    shorter way from the rest pose.
    """
    long_axis = rotate_vector([1.0, 0.0, 0.0], source[3:])
    fingers = rotate_vector([0.0, 1.0, 0.0], tool[3:])
    wanted = _wrap(np.arctan2(long_axis[1], long_axis[0]) + np.pi / 2 - START_YAW, recipe.symmetry)
    now = _wrap(np.arctan2(fingers[1], fingers[0]) - START_YAW, 2 * np.pi)
    return float(wanted - now)


def _wrap(angle: float, period: float) -> float:
    """Into [-period/2 + 0.2, period/2 + 0.2): the seam lies off the grid's own angles, where noise would flip
    the sign.
    """
    low = -period / 2 + 0.2
    return float((angle - low) % period + low)
