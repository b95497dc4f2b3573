"""The WidowX 250S: its kinematics and masses as tables, a primitive body on each link, and the URDF and SRDF
made from them.

Joints, limits, masses and inertias are the manufacturer's published model (Interbotix `wx250s`, as ManiSkill
uses it). Bodies are the kit's own boxes and tubes with the outer sizes of the real links. Link frames: x
along the arm, z up when the arm is stretched out; fingers open along y.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from math import pi

import numpy as np
import trimesh

from scripts.embedded_assets import urdf as tables
from scripts.embedded_assets.shapes import Part, bevelled_box, box, flat, hull, placed, tapered_box, tube
from scripts.embedded_assets.urdf import Inertial, Joint, Look

TURN = pi - 1e-5  # half a turn, as the manufacturer limits it
JOINTS = (
    Joint("waist", "revolute", "base_link", "shoulder_link", (0, 0, 0.072), (0, 0, 1), -pi, pi, 10),
    Joint(
        "shoulder",
        "revolute",
        "shoulder_link",
        "upper_arm_link",
        (0, 0, 0.03865),
        (0, 1, 0),
        -1.8849555921538759,
        1.9896753472735358,
        20,
    ),
    Joint(
        "elbow",
        "revolute",
        "upper_arm_link",
        "upper_forearm_link",
        (0.04975, 0, 0.25),
        (0, 1, 0),
        -2.1467549799530254,
        1.6057029118347832,
        15,
    ),
    Joint(
        "forearm_roll",
        "revolute",
        "upper_forearm_link",
        "lower_forearm_link",
        (0.175, 0, 0),
        (1, 0, 0),
        -TURN,
        TURN,
        2,
    ),
    Joint(
        "wrist_angle",
        "revolute",
        "lower_forearm_link",
        "wrist_link",
        (0.075, 0, 0),
        (0, 1, 0),
        -1.7453292519943295,
        2.1467549799530254,
        5,
    ),
    Joint("wrist_rotate", "revolute", "wrist_link", "gripper_link", (0.065, 0, 0), (1, 0, 0), -TURN, TURN, 1),
    Joint("ee_arm", "fixed", "gripper_link", "ee_arm_link", (0.043, 0, 0)),
    Joint("gripper", "fixed", "ee_arm_link", "gripper_prop_link", (0.0055, 0, 0)),
    Joint("gripper_bar", "fixed", "ee_arm_link", "gripper_bar_link", (0, 0, 0)),
    Joint("ee_bar", "fixed", "gripper_bar_link", "fingers_link", (0.023, 0, 0)),
    Joint(
        "left_finger",
        "prismatic",
        "fingers_link",
        "left_finger_link",
        (0, 0, 0),
        (0, 1, 0),
        0.015,
        0.037,
        5,
        1.0,
    ),
    Joint(
        "right_finger",
        "prismatic",
        "fingers_link",
        "right_finger_link",
        (0, 0, 0),
        (0, -1, 0),
        0.015,
        0.037,
        5,
        1.0,
    ),
    Joint("ee_gripper", "fixed", "fingers_link", "ee_gripper_link", (0.027575, 0, 0)),
)

FRAME_ONLY = Inertial(0.001, (0, 0, 0), (0, 0, 0), (0.001, 0.001, 0.001, 0, 0, 0))
INERTIALS: dict[str, Inertial] = {
    "base_link": Inertial(
        0.538736,
        (-0.0380446, 0.000613892, 0.0193354),
        (0, 0, pi / 2),
        (0.002115, 0.0006921, 0.002524, -1.63503e-5, 6.998e-7, 4.642e-5),
    ),
    "shoulder_link": Inertial(
        0.480879,
        (2.23482e-5, 4.14609e-5, 0.0066287),
        (0, 0, pi / 2),
        (0.000379, 0.0005557, 0.0005889, 2.2e-9, -3.561e-7, 1.2245e-6),
    ),
    "upper_arm_link": Inertial(
        0.430811,
        (0.0171605, 2.725e-7, 0.191323),
        (0, 0, pi / 2),
        (0.003463, 0.003587, 0.0004566, -1e-10, -2e-10, 0.0004272),
    ),
    "upper_forearm_link": Inertial(
        0.234589,
        (0.107963, 0.000115876, 0),
        (0, 0, 0),
        (3.971e-5, 0.0008878, 0.000888, 2.3528e-6, 0, 0),
    ),
    "lower_forearm_link": Inertial(
        0.220991,
        (0.0374395, 0.00522252, 0),
        (pi, 0, 0),
        (6.369e-5, 0.0001677, 0.0001834, -2.292e-5, 0, 0),
    ),
    "wrist_link": Inertial(
        0.084957,
        (0.04236, -1.0663e-5, 0.010577),
        (0, 0, pi / 2),
        (3.082e-5, 2.822e-5, 3.152e-5, 1.91e-8, 2.3e-9, 2.5481e-6),
    ),
    "gripper_link": Inertial(
        0.072885,
        (0.021631, 2.516e-7, 0.01141),
        (0, 0, pi / 2),
        (2.537e-5, 1.836e-5, 1.674e-5, 0, 0, 4.34e-7),
    ),
    "ee_arm_link": FRAME_ONLY,
    "gripper_prop_link": Inertial(
        0.00434,
        (0.000846, -1.6817e-6, 4.2e-5),
        (0, 0, pi / 2),
        (5.923e-7, 1.1156e-6, 5.743e-7, 0, 3.195e-7, -4e-10),
    ),
    "gripper_bar_link": Inertial(
        0.034199,
        (0.009687, 8.177e-7, 0.004962),
        (0, 0, pi / 2),
        (7.4125e-6, 2.843e-5, 2.86e-5, -8e-10, -6e-10, -1.3889e-6),
    ),
    "fingers_link": FRAME_ONLY,
    "left_finger_link": Inertial(
        0.016246,
        (0.013816, 0, 0),
        (pi, pi, pi / 2),
        (4.731e-6, 1.5506e-6, 3.7467e-6, -4.56e-7, 0, 0),
    ),
    "right_finger_link": Inertial(
        0.016246,
        (0.013816, 0, 0),
        (0, pi, pi / 2),
        (4.731e-6, 1.5506e-6, 3.7467e-6, 4.56e-7, 0, 0),
    ),
    "ee_gripper_link": FRAME_ONLY,
}

# Neighbours whose bodies overlap by design: without these the hand would push itself apart.
TOUCHING = (
    ("base_link", "upper_arm_link"),
    ("gripper_link", "left_finger_link"),
    ("gripper_link", "right_finger_link"),
    ("gripper_bar_link", "gripper_link"),
    ("gripper_bar_link", "left_finger_link"),
    ("gripper_bar_link", "right_finger_link"),
    ("left_finger_link", "right_finger_link"),
)

BLACK, GRAPHITE, FINGER, PAD, METAL = (42, 43, 47), (62, 64, 70), (92, 95, 104), (34, 34, 37), (150, 152, 158)


def _finger(side: int) -> tuple[list[Part], list[trimesh.Trimesh]]:
    """Finger on +y (side 1) or -y (side -1): a plate that tapers to the tip, a rubber pad inside, the
    carriage it slides on.
    """
    inner, outer, tip = (
        -0.009 * side,
        0.005 * side,
        -0.006 * side,
    )  # y of the pad, of the back, of the back at the tip
    piece = hull(tapered_box((-0.012, inner, outer, 0.0145), (0.043, inner, tip, 0.0115)).vertices)
    plate = tapered_box((-0.006, -0.0075 * side, outer, 0.0135), (0.043, -0.0075 * side, tip, 0.0112))
    pad = tapered_box((0.004, inner, -0.0075 * side, 0.012), (0.0428, inner, -0.0075 * side, 0.0105))
    carriage = box(*np.sort([(-0.016, -0.009 * side, -0.012), (-0.005, 0.009 * side, 0.012)], axis=0))
    return [Part(flat(plate), FINGER), Part(flat(pad), PAD), Part(flat(carriage), GRAPHITE)], [piece]


def bodies() -> dict[str, tuple[list[Part], list[trimesh.Trimesh]]]:
    """Link -> (what it looks like, convex pieces it collides with), in the link's frame."""
    # Base and shoulder are a little slimmer than the real ones, whose rounded shapes stay just out of the
    # camera's view.
    base = box((-0.157, -0.045, 0.0), (0.045, 0.045, 0.03))
    turret, shoulder = tube(0.03, 0.0716, 0.036, "z"), tube(0.0, 0.0525, 0.034, "z")
    arm, motor = (
        box((-0.0144, -0.022, -0.0144), (0.0144, 0.022, 0.25)),
        box((-0.0144, -0.03, 0.235), (0.061, 0.03, 0.2685)),
    )
    forearm = box((-0.0144, -0.0212, -0.0212), (0.175, 0.0212, 0.0212))
    roll = box((-0.0044, -0.0245, -0.0245), (0.0862, 0.0245, 0.0245))
    wrist = box((-0.0034, -0.022, -0.02), (0.065, 0.022, 0.033))
    hand, horn = box((0.0, -0.0175, -0.0175), (0.043, 0.0175, 0.03)), tube(0.0, 0.004, 0.016)
    bar = box((0.006, -0.052, -0.0125), (0.0165, 0.052, 0.0125))
    # The hand's wings: an eight-cornered plate as wide as the bar, and two pillars that carry the bar.
    wings = hull(
        [
            (x, y, z)
            for x in (-0.0005, 0.0035)
            for y, z in [
                (0.052, 0.008),
                (0.052, -0.008),
                (-0.052, 0.008),
                (-0.052, -0.008),
                (0.022, 0.03),
                (0.022, -0.02),
                (-0.022, 0.03),
                (-0.022, -0.02),
            ]
        ]
    )
    pillars = [
        Part(flat(box((0.0035, y - 0.004, -0.006), (0.006, y + 0.004, 0.006))), METAL)
        for y in (-0.046, 0.046)
    ]
    stripe = Part(
        flat(placed(bevelled_box(0.5, 0.05), (0.012, 0.0358, 0.0483), (0.012, 0, 0.00625))), GRAPHITE
    )
    return {
        "base_link": ([Part(flat(base), BLACK), Part(turret, GRAPHITE)], [base, hull(turret.vertices)]),
        "shoulder_link": ([Part(shoulder, BLACK)], [hull(shoulder.vertices)]),
        "upper_arm_link": ([Part(flat(arm), BLACK), Part(flat(motor), GRAPHITE)], [arm, motor]),
        "upper_forearm_link": ([Part(flat(forearm), BLACK)], [forearm]),
        "lower_forearm_link": ([Part(flat(roll), GRAPHITE)], [roll]),
        "wrist_link": ([Part(flat(wrist), BLACK)], [wrist]),
        "gripper_link": ([Part(flat(hand), BLACK), stripe], [hand]),
        "gripper_prop_link": ([Part(horn, METAL)], []),
        "gripper_bar_link": (
            [Part(flat(bar), GRAPHITE), Part(flat(wings), BLACK), *pillars],
            [box((0.0, -0.052, -0.0145), (0.0286, 0.052, 0.0145))],
        ),
        "left_finger_link": _finger(1),
        "right_finger_link": _finger(-1),
    }


def urdf(collision_pieces: dict[str, int]) -> str:
    """The URDF; `collision_pieces` is link -> number of files `meshes/<link>_<n>.stl`, a link with a body
    has `meshes/<link>.glb`.
    """
    looks = {
        link: Look(((f"meshes/{link}.glb", None),), tuple(f"meshes/{link}_{n}.stl" for n in range(count)))
        for link, count in collision_pieces.items()
    }
    return tables.urdf("wx250s", JOINTS, INERTIALS, looks)


def srdf() -> str:
    """The SRDF: the pairs of links that never count as touching."""
    robot = ElementTree.Element("robot", name="wx250s")
    for first, second in TOUCHING:
        ElementTree.SubElement(robot, "disable_collisions", link1=first, link2=second, reason="Default")
    ElementTree.indent(robot)
    return ElementTree.tostring(robot, encoding="unicode") + "\n"
