"""What is true of a frame, and the truth audit, which holds rationales, whoever wrote them, against it.

A `Scene` is what is known of one request. With the simulator's state and masks it gives the `Facts` that
hold, from which the oracle writes its sentences. The audit checks a rationale's facts field by field, and of
its prose what `prose` can read safely. That is things named, held or not, left and right of each other, and
the current sub-task. Places, distances, heights, the gripper's opening, the plan's order, motion and success
are checked in the facts alone, never in the prose.

Each statement is true, false or undecided. Each check has a value from which the statement is true and one
from which it is false. What lies between, or cannot be known, is undecided. Without a simulator the actions,
the robot's readings and the instruction remain. Picture words are held against mask centroids, distances
against world positions. Motion is held against the first actions, in the robot's frame: x forward, y left, z
up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise, product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from refinevla_kit.episodes import EpisodeDataset, open_dataset
from refinevla_kit.episodes.columns import filled, gripper_dimension
from refinevla_kit.simulator.contract import MASK_NAMES, ORDERS, PHASES, Array
from refinevla_kit.tasks import THINGS
from refinevla_kit.teacher.answers import StoredRationale, load_rationales
from refinevla_kit.teacher.prose import name_in_scene, objects_named, read_prose
from refinevla_kit.teacher.requests import without_pictures
from refinevla_kit.teacher.schema import MOTIONS, PARTS, ZONES, Facts, Rationale, Request

Verdict = Literal["true", "false", "undecided"]
Answer = tuple[bool | None, str]  # holds, does not, cannot be said; and why
AUDITED = (*PARTS, "facts")
COUNTS = ("true", "false", "undecided", "unread")
Centre = tuple[float, float] | None  # fractions of the picture from its left and top; None: not in view
UNKNOWN: Answer = (None, "nothing recorded decides this")

VISIBLE_SHARE = 0.0003  # of the picture's pixels (6 of 160 x 120): a smaller mask counts as not in view
# Of the picture's side: closer to an edge than this is "left", "top", ...; the fifth between is the centre
NEAR_SIDE = 0.4
SIDE_SHARE = 0.05  # of the picture's side: image relations smaller than this are not said
OPEN_ABOVE, CLOSED_BELOW = (
    0.8,
    0.15,
)  # finger opening; "half open" is said from 0.25 to 0.7, nothing in between
VAGUE_PLACE, VAGUE_OPENING = 0.1, 0.2  # a word that would hold this much further on is not false
LEVEL_M = 0.01  # height differences up to this are "level"
MOVING_M = 0.015  # displacement along an axis, in one step, from which it is said
ACROSS = ("left", "right", "forward", "backward")
# dominant motions of a sub-task, by its place in `PHASES`
LOOKS = {0: ACROSS, 1: ("down",), 3: ("up",), 4: ACROSS, 5: ("down",), 7: ("up", *ACROSS)}
LOOKS |= {8: ("down", *ACROSS), 10: ("backward",), 11: ("forward",)}
CLOSING = (2, 9)  # sub-tasks in which the gripper closes
FRONT = np.array([0.305, 0.0, 0.0])  # m, from a drawer's origin to its front


@dataclass(frozen=True)
class Finding:
    """One statement and its verdict.

    Attributes:
        part: one of `AUDITED`, or "instruction_matches".
        kind: of prose "object", "held", "side", "sub-task" or "naming"; else the field's name.
        text: the words it was read from, or "field: value".
        reason: for a person, one line.
        doubt: a reviewer should look: every false statement, and some undecided ones.
    """

    part: str
    kind: str
    text: str
    verdict: Verdict
    reason: str
    doubt: bool = False


@dataclass(frozen=True)
class Score:
    """Statements of one part by verdict, and its sentences in which at most names were read (`unread`)."""

    true: int = 0
    false: int = 0
    undecided: int = 0
    unread: int = 0

    @property
    def decided(self) -> int:
        """Statements that could be checked."""
        return self.true + self.false

    @property
    def share(self) -> float | None:
        """True statements of the decided ones, None where none was decided."""
        return self.true / self.decided if self.decided else None


@dataclass(frozen=True)
class Audit:
    """What was found in one rationale: a score for each of `AUDITED`, every statement with its verdict, and
    whether a reviewer should look at it.
    """

    parts: dict[str, Score]
    findings: tuple[Finding, ...] = ()
    doubt: bool = False


def audit(request: Request, rationale: Rationale) -> Audit:
    """Check one rationale against the request it answers: `state` and `masks` where there are, else
    `actions`, `proprioception`, `instruction`.
    """
    scene = Scene(request)
    findings, unread = scene.prose_findings(rationale)
    if rationale.facts:
        findings += scene.fact_findings(rationale.facts)
    if not rationale.instruction_matches:
        reason = f"the teacher finds that the instruction does not match: {rationale.mismatch}"
        findings.append(
            Finding("instruction_matches", "instruction", rationale.mismatch, "undecided", reason, True)
        )
    parts = {}
    for part in AUDITED:
        verdicts = [finding.verdict for finding in findings if finding.part == part]
        counted = [*verdicts, *["unread"] * unread.get(part, 0)]
        parts[part] = Score(*map(counted.count, COUNTS))
    return Audit(parts, tuple(findings), any(finding.doubt for finding in findings))


def audit_answers(dataset: EpisodeDataset, answers: Iterable[StoredRationale]) -> Iterator[Audit | None]:
    """The audit of each stored answer about `dataset`, None for a refusal. No picture is decoded; answers
    sorted by episode read each one once.
    """
    for episode, group in groupby(answers, key=lambda answer: answer.episode):
        of_episode = list(group)
        readable = episode not in dataset.left_out
        spans = [answer.span for answer in of_episode if answer.rationale and readable]
        known = without_pictures(dataset, episode, spans)
        for answer in of_episode:
            yield audit(next(known), answer.rationale) if answer.rationale and spans else None


def audit_dataset(
    dataset: EpisodeDataset | str | Path, answers: Sequence[StoredRationale] | str | Path
) -> pd.DataFrame:
    """Audit all stored answers about a dataset.

    Args:
        dataset: an opened dataset or its folder.
        answers: from `load_rationales`, or the parquet file.

    Returns:
        One row an answer: episode, start, end, teacher, refusal (its kind, or ""), doubt, doubts (reasons,
        one a line), and for each of `AUDITED` <part>_true, _false, _undecided and _unread.
    """
    opened = open_dataset(dataset) if isinstance(dataset, str | Path) else dataset
    stored = load_rationales(answers) if isinstance(answers, str | Path) else answers
    rows = []
    for answer, result in zip(stored, audit_answers(opened, stored)):
        findings = result.findings if result else ()
        doubts = [f"{each.part}: {each.text!r}: {each.reason}" for each in findings if each.doubt]
        row = {
            "episode": answer.episode,
            "start": answer.start,
            "end": answer.end,
            "teacher": answer.teacher,
            "refusal": answer.refusal.kind if answer.refusal else "",
            "doubt": bool(doubts),
            "doubts": "\n".join(doubts),
        }
        for part in AUDITED:
            score = result.parts[part] if result else Score()
            row |= {f"{part}_{count}": getattr(score, count) for count in COUNTS}
        rows.append(row)
    return pd.DataFrame(rows)


def roles(instruction: str, names: Iterable[str]) -> list[str]:
    """Those of the scene's `names` that the instruction speaks of, in its order: what is to be moved, then
    where it goes.
    """
    return sorted((name for name in names if name in instruction), key=instruction.index)


def named_masks(instruction: str, masks: dict[str, Array] | None) -> dict[str, Array]:
    """Masks by the words of the instruction: move near's things change with the episode."""
    near = re.fullmatch("move (.+) near (.+)", instruction)
    words = dict(zip(("source object", "target object"), near.groups())) if near else {}
    return {words.get(name, name): mask for name, mask in (masks or {}).items()}


class Scene:
    """What is known of one request.

    Attributes:
        names: the scene's objects, source and target first; without a simulator those of the instruction.
        target: "" where nothing is to go anywhere; `goal` is then measured from where the source started.
        order: the sub-tasks, in order.
        centres: name -> centre of its mask, fractions from the picture's left and top; None: not in view.
        moved: float (T, 3), displacements in metres, None where actions are something else.
        opens: bool (T,), the gripper is told to be open, None where that is not known.
        opening: of the fingers, 0 closed to 1 open, None where it is not recorded.
        held: what the gripper holds, or "nothing", of a known state.
    """

    def __init__(self, request: Request) -> None:
        self.request, self.state = request, request.state
        state = request.state
        masks = named_masks(request.instruction, request.masks)
        self.centres = {name: _centroid(mask) for name, mask in masks.items()}
        objects = [name for name in masks if name not in MASK_NAMES]
        self.known = state is not None and bool(objects)
        named = roles(request.instruction, objects)
        self.names = objects_named(request.instruction)
        if self.known:
            self.names = tuple(dict.fromkeys((named if len(named) in (1, 2) else []) + objects))
        self.source, self.target = (*self.names, "", "")[:2]
        self.order = ORDERS["place"]
        if self.known and len(named) == 1:
            verb = request.instruction.split()[0]
            self.target, self.order = "", ORDERS.get(verb, ORDERS["pick"])
        self.held = "nothing"
        if state and state.grasped:
            self.held = self.source
        elif state and state.held is not None and state.held >= 0:
            self.held = THINGS[int(state.held)]
        metres = request.deltas and request.metric and request.actions.shape[1] >= 3
        self.moved = filled(request.actions[:, :3], True) if metres else None
        self.opens = request.open
        finger = gripper_dimension(request.proprioception_names, 0, False)
        self.opening: float | None = None
        if state:
            self.opening = float(state.opening)
        elif request.proprioception is not None and finger is not None and (request.gripper or 0) > 0:
            self.opening = float(request.proprioception[0, finger])

    def facts(self) -> Facts:
        """What holds in the first frame, None where a case is borderline. Needs simulator state and masks."""
        assert self.state is not None and self.opening is not None
        reach, goal = self._offset("reach"), self._offset("goal")
        now = int(self.state.phase)
        return Facts(
            source=self.source,
            target=self.target or None,
            source_zone=zone(self.centres.get(self.source)),
            target_zone=zone(self.centres.get(self.target)),
            gripper_zone=zone(self.centres.get("gripper")),
            gripper=_grip(self.opening),
            held=self.held,
            reach_cm=_round_cm(float(np.hypot(*reach[:2]))),
            reach_height_cm=_height_cm(reach[2]),
            reach_side=_side(self.centres.get("gripper"), self.centres.get(self.source)),
            goal_cm=_round_cm(float(np.hypot(*goal[:2]))),
            goal_height_cm=_height_cm(goal[2]),
            goal_side=_side(self.centres.get(self.source), self.centres.get(self.target)),
            sub_task=PHASES[now],
            next_sub_task=self._after(PHASES[now]),
            motion=motion_word(self.request.actions[0]),
            done=bool(self.state.placed),
        )

    def fact_findings(self, facts: Facts) -> list[Finding]:
        """A finding for each field that says something, and a doubt about the names."""
        checks: dict[str, Callable[[Any], Answer]] = {
            "source": partial(self._role, self.source),
            "target": partial(self._role, self.target),
            "gripper": self._opening,
            "held": self._held,
            "sub_task": self._sub_task,
            "next_sub_task": partial(self._order, facts.sub_task),
            "motion": self._motion,
            "done": self._done,
        }
        for role, thing in {"source": self.source, "target": self.target, "gripper": "gripper"}.items():
            checks[f"{role}_zone"] = partial(self._in_zone, thing)
        for way, ends in {"reach": ("gripper", self.source), "goal": (self.source, self.target)}.items():
            checks[f"{way}_cm"] = partial(self._length, way, False)
            checks[f"{way}_height_cm"] = partial(self._length, way, True)
            checks[f"{way}_side"] = partial(self._beside, *ends)
        findings = [
            _finding("facts", name, f"{name}: {value}", checks[name](value))
            for name, value in vars(facts).items()
            if value is not None
        ]
        named = [("source", facts.source), ("target", facts.target)]
        return findings + self._naming([("facts", name, f"{role}: {name}") for role, name in named if name])

    def prose_findings(self, rationale: Rationale) -> tuple[list[Finding], dict[str, int]]:
        """What is read from the four parts, and for each the sentences in which at most names were read."""
        statements, unread = read_prose(rationale, self.names)
        findings = []
        for said in statements:
            if said.kind == "object":
                holds, why = self._object(said.subject)
            elif said.kind == "held":
                holds, why = self._held(said.subject)
            elif said.kind == "side":
                holds, why = self._beside(said.subject, said.object, said.relation)
            else:
                holds, why = self._sub_task(said.relation)
            if holds is not None:
                holds = holds == said.holds
            findings.append(_finding(said.part, said.kind, said.text, (holds, why)))
        objects = [(said.part, said.subject, said.text) for said in statements if said.kind == "object"]
        return findings + self._naming(objects), unread

    def _naming(self, named: Sequence[tuple[str, str, str]]) -> list[Finding]:
        """Without a simulator: a doubt where another thing is named than the instruction's.

        Args:
            named: part, name and text.
        """
        things = [name_in_scene(name, self.names) for _, name, _ in named]
        missing = [name for name in self.names if name not in things]
        strange = [place for place, thing in enumerate(things) if thing not in self.names]
        if self.known or not missing or not strange:
            return []
        part, name, text = named[strange[0]]
        reason = f"the rationale speaks of {name!r}, the instruction of {missing[0]!r}"
        return [Finding(part, "naming", text, "undecided", reason, True)]

    def _object(self, name: str) -> Answer:
        if not self.known:
            return None, "only the pictures could tell whether it is there"
        if name in self.names:
            return True, "it is in the scene"
        return False, f"there is no {name} in this scene, but {', '.join(self.names)}"

    def _role(self, actual: str, name: str) -> Answer:
        if not self.known:
            return None, "only the instruction tells what is to be moved where"
        return name_in_scene(name, self.names) == actual, f"in this task it is the {actual}"

    def _in_zone(self, thing: str, words: str) -> Answer:
        centre = self.centres.get(thing)
        exact = zone(centre)
        if centre is None or exact is None:
            return (False, f"the {thing} is not in view") if thing in self.centres else UNKNOWN
        shifts = product((-VAGUE_PLACE, 0.0, VAGUE_PLACE), repeat=2)
        near = {zone((centre[0] + across, centre[1] + down)) for across, down in shifts}
        vague = words in near or set(words.split()) < set(exact.split())  # "left" of what is top left
        return True if words == exact else None if vague else False, f"the {thing} is at the {exact}"

    def _beside(self, thing: str, other: str, word: str) -> Answer:
        centre, seen_from = self.centres.get(thing), self.centres.get(other)
        if centre is None or seen_from is None:
            return UNKNOWN
        right, lower = centre[0] - seen_from[0], centre[1] - seen_from[1]
        offset = {"left": -right, "right": right, "higher": -lower, "lower": lower}[word]
        reason = f"seen from the {other}, the {thing} is {offset:+.0%} of the picture {word}"
        return _grade(offset, -SIDE_SHARE / 2, SIDE_SHARE / 2), reason

    def _length(self, way: str, upwards: bool, value: float) -> Answer:
        """A length in cm, of the way to the source ("reach") or on to the target ("goal")."""
        if not self.known:
            return UNKNOWN
        offset = self._offset(way)
        measured = 100 * float(offset[2] if upwards else np.hypot(*offset[:2]))
        holds = same_length(value, measured)
        if value * measured < 0 and min(abs(value), abs(measured)) > 100 * LEVEL_M:
            holds = False  # above instead of below
        return holds, f"it is {measured:.0f} cm"

    def _offset(self, way: str) -> Array:
        """From the source to the gripper ("reach"), from the target to the source ("goal"); metres, world."""
        state = self.state
        assert state is not None
        start, end = {"reach": (state.source, state.tcp), "goal": (state.target, state.source)}[way]
        offset = np.asarray(end[:3], np.float64) - start[:3]
        return offset - FRONT if way == "reach" and self.source.endswith("drawer") else offset

    def _opening(self, word: str) -> Answer:
        if self.opening is None or not 0 <= self.opening <= 1:
            return None, "how far the gripper is open is not recorded by that name, or not from 0 to 1"
        reason = f"the fingers are {self.opening:.0%} open"
        if self.state is not None and self.state.grasped:
            return {"closed": True, "open": False}.get(word), f"{reason}, around the {self.source}"
        near = {_grip(self.opening + shift) for shift in (-VAGUE_OPENING, VAGUE_OPENING)}
        return True if word == _grip(self.opening) else None if word in near else False, reason

    def _held(self, name: str) -> Answer:
        """`name` is held; "" stands for anything."""
        if self.state is None:
            return UNKNOWN
        named = name_in_scene("nothing" if name == "none" else name, self.names)
        holds = named == self.held or (not name and self.held != "nothing")
        return holds, f"the gripper holds {'nothing' if self.held == 'nothing' else f'the {self.held}'}"

    def _done(self, done: bool) -> Answer:
        if self.state is None:
            return UNKNOWN
        holds = bool(self.state.placed)
        words = "holds" if holds else "does not hold"
        return holds == done, f"the task's own success condition {words} in this frame"

    def _sub_task(self, words: str) -> Answer:
        """`words`: of `PHASES`, joined by " or "."""
        stated = {PHASES.index(word) for word in words.split(" or ")}
        if self.state is None:
            if stated not in ({2}, {6}) or self.opens is None:
                return UNKNOWN
            commanded = f"the gripper is told to {'open' if self.opens.any() else 'close'} in this segment"
            return bool((self.opens == (stated == {6})).any()), commanded
        now = int(self.state.phase)
        reason = f"the sub-task of this frame is to {PHASES[now]}"
        if now in stated:
            return True, reason
        order = [PHASES.index(name) for name in self.order]
        for last, following in pairwise(order):
            begun = (
                now == last and following in stated and self._looks_like(following, len(self.request.actions))
            )
            ending = now == following and last in stated and self._looks_like(last, 1)
            if begun or ending:
                return None, reason
        return False, reason

    def _looks_like(self, phase: int, steps: int) -> bool:
        """The first `steps` actions belong to `phase` as well: a segment may go on to the next sub-task, a
        frame may end the one before.
        """
        if phase in (*CLOSING, 6):
            return self.opens is not None and bool((self.opens[:steps] == (phase == 6)).any())
        if self.moved is None or phase not in LOOKS:
            return False
        words = [motion_word(row) for row in (*self.moved[:steps], self.moved[:steps].sum(0))]
        return any(word in LOOKS[phase] for word in words)

    def _after(self, phase: str) -> str | None:
        """What follows a sub-task; None after one that is not of this task."""
        return dict(zip(self.order, (*self.order[1:], "end"))).get(phase)

    def _order(self, stated: str | None, following: str) -> Answer:
        """What follows a sub-task is so in any scene: out of order is false, in order is no evidence."""
        current = stated if stated or self.state is None else PHASES[int(self.state.phase)]
        task = "pick and place" if self.order == ORDERS["place"] else "task like this"
        reason = f"the order of a {task} is " + ", ".join(self.order)
        if current is None:
            return None, reason
        return None if self._after(current) == following else False, reason

    def _motion(self, word: str) -> Answer:
        if self.moved is None:
            return None, "the actions are positions of joints, not displacements"
        axis, sign = MOTIONS.index(word) // 2, 1 - 2 * (MOTIONS.index(word) % 2)
        first, whole = sign * float(self.moved[0, axis]), sign * float(self.moved[:, axis].sum())
        reason = f"along {word} the first action moves {100 * first:.1f} cm, the segment {100 * whole:.1f} cm"
        if max(first, whole) >= MOVING_M / 2:
            return True, reason
        # a first action that rests leaves room for the motion to come
        elsewhere = motion_word(self.moved[0]) not in (None, word)
        return False if min(first, whole) <= -MOVING_M / 2 or elsewhere else None, reason


def motion_word(action: Array) -> str | None:
    """Dominant direction of a displacement (>= 3,) in the robot base frame (m); None when it hardly moves."""
    moved = np.asarray(action[:3], np.float64)
    axis = int(np.abs(moved).argmax())
    if not abs(moved[axis]) >= MOVING_M:
        return None
    return MOTIONS[2 * axis + int(moved[axis] < 0)]


def _finding(part: str, kind: str, text: str, answer: Answer) -> Finding:
    verdict: Verdict = "undecided" if answer[0] is None else "true" if answer[0] else "false"
    return Finding(part, kind, text, verdict, answer[1], answer[0] is False)


def same_length(said: float, measured: float) -> bool | None:
    """Whether a length in cm is about another, None between near enough and too far."""
    return _grade(abs(said - measured), max(3.0, 0.4 * abs(measured)), max(1.5, 0.25 * abs(measured)))


def _grade(value: float, no: float, yes: float) -> bool | None:
    """False up to `no`, True from `yes`, None between; the other way round when no > yes."""
    if no > yes:
        value, no, yes = -value, -no, -yes
    return True if value >= yes else False if value <= no else None


def _centroid(mask: Array) -> Centre:
    """Centre of a mask as fractions (x from the left, y from the top) of the picture; None when too little of
    it is visible.
    """
    if mask.sum() < max(4.0, VISIBLE_SHARE * mask.size):
        return None
    rows, columns = np.nonzero(mask)
    return (float(columns.mean()) + 0.5) / mask.shape[1], (float(rows.mean()) + 0.5) / mask.shape[0]


def zone(centre: Centre) -> str | None:
    """One of `schema.ZONES`, None when not in view."""
    if centre is None:
        return None
    column, row = (0 if place < NEAR_SIDE else 2 if place > 1 - NEAR_SIDE else 1 for place in centre)
    return ZONES[3 * row + column]


def _side(centre: Centre, seen_from: Centre) -> str | None:
    """The larger of the two image offsets in words, None when both are within `SIDE_SHARE` or one is not in
    view.
    """
    if centre is None or seen_from is None:
        return None
    across, down = centre[0] - seen_from[0], centre[1] - seen_from[1]
    if max(abs(across), abs(down)) <= SIDE_SHARE:
        return None
    if abs(across) >= abs(down):
        return "left" if across < 0 else "right"
    return "higher" if down < 0 else "lower"


def _grip(opening: float) -> str | None:
    """The finger opening (0 closed, 1 open) as a word, None between the words."""
    if opening > OPEN_ABOVE:
        return "open"
    if opening < CLOSED_BELOW:
        return "closed"
    return "half open" if 0.25 <= opening <= 0.7 else None


def _round_cm(metres: float) -> int | None:
    """Whole centimetres up to 10, multiples of 5 beyond; None from one metre on.

    "About 15 cm" is then a class that a small model can learn.
    """
    cm = abs(metres) * 100
    if not cm < 100:  # NaN neither
        return None
    rounded = round(cm) if cm < 10 else 5 * round(cm / 5)
    return int(np.sign(metres)) * rounded


def _height_cm(metres: float) -> int | None:
    return 0 if abs(metres) <= LEVEL_M else _round_cm(metres)
