"""Frames put together at random: each is a state of its own, labelled with the demonstrator's action."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.hands import Hand, Hands, read_hands
from experiments.questions import ask
from experiments.random_frames import record_frames
from refinevla_kit.episodes import open_dataset
from refinevla_kit.errors import KitError
from refinevla_kit.files import sha256
from refinevla_kit.rollouts.recording import record
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.simulator.demonstrator import Demonstrator
from refinevla_kit.tasks import find_task

DEMO = REPOSITORY / "data" / "demo"
CARROT, SINK = find_task("widowx_carrot_on_plate"), find_task("widowx_put_eggplant_in_basket")
PAIR = find_task("widowx_language_carrot_on_plate")


@pytest.fixture(scope="module")
def hands() -> Hands:
    found = read_hands([DEMO])
    return found | {("language", "carrot"): found[CARROT.name, "carrot"]}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, hands: Hands) -> Path:
    path = tmp_path_factory.mktemp("frames") / "frames"
    record_frames(path, [CARROT, SINK, PAIR], 1, 12, hands)
    return path


def test_recorded_hands_hold_and_let_go(hands: dict[tuple[str, str], list[Hand]]) -> None:
    of_carrot = hands[CARROT.name, "carrot"]
    assert {hand.grasped for hand in of_carrot} == {True, False}
    assert any(hand.placed and not hand.grasped for hand in of_carrot)


def test_each_frame_is_another_arrangement_with_its_own_action(recorded: Path) -> None:
    source = open_dataset(recorded)
    for info, task in zip(source.episodes, (CARROT, SINK, PAIR), strict=True):
        states = source.states(info.index)
        assert info.task == task.name and states is not None and len(states) == 12
        for state, action in zip(states, source.actions(info.index), strict=True):
            np.testing.assert_allclose(action, Demonstrator(task).act(state), atol=1e-6)
        assert len({tuple(np.round(state.source[:2], 3)) for state in states}) > 8
        assert len({tuple(np.round(state.tcp[:3], 3)) for state in states}) == 12
        if task is not SINK:
            assert len({tuple(np.round(state.target[:2], 3)) for state in states}) == 12


def test_what_is_held_is_in_the_hand(recorded: Path) -> None:
    source = open_dataset(recorded)
    states = [state for info in source.episodes for state in source.states(info.index) or []]
    away = [float(np.linalg.norm(state.tcp[:3] - state.source[:3])) for state in states if state.grasped]
    assert away and max(away) < 0.06


def test_the_arm_is_where_the_state_says(recorded: Path) -> None:
    source = open_dataset(recorded)
    masks, own = source.masks(0), source.proprioception(0)
    assert masks is not None and masks["gripper"].any((1, 2)).mean() > 0.6
    assert np.ptp(own[:, :3], axis=0).max() > 0.05
    assert {one.kind for one in ask(recorded, 8.0, 0)} > {"places", "where", "side", "held", "next"}


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, recorded: Path, hands: Hands) -> None:
    record_frames(tmp_path / "again", [CARROT, SINK, PAIR], 1, 12, hands)
    assert sha256(tmp_path / "again") == sha256(recorded)


def test_the_google_robot_has_such_frames_too(tmp_path: Path) -> None:
    can = find_task("google_robot_pick_horizontal_coke_can")
    variants = can.protocol().scored_variants[:1]
    record(tmp_path / "played", [can], 1, variants=variants, progress=False)
    hands = read_hands([tmp_path / "played"])
    record_frames(tmp_path / "frames", [can], 1, 10, hands, variants=variants)
    source = open_dataset(tmp_path / "frames")
    states = source.states(0)
    assert states is not None and len(states) == 10
    assert {bool(state.grasped) for state in states} == {True, False}
    for state, action in zip(states, source.actions(0), strict=True):
        np.testing.assert_allclose(action, Demonstrator(can).act(state), atol=1e-6)
        if state.grasped:
            assert np.linalg.norm(state.tcp[:3] - state.source[:3]) < 0.08
    lying = np.stack([state.source[:2] for state in states if not state.grasped])
    low, high = (np.array(corner) for corner in ((-0.35, -0.02), (-0.12, 0.42)))
    assert np.ptp(lying, axis=0).max() > 0.03 and (low < lying).all() and (lying < high).all()


def test_a_task_without_recorded_hands_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KitError, match="no recorded hand of widowx_carrot_on_plate -> record demonstrations"):
        record_frames(tmp_path / "none", [CARROT], 1, 1, {})
    assert not (tmp_path / "none").exists()
