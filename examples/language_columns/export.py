"""Rationales as LeRobot's language columns, so that other tools read and train on them: `language_persistent`
and `language_events`.

    python examples/language_columns/export.py DATASET RATIONALES.parquet OUTPUT

Columns, roles and styles are LeRobot's (lerobot.datasets.language, 0.6): a persistent row holds from its time
on until the next of its style and is kept with every frame of its episode; an event is kept with the one
frame that it is about. LeRobot knows no style for a rationale, so each becomes:

    plan    persistent, from its first frame on     task planning
    memory  persistent, from its first frame on     situation analysis: how far the task has come
    vqa     event of its first frame                `QUESTION`, and all four parts as JSON in LeRobot's
            "attribute" shape
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from refinevla_kit.episodes.meta import behind, read_json
from refinevla_kit.episodes.reader import EpisodeDataset, open_dataset
from refinevla_kit.errors import KitError, as_kit_error
from refinevla_kit.files import replacing, write_json
from refinevla_kit.teacher import StoredRationale, load_rationales
from refinevla_kit.teacher.schema import PARTS

QUESTION = "What is seen, how far has the task come, where is everything, and what comes next?"
TEXTS = [("role", pa.string()), ("content", pa.string()), ("style", pa.string())]
MORE = [("camera", pa.string()), ("tool_calls", pa.list_(pa.string()))]
COLUMNS = {
    "language_persistent": pa.list_(pa.struct([*TEXTS, ("timestamp", pa.float32()), *MORE])),
    "language_events": pa.list_(pa.struct([*TEXTS, *MORE])),
}


def export_language(
    dataset: EpisodeDataset | str | Path, rationales: Sequence[StoredRationale], output: str | Path
) -> Path:
    """Write a copy of a v3.0 `dataset` with `rationales` in its language columns.

    Where the disk allows, videos are shared by hard links. Refusals, and rationales that find the instruction
    wrong, are left out. LeRobot has no word for an end: the plan before goes on through them.

    Returns:
        `output`, which exists complete or not at all.

    Raises:
        KitError: `output` exists, cannot be made or lies in the dataset; the dataset is v2.x or has language
            columns already; rationales of other episodes.
    """
    opened, target = open_dataset(dataset) if isinstance(dataset, str | Path) else dataset, Path(output)
    info = _checked(opened, target)
    lengths = {episode.index: episode.length for episode in opened.episodes}
    by_episode: dict[int, list[StoredRationale]] = {}
    for row in rationales:
        if row.episode in opened.left_out:
            continue
        if row.start >= lengths.get(row.episode, 0):
            what = f"{opened.path} has no frame {row.start} of episode {row.episode}"
            raise KitError(what, "give the rationales of this dataset")
        if row.rationale and row.rationale.instruction_matches:
            by_episode.setdefault(row.episode, []).append(row)
    remedy = "mend its tables and meta/info.json as this says"
    failures = (ValueError, TypeError, pa.ArrowException)
    with replacing(target) as folder, as_kit_error(f"{opened.path} cannot be written anew", remedy, failures):
        _copy(opened.path, folder)
        for file in sorted(folder.glob("data/*/*.parquet")):
            _rewrite(file, by_episode, opened.camera or None, opened.fps)
        info["features"] |= {name: {"dtype": "language", "shape": [1], "names": None} for name in COLUMNS}
        write_json(folder / "meta/info.json", info)
    return target


def _checked(dataset: EpisodeDataset, target: Path) -> dict[str, Any]:
    """The info.json of a dataset that can be exported to `target`. Raises `KitError` for any other."""
    info = read_json(dataset.path / "meta/info.json")
    if dataset.version != "v3.0":
        what = f"{dataset.path} has LeRobot version {dataset.version}, language columns need v3.0"
        raise KitError(what, "convert it with LeRobot's own script")
    if COLUMNS.keys() & info["features"].keys():
        what = f"{dataset.path} has language columns already"
        raise KitError(what, "export from the dataset as it was before")
    if target.exists() or target.resolve().is_relative_to(dataset.path.resolve()):
        raise KitError(f"{target} exists, or lies in the dataset", "give a new folder elsewhere")
    return info


def _copy(source: Path, folder: Path) -> None:
    """A dataset's folder without journals and hidden files."""
    try:
        skipped = shutil.ignore_patterns(".*", "*.part")
        shutil.copytree(source, folder, copy_function=_link, ignore=skipped)
    except shutil.Error as error:  # gathers what each file said
        full = any("No space left" in str(reason) for reason in error.args[0])
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error.args[0][0][-1])) from error


def _rewrite(
    file: Path, rationales: dict[int, list[StoredRationale]], camera: str | None, fps: float
) -> None:
    """Add both columns to a table of frames, in their order, one row group an episode, as LeRobot's own
    writer does.
    """
    try:
        table = pq.read_table(file, partitioning=None)
        episodes = np.asarray(table["episode_index"].to_numpy().astype(np.int64))
        frames = np.arange(len(table))
        if "frame_index" in table.column_names:
            frames = np.asarray(table["frame_index"].to_numpy().astype(np.int64))
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException):
        return  # all its episodes were left out, when the dataset was opened
    table = table.replace_schema_metadata()  # what Hugging Face says there of the columns no longer holds
    order = np.lexsort((frames, episodes))
    table, episodes = table.take(order), episodes[order]
    schema = pa.schema([*table.schema, *COLUMNS.items()])
    bounds = [0, *(np.flatnonzero(np.diff(episodes)) + 1).tolist(), len(episodes)]
    with replacing(file) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for start, end in pairwise(bounds):
            part = table.slice(start, end - start)
            columns = _columns(rationales.get(int(episodes[start]), []), _times(part, fps), camera)
            writer.write_table(pa.Table.from_arrays([*part.columns, *columns], schema=schema))


def _columns(
    rationales: Sequence[StoredRationale], times: Sequence[float], camera: str | None
) -> list[pa.Array]:
    """`COLUMNS` of one episode, whose frames are at `times`."""
    persistent: list[dict[str, Any]] = []
    events: list[list[dict[str, Any]]] = [[] for _ in times]
    for row in sorted(rationales, key=lambda row: row.start):
        parts = {name: getattr(row.rationale, name) for name in PARTS}
        for style, part in {"memory": "situation_analysis", "plan": "task_planning"}.items():
            text = {"role": "assistant", "content": parts[part], "style": style}
            persistent.append(text | {"timestamp": times[row.start]})
        if camera:  # LeRobot ties a question to a camera
            answer = {"label": "scene", "attribute": "rationale", "value": parts}
            said = {"assistant": json.dumps(answer, ensure_ascii=False), "user": QUESTION}
            for role, text in said.items():
                events[row.start].append({"role": role, "content": text, "style": "vqa", "camera": camera})
    values = ([persistent] * len(times), events)
    return [pa.array(rows, kind) for rows, kind in zip(values, COLUMNS.values(), strict=True)]


def _times(table: pa.Table, fps: float) -> list[float]:
    """Seconds of an episode's frames; by their number where the table does not say."""
    said = table["timestamp"].to_pylist() if "timestamp" in table.column_names else [None] * len(table)
    return [
        time if isinstance(time, int | float) and math.isfinite(time) else frame / fps
        for frame, time in enumerate(said)
    ]


def _link(source: str, destination: str) -> None:
    original = behind(Path(source)).resolve()  # of a link, as in the Hub's cache, the file behind it
    if not original.exists():  # to nowhere: what it led to was left out when the dataset was opened
        return
    with suppress(OSError):  # another disk, or one without links
        if destination.endswith((".mp4", ".npz")):  # nobody changes these in place
            os.link(original, destination)
            return
    shutil.copy2(original, destination)


def main() -> None:
    """Entry point of the program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("dataset", help="folder of a LeRobot v3.0 dataset")
    parser.add_argument("rationales", help="parquet file that `refinevla annotate` wrote")
    parser.add_argument("output", help="folder to write")
    given = parser.parse_args()
    exported = export_language(given.dataset, load_rationales(given.rationales), given.output)
    print(f"with language columns: {exported}")


if __name__ == "__main__":
    main()
