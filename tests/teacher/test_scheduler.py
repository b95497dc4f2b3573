"""The run's scheduling, in a world whose clock and whose order of replies the test decides: limits, budget,
retries, follow-ups, when to stop.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Callable
from concurrent.futures import Executor, Future
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refinevla_kit.errors import KitError
from refinevla_kit.teacher import (
    CallFailed,
    Limits,
    Rationale,
    Refusal,
    Reply,
    Request,
    RunFailed,
    Usage,
    annotate_dataset,
    load_rationales,
    run_of,
    summarise,
)
from refinevla_kit.teacher.limits import Spent
from refinevla_kit.teacher.requests import requests
from refinevla_kit.teacher.scheduler import FIRST, SILENT, Run
from tests.teacher.plain_teacher import PRICES, PlainTeacher, write_dataset

WORST = Usage(100, 50)
GOOD = Reply(Rationale("a", "b", "c", "d"), "good", 80, 20)
CUT = Reply(Refusal("truncated", "cut"), "{", 90, 50)


class WorldLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer, unless a thread is at work for it."""

    def __init__(self) -> None:
        super().__init__()
        self.clock, self.jobs = 0.0, 0
        self._really_select, self._selector.select = self._selector.select, self._select

    def time(self) -> float:
        return self.clock

    def run_in_executor(self, *work: Any) -> Any:
        self.jobs += 1
        future = super().run_in_executor(*work)
        future.add_done_callback(self._worked)
        return future

    def _worked(self, _: Any) -> None:
        self.jobs -= 1

    def _select(self, timeout: float | None = None) -> Any:
        if not timeout:
            return self._really_select(timeout)
        if self.jobs:
            return self._really_select(None)
        self.clock += timeout
        return self._really_select(0)


class World(Executor):
    """An executor whose calls come back after about `latency` seconds, in an order drawn by `seed`.

    `behave(number, request, previous)` is what call `number` brings: a reply, or an exception to raise.
    """

    def __init__(
        self,
        behave: Callable[[int, Request, Reply | None], Any] = lambda *_: GOOD,
        latency: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.behave, self.latency, self.random = behave, latency, random.Random(seed)
        self.flying, self.most, self.calls = 0, 0, []

    def submit(self, _: Any, request: Request, previous: Reply | None) -> Future[Reply]:
        loop, future, number = asyncio.get_running_loop(), Future[Reply](), len(self.calls)
        self.calls.append((loop.time(), request.span, previous))
        self.flying += 1
        self.most = max(self.most, self.flying)

        def come_back() -> None:
            self.flying -= 1
            outcome = self.behave(number, request, previous)
            (future.set_exception if isinstance(outcome, BaseException) else future.set_result)(outcome)

        loop.call_later(self.latency * self.random.uniform(0.5, 1.5), come_back)
        return future


@pytest.fixture(autouse=True)
def time_of_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "new_loop", WorldLoop)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory):
    """40 requests at granularity "step"."""
    return write_dataset(tmp_path_factory.mktemp("data") / "noise", 4, 10)


@pytest.fixture
def run(dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs in a world, onto the same output; returns its path. A run never leaves a call behind."""

    def go(world: World, output: str = "r.parquet", **limits: Any) -> Path:
        wanted = Limits(**{"concurrency": 4, "prices": PRICES} | limits)
        try:
            return annotate_dataset(
                dataset,
                PlainTeacher(""),
                "step",
                1,
                False,
                tmp_path / output,
                limits=wanted,
                executor=world,
                confirm=True,
            )
        finally:
            assert not world.flying

    return go


def test_as_many_calls_are_under_way_as_allowed_and_each_request_is_made_once(run) -> None:
    world = World()
    stored = load_rationales(run(world, concurrency=7))
    assert world.most == 7
    assert sorted(span for _, span, _ in world.calls) == [(one.episode, one.start, one.end) for one in stored]
    assert len(stored) == 40


def test_requests_are_made_when_there_is_room_for_them(run, monkeypatch: pytest.MonkeyPatch) -> None:
    import refinevla_kit.teacher.annotation as annotation

    made = 0

    def counted(*arguments: Any, **named: Any):
        nonlocal made
        for request in original(*arguments, **named):
            made += 1
            yield request

    original = annotation.requests
    world = World(lambda *_: ahead.append(made - len(world.calls)) or GOOD)
    ahead: list[int] = []
    monkeypatch.setattr(annotation, "requests", counted)
    run(world, concurrency=3)
    assert max(ahead) <= 3 + 1  # made in advance, being made


@given(st.data())
@settings(max_examples=25)
def test_a_run_never_overshoots_its_budget(dataset, data: st.DataObject) -> None:
    kinds = st.sampled_from(["good", "good", "good", "cut", "server", "timeout"])
    script = data.draw(
        st.lists(st.tuples(kinds, st.integers(0, 100), st.integers(0, 50)), min_size=1, max_size=30)
    )
    most = {
        "budget_calls": data.draw(st.none() | st.integers(1, 30)),
        "budget_tokens": data.draw(st.none() | st.integers(150, 3000)),
        "budget_money": data.draw(st.none() | st.floats(0.0006, 0.02)),
    }
    bill = {"budget_calls": 0, "budget_tokens": 0, "budget_money": 0.0}

    def behave(number: int, request: Request, previous: Reply | None) -> Any:
        kind, inside, outside = script[number % len(script)]
        bill["budget_calls"] += 1
        if kind == "server":
            return CallFailed("server", "503")
        bill["budget_tokens"] += inside + outside
        bill["budget_money"] += inside * 1e-6 + outside * 1e-5
        if kind == "timeout":  # the server did the work, the answer was lost
            return CallFailed("timeout", "slow")
        return Reply(GOOD.result if kind == "good" else CUT.result, kind, inside, outside)

    world, everything = World(behave, seed=data.draw(st.integers(0, 99))), len(list(requests(dataset)))
    with tempfile.TemporaryDirectory() as folder:
        limits = Limits(data.draw(st.integers(1, 6)), prices=PRICES, max_attempts=3, **most)
        for _ in range(2):  # the second run goes on with the same budget
            try:
                path = annotate_dataset(
                    dataset,
                    PlainTeacher(""),
                    "segment",
                    1,
                    False,
                    Path(folder) / "r",
                    limits=limits,
                    executor=world,
                    confirm=True,
                )
            except KitError:
                if not list(
                    Path(folder).iterdir()
                ):  # it got nothing and paid nothing: there is no output yet
                    bill["budget_calls"] = 0
                continue
            found = summarise(path)
            assert all(limit is None or bill[name] <= limit + 1e-12 for name, limit in most.items())
            assert found.spent.calls == bill["budget_calls"]
            assert found.spent.input_tokens + found.spent.output_tokens >= bill["budget_tokens"]
            assert found.stopped or len(load_rationales(path)) == everything
    assert all(limit is None or bill[name] <= limit + 1e-12 for name, limit in most.items())


def test_a_stopped_run_says_why_is_usable_and_goes_on(run, capsys: pytest.CaptureFixture[str]) -> None:
    first = World()
    path = run(first, budget_calls=13)
    said = capsys.readouterr().out
    assert (
        "Stopped at the budget: the next call may exceed budget_calls=13. To go on, raise it and run again."
        in said
    )
    assert f"13 of about 40 requests are answered, and usable: {path}" in said
    assert len(first.calls) == len(load_rationales(path)) == 13
    assert "Stopped at the budget" in str(summarise(path))
    run(World(), budget_calls=13)  # nothing more for the same budget
    second = World()
    run(second, budget_calls=40)
    assert sorted(span for _, span, _ in first.calls + second.calls) == [
        (one.episode, one.start, one.end) for one in load_rationales(path)
    ]
    assert summarise(path).stopped == ""
    assert summarise(path).money == pytest.approx(40 * (80 * 1e-6 + 20 * 1e-5))


def test_a_budget_for_no_call_is_an_error(run) -> None:
    with pytest.raises(
        RunFailed,
        match="no rationale was written: the run ended at the budget: the next call may exceed "
        "budget_tokens=100",
    ):
        run(World(), budget_tokens=100)


def test_the_rate_is_kept_over_all_calls(run) -> None:
    world = World(lambda number, *_: CallFailed("server", "503") if number % 7 == 3 else GOOD, latency=0.2)
    run(world, requests_per_minute=9)
    times = [when for when, _, _ in world.calls]
    assert max(sum(start <= when < start + 60 for when in times) for start in times) == 9
    world = World(latency=0.2)
    run(world, "t.parquet", tokens_per_minute=1000)
    times = [when for when, _, _ in world.calls]
    assert (
        6 <= max(sum(start <= when < start + 60 for when in times) for start in times) <= 10
    )  # 150 reserved each, 100 used


def test_a_quota_stops_everyone_for_as_long_as_the_server_says(run) -> None:
    world = World(lambda number, *_: CallFailed("quota", "429", 30.0) if number == 9 else GOOD)
    path = run(world)
    refused = next(when for when, span, _ in world.calls if span == world.calls[9][1])
    later = [
        when for when, _, _ in world.calls[10:] if when > refused + 6
    ]  # those under way were not called back
    assert min(later) >= refused + 30
    again = [when for when, span, _ in world.calls if span == world.calls[9][1]]
    assert len(again) == 2
    assert again[1] >= refused + 30
    assert (summarise(path).rationales, summarise(path).spent.calls) == (40, 41)


def test_failures_back_off_and_are_given_up_after_so_many_calls(run) -> None:
    world = World(
        lambda number, request, _: CallFailed("server", "503") if request.span == (0, 5, 6) else GOOD,
        latency=0.01,
    )
    path = run(world, max_attempts=5)
    times = [when for when, span, _ in world.calls if span == (0, 5, 6)]
    assert len(times) == 5
    assert all(later - earlier <= 2**n + 1 for n, (earlier, later) in enumerate(pairwise(times)))
    assert summarise(path).refusals == {"server": 1}
    again = World()
    run(again)
    assert [span for _, span, _ in again.calls] == [(0, 5, 6)]  # not answered, so asked again
    assert summarise(path).rationales == 40


def test_one_follow_up_shows_the_reply_that_it_mends(run) -> None:
    world = World(lambda number, request, previous: GOOD if previous or request.start % 2 else CUT)
    path = run(world)
    assert len(world.calls) == 60
    assert {previous and previous.raw for _, _, previous in world.calls} == {None, "{"}
    mended = [one for one in load_rationales(path) if one.start % 2 == 0]
    assert all(
        (one.rationale is not None, one.input_tokens, one.output_tokens, one.attempts) == (True, 170, 70, 2)
        for one in mended
    )
    assert all(
        one.cost == pytest.approx(170e-6 + 70e-5) and one.prices_as_of == "2026-11-24" for one in mended
    )
    stubborn = World(lambda number, request, _: CUT if request.start % 3 else GOOD)
    assert summarise(run(stubborn, "s.parquet")).refusals == {"truncated": 24}
    assert len(stubborn.calls) == 40 + 24
    finished = World()
    run(finished, "s.parquet")
    assert finished.calls == []


def test_a_follow_up_that_could_not_be_paid_or_made_is_made_later(run) -> None:
    def behave(number: int, request: Request, previous: Reply | None) -> Any:
        return CUT if previous is None and number else CallFailed("server", "503") if number else GOOD

    first = World(behave)
    path = run(first, budget_calls=39, max_attempts=1)
    asked = {span for _, span, _ in first.calls}
    second = World()
    run(second)
    assert {span for _, span, previous in second.calls if previous} == asked - {
        (0, 0, 1)
    }  # none of the first replies is asked for again
    assert len(second.calls) == 39
    assert summarise(path).rationales == 40


@pytest.mark.parametrize("kind", ["unauthorised", "not_found"])
def test_what_is_wrong_from_the_start_costs_one_call(run, kind: str, tmp_path: Path) -> None:
    world = World(lambda *_: CallFailed(kind, "no such thing"))
    with pytest.raises(KitError, match=f"refuses to answer \\({kind}: no such thing\\)"):
        run(world)
    assert len(world.calls) == 1
    assert list(tmp_path.iterdir()) == []


def test_requests_that_are_all_wrong_cost_three_calls_and_no_token(run) -> None:
    world = World(lambda *_: CallFailed("bad_request", "no such option"))
    with pytest.raises(KitError, match=r"refuses to answer \(bad_request: no such option\)"):
        run(world)
    assert len(world.calls) == 3


def test_the_first_pictures_may_be_bad(run) -> None:
    path = run(World(lambda number, *_: CallFailed("bad_request", "odd picture") if number < 2 else GOOD))
    assert (summarise(path).rationales, summarise(path).refusals) == (38, {"bad_request": 2})


def test_one_bad_request_among_good_ones_is_a_refusal(run) -> None:
    path = run(World(lambda number, *_: CallFailed("bad_request", "odd picture") if number == 20 else GOOD))
    assert summarise(path).refusals == {"bad_request": 1}


def test_a_key_that_is_revoked_stops_the_run_and_keeps_what_was_paid(run, tmp_path: Path) -> None:
    world = World(lambda number, *_: GOOD if number < 15 else CallFailed("unauthorised", "revoked"))
    with pytest.raises(KitError, match="revoked"):
        run(world)
    assert len(world.calls) <= 15 + 4
    assert summarise(tmp_path / "r.parquet").rationales == 15
    again = World()
    run(again)
    assert len(again.calls) == 25


def test_a_server_that_is_down_stops_the_run(run) -> None:
    world = World(lambda number, *_: GOOD if number < 3 else CallFailed("connection", "reset"))
    with pytest.raises(RunFailed, match=f"{SILENT} requests in a row got no answer"):
        run(world, max_attempts=2)
    assert len(world.calls) <= 3 + 2 * (SILENT + 8)


def test_a_server_that_asks_to_wait_for_hours_ends_the_run(run, capsys: pytest.CaptureFixture[str]) -> None:
    path = run(World(lambda number, *_: GOOD if number < 10 else CallFailed("quota", "daily quota", 7200.0)))
    assert "asks to wait 2.0 h (daily quota)" in capsys.readouterr().out
    assert summarise(path).rationales == 10


def test_a_daily_quota_ends_the_run_at_once(run, capsys: pytest.CaptureFixture[str]) -> None:
    world = World(lambda number, *_: GOOD if number < 10 else CallFailed("daily_quota", "429: per day", 2.0))
    path = run(world)
    assert "Stopped because the daily quota is used up (429: per day)" in capsys.readouterr().out
    assert len(world.calls) <= 10 + 4
    assert (summarise(path).rationales, summarise(path).refusals) == (10, {})
    again = World()
    run(again)
    assert len(again.calls) == 30
    with pytest.raises(
        RunFailed, match="no rationale was written: the run ended because the daily quota is used up"
    ):
        run(only := World(lambda *_: CallFailed("daily_quota", "429")), "s.parquet")
    assert len(only.calls) == 1


def test_a_server_that_is_not_reached_costs_nothing_and_ends_the_run(run, tmp_path: Path) -> None:
    world = World(lambda *_: CallFailed("unreachable", "refused"))
    with pytest.raises(
        RunFailed,
        match="the server cannot be reached \\(refused\\) -> mend base_url, the network or the proxy",
    ):
        run(world, max_attempts=3, budget_calls=30)
    assert len(world.calls) == 3  # of one request
    assert summarise(tmp_path / "r.parquet").spent == Spent()
    blinking = World(lambda number, *_: CallFailed("unreachable", "refused") if number % 5 == 3 else GOOD)
    path = run(blinking, budget_calls=40)  # the budget holds all 40 calls that were made
    assert (summarise(path).rationales, summarise(path).spent.calls) == (40, 40)


THOUGHT = Reply(Refusal("truncated", "all tokens allowed were spent before the answer began"), "", 90, 50)
REFUSED = {
    "thought": (THOUGHT, 1),
    "cut": (CUT, 2),
    "empty": (Reply(Refusal("empty", "no text"), "", 90, 0), 1),
    "blocked": (Reply(Refusal("blocked", "OTHER"), "", 90, 0), 1),
    "page": (Reply(Refusal("not_json", "an HTML page"), "<html>", 90, 0), 2),
    "shape": (Reply(Refusal("wrong_shape", "no plan"), "{}", 90, 9), 2),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_in_a_row_end_the_run_and_are_asked_again(run, name: str, tmp_path: Path) -> None:
    reply, calls = REFUSED[name]
    world = World(lambda *_: reply)
    with pytest.raises(
        RunFailed,
        match=f"after {FIRST} refused requests in a row \\({FIRST} {reply.result.kind}; the last: "
        f"{reply.result.reason}",
    ):
        run(world)
    assert len(world.calls) == calls * FIRST  # what has no text is not followed up
    assert summarise(tmp_path / "r.parquet").refusals == {reply.result.kind: FIRST}
    with pytest.raises(RunFailed, match="refused requests in a row"):
        run(
            World(lambda *_: reply)
        )  # nothing is mended: it asks others, so that none is paid for over and over
    assert summarise(tmp_path / "r.parquet").refusals == {reply.result.kind: 2 * FIRST}
    mended = World()
    path = run(mended)
    assert len(mended.calls) == 40
    assert (summarise(path).rationales, summarise(path).refusals, summarise(path).stopped) == (40, {}, "")
    assert summarise(path).spent.calls == 2 * calls * FIRST + 40


def test_refusals_that_begin_in_the_middle_end_the_run_too_and_no_answer_is_paid_for_twice(
    run, tmp_path: Path
) -> None:
    world = World(lambda number, *_: GOOD if number < 12 else THOUGHT)
    with pytest.raises(RunFailed, match="max_output_tokens"):
        run(world)
    assert len(world.calls) <= 12 + SILENT + 2 * 4
    assert summarise(tmp_path / "r.parquet").rationales == 12
    second = World()
    path = run(second)
    assert (
        40 - 12 - 4 < len(second.calls) <= 40 - 12
    )  # up to those that overtook the last answer are believed
    assert summarise(path).rationales == 12 + len(second.calls)


def test_refusals_that_only_some_inputs_get_do_not_end_a_run(run) -> None:
    world = World(lambda number, request, _: GOOD if request.start % 3 else REFUSED["blocked"][0])
    path = run(world)
    assert (summarise(path).rationales, summarise(path).refusals) == (24, {"blocked": 16})
    assert len(world.calls) == 40
    run(again := World())
    assert again.calls == []  # they are believed


def test_mostly_refused_requests_end_a_run_too(run) -> None:
    def behave(number: int, *_: Any) -> Reply:
        return GOOD if number % 9 == 0 else REFUSED["empty"][0]

    why = r"after (\d+) refused requests among \d+ in a row \(\1 empty; .* raise max_output_tokens"
    with pytest.raises(RunFailed, match=why):
        run(world := World(behave), concurrency=2)
    assert len(world.calls) < 40
    path = run(mended := World())
    assert (summarise(path).rationales, summarise(path).refusals) == (
        40,
        {},
    )  # all refused ones are asked again
    assert len(mended.calls) == 40 - sum(number % 9 == 0 for number in range(len(world.calls)))


def test_inputs_that_are_always_refused_are_asked_last_and_then_believed(run) -> None:
    """The first 20 requests are blocked, whatever is done: a second run gets past them, and a third has
    nothing to do.
    """

    def behave(number: int, request: Request, previous: Reply | None) -> Any:
        return REFUSED["blocked"][0] if request.episode < 2 else GOOD

    with pytest.raises(RunFailed):
        run(World(behave))
    with pytest.raises(RunFailed):
        run(World(behave))
    path = run(third := World(behave))
    assert [span[0] for _, span, _ in third.calls] == [2] * 10 + [3] * 10 + [0] * 10 + [1] * 10
    assert (summarise(path).rationales, summarise(path).refusals, summarise(path).stopped) == (
        20,
        {"blocked": 20},
        "",
    )
    run(again := World(behave))
    assert again.calls == []


def test_a_short_run_without_a_rationale_is_an_error_and_is_asked_again(
    dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def go(reply: Reply, **options: Any) -> tuple[World, Path]:
        world = World(lambda *_: reply)
        teacher = PlainTeacher("")
        for name, value in options.items():
            setattr(teacher, name, value)
        worlds.append(world)
        limits = Limits(2, prices=PRICES)
        return annotate_dataset(
            dataset,
            teacher,
            "trajectory",
            1,
            False,
            tmp_path / "r",
            limits=limits,
            executor=world,
            confirm=True,
        )

    worlds: list[World] = []
    for _ in range(2):
        with pytest.raises(
            RunFailed, match="no rationale was written: the run ended after 4 refused requests in a row"
        ) as failed:
            go(THOUGHT)
        assert failed.value.path == tmp_path / "r"
    assert [len(world.calls) for world in worlds] == [4, 4]
    path = go(GOOD, version="1, thinking low")  # another teacher, but nothing that was paid for is lost
    assert (summarise(path).rationales, summarise(path).spent.calls) == (4, 12)
    assert run_of(path)["identity"]["version"] == "1, thinking low"
    assert run_of(path)["dataset"] == "noise"
    with pytest.raises(KitError, match="holds paid answers of another teacher"):
        go(GOOD, version="2")


def test_an_error_in_the_teacher_is_raised_once_all_is_stored(run, tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"the teacher plain failed \(ZeroDivisionError: by 0\) -> mend it"):
        run(World(lambda number, *_: ZeroDivisionError("by 0") if number == 12 else GOOD))
    assert 12 <= summarise(tmp_path / "r.parquet").rationales <= 12 + 3


@pytest.mark.parametrize(
    ("outcome", "why"),
    [
        (None, "TypeError: annotate returned NoneType"),
        (Reply(Rationale(1, "b", "c", "d"), ""), "AttributeError"),
    ],
)
def test_what_is_no_reply_is_one_line_and_keeps_what_was_paid(
    run, outcome: Any, why: str, tmp_path: Path
) -> None:
    with pytest.raises(KitError, match=f"the teacher plain failed \\({why}"):
        run(World(lambda number, *_: outcome if number == 12 else GOOD))
    assert 12 <= summarise(tmp_path / "r.parquet").rationales <= 12 + 3


def test_a_teacher_that_cannot_say_what_a_call_costs_is_one_line(
    run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(PlainTeacher, "worst_case", lambda *_: 1 / 0)
    with pytest.raises(KitError, match="the teacher plain failed \\(ZeroDivisionError"):
        run(World())
    assert list(tmp_path.iterdir()) == []


def test_any_text_can_be_stored(run) -> None:
    odd = "half \ud83d a pair, \0, \u2028, 漢字"
    path = run(World(lambda *_: Reply(Rationale(odd, "b", "c", "d"), odd, 1, 1)))
    assert load_rationales(path)[0].raw == "half \\ud83d a pair, \0, \u2028, 漢字"


def test_an_answer_that_could_not_be_written_does_not_count(
    dataset, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def go(world: World, folder: Path) -> Path:
        return annotate_dataset(
            dataset,
            PlainTeacher(""),
            "step",
            1,
            False,
            folder / "r.parquet",
            limits=Limits(4),
            executor=world,
            confirm=True,
        )

    monkeypatch.setattr(
        "refinevla_kit.teacher.scheduler.ROOM", 0
    )  # as if others filled the disk while calls are under way
    first, second = World(), World()
    with pytest.raises(KitError, match="free space"):
        go(first, small_disk)
    journal = (small_disk / "r.parquet.part").read_bytes()
    kept = journal.count(b'"raw": "good"')
    assert 4 < kept < len(first.calls) <= kept + 4 < 40  # it stopped there
    (tmp_path / "r.parquet.part").write_bytes(journal)
    assert len(load_rationales(go(second, tmp_path))) == 40
    assert len(second.calls) == 40 - kept
