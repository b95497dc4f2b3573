"""Calls made by a real Ray cluster of two workers: one driver schedules, so limits and budget hold for both
together.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from refinevla_kit.errors import KitError
from refinevla_kit.teacher import Limits, annotate_dataset, load_rationales, summarise
from refinevla_kit.teacher.scheduler import Run, connect
from tests.conftest import REPOSITORY
from tests.teacher.gemini_server import GeminiServer, Received
from tests.teacher.plain_teacher import PRICES, PlainTeacher, play, said, status, write_dataset

FASTER = 6


class FastLoop(asyncio.SelectorEventLoop):
    """A minute passes in ten seconds."""

    def __init__(self) -> None:
        super().__init__()
        select = self._selector.select
        self._selector.select = lambda timeout=None: select(timeout and timeout / FASTER)

    def time(self) -> float:
        return FASTER * super().time()


@pytest.fixture(scope="module")
def cluster():
    """Ray with two processors, so two workers."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80_000_000,
        runtime_env={"env_vars": {"PYTHONPATH": str(REPOSITORY), "NO_PROXY": "127.0.0.1"}},
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory):
    """60 requests at granularity "step"."""
    return write_dataset(tmp_path_factory.mktemp("data") / "noise", 6, 10)


def annotate(noise, server: GeminiServer, output: Path, executor: Any = "ray", **limits: Any) -> Path:
    wanted = Limits(prices=PRICES, **limits)
    return annotate_dataset(
        noise,
        PlainTeacher(server.url),
        "step",
        1,
        False,
        output,
        limits=wanted,
        executor=executor,
        confirm=True,
    )


@pytest.mark.slow
def test_two_workers_share_limits_and_budget(
    cluster, noise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[float] = []

    def script(received: Received) -> Any:
        times.append(time.monotonic())
        return {5: status(503), 9: status(429, Retry_After="3"), 12: said(received, "truncated")}.get(
            received.number
        ) or said(received)

    monkeypatch.setattr(Run, "new_loop", FastLoop)
    with GeminiServer(script, latency=0.05) as server:
        annotate(
            noise, server, tmp_path / "r.parquet", concurrency=6, budget_calls=40, requests_per_minute=25
        )
        assert (server.count, summarise(tmp_path / "r.parquet").spent.calls) == (40, 40)
        assert 4 <= server.most_at_once <= 6
        assert max(sum(start <= when < start + 60 / FASTER - 0.5 for when in times) for start in times) <= 25
        assert "budget_calls=40" in summarise(tmp_path / "r.parquet").stopped
        processes = Counter(received.body["process"] for received in server.requests)
        annotate(noise, server, tmp_path / "r.parquet", "threads")  # goes on where the workers stopped
    assert len(processes) == 2
    assert min(processes.values()) >= 10
    assert os.getpid() not in processes
    stored = load_rationales(tmp_path / "r.parquet")
    assert server.count == 60 + 3  # two failures and a follow-up
    assert all(f"of [{one.episode}, {one.start}, {one.end}]" in one.rationale.observation for one in stored)
    assert len(stored) == 60


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_calls_and_no_answer(cluster, noise, tmp_path: Path) -> None:
    def script(received: Received) -> Any:
        if received.number == 20:
            os.kill(received.body["process"], signal.SIGKILL)
        return said(received)

    with GeminiServer(script, latency=0.05) as server:
        path = annotate(noise, server, tmp_path / "r.parquet", concurrency=4)
    found = summarise(path)
    assert found.rationales == 60
    assert 60 < server.count <= 60 + 2  # at most those that the worker had in flight
    assert found.spent.calls >= server.count
    answered = sum(one.input_tokens for one in load_rationales(path))
    assert found.spent.input_tokens == answered + 100 * (
        found.spent.calls - 60
    )  # calls whose fate is unknown are kept at their worst case


@pytest.mark.slow
def test_what_stops_a_run_stops_it_on_ray_too(cluster, noise, tmp_path: Path) -> None:
    with GeminiServer(lambda _: status(401)) as server, pytest.raises(KitError, match="unauthorised"):
        annotate(noise, server, tmp_path / "r.parquet")
    assert server.count == 1


def test_any_executor_will_do(noise, tmp_path: Path) -> None:
    with GeminiServer(play({})) as server, ThreadPoolExecutor(2) as pool:
        assert len(load_rationales(annotate(noise, server, tmp_path / "r.parquet", pool))) == 60
        assert pool.submit(int).result() == 0  # the user's stays open
    with pytest.raises(KitError, match="choose threads or ray"), connect("fibres", PlainTeacher(""), 1):
        pass
