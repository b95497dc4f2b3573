"""Frames come with masks named by their part in the task, from a dataset that has them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refinevla_kit.attention.captured import choose_frames, demonstrations
from refinevla_kit.episodes import DatasetWriter, Episode, open_dataset
from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import PHASES, SceneState

TASK = "widowx_carrot_on_plate"


def episode(frames: int = 7) -> Episode:
    masks = {name: np.zeros((frames, 32, 48), bool) for name in ("carrot", "plate", "gripper", "arm")}
    for i, mask in enumerate(masks.values()):
        mask[:, 4:12, 10 * i : 10 * i + 8] = True
    pose = np.zeros(7, np.float32)
    states = [
        SceneState(pose, pose, pose, pose, np.float32(1), np.bool_(False), np.bool_(False), np.int8(t))
        for t in range(frames)
    ]
    grey = np.full((frames, 32, 48, 3), 128, np.uint8)
    numbers = np.zeros((frames, 7), np.float32), np.zeros((frames, 15), np.float32)
    return Episode(grey, *numbers, "put carrot on plate", TASK, True, 0, "random", states, masks)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    with DatasetWriter(tmp_path / "set", fps=5, robot_type="widowx") as writer:
        for one in (
            episode(7),
            episode(4),
            replace(episode(5), task="widowx_spoon_on_towel"),
            replace(episode(3), masks=None),
        ):
            writer.add(one)
    return tmp_path / "set"


def test_frames_know_where_they_are_from(dataset: Path) -> None:
    found = choose_frames(open_dataset(dataset), TASK, episodes=2, every=3)
    assert [(frame.episode, frame.step) for frame in found] == [(0, 0), (0, 3), (0, 6), (1, 0), (1, 3)]
    assert [frame.phase for frame in found[:3]] == [PHASES[t] for t in (0, 3, 6)]
    assert sorted(found[0].masks) == ["arm", "gripper", "source", "target"]
    assert found[0].masks["source"][5, 3] and found[0].masks["target"][5, 13]
    assert found[0].image.shape == (32, 48, 3)


def test_a_dataset_with_the_task_is_used_as_it_is(dataset: Path, tmp_path: Path) -> None:
    assert demonstrations(dataset, TASK, 2, tmp_path / "new").path == dataset
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("task", "episodes", "every", "says"),
    [
        ("widowx_stack_cube", 1, 1, "no demonstration of 'widowx_stack_cube'"),
        (TASK, 0, 1, "at least one"),
        (TASK, 3, 1, "no object masks"),
    ],
)
def test_what_cannot_be_had_is_said(dataset: Path, task: str, episodes: int, every: int, says: str) -> None:
    with pytest.raises(KitError, match=says):
        choose_frames(open_dataset(dataset), task, episodes, every)


@pytest.mark.slow
def test_new_ones_are_recorded_where_a_dataset_has_none(real_dataset: Path, tmp_path: Path) -> None:
    """A real robot's dataset has no masks; the simulator is asked instead."""
    made = demonstrations(real_dataset, TASK, 1, tmp_path / "new")
    found = choose_frames(made, TASK, 1, 5)
    assert made.path == tmp_path / "new" and len(found) >= 3
    assert all(found[0].masks[thing].any() for thing in ("source", "target", "gripper"))
