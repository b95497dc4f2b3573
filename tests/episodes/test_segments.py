"""Segments cover a trajectory exactly, and lie where a person would put them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from refinevla_kit.episodes import open_dataset
from refinevla_kit.episodes.segments import split_segments

trajectories = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 60), st.integers(1, 9)),
    elements=st.floats(-10, 10, width=32) | st.sampled_from([-1.0, 1.0]),
)


@given(
    actions=trajectories,
    deltas=st.booleans(),
    with_gripper=st.booleans(),
    shortest=st.none() | st.integers(1, 10),
)
def test_segments_tile_the_trajectory(actions, deltas, with_gripper, shortest):
    """Property: no gap, no overlap, none too short, the same each time."""
    gripper = actions.shape[1] - 1 if with_gripper and actions.shape[1] > 1 else None
    segments = split_segments(actions, deltas, gripper, shortest)
    assert (segments[0].start, segments[0].reason, segments[-1].end) == (0, "start", len(actions))
    for before, after in pairwise(segments):
        assert before.end == after.start and after.reason != "start"
    least = shortest or max(2, len(actions) // 16)
    assert all(segment.end - segment.start >= min(least, len(actions)) for segment in segments)
    assert segments == split_segments(actions.copy(), deltas, gripper, shortest)


def pick_and_place() -> np.ndarray:
    """Displacements of a pick-and-place at 5 Hz: across, down, close, up, across, open."""
    phases = [
        ((0.03, 0, 0), 1, 6),
        ((0, 0, -0.03), 1, 4),
        ((0, 0, 0), -1, 3),
        ((0, 0, 0.04), -1, 4),
        ((0, 0.04, 0), -1, 5),
        ((0, 0, 0), 1, 3),
    ]
    rows = [[*move, 0, 0, 0, gripper] for move, gripper, steps in phases for _ in range(steps)]
    noise = np.random.default_rng(0).normal(scale=0.002, size=(len(rows), 7)) * [1, 1, 1, 1, 1, 1, 0]
    return (np.array(rows) + noise).astype(np.float32)


def test_a_pick_and_place_falls_into_its_phases():
    segments = split_segments(pick_and_place(), deltas=True, gripper=6)
    assert [segment.start for segment in segments] == [0, 6, 10, 13, 17, 22]
    assert [segment.reason for segment in segments] == [
        "start",
        "motion",
        "gripper closes",
        "motion",
        "motion",
        "gripper opens",
    ]


def test_the_same_motion_as_absolute_positions():
    """Positions at six times the rate, without a gripper: the four motions are still told apart."""
    moves = pick_and_place()[:, :3].repeat(6, axis=0) / 6
    segments = split_segments(np.cumsum(moves, axis=0), deltas=False, gripper=None)
    for change in (36, 60, 78, 102, 132):
        assert min(abs(segment.start - change) for segment in segments) <= 3
    assert len(segments) == 6


def test_standing_still_is_one_segment():
    assert len(split_segments(np.zeros((40, 7), np.float32), deltas=True, gripper=6)) == 1
    assert len(split_segments(np.ones((40, 26), np.float32), deltas=False, gripper=None)) == 1


def test_a_chattering_gripper_does_not_shred_the_trajectory():
    actions = np.zeros((40, 7), np.float32)
    actions[:, 6] = np.where(np.arange(40) % 2, 1.0, -1.0)
    assert all(segment.end - segment.start >= 4 for segment in split_segments(actions, True, 6, shortest=4))


def test_a_real_robots_joint_positions_give_a_handful(real_dataset):
    dataset = open_dataset(real_dataset)
    for info in dataset.episodes:
        assert 3 <= len(split_segments(dataset.actions(info.index), dataset.deltas, None)) <= 10


@pytest.mark.parametrize("shortest", [2, 5, 15])
def test_the_shortest_segment_is_the_callers_choice(shortest):
    actions = np.random.default_rng(0).normal(size=(60, 7))
    assert (
        min(segment.end - segment.start for segment in split_segments(actions, True, None, shortest))
        >= shortest
    )
