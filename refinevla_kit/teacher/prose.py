"""Reads the few statements of free English that can be read safely; all else is left unread, never guessed.

Read are things named; that something is held or nothing is; and that one thing is left or right of another.
So is the sub-task that the text says is current, or that a plan begins with. Not read are places in the
picture, distances, heights, the gripper's opening, directions of motion, the order of a plan and whether the
task is done: those are for `schema.Facts`. A clause under a condition, an intention or a wish ("until",
"should", "about to") says nothing about the frame and is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from refinevla_kit.simulator.contract import PHASES
from refinevla_kit.teacher.schema import PARTS, Rationale

LONGEST = 4000  # characters of a part that are read: a teacher that runs on must not hold the audit up
GRIPPER, THING = "gripper", "thing"
COLOURS = "red|green|blue|yellow|orange|purple|white|black|gr[ae]y|brown|pink|silver"
SAME = {"cube": "block", "cloth": "towel", "napkin": "towel", "dish": "plate", "saucer": "plate"}
SAME |= {"bin": "basket", "aubergine": "eggplant", "brinjal": "eggplant"}
NOUNS = """
apple aubergine avocado ball banana basket bear bin block book bottle bowl box bread broccoli brush bucket
burger cake candle carrot cheese clamp clock cloth coin cookie corn cube cucumber cup dice dish dog donut
drawer drier egg eggplant fork hammer kettle keyboard knife ladle laptop lemon lettuce lime mango
microwave mouse mug mushroom napkin onion peach pear pen pencil pepper phone pitcher pizza plate plum pot
potato radish remote sandwich saucer sausage scissors screwdriver shoe sock spatula sponge spoon stapler
strawberry teapot toaster tomato toothbrush towel toy vase wrench zucchini
"""  # what may lie on a table; a word that is missing here is no object to the auditor
HAND = r"(?:robot(?:ic)?(?:'s)? )?(?:gripper|end[- ]effector|fingers|jaws|claw)"
HEDGE = re.compile(
    r"\b(?:until|once|after|before|when|if|unless|will|would|should|must|can|could|may|might|need\w*|"
    r"ha(?:s|ve) to|so that|in order|ready to|about to|going to|to (?:be|hold|keep|get|have|avoid)|"
    r"almost|nearly|being)\b"
)
SENTENCE = re.compile(r"(?:[^.!?\n]|\.(?=\d))+")
CLAUSE = re.compile(r"[;:]|,? (?:and(?! \d)|but|while|so|because|since) |, (?!left|right)")
NAMED = re.compile(r"(?<!no )(?<!any )(?<!not a )(?<!than a )(?<!without a )\bE(\d+)")
NOT = re.compile(r"\b(?:not|no|nothing|never|nor|neither|yet to|without|cannot)\b|n't\b")
MOVES = re.compile(r"\b(?:mov|go|bring|carr|travel|slid|shift|turn|head|reach|place|put|set)\w*")
IT = r"(?:(?:the|an?|its|any|this) )?"
PAST = r"(?:held|grasped|gripped|grabbed|secured|picked up)"
HELD = re.compile(
    rf"\b(?:E(?P<passive>\d+)|it|nothing) (?:is|are|has(?: \w+)? been|remains)(?: \w+){{0,2}} {PAST}\b|"
    r"\bE(?P<between>\d+) (?:is|remains)(?: \w+){0,3} (?:in|between) (?:the |its |my )?E1\b|"
    rf"\b(?:hold(?:s|ing)?|grip(?:s|ping)|ha(?:s|ve)(?: \w+){{0,2}} {PAST})(?: on to| onto)? {IT}"
    r"(?:E(?P<active>\d+)|it\b|nothing\b|anything\b)|\bE1 (?:is|remains)(?: \w+)? empty\b|\bempty E1\b"
)
SIDE = (
    re.compile(
        r"E(?P<one>\d+)\b[^E]*?\b(?P<word>left|right)(?:[- ]hand)?(?: side)? of (?:the |an? )?E(?P<two>\d+)"
    ),
    re.compile(r"E(?P<one>\d+)\b[^E]* E(?P<two>\d+)(?: by \d+ cm)?, (?P<word>left|right) of it\b"),
    re.compile(
        r"^ *(?:to|on) the (?P<word>left|right)(?: side)? of (?:the |an? )?E(?P<two>\d+) "
        r"(?:is|lies|stands|sits) (?:the |an? )?E(?P<one>\d+)"
    ),
)
# Verb -> the places in PHASES, hexadecimal, that it may stand for; "move", "go" and "bring" have too many.
VERBS = {
    r"reach|approach": "018",
    r"descend": "15",
    r"lower": "15",
    r"grasp|grab(?:b(?=ing))?|clos(?=(?:e|ing) (?:the |its |my )?E1)": "2",
    r"lift|rais": "37",
    r"carry|transport": "4",
    r"releas|let(?:t(?=ing))?(?=(?:ing)? (?:the |it |E\d+ )*go)|open(?=(?:ing)? (?:the |its |my )?E1)": "6",
    r"retreat|withdraw|retract": "7",
    r"hook": "9",
    r"pull": "a",
    r"push": "b",
}
VERB = "|".join(f"(?P<v{place}>{stem})" for place, stem in enumerate(VERBS))
NOW = re.compile(
    r"(?:\b(?:time to|current(?:ly)?,?|sub-?task is(?: to)?|now(?: to)?)|"
    r"\bis(?: now| currently| still)?(?= \w+ing)) "
    rf"(?P<verb>(?:{VERB})(?:e|ing)?)\b(?P<tail>[^,;:]*)"
)
FIRST = re.compile(
    r"^\W*(?:(?:first|now|next|step (?:one|1)|1|to begin|start by|the (?:robot|arm|next step|E1)|E1|should|"
    rf"must|will|is|needs|has|to)\b\W*)*(?P<verb>(?:{VERB})(?:e|ing|s)?)\b(?P<tail>[^,;:]*)"
)


@dataclass(frozen=True)
class Statement:
    """One statement read from a rationale.

    Attributes:
        part: one of `PARTS`.
        text: the sentence that it was read from.
        kind: "object", "held", "side" or "sub-task".
        subject, object: as the scene calls them; "" where there is none (held: anything).
        relation: "left" or "right"; of a sub-task the names in `PHASES` that it may be, joined by " or ".
        holds: False for a negated statement.
    """

    part: str
    text: str
    kind: str
    subject: str = ""
    relation: str = ""
    object: str = ""
    holds: bool = True


def read_prose(rationale: Rationale, names: tuple[str, ...]) -> tuple[list[Statement], dict[str, int]]:
    """Statements part by part, and for each part how many of its sentences hold names at most.

    Args:
        names: the scene's objects, source first, target second.
    """
    statements = []
    unread = dict.fromkeys(PARTS, 0)
    for part in PARTS:
        named = {GRIPPER, THING}
        for number, piece in enumerate(SENTENCE.finditer(getattr(rationale, part)[:LONGEST])):
            sentence = piece[0].strip()
            text, things = _tokens(sentence, names)
            if part == PARTS[3]:
                read = list(_sub_task(FIRST.search(text), things, names)) if number == 0 else []
            else:
                read = [*_relations(text, things), *_sub_task(NOW.search(text), things, names)]
            unread[part] += bool(sentence) and not read
            for match in NAMED.finditer(text):
                if things[int(match[1])] not in named:
                    named.add(things[int(match[1])])
                    read.append(("object", things[int(match[1])]))
            statements += [Statement(part, sentence, *said) for said in read]
    return statements, unread


def objects_named(instruction: str) -> tuple[str, ...]:
    """The objects an instruction speaks of, in its order, with their colours."""
    return tuple(name for name in dict.fromkeys(_tokens(instruction, ())[1]) if name not in (GRIPPER, THING))


def name_in_scene(words: str, names: tuple[str, ...]) -> str:
    """What the scene calls a thing; the same words where it has no such thing."""
    if words in names:
        return words
    return next((name for name in _tokens(words, names)[1] if name in names), words)


@lru_cache
def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    """Groups: the gripper, a colour, a thing, its plural."""
    things = {*NOUNS.split(), *names, *(name.split()[-1] for name in names)} - {"can"}
    nouns = "|".join(sorted(map(re.escape, things), key=len, reverse=True))
    can = r"(?<=a )can|(?<=the )can|(?<=soda )can|(?<=coke )can"  # not the verb
    return re.compile(rf"\b(?:({HAND})|(?:({COLOURS}) )?({nouns})(e?s)?|({COLOURS}) can|({can}))\b")


def _tokens(text: str, names: tuple[str, ...]) -> tuple[str, list[str]]:
    """The text in lower case with "E0", "E1", ... for things, and their names; E1 is the gripper, and E0 a
    thing that cannot be told from others.
    """
    things = [THING, GRIPPER]

    def token(match: re.Match[str]) -> str:
        hand, colour, noun, many, *_ = match.groups()
        name = GRIPPER if hand else _resolve(colour or match[5], noun or "can", bool(many), names)
        if name not in things:
            things.append(name)
        return f"E{things.index(name)}"

    return _pattern(names).sub(token, text.lower().replace("\u2019", "'")), things


def _resolve(colour: str | None, noun: str, many: bool, names: tuple[str, ...]) -> str:
    own = f"{colour} {noun}" if colour else noun
    for name in (own, noun):
        if name in names:
            return name
    heads = {name: name.split()[-1] for name in names}
    like = [name for name, head in heads.items() if SAME.get(head, head) == SAME.get(noun, noun)]
    coloured = [name for name in like if re.search(rf"\b(?:{COLOURS})\b", name)]
    if colour and coloured:
        like = [name for name in coloured if colour in name.split()]
    elif many or len(like) > 1:
        return THING if like else own
    return like[0] if like else own


def _relations(text: str, things: list[str]) -> Iterator[tuple[Any, ...]]:
    for clause in CLAUSE.split(text):
        for match in HELD.finditer(clause):
            before = clause[: match.end()]
            token = match["passive"] or match["active"] or match["between"]
            name = things[int(token)] if token else ""
            if name != GRIPPER and not HEDGE.search(before):
                nothing = re.search("empty|nothing", match[0]) or NOT.search(before)
                yield "held", "" if name == THING else name, "", "", not nothing
        for match in (found for pattern in SIDE for found in pattern.finditer(clause)):
            before = clause[: match.end()]
            one, two = things[int(match["one"])], things[int(match["two"])]
            if THING not in (one, two) and one != two and not (HEDGE.search(before) or MOVES.search(before)):
                yield "side", one, match["word"], two, not NOT.search(before)


def _sub_task(
    match: re.Match[str] | None, things: list[str], names: tuple[str, ...]
) -> Iterator[tuple[Any, ...]]:
    if match is None or HEDGE.search(match.string[: match.start()]):
        return
    if NOT.search(match.string[: match.start("verb")]):
        return
    numbers = next(numbers for place, numbers in enumerate(VERBS.values()) if match[f"v{place}"])
    if numbers in ("9", "a", "b") and not any(name.endswith("drawer") for name in names):
        return  # other things are pulled back and pushed away in passing
    led = re.match(r"(?: (?:for|over|to|towards?|onto|on|above|the|an?))* E(\d+)", match["tail"])
    if numbers == "018" and led and things[int(led[1])] in names[1:2]:
        numbers = "4"  # reaching the target is carrying something there
    yield "sub-task", "", " or ".join(PHASES[int(number, 16)] for number in numbers)
