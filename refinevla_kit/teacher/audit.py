"""The truth audit: holds rationales, whoever wrote them, against what is known of their frames.

With the simulator's state and masks, every claim that `claims` can read is true, false or undecided: each
kind has a threshold from which it is true and one from which it is false, and what lies between, or cannot be
known, is undecided. Without a simulator the actions, the proprioception and the instruction remain: which arm
moves, what the gripper is told, the direction of displacements. A plan out of order is false, and one that is
in order is undecided, as is a thing that the instruction names: they would be so in any scene. Picture words
(left, top) are held against mask centroids, distances and heights against world positions, directions against
displacements in the robot base frame (x forward, y left, z up); thresholds are those of `facts`, with room
for free speech.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from refinevla_kit.episodes.columns import filled, is_open
from refinevla_kit.simulator.contract import MASK_NAMES, PHASES
from refinevla_kit.teacher.claims import GRIPPER, ROBOT, Claim, objects_named, read_claims
from refinevla_kit.teacher.facts import (
    CLOSED_BELOW,
    LEVEL_M,
    MOVING_M,
    OPEN_ABOVE,
    SIDE_SHARE,
    centroid,
    motion_word,
    roles,
)
from refinevla_kit.teacher.requests import without_pictures
from refinevla_kit.teacher.schema import PARTS, Rationale, Request

if TYPE_CHECKING:
    import pandas as pd

    from refinevla_kit.episodes import EpisodeDataset
    from refinevla_kit.teacher.answers import StoredRationale

Array = NDArray[Any]
Verdict = Literal["true", "false", "undecided"]
Answer = tuple[bool | None, str]  # holds, does not, cannot be said; and why
# Standard deviation over a segment of joints that only tremble (radians, or a hand's whole range as 1)
RESTING = 0.02
COUNTS = ("true", "false", "undecided", "unread")
AXES = {
    "forward": (0, 1),
    "backward": (0, -1),
    "left": (1, 1),
    "right": (1, -1),
    "up": (2, 1),
    "down": (2, -1),
}
ACROSS = ("left", "right", "forward", "backward")
LOOKS = {
    0: ACROSS,
    1: ("down",),
    3: ("up",),
    4: ACROSS,
    5: ("down",),
    7: ("up", *ACROSS),
}  # dominant motion of a phase
UNKNOWN: Answer = (None, "nothing recorded decides this")


@dataclass(frozen=True)
class Finding:
    """A claim, its verdict, and why, in one line for a person. `doubt`: a reviewer should look (every false
    claim, and some undecided ones).
    """

    claim: Claim
    verdict: Verdict
    reason: str
    doubt: bool = False


@dataclass(frozen=True)
class Score:
    """Claims of one part by verdict, and its sentences in which no claim was read (they are not checked,
    never false).
    """

    true: int = 0
    false: int = 0
    undecided: int = 0
    unread: int = 0

    @property
    def decided(self) -> int:
        """Claims that could be checked."""
        return self.true + self.false

    @property
    def share(self) -> float | None:
        """True claims of the decided ones, None where none was decided."""
        return self.true / self.decided if self.decided else None


@dataclass(frozen=True)
class Audit:
    """What was found in one rationale: a score for each of `PARTS`, every claim with its verdict in the order
    of the text, and whether a reviewer should look at it.
    """

    parts: dict[str, Score]
    findings: tuple[Finding, ...] = ()
    doubt: bool = False


def audit(request: Request, rationale: Rationale) -> Audit:
    """Check one rationale against the request it answers: `state` and `masks` where there are, else
    `actions`, `proprioception`, `instruction`.
    """
    scene = _Scene(request)
    claims, unread = read_claims(rationale, scene.names)
    findings = [scene.finding(claim) for claim in claims] + scene.naming(claims, rationale)
    count = {(part, verdict): 0 for part in PARTS for verdict in ("true", "false", "undecided")}
    for one in findings:
        if one.claim.part in PARTS:
            count[one.claim.part, one.verdict] += 1
    parts = {
        part: Score(count[part, "true"], count[part, "false"], count[part, "undecided"], unread[part])
        for part in PARTS
    }
    return Audit(parts, tuple(findings), any(one.doubt for one in findings))


def audit_answers(dataset: EpisodeDataset, answers: Iterable[StoredRationale]) -> Iterator[Audit | None]:
    """The audit of each stored answer about `dataset`, None for a refusal. No picture is decoded; answers
    sorted by episode read each one once.
    """
    for episode, group in groupby(answers, key=lambda one: one.episode):
        told = list(group)
        spans = [
            (one.episode, one.start, one.end)
            for one in told
            if one.rationale and episode not in dataset.left_out
        ]
        known = without_pictures(dataset, episode, spans)
        for one in told:
            yield audit(next(known), one.rationale) if one.rationale and spans else None


def audit_dataset(
    dataset: EpisodeDataset | str | Path, answers: Sequence[StoredRationale] | str | Path
) -> pd.DataFrame:
    """Audit all stored answers about a dataset.

    Args:
        dataset: an opened dataset or its folder.
        answers: from `load_rationales`, or the parquet file.
    Returns: one row an answer: episode, start, end, teacher, refusal (its kind, or ""), doubt, doubts
    (reasons, one a line), and for each part
        <part>_true, _false, _undecided and _unread.
    """
    import pandas as pd

    from refinevla_kit.episodes import open_dataset
    from refinevla_kit.teacher.answers import load_rationales

    opened = open_dataset(dataset) if isinstance(dataset, str | Path) else dataset
    stored = load_rationales(answers) if isinstance(answers, str | Path) else answers
    rows = []
    for one, found in zip(stored, audit_answers(opened, stored)):
        doubts = (
            [f"{f.claim.part}: {f.claim.text!r}: {f.reason}" for f in found.findings if f.doubt]
            if found
            else []
        )
        parts = found.parts if found else dict.fromkeys(PARTS, Score())
        row = {
            "episode": one.episode,
            "start": one.start,
            "end": one.end,
            "teacher": one.teacher,
            "refusal": one.refusal.kind if one.refusal else "",
        }
        counts = {f"{part}_{name}": getattr(score, name) for part, score in parts.items() for name in COUNTS}
        rows.append({**row, "doubt": bool(doubts), "doubts": "\n".join(doubts), **counts})
    return pd.DataFrame(rows)


def _grade(value: float, no: float, yes: float) -> bool | None:
    """False up to `no`, True from `yes`, None between; the other way round when no > yes."""
    if no > yes:
        value, no, yes = -value, -no, -yes
    return True if value >= yes else False if value <= no else None


def _column(names: Sequence[str]) -> int | None:
    """Which dimension is the gripper's, None where none (or more than one) is called so."""
    found = [index for index, name in enumerate(names) if "gripper" in name.lower()]
    return found[0] if len(found) == 1 else None


def _all(answers: Sequence[bool | None]) -> bool | None:
    return False if False in answers else None if None in answers else True


class _Scene:
    """What is known of one request, and one check for each kind of claim."""

    def __init__(self, request: Request) -> None:
        self.request, self.state, self.masks = request, request.state, request.masks or {}
        objects = [name for name in self.masks if name not in MASK_NAMES]
        named = roles(request.instruction, objects)
        main = named if len(named) == 2 else objects[:2]
        self.known = self.state is not None and bool(objects)
        self.names = (
            tuple(main + [name for name in objects if name not in main])
            if self.known
            else objects_named(request.instruction)
        )
        self.source, self.target = (*self.names, "", "")[:2]
        metres = request.deltas and request.metric and request.actions.shape[1] >= 3
        self.moved = filled(request.actions[:, :3], True) if metres else None
        gripper = (
            _column(request.action_names) if request.action_names else 6 if self.known else None
        )  # the simulator's own seventh
        told = gripper is not None and gripper < request.actions.shape[1] and request.gripper is not None
        self.opens = is_open(request.actions[:, gripper], request.gripper or 0.0) if told else None
        readings, finger = (
            request.proprioception,
            _column(request.proprioception_names) if (request.gripper or 0) > 0 else None,
        )
        self.opening = (
            float(self.state.opening)
            if self.state
            else None
            if readings is None or finger is None
            else float(readings[0, finger])
        )

    @cached_property
    def centres(self) -> dict[str, tuple[float, float] | None]:
        """Where things are in the picture, fractions from the left and from the top."""
        return {name: centroid(mask) for name, mask in self.masks.items()}

    def position(self, name: str) -> Array | None:
        """World position in cm."""
        if self.state is None or not self.known:
            return None
        place = {
            self.source: self.state.source,
            self.target: self.state.target,
            GRIPPER: self.state.tcp,
            ROBOT: self.state.tcp,
        }.get(name)
        return None if place is None else 100 * np.asarray(place[:3], np.float64)

    def finding(self, claim: Claim) -> Finding:
        """The verdict on one claim; a negated claim is turned round."""
        check: Callable[[Claim], Answer] = getattr(self, f"_{claim.kind.replace('-', '_')}")
        answer, reason = check(claim)
        if answer is not None and not claim.holds:
            answer = not answer
        return Finding(
            claim, "undecided" if answer is None else "true" if answer else "false", reason, answer is False
        )

    def naming(self, claims: Sequence[Claim], rationale: Rationale) -> list[Finding]:
        """Doubts about the instruction: another object than the rationale's, or one that the teacher
        rejects.
        """
        findings = []
        if not rationale.instruction_matches:
            claim = Claim(
                "instruction_matches", "instruction", "instruction", "does not match", text=rationale.mismatch
            )
            findings.append(
                Finding(
                    claim,
                    "undecided",
                    f"the teacher finds that the instruction does not match: {rationale.mismatch}",
                    True,
                )
            )
        if not self.known and self.names:
            missing = [
                name
                for name in self.names
                if not any(claim.subject == name for claim in claims if claim.kind == "object")
            ]
            strange = [
                claim
                for claim in claims
                if claim.kind == ("object" if missing else "role") and claim.subject not in ("", *self.names)
            ]
            for claim in strange[:1]:
                reason = (
                    f"the rationale speaks of {claim.subject!r}, the instruction of "
                    f"{(missing or list(self.names))[0]!r}"
                )
                findings.append(
                    Finding(
                        Claim(claim.part, "naming", claim.subject, span=claim.span, text=claim.text),
                        "undecided",
                        reason,
                        True,
                    )
                )
        return findings

    def _object(self, claim: Claim) -> Answer:
        if not self.known:
            named = "the instruction names it, but " if claim.subject in self.names else ""
            return None, f"{named}only the pictures could tell whether it is there"
        there = claim.subject in self.names
        return (
            there,
            "it is in the scene"
            if there
            else f"there is no {claim.subject} in this scene, but {', '.join(self.names)}",
        )

    def _visible(self, claim: Claim) -> Answer:
        if claim.subject not in self.masks:
            return UNKNOWN
        seen = self.centres[claim.subject] is not None
        return seen, f"the {claim.subject} is {'' if seen else 'not '}in view"

    def _zone(self, claim: Claim) -> Answer:
        centre = self.centres.get(claim.subject)
        if centre is None:
            return (False, f"the {claim.subject} is not in view") if claim.subject in self.masks else UNKNOWN
        words = claim.relation.split(" of the ")[0].split()
        if "table" in claim.relation and set(words) & {"top", "bottom", "centre"}:
            return None, "where the table's own middle and edges lie is not recorded"
        answer = self._in_zone(centre, words)
        other = self.centres.get(claim.object)
        if answer is False and (other and self._in_zone(other, words) is not False):
            answer = None  # "the gripper holds the carrot near the top": either may be meant
        pair = self.centres.get(self.target if claim.subject == self.source else self.source)
        if answer is False and pair and claim.relation in ("left", "right"):
            offset = (centre[0] - pair[0]) * (1 if words[0] == "right" else -1)
            answer = None if offset > SIDE_SHARE else False  # "on the right" may mean of the two
        return (
            answer,
            f"the {claim.subject} is {centre[0]:.0%} of the picture from the left and "
            f"{centre[1]:.0%} from the top",
        )

    @staticmethod
    def _in_zone(centre: tuple[float, float], words: Sequence[str]) -> bool | None:
        x, y = centre[0] - 0.5, centre[1] - 0.5
        beyond = {"left": -x, "right": x, "top": -y, "bottom": y}
        off = (
            abs(y)
            if {"left", "right"} & set(words)
            else abs(x)
            if {"top", "bottom"} & set(words)
            else max(abs(x), abs(y))
        )
        return _all(
            [
                _grade(beyond[word], -SIDE_SHARE, SIDE_SHARE) if word in beyond else _grade(off, 0.25, 0.15)
                for word in words
            ]
        )

    def _side(self, claim: Claim) -> Answer:
        one, other = (
            self.centres.get(claim.subject if claim.subject != ROBOT else GRIPPER),
            self.centres.get(claim.object),
        )
        if one is None or other is None:
            return UNKNOWN
        right = one[0] - other[0]
        answer = _grade(right if claim.relation == "right" else -right, -SIDE_SHARE / 2, SIDE_SHARE / 2)
        where = f"{abs(right):.0%} of the picture to the {'right' if right > 0 else 'left'}"
        return answer, f"the {claim.subject} is {where} of the {claim.object}"

    def _offset(self, claim: Claim) -> Array | None:
        one, other = self.position(claim.subject), self.position(claim.object)
        return None if one is None or other is None else one - other

    def _depth(self, claim: Claim) -> Answer:
        offset = self._offset(claim)
        if offset is None:
            return UNKNOWN
        farther = -float(offset[0])  # the base's forward, away from the camera, is the world's -x
        answer = _grade(farther if claim.relation == "behind" else -farther, -1.0, 1.0)
        where = f"{abs(farther):.0f} cm {'farther from' if farther > 0 else 'nearer to'} the camera"
        return answer, f"the {claim.subject} is {where} than the {claim.object}"

    def _height(self, claim: Claim) -> Answer:
        """In space, by world heights, or in the picture: where nothing says which is meant, either may
        hold.
        """
        offset, sign = self._offset(claim), 1 if "above" in claim.relation else -1
        one, other = self.centres.get(claim.subject), self.centres.get(claim.object)
        picture = (
            _grade(sign * (other[1] - one[1]), -SIDE_SHARE / 2, SIDE_SHARE / 2) if one and other else None
        )
        if offset is None or "in view" in claim.relation:
            return (
                (picture, f"it is {other[1] - one[1]:+.0%} of the picture higher in view")
                if one and other
                else UNKNOWN
            )
        space = _grade(sign * offset[2], -100 * LEVEL_M, 100 * LEVEL_M)
        answer = space if picture is None or space == picture else picture if space is None else None
        across = float(np.hypot(*offset[:2]))
        if "straight" in claim.relation and answer is not False:
            answer = _all([answer, _grade(across, 5.0, 3.0)])
        return (
            answer,
            f"the {claim.subject} is {offset[2]:+.0f} cm above and {across:.0f} cm beside the {claim.object}",
        )

    def _distance(self, claim: Claim) -> Answer:
        offset, words = self._offset(claim), claim.relation.split()
        if offset is None or claim.value is None:
            return UNKNOWN
        across, whole, up = float(np.hypot(*offset[:2])), float(np.linalg.norm(offset)), float(offset[2])
        measured = {
            "above": [up],
            "below": [-up],
            "height": [abs(up)],
            "beside": [across],
            "away": [across, whole],
        }[words[-1]]
        if words[0] in ("less", "more"):
            bound = 1 if words[0] == "more" else -1
            answers = [
                _grade(bound * (value - claim.value), -max(2.0, 0.25 * claim.value), 0.0)
                for value in measured
            ]
        else:
            answers = [
                _grade(abs(value - claim.value), max(3.0, 0.4 * abs(value)), max(1.5, 0.25 * abs(value)))
                for value in measured
            ]
        answer = True if True in answers else None if None in answers else False
        return (
            answer,
            f"it is {across:.0f} cm in the plane and {up:+.0f} cm in height from the {claim.object} "
            f"to the {claim.subject}",
        )

    def _near(self, claim: Claim) -> Answer:
        offset = self._offset(claim)
        if offset is None:
            return UNKNOWN
        whole = float(np.linalg.norm(offset))
        answer = _grade(whole, *{"at": (7.0, 4.0), "near": (20.0, 12.0), "far": (6.0, 12.0)}[claim.relation])
        return answer, f"the {claim.subject} is {whole:.0f} cm from the {claim.object}"

    def _placed(self, claim: Claim) -> Answer:
        offset = self._offset(claim)
        if (
            self.state is None
            or offset is None
            or (claim.subject, claim.object) != (self.source, self.target)
        ):
            return UNKNOWN
        near = np.hypot(*offset[:2]) < 6 and abs(offset[2]) < 8
        return (
            (True, "the simulator counts it as placed")
            if self.state.placed
            else (None if near else False, "it is not there yet")
        )

    def _grip(self, claim: Claim) -> Answer:
        if self.opening is None or not 0 <= self.opening <= 1:
            return None, "how far the gripper is open is not recorded by that name, or not from 0 to 1"
        held = self.state is not None and bool(self.state.grasped)
        opened, half = (
            _grade(self.opening, 0.6, 0.7),
            _all([_grade(self.opening, 0.1, 0.25), _grade(self.opening, OPEN_ABOVE, 0.7)]),
        )
        shut = True if held else _grade(self.opening, 0.6, 2 * CLOSED_BELOW)
        answer = {"open": False if held else opened, "half open": half, "closed": shut}[claim.relation]
        return answer, f"the fingers are {self.opening:.0%} open" + f", around the {self.source}" * held

    def _held(self, claim: Claim) -> Answer:
        if self.state is None:
            return UNKNOWN
        reach = np.linalg.norm(np.asarray(self.state.tcp[:3], np.float64) - self.state.source[:3])
        if claim.relation == "between" and claim.holds and reach < 0.04 and not self.state.grasped:
            return None, "it may be between the open fingers"
        held = bool(self.state.grasped) and claim.subject in ("", self.source)
        other = f", not the {claim.subject}" * bool(self.state.grasped and not held)
        return held, f"the {self.source} is {'' if self.state.grasped else 'not '}held{other}"

    def _done(self, claim: Claim) -> Answer:
        if self.state is None:
            return UNKNOWN
        done = bool(self.state.placed)
        return done, f"the task's own success condition {'holds' if done else 'does not hold'} in this frame"

    def _sub_task(self, claim: Claim) -> Answer:
        claimed = {PHASES.index(name) for name in claim.relation.split(" or ")}
        if self.state is None:
            if claimed not in ({2}, {6}) or self.opens is None:
                return UNKNOWN
            return bool(
                (self.opens == (claimed == {6})).any()
            ), f"the gripper is told to {'open' if self.opens.any() else 'close'} in this segment"
        now = int(self.state.phase)
        reason = f"the sub-task of this frame is to {PHASES[now]}"
        if now in claimed:
            return True, reason
        begun = now + 1 in claimed and self._looks_like(now + 1, len(self.request.actions))
        return None if begun or (now - 1 in claimed and self._looks_like(now - 1, 1)) else False, reason

    def _looks_like(self, phase: int, steps: int) -> bool:
        """The first `steps` actions belong to `phase` as well: a segment may go on to the next sub-task, a
        frame may end the one before.
        """
        if phase in (2, 6):
            return self.opens is not None and bool((self.opens[:steps] == (phase == 6)).any())
        if self.moved is None:
            return False
        words = [motion_word(row) for row in (*self.moved[:steps], self.moved[:steps].sum(0))]
        return any(word in LOOKS[phase] for word in words if word)

    def _order(self, claim: Claim) -> Answer:
        first, then = (
            [PHASES.index(name) for name in words.split(" or ")] for words in (claim.subject, claim.object)
        )
        wrong = min(then) < min(first) and max(then) <= max(first)
        return False if wrong else None, "the order of a pick and place is " + ", ".join(
            PHASES
        )  # right in any scene, so no evidence of this one

    def _role(self, claim: Claim) -> Answer:
        if not self.known or claim.subject not in self.names:
            return UNKNOWN
        wanted = self.source if claim.relation == "is handled" else self.target
        return claim.subject == wanted, f"in this task {wanted} {claim.relation}"

    def _motion(self, claim: Claim) -> Answer:
        if self.moved is None:
            return None, "the actions are positions of joints, not displacements"
        axis, sign = AXES[claim.relation]
        first, whole = sign * float(self.moved[0, axis]), sign * float(self.moved[:, axis].sum())
        elsewhere = motion_word(self.moved[0]) not in (
            None,
            claim.relation,
        )  # a first action that rests leaves room for the motion to come
        answer = (
            True
            if max(first, whole) >= MOVING_M / 2
            else False
            if min(first, whole) <= -MOVING_M / 2 or elsewhere
            else None
        )
        return (
            answer,
            f"along {claim.relation} the first action moves {100 * first:.1f} cm, the segment "
            f"{100 * whole:.1f} cm",
        )

    def _arm(self, claim: Claim) -> Answer:
        """Which of two arms moves, from the joints' names."""
        moved = np.asarray(self.request.actions, np.float64).std(0)
        side = {
            word: sum(moved[i] for i, name in enumerate(self.request.action_names) if word in name.lower())
            for word in ("left", "right")
        }
        if not all(side.values()) or moved.max() < RESTING:
            return UNKNOWN
        share = side[claim.subject] / sum(side.values())
        return _grade(
            share, 0.25, 0.5
        ), f"{share:.0%} of the motion of both arms' joints is on the {claim.subject}"
