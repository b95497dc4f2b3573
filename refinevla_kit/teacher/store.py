"""Where a run keeps its answers: a journal while it is going on, one parquet file (`answers`) when it ends.

The journal `<output>.part` holds JSON lines: whose answers these are, then each call before it is made, each
answer when it has arrived, each failure. The thread that received an answer writes its line at once; the run
fsyncs before it counts. A SIGKILL therefore loses no answer that was received and repeats none: asked again
are only calls in flight at that moment (at most `concurrency`), and as they may have been paid for, the
budget keeps them at their worst case. A power cut can take with it what was not yet fsynced: the answers
since the last one counted.
"""

from __future__ import annotations

import heapq
import json
import threading
from array import array
from collections.abc import Iterator
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

UNANSWERED = (
    "bad_request",
    "unauthorised",
    "not_found",
    "quota",
    "server",
    "timeout",
    "connection",
    "unreachable",
    "gave_up",
)
"""Refusal kinds of requests that no call answered: asked again by the next run."""

ROWS = 4096  # in memory at a time while compacting


class Store:
    """The answers of one run at `target`, held until closed; a context manager. Memory: 40 bytes an answer.

    Attributes:
        journal: the run's.
        spent: what the output has cost so far, calls that were cut off included.
        done: how many requests need no call any more.
        owed: first replies that still need their follow-up, by span.
        again: spans whose refusals stopped an earlier run: not believed, asked about again once all else is.
        fruitful: there is a rationale among the answers.

    Raises:
        KitError: another run is writing there; it holds an unfinished run, or paid answers, of another
            identity; damage; no disk space.
    """

    def __init__(self, target: Path, identity: dict[str, Any]) -> None:
        self.target, self.identity, self.owed = target, identity, dict[Span, Row]()
        self.again, self.fruitful = set[Span](), False
        self._digests: dict[int, int] = {}  # of the episodes seen in this run
        self._places, self._adding = (
            (array("q"), array("q")),
            threading.Lock(),
        )  # key and offset of each row in the journal
        if target.is_dir():
            raise KitError(
                f"{target} is a folder",
                "give a parquet file as output (on a command line --output), such as "
                "rationales.parquet in it",
            )
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
        about = run_of(self.target)
        self._continues, before = about.get("identity") == self.identity, Spent(*about.get("spent", ()))
        if not self._continues and before.paid and (self._useful() or reviews_path(self.target).exists()):
            what = (
                f"{self.target} holds paid answers of another teacher, version, prompt, granularity or "
                "number of keyframes"
            )
            raise KitError(what, "give another output, or move the file away")
        if not self.journal.end:
            self.journal.append(
                {"identity": self.identity, "spent": before if self._continues or before.paid else Spent()}
            )
        self.spent, self._header, keys, digests = Spent(), self.journal.end, array("q"), array("Q")
        for row in self._table():
            self._note(row, keys, digests)
        self.again = (
            {(episode, start, end) for episode, start, end in about.get("again", ())}
            if self._continues
            else set()
        )
        for offset, line in self.journal:
            if offset:
                self._header = 0
            elif line.get("identity") != self.identity:
                what = (
                    f"{self.journal.path} holds an unfinished run of another teacher version or seed, "
                    "granularity or number of keyframes"
                )
                raise KitError(what, "finish that one, or remove the file")
            self.spent = self.spent.plus(Spent(*line["spent"]))
            if "episode" in line:
                self._note(line, keys, digests)
                self._place(line, offset)
        order, last = _latest(keys)
        self._keys, self._known = (
            np.array(keys, np.int64)[order][last],
            np.array(digests, np.uint64)[order][last],
        )
        self.done = int(np.count_nonzero(self._known)) - len(self.owed) - len(self.again)

    def _note(self, row: Row, keys: array[int], digests: array[int]) -> None:
        """Remember the last row about each span: its episode's digest, 0 where no call was answered."""
        self.owed.pop(span_of(row), None)
        self.again.discard(span_of(row))
        self.fruitful |= row["refusal_kind"] is None
        if repairable(row):
            self.owed[span_of(row)] = row
        keys.append(_key(span_of(row)))
        digests.append(0 if row["refusal_kind"] in UNANSWERED else int(row["dataset_hash"], 16))

    def _place(self, row: Row, offset: int) -> None:
        with self._adding:
            self._places[0].append(_key(span_of(row)))
            self._places[1].append(offset)

    def wanted(self, episode: int, digest: str, spans: list[Span], again: bool = False) -> list[Span]:
        """Those of the episode's spans that need a call, without those in `again` or those alone.

        Answers about another recording of the episode (another digest) are of no use; where answers are paid
        for, that is a `KitError`.
        """
        self._digests[episode] = now = int(digest, 16)
        place = slice(*np.searchsorted(self._keys, [_key((episode, 0, 0)), _key((episode + 1, 0, 0))]))
        known = dict(zip(self._keys[place].tolist(), self._known[place].tolist(), strict=True))
        if self.spent.paid and set(known.values()) - {0, now}:
            raise KitError(
                f"episode {episode} is not the one that {self.target} holds paid answers about",
                "give another output, or move it away",
            )
        for span in [span for span in list(self.owed) if span[0] == episode and known[_key(span)] != now]:
            del self.owed[span]
        needed = [
            span for span in spans if known.get(_key(span)) != now or span in self.owed or span in self.again
        ]
        return [span for span in needed if (span in self.again) == again]

    def add(self, row: Row, spent: Spent) -> None:
        """Journal an answer that changes what was spent by `spent`; any thread may."""
        row |= {"dataset_hash": f"{self._digests[row['episode']]:016x}"}
        self._place(row, self.journal.append(row | {"spent": spent}))
        self.fruitful |= row["refusal_kind"] is None

    def compact(self, spent: Spent, stopped: str = "", **more: Any) -> None:
        """Put the journal's rows into the table, sorted by span; the journal goes when the table is on the
        disk. Memory: `ROWS` rows.

        Without any row there is no table; the journal then stays only for what may have been paid.

        Args:
            spent, stopped, more: what `run_of` is to say of the run, beside its identity.
        """
        if not self._places[0] and not self._continues and not spent.paid:
            self._header = self.journal.end
        if self.journal.end == self._header or not (self._places[0] or self._continues):
            return
        rows, about = (
            self._merged(),
            {"format": FORMAT, "identity": self.identity, "spent": spent, "stopped": stopped, **more},
        )
        with replacing(self.target) as temporary:
            with pq.ParquetWriter(
                temporary, SCHEMA.with_metadata({"refinevla": json.dumps(about)})
            ) as writer:
                while chunk := list(islice(rows, ROWS)):
                    writer.write_table(pa.Table.from_pylist([row | self.identity for row in chunk], SCHEMA))
            sync(temporary)
        sync(self.target.parent)
        self.journal.remove()

    def _merged(self) -> Iterator[Row]:
        order, last = _latest(self._places[0])
        new = self.journal.read(np.array(self._places[1], np.int64)[order][last].tolist())
        seen: Span | None = None
        for row in heapq.merge(
            new, self._table(), key=span_of
        ):  # of two rows about one span, the journal's comes first
            if span_of(row) != seen and self._digests.get(row["episode"]) in (
                None,
                int(row["dataset_hash"], 16),
            ):
                seen = span_of(row)
                yield row

    def _useful(self) -> bool:
        """Whether the table that is there holds a rationale."""
        return bool(pq.read_table(self.target, columns=["refusal_kind"])["refusal_kind"].null_count)

    def _table(self) -> Iterator[Row]:
        if self._continues:
            with pq.ParquetFile(self.target) as file:
                for batch in file.iter_batches(ROWS):
                    yield from batch.to_pylist()


def _key(span: Span) -> int:
    """A span as one number, in the order of spans."""
    return span[0] << 40 | span[1] << 20 | span[2]


def _latest(keys: array[int]) -> tuple[Array, Array]:
    """(order that sorts `keys`, which of the sorted are the last of their kind)."""
    order = np.argsort(np.array(keys, np.int64), kind="stable")
    ranked = np.array(keys, np.int64)[order]
    return order, np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)]
