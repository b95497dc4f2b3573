"""What an action and an image mean: a policy declares it, a robot declares it, and a mismatch stops a run
before its first episode.

Half of the failed reproductions in SimplerEnv are of this kind: a rotation vector read as Euler angles, a
gripper with the other sign, statistics of the other robot's data set. Each field below is one of them. A
policy declares what it knows (`policy.conventions`, None where it does not know); a robot declares everything
(`ROBOT_CONVENTIONS`): what the kit's `Simulator.step` takes, over SIMPLER's controllers (SimplerEnv's
`env_builder.py` and ManiSkill2_real2sim's `agents/configs`): WidowX
`arm_pd_ee_target_delta_pose_align2_gripper_pd_joint_pos`, Google Robot
`arm_pd_ee_delta_pose_align_interpolate_by_planner_gripper_pd_joint_target_delta_pos_interpolate_by_planner`.
Needs numpy alone; scipy and Pillow when something is converted.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from refinevla_kit.errors import KitError
from refinevla_kit.policies.answers import ask, begin, has, identity_of, name_of, read_answer
from refinevla_kit.tasks import CAMERA_SIZES, Task, find_task

Array = NDArray[Any]
Robot = Literal["widowx", "google_robot"]
Frame = Literal["base", "world", "tool"]
Unit = Literal["m", "cm", "mm", "normalised"]
Origin = Literal["target", "measured"]
Rotation = Literal["euler_xyz_extrinsic", "euler_xyz_intrinsic", "axis_angle"]
Gripper = Literal[
    "open+1_closed-1",
    "open1_closed0",
    "open-1_closed+1",
    "open0_closed1",
    "relative_closing+1",
    "relative_opening+1",
]
Resize = Literal["stretch", "crop", "pad"]
Colour = Literal["rgb", "bgr"]
Camera = Literal["3rd_view_camera", "overhead_camera", "wrist_camera"]


@dataclass(frozen=True)
class Conventions:
    """What the seven numbers of an action and the image before them mean. None: not declared. An unknown
    value raises `KitError`.

    Attributes:
        robot: whose actions these are.
        frame: axes of translation and rotation: robot base, world, or the tool's own.
        unit: of the translation, [0:3]; "normalised" when the policy leaves un-normalisation to its caller.
        added_to: what the translation is added to: the controller's last target, or the pose measured now.
        rotation: form of [3:6], radians: Euler angles about the fixed axes x, then y, then z (extrinsic: R =
            Rz Ry Rx; SIMPLER's roll, pitch, yaw), about the turning axes (intrinsic: R = Rx Ry Rz), or a
            rotation vector (axis times angle; what SIMPLER's environments themselves take).
        gripper: [6]. Absolute forms name both ends; relative ones are a motion, and 0 stays.
        sticky_gripper: steps for which the caller has to repeat a gripper motion once it began; 1 when it is
            executed as it comes. SIMPLER's wrappers repeat on the Google Robot: 10 for SpatialVLA, 15 for
            Octo.
        control_hz: actions a second.
        image_size: (width, height) in pixels the policy wants to be given; None: whatever comes.
        resize: how the camera's picture becomes `image_size` where the aspect differs: stretched, cropped
            about its centre, or padded with black.
        colour: channel order.
        normalisation: data set whose statistics un-normalise the actions ("bridge_orig/1.0.0"), "own" for
            those of the checkpoint's own training.
        camera: SIMPLER's name of the camera.
    """

    robot: Robot | None = None
    frame: Frame | None = None
    unit: Unit | None = None
    added_to: Origin | None = None
    rotation: Rotation | None = None
    gripper: Gripper | None = None
    sticky_gripper: int | None = None
    control_hz: float | None = None
    image_size: tuple[int, int] | None = None
    resize: Resize | None = None
    colour: Colour | None = None
    normalisation: str | None = None
    camera: Camera | None = None

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) is not None and value not in choices:
                raise KitError(f"conventions: {name} is {value!r}", f"choose one of {', '.join(choices)}")
        if self.sticky_gripper is not None and self.sticky_gripper < 1:
            raise KitError(
                f"conventions: sticky_gripper is {self.sticky_gripper}",
                "give the number of steps, 1 for a gripper that is not sticky",
            )
        if self.image_size is not None:
            object.__setattr__(
                self, "image_size", tuple(int(x) for x in self.image_size)
            )  # a list, after JSON or msgpack
            if len(self.image_size) != 2 or min(self.image_size) < 1:
                raise KitError(
                    f"conventions: image_size is {self.image_size}", "give (width, height) in pixels"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON or a message."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Conventions:
        """Inverse of `to_dict`; raises `KitError` for an unknown field or value."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(value) - known):
            raise KitError(
                f"conventions: unknown {', '.join(unknown)}", f"choose from {', '.join(sorted(known))}"
            )
        try:
            return cls(**value)
        except (TypeError, ValueError) as error:
            raise KitError(
                f"conventions: {dict(value)} ({error})", "see refinevla_kit.conventions.Conventions"
            ) from error


_CHOICES: dict[str, tuple[str, ...]] = {
    "robot": get_args(Robot),
    "frame": get_args(Frame),
    "unit": get_args(Unit),
    "added_to": get_args(Origin),
    "rotation": get_args(Rotation),
    "gripper": get_args(Gripper),
    "resize": get_args(Resize),
    "colour": get_args(Colour),
    "camera": get_args(Camera),
}

WIDOWX = Conventions(
    "widowx",
    "base",
    "m",
    "target",
    "euler_xyz_extrinsic",
    "open+1_closed-1",
    1,
    5.0,
    CAMERA_SIZES["widowx"],
    "stretch",
    "rgb",
    "bridge_orig/1.0.0",
    "3rd_view_camera",
)
GOOGLE_ROBOT = Conventions(
    "google_robot",
    "base",
    "m",
    "measured",
    "euler_xyz_extrinsic",
    "relative_closing+1",
    1,
    3.0,
    CAMERA_SIZES["google_robot"],
    "stretch",
    "rgb",
    "fractal20220817_data/0.1.0",
    "overhead_camera",
)
ROBOT_CONVENTIONS: dict[str, Conventions] = {"widowx": WIDOWX, "google_robot": GOOGLE_ROBOT}

_DATA_OF = {
    "bridge": "widowx",
    "fractal": "google_robot",
    "rt1": "google_robot",
    "rt_1": "google_robot",
}  # words of normalisation keys
_ENDS = {
    "open+1_closed-1": (1, -1),
    "open1_closed0": (1, 0),
    "open-1_closed+1": (-1, 1),
    "open0_closed1": (0, 1),
}  # open, closed
_METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001}
_CONVERTED = ("unit", "rotation", "gripper", "sticky_gripper", "resize", "colour")
_STICKS = 0.5  # a change of openness beyond this is a gripper motion (SIMPLER's threshold)
_REMEDIES = {
    "robot": "evaluate it on tasks of its own robot",
    "frame": "turn translation and rotation into the robot base's axes inside the policy (the WidowX's is "
    "turned 180 degrees about the world's z)",
    "unit": "un-normalise the actions with the data set's statistics inside the policy",
    "added_to": "add the difference between the controller's target and the measured pose inside the "
    "policy, or "
    "train on the other",
    "control_hz": "use a checkpoint trained at this rate: an action of another rate moves the arm too "
    "far or too "
    "little",
    "normalisation": "un-normalise with the statistics of this robot's data set",
    "camera": "use a checkpoint trained on this camera",
    "gripper": "say how many steps a motion is repeated (sticky_gripper) and wrap it in converted(), or "
    "convert "
    "it inside the policy",
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
    task = task if isinstance(task, Task) else find_task(task)
    ours, robots = _declared(policy), ROBOT_CONVENTIONS[task.robot]
    found = []
    for name in (field.name for field in fields(Conventions) if field.name != "image_size"):
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
    task = task if isinstance(task, Task) else find_task(task)
    name, ours = name_of(policy), _declared(policy)
    names = [field.name for field in fields(ours) if field.name not in ("image_size", "resize")]
    if silent := [field for field in names if getattr(ours, field) is None]:
        what = "no conventions" if silent == names else f"no {', '.join(silent)}"
        warnings.warn(
            f"policy {name!r} declares {what}: taken to be the robot's (see refinevla_kit.conventions)",
            stacklevel=2,
        )
    if found := mismatches(policy, task):
        remedies = "; ".join(dict.fromkeys(each.remedy for each in found))
        raise KitError(f"policy {name!r} does not fit {task.name}: {'; '.join(map(str, found))}", remedies)


def converted(policy: Any, to: str | Task) -> Converted:
    """`policy` with its actions and images turned into those of the task's robot.

    Raises:
        KitError: something that cannot be converted from an action alone (frame, control rate, statistics,
            ...).
    """
    task = to if isinstance(to, Task) else find_task(to)
    ours, robots = _declared(policy), ROBOT_CONVENTIONS[task.robot]
    if lost := [each for each in mismatches(policy, task) if not _convertible(each.field, ours, robots)]:
        raise KitError(
            f"cannot convert to {task.name}: {'; '.join(map(str, lost))}",
            "; ".join(each.remedy for each in lost),
        )
    return Converted(policy, ours, robots)


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
        self.conventions = replace(
            ours, **handled, image_size=robots.image_size if reshaped else ours.image_size
        )
        self._motion = bool(
            ours.gripper
            and _relative(robots.gripper)
            and (not _relative(ours.gripper) or (ours.sticky_gripper or 1) > 1)
        )
        self._forget()
        if has(policy, "act_batch") and not self._motion:
            self.act_batch = self._act_batch

    @property
    def checkpoint_hash(self) -> str:
        """See `Policy`: the policy's own, and what is converted."""
        names = [name for name in (*_CONVERTED, "image_size") if not _agree(name, self._ours, self._robots)]
        if "resize" not in names:
            names = [name for name in names if name != "image_size"]  # the simulator renders at that size
        if not self._motion:
            names = [name for name in names if name != "sticky_gripper"]
        return identity_of(self._policy) + "".join(f"+{name}={getattr(self._ours, name)}" for name in names)

    def reset(self, instruction: str) -> None:
        """See `Policy.reset`."""
        self._forget()
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
        return [
            self._converted(answer)
            for answer in ask(self._policy, [self._image(image) for image in images], instructions, own)
        ]

    def _forget(self) -> None:
        self._openness: float | None = None  # commanded last, 0 closed to 1 open
        self._held, self._repeats = 0.0, 0  # the gripper motion being repeated, and for how many steps more

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
        rows = np.stack([self._numbers(action.processed) for action in actions])
        if isinstance(answer, np.ndarray):
            return rows[0] if answer.ndim == 1 else rows
        if len(actions) == 1:
            return replace(actions[0], processed=rows[0])
        return {"actions": rows, "rationale": actions[0].rationale, "terminate": actions[-1].terminate}

    def _numbers(self, numbers: Array) -> Array:
        """float32 (7,) of the policy -> of the robot."""
        action = numbers.astype(np.float64)
        if np.isfinite(action).all():  # anything else is for the caller to refuse
            action[:3] *= _METRES[self._ours.unit or "m"]
            action[3:6] = _rotation(action[3:6], self._ours.rotation)
            action[6] = self._gripper(float(action[6]))
        return action.astype(np.float32)

    def _gripper(self, value: float) -> float:
        ours, robots = self._ours.gripper, self._robots.gripper
        if ours is None or (ours == robots and not self._motion):
            return value
        if not _relative(ours):
            opened, closed = _ENDS[ours]
            openness = (value - closed) / (opened - closed)
            if not _relative(robots):
                opened, closed = _ENDS[str(robots)]
                return float(
                    opened if openness > 0.5 else closed
                )  # all or nothing, as SIMPLER's wrappers do on the WidowX
            closing = 0.0 if self._openness is None else self._openness - openness
            self._openness = openness
        else:
            closing = value if ours == robots else -value
        if not self._motion:
            return closing
        if abs(closing) > _STICKS and self._repeats == 0:
            self._held, self._repeats = closing, self._ours.sticky_gripper or 1
        if self._repeats:
            self._repeats -= 1
            return self._held
        return closing


def _declared(policy: Any) -> Conventions:
    said = getattr(policy, "conventions", None) or Conventions()
    if not isinstance(said, Conventions):
        what = f"policy {name_of(policy)!r} has conventions that are a {type(said).__name__}"
        raise KitError(what, "give it `refinevla_kit.conventions.Conventions`, or none")
    return said


def _relative(gripper: str | None) -> bool:
    return str(gripper).startswith("relative")


def _agree(name: str, ours: Conventions, robots: Conventions) -> bool:
    if name == "normalisation":  # "own", and data of a third kind, are the policy's business
        return all(
            robot == robots.robot
            for word, robot in _DATA_OF.items()
            if word in str(ours.normalisation).lower()
        )
    if name == "resize":
        width, height = ours.image_size or robots.image_size or (1, 1)
        full_width, full_height = robots.image_size or (1, 1)
        if abs(width * full_height - height * full_width) < 0.01 * width * full_height:
            return True  # of one aspect, the three are one
    return bool(getattr(ours, name) in (None, getattr(robots, name)))


def _convertible(name: str, ours: Conventions, robots: Conventions) -> bool:
    if name == "gripper":
        return not (_relative(ours.gripper) and not _relative(robots.gripper)) and (
            ours.sticky_gripper is not None or _relative(ours.gripper) or not _relative(robots.gripper)
        )
    return {"unit": ours.unit in _METRES, "sticky_gripper": _relative(robots.gripper)}.get(
        name, name in _CONVERTED
    )


def _rotation(angles: Array, form: Rotation | None) -> Array:
    """float64 (3,) radians -> extrinsic XYZ Euler angles, which both robots take."""
    if form in (None, "euler_xyz_extrinsic"):
        return angles
    from scipy.spatial.transform import Rotation as Turn

    turn = (
        Turn.from_rotvec(angles) if form == "axis_angle" else Turn.from_euler("XYZ", angles)
    )  # scipy: capitals are intrinsic
    return np.asarray(turn.as_euler("xyz"))
