"""Where a run keeps its answers: a journal while it is going on, one parquet file (`answers`) when it ends.

The journal `<output>.part` holds JSON lines: whose answers these are, then each call before it is made, each
answer when it has arrived, each failure. An answer's line is written at once; the run fsyncs before it
counts. A SIGKILL therefore loses no answer that was journaled and repeats none. Asked again are only calls in
flight at that moment, at most `concurrency`. They may have been paid for, so the budget keeps them at their
worst case. A power cut can also take the answers that were not yet fsynced.
"""

from __future__ import annotations

import heapq
import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from refinevla_kit.errors import KitError
from refinevla_kit.files import replacing
from refinevla_kit.journal import Journal, sync
from refinevla_kit.teacher.answers import FORMAT, SCHEMA, Row, Span, repairable, run_of, span_of
from refinevla_kit.teacher.limits import Spent
from refinevla_kit.teacher.reviews import reviews_path
from refinevla_kit.teacher.schema import Array

UNANSWERED = {
    "bad_request",
    "unauthorised",
    "not_found",
    "quota",
    "server",
    "timeout",
    "connection",
    "unreachable",
    "gave_up",
}
"""Refusal kinds of requests that no call answered: asked again by the next run."""

ROWS = 4096  # in memory at a time while compacting


@dataclass
class OpenBatch:
    """Requests that a server in batch mode may be working on.

    Attributes:
        name: what the server was told to call it.
        requests: spans.
        reserved: for those that are not answered yet.
        job: the server's own name; "" as long as it may not have it.
        left: spans that are not answered yet.
    """

    name: str
    requests: list[Span]
    reserved: Spent
    job: str = ""
    left: list[Span] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.left = self.left or list(self.requests)

    def settle(self, span: Span, worst: Spent) -> None:
        """A request is answered, for which `worst` was reserved."""
        self.left.remove(span)
        self.reserved = self.reserved.minus(worst)


class Store:
    """The answers of one run at `target`, held until closed; a context manager, for one thread.

    Memory: 16 bytes for each answer of earlier runs; while compacting, 16 for each new one.

    Attributes:
        journal: the run's.
        spent: what the output has cost so far, calls that were cut off included.
        done: how many requests need no call any more.
        owed: first replies that still need their follow-up, by span.
        again: spans whose refusals stopped an earlier run: not believed, asked about again once all else is.
        batches: those that a server may be working on, by name.
        fruitful: there is a rationale among the answers.

    Raises:
        KitError: another run is writing there; it holds an unfinished run, or paid answers, of another
            identity, or what no run wrote; damage; no disk space.
    """

    def __init__(self, target: Path, identity: dict[str, Any]) -> None:
        self.target = target
        self.identity = identity
        self.spent = Spent()
        self.owed: dict[Span, Row] = {}
        self.again: set[Span] = set()
        self.batches: dict[str, OpenBatch] = {}
        self.fruitful = False
        self._digests: dict[int, int] = {}  # of the episodes seen in this run
        if target.is_dir():
            remedy = "give a parquet file as output (on a command line --output), such as rationales.parquet"
            raise KitError(f"{target} is a folder", f"{remedy} in it")
        self.journal = Journal(target.with_name(target.name + ".part"))
        try:
            self._open()
        except BaseException:
            self.journal.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        if self.journal.end == self._header:
            self.journal.remove()
        self.journal.close()

    def _open(self) -> None:
        """Read what earlier runs have left."""
        about = run_of(self.target)
        if self.target.exists() and "identity" not in about:
            what = f"{self.target} does not say which run wrote it, as when another program has saved it"
            raise KitError(what, "give another output, or move the file away")
        before = Spent(*about.get("spent", ()))
        self._continues = about.get("identity") == self.identity
        if not self._continues and before.paid:
            kinds = pq.read_table(self.target, columns=["refusal_kind"])["refusal_kind"]
            if kinds.null_count or reviews_path(self.target).exists():
                other = "another teacher, version, prompt, granularity or number of keyframes"
                what = f"{self.target} holds paid answers of {other}"
                raise KitError(what, "give another output, or move the file away")
        if not self.journal.end:
            spent = before if self._continues or before.paid else Spent()
            self.journal.append({"identity": self.identity, "spent": spent})
        self._header = self.journal.end  # where the first line ends, as long as there is no other
        keys, digests = array("q"), array("Q")
        for row in self._table():
            self._note(row, keys, digests)
        if self._continues:
            self.again = {tuple(span) for span in about.get("again", ())}
        for offset, line in self.journal:
            if offset:
                self._header = 0
            elif line.get("identity") != self.identity:
                other = "another teacher version or seed, granularity or number of keyframes"
                what = f"{self.journal.path} holds an unfinished run of {other}"
                raise KitError(what, "finish that one, or remove the file")
            self.spent = self.spent.plus(Spent(*line["spent"]))
            if "batch" in line:
                self._note_batch(line)
            if "episode" in line:
                self._note(line, keys, digests)
                if batch := self.batches.get(line.get("of_batch", "")):
                    batch.settle(span_of(line), Spent(*line["worst"]))
        order = _last_of_each(keys)
        self._keys, self._known = np.array(keys, np.int64)[order], np.array(digests, np.uint64)[order]
        self.done = int(np.count_nonzero(self._known)) - len(self.owed) - len(self.again)

    def _note(self, row: Row, keys: array[int], digests: array[int]) -> None:
        """Remember a row: the span's key and its episode's digest, 0 where no call was answered."""
        span = span_of(row)
        self.owed.pop(span, None)
        self.again.discard(span)
        self.fruitful |= row["refusal_kind"] is None
        if repairable(row):
            self.owed[span] = row
        keys.append(_key(span))
        digests.append(0 if row["refusal_kind"] in UNANSWERED else int(row["dataset_hash"], 16))

    def wanted(self, episode: int, digest: str, spans: list[Span], again: bool = False) -> list[Span]:
        """Those of an episode's spans that need a call.

        Args:
            episode: its index.
            digest: of what answers about it depend on. Answers about another recording (another digest) are
                of no use; where answers are paid for, that is a `KitError`.
            spans: all of the episode.
            again: those of `self.again` alone, otherwise all but those.
        """
        self._digests[episode] = now = int(digest, 16)
        place = slice(*np.searchsorted(self._keys, [_key((episode, 0, 0)), _key((episode + 1, 0, 0))]))
        known = dict(zip(self._keys[place].tolist(), self._known[place].tolist(), strict=True))
        if self.spent.paid and set(known.values()) - {0, now}:
            what = f"episode {episode} is not the one that {self.target} holds paid answers about"
            raise KitError(what, "give another output, or move it away")
        needed = []
        for span in spans:
            answered = known.get(_key(span)) == now
            if not answered:
                self.owed.pop(span, None)  # about another recording
            doubted = span in self.again
            if doubted == again and (doubted or not answered or span in self.owed):
                needed.append(span)
        return needed

    def add(self, row: Row, spent: Spent, **more: Any) -> None:
        """Journal an answer that changes what was spent by `spent`; `more`: of the batch it came in."""
        row |= {"dataset_hash": f"{self._digests[row['episode']]:016x}"}
        self.journal.append(row | {"spent": spent} | more)
        self.fruitful |= row["refusal_kind"] is None

    def log_batch(self, name: str, spent: Spent = Spent(), **what: Any) -> None:
        """Journal what becomes of a batch, which changes what was spent by `spent`.

        Args:
            name: the batch's.
            spent: reserved for it, before a server is told of it; or, less than 0, given back.
            what: its `requests`, the `job` that the server has, or `closed=True`: nothing more will come.
        """
        line = {"batch": name, "spent": spent} | what
        self.journal.append(line)
        self.journal.sync()
        self._note_batch(line)

    def _note_batch(self, line: dict[str, Any]) -> None:
        name = line["batch"]
        if "requests" in line:
            spans = [tuple(span) for span in line["requests"]]
            self.batches[name] = OpenBatch(name, spans, Spent(*line["spent"]))
        elif "job" in line:
            self.batches[name].job = line["job"]
        else:
            del self.batches[name]

    def compact(self, spent: Spent, stopped: str = "", **more: Any) -> None:
        """Put the journal's rows into the table, sorted by span; the journal goes when the table is written.

        Without any row there is no table; the journal then stays only for what may have been paid.

        Args:
            spent: what the output has cost, for `run_of`.
            stopped: why the run ended, for `run_of`.
            more: what else `run_of` is to say of the run, beside its identity.
        """
        keys, offsets = array("q"), array("q")
        for offset, line in self.journal:
            if "episode" in line:
                keys.append(_key(span_of(line)))
                offsets.append(offset)
        if not keys and not self._continues:
            if not spent.paid:
                self._header = self.journal.end
            return
        if self.journal.end == self._header:
            return
        latest = np.array(offsets, np.int64)[_last_of_each(keys)]
        rows = self._merged(self.journal.read(latest.tolist()))
        about = {"format": FORMAT, "identity": self.identity, "spent": spent, "stopped": stopped, **more}
        schema = SCHEMA.with_metadata({"refinevla": json.dumps(about)})
        with replacing(self.target) as temporary:
            with pq.ParquetWriter(temporary, schema) as writer:
                while chunk := list(islice(rows, ROWS)):
                    writer.write_table(pa.Table.from_pylist([row | self.identity for row in chunk], SCHEMA))
            sync(temporary)
        sync(self.target.parent)
        self.journal.remove()

    def _merged(self, new: Iterator[Row]) -> Iterator[Row]:
        """The table's rows and the journal's, in order; of two about one span, the journal's comes first."""
        seen: Span | None = None
        for row in heapq.merge(new, self._table(), key=span_of):
            current = self._digests.get(row["episode"]) in (None, int(row["dataset_hash"], 16))
            if current and span_of(row) != seen:
                seen = span_of(row)
                yield row

    def _table(self) -> Iterator[Row]:
        if self._continues:
            with pq.ParquetFile(self.target) as file:
                for batch in file.iter_batches(ROWS):
                    yield from batch.to_pylist()


def _key(span: Span) -> int:
    """A span as one number, in the order of spans."""
    return span[0] << 40 | span[1] << 20 | span[2]


def _last_of_each(keys: Iterable[int]) -> Array:
    """Places of the last of each key, int64, sorted by key."""
    backwards = np.array(keys, np.int64)[::-1]
    _, places = np.unique(backwards, return_index=True)  # of the first of each
    return len(backwards) - 1 - places
