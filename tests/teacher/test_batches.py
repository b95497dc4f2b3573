"""Batch mode gives what direct calls give at half the price; a kill anywhere neither loses nor repeats."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from refinevla_kit.episodes import EpisodeDataset
from refinevla_kit.errors import KitError
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.teacher import (
    Limits,
    Prices,
    RunFailed,
    annotate_dataset,
    estimate,
    load_rationales,
    summarise,
)
from refinevla_kit.teacher import batches as batching
from refinevla_kit.teacher.gemini import GeminiTeacher
from refinevla_kit.teacher.limits import NANO
from tests.teacher.batch_server import BatchServer
from tests.teacher.gemini_server import PAID, GeminiServer, Received
from tests.teacher.plain_teacher import PlainTeacher, write_dataset

PRICES = Prices(2.0, 8.0, "EUR", "2026-11-24")
REQUESTS = 12  # of the dataset, at granularity "step"
ONE = PRICES.money(*PAID) // 2  # of a request in batch mode, billionths
STAGES = ("upload", "create", "get", "download")
TURNS = 5 if int(os.environ.get("KILLS", "0")) >= 20 else 2
RUN = """
import sys
from refinevla_kit.episodes import open_dataset
from refinevla_kit.teacher import Limits, Prices, annotate_dataset, batches
from refinevla_kit.teacher.gemini import GeminiTeacher
batches.POLL, batches.MOST = 0.02, 5
url, dataset, output = sys.argv[1:]
limits = Limits(prices=Prices(2.0, 8.0, "EUR", "2026-11-24"))
print("ready", flush=True)
annotate_dataset(open_dataset(dataset), GeminiTeacher("m", base_url=url), "step", 1, False, output,
                 limits=limits, executor="batch", confirm=True)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "POLL", 0.01)
    monkeypatch.setenv("GEMINI_API_KEY", "a-key-of-the-tests")


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> EpisodeDataset:
    dataset: EpisodeDataset = write_dataset(tmp_path_factory.mktemp("data") / "noise", 3, 4)
    return dataset


def annotate(
    noise: EpisodeDataset, server: GeminiServer, output: Path, executor: str = "batch", **more: Any
) -> Path:
    limits = Limits(prices=PRICES, **more)
    teacher = GeminiTeacher("m", base_url=server.url)
    return annotate_dataset(
        noise, teacher, "step", 1, False, output, limits=limits, executor=executor, confirm=True
    )


def test_answers_are_those_of_direct_calls_at_half_the_price(noise: EpisodeDataset, tmp_path: Path) -> None:
    with BatchServer() as server:
        path = annotate(noise, server, tmp_path / "batch.parquet")
        asked = [received.body for received in server.requests]
    with GeminiServer() as server:
        direct = annotate(noise, server, tmp_path / "direct.parquet", "threads")
        called = [received.body for received in server.requests]
    one, other = load_rationales(path), load_rationales(direct)
    assert [(row.span, row.rationale) for row in one] == [(row.span, row.rationale) for row in other]
    assert len(one) == REQUESTS
    assert summarise(path).money == pytest.approx(summarise(direct).money / 2)
    assert summarise(path).spent.calls == REQUESTS
    assert not path.with_name(path.name + ".part").exists()

    assert sorted(map(content, asked)) == sorted(map(content, called))


def content(body: dict[str, Any]) -> str:
    """What is asked, however the SDK spells it."""
    parts = [part for turn in body["contents"] for part in turn["parts"]]
    texts = [part["text"] for part in parts if "text" in part]
    pictures = [
        part["inlineData"]["data"].translate(str.maketrans("-_", "+/"))
        for part in parts
        if "text" not in part
    ]
    settings = json.dumps(body["generationConfig"], sort_keys=True)
    return json.dumps([texts, pictures, settings.replace("property_ordering", "propertyOrdering")])


def test_a_reply_that_needs_it_is_followed_up_in_a_second_batch(
    noise: EpisodeDataset, tmp_path: Path
) -> None:
    def script(received: Received) -> str:
        first = received.path == "1-2-3" and "truncated" not in received.text and len(seen) == 0
        if first:
            seen.append(received.path)
        return "truncated" if first else "ok"

    seen: list[str] = []
    with BatchServer(script) as server:
        path = annotate(noise, server, tmp_path / "x.parquet")
        assert server.asked["1-2-3"] == 2 and sum(server.asked.values()) == REQUESTS + 1
        assert len(server.jobs) == 2
    row = next(row for row in load_rationales(path) if row.span == (1, 2, 3))
    assert row.rationale and row.attempts == 2
    assert summarise(path).spent.calls == REQUESTS + 1


def test_what_the_server_could_not_answer_is_not_paid_and_asked_by_the_next_run(
    noise: EpisodeDataset, tmp_path: Path
) -> None:
    broken = {"0-1-2", "2-3-4"}
    with BatchServer(lambda received: "server" if received.path in broken else "ok") as server:
        path = annotate(noise, server, tmp_path / "x.parquet")
        assert len(load_rationales(path)) == REQUESTS - 2
        assert summarise(path).spent.money == (REQUESTS - 2) * ONE
        broken.clear()
        annotate(noise, server, path)
        assert len(load_rationales(path)) == REQUESTS
        assert summarise(path).spent.money == REQUESTS * ONE
        assert server.asked["0-1-2"] == 2 and server.asked["0-0-1"] == 1


def test_a_job_that_fails_costs_nothing(noise: EpisodeDataset, tmp_path: Path) -> None:
    with BatchServer(failing=True) as server:
        with pytest.raises(RunFailed, match=r"The batch refinevla-\w+ failed \(failed"):
            annotate(noise, server, tmp_path / "x.parquet")
        server.failing = False
        path = annotate(noise, server, tmp_path / "x.parquet")
    assert summarise(path).spent.money == REQUESTS * ONE


@pytest.mark.parametrize("stage", ["get", "download"])
def test_what_the_server_has_no_longer_is_asked_anew_and_stays_counted(
    noise: EpisodeDataset, tmp_path: Path, stage: str
) -> None:
    with BatchServer() as server:
        server.gone = stage
        with pytest.raises(RunFailed, match=r"has left the server .* stays counted\. Run again"):
            annotate(noise, server, tmp_path / "x.parquet")
        server.gone = ""
        path = annotate(noise, server, tmp_path / "x.parquet")
    assert len(load_rationales(path)) == REQUESTS and set(server.asked.values()) == {2}
    assert summarise(path).spent.money > 2 * REQUESTS * ONE, "at its worst case"


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"response": {}}', b'{"key": "x", "response": {}}'])
def test_a_line_of_the_answers_that_says_nothing_is_passed_over(
    noise: EpisodeDataset, tmp_path: Path, line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = BatchServer._answers
    monkeypatch.setattr(BatchServer, "_answers", lambda self, name: line + b"\n" + whole(self, name))
    with BatchServer() as server:
        path = annotate(noise, server, tmp_path / "x.parquet")
    assert len(load_rationales(path)) == REQUESTS


def test_a_batch_never_goes_beyond_the_budget(noise: EpisodeDataset, tmp_path: Path, capsys: Any) -> None:
    with BatchServer() as server:
        path = annotate(noise, server, tmp_path / "x.parquet", budget_calls=5)
        assert sum(server.asked.values()) == 5 and len(load_rationales(path)) == 5
        assert "Stopped at budget_calls" in capsys.readouterr().out
        annotate(noise, server, path, budget_calls=REQUESTS)
        assert len(load_rationales(path)) == REQUESTS and max(server.asked.values()) == 1


def test_the_estimate_is_at_half_the_price(noise: EpisodeDataset, tmp_path: Path) -> None:
    teacher = GeminiTeacher("m")
    how: dict[str, Any] = {"output": tmp_path / "x.parquet", "limits": Limits(prices=PRICES)}
    direct = estimate(noise, teacher, "step", 1, **how)
    batch = estimate(noise, teacher, "step", 1, **how, executor="batch")
    assert batch.money == pytest.approx(direct.money / 2)
    assert "a day, at most, for each batch" in str(batch) and "at a time" in str(direct)


def test_a_teacher_without_a_batch_mode_is_told_so(noise: EpisodeDataset, tmp_path: Path) -> None:
    with pytest.raises(KitError, match="plain has no batch mode -> take the teacher gemini"):
        annotate_dataset(
            noise, PlainTeacher(""), "step", 1, output=tmp_path / "x.parquet", executor="batch", confirm=True
        )


def test_while_a_batch_is_with_the_server_no_other_run_asks_the_same(
    noise: EpisodeDataset, tmp_path: Path
) -> None:
    def interrupt(stage: str) -> None:
        if stage == "get":
            raise ConnectionError

    with BatchServer() as server:
        server.at = interrupt
        with pytest.raises(KitError, match=r"a batch could not be looked at .* -> run again"):
            annotate(noise, server, tmp_path / "x.parquet")
        server.at = lambda stage: None
        with pytest.raises(KitError, match=r'1 batches of .* are with the server -> .*executor="batch"'):
            annotate(noise, server, tmp_path / "x.parquet", "threads")
        path = annotate(noise, server, tmp_path / "x.parquet")
        assert len(load_rationales(path)) == REQUESTS and max(server.asked.values()) == 1


def deaths() -> Iterator[tuple[str, int]]:
    """Each stage at its first turns: 20 of them with `KILLS=20`."""
    for turn in range(1, TURNS + 1):
        for stage in STAGES:
            yield stage, turn


@pytest.mark.slow
def test_a_kill_at_any_stage_loses_nothing_and_pays_for_nothing_twice(
    noise: EpisodeDataset, tmp_path: Path
) -> None:
    """Real processes, killed while the server works for them: the job is found by its name."""
    killed = 0
    for number, (stage, turn) in enumerate(deaths()):
        output, seen = tmp_path / f"{number}.parquet", 0
        with BatchServer() as server:
            command = [sys.executable, "-c", RUN, server.url, str(noise.path), str(output)]
            environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, cwd=REPOSITORY)

            def kill(now: str, process: Any = process, stage: str = stage, turn: int = turn) -> None:
                nonlocal seen, killed
                seen += now == stage
                if now == stage and seen == turn:
                    process.kill()
                    process.wait()
                    killed += 1

            server.at = kill
            process.wait(120)
            server.at = lambda now: None
            subprocess.run(command, env=environment, check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
            assert max(server.asked.values()) == 1, f"{stage} {turn}: asked twice"
        rows = load_rationales(output)
        assert len(rows) == REQUESTS and all(row.rationale for row in rows)
        assert summarise(output).spent.money == REQUESTS * ONE
        assert summarise(output).money == REQUESTS * ONE / NANO
    turns = min(TURNS, 3)
    assert killed >= turns * len(STAGES), "a run of three batches has three turns of each stage"


def test_what_is_owed_when_a_run_is_cut_off_is_followed_up_by_the_next(
    noise: EpisodeDataset, tmp_path: Path
) -> None:
    def script(received: Received) -> str:
        first = received.path == "1-2-3" and not seen
        if first:
            seen.append(received.path)
        return "truncated" if first else "ok"

    def interrupt(stage: str) -> None:
        if stage == "get":
            raise ConnectionError

    seen: list[str] = []
    with BatchServer(script) as server:
        server.at = interrupt
        with pytest.raises(KitError, match="a batch could not be looked at"):
            annotate(noise, server, tmp_path / "x.parquet")
        server.at = lambda stage: None
        path = annotate(noise, server, tmp_path / "x.parquet")
        assert summarise(path).refusals == {} and len(server.jobs) == 2
