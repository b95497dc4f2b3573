"""What the waiting of libgomp's threads costs: training steps a second, alone and beside busy processes, for
each way to wait.

    python benchmarks/busy_machine.py [--steps 20] [--rounds 3] [--busy 0,3,9] [--threads 2]

Torch's threads spin while they wait for each other, and beside other busy processes they spin away the time
that the one they wait for would need. `import refinevla_kit` sets GOMP_SPINCOUNT for this reason. Each way
has a process of its own, which fine-tunes the shipped base on a quarter of the shipped demonstrations as the
laptop profile does (from an activation cache). They take turns of `steps` steps, so what else the machine
does hits all alike. Prints medians of steps a second and their ratios to libgomp's own way and, as its last
line, one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refinevla_kit.settings import REPOSITORY, load_profile

OWN = "libgomp's own"
WAYS = {
    OWN: ("GOMP_SPINCOUNT", "300000"),
    "passive": ("OMP_WAIT_POLICY", "passive"),
    "10,000 turns": ("GOMP_SPINCOUNT", "10000"),
}
"""name -> environment variable and value; 300,000 turns are what libgomp takes where nothing is said."""
WARM_UP = 3  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20, help="of one turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--busy", default="0,3,9", help="how many busy processes stand beside, comma-separated"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    levels = [int(word) for word in given.busy.split(",")]
    turns = 1 + given.rounds * len(levels)
    if given.worker:
        work(Path(given.worker), given.steps, turns, given.threads)
        return
    times: dict[tuple[str, int], list[float]] = {(way, level): [] for way in WAYS for level in levels}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        workers = {}
        for way in WAYS:  # one after another: the first writes the activation cache that all share
            workers[way] = stack.enter_context(worker(way, folder))
            turn(workers[way])
        for _ in range(given.rounds):
            for level in levels:
                with busy(level):
                    for way, process in workers.items():
                        times[way, level] += turn(process)
                        speed = 1 / statistics.median(times[way, level])
                        print(f"{level} busy, {way}: {speed:.2f} steps a second so far", file=sys.stderr)
    speeds = {level: {way: 1 / statistics.median(times[way, level]) for way in WAYS} for level in levels}
    print(f"{'busy beside':<12}" + "".join(f"{way:>24}" for way in WAYS))
    for level, row in speeds.items():
        print(
            f"{level:<12}"
            + "".join(f"{speed:>9.2f}/s ({speed / row[OWN]:>6.2f} times)" for speed in row.values())
        )
    about = {"threads": given.threads, "cores": os.cpu_count(), "steps": given.steps, "rounds": given.rounds}
    print(json.dumps({"benchmark": "busy_machine", **about, "steps_a_second": speeds}))


def work(folder: Path, steps: int, turns: int, threads: int) -> None:
    """Fine-tune; before every `steps` steps wait for a line, after them print their seconds as JSON."""
    import torch

    from experiments.controls import first_episodes
    from refinevla_kit.training.examples import find_rationales, load_examples
    from refinevla_kit.training.loop import TrainingConfig, fine_tune
    from refinevla_kit.vlas.compact import load

    torch.set_num_threads(threads)
    laptop = load_profile("laptop")["02_fine_tuning"]
    settings = {
        key: laptop[key]
        for key in ("batch_size", "learning_rate", "lambda_reasoning", "freeze_layers", "order")
    }
    config = TrainingConfig(WARM_UP + turns * steps, validate_every=0, save_every=0, cache="on", **settings)
    seconds: list[float] = []

    def watch(row: dict[str, Any]) -> None:
        seconds.append(row["seconds"])
        done = len(seconds) - WARM_UP
        if done > 0 and done % steps == 0:
            print(json.dumps(seconds[-steps:]), flush=True)
        if done >= 0 and done % steps == 0:
            sys.stdin.readline()

    data = REPOSITORY / "data" / "demo"
    examples = first_episodes(load_examples(data, find_rationales(data)), 0.25)
    base = load(REPOSITORY / "data" / "checkpoints" / "compact_base")
    fine_tune(
        base,
        examples,
        config,
        folder / str(os.getpid()),
        "busy",
        progress=False,
        cache_folder=folder / "activations",
        watch=watch,
    )


@contextlib.contextmanager
def worker(way: str, folder: str) -> Iterator[subprocess.Popen[str]]:
    """A process that waits in the given way; it is ended with the block."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in {variable for variable, _ in WAYS.values()}
    }
    environment |= dict([WAYS[way]])
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, __file__, "--worker", folder, *sys.argv[1:]]
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def turn(process: subprocess.Popen[str]) -> list[float]:
    """Let a worker do its next turn; seconds of each step."""
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write("\n")
        process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit(
            f"busy_machine: a worker ended with status {process.wait()} -> see its message above"
        )
    seconds: list[float] = json.loads(line)
    return seconds


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute without end beside the block."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


if __name__ == "__main__":
    main()
