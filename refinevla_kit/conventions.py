"""What an action and an image mean: a policy declares it, a robot declares it (`policies.conversion` compares
both).

Half of the failed reproductions in SimplerEnv are of this kind: a rotation vector read as Euler angles, a
gripper with the other sign, statistics of the other robot's data set. Each field below is one of them. A
policy declares what it knows (`policy.conventions`, None where it does not know); a robot declares everything
(`ROBOT_CONVENTIONS`): what the kit's `Simulator.step` takes, over SIMPLER's controllers (SimplerEnv's
`env_builder.py` and ManiSkill2_real2sim's `agents/configs`): WidowX
`arm_pd_ee_target_delta_pose_align2_gripper_pd_joint_pos`, Google Robot
`arm_pd_ee_delta_pose_align_interpolate_by_planner_gripper_pd_joint_target_delta_pos_interpolate_by_planner`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from refinevla_kit.errors import as_kit_error, check_choice, checked_integer
from refinevla_kit.tasks import CAMERA_SIZES

Rotation = Literal["euler_xyz_extrinsic", "euler_xyz_intrinsic", "axis_angle"]
Reference = Literal["step", "motion"]
Gripper = Literal[
    "open+1_closed-1",
    "open1_closed0",
    "open-1_closed+1",
    "open0_closed1",
    "relative_closing+1",
    "relative_opening+1",
]


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
        gripper_reference: what the next gripper motion is counted from: the command of the last "step", or
            that of the last "motion" begun, which SpatialVLA's wrapper keeps. None is "step".
        control_hz: actions a second.
        image_size: (width, height) in pixels the policy wants to be given; None: whatever comes.
        resize: how the camera's picture becomes `image_size` where the aspect differs: stretched, cropped
            about its centre, or padded with black.
        colour: channel order.
        normalisation: data set whose statistics un-normalise the actions ("bridge_orig/1.0.0"), "own" for
            those of the checkpoint's own training.
        camera: SIMPLER's name of the camera.
    """

    robot: Literal["widowx", "google_robot"] | None = None
    frame: Literal["base", "world", "tool"] | None = None
    unit: Literal["m", "cm", "mm", "normalised"] | None = None
    added_to: Literal["target", "measured"] | None = None
    rotation: Rotation | None = None
    gripper: Gripper | None = None
    sticky_gripper: int | None = None
    control_hz: float | None = None
    image_size: tuple[int, int] | None = None
    resize: Literal["stretch", "crop", "pad"] | None = None
    colour: Literal["rgb", "bgr"] | None = None
    normalisation: str | None = None
    camera: Literal["3rd_view_camera", "overhead_camera", "wrist_camera"] | None = None
    gripper_reference: Reference | None = None

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) is not None:
                check_choice(f"{name} of conventions", value, choices)
        if self.sticky_gripper is not None:  # 1 is a gripper that is not sticky
            checked_integer(self.sticky_gripper, "sticky_gripper of conventions", 1)
        if self.image_size is not None:
            what = f"conventions: image_size is {self.image_size}"
            with as_kit_error(what, "give (width, height) in pixels"):
                # a list, after JSON or msgpack
                object.__setattr__(self, "image_size", tuple(int(x) for x in self.image_size))
                if len(self.image_size) != 2 or min(self.image_size) < 1:
                    raise ValueError("no two numbers above 0")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON or a message."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Conventions:
        """Inverse of `to_dict`; raises `KitError` for an unknown field or value."""
        known = [field.name for field in fields(cls)]
        remedy = "see refinevla_kit.conventions.Conventions"
        with as_kit_error(f"conventions: {value}", remedy, (TypeError, ValueError)):
            for name in value:
                check_choice("convention", name, known)
            return cls(**value)


_CHOICES: dict[str, tuple[str, ...]] = {
    name: get_args(get_args(hint)[0])
    for name, hint in get_type_hints(Conventions).items()
    if "Literal" in str(hint)
}

WIDOWX = Conventions(
    robot="widowx",
    frame="base",
    unit="m",
    added_to="target",
    rotation="euler_xyz_extrinsic",
    gripper="open+1_closed-1",
    sticky_gripper=1,
    control_hz=5.0,
    image_size=CAMERA_SIZES["widowx"],
    resize="stretch",
    colour="rgb",
    normalisation="bridge_orig/1.0.0",
    camera="3rd_view_camera",
    gripper_reference="step",
)
GOOGLE_ROBOT = replace(
    WIDOWX,
    robot="google_robot",
    added_to="measured",
    gripper="relative_closing+1",
    control_hz=3.0,
    image_size=CAMERA_SIZES["google_robot"],
    normalisation="fractal20220817_data/0.1.0",
    camera="overhead_camera",
)
ROBOT_CONVENTIONS: dict[str, Conventions] = {"widowx": WIDOWX, "google_robot": GOOGLE_ROBOT}
_DATA_OF: dict[str, str] = {  # how words in names of datasets begin
    "bridge": "widowx",
    "widowx": "widowx",
    "fractal": "google_robot",
    r"rt_?1(?!\d)": "google_robot",
    "google_robot": "google_robot",
}


def robot_of(dataset: str) -> str | None:
    """Whose actions a dataset of this name holds; None where its name does not tell, or names both."""
    name = dataset.lower()
    robots = {robot for word, robot in _DATA_OF.items() if re.search(f"(?<![a-z]){word}", name)}
    return robots.pop() if len(robots) == 1 else None
