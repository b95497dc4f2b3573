"""The table of answers that a run leaves: its columns, reading it, finding the answer about a frame, counting
what it holds and cost.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from refinevla_kit.errors import KitError
from refinevla_kit.teacher.limits import NANO, Prices, Spent
from refinevla_kit.teacher.schema import PARTS, REPAIRABLE, Rationale, Refusal, Reply

IDENTITY = ("teacher", "version", "prompt_hash", "granularity")
SCHEMA = pa.schema(
    [
        *((name, pa.int32()) for name in ("episode", "start", "end")),
        *((part, pa.string()) for part in PARTS),
        ("instruction_matches", pa.bool_()),
        *(
            (name, pa.string())
            for name in (
                "mismatch",
                "refusal_kind",
                "refusal_reason",
                "raw",
                "first_kind",
                "first_raw",
                *IDENTITY,
            )
        ),
        ("keyframes", pa.int32()),
        ("dataset_hash", pa.string()),
        ("input_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
        ("cost", pa.float64()),
        ("currency", pa.string()),
        ("prices_as_of", pa.string()),
        ("attempts", pa.int32()),
    ]
)
"""`raw` is the last reply's text; where a first reply needed a follow-up, `first_kind` and `first_raw` keep
it; tokens, cost and attempts are of all calls. `dataset_hash` is of the episode. Metadata "refinevla": see
`run_of`.
"""

Row = dict[str, Any]
Span = tuple[int, int, int]


@dataclass(frozen=True)
class StoredRationale:
    """One answer as stored: frames [start, end) of `episode`; exactly one of `rationale` and `refusal` is
    set.

    `cost` is in `currency` at prices of the day `prices_as_of`, 0 without prices; `attempts` counts the calls
    made.
    """

    episode: int
    start: int
    end: int
    rationale: Rationale | None
    refusal: Refusal | None
    raw: str
    teacher: str
    version: str
    prompt_hash: str
    input_tokens: int
    output_tokens: int
    cost: float
    currency: str = ""
    prices_as_of: str = ""
    attempts: int = 1


def load_rationales(path: str | Path) -> list[StoredRationale]:
    """Stored answers, sorted by episode and start. Raises `KitError` for a file that is missing or of another
    kind.
    """
    try:
        return [_stored(row) for row in sorted(pq.read_table(path).to_pylist(), key=span_of)]
    except (OSError, pa.ArrowException, KeyError) as error:
        raise unreadable(path, error) from error


def lookup(rationales: Sequence[StoredRationale], episode: int, frame: int) -> StoredRationale | None:
    """The answer (as `load_rationales` sorts them) whose range holds `frame`, None where there is none."""
    place = bisect_right(rationales, (episode, frame), key=lambda stored: (stored.episode, stored.start)) - 1
    if place < 0 or rationales[place].episode != episode or frame >= rationales[place].end:
        return None
    return rationales[place]


@dataclass(frozen=True)
class Summary:
    """What an output holds and what it cost in all, calls that failed or were cut off included.

    Attributes:
        mismatches: rationales whose teacher found the instruction wrong.
        refusals: how many, by kind.
        money: in `currency`.
        stopped: why the run ended before it was complete, "" when it is.
    """

    rationales: int
    mismatches: int
    refusals: dict[str, int]
    spent: Spent
    money: float
    currency: str
    prices_as_of: str
    stopped: str

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.refusals.items()) or "none"
        money = f", {self.money:.2f} {self.currency} (prices of {self.prices_as_of})" if self.currency else ""
        lines = [
            f"{self.rationales} rationales ({self.mismatches} find the instruction wrong); refusals: {kinds}",
            f"{self.spent.calls} calls, {self.spent.input_tokens} tokens in, "
            f"{self.spent.output_tokens} out{money}",
        ]
        return "\n".join([*lines, self.stopped] if self.stopped else lines)


def summarise(path: str | Path) -> Summary:
    """Count what `path` holds. Raises `KitError` for a file that is missing or of another kind."""
    try:
        table = pq.read_table(
            path, columns=["refusal_kind", "instruction_matches", "currency", "prices_as_of"]
        )
        kinds = {each["values"]: each["counts"] for each in table["refusal_kind"].value_counts().to_pylist()}
        matches, dates, currencies = (
            table[name].to_pylist() for name in ("instruction_matches", "prices_as_of", "currency")
        )
    except (OSError, pa.ArrowException, IndexError, ValueError) as error:
        raise unreadable(path, error) from error
    about, written = run_of(Path(path)), kinds.pop(None, 0)
    spent, (as_of, currency) = (
        Spent(*about.get("spent", ())),
        max(zip(dates, currencies, strict=True), default=("", "")),
    )
    refusals = dict(sorted(kinds.items(), key=lambda each: -each[1]))
    return Summary(
        written,
        matches.count(False),
        refusals,
        spent,
        spent.money / NANO,
        currency,
        as_of,
        about.get("stopped", ""),
    )


def run_of(path: Path) -> dict[str, Any]:
    """Which run wrote a table; nothing where there is no table or an older version of the kit wrote it.

    Returns:
        "identity" (teacher, version, prompt_hash, granularity, keyframes), "model", "dataset" (its folder's
        name), "spent" (as `Spent`), "stopped" (why it ended, "" when complete), "again" (spans whose refusals
        the next run does not believe).
    """
    try:
        about: dict[str, Any] = (
            json.loads((pq.read_schema(path).metadata or {}).get(b"refinevla", b"{}"))
            if path.exists()
            else {}
        )
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error
    return about


def unreadable(path: str | Path, error: Exception) -> KitError:
    return KitError(
        f"no rationales can be read from {path} ({error})",
        "give the parquet file that notebook 01 wrote, or annotate the dataset",
    )


def span_of(row: Row) -> Span:
    """(episode, start, end)."""
    return row["episode"], row["start"], row["end"]


def reply_row(
    span: Span, reply: Reply, used: Spent, prices: Prices | None, attempts: int, first: Row | None = None
) -> Row:
    """A reply as it is journaled, `first` being the row of the reply it follows up; tokens and cost are then
    of both.
    """
    result, before = reply.result, first or {}
    texts: dict[str, str | None] = dict.fromkeys((*PARTS, "mismatch", "refusal_kind", "refusal_reason")) | {
        "raw": reply.raw
    }
    if isinstance(result, Refusal):
        texts |= {"refusal_kind": result.kind, "refusal_reason": result.reason}
    else:
        texts |= {name: getattr(result, name) for name in (*PARTS, "mismatch")}
    row: Row = {
        name: text and text.encode(errors="backslashreplace").decode() for name, text in texts.items()
    }  # lone surrogates
    row |= dict(zip(("episode", "start", "end"), span, strict=True)) | {"attempts": attempts}
    row |= {"instruction_matches": None if isinstance(result, Refusal) else result.instruction_matches}
    row |= {
        "first_kind": before.get("refusal_kind"),
        "first_raw": before.get("raw"),
        "cost": used.money / NANO + before.get("cost", 0.0),
    }
    row |= {name: getattr(used, name) + before.get(name, 0) for name in ("input_tokens", "output_tokens")}
    return row | {
        "currency": prices.currency if prices else "",
        "prices_as_of": prices.as_of if prices else "",
    }


def repairable(row: Row) -> bool:
    """Whether a follow-up may mend this first reply. One that never began (the model thought away all its
    tokens) would only be paid for again.
    """
    return (
        row["refusal_kind"] in REPAIRABLE and row["first_kind"] is None and bool((row["raw"] or "").strip())
    )


def row_reply(row: Row) -> Reply:
    """A refusal as a follow-up needs it."""
    return Reply(
        Refusal(row["refusal_kind"], row["refusal_reason"]),
        row["raw"],
        row["input_tokens"],
        row["output_tokens"],
    )


def _stored(row: Row) -> StoredRationale:
    """Tables of older versions lack some columns."""
    rationale, refusal = None, None
    if row["refusal_kind"] is not None:
        refusal = Refusal(row["refusal_kind"], row["refusal_reason"])
    else:
        parts = {part: row[part] for part in PARTS}
        rationale = Rationale(
            **parts,
            instruction_matches=row.get("instruction_matches") is not False,
            mismatch=row.get("mismatch") or "",
        )
    plain = (
        "episode",
        "start",
        "end",
        "raw",
        "teacher",
        "version",
        "prompt_hash",
        "input_tokens",
        "output_tokens",
        "cost",
    )
    added: dict[str, Any] = {name: row.get(name) or "" for name in ("currency", "prices_as_of")} | {
        "attempts": row.get("attempts") or 1
    }
    return StoredRationale(
        rationale=rationale, refusal=refusal, **{name: row[name] for name in plain}, **added
    )
