"""Writes episodes as a LeRobot v3.0 dataset: tables and mp4 files that hold many episodes, complete meta, the
simulator's knowledge beside it.

Layout and columns are LeRobot's own (huggingface/lerobot v0.4.4, `lerobot/datasets`). What only this kit
knows goes where other readers leave it alone: under "refinevla" in info.json and in `refinevla/...` columns
of meta/episodes. Everything is written in a temporary folder, which takes the dataset's name when it is
complete: there is no half-written dataset. The same episodes give the same bytes.

What the simulator knew about each frame lies beside it: `simulator/episode_000000.npz`, one an episode, and
`simulator/simulator.json`, which tells what is in them. An npz has `state.<field>` (T, ...) for each field of
`SceneState`. Its `mask_labels`, uint8 (T, H, W), are 0 for nothing and i for the i-th of `mask_names`. Other
LeRobot readers do not look there.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from refinevla_kit.episodes.contract import ACTION_NAMES, CAMERA, SIDECAR, STATE_NAMES, Episode, sidecar_path
from refinevla_kit.episodes.meta import PATHS
from refinevla_kit.episodes.video import PIXELS, VideoWriter
from refinevla_kit.errors import KitError
from refinevla_kit.files import replacing, write_json
from refinevla_kit.simulator.contract import PHASES, STATE, Array, SceneState

CHUNK = 1000  # files a folder; these three are LeRobot's defaults
DATA_MEGABYTES, VIDEO_MEGABYTES = 100, 200  # a file
FIRST_FILE = "chunk-000/file-000.parquet"  # tables are small: 100 MB would be 1.3 million frames
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


COLUMNS = {
    "timestamp": pa.float32(),
    "frame_index": pa.int64(),
    "episode_index": pa.int64(),
    "index": pa.int64(),
    "task_index": pa.int64(),
}


Statistics = dict[str, list]  # as LeRobot keeps them; of pictures (3, 1, 1) a channel in [0, 1], else (D,)
ABOUT_SIDECAR = {  # for a reader without the kit
    "format": 1,
    "files": "episode_{episode_index:06d}.npz",
    "frame": "world, metres, quaternions (w, x, y, z), z up",
    "state": STATE,
    "phases": list(PHASES),
    "masks": "mask_labels (T, H, W): 0 nothing, i the i-th of mask_names; visible pixels",
}


class DatasetWriter:
    """Adds episodes to a dataset that appears at `path` when closed without error; use as a context manager.

    Args:
        path: folder of the dataset; must not exist unless `overwrite`.
        fps: frames a second.
        robot_type: goes into info.json, e.g. "widowx".
        camera: name of the one camera's feature.
        action_names, state_names: name of each dimension.
        deltas: actions are displacements (this kit's own), else absolute positions.
        overwrite: replace what is at `path`, once the new dataset is complete, unless it holds what was paid
            for (`files.paid_files`).
        video_megabytes: an mp4 that has reached this size takes no further episode.

    Raises:
        KitError: `path` exists; from `add`: an episode that does not fit the first one; on close: nothing was
            added, or no disk space.
    """

    def __init__(
        self,
        path: str | Path,
        fps: int,
        robot_type: str,
        camera: str = CAMERA,
        action_names: Sequence[str] = ACTION_NAMES,
        state_names: Sequence[str] = STATE_NAMES,
        deltas: bool = True,
        overwrite: bool = False,
        video_megabytes: float = VIDEO_MEGABYTES,
    ) -> None:
        self.path = Path(path)
        if self.path.exists() and not overwrite:
            raise KitError(
                f"{self.path} exists already", "choose another path, remove it, or pass overwrite=True"
            )
        self.fps, self.robot_type, self.camera, self.deltas = int(fps), robot_type, camera, deltas
        self.names = {"observation.state": tuple(state_names), "action": tuple(action_names)}
        self.video_megabytes = video_megabytes
        self._exit = ExitStack()
        self._root = self._exit.enter_context(replacing(self.path))
        self._root.mkdir(parents=True)
        self._video: VideoWriter | None = None
        self._video_index = -1
        self._size = (0, 0)
        self._frames = 0
        self._tasks: dict[str, int] = {}
        self._tables: list[dict[str, Array]] = []
        self._rows: list[dict[str, Any]] = []
        self._levels = np.zeros((3, 256), np.int64)

    def add(self, episode: Episode) -> None:
        """Append one episode; its frames go straight into the video."""
        self._check(episode)
        index, length = len(self._rows), len(episode.images)
        spoken = episode.instruction
        sentences = [spoken] * length if isinstance(spoken, str) else list(spoken)
        tasks = [self._tasks.setdefault(sentence, len(self._tasks)) for sentence in sentences]
        frames = np.arange(length)
        table = {
            "observation.state": episode.proprioception,
            "action": episode.actions,
            "timestamp": (frames / self.fps).astype(np.float32),
            "frame_index": frames,
            "episode_index": np.full(length, index),
            "index": self._frames + frames,
            "task_index": np.array(tasks),
        }
        levels = pixel_levels(episode.images)
        stats = {name: statistics_of(values) for name, values in table.items()}
        stats[self.camera] = pixel_statistics(levels, length)
        row: dict[str, Any] = {
            "episode_index": index,
            "tasks": list(dict.fromkeys(sentences)),
            "length": length,
            "data/chunk_index": 0,
            "data/file_index": 0,
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + length,
            **self._write_video(episode.images),
        }
        for feature, entries in stats.items():
            row |= {f"stats/{feature}/{name}": value for name, value in entries.items()}
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        row |= {f"refinevla/{name}": getattr(episode, name) for name in ("task", "success", "seed", "start")}
        _write_sidecar(sidecar_path(self._root, index), episode.states, episode.masks)
        self._tables.append(table)
        self._rows.append(row)
        self._levels += levels
        self._frames += length

    def close(self) -> None:
        """Write the tables and the meta and give the folder its name."""
        with self._exit:  # an error in here removes the temporary folder
            if not self._rows:
                raise KitError(f"no episode was added to {self.path}", "record at least one episode")
            self._close_video()
            names = self._tables[0]
            columns = {name: np.concatenate([table[name] for table in self._tables]) for name in names}
            self._write_tables(columns)
            stats = {name: statistics_of(values) for name, values in columns.items()}
            stats[self.camera] = pixel_statistics(self._levels, self._frames)
            write_json(self._root / "meta/stats.json", stats)
            write_json(self._root / "meta/info.json", self._info())
            write_json(self._root / SIDECAR / "simulator.json", ABOUT_SIDECAR)

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        with suppress(Exception):  # the first error is the one to be told
            self._close_video(flush=False)
        self._exit.__exit__(kind, error, trace)

    def _check(self, episode: Episode) -> None:
        """Raise `KitError` for an episode that does not fit the first one."""
        length, *size = episode.images.shape[:3]
        height, width = self._size if self._rows else size
        actions, readings = episode.actions, episode.proprioception
        expected: list[tuple[str, Array, Any, tuple[int, ...]]] = [
            ("images", episode.images, np.uint8, (length, height, width, 3)),
            ("actions", actions, np.float32, (length, len(self.names["action"]))),
            ("proprioception", readings, np.float32, (length, len(self.names["observation.state"]))),
        ]
        for name, mask in (episode.masks or {}).items():
            expected.append((f"mask {name!r}", mask, np.bool_, (length, height, width)))
        which = f"episode {len(self._rows)}"
        for name, array, dtype, shape in expected:
            if array.dtype != dtype or array.shape != shape:
                remedy = f"this dataset takes {np.dtype(dtype)} {shape}"
                raise KitError(f"{which}: {name} is {array.dtype} {array.shape}", remedy)
            if not np.isfinite(array).all():
                what = f"{which}: {name} has values that are not finite"
                raise KitError(what, "leave the broken episode out")
        if length == 0 or height % 2 or width % 2:
            remedy = "give one frame or more, of even height and width"
            raise KitError(f"{which}: images are {episode.images.shape}", remedy)
        if episode.states is not None and len(episode.states) != length:
            what = f"{which}: {len(episode.states)} states for {length} frames"
            raise KitError(what, "give one state a frame")
        if not isinstance(episode.instruction, str) and len(episode.instruction) != length:
            what = f"{which}: {len(episode.instruction)} instructions for {length} frames"
            raise KitError(what, "give one instruction, or one a frame")
        self._size = (height, width)

    def _write_video(self, images: Array) -> dict[str, Any]:
        """Append to the current mp4, or to a new one; returns where the frames lie."""
        if self._video is not None and self._video.bytes >= self.video_megabytes * 2**20:
            self._close_video()
        if self._video is None:
            self._video_index += 1
            self._place = {"chunk_index": self._video_index // CHUNK, "file_index": self._video_index % CHUNK}
            path = self._root / PATHS["v3"]["video_path"].format(video_key=self.camera, **self._place)
            self._video = VideoWriter(path, self.fps, *self._size)
        start = self._video.frames
        self._video.write(images)
        times = {"from_timestamp": start / self.fps, "to_timestamp": self._video.frames / self.fps}
        return {f"videos/{self.camera}/{name}": value for name, value in (self._place | times).items()}

    def _close_video(self, flush: bool = True) -> None:
        video, self._video = self._video, None
        if video is not None:
            video.close(flush)

    def _write_tables(self, columns: dict[str, Array]) -> None:
        arrays = {name: pa.array(columns[name], type) for name, type in COLUMNS.items()}
        for name in self.names:  # fixed-size lists, as LeRobot stores vectors
            vectors = columns[name]
            arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        # LeRobot reads tasks with pandas and takes the sentence from the index
        tasks = pd.DataFrame({"task_index": self._tasks.values()}, pd.Index(self._tasks, name="task"))
        tables = {
            f"data/{FIRST_FILE}": pa.table({name: arrays[name] for name in columns}),
            f"meta/episodes/{FIRST_FILE}": pa.Table.from_pylist(self._rows),
            "meta/tasks.parquet": pa.Table.from_pandas(tasks),
        }
        for name, table in tables.items():
            (self._root / name).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, self._root / name)

    def _info(self) -> dict[str, Any]:
        height, width = self._size
        features: dict[str, Any] = {
            name: {"dtype": "float32", "shape": [len(names)], "names": list(names)}
            for name, names in self.names.items()
        }
        about = {
            "height": height,
            "width": width,
            "codec": "h264",
            "pix_fmt": PIXELS,
            "is_depth_map": False,
            "fps": self.fps,
            "channels": 3,
        }
        features[self.camera] = {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": {f"video.{name}": value for name, value in about.items()} | {"has_audio": False},
        }
        features |= {
            name: {"dtype": str(type).replace("float", "float32"), "shape": [1], "names": None}
            for name, type in COLUMNS.items()
        }
        return {
            "codebase_version": "v3.0",
            "robot_type": self.robot_type,
            "total_episodes": len(self._rows),
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK,
            "data_files_size_in_mb": DATA_MEGABYTES,
            "video_files_size_in_mb": VIDEO_MEGABYTES,
            "fps": self.fps,
            "splits": {"train": f"0:{len(self._rows)}"},
            **PATHS["v3"],
            "features": features,
            "refinevla": {"deltas": self.deltas},
        }


def _write_sidecar(path: Path, states: Sequence[SceneState] | None, masks: dict[str, Array] | None) -> None:
    """Write one episode's npz; nothing where there is neither state nor masks."""
    arrays: dict[str, Array] = {}
    if states is not None:
        rows = [state.to_arrays() for state in states]
        arrays |= {f"state.{name}": np.stack([row[name] for row in rows]) for name in rows[0]}
    if masks:
        stack = np.stack([np.asarray(mask, bool) for mask in masks.values()])  # (M, T, H, W)
        if len(stack) > 255 or stack.sum(0, dtype=np.uint16).max() > 1:
            raise ValueError("masks overlap (or are over 255): a pixel can only be labelled with one name")
        labels = np.arange(1, len(stack) + 1, dtype=np.uint8)
        arrays["mask_names"] = np.array(list(masks))
        arrays["mask_labels"] = np.tensordot(labels, stack.astype(np.uint8), 1)
    if arrays:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # NumPy's stub reads the arrays as flags


def statistics_of(values: Array) -> Statistics:
    """values: (T,) or (T, D)."""
    table = values.reshape(len(values), -1)
    quantiles = np.quantile(table.astype(np.float64), [*QUANTILES.values()], axis=0)
    result = {
        "min": table.min(0),
        "max": table.max(0),
        "mean": table.mean(0, dtype=np.float64),
        "std": table.std(0, dtype=np.float64),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }
    return {name: value.tolist() for name, value in result.items()} | {"count": [len(table)]}


def pixel_levels(images: Array) -> Array:
    """Histogram of uint8 (T, H, W, 3): int64 (3, 256). Histograms of episodes add up to the dataset's."""
    return np.stack([np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(3)])


def pixel_statistics(levels: Array, frames: int) -> Statistics:
    """levels: as `pixel_levels` counts them; frames: how many pictures they came from."""
    share = levels / levels.sum(1, keepdims=True)
    grey, cumulated = np.arange(256) / 255, np.cumsum(share, axis=1)
    mean = share @ grey
    result = {
        "min": grey[(levels > 0).argmax(1)],
        "max": grey[255 - (levels[:, ::-1] > 0).argmax(1)],
        "mean": mean,
        "std": np.sqrt((share * (grey - mean[:, None]) ** 2).sum(1)),
    }
    for name, quantile in QUANTILES.items():
        result[name] = grey[(cumulated >= quantile - 1e-12).argmax(1)]
    return {name: value.reshape(3, 1, 1).tolist() for name, value in result.items()} | {"count": [frames]}
