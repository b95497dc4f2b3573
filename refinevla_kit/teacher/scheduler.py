"""Schedules a run's calls: one thread takes requests as there is room, reserves each call's worst case, hands
it to an executor, counts replies.

Calls wait for the rate; failed ones are tried again later; a reply that is not what was asked for gets one
follow-up. The thread in which an answer arrives journals it, before the scheduler knows of it.
"""

from __future__ import annotations

import heapq
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from refinevla_kit.errors import KitError
from refinevla_kit.teacher.answers import Row, repairable, reply_row, row_reply, span_of
from refinevla_kit.teacher.executors import Calls
from refinevla_kit.teacher.limits import NANO, Budget, Limits, Rate, Spent, backoff
from refinevla_kit.teacher.requests import ahead
from refinevla_kit.teacher.schema import CallFailed, Refusal, Reply, Request, RunFailed, Teacher, Usage
from refinevla_kit.teacher.store import Store

SILENT = 20  # requests in a row that no call answered, or that were refused: it is not the request
FIRST = 10  # refused requests in a row that end a run whose output has no rationale yet
WRONG = 3  # requests that the server calls wrong before it has answered any: one may have an odd picture
LONGEST_WAIT = 900.0  # s; a server that asks to wait longer ends the run
REMEDY = "look at what came back (raw in the table), change the model, its options or the prompt,"
REMEDIES = {
    "truncated": "raise max_output_tokens or lower thinking, "
    "on a command line -o max_output_tokens=8192 or -o thinking=low,",
    "empty": "raise max_output_tokens or take another model",
    "blocked": "look at the pictures and the instruction, or take another model,",
    "safety": "look at the pictures and the instruction, or take another model,",
    "not_json": "look at what came back (raw in the table): a page of a proxy means a wrong base_url,",
}
ROOM = (
    16 * 2**20
)  # bytes of disk that must be free before a call: no answer is paid for that could not be written


@dataclass(eq=False)
class _Call:
    """One request on its way. `attempts`: calls made about it; `tries`: those of the present question;
    `first`: the reply that is followed up.
    """

    request: Request
    worst: Spent
    first: Row | None = None
    attempts: int = 0
    tries: int = 0


class Clock:
    """Time as a run sees it; tests bring their own."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, events: SimpleQueue[Any], seconds: float | None) -> Any:
        """The next event; None when there is none for so many seconds."""
        with suppress(Empty):
            return events.get(timeout=seconds)


class Run:
    """One run.

    Attributes:
        settled: requests that need no call any more.
        budget: `budget.total` is what the output has cost.
        stopped: why nothing more is sent, for a person.
        error: what is to be raised once all is stored.
        paying: the calls cost something.
        again: spans whose refusals the next run should not believe.
    """

    clock = Clock()

    def __init__(self, store: Store, limits: Limits, teacher: Teacher, calls: Calls, bar: Any) -> None:
        self.store, self.limits, self.teacher, self.calls, self.bar = store, limits, teacher, calls, bar
        self.budget, self.rate, self.random = (
            Budget(limits, store.spent),
            Rate(limits),
            random.Random(limits.seed),
        )
        self.settled, self.refusals, self.silent, self.paid = store.done, 0, 0, store.spent.money
        self.stopped, self.error = "", None  # type: str, BaseException | None
        self.paying, self.again, self._reason = False, set(store.again), ("", "run again")
        self._refused: list[Row] = []  # settled one after the other, without a rationale between them
        self._events: SimpleQueue[Any] = SimpleQueue()
        self._waiting: list[tuple[float, int, _Call]] = []  # heap: when due, order, call
        self._flying, self._order, self._more, self._heard, self._good = 0, 0, True, False, False
        self._unsynced: list[bool] = []  # journaled but not counted: whether each is a refusal
        self._syncing = False

    @property
    def _room(self) -> int:
        """Requests under way at most; until the first rationale one, so that a wrong key costs one call and a
        server that is down few.
        """
        return self.limits.concurrency if self._good else 1

    def interrupt(self) -> None:
        """From a signal handler: send nothing more."""
        self.stopped, self.error = "Interrupted; run again to go on.", KeyboardInterrupt()
        self._events.put(lambda: None)

    @property
    def failure(self) -> RunFailed:
        """Why there is no rationale, for a run that has none to show."""
        stop, remedy = self._reason
        if not stop:
            stop, remedy = (
                self._refusals("after")
                if self._refused
                else ("without a question", "give a dataset with episodes")
            )
        return RunFailed(f"no rationale was written: the run ended {stop}", remedy)

    def drive(self, source: Iterator[Request]) -> None:
        """Ask everything in `source`; returns when no call is in flight and every answer is on the disk."""
        with closing(ahead(source, self.limits.concurrency)) as fresh, ThreadPoolExecutor(1, "fsync") as disk:
            while True:
                short = self._send(fresh)
                if (
                    not self._flying
                    and not self._syncing
                    and (self.stopped or not (self._more or self._waiting))
                ):
                    break
                timed = self._waiting and not self.stopped and not short and self._flying < self._room
                self._hear(max(0.0, self._waiting[0][0] - self.clock.now()) if timed else None)
                if self._unsynced and not self._syncing:  # all that has come meanwhile, while calls go on
                    self._syncing, batch, self._unsynced = True, self._unsynced, []
                    disk.submit(self.store.journal.sync).add_done_callback(
                        partial(self._tell, self._synced, batch)
                    )
        if self.stopped or not self.store.fruitful:
            self.again |= {span_of(row) for row in self._refused}

    def _send(self, fresh: Iterator[Request]) -> bool:
        """Make calls while there is room; True when the budget lets none go before another comes back."""
        while not self.stopped and self._flying < self._room:
            try:
                if (call := self._next(fresh)) is None:
                    return False
                now, tokens = self.clock.now(), call.worst.input_tokens + call.worst.output_tokens
                if pause := self.rate.wait(now, tokens):
                    self._later(call, now + pause)
                    return False
                if shutil.disk_usage(self.store.target.parent).free < ROOM:
                    raise KitError(
                        f"less than {ROOM >> 20} MB are free beside {self.store.target}",
                        "free space and run again: answers are kept",
                    )
                if over := self.budget.reserve(call.worst):
                    self._later(call, now)
                    if not self._flying:
                        limit = f"{over}={getattr(self.limits, over):g}"
                        self._stop(
                            f"at the budget: the next call may exceed {limit}", "raise it and run again"
                        )
                    return True
                self.store.journal.append({"asked": call.request.span, "spent": call.worst})
                call.attempts, call.tries = call.attempts + 1, call.tries + 1
                future = self.calls.submit(call.request, row_reply(call.first) if call.first else None)
                self._flying += 1
                future.add_done_callback(partial(self._arrived, call, self.rate.add(now, tokens)))
            except (
                Exception
            ) as error:  # of the dataset, the disk, the executor; what is in flight is still waited for
                self._fail(error)
        return False

    def _next(self, fresh: Iterator[Request]) -> _Call | None:
        """What to ask next: a retry or follow-up that is due, else something new, unless as many are waiting
        as may be in flight.
        """
        if self._waiting and self._waiting[0][0] <= self.clock.now():
            return heapq.heappop(self._waiting)[2]
        if not self._more or self._flying + len(self._waiting) >= self._room:
            return None
        if (request := next(fresh, None)) is None:
            self._more = False
            return None
        first, worst = (
            self.store.owed.pop(request.span, None),
            self.budget.of(self.teacher.worst_case(request)),
        )
        self.paying |= worst.paid
        return _Call(request, worst, first, first["attempts"] if first else 0)

    def _later(self, call: _Call, when: float) -> None:
        self._order += 1
        heapq.heappush(self._waiting, (when, self._order, call))

    def _arrived(self, call: _Call, entry: list[float], future: Future[Reply]) -> None:
        """In the thread that received it: journal, then tell the scheduler."""
        used, row = call.worst, None
        try:
            outcome: Any = future.exception() or future.result()
            if isinstance(outcome, Reply):
                used = self.budget.of(Usage(outcome.input_tokens, outcome.output_tokens))
                row = reply_row(
                    call.request.span, outcome, used, self.limits.prices, call.attempts, call.first
                )
                self.store.add(row, used.minus(call.worst))
            elif isinstance(outcome, CallFailed) and outcome.kind not in (
                "timeout",
                "connection",
            ):  # those two may have been paid for
                used = Spent(0 if outcome.kind == "unreachable" else 1)
                self.store.journal.append({"failed": outcome.kind, "spent": used.minus(call.worst)})
        except BaseException as error:
            outcome, row = error, None  # an answer that could not be written is none
        self._tell(self._back, call, entry, outcome, used, row)

    def _tell(self, what: Callable[..., None], *about: Any) -> None:
        """From any thread: have the scheduler do `what`."""
        self._events.put(partial(what, *about))

    def _hear(self, seconds: float | None) -> None:
        """Act on what has happened."""
        if event := self.clock.wait(self._events, seconds):
            event()
        while not self._events.empty():
            self._events.get()()

    def _back(self, call: _Call, entry: list[float], outcome: Any, used: Spent, row: Row | None) -> None:
        """A call is over."""
        self._flying -= 1
        self.budget.settle(call.worst, used)
        entry[1] = used.input_tokens + used.output_tokens
        if isinstance(outcome, CallFailed):
            self._failed(call, outcome)
        elif row is None:
            self._fail(outcome)
        else:
            self._heard, self.silent, self.paid = True, 0, self.paid + used.money
            if repairable(row) and call.first is None:
                call.first, call.tries = row, 0
                self._later(call, self.clock.now())
            else:
                self._unsynced.append(row["refusal_kind"] is not None)
                self._answered(row, call.worst.paid)

    def _answered(self, row: Row, paid: bool) -> None:
        """A request is settled: after many that were refused in a row the run ends, unless refusing costs
        nothing.
        """
        before, good = span_of(row) in self.store.again, row["refusal_kind"] is None
        self.again.discard(span_of(row))
        self._good |= good or not paid
        if good:
            self._refused.clear()
        elif paid and not (
            before and self.store.fruitful
        ):  # others were answered: a second refusal is believed
            self._refused.append(row)
        if len(self._refused) >= (SILENT if self.store.fruitful else FIRST):
            self._stop(*self._refusals("after"), failed=True)

    def _refusals(self, word: str) -> tuple[str, str]:
        """The refusals since the last rationale, for a person, and what to do about them."""
        kinds = Counter(row["refusal_kind"] for row in self._refused).most_common()
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds)
        last = self._refused[-1]["refusal_reason"]
        why = f"{word} {len(self._refused)} refused requests in a row ({counts}; the last: {last})"
        return why, f"{REMEDIES.get(kinds[0][0], REMEDY)} and run again: they are asked again"

    def _stop(self, why: str, remedy: str, failed: bool = False) -> None:
        """Send nothing more; `failed`: that is to be raised, too."""
        if not self.stopped:
            self.stopped, self._reason = f"Stopped {why}. To go on, {remedy}.", (why, remedy)
            self.error = self.error or (RunFailed(f"the run stopped {why}", remedy) if failed else None)

    def _synced(self, batch: list[bool], done: Future[None]) -> None:
        """The answers of `batch` are on the disk: now they count."""
        self._syncing = False
        if error := done.exception():
            self._fail(error)
        for refused in batch:
            self.settled += 1
            self._show(refused)

    def _failed(self, call: _Call, failure: CallFailed) -> None:
        now, wait, said = self.clock.now(), failure.retry_after or 0.0, f"{failure.kind}: {failure.reason}"
        wrong = failure.kind == "bad_request" and not self._heard and self.silent + 1 >= WRONG
        if failure.kind in ("unauthorised", "not_found") or wrong:
            self._fail(
                KitError(
                    f"the teacher's server refuses to answer ({said})",
                    "mend the key, the model's name, base_url or the request",
                )
            )
        elif failure.kind == "daily_quota":
            remedy = "run again when it is renewed, or have it raised"
            self._stop(f"because the daily quota is used up ({failure.reason})", remedy)
        elif failure.retryable and wait > LONGEST_WAIT:
            self._stop(
                f"because the server asks to wait {wait / 3600:.1f} h ({failure.reason})", "run again then"
            )
        elif failure.retryable and call.tries < self.limits.max_attempts:
            if failure.kind == "quota":  # meant for everyone who calls
                self.rate.paused_until = max(self.rate.paused_until, now + wait)
            self._later(call, now + backoff(call.tries, failure.retry_after, self.random))
        else:
            if call.first is None:  # otherwise the first reply stands, and its follow-up stays owed
                lost = Reply(Refusal(failure.kind, failure.reason), "")
                self.store.add(
                    reply_row(call.request.span, lost, Spent(), self.limits.prices, call.attempts), Spent()
                )
            self._show(refused=True)
            self.silent += 1
            if failure.kind == "unreachable" and not self._heard:
                remedy = "mend base_url, the network or the proxy, and run again"
                self._stop(f"because the server cannot be reached ({failure.reason})", remedy, failed=True)
            elif self.silent >= SILENT:
                why = f"because {SILENT} requests in a row got no answer (the last: {said})"
                self._stop(why, "run again when that is mended", failed=True)

    def _fail(self, error: BaseException) -> None:
        what = error.what if isinstance(error, KitError) else type(error).__name__
        self.error, self.stopped = (
            self.error or error,
            self.stopped or f"Stopped by an error ({what}); run again to go on.",
        )

    def _show(self, refused: bool) -> None:
        self.refusals += refused
        cost = f"{self.paid / NANO:.2f} {self.limits.prices.currency}, " if self.limits.prices else ""
        self.bar.set_postfix_str(f"{cost}{self.refusals} refused", refresh=False)
        self.bar.update()
