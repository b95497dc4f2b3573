"""A robot as tables (joints, masses) and the URDF made from them."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import pi

import numpy as np

Vector = tuple[float, float, float]
Tint = tuple[int, int, int]  # sRGB, 0 to 255


@dataclass(frozen=True)
class Joint:
    """One joint: origin of the child in the parent (m), axis, limits (rad or m), effort (N m or N), turn of
    the child in the parent (roll, pitch, yaw, rad).
    """

    name: str
    kind: str
    parent: str
    child: str
    origin: Vector
    axis: Vector = (1, 0, 0)
    lower: float = 0.0
    upper: float = 0.0
    effort: float = 0.0
    velocity: float = pi
    turn: Vector = (0, 0, 0)


@dataclass(frozen=True)
class Inertial:
    """Mass (kg); centre of mass (m) and its frame's roll, pitch, yaw (rad); ixx, iyy, izz, ixy, ixz, iyz
    (kg m2) in that frame.
    """

    mass: float
    centre: Vector
    turn: Vector
    moments: tuple[float, ...]


@dataclass(frozen=True)
class Look:
    """Files that a link is seen by, with the colour that replaces theirs, and files it collides with."""

    visuals: tuple[tuple[str, Tint | None], ...]
    collisions: tuple[str, ...]


def urdf(
    name: str, joints: Iterable[Joint], inertials: Mapping[str, Inertial | None], looks: Mapping[str, Look]
) -> str:
    """The URDF of the links of `inertials`; None leaves a link's mass to the loader."""
    robot = ElementTree.Element("robot", name=name)
    for link, inertial in inertials.items():
        element = ElementTree.SubElement(robot, "link", name=link)
        look = looks.get(link, Look((), ()))
        for file, tint in look.visuals:
            visual = _mesh(element, "visual", file)
            if tint is not None:
                add_material(visual, tint)
        for file in look.collisions:
            _mesh(element, "collision", file)
        if inertial is not None:
            _inertial(element, inertial)
    for joint in joints:
        add_joint(robot, joint)
    ElementTree.indent(robot)
    return ElementTree.tostring(robot, encoding="unicode") + "\n"


def add_material(visual: ElementTree.Element, tint: Tint) -> None:
    """Append a colour; SAPIEN takes it as linear."""
    linear = (np.array(tint) / 255) ** 2.2
    material = ElementTree.SubElement(visual, "material", name="_".join(map(str, tint)))
    ElementTree.SubElement(material, "color", rgba=" ".join(f"{c:.4f}" for c in [*linear, 1]))


def _mesh(link: ElementTree.Element, tag: str, file: str) -> ElementTree.Element:
    element = ElementTree.SubElement(link, tag)
    ElementTree.SubElement(ElementTree.SubElement(element, "geometry"), "mesh", filename=file)
    return element


def _inertial(link: ElementTree.Element, inertial: Inertial) -> None:
    element = ElementTree.SubElement(link, "inertial")
    ElementTree.SubElement(element, "origin", xyz=text(inertial.centre), rpy=text(inertial.turn))
    ElementTree.SubElement(element, "mass", value=f"{inertial.mass:.12g}")
    ixx, iyy, izz, ixy, ixz, iyz = inertial.moments
    moments = {"ixx": ixx, "ixy": ixy, "ixz": ixz, "iyy": iyy, "iyz": iyz, "izz": izz}
    ElementTree.SubElement(element, "inertia", {name: f"{value:.12g}" for name, value in moments.items()})


def add_joint(robot: ElementTree.Element, joint: Joint) -> None:
    """Append a joint."""
    element = ElementTree.SubElement(robot, "joint", name=joint.name, type=joint.kind)
    ElementTree.SubElement(element, "origin", xyz=text(joint.origin), rpy=text(joint.turn))
    ElementTree.SubElement(element, "parent", link=joint.parent)
    ElementTree.SubElement(element, "child", link=joint.child)
    ElementTree.SubElement(element, "axis", xyz=text(joint.axis))
    if joint.kind != "fixed":
        names = ("lower", "upper", "effort", "velocity")
        limits = {name: f"{getattr(joint, name):.16g}" for name in names}
        ElementTree.SubElement(element, "limit", limits)


def text(values: Iterable[float]) -> str:
    """Numbers as URDF attributes have them."""
    return " ".join(f"{value:.12g}" for value in values)
