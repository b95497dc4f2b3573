"""Reads what lies in meta/ and in tables, as strangers write them: with a byte order mark, 3.0 or null as a
number.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from refinevla_kit.episodes.contract import EpisodeInfo
from refinevla_kit.episodes.damage import AGAIN, behind, exists, unreadable
from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import Array

VERSIONS = ("v2.0", "v2.1", "v3.0")
PATHS = {  # where info.json does not say: LeRobot's own
    "v2": (
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    ),
    "v3": (
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    ),
}
Rows = dict[int, dict[str, Any]]


def listing(path: Path, version: str, info: dict[str, Any]) -> Rows:
    """Episode index -> its row of the listing, checked against what info.json promises. A row may say too
    little to be used.
    """
    rows = _rows_v3(path) if version == "v3.0" else _rows_v2(path)
    totals = [whole(info.get(name)) for name in ("total_episodes", "total_frames")]
    if not rows:
        if totals[0]:
            raise KitError(f"{path}: meta lists no episode, info.json says {totals[0]}", AGAIN)
        raise KitError(f"{path} holds no episode yet", "record one, then come again")
    lengths = [
        whole(row.get("length")) or None for row in rows.values()
    ]  # of a row with none nothing is known
    counts = [len(rows), None if None in lengths else sum(length or 0 for length in lengths)]
    for total, count in zip(totals, counts, strict=True):
        if total is not None and count is not None and total != count:
            promised = f"info.json says {totals[0]} of {totals[1]}"
            what = f"{path}: meta lists {counts[0]} episodes of {counts[1]} frames, {promised}"
            remedy = (
                "copy the whole dataset again, or correct total_episodes and total_frames in meta/info.json"
            )
            raise KitError(what, remedy)
    return rows


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; a byte order mark, as Windows editors leave it, is passed over."""
    try:
        value = json.loads(behind(file).read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        if not isinstance(error, OSError):
            error = ValueError(f"it is not JSON: {error}")
        raise unreadable(file, error) from error
    if not isinstance(value, dict):
        raise KitError(f"{file} is not a JSON object", AGAIN)
    return value


def episode_info(row: dict[str, Any]) -> EpisodeInfo:
    kinds = {"task": str, "success": bool, "start": str, "seed": int}
    extra = {
        name: row[f"refinevla/{name}"]
        for name, kind in kinds.items()
        if isinstance(row.get(f"refinevla/{name}"), kind)
    }
    tasks = row.get("tasks")
    first = tasks[0] if isinstance(tasks, list) and tasks else tasks
    return EpisodeInfo(
        row["episode_index"], whole(row.get("length")) or 0, first if isinstance(first, str) else "", **extra
    )


def _by_number(rows: Iterable[Any], file: Path) -> Rows:
    numbered: Rows = {}
    for row in rows:
        number = whole(row.get("episode_index")) if isinstance(row, dict) else None
        if number is None:
            raise KitError(f"{file} lists an episode without a number ('episode_index')", AGAIN)
        numbered[number] = {**row, "episode_index": number}
    return numbered


def _rows_v3(path: Path) -> Rows:
    """Episode index -> its row of meta/episodes, statistics left out."""
    rows: list[dict[str, Any]] = []
    for file in sorted((path / "meta/episodes").glob("*/*.parquet")):
        names = [name for name in read_schema(file).names if not name.startswith("stats/")]
        rows += read_rows(file, names)
    return _by_number(rows, path / "meta/episodes")


def _rows_v2(path: Path) -> Rows:
    """Episode index -> its line of meta/episodes.jsonl."""
    file = path / "meta/episodes.jsonl"
    if not exists(file):
        raise KitError(f"{file} is missing", AGAIN)
    return _by_number(_json_lines(file), file)


def sentences(path: Path, version: str) -> dict[int, str]:
    """task_index -> sentence; {} where meta/ has none that can be read, for the listing names them too."""
    file = path / "meta/tasks.parquet"
    try:
        if version == "v3.0" and exists(file):
            rows = read_rows(file, read_schema(file).names)
        else:
            rows = _json_lines(path / "meta/tasks.jsonl") if exists(path / "meta/tasks.jsonl") else []
    except KitError as error:
        warnings.warn(
            f"the sentences of {path} are taken from the list of episodes: {error.what}", stacklevel=4
        )
        return {}
    named: dict[int, str] = {}
    for row in rows:
        if not isinstance(row, dict):
            continue
        texts = [
            row.get("task"),
            *row.values(),
        ]  # pandas keeps the sentence as an index, under a name of its own
        number, text = (
            whole(row.get("task_index")),
            next((each for each in texts if isinstance(each, str)), None),
        )
        if number is not None and text is not None:
            named[number] = text
    return named


def _json_lines(file: Path) -> list[Any]:
    try:
        return [
            json.loads(line)
            for line in behind(file).read_bytes().decode("utf-8-sig").split("\n")
            if line.strip()
        ]
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(
            file, error if isinstance(error, OSError) else f"it is not JSON lines: {error}"
        ) from error


def read_schema(file: Path) -> pa.Schema:
    if not exists(file):
        raise KitError(f"table {file} is missing", AGAIN)
    try:
        return pq.read_schema(behind(file))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise unreadable(file, error) from error


def read_parquet(file: Path, columns: Sequence[str]) -> pa.Table:
    """The named columns, as far as the file has them."""
    names = read_schema(file).names
    present = [name for name in columns if name in names]
    try:
        return pq.read_table(behind(file), columns=present, partitioning=None)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise unreadable(file, error) from error


def read_rows(file: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The named columns as one mapping a row."""
    try:
        return read_parquet(file, columns).to_pylist()
    except (
        ValueError,
        OverflowError,
        pa.ArrowException,
    ) as error:  # text that is no UTF-8, dates beyond Python's
        raise unreadable(file, error) from error


def matrix(column: pa.ChunkedArray) -> Array:
    """A column of lists (or of numbers) as float32 (T, D); a missing number is NaN. Raises `ValueError` for
    rows of different lengths.
    """
    array = column.combine_chunks()
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    if not pa.types.is_nested(array.type):
        return _float32(array).reshape(len(array), 1)
    if not _is_list(array.type):
        raise ValueError(f"holds {str(array.type).partition('<')[0]}, not lists of numbers")
    if array.null_count:
        raise ValueError(f"has no numbers in row {array.is_null().index(True).as_py()}")
    lengths = (
        np.full(len(array), array.type.list_size)
        if pa.types.is_fixed_size_list(array.type)
        else pc.list_value_length(array).to_numpy()
    )
    if len(array) and (odd := lengths != lengths[0]).any():
        row = int(odd.argmax())
        raise ValueError(f"has {lengths[row]} numbers in row {row}, but {lengths[0]} in row 0")
    if _is_list(array.type.value_type):
        if len(array) and lengths[0] != 1:
            raise ValueError(f"holds {lengths[0]} lists in each row, not one list of numbers")
        return matrix(pa.chunked_array([array.flatten()]))
    return _float32(array.flatten()).reshape(len(array), int(lengths[0]) if len(array) else 0)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _float32(array: pa.Array) -> Array:
    if not (
        pa.types.is_floating(array.type) or pa.types.is_integer(array.type) or pa.types.is_boolean(array.type)
    ):
        raise ValueError(f"holds {str(array.type).partition('<')[0]}, not numbers")
    with np.errstate(over="ignore"):  # what is beyond float32 is not finite, and counts as missing
        return np.asarray(array.to_numpy(zero_copy_only=False)).astype(np.float32)


def whole(value: Any) -> int | None:
    """`value` as an integer, None where it is none: a listing may hold 3, 3.0 or null."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or value != int(value)
    ):
        return None
    return int(value)


def _float(value: Any) -> float:
    """`value` as a number, NaN where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def number_of(value: Any, name: str) -> float:
    number = _float(value)
    if not math.isfinite(number):
        raise KitError(
            f"{name}={value!r} is no number",
            "give the value of the gripper's command that means open: 1, 0 or -1",
        )
    return number


def rate_of(fps: Any, path: Path) -> float:
    """Frames a second as a number, however info.json writes it."""
    rate = _float(fps)
    if not 0 < rate < 1e6 or isinstance(fps, bool):
        raise KitError(
            f"{path}/meta/info.json gives fps as {fps!r}", "write there the frames a second, a number above 0"
        )
    return int(rate) if rate == int(rate) else rate
