"""LeRobot datasets that the kit did not write, small, with anything about them changed."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

POSE = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
CAMERA = "observation.images.front"
TASKS = ("pick up the red block", "put the cup on the plate")
PATHS = {
    "v2": (
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    ),
    "v3": (
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    ),
}
Columns = dict[str, Any]


def same(value: Any, *_: Any) -> Any:
    return value


def write_stranger(
    root: Path,
    version: str = "v2.1",
    lengths: Sequence[int] = (6, 5),
    width: int = 7,
    fps: Any = 10,
    cameras: Sequence[str] = (CAMERA,),
    names: Any = None,
    action: str = "action",
    state: str = "observation.state",
    stills: bool = False,
    grey: Callable[[int], int] | None = None,
    info: Callable[[Columns], Columns] = same,
    row: Callable[[Columns, int], Columns] = same,
    column: Callable[[Columns, int], Columns] = same,
    **video: Any,
) -> Path:
    """A dataset whose frame t of episode e is grey `20 * e + 10 * t` (modulo 250), and whose displacements
    are a few millimetres.

    Args:
        stills: pictures in the tables instead of videos.
        grey: of frame t, instead.
        info, row, column: change info.json, the listing's row of an episode, its columns.
        video: options of `write_video`.
    """
    v3, (data_path, video_path) = version == "v3.0", PATHS[version[:2]]
    vector = {"dtype": "float32", "shape": [width], "names": names}
    picture = {
        "dtype": "image" if stills else "video",
        "shape": [16, 16, 3],
        "names": ["height", "width", "channel"],
    }
    counts = {
        name: {"dtype": "int64", "shape": [1], "names": None}
        for name in ("frame_index", "episode_index", "index", "task_index")
    }
    features = (
        {action: vector, state: vector}
        | dict.fromkeys(cameras, picture)
        | {"timestamp": {"dtype": "float32", "shape": [1]}}
        | counts
    )
    about = {
        "codebase_version": version,
        "robot_type": "arm",
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "chunks_size": 1000,
        "fps": fps,
        "data_path": data_path,
        "video_path": video_path,
        "features": features,
    }
    rows, tables, first = [], [], 0
    for episode, length in enumerate(lengths):
        rng, frames = np.random.default_rng(episode), np.arange(length)
        actions = rng.normal(scale=0.004, size=(length, width)).astype(np.float32)
        actions[:, -1] = frames < length // 2
        shade = [(grey or (lambda t, e=episode: (20 * e + 10 * t) % 250))(int(t)) for t in frames]
        columns: Columns = {
            action: pa.array(actions.tolist(), pa.list_(pa.float32())),
            state: pa.array(np.cumsum(actions, 0).tolist(), pa.list_(pa.float32())),
            "timestamp": pa.array(frames / 10, pa.float32()),
            "frame_index": frames,
            "episode_index": np.full(length, episode),
            "index": first + frames,
            "task_index": np.full(length, episode % len(TASKS)),
        }
        if stills:
            columns |= {
                name: pa.array([{"bytes": png(level), "path": None} for level in shade]) for name in cameras
            }
        tables.append(pa.table(column(columns, episode)))
        line = {"episode_index": episode, "tasks": [TASKS[episode % len(TASKS)]], "length": length}
        if v3:
            line |= {"data/chunk_index": 0, "data/file_index": 0}
            for name in () if stills else cameras:
                line |= {
                    f"videos/{name}/chunk_index": 0,
                    f"videos/{name}/file_index": episode,
                    f"videos/{name}/from_timestamp": 0.0,
                }
        rows.append(row(line, episode))
        for name in () if stills else cameras:
            place = {"chunk_index": 0, "file_index": episode, "episode_chunk": 0, "episode_index": episode}
            write_video(root / video_path.format(video_key=name, **place), shade, **video)
        first += length
    for folder in ("meta/episodes/chunk-000" if v3 else "meta", "data/chunk-000"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "meta/info.json").write_text(json.dumps(info(about)))
    if v3:
        pq.write_table(
            pa.table({"task_index": range(len(TASKS)), "__index_level_0__": TASKS}),
            root / "meta/tasks.parquet",
        )
        if rows:
            pq.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
            pq.write_table(pa.concat_tables(tables), root / "data/chunk-000/file-000.parquet")
    else:
        (root / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
        (root / "meta/tasks.jsonl").write_text(
            "".join(json.dumps({"task_index": i, "task": t}) + "\n" for i, t in enumerate(TASKS))
        )
        for episode, table in enumerate(tables):
            pq.write_table(table, root / f"data/chunk-000/episode_{episode:06d}.parquet")
    return root


def png(level: int, size: int = 16) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_video(
    path: Path,
    shades: Sequence[int],
    rate: Fraction | int = 10,
    codec: str = "libx264",
    form: str = "mp4",
    **options: str,
) -> None:
    """A frame a shade, named as it may be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=form, options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.time_base = (
            16,
            16,
            "yuv420p",
            1 / Fraction(rate),
        )
        stream.codec_context.thread_count = 1
        for number, shade in enumerate(shades):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), shade, np.uint8), "rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def rewritten(value: Any) -> pa.Array:
    """Rows of numbers as a column."""
    return pa.array(value, pa.list_(pa.float32()))
