"""Rationales in LeRobot's language columns: by LeRobot's rules, nothing else changed, complete or not
there.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.language_columns.export import QUESTION, export_language
from refinevla_kit.episodes import open_dataset
from refinevla_kit.errors import KitError
from refinevla_kit.teacher import Refusal, load_rationales
from tests.conftest import REPOSITORY

DEMO = REPOSITORY / "data/demo"
TABLE = "data/chunk-000/file-000.parquet"


@pytest.fixture(scope="module")
def stored():
    """The demo's, of which the second is refused and the third finds the instruction wrong."""
    first, second, third, *others = load_rationales(DEMO / "rationales/oracle-segment.parquet")
    wrong = dataclasses.replace(third.rationale, instruction_matches=False, mismatch="a spoon")
    return [
        first,
        dataclasses.replace(second, rationale=None, refusal=Refusal("safety", "")),
        dataclasses.replace(third, rationale=wrong),
        *others,
    ]


@pytest.fixture(scope="module")
def exported(stored, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_language(DEMO, stored, tmp_path_factory.mktemp("export") / "spoken")


def test_each_rationale_is_there_from_its_frame_on(stored, exported: Path) -> None:
    rows = pq.read_table(exported / TABLE).to_pylist()
    usable = {
        (one.episode, one.start): one.rationale
        for one in stored
        if one.rationale and one.rationale.instruction_matches
    }
    assert len(usable) == len(stored) - 2
    for row in rows:
        persistent, events = row["language_persistent"], row["language_events"]
        assert [each["timestamp"] for each in persistent] == sorted(each["timestamp"] for each in persistent)
        mine = [(start, said) for (episode, start), said in usable.items() if episode == row["episode_index"]]
        for style, part in (("plan", "task_planning"), ("memory", "situation_analysis")):
            found = [
                (each["timestamp"], each["content"], each["role"], each["camera"])
                for each in persistent
                if each["style"] == style
            ]
            assert found == [
                (np.float32(start / 5), getattr(said, part), "assistant", None) for start, said in mine
            ]
        said = usable.get((row["episode_index"], row["frame_index"]))
        assert [(each["role"], each["style"], each["camera"]) for each in events] == (
            [
                ("assistant", "vqa", "observation.images.image_0"),
                ("user", "vqa", "observation.images.image_0"),
            ]
            if said
            else []
        )
        if said:
            answer = json.loads(events[0]["content"])
            assert answer.keys() == {
                "label",
                "attribute",
                "value",
            }  # one of the shapes that LeRobot's validator knows
            assert (answer["value"]["spatial_reasoning"], events[1]["content"]) == (
                said.spatial_reasoning,
                QUESTION,
            )
    assert sum(bool(row["language_events"]) for row in rows) == len(usable)


def test_the_columns_are_declared_and_one_row_group_is_one_episode(exported: Path) -> None:
    features = json.loads((exported / "meta/info.json").read_text())["features"]
    assert {name for name, feature in features.items() if feature["dtype"] == "language"} == {
        "language_persistent",
        "language_events",
    }
    file = pq.ParquetFile(exported / TABLE)
    assert file.num_row_groups == 12
    row = file.schema_arrow.field("language_persistent").type.value_type
    assert {field.name: field.type for field in row} == {
        "role": pa.string(),
        "content": pa.string(),
        "style": pa.string(),
        "timestamp": pa.float32(),
        "camera": pa.string(),
        "tool_calls": pa.list_(pa.string()),
    }


def test_all_else_is_as_before(exported: Path) -> None:
    old, new = open_dataset(DEMO), open_dataset(exported)
    assert new.episodes == old.episodes
    assert np.array_equal(new.actions(7), old.actions(7))
    assert np.array_equal(new.images(7, [2]), old.images(7, [2]))
    assert (
        pq.read_table(exported / TABLE)
        .drop_columns(["language_persistent", "language_events"])
        .equals(pq.read_table(DEMO / TABLE))
    )
    video = "videos/observation.images.image_0/chunk-000/file-000.mp4"
    assert (exported / video).read_bytes() == (DEMO / video).read_bytes()


def test_nothing_is_left_of_an_export_that_failed(stored, exported: Path, tmp_path: Path) -> None:
    stranger = dataclasses.replace(stored[0], episode=99)
    for dataset, rationales, output, why in (
        (DEMO, [*stored, stranger], tmp_path / "a", "no frame 0 of episode 99"),
        (DEMO, stored, exported, "exists, or lies in the dataset"),
        (DEMO, stored, DEMO / "inside", "exists, or lies in the dataset"),
        (exported, stored, tmp_path / "b", "language columns already"),
    ):
        with pytest.raises(KitError, match=why):
            export_language(dataset, rationales, output)
    assert list(tmp_path.iterdir()) == []
    assert not (DEMO / "inside").exists()


def test_the_program_exports(tmp_path: Path) -> None:
    table = DEMO / "rationales/oracle-segment.parquet"
    program = [sys.executable, "examples/language_columns/export.py"]
    arguments = [str(DEMO), str(table), str(tmp_path / "spoken")]
    subprocess.run(program + arguments, cwd=REPOSITORY, check=True)
    column = pq.read_table(tmp_path / "spoken" / TABLE)["language_persistent"]
    assert column[-1].as_py()[-1]["content"] == load_rationales(table)[-1].rationale.task_planning
