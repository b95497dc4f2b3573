"""The things of the Google Robot's tasks: cans, a bottle, fruit, a sponge.

Sizes, origins and volumes are those of SIMPLER's own objects (ManiSkill2_real2sim, `google_robot_real2sim`
models): y is a can's long axis, its lid on the +y side, and a standing can rests on its -y end. Labels are
the kit's own drawings, without words: each thing is told by its colours at 160 x 128.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from scripts.embedded_assets.objects import Thing, _spoon
from scripts.embedded_assets.shapes import Colour, Part, box, cushion, flat, hull, lathe, placed, tube

Picture = NDArray[np.uint8]
Grid = NDArray[np.float64]
Profile = tuple[tuple[float, float], ...]  # (position along the axis, radius), m
WHITE, BLACK, SILVER, LID, HOLE = (
    (248, 248, 246),
    (20, 20, 22),
    (198, 201, 206),
    (168, 172, 178),
    (34, 34, 36),
)
RED, YELLOW, GREEN = (206, 18, 32), (250, 204, 28), (92, 168, 52)
AROUND, ALONG = 192, 112  # pixels of a label: 210 mm by 120 mm
SIDES = 24  # of a can's collision piece: a flat side of 9 mm keeps a lying can from rolling


def _wrapped(profile: Profile, picture: Picture, axis: str = "y") -> Part:
    """Surface of revolution about `axis` ("y" or "z") with a picture around it; its first row is the far end
    of the axis.
    """
    along, radius = np.array(profile).T
    angle = np.linspace(0, 2 * np.pi, 37)
    steps = np.stack([np.gradient(along), np.gradient(radius)], axis=1)[:, :, None, None]  # n x 2 x 1 x 1
    ring = np.stack([np.cos(angle), np.zeros_like(angle), -np.sin(angle)], axis=1)  # 37 x 3
    points = radius[:, None, None] * ring + along[:, None, None] * np.array([0, 1, 0])
    normals = steps[:, 0] * ring - steps[:, 1] * np.array([0, 1, 0])
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    share = (along - along[0]) / (along[-1] - along[0])
    uv = np.stack(np.broadcast_arrays(angle / (2 * np.pi), share[:, None]), axis=-1)
    corner = (np.arange(len(along) - 1)[:, None] * 37 + np.arange(36)).reshape(-1, 1)
    faces = np.concatenate([corner + np.array([0, 38, 37]), corner + np.array([0, 1, 38])])
    if axis == "z":
        points, normals = points[..., [0, 2, 1]] * [1, -1, 1], normals[..., [0, 2, 1]] * [1, -1, 1]
    mesh = trimesh.Trimesh(
        points.reshape(-1, 3),
        faces,
        vertex_normals=normals.reshape(-1, 3),
        process=False,
        vertex_attributes={"uv": uv.reshape(-1, 2)},
    )
    return Part(mesh, WHITE, 0.4, picture)


def _drawing(ground: Colour, *layers: tuple[Colour, Callable[[Grid, Grid], NDArray[np.bool_]]]) -> Picture:
    """A label: colours where conditions on (mm around, mm along from the middle) hold, the last on top."""
    along, around = np.meshgrid(
        np.linspace(60, -60, ALONG), (np.arange(AROUND) + 0.5) * 210 / AROUND, indexing="ij"
    )
    picture = np.full((ALONG, AROUND, 3), ground, np.uint8)
    for colour, where in layers:
        picture[where(around, along)] = colour
    return picture


def _repeat(around: Grid, times: int = 4) -> Grid:
    """Millimetres from the middle of the nearest of `times` equal fields around the can; one faces up when it
    lies.
    """
    width = 210 / times
    return (around + width / 2) % width - width / 2


def _disc(around: Grid, along: Grid, radius: float, times: int = 4) -> NDArray[np.bool_]:
    return np.hypot(_repeat(around, times), along) < radius


def _labels() -> dict[str, Picture]:
    def script(u: Grid, v: Grid) -> NDArray[np.bool_]:
        across = _repeat(u)
        ribbon = np.abs(across - 10 * np.sin(v / 13)) < 3 + 3 * np.cos(v / 30) ** 2
        return (np.abs(v) < 44) & (ribbon | ((np.abs(across + 12) < 2.5) & (np.abs(v % 22 - 11) < 7)))

    def wave(u: Grid, v: Grid) -> NDArray[np.bool_]:
        return np.abs(v - 4 * np.sin(_repeat(u) / 7)) < 5

    return {
        "coke": _drawing(RED, (WHITE, script)),
        "pepsi": _drawing(
            (22, 48, 132),
            (WHITE, lambda u, v: _disc(u, v, 24)),
            ((26, 92, 190), lambda u, v: _disc(u, v, 21)),
            (RED, lambda u, v: _disc(u, v, 21) & (v > 0)),
            (WHITE, lambda u, v: _disc(u, v, 21) & wave(u, v)),
        ),
        "7up": _drawing(
            (22, 138, 62),
            (WHITE, lambda u, v: (np.abs(v - 20) < 6) & (np.abs(_repeat(u)) < 18)),
            (WHITE, lambda u, v: (np.abs(_repeat(u) - 8 - v / 3) < 6) & (np.abs(v + 6) < 26)),
            (RED, lambda u, v: np.hypot(_repeat(u) + 12, v + 6) < 11),
        ),
        "sprite": _drawing(
            (0, 122, 96),
            ((30, 84, 176), lambda u, v: v > 26 + 10 * np.sin(u / 105 * np.pi)),
            (YELLOW, lambda u, v: np.abs(v - 8 - _repeat(u, 2) / 3) < 13),
            (WHITE, lambda u, v: (np.abs(v - 6 - _repeat(u, 2) / 3) < 8) & (np.abs(_repeat(u, 2)) < 40)),
        ),
        "fanta": _drawing(
            (244, 124, 16),
            (GREEN, lambda u, v: np.hypot(_repeat(u) - 16, v - 20) < 11),
            ((24, 54, 138), lambda u, v: np.hypot(_repeat(u) * 0.8, v) < 18),
            (WHITE, lambda u, v: (np.abs(v - _repeat(u) / 4) < 5) & (np.abs(_repeat(u)) < 18)),
        ),
        "redbull": _drawing(
            (190, 196, 206),
            ((26, 52, 130), lambda u, v: (_repeat(u) > 0) == (v > 0)),
            (YELLOW, lambda u, v: _disc(u, v, 13)),
            (RED, lambda u, v: (np.abs(v) < 7) & (np.abs(np.abs(_repeat(u)) - 12) < 10)),
        ),
    }


def _can(
    bottom: float, top: float, picture: Picture, radius: float = 0.0332, shoulder: float = 0.020
) -> Thing:
    """An opened can from y `bottom` to `top` (m): narrow foot and neck of bare metal, the hole in its lid."""
    foot, neck = radius - 0.0085, radius - 0.0070
    label = ((bottom + 0.010, radius), (0.0, radius), (top - shoulder, radius), (top - 0.009, neck + 0.003))
    metal = [
        Part(lathe([(bottom + 0.006, 0.0), (bottom, foot), (bottom + 0.010, radius)], "y"), SILVER, 0.35),
        Part(
            lathe([(top - 0.009, neck + 0.003), (top, neck), (top - 0.0015, neck - 0.0025)], "y"),
            SILVER,
            0.35,
        ),
        Part(flat(lathe([(top - 0.0015, neck - 0.0025), (top - 0.002, 0.0)], "y")), LID, 0.35),
        Part(placed(tube(-0.001, 0.0012, 0.0085, "y"), (1, 1, 0.8), (0.010, top - 0.002, 0)), HOLE),
        Part(placed(tube(-0.001, 0.0014, 0.006, "y"), (1.3, 1, 0.7), (-0.006, top - 0.002, 0)), SILVER, 0.35),
    ]
    profile = [(bottom, foot), (bottom + 0.010, radius), (top - shoulder, radius), (top, neck)]
    piece = hull(placed(lathe(profile, "y", SIDES), turn=(0, np.pi / SIDES, 0)).vertices)
    return _thing([_wrapped(label, picture), *metal], [piece])


def _thing(parts: list[Part], pieces: list[trimesh.Trimesh]) -> Thing:
    """Extents and densities of these tasks are constants of the simulator: none is written beside them."""
    return Thing(tuple(parts), tuple(pieces), (0, 0, 0), (0, 0, 0), 0)


def _bottle() -> Thing:
    """A blue plastic bottle, a little flatter across x; the neck is a piece of its own."""
    blue, deep = (88, 138, 204), (40, 84, 160)
    shape = (1.0, 1.0, 1.07)
    outline = (
        (-0.0871, 0.0),
        (-0.0871, 0.024),
        (-0.080, 0.031),
        (-0.030, 0.031),
        (0.050, 0.031),
        (0.075, 0.0265),
        (0.098, 0.0155),
        (0.103, 0.0125),
    )
    parts = [
        Part(placed(lathe(outline, "y"), shape), blue, 0.3),
        Part(
            placed(
                flat(lathe([(-0.030, 0.0311), (-0.029, 0.0316), (0.034, 0.0316), (0.035, 0.0311)], "y")),
                shape,
            ),
            WHITE,
        ),
        Part(
            placed(
                flat(lathe([(-0.012, 0.0317), (-0.011, 0.0320), (0.016, 0.0320), (0.017, 0.0317)], "y")),
                shape,
            ),
            deep,
        ),
        Part(tube(0.100, 0.1163, 0.0125, "y"), deep),
    ]
    body = placed(lathe(outline[1:7], "y", SIDES), shape)
    neck = lathe([(0.090, 0.0200), (0.1163, 0.0115)], "y", 12)
    return _thing(parts, [hull(body.vertices), hull(neck.vertices)])


def _skin(low: Colour, high: Colour, seed: int, blur: tuple[float, float], crown: Colour) -> Picture:
    """Fruit's skin: clouds between two colours, `blur` pixels long and wide, and a crown around the stem."""
    cloud = gaussian_filter(np.random.default_rng(seed).normal(0, 1, (32, 64)), blur, mode="wrap")
    mix = (0.5 + 0.3 * cloud / cloud.std()).clip(0, 1)[..., None]
    shade = np.array(low) + (np.array(high) - np.array(low)) * mix
    top = ((6 - np.arange(32)) / 6).clip(0, 1)[:, None, None]
    return (shade + (np.array(crown) - shade) * top).clip(0, 255).astype(np.uint8)


def _apple() -> Thing:
    """Stem towards +z, a small flat foot to stand on."""
    outline = ((-0.0355, 0.006), (-0.0362, 0.014), (-0.028, 0.028), (-0.010, 0.0385), (0.006, 0.0405))
    outline += ((0.022, 0.0370), (0.0335, 0.0260), (0.0375, 0.0155), (0.0345, 0.0060), (0.0310, 0.0))
    leaf = placed(
        trimesh.creation.icosphere(subdivisions=2),
        (0.015, 0.008, 0.0015),
        (0.014, 0.004, 0.0400),
        (0, -0.3, 0),
    )
    parts = [
        _wrapped(outline, _skin((168, 16, 26), (202, 44, 34), 3, (6, 3), (196, 132, 62)), "z"),
        Part(tube(0.031, 0.0445, 0.0026, "z", 10), (84, 58, 32)),
        Part(leaf, (86, 140, 48)),
    ]
    return _thing(parts, [hull(lathe(outline[1:8], "z", 20).vertices)])


def _orange() -> Thing:
    angle = np.linspace(-np.pi / 2 + 0.2, np.pi / 2, 13)
    outline = tuple((0.0355 * np.sin(a) - 0.0007, max(0.0355 * np.cos(a), 0.0)) for a in angle)
    parts = [
        _wrapped(
            ((-0.0359, 0.0), *outline),
            _skin((238, 126, 12), (252, 156, 36), 4, (0.6, 0.6), (240, 150, 30)),
            "z",
        ),
        Part(
            placed(trimesh.creation.icosphere(subdivisions=1), (0.0035, 0.0035, 0.0012), (0, 0, 0.0347)),
            (96, 120, 40),
        ),
    ]
    return _thing(parts, [hull(lathe([(-0.0359, 0.007), *outline], "z", 20).vertices)])


def _sponge() -> Thing:
    """Yellow foam with a green scouring side towards +z."""
    low, high = np.array((-0.0505, -0.032, -0.0186)), np.array((0.0505, 0.0391, 0.0186))
    rng, pores = np.random.default_rng(6), []
    for _ in range(24):
        x, y = rng.uniform(low[:2] + 0.006, high[:2] - 0.006)
        size = rng.uniform(0.0012, 0.0028)
        pores.append(
            Part(
                flat(box((x - size, y - size, low[2] - 0.0002), (x + size, y + size, -0.015))), (196, 156, 22)
            )
        )
    foam = cushion(low, (*high[:2], 0.0135), 0.005)
    pad = cushion((*low[:2], 0.0115), high, 0.0034)
    return _thing(
        [Part(foam, (246, 208, 44), 0.95), Part(pad, (34, 112, 62), 0.95), *pores],
        [box(low, high)],
    )


def _thick_spoon() -> Thing:
    """The WidowX's spoon to look at; its hull is as thick as the one that SIMPLER puts among the cans."""
    spoon = _spoon()
    waist = [(x, y, z) for x in (-0.03, 0.02) for y in (-0.0178, 0.0178) for z in (-0.0085, 0.0085)]
    ridge = [(x, 0.0, z) for x in (-0.03, 0.03) for z in (-0.0135, 0.0135)]
    return _thing(list(spoon.parts), [hull(np.concatenate([spoon.pieces[0].vertices, waist, ridge]))])


def google_things() -> dict[str, Thing]:
    """Model id -> object, under the names that SIMPLER's tasks ask for."""
    label = _labels()
    return {
        "opened_coke_can": _can(-0.0690, 0.0538, label["coke"]),
        "opened_pepsi_can": _can(-0.0643, 0.0599, label["pepsi"]),
        "opened_7up_can": _can(-0.0630, 0.0590, label["7up"]),
        "opened_sprite_can": _can(-0.0643, 0.0590, label["sprite"]),
        "opened_fanta_can": _can(-0.0643, 0.0590, label["fanta"]),
        "opened_redbull_can": _can(-0.0652, 0.0669, label["redbull"], 0.0292, 0.009),
        "blue_plastic_bottle": _bottle(),
        "apple": _apple(),
        "orange": _orange(),
        "sponge": _sponge(),
        "bridge_spoon_generated_modified": _thick_spoon(),
    }
