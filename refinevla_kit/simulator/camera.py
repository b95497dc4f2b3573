"""Where a point of the world lands in the picture, for drawing actions and for teaching a vision tower where
things are.

The camera is the one SIMPLER's policies see, fixed to the robot's base (ManiSkill 3,
`bridge_dataset_eval/base_env.py`; SAPIEN's camera axes: x forward, y left, z up).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import ConvexHull
from transforms3d.quaternions import axangle2quat, qmult, quat2mat

from refinevla_kit.simulator.contract import Array
from refinevla_kit.tasks import Task, Variant


@dataclass(frozen=True)
class CameraSetting:
    """Robot base and camera of one scene: position (m) and quaternion (w, x, y, z); the camera's are in the
    base frame.
    """

    base_position: tuple[float, float, float]
    camera_position: tuple[float, float, float]
    camera_quaternion: tuple[float, float, float, float]


TABLE = CameraSetting(
    (0.147, 0.028, 0.870), (0.00, -0.16, 0.36), (0.8992917, -0.09263245, 0.35892478, 0.23209205)
)
SINK = CameraSetting(
    (0.127, 0.060, 0.850), (-0.00300001, -0.21, 0.39), (-0.907313, 0.0782, -0.36434, -0.194741)
)
BASE_QUATERNION = (0.0, 0.0, 0.0, 1.0)  # turned 180 degrees about z
FOCAL, CENTRE_X, CENTRE_Y, WIDTH, HEIGHT = 623.588, 319.501, 239.545, 640, 480


def camera_setting(task: Task, variant: Variant | None = None) -> CameraSetting:
    """The camera of `task`'s scene, moved and turned as `variant` says (`camera_move`: m in the base frame;
    `camera_turn`: rad, left and down).
    """
    setting = SINK if task.name == "widowx_put_eggplant_in_basket" else TABLE
    build = dict(variant.build) if variant else {}
    move, (left, down) = build.get("camera_move", (0.0, 0.0, 0.0)), build.get("camera_turn", (0.0, 0.0))
    turn = qmult(axangle2quat([0, 0, 1], left), axangle2quat([0, 1, 0], down))  # about the camera's own axes
    position = np.add(setting.camera_position, move)
    return replace(
        setting,
        camera_position=tuple(position.tolist()),
        camera_quaternion=tuple(qmult(setting.camera_quaternion, turn).tolist()),
    )


def project(task: Task, points: Array, width: int, height: int, variant: Variant | None = None) -> Array:
    """World points to pixels of a `width` x `height` image, seen by the camera of `task` (in `variant`).

    Args:
        points: float (N, 3), metres.

    Returns:
        float64 (N, 2): column and row, continuous, pixel centres at .5; outside [0, width) x [0, height) when
        out of view.
    """
    setting = camera_setting(task, variant)
    base, camera = quat2mat(BASE_QUATERNION), quat2mat(setting.camera_quaternion)
    in_base = (np.asarray(points, np.float64) - np.asarray(setting.base_position)) @ base  # N x 3
    forward, left, up = ((in_base - np.asarray(setting.camera_position)) @ camera).T
    column = CENTRE_X - FOCAL * left / forward
    row = CENTRE_Y - FOCAL * up / forward
    return np.stack([column * width / WIDTH, row * height / HEIGHT], axis=1)


def box_outline(
    task: Task, low: tuple[float, ...], high: tuple[float, ...], width: int, height: int
) -> Array:
    """The pixels whose centre looks at the world box from `low` to `high` (m), were nothing in front of it:
    bool (height, width).
    """
    corners = np.stack(np.meshgrid(*zip(low, high, strict=True)), axis=-1).reshape(-1, 3)
    sides = ConvexHull(
        project(task, corners, width, height)
    ).equations  # outward normal and offset of each edge
    centres = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1)
    return np.asarray((centres @ sides[:, :2].T + sides[:, 2] <= 0).all(axis=-1))
