"""Datasets that the kit did not write are read too, and one that is cut off says so in one line."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refinevla_kit.episodes import DatasetWriter, open_dataset
from refinevla_kit.episodes.video import read_frames
from refinevla_kit.errors import KitError

from .conftest import make_episode

ACTION_NAMES = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]


@pytest.fixture
def v3(tmp_path, episodes) -> Path:
    """A dataset of three episodes in the kit's own layout."""
    with DatasetWriter(tmp_path / "v3", 5, "widowx") as writer:
        for episode in episodes:
            writer.add(episode)
    return tmp_path / "v3"


@pytest.fixture
def v2(tmp_path) -> Path:
    """Two episodes (4 and 3 frames) in the v2.0 layout, named as in the public Bridge conversion, two
    cameras; the grey level is the frame number.
    """
    root, lengths = tmp_path / "v2", (4, 3)
    cameras = ("observation.images.image_0", "observation.images.wrist")
    vector = {"dtype": "float32", "shape": [7], "names": {"motors": ACTION_NAMES}}
    features = {"action": vector, "observation.state": vector} | {
        name: {"dtype": "video", "shape": [16, 16, 3], "names": None} for name in cameras
    }
    info = {
        "codebase_version": "v2.0",
        "robot_type": "widowx",
        "total_episodes": 2,
        "total_frames": 7,
        "fps": 5,
        "chunks_size": 1,
        "features": features,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    listing = [{"episode_index": i, "tasks": [f"task {i}"], "length": n} for i, n in enumerate(lengths)]
    (root / "meta/episodes.jsonl").write_text("\n".join(json.dumps(line) for line in listing))
    for index, length in enumerate(lengths):
        (root / f"data/chunk-{index:03d}").mkdir(parents=True)
        numbers = np.arange(length * 7, dtype=np.float32).reshape(length, 7) / 1000
        table = {
            "action": numbers.tolist(),
            "observation.state": (-numbers).tolist(),
            "episode_index": [index] * length,
        }
        pq.write_table(pa.table(table), root / f"data/chunk-{index:03d}/episode_{index:06d}.parquet")
        for number, camera in enumerate(cameras):
            path = root / f"videos/chunk-{index:03d}/{camera}/episode_{index:06d}.mp4"
            path.parent.mkdir(parents=True)
            with av.open(str(path), "w") as container:
                stream = container.add_stream("libx264", rate=5)
                stream.width, stream.height, stream.pix_fmt, stream.time_base = (
                    16,
                    16,
                    "yuv420p",
                    Fraction(1, 5),
                )
                for t in range(length):
                    grey = np.full((16, 16, 3), 40 + 100 * number + 10 * t, np.uint8)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, "rgb24")))
                container.mux(stream.encode())
    return root


def test_v2_dataset(v2):
    dataset = open_dataset(v2)
    assert (dataset.version, dataset.fps, dataset.cameras) == (
        "v2.0",
        5,
        ("observation.images.image_0", "observation.images.wrist"),
    )
    assert [
        (info.length, info.instruction, info.task, info.success, info.start) for info in dataset.episodes
    ] == [(4, "task 0", "", None, None), (3, "task 1", "", None, None)]
    np.testing.assert_array_equal(dataset.actions(1), np.arange(21, dtype=np.float32).reshape(3, 7) / 1000)
    np.testing.assert_array_equal(
        dataset.proprioception(0), -np.arange(28, dtype=np.float32).reshape(4, 7) / 1000
    )
    assert dataset.images(0).mean((1, 2, 3)) == pytest.approx([40, 50, 60, 70], abs=3)
    assert dataset.images(1, camera="observation.images.wrist").mean((1, 2, 3)) == pytest.approx(
        [140, 150, 160], abs=3
    )
    assert dataset.states(0) is None and dataset.masks(0) is None


def test_actions_named_like_a_gripper_pose_count_as_displacements_unless_told_otherwise(v2):
    assert open_dataset(v2).deltas
    assert open_dataset(v2, deltas=False).deltas is False


def test_frames_are_found_by_number_in_any_order(v3):
    dataset = open_dataset(v3)
    whole = dataset.images(2)
    wanted = [11, 0, 7, 7, 3]
    np.testing.assert_array_equal(dataset.images(2, wanted), whole[wanted])
    assert dataset.images(2, []).shape == (0, 32, 48, 3)


def test_a_far_frame_is_found_by_seeking(tmp_path):
    """Further apart than it pays to decode on: the same pictures as decoding everything."""
    with DatasetWriter(tmp_path / "long", 5, "widowx") as writer:
        for seed in range(3):
            writer.add(make_episode(seed, frames=20, width=64))
        writer.add(make_episode(3, frames=80, height=32, width=64))
    dataset = open_dataset(tmp_path / "long")
    np.testing.assert_array_equal(dataset.images(3, [79, 2, 40]), dataset.images(3)[[79, 2, 40]])


def test_a_real_robots_dataset(real_dataset):
    """Unitree G1, v2.1: 26 absolute joint positions at 30 Hz, AV1 video, names in a list in a list."""
    dataset = open_dataset(real_dataset)
    assert (dataset.version, dataset.fps, len(dataset.action_names), dataset.deltas) == (
        "v2.1",
        30,
        26,
        False,
    )
    for info in dataset.episodes:
        actions = dataset.actions(info.index)
        assert actions.shape == (info.length, 26) and np.isfinite(actions).all()
        assert np.abs(np.diff(actions, axis=0)).max() < 0.5  # a position each, in radians: no jumps
    last = dataset.episodes[-1]
    images = dataset.images(last.index, [last.length - 1, 0, 100])
    assert images.shape == (3, 480, 640, 3) and images.std() > 20
    np.testing.assert_array_equal(dataset.images(last.index, [100]), images[2:])


def test_unknown_episode_camera_and_frame(v3):
    dataset = open_dataset(v3)
    for call in (dataset.actions, dataset.images, dataset.states, dataset.masks, dataset.proprioception):
        with pytest.raises(KitError, match="has no episode 7"):
            call(7)
    with pytest.raises(
        KitError, match=r"unknown camera 'wrist' -> choose one of observation\.images\.image_0"
    ):
        dataset.images(0, camera="wrist")
    with pytest.raises(KitError, match=r"unknown frame 5 -> choose 0 to 4"):
        dataset.images(0, [5])


def cut(path: Path) -> None:
    """Keep the first half of a file, as an interrupted copy does."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit_info(root: Path, **changes) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGE_V3 = {
    "no folder": (lambda root: shutil.rmtree(root), "is not a folder"),
    "no info": (lambda root: (root / "meta/info.json").unlink(), "is not a LeRobot dataset"),
    "info cut off": (lambda root: cut(root / "meta/info.json"), r"info\.json cannot be read \(Expecting"),
    "info not an object": (lambda root: (root / "meta/info.json").write_text("[]"), "not a JSON object"),
    "info without features": (
        lambda root: edit_info(root, features={}),
        "has no action: its features are none",
    ),
    "features of no table": (lambda root: edit_info(root, features=[]), "has no table of features"),
    "unknown version": (lambda root: edit_info(root, codebase_version="v1.6"), "has LeRobot version v1.6"),
    "more episodes promised": (lambda root: edit_info(root, total_episodes=9), "lists 3 episodes"),
    "more frames promised": (
        lambda root: edit_info(root, total_frames=99),
        "of 18 frames, info.json says 3 of 99",
    ),
    "another path": (
        lambda root: edit_info(root, data_path="data/{nonsense}.parquet"),
        r"\(KeyError\('nonsense'\)\) -> ",
    ),
    "no list of episodes": (
        lambda root: shutil.rmtree(root / "meta/episodes"),
        "meta lists 0 episodes .*, info.json says 3",
    ),
    "list cut off": (lambda root: cut(root / "meta/episodes/chunk-000/file-000.parquet"), "cannot be read"),
    "no table": (lambda root: (root / "data/chunk-000/file-000.parquet").unlink(), "is missing"),
    "table cut off": (lambda root: cut(root / "data/chunk-000/file-000.parquet"), "cannot be read"),
    "no video": (lambda root: next(root.rglob("*.mp4")).unlink(), "is missing"),
    "video cut off": (lambda root: cut(next(root.rglob("*.mp4"))), "cannot be read"),
    "video of another dataset": (
        lambda root: replace_video(root, 3),
        r"no episode of \S+ can be read; episode 0: \S+ holds 3 of 5 frames",
    ),
}


def shorten(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.slice(0, table.num_rows - 1), path)


def replace_video(root: Path, frames: int) -> None:
    """Put the mp4 of a shorter dataset in place of this one's."""
    with DatasetWriter(root.parent / "short", 5, "widowx") as writer:
        writer.add(make_episode(0, frames))
    shutil.copy(next((root.parent / "short").rglob("*.mp4")), next(root.rglob("*.mp4")))


@pytest.mark.parametrize("damage", DAMAGE_V3)
def test_a_damaged_v3_dataset_says_what_is_wrong(v3, damage):
    harm, message = DAMAGE_V3[damage]
    harm(v3)
    with pytest.raises(KitError, match=message) as error:
        open_dataset(v3)
    assert "\n" not in str(error.value) and error.value.remedy


def test_an_episode_that_lost_a_row_is_left_out(v3):
    shorten(v3 / "data/chunk-000/file-000.parquet")
    with pytest.warns(UserWarning, match="holds 11 of the 12 frames of episode 2"):
        dataset = open_dataset(v3)
    assert [info.index for info in dataset.episodes] == [0, 1]
    with pytest.raises(KitError, match="holds 11 of the 12 frames of episode 2"):
        open_dataset(v3, strict=True)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda root: (root / "meta/episodes.jsonl").unlink(), "episodes.jsonl is missing"),
        (
            lambda root: (root / "meta/episodes.jsonl").write_text('{"episode_ind'),
            r"episodes\.jsonl cannot be read \(Unterminated",
        ),
        (
            lambda root: (root / "meta/episodes.jsonl").write_text('{"episode_index": 0}'),
            "meta lists 1 episodes",
        ),
        (
            lambda root: (root / "meta/episodes.jsonl").write_text('{"length": 0}'),
            "an episode without a number",
        ),
    ],
)
def test_a_damaged_v2_dataset_says_what_is_wrong(v2, harm, message):
    harm(v2)
    with pytest.raises(KitError, match=message):
        open_dataset(v2)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda root: (root / "data/chunk-001/episode_000001.parquet").unlink(), "is missing"),
        (lambda root: cut(root / "data/chunk-001/episode_000001.parquet"), "cannot be read"),
        (
            lambda root: cut(root / "videos/chunk-001/observation.images.image_0/episode_000001.mp4"),
            "cannot be read|holds no video",
        ),
    ],
)
def test_a_damaged_v2_episode_is_left_out_and_the_reason_kept(v2, harm, message):
    harm(v2)
    with pytest.warns(UserWarning, match=message):
        dataset = open_dataset(v2)
    assert ([info.index for info in dataset.episodes], list(dataset.left_out)) == ([0], [1])
    for call in (dataset.actions, dataset.images, dataset.info):
        with pytest.raises(KitError, match=message):
            call(1)
    with pytest.raises(KitError, match=message):
        open_dataset(v2, strict=True)


def test_a_video_whose_index_promises_more_than_it_holds_is_found_when_decoded(tmp_path):
    """The index lies in front in some files: such a one opens even when its end is missing."""
    path = tmp_path / "front.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=5, options={"g": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for image in np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())
    cut(path)
    assert read_frames(path, [2], 5).shape == (1, 64, 64, 3)
    with pytest.raises(KitError, match=r"has no frame 39|cannot be decoded"):
        read_frames(path, [39], 5)


def test_a_damaged_sidecar(v3):
    cut(v3 / "simulator/episode_000001.npz")
    dataset = open_dataset(v3)
    with pytest.raises(KitError, match="cannot be read"):
        dataset.states(1)
    with pytest.raises(KitError, match="cannot be read"):
        dataset.masks(1)


def test_states_of_another_length_are_refused(v3):
    shutil.copy(v3 / "simulator/episode_000002.npz", v3 / "simulator/episode_000000.npz")
    with pytest.raises(KitError, match=r"12 of state\.source for the 5 frames"):
        open_dataset(v3).states(0)
