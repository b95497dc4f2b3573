"""The one contract every simulator backend fulfils: reset, step, masks, instruction.

Frames and units: metres, radians, seconds. *World* frame: the simulator's, z up, the table or sink top near z
= 0.87. *Robot base* frame: turned 180 degrees about z against the world (a base-frame motion (dx, dy, dz) is
(-dx, -dy, dz) in the world). Quaternions are (w, x, y, z). Image: row 0 is the top, column 0 the left. The
WidowX camera looks at the table from above and behind the robot's shoulder.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from refinevla_kit.errors import KitError
from refinevla_kit.tasks import Start, Task

Array = NDArray[Any]
ACTION_NAMES = (
    "x",
    "y",
    "z",
    "roll",
    "pitch",
    "yaw",
    "gripper",
)  # metres, radians, +1 open / -1 closed; `Simulator.step`

MASK_NAMES = (
    "gripper",
    "arm",
    "background",
)  # masks() has these beside the task's source, its target and other things by name

PHASES = (
    *("reach", "descend", "grasp", "lift", "carry", "lower", "release", "retreat"),
    *("approach", "hook", "pull", "push"),
)
"""Sub-tasks of pick and place, then those of drawers; `SceneState.phase` is an index into this."""
ORDERS: dict[str, tuple[str, ...]] = {
    "place": PHASES[:8],
    "pick": PHASES[:4],
    "open": ("approach", "hook", "pull", "retreat"),
    "close": ("approach", "push", "retreat"),
}
"""What a task does -> its sub-tasks, in the order in which they are due."""


@dataclass(frozen=True)
class Pose:
    """A continuous start configuration: where the source and the target lie.

    Attributes:
        source, target: float64 (7,), world position (m) and quaternion (w, x, y, z).
    """

    source: Array
    target: Array


@dataclass(frozen=True)
class Arrangement:
    """A start of the WidowX's language tasks: which things lie on the table, and where.

    Attributes:
        things: name (`tasks.THINGS`) -> float64 (7,), world position (m) and quaternion (w, x, y, z).
    """

    things: dict[str, Array]


AnyStart: TypeAlias = int | Pose | Start | Arrangement  # a number is that of a grid


@dataclass(frozen=True)
class SceneState:
    """Privileged simulator state of one frame; arrays, so that a trajectory of them is a table. World frame,
    metres.

    Attributes:
        source, target: float32 (7,) position and quaternion of the object to move and of where it goes. Of a
            drawer the source is the drawer itself, which slides along x; before the apple is placed, the
            drawer is the source, and then the target. Where nothing is to go anywhere (can, drawers) the
            target is where the source started.
        tcp: float32 (7,) measured pose of the point between the fingertips (link ee_gripper_link;
            link_gripper_tcp of the Google Robot).
        tcp_target: float32 (7,) the pose the controller is steering to (actions are added to this one).
        opening: float32 (), finger opening, 0 closed to 1 open.
        grasped: bool (), the source is held between the fingers.
        placed: bool (), the task's own success condition holds in this frame.
        phase: int8 (), index into `PHASES`: the sub-task the demonstrator would carry out from this state.
        goal: int8 (), which of `Task.goals` is to be reached now; source, target and placed are this one's.
            None where a task has no list of them.
        held: int8 (), index into `tasks.THINGS` of what is held, whatever was asked for; -1 for nothing. None
            where only the source is looked at.
    """

    source: Array
    target: Array
    tcp: Array
    tcp_target: Array
    opening: Array
    grasped: Array
    placed: Array
    phase: Array
    goal: Array | None = None
    held: Array | None = None

    def to_arrays(self) -> dict[str, Array]:
        """Field name -> array, for storing; what is None is left out."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: np.asarray(value) for name, value in values.items() if value is not None}


STATE = [field.name for field in fields(SceneState) if field.default is MISSING]  # what every state has


@dataclass(frozen=True)
class Observation:
    """What one control step shows.

    Attributes:
        image: uint8 (H, W, 3) RGB of the camera SIMPLER's policies see, background overlay applied.
        proprioception: float32 (15,), all in the robot base frame: measured tool position (3, m) and
            quaternion (4; w, x, y, z), finger opening (1, 0 closed to 1 open), then the commanded tool
            position (3) and quaternion (4): the pose the controller is steering to, which the arm trails by a
            step or two. The WidowX's actions are added to the commanded one, so a picture alone does not tell
            what an action will do.
        instruction: the sentence that holds now. It may change within an episode (long-horizon tasks: the
            next sub-task has begun).
        state: privileged state, only when the simulator was made with `privileged=True`.
    """

    image: Array
    proprioception: Array
    instruction: str
    state: SceneState | None = None


@dataclass(frozen=True)
class StepResult:
    """What came of one control step.

    Attributes:
        observation: after the step.
        success: the task's own condition holds now (SIMPLER scores the last step; "any step" is the max over
            steps).
        grasped: the source object is held now.
        done: the step budget is used up, or physics broke (`reason` says which).
        reason: "" while running; "budget" or "physics" when done.
        unsolved: inverse kinematics found no answer to this action, and the arm was told to stay where it is
            (Google Robot).
        touched_first, lifted_first: what the fingers have touched first in this episode, and what has first
            risen by 2 cm, as `masks` names it; "" for nothing, and where it is not looked at (SIMPLER's
            WidowX tasks, drawers).
        ended_on: what `lifted_first` lies on now (move near: what it is near); "" for none of the things.
    """

    observation: Observation
    success: bool
    grasped: bool
    done: bool
    reason: str = ""
    unsolved: bool = False
    touched_first: str = ""
    lifted_first: str = ""
    ended_on: str = ""


RISEN = 0.02  # m from which a thing counts as lifted, for `StepResult.lifted_first`


def vector(pose: Any) -> Array:
    """float32 (7,): position and quaternion (w, x, y, z) of a SAPIEN pose."""
    return np.concatenate([pose.p, pose.q]).astype(np.float32)


def checked_action(action: Any) -> Array:
    """float32 (7,); raises `KitError` for what is no action."""
    action = np.asarray(action, np.float32)
    if action.shape != (7,) or not np.isfinite(action).all():
        what = f"an action must be 7 finite numbers, got {action!r}"
        raise KitError(what, "check the policy's un-normalisation")
    return action


class Simulator(Protocol):
    """One task on one backend, in one variant of its scene. Made once, reset many times."""

    task: Task
    instruction: str  # of the current episode, now

    def reset(self, episode: AnyStart, seed: int = 0) -> Observation:
        """Start from grid configuration `episode` (0 .. task.grid - 1) or from anywhere else: a continuous
        `Pose` of the WidowX's things, an `Arrangement` of a language task's, a `Start` of the Google Robot
        and its.
        """

    def step(self, action: Array) -> StepResult:
        """Advance one control step.

        Args:
            action: float32 (7,): [0:3] metres added to the controller's target in the robot base frame; [3:6]
                extrinsic XYZ Euler rotation in radians, base frame; [6] gripper, absolute, +1 open, -1
                closed. Google Robot: added to the *measured* pose, and [6] is relative, +1 closes and -1
                opens the fingers by their whole range.
        """

    def advance(self) -> bool:
        """The policy says that its sub-task is finished. A long-horizon task goes on to the next one; False
        when there is none.
        """

    def masks(self) -> dict[str, Array]:
        """Visible pixels of each named thing now, bool (H, W) each; together they cover the image once.

        Names: `task.source`, `task.target`, other things of the scene by name (distractors), "gripper", "arm"
        and "background" (all the rest).

            simulator = make("widowx_carrot_on_plate")
            image, masks = simulator.reset(0).image, simulator.masks()
            {name: int(mask.sum()) for name, mask in masks.items()}  # carrot 145, plate 574, gripper 1034,
                                                                     arm 5, background 17442
            image[~masks["carrot"]] //= 3  # the carrot, lit
        """

    def close(self) -> None: ...
