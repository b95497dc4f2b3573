"""Pictures that stay in their files train the same policy as pictures in memory."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refinevla_kit.episodes import DatasetWriter, Episode, open_dataset
from refinevla_kit.episodes.contract import ACTION_NAMES, STATE_NAMES
from refinevla_kit.errors import KitError
from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.examples import Examples, join, load_examples
from refinevla_kit.training.loop import fine_tune
from refinevla_kit.training.pictures import StreamedPictures
from refinevla_kit.vlas.action_tokens import UniformBins
from refinevla_kit.vlas.compact import CompactConfig, CompactVLA, build
from refinevla_kit.vlas.compact_parts import train_vocabulary
from tests.episodes.strangers import CAMERA, write_stranger

TINY = CompactConfig(layers=2, hidden=32, heads=2, feedforward=48, channels=8, proprioception=True)
CONFIG = TrainingConfig(
    4,
    6,
    lambda_reasoning=0,
    freeze_layers=0,
    freeze_tower=False,
    precision="fp32",
    validate_every=2,
    save_every=2,
)


def written(path: Path, episodes: int = 12, seed: int = 0) -> Path:
    """Short episodes of noise."""
    rng = np.random.default_rng(seed)
    names = {"action_names": ACTION_NAMES, "state_names": STATE_NAMES}
    with DatasetWriter(path, 5, "widowx", **names) as writer:
        for number in range(episodes):
            length = 2 + number % 3
            images = rng.integers(0, 256, (length, 48, 64, 3), dtype=np.uint8)
            moves = rng.uniform(-0.02, 0.02, (length, 7)).astype(np.float32)
            own = rng.normal(size=(length, 15)).astype(np.float32)
            writer.add(Episode(images, moves, own, f"put thing {number % 2} on the plate"))
    return path


def vla() -> CompactVLA:
    words = train_vocabulary(["put thing 0 on the plate", "put thing 1 on the plate"])
    return build(TINY, words, UniformBins((0.04, 0.04, 0.04, 0.04, 0.04, 0.04, 1.0)), 0)


def weights(model: CompactVLA) -> bytes:
    return b"".join(each.detach().numpy().tobytes() for each in model.model.parameters())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("streamed") / "data")


@pytest.fixture
def streamed(dataset: Path) -> Examples:
    return load_examples(dataset, stream=True)


def test_rows_are_the_same_pictures(dataset: Path, streamed: Examples) -> None:
    memory = load_examples(dataset)
    assert isinstance(memory.images, np.ndarray) and isinstance(streamed.images, StreamedPictures)
    assert streamed.images.shape == memory.images.shape and len(streamed) == len(memory)
    for rows in (np.array([5, 0, 17, 5]), np.arange(len(memory))):
        np.testing.assert_array_equal(streamed.shown(rows), memory.shown(rows))
    streamed.ahead([np.array([3, 4]), np.array([1])])
    np.testing.assert_array_equal(streamed.shown(np.array([1])), memory.shown(np.array([1])))
    np.testing.assert_array_equal(streamed.shown(np.array([3, 4])), memory.shown(np.array([3, 4])))
    np.testing.assert_array_equal(streamed.images[2:5], memory.images[2:5])
    for name in ("actions", "episodes", "proprioception"):
        np.testing.assert_array_equal(getattr(streamed, name), getattr(memory, name))


def test_large_pictures_are_streamed_unless_told_otherwise(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refinevla_kit.training.examples.STREAM_ABOVE", 1e5)
    assert isinstance(load_examples(dataset).images, StreamedPictures)
    assert isinstance(load_examples(dataset, stream=False).images, np.ndarray)


def test_the_same_policy_is_trained(dataset: Path, streamed: Examples, tmp_path: Path) -> None:
    found = []
    for name, examples in (("memory", load_examples(dataset)), ("streamed", streamed)):
        model = vla()
        fine_tune(model, examples, CONFIG, tmp_path / name, name, progress=False)
        found.append(weights(model))
    assert found[0] == found[1]


def test_a_run_goes_on_where_it_stopped(dataset: Path, streamed: Examples, tmp_path: Path) -> None:
    whole, stopped = vla(), vla()
    fine_tune(whole, streamed, CONFIG, tmp_path / "whole", "a", progress=False)

    class Stop(Exception):
        pass

    def stop(row: dict[str, object]) -> None:
        if row["step"] == 3:
            raise Stop

    with pytest.raises(Stop):
        fine_tune(stopped, streamed, CONFIG, tmp_path / "cut", "a", progress=False, watch=stop)
    again = vla()
    fine_tune(again, load_examples(dataset, stream=True), CONFIG, tmp_path / "cut", "a", progress=False)
    assert weights(again) == weights(whole)


def test_a_frozen_tower_is_run_at_every_step(streamed: Examples, tmp_path: Path) -> None:
    model = vla()
    history = fine_tune(
        model, streamed, replace(CONFIG, freeze_tower=True), tmp_path / "frozen", "a", progress=False
    )
    assert [row["split"] for row in history].count("train") == 4


def test_datasets_are_joined_without_being_read(dataset: Path, tmp_path: Path) -> None:
    other = written(tmp_path / "other", 3, seed=1)
    both = join([load_examples(path, stream=True) for path in (dataset, other)])
    memory = join([load_examples(path) for path in (dataset, other)])
    rows = np.array([0, len(both) - 1, 20])
    np.testing.assert_array_equal(both.shown(rows), memory.shown(rows))
    assert both.digest() == join([load_examples(path, stream=True) for path in (dataset, other)]).digest()
    assert both.digest() != load_examples(dataset, stream=True).digest()
    with pytest.raises(KitError, match="some of the examples are in memory, others are not"):
        join([load_examples(dataset), load_examples(other, stream=True)])


def damaged(folder: Path, episodes: tuple[int, ...], count: int = 12) -> Path:
    """A stranger's dataset of which these episodes' videos are cut off."""
    path = write_stranger(folder / "data", lengths=[3 + number % 3 for number in range(count)])
    for episode in episodes:
        video = path / f"videos/chunk-000/{CAMERA}/episode_{episode:06d}.mp4"
        video.write_bytes(video.read_bytes()[:300])
    return path


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A dozen episodes are as many as are not looked at in advance."""
    monkeypatch.setattr("refinevla_kit.episodes.reader.CHECK_UP_TO", 5)
    monkeypatch.setattr("refinevla_kit.episodes.frame_table.CHECK_UP_TO", 5)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.usefixtures("unchecked")
def test_an_episode_whose_pictures_are_damaged_is_left_out_while_training_goes_on(tmp_path: Path) -> None:
    path = damaged(tmp_path, (4, 5))
    examples = load_examples(path, stream=True)
    assert isinstance(examples.images, StreamedPictures)
    rows = np.flatnonzero(np.isin(examples.episodes, (3, 4, 5)))
    with pytest.warns(UserWarning, match="2 of 12 episodes of data cannot be read and are left out"):
        taken, images = examples.look(rows)
    assert set(examples.episodes[taken].tolist()) == {3, 6} and len(images) == len(rows)
    assert examples.images.sources[0].left_out.keys() == {4, 5}
    with pytest.warns(UserWarning, match="cannot be read"):
        backwards, _ = load_examples(path, stream=True).look(rows[::-1].copy())
    np.testing.assert_array_equal(backwards[::-1], taken)
    history = fine_tune(vla(), examples, CONFIG, tmp_path / "run", "a", progress=False)
    assert [row["split"] for row in history].count("train") == 4


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("stream", [None, True, False])
def test_the_first_episode_may_be_the_damaged_one(stream: bool | None, tmp_path: Path) -> None:
    examples = load_examples(damaged(tmp_path, (0,)), stream=stream)
    rows = np.arange(len(examples))
    with nullcontext() if stream is not True else pytest.warns(UserWarning, match="1 of 12 episodes"):
        taken, images = examples.look(rows)
    assert len(images) == len(rows) and set(examples.episodes[taken].tolist()) == set(range(1, 12))


@pytest.mark.usefixtures("unchecked")
def test_held_out_frames_are_replaced_by_held_out_ones(tmp_path: Path) -> None:
    examples = load_examples(damaged(tmp_path, (9,), 21), stream=True)
    with pytest.warns(UserWarning, match="1 of 21 episodes"):
        taken, _ = examples.look(np.flatnonzero(examples.episodes == 9))
    assert set(examples.episodes[taken].tolist()) == {19}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_a_dataset_of_which_no_picture_can_be_read_says_so(tmp_path: Path) -> None:
    path = damaged(tmp_path, tuple(range(12)))
    with pytest.raises(KitError, match=r"episode_0000\d\d.mp4 cannot be read"):
        load_examples(path, stream=True).images.shape  # noqa: B018


def test_pictures_of_another_camera_are_other_pictures(tmp_path: Path) -> None:
    cameras = ("observation.images.front", "observation.images.wrist")
    path = write_stranger(tmp_path / "d", cameras=cameras)
    digests = {load_examples(open_dataset(path, camera=camera), stream=True).digest() for camera in cameras}
    assert len(digests) == 2
