"""The Google Robot as a ManiSkill 3 agent: its materials, drives and the controllers of SIMPLER's evaluation.

Numbers are those of ManiSkill2_real2sim (`agents/configs/google_robot`). Every control step is planned by
Ruckig, as there, and sent to the drives one waypoint a physics step. What SAPIEN 3 does otherwise than
SAPIEN 2 is made good here (docs/google_robot.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from mani_skill.agents.base_agent import BaseAgent
from mani_skill.agents.controllers.base_controller import BaseController, ControllerConfig
from mani_skill.agents.registration import register_agent
from mani_skill.sensors.camera import CameraConfig
from ruckig import InputParameter, Ruckig, Trajectory
from sapien import Pose
from sapien.physx import PhysxRigidDynamicComponent
from scipy.spatial.transform import Rotation

from refinevla_kit.simulator.contract import Array
from refinevla_kit.simulator.geometry import CAMERAS, intrinsic

UID = "refinevla_google_robot"
TOOL = "link_gripper_tcp"
FINGERS = ("joint_finger_right", "joint_finger_left")
DRIVES = {  # stiffness, damping, force limit
    "joint_torso": (1700.0, 1059.9791902443303, 300.0),
    "joint_shoulder": (1737.0471680861954, 1010.4720585373592, 300.0),
    "joint_bicep": (979.975871856535, 767.2803161582076, 100.0),
    "joint_elbow": (930.0, 680.0, 100.0),
    "joint_forearm": (1212.154500274304, 674.9946964336588, 100.0),
    "joint_wrist": (432.96500923932535, 274.613381336198, 100.0),
    "joint_gripper": (468.0013365498738, 340.532560578637, 100.0),
    FINGERS[0]: (200.0, 8.0, 60.0),
    FINGERS[1]: (200.0, 8.0, 60.0),
    "joint_head_pan": (2000.0, 900.0, 100.0),
    "joint_head_tilt": (2000.0, 900.0, 100.0),
}
JOINTS = tuple(DRIVES)
"""Order of every array of joints here, which is SAPIEN 2's; SAPIEN 3 orders them otherwise."""
REST = np.array(
    [
        -0.2639457174606611,
        0.0831913360274175,
        0.5017611504652179,
        1.156859026208673,
        0.028583671314766423,
        1.592598203487462,
        -1.080652960128774,
        0.0,
        0.0,
        -0.00285961,
        0.7851361,
    ]
)
ARM = np.array([index for index, name in enumerate(JOINTS) if name not in FINGERS])  # with the head
HAND = np.array([JOINTS.index(name) for name in FINGERS])
ARM_LIMITS, HAND_LIMITS = (1.5, 2.0, 50.0), (1.0, 7.0, 50.0)  # velocity, acceleration, jerk (rad, s)
FINGER_RANGE, FINGER_MARGIN = 1.31, 0.01  # rad that an action of 1 closes; how far targets pass a limit
SMALLEST = 1e-3  # rad: a smaller command of the gripper repeats its last target
SMALLEST_IMPULSE = 1e-6  # N s, of what counts as contact
LEAD = 0.03  # rad that a finger's target is ahead where it is held up
ITERATIONS = (25, 1)  # of the solver, on positions and velocities: the original's own
FREE_ITERATIONS = 8  # of the robot's, on positions, while it touches nothing: 0.6 of the time
LOOK_EVERY = 9  # physics steps (18 ms), after which it is seen whether it touches anything
IK_ITERATIONS = 99  # with 100, one of 2,367 recorded actions is solved that the original had no answer to
FINGER_ARMATURE = 0.03  # kg m2; without it PhysX 5 pushes hand and arm away from what the fingers press on


def impulse_of(contact: Any) -> Any:
    """Of all points of a contact, on the first of its bodies, (3,), N s."""
    return sum(point.impulse for point in contact.points)


def _link(material: str, radius: float) -> dict[str, Any]:
    return {"material": material, "patch_radius": radius, "min_patch_radius": radius}


@register_agent()
class GoogleRobot(BaseAgent):
    """The Google Robot on its base, which does not drive; `urdf_path` says in which colours."""

    uid = UID
    load_multiple_collisions = True
    urdf_config: ClassVar = {
        "_materials": {
            "finger": {"static_friction": 2.0, "dynamic_friction": 2.0, "restitution": 0.0},
            "nail": {"static_friction": 0.1, "dynamic_friction": 0.1, "restitution": 0.0},
            "base": {"static_friction": 0.1, "dynamic_friction": 0.0, "restitution": 0.0},
            "wheel": {"static_friction": 1.0, "dynamic_friction": 0.0, "restitution": 0.0},
        },
        "link": {
            "link_base": _link("base", 0.1),
            **{f"link_wheel_{side}": _link("wheel", 0.1) for side in ("left", "right")},
            **{f"link_finger_{side}": _link("finger", 0.1) for side in ("left", "right")},
            **{f"link_finger_tip_{side}": _link("finger", 0.1) for side in ("left", "right")},
            **{f"link_finger_nail_{side}": _link("nail", 0.01) for side in ("left", "right")},
        },
    }

    @property
    def _sensor_configs(self) -> list[Any]:
        return [
            CameraConfig(
                uid=CAMERAS["google_robot"],
                pose=Pose(q=[0.5, 0.5, -0.5, 0.5]),
                width=640,
                height=512,
                intrinsic=intrinsic("google_robot", 640, 512),
                near=0.1,  # of the original's own pictures, measured; its settings say 0.01
                far=10,
                entity_uid="link_camera",
            )
        ]

    @property
    def _controller_configs(self) -> dict[str, Any]:
        return {"planned": PlannedControllerConfig(list(JOINTS))}


class PlannedController(BaseController):
    """Arm: tool displacements from the *measured* pose. Gripper: relative to where it was last sent.

    An action is float (1, 7): displacement (m) and rotation vector (rad) along the axes of the robot's base,
    then -1 to 1, the share of the fingers' whole range to close by.

    Attributes:
        target: float64 (11,) where the joints are planned to, before any clamping (rad).
        waypoint: float64 (11,) the last waypoint that was sent, before clamping (rad).
        target_pose: the tool's, in the base frame.
        unsolved: actions of this episode that inverse kinematics found no answer to: the arm keeps its pose.
    """

    sets_target_qpos = True
    sets_target_qvel = True

    def _initialize_joints(self) -> None:
        super()._initialize_joints()
        self._body: Any = self.articulation._objs[0]
        order = [joint.name for joint in self.articulation.active_joints]
        self._order = np.array([order.index(name) for name in JOINTS])  # from SAPIEN 3's order to JOINTS
        self._drives = [self._body.active_joints[index] for index in self._order]
        self._tool = self.articulation.links_map[TOOL]._objs[0]
        self._tool_index = self._body.links.index(self._tool)
        links = self.articulation.links_map
        self._pads = [
            [links[f"link_finger{part}_{side}"]._objs[0] for part in ("", "_tip")]
            for side in ("right", "left")
        ]
        self._model = self._body.create_pinocchio_model()
        self._mask = np.array([name not in FINGERS for name in order], np.int32)
        self._limits = np.concatenate([drive.limits for drive in self._drives])  # 11 x 2
        self._planners = {size: Ruckig(size) for size in (len(ARM), len(HAND))}
        self._links = set(self._body.links)

    def _initialize_action_space(self) -> None:
        high = np.array([1.0] * 3 + [np.pi / 2] * 3 + [1.0], np.float32)
        self.single_action_space = spaces.Box(-high, high, dtype=np.float32)

    def set_drive_property(self) -> None:
        for drive, properties in zip(self._drives, DRIVES.values(), strict=True):
            drive.set_drive_properties(*properties, mode="force")
            drive.set_friction(0.0)
        for index in HAND:
            self._drives[index].set_armature([FINGER_ARMATURE])

    def reset(self) -> None:
        """Forget the last episode's plan; the arm is where it is."""
        self.target = self.positions
        self.waypoint = self.target.copy()
        self._velocity: Array | None = None  # of the last waypoint of the arm
        self.target_pose = self.tool_pose
        self.unsolved = 0
        self._plan: list[list[float]] = []
        self._finger_velocities: list[list[float]] = []

    @property
    def positions(self) -> Array:
        """Measured joint positions, float64 (11,), order of `JOINTS` (rad)."""
        return np.asarray(self._body.get_qpos()[self._order], np.float64)

    @property
    def tool_pose(self) -> Pose:
        """The measured pose of the tool in the base frame."""
        return self._body.root_pose.inv() * self._tool.entity_pose

    def set_action(self, action: Any) -> None:
        """Plan the next control step's waypoints."""
        command = np.asarray(action, np.float64)[0]
        measured, last = self.positions, self.target
        speeds = np.asarray(self._body.get_qvel()[self._order], np.float64)  # measured, rad/s
        self.target = np.empty(len(JOINTS))
        self.target[ARM] = self._solve(command[:6], measured[ARM])
        self.target[HAND] = self._fingers(float(command[6]), last[HAND])
        start, speed = self.waypoint[ARM], self._velocity
        if speed is None:  # the first step
            start, speed = measured[ARM], np.clip(speeds[ARM], -ARM_LIMITS[0], ARM_LIMITS[0])
        arm, arm_speed = self._route(start, speed, self.target[ARM], ARM_LIMITS)
        speed = np.clip(speeds[HAND], -HAND_LIMITS[0], HAND_LIMITS[0])
        # not of fingers that are to open: each step's plan would turn round no earlier than it ends
        speed[self._squeezes & (self.target[HAND] > measured[HAND])] = HAND_LIMITS[0]
        hand, hand_speed = self._route(measured[HAND], speed, self.target[HAND], HAND_LIMITS)
        path = np.empty((len(arm), len(JOINTS)))
        path[:, ARM], path[:, HAND] = arm, hand
        self.waypoint, self._velocity = path[-1], arm_speed[-1]
        self._plan = np.clip(path, self._limits[:, 0], self._limits[:, 1]).tolist()
        self._finger_velocities = hand_speed.tolist()
        self._substep = 0

    def before_simulation_step(self) -> None:
        """Send one waypoint and balance Coriolis forces (gravity is off for the robot). In free motion fewer
        iterations do: tool within 0.3 mm of the original's, as with all.
        """
        self._body.set_qf(self._body.compute_passive_force(gravity=False))
        if self._substep % LOOK_EVERY == 0:
            pairs = (each.bodies for each in self.scene.px.get_contacts())
            touches = any((one in self._links) != (other in self._links) for one, other in pairs)
            self._body.set_solver_position_iterations(ITERATIONS[0] if touches else FREE_ITERATIONS)
        targets, velocities = self._plan[self._substep], self._finger_velocities[self._substep]
        self._substep += 1
        for drive, target in zip(self._drives, targets, strict=True):
            drive.set_drive_target(target)
        for index, velocity in zip(HAND, velocities, strict=True):
            self._drives[index].set_drive_velocity_target(velocity)

    @property
    def _squeezes(self) -> Array:
        """Which fingers are pressed against a free thing, bool (2,).

        SAPIEN 2 reports such a finger's speed as if it still closed, at 1.4 to 4 rad/s, though it stands
        still: each step's plan starts at its limit, and the drive presses with all it has. SAPIEN 3 reports
        zero, from where the plan would get only half as far ahead.
        """
        touched = [
            contact.bodies
            for contact in self.scene.px.get_contacts()
            if any(isinstance(body, PhysxRigidDynamicComponent) for body in contact.bodies)
            and np.linalg.norm(impulse_of(contact)) > SMALLEST_IMPULSE
        ]
        touching = [any(pad in bodies for bodies in touched for pad in pads) for pads in self._pads]
        lead = self.waypoint[HAND] - self.positions[HAND]
        return np.array(touching) & (lead > LEAD)

    def _solve(self, command: Array, measured: Array) -> Array:
        """Where the arm's joints (9,) bring the tool to where `command` moves it from here."""
        now = self.tool_pose
        turn = Pose(q=Rotation.from_rotvec(command[3:]).as_quat()[[3, 0, 1, 2]])
        self.target_pose = Pose(now.p + command[:3], (turn * now).q)
        answer, solved, _ = self._model.compute_inverse_kinematics(
            self._tool_index,
            self.target_pose,
            initial_qpos=self._body.get_qpos(),
            active_qmask=self._mask,
            max_iterations=IK_ITERATIONS,
        )
        if not solved:
            self.unsolved += 1
            return measured
        return np.asarray(answer)[self._order][ARM]

    def _fingers(self, command: float, last: Array) -> Array:
        """Where the fingers are sent, (2,), rad."""
        step = float(np.clip(command, -1, 1)) * FINGER_RANGE
        if abs(step) < SMALLEST:
            return last
        low, high = self._limits[HAND[0]]
        return np.clip(self.waypoint[HAND] + step, low - FINGER_MARGIN, high + FINGER_MARGIN)

    def _route(
        self, start: Array, speed: Array, end: Array, limits: tuple[float, float, float]
    ) -> tuple[Array, Array]:
        """Positions and velocities at the control step's physics steps, (171, n) each."""
        size = len(start)
        request = InputParameter(size)
        request.current_position, request.current_velocity = start, speed
        request.target_position = end
        velocity, acceleration, jerk = limits
        request.max_velocity = [velocity] * size
        request.max_acceleration = [acceleration] * size
        request.max_jerk = [jerk] * size
        trajectory = Trajectory(size)
        self._planners[size].calculate(request, trajectory)
        times = np.arange(1, self._sim_steps + 1) / (self._sim_steps * self._control_freq)
        points = [trajectory.at_time(time) for time in np.minimum(times, trajectory.duration)]
        return np.array([point[0] for point in points]), np.array([point[1] for point in points])


@dataclass
class PlannedControllerConfig(ControllerConfig):
    """Of `PlannedController`."""

    controller_cls = PlannedController
