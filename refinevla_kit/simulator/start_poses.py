"""Continuous start poses around the official grids, for demonstrations and dense evaluation."""

from __future__ import annotations

import zlib

import numpy as np
from transforms3d.quaternions import axangle2quat, qmult

from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import Array, Pose
from refinevla_kit.tasks import Task

TABLE_CENTRE, TABLE_REACH = (
    np.array([-0.16, 0.0]),
    0.11,
)  # the grid's corners lie at 0.075 (cubes 0.10): its range is drawn 1-3.5 cm beyond
APART = 0.10  # m between the two objects, at least
HEIGHTS = {  # start heights of source and target (m, world), put_on_in_scene.py
    "widowx_spoon_on_towel": (0.88, 0.875),
    "widowx_carrot_on_plate": (0.887529, 0.869532),
    "widowx_stack_cube": (0.887529, 0.887529),
}
SINK_CENTRE, SINK_SPREAD, SINK_HEIGHT = np.array([-0.105, 0.206]), np.array([0.02, 0.025]), 0.933
SINK_GRID = np.array([0.01, 0.015])  # half the official grid's extent
# Half the grid's extent (m), least distance at which the two objects do not overlap (m), range of the
# source's yaw (rad)
DENSE = {
    "widowx_spoon_on_towel": (0.075, 0.142, (0.0, np.pi / 2)),  # 7 cm of spoon towards a corner of the towel
    "widowx_carrot_on_plate": (0.075, 0.12, (-np.pi, -np.pi / 2)),
    "widowx_stack_cube": (0.10, 0.06, (0.0, 0.0)),
}
SINK_TARGET = np.array([-0.125, 0.025, 1.0, 1.0, 0.0, 0.0, 0.0])
EGGPLANT_LYING = np.array(
    [0.559342, 0.817133, -0.138906, -0.0116353]
)  # one of the eight resting rotations of put_on_in_scene.py


def random_pose(task: Task, rng: np.random.Generator) -> Pose:
    """Draw where the source and the target of `task` start; same generator state, same pose. Raises
    `KitError` for a task without such starts.
    """
    _check(task)
    if task.name == "widowx_put_eggplant_in_basket":
        place = SINK_CENTRE + rng.uniform(-1, 1, 2) * SINK_SPREAD
        lying = qmult(_about_z(rng.uniform(-np.pi, np.pi)), EGGPLANT_LYING)
        return Pose(np.concatenate([place, [SINK_HEIGHT], lying]), SINK_TARGET.copy())
    source = TABLE_CENTRE + rng.uniform(-TABLE_REACH, TABLE_REACH, 2)
    target = TABLE_CENTRE + rng.uniform(-TABLE_REACH, TABLE_REACH, 2)
    while np.linalg.norm(source - target) < APART:
        target = TABLE_CENTRE + rng.uniform(-TABLE_REACH, TABLE_REACH, 2)
    yaw = (
        rng.uniform(-np.pi / 8, np.pi / 8) if task.name == "widowx_stack_cube" else rng.uniform(-np.pi, np.pi)
    )
    z_source, z_target = HEIGHTS[task.name]
    return Pose(
        np.concatenate([source, [z_source], _about_z(yaw)]),
        np.concatenate([target, [z_target], [1.0, 0.0, 0.0, 0.0]]),
    )


def dense_pose(task: Task, index: int, seed: int) -> Pose:
    """Start number `index` of a dense grid: a continuous pose within the official grid's own range. It
    depends on (task, seed, index) alone.

    Positions are uniform over the square that the grid's corners span (spoon and carrot 15 x 15 cm, cubes 20
    x 20 cm, eggplant 2 x 3 cm), source and target 12 cm apart at least (spoon 14, cubes 6); the source's yaw
    is uniform between the grid's own two (a quarter turn; the cube's is 0; the eggplant's a full circle).
    Unlike `random_pose`, nothing lies beyond what SIMPLER itself plays.

    Raises:
        KitError: a task whose grid has no continuous range here.
    """
    _check(task)
    rng = np.random.default_rng([seed, index, zlib.crc32(task.name.encode())])
    if task.name == "widowx_put_eggplant_in_basket":
        place = SINK_CENTRE + rng.uniform(-1, 1, 2) * SINK_GRID
        return Pose(
            np.concatenate(
                [place, [SINK_HEIGHT], qmult(_about_z(rng.uniform(-np.pi, np.pi)), EGGPLANT_LYING)]
            ),
            SINK_TARGET.copy(),
        )
    reach, apart, (low, high) = DENSE[task.name]
    source, target = TABLE_CENTRE + rng.uniform(-reach, reach, (2, 2))
    while np.linalg.norm(source - target) < apart:
        source, target = TABLE_CENTRE + rng.uniform(-reach, reach, (2, 2))
    z_source, z_target = HEIGHTS[task.name]
    turned = _about_z(rng.uniform(low, high))
    return Pose(
        np.concatenate([source, [z_source], turned]),
        np.concatenate([target, [z_target], [1.0, 0.0, 0.0, 0.0]]),
    )


def _about_z(angle: float) -> Array:
    return np.asarray(axangle2quat([0.0, 0.0, 1.0], angle))


def _check(task: Task) -> None:
    if task.robot != "widowx":
        raise KitError(
            f"{task.name} has no continuous starts", "play its grid; the WidowX tasks have continuous starts"
        )
