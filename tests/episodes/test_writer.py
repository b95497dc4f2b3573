"""A written dataset holds exactly what was added, in LeRobot's v3.0 layout, and exists only when it is
complete.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from refinevla_kit.episodes import DatasetWriter, Episode, open_dataset
from refinevla_kit.episodes.video import VideoWriter
from refinevla_kit.errors import KitError
from refinevla_kit.files import sha256

from .conftest import make_episode

# Grey levels, mean absolute error; hard colour edges on a 48x32 picture are the worst case of yuv420p
CODEC_TOLERANCE = 6.0


def write(path: Path, episodes: list[Episode], **options) -> Path:
    with DatasetWriter(path, 5, "widowx", **options) as writer:
        for episode in episodes:
            writer.add(episode)
    return path


def test_a_sentence_may_change_within_an_episode(tmp_path, episodes):
    first, length = episodes[0], len(episodes[0].images)
    sentences = ["open top drawer"] * 2 + ["place apple into top drawer"] * (length - 2)
    changing = dataclasses.replace(first, instruction=sentences)
    dataset = open_dataset(write(tmp_path / "changing", [changing, first]))
    assert dataset.instructions(0) == sentences and dataset.instructions(1) == [first.instruction] * length
    with pytest.raises(KitError, match=f"1 instructions for {length} frames"):
        write(tmp_path / "short", [dataclasses.replace(first, instruction=sentences[:1])])


def test_everything_comes_back(tmp_path, episodes):
    dataset = open_dataset(write(tmp_path / "three", episodes))
    assert (dataset.name, dataset.version, dataset.fps, dataset.robot_type) == ("three", "v3.0", 5, "widowx")
    assert dataset.cameras == ("observation.images.image_0",)
    assert dataset.action_names == ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    assert dataset.deltas
    for index, (info, episode) in enumerate(zip(dataset.episodes, episodes, strict=True)):
        assert (info.index, info.length, info.instruction) == (
            index,
            len(episode.images),
            episode.instruction,
        )
        assert (info.task, info.success, info.start, info.seed) == (
            episode.task,
            episode.success,
            episode.start,
            episode.seed,
        )
        np.testing.assert_array_equal(dataset.actions(index), episode.actions)
        np.testing.assert_array_equal(dataset.proprioception(index), episode.proprioception)
        for read, written in zip(dataset.states(index), episode.states, strict=True):
            for name, array in written.to_arrays().items():
                np.testing.assert_array_equal(read.to_arrays()[name], array)
                assert read.to_arrays()[name].dtype == array.dtype
        assert list(dataset.masks(index)) == list(episode.masks)
        for name, mask in episode.masks.items():
            np.testing.assert_array_equal(dataset.masks(index)[name], mask)
        assert np.abs(dataset.images(index).astype(int) - episode.images).mean() < CODEC_TOLERANCE


def test_colours_are_not_darkened(tmp_path):
    """Plain colours survive to within a level, and the errors do not lean one way: the policy sees what the
    simulator showed.
    """
    colours = np.random.default_rng(0).integers(0, 256, (16, 1, 1, 3))
    images = np.broadcast_to(colours, (16, 32, 32, 3)).astype(np.uint8)
    plain = dataclasses.replace(make_episode(0, 16), images=images, masks=None)
    error = open_dataset(write(tmp_path / "plain", [plain])).images(0).astype(int) - images
    assert np.abs(error).mean() < 1.5
    assert np.abs(error.mean((0, 1, 2))).max() < 0.7


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_numbers_come_back(tmp_path_factory, data):
    """Property: whatever finite numbers, sentences, names and masks go in come out, exactly."""
    frames, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    labels = data.draw(hnp.arrays(np.uint8, (frames, 16, 16), elements=st.integers(0, 2)))
    episode = Episode(
        images=data.draw(hnp.arrays(np.uint8, (frames, 1, 1, 3))).repeat(16, 1).repeat(16, 2),
        actions=data.draw(hnp.arrays(np.float32, (frames, width), elements=finite)),
        proprioception=data.draw(hnp.arrays(np.float32, (frames, 3), elements=finite)),
        instruction=data.draw(st.text(st.characters(codec="utf-8"), max_size=20)),
        seed=data.draw(st.integers(0, 2**32 - 1)),
        masks={"thing": labels == 1, "the other": labels == 2},
    )
    path = tmp_path_factory.mktemp("any") / "dataset"
    dataset = open_dataset(
        write(
            path,
            [episode],
            action_names=[f"a{i}" for i in range(width)],
            state_names=["p", "q", "r"],
            deltas=False,
        )
    )
    np.testing.assert_array_equal(dataset.actions(0), episode.actions)
    np.testing.assert_array_equal(dataset.proprioception(0), episode.proprioception)
    assert (dataset.episodes[0].instruction, dataset.episodes[0].seed) == (episode.instruction, episode.seed)
    assert dataset.states(0) is None and not dataset.deltas
    for name, mask in episode.masks.items():
        np.testing.assert_array_equal(dataset.masks(0)[name], mask)


def test_same_episodes_same_bytes(tmp_path, episodes):
    assert sha256(write(tmp_path / "a", episodes)) == sha256(write(tmp_path / "b", episodes))


CPU = Path("/proc/cpuinfo")
with_avx512 = pytest.mark.skipif(
    not CPU.exists() or "avx512f" not in CPU.read_text(), reason="only AVX-512 has this fault"
)


@pytest.mark.slow
@with_avx512
def test_a_video_has_the_same_bytes_whatever_is_in_memory(tmp_path):
    """An encoder that reads what nobody wrote differs in about one of 150 such videos."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:48, 0:64]
    moving = [np.stack([3 * x + 2 * t, 5 * y + t, x * y // 7 + 3 * t], axis=-1) % 256 for t in range(40)]
    images = (np.stack(moving) // 2 + rng.integers(0, 100, (40, 48, 64, 3))).astype(np.uint8)
    found, held = set(), []
    for _ in range(700):
        held = [*held[-50:], rng.bytes(int(rng.integers(1000, 200_000)))]
        writer = VideoWriter(tmp_path / "video.mp4", 5, 48, 64)
        writer.write(images)
        writer.close()
        found.add(sha256(tmp_path / "video.mp4"))
    assert len(found) == 1


def test_layout_and_meta_are_lerobots(tmp_path, episodes):
    """Paths, columns and shapes as huggingface/lerobot v0.4.4 reads them."""
    root = write(tmp_path / "dataset", episodes)
    info = json.loads((root / "meta/info.json").read_text())
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"], info["splits"]) == (
        3,
        18,
        2,
        {"train": "0:3"},
    )
    assert info["features"]["observation.images.image_0"]["shape"] == [32, 48, 3]
    assert set(pq.read_schema(root / "data/chunk-000/file-000.parquet").names) == set(info["features"]) - {
        "observation.images.image_0"
    }
    for field in pq.read_schema(root / "data/chunk-000/file-000.parquet"):
        feature = info["features"][field.name]
        size, scalar = feature["shape"][0], feature["dtype"].replace("float32", "float")
        assert str(field.type) == (scalar if size == 1 else f"fixed_size_list<element: {scalar}>[{size}]")
    rows = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [(row["dataset_from_index"], row["dataset_to_index"]) for row in rows] == [(0, 5), (5, 6), (6, 18)]
    camera = "videos/observation.images.image_0"
    assert [(row[f"{camera}/from_timestamp"], row[f"{camera}/to_timestamp"]) for row in rows] == [
        (0.0, 1.0),
        (1.0, 1.2),
        (1.2, 3.6),
    ]
    assert (root / "videos/observation.images.image_0/chunk-000/file-000.mp4").is_file()
    tasks = pd.read_parquet(root / "meta/tasks.parquet")
    assert list(tasks.index) == ["put carrot on plate", "put the spoon on the towel"]
    assert list(tasks["task_index"]) == [0, 1]


def test_statistics_are_the_datas_own(tmp_path, episodes):
    root = write(tmp_path / "dataset", episodes)
    stats = json.loads((root / "meta/stats.json").read_text())
    actions = np.concatenate([episode.actions for episode in episodes])
    pixels = np.concatenate([episode.images for episode in episodes]).reshape(-1, 3) / 255
    for name, function in {"min": np.min, "max": np.max, "mean": np.mean, "std": np.std}.items():
        np.testing.assert_allclose(stats["action"][name], function(actions, axis=0), rtol=1e-5)
        np.testing.assert_allclose(
            np.ravel(stats["observation.images.image_0"][name]), function(pixels, axis=0), rtol=1e-9
        )
    np.testing.assert_allclose(stats["action"]["q90"], np.quantile(actions, 0.9, axis=0), rtol=1e-5)
    assert np.shape(stats["observation.images.image_0"]["q50"]) == (3, 1, 1)
    assert (stats["action"]["count"], stats["observation.images.image_0"]["count"]) == ([18], [18])
    row = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()[2]
    np.testing.assert_allclose(row["stats/action/mean"], episodes[2].actions.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        row["stats/observation.images.image_0/max"], episodes[2].images.max((0, 1, 2)).reshape(3, 1, 1) / 255
    )


def test_a_full_video_file_is_followed_by_another(tmp_path, episodes):
    dataset = open_dataset(write(tmp_path / "dataset", episodes, video_megabytes=0))
    assert len(list(dataset.path.rglob("*.mp4"))) == 3
    for index, episode in enumerate(episodes):
        assert np.abs(dataset.images(index).astype(int) - episode.images).mean() < CODEC_TOLERANCE


def test_nothing_is_left_when_recording_breaks(tmp_path, episodes):
    with (
        pytest.raises(RuntimeError, match="the robot fell over"),
        DatasetWriter(tmp_path / "dataset", 5, "widowx") as writer,
    ):
        writer.add(episodes[0])
        assert not (tmp_path / "dataset").exists()
        raise RuntimeError("the robot fell over")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_dataset_is_only_replaced_on_request_and_when_complete(tmp_path, episodes):
    path = write(tmp_path / "dataset", episodes)
    with pytest.raises(KitError, match="exists already"):
        DatasetWriter(path, 5, "widowx")
    with (
        pytest.raises(KitError, match="no episode was added"),
        DatasetWriter(path, 5, "widowx", overwrite=True),
    ):
        pass
    assert len(open_dataset(path).episodes) == 3
    write(path, episodes[:1], overwrite=True)
    assert len(open_dataset(path).episodes) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": np.zeros((5, 6), np.float32)}, "actions is float32"),
        ({"actions": np.zeros((5, 7))}, "actions is float64"),
        ({"actions": np.full((5, 7), np.nan, np.float32)}, "not finite"),
        ({"proprioception": np.zeros((4, 8), np.float32)}, "proprioception is"),
        ({"images": np.zeros((5, 31, 48, 3), np.uint8), "masks": None}, "even height and width"),
        ({"images": np.zeros((0, 32, 48, 3), np.uint8)}, "actions is"),
        ({"states": []}, "0 states for 5 frames"),
        ({"masks": {"carrot": np.zeros((5, 8, 8), bool)}}, "mask 'carrot'"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused(tmp_path, change, message):
    with pytest.raises(KitError, match=message), DatasetWriter(tmp_path / "dataset", 5, "widowx") as writer:
        writer.add(dataclasses.replace(make_episode(), **change))
    assert list(tmp_path.iterdir()) == []


def test_every_picture_of_a_dataset_has_one_size(tmp_path):
    with (
        pytest.raises(KitError, match="episode 1: images is"),
        DatasetWriter(tmp_path / "dataset", 5, "widowx") as writer,
    ):
        writer.add(make_episode(height=32))
        writer.add(make_episode(height=48))


@pytest.mark.parametrize("free_kilobytes", [0, 20, 150])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, free_kilobytes):
    """On a real file system of 300 kB: full from the start, in the middle of the video, or when the tables
    are written.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a small file system takes root and a container that allows it")
    try:
        (disk / "ballast").write_bytes(bytes(1024 * (300 - free_kilobytes)))
        noise = np.random.default_rng(0).integers(0, 256, (10, 64, 64, 3), dtype=np.uint8)
        noisy = dataclasses.replace(make_episode(0, 10), images=noise, masks=None)
        with pytest.raises(KitError, match="no space left"):
            write(disk / "dataset", [noisy, noisy])
        assert [file.name for file in disk.iterdir()] == ["ballast"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
