"""The Google Robot: its kinematics and masses as tables, a primitive body on each link, and a URDF for each
colouring that SIMPLER gives it.

Joints, limits, masses and outer sizes are those of SIMPLER's static model (ManiSkill2_real2sim,
`googlerobot_description`): 11 joints move, the wheels stand. Bodies are the kit's own rods, boxes and wedges.
Link frames: z along the arm; the joints of shoulder, elbow and wrist turn about y; a finger's inner side
looks along its -y.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import trimesh

from scripts.embedded_assets.shapes import box, cushion, flat, hull, placed, rod, tube
from scripts.embedded_assets.urdf import Inertial, Joint, Look, Tint, Vector, urdf

Meshes = list[trimesh.Trimesh]
NAME = "google_robot_meta_sim_fix_wheel_fix_fingertip"
LEFT, RIGHT = "left", "right"
Z, Y, X = (0, 0, 1), (0, 1, 0), (1, 0, 0)


def _turning(
    name: str, parent: str, origin: Vector, axis: Vector, lower: float, upper: float, turn: Vector = (0, 0, 0)
) -> Joint:
    return Joint(
        f"joint_{name}", "revolute", f"link_{parent}", f"link_{name}", origin, axis, lower, upper, 10, 3, turn
    )


def _fixed(name: str, parent: str, origin: Vector, turn: Vector = (0, 0, 0)) -> Joint:
    return Joint(f"joint_{name}", "fixed", f"link_{parent}", f"link_{name}", origin, turn=turn)


def _finger_joints(side: str, sign: int) -> tuple[Joint, ...]:
    turn = (-1.15, 0, 0 if sign > 0 else 3.14159265359)
    knuckle = (0, 0.025 * sign, 0.05861)
    return (
        _turning(f"finger_{side}", "gripper", knuckle, X, -0.0001, 1.3, turn),
        _fixed(f"finger_tip_{side}", f"finger_{side}", (0, -0.01035673, 0.06415561), (0.45, 0, 0)),
        _fixed(f"finger_nail_{side}", f"finger_tip_{side}", (0, 0, 0.0463)),
    )


JOINTS = (
    _turning("torso", "base", (0, 0, 0.5945), Z, -4.49, 1.35),
    _turning("shoulder", "torso", (0, -0.16728853, 0.113), Y, -2.66, 3.18),
    _turning("bicep", "shoulder", (0, 0.002289, 0.21502853), Z, -2.13, 3.71),
    _turning("elbow", "bicep", (0, -0.064, 0.1849715), Y, -2.05, 3.79),
    _turning("forearm", "elbow", (0, -0.101, 0.0915), Z, -2.92, 2.92),
    _turning("wrist", "forearm", (0, -0.00604, 0.2735), Y, -1.79, 1.79),
    _turning("gripper", "wrist", (0, 0.0060384, 0.10911), Z, -4.49, 1.35),
    *_finger_joints(RIGHT, -1),
    *_finger_joints(LEFT, 1),
    _fixed(
        "gripper_tcp",
        "gripper",
        (0.0043374896, 0.0018852949, 0.16353297),
        (-0.00132888, -0.00443973, -0.00086865),
    ),
    _turning("head_pan", "base", (0, 0, 1.16902), Z, -3.79, 2.22),
    _turning("head_tilt", "head_pan", (0.07181, 0, 0.11848), Y, -1.17, 1.17),
    _fixed("camera", "head_tilt", (0.10488, 0, 0), (-pi / 2, 0, -pi / 2)),
    _fixed("wheel_left", "base", (0, 0.18333, 0)),
    _fixed("wheel_right", "base", (0, -0.18333, 0)),
    _fixed("rear_wheel_left", "base", (-0.338371, 0.094989, -0.029296)),
    _fixed("rear_wheel_right", "base", (-0.338371, -0.094989, -0.029296)),
)


def _inertial(mass: float, centre: Vector, *moments: float) -> Inertial:
    """ixx, iyy, izz, then ixy, ixz, iyz where they are not small."""
    return Inertial(mass, centre, (0, 0, 0), (*moments, *[0.0] * (6 - len(moments))))


_WHEEL = _inertial(0.22755, (0, 0, 0), 0.000226, 0.000434, 0.000226)
_REAR_WHEEL = _inertial(0.09968, (0, 0, 0), 3.969e-5, 7.117e-5, 3.969e-5)
_FINGER = _inertial(0.03332, (0, 0.0004, 0.0372), 9.321e-6, 6.085e-6, 3.236e-6, 0, 0, 1.578e-6)
_TIP = _inertial(0.01619, (0, 0.0004, 0.0216), 1.066e-5, 1.147e-5, 1.78e-6)
_NAIL = _inertial(3.7e-5, (0, -0.001, 0), 1e-6, 1e-6, 1e-6)

INERTIALS: dict[str, Inertial | None] = {
    "link_base": _inertial(52.91, (-0.1425, 0.0023, 0.1301), 2.7832, 3.2494, 1.3360, 0, -0.5447),
    "link_wheel_left": _WHEEL,
    "link_wheel_right": _WHEEL,
    "link_rear_wheel_left": _REAR_WHEEL,
    "link_rear_wheel_right": _REAR_WHEEL,
    "link_torso": _inertial(1.8957, (-0.0035, -0.0607, 0.1118), 0.013308, 0.006705, 0.011460),
    "link_shoulder": _inertial(1.8472, (0.0011, 0.0048, 0.1049), 0.013975, 0.014249, 0.002947),
    "link_bicep": _inertial(1.2474, (0.0004, -0.0211, 0.1352), 0.007047, 0.006887, 0.001854, 0, 0, 0.00093),
    "link_elbow": _inertial(0.6464, (0.0017, -0.0766, 0.0367), 0.001787, 0.001185, 0.001317, 0, 0, 0.00046),
    "link_forearm": _inertial(0.7244, (0, 0.0151, 0.1818), 0.007211, 0.007158, 0.000592, 0, 0, -0.00051),
    "link_wrist": _inertial(0.5019, (-0.0003, -0.0073, 0.0537), 0.001143, 0.001070, 0.000427, 0, 0, -0.00026),
    "link_gripper": _inertial(0.4051, (0.0004, 0.0001, 0.0379), 0.000292, 0.000264, 0.000311),
    "link_gripper_tcp": None,
    "link_finger_right": _FINGER,
    "link_finger_tip_right": _TIP,
    "link_finger_nail_right": _NAIL,
    "link_finger_left": _FINGER,
    "link_finger_tip_left": _TIP,
    "link_finger_nail_left": _NAIL,
    "link_head_pan": _inertial(0.9634, (0.0164, -0.0006, 0.0869), 0.001997, 0.002827, 0.002408),
    "link_head_tilt": _inertial(0.8792, (0.0728, -0.0030, 0.0013), 0.003365, 0.001554, 0.004101),
    "link_camera": None,
}

SHELL, ARM, FINGER, PAD, DARK, GOLD = "shell", "arm", "finger", "pad", "dark", "gold"
_PLAIN: dict[str, Tint] = {
    SHELL: (236, 236, 238),
    ARM: (236, 236, 238),
    FINGER: (238, 220, 118),
    PAD: (206, 206, 200),
    DARK: (118, 120, 126),
    GOLD: (206, 160, 44),
}
COLOURINGS: dict[str, dict[str, Tint]] = {  # ending of the URDF's name -> colour of each role
    "": _PLAIN,
    "_recolor_tabletop_visual_matching_1": _PLAIN
    | {ARM: (226, 196, 170), FINGER: (222, 150, 76), PAD: (176, 112, 54)},
    "_recolor_tabletop_visual_matching_2": _PLAIN
    | {ARM: (224, 208, 188), FINGER: (250, 196, 104), PAD: (206, 154, 78)},
    "_recolor_cabinet_visual_matching_1": _PLAIN
    | {ARM: (188, 158, 130), FINGER: (206, 142, 78), PAD: (160, 104, 52)},
}


@dataclass(frozen=True)
class Body:
    """One shape of body: what it looks like, by role, and the convex pieces it collides with."""

    seen: dict[str, Meshes]
    pieces: Meshes


def _solid(role: str, meshes: Meshes, **details: Meshes) -> Body:
    """Meshes that are seen and collided with, and details that are only seen."""
    return Body({role: meshes, **details}, [hull(mesh.vertices) for mesh in meshes])


def _grille(centre: Vector, radius: float) -> Meshes:
    """Slots of a round vent, in a wall across x."""
    x, y, z = centre
    slots = []
    for step in (-2, -1, 0, 1, 2):
        half = radius * (1 - (step / 3) ** 2) ** 0.5
        across = y + step * radius * 0.4
        slots.append(
            flat(box((x - 0.001, across - 0.0022, z - half), (x + 0.001, across + 0.0022, z + half)))
        )
    return slots


def _arm() -> dict[str, Body]:
    torso = [rod(-0.001, 0.214, 0.078, end_radius=0.071), rod(-0.168, -0.03, 0.052, "y")]
    torso[1] = placed(torso[1], move=(0, 0, 0.113))
    shoulder = [
        rod(-0.0575, 0.081, 0.065, "y", 0.012),
        placed(rod(0, 0.218, 0.060, end_radius=0.0565), move=(0, 0.003, 0)),
    ]
    bicep = [
        rod(0, 0.19, 0.0565, end_radius=0.052),
        placed(rod(-0.067, 0.050, 0.052, "y", 0.012), move=(0, 0, 0.1845)),
    ]
    elbow = [
        rod(-0.143, 0, 0.0505, "y", 0.012),
        placed(rod(0, 0.091, 0.0465, end_radius=0.0455), move=(0, -0.1, 0)),
    ]
    forearm = [
        hull(
            [
                *rod(0, 0.03, 0.045).vertices,
                *placed(rod(0.19, 0.25, 0.029, bevel=0.012), move=(0, 0.028, 0)).vertices,
            ]
        ),
        placed(rod(-0.0135, 0.0638, 0.0402, "y", 0.010), move=(0, 0, 0.2735)),
    ]
    wrist = [rod(-0.0535, -0.002, 0.039, "y", 0.008), placed(rod(0, 0.112, 0.0403), move=(0, 0.0055, 0))]
    gripper = hull(
        [
            *cushion((-0.0490, -0.0405, 0.001), (0.0490, 0.0405, 0.046), 0.010).vertices,
            *cushion((-0.020, -0.026, 0.05), (0.020, 0.026, 0.076), 0.008).vertices,
        ]
    )
    return {
        "torso": _solid(SHELL, torso, gold=[tube(-0.002, 0.008, 0.0795, "z")]),
        "shoulder": _solid(ARM, shoulder, gold=[placed(tube(0.196, 0.203, 0.0588, "z"), move=(0, 0.003, 0))]),
        "bicep": _solid(ARM, bicep, dark=[placed(tube(-0.0675, -0.066, 0.026, "y"), move=(0, 0, 0.1845))]),
        "elbow": _solid(
            ARM,
            elbow,
            gold=[placed(tube(0.082, 0.088, 0.0468, "z"), move=(0, -0.1, 0))],
            dark=[tube(-0.1435, -0.14, 0.026, "y")],
        ),
        "forearm": _solid(ARM, forearm, dark=[placed(tube(0.06, 0.0645, 0.024, "y"), move=(0, 0, 0.2735))]),
        "wrist": _solid(
            ARM,
            wrist,
            dark=[tube(-0.0542, -0.05, 0.024, "y")],
            gold=[placed(tube(0.098, 0.106, 0.0410, "z"), move=(0, 0.0055, 0))],
        ),
        "gripper": _solid(
            ARM, [gripper], dark=_grille((0.0490, 0, 0.024), 0.013) + _grille((-0.0490, 0, 0.024), 0.013)
        ),
    }


def _ridges(
    start: float, end: float, count: int, inner: float, outer: float, half: tuple[float, float]
) -> Meshes:
    """Rubber ribs across a finger's inner side, from z `start` to `end`; half widths at both ends."""
    pitch = (end - start) / count
    ribs = []
    for number in range(count):
        low, wide = start + number * pitch, half[0] + (half[1] - half[0]) * number / max(count - 1, 1)
        ribs.append(flat(box((-wide, inner, low), (wide, outer, low + 0.62 * pitch))))
    return ribs


def _wedge(*levels: tuple[float, float, float, float]) -> trimesh.Trimesh:
    """Hull over rectangles, each (z, half width, y low, y high)."""
    return hull(
        [(side * half, y, z) for z, half, low, high in levels for side in (-1, 1) for y in (low, high)]
    )


def _hand() -> dict[str, Body]:
    # Thick at the knuckle, thin at the end; the inner side is straight: it is what presses on things.
    finger = hull(
        [
            (side * half, y, z)
            for side in (-1, 1)
            for half, y, z in (
                (0.0274, -0.0162, 0.0216),
                (0.0198, -0.0176, 0.0668),
                (0.0198, 0.0033, 0.0696),
                (0.0274, 0.0197, 0.0192),
            )
        ]
    )
    back = _wedge((0.0195, 0.0272, 0.001, 0.0195), (0.0690, 0.0198, -0.005, 0.0033))
    hinge = placed(tube(-0.0212, 0.0212, 0.0062, "x"), move=(0, -0.006, 0.068))
    tip = hull(
        [
            (side * half, y, z)
            for side in (-1, 1)
            for half, y, z in (
                (0.0212, -0.0067, -0.0029),
                (0.0119, -0.0062, 0.0380),
                (0.0119, 0.0003, 0.0451),
                (0.0212, 0.0158, -0.0010),
            )
        ]
    )
    plate = _wedge((-0.001, 0.0212, 0.0, 0.0156), (0.0445, 0.0122, -0.0035, 0.0006))
    end = _wedge((0.034, 0.0130, -0.0063, 0.002), (0.045, 0.0119, -0.0030, 0.0004))
    nail = box((-0.0075, -0.0025, -0.0016), (0.0075, 0.0002, 0.0015))
    return {
        "finger": Body(
            {
                FINGER: [flat(back), hinge],
                PAD: _ridges(0.0225, 0.066, 6, -0.0172, 0.001, (0.0250, 0.0195)),
            },
            [finger],
        ),
        "finger_tip": Body(
            {
                FINGER: [flat(plate), flat(end)],
                PAD: _ridges(0.0005, 0.034, 5, -0.0066, 0.001, (0.0195, 0.0135)),
            },
            [tip],
        ),
        "finger_nail": _solid(PAD, [nail]),
    }


def _base_and_head() -> dict[str, Body]:
    wheel, rear = rod(-0.013, 0.013, 0.065, "y", 0.004), rod(-0.011, 0.011, 0.038, "y", 0.003)
    base = [
        cushion((-0.402, -0.1885, -0.036), (0.137, 0.1885, 0.212), 0.05),
        rod(0.199, 0.249, 0.1),
        rod(0.249, 0.588, 0.0895),
        rod(0.801, 1.066, 0.071),
        rod(1.066, 1.170, 0.0588),
        cushion((0.0296, -0.0265, 1.005), (0.1055, 0.0265, 1.1015), 0.01),
    ]
    pan = [rod(0.0044, 0.154, 0.0575), cushion((-0.02, -0.054, 0.066), (0.105, 0.054, 0.154), 0.02)]
    bar = placed(rod(-0.1118, 0.1118, 0.0432, "y", 0.012), (1, 1, 1.07), (0.0773, 0, 0))
    cheeks = [cushion((-0.033, y - 0.028, -0.040), (0.09, y + 0.028, 0.040), 0.015) for y in (-0.083, 0.083)]
    # The camera looks out between two halves: no ray of it may begin inside a body.
    halves = [
        placed(rod(*ends, 0.0432, "y", 0.008), (1, 1, 1.07), (0.0773, 0, 0))
        for ends in ((-0.1118, -0.036), (0.036, 0.1118))
    ]
    neck = cushion((0.036, -0.06, -0.044), (0.075, 0.06, 0.044), 0.01)
    lenses = [flat(box((0.112, y - 0.025, -0.022), (0.1207, y + 0.025, 0.022))) for y in (-0.07, 0.07)]
    seams = [tube(0.584, 0.590, 0.0898, "z"), tube(0.801, 0.808, 0.0714, "z")]
    return {
        "base": _solid(
            SHELL, base, gold=seams, dark=[flat(box((-0.398, -0.186, -0.036), (0.134, 0.186, 0.004)))]
        ),
        "wheel": _solid(DARK, [wheel], shell=[tube(-0.0145, 0.0145, 0.03, "y")]),
        "rear_wheel": _solid(DARK, [rear]),
        "head_pan": _solid(SHELL, pan),
        "head_tilt": Body(
            {SHELL: [*halves, neck, *cheeks], DARK: lenses},
            [hull(mesh.vertices) for mesh in (bar, *cheeks)],
        ),
    }


def bodies() -> dict[str, Body]:
    """Body name -> body, in the link's frame. A body's name is the link's, less `link_` and the side."""
    return _arm() | _hand() | _base_and_head()


def robot_urdf(colouring: str, shapes: dict[str, Body]) -> str:
    """The URDF in one of the `COLOURINGS`: links are seen by `meshes/<body>.<role>.glb`, collide with the
    pieces of `meshes/<body>.obj`.
    """
    tints, looks = COLOURINGS[colouring], {}
    for link in INERTIALS:
        name = link.removeprefix("link_").removesuffix("_left").removesuffix("_right")
        if name in shapes:
            visuals = tuple((f"meshes/{name}.{role}.glb", tints[role]) for role in shapes[name].seen)
            looks[link] = Look(visuals, (f"meshes/{name}.obj",))
    return urdf(NAME, JOINTS, INERTIALS, looks)
