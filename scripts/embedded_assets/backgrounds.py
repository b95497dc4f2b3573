"""The two pictures behind robot and objects, painted by casting the task camera's rays at boxes and colouring
what they meet.

ManiSkill shows its own rendering only where robot and objects are; all else is a fixed picture of a table or
a sink. The sink's picture is cast at the very boxes that the eggplant collides with, so that what is seen and
what is felt agree. World frame, metres, z up.
"""

from __future__ import annotations

from dataclasses import dataclass

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
class Scene:
    """What is painted: where it is seen from, the boxes, the light."""

    seen: CameraSetting
    solids: tuple[Solid, ...]
    lamp: tuple[float, float, float]  # towards the brightest part of the ceiling
    glow: tuple[float, float] | None = None  # centre (x, y) of the lamp's reflection on the table


TABLE = Scene(
    camera.TABLE,
    lamp=(0.35, 0.45, 1.0),
    glow=(-0.10, 0.20),
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
    camera.SINK,
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
    """The scene as the task camera sees it: uint8 (480, 640, 3) RGB."""
    origin, rays = _camera(scene)
    depth, which, axis = _nearest(origin, rays, scene.solids)
    points = origin[:, None] + rays * depth
    colours = np.zeros_like(points)
    for number, solid in enumerate(scene.solids):
        mine = which == number
        colours[:, mine] = (np.array(solid.colour, np.float32) / 255)[:, None] ** 2.2 * PAINTS[solid.texture](
            *points[:, mine]
        )
    colours *= _light(scene, points, which, axis, -np.sign(np.take_along_axis(rays, axis[None], 0)[0]))
    if scene.glow is not None:
        distance = np.hypot(points[0] - scene.glow[0], (points[1] - scene.glow[1]) / 1.4)
        colours += 0.10 * np.exp(-((distance / 0.11) ** 2)) * (which == 0)
    pixels = colours.reshape(3, HEIGHT, SAMPLES, WIDTH, SAMPLES).mean(axis=(2, 4)).transpose(1, 2, 0)
    return (255 * pixels.clip(0, 1) ** (1 / 2.2) + 0.5).astype(np.uint8)


def _camera(scene: Scene) -> tuple[Floats, Floats]:
    """Camera centre (3,) and ray directions (3, n) in the world, `SAMPLES` squared a pixel, row by row."""
    u = (np.arange(WIDTH * SAMPLES) + 0.5) / SAMPLES - 0.5
    v = (np.arange(HEIGHT * SAMPLES) + 0.5) / SAMPLES - 0.5
    right, down = np.meshgrid((u - CENTRE_X) / FOCAL, (v - CENTRE_Y) / FOCAL)
    local = np.stack([np.ones(right.size), -right.ravel(), -down.ravel()])  # SAPIEN: x forward, y left, z up
    base_turn = np.diag([-1.0, -1.0, 1.0])  # the base is turned half a circle about z
    origin = np.array(scene.seen.base_position) + base_turn @ np.array(scene.seen.camera_position)
    return origin.astype(np.float32), (base_turn @ quat2mat(scene.seen.camera_quaternion) @ local).astype(
        np.float32
    )


def _slabs(origins: Floats, rays: Floats, solid: Solid) -> tuple[Floats, Floats, Floats]:
    """Where rays (3, n) or (3, 1) enter the three slabs of a box (3, n), enter the box (n,) and leave it
    (n,), in ray lengths.
    """
    inverse = 1 / np.where(rays == 0, np.float32(1e-9), rays)
    first = [(np.float32(solid.low[axis]) - origins[axis]) * inverse[axis] for axis in range(3)]
    second = [(np.float32(solid.high[axis]) - origins[axis]) * inverse[axis] for axis in range(3)]
    enter, leave = (
        [np.minimum(a, b) for a, b in zip(first, second, strict=True)],
        [np.maximum(a, b) for a, b in zip(first, second, strict=True)],
    )
    return (
        np.stack(enter),
        np.maximum(np.maximum(enter[0], enter[1]), enter[2]),
        np.minimum(np.minimum(leave[0], leave[1]), leave[2]),
    )


def _nearest(origin: Floats, rays: Floats, solids: tuple[Solid, ...]) -> tuple[Floats, Whole, Whole]:
    """Distance, number of the box and axis of its face that each ray meets first, each (n,)."""
    depth, which, face = (
        np.full(rays.shape[1], 10, np.float32),
        np.zeros(rays.shape[1], np.intp),
        np.zeros(rays.shape[1], np.intp),
    )
    for number, solid in enumerate(solids):
        enter, near, far = _slabs(origin[:, None], rays, solid)
        closer = np.flatnonzero((near < far) & (near > 0) & (near < depth))
        depth[closer], which[closer], face[closer] = near[closer], number, enter[:, closer].argmax(axis=0)
    return depth, which, face


def _light(scene: Scene, points: Floats, which: Whole, axis: Whole, sign: Floats) -> Floats:
    """Light that reaches each point (n,): cast on a coarser grid, then smoothed within each face of each box,
    which makes the shadows soft.
    """
    shape, step = (HEIGHT * SAMPLES, WIDTH * SAMPLES), 2 * SAMPLES
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
