"""Compares what a policy's numbers mean with what a robot takes, and converts what can be converted.

A mismatch stops a run before its first episode. Needs numpy alone; scipy and Pillow when something is
converted.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from refinevla_kit.conventions import ROBOT_CONVENTIONS, Conventions, robot_of
from refinevla_kit.errors import KitError
from refinevla_kit.policies.contract import (
    Array,
    ask,
    begin,
    conventions_of,
    has,
    identity_of,
    name_of,
    read_answer,
)
from refinevla_kit.tasks import Task, find_task

_ENDS = {  # open, closed
    "open+1_closed-1": (1, -1),
    "open1_closed0": (1, 0),
    "open-1_closed+1": (-1, 1),
    "open0_closed1": (0, 1),
}
PRIVATE = ("image_size", "gripper_reference")  # a policy's own business, which no robot declares
_METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001}
_CONVERTED = ("unit", "rotation", "gripper", "sticky_gripper", "resize", "colour")
STICKS = 0.5  # a change of openness beyond this is a gripper motion (SIMPLER's threshold)
_REMEDIES = {
    "robot": "evaluate it on tasks of its own robot",
    "frame": "turn translation and rotation into the robot base's axes inside the policy (the WidowX's is "
    "turned 180 degrees about the world's z)",
    "unit": "un-normalise the actions with the data set's statistics inside the policy",
    "added_to": "add the difference between the controller's target and the measured pose inside the "
    "policy, or train on the other",
    "control_hz": "use a checkpoint trained at this rate: an action of another rate moves the arm too "
    "far or too little",
    "normalisation": "un-normalise with the statistics of this robot's data set",
    "camera": "use a checkpoint trained on this camera",
    "gripper": "say how many steps a motion is repeated (sticky_gripper) and wrap it in converted(), or "
    "convert it inside the policy",
    "sticky_gripper": "repeat the motion inside the policy and declare 1",
}


@dataclass(frozen=True)
class Mismatch:
    """One convention on which a policy and a task differ, and what to do about it."""

    field: str
    policy_says: Any
    task_says: Any
    remedy: str

    def __str__(self) -> str:
        return f"{self.field} is {self.policy_says}, here {self.task_says}"


def mismatches(policy: Any, task: str | Task) -> list[Mismatch]:
    """Where `policy.conventions` and those of the task's robot differ; what the policy does not declare is no
    mismatch.
    """
    task = find_task(task)
    ours, robots = conventions_of(policy), ROBOT_CONVENTIONS[task.robot]
    found = []
    for name in (field.name for field in fields(Conventions) if field.name not in PRIVATE):
        policy_says, task_says = getattr(ours, name), getattr(robots, name)
        if policy_says is not None and not _agree(name, ours, robots):
            remedy = (
                "wrap the policy: converted(policy, to=task)"
                if _convertible(name, ours, robots)
                else f"{name}: {_REMEDIES[name]}"
            )
            found.append(Mismatch(name, policy_says, task_says, remedy))
    return found


def check_conventions(policy: Any, task: str | Task) -> None:
    """Stop before the first episode if the policy's actions or images mean something else than the task's;
    warn of what it does not declare.

    Raises:
        KitError: one line with every mismatch and its remedy.
    """
    task = find_task(task)
    name, ours = name_of(policy), conventions_of(policy)
    names = [field.name for field in fields(ours) if field.name not in ("resize", *PRIVATE)]
    silent = [field for field in names if getattr(ours, field) is None]
    if silent:
        what = "no conventions" if silent == names else f"no {', '.join(silent)}"
        warnings.warn(
            f"policy {name!r} declares {what}: taken to be the robot's (see refinevla_kit.conventions)",
            stacklevel=2,
        )
    found = mismatches(policy, task)
    if found:
        what = f"policy {name!r} does not fit {task.name}: {'; '.join(map(str, found))}"
        raise KitError(what, "; ".join(dict.fromkeys(each.remedy for each in found)))


def converted(policy: Any, to: str | Task) -> Converted:
    """`policy` with its actions and images turned into those of the task's robot.

    Raises:
        KitError: something that cannot be converted from an action alone (frame, control rate, statistics,
            ...).
    """
    task = find_task(to)
    ours, robots = conventions_of(policy), ROBOT_CONVENTIONS[task.robot]
    lost = [each for each in mismatches(policy, task) if not _convertible(each.field, ours, robots)]
    if lost:
        what = f"cannot convert to {task.name}: {'; '.join(map(str, lost))}"
        raise KitError(what, "; ".join(each.remedy for each in lost))
    return Converted(policy, ours, robots)


class ActionConversion:
    """Turns the numbers of an action from one form into another, step by step of an episode.

    Attributes:
        remembers: a gripper motion is carried from step to step, so one conversion serves one episode.
    """

    def __init__(self, ours: Conventions, robots: Conventions) -> None:
        self._ours, self._robots = ours, robots
        sticks = (ours.sticky_gripper or 1) > 1
        carried = motion_as_place(ours, robots) or (_relative(robots.gripper) and sticks)
        self.remembers = bool(ours.gripper and carried)
        self.forget()

    def forget(self) -> None:
        """Begin another episode."""
        # the command that motions are counted from: 0 closed, 1 open
        self._openness: float | None = None
        self._held, self._repeats = 0.0, 0  # the gripper motion being repeated, and for how many steps more

    def convert(self, numbers: Array) -> Array:
        """float (7,) of the policy -> float32 (7,) of the robot."""
        action = numbers.astype(np.float64)
        if np.isfinite(action).all():  # anything else is for the caller to refuse
            action[:3] *= _METRES[self._ours.unit or "m"]
            if self._ours.rotation not in (None, "euler_xyz_extrinsic"):  # which both robots take
                from scipy.spatial.transform import Rotation

                # scipy: capitals are intrinsic
                by_axis = self._ours.rotation == "axis_angle"
                turned = action[3:6]
                turn = Rotation.from_rotvec(turned) if by_axis else Rotation.from_euler("XYZ", turned)
                action[3:6] = turn.as_euler("xyz")
            action[6] = self._gripper(float(action[6]))
        return action.astype(np.float32)

    def _gripper(self, value: float) -> float:
        ours, robots = self._ours.gripper, self._robots.gripper
        if ours is None or (ours == robots and not self.remembers):
            return value
        if _relative(ours):
            closing = value if ours == robots else -value
            return self._repeated(closing) if self.remembers else closing
        opened, closed = _ENDS[ours]
        openness = (value - closed) / (opened - closed)
        if not _relative(robots):
            opened, closed = _ENDS[str(robots)]  # all or nothing, as SIMPLER's wrappers do on the WidowX
            return float(opened if openness > 0.5 else closed)
        closing = 0.0 if self._openness is None else self._openness - openness
        begins = abs(closing) > STICKS and self._repeats == 0
        if self._openness is None or begins or self._ours.gripper_reference != "motion":
            self._openness = openness
        return self._repeated(closing)

    def _repeated(self, closing: float) -> float:
        if abs(closing) > STICKS and self._repeats == 0:
            self._held, self._repeats = closing, self._ours.sticky_gripper or 1
        if self._repeats:
            self._repeats -= 1
            return self._held
        return closing


class Converted:
    """A policy behind its conversion: `reset` and `act`, and `act_batch` if the policy has it and no gripper
    motion is carried from step to step.
    """

    act_batch: Callable[..., list[Any]]

    def __init__(self, policy: Any, ours: Conventions, robots: Conventions) -> None:
        self._policy, self._ours, self._robots = policy, ours, robots
        self.name, self._instruction = name_of(policy), ""
        handled = {name: getattr(robots, name) for name in _CONVERTED if getattr(ours, name) is not None}
        reshaped = not _agree("resize", ours, robots)
        self.needs_proprioception = bool(getattr(policy, "needs_proprioception", False))
        handled["image_size"] = robots.image_size if reshaped else ours.image_size
        self.conventions = replace(ours, **handled)
        self._conversion = ActionConversion(ours, robots)
        if has(policy, "act_batch") and not self._conversion.remembers:
            self.act_batch = self._act_batch

    @property
    def checkpoint_hash(self) -> str:
        """See `Policy`: the policy's own, and what is converted."""
        names = [name for name in (*_CONVERTED, "image_size") if not _agree(name, self._ours, self._robots)]
        if "resize" not in names:
            names = [name for name in names if name != "image_size"]  # the simulator renders at that size
        if not self._conversion.remembers:
            names = [name for name in names if name != "sticky_gripper"]
        elif self._ours.gripper_reference == "motion":
            names.append("gripper_reference")
        return identity_of(self._policy) + "".join(f"+{name}={getattr(self._ours, name)}" for name in names)

    def reset(self, instruction: str) -> None:
        """See `Policy.reset`."""
        self._conversion.forget()
        self._instruction = instruction
        begin(self._policy, instruction)

    def act(self, image: Array, proprioception: Array | None = None) -> Any:
        """See `Policy.act`; what comes back is what the policy returned, an `Action` or an array, with the
        numbers converted.
        """
        own = None if proprioception is None else [proprioception]
        return self._converted(ask(self._policy, [self._image(image)], [self._instruction], own)[0])

    def _act_batch(
        self, images: Array, instructions: Sequence[str], proprioception: Array | None = None
    ) -> list[Any]:
        own = None if proprioception is None else list(proprioception)
        answers = ask(self._policy, [self._image(image) for image in images], instructions, own)
        return [self._converted(answer) for answer in answers]

    def _image(self, image: Array) -> Array:
        """uint8 (H, W, 3) RGB -> what the policy wants to see."""
        size = self._ours.image_size
        if size is not None and not _agree("resize", self._ours, self._robots):
            from PIL import Image, ImageOps

            fit = ImageOps.fit if self._ours.resize == "crop" else ImageOps.pad
            image = np.asarray(fit(Image.fromarray(image), size))
        return np.ascontiguousarray(image[..., ::-1]) if self._ours.colour == "bgr" else image

    def _converted(self, answer: Any) -> Any:
        actions = read_answer(answer, axis_angle=self._ours.rotation == "axis_angle")
        rows = np.stack([self._conversion.convert(action.processed) for action in actions])
        if isinstance(answer, np.ndarray):
            return rows[0] if answer.ndim == 1 else rows
        if len(actions) == 1:
            return replace(actions[0], processed=rows[0])
        return {"actions": rows, "rationale": actions[0].rationale, "terminate": actions[-1].terminate}


def motion_as_place(ours: Conventions, robots: Conventions) -> bool:
    """Whether the robot's gripper is told how to move and the policy says where it is: to stay is then what
    was told before.
    """
    return _relative(robots.gripper) and not _relative(ours.gripper or robots.gripper)


def _relative(gripper: str | None) -> bool:
    return str(gripper).startswith("relative")


def _agree(name: str, ours: Conventions, robots: Conventions) -> bool:
    if name == "normalisation":  # "own", and data of a third kind, are the policy's business
        return robot_of(str(ours.normalisation)) in (None, robots.robot)
    if name == "resize":
        width, height = ours.image_size or robots.image_size or (1, 1)
        full_width, full_height = robots.image_size or (1, 1)
        if abs(width * full_height - height * full_width) < 0.01 * width * full_height:
            return True  # of one aspect, the three are one
    return bool(getattr(ours, name) in (None, getattr(robots, name)))


def _convertible(name: str, ours: Conventions, robots: Conventions) -> bool:
    if name == "gripper":
        if not _relative(robots.gripper):
            return not _relative(ours.gripper)
        return ours.sticky_gripper is not None or _relative(ours.gripper)
    special = {"unit": ours.unit in _METRES, "sticky_gripper": _relative(robots.gripper)}
    return special.get(name, name in _CONVERTED)
