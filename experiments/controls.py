"""Training data for controls: other texts, fewer demonstrations, fewer actions. Frames are as they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import Array
from refinevla_kit.teacher.audit import motion_word
from refinevla_kit.teacher.wording import read_wording
from refinevla_kit.training.examples import Examples

TEXTS = ("shuffled", "movement", "wrong_object", "empty", "half")


def shuffle_rationales(examples: Examples, seed: int = 0) -> Examples:
    """The same frames, each with a rationale that was written about another episode with the same
    instruction.

    Each episode takes the texts of one other, and every one gives its own to one; stretches of frames that
    share a text (segments) take them in an order drawn anew, over again where the other episode has fewer. So
    the policy learns the same texts for the same instruction, and they match it; they only say nothing about
    the picture. What is left of the reasoning loss is its part as a regulariser and as a lesson in how such
    texts read.

    Raises:
        KitError: an instruction of which a single episode has rationales.
    """
    rng, texts = np.random.default_rng(seed), list(examples.rationales)
    for instruction in dict.fromkeys(examples.instructions):
        stretches: dict[int, list[Array]] = {}
        for rows in _stretches(examples, instruction):
            stretches.setdefault(int(examples.episodes[rows[0]]), []).append(rows)
        if len(stretches) == 1:
            what = (
                f"the rationales of {instruction!r} cannot be given to another episode: episode "
                f"{next(iter(stretches))} alone has any"
            )
            raise KitError(what, "annotate at least two episodes of each instruction")
        ring = rng.permutation(list(stretches)).tolist()
        for here, there in zip(ring, ring[1:] + ring[:1], strict=True):
            others = rng.permutation(len(stretches[there]))
            for place, rows in enumerate(stretches[here]):
                other = stretches[there][others[place % len(others)]]
                for row in rows:
                    texts[row] = examples.rationales[other[0]]
    same = sum(bool(old) and old == new for old, new in zip(examples.rationales, texts, strict=True))
    note = (
        f"texts of other episodes (seed {seed}), {same} of {len(texts)} frames by chance with the words "
        "of their own"
    )
    return replace(examples, rationales=tuple(texts), about=_noted(examples, note))


def first_episodes(examples: Examples, share: float) -> Examples:
    """The first `share` (0 to 1] of the episodes of each instruction, at least one, numbered as before: a
    smaller share lies within a larger one.
    """
    if not 0 < share <= 1:
        raise KitError(f"a share of {share} of the episodes", "choose more than 0, at most 1")
    if share == 1:
        return examples
    instructions, kept = np.array(examples.instructions), set[int]()
    for instruction in dict.fromkeys(examples.instructions):
        numbers = np.unique(examples.episodes[instructions == instruction])
        kept |= set(numbers[: max(1, round(share * len(numbers)))].tolist())
    return of_episodes(examples, sorted(kept))


def of_episodes(examples: Examples, kept: list[int]) -> Examples:
    """The frames of these episodes, numbered as before."""
    rows = np.flatnonzero(np.isin(examples.episodes, kept))
    own = examples.proprioception
    return replace(
        examples,
        images=examples.shown(rows),
        picture=None,
        actions=examples.actions[rows],
        episodes=examples.episodes[rows],
        instructions=tuple(examples.instructions[row] for row in rows),
        rationales=tuple(examples.rationales[row] for row in rows),
        about=_noted(examples, f"{len(kept)} episodes of them"),
        proprioception=None if own is None else own[rows],
    )


def movement_texts(examples: Examples) -> Examples:
    """One sentence in place of the oracle's four parts: where the gripper goes next, and what that brings it
    nearer to.
    """

    def said(row: int) -> str:
        facts = read_wording(examples.rationales[row]).facts
        if facts is None or facts.source is None:
            return ""
        aim = facts.target if facts.held == facts.source and facts.target else facts.source
        return f"The gripper goes {motion_word(examples.actions[row]) or 'on'}, to the {aim}."

    return _with_texts(examples, said, "texts of one sentence, about the next movement")


def exchange_objects(examples: Examples, others: Mapping[int, str]) -> Examples:
    """Each text names the wrong one of the two things that could be meant, throughout.

    Args:
        others: episode -> the thing that lies there beside the one that the instruction names.
    """

    def said(row: int) -> str:
        text = examples.rationales[row]
        facts = read_wording(text).facts if text else None
        if facts is None or facts.source is None:
            return ""
        named, other = facts.source, others[int(examples.episodes[row])]
        text = re.sub(rf"\b{re.escape(named)}\b", other, text)
        return re.sub(rf"\b{re.escape(named.capitalize())}\b", other.capitalize(), text)

    return _with_texts(examples, said, "texts that name the other object")


def empty_texts(examples: Examples) -> Examples:
    """Texts of as many words, that say nothing."""

    def said(row: int) -> str:
        return re.sub(r"\w+", "the", examples.rationales[row])

    return _with_texts(examples, said, "texts that say nothing")


def drop_texts(examples: Examples, seed: int = 0) -> Examples:
    """Half of the frames, drawn at random, without their texts."""
    kept = np.random.default_rng(seed).permutation(len(examples)) % 2 == 0
    return _with_texts(
        examples, lambda row: examples.rationales[row] if kept[row] else "", "half of the texts left out"
    )


def drop_actions(examples: Examples, share: float, seed: int = 0) -> Examples:
    """Only this share of the frames (0 to 1, at random) teaches its action; the others are only spoken
    about, and 0 is for a lesson in reasoning alone.
    """
    silent = np.random.default_rng(seed).permutation(len(examples)) >= round(share * len(examples))
    actions = np.where(silent[:, None], np.float32(np.nan), examples.actions)
    return replace(examples, actions=actions, about=_noted(examples, f"actions on {share:g} of the frames"))


def _with_texts(examples: Examples, said: Callable[[int], str], note: str) -> Examples:
    """The same frames with other texts, where they have any."""
    texts = tuple(said(row) if text else "" for row, text in enumerate(examples.rationales))
    return replace(examples, rationales=texts, about=_noted(examples, note))


def _noted(examples: Examples, note: str) -> str:
    return "; ".join(filter(None, [examples.about, note]))


def _stretches(examples: Examples, instruction: str) -> list[Array]:
    """Frame numbers of each run of frames of one episode with one text, int64 (n,) each, of one
    instruction.
    """
    rows = np.array(
        [
            row
            for row, (said, text) in enumerate(zip(examples.instructions, examples.rationales))
            if text and said == instruction
        ],
        int,
    )
    if not len(rows):
        return []
    cuts = [
        place
        for place in range(1, len(rows))
        if rows[place] != rows[place - 1] + 1
        or examples.episodes[rows[place]] != examples.episodes[rows[place - 1]]
        or examples.rationales[rows[place]] != examples.rationales[rows[place - 1]]
    ]
    return np.split(rows, cuts)
