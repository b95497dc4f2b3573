"""Turns a model's raw text into a rationale or a typed refusal. Never raises: whatever a server sends ends as
one or the other.

A refusal of a kind in `schema.REPAIRABLE` comes with a reason that the follow-up request quotes, so reasons
are written for the model too.
"""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from refinevla_kit.teacher.schema import PARTS, Rationale, Refusal, Request

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Answer(BaseModel):
    """The shape that prompts/schema_v1.json asks for; other keys are ignored."""

    model_config = ConfigDict(extra="ignore")

    observation: Text
    situation_analysis: Text
    spatial_reasoning: Text
    task_planning: Text
    instruction_matches: bool
    mismatch: Annotated[str, StringConstraints(strip_whitespace=True)] = ""


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
    """Read an answer to `request`; JSON in a fence or after some prose is accepted.

    Args:
        cut: the server says that it stopped at its limit of tokens.
    Returns: the rationale; or a `Refusal`: "empty", "truncated", "not_json", "wrong_shape", "echo",
    "boilerplate", "other_language".
    """
    text = text.strip()
    if not text:
        return (
            Refusal("truncated", "all tokens allowed were spent before the answer began")
            if cut
            else Refusal("empty", "the answer has no text")
        )
    found = _json(text)
    if isinstance(found, Exception):
        if cut or (
            isinstance(found, json.JSONDecodeError)
            and (found.msg.startswith("Unterminated") or found.pos >= len(text.rstrip("`")))
        ):
            return Refusal("truncated", "the answer stops before its JSON ends")
        page = re.match(r"<(!doctype|html)", text, re.IGNORECASE)
        return Refusal("not_json", f"the answer is not JSON ({'an HTML page' if page else _line(found)})")
    try:
        answer = Answer.model_validate(found)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'the answer'}: {item['msg']}"
            for item in error.errors(include_url=False)[:3]
        )
        return Refusal("wrong_shape", f"the JSON has another shape than asked for: {_line(wrong)}")
    if not answer.instruction_matches and not answer.mismatch:
        return Refusal("wrong_shape", "instruction_matches is false but mismatch does not say why")
    said = answer.model_dump() | ({"mismatch": ""} if answer.instruction_matches else {})
    rationale = Rationale(**said)
    return _hollow(rationale, request.instruction) or rationale


def _json(text: str) -> Any:
    """The first JSON object with a key of ours, in a fence, a list or prose; without one, what the first
    bracket leads to: a value, or the error.
    """
    outcomes: list[Any] = []
    for bracket in islice(re.finditer(r"^\[|\{", text), 20):
        try:
            outcomes.append(
                json.JSONDecoder(strict=False).raw_decode(text, bracket.start())[0]
            )  # not strict: line breaks within strings are fine
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
        if sum(letter > "\u024f" for letter in letters) > 0.3 * len(
            letters
        ):  # beyond the Latin script and its accents
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
