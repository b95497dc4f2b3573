"""All numbers of a dataset at once are those of its episodes one by one, and are read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from refinevla_kit.episodes import frame_table, open_dataset
from refinevla_kit.episodes.frame_table import FrameTable
from tests.episodes.strangers import TASKS, Columns, write_stranger

LENGTHS = tuple(3 + number % 4 for number in range(12))


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A dozen episodes count as many, and the user's cache is the test's own."""
    monkeypatch.setattr(frame_table, "CHECK_UP_TO", 10)
    monkeypatch.setattr("refinevla_kit.episodes.reader.CHECK_UP_TO", 10)
    monkeypatch.setattr(frame_table, "AT_ONCE", 5)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def one_by_one(path: Path) -> FrameTable:
    return frame_table._one_by_one(open_dataset(path))


def assert_same(found: FrameTable, expected: FrameTable) -> None:
    for name in ("episodes", "actions", "states", "frames"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)
        assert getattr(found, name).dtype == getattr(expected, name).dtype
    assert sentences(found) == sentences(expected)


def sentences(table: FrameTable) -> list[str]:
    """The instruction of each frame."""
    return [table.sentences[number] for number in table.said.tolist()]


def shuffled(columns: Columns, episode: int) -> Columns:
    """Rows in another order than their frames'."""
    order = np.random.default_rng(episode).permutation(len(columns["frame_index"]))
    return {name: pa.array(values).take(pa.array(order)) for name, values in columns.items()}


def without(name: str) -> Any:
    return lambda columns, _: {key: values for key, values in columns.items() if key != name}


def spoken(columns: Columns, episode: int) -> Columns:
    """A sentence in each frame, that changes and is missing once."""
    count = len(columns["frame_index"])
    return columns | {"prompt": pa.array([None, *(["go on", "stop"] * count)[: count - 1]])}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"version": "v2.0"},
        {"version": "v3.0"},
        {"column": shuffled},
        {"column": shuffled, "version": "v3.0"},
        {"column": without("episode_index")},
        {"column": without("task_index")},
        {"column": without("observation.state")},
    ],
    ids=["v2.1", "v2.0", "v3.0", "shuffled", "shuffled v3.0", "unnumbered", "no task", "no state"],
)
def test_at_once_is_as_one_by_one(options: dict[str, Any], tmp_path: Path) -> None:
    path = write_stranger(tmp_path / "data", lengths=LENGTHS, **options)
    found = frame_table.frame_table(open_dataset(path))
    assert_same(found, one_by_one(path))
    assert len(found) == sum(LENGTHS) and set(found.sentences) == set(TASKS)
    assert found.frames.tolist() == [frame for length in LENGTHS for frame in range(length)]


def test_a_sentence_of_each_frame(tmp_path: Path) -> None:
    told = {"prompt": {"dtype": "string", "shape": [1]}}
    told_of = lambda about: about | {"features": about["features"] | told}  # noqa: E731
    path = write_stranger(tmp_path / "data", lengths=LENGTHS, column=spoken, info=told_of)
    columns = {"instruction": "prompt"}
    source = open_dataset(path, columns=columns)
    found = frame_table.frame_table(source)
    assert_same(found, frame_table._one_by_one(open_dataset(path, columns=columns)))
    assert set(found.sentences) == {*TASKS, "go on", "stop"}


def test_it_is_read_once_and_again_when_a_file_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_stranger(tmp_path / "data", lengths=LENGTHS)
    first = frame_table.frame_table(open_dataset(path))
    with monkeypatch.context() as patched:
        patched.setattr(frame_table, "_at_once", None)  # calling it would fail
        assert_same(frame_table.frame_table(open_dataset(path)), first)
        (kept,) = (tmp_path / "cache/refinevla_kit/frames").iterdir()
        write_stranger(path, lengths=(*LENGTHS, 4))
        with pytest.raises(TypeError):
            frame_table.frame_table(open_dataset(path))
    assert len(frame_table.frame_table(open_dataset(path))) == sum(LENGTHS) + 4
    write_stranger(path, lengths=LENGTHS)
    mended = path / "data/chunk-000/episode_000003.parquet"
    table = pd.read_parquet(mended)
    table["action"] = table["action"] * 0 + 7
    table.to_parquet(mended)  # in its place
    found = frame_table.frame_table(open_dataset(path))
    assert (found.actions[found.episodes == 3] == 7).all()
    write_stranger(path, lengths=LENGTHS)
    kept.write_bytes(b"half")
    assert_same(frame_table.frame_table(open_dataset(path)), first)


def test_without_room_for_the_cache_it_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = write_stranger(tmp_path / "data", lengths=LENGTHS)
    assert len(frame_table.frame_table(open_dataset(path))) == sum(LENGTHS)


@pytest.mark.parametrize("kept", [False, True])
def test_what_cannot_be_read_is_left_out_and_said_each_time(kept: bool, tmp_path: Path) -> None:
    path = write_stranger(tmp_path / "data", lengths=LENGTHS)
    tables = path / "data/chunk-000"
    (tables / "episode_000003.parquet").write_bytes(b"not a table")
    (tables / "episode_000007.parquet").unlink()
    (tables / "episode_000009.parquet").write_bytes((tables / "episode_000008.parquet").read_bytes())
    if kept:
        frame_table.frame_table(open_dataset(path))
    source = open_dataset(path)
    found = frame_table.frame_table(source)
    assert set(source.left_out) == {3, 7, 9}
    assert "cannot be read" in source.left_out[3] and "is missing" in source.left_out[7]
    assert "holds 3 of the 4 frames of episode 9" in source.left_out[9]
    assert set(found.episodes.tolist()) == set(range(12)) - {3, 7, 9}


def test_a_link_to_a_table_that_is_gone_costs_its_episode_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("reader", "frame_table"):
        monkeypatch.setattr(f"refinevla_kit.episodes.{module}.CHECK_UP_TO", 1)
    path = write_stranger(tmp_path / "data", lengths=LENGTHS)
    lost = path / "data/chunk-000/episode_000003.parquet"
    lost.unlink()
    lost.symlink_to(tmp_path / "nowhere")
    dataset = open_dataset(path)
    found = frame_table.frame_table(dataset)
    assert set(found.episodes) == set(range(len(LENGTHS))) - {3} and 3 in dataset.left_out
