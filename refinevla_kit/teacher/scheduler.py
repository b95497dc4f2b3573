"""Schedules a run's calls: each request is an asyncio task that waits for its turn, calls, and calls again
where that helps.

Calls are made in threads of this process, in any executor of `concurrent.futures`, or on a Ray cluster. An
executor makes one call and no more: limits and budget are kept here, for all workers together. All else runs
in the event loop's one thread, which journals an answer as soon as it arrives.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from refinevla_kit.errors import KitError
from refinevla_kit.ray_cluster import cluster, machines_in_turn, place
from refinevla_kit.teacher.answers import Row, repairable, reply_row, row_reply, span_of
from refinevla_kit.teacher.limits import NANO, Budget, Limits, Rate, Spent, backoff
from refinevla_kit.teacher.schema import CallFailed, Refusal, Reply, Request, RunFailed, Teacher, Usage
from refinevla_kit.teacher.store import Store

SILENT = 20  # requests in a row that no call answered, or that were refused: it is not the request
FIRST = 10  # the same of refusals, for a run whose output has no rationale yet
FORGIVEN = (
    4  # refusals that a rationale outweighs: in the long run, more than four refusals in five end a run
)
WRONG = 3  # requests that the server calls wrong before it has answered any: one may have an odd picture
LONGEST_WAIT = 900.0  # s; a server that asks to wait longer ends the run
ROOM = 16 * 2**20  # bytes that must be free on the disk before a call: what is paid for can be written
ALERT = 0.05  # s, after which an interrupt is seen at the latest
REMEDY = (
    "look at what came back (raw in the table), raise max_output_tokens, lower thinking, or change the "
    "model, base_url, the pictures or the prompt, and run again: they are asked again"
)

Ask = Callable[[Request, Reply | None], Awaitable[Reply]]
"""Makes one call to a teacher (see `Teacher.annotate`); for the event loop's thread."""


class Refusals:
    """A running count: a refusal adds 1, a rationale takes `FORGIVEN` off; at 0 it starts anew.

    Attributes:
        rows: the refusals.
        weight: how many of them are not outweighed.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.weight = 0
        self._answers = 0  # rationales included

    def count(self, row: Row) -> None:
        """An answer has come."""
        self._answers += 1
        if row["refusal_kind"] is None:
            self.weight -= FORGIVEN
        else:
            self.weight += 1
            self.rows.append(row)
        if self.weight <= 0:
            self.rows, self.weight, self._answers = [], 0, 0

    def reason(self) -> str:
        """Why they end a run, for a person."""
        kinds = Counter(row["refusal_kind"] for row in self.rows).most_common()
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds)
        count, last = len(self.rows), self.rows[-1]["refusal_reason"]
        share = "in a row" if count == self._answers else f"among {self._answers} in a row"
        return f"after {count} refused requests {share} ({counts}; the last: {last})"


class Run:
    """One run.

    Args:
        store: holds the answers.
        limits: concurrency, rates, budget, prices.
        teacher: only its name and `worst_case` are used here.
        ask: makes the calls, see `connect`.
        bar: a tqdm bar.

    Attributes:
        settled: requests that need no call any more.
        budget: `budget.total` is what the output has cost.
        stopped: why nothing more is sent, for a person.
        error: what is to be raised once all is stored.
        paying: the calls cost something.
        again: spans whose refusals the next run should not believe.
    """

    new_loop = staticmethod(asyncio.new_event_loop)  # tests bring loops with a time of their own

    def __init__(self, store: Store, limits: Limits, teacher: Teacher, ask: Ask, bar: Any) -> None:
        self.store = store
        self.limits = limits
        self.teacher = teacher
        self.ask = ask
        self.bar = bar
        self.budget = Budget(limits, store.spent)
        self.rate = Rate(limits)
        self.settled = store.done
        self.stopped = ""
        self.error: BaseException | None = None
        self.paying = False
        self.again = set(store.again)
        self._random = random.Random(limits.seed)
        self._reason = ("", "give a dataset with episodes")  # why it stopped, and the remedy
        self._money = store.spent.money
        self._refused = Refusals()
        self._shown = 0  # refusals on the bar
        self._silent = 0  # requests in a row that no call answered
        self._heard = False  # the server has answered a call
        self._flying = 0  # calls
        self._unsynced: list[bool] = []  # journaled but not counted: whether each is a refusal
        self._proven = False  # there is an answer that was worth its price
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._gate = asyncio.Lock()  # held by the request whose turn it is to make a call
        self._disk = asyncio.Lock()  # held while the journal is fsynced
        self._returned = asyncio.Event()  # a call has come back
        self._stopping = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None

    def drive(self, source: Iterator[Request]) -> None:
        """Ask everything in `source`; returns when no call is in flight and every answer is on the disk.

        The loop runs in a thread of its own, as a notebook's main thread has one that is running already.
        """
        with ThreadPoolExecutor(1, "annotation") as thread, _first_interrupt(self.interrupt):
            ended = thread.submit(self._run_loop, source)
            try:
                while not wait([ended], ALERT).done:
                    pass  # an interrupt that another thread received is only seen between two waits
                ended.result()
            except KeyboardInterrupt:  # the second one: the calls in flight are given up
                self._tell(lambda: self._main and self._main.cancel())
                raise
        if self.stopped or not self.store.fruitful:
            self.again |= {span_of(row) for row in self._refused.rows}

    def interrupt(self) -> None:
        """From a signal handler: send nothing more."""
        self.stopped = "Interrupted; run again to go on."
        self.error = KeyboardInterrupt()
        self._tell(self._stopping.set)

    def _tell(self, act: Callable[[], Any]) -> None:
        """Have the loop's thread do something."""
        if self._loop:
            with suppress(RuntimeError):  # the loop has just ended
                self._loop.call_soon_threadsafe(act)

    @property
    def failure(self) -> RunFailed:
        """Why there is no rationale, for a run that has none to show."""
        why, remedy = self._reason
        if self._refused.rows and not why:
            why, remedy = self._refused.reason(), REMEDY
        return RunFailed(f"no rationale was written: the run ended {why or 'without a question'}", remedy)

    def _run_loop(self, source: Iterator[Request]) -> None:
        with asyncio.Runner(loop_factory=self.new_loop) as runner:
            runner.run(self._ask_all(source))

    async def _ask_all(self, source: Iterator[Request]) -> None:
        self._loop, self._main = asyncio.get_running_loop(), asyncio.current_task()
        with ThreadPoolExecutor(1, "requests") as thread:
            make = partial(self._loop.run_in_executor, thread, self._next, source)
            coming = make()  # one ahead, so that decoding holds no call up
            async with asyncio.TaskGroup() as self._tasks:
                while await self._slots.acquire() and not self.stopped:
                    try:
                        question = await coming
                    except Exception as error:  # of the dataset or the teacher: calls in flight still end
                        self._fail(error)
                        break
                    if question is None:
                        break
                    coming = make()
                    task = self._tasks.create_task(self._see_through(*question))
                    if not self._proven:  # a wrong key costs one call, and a server that is down few
                        await task
            await asyncio.gather(coming, return_exceptions=True)

    def _next(self, source: Iterator[Request]) -> tuple[Request, Spent] | None:
        """The next request, and the most that a call about it can use. In a thread: frames are decoded."""
        request = next(source, None)
        if request is None:
            return None
        with blamed(self.teacher):
            worst = self.budget.of(self.teacher.worst_case(request))
        return request, worst

    async def _see_through(self, request: Request, worst: Spent) -> None:
        """Make calls about a request until it is settled: answered, refused or given up, or the run stops."""
        first = self.store.owed.pop(request.span, None)  # the reply that is followed up
        attempts = first["attempts"] if first else 0
        tries = 0  # calls with the present question: the request itself, then its follow-up
        self.paying |= worst.paid
        try:
            while await self._admitted(worst):
                attempts += 1
                tries += 1
                outcome = await self._call(request, worst, first, attempts)
                if not isinstance(outcome, CallFailed):
                    if not repairable(outcome):
                        self._settle(outcome, worst.paid)
                        return
                    first, tries = outcome, 0
                    continue
                self._heed(outcome)
                if self.stopped:
                    return
                if not outcome.retryable or tries == self.limits.max_attempts:
                    self._give_up(request, outcome, attempts, followed_up=first is not None)
                    return
                await self._sleep(backoff(tries, outcome.retry_after, self._random))
        except (Exception, KeyboardInterrupt, SystemExit) as error:  # calls in flight still end
            self._fail(error)
        finally:
            self._slots.release()

    async def _admitted(self, worst: Spent) -> bool:
        """Wait until a call may be made, and reserve `worst` for it; False where the run stops first."""
        async with self._gate:
            while not self.stopped:
                if pause := self.rate.wait(self._now(), worst.tokens):
                    await self._sleep(pause)
                    continue
                if shutil.disk_usage(self.store.target.parent).free < ROOM:
                    raise KitError(
                        f"less than {ROOM >> 20} MB are free beside {self.store.target}",
                        "free space and run again: answers are kept",
                    )
                limit = self.budget.reserve(worst)
                if limit is None:
                    return True
                if not self._flying:
                    why = f"at the budget: the next call may exceed {limit}={getattr(self.limits, limit):g}"
                    self._stop(why, "raise it and run again")
                else:  # a call that comes back has mostly used less than was reserved for it
                    self._returned.clear()
                    await self._returned.wait()
        return False

    async def _call(
        self, request: Request, worst: Spent, first: Row | None, attempts: int
    ) -> Row | CallFailed:
        """One call. What came of it is in the journal when this returns; `worst` is reserved before."""
        used = worst
        self._flying += 1
        sent = self.rate.add(self._now(), worst.tokens)
        try:
            self.store.journal.append({"asked": request.span, "spent": worst})
            with blamed(self.teacher):
                reply = await self.ask(request, row_reply(first) if first else None)
                if not isinstance(reply, Reply):
                    raise TypeError(f"annotate returned {type(reply).__name__}, not a Reply")
                used = self.budget.of(Usage(reply.input_tokens, reply.output_tokens))
                row = reply_row(request.span, reply, used, self.limits.prices, attempts, first)
            self.store.add(row, used.minus(worst))
        except CallFailed as failure:
            if failure.kind not in ("timeout", "connection"):  # those two may have been paid for
                used = Spent(0 if failure.kind == "unreachable" else 1)
                self.store.journal.append({"failed": failure.kind, "spent": used.minus(worst)})
            return failure
        finally:
            self._flying -= 1
            self.budget.settle(worst, used)
            sent[1] = used.tokens
            self._returned.set()
        self._heard, self._silent = True, 0
        self._money += used.money
        return row

    def _settle(self, row: Row, paid: bool) -> None:
        """Count an answer once it is on the disk.

        Too many that were refused end the run, unless refusing costs nothing.
        """
        span, refused = span_of(row), row["refusal_kind"] is not None
        self._unsynced.append(refused)
        self._tasks.create_task(self._sync())
        # refused again, while others are answered
        believed = span in self.store.again and self.store.fruitful
        self.again.discard(span)
        self._proven |= not (refused and paid)
        if not refused or (paid and not believed):
            self._refused.count(row)
        if self._refused.weight >= (SILENT if self.store.fruitful else FIRST):
            self._stop(self._refused.reason(), REMEDY, failed=True)

    def _heed(self, failure: CallFailed) -> None:
        """Stop, or make all calls wait, where a failure is not about its request alone."""
        kind, reason, wait = failure.kind, failure.reason, failure.retry_after or 0.0
        wrong = kind == "bad_request" and not self._heard and self._silent + 1 >= WRONG
        if kind in ("unauthorised", "not_found") or wrong:
            what = f"the teacher's server refuses to answer ({kind}: {reason})"
            self._fail(KitError(what, "mend the key, the model's name, base_url or the request"))
        elif kind == "daily_quota":
            why = f"because the daily quota is used up ({reason})"
            self._stop(why, "run again when it is renewed, or have it raised")
        elif failure.retryable and wait > LONGEST_WAIT:
            self._stop(f"because the server asks to wait {wait / 3600:.1f} h ({reason})", "run again then")
        elif kind == "quota":
            self.rate.paused_until = max(self.rate.paused_until, self._now() + wait)

    def _give_up(self, request: Request, failure: CallFailed, attempts: int, followed_up: bool) -> None:
        """No call answered a request. Many in a row end the run."""
        if not followed_up:  # otherwise the first reply stands, and its follow-up stays owed
            lost = Reply(Refusal(failure.kind, failure.reason), "")
            row = reply_row(request.span, lost, Spent(), self.limits.prices, attempts)
            self.store.add(row, Spent())
        self._show(refused=True)
        self._silent += 1
        if failure.kind == "unreachable" and not self._heard:
            remedy = "mend base_url, the network or the proxy, and run again"
            self._stop(f"because the server cannot be reached ({failure.reason})", remedy, failed=True)
        elif self._silent >= SILENT:
            last = f"{failure.kind}: {failure.reason}"
            why = f"because {SILENT} requests in a row got no answer (the last: {last})"
            self._stop(why, "run again when that is mended", failed=True)

    async def _sync(self) -> None:
        """Put what is journaled on the disk, in one go all that came meanwhile: now it counts."""
        async with self._disk:
            batch, self._unsynced = self._unsynced, []
            if not batch:
                return
            try:
                await asyncio.to_thread(self.store.journal.sync)
            except OSError as error:
                self._fail(error)
            for refused in batch:
                self.settled += 1
                self._show(refused)

    async def _sleep(self, seconds: float) -> None:
        """Wait; no longer than until the run stops."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _stop(self, why: str, remedy: str, failed: bool = False) -> None:
        """Send nothing more; `failed`: that is to be raised, too."""
        if not self.stopped:
            self.stopped, self._reason = f"Stopped {why}. To go on, {remedy}.", (why, remedy)
            self.error = self.error or (RunFailed(f"the run stopped {why}", remedy) if failed else None)
        self._stopping.set()

    def _fail(self, error: BaseException) -> None:
        what = error.what if isinstance(error, KitError) else type(error).__name__
        self.error = self.error or error
        self.stopped = self.stopped or f"Stopped by an error ({what}); run again to go on."
        self._stopping.set()

    def _show(self, refused: bool) -> None:
        self._shown += refused
        cost = f"{self._money / NANO:.2f} {self.limits.prices.currency}, " if self.limits.prices else ""
        self.bar.set_postfix_str(f"{cost}{self._shown} refused", refresh=False)
        self.bar.update()


@contextmanager
def blamed(teacher: Teacher) -> Iterator[None]:
    """What a teacher of the user's own raises becomes one line, which says whose error it is."""
    try:
        yield
    except (KitError, CallFailed):
        raise
    except Exception as error:
        what = f"the teacher {teacher.name} failed ({type(error).__name__}: {error})"
        raise KitError(what, "mend it and run again: the answers so far are kept") from error


@contextmanager
def connect(executor: str | Executor, teacher: Teacher, concurrency: int) -> Iterator[Ask]:
    """How calls to `teacher` are made.

    Args:
        executor: "threads", "ray", or a `concurrent.futures.Executor`, which stays open. One with processes
            gets the teacher pickled with each call.
        teacher: the teacher.
        concurrency: calls at a time at most.
    """
    if executor == "ray":
        with _ray(teacher, concurrency) as ask:
            yield ask
        return
    if executor != "threads" and not isinstance(executor, Executor):
        raise KitError(f"unknown executor {executor!r}", "choose threads or ray, or pass an executor")
    pool = executor if isinstance(executor, Executor) else ThreadPoolExecutor(concurrency, "teacher")
    try:
        yield lambda *question: asyncio.wrap_future(pool.submit(teacher.annotate, *question))
    finally:
        if pool is not executor:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _ray(teacher: Teacher, concurrency: int) -> Iterator[Ask]:
    """Calls through Ray actors, each with a copy of the teacher, which reads the key from its environment.

    Connects to the cluster that `ray.init` or RAY_ADDRESS names, else starts one on this machine.
    """
    ray = cluster()
    machines = machines_in_turn(ray.nodes())[:concurrency]
    calls = -(-concurrency // len(machines))  # at a time, of each worker
    # A dead worker is replaced. Its calls may have been paid for: the run decides whether they are repeated.
    actor = ray.remote(num_cpus=0, max_concurrency=calls, max_restarts=-1, max_task_retries=0)(_Worker)
    workers = [actor.options(scheduling_strategy=place(each)).remote(teacher) for each in machines]
    # a call that waits for its worker would reach the server in another minute than it was counted in
    ray.get([worker.__ray_ready__.remote() for worker in workers])
    free = workers * calls

    async def ask(request: Request, previous: Reply | None) -> Reply:
        worker = free.pop(0)
        try:
            outcome: Any = await worker.annotate.remote(request, previous)
        except ray.exceptions.RayActorError:
            reason = "a worker of the Ray cluster died during the call"
            raise CallFailed("connection", reason) from None
        finally:
            free.append(worker)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    try:
        yield ask
    finally:
        for worker in workers:
            ray.kill(worker)


class _Worker:
    """Runs in a Ray worker; what a call raises comes back as a value, whole."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    def annotate(self, request: Request, previous: Reply | None) -> Reply | BaseException:
        try:
            return self.teacher.annotate(request, previous)
        except Exception as error:
            return error


@contextmanager
def _first_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """The first interrupt calls `stop`, the next raise KeyboardInterrupt. Only the main thread is told."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in (None, signal.SIG_IGN):
        yield
        return

    def handle(*_: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
