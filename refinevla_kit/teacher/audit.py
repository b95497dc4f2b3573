"""Holds rationales, whoever wrote them, against what is known of their frames: the simulator's truth, or only actions, proprioception and instruction.

(Being built: the contract below stands; claims are read from the next version on.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd

from refinevla_kit.teacher.schema import PARTS, Rationale, Request

if TYPE_CHECKING:
    from refinevla_kit.episodes import EpisodeDataset
    from refinevla_kit.teacher.annotation import StoredRationale

Verdict = Literal["true", "false", "undecided"]


@dataclass(frozen=True)
class Claim:
    """One statement read from a rationale.

    Attributes:
        part: one of `PARTS`, or "instruction_matches".
        kind: "object", "visible", "zone", "side", "height", "distance", "grip", "held", "done", "sub-task", "order", "role", "motion", "arm", "instruction".
        subject, relation, object: as the scene calls them ("carrot", "left of", "plate"); "" where there is none.
        value: centimetres, where the claim gives a number.
        span: first and one past the last character, within the part's text. text: those characters.
    """

    part: str
    kind: str
    subject: str
    relation: str
    object: str = ""
    value: float | None = None
    span: tuple[int, int] = (0, 0)
    text: str = ""


@dataclass(frozen=True)
class Finding:
    """A claim, its verdict, and why, in one line for a person. `doubt`: a reviewer should look (every false claim, and some undecided ones)."""

    claim: Claim
    verdict: Verdict
    reason: str
    doubt: bool = False


@dataclass(frozen=True)
class Score:
    """Claims of one part by verdict, and the clauses in which no claim was read (they are not checked, never false)."""

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
    """What was found in one rationale: a score for each of `PARTS`, every claim with its verdict in the order of the text, and whether a reviewer
    should look at it."""

    parts: dict[str, Score]
    findings: tuple[Finding, ...] = field(default=())
    doubt: bool = False


def audit(request: Request, rationale: Rationale) -> Audit:
    """Check one rationale against the request it answers (`state`, `masks` where the simulator knows; `actions`, `proprioception`, `instruction`)."""
    return Audit({part: Score() for part in PARTS})


def audit_dataset(dataset: EpisodeDataset | str | Path, rationales: Sequence[StoredRationale] | str | Path) -> pd.DataFrame:
    """One row for each stored answer: episode, start, end, teacher, refusal (kind or ""), doubt, findings (reasons of what is doubted, one string), and
    for each part <part>_true, _false, _undecided, _unread (counts)."""
    raise NotImplementedError
