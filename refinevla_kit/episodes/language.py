"""Rationales as LeRobot's language columns, so that other tools read and train on them: `language_persistent`
and `language_events`.

Columns, roles and styles are LeRobot's (lerobot.datasets.language, 0.6): a persistent row holds from its time
on until the next of its style and is kept with every frame of its episode; an event is kept with the one
frame that it is about. LeRobot knows no style for a rationale, so each becomes:

    plan    persistent, from its first frame on     task planning
    memory  persistent, from its first frame on     situation analysis: how far the task has come
    vqa     event of its first frame                `QUESTION`, and all four parts as JSON in LeRobot's
            "attribute" shape
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from refinevla_kit.episodes.meta import behind, read_json
from refinevla_kit.episodes.reader import EpisodeDataset, open_dataset
from refinevla_kit.errors import KitError
from refinevla_kit.files import replacing, write_json
from refinevla_kit.simulator.contract import Array

if TYPE_CHECKING:
    from refinevla_kit.teacher.answers import StoredRationale

QUESTION = "What is seen, how far has the task come, where is everything, and what comes next?"
TEXTS = [("role", pa.string()), ("content", pa.string()), ("style", pa.string())]
MORE = [("camera", pa.string()), ("tool_calls", pa.list_(pa.string()))]
PARTS = ("observation", "situation_analysis", "spatial_reasoning", "task_planning")
COLUMNS = {
    "language_persistent": pa.list_(pa.struct([*TEXTS, ("timestamp", pa.float32()), *MORE])),
    "language_events": pa.list_(pa.struct([*TEXTS, *MORE])),
}


def export_language(
    dataset: EpisodeDataset | str | Path, rationales: Sequence[StoredRationale], output: str | Path
) -> Path:
    """Write a copy of a v3.0 `dataset` with `rationales` in its language columns; where the disk allows,
    videos are shared by hard links.

    Refusals, and rationales that find the instruction wrong, are left out; as LeRobot has no word for an end,
    the plan before goes on through them.

    Returns:
        `output`, which exists complete or not at all.

    Raises:
        KitError: `output` exists or lies in the dataset; the dataset is v2.x or has language columns already;
            rationales of other episodes.
    """
    opened, target = open_dataset(dataset) if isinstance(dataset, str | Path) else dataset, Path(output)
    info = check_export(opened, target)
    lengths, left_out = {episode.index: episode.length for episode in opened.episodes}, opened.left_out
    by_episode: dict[int, list[StoredRationale]] = {}
    for row in rationales:
        if row.episode in left_out:
            continue
        if row.start >= lengths.get(row.episode, 0):
            what = f"{opened.path} has no frame {row.start} of episode {row.episode}"
            raise KitError(what, "give the rationales of this dataset")
        if row.rationale and row.rationale.instruction_matches:
            by_episode.setdefault(row.episode, []).append(row)
    with replacing(target) as folder:
        skipped = shutil.ignore_patterns(".*", "*.part")
        try:
            shutil.copytree(opened.path, folder, copy_function=_link, ignore=skipped)
        except shutil.Error as error:  # gathers what each file said
            full = any("No space left" in str(said) for said in error.args[0])
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error.args[0][0][-1])) from error
        try:
            for file in sorted(folder.glob("data/*/*.parquet")):
                _rewrite(file, by_episode, opened.camera or None, opened.fps)
            info["features"] |= {name: {"dtype": "language", "shape": [1], "names": None} for name in COLUMNS}
            write_json(folder / "meta/info.json", info)
        except (ValueError, TypeError, pa.ArrowException) as error:
            what = f"{opened.path} cannot be written anew ({error})"
            raise KitError(what, "mend its tables and meta/info.json as this says") from error
    return target


def check_export(dataset: EpisodeDataset | str | Path, output: str | Path) -> dict[str, Any]:
    """What of `export_language`'s refusals can be known before there are rationales.

    Returns:
        The dataset's info.json.

    Raises:
        KitError: `output` exists, cannot be made or lies in the dataset; the dataset is v2.x or has language
            columns already.
    """
    opened, target = open_dataset(dataset) if isinstance(dataset, str | Path) else dataset, Path(output)
    info = read_json(opened.path / "meta/info.json")
    if opened.version != "v3.0":
        what = f"{opened.path} has LeRobot version {opened.version}, language columns need v3.0"
        raise KitError(what, "convert it with LeRobot's own script")
    if COLUMNS.keys() & info["features"].keys():
        raise KitError(
            f"{opened.path} has language columns already", "export from the dataset as it was before"
        )
    if target.exists() or target.resolve().is_relative_to(opened.path.resolve()):
        raise KitError(f"{target} exists, or lies in the dataset", "give a new folder elsewhere")
    with suppress(InterruptedError), replacing(target):  # whether its folder can be made and written
        raise InterruptedError
    return info


def _rewrite(
    file: Path, rationales: dict[int, list[StoredRationale]], camera: str | None, fps: float
) -> None:
    """Add both columns to a table of frames, in their order, one row group an episode, as LeRobot's own
    writer does.
    """
    try:
        table = pq.read_table(file, partitioning=None)
        episodes, frames = _numbers(table, "episode_index"), _numbers(table, "frame_index")
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException):
        return  # all its episodes were left out, when the dataset was opened
    table = table.replace_schema_metadata()  # what Hugging Face says there of the columns no longer holds
    order = np.lexsort((frames, episodes))
    if (np.diff(order) < 0).any():
        table, episodes = table.take(order), episodes[order]
    schema = pa.schema([*table.schema, *COLUMNS.items()])
    bounds = [0, *(np.flatnonzero(np.diff(episodes)) + 1).tolist(), len(episodes)]
    with replacing(file) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for start, end in pairwise(bounds):
            part = table.slice(start, end - start)
            times = _times(part, fps)
            persistent: list[dict[str, Any]] = []
            events: list[list[dict[str, Any]]] = [[] for _ in times]
            for row in sorted(rationales.get(int(episodes[start]), []), key=lambda row: row.start):
                parts = {name: getattr(row.rationale, name) for name in PARTS}
                persistent += _persistent(parts, times[row.start])
                if camera:  # LeRobot ties a question to a camera
                    events[row.start] += _question(parts, camera)
            columns = (
                pa.array([persistent] * len(times), COLUMNS["language_persistent"]),
                pa.array(events, COLUMNS["language_events"]),
            )
            writer.write_table(pa.Table.from_arrays([*part.columns, *columns], schema=schema))


def _numbers(table: pa.Table, name: str) -> Array:
    """A column of numbers; of frames, that of the rows where the table does not number them."""
    if name == "frame_index" and name not in table.column_names:
        return np.arange(len(table))
    return np.asarray(table[name].to_numpy().astype(np.int64))


def _times(table: pa.Table, fps: float) -> list[float]:
    """Seconds of an episode's frames; by their number where the table does not say."""
    said = table["timestamp"].to_pylist() if "timestamp" in table.column_names else [None] * len(table)
    return [
        time if isinstance(time, int | float) and math.isfinite(time) else frame / fps
        for frame, time in enumerate(said)
    ]


def _persistent(parts: dict[str, str], time: float) -> list[dict[str, Any]]:
    """The rows that hold from `time` on."""
    styles = {"memory": "situation_analysis", "plan": "task_planning"}
    return [
        {"role": "assistant", "content": parts[part], "style": style, "timestamp": time}
        for style, part in styles.items()
    ]


def _question(parts: dict[str, str], camera: str) -> list[dict[str, Any]]:
    """The event of one frame: all that was written about it, and what was asked."""
    answer = json.dumps({"label": "scene", "attribute": "rationale", "value": parts}, ensure_ascii=False)
    return [
        {"role": role, "content": text, "style": "vqa", "camera": camera}
        for role, text in (("assistant", answer), ("user", QUESTION))
    ]


def _link(source: str, destination: str) -> None:
    source = str(behind(Path(source)).resolve())  # of a link, as in the Hub's cache, the file behind it
    if not Path(source).exists():  # to nowhere: what it led to was left out when the dataset was opened
        return
    with suppress(OSError):  # another disk, or one without links
        if destination.endswith((".mp4", ".npz")):  # nobody changes these in place
            os.link(source, destination)
            return
    shutil.copy2(source, destination)
