"""Throughput of the annotation run against a server with a given latency, and what its bookkeeping costs in
time and memory.

    python benchmarks/annotation.py [--calls 2000] [--concurrency 32] [--latency 0.2] [--rows 100000]
    [--stored 100000] [--executor threads]

Throughput: a teacher that posts to a server in another process, as a share of concurrency / latency, over the
whole run. Bookkeeping: a teacher that answers at once, with a rationale of usual length; all else is real
(decoding, journal, table). Stored: that many answers in the journal of a run that was killed, gone on with,
put into the table and opened again, in a process of its own. Prints a table and, as its last line, one JSON
object.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from refinevla_kit.episodes import DatasetWriter, Episode, EpisodeDataset, open_dataset
from refinevla_kit.teacher import (
    Limits,
    Prices,
    Rationale,
    Reply,
    Request,
    Usage,
    annotate_dataset,
    summarise,
)
from refinevla_kit.teacher.answers import reply_row
from refinevla_kit.teacher.limits import Spent
from refinevla_kit.teacher.store import Store

PRICES = Prices(0.3, 2.5, "EUR", "2026-11-24")
SAID = Rationale(
    *(
        f"{part}: "
        + "the gripper is about ten centimetres above the carrot and the plate is at its right. " * 2
        for part in "abcd"
    )
)
FRAMES = 500  # an episode
IDENTITY = {"teacher": "direct", "version": "1", "prompt_hash": "0", "granularity": "step"}


class Direct:
    """Answers at once; remembers the process's memory at chosen calls."""

    name, version, prompt_hash = "direct", "1", "0"

    def __init__(self, marks: tuple[int, ...] = ()) -> None:
        self.marks, self.calls, self.memory = marks, 0, dict[int, float]()

    def worst_case(self, request: Request) -> Usage:
        return Usage(1000, 400)

    def annotate(self, request: Request, previous: Reply | None = None) -> Reply:
        self.calls += 1
        if self.calls in self.marks:
            self.memory[self.calls] = resident()
        return Reply(SAID, SAID.text(), 900, 250)


class Remote(Direct):
    """Posts the pictures to a server and answers when it does, over one connection a thread."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port, self.thread = port, threading.local()

    def annotate(self, request: Request, previous: Reply | None = None) -> Reply:
        if not hasattr(self.thread, "connection"):
            self.thread.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        self.thread.connection.request("POST", "/", request.keyframes.tobytes())
        self.thread.connection.getresponse().read()
        return super().annotate(request)


def serve(latency: float, port: object) -> None:
    """An HTTP server that takes `latency` seconds for each answer, however many there are."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            await asyncio.sleep(latency)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async def main() -> None:
        server = await asyncio.start_server(lambda *streams: quiet(answer(*streams)), "127.0.0.1", 0)
        port.value = server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        await server.serve_forever()

    async def quiet(answering) -> None:  # type: ignore[no-untyped-def]
        with suppress(asyncio.IncompleteReadError):  # the client has finished
            await answering

    asyncio.run(main())


def noise(folder: Path, frames: int) -> EpisodeDataset:
    """At least `frames` frames, each of which granularity "step" asks about."""
    random = np.random.default_rng(0)
    with DatasetWriter(folder, fps=5, robot_type="none") as writer:
        for _ in range(-(-frames // FRAMES)):
            numbers = random.normal(size=(FRAMES, 22)).astype(np.float32)
            images = np.repeat(random.integers(0, 255, (FRAMES, 4, 4, 3), np.uint8), 16, 1).repeat(16, 2)
            writer.add(Episode(images, numbers[:, :7], numbers[:, 7:], "put carrot on plate"))
    return open_dataset(folder)


def resident() -> float:
    """MB of this process."""
    status = Path("/proc/self/status").read_text().split("VmRSS:")[1]
    return int(status.split()[0]) / 1024


def store_and_die(target: Path, rows: int) -> None:
    """Leave the journal of a run that is killed when it has `rows` answers; no two have the same text."""
    cost = Spent(1, 900, 250, 1)
    store = Store(target, IDENTITY)
    for row in range(rows):
        episode, frame = divmod(row, FRAMES)
        if not frame:
            store.wanted(episode, "1", [])
        span = (episode, frame, frame + 1)
        said = replace(SAID, observation=f"{SAID.observation} This is frame {row}.")
        reply = Reply(said, said.text(), 900, 250)
        store.journal.append({"asked": span, "spent": cost})
        store.add(reply_row(span, reply, cost, PRICES, 1), Spent())
    os._exit(0)  # as SIGKILL does: nothing is closed, nothing goes into the table


def go_on(target: Path, rows: int) -> dict[str, float]:
    """Rows a second of opening what was left, of putting it into the table, and of opening that, and the most
    memory of it all.
    """
    times = [time.perf_counter()]
    with Store(target, IDENTITY) as store:
        assert store.done == rows
        times.append(time.perf_counter())
        store.compact(store.spent)
        times.append(time.perf_counter())
    with Store(target, IDENTITY) as store:
        assert store.done == rows
        times.append(time.perf_counter())
    resumed, compacted, reopened = (rows / seconds for seconds in np.diff(times))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"resumed": resumed, "compacted": compacted, "reopened": reopened, "peak_mb": peak}


def stored(folder: Path, rows: int) -> dict[str, float]:
    """What `go_on` measures, in a process of its own."""
    for step in ("die", "go_on"):
        command = [sys.executable, __file__, "--step", step, "--stored", str(rows), "--folder", str(folder)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (
        ("calls", 2000),
        ("concurrency", 32),
        ("latency", 0.2),
        ("rows", 100_000),
        ("stored", 100_000),
        ("executor", "threads"),
    ):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step == "die":
        store_and_die(options.folder / "answers.parquet", options.stored)
    if options.step:
        print(json.dumps(go_on(options.folder / "answers.parquet", options.stored)))
        return
    limits = Limits(options.concurrency, prices=PRICES, budget_money=1e6)
    port = multiprocessing.Value("i", 0)
    server = multiprocessing.get_context("fork").Process(
        target=serve, args=(options.latency, port), daemon=True
    )
    server.start()
    with tempfile.TemporaryDirectory() as folder:
        while not port.value:
            time.sleep(0.01)
        data, began = noise(Path(folder) / "few", options.calls), time.perf_counter()
        path = annotate_dataset(
            data, Remote(port.value), "step", 1, False, limits=limits, executor=options.executor, confirm=True
        )
        rate = summarise(path).rationales / (time.perf_counter() - began)
        server.kill()
        data, marks = noise(Path(folder) / "many", options.rows), (1000, options.rows // 10, options.rows)
        teacher, began = Direct(marks), time.perf_counter()
        path = annotate_dataset(data, teacher, "step", 1, False, limits=limits, confirm=True)
        bookkeeping, after = summarise(path).rationales / (time.perf_counter() - began), resident()
    with tempfile.TemporaryDirectory() as folder:
        again = stored(Path(folder), options.stored)
    share = rate * options.latency / options.concurrency
    print(
        f"throughput   {rate:8.1f} a second of {options.concurrency / options.latency:.1f} possible: "
        f"{100 * share:.1f} %"
    )
    print(f"bookkeeping  {bookkeeping:8.1f} a second, from the first request to the table")
    for calls, megabytes in teacher.memory.items():
        print(f"memory       {megabytes:8.1f} MB at {calls} answers")
    print(f"memory       {after:8.1f} MB after the table")
    for what in ("resumed", "compacted", "reopened"):
        print(f"{what:<12} {again[what]:8.0f} answers a second of {options.stored:,}")
    print(f"memory       {again['peak_mb']:8.1f} MB at most, of these three")
    print(
        json.dumps(
            {
                "benchmark": "annotation",
                **{name: value for name, value in vars(options).items() if name not in ("step", "folder")},
                "per_second": rate,
                "share": share,
                "bookkeeping_per_second": bookkeeping,
                "memory_mb": teacher.memory | {"end": after},
                "stored": {"rows": options.stored, **again},
            }
        )
    )


if __name__ == "__main__":
    main()
