"""The shipped pack's Google Robot: the original's masses, sizes and joints, and scenes that can be read."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image
from scipy.ndimage import binary_dilation

from refinevla_kit.simulator.google_robot_assets import URDF
from refinevla_kit.simulator.maniskill import resolve_assets
from refinevla_kit.tasks import GOOGLE_TASKS, SETTINGS, Task

TASKS, ROBOT = Path("data/tasks/google_robot_real2sim"), Path("data/robots/googlerobot")
COLOURINGS = (
    "",
    "_recolor_tabletop_visual_matching_1",
    "_recolor_tabletop_visual_matching_2",
    "_recolor_cabinet_visual_matching_1",
)
# The original's: mass (kg) and bounding box of what collides, in the link's frame (m).
LINKS = {
    "base": (52.91, (-0.402, -0.189, -0.037), (0.138, 0.189, 1.171)),
    "torso": (1.8957, (-0.079, -0.168, -0.001), (0.079, 0.079, 0.214)),
    "shoulder": (1.8472, (-0.066, -0.058, -0.066), (0.066, 0.082, 0.218)),
    "bicep": (1.2474, (-0.057, -0.068, 0.0), (0.057, 0.057, 0.237)),
    "elbow": (0.6464, (-0.051, -0.146, -0.051), (0.051, 0.001, 0.091)),
    "forearm": (0.7244, (-0.046, -0.046, -0.001), (0.045, 0.064, 0.314)),
    "wrist": (0.5019, (-0.041, -0.054, -0.039), (0.042, 0.046, 0.112)),
    "gripper": (0.4051, (-0.049, -0.041, 0.001), (0.049, 0.041, 0.076)),
    "finger_left": (0.03332, (-0.027, -0.018, 0.019), (0.028, 0.020, 0.070)),
    "finger_right": (0.03332, (-0.027, -0.018, 0.019), (0.028, 0.020, 0.070)),
    "finger_tip_left": (0.01619, (-0.021, -0.007, -0.003), (0.021, 0.016, 0.045)),
    "finger_tip_right": (0.01619, (-0.021, -0.007, -0.003), (0.021, 0.016, 0.045)),
    "head_pan": (0.9634, (-0.059, -0.059, 0.004), (0.106, 0.059, 0.154)),
    "head_tilt": (0.8792, (-0.034, -0.112, -0.047), (0.121, 0.112, 0.046)),
}
# Sides of the bounding box (m), volume (cm3) and pieces of what collides.
THINGS = {
    "opened_coke_can": ((0.067, 0.123, 0.066), 400, 1),
    "opened_pepsi_can": ((0.067, 0.123, 0.067), 415, 1),
    "opened_7up_can": ((0.067, 0.123, 0.067), 395, 1),
    "opened_sprite_can": ((0.067, 0.123, 0.067), 405, 1),
    "opened_fanta_can": ((0.067, 0.123, 0.067), 405, 1),
    "opened_redbull_can": ((0.060, 0.133, 0.060), 366, 1),
    "blue_plastic_bottle": ((0.062, 0.204, 0.067), 593, 2),
    "apple": ((0.081, 0.081, 0.081), 280, 1),
    "orange": ((0.071, 0.071, 0.069), 187, 1),
    "sponge": ((0.101, 0.071, 0.037), 251, 1),
    "bridge_spoon_generated_modified": ((0.141, 0.036, 0.027), 67, 1),
}
TABLE_LOW, TABLE_HIGH = (-0.61, -0.0975, 0.0), (0.02, 0.5175, 0.87)
TABLES = ("google_pick_coke_can_1_v4", "google_pick_coke_can_1_v4_alt_background")
TABLES += ("google_pick_coke_can_1_v4_alt_background_2",)
TABLES += tuple(f"Baked_sc1_staging_objaverse_cabinet{n}_h870" for n in (1, 2))
# Joint angles (rad) at which an episode starts, and where the tool then is, the base at (0.35, 0.2).
START = {"torso": -0.2639457174606611, "shoulder": 0.0831913360274175, "bicep": 0.5017611504652179}
START |= {"elbow": 1.156859026208673, "forearm": 0.028583671314766423, "wrist": 1.592598203487462}
START |= {"gripper": -1.080652960128774, "finger_right": 0.0, "finger_left": 0.0}
START |= {"head_pan": -0.00285961, "head_tilt": 0.7851361}
TOOL = (-0.08938, 0.41842, 1.04092)


@pytest.fixture(scope="module")
def pack() -> Path:
    """The shipped one."""
    return resolve_assets("embedded")


@pytest.fixture(scope="module")
def scene() -> Any:
    """One for all that is loaded: what is in it does not outlive it."""
    import sapien

    renderer = sapien.render.RenderSystem(sapien.Device("cpu"))  # the simulator's: a process has one device
    return sapien.Scene([sapien.physx.PhysxCpuSystem(), renderer])


def load(scene: Any, urdf: Path) -> Any:
    """The articulation of a URDF."""
    loader = scene.create_urdf_loader()
    loader.fix_root_link, loader.load_multiple_collisions_from_file = True, True
    return loader.load(str(urdf))


@pytest.fixture(scope="module")
def robot(pack: Path, scene: Any) -> Any:
    import sapien

    robot = load(scene, pack / ROBOT / f"{URDF}.urdf")
    robot.set_root_pose(sapien.Pose([0.35, 0.2, 0.07905], [0, 0, 0, 1]))
    robot.set_qpos([START[joint.name.removeprefix("joint_")] for joint in robot.active_joints])
    return robot


def test_everything_google_is_small(pack: Path) -> None:
    files = [file for part in (TASKS, ROBOT) for file in (pack / part).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 3_000_000


def test_eleven_joints_and_the_tool_where_the_real_arm_has_it(robot: Any) -> None:
    assert {joint.name.removeprefix("joint_") for joint in robot.active_joints} == START.keys()
    tool = robot.find_link_by_name("link_gripper_tcp").entity_pose
    np.testing.assert_allclose(tool.p, TOOL, atol=2e-5)


@pytest.mark.parametrize("name", LINKS)
def test_link_weighs_and_measures_what_the_original_does(robot: Any, name: str) -> None:
    mass, low, high = LINKS[name]
    link = robot.find_link_by_name(f"link_{name}")
    assert link.mass == pytest.approx(mass, rel=1e-3)
    points = np.concatenate(
        [
            shape.vertices * shape.scale @ shape.local_pose.to_transformation_matrix()[:3, :3].T
            + shape.local_pose.p
            for shape in link.collision_shapes
        ]
    )
    np.testing.assert_allclose(points.min(axis=0), low, atol=0.003)
    np.testing.assert_allclose(points.max(axis=0), high, atol=0.003)


@pytest.mark.assets
@pytest.mark.parametrize("colouring", COLOURINGS)
def test_joints_agree_with_the_original(pack: Path, official_assets: Path, colouring: str) -> None:
    ours, theirs = (joints(root / ROBOT / f"{URDF}{colouring}.urdf") for root in (pack, official_assets))
    for name, numbers in ours.items():
        np.testing.assert_allclose(numbers, theirs[name], atol=2e-4, err_msg=name)  # the wheels; else 1e-8


def joints(urdf: Path) -> dict[str, list[float]]:
    """Child link -> origin, turn and, where it moves, axis and limits."""
    found = {}
    for joint in ElementTree.parse(urdf).getroot().iter("joint"):
        origin, axis, limit = (joint.find(tag) for tag in ("origin", "axis", "limit"))
        assert origin is not None
        texts = [origin.get("xyz", "0 0 0"), origin.get("rpy", "0 0 0")]
        if joint.get("type") == "revolute":
            assert axis is not None and limit is not None
            texts += [axis.get("xyz", ""), limit.get("lower", ""), limit.get("upper", "")]
        child = joint.find("child")
        assert child is not None
        found[child.get("link", "")] = [float(number) for text in texts for number in text.split()]
    return found


def test_each_colouring_has_its_own_arm_and_fingers(pack: Path) -> None:
    colours = set()
    for colouring in COLOURINGS:
        urdf = ElementTree.parse(pack / ROBOT / f"{URDF}{colouring}.urdf").getroot()
        seen = {
            mesh.get("filename"): material.get("name")
            for visual in urdf.iter("visual")
            for mesh, material in zip(visual.iter("mesh"), visual.iter("material"), strict=True)
        }
        assert all((pack / ROBOT / str(file)).is_file() for file in seen)
        colours.add((seen["meshes/forearm.arm.glb"], seen["meshes/finger.finger.glb"]))
    assert len(colours) == len(COLOURINGS)


@pytest.mark.parametrize("name", THINGS)
def test_thing_is_as_large_and_as_heavy_as_the_original(pack: Path, name: str) -> None:
    sides, volume, count = THINGS[name]
    folder = pack / TASKS / "custom/models" / name
    pieces = [
        piece
        for mesh in trimesh.load_scene(folder / "collision.obj").geometry.values()
        for piece in mesh.split()
    ]
    assert len(pieces) == count and all(piece.is_watertight and piece.is_convex for piece in pieces)
    whole, seen = trimesh.util.concatenate(pieces), trimesh.load_scene(folder / "textured.glb")
    # An apple's stem is seen and not felt.
    np.testing.assert_allclose(whole.extents, sides, atol=0.008 if name == "apple" else 0.004)
    assert sum(piece.volume for piece in pieces) * 1e6 == pytest.approx(
        volume, rel=0.2 if "spoon" in name else 0.09
    )
    assert np.abs(seen.bounds - whole.bounds).max() < 0.01
    for mesh in seen.geometry.values():
        mesh.merge_vertices(merge_tex=True, merge_norm=True)
        assert not mesh.is_watertight or mesh.volume > 0


@pytest.mark.parametrize("station", ["mk_station", "mk_station_recolor", "mk_station2", "mk_station3"])
def test_cabinet_is_that_of_the_original(pack: Path, scene: Any, station: str) -> None:
    import sapien

    cabinet = load(scene, pack / TASKS / "custom" / f"{station}.urdf")
    cabinet.set_qpos([0.0] * 3)
    for name, height in (("top", 0.668), ("middle", 0.423), ("bottom", 0.178)):
        drawer = cabinet.find_link_by_name(f"{name}_drawer")
        assert drawer.entity_pose.p[2] == pytest.approx(height)
        boxes = drawer.collision_shapes
        assert len(boxes) == 6  # without the handle, which is seen only
        np.testing.assert_allclose(boxes[2].half_size, (0.275, 0.2575, 0.01), atol=1e-6)  # the inner floor
        np.testing.assert_allclose(boxes[2].local_pose.p, (0, 0, -0.06), atol=1e-6)
        render = drawer.entity.find_component_by_type(sapien.render.RenderBodyComponent)
        assert len(render.render_shapes) == 9
    assert [joint.limits.ravel().tolist() for joint in cabinet.active_joints] == [[0, 0.5]] * 3


@pytest.mark.parametrize("name", TABLES)
def test_table_carries_and_the_room_keeps_off_the_robot(pack: Path, name: str) -> None:
    stage = trimesh.load(pack / TASKS / "stages" / f"{name}.glb", force="mesh")
    x, y, z = stage.vertices.T
    world = np.stack([x + 1.6616, 3.0337 - z, y], axis=1)
    on_table = ((world > np.array(TABLE_LOW) - 0.001) & (world < np.array(TABLE_HIGH) + 0.03)).all(axis=1)
    np.testing.assert_allclose(world[on_table].max(axis=0)[1:], TABLE_HIGH[1:], atol=1e-3)
    np.testing.assert_allclose(world[on_table].min(axis=0), TABLE_LOW, atol=1e-3)
    rest = world[~on_table]
    standing = rest[rest[:, 2] > 0]
    assert np.hypot(*(standing[:, :2] - (0.35, 0.2)).T).min() > 1.2  # a metre of arm
    assert rest[rest[:, 2] <= 0][:, 2].max() < 0  # the wheels stand 1 cm above z = 0


def test_photographs_are_whole_and_differ(pack: Path) -> None:
    files = sorted((pack / TASKS / "real_inpainting").glob("*.png"))
    names = {f"open_drawer_{row}{column}.png" for row in "abc" for column in "012"}
    names |= {"google_coke_can_real_eval_1.png", "google_move_near_real_eval_1.png"}
    assert {file.name for file in files} == names
    pictures = [Image.open(file) for file in files]
    assert all((picture.size, picture.mode) == ((640, 512), "RGB") for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == len(files)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("task", GOOGLE_TASKS, ids=lambda task: task.name)
def test_scene_shows_hand_and_thing(task: Task, setting: str) -> None:
    from refinevla_kit.simulator import make

    simulator = make(task, "embedded", 160, 128, setting=setting)
    try:
        image, masks = simulator.reset(4).image, simulator.masks()
    finally:
        simulator.close()
    assert masks["gripper"].sum() > 150
    thing = masks[task.source]
    assert thing.sum() > 60
    if "drawer" not in task.source:  # a drawer is as brown as its cabinet
        around = binary_dilation(thing, iterations=5) & ~thing
        apart = np.abs(image[thing] - np.median(image[around], axis=0)).max(axis=1)
        assert (apart > 40).mean() > 0.6
