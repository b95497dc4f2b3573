"""What datasets of real size cost: training on them, annotating them, and what the planner says beforehand.

    python benchmarks/scale.py [--parts training,estimate,annotation,planner] [--work FOLDER]
        [--episodes 10,1000,53192] [--steps 10] [--trajectories 125000] [--rows 1000000] [--picture FILE]

training    Makes datasets in the layout of the public Bridge conversion (LeRobot v2.0: a parquet and a video
            an episode, 256 x 256 at 5 frames a second, 20,000 different sentences), whose videos are links to
            a few; the largest has as many episodes and frames as that one. Each is opened, streamed and
            trained on in a process of its own, first with an empty cache, then with what that left: seconds
            to the first batch, steps a second and the memory beyond the model's.
estimate    Opens a dataset of as many trajectories as the paper annotates and estimates what a paid teacher
            would take for it, in a process of its own.
annotation  `benchmarks/annotation.py`, its stored answers as many as this.
planner     The memory that `refinevla plan` says against what two steps take: three models, five ways.

Prints tables of ratios and, as its last line, one JSON object. `--picture` draws how the costs of training
grow.
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
PARTS = ("training", "estimate", "annotation", "planner")
MEASURES = {"first_batch_s": "seconds to the first batch", "memory_gb": "GB beyond the model"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--episodes", default="10,1000,53192", help="of each dataset, comma-separated")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument(
        "--work", type=Path, help="folder for the datasets, which stay; default a temporary one"
    )
    parser.add_argument("--trajectories", type=int, default=125_000, help="that are estimated")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of answers that are stored")
    parser.add_argument("--picture", type=Path, help="where the growth of training's costs is drawn")
    parser.add_argument("--dataset", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    parts = given.parts.split(",")
    if given.dataset:
        print(json.dumps(ALONE[parts[0]](given.dataset, given.steps)))
        return
    report: dict[str, Any] = {"benchmark": "scale", "cores": len(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.work or Path(temporary)
        if "training" in parts:
            counts = [int(text) for text in given.episodes.split(",")]
            report["training"] = training_rows(folder, counts, given.steps)
        if "estimate" in parts:
            dataset = made(folder, given.trajectories)
            report["estimate"] = in_a_process("estimate", dataset, given.steps, temporary)
            print_row("estimate", report["estimate"])
        if "annotation" in parts:
            script = Path(__file__).with_name("annotation.py")
            report["annotation"] = last_line([str(script), "--stored", str(given.rows)], temporary)
            print_row("annotation", report["annotation"])
        if "planner" in parts:
            report["planner"] = planner_rows(Path(temporary))
    if given.picture and "training" in parts:
        draw(report["training"], given.picture)
    print(json.dumps(report))


def print_row(part: str, figures: dict[str, Any]) -> None:
    """A part's figures, a line each."""
    for name, value in figures.items():
        if isinstance(value, int | float):
            print(f"{part:<11} {name:<24} {value:14,.2f}")


def training_rows(folder: Path, counts: list[int], steps: int) -> list[dict[str, Any]]:
    """What training costs by number of episodes, with an empty cache and with a full one."""
    rows: list[dict[str, Any]] = []
    for count in counts:
        dataset = made(folder, count)
        with tempfile.TemporaryDirectory() as cache:
            for kind in ("cold", "warm"):
                figures = in_a_process("training", dataset, steps, cache)
                rows.append({"episodes": count, "cache": kind, **figures})
    print(f"{'episodes':>9} {'cache':<6} {'first batch':>18} {'steps a second':>18} {'memory':>18}")
    for row in rows:
        first = next(one for one in rows if one["cache"] == row["cache"])
        cells = [
            f"{row[name]:9.2f} {unit:<2} {row[name] / first[name]:5.2f}"
            for name, unit in (("first_batch_s", "s"), ("steps_per_s", ""), ("memory_gb", "GB"))
        ]
        print(f"{row['episodes']:>9,} {row['cache']:<6} {' '.join(cells)}")
    return rows


def planner_rows(folder: Path) -> list[dict[str, Any]]:
    """Memory that the planner says and that training takes, as the tests compare them."""
    sys.path.append(str(REPOSITORY))
    from tests.training.test_plan import COUNTED, WAYS, said_and_measured

    rows: list[dict[str, Any]] = []
    print(f"{'model':<11} {'way':<11} {'said':>9} {'measured':>9} {'ratio':>6}")
    for name in COUNTED:
        for way in WAYS:
            said, measured = said_and_measured(name, way, folder / f"{name}_{way}")
            rows.append({"model": name, "way": way, "said": said, "measured": measured})
            print(
                f"{name:<11} {way:<11} {said / 1e6:7.1f} MB {measured / 1e6:6.1f} MB {said / measured:6.3f}"
            )
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Seconds to the first batch and memory by number of episodes."""
    from refinevla_kit.figures.style import GREEN, ORANGE, canvas, save_figure

    looks = {"cold": ("o-", ORANGE, "opened for the first time"), "warm": ("s-", GREEN, "opened again")}
    with canvas(8, 3, 1, 2) as (figure, panels):
        for axes, (name, what) in zip(panels, MEASURES.items(), strict=True):
            for kind, (line, colour, told) in looks.items():
                of_kind = [row for row in rows if row["cache"] == kind]
                heights = [row[name] for row in of_kind]
                axes.plot([row["episodes"] for row in of_kind], heights, line, color=colour, label=told)
            axes.set(xscale="log", xlabel="episodes in the dataset", title=what, ylim=(0, None))
            axes.minorticks_off()
            sizes = sorted({row["episodes"] for row in rows})
            axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        panels[0].legend(frameon=False)
        save_figure(figure, path, {"made_by": "benchmarks/scale.py", "rows": rows})


def made(folder: Path, count: int) -> Path:
    """The dataset of that many episodes, made where it is not there yet."""
    dataset = folder / f"bridge_{count}"
    if not dataset.exists():
        make_dataset(dataset, count)
    return dataset


def in_a_process(part: str, dataset: Path, steps: int, cache: str) -> dict[str, Any]:
    """A part's figures, measured in a process of its own."""
    arguments = ["--parts", part, "--dataset", str(dataset), "--steps", str(steps)]
    return last_line([__file__, *arguments], cache)


def last_line(command: list[str], cache: str) -> dict[str, Any]:
    """The JSON object that a Python program prints last."""
    command = [sys.executable, *command]
    environment = os.environ | {"XDG_CACHE_HOME": cache, "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if run.returncode:
        raise SystemExit(f"scale: {run.stderr.strip().splitlines()[-1]}")
    return dict(json.loads(run.stdout.splitlines()[-1]))


def estimating(dataset: Path, _: int) -> dict[str, float]:
    """Open a dataset and estimate what Gemini would take, with a segment a request."""
    from refinevla_kit.episodes import open_dataset
    from refinevla_kit.teacher import Limits, Prices, estimate
    from refinevla_kit.teacher.gemini import GeminiTeacher

    teacher = GeminiTeacher("gemini-3.8-flash")  # nothing is asked
    before, began = peak_gb(), time.perf_counter()
    opened = open_dataset(dataset)
    said = estimate(opened, teacher, limits=Limits(prices=Prices(0.3, 2.5, "USD", "2026-11-24")))
    seconds = time.perf_counter() - began
    return {
        "trajectories": len(opened.episodes),
        "requests": said.requests,
        "seconds": seconds,
        "memory_gb": peak_gb() - before,
    }


def training(dataset: Path, steps: int) -> dict[str, float]:
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


ALONE = {"training": training, "estimate": estimating}

if __name__ == "__main__":
    main()
