"""The answers: a model's raw text as a rationale or a typed refusal, and an answer as a row of a table. The
table is what a run leaves; here is what it holds and cost.

A refusal of a kind in `schema.REPAIRABLE` comes with a reason that the follow-up request quotes, so reasons
are written for the model too.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, PlainValidator, StringConstraints, ValidationError

from refinevla_kit.errors import KitError, as_kit_error
from refinevla_kit.teacher.limits import NANO, Prices, Spent
from refinevla_kit.teacher.schema import (
    PARTS,
    REPAIRABLE,
    Facts,
    Rationale,
    Refusal,
    Reply,
    Request,
    read_facts,
)

IDENTITY = ("teacher", "version", "prompt_hash", "granularity")
FORMAT = 2
"""Of the table, in its metadata. 1, which does not say so, had no facts; some tables of it lack `ADDED`."""
TEXTS = ("mismatch", "refusal_kind", "refusal_reason", "raw", "first_kind", "first_raw", *IDENTITY)
FACTS = pa.struct(
    [
        (
            field.name,
            pa.bool_() if field.name == "done" else pa.float64() if "_cm" in field.name else pa.string(),
        )
        for field in fields(Facts)
    ]
)
SCHEMA = pa.schema(
    [
        *((name, pa.int32()) for name in ("episode", "start", "end")),
        *((part, pa.string()) for part in PARTS),
        ("instruction_matches", pa.bool_()),
        *((name, pa.string()) for name in TEXTS),
        ("keyframes", pa.int32()),
        ("dataset_hash", pa.string()),
        ("input_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
        ("cost", pa.float64()),
        ("currency", pa.string()),
        ("prices_as_of", pa.string()),
        ("attempts", pa.int32()),
        ("facts", FACTS),
    ]
)
"""`raw` is the last reply's text; where a first reply needed a follow-up, `first_kind` and `first_raw` keep
it; tokens, cost and attempts are of all calls. `dataset_hash` is of the episode. Metadata "refinevla": see
`run_of`.
"""
ADDED: dict[str, Any] = {"currency": "", "prices_as_of": "", "attempts": 1, "dataset_hash": ""}

Row = dict[str, Any]
Span = tuple[int, int, int]


@dataclass(frozen=True)
class StoredRationale:
    """One answer as stored: frames [start, end) of `episode`; exactly one of `rationale` and `refusal` is
    set.

    `cost` is in `currency` at prices of the day `prices_as_of`, 0 without prices; `attempts` counts the calls
    made; `dataset_hash` is `requests.digest` of its episode, "" where an older version wrote the table.
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
    dataset_hash: str = ""

    @property
    def span(self) -> Span:
        """(episode, start, end)."""
        return self.episode, self.start, self.end


def _reading(path: str | Path) -> AbstractContextManager[None]:
    """What is raised while a table is read becomes one line."""
    remedy = "give the parquet file that notebook 01 wrote, or annotate the dataset"
    return as_kit_error(f"no rationales can be read from {path}", remedy)


def load_rationales(path: str | Path) -> list[StoredRationale]:
    """Stored answers, sorted by episode and start. Raises `KitError` for a file that is missing, of another
    kind, or of a later format.
    """
    written = run_of(Path(path)).get("format", 1)
    if written not in (1, FORMAT):
        raise KitError(f"{path} has format {written}, this kit reads up to {FORMAT}", "install a later kit")
    with _reading(path):
        return [_stored(row) for row in sorted(pq.read_table(path).to_pylist(), key=span_of)]


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
    names, dated = ["refusal_kind", "instruction_matches"], ["prices_as_of", "currency"]
    with _reading(path):
        kept = [name for name in dated if name in pq.read_schema(path).names]
        table = pq.read_table(path, columns=[*names, *kept]).to_pydict()
        kinds, matches = (table[name] for name in names)
    prices = [table.get(name) or [""] * len(kinds) for name in dated]
    as_of, currency = max(zip(*prices, strict=True), default=("", ""))
    about = run_of(Path(path))
    spent = Spent(*about.get("spent", ()))
    return Summary(
        rationales=kinds.count(None),
        mismatches=matches.count(False),
        refusals=dict(Counter(kind for kind in kinds if kind is not None).most_common()),
        spent=spent,
        money=spent.money / NANO,
        currency=currency,
        prices_as_of=as_of,
        stopped=about.get("stopped", ""),
    )


def run_of(path: Path) -> dict[str, Any]:
    """Which run wrote a table; nothing where there is no table or an older version of the kit wrote it.

    Returns:
        "format" (see `FORMAT`), "identity" (teacher, version, prompt_hash, granularity, keyframes), "model",
        "dataset" (its folder's name), "spent" (as `Spent`), "stopped" (why it ended, "" when complete),
        "again" (spans whose refusals the next run does not believe).
    """
    if not path.exists():
        return {}
    with _reading(path):
        about = json.loads((pq.read_schema(path).metadata or {}).get(b"refinevla", b"{}"))
    return about if isinstance(about, dict) else {}


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
    row: Row = dict(zip(("episode", "start", "end"), span, strict=True))
    texts = (*PARTS, "mismatch", "refusal_kind", "refusal_reason", "raw")
    row |= dict.fromkeys((*texts, "facts", "instruction_matches")) | {"raw": reply.raw}
    if isinstance(result, Refusal):
        row |= {"refusal_kind": result.kind, "refusal_reason": result.reason}
    else:
        facts = read_facts(result.facts)
        row |= vars(result) | {"facts": facts and asdict(facts)}
    for name in texts:
        if row[name]:
            row[name] = row[name].encode(errors="backslashreplace").decode()  # lone surrogates fit no file
    return row | {
        "attempts": attempts,
        "first_kind": before.get("refusal_kind"),
        "first_raw": before.get("raw"),
        "cost": used.money / NANO + before.get("cost", 0.0),
        "input_tokens": used.input_tokens + before.get("input_tokens", 0),
        "output_tokens": used.output_tokens + before.get("output_tokens", 0),
        "currency": prices.currency if prices else "",
        "prices_as_of": prices.as_of if prices else "",
    }


def repairable(row: Row) -> bool:
    """Whether a follow-up may mend this first reply. One that never began (the model thought away all its
    tokens) would only be paid for again.
    """
    fresh = row["refusal_kind"] in REPAIRABLE and row["first_kind"] is None
    return fresh and bool((row["raw"] or "").strip())


def row_reply(row: Row) -> Reply:
    """A refusal as a follow-up needs it."""
    refusal = Refusal(row["refusal_kind"], row["refusal_reason"])
    return Reply(refusal, row["raw"], row["input_tokens"], row["output_tokens"])


def _stored(row: Row) -> StoredRationale:
    """Tables of older versions lack some columns."""
    given = row | {"rationale": None, "refusal": None}
    if row["refusal_kind"] is not None:
        given["refusal"] = Refusal(row["refusal_kind"], row["refusal_reason"])
    else:
        texts = {part: row[part] for part in PARTS} | {"mismatch": row.get("mismatch") or ""}
        matches = row.get("instruction_matches") is not False
        given["rationale"] = Rationale(
            **texts, instruction_matches=matches, facts=read_facts(row.get("facts"))
        )
    given |= {name: default for name, default in ADDED.items() if not row.get(name)}
    return StoredRationale(**{field.name: given[field.name] for field in fields(StoredRationale)})


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Answer(BaseModel):
    """The shape that prompts/schema_v2.json asks for; other keys are ignored."""

    model_config = ConfigDict(extra="ignore")

    observation: Text
    situation_analysis: Text
    spatial_reasoning: Text
    task_planning: Text
    instruction_matches: bool
    mismatch: Annotated[str, StringConstraints(strip_whitespace=True)] = ""
    facts: Annotated[Facts | None, PlainValidator(read_facts)] = None


LANGUAGES = {
    language: frozenset(words.split())
    for language, words in {
        "English": "the of is and to it with at not then its from by near left right above below over while "
        "still",
        "German": "der die das und ist nicht mit den dem ein eine von zu auf dann links rechts über",
        "French": "le la les et est des du une dans pas sur avec puis vers",
        "Spanish": "el la los las y es en con una del por que luego hacia",
        "Italian": "il lo gli e è di che con una della sul per poi verso",
        "Portuguese": "o os as e é com uma do da não para em depois",
        "Dutch": "de het een en van niet met naar dan op links rechts",
    }.items()
}
"""Words that a few sentences of a language cannot do without; what another language shares with English is
left out.
"""

ASSISTANT = re.compile(
    r"\bas an ai\b|\blanguage model\b|\bi(?:'m| am) (?:sorry|unable|not able)\b|\blorem ipsum\b"
    r"|\bi can(?:no|')t (?:see|view|access|process|help|assist)|\bno images? (?:was|were) (?:provided|given)"
)
GENERIC = re.compile(
    r"(?:the |a )?(?:robot|arm|robot arm|robotic arm|gripper) (?:is|will be) "
    r"(?:performing|executing|doing|completing|carrying out|working on) "
    r"(?:the|its|a|this) (?:given |assigned |requested )?(?:task|action|instruction|sequence)\b(?: \w+){0,5}"
)
SHORTEST = 10  # words of all parts together: four parts of fewer say nothing


def parse(text: str, request: Request, cut: bool = False) -> Rationale | Refusal:
    """Read an answer to `request`; JSON in a fence or after some prose is accepted. Never raises.

    Facts that cannot be read are left out, field by field, and the prose is kept: see `read_facts`.

    Args:
        cut: the server says that it stopped at its limit of tokens.
    Returns: the rationale; or a `Refusal`: "empty", "truncated", "not_json", "wrong_shape", "echo",
    "boilerplate", "other_language".
    """
    text = text.strip()
    if not text and cut:
        return Refusal("truncated", "all tokens allowed were spent before the answer began")
    if not text:
        return Refusal("empty", "the answer has no text")
    found = _json(text)
    if isinstance(found, Exception):
        unfinished = isinstance(found, json.JSONDecodeError) and (
            found.msg.startswith("Unterminated") or found.pos >= len(text.rstrip("`"))
        )
        if cut or unfinished:
            return Refusal("truncated", "the answer stops before its JSON ends")
        page = re.match(r"<(!doctype|html)", text, re.IGNORECASE)
        return Refusal("not_json", f"the answer is not JSON ({'an HTML page' if page else _line(found)})")
    try:
        answer = Answer.model_validate(found)
    except ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, item['loc'])) or 'the answer'}: {item['msg']}"
            for item in error.errors(include_url=False)[:3]
        ]
        return Refusal("wrong_shape", f"the JSON has another shape than asked for: {_line('; '.join(wrong))}")
    if not answer.instruction_matches and not answer.mismatch:
        return Refusal("wrong_shape", "instruction_matches is false but mismatch does not say why")
    rationale = Rationale(**vars(answer))
    if answer.instruction_matches:
        rationale = replace(rationale, mismatch="")
    return _hollow(rationale, request.instruction) or rationale


def _json(text: str) -> Any:
    """The first JSON object with a key of ours, in a fence, a list or prose; without one, what the first
    bracket leads to: a value, or the error.
    """
    outcomes: list[Any] = []
    for bracket in islice(re.finditer(r"^\[|\{", text), 20):
        try:  # not strict: line breaks within strings are fine
            outcomes.append(json.JSONDecoder(strict=False).raw_decode(text, bracket.start())[0])
        except (ValueError, RecursionError) as error:
            outcomes.append(error)
            continue
        if isinstance(outcomes[-1], dict) and not outcomes[-1].keys().isdisjoint(PARTS):
            return outcomes[-1]
    return outcomes[0] if outcomes else ValueError("there is no object in it")


def _hollow(rationale: Rationale, instruction: str) -> Refusal | None:
    """Why a well-formed rationale says nothing: the instruction again, a phrase that fits any scene, another
    language.
    """
    parts = {part: _words(getattr(rationale, part)) for part in PARTS}
    asked = _words(instruction)
    for part, words in parts.items():
        text = " ".join(words)
        if asked and len(words) <= len(asked) + 2 and " ".join(asked) in text:
            return Refusal("echo", f"{part} only repeats the instruction")
        if ASSISTANT.search(text) or GENERIC.fullmatch(text):
            return Refusal("boilerplate", f"{part} would fit any scene: {_line(text)}")
        letters = [letter for letter in getattr(rationale, part) if letter.isalpha()]
        # beyond the Latin script and its accents
        if sum(letter > "\u024f" for letter in letters) > 0.3 * len(letters):
            return Refusal("other_language", f"{part} is not written in English")
    everything = [word for words in parts.values() for word in words]
    share = {
        language: sum(word in common for word in everything) / max(1, len(everything))
        for language, common in LANGUAGES.items()
    }
    likely = max(share, key=lambda language: share[language])
    if (likely != "English" and share[likely] > 0.1) or (not share["English"] and len(everything) > 20):
        return Refusal("other_language", "the answer is not in English")
    shortest = min(len(words) for words in parts.values())
    if len(everything) < SHORTEST or shortest < 2:
        return Refusal(
            "boilerplate",
            f"the parts say too little ({len(everything)} words in all, {shortest} in the shortest)",
        )
    if len({tuple(words) for words in parts.values()}) < len(PARTS):
        return Refusal("boilerplate", "two parts say the same words")
    return None


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower().replace("\u2019", "'"))


def _line(said: object) -> str:
    """One line, for a reason."""
    return " ".join(str(said).split())[:200].encode("utf-8", "replace").decode()
