"""Variant aggregation for the WidowX: ManiSkill's twins in a room that is rendered, not photographed, changed
one thing at a time.

SIMPLER's own variant aggregation (Google Robot) has no photograph: the whole scene is rendered. Here
likewise. The photograph comes off, and boxes with generated textures take its place: a table (or a kitchen
counter around the sink, and a yellow basket in it), walls, three lights of which one casts shadows. All of
it, the distractors too, is seen and not felt: the physics is that of visual matching, to the last bit. What
each variant changes is in `tasks.py`; docs/variant_aggregation.md says why and shows all of them. World
frame, metres.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from transforms3d.quaternions import axangle2quat, qmult

from refinevla_kit.simulator.contract import Array
from refinevla_kit.simulator.geometry import EGGPLANT_LYING, RADII, SINK_TASK, UPRIGHT, box_outline, project
from refinevla_kit.tasks import Task, Variant

Floats = NDArray[np.float32]
Corner = tuple[float, float, float]
Colour = tuple[int, int, int]  # sRGB

COVERINGS: dict[str, tuple[Colour, str]] = {  # colour, texture
    "oak": ((150, 90, 58), "wood"),
    "granite": ((170, 172, 176), "stone"),
    "checked": ((226, 218, 200), "checks"),
    "partition": ((142, 148, 158), "fabric"),
    "brick": ((150, 70, 52), "bricks"),
    "tiled": ((120, 190, 176), "tiles"),
    "yellow": ((240, 202, 60), "plain"),
}
BASE_COVERINGS = {"table": "oak", "wall": "partition", "basket": "yellow"}
# (direction, brightness); SIMPLER's (ManiSkill2_real2sim, `grasp_single_in_scene.py`), on top of an ambient
# light of 0.3
LIGHTS = {
    "normal": (((0, 0, -1), 2.2), ((-1, -0.5, -1), 0.7), ((1, 1, -1), 0.7)),
    "brighter": (((0, 0, -1), 3.6), ((-1, -0.5, -1), 1.3), ((1, 1, -1), 1.3)),
    "darker": (((0, 0, -1), 0.8), ((1, 1, -1), 0.8)),
}
AMBIENT = 0.3
# The first light's: 1.2 mm a texel.
SHADOW = {"shadow_scale": 0.6, "shadow_near": -1.0, "shadow_far": 1.0, "shadow_map_size": 1024}
PITCH = {"table": 0.001, "basket": 0.001, "wall": 0.003}  # m, size of a texture's pixel

MODELS = {  # by the word for it; what may stand about is what the scene itself does not show, the first first
    "carrot": "bridge_carrot_generated_modified",
    "green block": "baked_green_cube_3cm",
    "eggplant": "eggplant",
    "spoon": "bridge_spoon_generated_modified",
    "yellow block": "baked_yellow_cube_3cm",
    "plate": "bridge_plate_objaverse_larger",
    "towel": "table_cloth_generated_shorter",
}
HAND = 0.085  # m around what the scene shows that the open gripper needs
MARGIN = 0.1  # of the picture's width and height: no distractor's centre is nearer its rim


@dataclass(frozen=True)
class Room:
    """What is rendered in the photograph's place: (role, low corner, high corner) of each box, and where
    distractors stand.

    Attributes:
        zones: (low x, low y, high x, high y) of the rectangles that they are drawn in.
        level: height of the table or counter.
        light: factor on every light: the sink is pale, and ManiSkill lights it dimly.
    """

    boxes: tuple[tuple[str, Corner, Corner], ...]
    zones: tuple[tuple[float, float, float, float], ...]
    level: float
    light: float = 1.0


_SIDE_WALL = ("wall", (-1.0, -1.1, 0.0), (1.0, -1.0, 1.6))
TABLE_ROOM = Room(
    (
        ("table", (-0.345, -0.34, 0.83), (0.45, 0.70, 0.87)),
        ("wall", (-0.80, -1.1, 0.0), (-0.70, 1.5, 1.6)),
        _SIDE_WALL,
    ),
    zones=((-0.33, -0.30, 0.05, 0.25),),
    level=0.87,
)
_COUNTER = (
    ((-0.42, -0.40), (-0.29, 0.9)),
    ((-0.03, -0.40), (0.06, 0.9)),
    ((-0.29, -0.40), (-0.03, -0.065)),
    ((-0.29, 0.32), (-0.03, 0.9)),
)
# A shell around the compartment that ManiSkill's target plane lies in: 1.5 mm outside the walls of the
# embedded pack's sink, 1 mm inside.
BASKET_LOW, BASKET_HIGH = (-0.2115, -0.0365, 0.92), (-0.0485, 0.0915, 0.986)
_INNER_LOW, _INNER_HIGH = (-0.199, -0.024), (-0.061, 0.079)
_BASKET = (
    (BASKET_LOW, (*BASKET_HIGH[:2], 0.9265)),
    (BASKET_LOW, (_INNER_LOW[0], *BASKET_HIGH[1:])),
    ((_INNER_HIGH[0], *BASKET_LOW[1:]), BASKET_HIGH),
    (BASKET_LOW, (BASKET_HIGH[0], _INNER_LOW[1], BASKET_HIGH[2])),
    ((BASKET_LOW[0], _INNER_HIGH[1], BASKET_LOW[2]), BASKET_HIGH),
)
SINK_ROOM = Room(
    (
        *(("table", (*low, 0.6), (*high, 0.935)) for low, high in _COUNTER),
        *(("basket", low, high) for low, high in _BASKET),
        ("wall", (-0.52, -1.1, 0.0), (-0.42, 1.5, 1.6)),
        _SIDE_WALL,
    ),
    zones=((-0.38, -0.25, -0.33, 0.31), (-0.29, -0.25, -0.10, -0.12), (0.0, 0.0, 0.05, 0.2)),
    level=0.935,
    light=0.6,
)


def basket_outline(task: Task, width: int, height: int) -> Array | None:
    """Where a photograph shows the yellow basket, bool (height, width); None for a task without it."""
    if task.name != SINK_TASK:
        return None
    return box_outline(task, (*BASKET_LOW[:2], 0.955), (*BASKET_HIGH[:2], 0.977), width, height)


def dress(
    environment: Any, task: Task, variant: Variant, models: Path, things: dict[str, Array]
) -> dict[str, Array]:
    """Replace photograph, stage and lights of a freshly made ManiSkill twin by the room of `variant`.

    Distractors stand away from the scene's things and from each other. Where is drawn from the variant's name
    and the start alone, so that every policy meets the same.

    Args:
        models: the asset pack's folder of objects.
        things: where each thing starts: position and quaternion, (7,).

    Returns:
        The segmentation ids of what masks name: the basket, each distractor.
    """
    import sapien

    build, scene = dict(variant.build), environment.scene.sub_scenes[0]
    room = SINK_ROOM if task.name == SINK_TASK else TABLE_ROOM
    hidden = ("arena", "dummy_sink_target_plane")  # the stage; a plane meant to be invisible
    for entity in scene.entities:
        if entity.name.removeprefix("scene-0_") in hidden:
            entity.find_component_by_type(sapien.render.RenderBodyComponent).disable()
    ids: dict[str, Array] = {}
    for role in dict.fromkeys(role for role, *_ in room.boxes):
        boxes = tuple((low, high) for each, low, high in room.boxes if each == role)
        number = _show(scene, boxes, build.get(role, BASE_COVERINGS[role]), PITCH[role])
        if role == "basket":
            ids[task.target] = np.array([number])
    for light in list(scene.render_system.lights):
        light.disable()
    scene.render_system.ambient_light = [AMBIENT * room.light] * 3
    for number, (direction, brightness) in enumerate(LIGHTS[build.get("lights", "normal")]):
        shadow = {"shadow": True, "position": [-0.16, 0.06, 0.9], **SHADOW} if number == 0 else {}
        environment.scene.add_directional_light(direction, [brightness * room.light] * 3, **shadow)
    start = np.round(np.concatenate(list(things.values())), 4).astype(np.float32)
    named = zlib.crc32(f"{task.name} {variant.name}".encode())
    rng = np.random.default_rng([named, zlib.crc32(start.tobytes())])
    taken = [(pose[:2], max(HAND, RADII.get(name, HAND))) for name, pose in things.items()]
    others = [name for name in MODELS if name not in things]
    for name in others[: build.get("distractors", 0)]:
        body = sapien.render.RenderBodyComponent()
        body.attach(sapien.render.RenderShapeTriangleMesh(str(visual_file(models / MODELS[name]))))
        ids[name] = np.array([_add(scene, body)])
        place = _free_place(task, room, RADII[name], taken, rng)
        taken.append((place, RADII[name]))
        _stand(body, name, place, rng.uniform(-np.pi, np.pi), room.level)
    return ids


def visual_file(folder: Path) -> Path | None:
    """What an object looks like, as ManiSkill takes it: the first of these that is there."""
    files = [folder / f"textured.{kind}" for kind in ("obj", "dae", "glb")]
    return next((file for file in files if file.is_file()), None)


def _add(scene: Any, body: Any) -> int:
    """Put something that is only looked at into the scene; returns its segmentation id."""
    import sapien

    entity = sapien.Entity()
    entity.add_component(body)
    scene.add_entity(entity)
    return int(entity.per_scene_id)


def _show(scene: Any, boxes: tuple[tuple[Corner, Corner], ...], covering: str, pitch: float) -> int:
    """Add textured boxes; returns their segmentation id."""
    import sapien

    body = sapien.render.RenderBodyComponent()
    for low, high in boxes:
        for vertices, uv, normal, picture in _faces(low, high, covering, pitch):
            material = sapien.render.RenderMaterial(roughness=0.9, specular=0.2)
            levels = int(np.log2(min(picture.shape[:2]))) + 1
            material.base_color_texture = sapien.render.RenderTexture2D(
                picture, "R8G8B8A8Unorm", levels, srgb=True
            )
            triangles = np.array([[0, 1, 2], [0, 2, 3]], np.uint32)
            body.attach(
                sapien.render.RenderShapeTriangleMesh(
                    vertices, triangles, np.tile(normal, (4, 1)), uv, material
                )
            )
    return _add(scene, body)


@cache
def _faces(low: Corner, high: Corner, covering: str, pitch: float) -> list[tuple[Array, Array, Array, Array]]:
    """The three faces that the camera can see: vertices (4, 3), texture coordinates (4, 2), normal (3,),
    picture uint8 (H, W, 4).
    """
    colour, texture = COVERINGS[covering]
    linear = (np.array(colour, np.float32) / 255)[:, None] ** 2.2
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], np.float32)
    faces = []
    for axis in range(3):
        across = [(axis + 1) % 3, (axis + 2) % 3]  # the axes that the face lies in
        size = [high[a] - low[a] for a in across]
        columns, rows = (max(4, int(np.ceil(length / pitch))) for length in size)
        points = np.zeros((3, rows * columns), np.float32)
        points[axis] = high[axis]
        steps = [
            low[a] + (np.arange(count) + 0.5) * length / count
            for a, length, count in zip(across, size, (columns, rows), strict=True)
        ]
        points[across] = [grid.ravel() for grid in np.meshgrid(*steps)]
        shade = (linear * TEXTURES[texture](*points)).clip(0, 1) ** (1 / 2.2)
        picture = np.full((rows, columns, 4), 255, np.uint8)
        picture[..., :3] = (255 * shade.T.reshape(rows, columns, 3) + 0.5).astype(np.uint8)
        vertices = np.zeros((4, 3), np.float32)
        vertices[:, axis] = points[axis, 0]
        for a, along, length in zip(across, corners.T, size, strict=True):
            vertices[:, a] = low[a] + along * length
        normal = np.eye(3, dtype=np.float32)[axis]
        faces.append((vertices, corners, normal, picture))
    return faces


def _free_place(
    task: Task, room: Room, radius: float, taken: list[tuple[Array, float]], rng: np.random.Generator
) -> Array:
    """The first of 200 draws that is in the picture and keeps clear of what is taken, else the clearest:
    (2,).
    """
    zones = np.array(room.zones)
    size = np.prod(zones[:, 2:] - zones[:, :2], axis=1)
    chosen = zones[rng.choice(len(zones), 200, p=size / size.sum())]
    places = rng.uniform(chosen[:, :2], chosen[:, 2:])
    seen = project(task, np.column_stack([places, np.full(len(places), room.level)]), 1, 1)
    clear = np.min(
        [np.linalg.norm(places - centre, axis=1) - reach - radius for centre, reach in taken], axis=0
    )
    clear -= (np.abs(seen - 0.5) > 0.5 - MARGIN).any(axis=1)
    return places[np.argmax(clear > 0) if (clear > 0).any() else np.argmax(clear)]


def _stand(body: Any, name: str, place: Array, yaw: float, level: float) -> None:
    """Lay the thing down at `place` (x, y), turned by `yaw`, so that its lowest point touches `level`."""
    import sapien

    lying = EGGPLANT_LYING if name == "eggplant" else UPRIGHT
    turned = qmult(axangle2quat([0.0, 0.0, 1.0], yaw), lying)
    body.entity.set_pose(sapien.Pose([*place, level], turned))
    deep = level - body.compute_global_aabb_tight()[0, 2]
    body.entity.set_pose(sapien.Pose([*place, level + deep], turned))


# Textures as functions of a point of the world; the embedded pack's backgrounds are painted with them too.
# Each takes x, y, z of n points (metres, world frame, each (n,)) and returns a factor on the linear colour,
# (n,) or (3, n).


def noise(across: Floats, along: Floats, seed: int) -> Floats:
    """Smooth noise of about -1 to 1, one bump a unit."""
    lattice = np.random.default_rng(seed).uniform(-1, 1, (256, 256))
    return map_coordinates(lattice, np.stack([across, along]), order=3, mode="grid-wrap").astype(np.float32)


def wood(x: Floats, y: Floats, z: Floats) -> Floats:
    """Grain along y: broad figure, streaks and fine pores."""
    across = x + 0.3 * z
    figure = noise(22 * across + 1.5 * noise(5 * across, 3 * y, 1), 2.5 * y, 2)
    shade = 1 + 0.16 * figure + 0.10 * noise(160 * across, 7 * y, 3) + 0.07 * noise(520 * across, 26 * y, 4)
    return np.stack([shade, shade**1.25, shade**1.4])


def fabric(x: Floats, y: Floats, z: Floats) -> Floats:
    """Woven threads: two crossed fine noises."""
    level = x + y
    return 1 + 0.12 * (noise(420 * level, 110 * z, 5) + noise(110 * level, 420 * z, 6))


def tiles(x: Floats, y: Floats, z: Floats) -> Floats:
    """Joints every 15 cm."""
    return np.where((y % 0.15 < 0.003) | (z % 0.15 < 0.003), np.float32(0.72), np.float32(1))


def bricks(x: Floats, y: Floats, z: Floats) -> Floats:
    """A wall of courses 7 cm high in running bond, pale joints, each brick of its own shade."""
    level, course = x + y, np.floor(z / 0.07)
    shifted = level / 0.21 + 0.5 * (course % 2)
    joint = (z % 0.07 < 0.010) | (shifted % 1 < 0.05)
    shade = 1 + 0.3 * noise(np.floor(shifted) * 1.7, course * 1.3, 7) + 0.12 * noise(150 * level, 150 * z, 8)
    return np.stack([np.where(joint, pale, shade) for pale in (1.6, 4.0, 5.5)]).astype(np.float32)


def stone(x: Floats, y: Floats, z: Floats) -> Floats:
    """Granite: dark and light specks of a few millimetres on soft clouds."""
    across, along = x + z, y + z
    specks = noise(260 * across, 260 * along, 11) + 0.7 * noise(560 * across, 560 * along, 12)
    return (1 + 0.12 * noise(14 * across, 14 * along, 13) + 0.22 * np.clip(specks, -0.9, 0.5)).astype(
        np.float32
    )


def checks(x: Floats, y: Floats, z: Floats) -> Floats:
    """Squares of 6 cm in two shades."""
    return np.where((np.floor(x / 0.06) + np.floor(y / 0.06)) % 2 == 0, np.float32(1), np.float32(0.45))


TEXTURES: dict[str, Callable[[Floats, Floats, Floats], Floats]] = {
    "plain": lambda x, y, z: np.ones_like(x),
    "wood": wood,
    "fabric": fabric,
    "tiles": tiles,
    "bricks": bricks,
    "stone": stone,
    "checks": checks,
}
