"""The annotation run: asks a teacher about every step, segment or trajectory, within limits; loses no answer.

A run may stop anywhere, of itself or by an interrupt, a kill or a power cut: the same call of
`annotate_dataset` goes on. What it is going to take is estimated and confirmed before it makes a call.
Scheduling is in `scheduler`, storing in `store`.
"""

from __future__ import annotations

import sys
from concurrent.futures import Executor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from refinevla_kit.episodes import EpisodeDataset, open_dataset
from refinevla_kit.episodes.contract import rationales_folder
from refinevla_kit.errors import KitError
from refinevla_kit.teacher.batches import BatchRun, halved
from refinevla_kit.teacher.limits import NANO, Budget, Limits, Prices, Spent
from refinevla_kit.teacher.requests import count_requests, digest, episode_spans, requests, sampled
from refinevla_kit.teacher.scheduler import Run, blamed, connect
from refinevla_kit.teacher.schema import Request, RunFailed, Teacher, Usage
from refinevla_kit.teacher.store import Store

OUTPUT_TOKENS = 300  # of a rationale in the four parts, as long as nothing is measured
MEASURED = 20  # calls made before their average replaces the assumption
SAMPLE = 16  # episodes whose requests are made for an estimate
BATCH = "batch"  # the executor that is the server's own
LATENCY = 5.0  # s a call, assumed for an estimate


def annotate_dataset(
    dataset: EpisodeDataset | str | Path,
    teacher: Teacher,
    granularity: str = "segment",
    keyframes: int = 3,
    progress: bool = True,
    output: str | Path | None = None,
    *,
    limits: Limits = Limits(),
    executor: str | Executor = "threads",
    confirm: bool | None = None,
) -> Path:
    """Annotate a whole dataset. Call it again to continue, to annotate episodes added since, or to ask again
    what no call answered.

    Args:
        dataset: an opened dataset or its folder.
        teacher: anything with `annotate`.
        granularity: one rationale a "step", a "segment" (split at gripper events and changes of motion) or a
            "trajectory".
        keyframes: pictures a request.
        progress: show a bar with cost and refusals so far.
        output: the parquet file; None: `<dataset>/rationales/<teacher>-<granularity>.parquet`, for a dataset
            that stays: with paid answers in it, it is never recorded anew (`files.paid_files`).
        limits: concurrency, rates, budget, prices.
        executor: where calls are made, see `scheduler.connect`; "batch" for the server's batch mode, at half
            the price and within a day (`batches`).
        confirm: for teachers that cost something: True goes ahead, None shows the estimate and asks (an error
            where nobody can answer).

    Returns:
        Path of the parquet file. It is also written when the budget is used up or the run is interrupted;
        `summarise` says what it holds.

    Raises:
        RunFailed: a run that costs something ended without a rationale, or the server is not reached. Or 20
            requests in a row got no answer. Or too many were refused: 20 in a row, 10 before the first
            rationale, or in the long run more than four in five. The next run asks about them again. Answers
            had by then are kept.
        KitError: not confirmed; the key or the model is refused; the teacher fails; the output belongs to
            another run (see `Store`); no disk space.
        KeyboardInterrupt: after the calls in flight have come back. A second interrupt gives them up.
    """
    opened, target, identity = _place(dataset, teacher, granularity, keyframes, output)
    total = count_requests(opened, granularity)
    limits = halved(limits) if executor == BATCH else limits
    with Store(target, identity) as store:
        if store.batches and executor != BATCH:
            what = f"{len(store.batches)} batches of {target} are with the server"
            raise KitError(what, f'fetch their answers first: executor="{BATCH}"')
        if confirm is not True:
            first = next(requests(opened, granularity, keyframes), None)
            if first and costs(teacher, first, limits.prices):
                batched = executor == BATCH
                _confirm(_estimate(opened, teacher, granularity, keyframes, limits, batched, store), confirm)
        about = {"model": getattr(teacher, "model", ""), "dataset": opened.name}
        if executor == BATCH:  # the journal stays while the server works on a batch
            batches = BatchRun(store, limits, teacher, opened)
            batches.drive(granularity, keyframes)
            store.compact(batches.budget.total, batches.stopped, **about)
            if batches.stopped:
                print(batches.stopped, flush=True)
            if not target.exists() or not store.fruitful:
                why = batches.stopped or "nothing was answered"
                raise RunFailed(f"no rationale was written: {why}", "run again")
            return target
        bar = tqdm(
            total=max(total, store.done), initial=store.done, desc="rationales", unit="", disable=not progress
        )
        with connect(executor, teacher, limits.concurrency) as ask, bar:
            run = Run(store, limits, teacher, ask, bar)
            doubted = {span[0] for span in store.again}
            last = [info for info in opened.episodes if info.index in doubted]
            run.drive(
                chain(
                    requests(opened, granularity, keyframes, wanted=store.wanted),
                    requests(opened, granularity, keyframes, last, partial(store.wanted, again=True)),
                )
            )
        again = {"again": sorted(run.again)} if run.again else {}
        store.compact(run.budget.total, run.stopped, **about, **again)
    if run.stopped and store.fruitful:
        settled = run.settled - len(run.again)
        count = f"{settled} of about {max(total, settled)} requests are answered, and usable: {target}"
        print(f"{run.stopped}\n{count}", flush=True)
    error = run.error
    if error is None and (not target.exists() or (run.paying and not store.fruitful)):
        error = run.failure
    if isinstance(error, RunFailed):
        error.path = target
    if error:
        raise error
    return target


@dataclass(frozen=True)
class Estimate:
    """Requests still to be made and what they take; money in the currency of `limits.prices`.

    Attributes:
        requests: to be answered.
        total: of the dataset.
        episodes: how many they were counted on.
        typical: one call each, the input at its bound and the output as measured so far or, before that,
            `OUTPUT_TOKENS` long.
        worst: every reply as long as it may be and followed up once.
        hours: of the typical case, with calls of `LATENCY` and the limits given.
        limits: of the run.
        batched: in the server's batch mode.
    """

    requests: int
    total: int
    episodes: int
    typical: Spent
    worst: Spent
    hours: float
    limits: Limits
    batched: bool

    @property
    def money(self) -> float | None:
        """Of the typical case; None without prices."""
        return self.typical.money / NANO if self.limits.prices else None

    @property
    def worst_money(self) -> float | None:
        """Of the worst case; None without prices."""
        return self.worst.money / NANO if self.limits.prices else None

    def __str__(self) -> str:
        typical, worst, prices = self.typical, self.worst, self.limits.prices
        if prices:
            money = f"{self.money:.2f} {prices.currency}, up to {self.worst_money:.2f} {prices.currency}"
            money += f" (prices of {prices.as_of}, yours to check)"
        else:
            money = "unknown: no prices were given" if worst.paid else "none: this teacher costs nothing"
        time = f"{self.hours:.1f} h" if self.hours >= 1 else f"{60 * self.hours:.0f} min"
        pace = f"{self.limits.concurrency} calls at a time of {LATENCY:g} s each, within the limits"
        if self.batched:
            time, pace = "a day", "at most, for each batch of the server's batch mode"
        lines = [
            f"requests  {self.requests:,} of {self.total:,} (by {self.episodes} episodes), a call each; "
            f"up to {worst.calls:,} with follow-ups",
            f"tokens    {typical.input_tokens:,} in, {typical.output_tokens:,} out; "
            f"up to {worst.input_tokens:,} in, {worst.output_tokens:,} out",
            f"money     {money}",
            f"time      {time}, {pace}",
        ]
        budgets = {name: getattr(self.limits, f"budget_{name}") for name in ("calls", "tokens", "money")}
        given = [f"{name} {value:g}" for name, value in budgets.items() if value is not None]
        if given:
            lines.append(f"budget    {', '.join(given)}: the run stops there")
        return "\n".join(lines)


def estimate(
    dataset: EpisodeDataset | str | Path,
    teacher: Teacher,
    granularity: str = "segment",
    keyframes: int = 3,
    output: str | Path | None = None,
    limits: Limits = Limits(),
    executor: str | Executor = "threads",
) -> Estimate:
    """What `annotate_dataset` with the same arguments is still going to take; no call is made."""
    opened, target, identity = _place(dataset, teacher, granularity, keyframes, output)
    batched = executor == BATCH
    limits = halved(limits) if batched else limits
    with Store(target, identity) if target.parent.exists() else nullcontext() as store:
        return _estimate(opened, teacher, granularity, keyframes, limits, batched, store)


def _estimate(
    dataset: EpisodeDataset,
    teacher: Teacher,
    granularity: str,
    keyframes: int,
    limits: Limits,
    batched: bool,
    store: Store | None,
) -> Estimate:
    """See `estimate`; `store` holds what an earlier run has answered."""
    total, chosen = count_requests(dataset, granularity), sampled(dataset, SAMPLE)
    with blamed(teacher):
        bounds = [
            teacher.worst_case(request) for request in requests(dataset, granularity, keyframes, chosen)
        ]
    count = max(1, len(bounds))
    most_in = sum(bound.input_tokens for bound in bounds) / count
    most_out = sum(bound.output_tokens for bound in bounds) / count
    mean_in, mean_out, left = most_in, min(most_out, OUTPUT_TOKENS), total
    if store and store.done:
        left = max(0, total - store.done)
        if store.spent.calls >= MEASURED:
            mean_in = min(most_in, store.spent.input_tokens / store.done)
            mean_out = min(most_out, store.spent.output_tokens / store.done)
    budget = Budget(limits)
    typical = budget.of(Usage(round(left * mean_in), round(left * mean_out)), left)
    worst = budget.of(Usage(round(2 * left * most_in), round(2 * left * most_out)), 2 * left)
    minutes = [left * LATENCY / limits.concurrency / 60]
    minutes += [left / limits.requests_per_minute] if limits.requests_per_minute else []
    minutes += [typical.tokens / limits.tokens_per_minute] if limits.tokens_per_minute else []
    return Estimate(left, total, len(chosen), typical, worst, max(minutes) / 60, limits, batched)


def _confirm(expected: Estimate, confirmed: bool | None) -> None:
    """Show what a run is going to take and go on only when somebody agrees.

    Args:
        expected: the estimate.
        confirmed: None asks, where somebody can answer: in a terminal or a notebook in a browser, not under
            papermill or behind a pipe.

    Raises:
        KitError: nobody agreed; with the estimate.
    """
    if not expected.requests:
        return
    print(expected, flush=True)
    answer = ""
    if confirmed is None:
        with suppress(EOFError, OSError, NotImplementedError):  # nobody there
            answer = input("Make these calls? [y/N] ")
    if answer.strip().lower() not in ("y", "yes"):
        prices = expected.limits.prices
        money = f"{expected.money:.2f} {prices.currency}" if prices else "an unknown sum"
        what = f"the run would make about {expected.requests:,} calls for {money} and was not confirmed"
        raise KitError(what, "pass confirm=True (on a command line --yes) to go on")


def costs(teacher: Teacher, request: Request, prices: Prices | None) -> bool:
    """Whether a call about `request` may cost something: tokens, at prices that are unknown or not 0."""
    with blamed(teacher):
        usage = teacher.worst_case(request)
    if usage == Usage():
        return False
    return prices is None or prices.money(usage.input_tokens, usage.output_tokens) > 0


def attended() -> bool:
    """Whether a person may be there to answer: at a terminal, or before a notebook in a browser."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if kernel := getattr(shell, "kernel", None):
        return bool(getattr(kernel, "_allow_stdin", True))  # papermill allows none
    return sys.stdin is not None and sys.stdin.isatty()


def written_by(dataset: EpisodeDataset, teacher: Teacher, granularity: str = "segment") -> dict[str, Any]:
    """What tells one table of answers from another: whose they are, and which dataset they are about, by its
    first episode.

    A dataset that was moved, or has got more episodes, keeps its table.
    """
    first = dataset.episodes[0].index
    about = digest(dataset, first, episode_spans(dataset, first, granularity))
    _, _, identity = _place(dataset, teacher, granularity, 3, None)
    return identity | {"dataset": dataset.name, "first_episode": [about]}


def _place(
    dataset: EpisodeDataset | str | Path,
    teacher: Teacher,
    granularity: str,
    keyframes: int,
    output: str | Path | None,
) -> tuple[EpisodeDataset, Path, dict[str, Any]]:
    """The dataset, where its answers go, and whose they are."""

    opened = open_dataset(dataset) if isinstance(dataset, str | Path) else dataset
    default = rationales_folder(opened.path) / f"{teacher.name}-{granularity}.parquet"
    identity = {
        "teacher": teacher.name,
        "version": teacher.version,
        "prompt_hash": teacher.prompt_hash,
        "granularity": granularity,
        "keyframes": keyframes,
    }
    return opened, Path(output) if output else default, identity
