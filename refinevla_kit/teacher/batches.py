"""Annotation through a server's batch mode: half the price, answers within a day.

Requests are written into one file, uploaded, answered by the server when it has time, and downloaded. What
the run has done is in the journal before the server is told, so a kill between any two steps loses nothing
and pays for nothing twice:

    {"batch": name, "requests": [...]}   reserved at its worst case; the server may have it, under that name
    {"batch": name, "job": ...}          the server works on it
    answers, one a line                  as those of any other run
    {"batch": name, "closed": true}      what it did not answer is given back; the next run asks it again
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Protocol

from refinevla_kit.episodes import EpisodeDataset
from refinevla_kit.errors import KitError
from refinevla_kit.teacher.answers import Row, Span, repairable, reply_row, row_reply
from refinevla_kit.teacher.client import Received
from refinevla_kit.teacher.limits import Budget, Limits, Prices, Spent
from refinevla_kit.teacher.requests import digest, episode_spans, requests, without_pictures
from refinevla_kit.teacher.schema import CallFailed, Reply, Request, Teacher, Usage
from refinevla_kit.teacher.store import OpenBatch, Store

DISCOUNT = 0.5  # of the direct price: ai.google.dev/gemini-api/docs/batch-api, seen 2026-11; secondary
LARGEST = 1_500_000_000  # bytes of a file; the server takes 2 GB
MOST = 20_000  # requests of a batch
POLL = 30.0  # s between two looks at a job


@dataclass(frozen=True)
class Job:
    """How a batch ended: nothing more will come.

    Attributes:
        failure: why there are no answers; "" where there are.
        file: of the answers, the server's name.
    """

    failure: str = ""
    file: str = ""


class BatchLost(KitError):
    """The server has a batch or its answers no longer. What it may have charged stays counted."""


class BatchServer(Protocol):
    """What a teacher with a batch mode gives (`Teacher.batches`)."""

    def line(self, key: str, request: Request, previous: Reply | None) -> str:
        """A request as one line of the file."""

    def submit(self, file: Path, name: str) -> str:
        """Upload a file and have it worked on under this name; the job's own name."""

    def find(self, name: str) -> str | None:
        """The job that was submitted under a name; None where there is none."""

    def look(self, job: str) -> Job | None:
        """How it ended, None as long as the server works on it. Raises `BatchLost`."""

    def download(self, file: str) -> Iterator[tuple[str, Received]]:
        """(key, response) of each request that was answered. Raises `BatchLost`."""

    def read(self, received: Received, request: Request) -> Reply:
        """What a response amounts to; raises `CallFailed`."""


def halved(limits: Limits) -> Limits:
    """The same limits at the prices of the batch mode."""
    if limits.prices is None:
        return limits
    given = limits.prices
    price = Prices(
        DISCOUNT * given.input_per_million, DISCOUNT * given.output_per_million, given.currency, given.as_of
    )
    return replace(limits, prices=price)


class BatchRun:
    """One run in batch mode.

    Args:
        store: holds the answers.
        limits: budgets and prices (`halved`).
        teacher: with a batch mode.
        dataset: what is asked about.

    Attributes:
        budget: `budget.total` is what the output has cost.
        stopped: why not all is answered, for a person.

    Raises:
        KitError: the teacher has no batch mode.
    """

    def __init__(self, store: Store, limits: Limits, teacher: Teacher, dataset: EpisodeDataset) -> None:
        self.store, self.limits, self.teacher, self.dataset = store, limits, teacher, dataset
        self.budget = Budget(limits, store.spent)
        self.stopped = ""
        self._answered: set[Span] = set()
        make = getattr(teacher, "batches", None)
        if make is None:
            remedy = "take the teacher gemini, or the executor threads"
            raise KitError(f"the teacher {teacher.name} has no batch mode", remedy)
        self._server: BatchServer = make()

    def drive(self, granularity: str, keyframes: int) -> None:
        """Finish what is open, then ask what is left, batch by batch; then follow up what needs it."""
        for opened in list(self.store.batches.values()):
            for episode in sorted({span[0] for span in opened.left}):
                spans = episode_spans(self.dataset, episode, granularity)
                self.store.wanted(episode, digest(self.dataset, episode, spans), spans)
            self._finish(opened)
        for wanted in (self._unanswered, self._owed):
            source = requests(self.dataset, granularity, keyframes, wanted=wanted)
            while not self.stopped and (batch := self._next(source)):
                self._finish(batch)

    def _unanswered(self, episode: int, found: str, spans: list[Span]) -> list[Span]:
        """See `Store.wanted`, which knows nothing of what this run was answered and still owes."""
        return self.store.wanted(episode, found, [span for span in spans if span not in self._answered])

    def _owed(self, episode: int, found: str, spans: list[Span]) -> list[Span]:
        return [span for span in spans if span in self.store.owed]

    def _next(self, source: Iterator[Request]) -> OpenBatch | None:
        """Reserve, upload and submit the next requests; None where none is left or fits the budget."""
        with tempfile.TemporaryDirectory(prefix="refinevla-batch-") as folder:
            file, spans, reserved = Path(folder) / "requests.jsonl", list[Span](), Spent()
            with file.open("w", encoding="utf-8") as lines:
                while len(spans) < MOST and lines.tell() < LARGEST:
                    request = next(source, None)
                    if request is None:
                        break
                    worst = self.budget.of(self.teacher.worst_case(request))
                    if limit := self.budget.reserve(worst):
                        self.stopped = f"Stopped at {limit}. To go on, raise it and run again."
                        break
                    first = self.store.owed.get(request.span)
                    previous = row_reply(first) if first else None
                    lines.write(self._server.line(_key(request.span), request, previous) + "\n")
                    spans.append(request.span)
                    reserved = reserved.plus(worst)
            if not spans:
                return None
            # of these requests, at this place of the journal: no other batch has that name
            content = json.dumps([self.store.identity, spans, self.store.journal.end]).encode()
            name = f"refinevla-{hashlib.sha256(content).hexdigest()[:16]}"
            self.store.log_batch(name, reserved, requests=spans)
            self.store.log_batch(name, job=self._server.submit(file, name))
        batch = self.store.batches[name]
        print(f"{len(spans):,} requests are with the server as {batch.job} ({name})")
        return batch

    def _finish(self, batch: OpenBatch) -> None:
        """Wait for a batch and store its answers; what it did not answer is open again."""
        if not batch.job:  # the run was killed before it noted one
            job_name = self._server.find(batch.name)
            if not job_name:  # nor had the server got it
                self._close(batch)
                return
            self.store.log_batch(batch.name, job=job_name)
        try:
            while not (job := self._server.look(batch.job)):
                time.sleep(POLL)
            if job.failure:
                self.stopped = f"The batch {batch.name} failed ({job.failure}); run again to ask anew."
            elif job.file:
                self._take(batch, job.file)
        except KeyboardInterrupt:
            print(f"the server goes on with {batch.job}: run again to fetch its answers")
            raise
        except BatchLost as lost:
            self.stopped = f"{lost.what}; what {batch.name} may have cost stays counted. {lost.remedy}."
            self.store.log_batch(batch.name, closed=True)
            return
        self._close(batch)

    def _take(self, batch: OpenBatch, file: str) -> None:
        """Journal the answers that are not there yet."""
        left = {_key(span): span for span in batch.left}
        known = {
            request.span: request
            for episode, spans in groupby(sorted(batch.left), key=itemgetter(0))
            for request in without_pictures(self.dataset, episode, [*spans])
        }
        for key, received in self._server.download(file):
            span = left.pop(key, None)
            if span not in known:
                continue
            worst = self.budget.of(self.teacher.worst_case(known[span]))
            first: Row | None = self.store.owed.pop(span, None)
            try:
                reply = self._server.read(received, known[span])
            except CallFailed:
                continue  # asked again by the next run
            used = self.budget.of(Usage(reply.input_tokens, reply.output_tokens))
            attempts = (first["attempts"] if first else 0) + 1
            row = reply_row(span, reply, used, self.limits.prices, attempts, first)
            self.store.add(row, used.minus(worst), of_batch=batch.name, worst=worst)
            self.budget.settle(worst, used)
            batch.settle(span, worst)
            self._answered.add(span)
            if repairable(row):
                self.store.owed[span] = row
        self.store.journal.sync()
        answered = len(batch.requests) - len(batch.left)
        print(f"{answered:,} of {len(batch.requests):,} requests of {batch.name} are answered")

    def _close(self, batch: OpenBatch) -> None:
        """What is still reserved is given back: the server did not answer it, and does not charge it."""
        self.budget.settle(batch.reserved, Spent())
        self.store.log_batch(batch.name, Spent().minus(batch.reserved), closed=True)


def _key(span: Span) -> str:
    return "-".join(map(str, span))
