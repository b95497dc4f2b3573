"""Where the Google Robot works: the rendered rooms of variant aggregation, and the photographs of visual
matching, painted where SIMPLER's own were taken: a table with drawers under it and the cabinet of the drawer
tasks, before a cubicle's dark partition.

World frame, metres, z up. The robot looks towards -x; y runs to the right of its picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import pi

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from transforms3d.euler import euler2mat
from transforms3d.quaternions import quat2mat

from refinevla_kit.simulator.variants import Floats, noise
from refinevla_kit.tasks import Start, find_task
from scripts.embedded_assets.backgrounds import Scene, Solid, View
from scripts.embedded_assets.cabinet import BODY, DRAWER, DRAWERS, STATIONS
from scripts.embedded_assets.google_robot import JOINTS
from scripts.embedded_assets.shapes import Colour, Part

Corner = tuple[float, float, float]
Picture = NDArray[np.uint8]
Matrix = NDArray[np.float64]
TABLE_LOW, TABLE_HIGH = (-0.61, -0.0975, 0.0), (0.02, 0.5175, 0.87)  # what cans are put on
CABINET_ORIGIN = (-0.295, 0.0, 0.017)
FLOOR = 0.017  # of the rooms with a cabinet


# Coverings: a picture that repeats without a seam, and the side (m) that one repetition covers.


def _cloudy(size: int, seed: int, *bumps: tuple[float, float]) -> NDArray[np.float64]:
    """Seamless noise around 0: the sum of (blur in pixels, strength)."""
    rng, total = np.random.default_rng(seed), np.zeros((size, size))
    for blur, strength in bumps:
        layer = gaussian_filter(rng.normal(0, 1, (size, size)), blur, mode="wrap")
        total += strength * layer / layer.std()
    return total


def _tinted(colour: Colour, shade: NDArray[np.float64]) -> Picture:
    """The colour (sRGB) times a shade (H, W), in steps of 4 levels: they compress well."""
    picture = np.array(colour) * shade[..., None]
    return (4 * np.round(picture / 4)).clip(0, 255).astype(np.uint8)


def _planks(colour: Colour) -> Picture:
    """Floor boards along the first axis, four of them, each of its own shade and with its own joint."""
    shade = np.repeat(np.random.default_rng(21).uniform(0.85, 1.1, 4), 32)[None, :] * np.ones((128, 1))
    shade += gaussian_filter(np.random.default_rng(22).normal(0, 0.5, (128, 128)), (14, 0.8), mode="wrap")
    shade[:, ::32] *= 0.7
    for board, joint in enumerate((20, 84, 52, 116)):
        shade[joint, 32 * board : 32 * board + 32] *= 0.7
    return _tinted(colour, shade)


def _grain(colour: Colour) -> Picture:
    """Wood along the first axis."""
    streaks = gaussian_filter(np.random.default_rng(23).normal(0, 1, (128, 128)), (24, 1.2), mode="wrap")
    return _tinted(colour, 1 + 0.05 * streaks / streaks.std())


def _tiles(colour: Colour, joint: float = 0.7) -> Picture:
    shade = np.ones((64, 64))
    shade[:2], shade[:, :2] = joint, joint
    return _tinted(colour, shade)


def _bricks(colour: Colour) -> Picture:
    rng, picture = np.random.default_rng(24), np.zeros((64, 64, 3))
    for course in range(4):
        for brick in range(2):
            tint = np.array(colour) * rng.uniform(0.8, 1.15)
            columns = (np.arange(32) + 32 * brick + 16 * (course % 2)) % 64
            picture[16 * course : 16 * course + 16, columns] = tint
            picture[16 * course : 16 * course + 16, columns[:2]] = (188, 180, 168)
        picture[16 * course : 16 * course + 2] = (188, 180, 168)
    return picture.clip(0, 255).astype(np.uint8)


COVERINGS: dict[str, tuple[Callable[[], Picture], float]] = {
    "oak": (lambda: _grain((158, 118, 82)), 0.5),
    "granite": (lambda: _tinted((176, 178, 184), 1 + _cloudy(128, 25, (0.8, 0.08), (2.5, 0.05))), 0.25),
    "checks": (lambda: _tinted((214, 198, 166), np.kron([[1, 0.5], [0.5, 1]], np.ones((32, 32)))), 0.12),
    "planks": (lambda: _planks((196, 160, 104)), 0.8),
    "dark planks": (lambda: _planks((112, 84, 66)), 0.8),
    "concrete": (lambda: _tinted((150, 150, 148), 1 + _cloudy(64, 26, (4, 0.05), (1, 0.03))), 0.9),
    "carpet": (lambda: _tinted((84, 98, 124), 1 + _cloudy(64, 27, (0.6, 0.13))), 0.25),
    "carpet tiles": (lambda: _tinted((96, 98, 102), 1 + _cloudy(64, 28, (0.6, 0.10))), 0.5),
    "plaster": (lambda: _tinted((214, 214, 220), 1 + _cloudy(32, 29, (2, 0.012))), 1.0),
    "warm plaster": (lambda: _tinted((226, 206, 176), 1 + _cloudy(32, 30, (2, 0.012))), 1.0),
    "bricks": (lambda: _bricks((158, 78, 58)), 0.30),
    "tiles": (lambda: _tiles((118, 186, 172)), 0.15),
    "panels": (lambda: _tiles((188, 198, 212), 0.8), 0.6),
}


@cache
def covering(name: str) -> Picture:
    """The picture of a covering; uint8 (H, W, 3)."""
    return COVERINGS[name][0]()


@dataclass(frozen=True)
class Slab:
    """One box of a room: corners (m) and what covers it: a covering's name or a plain colour."""

    low: Corner
    high: Corner
    cover: str | Colour


def _parts(slabs: list[Slab], to_file: Matrix) -> list[Part]:
    """The slabs in a stage file's frame, one part for each covering, which is repeated over every face."""
    parts = []
    for cover in dict.fromkeys(slab.cover for slab in slabs):
        side = COVERINGS[cover][1] if isinstance(cover, str) else 1.0
        faces = [face for slab in slabs if slab.cover == cover for face in _faces(slab)]
        points = np.concatenate([corners for corners, _ in faces])
        first = 4 * np.arange(len(faces))[:, None, None]
        mesh = trimesh.Trimesh(
            points @ to_file[:3, :3].T + to_file[:3, 3],
            (first + np.array([[0, 1, 2], [0, 2, 3]])).reshape(-1, 3),
            process=False,
            vertex_attributes={"uv": np.concatenate([uv for _, uv in faces]) / side},
        )
        picture = covering(cover) if isinstance(cover, str) else None
        parts.append(Part(mesh, (255, 255, 255) if isinstance(cover, str) else cover, 0.9, picture))
    return parts


def _faces(slab: Slab) -> list[tuple[Matrix, Matrix]]:
    """Corners (4, 3), counter-clockwise from outside, and their place on the covering (4, 2), m, per face.
    Boards run away from the robot; courses of bricks lie level.
    """
    ends, faces = np.array([slab.low, slab.high]), []
    for axis in range(3):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        for end in (0, 1):
            corners = np.tile(ends[end], (4, 1))
            corners[:, first], corners[:, second] = ends[[0, 1, 1, 0], first], ends[[0, 0, 1, 1], second]
            corners = corners if end else corners[::-1]
            faces.append((corners, corners[:, ((1, 2), (0, 2), (1, 0))[axis]]))
    return faces


def _stage_frame(position: Corner = (0, 0, 0), quaternion: tuple[float, ...] = (1, 0, 0, 0)) -> Matrix:
    """World -> file (4, 4): SIMPLER turns every stage's y up, some by a pose of their own, and moves them."""
    pose, tilt = np.eye(4), np.eye(4)
    unit = np.array(quaternion) / np.linalg.norm(quaternion)
    pose[:3, :3], pose[:3, 3] = quat2mat(unit), position
    tilt[:3, :3] = euler2mat(pi / 2, 0, 0)
    moved = np.eye(4)
    moved[:3, 3] = (1.6616, 3.0337, 0)
    return np.linalg.inv(moved @ pose @ tilt)


STAGE = _stage_frame()
BEDROOM = _stage_frame((0.178, -2.235, 1.669), (0.007, 0, 0, -1))
OFFICE = _stage_frame((-0.192, -1.728, 1.48), (0.709, 0, 0, -0.705))


def _drawer_table(top: str | Colour, front: Colour, body: Colour) -> list[Slab]:
    """The table: a chest of drawers, whose fronts the camera sees below the edge."""
    (x0, y0, _), (x1, y1, _) = TABLE_LOW, TABLE_HIGH
    slabs = [Slab((x0, y0, 0.845), TABLE_HIGH, top), Slab((x0, y0, 0), (x1 - 0.012, y1, 0.845), body)]
    for low in (0.66, 0.44, 0.22):
        slabs.append(Slab((x1 - 0.012, y0 + 0.01, low), (x1, y1 - 0.01, low + 0.165), front))
        slabs.append(Slab((x1, 0.16, low + 0.09), (x1 + 0.02, 0.26, low + 0.1), (28, 26, 26)))
    return slabs


def _table_room(floor: str, wall: str, table: list[Slab]) -> list[Slab]:
    """A room around the table. All of it is collided with: it keeps out of the robot's way."""
    return [
        *table,
        Slab((-1.35, -2.4, -0.08), (1.5, 2.8, -0.03), floor),
        Slab((-1.40, -2.4, -0.03), (-1.35, 2.8, 1.6), wall),
        Slab((-1.35, -1.75, -0.03), (0.6, -1.70, 1.6), wall),
        Slab((-1.32, -1.3, -0.03), (-0.95, -0.55, 0.62), (92, 76, 64)),  # a low cupboard
        Slab((-1.25, -1.1, 0.62), (-1.05, -0.85, 0.80), (196, 84, 62)),  # a box on it
        Slab((-1.30, 0.95, -0.03), (-1.02, 1.25, 0.30), (64, 70, 84)),  # a bin
    ]


def _cabinet_room(floor: str, wall: str, props: list[Slab]) -> list[Slab]:
    return [
        Slab((-0.95, -2.6, FLOOR - 0.05), (2.5, 2.6, FLOOR), floor),
        Slab((-1.00, -2.6, FLOOR), (-0.95, 2.6, 2.0), wall),
        Slab((-0.95, -1.15, FLOOR), (2.5, -1.10, 2.0), wall),
        Slab((-0.95, -2.6, FLOOR), (-0.935, 2.6, FLOOR + 0.09), (240, 240, 238)),
        Slab((-0.95, -1.10, FLOOR), (2.5, -1.085, FLOOR + 0.09), (240, 240, 238)),
        *props,
    ]


_BED = [
    Slab((-0.90, 0.55, FLOOR), (0.55, 1.9, 0.28), (120, 84, 58)),
    Slab((-0.88, 0.57, 0.28), (0.55, 1.88, 0.46), (232, 228, 220)),
    Slab((-0.45, 0.56, 0.40), (0.56, 1.89, 0.49), (146, 62, 74)),
    Slab((-0.86, 0.70, 0.46), (-0.55, 1.25, 0.58), (250, 250, 250)),
]
_DESK = [
    Slab((-0.92, 0.60, 0.66), (-0.15, 1.9, 0.70), (226, 222, 214)),
    Slab((-0.20, 0.62, FLOOR), (-0.16, 0.66, 0.66), (60, 62, 66)),
    Slab((-0.90, 0.62, FLOOR), (-0.86, 0.66, 0.66), (60, 62, 66)),
    Slab((-0.80, 0.85, 0.76), (-0.77, 1.45, 1.10), (24, 26, 30)),
    Slab((-0.45, -1.02, FLOOR), (-0.10, -0.70, 0.40), (52, 84, 140)),
]
_POT = [
    Slab((-0.85, 0.75, FLOOR), (-0.60, 1.00, 0.26), (226, 222, 214)),
    Slab((-0.80, 0.80, 0.26), (-0.65, 0.95, 0.62), (62, 120, 58)),
]


def stages() -> dict[str, list[Part]]:
    """Stage file name -> what it shows."""
    can, wood = "google_pick_coke_can_1_v4", _drawer_table("oak", (150, 112, 78), (96, 72, 54))
    rooms = {
        can: (_table_room("concrete", "plaster", wood), STAGE),
        f"{can}_alt_background": (_table_room("dark planks", "bricks", wood), STAGE),
        f"{can}_alt_background_2": (_table_room("planks", "tiles", wood), STAGE),
        "Baked_sc1_staging_objaverse_cabinet1_h870": (
            _table_room("concrete", "plaster", _drawer_table("granite", (216, 218, 222), (150, 154, 160))),
            STAGE,
        ),
        "Baked_sc1_staging_objaverse_cabinet2_h870": (
            _table_room("concrete", "plaster", _drawer_table("checks", (96, 66, 48), (62, 44, 34))),
            STAGE,
        ),
        "frl_apartment_stage_simple": (_cabinet_room("planks", "plaster", _POT), STAGE),
        "modern_bedroom_no_roof": (_cabinet_room("carpet", "warm plaster", _BED), BEDROOM),
        "modern_office_no_roof": (_cabinet_room("carpet tiles", "panels", _DESK), OFFICE),
    }
    return {name: _parts(slabs, frame) for name, (slabs, frame) in rooms.items()}


# The photographs.


def camera_view(start: Start) -> View:
    """The head's camera where the robot stands at `start`, with the head as an episode begins."""
    assert start.robot_xy is not None
    pose = np.eye(4)
    pose[:3, :3] = euler2mat(0, 0, pi + start.robot_yaw)
    pose[:3, 3] = (*start.robot_xy, 0.07905)
    joints = {joint.child: joint for joint in JOINTS}
    for link, angle in (("link_head_pan", -0.00285961), ("link_head_tilt", 0.7851361), ("link_camera", 0.0)):
        step, joint = np.eye(4), joints[link]
        step[:3, 3] = joint.origin
        step[:3, :3] = euler2mat(*(angle * np.array(joint.axis)))
        pose = pose @ step  # the camera's own axes, x forward, are those of the head
    return View(pose[:3, 3], pose[:3, :3], 425.0, (320.0, 256.0), 640, 512)


def _lacquer(x: Floats, y: Floats, z: Floats) -> Floats:
    """A worn wood print under lacquer: faint streaks along y."""
    shade = 1 + 0.05 * noise(40 * x, 3 * y, 31) + 0.04 * noise(9 * x, 6 * y, 32)
    return np.stack([shade, shade**1.1, shade**1.2]).astype(np.float32)


def _cement(x: Floats, y: Floats, z: Floats) -> Floats:
    return (1 + 0.07 * noise(6 * x, 6 * y, 33) + 0.05 * noise(24 * x, 24 * y, 34)).astype(np.float32)


def _felt(x: Floats, y: Floats, z: Floats) -> Floats:
    return (1 + 0.10 * noise(50 * (x + y), 50 * z, 35)).astype(np.float32)


PAINTS = {"lacquer": _lacquer, "cement": _cement, "felt": _felt}
POST, FELT, CEMENT, WOOD = (22, 18, 16), (92, 66, 48), (196, 162, 128), (168, 128, 98)


def _cubicle(left: float, right: float) -> list[Solid]:
    """Floor, partition and what stands beside a table that spans y `left` to `right`."""
    things = [
        Solid((-3.0, -4.0, -0.2), (3.0, 4.0, 0.0), CEMENT, "cement"),
        Solid((-1.05, -4.0, 0.04), (-1.0, 4.0, 2.5), FELT, "felt"),
        Solid((-1.0, left - 0.35, 0.0), (-0.97, left - 0.31, 2.5), POST),
        Solid((-1.0, (left + right) / 2 - 0.02, 0.0), (-0.97, (left + right) / 2 + 0.02, 2.5), POST),
        Solid((-1.0, right + 0.40, 0.0), (-0.97, right + 0.44, 2.5), POST),
        Solid((-1.0, -4.0, 0.0), (-0.985, 4.0, 0.07), POST),
        # Right: the leg and foot of a desk, and the five-armed foot of a chair.
        Solid((-0.75, right + 0.32, 0.62), (0.1, right + 1.3, 0.66), (54, 40, 32)),
        Solid((-0.42, right + 0.36, 0.0), (-0.37, right + 0.41, 0.62), POST),
        Solid((-0.70, right + 0.36, 0.0), (-0.10, right + 0.41, 0.05), POST),
        Solid((0.02, right + 0.50, 0.07), (0.08, right + 0.56, 0.45), POST),
        Solid((-0.18, right + 0.51, 0.05), (0.28, right + 0.55, 0.09), POST),
        Solid((0.03, right + 0.28, 0.05), (0.07, right + 0.78, 0.09), POST),
        Solid((0.02, right + 0.26, 0.0), (0.08, right + 0.32, 0.05), POST),
        Solid((0.24, right + 0.50, 0.0), (0.30, right + 0.56, 0.05), POST),
        # Left: a clear bin full of packets, and a desk behind it.
        Solid((-0.95, left - 1.3, 0.62), (-0.45, left - 0.30, 0.66), (54, 40, 32)),
        Solid((-0.52, left - 0.36, 0.0), (-0.47, left - 0.31, 0.62), POST),
    ]
    bin_low, bin_high = (-0.40, left - 0.46, 0.0), (-0.06, left - 0.12, 0.24)
    things.append(Solid(bin_low, bin_high, (164, 150, 136)))
    rng = np.random.default_rng(36)
    packets = ((186, 54, 40), (226, 190, 70), (78, 126, 60), (214, 206, 190), (64, 84, 140), (206, 120, 50))
    for number in range(14):
        x, y = rng.uniform(-0.38, -0.15), rng.uniform(left - 0.44, left - 0.20)
        size, top = rng.uniform(0.04, 0.09, 2), rng.uniform(0.25, 0.31)
        packet = packets[number % len(packets)]
        things.append(Solid((x, y, 0.2), (x + size[0], y + size[1], top), packet))
    return things


def _cabinet_solids(origin: Corner) -> list[Solid]:
    """The cabinet as the photograph has it; the simulator draws its own over it."""
    tints = STATIONS["mk_station_recolor"] | {"handle": POST}
    blocks = [(block, 0.0) for block in BODY]
    blocks += [(block, height) for height in DRAWERS.values() for block in DRAWER if block.role != "inside"]
    solids = []
    for block, height in blocks:
        low, high = (np.array(corner) + origin + (0, 0, height) for corner in block.corners)
        solids.append(Solid(tuple(low), tuple(high), tints[block.role]))  # type: ignore[arg-type]
    (x0, y0, z0), (x1, y1, z1) = (
        np.array(origin) + end for end in ((-0.295, -0.287, 0.0), (0.28, 0.287, 0.845))
    )
    return [*solids, Solid((x0, y0, z0), (x1, y1, z1), (70, 52, 42))]


def _strip(x: Floats, y: Floats) -> Floats:
    """A lamp mirrored in the lacquer, towards the near right corner, and its haze."""
    across, along = (
        np.abs(x + 0.045) / 0.016,
        np.maximum(0.23 - y, 0) / 0.015 + np.maximum(y - 0.47, 0) / 0.03,
    )
    haze = np.exp(-(((x + 0.18) / 0.16) ** 2) - ((y - 0.24) / 0.16) ** 2)
    return (0.5 * np.exp(-(across**4) - along**2) + 0.06 * haze).astype(np.float32)


def _table_scene(start: Start) -> Scene:
    (x0, y0, _), (x1, y1, z1) = TABLE_LOW, TABLE_HIGH
    table = [
        Solid((x0, y0, z1 - 0.022), TABLE_HIGH, WOOD, "lacquer"),
        Solid((x0, y0 + 0.02, 0.06), (x1 - 0.03, y1 - 0.02, z1 - 0.022), (70, 52, 40)),
    ]
    for low in (0.665, 0.445, 0.225):
        table.append(Solid((x1 - 0.03, y0 + 0.03, low), (x1 - 0.015, y1 - 0.03, low + 0.155), (140, 106, 82)))
        table.append(Solid((x1 + 0.01, 0.155, low + 0.09), (x1 + 0.016, 0.265, low + 0.10), POST))
        for y in (0.155, 0.257):
            table.append(Solid((x1 - 0.015, y, low + 0.09), (x1 + 0.012, y + 0.008, low + 0.10), POST))
    return Scene(camera_view(start), (*table, *_cubicle(y0, y1)), (0.1, 0.4, 1.0), _strip, PAINTS)


def _cabinet_scene(start: Start) -> Scene:
    solids = (*_cabinet_solids(CABINET_ORIGIN), *_cubicle(-0.3075, 0.3075))
    return Scene(camera_view(start), solids, (0.1, 0.4, 1.0), None, PAINTS)


def photographs() -> dict[str, Scene]:
    """File name -> what is painted."""
    can, near = find_task("google_robot_pick_horizontal_coke_can"), find_task("google_robot_move_near")
    scenes = {
        "google_coke_can_real_eval_1.png": _table_scene(can.protocol().starts[0]),
        "google_move_near_real_eval_1.png": _table_scene(near.protocol().starts[0]),
    }
    for start in find_task("google_robot_open_top_drawer").protocol().starts:
        assert start.overlay is not None
        scenes[start.overlay] = _cabinet_scene(start)
    return scenes
