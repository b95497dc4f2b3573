"""A teacher that asks an HTTP server of the tests over a real socket, in the plainest way, so that only the
run is under test.

python -m tests.teacher.plain_teacher URL DATASET OUTPUT CONCURRENCY BUDGET_CALLS     # one run, for tests
                                                                                      that kill it
"""

from __future__ import annotations

import http.client
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from refinevla_kit.episodes import DatasetWriter, Episode, EpisodeDataset, open_dataset
from refinevla_kit.teacher import (
    CallFailed,
    Limits,
    Prices,
    Rationale,
    Refusal,
    Reply,
    Request,
    Usage,
    annotate_dataset,
)
from tests.teacher.gemini_server import Answer, Received

FAILURES = {
    400: "bad_request",
    401: "unauthorised",
    404: "not_found",
    429: "quota",
    500: "server",
    503: "server",
}
PRICES = Prices(1.0, 10.0, "EUR", "2026-11-24")


class PlainTeacher:
    """Posts the span; the answer's JSON says how the reply ends and what it used."""

    name, version, prompt_hash = "plain", "1", "0123456789abcdef"

    def __init__(self, url: str, worst: Usage = Usage(100, 50)) -> None:  # noqa: B008 - immutable
        self.url, self.worst = url, worst

    def worst_case(self, request: Request) -> Usage:
        return self.worst

    def annotate(self, request: Request, previous: Reply | None = None) -> Reply:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=10)
        try:
            body = {
                "span": request.span,
                "follow_up": previous and previous.raw,
                "pictures": len(request.keyframes),
                "process": os.getpid(),
            }
            connection.request("POST", "/", json.dumps(body))
            response = connection.getresponse()
            text = response.read().decode()
        except OSError as error:
            raise CallFailed("connection", str(error)) from error
        finally:
            connection.close()
        if response.status in FAILURES:
            wait = response.getheader("Retry-After")
            raise CallFailed(FAILURES[response.status], f"status {response.status}", wait and float(wait))
        said = json.loads(text)
        result: Any = Refusal(said["kind"], "as told") if said["kind"] else Rationale(*said["parts"])
        return Reply(result, said["raw"], *said["used"])


def said(
    received: Received, kind: str | None = None, used: tuple[int, int] = (80, 20), delay: float = 0.0
) -> Answer:
    """The server's answer to `received`; its text holds the number of the call, so that a test can tell which
    call an answer is from.
    """
    parts = [
        f"{part} of {received.body['span']} in call {received.number}"
        for part in ("what", "how", "where", "why")
    ]
    return Answer(
        json.dumps({"kind": kind, "parts": parts, "raw": f"call {received.number}", "used": used}).encode(),
        delay=delay,
    )


def status(code: int, **headers: str) -> Answer:
    """A failure."""
    return Answer(b"", code, {name.replace("_", "-"): value for name, value in headers.items()})


def play(answers: dict[int, Callable[[Received], Answer]]) -> Callable[[Received], Answer]:
    """A script: call number -> its answer, all others a rationale."""
    return lambda received: answers.get(received.number, said)(received)


def write_dataset(folder: Path, episodes: int, frames: int, size: int = 16, seed: int = 0) -> EpisodeDataset:
    """Noise with random actions: `episodes` of `frames` frames, so with granularity "step" their product of
    requests.
    """
    random = np.random.default_rng(seed)
    with DatasetWriter(folder, fps=5, robot_type="none") as writer:
        for _ in range(episodes):
            images = random.integers(0, 255, (frames, size, size, 3), np.uint8)
            numbers = random.normal(size=(2, frames, 15)).astype(np.float32)
            writer.add(Episode(images, numbers[0][:, :7], numbers[1], "put carrot on plate"))
    return open_dataset(folder)


def main(url: str, dataset: str, output: str, concurrency: str, budget: str) -> None:
    limits = Limits(int(concurrency), budget_calls=int(budget), prices=PRICES)
    annotate_dataset(dataset, PlainTeacher(url), "step", 1, False, output, limits=limits, confirm=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
