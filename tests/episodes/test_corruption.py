"""Property: whatever was done to a dataset's files, all that the kit does with it ends in success or in one
line, never in a traceback.

The suite tries a few hundred corruptions; REFINEVLA_EXAMPLES=10000 tries more.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.language_columns.export import export_language
from refinevla_kit.episodes import DatasetWriter, open_dataset
from refinevla_kit.errors import KitError
from refinevla_kit.teacher import OracleTeacher, annotate_dataset, load_rationales
from refinevla_kit.teacher.audit import audit_answers
from refinevla_kit.teacher.prompt import load_prompt, render
from refinevla_kit.teacher.requests import count_requests, requests
from refinevla_kit.training.examples import load_examples

from .conftest import make_episode
from .strangers import POSE, png, write_stranger, write_video

EXAMPLES = int(os.environ.get("REFINEVLA_EXAMPLES", "150"))
JUNK: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    7,
    2.0,
    0.5,
    -0.5,
    1e308,
    10**30,
    float("nan"),
    float("inf"),
    "",
    "x",
    "10",
    "../../x",
    "{",
    "{0}",
    "\x00",
    "a" * 5000,
    "\ud800",
    "depth",
    "task_index",
    [],
    [None],
    ["x"],
    [[]],
    [1, 2],
    {},
    {"a": 1},
    {"a": ["x"]},
    {"dtype": "video"},
    {"dtype": "image"},
]
TYPES = [
    pa.string(),
    pa.float64(),
    pa.int8(),
    pa.bool_(),
    pa.list_(pa.float64()),
    pa.list_(pa.list_(pa.float32())),
    pa.struct([("bytes", pa.binary())]),
]
OPTIONS: dict[str, list[Any]] = {
    "deltas": [True, False],
    "camera": ["front", "wrist", "x"],
    "episodes": [[0], "0-1", "0-9", [5], "x", [-1]],
    "gripper": [1, 0, -1, 255, "x"],
    "columns": [
        {"action": "action"},
        {"action": "observation.state"},
        {"state": ""},
        {"instruction": "timestamp"},
        {"action": "timestamp"},
    ],
}


class Files(dict[str, bytes]):
    """Name -> content; short where a failing example is printed."""

    def __repr__(self) -> str:
        return f"Files of {len(self)} names"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Files]:
    """Each dataset as its files."""
    root = tmp_path_factory.mktemp("originals")
    cameras = ("observation.images.front", "observation.images.wrist")
    for number, options in enumerate(
        [
            {},
            {"version": "v3.0", "names": POSE},
            {"version": "v2.0", "names": {"motors": POSE}, "cameras": cameras},
            {"version": "v3.0", "stills": True},
            {"stills": True, "action": "actions", "state": "state"},
        ]
    ):
        write_stranger(root / str(number), **options)
    with DatasetWriter(root / "own", 5, "widowx") as writer:
        for seed in (0, 1):
            writer.add(make_episode(seed, 6))
    write_video(root / "other.mp4", range(9), rate=30)
    found = []
    for folder in sorted(root.iterdir()):
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        if files:
            found.append(Files({str(file.relative_to(folder)): file.read_bytes() for file in files}))
    return found


def change_json(value: Any, dice: random.Random) -> Any:
    """Something in the document becomes something else, goes, or comes twice."""
    if isinstance(value, dict | list) and value and dice.random() < 0.85:
        key = dice.choice(list(value)) if isinstance(value, dict) else dice.randrange(len(value))
        if dice.random() < 0.15:
            del value[key]
        else:
            value[key] = change_json(value[key], dice)
        return value
    return dice.choice(JUNK)


def change_text(content: bytes, dice: random.Random) -> bytes:
    """A JSON document, or lines of them."""
    lines = content.decode().splitlines() if content.count(b"}\n") > 1 else [content.decode()]
    number = dice.randrange(len(lines))
    lines[number] = json.dumps(change_json(json.loads(lines[number]), dice))
    if dice.random() < 0.1:
        lines.append(dice.choice(lines))
    return dice.choice([b"", b"", b"\xef\xbb\xbf"]) + "\n".join(lines).encode("utf-8", "surrogatepass")


def change_table(content: bytes, dice: random.Random) -> bytes:
    """A column goes, comes under another name, in another type or with other cells; rows go, come twice or in
    another order.
    """
    table = pq.read_table(io.BytesIO(content)).replace_schema_metadata()
    name = dice.choice(table.column_names)
    place, column = table.column_names.index(name), table[name].combine_chunks()
    kind = dice.choice(["drop", "rename", "type", "cells", "rows", "twice", "order", "none"])
    if kind == "drop":
        table = table.drop_columns([name])
    elif kind == "rename":
        table = table.rename_columns(
            [
                dice.choice(["x", "action", "task_index", "tasks"]) if each == name else each
                for each in table.column_names
            ]
        )
    elif kind == "type":
        wanted = dice.choice(TYPES)
        try:
            table = table.set_column(place, name, column.cast(wanted))
        except (pa.ArrowException, ValueError):
            table = table.set_column(place, name, pa.nulls(len(table), wanted))
    elif kind == "cells":
        cells = column.to_pylist()
        for _ in range(dice.choice([1, 1, len(cells)])):
            at = dice.randrange(len(cells))
            cells[at] = cell(cells[at], dice)
        try:
            table = table.set_column(place, name, pa.array(cells, column.type))
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            table = table.set_column(place, name, pa.array([str(each) for each in cells]))
    elif kind in ("rows", "twice"):
        table = (
            table.slice(dice.randrange(3), dice.randrange(len(table) + 1))
            if kind == "rows"
            else pa.concat_tables([table, table.slice(0, 2)])
        )
    elif kind == "order":
        table = table.take(dice.sample(range(len(table)), len(table)))
    else:
        table = table.slice(0, 0)
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def cell(value: Any, dice: random.Random) -> Any:
    """Another value in its place."""
    if isinstance(value, list) and value and dice.random() < 0.7:
        at = dice.randrange(len(value))
        return dice.choice(
            [
                value[:-1],
                [*value, value[0]],
                [*value[:at], dice.choice([None, np.nan, np.inf, 1e30]), *value[at + 1 :]],
            ]
        )
    if isinstance(value, dict):
        return dice.choice(
            [
                None,
                {"bytes": None, "path": None},
                {"bytes": b"x", "path": None},
                {"bytes": None, "path": "../x"},
                {"bytes": png(9, 8)},
            ]
        )
    return dice.choice([None, np.nan, -1, 0, 1, 5, 2**40, 1e300, "x", 0.5])


def change_file(content: bytes, dice: random.Random, others: Files) -> bytes:
    """Cut off, emptied, with other bytes in it, a pointer, or another file."""
    kind = dice.choice(["cut", "empty", "bytes", "pointer", "other"])
    if kind == "bytes":
        changed = bytearray(content)
        for _ in range(dice.choice([1, 20])):
            changed[dice.randrange(len(changed))] = dice.randrange(256)
        return bytes(changed)
    return {
        "cut": content[: dice.randrange(len(content))],
        "empty": b"",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid x\n",
        "other": dice.choice(list(others.values())),
    }[kind]


def corrupt(files: Files, dice: random.Random) -> None:
    name = dice.choice(list(files))
    content = files.get(name, b"")
    kind = dice.choice(["structure"] * 6 + ["file", "gone"])
    if kind == "gone":
        del files[name]
    elif kind == "structure" and name.endswith((".json", ".jsonl", ".parquet")):
        try:
            files[name] = (
                change_table(content, dice) if name.endswith(".parquet") else change_text(content, dice)
            )
        except (OSError, ValueError, pa.ArrowException, IndexError):  # it was corrupted before
            files[name] = b"x"
    elif content:
        files[name] = change_file(content, dice, files)


def use(root: Path, options: dict[str, Any]) -> str:
    """All that is done with a dataset on its way to a policy; the last line that stopped something."""
    said = "all went well"

    def attempt(step: Callable[[], Any]) -> Any:
        nonlocal said
        try:
            return step()
        except KitError as error:
            said = str(error)
            assert "\n" not in said and error.remedy
            return None

    dataset = attempt(lambda: open_dataset(root, **options))
    attempt(lambda: load_examples(root))
    if dataset is None:
        return said
    assert str(dataset)
    for info in dataset.episodes[:2]:
        for read in (
            dataset.actions,
            dataset.proprioception,
            dataset.instructions,
            dataset.segments,
            dataset.images,
            dataset.states,
            dataset.masks,
        ):
            attempt(lambda read=read, info=info: read(info.index))
        for camera in dataset.cameras:
            attempt(lambda camera=camera, info=info: dataset.images(info.index, [0], camera))
    for granularity in ("segment", "trajectory", "step"):
        attempt(lambda granularity=granularity: count_requests(dataset, granularity))
        for request in (attempt(lambda granularity=granularity: list(requests(dataset, granularity))) or [])[
            :3
        ]:
            render(load_prompt(), request, state=True)
    table = attempt(
        lambda: annotate_dataset(dataset, OracleTeacher(0), progress=False, output=root.parent / "o.parquet")
    )
    answers = load_rationales(table) if table else []
    attempt(lambda: list(audit_answers(dataset, answers)))
    exported = attempt(lambda: export_language(dataset, answers, root.parent / "exported"))
    if exported is not None:
        attempt(lambda: open_dataset(exported))
    return said


@pytest.mark.slow
@settings(max_examples=EXAMPLES, deadline=None)
@given(
    which=st.integers(0, 5),
    seed=st.integers(0, 2**32),
    times=st.integers(1, 3),
    options=st.dictionaries(st.sampled_from(list(OPTIONS)), st.integers(0, 9), max_size=2),
)
def test_no_corruption_ends_in_a_traceback(originals, which, seed, times, options):
    files, dice = Files(originals[which]), random.Random(seed)
    for _ in range(times):
        corrupt(files, dice)
    folder = Path(tempfile.mkdtemp())
    try:
        for name, content in files.items():
            (folder / "dataset" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "dataset" / name).write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            use(
                folder / "dataset",
                {name: OPTIONS[name][number % len(OPTIONS[name])] for name, number in options.items()},
            )
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("which", range(6))
def test_what_is_not_corrupted_goes_all_the_way(originals, which, tmp_path):
    """The chain above does reach its end."""
    for name, content in originals[which].items():
        (tmp_path / "dataset" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "dataset" / name).write_bytes(content)
    said = use(tmp_path / "dataset", {})
    assert said == "all went well" or "language columns need v3.0" in said
