"""Reads texts in the oracle's wording back into facts: what a policy that learned to write from it says of a
frame, field by field, so that each can be held against the simulator.

It is the oracle's grammar the other way round. A sentence in other words is not read, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from refinevla_kit.simulator.contract import PHASES
from refinevla_kit.teacher.oracle import DRAWERS, GRAMMAR, START
from refinevla_kit.teacher.schema import LABELS, PARTS, Rationale, read_facts

SLOTS = GRAMMAR | DRAWERS
FIELDS = {
    "about": r"about (?P<beside>\d+(?:\.\d+)?) cm",
    "height": r"(?P<height>\d+(?:\.\d+)?)",
    "relation": r"(?P<relation>(?:about|\d|straight|right|exactly|far|very).*?)",
    "onto": "(?:onto|into|near)",
    "phase": f"(?P<phase>{'|'.join(PHASES)})",
    "side": r"(?:, (?P<side>left|right) of it|, (?P<order>higher|lower) in view)?",
    "motion": r"(?:, moving (?P<motion>\w+))?",
}
RELATIONS = ("beside above", "beside below", "beside", "above", "below", "at", "far")
LESS = ("below", "beside below")  # heights that are negative


def read_wording(text: str) -> Rationale:
    """The four parts of a text and the facts that are read from them; facts are None where nothing was."""
    parts: dict[str, Any] = dict.fromkeys(PARTS, "")
    for line in text.splitlines():
        label, _, words = line.partition(":")
        if label in LABELS:
            parts[PARTS[LABELS.index(label)]] = words.strip()
    found: dict[str, Any] = {}
    for part, read in zip(PARTS, (_places, _situation, _ways, _plan), strict=True):
        sentence = parts[part].removesuffix(".")
        found |= dict(read(sentence[:1].lower() + sentence[1:]))
    source, target = found.get("source"), found.get("target")
    for role, name in (("source", source), ("target", target)):
        found[f"{role}_zone"] = found.pop(f"at {name}", None)
    return Rationale(**parts, facts=read_facts(found))


def _places(sentence: str) -> Iterator[tuple[str, Any]]:
    for piece in sentence.split(", "):
        match = _match(("seen", "gripper"), piece)
        if not match:
            continue
        name, zone = match["name"], match["zone"]
        hand, _, held = name.partition("gripper")
        if held.startswith(" with the "):
            yield "gripper_zone", zone
            yield "held", held.removeprefix(" with the ")
        elif name.endswith("gripper"):
            yield "gripper_zone", zone
            yield "gripper", hand.strip() or None
        else:
            yield f"at {name}", zone


def _situation(sentence: str) -> Iterator[tuple[str, Any]]:
    match = _match(("situation",), sentence)
    if not match:
        return
    yield "sub_task", match["phase"]
    held, free = (_match((slot,), match["held"]) for slot in ("held", "not held"))
    if held or free:
        yield "held", held["source"] if held else "nothing"
    if match["done"] in (*SLOTS["done"], *SLOTS["not done"]):
        yield "done", match["done"] in SLOTS["done"]


def _ways(sentence: str) -> Iterator[tuple[str, Any]]:
    for piece in sentence.split("; "):
        whole = _match(("spatial",), piece)
        match = _match(RELATIONS, whole["relation"]) if whole else None
        if not whole or not match:
            continue
        way = "reach" if whole["a"] == "gripper" else "goal"
        yield "source", match["name"] if way == "reach" else whole["a"]
        if way == "goal":
            yield "target", None if match["name"] == START else match["name"]
        if match["slot"] != "far":
            yield f"{way}_cm", float(match.get("beside") or 0)
            height = float(match.get("height") or 0)
            # over the target the height of what is not held yet is left out
            if way == "reach" or height:
                yield f"{way}_height_cm", -height if match["slot"] in LESS else height
        yield f"{way}_side", whole["side"] or whole["order"]


def _plan(sentence: str) -> Iterator[tuple[str, Any]]:
    match = _match(("plan",), sentence)
    if not match:
        return
    yield "motion", match["motion"]
    following = match["next"].split(" and ")[0]
    for field, start, words in (("sub_task", "do ", match["do"]), ("next_sub_task", "then ", following)):
        phase = _match([slot for slot in SLOTS if slot.startswith(start)], words)
        if phase:
            yield field, phase["slot"].removeprefix(start)
            if "source" in phase:
                yield "source", phase["source"]


def _match(slots: Iterable[str], text: str) -> dict[str, Any] | None:
    """The words of the first wording of the slots that the whole text has, and its "slot"."""
    for slot in slots:
        for pattern in _patterns(slot):
            found = pattern.fullmatch(text)
            if found:
                return {**found.groupdict(), "slot": slot}
    return None


@cache
def _patterns(slot: str) -> list[re.Pattern[str]]:
    """The wordings of a slot, without their full stops; what is drawn or filled in becomes a group."""
    found = []
    for wording in SLOTS[slot]:
        pieces = re.split(r"\{(\w+)\}", wording.removesuffix("."))
        pieces[::2] = map(re.escape, pieces[::2])
        pieces[1::2] = [FIELDS.get(name, f"(?P<{name}>.+?)") for name in pieces[1::2]]
        found.append(re.compile("".join(pieces)))
    return found
