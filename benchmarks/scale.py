"""What training on a dataset costs before its first step, and in memory, as its number of episodes grows.

    python benchmarks/scale.py [--episodes 10,1000,53192] [--steps 10] [--work FOLDER]

Makes datasets in the layout of the public Bridge conversion (LeRobot v2.0: a parquet and a video an episode,
256 x 256 at 5 frames a second, 20,000 different sentences), whose videos are links to a few; the largest has
as many episodes and frames as that one. Each is opened, streamed and trained on in a process of its own,
first with an empty cache, then with what that left. Prints seconds to the first batch, steps a second and
the memory beyond the model's, each beside its ratio to the smallest dataset's, and as its last line one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from refinevla_kit.settings import REPOSITORY

CAMERA = "observation.images.image_0"
LENGTHS = (28, 33, 36, 38, 39, 40, 42, 44, 46, 49)  # their mean is Bridge's: 2.1 million frames of 53,192
SENTENCES = 20_000
NAMES = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--episodes", default="10,1000,53192", help="of each dataset, comma-separated")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument(
        "--work", type=Path, help="folder for the datasets, which stay; default a temporary one"
    )
    parser.add_argument("--dataset", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.dataset:
        print(json.dumps(work(given.dataset, given.steps)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.work or Path(temporary)
        for count in map(int, given.episodes.split(",")):
            dataset = folder / f"bridge_{count}"
            if not dataset.exists():
                make_dataset(dataset, count)
            cache = tempfile.mkdtemp(dir=temporary)
            for kind in ("cold", "warm"):
                rows.append({"episodes": count, "cache": kind, **measure(dataset, given.steps, cache)})
    print(f"{'episodes':>9} {'cache':<6} {'first batch':>18} {'steps a second':>18} {'memory':>18}")
    for row in rows:
        first = next(one for one in rows if one["cache"] == row["cache"])
        cells = [
            f"{row[name]:9.2f} {unit:<2} {row[name] / first[name]:5.2f}"
            for name, unit in (("first_batch_s", "s"), ("steps_per_s", ""), ("memory_gb", "GB"))
        ]
        print(f"{row['episodes']:>9,} {row['cache']:<6} {' '.join(cells)}")
    print(json.dumps({"steps": given.steps, "cores": len(os.sched_getaffinity(0)), "rows": rows}))


def measure(dataset: Path, steps: int, cache: str) -> dict[str, float]:
    """`work` in a process of its own."""
    command = [sys.executable, __file__, "--dataset", str(dataset), "--steps", str(steps)]
    environment = os.environ | {"XDG_CACHE_HOME": cache, "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if run.returncode:
        raise SystemExit(f"scale: {run.stderr.strip().splitlines()[-1]}")
    return dict(json.loads(run.stdout.splitlines()[-1]))


def work(dataset: Path, steps: int) -> dict[str, float]:
    """Open, stream and train; the first batch's time runs from before the dataset is opened."""
    from refinevla_kit.training.config import TrainingConfig
    from refinevla_kit.training.examples import load_examples
    from refinevla_kit.training.loop import fine_tune
    from refinevla_kit.vlas.compact import load

    vla = load(REPOSITORY / "data/checkpoints/compact_base")
    before, began = peak_gb(), time.perf_counter()
    examples = load_examples(dataset, stream=True)
    config = TrainingConfig(steps, lambda_reasoning=0, validate_every=0, save_every=0, cache="off")
    with tempfile.TemporaryDirectory() as output:
        history = fine_tune(vla, examples, config, output, "scale", progress=False)
    seconds = [row["seconds"] for row in history]
    whole = time.perf_counter() - began
    return {
        "frames": len(examples),
        "first_batch_s": whole - sum(seconds[1:]),
        "steps_per_s": 1 / float(np.median(seconds)),
        "memory_gb": peak_gb() - before,
    }


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def make_dataset(path: Path, count: int) -> None:
    """A dataset of `count` episodes in the layout of bridge_orig_lerobot."""
    part = path.with_name(f".{path.name}.part")
    rng = np.random.default_rng(0)
    videos = [write_video(part / "pool" / f"{number}.mp4", length) for number, length in enumerate(LENGTHS)]
    told = [f"move the {number // 100} thing to place {number % 100}" for number in range(SENTENCES)]
    rows: list[dict[str, Any]] = []
    for episode in range(count):
        kind = episode % len(LENGTHS)
        length, task, chunk = LENGTHS[kind], int(rng.integers(SENTENCES)), f"chunk-{episode // 1000:03d}"
        actions = rng.normal(0, 0.005, (length, 7)).astype(np.float32)
        actions[:, 6] = np.arange(length) < length // 2
        columns = {
            "observation.state": list(rng.normal(0, 0.1, (length, 8)).astype(np.float32)),
            "action": list(actions),
            "timestamp": np.arange(length, dtype=np.float32) / 5,
            "frame_index": np.arange(length),
            "episode_index": np.full(length, episode),
            "index": np.arange(length),
            "task_index": np.full(length, task),
        }
        table = part / "data" / chunk / f"episode_{episode:06d}.parquet"
        video = part / "videos" / chunk / CAMERA / f"episode_{episode:06d}.mp4"
        for file in (table, video):
            file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), table)
        os.link(videos[kind], video)
        rows.append({"episode_index": episode, "tasks": [told[task]], "length": length})
    write_meta(part / "meta", rows, told)
    part.rename(path)


def write_meta(folder: Path, rows: list[dict[str, Any]], told: list[str]) -> None:
    folder.mkdir()
    vector = {"dtype": "float32", "names": {"motors": NAMES}}
    state = {"motors": [*NAMES[:6], "pad", "gripper"]}
    info = {
        "codebase_version": "v2.0",
        "robot_type": "widowx",
        "total_episodes": len(rows),
        "total_frames": sum(row["length"] for row in rows),
        "chunks_size": 1000,
        "fps": 5,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            CAMERA: {"dtype": "video", "shape": [256, 256, 3], "names": ["height", "width", "rgb"]},
            "observation.state": {"dtype": "float32", "shape": [8], "names": state},
            "action": {**vector, "shape": [7]},
        },
    }
    (folder / "info.json").write_text(json.dumps(info))
    tasks = [{"task_index": number, "task": text} for number, text in enumerate(told)]
    for name, lines in (("episodes", rows), ("tasks", tasks)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_video(path: Path, length: int) -> Path:
    """Smooth noise that moves, with a key frame every two frames, as LeRobot writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(length)
    picture = np.kron(rng.integers(0, 256, (17, 17, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=5, options={"g": "2", "crf": "30"})
        stream.width, stream.height, stream.pix_fmt = 256, 256, "yuv420p"
        for step in range(length):
            frame = np.ascontiguousarray(np.roll(picture, step, 1)[:256, :256])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    return path


if __name__ == "__main__":
    main()
