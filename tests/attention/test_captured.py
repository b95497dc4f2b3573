"""Frames have masks named by their part in the task; a file of captures gives back what was written, and is
not taken for another checkpoint's.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from refinevla_kit.attention.captured import (
    KINDS,
    Capture,
    choose_frames,
    demonstrations,
    image_hash,
    load_captures,
    other_sentence,
    save_captures,
)
from refinevla_kit.attention.forward import capture
from refinevla_kit.episodes import DatasetWriter, Episode, open_dataset
from refinevla_kit.errors import KitError
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.simulator.contract import PHASES, Array, SceneState

from .conftest import INSTRUCTION, small_policy


@pytest.fixture
def captures(policy: VLAPolicy, image: Array) -> list[Capture]:
    """Of different length, as those of different rationales are."""
    first = capture(policy, image, INSTRUCTION, rationale="the carrot", queries=KINDS)
    return [first, capture(policy, image[::-1], INSTRUCTION)]


def test_what_is_written_is_read(captures: list[Capture], tmp_path: Path) -> None:
    for wrote, read in zip(
        captures,
        load_captures(save_captures(captures, tmp_path / "seen.safetensors"), captures[0].checkpoint_hash),
        strict=True,
    ):
        for name in [
            field.name for field in fields(Capture) if field.name not in ("patches", "others", "action")
        ]:
            assert getattr(read, name) == getattr(wrote, name), name
        np.testing.assert_array_equal(read.patches, wrote.patches)
        np.testing.assert_array_equal(read.others, wrote.others)
        assert read.action.rationale == wrote.action.rationale
        for name in ("processed", "normalised", "tokens", "log_probability"):
            np.testing.assert_array_equal(getattr(read.action, name), getattr(wrote.action, name))


def test_a_capture_knows_its_picture(captures: list[Capture], image: Array) -> None:
    assert [one.image_hash for one in captures] == [image_hash(image), image_hash(image[::-1])]
    assert image_hash(image) != image_hash(image.reshape(160, 120, 3))


def test_another_checkpoints_file_is_refused(captures: list[Capture], image: Array, tmp_path: Path) -> None:
    path = save_captures(captures, tmp_path / "seen.safetensors")
    with pytest.raises(
        KitError, match=r"attention of small \(hash-0\+decoding=greedy\), not of the checkpoint hash-1"
    ):
        load_captures(path, "hash-1")
    with pytest.raises(KitError, match="one file a policy"):
        save_captures([*captures, capture(small_policy(1), image, INSTRUCTION)], tmp_path / "two.safetensors")
    with pytest.raises(KitError, match="0 policies"):
        save_captures([], tmp_path / "none.safetensors")


def test_what_is_no_file_of_captures_says_so(captures: list[Capture], tmp_path: Path) -> None:
    path = save_captures(captures, tmp_path / "seen.safetensors")
    path.write_bytes(path.read_bytes()[:-1000])
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    for wrong, says in (
        (path, "cannot be read"),
        (tmp_path / "absent", "cannot be read"),
        (tmp_path / "model.safetensors", "has format None"),
    ):
        with pytest.raises(KitError, match=says):
            load_captures(wrong)


def test_the_room_has_two_functions_and_loads_torch_only_for_them() -> None:
    code = """
import sys
import refinevla_kit.attention, refinevla_kit.attention.captured, refinevla_kit.attention.grounding
assert "torch" not in sys.modules
from refinevla_kit.attention import attribute, capture
assert attribute.__module__.endswith("attribution") and capture.__module__.endswith("forward")
assert "torch" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.raises(ImportError, match="nothing"):
        exec("from refinevla_kit.attention import nothing")


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
    assert demonstrations(dataset, [TASK], 2, tmp_path / "new").path == dataset
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
    made = demonstrations(real_dataset, [TASK], 1, tmp_path / "new")
    found = choose_frames(made, TASK, 1, 5)
    assert made.path == tmp_path / "new" and len(found) >= 3
    assert all(found[0].masks[thing].any() for thing in ("source", "target", "gripper"))


def test_of_two_things_in_turn_each_frame_has_its_own_sentence_and_object(tmp_path: Path) -> None:
    said = ["put the carrot on the plate"] * 2 + ["put the spoon on the towel"] * 2
    long = "widowx_language_carrot_on_plate_then_spoon_on_towel"
    one = episode(4)
    assert one.masks is not None
    carrot, plate = one.masks["carrot"], one.masks["plate"]
    masks = one.masks | {"spoon": carrot[:, ::-1], "towel": plate[:, ::-1]}
    with DatasetWriter(tmp_path / "set", fps=5, robot_type="widowx") as writer:
        writer.add(replace(one, task=long, instruction=said, masks=masks))
    frames = choose_frames(open_dataset(tmp_path / "set"), long, episodes=1)
    assert [frame.instruction for frame in frames] == said
    for frame, source in zip(frames, [carrot, carrot, masks["spoon"], masks["spoon"]], strict=True):
        np.testing.assert_array_equal(frame.masks["source"], source[0])
    assert "carrot" in frames[-1].masks and "spoon" in frames[0].masks
    assert [other_sentence(frames[place]) for place in (0, -1)] == [
        "put the spoon on the plate",
        "put the carrot on the towel",
    ]
