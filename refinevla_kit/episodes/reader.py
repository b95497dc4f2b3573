"""Reads LeRobot datasets of all three layouts in use (v2.0, v2.1, v3.0), whoever made them; pictures are decoded when asked for.

v2.x keeps one parquet and one mp4 an episode and the listing in JSON lines; v3.0 keeps many episodes a file and the listing in parquet, with the
time at which an episode starts in its mp4. What is missing or cut off is said in one line, on opening where that is cheap, else on reading.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from refinevla_kit.episodes import sidecar, video
from refinevla_kit.episodes.contract import ACTION_NAMES, EpisodeInfo
from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import Array, SceneState

VERSIONS = ("v2.0", "v2.1", "v3.0")
CHECK_UP_TO = 100  # episodes; larger datasets are not opened file by file in advance
AGAIN = "the dataset is cut off or damaged: copy or download it again"


def open_dataset(path: str | Path, deltas: bool | None = None) -> EpisodeDataset:
    """Open the LeRobot dataset in folder `path`.

    Args:
        path: the folder that holds meta/, data/ and videos/.
        deltas: whether actions are displacements; None asks the dataset (see `EpisodeDataset.deltas`).

    Raises:
        KitError: no dataset there, an unknown version, meta missing or damaged, files missing or shorter than the listing says. Of a dataset
            with more than 100 episodes the data files are checked when read (or by `check`).
    """
    dataset = EpisodeDataset(Path(path), deltas)
    if len(dataset.episodes) <= CHECK_UP_TO:
        dataset.check()
    return dataset


class EpisodeDataset:
    """A LeRobot dataset; make it with `open_dataset`. Episodes are named by their `EpisodeInfo.index`.

    Attributes:
        path, name: the folder and its last part. version: "v2.0", "v2.1" or "v3.0". fps: frames a second. robot_type: as recorded.
        cameras: names of the video features, sorted. action_names, state_names: name of each dimension of action and proprioception, () where the
            dataset gives none.
        deltas: actions are displacements, not absolute positions: what the kit's own datasets say, and what is assumed of 7-D actions named
            x y z roll pitch yaw gripper (the Open X-Embodiment convention).
        episodes: the listing, one `EpisodeInfo` each.
    """

    def __init__(self, path: Path, deltas: bool | None = None) -> None:
        self.path, self.name = path, path.resolve().name
        if not path.is_dir():
            raise KitError(f"{path} is not a folder", "give the path of a LeRobot dataset (the folder that holds meta/, data/ and videos/)")
        if not (path / "meta/info.json").is_file():
            raise KitError(f"{path} is not a LeRobot dataset (no meta/info.json)", "give the folder that holds meta/, data/ and videos/")
        info = _read_json(path / "meta/info.json")
        self.version = str(info.get("codebase_version"))
        if self.version not in VERSIONS:
            raise KitError(f"{path} has LeRobot version {self.version}", f"convert it to one of {', '.join(VERSIONS)} with LeRobot's own scripts")
        try:
            self.fps, self.robot_type, features = info["fps"], str(info.get("robot_type") or "unknown"), info["features"]
            self.cameras = tuple(sorted(name for name, feature in features.items() if feature["dtype"] == "video"))
            self.action_names = _flat_names(features["action"].get("names"))
            self.state_names = _flat_names(features.get("observation.state", {}).get("names"))
            self._data_path, self._video_path = info["data_path"], info.get("video_path") or ""
            self._chunk, totals = info.get("chunks_size", 1000), (info["total_episodes"], info["total_frames"])
        except (KeyError, TypeError, AttributeError) as error:
            raise KitError(f"{path}/meta/info.json lacks or mangles {error}", AGAIN) from error
        named = info.get("refinevla", {}).get("deltas", self.action_names == ACTION_NAMES)
        self.deltas: bool = bool(named if deltas is None else deltas)
        try:
            self._rows = _rows_v3(path) if self.version == "v3.0" else _rows_v2(path)
            self.episodes = tuple(_episode_info(row) for row in self._rows.values())
        except (KeyError, TypeError, IndexError) as error:
            raise KitError(f"{path}: the list of episodes in meta/ lacks {error}", AGAIN) from error
        found = (len(self.episodes), sum(episode.length for episode in self.episodes))
        if found != totals:
            raise KitError(f"{path}: meta lists {found[0]} episodes of {found[1]} frames, info.json says {totals[0]} of {totals[1]}", AGAIN)
        self._table = lru_cache(maxsize=8)(self._read_table)  # v3.0: the whole dataset is a few files; v2.x: neighbours are cheap to re-read

    def actions(self, episode: int) -> Array:
        """float32 (T, A), as recorded."""
        return self._column(episode, "action")

    def proprioception(self, episode: int) -> Array:
        """float32 (T, P): the feature observation.state; (T, 0) where there is none."""
        return self._column(episode, "observation.state")

    def images(self, episode: int, frames: Sequence[int] | None = None, camera: str | None = None) -> Array:
        """Decode frames.

        Args:
            episode: index of the episode.
            frames: frame numbers within the episode, in any order; None means all.
            camera: one of `cameras`; None means the first.

        Returns:
            uint8 (len(frames), H, W, 3) RGB.
        """
        length = self.info(episode).length
        wanted = list(range(length) if frames is None else frames)
        if bad := [frame for frame in wanted if not 0 <= frame < length]:
            raise KitError(f"episode {episode} of {self.name} has no frame {bad[0]}", f"choose frames from 0 to {length - 1}")
        path, offset = self._video_file(episode, camera)
        return video.read_frames(path, [offset + frame for frame in wanted], self.fps)

    def states(self, episode: int) -> list[SceneState] | None:
        """The simulator's privileged state of each frame; None for a real robot's dataset."""
        self.info(episode)
        states = sidecar.read_states(self.path, episode)
        if states is not None and len(states) != self.info(episode).length:
            raise KitError(f"{self.path}: {len(states)} states for the {self.info(episode).length} frames of episode {episode}", AGAIN)
        return states

    def masks(self, episode: int) -> dict[str, Array] | None:
        """name -> bool (T, H, W), visible pixels of each thing; None for a real robot's dataset."""
        self.info(episode)
        return sidecar.read_masks(self.path, episode)

    def info(self, episode: int) -> EpisodeInfo:
        """The listing's entry; raises `KitError` for an unknown episode."""
        if episode not in self._rows:
            raise KitError(f"{self.name} has no episode {episode}", f"choose one of {len(self.episodes)}, 0 to {max(self._rows, default=0)}")
        return _episode_info(self._rows[episode])

    def check(self) -> None:
        """Look at every file (tables read, videos counted, not decoded); raises `KitError` for the first that is missing, damaged or too short."""
        videos: dict[Path, int] = {}
        for episode in self.episodes:
            self.actions(episode.index)
            for camera in self.cameras:
                path, offset = self._video_file(episode.index, camera)
                videos[path] = max(videos.get(path, 0), offset + episode.length)
        for path, frames in videos.items():
            if (count := video.count_frames(path)) < frames:
                raise KitError(f"{path} holds {count} of {frames} frames", AGAIN)

    def _column(self, episode: int, name: str) -> Array:
        length = self.info(episode).length
        path = self.path / self._format(self._data_path, episode, "data")
        columns = self._table(path)
        rows = np.flatnonzero(columns["episode_index"] == episode)
        if len(rows) != length:
            raise KitError(f"{path} holds {len(rows)} of the {length} frames of episode {episode}", AGAIN)
        if name not in columns:
            return np.zeros((length, 0), np.float32)
        return np.ascontiguousarray(columns[name][rows])

    def _read_table(self, path: Path) -> dict[str, Array]:
        table = _read_parquet(path, ["episode_index", "action", "observation.state"])
        vectors = [name for name in table.column_names if name != "episode_index"]
        try:
            columns = {name: _matrix(table[name]) for name in vectors}
            return columns | {"episode_index": table["episode_index"].to_numpy()}
        except (KeyError, ValueError, pa.ArrowException) as error:
            raise KitError(f"{path} is not a table of frames ({error})", AGAIN) from error

    def _video_file(self, episode: int, camera: str | None) -> tuple[Path, int]:
        """The mp4 of an episode and the number of its first frame in it."""
        row = self._rows[self.info(episode).index]
        if not self.cameras:
            raise KitError(f"{self.name} has no video", "pictures kept in parquet are not read: convert them to video with LeRobot's own scripts")
        name = camera or self.cameras[0]
        if name not in self.cameras:
            raise KitError(f"{self.name} has no camera {name!r}", f"choose one of {', '.join(self.cameras)}")
        start = row.get(f"videos/{name}/from_timestamp", 0.0)
        return self.path / self._format(self._video_path, episode, f"videos/{name}", video_key=name), round(start * self.fps)

    def _format(self, template: str, episode: int, kind: str, **values: Any) -> str:
        row = self._rows[episode]
        place = {name: row[f"{kind}/{name}"] for name in ("chunk_index", "file_index") if f"{kind}/{name}" in row}
        try:
            return template.format(episode_index=episode, episode_chunk=episode // self._chunk, **place, **values)
        except (KeyError, IndexError, ValueError) as error:
            raise KitError(f"{self.path}: the path {template!r} in info.json needs {error}, which meta does not give", AGAIN) from error


def _episode_info(row: dict[str, Any]) -> EpisodeInfo:
    extra = {name: row[f"refinevla/{name}"] for name in ("task", "success", "start", "seed") if f"refinevla/{name}" in row}
    return EpisodeInfo(row["episode_index"], row["length"], (row["tasks"] or [""])[0], **extra)


def _rows_v3(path: Path) -> dict[int, dict[str, Any]]:
    """Episode index -> its row of meta/episodes, statistics left out."""
    files = sorted((path / "meta/episodes").glob("*/*.parquet"))
    if not files:
        raise KitError(f"{path}/meta/episodes holds no parquet file", AGAIN)
    rows: list[dict[str, Any]] = []
    for file in files:
        names = [name for name in _read_schema(file).names if not name.startswith("stats/")]
        rows += _read_parquet(file, names).to_pylist()
    return {row["episode_index"]: row for row in rows}


def _rows_v2(path: Path) -> dict[int, dict[str, Any]]:
    """Episode index -> its line of meta/episodes.jsonl."""
    file = path / "meta/episodes.jsonl"
    if not file.is_file():
        raise KitError(f"{file} is missing", AGAIN)
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise KitError(f"{file} is not JSON lines ({error})", AGAIN) from error
    return {row["episode_index"]: row for row in rows}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise KitError(f"{file} is not JSON ({error})", AGAIN) from error
    if not isinstance(value, dict):
        raise KitError(f"{file} is not a JSON object", AGAIN)
    return value


def _read_schema(file: Path) -> pa.Schema:
    if not file.is_file():
        raise KitError(f"table {file} is missing", AGAIN)
    try:
        return pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise KitError(f"table {file} cannot be read ({error})", AGAIN) from error


def _read_parquet(file: Path, columns: list[str]) -> pa.Table:
    """The named columns, as far as the file has them."""
    present = [name for name in columns if name in _read_schema(file).names]
    try:
        return pq.read_table(file, columns=present, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise KitError(f"table {file} cannot be read ({error})", AGAIN) from error


def _matrix(column: pa.ChunkedArray) -> Array:
    """A column of lists (or of numbers) as float32 (T, D)."""
    array = column.combine_chunks()
    values = array.flatten() if pa.types.is_nested(array.type) else array
    return values.to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(array), -1)


def _flat_names(names: Any) -> tuple[str, ...]:
    """Names as LeRobot datasets give them: a list, a list in a list, a mapping of lists, or none."""
    while isinstance(names, dict) or (isinstance(names, list) and names and not isinstance(names[0], str)):
        names = next(iter(names.values()), []) if isinstance(names, dict) else names[0]
    return tuple(str(name) for name in names or ())
