"""What a policy writes about frames whose state the simulator knows, and how much of it is true.

For texts in the oracle's wording (`teacher.wording`), which is what the kit's demonstrations come with. Each
statement is held against the state as the truth audit does it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refinevla_kit.episodes import EpisodeDataset
from refinevla_kit.evaluation.intervals import Rate, rate
from refinevla_kit.policies.vla_policy import LONGEST_RATIONALE, VLAPolicy
from refinevla_kit.teacher.answers import lookup
from refinevla_kit.teacher.audit import Finding, Scene
from refinevla_kit.teacher.requests import without_pictures
from refinevla_kit.teacher.schema import Request
from refinevla_kit.teacher.wording import read_wording
from refinevla_kit.training.examples import held_out, read_rationales

LEAST = 8  # statements that a whole rationale makes, at least


@dataclass(frozen=True)
class Written:
    """What a policy wrote about one frame.

    Attributes:
        request: the frame, as a teacher would be asked about it.
        text: as it was written.
        findings: every statement that was read from it, with its verdict.
        ended: it came to an end by itself, before `LONGEST_RATIONALE` tokens.
    """

    request: Request
    text: str
    findings: tuple[Finding, ...]
    ended: bool


def write_about(
    policy: VLAPolicy, dataset: EpisodeDataset, frames: Sequence[tuple[int, int]]
) -> list[Written]:
    """Let a policy write about frames, (episode, frame) each, of a dataset with the simulator's sidecar."""
    found = []
    for episode, frame in frames:
        request = _request(dataset, episode, frame)
        own = dataset.proprioception(episode)[frame]
        (image,) = dataset.images(episode, [frame])
        text = policy.explain(image, request.instruction, own if own.size else None)
        found.append(judged(request, text, policy))
    return found


def read_again(
    policy: VLAPolicy, dataset: EpisodeDataset, frames: Sequence[tuple[int, int]], table: str | Path | None
) -> list[Written]:
    """Likewise what a teacher has written about them; nothing where it has not.

    Args:
        policy: whose tokens the length is counted in.
        table: of rationales, or the decisions about one; None where there are none.
    """
    rationales, found = read_rationales(Path(table))[0] if table else [], []
    for episode, frame in frames:
        answer = lookup(rationales, episode, frame)
        text = answer.rationale.text() if answer and answer.rationale else ""
        found.append(judged(_request(dataset, episode, frame), text, policy))
    return found


def _request(dataset: EpisodeDataset, episode: int, frame: int) -> Request:
    return next(without_pictures(dataset, episode, [(episode, frame, frame + 1)]))


def judged(request: Request, text: str, policy: VLAPolicy) -> Written:
    """A text about a frame with the verdict on each of its statements; none without the simulator's state."""
    facts = read_wording(text).facts if request.state is not None else None
    findings = Scene(request).fact_findings(facts) if facts else []
    tokens = len(policy.vla.tokenizer.encode(text, add_special_tokens=False))
    return Written(request, text, tuple(findings), tokens < LONGEST_RATIONALE)


def truth(written: Sequence[Written]) -> Rate:
    """The share of true statements among those that could be checked; a text that says fewer than `LEAST`
    counts what it leaves out as false. Of no statement nothing is known: 0 to 1.
    """
    given = Counter(finding.verdict for one in written for finding in one.findings)
    silent = sum(max(0, LEAST - len(one.findings)) for one in written if one.request.state)
    checked = given["true"] + given["false"] + silent
    return rate(given["true"], checked) if checked else Rate(0.0, 0.0, 1.0, 0, 0)


def by_kind(written: Sequence[Written]) -> dict[str, Rate]:
    """Likewise for each kind of statement, without those that were not made."""
    verdicts: dict[str, list[bool]] = {}
    for one in written:
        for finding in one.findings:
            if finding.verdict != "undecided":
                verdicts.setdefault(finding.kind, []).append(finding.verdict == "true")
    return {kind: rate(sum(given), len(given)) for kind, given in sorted(verdicts.items())}


def draw_frames(dataset: EpisodeDataset, count: int, seed: int) -> list[tuple[int, int]]:
    """Frames drawn from the episodes that training holds out (`Examples.split`), without repetition."""
    every = list(dataset.episodes)
    kept_back = [info for info in every if held_out(np.array(info.index))]
    frames = [(info.index, frame) for info in kept_back or every for frame in range(info.length)]
    chosen = np.random.default_rng(seed).permutation(len(frames))[:count]
    return [frames[number] for number in sorted(chosen)]
