"""The cabinet with three drawers: SIMPLER's own boxes (ManiSkill2_real2sim, `mk_station*.urdf`) in four
colourings.

Frame: x out of the front, z up, floor at z = 0. Handles are seen and not felt, as in the original: a drawer
is pulled by its front's upper edge. Gaps, insides and fronts have tones of their own here, so that the
drawers can be told apart in a small picture.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

import numpy as np

from scripts.embedded_assets.urdf import Joint, Tint, Vector, add_joint, add_material, text


@dataclass(frozen=True)
class Block:
    """One box: centre and size (m), the part of the colouring it has, whether things collide with it."""

    centre: Vector
    size: Vector
    role: str
    solid: bool = True

    @property
    def corners(self) -> tuple[Vector, Vector]:
        """Low and high corner (m)."""
        half = np.array(self.size) / 2
        low, high = np.array(self.centre) - half, np.array(self.centre) + half
        return (low[0], low[1], low[2]), (high[0], high[1], high[2])


BODY = (
    Block((-0.305, 0, 0.4225), (0.02, 0.615, 0.845), "side"),
    Block((0, -0.2975, 0.4225), (0.59, 0.02, 0.845), "side"),
    Block((0, 0.2975, 0.4225), (0.59, 0.02, 0.845), "side"),
    Block((0, 0, 0.855), (0.63, 0.615, 0.02), "top"),
)
DRAWER = (  # the success rule of placing the apple knows the floor as the third of the solid ones
    Block((0.305, 0, 0), (0.015, 0.615, 0.14), "front"),
    Block((-0.285, 0, -0.02), (0.02, 0.515, 0.1), "inside"),
    Block((0, 0, -0.06), (0.55, 0.515, 0.02), "inside"),
    Block((0.285, 0, -0.02), (0.02, 0.515, 0.1), "inside"),
    Block((0, -0.2675, -0.02), (0.59, 0.02, 0.1), "inside"),
    Block((0, 0.2675, -0.02), (0.59, 0.02, 0.1), "inside"),
    Block((0.3425, 0, 0.02), (0.005, 0.1, 0.005), "handle", False),
    Block((0.3325, -0.05, 0.02), (0.02, 0.005, 0.005), "handle", False),
    Block((0.3325, 0.05, 0.02), (0.02, 0.005, 0.005), "handle", False),
)
DRAWERS = {"top": 0.668, "middle": 0.423, "bottom": 0.178}  # height of the drawer's frame (m)
HANDLE: Tint = (26, 20, 18)
STATIONS: dict[str, dict[str, Tint]] = {
    "mk_station_recolor": {
        "side": (140, 106, 84),
        "top": (154, 119, 96),
        "front": (160, 124, 100),
        "inside": (86, 62, 48),
    },
    "mk_station": {
        "side": (150, 138, 128),
        "top": (206, 190, 170),
        "front": (172, 158, 146),
        "inside": (96, 86, 78),
    },
    "mk_station2": {
        "side": (118, 82, 62),
        "top": (134, 94, 72),
        "front": (146, 104, 80),
        "inside": (66, 46, 36),
    },
    "mk_station3": {
        "side": (196, 198, 202),
        "top": (70, 76, 86),
        "front": (218, 220, 224),
        "inside": (120, 124, 130),
    },
}


def cabinet_urdf(station: str) -> str:
    """The cabinet in one of the colourings of `STATIONS`; without inertials its mass follows from density
    1000, as the original's does.
    """
    tints = STATIONS[station] | {"handle": HANDLE}
    robot = ElementTree.Element("robot", name=station)
    _link(robot, "body", BODY, tints)
    for name, height in DRAWERS.items():
        _link(robot, f"{name}_drawer", DRAWER, tints)
        joint = f"{name}_drawer_joint"
        add_joint(
            robot, Joint(joint, "prismatic", "body", f"{name}_drawer", (0, 0, height), (1, 0, 0), 0, 0.5)
        )
    ElementTree.indent(robot)
    return ElementTree.tostring(robot, encoding="unicode") + "\n"


def _link(robot: ElementTree.Element, name: str, blocks: tuple[Block, ...], tints: dict[str, Tint]) -> None:
    link = ElementTree.SubElement(robot, "link", name=name)
    for block in blocks:
        for tag in ("visual", "collision") if block.solid else ("visual",):
            element = ElementTree.SubElement(link, tag)
            ElementTree.SubElement(element, "origin", xyz=text(block.centre), rpy="0 0 0")
            ElementTree.SubElement(ElementTree.SubElement(element, "geometry"), "box", size=text(block.size))
            if tag == "visual":
                add_material(element, tints[block.role])
