"""Which episodes are annotated first, and whether what was written about them is true enough to go on: before
a large dataset is paid for, a small part of it is, and is audited.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refinevla_kit.episodes import EpisodeDataset
from refinevla_kit.errors import KitError
from refinevla_kit.proportions import wilson
from refinevla_kit.teacher.annotation import annotate_dataset
from refinevla_kit.teacher.answers import load_rationales
from refinevla_kit.teacher.audit import COUNTS, Score, audit_answers
from refinevla_kit.teacher.schema import Teacher


def stratified(dataset: EpisodeDataset, count: int, seed: int = 0) -> list[int]:
    """Numbers of at most `count` episodes, each instruction with the share that it has of all, to within one.

    With the same seed a larger sample holds the smaller one.
    """
    rng = np.random.default_rng(seed)
    by_instruction: dict[str, list[int]] = {}
    for info in dataset.episodes:
        by_instruction.setdefault(info.instruction or info.task or "", []).append(info.index)
    order: list[tuple[float, int]] = []
    for numbers in by_instruction.values():
        first = rng.random()
        shuffled = rng.permutation(numbers).tolist()
        order += [((place + first) / len(shuffled), number) for place, number in enumerate(shuffled)]
    return sorted(number for _, number in sorted(order)[:count])


def only(dataset: EpisodeDataset, numbers: list[int]) -> EpisodeDataset:
    """The same dataset with these episodes alone."""
    part, wanted = copy(dataset), set(numbers)
    part.episodes = tuple(info for info in dataset.episodes if info.index in wanted)
    return part


@dataclass(frozen=True)
class Verdict:
    """What the audit says of a trial.

    Attributes:
        episodes: of the trial.
        rationales, refusals: about them.
        score: of all their statements.
        doubts: rationales that a person should look at.
    """

    episodes: int
    rationales: int
    refusals: int
    score: Score
    doubts: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 % (Wilson), statements taken as independent."""
        return wilson(self.score.true, self.score.decided) if self.score.decided else (0.0, 1.0)

    def __str__(self) -> str:
        score, (low, high) = self.score, self.interval
        return (
            f"trial: {self.rationales} rationales about {self.episodes} episodes, {self.refusals} refusals; "
            f"{score.true} of {score.decided} statements that can be checked are true "
            f"({score.share or 0:.0%}, {low:.0%} to {high:.0%}); {self.doubts} rationales to look at"
        )


def annotate_trial(
    dataset: EpisodeDataset, teacher: Teacher, count: int, least: float = 0.8, seed: int = 0, **how: Any
) -> Verdict:
    """Annotate a stratified part of a dataset and audit what was written; the answers count for the rest.

    Args:
        dataset: all of it, opened.
        teacher: as for `annotate_dataset`.
        count: episodes of the trial.
        least: share of the statements that has to be true.
        seed: of the choice.
        how: other arguments of `annotate_dataset`.

    Raises:
        KitError: fewer are true, or nothing that was said can be checked.
    """
    part = only(dataset, stratified(dataset, count, seed))
    path = annotate_dataset(part, teacher, **how)
    verdict = judge(part, path)
    remedy = "look at them, change the teacher, its model or the pictures; or go on without a trial"
    share = verdict.score.share
    if share is None:
        raise KitError(f"{verdict}: nothing recorded decides what was said, in {path}", remedy)
    if share < least:
        raise KitError(f"{verdict}, and {least:.0%} are asked for; the rest is not annotated", remedy)
    return verdict


def judge(dataset: EpisodeDataset, rationales: str | Path) -> Verdict:
    """The verdict on what a table says about the episodes of `dataset`."""
    numbers = {info.index for info in dataset.episodes}
    answers = [answer for answer in load_rationales(rationales) if answer.episode in numbers]
    audits = [audit for audit in audit_answers(dataset, answers) if audit]
    scores = [score for audit in audits for score in audit.parts.values()]
    whole = Score(*(sum(getattr(score, name) for score in scores) for name in COUNTS))
    doubts = sum(audit.doubt for audit in audits)
    return Verdict(len(numbers), len(audits), len(answers) - len(audits), whole, doubts)
