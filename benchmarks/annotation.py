"""Throughput of the annotation run against a server with a given latency, and what its bookkeeping costs in
time and memory.

    python benchmarks/annotation.py [--calls 2000] [--concurrency 32] [--latency 0.2] [--rows 100000]
    [--executor threads]

Throughput: a teacher that posts to a server in another process, as a share of concurrency / latency, over the
whole run. Bookkeeping: a teacher that answers at once, with a rationale of usual length; all else is real
(decoding, journal, table). Prints a table and, as its last line, one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import multiprocessing
import tempfile
import threading
import time
from contextlib import suppress
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

PRICES = Prices(0.3, 2.5, "EUR", "2026-11-24")
SAID = Rationale(
    *(
        f"{part}: "
        + "the gripper is about ten centimetres above the carrot and the plate is at its right. " * 2
        for part in "abcd"
    )
)
FRAMES = 500  # an episode


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (
        ("calls", 2000),
        ("concurrency", 32),
        ("latency", 0.2),
        ("rows", 100_000),
        ("executor", "threads"),
    ):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options = parser.parse_args()
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
    share = rate * options.latency / options.concurrency
    print(
        f"throughput   {rate:8.1f} a second of {options.concurrency / options.latency:.1f} possible: "
        f"{100 * share:.1f} %"
    )
    print(f"bookkeeping  {bookkeeping:8.1f} a second, from the first request to the table")
    for calls, megabytes in teacher.memory.items():
        print(f"memory       {megabytes:8.1f} MB at {calls} answers")
    print(f"memory       {after:8.1f} MB after the table")
    print(
        json.dumps(
            {
                "benchmark": "annotation",
                **vars(options),
                "per_second": rate,
                "share": share,
                "bookkeeping_per_second": bookkeeping,
                "memory_mb": teacher.memory | {"end": after},
            }
        )
    )


if __name__ == "__main__":
    main()
