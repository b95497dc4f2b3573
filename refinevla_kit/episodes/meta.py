"""Reads what lies in meta/ and in tables, as strangers write them: with a byte order mark, 3.0 or null as a
number. What cannot be read is told in one line: what it is, where that shows, and what mends it.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from refinevla_kit import hub
from refinevla_kit.episodes.contract import EpisodeInfo
from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import Array

VERSIONS = ("v2.0", "v2.1", "v3.0")
FOREIGN = r"\.(tfrecord|hdf5$|h5$|zarr$|bag$|mcap$)"  # files of datasets in other forms
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


@contextmanager
def reading(file: Path, remedy: str = AGAIN) -> Iterator[None]:
    """Whatever is raised while `file` is read becomes one line about it.

    Damaged files make pyarrow, NumPy, Pillow and FFmpeg raise anything.
    """
    try:
        yield
    except KitError:
        raise
    except FileNotFoundError as error:
        raise KitError(f"{file} is missing", AGAIN) from error
    except Exception as error:
        reason = getattr(error, "strerror", None) or error
        raise pointer_of(file) or KitError(f"{file} cannot be read ({reason})", remedy) from error


def read_info(path: Path) -> dict[str, Any]:
    """The info.json of the dataset in folder `path`, of a version that the kit reads."""
    if not (path / "meta/info.json").is_file():
        what = "is not a LeRobot dataset (no meta/info.json)" if path.is_dir() else "is not a folder"
        remedy = "give the path of a LeRobot dataset (the folder that holds meta/, data/ and videos/)"
        inside = sorted(str(file.parent.parent) for file in path.glob("*/meta/info.json"))
        if inside:
            remedy = f"give one of those in it, such as {inside[0]}"
        elif "huggingface.co" in path.parts:
            remedy = "give its name on the hub alone, OWNER/NAME"
        elif any(re.search(FOREIGN, file.name) for file in (path, *path.glob("*"), *path.glob("*/*"))):
            remedy = "convert it to LeRobot's layout first, as with any4lerobot's scripts"
        raise KitError(f"{path} {what}", remedy)
    info = read_json(path / "meta/info.json")
    version = str(info.get("codebase_version"))
    if version not in VERSIONS:
        remedy = f"convert it to one of {', '.join(VERSIONS)} with LeRobot's own scripts"
        raise KitError(f"{path} has LeRobot version {version}", remedy)
    return info


def count_frames(source: str | Path) -> int:
    """How many frames a dataset says it has; of the hub's, `meta/info.json` alone is fetched.

    Raises:
        KitError: it is none, or does not say so.
    """
    folder = (
        hub.download(str(source), ("meta/info.json",), "dataset") if hub.is_name(source) else Path(source)
    )
    frames = whole(read_info(folder).get("total_frames"))
    if not frames:
        raise KitError(f"{source} does not say how many frames it has (total_frames)", AGAIN)
    return frames


def listing(path: Path, version: str, info: dict[str, Any]) -> Rows:
    """Episode index -> its row of the listing, whose sums are held against info.json.

    Statistics are left out. A row may say too little to be used.
    """
    file = path / "meta/episodes.jsonl"
    rows: list[Any] = []
    if version == "v3.0":
        file = path / "meta/episodes"
        for table in sorted(file.glob("*/*.parquet")):
            rows += read_rows(table, [name for name in column_names(table) if not name.startswith("stats/")])
    else:
        rows = _json_lines(file)
    numbered: Rows = {}
    for row in rows:
        number = whole(row.get("episode_index")) if isinstance(row, dict) else None
        if number is None:
            raise KitError(f"{file} lists an episode without a number ('episode_index')", AGAIN)
        numbered[number] = {**row, "episode_index": number}
    episodes, frames = whole(info.get("total_episodes")), whole(info.get("total_frames"))
    if not numbered and not episodes:
        raise KitError(f"{path} holds no episode yet", "record one, then come again")
    lengths = [whole(row.get("length")) or 0 for row in numbered.values()]  # 0: nothing is known of it
    counted = sum(lengths) if all(lengths) else None
    if episodes not in (None, len(numbered)) or (frames != counted and None not in (frames, counted)):
        what = f"{path}: meta lists {len(numbered)} episodes of {counted} frames"
        remedy = "copy the whole dataset again, or correct total_episodes and total_frames in meta/info.json"
        raise KitError(f"{what}, info.json says {episodes} of {frames}", remedy)
    return numbered


def episode_info(row: dict[str, Any]) -> EpisodeInfo:
    """A row of the listing; what it does not say, or says in another form, is left away."""
    extra: dict[str, Any] = {}
    for name, kind in {"task": str, "success": bool, "start": str, "seed": int}.items():
        value = row.get(f"refinevla/{name}")
        if isinstance(value, kind):
            extra[name] = value
    tasks = row.get("tasks")
    first = tasks[0] if isinstance(tasks, list) and tasks else tasks
    sentence = first if isinstance(first, str) else ""
    return EpisodeInfo(row["episode_index"], whole(row.get("length")) or 0, sentence, **extra)


def sentences(path: Path) -> dict[Any, str]:
    """task_index -> sentence; {} where meta/ has none that can be read, for the listing names them too."""
    table, lines = path / "meta/tasks.parquet", path / "meta/tasks.jsonl"
    rows: list[Any] = []
    try:
        if table.is_file():
            rows = read_rows(table, column_names(table))
        elif lines.is_file():
            rows = _json_lines(lines)
    except KitError as error:
        what = f"the sentences of {path} are taken from the list of episodes: {error.what}"
        warnings.warn(what, stacklevel=3)
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


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; a byte order mark, as Windows editors leave it, is passed over."""
    with reading(file):
        value = json.loads(_text(file))
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
        return value


def _json_lines(file: Path) -> list[Any]:
    with reading(file):
        return [json.loads(line) for line in _text(file).split("\n") if line.strip()]


def _text(file: Path) -> str:
    return behind(file).read_bytes().decode("utf-8-sig")


def column_names(file: Path) -> list[str]:
    """Names of a table's columns."""
    with reading(file):
        return pq.read_schema(behind(file)).names


def read_parquet(file: Path, columns: Sequence[str]) -> pa.Table:
    """The named columns, as far as the file has them."""
    present = column_names(file)
    with reading(file):
        wanted = [name for name in columns if name in present]
        return pq.read_table(behind(file), columns=wanted, partitioning=None)


def read_rows(file: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The named columns as one mapping a row."""
    with reading(file):
        return read_parquet(file, columns).to_pylist()


def matrix(column: pa.ChunkedArray) -> Array:
    """A column of lists (or of numbers) as float32 (T, D); a missing number is NaN.

    Raises:
        ValueError: it holds something else, or rows of different lengths.
    """
    array = column.combine_chunks()
    count, width = len(array), 1
    while pa.types.is_nested(array.type):
        kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        if not any(is_kind(array.type) for is_kind in kinds):
            raise ValueError(f"holds {_kind(array)}, not lists of numbers")
        if array.null_count:
            raise ValueError(f"has no numbers in row {array.is_null().index(True).as_py()}")
        if width > 1:
            raise ValueError(f"holds {width} lists in each row, not one list of numbers")
        lengths = pc.list_value_length(array).to_numpy()
        width = int(lengths[0]) if len(lengths) else 0
        if (lengths != width).any():
            row = int((lengths != width).argmax())
            raise ValueError(f"has {lengths[row]} numbers in row {row}, but {width} in row 0")
        array = array.flatten()
    kinds = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean)
    if not any(is_kind(array.type) for is_kind in kinds):
        raise ValueError(f"holds {_kind(array)}, not numbers")
    with np.errstate(over="ignore"):  # what is beyond float32 is not finite, and counts as missing
        values = array.to_numpy(zero_copy_only=False).astype(np.float32)
    return values.reshape(count, width)


def _kind(array: pa.Array) -> str:
    return str(array.type).partition("<")[0]


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
        remedy = "write there the frames a second, a number above 0"
        raise KitError(f"{path}/meta/info.json gives fps as {fps!r}", remedy)
    return int(rate) if rate == int(rate) else rate


def behind(file: Path) -> Path:
    """The file, or the blob of a Hub cache that it names.

    Where a copy keeps no links, their targets are left as text. Nothing but a blob is followed, so a
    stranger's file cannot lead elsewhere.
    """
    with suppress(OSError, ValueError):
        text = file.read_bytes().strip() if file.stat().st_size < 200 else b""
        if LINK.fullmatch(text):
            return file.parent / text.decode()
    return file


def pointer_of(file: Path) -> KitError | None:
    """The error to raise where a pointer of Git LFS stands for the file; None elsewhere.

    A clone without LFS leaves such pointers in the place of files.
    """
    with suppress(OSError, ValueError), file.open("rb") as stream:
        if stream.read(len(POINTER)) == POINTER:
            what = f"{file} is a pointer of Git LFS, not the file itself"
            return KitError(what, f"fetch the files: run `git lfs pull` in {file.parent}")
    return None
