"""The original SimplerEnv behind the contract: what it is made from, checked anywhere; and the real thing,
where it is installed.

The second half runs in the environment of environment.yml: sapien 2.2.2, numpy < 2, gymnasium < 1, and a
Vulkan driver that SAPIEN 2 can use.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from refinevla_kit.errors import KitError
from refinevla_kit.simulator import make
from refinevla_kit.simulator.contract import Observation, Simulator, StepResult
from refinevla_kit.simulator.demonstrator import Demonstrator
from refinevla_kit.simulator.geometry import CAMERAS, INTRINSICS, start_pose
from refinevla_kit.simulator.simpler_env import (
    build_arguments,
    reset_options,
    to_axis_angle,
)
from refinevla_kit.tasks import (
    CAMERA_SIZES,
    SIMPLER_ENV,
    TASKS,
    VARIANT_AGGREGATION,
    VISUAL_MATCHING,
    Protocol,
    Task,
    find_task,
)

INSTALLED = find_spec("mani_skill2_real2sim") is not None
original = pytest.mark.skipif(
    not INSTALLED, reason="the original SimplerEnv is not installed: make the environment of environment.yml"
)
PHOTOGRAPHS = Path("photographs")
PLAYED = [
    (task, protocol)
    for task in TASKS.values()
    for protocol in task.protocols
    if SIMPLER_ENV in protocol.backends
]
CARROT, CAN = find_task("widowx_carrot_on_plate"), find_task("google_robot_pick_standing_coke_can")
APPLE, CLOSE = (
    find_task("google_robot_place_apple_in_closed_top_drawer"),
    find_task("google_robot_close_middle_drawer"),
)


def test_importing_the_kits_evaluation_imports_no_simulator_and_no_torch() -> None:
    modules = (
        "tasks",
        "simulator",
        "simulator.simpler_env",
        "evaluation",
        "evaluation.statistics",
        "conventions",
    )
    heavy = ("torch", "sapien", "mani_skill", "mani_skill2_real2sim", "gymnasium")
    program = (
        f"import sys, {', '.join(f'refinevla_kit.{name}' for name in modules)}; print([name for name in "
        f"{heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.skipif(INSTALLED, reason="it is installed here")
def test_where_the_original_is_not_installed_it_says_so() -> None:
    with pytest.raises(KitError, match=r"the original SimplerEnv is not installed .* environment\.yml"):
        make(CARROT, backend="simpler_env")


def test_what_it_cannot_do_is_one_clear_line() -> None:
    with pytest.raises(KitError, match="ManiSkill 3's layout"):
        make(CARROT, "embedded", backend="simpler_env")
    with pytest.raises(KitError, match=r"no privileged state.*privileged=False"):
        make(CAN, privileged=True, backend="simpler_env")
    with pytest.raises(KitError, match="cannot play this task in variant_aggregation"):
        make(CARROT, backend="simpler_env", setting=VARIANT_AGGREGATION)


@given(
    st.lists(st.floats(-np.pi, np.pi), min_size=3, max_size=3),
    st.lists(st.floats(-1, 1), min_size=4, max_size=4),
)
def test_an_actions_rotation_stays_the_same_in_the_controllers_form(
    euler: list[float], rest: list[float]
) -> None:
    given_action = np.array([*rest[:3], *euler, rest[3]], np.float32)
    action = to_axis_angle(given_action)
    assert action.shape == (7,) and action.dtype == np.float32
    assert np.array_equal(action[[0, 1, 2, 6]], given_action[[0, 1, 2, 6]])
    x, y, z = (
        Rotation.from_rotvec(angle * axis)
        for angle, axis in zip(given_action[3:6].astype(float), np.eye(3), strict=True)
    )
    assert (
        (z * y * x).inv() * Rotation.from_rotvec(action[3:6])
    ).magnitude() < 1e-5  # extrinsic: x first, each about the base's own axis
    assert np.linalg.norm(action[3:6]) < np.pi + 1e-5


@pytest.mark.parametrize(
    ("task", "protocol"), PLAYED, ids=[f"{task.name}-{protocol.setting}" for task, protocol in PLAYED]
)
def test_what_an_environment_is_made_from_and_reset_to_is_complete(task: Task, protocol: Protocol) -> None:
    """Every variant and every start; half the width and a quarter of the height, so that the intrinsics
    show.
    """
    width, height = CAMERA_SIZES[task.robot]
    needed = {
        "robot",
        "sim_freq",
        "control_freq",
        "control_mode",
        "max_episode_steps",
        "scene_name",
        "rgb_overlay_cameras",
        "rgb_overlay_path",
        "obs_mode",
        "camera_cfgs",
        "renderer_kwargs",
    }
    matching, starts = (
        protocol.setting == VISUAL_MATCHING,
        [reset_options(start) for start in protocol.starts],
    )
    for variant in protocol.variants:
        name, arguments = build_arguments(task, variant, width // 2, height // 4, PHOTOGRAPHS)
        assert (
            re.fullmatch(r"[A-Za-z0-9]+-v0", name)
            and needed <= arguments.keys()
            and not {"overlay", "env_id"} & arguments.keys()
        )
        camera = arguments["camera_cfgs"][CAMERAS[task.robot]]
        focal, x, y = INTRINSICS[task.robot]
        assert np.array_equal(camera["intrinsic"], [[focal / 2, 0, x / 2], [0, focal / 4, y / 4], [0, 0, 1]])
        assert (camera["width"], camera["height"]) == (width // 2, height // 4) and arguments[
            "rgb_overlay_cameras"
        ] == CAMERAS[task.robot]
        for start in protocol.starts:
            photographs = [
                photograph for photograph in (arguments["rgb_overlay_path"], start.overlay) if photograph
            ]
            assert len(photographs) == matching and all(
                photograph.endswith(".png") for photograph in photographs
            )
    for options, start in zip(starts, protocol.starts, strict=True):
        robot, things = options["robot_init_options"], options["obj_init_options"]
        assert np.array_equal(robot["init_xy"], start.robot_xy)
        placed = "drawer" not in task.name or task is APPLE
        assert len(things) == placed and things.keys() <= {"episode_id", "init_xy"}
        turn = (
            Rotation.from_quat(np.roll(robot["init_rot_quat"], -1)) * Rotation.from_quat([0, 0, 1, 0]).inv()
        )  # on top of half a turn
        assert np.allclose(turn.as_rotvec(), [0, 0, start.robot_yaw])
    assert len({repr(options) for options in starts}) == len(starts)


def rendered(task: Task) -> Task:
    """`task` without ray tracing, which takes minutes on a CPU."""
    return replace(task, original_build=(*task.original_build, ("shader_dir", "ibl")))


def check(simulator: Simulator, seen: Observation, names: set[str]) -> dict[str, Any]:
    """An observation is as the contract says and its masks cover it once; returns the masks."""
    masks = simulator.masks()
    assert seen.image.dtype == np.uint8 and seen.image.std() > 20
    assert (
        seen.proprioception.shape == (15,)
        and seen.proprioception.dtype == np.float32
        and np.isfinite(seen.proprioception).all()
    )
    assert names <= masks.keys() and {"gripper", "arm", "background"} <= masks.keys()
    assert all(mask.shape == seen.image.shape[:2] and mask.dtype == bool for mask in masks.values())
    assert (sum(mask.astype(int) for mask in masks.values()) == 1).all()
    assert all(masks[name].sum() > 20 for name in names)
    return masks


def action(*motion: float, gripper: float = 0.0) -> Any:
    return np.array([*motion, *[0.0] * (6 - len(motion)), gripper], np.float32)


@pytest.fixture(scope="module")
def carrot() -> Iterator[Simulator]:
    simulator = make(CARROT, width=128, height=96, privileged=True, backend="simpler_env")
    yield simulator
    simulator.close()


@original
def test_the_demonstrator_plays_an_episode_and_the_same_again(carrot: Simulator) -> None:
    def play() -> tuple[list[StepResult], Any]:
        seen, results = carrot.reset(3), []
        check(carrot, seen, {"carrot", "plate", "gripper"})
        while not results or not results[-1].done:
            assert seen.state is not None
            results.append(carrot.step(Demonstrator(CARROT).act(seen.state)))
            seen = results[-1].observation
        return results, seen.image

    first, picture = play()
    carrot.reset(9)
    second, again = play()
    assert (
        len(first) == CARROT.max_steps
        and first[-1].reason == "budget"
        and [r.reason for r in first[:-1]] == [""] * (CARROT.max_steps - 1)
    )
    assert first[-1].success and any(result.grasped for result in first) and not first[0].success
    assert [r.success for r in first] == [r.success for r in second] and np.array_equal(picture, again)


@original
def test_the_widowx_turns_and_moves_its_tool_as_the_contract_says(carrot: Simulator) -> None:
    euler, states = [0.1, -0.08, 0.12], [carrot.reset(0).state]
    for motion in ([0, 0, 0, *euler], [0.01, 0.005, -0.004]):
        for _ in range(2):
            seen = carrot.step(action(*motion, gripper=1)).observation
        states.append(seen.state)
    start, turned, moved = (state.tcp_target for state in states if state is not None)
    base, step = (
        Rotation.from_rotvec([0, 0, np.pi]),
        Rotation.from_euler("xyz", euler),
    )  # the base is turned half round
    before, after = (Rotation.from_quat(np.roll(pose[3:], -1)) for pose in (start, turned))
    assert (base * step * step * base.inv() * before * after.inv()).magnitude() < 1e-3
    assert np.allclose(
        turned[:3], start[:3], atol=1e-3
    )  # it turns about where the tool is, which lags behind
    assert np.allclose(moved - turned, [-0.02, -0.01, -0.008, 0, 0, 0, 0], atol=1e-4)
    for _ in range(3):
        closed = carrot.step(action(gripper=-1)).observation
    assert seen.proprioception[7] > 0.9 and closed.proprioception[7] < 0.1


@original
def test_a_pose_sets_where_things_start_and_the_grid_comes_back(carrot: Simulator) -> None:
    before, pose = carrot.reset(7).state, start_pose(CARROT, "dense", 0, 0)
    moved, after = carrot.reset(pose).state, carrot.reset(7).state
    assert before is not None and moved is not None and after is not None
    assert np.allclose(moved.source[:2], pose.source[:2], atol=0.01) and np.allclose(
        moved.target[:2], pose.target[:2], atol=0.01
    )
    assert np.array_equal(before.source, after.source)
    with pytest.raises(KitError, match="choose 0 to 23"):
        carrot.reset(24)
    with pytest.raises(KitError, match="7 finite numbers"):
        carrot.step(np.full(7, np.nan))
    with pytest.raises(KitError, match="cannot change to"):
        make(CARROT, "elsewhere", backend="simpler_env")


@original
def test_move_near_says_which_things_and_shows_them_by_name() -> None:
    simulator = make("google_robot_move_near", width=160, height=128, backend="simpler_env")
    seen = simulator.reset(0)
    masks = check(simulator, seen, {"source object", "target object", "orange"})
    assert seen.instruction == "move blue plastic bottle near pepsi can"
    bottle, can = (np.argwhere(masks[name]).mean(0) for name in ("source object", "target object"))
    assert (
        bottle[1] < can[1] and masks["source object"].sum() > masks["target object"].sum()
    )  # it stands to the left, and is the larger
    assert simulator.reset(25).instruction not in ("", seen.instruction)
    simulator.close()


@original
def test_the_google_robots_gripper_is_relative_and_its_tool_moves_in_the_base_frame() -> None:
    simulator = make(
        CAN, width=160, height=128, backend="simpler_env", setting=VARIANT_AGGREGATION, variant="distractors"
    )
    start = simulator.reset(12)
    assert len(check(simulator, start, {"coke can", "gripper"})) > 5, "distractors by name"
    closed = [
        simulator.step(action(0.05, gripper=gripper)).observation.proprioception
        for gripper in (1, 0, 0, 0, 0)
    ][-1]
    opened = [
        simulator.step(action(gripper=gripper)).observation.proprioception for gripper in (-1, 0, 0, 0, 0)
    ][-1]
    simulator.close()
    moved = closed[:3] - start.proprioception[:3]
    assert (
        moved[0] > 0.05 and np.abs(moved[1:]).max() < 0.02
    )  # the arm sags by 2 mm a step: motion is added to where it is measured
    assert start.proprioception[7] > 0.9 and closed[7] < 0.25 and opened[7] > 0.9


@original
def test_placing_the_apple_goes_on_to_its_second_part_when_the_policy_says_so_and_after_100_steps() -> None:
    simulator = make(rendered(APPLE), width=80, height=64, backend="simpler_env")
    first = simulator.reset(0)
    check(simulator, first, {"apple", "top drawer", "cabinet"})
    advanced = (simulator.advance(), simulator.advance())
    second = simulator.step(action()).observation.instruction
    assert advanced == (True, False) and simulator.instruction == second
    assert (
        simulator.reset(4).instruction == first.instruction == "open top drawer"
        and second == "place apple into top drawer"
    )
    told = [simulator.step(action()).observation.instruction for _ in range(101)]
    simulator.close()
    assert told == ["open top drawer"] * 100 + [second]


@original
def test_drawers_are_named_and_start_where_the_photograph_was_taken() -> None:
    simulator = make(rendered(CLOSE), width=160, height=128, backend="simpler_env")
    pictures = []
    for episode in (0, 4):
        seen = simulator.reset(episode)
        check(simulator, seen, {"middle drawer", "top drawer", "cabinet", "gripper"})
        pictures.append(seen.image[:, :30])
    result = simulator.step(action())
    assert (result.success, result.grasped, simulator.advance()) == (
        False,
        False,
        False,
    ) and seen.instruction == "close middle drawer"
    simulator.close()
    assert np.abs(pictures[0].astype(int) - pictures[1]).mean() > 5, "each robot pose has its own photograph"


@original
def test_a_ray_traced_environment_does_not_change_the_pictures_of_another() -> None:
    """SAPIEN keeps the shader for the whole process, and every reset makes cameras anew."""
    rasterised = make(CAN, width=40, height=32, backend="simpler_env")
    before = rasterised.reset(0).image
    traced = make(CLOSE, width=40, height=32, backend="simpler_env")
    first, plain = traced.reset(0).image, make(rendered(CLOSE), width=40, height=32, backend="simpler_env")
    without, after, second = plain.reset(0).image, rasterised.reset(0).image, traced.reset(0).image
    for simulator in (rasterised, traced, plain):
        simulator.close()
    assert np.array_equal(before, after) and np.array_equal(first, second)
    assert np.abs(first.astype(int) - without).mean() > 3, "rays give shadows"
