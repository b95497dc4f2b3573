"""Where things lie when an episode starts, and where a point of the world lands in the picture.

The camera is the one SIMPLER's policies see, fixed to the robot's base (ManiSkill 3,
`bridge_dataset_eval/base_env.py`; SAPIEN's camera axes: x forward, y left, z up).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.spatial import ConvexHull
from transforms3d.quaternions import axangle2quat, qmult, quat2mat

from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import AnyStart, Arrangement, Array, Pose
from refinevla_kit.tasks import CAMERA_SIZES, SOURCES, TARGETS, VISUAL_MATCHING, Start, Task, Variant

SINK_TASK = "widowx_put_eggplant_in_basket"
UPRIGHT = np.array([1.0, 0.0, 0.0, 0.0])

# Start poses. Half the side of the square that objects are drawn in (m), least distance of the two objects
# (m), range of the source's yaw (rad).
TABLE_CENTRE = np.array([-0.16, 0.0])
RANDOM = {  # the grid's corners lie at 0.075 (cubes 0.10): the square goes 1-3.5 cm beyond
    "widowx_spoon_on_towel": (0.11, 0.10, (-np.pi, np.pi)),
    "widowx_carrot_on_plate": (0.11, 0.10, (-np.pi, np.pi)),
    "widowx_stack_cube": (0.11, 0.10, (-np.pi / 8, np.pi / 8)),
}
DENSE = {  # the grid's own extent; 7 cm of spoon reach towards a corner of the towel
    "widowx_spoon_on_towel": (0.075, 0.142, (0.0, np.pi / 2)),
    "widowx_carrot_on_plate": (0.075, 0.12, (-np.pi, -np.pi / 2)),
    "widowx_stack_cube": (0.10, 0.06, (0.0, 0.0)),
}
HEIGHTS = {  # of source and target (m, world), put_on_in_scene.py
    "widowx_spoon_on_towel": (0.88, 0.875),
    "widowx_carrot_on_plate": (0.887529, 0.869532),
    "widowx_stack_cube": (0.887529, 0.887529),
}
SINK_CENTRE, SINK_HEIGHT = np.array([-0.105, 0.206]), 0.933
SINK_REACH = {"random": np.array([0.02, 0.025]), "dense": np.array([0.01, 0.015])}  # m; dense: the grid's own
SINK_TARGET = np.array([-0.125, 0.025, 1.0, 1.0, 0.0, 0.0, 0.0])
RADII = {  # m, bounding circles
    "carrot": 0.06,
    "green block": 0.022,
    "eggplant": 0.05,
    "spoon": 0.07,
    "yellow block": 0.022,
    "plate": 0.056,
    "towel": 0.071,
}
# Of the language tasks' scenes. Where things are drawn: centre and half the sides of the rectangle (m);
# the least radius that is kept free, so that the open gripper comes between; what is left between two.
SPREAD_CENTRE, SPREAD = np.array([-0.16, 0.02]), np.array([0.11, 0.13])
LEAST_ROOM, GAP, DRAWS, BATCHES = 0.048, 0.008, 4096, 200
# m, world: where they are let go, just above the table
LAID_AT = {
    "carrot": 0.8875,
    "spoon": 0.88,
    "green block": 0.8875,
    "eggplant": 0.892,
    "plate": 0.8695,
    "towel": 0.875,
    "yellow block": 0.8875,
}
SHIFT = 0.02  # m that move near's things are moved by, at most
# One of the eight resting rotations of put_on_in_scene.py.
EGGPLANT_LYING = np.array([0.559342, 0.817133, -0.138906, -0.0116353])


def start_pose(task: Task, start: str, number: int, seed: int, setting: str = VISUAL_MATCHING) -> AnyStart:
    """What `Simulator.reset` starts an episode from.

    Args:
        start: "grid": place `number` of the task's grid. "dense": continuous pose `number` within the grid's
            own range, which depends on (task, seed, number) alone. "random": a continuous pose up to a few
            centimetres beyond it, which depends on (task, seed) alone.

    Dense positions are uniform over the square that the grid's corners span (spoon and carrot 15 x 15 cm,
    cubes 20 x 20 cm, eggplant 2 x 3 cm), source and target 12 cm apart at least (spoon 14, cubes 6). The
    source's yaw is uniform between the grid's own two (a quarter turn; the cube's is 0; the eggplant's a full
    circle).

    Google Robot: the can and the apple anywhere in the rectangle that the grid's corners span; move near's
    three things moved together by up to 2 cm; the robot anywhere between the grid's places before the
    cabinet, but where photographs were taken in visual matching.

    Language tasks: `arrangement`.

    Raises:
        KitError: dense starts of a drawer in visual matching, which has nine photographs; things that do not
            fit on the table.
    """
    if start == "grid":
        return number
    dense = start == "dense"
    if task.goals:
        return arrangement(task, [seed, number] if dense else [seed])
    rng = np.random.default_rng([seed, number, zlib.crc32(task.name.encode())] if dense else seed)
    if task.robot == "google_robot":
        return _google_robot_start(task, setting, dense, rng)
    if task.name == SINK_TASK:
        place = SINK_CENTRE + rng.uniform(-1, 1, 2) * SINK_REACH[start]
        lying = qmult(_about_z(rng.uniform(-np.pi, np.pi)), EGGPLANT_LYING)
        return Pose(np.concatenate([place, [SINK_HEIGHT], lying]), SINK_TARGET.copy())
    if task.name not in DENSE:
        raise KitError(f"{task.name} has no starts between those of its grid", "play its grid: episodes=3")
    reach, apart, yaw = (DENSE if dense else RANDOM)[task.name]
    source, target = TABLE_CENTRE + rng.uniform(-reach, reach, (2, 2))
    while np.linalg.norm(source - target) < apart:
        if dense:
            source = TABLE_CENTRE + rng.uniform(-reach, reach, 2)
        target = TABLE_CENTRE + rng.uniform(-reach, reach, 2)
    heights = HEIGHTS[task.name]
    turned = _about_z(rng.uniform(*yaw))
    return Pose(np.concatenate([source, heights[:1], turned]), np.concatenate([target, heights[1:], UPRIGHT]))


def grid_arrangement(task: Task, number: int) -> Arrangement:
    """Start `number` of a language task's grid: each of the six pairs of other things four times."""
    if len(task.goals) > 1:
        return arrangement(task, [number])
    return arrangement(task, [number // 6], number % 6)


def arrangement(task: Task, seeds: list[int], others: int | None = None) -> Arrangement:
    """Which things lie on the table, and where.

    Shown are a language task's own things; beside a pair's, another source and another target. Places and
    turns are drawn for the things alone: the same ones get the same places, whichever of them is asked for.

    Args:
        seeds: what the draw depends on, beside the task and the things.
        others: which of the six pairs of other things; None: drawn.
    """
    names = {name for pair in task.goals for name in pair}
    if len(task.goals) == 1:
        rng = np.random.default_rng([*seeds, zlib.crc32(task.name.encode())])
        left = [[name for name in kind if name not in names] for kind in (SOURCES, TARGETS)]
        source, target = divmod(int(rng.integers(6)) if others is None else others, 2)
        names |= {left[0][source], left[1][target]}
    shown = sorted(names)
    rng = np.random.default_rng([*seeds, zlib.crc32(" ".join(shown).encode())])
    places = _free_places(task, np.array([RADII[name] for name in shown]), rng)
    things = {}
    for name, place in zip(shown, places, strict=True):
        turn = _about_z(rng.uniform(-np.pi, np.pi))
        lying = qmult(turn, EGGPLANT_LYING) if name == "eggplant" else turn
        things[name] = np.array([*place, LAID_AT[name], *lying])
    return Arrangement(things)


def _free_places(task: Task, radii: Array, rng: np.random.Generator) -> Array:
    """Uniform places of circles in the rectangle, all at once, until none overlap and all are in the picture:
    float64 (n, 2).
    """
    room = np.maximum(radii, LEAST_ROOM)
    apart = room[:, None] + room + GAP
    np.fill_diagonal(apart, 0)
    around = np.array([(1, 0), (-1, 0), (0, 1), (0, -1)])
    for _ in range(BATCHES):
        draws = SPREAD_CENTRE + rng.uniform(-1, 1, (DRAWS, len(radii), 2)) * SPREAD
        distances = np.linalg.norm(draws[:, :, None] - draws[:, None], axis=3)
        for places in draws[(distances >= apart).all(axis=(1, 2))]:
            rims = (places[:, None] + radii[:, None, None] * around).reshape(-1, 2)
            seen = project(task, np.column_stack([rims, np.full(len(rims), 0.87)]), 1, 1)
            if (np.abs(seen - 0.5) < 0.49).all():
                return places
    raise KitError(f"these things do not fit on the table: {task.name}", "ask for fewer of them")


def _google_robot_start(task: Task, setting: str, dense: bool, rng: np.random.Generator) -> Start:
    starts = task.protocol(setting).starts
    chosen = starts[int(rng.integers(len(starts)))]
    if chosen.object_episode is not None:
        return replace(chosen, object_xy=_place(rng, [(-SHIFT, -SHIFT), (SHIFT, SHIFT)]))
    if chosen.object_xy:
        chosen = replace(chosen, object_xy=_place(rng, [start.object_xy for start in starts]))
    elif dense and chosen.overlay:
        what = (
            f"{task.name} has no continuous starts in {setting}: its photographs were taken from nine places"
        )
        raise KitError(what, "play its grid, or setting='variant_aggregation'")
    if chosen.overlay:
        return chosen
    return replace(chosen, robot_xy=_place(rng, [start.robot_xy for start in starts]))


def _place(rng: np.random.Generator, corners: list[Any]) -> tuple[float, float]:
    """Drawn from the rectangle that encloses `corners`."""
    x, y = rng.uniform(np.min(corners, axis=0), np.max(corners, axis=0)).tolist()
    return x, y


def _about_z(angle: float) -> Array:
    return axangle2quat([0.0, 0.0, 1.0], angle)


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
CAMERAS = {"widowx": "3rd_view_camera", "google_robot": "overhead_camera"}  # the ones SIMPLER's policies see
INTRINSICS = {
    "widowx": (FOCAL, CENTRE_X, CENTRE_Y),
    "google_robot": (425.0, 320.0, 256.0),
}  # focal length and centre (pixels) at `CAMERA_SIZES`


def intrinsic(robot: str, width: int, height: int) -> Array:
    """The camera's matrix for a picture of this size, float64 (3, 3), pixels; no simulator scales it."""
    focal, centre_x, centre_y = INTRINSICS[robot]
    full_width, full_height = CAMERA_SIZES[robot]
    scale = np.array([[width / full_width], [height / full_height], [1]])
    return np.array([[focal, 0, centre_x], [0, focal, centre_y], [0, 0, 1]]) * scale


def camera_setting(task: Task, variant: Variant | None = None) -> CameraSetting:
    """The camera of `task`'s scene, moved and turned as `variant` says (`camera_move`: m in the base frame;
    `camera_turn`: rad, left and down).
    """
    setting = SINK if task.name == SINK_TASK else TABLE
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
    return (centres @ sides[:, :2].T + sides[:, 2] <= 0).all(axis=-1)
