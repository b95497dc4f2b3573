"""Conventions: a mismatch is named with its remedy, and what a wrapper converts is the same motion of the
robot.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from refinevla_kit.conventions import GOOGLE_ROBOT, ROBOT_CONVENTIONS, WIDOWX, Conventions
from refinevla_kit.errors import KitError
from refinevla_kit.policies.contract import Action, Array, read_answer
from refinevla_kit.policies.conversion import check_conventions, converted, mismatches
from refinevla_kit.simulator import make
from refinevla_kit.simulator.contract import Simulator
from refinevla_kit.tasks import TASKS, Task

CARROT = "widowx_carrot_on_plate"
COKE = next(task for task in TASKS.values() if task.robot == "google_robot")
IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
angles = st.tuples(*[st.floats(-1.5, 1.5)] * 3)


class Scripted:
    """Says what it was told to, one answer a call, and keeps the images it saw."""

    name, checkpoint_hash = "scripted", "0"

    def __init__(self, conventions: Conventions | None, answers: Sequence[Sequence[float]]) -> None:
        self.conventions, self.answers, self.seen = conventions, list(answers), list[Array]()

    def act(self, image: Array) -> Array:
        self.seen.append(image)
        return np.array(self.answers[(len(self.seen) - 1) % len(self.answers)])


def grips(conventions: Conventions, task: str | Task, commands: Sequence[float]) -> list[float]:
    """The gripper numbers that reach the robot when the policy's are `commands`."""
    policy = converted(Scripted(conventions, [[0] * 6 + [command] for command in commands]), task)
    policy.reset("go")
    return [float(policy.act(IMAGE)[6]) for _ in commands]


@pytest.mark.parametrize("robot", ROBOT_CONVENTIONS)
def test_each_robot_declares_everything_and_fits_its_own_tasks(robot: str) -> None:
    assert None not in ROBOT_CONVENTIONS[robot].to_dict().values()
    for task in TASKS.values():
        assert (mismatches(Scripted(ROBOT_CONVENTIONS[robot], []), task) == []) == (task.robot == robot)


def test_declared_conventions_survive_a_message() -> None:
    assert Conventions.from_dict({**WIDOWX.to_dict(), "image_size": [640, 480]}) == WIDOWX


@pytest.mark.parametrize(
    "wrong",
    [
        {"rotation": "quaternion"},
        {"gripper": "open"},
        {"sticky_gripper": 0},
        {"image_size": (224,)},
        {"image_size": 3},
        {"hz": 5},
    ],
)
def test_an_unknown_field_or_value_says_so(wrong: dict[str, object]) -> None:
    with pytest.raises(KitError, match=next(iter(wrong))):
        Conventions.from_dict(wrong)


def test_the_run_stops_with_every_mismatch_and_its_remedy() -> None:
    """What one gets who evaluates an Octo-like policy of the Google Robot on the WidowX without its
    wrapper.
    """
    policy = Scripted(replace(GOOGLE_ROBOT, rotation="axis_angle", unit="normalised", sticky_gripper=15), [])
    with pytest.raises(KitError) as caught:
        check_conventions(policy, CARROT)
    for field in (
        "robot",
        "unit",
        "added_to",
        "rotation",
        "gripper",
        "sticky_gripper",
        "control_hz",
        "normalisation",
        "camera",
    ):
        assert f"{field} is " in caught.value.what, field
    for remedy in (
        "its own robot",
        "un-normalise",
        "converted(policy, to=task)",
        "trained at this rate",
        "trained on this camera",
    ):
        assert remedy in caught.value.remedy, remedy
    with pytest.raises(KitError, match="cannot convert to widowx_carrot_on_plate: robot is google_robot"):
        converted(policy, CARROT)


@pytest.mark.parametrize(
    ("key", "fits"),
    [
        ("bridge_dataset", True),
        ("own", True),
        ("my_kitchen", True),
        ("kitchen_part1", True),
        ("pick_cart1", True),
        ("fractal20220817_data", False),
        ("rt_1", False),
        ("my_rt1_data", False),
    ],
)
def test_statistics_of_the_other_robots_data_are_refused(key: str, fits: bool) -> None:
    assert (mismatches(Scripted(replace(WIDOWX, normalisation=key), []), CARROT) == []) == fits


def test_a_policy_that_declares_nothing_runs_with_one_warning() -> None:
    class Plain:
        def act(self, image: Array) -> Array: ...

    with pytest.warns(UserWarning, match="'Plain' declares no conventions") as caught:
        check_conventions(Plain(), CARROT)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="declares no gripper, camera:"):
        check_conventions(Scripted(replace(WIDOWX, gripper=None, camera=None), []), CARROT)


def about(x: float = 0, y: float = 0, z: float = 0) -> Rotation:
    return Rotation.from_rotvec([x, y, z])


@given(angles)
def test_a_rotation_stays_the_same_rotation(turn: tuple[float, float, float]) -> None:
    x, y, z = turn
    meant = {
        "axis_angle": about(x, y, z),
        "euler_xyz_intrinsic": about(x) * about(y=y) * about(z=z),
        "euler_xyz_extrinsic": about(z=z) * about(y=y) * about(x),
    }
    for form, rotation in meant.items():
        policy = converted(Scripted(replace(WIDOWX, rotation=form), [[0.01, 0, 0, *turn, 1]]), CARROT)  # type: ignore[arg-type]
        roll, pitch, yaw = policy.act(IMAGE)[3:6]
        assert np.allclose(
            (about(z=yaw) * about(y=pitch) * about(roll)).as_matrix(), rotation.as_matrix(), atol=1e-5
        ), form


@given(st.lists(st.floats(0, 1).filter(lambda share: abs(share - 0.5) > 1e-3), min_size=1, max_size=20))
def test_a_gripper_opens_and_closes_whatever_it_is_called(openness: list[float]) -> None:
    for form, (opened, closed) in {
        "open1_closed0": (1, 0),
        "open-1_closed+1": (-1, 1),
        "open0_closed1": (0, 1),
    }.items():
        commands = [closed + share * (opened - closed) for share in openness]
        assert grips(replace(WIDOWX, gripper=form), CARROT, commands) == [
            1.0 if share > 0.5 else -1.0 for share in openness
        ]  # type: ignore[arg-type]
    assert grips(WIDOWX, CARROT, openness) == pytest.approx(openness), "nothing to convert, nothing changed"


def test_a_sticky_gripper_repeats_a_motion_as_simplers_wrapper_does() -> None:
    octo = replace(GOOGLE_ROBOT, gripper="open1_closed0", sticky_gripper=4)
    #          nothing yet | begins to close, repeated 4 times whatever is said | small changes pass | opens
    commands = [1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9, 0.9]
    expected = [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, -0.1, 0.0, -0.8, -0.8, -0.8, -0.8, 0.0]
    assert np.allclose(grips(octo, COKE, commands), expected, atol=1e-6)
    assert grips(replace(GOOGLE_ROBOT, gripper="relative_opening+1"), COKE, [0.3, -1.0]) == pytest.approx(
        [-0.3, 1.0]
    )
    assert not hasattr(converted(Scripted(octo, []), COKE), "act_batch"), (
        "the motion is remembered: one episode at a time"
    )


def test_an_absolute_gripper_needs_its_repeats_said_before_it_becomes_a_motion() -> None:
    with pytest.raises(KitError, match="sticky_gripper"):
        converted(Scripted(Conventions(gripper="open1_closed0"), []), COKE)


@pytest.mark.parametrize(("resize", "size"), [("crop", (24, 24)), ("pad", (24, 24)), ("stretch", (24, 24))])
def test_a_picture_is_cropped_or_padded_where_rendering_would_stretch_it(
    resize: str, size: tuple[int, int]
) -> None:
    policy = Scripted(replace(WIDOWX, image_size=size, resize=resize, colour="bgr"), [[0] * 7])  # type: ignore[arg-type]
    wrapped = converted(policy, CARROT)
    assert mismatches(wrapped, CARROT) == []
    white = np.full((48, 64, 3), (255, 0, 0), np.uint8)
    wrapped.act(white)
    (seen,) = policy.seen
    assert (seen[len(seen) // 2, 5] == (0, 0, 255)).all()
    if resize == "stretch":  # the simulator renders at that size
        assert seen.shape == white.shape and wrapped.conventions.image_size == size
    else:
        assert seen.shape == (24, 24, 3) and wrapped.conventions.image_size == (640, 480)
        assert (seen[0] == 0).all() == (resize == "pad")


def test_the_wrapper_keeps_batches_and_the_rest_of_an_action() -> None:
    class Batched(Scripted):
        def act_batch(self, images: Array, instructions: Sequence[str]) -> list[Action]:
            row = np.array([1, 2, 3, 0, 0, 0, 1], np.float32)
            return [Action(row, row, np.arange(7), np.zeros(7, np.float32), text) for text in instructions]

    actions = converted(Batched(replace(WIDOWX, unit="cm"), []), CARROT).act_batch(
        IMAGE[None].repeat(2, 0), ["a", "b"]
    )
    assert [action.rationale for action in actions] == ["a", "b"]
    assert np.allclose(actions[1].processed[:3], [0.01, 0.02, 0.03]) and actions[1].normalised[0] == 1


def test_what_others_policies_return_is_converted_once_and_a_chunk_row_by_row() -> None:
    """SimplerEnv's map says itself that it holds a rotation vector, also where the policy declares none."""
    turn, parts = [0.3, 0.4, 0.2], {"world_vector": [1, 2, 3], "gripper": [0.9]}
    meant = Rotation.from_rotvec(turn).as_euler("xyz")

    class Stepper:
        checkpoint_hash = "0"
        conventions = replace(WIDOWX, unit="cm", rotation="axis_angle", gripper="open1_closed0")
        answer: object = ({}, {**parts, "rot_axangle": turn})

        def step(self, image: Array, task_description: str) -> object:
            assert task_description == "go"
            return self.answer

    wrapped = converted(Stepper(), CARROT)
    wrapped.reset("go")
    assert wrapped.act(IMAGE).processed == pytest.approx([0.01, 0.02, 0.03, *meant, 1.0], abs=1e-6)
    assert wrapped.checkpoint_hash == "0+unit=cm+rotation=axis_angle+gripper=open1_closed0"
    Stepper.answer = np.array([[1, 2, 3, *turn, 0.9], [0, 0, 0, 0, 0, 0, 0.1]])
    assert wrapped.act(IMAGE) == pytest.approx(
        np.array([[0.01, 0.02, 0.03, *meant, 1], [0, 0, 0, 0, 0, 0, -1]]), abs=1e-6
    )
    Stepper.answer = {"actions": Stepper.answer, "terminate": True}
    assert [(action.processed[6], action.terminate) for action in read_answer(wrapped.act(IMAGE))] == [
        (1, False),
        (-1, True),
    ]


def test_conventions_need_numpy_alone() -> None:
    program = (
        "import sys, refinevla_kit.conventions; print([m for m in ('torch', 'scipy', 'PIL', "
        "'mani_skill', 'sapien') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    made = make(CARROT, width=48, height=36, privileged=True)
    yield made
    made.close()


def test_what_is_declared_for_the_widowx_is_what_the_simulator_does(simulator: Simulator) -> None:
    """Metres in the robot base's axes (turned 180 degrees about the world's z), added to the controller's
    target; +1 opens, -1 closes.
    """
    start = simulator.reset(0).state
    assert start is not None
    for _ in range(3):
        state = simulator.step(np.array([0.01, 0.02, 0.03, 0, 0, 0, -1], np.float32)).observation.state
        assert state is not None
    assert np.allclose(state.tcp_target[:3] - start.tcp_target[:3], [-0.03, -0.06, 0.09], atol=1e-5), (
        "exactly three times, though the arm trails"
    )
    assert np.abs(state.tcp[:3] - state.tcp_target[:3]).max() > 0.005 and state.opening < 0.2
    for _ in range(3):
        state = simulator.step(np.array([0, 0, 0, 0, 0, 0, 1], np.float32)).observation.state
        assert state is not None
    assert state.opening > 0.9


def test_what_is_declared_of_rotations_is_what_the_simulator_does(simulator: Simulator) -> None:
    before = simulator.reset(0).state
    after = simulator.step(np.array([0, 0, 0, 0.3, 0.4, 0.2, 1], np.float32)).observation.state
    assert before is not None and after is not None
    first, then = (Rotation.from_quat(state.tcp_target[[4, 5, 6, 3]]) for state in (before, after))
    base = about(z=np.pi)
    assert (about(z=0.2) * about(y=0.4) * about(0.3)).approx_equal(
        base.inv() * then * first.inv() * base, atol=1e-4
    )
