"""All numbers of a dataset's frames at once, everything but the pictures: of a hundred thousand episodes each
by itself would take milliseconds.

What was read of a large dataset is kept in the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`), by
the size and time of the files that it came from.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as tables
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from refinevla_kit.episodes import meta
from refinevla_kit.episodes.reader import CHECK_UP_TO, EpisodeDataset
from refinevla_kit.errors import KitError
from refinevla_kit.files import replacing
from refinevla_kit.simulator.contract import Array

VERSION = 1  # of what is kept
AT_ONCE = 4096  # files
NUMBERED = ("episode_index", "frame_index")
ARRAYS = ("episodes", "actions", "states", "said")


@dataclass(frozen=True)
class FrameTable:
    """N frames, episode by episode, each from its first frame to its last.

    Attributes:
        episodes: int64 (N,), number of the episode.
        actions: float32 (N, A), as recorded.
        states: float32 (N, P), the robot's own; (N, 0) where there is none.
        said, sentences: int64 (N,) which instruction holds, and the different ones.
    """

    episodes: Array
    actions: Array
    states: Array
    said: Array
    sentences: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.episodes)

    @property
    def frames(self) -> Array:
        """int64 (N,), number of the frame in its episode."""
        _, starts, lengths = np.unique(self.episodes, return_index=True, return_counts=True)
        return np.arange(len(self)) - np.repeat(starts, lengths)

    def only(self, kept: Array) -> FrameTable:
        """The frames of these episodes."""
        rows = np.isin(self.episodes, kept)
        if rows.all():
            return self
        return replace(self, **{name: getattr(self, name)[rows] for name in ARRAYS})


def frame_table(source: EpisodeDataset) -> FrameTable:
    """The tables of a dataset's episodes. An episode that cannot be read is left out of `source`."""
    if len(source.episodes) <= CHECK_UP_TO:
        return _one_by_one(source)
    place = _place(source)
    if place.is_file():
        with (
            suppress(SafetensorError, OSError, ValueError, KeyError, TypeError),
            safe_open(place, "np") as held,
        ):
            about, arrays = held.metadata(), {name: held.get_tensor(name) for name in ARRAYS}
            for episode, why in json.loads(about["left_out"]).items():
                if int(episode) not in source.left_out:
                    source.leave_out(int(episode), KitError(why, meta.AGAIN))
            return FrameTable(**arrays, sentences=tuple(json.loads(about["sentences"])))
    table = _at_once(source) or _one_by_one(source)
    arrays = {name: np.ascontiguousarray(getattr(table, name)) for name in ARRAYS}
    about = {"sentences": json.dumps(table.sentences), "left_out": json.dumps(source.left_out)}
    with suppress(KitError), replacing(place) as part:  # without room for it, it is read again next time
        save_file(arrays, part, about)
    return table


def _place(source: EpisodeDataset) -> Path:
    """Where a dataset's table is kept: other files, columns or episodes have another place."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "refinevla_kit" / "frames"
    looked_at = [file for part in ("meta", "data") for file in (source.path / part).rglob("*")]
    there = [file for file in sorted(looked_at) if file.exists()]  # no link to what is gone
    stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in there]
    columns = (source.columns.action, source.columns.state, source.columns.instruction)
    numbers = [info.index for info in source.episodes]
    made = [VERSION, str(source.path.resolve()), stamps, columns, numbers]
    return root / f"{hashlib.sha256(json.dumps(made).encode()).hexdigest()[:20]}.safetensors"


def _one_by_one(source: EpisodeDataset) -> FrameTable:
    parts, texts = [], list[str]()
    for info in source.episodes:
        try:
            actions, state = source.actions(info.index), source.proprioception(info.index)
            said = source.instructions(info.index)
        except KitError as error:
            source.leave_out(info.index, error)
            continue
        parts.append((np.full(len(actions), info.index), actions, state))
        texts += said
    sentences = tuple(dict.fromkeys(texts))
    number = {sentence: place for place, sentence in enumerate(sentences)}
    episodes, actions, states = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    which = np.array([number[text] for text in texts], np.int64)
    return FrameTable(episodes, actions, states, which, sentences)


def _at_once(source: EpisodeDataset) -> FrameTable | None:
    """None where the tables do not number their frames, or hold something else than the listing says: then
    each has to be looked at.
    """
    files: dict[Path, list[int]] = {}
    for info in source.episodes:
        files.setdefault(source.table_file(info.index), []).append(info.index)
    names = list(files)
    blocks = [names[first : first + AT_ONCE] for first in range(0, len(names), AT_ONCE)]
    parts = [part for block in blocks for part in _readable(source, block, files)]
    if not parts or any(set(NUMBERED) - set(part.column_names) for part in parts):
        return None
    table = pa.concat_tables(parts, promote_options="permissive")
    episodes, frames = (table[name].to_numpy().astype(np.int64) for name in NUMBERED)
    numbers, lengths = (each.tolist() for each in np.unique(episodes, return_counts=True))
    if dict(zip(numbers, lengths)) != {info.index: info.length for info in source.episodes}:
        return None
    order = np.lexsort((frames, episodes))
    if (np.diff(order) != 1).any():
        table, episodes = table.take(order), episodes[order]
    try:
        actions = meta.matrix(table[source.columns.action])
        states = np.zeros((len(episodes), 0), np.float32)
        if source.columns.state in table.column_names:
            states = meta.matrix(table[source.columns.state])
    except (KeyError, ValueError):
        return None
    return FrameTable(episodes, actions, states, *_said(source, table, episodes))


def _readable(source: EpisodeDataset, names: Sequence[Path], files: dict[Path, list[int]]) -> list[pa.Table]:
    """The tables of these files; where that fails, of each half, until it is known which one is damaged."""
    columns = source.columns
    wanted = dict.fromkeys([*NUMBERED, columns.action, columns.state, columns.instruction])
    try:
        found = tables.dataset([str(meta.behind(name)) for name in names], format="parquet")
        return [found.to_table(columns=[name for name in wanted if name in found.schema.names])]
    except Exception as error:  # whatever pyarrow raises about damaged files
        if len(names) > 1:
            halves = names[: len(names) // 2], names[len(names) // 2 :]
            return [part for half in halves for part in _readable(source, half, files)]
        why = f"cannot be read ({error})" if names[0].exists() else "is missing"
        for number in files[names[0]]:
            source.leave_out(number, KitError(f"{names[0]} {why}", meta.AGAIN))
        return []


def _said(source: EpisodeDataset, table: pa.Table, episodes: Array) -> tuple[Array, tuple[str, ...]]:
    """Which instruction holds in each frame, and the different ones; the episode's own where its cell says
    none.
    """
    number: dict[str, int] = {}
    said = np.full(len(episodes), -1, np.int64)
    if source.columns.instruction in table.column_names:
        cells = table[source.columns.instruction].combine_chunks().dictionary_encode(null_encoding="encode")
        texts = (source.sentence(cell) for cell in cells.dictionary.to_pylist())
        known = [-1 if text is None else number.setdefault(text, len(number)) for text in texts]
        said = np.array(known, np.int64)[cells.indices.to_numpy()]
    listed = {info.index: info.instruction for info in source.episodes}
    silent, which = np.unique(episodes[said < 0], return_inverse=True)
    own = [number.setdefault(listed[episode], len(number)) for episode in silent.tolist()]
    said[said < 0] = np.array(own, np.int64)[which]
    return said, tuple(number)
