"""The shipped asset pack: the same each time, the WidowX's kinematics, and four twins that run and can
be solved on it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from refinevla_kit.errors import KitError
from refinevla_kit.simulator.geometry import project
from refinevla_kit.simulator.maniskill import missing_files, resolve_assets
from refinevla_kit.tasks import WIDOWX_TASKS, Task, find_task
from scripts.embedded_assets.pack import generate

BRIDGE, WIDOWX = Path("data/tasks/bridge_v2_real2sim_dataset"), Path("data/robots/widowx")

# Half sizes of the bounding boxes (m), density (kg/m3) and number of convex pieces.
THINGS = {
    "bridge_carrot_generated_modified": ((0.0575, 0.016, 0.019), 700, 1),
    "bridge_plate_objaverse_larger": ((0.055, 0.055, 0.003), 1000, 1),
    "bridge_spoon_generated_modified": ((0.07, 0.0173, 0.013021), 1200, 1),
    "table_cloth_generated_shorter": ((0.05, 0.05, 0.005), 330, 1),
    "eggplant": ((0.03915, 0.0187, 0.019), 400, 1),
    "dummy_sink_target_plane": ((0.065, 0.04, 0.001), 100_000, 1),
    "baked_green_cube_3cm": ((0.015, 0.015, 0.015), 1000, 1),
    "baked_yellow_cube_3cm": ((0.015, 0.015, 0.015), 1000, 1),
}
SINK_PIECES = 12

# Joint angles at which an episode starts (ManiSkill, bridge_dataset_eval/base_env.py), and the tool's
# position (m) in the robot's base that
# ManiSkill then reports with SIMPLER's own URDF.
STARTS = {
    "table": (
        (-0.01840777, 0.0398835, 0.22242722, -0.00460194, 1.36524296, 0.00153398),
        (0.29207, -0.00609, 0.13532),
    ),
    "sink": (
        (-0.2600599, -0.12875618, 0.04461369, -0.00652761, 1.7033415, -0.26983038),
        (0.24972, -0.06751, 0.22759),
    ),
}


@pytest.fixture(scope="module")
def pack() -> Path:
    """The shipped one."""
    return resolve_assets("embedded")


def test_generated_again_it_is_the_same(pack: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    command = [sys.executable, "-m", "scripts.embedded_assets.pack", str(again)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "7"}, cwd=pack.parents[1])
    names = [sorted(str(path.relative_to(root)) for path in root.rglob("*.*")) for root in (pack, again)]
    assert names[0] == names[1]
    assert [name for name in names[0] if not _alike(pack / name, again / name)] == []


def _alike(shipped: Path, made: Path) -> bool:
    """The same bytes; but processors round sines and products otherwise in the last digit, so a picture may
    be one of 255 steps off, and a mesh a micrometre.
    """
    kept, new = shipped.read_bytes(), made.read_bytes()
    if kept == new:
        return True
    if shipped.suffix == ".png":
        shown = [np.asarray(Image.open(path)).astype(int) for path in (shipped, made)]
        return shown[0].shape == shown[1].shape and np.abs(shown[0] - shown[1]).max() <= 1
    if shipped.suffix != ".glb" or len(kept) != len(new):
        return False
    header = 20 + int.from_bytes(kept[12:16], "little")  # the JSON that says what the numbers are
    numbers = [np.frombuffer(content[header + 8 :], "<f4") for content in (kept, new)]
    return kept[:header] == new[:header] and np.allclose(*numbers, rtol=0, atol=1e-6, equal_nan=True)


def test_generating_a_pack_never_replaces_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(KitError, match="is no asset pack"):
        generate(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep me"


def test_complete_and_small(pack: Path) -> None:
    assert missing_files(pack) == []
    assert sum(file.stat().st_size for file in pack.rglob("*") if file.is_file()) < 4_500_000


def test_info_files_hold_what_the_success_rule_reads(pack: Path) -> None:
    info = {}
    for name in ("info_bridge_custom_v0.json", "info_bridge_custom_baked_tex_v0.json"):
        info |= json.loads((pack / BRIDGE / "custom" / name).read_text())
    assert info.keys() == THINGS.keys() | {"sink"}
    for name, (half, density, _) in THINGS.items():
        assert (info[name]["bbox"]["max"], info[name]["bbox"]["min"]) == (
            list(half),
            [-size for size in half],
        )
        assert (info[name]["density"], info[name]["scales"]) == (density, [1.0])


@pytest.mark.parametrize("name", [*THINGS, "sink"])
def test_collision_file_is_read_as_convex_pieces(pack: Path, name: str) -> None:
    import sapien

    file = pack / BRIDGE / "custom/models" / name / "collision.obj"
    expected = SINK_PIECES if name == "sink" else THINGS[name][2]
    meshes = [piece for mesh in trimesh.load_scene(file).geometry.values() for piece in mesh.split()]
    assert len(meshes) == expected
    assert all(mesh.is_watertight and mesh.is_convex and mesh.volume > 0 for mesh in meshes)
    builder = sapien.Scene([sapien.physx.PhysxCpuSystem()]).create_actor_builder()
    builder.add_multiple_convex_collisions_from_file(str(file))
    body = builder.build_kinematic().find_component_by_type(sapien.physx.PhysxRigidDynamicComponent)
    assert len(body.collision_shapes) == expected


def test_visuals_face_outwards_and_fit_their_collision_pieces(pack: Path) -> None:
    for model in (pack / BRIDGE / "custom/models").iterdir():
        seen = trimesh.load_scene(model / "textured.glb")
        touched = trimesh.load(model / "collision.obj", force="mesh")
        for mesh in seen.geometry.values():
            mesh.merge_vertices(merge_tex=True, merge_norm=True)
            if mesh.is_watertight:
                assert mesh.volume > 0, model.name
        assert np.abs(seen.bounds - touched.bounds).max() < 0.025, (
            model.name
        )  # leaves and stems, at the ends, are for the eye alone


@pytest.mark.parametrize("start", STARTS)
def test_tool_is_where_the_real_arm_has_it(pack: Path, start: str) -> None:
    angles, position = STARTS[start]
    tool = forward_kinematics(pack / WIDOWX / "wx250s.urdf", angles)
    np.testing.assert_allclose(tool[:3, 3], position, atol=2e-5)
    assert tool[2, 0] < -0.99  # the tool's x axis points down


def forward_kinematics(urdf: Path, angles: tuple[float, ...]) -> np.ndarray:
    """Pose (4, 4) of ee_gripper_link in base_link at the six arm angles (rad), from the URDF alone."""
    joints = {
        joint.find("child").get("link"): joint for joint in ElementTree.parse(urdf).getroot().iter("joint")
    }  # type: ignore[union-attr]
    chain, link = [], "ee_gripper_link"
    while link in joints:
        chain.append(joints[link])
        link = joints[link].find("parent").get("link")  # type: ignore[union-attr,assignment]
    pose, turns = np.eye(4), iter(angles)
    for joint in reversed(chain):
        origin, axis = (
            np.array([float(x) for x in joint.find(tag).get("xyz").split()]) for tag in ("origin", "axis")
        )  # type: ignore[union-attr]
        pose = pose @ trimesh.transformations.translation_matrix(origin)
        if joint.get("type") == "revolute":
            pose = pose @ trimesh.transformations.rotation_matrix(next(turns), axis)
    return pose


@pytest.mark.assets
def test_robot_tables_agree_with_the_original(pack: Path, official_assets: Path) -> None:
    ours, theirs = (numbers(root / WIDOWX / "wx250s.urdf") for root in (pack, official_assets))
    assert ours.keys() == theirs.keys()
    for key, values in theirs.items():
        np.testing.assert_allclose(ours[key], values, rtol=1e-6, atol=1e-9, err_msg=key)


def numbers(urdf: Path) -> dict[str, list[float]]:
    """All kinematic and inertial numbers of a URDF by element and attribute."""
    found: dict[str, list[float]] = {}
    for element in ElementTree.parse(urdf).getroot():
        found |= {
            f"{element.get('name')}/origin/{attribute}": [0.0] * 3 for attribute in ("xyz", "rpy")
        }  # what leaving it out means
        for child in [c for c in element if c.tag in ("origin", "axis", "limit")] + list(
            element.iterfind("inertial/*")
        ):
            for attribute, text in child.attrib.items():
                found[f"{element.get('name')}/{child.tag}/{attribute}"] = [float(x) for x in text.split()]
    return found


def test_painted_sink_lies_where_the_camera_sees_the_real_boxes(pack: Path) -> None:
    picture = np.asarray(Image.open(pack / BRIDGE / "real_inpainting/bridge_sink.png")).astype(int)
    rims = {"near basket rim": (-0.055, 0.03, 0.976), "far basket rim": (-0.205, 0.03, 0.976)}
    points = rims | {"basin": (-0.10, 0.15, 0.916), "ledge": (-0.03, 0.2, 0.95)}
    for name, point in points.items():
        column, row = project(find_task("widowx_put_eggplant_in_basket"), np.array([point]), 640, 480)[
            0
        ].astype(int)
        red, _, blue = picture[row, column]
        assert (red > blue + 60) if name in rims else (blue > red + 10), name


@pytest.mark.parametrize("task", WIDOWX_TASKS, ids=lambda task: task.name)
def test_twin_runs_and_is_solved_on_the_pack(pack: Path, task: Task) -> None:
    from refinevla_kit.simulator import make
    from refinevla_kit.simulator.demonstrator import Demonstrator

    simulator, demonstrator = (
        make(task, assets=pack, width=160, height=120, privileged=True),
        Demonstrator(task),
    )
    try:
        observation = simulator.reset(0)
        assert observation.state is not None
        assert np.linalg.norm(observation.state.source[:2] - simulator.reset(0).state.source[:2]) == 0  # type: ignore[union-attr]
        masks = simulator.masks()
        assert masks[task.source].sum() > 60 and masks["gripper"].sum() > 400
        inside = observation.image[masks[task.source]].mean(axis=0)
        around = observation.image[masks["background"]].mean(axis=0)
        assert np.abs(inside - around).max() > 40  # stands out from what is behind it
        succeeded = False
        for _ in range(task.max_steps):
            result = simulator.step(demonstrator.act(observation.state))
            observation, succeeded = result.observation, succeeded or result.success
            if succeeded or result.done:
                break
        assert succeeded
    finally:
        simulator.close()
