"""The annotation run: every segment once, stored as parquet beside the dataset, within limits, continued
wherever it was stopped or killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from refinevla_kit.errors import KitError
from refinevla_kit.teacher import (
    Limits,
    OracleTeacher,
    Prices,
    Rationale,
    Reply,
    Request,
    Usage,
    annotate_dataset,
    estimate,
    load_rationales,
    lookup,
    make_teacher,
    summarise,
)
from refinevla_kit.teacher.requests import keyframe_indices, requests
from refinevla_kit.teacher.schema import REPAIRABLE
from tests.conftest import REPOSITORY
from tests.teacher.gemini_server import ANSWERS, PAID, GeminiServer, Received
from tests.teacher.plain_teacher import PRICES, PlainTeacher, play, said, status, write_dataset


class Counting:
    """The oracle, remembering what it was asked; interrupted after `stop_after` answers."""

    name, version = OracleTeacher.name, OracleTeacher.version

    def __init__(self, stop_after: int | None = None, seed: int = 0) -> None:
        self.oracle, self.stop_after, self.asked = OracleTeacher(seed), stop_after, []
        self.prompt_hash = self.oracle.prompt_hash

    def worst_case(self, request: Request) -> Usage:
        return Usage()

    def annotate(self, request: Request, previous: Reply | None = None) -> Reply:
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked.append((request.episode, request.start))
        return self.oracle.annotate(request)


ONE = Limits(concurrency=1)


@pytest.mark.parametrize("granularity", ["step", "segment", "trajectory"])
def test_ranges_cover_every_frame_once(dataset, granularity: str) -> None:
    path = annotate_dataset(dataset, OracleTeacher(), granularity, progress=False)
    assert path == dataset.path / "rationales" / f"oracle-{granularity}.parquet"
    stored = load_rationales(path)
    for info in dataset.episodes:
        covered = [
            frame for one in stored if one.episode == info.index for frame in range(one.start, one.end)
        ]
        assert covered == list(range(info.length))
        for frame in range(info.length):
            found = lookup(stored, info.index, frame)
            assert found.episode == info.index
            assert found.start <= frame < found.end
    assert lookup(stored, 0, dataset.episodes[0].length) is None
    assert lookup(stored, 99, 0) is None
    counts = {"step": sum(info.length for info in dataset.episodes), "trajectory": len(dataset.episodes)}
    assert len(stored) == counts.get(granularity, len(stored))
    assert granularity != "segment" or 3 * len(dataset.episodes) <= len(stored) <= counts["step"] / 2


def test_what_is_stored_is_what_the_teacher_said(dataset) -> None:
    stored = load_rationales(annotate_dataset(dataset, OracleTeacher(3), progress=False))
    asked = list(requests(dataset))
    assert [(one.episode, one.start, one.end) for one in stored] == [
        (one.episode, one.start, one.end) for one in asked
    ]
    for one, request in zip(stored, asked, strict=True):
        assert one.rationale == OracleTeacher(3).annotate(request).result
        assert one.raw == one.rationale.text()
        assert (one.teacher, one.version, one.prompt_hash, one.cost) == (
            "oracle",
            "1",
            OracleTeacher(3).prompt_hash,
            0.0,
        )


def test_a_request_shows_the_frames_it_speaks_of(dataset, frames) -> None:
    request = list(requests(dataset, keyframes=3))[1]
    assert request.keyframe_indices[0] == request.start
    assert request.keyframe_indices[-1] == request.end - 1 or request.end - request.start == 1
    assert len(request.keyframes) == len(request.keyframe_indices) <= 3
    assert (
        np.abs(request.keyframes[0].astype(int) - frames[0].images[request.start]).mean() < 6
    )  # video compression
    assert np.array_equal(request.actions, frames[0].actions[request.start : request.end])
    assert np.array_equal(request.masks["carrot"], frames[0].masks["carrot"][request.start])
    assert np.array_equal(request.state.source, frames[0].states[request.start].source)


def test_an_interrupted_run_continues_without_repeating_or_losing(dataset) -> None:
    everything = [(one.episode, one.start) for one in requests(dataset)]
    first = Counting(stop_after=4)
    with pytest.raises(KeyboardInterrupt):
        annotate_dataset(dataset, first, progress=False, limits=ONE)
    output = dataset.path / "rationales" / "oracle-segment.parquet"
    assert (
        [(one.episode, one.start) for one in load_rationales(output)] == first.asked == everything[:4]
    )  # usable at once
    second = Counting()
    annotate_dataset(dataset, second, progress=False, limits=ONE)
    assert first.asked + second.asked == everything
    assert [(one.episode, one.start) for one in load_rationales(output)] == everything
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    third = Counting()
    annotate_dataset(dataset, third, progress=False)
    assert third.asked == []  # a finished run asks nothing


def test_a_finished_file_of_another_seed_is_written_anew(dataset) -> None:
    annotate_dataset(dataset, OracleTeacher(0), progress=False)
    stored = load_rationales(annotate_dataset(dataset, OracleTeacher(1), progress=False))
    assert {one.prompt_hash for one in stored} == {OracleTeacher(1).prompt_hash}


def test_the_same_seed_gives_the_same_bytes(dataset, tmp_path) -> None:
    one, two = (
        annotate_dataset(dataset, OracleTeacher(5), progress=False, output=tmp_path / name)
        for name in ("a.parquet", "b.parquet")
    )
    assert one.read_bytes() == two.read_bytes()


def test_real_robot_data_is_refused_and_counted(real_dataset, tmp_path) -> None:
    stored = load_rationales(
        annotate_dataset(real_dataset, OracleTeacher(), progress=False, output=tmp_path / "real.parquet")
    )
    assert len(stored) >= 3
    assert {one.refusal.kind for one in stored} == {"no_state"}
    assert all(one.rationale is None for one in stored)


def test_other_files_are_no_rationales(tmp_path) -> None:
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(KitError, match="no rationales can be read"):
        load_rationales(tmp_path / "text.parquet")
    with pytest.raises(KitError, match="no rationales can be read"):
        load_rationales(tmp_path / "missing.parquet")


def test_a_damaged_parquet_column_is_said(dataset, tmp_path) -> None:
    table = pq.read_table(annotate_dataset(dataset, OracleTeacher(), progress=False)).drop_columns(["raw"])
    pq.write_table(table, tmp_path / "less.parquet")
    with pytest.raises(KitError, match="no rationales can be read"):
        load_rationales(tmp_path / "less.parquet")


def test_unknown_granularity_is_one_line(dataset) -> None:
    with pytest.raises(KitError, match="choose one of step, segment, trajectory"):
        annotate_dataset(dataset, OracleTeacher(), "sentence", progress=False)


@pytest.mark.parametrize(
    ("start", "end", "count", "expected"),
    [(0, 1, 3, [0]), (4, 9, 3, [4, 6, 8]), (2, 4, 3, [2, 3]), (5, 9, 1, [5])],
)
def test_keyframes_start_with_the_first_frame(start: int, end: int, count: int, expected: list[int]) -> None:
    assert keyframe_indices(start, end, count) == expected


def test_rationale_text_has_one_labelled_line_a_part() -> None:
    assert Rationale("a", "b", "c", "d").text() == "Observation: a\nSituation: b\nSpatial: c\nPlan: d"


def test_answers_about_another_dataset_of_the_same_name_are_not_reused(tmp_path: Path) -> None:
    one, other = (
        write_dataset(tmp_path / name / "noise", 1, 12, seed=seed)
        for seed, name in enumerate(("one", "other"))
    )
    output = tmp_path / "rationales.parquet"
    annotate_dataset(one, OracleTeacher(), progress=False, output=output)
    hashes = set(pq.read_table(output)["dataset_hash"].to_pylist())
    annotate_dataset(other, OracleTeacher(), progress=False, output=output)
    assert [(each.episode, each.start, each.end) for each in load_rationales(output)] == [
        each.span for each in requests(other)
    ]
    assert not hashes & set(pq.read_table(output)["dataset_hash"].to_pylist())


def test_episodes_added_since_are_asked_about_and_the_others_are_not(tmp_path: Path) -> None:
    small, output = write_dataset(tmp_path / "small" / "noise", 2, 12), tmp_path / "rationales.parquet"
    grown = write_dataset(tmp_path / "grown" / "noise", 5, 12)  # its first two episodes are the same
    annotate_dataset(small, Counting(), progress=False, output=output)
    second = Counting()
    annotate_dataset(grown, second, progress=False, output=output)
    assert {episode for episode, _ in second.asked} == {2, 3, 4}
    assert {one.episode for one in load_rationales(output)} == {0, 1, 2, 3, 4}


# What costs something: estimate, confirmation, both Gemini clients, kills


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory):
    """60 requests at granularity "step"."""
    return write_dataset(tmp_path_factory.mktemp("data") / "noise", 6, 10)


def annotate(noise, server: GeminiServer, output: Path, **limits: Any) -> Path:
    return annotate_dataset(
        noise,
        PlainTeacher(server.url),
        "step",
        1,
        False,
        output,
        limits=Limits(prices=PRICES, **limits),
        confirm=True,
    )


def test_an_estimate_makes_no_call_and_comes_true(noise, tmp_path: Path) -> None:
    limits, output = Limits(4, requests_per_minute=20, prices=PRICES), tmp_path / "r.parquet"
    with GeminiServer(play({})) as server:
        expected = estimate(noise, PlainTeacher(server.url), "step", 1, output, limits)
        assert server.count == 0
        assert (expected.requests, expected.typical.calls, expected.worst.calls) == (60, 60, 120)
        assert (expected.typical.input_tokens, expected.worst.input_tokens, expected.worst.output_tokens) == (
            6000,
            12000,
            6000,
        )
        assert (expected.money, expected.worst_money) == (pytest.approx(0.036), pytest.approx(0.072))
        assert expected.hours == pytest.approx(3 / 60)  # the rate, not the latency, decides
        assert "0.04 EUR, up to 0.07 EUR (prices of 2026-11-24" in str(expected)
        found = summarise(annotate(noise, server, output, concurrency=4, budget_calls=30))
        after = estimate(noise, PlainTeacher(server.url), "step", 1, output, limits)
    assert (after.requests, after.typical.input_tokens, after.typical.output_tokens) == (
        30,
        30 * 80,
        30 * 20,
    )  # measured by now
    assert found.money + after.money <= expected.worst_money


def test_nothing_is_paid_for_before_somebody_agreed(
    noise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    with GeminiServer(play({})) as server:
        arguments = (noise, PlainTeacher(server.url), "trajectory", 1, False, tmp_path / "r.parquet")
        for confirm in (None, False):  # nobody can answer here, as under papermill
            with pytest.raises(KitError, match=r"about 6 calls for 0\.00 EUR and was not confirmed"):
                annotate_dataset(*arguments, limits=Limits(prices=PRICES), confirm=confirm)
        assert "requests  6 of 6" in capsys.readouterr().out
        monkeypatch.setattr("builtins.input", lambda _: "n")
        with pytest.raises(KitError, match="an unknown sum"):
            annotate_dataset(*arguments)
        assert (server.count, list(tmp_path.iterdir())) == (0, [])
        annotate_dataset(
            *arguments, limits=Limits(prices=Prices(0, 0, "EUR", "2026-11-24"))
        )  # costs nothing, asks nothing
        assert server.count == 6
        monkeypatch.setattr("builtins.input", lambda _: "y")
        annotate_dataset(*arguments[:-1], tmp_path / "s.parquet")
        assert server.count == 12


def test_a_recording_that_holds_paid_rationales_is_not_made_anew(tmp_path: Path) -> None:
    from refinevla_kit.rollouts.recording import record

    data = write_dataset(tmp_path / "noise", 1, 4)
    free = annotate_dataset(data, Counting(), progress=False)
    with GeminiServer(play({})) as server:
        paid = annotate_dataset(data, PlainTeacher(server.url), "trajectory", 1, False, confirm=True)
    with pytest.raises(
        KitError,
        match=r"would be replaced and holds what was paid for or reviewed .*plain-trajectory\.parquet ->",
    ):
        record(data.path, ["widowx_carrot_on_plate"], 1, overwrite=True)
    assert paid.exists() and free.exists()


def test_calls_are_concurrent_as_far_as_allowed(noise, tmp_path: Path) -> None:
    with GeminiServer(play({}), latency=0.03) as server:
        stored = load_rationales(annotate(noise, server, tmp_path / "r.parquet", concurrency=6))
        assert (server.count, server.most_at_once) == (60, 6)
    assert [(one.episode, one.start, one.end) for one in stored] == [
        request.span for request in requests(noise, "step", 1)
    ]
    assert all(
        f"of [{one.episode}, {one.start}, {one.end}]" in one.rationale.observation for one in stored
    )  # each its own answer


def test_the_bar_shows_cost_and_refusals(noise, tmp_path: Path, capsys) -> None:
    with GeminiServer(
        lambda received: said(received, "safety" if received.number % 3 == 0 else None)
    ) as server:
        annotate_dataset(
            noise,
            PlainTeacher(server.url),
            "step",
            1,
            True,
            tmp_path / "r",
            limits=Limits(prices=PRICES),
            confirm=True,
        )
    assert "60/60" in capsys.readouterr().err.split("\r")[-1]
    assert summarise(tmp_path / "r").money == pytest.approx(60 * (80e-6 + 20e-5))


def test_a_full_disk_is_noticed_before_a_call_is_paid_for(noise, small_disk: Path) -> None:
    with GeminiServer(play({})) as server, pytest.raises(KitError, match="16 MB are free"):
        annotate(noise, server, small_disk / "r.parquet")
    assert server.count == 0


def test_an_interrupt_waits_for_the_calls_in_flight(noise, tmp_path: Path) -> None:
    def interrupt(received: Received) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return said(received)

    with GeminiServer(play({8: interrupt}), latency=0.1) as server:
        with pytest.raises(KeyboardInterrupt):
            annotate(noise, server, tmp_path / "r.parquet", concurrency=5)
        assert 9 <= server.count <= 9 + 5
        assert len(load_rationales(tmp_path / "r.parquet")) == server.count  # all that was asked is there
        annotate(noise, server, tmp_path / "r.parquet")
        assert server.count == 60


def test_a_notebook_runs_and_is_interrupted_like_a_script(tmp_path: Path) -> None:
    """A real kernel, in whose main thread an event loop is running: the bar, one interrupt, the rest."""
    from jupyter_client.manager import start_new_kernel

    data, output = write_dataset(tmp_path / "noise", 4, 10), tmp_path / "r.parquet"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    manager, client = start_new_kernel(env=environment, cwd=str(REPOSITORY))

    def interrupt(received: Received) -> Any:
        manager.interrupt_kernel()
        return said(received)

    shown: list[str] = []
    try:
        with GeminiServer(play({12: interrupt}), latency=0.1) as server:
            cells = [
                "import asyncio; asyncio.get_running_loop()\n"
                "from refinevla_kit.teacher import *\nfrom tests.teacher.plain_teacher import PlainTeacher",
                f"path = annotate_dataset('{data.path}', PlainTeacher('{server.url}'), 'step', 1, "
                f"output='{output}', limits=Limits(4), confirm=True)",
            ]
            counts = []
            for cell in [*cells, cells[-1]]:
                client.execute_interactive(
                    cell,
                    timeout=120,
                    output_hook=lambda message: shown.append(json.dumps(message["content"])),
                )
                counts.append(server.count)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert 13 <= counts[1] <= 13 + 4
    assert [text for text in shown if "Interrupted; run again to go on." in text]
    assert [text for text in shown if '"ename": "KeyboardInterrupt"' in text]
    assert [text for text in shown if "rationales" in text and "/40" in text]  # the bar
    assert server.count == 40 == len(load_rationales(output))


@pytest.mark.slow
def test_no_kill_loses_an_answer_or_repeats_one(tmp_path: Path) -> None:
    """Real processes, killed at random instants: no answer in the journal is asked for again, and a kill
    repeats at most the calls then in flight.
    """
    concurrency, budget, kills, draw = 6, 500, 6, random.Random(4)
    data, output = write_dataset(tmp_path / "noise", 30, 10), tmp_path / "r.parquet"
    asked: list[
        tuple[tuple[int, ...], bool]
    ] = []  # (span, whether it is the follow-up), in the order of the server
    sent: dict[str, tuple[int, ...]] = {}  # raw text of each answer -> span
    answered = Counter[tuple[tuple[int, ...], bool]]()

    def script(received: Received) -> Any:
        span, follow_up = tuple(received.body["span"]), received.body["follow_up"] is not None
        asked.append((span, follow_up))
        if received.number % 23 == 3:
            return status(503)
        answered[span, follow_up] += 1
        sent[f"call {received.number}"] = span
        cut = not follow_up and sum(span) % 5 == 0
        return said(received, "truncated" if cut else None, delay=0.05 * draw.random())

    def journaled() -> set[tuple[tuple[int, ...], bool]]:
        lines = output.with_name("r.parquet.part").read_bytes().split(b"\n")[:-1]  # without what was cut off
        rows = [
            line
            for line in map(json.loads, lines)
            if "episode" in line and line["refusal_kind"] in (None, "truncated")
        ]
        return {((row["episode"], row["start"], row["end"]), row["first_kind"] is not None) for row in rows}

    with GeminiServer(script) as server:
        arguments = [server.url, str(data.path), str(output), str(concurrency), str(budget)]
        command = [sys.executable, "-m", "tests.teacher.plain_teacher", *arguments]
        states = []
        for _ in range(kills):
            before = server.count
            process = subprocess.Popen(command, cwd=REPOSITORY)
            while server.count == before and process.poll() is None:
                time.sleep(0.002)
            time.sleep(0.25 * draw.random())
            process.kill()
            assert process.wait() == -signal.SIGKILL
            time.sleep(0.1)  # the server ends the answers that nobody hears any more
            states.append((len(asked), journaled()))
        subprocess.run(command, cwd=REPOSITORY, check=True)
        count = server.count
    assert (
        sum(len(state) for _, state in states[:1]) < len(states[-1][1]) < 360
    )  # the kills came while there was something to lose
    for calls, state in states:
        assert not state & set(asked[calls:])
    assert sum(answered.values()) - len(answered) <= kills * concurrency
    stored = load_rationales(output)
    assert [(one.episode, one.start, one.end) for one in stored] == [
        request.span for request in requests(data, "step", 1)
    ]
    assert all(
        one.rationale is not None and sent[one.raw] == (one.episode, one.start, one.end) for one in stored
    )
    assert count <= summarise(output).spent.calls <= budget  # what was in flight at a kill is in the bill


@pytest.mark.parametrize("name", ["gemini", "gemini-legacy"])
def test_every_kind_of_reply_ends_as_a_rationale_or_a_typed_refusal(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both Gemini clients over real sockets: each frame meets another kind of answer first and a good one
    after that.
    """
    monkeypatch.setenv("GEMINI_API_KEY", "AIza-key-of-the-tests")
    stops = {
        "bad_key",
        "unauthorised",
        "forbidden",
        "not_found",
        "quota_header",
        "daily_quota",
        "daily_quota_text",
        "error_text",
        "error_string",
        "error_list",
    }  # see test_scheduler
    kinds = ["ok", *sorted(ANSWERS.keys() - stops - {"ok"})]
    met: dict[bytes, list[str]] = {}

    def script(received: Received) -> str:
        answers = met.setdefault(received.pictures[0][1], [])
        answers.append("ok" if answers else kinds[len(met) - 1])
        return answers[-1]

    with GeminiServer(script) as server:
        teacher = make_teacher(name, model="gemini-x", base_url=server.url, timeout=0.5)
        noise = write_dataset(tmp_path / "noise", 1, len(kinds))
        path = annotate_dataset(
            noise,
            teacher,
            "step",
            1,
            False,
            tmp_path / "r.parquet",
            limits=Limits(6, prices=PRICES),
            confirm=True,
        )
    rows, found = pq.read_table(path).to_pylist(), summarise(path)
    assert len(rows) == len(met) == len(kinds)
    # what no second call can mend, and what it is not made for: an answer that never began
    assert {row["refusal_kind"] for row in rows} == {
        None,
        "blocked",
        "safety",
        "bad_request",
        "empty",
        "truncated",
    }
    assert {row["first_kind"] for row in rows} >= set(REPAIRABLE)
    assert all(row["first_raw"] != row["raw"] for row in rows if row["first_kind"])
    assert max(len(answers) for answers in met.values()) == 2
    assert found.spent.calls == server.count == sum(row["attempts"] for row in rows)
    assert sum(row["instruction_matches"] is False for row in rows) == found.mismatches == 1
    assert (
        found.money
        >= sum(row["cost"] for row in rows)
        > (found.rationales + found.refusals["safety"]) * (PAID[0] * 1e-6 + PAID[1] * 1e-5)
    )
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and b"AIza-key" in file.read_bytes()]
