"""Reads what lies in meta/ and in tables, as strangers write them: with a byte order mark, 3.0 or null as a
number. What cannot be read is told in one line: what it is, where that shows, and what mends it.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from refinevla_kit.episodes.contract import EpisodeInfo
from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import Array

VERSIONS = ("v2.0", "v2.1", "v3.0")
PATHS = {  # where info.json does not say: LeRobot's own
    "v2": {
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    },
    "v3": {
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    },
}
AGAIN = "the dataset is cut off or damaged: copy or download it again"
LINK = re.compile(rb"(\.\./)+blobs/[0-9a-f]{40,64}")
POINTER = b"version https://git-lfs"
Rows = dict[int, dict[str, Any]]
# of files: what the disk, text that is no UTF-8, dates beyond Python's, and pyarrow raise
TABLE_ERRORS = (OSError, ValueError, OverflowError, pa.ArrowException)


def read_info(path: Path) -> dict[str, Any]:
    """The info.json of the dataset in folder `path`, of a version that the kit reads."""
    if not (path / "meta/info.json").is_file():
        what = "is not a LeRobot dataset (no meta/info.json)" if path.is_dir() else "is not a folder"
        remedy = "give the path of a LeRobot dataset (the folder that holds meta/, data/ and videos/)"
        raise KitError(f"{path} {what}", remedy)
    info = read_json(path / "meta/info.json")
    version = str(info.get("codebase_version"))
    if version not in VERSIONS:
        remedy = f"convert it to one of {', '.join(VERSIONS)} with LeRobot's own scripts"
        raise KitError(f"{path} has LeRobot version {version}", remedy)
    return info


def listing(path: Path, version: str, info: dict[str, Any]) -> Rows:
    """Episode index -> its row of the listing, checked against what info.json promises. A row may say too
    little to be used.
    """
    rows = _rows_v3(path) if version == "v3.0" else _rows_v2(path)
    episodes, frames = whole(info.get("total_episodes")), whole(info.get("total_frames"))
    if not rows:
        if episodes:
            raise KitError(f"{path}: meta lists no episode, info.json says {episodes}", AGAIN)
        raise KitError(f"{path} holds no episode yet", "record one, then come again")
    lengths = [whole(row.get("length")) or 0 for row in rows.values()]  # 0: nothing is known of it
    listed = sum(lengths) if all(lengths) else frames
    if episodes not in (None, len(rows)) or frames not in (None, listed):
        counted = sum(lengths) if all(lengths) else None
        what = f"{path}: meta lists {len(rows)} episodes of {counted} frames"
        remedy = "copy the whole dataset again, or correct total_episodes and total_frames in meta/info.json"
        raise KitError(f"{what}, info.json says {episodes} of {frames}", remedy)
    return rows


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; a byte order mark, as Windows editors leave it, is passed over."""
    try:
        value = json.loads(behind(file).read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise unreadable(file, error) from error
    except (ValueError, RecursionError) as error:
        raise unreadable(file, f"it is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise KitError(f"{file} is not a JSON object", AGAIN)
    return value


def episode_info(row: dict[str, Any]) -> EpisodeInfo:
    """A row of the listing; what it does not say, or says in another form, is left away."""
    kinds = {"task": str, "success": bool, "start": str, "seed": int}
    given = {name: row.get(f"refinevla/{name}") for name in kinds}
    extra: dict[str, Any] = {name: given[name] for name in kinds if isinstance(given[name], kinds[name])}
    tasks = row.get("tasks")
    first = tasks[0] if isinstance(tasks, list) and tasks else tasks
    sentence = first if isinstance(first, str) else ""
    return EpisodeInfo(row["episode_index"], whole(row.get("length")) or 0, sentence, **extra)


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


def sentences(path: Path, version: str) -> dict[Any, str]:
    """task_index -> sentence; {} where meta/ has none that can be read, for the listing names them too."""
    file = path / ("meta/tasks.parquet" if version == "v3.0" else "meta/tasks.jsonl")
    if not exists(file):
        file = path / "meta/tasks.jsonl"
    try:
        if not exists(file):
            return {}
        rows = _json_lines(file) if file.suffix == ".jsonl" else read_rows(file, read_schema(file).names)
    except KitError as error:
        what = f"the sentences of {path} are taken from the list of episodes: {error.what}"
        warnings.warn(what, stacklevel=3)
        return {}
    named: dict[Any, str] = {}
    for row in rows:
        if not isinstance(row, dict):
            continue
        # pandas keeps the sentence as an index, under a name of its own
        texts = [text for text in (row.get("task"), *row.values()) if isinstance(text, str)]
        number = whole(row.get("task_index"))
        if number is not None and texts:
            named[number] = texts[0]
    return named


def _json_lines(file: Path) -> list[Any]:
    try:
        lines = behind(file).read_bytes().decode("utf-8-sig").split("\n")
        return [json.loads(line) for line in lines if line.strip()]
    except OSError as error:
        raise unreadable(file, error) from error
    except (ValueError, RecursionError) as error:
        raise unreadable(file, f"it is not JSON lines: {error}") from error


def read_schema(file: Path) -> pa.Schema:
    if not exists(file):
        raise KitError(f"table {file} is missing", AGAIN)
    try:
        return pq.read_schema(behind(file))
    except TABLE_ERRORS as error:
        raise unreadable(file, error) from error


def read_parquet(file: Path, columns: Sequence[str]) -> pa.Table:
    """The named columns, as far as the file has them."""
    names = read_schema(file).names
    present = [name for name in columns if name in names]
    try:
        return pq.read_table(behind(file), columns=present, partitioning=None)
    except TABLE_ERRORS as error:
        raise unreadable(file, error) from error


def read_rows(file: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The named columns as one mapping a row."""
    try:
        return read_parquet(file, columns).to_pylist()
    except TABLE_ERRORS as error:
        raise unreadable(file, error) from error


def matrix(column: pa.ChunkedArray) -> Array:
    """A column of lists (or of numbers) as float32 (T, D); a missing number is NaN.

    Raises:
        ValueError: it holds something else, or rows of different lengths.
    """
    array = column.combine_chunks()
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    count = len(array)
    if not pa.types.is_nested(array.type):
        return _float32(array).reshape(count, 1)
    if not _is_list(array.type):
        raise ValueError(f"holds {_kind(array)}, not lists of numbers")
    if array.null_count:
        raise ValueError(f"has no numbers in row {array.is_null().index(True).as_py()}")
    lengths = pc.list_value_length(array).to_numpy()
    width = int(lengths[0]) if count else 0
    if (lengths != width).any():
        row = int((lengths != width).argmax())
        raise ValueError(f"has {lengths[row]} numbers in row {row}, but {width} in row 0")
    if not _is_list(array.type.value_type):
        return _float32(array.flatten()).reshape(count, width)
    if count and width != 1:
        raise ValueError(f"holds {width} lists in each row, not one list of numbers")
    return matrix(pa.chunked_array([array.flatten()]))


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _kind(array: pa.Array) -> str:
    return str(array.type).partition("<")[0]


def _float32(array: pa.Array) -> Array:
    kinds = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean)
    if not any(is_kind(array.type) for is_kind in kinds):
        raise ValueError(f"holds {_kind(array)}, not numbers")
    with np.errstate(over="ignore"):  # what is beyond float32 is not finite, and counts as missing
        return np.asarray(array.to_numpy(zero_copy_only=False)).astype(np.float32)


def whole(value: Any) -> int | None:
    """`value` as an integer, None where it is none: a listing may hold 3, 3.0 or null."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if math.isfinite(value) and value == int(value) else None


def as_number(value: Any) -> float:
    """`value` as a number, NaN where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def rate_of(fps: Any, path: Path) -> float:
    """Frames a second as a number, however info.json writes it."""
    rate = as_number(fps)
    if not 0 < rate < 1e6 or isinstance(fps, bool):
        raise KitError(
            f"{path}/meta/info.json gives fps as {fps!r}", "write there the frames a second, a number above 0"
        )
    return int(rate) if rate == int(rate) else rate


def behind(file: Path) -> Path:
    """The file, or the blob of a Hub cache that it names: where a copy keeps no links, their targets are left
    as text.

    Nothing but a blob is followed, so a stranger's file cannot lead elsewhere.
    """
    try:
        text = file.read_bytes().strip() if file.stat().st_size < 200 else b""
        if LINK.fullmatch(text):
            return file.parent / text.decode()
    except (OSError, ValueError):
        pass
    return file


def unreadable(file: Path, why: object, remedy: str = AGAIN) -> KitError:
    """The error to raise; a pointer of Git LFS, which stands where a clone left the file out, is called
    that.
    """
    return pointer_of(file) or KitError(f"{file} cannot be read ({why})", remedy)


def pointer_of(file: Path) -> KitError | None:
    """The error to raise where a pointer of Git LFS stands for the file; None elsewhere."""
    try:
        with file.open("rb") as stream:
            if stream.read(len(POINTER)) != POINTER:
                return None
    except (OSError, ValueError):
        return None
    what = f"{file} is a pointer of Git LFS, not the file itself"
    return KitError(what, f"fetch the files: run `git lfs pull` in {file.parent}")


def exists(file: Path) -> bool:
    """Whether there is such a file; False too for a name that no file system takes."""
    try:
        return file.is_file()
    except (OSError, ValueError):
        return False
