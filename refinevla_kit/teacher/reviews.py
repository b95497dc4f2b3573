"""What a person decided about rationales: accept, edit or reject, one JSON line each, in
`<table>.reviews.jsonl` beside the rationale table.

The table, the teacher's text, is never written. A decision names its text by a hash: it does not
carry over to what a teacher writes later about the same frames. Lines are only added, each under the
journal's lock and fsynced; of several about one text the last counts.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from refinevla_kit.errors import KitError, as_kit_error
from refinevla_kit.journal import Journal
from refinevla_kit.teacher.answers import Span, StoredRationale
from refinevla_kit.teacher.schema import PARTS, Rationale

SUFFIX = ".reviews.jsonl"
VERDICTS = {"accept": "accepted", "edit": "edited", "reject": "rejected"}
EDITABLE = {*PARTS, "instruction_matches"}


@dataclass(frozen=True)
class Decision:
    """One decision about frames [start, end) of `episode`.

    Attributes:
        about: `text_hash` of what was read.
        verdict: one of `VERDICTS`.
        reason: of a rejection.
        reviewer: who decided, or "".
        time: UTC, ISO 8601.
        edits: part -> new text, and "instruction_matches" -> bool where the person disagrees with the teacher
            about it.
    """

    episode: int
    start: int
    end: int
    about: str
    verdict: str
    edits: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    reviewer: str = ""
    time: str = ""


Decisions = Mapping[tuple[Span, str], Decision]


def reviews_path(table: str | Path) -> Path:
    """Where the decisions about the rationale table `table` are."""
    return Path(table).with_suffix(SUFFIX)


def text_hash(answer: StoredRationale) -> str:
    """16 hex digits of the text that a reviewer reads: the rationale without its facts, or the refused
    reply's raw text.
    """
    text: Any = answer.raw
    if answer.rationale:
        text = asdict(answer.rationale)
        del text["facts"]
    return hashlib.sha256(json.dumps(text).encode()).hexdigest()[:16]


def load_decisions(path: str | Path) -> dict[tuple[Span, str], Decision]:
    """The last decision about each text, by span and hash (`decision_of` looks one up); empty where there is
    no file.

    A last line without its end (being written, or cut off by a power cut) does not count. Raises `KitError`
    for any other damage.
    """
    content = Path(path).read_bytes() if Path(path).exists() else b""
    decisions = {}
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        with as_kit_error(f"{path}, line {number} is no decision", "remove that line: the others are kept"):
            decision = Decision(**json.loads(line))
            if decision.verdict not in VERDICTS or not decision.edits.keys() <= EDITABLE:
                raise ValueError(f"verdict {decision.verdict}, edits of {', '.join(decision.edits)}")
        decisions[(decision.episode, decision.start, decision.end), decision.about] = decision
    return decisions


def decision_of(decisions: Decisions, answer: StoredRationale) -> Decision | None:
    """What was decided about this very text."""
    return decisions.get((answer.span, text_hash(answer)))


def decide(
    path: str | Path,
    answer: StoredRationale,
    verdict: str,
    edits: Mapping[str, Any] | None = None,
    reason: str = "",
    reviewer: str = "",
) -> Decision:
    """Record a decision in `path` (see `reviews_path`); it is on the disk when this returns.

    Args:
        edits: part -> new text ("instruction_matches" -> bool); what equals the teacher's is left out, and an
            edit of nothing accepts.
    Raises: `KitError` for a decision that makes no sense (a part empty, no reason, a refusal accepted), or
    while another program writes the file.
    """
    before: dict[str, Any] = asdict(answer.rationale) if answer.rationale else {}
    new = {
        name: " ".join(value.split()) if isinstance(value, str) else value  # a part is one line
        for name, value in (edits or {}).items()
    }
    new = {name: value for name, value in new.items() if value != before.get(name)}
    if verdict not in VERDICTS or not new.keys() <= EDITABLE or (new and verdict != "edit"):
        what = f"{verdict!r} with edits of {', '.join(new) or 'nothing'} is no decision"
        raise KitError(what, f"choose from {', '.join(VERDICTS)}; edit parts")
    if verdict == "reject" and not reason.strip():
        raise KitError("a rejection needs a reason", "say in a few words what is wrong")
    empty = [part for part in PARTS if not (before | new).get(part)]
    if verdict != "reject" and empty:
        raise KitError(f"{empty[0]} is empty", "write it, or reject")
    verdict = "accept" if verdict == "edit" and not new else verdict
    now = datetime.now(UTC).isoformat(timespec="seconds")
    decision = Decision(*answer.span, text_hash(answer), verdict, new, reason.strip(), reviewer, now)
    with Journal(Path(path)) as journal:
        journal.append(asdict(decision))
        journal.sync()
    return decision


def applied(answer: StoredRationale, decision: Decision) -> StoredRationale:
    """The answer with the reviewer's edits; raw text, teacher and cost stay as they were.

    Facts go with the text that they were given with: an edited rationale has none.
    """
    rationale = answer.rationale or Rationale("", "", "", "")
    if decision.edits:
        rationale = replace(rationale, **decision.edits, facts=None)
    if rationale.instruction_matches:
        rationale = replace(rationale, mismatch="")
    return replace(answer, rationale=rationale, refusal=None)


def shown(answer: StoredRationale, decision: Decision | None) -> Rationale | None:
    """The rationale that a reviewer sees: the teacher's, or as it was edited."""
    return applied(answer, decision).rationale if decision and decision.edits else answer.rationale


def reviewed(
    rationales: Sequence[StoredRationale], decisions: Decisions
) -> tuple[list[StoredRationale], dict[str, int]]:
    """What a person let pass: accepted answers, and edited ones with their new text. Answers without a
    decision about this very text are left out.

    Returns: these answers in the order given, and how many there are of each kind, those left out too.
    """
    known = {span for span, _ in decisions}
    rows = []
    counts = Counter(dict.fromkeys(VERDICTS.values(), 0))
    for answer in rationales:
        decision = decision_of(decisions, answer)
        if decision is not None:
            counts[VERDICTS[decision.verdict]] += 1
            rows += [applied(answer, decision)] if decision.verdict != "reject" else []
        elif answer.refusal:
            counts["refused by the teacher"] += 1
        else:
            counts["changed since its review" if answer.span in known else "not reviewed"] += 1
    return rows, dict(counts)
