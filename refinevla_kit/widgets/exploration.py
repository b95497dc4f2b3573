"""What an explorer can show: frames with captured attention, the groups of queries to look from, and the
`View` of any choice among them. No widget, no policy.

A group of queries has a key that means the same in every frame and for every policy. "action" is the mean
over action dimensions, "action:x" one of them. "sentence:2" and "word:carrot:1", the first "carrot", are of a
rationale, "instruction:put:1" of the instruction. Policies may have written different rationales. A word that
only one of them wrote is an error that says so, not a comparison of two words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refinevla_kit.attention.captured import (
    ACTION_QUERY,
    INSTRUCTION_QUERY,
    KINDS,
    RATIONALE_QUERY,
    Capture,
    Frame,
    image_hash,
)
from refinevla_kit.attention.grounding import areas, shares
from refinevla_kit.errors import KitError, check_choice
from refinevla_kit.figures.overlays import OUTLINES, SHOWN, THING_LABELS, Line, Plot, View, scale_end
from refinevla_kit.figures.style import INK, colours, label
from refinevla_kit.simulator.contract import Array

ACTIONS, SENTENCES, WORDS, INSTRUCTION = "action", "sentence", "word", "instruction"
KIND_LABELS = {
    ACTIONS: "action",
    SENTENCES: "rationale, sentences",
    WORDS: "rationale, words",
    INSTRUCTION: "instruction, words",
}
ATTENTION = "attention"
SENTENCE_ENDS = re.compile(r"[.!?](\s|$)|\n")
LONGEST_LABEL = 60  # characters of a sentence in a picker


@dataclass(frozen=True)
class QueryGroup:
    """Queries of one capture that are looked from together.

    Attributes:
        key: its name, the same in every frame; begins with the kind.
        kind: one of `KIND_LABELS`.
        label: in a picker.
        description: in a sentence.
        rows: numbers of the capture's queries; their mean is shown.
        span: where in the rationale it is, (0, 0) for anything else.
    """

    key: str
    kind: str
    label: str
    description: str
    rows: tuple[int, ...]
    span: tuple[int, int] = (0, 0)


Method = Callable[[str, int, QueryGroup], Array]
Captures = Mapping[str, Sequence[Capture]]  # policy's name -> one a frame


@dataclass(frozen=True)
class Commentary:
    """What is shown of one played episode beside its attention.

    Attributes:
        name: begins the names of saved files.
        made_from: JSON values that go with a saved picture.
        policy: who played.
        title: the first line.
        notes: what the second line begins with, one a frame.
        plots: curves over the frames.
        texts: the rationale of each frame, "" where there is none.
        write: number of a frame -> a rationale that the policy writes for it.
    """

    name: str
    made_from: Mapping[str, Any]
    policy: str
    title: str
    notes: Sequence[str]
    plots: Sequence[Plot]
    texts: Sequence[str]
    write: Callable[[int], str]


def query_groups(capture: Capture) -> dict[str, QueryGroup]:
    """Key -> what the capture can be looked at from, in the order in which a picker lists it."""
    groups: list[QueryGroup] = []
    by_kind = {kind: [i for i, query in enumerate(capture.queries) if query.kind == kind] for kind in KINDS}
    if actions := by_kind[ACTION_QUERY]:
        groups.append(QueryGroup(ACTIONS, ACTIONS, "all dimensions", "all action dimensions", tuple(actions)))
    for row in actions:
        name = capture.queries[row].label
        groups.append(QueryGroup(f"{ACTIONS}:{name}", ACTIONS, name, f"action {name}", (row,)))
    rows = by_kind[RATIONALE_QUERY]
    spans = _spans(capture.rationale, [capture.queries[row].label for row in rows])
    for number, words in enumerate(_sentences(capture.rationale, spans), 1):
        span = spans[words[0]][0], spans[words[-1]][1]
        text = " ".join(capture.rationale[slice(*span)].split())
        if len(text) > LONGEST_LABEL:
            text = text[: LONGEST_LABEL - 1].rstrip() + "…"
        description = f"sentence {number} of the rationale, {text!r}"
        sentence = tuple(rows[word] for word in words)
        key = f"{SENTENCES}:{number}"
        groups.append(QueryGroup(key, SENTENCES, f"{number}: {text}", description, sentence, span))
    groups += _word_groups(capture, WORDS, rows, spans)
    rows = by_kind[INSTRUCTION_QUERY]
    groups += _word_groups(capture, INSTRUCTION, rows, [(0, 0)] * len(rows))
    return {group.key: group for group in groups}


def _word_groups(
    capture: Capture, kind: str, rows: Sequence[int], spans: Sequence[tuple[int, int]]
) -> list[QueryGroup]:
    """A group a word; the second of a kind is told from the first by its number."""
    source = "rationale" if kind == WORDS else "instruction"
    groups, times = [], Counter[str]()
    for row, span in zip(rows, spans, strict=True):
        word = capture.queries[row].label
        times[word] += 1
        name = word if times[word] == 1 else f"{word} ({times[word]})"
        description = f"the word {name!r} of the {source}"
        groups.append(QueryGroup(f"{kind}:{word}:{times[word]}", kind, name, description, (row,), span))
    return groups


class Exploration:
    """Frames, what each policy attended to in them, and the view of any choice.

    Args:
        frames: in the order of the captures.
        captures: policy name -> one capture a frame; {} only with a commentary, where attention cannot be
            read.
        methods: further ways to say where a policy looks, by name: (policy, number of the frame,
            `QueryGroup`) -> float (rows, columns), not negative. They are asked for what is shown, once.
            `ATTENTION` is always there.
        commentary: of a played episode, whose frames these are.

    Raises:
        KitError: no frames, captures that do not belong to the frames, of several checkpoints, or of policies
            of different size.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        captures: Captures,
        methods: Mapping[str, Method] | None = None,
        commentary: Commentary | None = None,
    ) -> None:
        _check(frames, captures, needed=commentary is None)
        self.frames = list(frames)
        self.captures = {name: list(policy_captures) for name, policy_captures in captures.items()}
        self.commentary = commentary
        self.methods = [ATTENTION, *(methods or {})]
        self.groups = {
            name: [query_groups(capture) for capture in policy_captures]
            for name, policy_captures in self.captures.items()
        }
        first = next(iter(self.captures.values()))[0] if captures else None
        self.layers = first.layers if first else 0
        self.heads = first.heads if first else 0
        self.grid = first.grid if first else (0, 0)
        self.episodes: dict[int, list[int]] = {}
        for index, frame in enumerate(self.frames):
            self.episodes.setdefault(frame.episode, []).append(index)
        self._methods = dict(methods or {})
        self._computed: dict[tuple[str, str, int, str], Array] = {}

    def queries(self, index: int) -> dict[str, QueryGroup]:
        """What frame `index` can be looked at from: what any of the policies can, the first one's labels."""
        merged: dict[str, QueryGroup] = {}
        for groups in reversed(self.groups.values()):
            merged |= groups[index]
        kinds = [*KIND_LABELS]
        return dict(sorted(merged.items(), key=lambda item: kinds.index(item[1].kind)))

    def maps(
        self, index: int, key: str, layer: int, head: int | None = None, method: str = ATTENTION
    ) -> dict[str, Array]:
        """Policy -> float (rows, columns) of frame `index`.

        Args:
            key: of `queries`.
            layer, head: from 0; head None is the mean over heads. Other methods than attention have neither.

        Raises:
            KitError: a frame, query, layer, head or method that a policy has not.
        """
        check_choice("frame", index, range(len(self.frames)))
        check_choice("method", method, self.methods)
        return {name: self._map(name, index, key, layer, head, method) for name in self.captures}

    def view(
        self,
        index: int,
        key: str,
        layer: int,
        head: int | None = None,
        method: str = ATTENTION,
        opacity: float = 0.9,
        outlines: bool = True,
    ) -> View:
        """The view of a choice; arguments as in `maps`."""
        maps = self.maps(index, key, layer, head, method)
        frame = self.frames[index]
        episode = self.episodes[frame.episode]
        details = [self.commentary.notes[index]] if self.commentary else []
        plots = [*self.commentary.plots] if self.commentary else []
        if maps:
            heads = "mean of heads" if head is None else f"head {head + 1}"
            where = f"layer {layer + 1}, {heads}" if method == ATTENTION else method
            details.append(f"from {self.queries(index)[key].description}; {where}")
        if maps and method == ATTENTION and len(episode) > 1:
            plots += self._shares_over_time(episode, key, layer, head)
        return View(
            frame.image,
            maps,
            frame.masks,
            self.title(index),
            "; ".join(details),
            opacity,
            outlines,
            np.array([self.frames[i].step for i in episode]),
            episode.index(index),
            tuple(plots),
            method,
        )

    def title(self, index: int) -> str:
        """Which moment of what a frame is."""
        if self.commentary:
            return self.commentary.title
        frame = self.frames[index]
        phase = f" ({frame.phase})" if frame.phase else ""
        return f"{frame.instruction}: episode {frame.episode}, step {frame.step}{phase}"

    def _shares_over_time(self, episode: Sequence[int], key: str, layer: int, head: int | None) -> list[Plot]:
        """A plot an object: each policy's share of attention over the episode, and the share of the area,
        dotted.
        """
        if not any(self.frames[index].masks for index in episode):
            return []
        missing: dict[str, Any] = dict.fromkeys(SHOWN, np.nan)
        area: list[dict[str, Any]] = []
        share: dict[str, list[dict[str, Any]]] = {name: [] for name in self.captures}
        for index in episode:
            masks = self.frames[index].masks
            area.append(missing | areas(masks) if masks else missing)
            for name in self.captures:
                known = masks and key in self.groups[name][index]
                found = shares(self._map(name, index, key, layer, head, ATTENTION), masks) if known else {}
                share[name].append(missing | found)
        end = scale_end(
            [frame[thing] for frames in (area, *share.values()) for frame in frames for thing in SHOWN]
        )
        colour = colours([*self.captures])
        plots = []
        for thing in SHOWN:
            lines = [Line("area", INK, np.array([frame[thing] for frame in area]), dashed=True)]
            for name, shares_by_frame in share.items():
                values = np.array([float(frame[thing]) for frame in shares_by_frame])
                lines.append(Line(label(name), colour[name], values))
            plots.append(Plot(THING_LABELS[thing], tuple(lines), 0.0, end, OUTLINES[thing], share=True))
        return plots

    def _map(self, name: str, index: int, key: str, layer: int, head: int | None, method: str) -> Array:
        frame, capture = self.frames[index], self.captures[name][index]
        group = self.groups[name][index].get(key)
        if group is None:
            where = f"in episode {frame.episode}, step {frame.step}"
            raise KitError(
                f"{label(name)}: there is no {key.replace(':', ' ')} to look from {where}",
                "choose what every policy has, or capture all of them with the same rationale",
            )
        if method != ATTENTION:
            choice = method, name, index, key
            if choice not in self._computed:
                self._computed[choice] = np.asarray(self._methods[method](name, index, group))
            return self._computed[choice]
        check_choice("layer", layer + 1, range(1, capture.layers + 1))
        if head is not None:
            check_choice("head", head + 1, range(1, capture.heads + 1))
        heads = capture.patches[layer][:, group.rows].mean(1)  # heads, patches
        return (heads.mean(0) if head is None else heads[head]).reshape(capture.grid)


def _check(frames: Sequence[Frame], captures: Captures, needed: bool) -> None:
    """Raise `KitError` unless captures belong to these frames and to each other."""
    if not isinstance(captures, Mapping):
        remedy = "give a mapping: the policy's name to its captures, one a frame"
        raise KitError(f"captures are given as {type(captures).__name__}", remedy)
    if not frames or (needed and not captures):
        remedy = "give at least one frame and one policy's captures of it"
        raise KitError("there is nothing to explore", remedy)
    pictures = [image_hash(frame.image) for frame in frames] if captures else []
    sizes = set()
    for name, policy_captures in captures.items():
        if len(policy_captures) != len(frames):
            what = f"{len(policy_captures)} captures of {name} for {len(frames)} frames"
            raise KitError(what, "capture each policy on each of these frames")
        hashes = {capture.checkpoint_hash for capture in policy_captures}
        if len(hashes) > 1:
            what = f"the captures of {name} are of {len(hashes)} checkpoints ({', '.join(sorted(hashes))})"
            raise KitError(what, "capture again with one checkpoint")
        for index, (capture, frame) in enumerate(zip(policy_captures, frames, strict=True)):
            if capture.image_hash and capture.image_hash != pictures[index]:
                moment = f"episode {frame.episode}, step {frame.step}"
                what = f"the capture {index} of {name} is of another picture than the frame ({moment})"
                raise KitError(what, "give captures and frames in one order, or capture again")
            sizes.add((capture.layers, capture.heads, capture.grid))
        if len(sizes) > 1:
            what = f"{name} has another number of layers, heads or patches"
            raise KitError(what, "explore policies of one size together")


def _spans(text: str, words: Sequence[str]) -> list[tuple[int, int]]:
    """Where each word stands in the text, searched one after another; an empty span where a tokenizer writes
    a word otherwise than the text does.
    """
    lowered = text.lower()
    end = 0
    spans = []
    for word in words:
        start = lowered.find(word.lower(), end)
        spans.append((end, end) if start < 0 else (start, start + len(word)))
        end = spans[-1][1]
    return spans


def _sentences(text: str, spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Numbers of the words of each sentence; a sentence ends with ".", "!" or "?" before a space, or with its
    line.
    """
    sentences: list[list[int]] = []
    for i, (start, _) in enumerate(spans):
        if i == 0 or SENTENCE_ENDS.search(text[spans[i - 1][1] : start]):
            sentences.append([])
        sentences[-1].append(i)
    return sentences
