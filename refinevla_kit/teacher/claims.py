"""Reads the checkable statements of free English, sentence by sentence, with patterns; what no pattern knows
is left unread, never guessed.

Names of things become tokens first (E0 the source, E1 the target, E2 the gripper, E3 the robot, E4 table,
sink and the like, then all else that is named), so that one pattern serves every wording of a name. A
statement under a condition, an intention or a wish ("until", "should", "about to") says nothing about the
frame and is passed over. Patterns are short and few on purpose: what would need a parser is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from refinevla_kit.simulator.contract import PHASES
from refinevla_kit.teacher.schema import PARTS, Rationale

LONGEST = 4000  # characters of a part that are read: a teacher that runs on must not hold the audit up
GRIPPER, ROBOT, SCENERY = "gripper", "robot", "scenery"
SAME = {
    "cube": "block",
    "cloth": "towel",
    "dish": "plate",
    "saucer": "plate",
    "bin": "basket",
    "rack": "basket",
    "aubergine": "eggplant",
}
COLOURS = "red|green|blue|yellow|orange|purple|white|black|gr[ae]y|brown|pink|silver"
THINGS = """
apple aubergine avocado ball banana basket bean bin block book bottle bowl box bread broccoli brush bucket
burger button cabbage cake can candle candy carrot cheese cherry chicken clock cloth coin cookie corn cube
cucumber cup cutlery detergent dice dish donut door drawer egg eggplant faucet fish flower fork fridge garlic
glass glove hammer hat jar jug kettle key keyboard kiwi knife knob ladle lamp laptop lemon lid lighter lime
mango marker melon microwave mouse mug mushroom noodles nut onion orange oven pan peach peanut pear pen pencil
pepper phone pineapple pitcher pizza plate plum pot potato rack radish remote ring rope salt sandwich saucepan
saucer sausage scissors screw screwdriver shaker shoe shrimp soap sock spatula sponge spoon spray stapler
steak stick strawberry sugar tape teapot toaster tomato tongs toothbrush towel toy tray turnip vase wallet
watermelon whisk wrench zucchini
"""  # what may lie on a table or in a drawer; a word that is missing here is no object to the auditor
HAND = r"(?:gripper|end[- ]effector|fingers?|jaws?|claws?|hands?(?! side))(?:'s)?"
AGENTS = (
    rf"(?P<gripper>(?:robot(?:ic)?(?:'s)? )?{HAND}(?: (?:of the "
    rf")?{HAND})?)|(?P<robot>robot(?:ic)?(?: arm)?|arm|manipulator|we|i)|"
    r"(?P<scenery>table(?:top)?|sink|counter(?:top)?|surface|desk|floor|ground)"
)

A = r"(?:the |an? |its |my )?"
PICTURE = rf"(?:in|on) {A}(?:view|image|picture|frame|photo)\b"
BREAK = re.compile(r"[,;:]| (?:and|but|while|so|because|since) ")
HEDGE = re.compile(
    r"\b(?:until|till|once|after|before|when|if|unless|as long as|so that|in "
    r"order|should|must|will|would|could|might|may|need\w*|ha(?:s|ve|d) to|"
    r"ready to|about to|going to|to "
    r"(?:be|get|move|reach|pick|place|put|bring|carry|stack|grasp|hold|keep|call|consider))\b"
)
NEGATION = re.compile(
    r"\b(?:not|no|nothing|never|neither|nor|none|without|cannot|lost|yet to|far "
    r"from|almost|nearly|out of|outside)\b|n't\b"
)

CORNERS = {
    "top": "top",
    "upper": "top",
    "bottom": "bottom",
    "lower": "bottom",
    "left": "left",
    "right": "right",
} | dict.fromkeys(("middle", "mid", "central", "centre", "center"), "centre")
CORNER = f"(?:{'|'.join(CORNERS)})"
PLACE = (
    rf"(?P<zone>{CORNER}(?:[- ]+(?:and )?{CORNER})*)(?:-?hand)?\b(?: "
    r"(?:side|corner|edge|part|half|area|third|region))?"
    r"(?: of (?:the |my )?(?P<of>\w+))?(?! E[23])"
)
ZONE = (
    re.compile(
        rf"\b(?:at|in|on|near|towards?|off to|from|(?:is|are) to|stands|lies|"
        rf"to(?= the {CORNER}[- a-z]* of the (?:image|picture|frame|view))) (?:about )?(?:the "
        rf")?(?:far |very )?{PLACE}"
    ),
    re.compile(rf"(?:^|[,:;] ?){PLACE}(?=[,:;]|$)"),
)
SIDE = re.compile(
    rf"\b(left|right)(?:[- ]hand)?(?: side)?(?= of {A}(?:E\d|it\b))|\b(?:on|to) its (left|right)\b"
)
HEIGHT = re.compile(
    r"(?P<straight>\b(?:straight|directly|right|exactly|vertically) )?\b(?:(?P<up>above|over|on top "
    rf"of|atop|higher(?= than| {PICTURE})|"
    rf"f[au]rther up(?= {PICTURE}))|below|under(?:neath)?|beneath|lower(?= than| "
    rf"{PICTURE}))\b(?=(?P<tail>[^,;:]*(?:E\d|\bit\b|{PICTURE})))"
)
US = r"(?:the camera|us|me) than"
DEPTH = re.compile(
    rf"\b(?:(?P<far>behind|beyond|f[au]rther (?:away )?from {US})|(?:closer|nearer) to {US})\b"
)
UNIT = r"(cm|centimet(?:er|re)s?|mm|millimet(?:er|re)s?|m|met(?:er|re)s?|inch(?:es)?)\b"
NUMBER = re.compile(
    rf"(?P<bound>(?:less|more) than )?\b(\d+(?:\.\d+)?)(?:(?: ?- ?| to | or )(\d+(?:\.\d+)?))? ?{UNIT}"
)
AXIS = re.compile(r"(height|vertical)|beside|horizontal|sideways|side\b|left|right|along the E4")
NEAR = re.compile(
    r"\b(?:(?P<at>right at|right on|exactly at|at|touch(?:es|ing)|in contact "
    r"with|surround(?:s|ing)|coincides with)|"
    r"(?P<far>(?:far )?away from|far from)|near|close to|next to|adjacent to|beside|alongside)(?= "
    rf"{A}(?:E\d|it\b))"
)
ON = re.compile(
    r"\b(?:is|are|lies?|rests?|sits?|placed|now|already|yet) (?:already |now |yet "
    rf")?(?:on|onto|in|inside|on top of) {A}E(\d+)"
)
OPENING = (
    r"(?P<half>(?:half|partly|partially)[- "
    r"](?:open|closed))|(?P<open>open|opened|spread|apart)|(?P<shut>closed|shut)"
)
GRIP = (
    re.compile(rf"\b(?:{OPENING}) E2\b"),
    re.compile(rf"E2\b(?:(?!E\d|[;.]| to | should | must | will | can ).){{0,40}}?\b(?:{OPENING})\b"),
)
PAST = r"(?:held|gripped|grasped|picked up|grabbed|secured|lifted|carried)"
HOLD = re.compile(
    r"\b(?P<active>holds?|holding|grips|gripping|carries|clutches|clutching|ha(?:s|ve)(?: not|n't| "
    rf"already)* {PAST}|hold of|(?<=E2 )with|"
    rf"(?<=E2, )with|without|(?:ha(?:s|ve)|carrying)(?= {A}(?:E\d|nothing|anything)))\b|"
    rf"\b(?:{PAST}|(?:in|between|out of|outside) {A}(?:E3(?:'s)? )?(?:E2|grip|grasp))\b"
)
EMPTY = re.compile(
    r"\bempty E2|E2\b[^,;E]*\bempty\b|\bnothing in (?:it|the "
    rf"E2)\b|\b(?:carr(?:y|ies|ying)|holds?|holding|{PAST}) (?:on to )?nothing|"
    rf"\b(?:nothing|no E\d+) (?:is |has been |was )(?:\w+ )?{PAST}|\b(?:has|have|been|was) "
    r"(?:released|dropped|let go)\b|"
    r"\b(?:released|dropped) by\b|\blost (?:its |the )?(?:hold|grip)"
)
DONE = re.compile(
    r"\b(?:task|goal|instruction|job|mission|objective|stacking|placement|stack|E3 "
    r"(?:are|am|is))\b(?P<gap>[^;,]*?)\b(?:(?P<no>incomplete|unfinished|"
    r"open|pending|ongoing|in "
    r"progress)|done|finished|completed?|accomplished|fulfilled|achieved|reached|solved|satisfied|built)\b"
)
VISIBLE = re.compile(
    r"(?<!higher )(?<!lower )(?<!up )\b(?:(?P<no>out of (?:view|sight)|not in view|not "
    r"visible|hidden|cannot be seen)|in view|"
    r"visible|can be seen)\b"
)

NOUN = r"(?<!the )(?<!its )(?<!a )(?<!an )(?<!firm )(?<!successful )"  # "its grip" is no action
STEMS = {  # what is done, and the beginnings of the verbs that say it
    "retreat": r"retreat|withdraw|retract|back(?=\w* (?:away|off|up))|pull(?=[^.,;]* away)",
    "open": r"open(?! E2|ed)",
    "release": r"releas|let(?=\w* (?:(?:(?:the )?E\d+|it) )?go)|lett(?=ing go)|dropp?",
    "close": rf"clos(?!e to|ed)|shut(?= {A}E2)",
    "grasp": rf"{NOUN}(?:grip(?!ping)|grasp)|grabb?|squeez|seiz|clamp|tak(?=(?:e|es|ing) hold)",
    "pick": "pick",
    "lift": "lift|rais|hoist|pull(?=[^.,;]* up)",
    "put": "putt?|sett?|lay|deposit",
    "place": "plac|stack(?! is)",
    "lower": rf"lower(?! {CORNER}| part| half| in | than)",
    "descend": "descend",
    "carry": "carry|carries|bring|brought|transport|transfer|tak",
    "reach": "reach|approach|position|align",
    "move": r"mov|shift|advanc|continu|proceed|(?<!let )(?<!lets )(?<!letting )go|head|travel|com|get",
}
MEANS = {
    "retreat": "7",
    "release": "6",
    "open": "6",
    "close": "2",
    "grasp": "2",
    "pick": "0123",
    "lift": "3",
    "put": "456",
    "place": "456",
    "carry": "4",
}  # the numbers in PHASES a verb may stand for; the others depend on what goes with it
VERB = re.compile(
    rf"\b(?:{'|'.join(f'(?P<{name}>{stem})' for name, stem in STEMS.items())})(?:e|es|ed|ing|s|d)?\b"
)
LATER = r"[.,;:]| (?:until|while|before|after|then|so that) "
NOT_NOW = re.compile(
    r"\b(?:not|n't|without|once|after(?! that)|before|until|avoid|having) (?:\w+ )?(?:E\d )?(?:is "
    r")?$|, moving$"
)
CUE = re.compile(
    r"\b(?P<base>time to|now(?: to)?|(?:next|current) (?:step|thing|sub-?task|phase|action) is(?: "
    r"to)?|only has to|start by|"
    r"(?:beginning|starting) to)|\b(?P<being>(?:is|are|am)(?: now| currently| still)* being)|"
    r"\b(?:is|are|am)(?: now| currently| already| still)*\b"
)  # what follows is the current step
PASSIVE = re.compile(
    rf"E(\d+) (?:(?!not)\w+ ){{1,3}}be (?:{PAST}|brought|moved|transported|placed|released|lowered|stacked)\b"
)
WAY = re.compile(
    r"\b(left|right|up|down|forward|backward|back(?! away| off| up)|ahead)(?:wards?|s)?\b(?! of\b)"
)
ARM = re.compile(
    r"\b(left|right) E[23]\b(?: (?!E\d|and )\w+){0,4}? (?:(?P<rests>still|idle|stationary|rests?|resting)\b|"
    rf"(?:{'|'.join(stem for name, stem in STEMS.items() if name not in ('open', 'close'))})\w*)"
)


@dataclass(frozen=True)
class Claim:
    """One statement read from a rationale.

    Attributes:
        part: one of `PARTS`, or "instruction_matches".
        kind: "object", "visible", "zone", "side", "depth", "height", "distance", "near", "placed", "grip",
            "held", "done", "sub-task", "order", "role", "motion", "arm", "naming" or "instruction".
        subject, relation, object: as the scene calls them ("carrot", "left", "plate"); "" where there is
            none.
        value: centimetres, where the claim gives a number.
        holds: False for a negated claim.
        span: first and one past the last character of the words it was read from, within the part's text.
        text: these characters.
    """

    part: str
    kind: str
    subject: str
    relation: str = ""
    object: str = ""
    value: float | None = None
    holds: bool = True
    span: tuple[int, int] = (0, 0)
    text: str = ""


def read_claims(rationale: Rationale, names: tuple[str, ...]) -> tuple[list[Claim], dict[str, int]]:
    """Claims of a rationale, part by part, and for each part the number of sentences in which none was read.

    Args:
        names: the scene's objects, source first, target second.
    """
    claims: list[Claim] = []
    unread = dict.fromkeys(PARTS, 0)
    for part in PARTS:
        text, plan = getattr(rationale, part)[:LONGEST], part == PARTS[3]
        topics: tuple[str, ...] = ("",)
        objects: dict[str, Claim] = {}
        for piece in re.finditer(r"(?:[^.!?\n]|\.(?=\d))+" if not plan else r"(?s).*\w.*", text):
            sentence = Sentence(part, piece[0], piece.start(), names, topics)
            found = [one for reader in ((_arms, _plan) if plan else READERS) for one in reader(sentence)]
            unread[part] += not found and bool(piece[0].strip())
            claims += [replace(one, text=text[slice(*one.span)]) for one in found]
            for one in _objects(sentence):
                objects.setdefault(one.subject, replace(one, text=text[slice(*one.span)]))
            topics = tuple(reversed(sentence.before(len(piece[0]) + 99, SCENERY)))[:2] or topics
        claims += objects.values()
    return claims, unread


def objects_named(instruction: str) -> tuple[str, ...]:
    """The objects an instruction speaks of, in its order, with their colours."""
    return tuple(
        dict.fromkeys(
            name
            for _, name in Sentence("", instruction, 0, (), ("",)).entities
            if name not in (GRIPPER, ROBOT, SCENERY)
        )
    )


class Sentence:
    """One sentence, in lower case, with tokens for names. `origin` maps each character to its place in the
    part's text.
    """

    def __init__(
        self, part: str, text: str, start: int, names: tuple[str, ...], topics: tuple[str, ...]
    ) -> None:
        self.part, self.topics, self.names = (
            part,
            topics,
            [*(*names, "", "")[:2], GRIPPER, ROBOT, SCENERY, *names[2:]],
        )
        lower, pieces, origin, last = text.lower().replace("’", "'"), [], [], 0
        for match in _pattern(names).finditer(lower):
            name = _resolve(match, lower, names)
            if match["it"] and topics[0] in self.names:
                name = topics[0]  # "It is ..." at the start speaks of what the sentence before began with
            if name is None:
                continue
            if name not in self.names:
                self.names.append(name)
            token = f"E{self.names.index(name)}"
            pieces += [lower[last : match.start()], token]
            origin += [
                *range(start + last, start + match.start()),
                *[start + match.start()] * (len(token) - 1),
                start + match.end() - 1,
            ]
            last = match.end()
        self.text, self.origin = (
            "".join(pieces) + lower[last:],
            [*origin, *range(start + last, start + len(lower))],
        )
        self.entities = [
            (match.start(), self.names[int(match[1])]) for match in re.finditer(r"E(\d+)", self.text)
        ]

    def claim(
        self,
        span: tuple[int, int],
        kind: str,
        subject: str,
        relation: str = "",
        object: str = "",
        value: float | None = None,
        holds: bool = True,
    ) -> Claim:
        """A claim read from these characters of `text`."""
        return Claim(
            self.part,
            kind,
            subject,
            relation,
            object,
            value,
            holds,
            (self.origin[span[0]], self.origin[span[1] - 1] + 1),
        )

    def relation(
        self,
        match: re.Match[str],
        kind: str,
        subject: str,
        words: str,
        object: str,
        value: float | None = None,
    ) -> Iterator[Claim]:
        """The claim, unless it is hedged or lacks one of the two."""
        clause = self.clause(match.start())
        if (
            subject
            and object
            and subject != object
            and not self.hedged(match.start())
            and not re.search(r"\b(?:almost|nearly)\b", clause)
        ):
            yield self.claim(match.span(), kind, subject, words, object, value, not NEGATION.search(clause))

    def clause(self, place: int) -> str:
        """The words before `place`, back to the last break."""
        return BREAK.split(self.text[:place])[-1]

    def hedged(self, place: int) -> bool:
        """The words before `place` make it a condition or an intention."""
        return bool(
            HEDGE.search(self.clause(place))
            or re.search(r"\b(?:until|till|as long as|so that)\b[^;]*$", self.text[:place])
        )

    def before(self, place: int, *without: str) -> list[str]:
        """What was named before `place`, the last one first."""
        return [name for start, name in reversed(self.entities) if start < place and name not in without]

    def after(self, place: int, *without: str) -> list[str]:
        """What is named from `place` on."""
        return [name for start, name in self.entities if start >= place and name not in without]

    def pair(self, match: re.Match[str]) -> tuple[str, str]:
        """(subject, object) of a relation: the object follows it or is "it"; the subject was named last
        before it, or begins the sentence.
        """
        start, end = match.span()
        following = re.match(r"[^,;:]*?(?:\bE(\d+)|\b(?:it|them)\b)", self.text[end:])
        fronted = re.match(r"\W*(?:relative|compared) (?:to|with) (?:the )?E(\d+)", self.text)
        if named := following if following and following[1] else fronted:
            thing = self.names[int(named[1])]
            return (self.before(start, thing, SCENERY) or self.after(end, thing) or [""])[0], thing
        last = list(dict.fromkeys(self.before(start, SCENERY)))[:2]
        if len(last) < 2:
            return (last[0], self.topics[0]) if last else (self.topics[0], self.topics[-1])
        place = max(at for at, _ in self.entities if at < start)
        just_named = following and not BREAK.search(
            self.text[place:start]
        )  # "a spoon, and a towel just behind it"
        return (last[0], last[1]) if just_named else (last[1], last[0])


@lru_cache(maxsize=64)
def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    things = "|".join(
        sorted(
            map(re.escape, {*THINGS.split(), *names, *(name.split()[-1] for name in names)}),
            key=len,
            reverse=True,
        )
    )
    return re.compile(
        rf"^ *(?P<it>it)(?= (?:is (?!time|now time)|has|does|lies|sits))|\b(?:{AGENTS}|"
        rf"(?:(?P<colour>{COLOURS}) )?(?P<thing>{things})(?P<many>e?s)?|(?P<one>{COLOURS}) one)\b"
    )


def _resolve(match: re.Match[str], text: str, names: tuple[str, ...]) -> str | None:
    """What the scene calls the thing named, its own word for a thing the scene does not have, None for what
    names nothing or several.
    """
    head, colour = match["thing"], match["colour"] or match["one"]
    if not head and not colour:
        return next((kind for kind in (GRIPPER, ROBOT, SCENERY) if match[kind]), None)
    if head in names:
        return str(head)
    fitting = [
        name
        for name in names
        if not head or SAME.get(name.split()[-1], name.split()[-1]) == SAME.get(head, head)
    ]
    coloured = [name for name in fitting if re.search(rf"\b(?:{COLOURS})\b", name)]
    if colour and coloured:
        fitting = [name for name in coloured if colour in name.split()]
    if fitting or not head:
        return (
            None if match["many"] and len(fitting) > 1 else next(iter(fitting), None)
        )  # "the block" is what is handled, the source
    named = r"\b(?:an?|the|this|that|its|coke|soda|soup|\w+ed|\w+y)\s+$|^\W*$"
    if head in ("can", "orange", "key") and not colour and not re.search(named, text[: match.start()]):
        return None  # "can" the verb, "orange" the colour
    return f"{colour} {head}" if colour else str(head)


def _objects(s: Sentence) -> Iterator[Claim]:
    for place, name in s.entities:
        if name not in (GRIPPER, ROBOT, SCENERY) and not re.search(
            r"\b(?:no|without|any|not an?|than an?) $", s.text[:place]
        ):
            yield s.claim((place, place + 1 + len(str(s.names.index(name)))), "object", name)


def _zones(s: Sentence) -> Iterator[Claim]:
    for match in (one for pattern in ZONE for one in pattern.finditer(s.text)):
        start, end = match.span("zone")
        named, opening = s.before(start, SCENERY, ROBOT), re.match(r"[^,;:E]*E(\d+)", s.text[end:])
        if not named or (opening and "E" not in s.clause(match.start())):  # "on the right lies a carrot"
            named = [s.names[int(opening[1])]] if opening else s.after(end, SCENERY, ROBOT)
        elif re.search(r"E2 with (?:the |an? )?E\d[^,;E]*$", s.text[:start]):
            named = [GRIPPER]
        if (
            named
            and match["of"] != "it"
            and not re.match(r"E[^4]", match["of"] or "")
            and not s.hedged(match.start())
        ):
            others = [
                name
                for name in named[1:]
                if name != named[0] and f"E{s.names.index(name)}" in s.clause(start)
            ]
            whole = (
                " of the table"
                if match["of"] == "E4"
                else " of the picture"
                if match["of"] or match[0].startswith("at")
                else ""
            )
            words = " ".join(CORNERS[word] for word in re.findall(CORNER, match["zone"]))
            yield s.claim((start, end), "zone", named[0], words + whole, (others or [""])[0])


def _relations(s: Sentence) -> Iterator[Claim]:
    for match in SIDE.finditer(s.text):
        subject, thing = (
            s.pair(match) if match[1] else ((s.before(match.start()) or [""])[0], s.topics[0])
        )  # else "X is to its left"
        yield from s.relation(match, "side", subject, match[1] or match[2], thing)
    for match in DEPTH.finditer(s.text):
        subject, thing = s.pair(match)
        yield from s.relation(match, "depth", subject, "behind" if match["far"] else "in front", thing)
    for match in HEIGHT.finditer(s.text):
        subject, thing = s.pair(match)
        view = " in view" if re.search(PICTURE, match["tail"]) else ""
        words = "straight " * bool(match["straight"]) + ("above" if match["up"] else "below") + view
        if not re.search(rf"\b\d+ ?{UNIT}(?: \w+)? $", s.text[: match.start()]):  # else it is a distance
            yield from s.relation(match, "height", subject, words, thing)
    for match in NEAR.finditer(s.text):
        subject, thing = s.pair(match)
        if not NUMBER.search(s.clause(match.start())):
            yield from s.relation(
                match, "near", subject, "at" if match["at"] else "far" if match["far"] else "near", thing
            )
    for match in ON.finditer(s.text):
        if (thing := s.names[int(match[1])]) not in (GRIPPER, ROBOT, SCENERY):
            yield from s.relation(match, "placed", (s.before(match.start(), thing) or [""])[0], "on", thing)


def _distances(s: Sentence) -> Iterator[Claim]:
    for match in NUMBER.finditer(s.text):
        value = float(match[2]) if not match[3] else (float(match[2]) + float(match[3])) / 2
        value *= {"c": 1.0, "i": 2.54}.get(match[4][0], 0.1 if match[4].startswith(("mm", "mil")) else 100.0)
        tail, head = (
            re.split(r"[,;:]", s.text[match.end() :])[0],
            s.text[max(0, match.start() - 60) : match.start()],
        )
        said = re.match(
            r" (?:straight |directly |further )?(?:(above|over|higher|up\b)|(?:below|under|lower|down\b))",
            tail,
        ) or re.search(r"(?:(above|over|higher)|below|lower)\b[^,;:]*\b(?:by|of)(?: \w+)?\W*$", head)
        axis = AXIS.search(re.split(r"(?<!E)\d| and ", s.text[match.end() :])[0]) or AXIS.search(
            re.split(r"(?<!E)\d|, and ", head)[-1]
        )
        words = (
            ("above" if said[1] else "below")
            if said
            else "away"
            if not axis
            else "height"
            if axis[1]
            else "beside"
        )
        subject, thing = s.pair(match)
        yield from s.relation(match, "distance", subject, (match["bound"] or "") + words, thing, value)


def _grip(s: Sentence) -> Iterator[Claim]:
    for match in (one for pattern in GRIP for one in pattern.finditer(s.text)):
        if not s.hedged(match.end()):
            word = "half open" if match["half"] else "open" if match["open"] else "closed"
            yield s.claim(match.span(), "grip", GRIPPER, word, holds=not NEGATION.search(match[0]))


def _held(s: Sentence) -> Iterator[Claim]:
    for match in EMPTY.finditer(s.text):
        if not s.hedged(match.start()):
            yield s.claim(match.span(), "held", "", "held", holds=False)
    for match in HOLD.finditer(s.text):
        clause, rest = s.clause(match.start()), s.text[match.end() :]
        if s.hedged(match.start()) or EMPTY.search(clause + match[0] + rest[:24]):
            continue
        if match["active"]:
            thing = re.match(
                r"(?: on to| onto)?(?: (?:a|an|the|its))?(?: \w+)? (?:E(\d+)|(?:it|them|nothing|anything)\b)",
                rest,
            )
            if not thing:
                continue
            subject = s.names[int(thing[1])] if thing[1] else ""
        else:
            things = s.before(match.start(), GRIPPER, ROBOT, SCENERY)
            if not things and not re.search(r"\b(?:it|object|nothing|anything)\b", clause):
                continue
            subject = (
                "" if not things else things[0] if f"E{s.names.index(things[0])}" in clause else things[-1]
            )
        words = "between" if match[0].startswith("between") else "held"
        if subject not in (GRIPPER, ROBOT):
            yield s.claim(match.span(), "held", subject, words, holds=not NEGATION.search(clause + match[0]))


def _done(s: Sentence) -> Iterator[Claim]:
    for match in DONE.finditer(s.text):
        if not HEDGE.search(match["gap"]) and not s.hedged(match.start()):
            yield s.claim(
                match.span(),
                "done",
                "task",
                "done",
                holds=bool(match["no"]) == bool(NEGATION.search(match["gap"])),
            )


def _visible(s: Sentence) -> Iterator[Claim]:
    for match in VISIBLE.finditer(s.text):
        seen = not (match["no"] or NEGATION.search(s.clause(match.start())))
        yield from (
            s.claim(match.span(), "visible", name, "in view", holds=seen)
            for name in s.before(match.start())[:1]
        )


@dataclass(frozen=True)
class Step:
    """A verb: the numbers in `PHASES` it may stand for, the thing it is done to (its own object where
    `direct`) and the place where that leads.
    """

    start: int
    end: int
    phases: str
    thing: str
    place: str
    direct: bool


def _steps(s: Sentence) -> list[Step]:
    verbs = list(VERB.finditer(s.text))
    ends = [*(verb.start() for verb in verbs[1:]), None]
    steps = [
        _step(s, verb, re.split(LATER, s.text[verb.end() : end])[0])
        for verb, end in zip(verbs, ends)
        if not NOT_NOW.search(s.text[: verb.end() if verb[0] == "moving" else verb.start()])
    ]
    return [step for step in steps if step.phases]


def _step(s: Sentence, verb: re.Match[str], window: str) -> Step:
    source, target = s.names[:2]
    kind = str(verb.lastgroup)
    direct = re.match(r" (?:(?:the|a|an|its|my|up|down|go|of) )*(?:E(\d+)|(?:it|them)\b)", window)
    led = re.search(
        r"\b(?:to|toward|towards|over|above|onto|on|in|into|for|with|around) (?:the )?(?:E(\d+)|it\b)", window
    )
    thing, place = (
        "" if not found else s.names[int(found[1])] if found[1] else source for found in (direct, led)
    )
    down, up, away, along = (
        re.search(rf"\b{word}", window)
        for word in ("down", "up", "away", "(?:left|right|forward|ahead|back)")
    )
    agent = thing in (GRIPPER, ROBOT)
    if kind in ("carry", "move") and agent:
        kind, direct = "move", None
    phases = MEANS.get(kind, "")
    if kind == "close":
        thing, place, direct = place, "", led
    elif kind == "lift" and agent:
        phases = "37"
    elif kind == "put" and (down or verb[0].startswith("dep")):
        phases = "56"
    elif kind in ("lower", "descend") or (kind == "move" and down):
        named = direct and direct[1] and not agent
        phases = "5" if named or (target and place == target) else "1" if place and place == source else "15"
        phases += "047" * bool(along)
    elif kind == "reach":
        phases, direct = (
            "4"
            if target and target in (place, thing)
            else "04"
            if verb[0][0] in "ap" and not (place or thing)
            else "0",
            None,
        )
    elif kind == "move" and place and not direct:
        phases = "7" if away else "4" if target and target == place else "0"
    elif kind == "move":
        phases = (
            "7" if away else "4" if direct else "37" if up else "047" if along and verb[0] != "moving" else ""
        )
    return Step(verb.start(), verb.end() + len(window.rstrip()), phases, thing, place, bool(direct))


def _roles(s: Sentence, steps: list[Step]) -> Iterator[Claim]:
    """What is handled must be the source, and where it is brought the target."""
    for match in PASSIVE.finditer(s.text):
        if (name := s.names[int(match[1])]) not in (GRIPPER, ROBOT, SCENERY):
            yield s.claim(match.span(), "role", name, "is handled")
    for step in steps:
        if step.direct and step.thing not in (GRIPPER, ROBOT, SCENERY) and set(step.phases) & set("23456"):
            yield s.claim((step.start, step.end), "role", step.thing, "is handled")
            if step.place and step.place not in (GRIPPER, ROBOT, SCENERY) and set(step.phases) & set("45"):
                yield s.claim((step.start, step.end), "role", step.place, "is the goal")


def _named(step: Step) -> str:
    return " or ".join(PHASES[int(number)] for number in sorted(step.phases))


def _current(s: Sentence) -> Iterator[Claim]:
    """The sub-task that a sentence says is being carried out, and the roles of what it speaks of."""
    steps = _steps(s)
    yield from _roles(s, steps)
    for cue in CUE.finditer(s.text):
        if not (step := next((step for step in steps if step.start >= cue.end()), None)):
            continue
        between, verb = s.text[cue.end() : step.start], re.match(r"\w+", s.text[step.start :])
        wanted = "" if cue["base"] else "ed" if cue["being"] else "ing"
        near = re.fullmatch(r" (?:(?:the )?[\w']+ ){0,4}", between) and not (
            wanted and re.search(r"\b(?:to|by)\b", between)
        )
        passed = NEGATION.search(s.clause(cue.start()) + between) or (
            cue["base"] != "start by" and s.hedged(cue.start())
        )
        if near and verb and verb[0].endswith(wanted) and not passed:
            yield s.claim((cue.start(), step.end), "sub-task", step.thing, _named(step))


def _plan(s: Sentence) -> Iterator[Claim]:
    """The first step, the order of the steps, the roles, and the direction in which the first step moves."""
    steps = _steps(s)
    for index, step in enumerate(
        steps
    ):  # going down is descending to the source, or lowering it once it is on its way
        earlier = {one.phases for one in steps[:index]}
        if step.phases == "15" and earlier & {"2", "3", "4"}:
            steps[index] = replace(step, phases="5" if earlier & {"3", "4"} else "1")
    if steps and not re.search(
        r"[.;,]| then ", re.sub(r"^\W*(?:first|now|next|then),? ", "", s.text[: steps[0].start])
    ):
        yield s.claim((steps[0].start, steps[0].end), "sub-task", steps[0].thing, _named(steps[0]))
    for one, other in pairwise(steps):
        yield s.claim((one.start, other.end), "order", _named(one), "before", _named(other))
    yield from _roles(s, steps)
    end = steps[1].start if len(steps) > 1 else len(s.text)
    for verb in VERB.finditer(s.text, 0, end):
        window = re.split(LATER, s.text[verb.end() : end])[0]
        for way in (
            WAY.finditer(window) if verb.lastgroup in ("move", "carry", "descend", "lower", "lift") else ()
        ):
            if (
                way[1] not in ("up", "down") or verb[0] == "moving" or verb.lastgroup == "carry"
            ):  # "go down", "lift up" are the sub-task's own verbs
                direction = {"back": "backward", "ahead": "forward"}.get(way[1], way[1])
                yield s.claim(
                    (verb.end() + way.start(), verb.end() + way.end()), "motion", GRIPPER, direction
                )


def _arms(s: Sentence) -> Iterator[Claim]:
    """Which of two arms is said to move, or to rest."""
    for match in ARM.finditer(s.text):
        yield s.claim(
            match.span(), "arm", match[1], "moves", holds=not (match["rests"] or NEGATION.search(match[0]))
        )


READERS = (_arms, _zones, _relations, _distances, _grip, _held, _done, _visible, _current)
