"""The pictures behind robot and objects, painted by casting the task camera's rays at boxes and colouring
what they meet; the WidowX's two scenes.

ManiSkill shows its own rendering only where robot and objects are; all else is a fixed picture of a table or
a sink. The sink's picture is cast at the very boxes that the eggplant collides with, so that what is seen and
what is felt agree. World frame, metres, z up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from transforms3d.quaternions import quat2mat

from refinevla_kit.simulator import geometry as camera
from refinevla_kit.simulator.geometry import CENTRE_X, CENTRE_Y, FOCAL, HEIGHT, WIDTH, CameraSetting
from refinevla_kit.simulator.variants import TEXTURES, Floats
from scripts.embedded_assets.objects import BASIN, BASKET, SINK, SINK_ORIGIN
from scripts.embedded_assets.shapes import Colour

Whole = NDArray[np.intp]

SAMPLES = 2  # rays a pixel along each side


@dataclass(frozen=True)
class Solid:
    """A painted box: corners (m), sRGB colour and texture."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    colour: Colour
    texture: str = "plain"


@dataclass(frozen=True)
class View:
    """A camera in the world: centre (3,), rotation (3, 3; SAPIEN's axes: x forward, y left, z up), focal
    length, principal point and size of the picture (pixels).
    """

    centre: NDArray[np.float64]
    rotation: NDArray[np.float64]
    focal: float
    middle: tuple[float, float]
    width: int
    height: int


@dataclass(frozen=True)
class Scene:
    """What is painted: where it is seen from, the boxes, the light.

    Attributes:
        lamp: towards the brightest part of the ceiling.
        glow: linear light that the first box mirrors at world points x, y.
        paints: textures beside those of the simulator's variants.
    """

    view: View
    solids: tuple[Solid, ...]
    lamp: tuple[float, float, float]
    glow: Callable[[Floats, Floats], Floats] | None = None
    paints: dict[str, Callable[[Floats, Floats, Floats], Floats]] = field(default_factory=dict)


def _view(setting: CameraSetting) -> View:
    base_turn = np.diag([-1.0, -1.0, 1.0])  # the base is turned half a circle about z
    centre = np.array(setting.base_position) + base_turn @ np.array(setting.camera_position)
    rotation = base_turn @ quat2mat(setting.camera_quaternion)
    return View(centre, rotation, FOCAL, (CENTRE_X, CENTRE_Y), WIDTH, HEIGHT)


def _table_glow(x: Floats, y: Floats) -> Floats:
    return 0.10 * np.exp(-((np.hypot(x + 0.10, (y - 0.20) / 1.4) / 0.11) ** 2))


TABLE = Scene(
    _view(camera.TABLE),
    lamp=(0.35, 0.45, 1.0),
    glow=_table_glow,
    solids=(
        Solid((-0.345, -0.30, 0.83), (0.028, 1.2, 0.87), (172, 108, 70), "wood"),
        Solid((-1.0, -1.5, 0.0), (-0.385, 2.0, 2.0), (142, 146, 154), "fabric"),
        Solid((-0.385, -1.0, 0.0), (1.0, -0.36, 2.0), (124, 134, 148), "fabric"),
        Solid((-1.0, -1.5, 0.0), (1.5, 2.0, 0.25), (52, 60, 74), "fabric"),
    ),
)


def _in_sink(
    low: tuple[float, float, float], high: tuple[float, float, float], colour: Colour, texture: str = "plain"
) -> Solid:
    x, y, z = SINK_ORIGIN
    return Solid(
        (low[0] + x, low[1] + y, low[2] + z), (high[0] + x, high[1] + y, high[2] + z), colour, texture
    )


SINK_SCENE = Scene(
    _view(camera.SINK),
    lamp=(0.5, -0.35, 1.0),
    solids=(
        *(_in_sink(b.low, b.high, b.colour, {BASIN: "basin", BASKET: "basket"}[b.colour]) for b in SINK),
        _in_sink((-0.128, -0.03, 0.07), (-0.085, 0.06, 0.27), (92, 146, 148)),
        _in_sink((-0.122, 0.085, 0.07), (-0.072, 0.18, 0.082), (150, 150, 152)),
        _in_sink((-0.112, 0.12, 0.082), (-0.086, 0.146, 0.34), (168, 168, 170)),
        # The counter, in four pieces around the sink.
        *(
            Solid(low, high, (206, 156, 96), "wood")
            for low, high in (
                ((-0.60, -0.8, 0.80), (-0.295, 1.0, 0.935)),
                ((-0.025, -0.8, 0.80), (0.05, 1.0, 0.935)),
                ((-0.295, -0.8, 0.80), (-0.025, -0.07, 0.935)),
                ((-0.295, 0.325, 0.80), (-0.025, 1.0, 0.935)),
            )
        ),
        Solid((-1.2, -1.5, 0.0), (-0.36, 2.0, 2.0), (206, 200, 190), "tiles"),
        Solid((-1.0, -1.5, 0.0), (1.5, 2.0, 0.1), (70, 66, 64)),
    ),
)


def paint(scene: Scene) -> NDArray[np.uint8]:
    """The scene as its camera sees it: uint8 (height, width, 3) RGB."""
    view, paints = scene.view, PAINTS | scene.paints
    origin, rays = _camera(view)
    depth, which, axis = _nearest(view, origin, rays, scene.solids)
    points = origin[:, None] + rays * depth
    colours = np.zeros_like(points)
    for number, solid in enumerate(scene.solids):
        mine = which == number
        colours[:, mine] = (np.array(solid.colour, np.float32) / 255)[:, None] ** 2.2 * paints[solid.texture](
            *points[:, mine]
        )
    colours *= _light(scene, points, which, axis, -np.sign(np.take_along_axis(rays, axis[None], 0)[0]))
    if scene.glow is not None:
        colours += scene.glow(points[0], points[1]) * (which == 0)
    pixels = (
        colours.reshape(3, view.height, SAMPLES, view.width, SAMPLES).mean(axis=(2, 4)).transpose(1, 2, 0)
    )
    return (255 * pixels.clip(0, 1) ** (1 / 2.2) + 0.5).astype(np.uint8)


def _camera(view: View) -> tuple[Floats, Floats]:
    """Camera centre (3,) and ray directions (3, n) in the world, `SAMPLES` squared a pixel, row by row."""
    u = (np.arange(view.width * SAMPLES) + 0.5) / SAMPLES - 0.5
    v = (np.arange(view.height * SAMPLES) + 0.5) / SAMPLES - 0.5
    right, down = np.meshgrid((u - view.middle[0]) / view.focal, (v - view.middle[1]) / view.focal)
    local = np.stack([np.ones(right.size), -right.ravel(), -down.ravel()])  # 3 x n
    return view.centre.astype(np.float32), (view.rotation @ local).astype(np.float32)


def _slabs(origins: Floats, rays: Floats, solid: Solid) -> tuple[list[Floats], Floats, Floats]:
    """Where rays (3, n) or (3, 1) enter the three slabs of a box (3 times (n,)), enter the box (n,) and leave
    it (n,), in ray lengths.
    """
    enter, leave = [], []
    for axis in range(3):
        inverse = 1 / np.where(rays[axis] == 0, np.float32(1e-9), rays[axis])
        first = (np.float32(solid.low[axis]) - origins[axis]) * inverse
        second = (np.float32(solid.high[axis]) - origins[axis]) * inverse
        enter.append(np.minimum(first, second))
        leave.append(np.maximum(first, second))
    return (
        enter,
        np.maximum(np.maximum(enter[0], enter[1]), enter[2]),
        np.minimum(np.minimum(leave[0], leave[1]), leave[2]),
    )


def _nearest(
    view: View, origin: Floats, rays: Floats, solids: tuple[Solid, ...]
) -> tuple[Floats, Whole, Whole]:
    """Distance, number of the box and axis of its face that each ray meets first, each (n,)."""
    depth, which, face = (
        np.full(rays.shape[1], 10, np.float32),
        np.zeros(rays.shape[1], np.intp),
        np.zeros(rays.shape[1], np.intp),
    )
    for number, solid in enumerate(solids):
        near_it = _rays_towards(view, solid)
        enter, near, far = _slabs(origin[:, None], rays[:, near_it], solid)
        hit = np.flatnonzero((near < far) & (near > 0) & (near < depth[near_it]))
        closer = near_it[hit]
        depth[closer], which[closer] = near[hit], number
        face[closer] = np.stack([each[hit] for each in enter]).argmax(axis=0)
    return depth, which, face


def _rays_towards(view: View, solid: Solid) -> Whole:
    """Numbers of the rays in the rectangle that the box spans in the picture; of all, where it reaches behind
    the camera.
    """
    rows, columns = view.height * SAMPLES, view.width * SAMPLES
    ends = zip(solid.low, solid.high, strict=True)
    corners = np.stack(np.meshgrid(*ends), axis=-1).reshape(-1, 3)
    forward, left, up = ((corners - view.centre) @ view.rotation).T
    if forward.min() < 0.05:
        return np.arange(rows * columns)
    across = (view.middle[0] - view.focal * left / forward) * SAMPLES
    down = (view.middle[1] - view.focal * up / forward) * SAMPLES
    u = np.arange(max(int(across.min()) - SAMPLES, 0), min(int(across.max()) + 2 * SAMPLES, columns))
    v = np.arange(max(int(down.min()) - SAMPLES, 0), min(int(down.max()) + 2 * SAMPLES, rows))
    return (v[:, None] * columns + u).ravel()


def _light(scene: Scene, points: Floats, which: Whole, axis: Whole, sign: Floats) -> Floats:
    """Light that reaches each point (n,): cast on a coarser grid, then smoothed within each face of each box,
    which makes the shadows soft.
    """
    shape, step = (scene.view.height * SAMPLES, scene.view.width * SAMPLES), 2 * SAMPLES
    faces = (which * 3 + axis).reshape(shape)
    pick = np.arange(len(which)).reshape(shape)[step // 2 :: step, step // 2 :: step]
    cast = _irradiance(scene, points[:, pick.ravel()], axis[pick.ravel()], sign[pick.ravel()]).reshape(
        pick.shape
    )
    light = np.ones(shape, np.float32)
    for face in np.unique(faces):
        here = (faces.ravel()[pick] == face).astype(np.float32)
        smooth = gaussian_filter(cast * here, 2.5) / np.maximum(gaussian_filter(here, 2.5), 1e-6)
        mine = faces == face
        light[mine] = smooth.repeat(step, axis=0).repeat(step, axis=1)[mine]
    return light.ravel()


def _irradiance(scene: Scene, points: Floats, axis: Whole, sign: Floats, directions: int = 48) -> Floats:
    """Light from a ceiling brighter near the lamp at each point (n,) of a face with normal `sign` along
    `axis`, less what the boxes keep away.
    """
    turn, height = (
        np.arange(directions) * np.pi * (3 - np.sqrt(5)),
        (np.arange(directions) + 0.5) / directions,
    )
    sky = np.stack(
        [np.cos(turn) * np.sqrt(1 - height**2), np.sin(turn) * np.sqrt(1 - height**2), height], axis=1
    ).astype(np.float32)
    weights = 0.35 + 2.2 * (sky @ (np.array(scene.lamp) / np.linalg.norm(scene.lamp))).clip(0) ** 6
    light = np.full(points.shape[1], 0.12, np.float32)
    for direction, weight in zip(sky, weights / (weights * height).sum(), strict=True):
        facing = np.flatnonzero(direction[axis] * sign > 0)
        start = points[:, facing] + 1e-4 * direction[:, None]
        lit = np.ones(len(facing), bool)
        for solid in scene.solids:
            _, near, far = _slabs(start, direction[:, None], solid)
            lit &= (near >= far) | (far <= 0)
        light[facing] += lit * np.float32(weight) * (direction[axis] * sign)[facing]
    return light


def _basin(x: Floats, y: Floats, z: Floats) -> Floats:
    """A drain in the middle of the floor, with a ring around it."""
    radius = np.hypot(x - SINK_ORIGIN[0] - 0.0375, y - SINK_ORIGIN[1] - 0.0625)
    return np.select(
        [z > SINK_ORIGIN[2] + 0.037, radius < 0.012, abs(radius - 0.025) < 0.001], [1.0, 0.1, 0.8], 1.0
    ).astype(np.float32)


def _basket(x: Floats, y: Floats, z: Floats) -> Floats:
    """Slots in floor and sides below a plain rim, so that it reads as a dish rack."""
    across, along, up = x - SINK_ORIGIN[0], y - SINK_ORIGIN[1], z - SINK_ORIGIN[2]
    side = (along < -0.1549) | (along > -0.0501)  # the two sides that run along x
    return np.where(
        (np.where(side, across, along) % 0.0175 < 0.007) & (up < 0.084), np.float32(0.45), np.float32(1)
    )


PAINTS = {**TEXTURES, "basin": _basin, "basket": _basket}
