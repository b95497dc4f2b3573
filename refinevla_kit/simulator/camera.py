"""Where a point of the world lands in the picture, for drawing actions and for teaching a vision tower where things are.

The camera is the one SIMPLER's policies see, fixed to the robot's base (ManiSkill 3, `bridge_dataset_eval/base_env.py`; SAPIEN's camera axes:
x forward, y left, z up).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from transforms3d.quaternions import quat2mat

from refinevla_kit.simulator.contract import Array
from refinevla_kit.tasks import Task


@dataclass(frozen=True)
class CameraSetting:
    """Robot base and camera of one scene: position (m) and quaternion (w, x, y, z); the camera's are in the base frame."""

    base_position: tuple[float, float, float]
    camera_position: tuple[float, float, float]
    camera_quaternion: tuple[float, float, float, float]


TABLE = CameraSetting((0.147, 0.028, 0.870), (0.00, -0.16, 0.36), (0.8992917, -0.09263245, 0.35892478, 0.23209205))
SINK = CameraSetting((0.127, 0.060, 0.850), (-0.00300001, -0.21, 0.39), (-0.907313, 0.0782, -0.36434, -0.194741))
BASE_QUATERNION = (0.0, 0.0, 0.0, 1.0)  # turned 180 degrees about z
FOCAL, CENTRE_X, CENTRE_Y, WIDTH, HEIGHT = 623.588, 319.501, 239.545, 640, 480


def project(task: Task, points: Array, width: int, height: int) -> Array:
    """World points to pixels of a `width` x `height` image.

    Args:
        points: float (N, 3), metres.

    Returns:
        float64 (N, 2): column and row, continuous, pixel centres at .5; outside [0, width) x [0, height) when out of view.
    """
    setting = SINK if task.name == "widowx_put_eggplant_in_basket" else TABLE
    base, camera = quat2mat(BASE_QUATERNION), quat2mat(setting.camera_quaternion)
    in_base = (np.asarray(points, np.float64) - np.asarray(setting.base_position)) @ base  # N x 3
    forward, left, up = ((in_base - np.asarray(setting.camera_position)) @ camera).T
    column = CENTRE_X - FOCAL * left / forward
    row = CENTRE_Y - FOCAL * up / forward
    return np.stack([column * width / WIDTH, row * height / HEIGHT], axis=1)

