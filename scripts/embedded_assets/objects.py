"""The things on the table and in the sink: how each looks, what it collides with, and the numbers ManiSkill's
success rule reads.

Origins, sizes and densities are those of SIMPLER's own objects (ManiSkill2_real2sim,
`custom/info_bridge_custom*.json`): the start grids and the success rule assume them. Shapes and colours are
the kit's own, chosen so that each thing is told at a glance in a picture of 160x120.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray

from scripts.embedded_assets.shapes import (
    Colour,
    Part,
    bevelled_box,
    box,
    ellipsoid_points,
    flat,
    hull,
    lathe,
    placed,
)

ORANGE, LEAF, WHITE, WELL, BLUE = (
    (232, 106, 20),
    (62, 140, 44),
    (188, 193, 202),
    (168, 176, 190),
    (62, 104, 186),
)
STEEL, STEEL_DARK, LIME = (205, 209, 214), (150, 156, 164), (92, 170, 48)
PURPLE, CAP, STEM = (
    (150, 84, 190),
    (96, 178, 72),
    (120, 168, 78),
)  # paler than they look: the sink is lit dimly

# Profiles along x: (position, radius) in metres.
CARROT = (
    (-0.0575, 0.0),
    (-0.055, 0.0035),
    (-0.035, 0.009),
    (-0.012, 0.014),
    (0.012, 0.0165),
    (0.032, 0.0165),
    (0.039, 0.013),
    (0.041, 0.0),
)
EGGPLANT = (
    (-0.036, 0.0),
    (-0.028, 0.0105),
    (-0.014, 0.0145),
    (0.004, 0.0182),
    (0.018, 0.0178),
    (0.028, 0.0125),
    (0.034, 0.0),
)
HANDLE = ((-0.068, 0.0), (-0.064, 0.0075), (-0.05, 0.0108), (-0.004, 0.0108), (0.015, 0.0075), (0.034, 0.004))
BOWL_CENTRE, BOWL_RADII = (0.0505, 0.0, -0.004), (0.0225, 0.0178, 0.006)
# Profile along z, from the underside over the rim to the well.
PLATE = ((0.0, 0.034), (0.005, 0.055), (0.006, 0.055), (0.002, 0.036))


@dataclass(frozen=True)
class SinkBox:
    """One box of the sink, in the sink's frame (m): drawn, painted and collided with."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    colour: Colour


SINK_ORIGIN = (-0.16, 0.13, 0.88)  # where ManiSkill puts the sink, world frame
BASIN, BASKET = (164, 198, 208), (240, 202, 60)
SINK = (
    SinkBox((-0.04, -0.04, 0.0), (0.115, 0.165, 0.036), BASIN),  # basin floor
    SinkBox((-0.04, -0.155, 0.0), (0.10, -0.05, 0.044), BASKET),  # basket floor
    # The basket's four sides come before the ledge: where faces coincide the first is what is painted.
    SinkBox((-0.05, -0.165, 0.044), (-0.04, -0.04, 0.096), BASKET),
    SinkBox((0.10, -0.165, 0.044), (0.11, -0.04, 0.096), BASKET),
    SinkBox((-0.04, -0.165, 0.044), (0.10, -0.155, 0.096), BASKET),
    SinkBox((-0.04, -0.05, 0.044), (0.10, -0.04, 0.096), BASKET),
    # The ledge is low all around: at the basket's height its near side would hide the eggplant from the
    # camera.
    SinkBox((-0.135, -0.2, 0.0), (-0.04, 0.195, 0.07), BASIN),  # behind
    SinkBox((-0.04, -0.2, 0.0), (0.115, -0.155, 0.07), BASIN),  # left of the basket
    SinkBox((-0.04, -0.05, 0.0), (0.115, -0.025, 0.07), BASIN),  # between basket and basin
    SinkBox((-0.04, 0.165, 0.0), (0.115, 0.195, 0.07), BASIN),  # right of the basin
    SinkBox((0.10, -0.155, 0.0), (0.115, -0.05, 0.07), BASIN),  # in front of the basket
    SinkBox((0.115, -0.2, 0.0), (0.135, 0.195, 0.07), BASIN),  # near
)


@dataclass(frozen=True)
class Thing:
    """One object of the pack: visual parts, convex collision pieces, half sizes of the bounding box (m),
    density (kg/m3).
    """

    parts: tuple[Part, ...]
    pieces: tuple[trimesh.Trimesh, ...]
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    density: float

    def info(self) -> dict[str, Any]:
        """The object's entry in ManiSkill's info JSON. Only the success rule reads `bbox`; without `scales`
        the task cannot be made.
        """
        return {
            "bbox": {"min": list(self.low), "max": list(self.high)},
            "scales": [1.0],
            "density": self.density,
        }


def _thing(
    parts: list[Part], pieces: list[trimesh.Trimesh], half: tuple[float, float, float], density: float
) -> Thing:
    x, y, z = half
    return Thing(tuple(parts), tuple(pieces), (-x, -y, -z), half, density)


def _on_a_facet(profile: tuple[tuple[float, float], ...], sides: int) -> trimesh.Trimesh:
    """Hull of a lathe with few sides and one of them straight down, so that the thing lies where it is put
    instead of rolling away.
    """
    return hull(placed(lathe(profile, sections=sides), turn=(np.pi / sides, 0, 0)).vertices)


def _carrot() -> Thing:
    leaves = [
        Part(
            placed(
                trimesh.creation.icosphere(subdivisions=2),
                (0.014, 0.004, 0.004),
                (0.051, y, z),
                (0, -z * 45, y * 60),
            ),
            LEAF,
        )
        for y, z in ((0.0, 0.0), (0.008, 0.002), (-0.008, 0.002), (0.002, 0.007))
    ]
    return _thing(
        [Part(lathe(CARROT), ORANGE), *leaves], [_on_a_facet(CARROT, 8)], (0.0575, 0.016, 0.019), 700
    )


def _plate() -> Thing:
    under, rim_low, rim, well = PLATE
    parts = [
        Part(lathe([under, rim_low, rim], "z", 48), WHITE),
        Part(lathe([rim, (0.0051, 0.051)], "z", 48), BLUE),
        Part(lathe([(0.0051, 0.051), well], "z", 48), WHITE),
        Part(lathe([well, (0.0018, 0.0)], "z", 48), WELL),
    ]
    return _thing(parts, [hull(lathe(PLATE[:3], "z", 32).vertices)], (0.055, 0.055, 0.003), 1000)


def _spoon() -> Thing:
    """Bowl towards +x: at the grid's first configuration the bowl is then on the camera's side of the finger,
    in full view.
    """
    outside = placed(
        lathe([(-1.0, 0.0), (-0.85, 0.55), (-0.4, 0.85), (0.6, 1.0)], "z"), BOWL_RADII, BOWL_CENTRE
    )
    inside = placed(lathe([(0.6, 1.0), (0.5, 0.9), (-0.3, 0.62), (-0.6, 0.0)], "z"), BOWL_RADII, BOWL_CENTRE)
    # One hull over bowl and handle, a little wider still where it is held: around a narrow handle the
    # fingers, whose tips rub on the table, stall or
    # close to their limit before they press.
    waist = [(0.0, side * 0.0162, -0.003) for side in (-1, 1)]
    piece = hull(
        np.concatenate([ellipsoid_points(BOWL_CENTRE, BOWL_RADII, 1), _on_a_facet(HANDLE, 8).vertices, waist])
    )
    return _thing(
        [Part(outside, STEEL, 0.4), Part(inside, STEEL_DARK, 0.4), Part(lathe(HANDLE), LIME, 0.5)],
        [piece],
        (0.07, 0.0173, 0.013021),
        1200,
    )


def _towel_texture() -> NDArray[np.uint8]:
    """Light blue terry cloth with two pairs of white stripes; uint8 (64, 64, 3)."""
    cloth = np.full((64, 64, 3), (116, 170, 214), dtype=float)
    for start, end in ((7, 10), (12, 14), (50, 52), (54, 57)):
        cloth[start:end] = (238, 242, 246)
    return (cloth + np.random.default_rng(5).normal(0, 5, (64, 64, 1))).clip(0, 255).astype(np.uint8)


def _towel() -> Thing:
    side = np.linspace(-1, 1, 25)
    u, v = np.meshgrid(side, side, indexing="ij")
    swell = ((1 - u**8) * (1 - v**8)) ** 0.25  # 0 on the rim, 1 inside: a folded cloth has no sharp edge
    top = np.stack(
        [u * 0.05, v * 0.05, -0.004 + swell * (0.0086 + 0.0004 * np.sin(9 * u + 2 * v))], axis=-1
    ).reshape(-1, 3)
    corner = (np.arange(24)[:, None] * 25 + np.arange(24)).reshape(-1, 1)
    faces = np.concatenate([corner + np.array([0, 25, 26]), corner + np.array([0, 26, 1])])
    cloth = trimesh.Trimesh(
        top,
        faces,
        process=False,
        vertex_attributes={"uv": np.stack([u, v], axis=-1).reshape(-1, 2) / 2 + 0.5},
    )
    foot = Part(flat(box((-0.0495, -0.0495, -0.005), (0.0495, 0.0495, -0.004))), (96, 146, 190))
    return _thing(
        [Part(cloth, WHITE, 0.95, _towel_texture()), foot],
        [box((-0.05, -0.05, -0.005), (0.05, 0.05, 0.005))],
        (0.05, 0.05, 0.005),
        330,
    )


def _cube(colour: Colour) -> Thing:
    return _thing(
        [Part(flat(bevelled_box(0.015, 0.0012)), colour)],
        [box([-0.015] * 3, [0.015] * 3)],
        (0.015, 0.015, 0.015),
        1000,
    )


def _eggplant() -> Thing:
    cap = [
        Part(
            lathe([(-0.0385, 0.0), (-0.0375, 0.0062), (-0.0285, 0.0118), (-0.0225, 0.0134), (-0.0225, 0.0)]),
            CAP,
        ),
        Part(lathe([(-0.0465, 0.0), (-0.046, 0.003), (-0.037, 0.0035)]), STEM),
    ]
    cap += [
        Part(
            placed(
                trimesh.creation.icosphere(subdivisions=2),
                (0.008, 0.0045, 0.0022),
                (-0.019, 0.0127 * np.cos(angle), 0.0127 * np.sin(angle)),
                (angle - np.pi / 2, 0, 0),
            ),
            CAP,
        )
        for angle in np.arange(5) * 2 * np.pi / 5
    ]
    return _thing(
        [Part(lathe(EGGPLANT), PURPLE, 0.3), *cap], [_on_a_facet(EGGPLANT, 10)], (0.03915, 0.0187, 0.019), 400
    )


def _sink() -> Thing:
    parts = [Part(flat(box(b.low, b.high)), b.colour) for b in SINK]
    return Thing(
        tuple(parts),
        tuple(box(b.low, b.high) for b in SINK),
        (-0.1345, -0.1965, 0.0),
        (0.1345, 0.1965, 0.115),
        100_000,
    )


def _target_plane() -> Thing:
    """Stands for the inside of the basket in the success rule; never drawn in the task's own picture."""
    half = (0.065, 0.04, 0.001)
    plane = box(-np.array(half), half)
    return _thing([Part(flat(plane), BASKET)], [plane], half, 100_000)


@cache
def things() -> dict[str, dict[str, Thing]]:
    """Info file name -> model id -> object, under the names ManiSkill's four classes ask for."""
    return {
        "info_bridge_custom_v0.json": {
            "bridge_carrot_generated_modified": _carrot(),
            "bridge_plate_objaverse_larger": _plate(),
            "bridge_spoon_generated_modified": _spoon(),
            "table_cloth_generated_shorter": _towel(),
            "eggplant": _eggplant(),
            "sink": _sink(),
            "dummy_sink_target_plane": _target_plane(),
        },
        "info_bridge_custom_baked_tex_v0.json": {
            "baked_green_cube_3cm": _cube((44, 150, 62)),
            "baked_yellow_cube_3cm": _cube((242, 200, 36)),
        },
    }
