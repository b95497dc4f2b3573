"""Preflight on the real simulator: a fine encoding leaves demonstrations whole, a coarse one is found out
before an evaluation pays for it.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from refinevla_kit.cli import app
from refinevla_kit.conventions import GOOGLE_ROBOT, WIDOWX
from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.preflight import preflight, preflight_each
from refinevla_kit.policies.contract import Array
from refinevla_kit.policies.conversion import check_conventions
from refinevla_kit.rollouts.engine import Engine
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.tasks import find_task
from refinevla_kit.vlas.action_tokens import ActionTokens, UniformBins
from refinevla_kit.vlas.spherical_grid import SphericalGrid

CARROT, CAN = "widowx_carrot_on_plate", "google_robot_pick_horizontal_coke_can"
FINE = (0.04, 0.04, 0.04, 0.01, 0.01, 0.3, 1.0)  # m, rad, gripper a step: the demonstrator's own limits


class Tokens:
    """As much of a policy as preflight looks at: conventions and an encoding."""

    name, checkpoint_hash, conventions = "tokens", "", WIDOWX

    def __init__(self, *limits: float) -> None:
        self.bins: ActionTokens = UniformBins(limits)
        self.action_range = (-np.array(limits), np.array(limits))

    def round_trip(self, actions: Array) -> Array:
        return self.bins.decode(self.bins.encode(actions))


@pytest.mark.slow
def test_a_fine_encoding_allows_what_the_demonstrator_does() -> None:
    report = preflight(Tokens(*FINE), CARROT, episodes=[0, 13])
    for rate in (report.demonstrator, report.replay, report.replay_encoded, report.ceiling):
        assert rate is not None and (rate.successes, rate.episodes) == (2, 2)
    assert report.error is not None and report.clipped is not None and not report.clipped.any()
    half_bin = np.array(FINE) / 255 * [1e3, 1e3, 1e3, *[180 / np.pi] * 3, 1]  # mm, degrees
    assert (report.error <= half_bin + 1e-4).all() and report.error[6] == pytest.approx(1 / 255, abs=1e-5)
    assert "(the ceiling) 2/2 = 100% (34% to 100%)" in str(
        report
    ) and "clipped to the encoding's range: none" in str(report)


@pytest.mark.slow
def test_tasks_are_replayed_by_whoever_plays_them_first_in_processes_as_in_one() -> None:
    players = [(Tokens(*FINE), [find_task(CARROT)]), (Tokens(*np.array(FINE) / 4), [find_task(CARROT)])]
    [alone], [beside] = (preflight_each(players, [3], workers=workers) for workers in (0, 2))
    assert str(alone) == str(beside) and alone.replay_encoded and alone.replay_encoded.successes == 1


@pytest.mark.slow
def test_the_command_plays_in_as_many_processes_as_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    class Noted(Engine):
        def __init__(self, workers: int, lanes: int) -> None:
            made.append(workers)
            super().__init__(workers, lanes)

    monkeypatch.setattr("refinevla_kit.evaluation.preflight.Engine", Noted)
    policy = str(REPOSITORY / "data/checkpoints/with_reasoning")
    arguments = ["preflight", policy, "--task", CARROT, "--episodes", "1", "--workers", "1"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert (result.exit_code, made) == (0, [1])
    assert f"preflight of with_reasoning on {CARROT}" in result.stdout
    assert json.loads(result.stdout.splitlines()[-1])["ceiling"] == {CARROT: 1.0}


@pytest.mark.slow
def test_a_range_that_cuts_the_demonstrators_speed_shows_in_the_ceiling() -> None:
    report = preflight(Tokens(0.004, 0.004, 0.004, 0.01, 0.01, 0.3, 1.0), CARROT, episodes=1)
    assert report.replay is not None and report.replay.successes == 1
    assert (
        report.ceiling is not None
        and report.replay_encoded is not None
        and report.ceiling.successes == report.replay_encoded.successes == 0
    )
    assert report.clipped is not None and (report.clipped[:3] > 0).all() and not report.clipped[5:].any()
    assert report.error is not None and report.error[:3].max() == pytest.approx(
        36, abs=0.1
    )  # mm: 40 wanted, 4 said
    assert "clipped to the encoding's range: x " in str(report)


@pytest.mark.slow
def test_a_spherical_grid_loses_millimetres_that_a_closed_loop_wins_back() -> None:
    policy = Tokens(*FINE)
    moves = np.random.default_rng(0).normal(0, 0.5, (1000, 7)).clip(-1, 1) * FINE
    policy.bins = SphericalGrid.fit(moves)
    report = preflight(policy, CARROT, episodes=1)
    assert report.ceiling is not None and report.ceiling.successes == 1
    assert (
        report.error is not None and 3 < report.error[:3].max() < 25 and report.error[6] == 0
    )  # mm; 0.2 with uniform bins


@pytest.mark.slow
def test_the_other_robot_is_replayed_too() -> None:
    policy = Tokens(0.2, 0.2, 0.2, 0.5, 0.5, 0.5, 1.0)
    policy.conventions = GOOGLE_ROBOT
    report = preflight(policy, CAN, episodes=[12])  # near the robot: far ones slip where actions are rounded
    assert not report.mismatches and report.clipped is not None and not report.clipped.any()
    for rate in (report.demonstrator, report.replay, report.ceiling):
        assert rate is not None and (rate.successes, rate.episodes) == (1, 1)


def test_dense_starts_are_replayed_too() -> None:
    report = preflight(Tokens(*FINE), CARROT, episodes="dense", n=1, seed=3)
    assert (
        report.replay is not None
        and report.demonstrator is not None
        and report.replay.successes == report.demonstrator.successes == 1
    )


def test_without_an_encoding_only_conventions_are_checked_which_is_said() -> None:
    class Plain:
        conventions = replace(WIDOWX, rotation="axis_angle")

    report = preflight(Plain(), CARROT)
    assert report.ceiling is None and "only the conventions were checked" in report.note
    assert "rotation is axis_angle, here euler_xyz_extrinsic -> wrap the policy" in str(report)
    assert "evaluate() refuses this policy" in str(report)
    with pytest.raises(KitError, match="does not fit"):  # as the report says
        check_conventions(Plain(), find_task(CARROT))


@pytest.mark.slow
def test_another_robots_policy_is_told_so_and_replayed_all_the_same() -> None:
    policy = Tokens(*FINE)
    policy.conventions = GOOGLE_ROBOT
    report = preflight(policy, CARROT, episodes=[0])
    assert "robot is google_robot, here widowx -> robot: evaluate it on tasks of its own robot" in str(report)
    assert report.ceiling is not None and report.ceiling.successes == 1
    with pytest.raises(KitError, match="does not fit"):
        check_conventions(policy, find_task(CARROT))


def test_fingers_that_are_told_a_motion_are_not_replayed_as_places() -> None:
    """What the fingers are to do, and where they are to be: no single action translates "stay"."""
    report = preflight(Tokens(*FINE), CAN, episodes=[12])
    assert report.ceiling is None and "is no place in which the policy says they are" in report.note


def test_an_encoding_that_returns_something_else_says_so() -> None:
    policy = Tokens(*FINE)
    policy.round_trip = lambda actions: actions[:, :6]  # type: ignore[method-assign]
    with pytest.raises(KitError, match=r"tokens.round_trip made \(2, 6\) of actions \(2, 7\)"):
        preflight(policy, CARROT, episodes=1)
    policy.round_trip = lambda actions: actions @ np.ones(3)  # type: ignore[method-assign]
    with pytest.raises(KitError, match=r"tokens.round_trip failed \(matmul"):
        preflight(policy, CARROT, episodes=np.arange(2))
    with pytest.raises(KitError, match="no episodes"):
        preflight(Tokens(*FINE), CARROT, episodes=[])


def test_where_nothing_can_or_shall_be_replayed_the_conventions_are_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "no start is replayed" in str(preflight(Tokens(*FINE), CARROT, episodes=0))
    monkeypatch.setattr("refinevla_kit.evaluation.preflight.find_spec", lambda _: None)
    assert "ManiSkill 3, which is not here" in str(preflight(Tokens(*FINE), CARROT))


def test_a_task_with_fewer_starts_is_replayed_from_all(monkeypatch: pytest.MonkeyPatch) -> None:
    drawer, played = find_task("google_robot_open_top_drawer"), []
    monkeypatch.setattr("refinevla_kit.evaluation.preflight._replays", lambda *given: played.extend(given[2]))
    policy = Tokens(*FINE)
    policy.conventions = GOOGLE_ROBOT
    with pytest.raises(TypeError):
        preflight(policy, drawer)
    assert len(played) == 9
