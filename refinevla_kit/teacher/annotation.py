"""Annotates a dataset: asks a teacher about every step, segment or trajectory, within limits, and loses no
answer.

A run may stop anywhere, of itself or by an interrupt, a kill or a power cut: the same call of
`annotate_dataset` goes on. Scheduling is in `scheduler`, storing in `store`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import closing, contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from refinevla_kit.teacher.answers import Span, StoredRationale, load_rationales, lookup
from refinevla_kit.teacher.estimate import Estimate, estimate_calls
from refinevla_kit.teacher.estimate import confirm as confirm_estimate
from refinevla_kit.teacher.executors import Calls, connect
from refinevla_kit.teacher.limits import Limits
from refinevla_kit.teacher.requests import count_requests, keyframe_indices, ranges, requests
from refinevla_kit.teacher.scheduler import Run
from refinevla_kit.teacher.schema import RunFailed, Teacher, Usage
from refinevla_kit.teacher.store import Store

if TYPE_CHECKING:
    from refinevla_kit.episodes import EpisodeDataset

__all__ = [
    "StoredRationale",
    "annotate_dataset",
    "estimate",
    "keyframe_indices",
    "load_rationales",
    "lookup",
    "ranges",
    "requests",
    "written_by",
]


def annotate_dataset(
    dataset: EpisodeDataset | str | Path,
    teacher: Teacher,
    granularity: str = "segment",
    keyframes: int = 3,
    progress: bool = True,
    output: str | Path | None = None,
    *,
    limits: Limits = Limits(),
    executor: str | Executor | Calls = "threads",
    confirm: bool | None = None,
) -> Path:
    """Annotate a whole dataset; call it again to continue, to annotate episodes added since, or to ask again
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
        executor: see `executors.connect`.
        confirm: for teachers that cost something: True goes ahead, None shows the estimate and asks (an error
            where nobody can answer).
    Returns: path of the parquet file. It is also written when the budget is used up or the run is
    interrupted; `summarise` says what it holds.
    Raises:
        RunFailed: a run that costs something ended without a rationale; the server is not reached; 20
            requests in a row got no answer, or were refused (10 where no rationale was had before). The next
            run asks about them again. Answers had by then are kept.
        KitError: not confirmed; the key or the model is refused; the output belongs to another run (see
            `Store`); no disk space.
        KeyboardInterrupt: after the calls in flight have come back. A second interrupt gives them up.
    """
    opened, target, identity = _place(dataset, teacher, granularity, keyframes, output)
    total = count_requests(opened, granularity)
    with Store(target, identity) as store:
        if (
            confirm is not True
            and (first := next(requests(opened, granularity, keyframes), None))
            and teacher.worst_case(first) != Usage()
        ):
            confirm_estimate(
                estimate_calls(opened, teacher, granularity, keyframes, limits, store.done, store.spent),
                confirm,
            )
        with (
            closing(connect(executor, teacher, limits.concurrency)) as calls,
            tqdm(
                total=max(total, store.done),
                initial=store.done,
                desc="rationales",
                unit="",
                disable=not progress,
            ) as bar,
        ):
            run = Run(store, limits, teacher, calls, bar)
            with _first_interrupt(run.interrupt):
                doubted = [
                    info for info in opened.episodes if info.index in {span[0] for span in store.again}
                ]
                run.drive(
                    chain(
                        requests(opened, granularity, keyframes, wanted=store.wanted),
                        requests(opened, granularity, keyframes, doubted, partial(store.wanted, again=True)),
                    )
                )
        again = {"again": sorted(run.again)} if run.again else {}
        store.compact(
            run.budget.total, run.stopped, model=getattr(teacher, "model", ""), dataset=opened.name, **again
        )
    if run.stopped and store.fruitful:
        settled = run.settled - len(run.again)
        print(
            f"{run.stopped}\n{settled} of about {max(total, settled)} requests are answered, and "
            f"usable: {target}",
            flush=True,
        )
    error = run.error or (None if target.exists() and (store.fruitful or not run.paying) else run.failure)
    if isinstance(error, RunFailed):
        error.path = target
    if error:
        raise error
    return target


def estimate(
    dataset: EpisodeDataset | str | Path,
    teacher: Teacher,
    granularity: str = "segment",
    keyframes: int = 3,
    output: str | Path | None = None,
    limits: Limits = Limits(),
    latency: float = 5.0,
) -> Estimate:
    """What `annotate_dataset` with the same arguments is still going to take, by calls of `latency` seconds;
    no call is made.
    """
    opened, target, identity = _place(dataset, teacher, granularity, keyframes, output)
    if not target.parent.exists():
        return estimate_calls(opened, teacher, granularity, keyframes, limits, latency=latency)
    with Store(target, identity) as store:
        return estimate_calls(
            opened, teacher, granularity, keyframes, limits, store.done, store.spent, latency
        )


def written_by(
    dataset: EpisodeDataset, teacher: Teacher, granularity: str = "segment", keyframes: int = 3
) -> dict[str, Any]:
    """What tells one table of answers from another: whose they are, and which dataset they are about, by its
    first episode.

    A dataset that was moved, or has got more episodes, keeps its table.
    """
    digests: list[str] = []

    def note(_: int, digest: str, __: list[Span]) -> list[Span]:
        digests.append(digest)
        return []

    list(requests(dataset, granularity, keyframes, list(dataset.episodes[:1]), note))
    _, _, identity = _place(dataset, teacher, granularity, keyframes, None)
    return identity | {"dataset": dataset.name, "first_episode": digests}


def _place(
    dataset: EpisodeDataset | str | Path,
    teacher: Teacher,
    granularity: str,
    keyframes: int,
    output: str | Path | None,
) -> tuple[EpisodeDataset, Path, dict[str, Any]]:
    """The dataset, where its answers go, and whose they are."""
    from refinevla_kit.episodes import open_dataset

    opened = open_dataset(dataset) if isinstance(dataset, str | Path) else dataset
    target = (
        Path(output) if output else Path(opened.path) / "rationales" / f"{teacher.name}-{granularity}.parquet"
    )
    identity = {
        "teacher": teacher.name,
        "version": teacher.version,
        "prompt_hash": teacher.prompt_hash,
        "granularity": granularity,
    }
    return opened, target, identity | {"keyframes": keyframes}


@contextmanager
def _first_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """The first interrupt calls `stop`, the next raise KeyboardInterrupt; Python tells the main thread
    only.
    """
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
