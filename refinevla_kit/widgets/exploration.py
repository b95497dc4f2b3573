"""What an explorer can show: frames with captured attention, the queries there are, and the `View` of any
choice among them. No widget, no policy.

A query has a name that means the same in every frame and for every policy where it exists: "action" (the mean
over action dimensions), "action:x", "sentence:2" and "word:carrot:1" (the first "carrot") of a rationale,
"instruction:put:1". Policies may have written different rationales; a word that only one of them said is an
error that says so, not a comparison of two words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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
from refinevla_kit.attention.grounding import REST, areas, to_patches
from refinevla_kit.errors import KitError
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
FED_ALL = "rationale fed to each policy"
SENTENCE_ENDS = re.compile(r"[.!?](\s|$)|\n")
Method = Callable[[str, int, "Asked"], Array]


@dataclass(frozen=True)
class Asked:
    """One thing to look from in one capture.

    Attributes:
        key: its name, the same in every frame.
        kind: one of `KIND_LABELS`.
        label: in a picker.
        said: in a sentence.
        rows: numbers of the capture's queries; their mean is shown.
        span: where in the rationale it is, (0, 0) for anything else.
    """

    key: str
    kind: str
    label: str
    said: str
    rows: tuple[int, ...]
    span: tuple[int, int] = (0, 0)


def asked(capture: Capture) -> dict[str, Asked]:
    """Key -> what the capture can be looked at from, in the order in which a picker lists it."""
    found: list[Asked] = []
    by_kind = {kind: [i for i, query in enumerate(capture.queries) if query.kind == kind] for kind in KINDS}
    if by_kind[ACTION_QUERY]:
        found.append(
            Asked(ACTIONS, ACTIONS, "all dimensions", "all action dimensions", tuple(by_kind[ACTION_QUERY]))
        )
        for i, name in ((i, capture.queries[i].label) for i in by_kind[ACTION_QUERY]):
            found.append(Asked(f"{ACTIONS}:{name}", ACTIONS, name, f"action {name}", (i,)))
    spans = _spans(capture.rationale, [capture.queries[i].label for i in by_kind[RATIONALE_QUERY]])
    for number, words in enumerate(_sentences(capture.rationale, spans), 1):
        own, span = (
            tuple(by_kind[RATIONALE_QUERY][i] for i in words),
            (spans[words[0]][0], spans[words[-1]][1]),
        )
        text = _short(capture.rationale[slice(*span)])
        found.append(
            Asked(
                f"{SENTENCES}:{number}",
                SENTENCES,
                f"{number}: {text}",
                f"sentence {number} of the rationale, {text!r}",
                own,
                span,
            )
        )
    for kind, rows in ((WORDS, by_kind[RATIONALE_QUERY]), (INSTRUCTION, by_kind[INSTRUCTION_QUERY])):
        said: Counter[str] = Counter()
        for place, i in enumerate(rows):
            word = capture.queries[i].label
            said[word] += 1
            name = word if said[word] == 1 else f"{word} ({said[word]})"
            sentence = f"the word {name!r} of the {'rationale' if kind == WORDS else 'instruction'}"
            found.append(
                Asked(
                    f"{kind}:{word}:{said[word]}",
                    kind,
                    name,
                    sentence,
                    (i,),
                    spans[place] if kind == WORDS else (0, 0),
                )
            )
    return {one.key: one for one in found}


class Exploration:
    """Frames, what each policy attended to in them, and the view of any choice.

    Args:
        frames: in the order of the captures.
        captures: policy name -> one capture a frame.
        methods: further ways to say where a policy looks, by name: (policy, number of the frame, `Asked`) ->
            float (rows, columns), not negative. They are asked for what is shown, once. `ATTENTION` is always
            there.

    Raises:
        KitError: no frames, captures that do not belong to the frames, of several checkpoints, or of policies
            of different size.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        captures: Mapping[str, Sequence[Capture]],
        methods: Mapping[str, Method] | None = None,
    ) -> None:
        first = _check(frames, captures)
        self.frames, self.captures = list(frames), {name: list(found) for name, found in captures.items()}
        self.methods, self.layers, self.heads = [ATTENTION, *(methods or {})], first.layers, first.heads
        self.episodes: dict[int, list[int]] = {}
        for index, frame in enumerate(self.frames):
            self.episodes.setdefault(frame.episode, []).append(index)
        self._methods, self._asked = dict(methods or {}), dict[tuple[str, int], dict[str, Asked]]()
        self._cover, self._computed = (
            dict[int, tuple[list[str], Array, Array]](),
            dict[tuple[str, str, int, str], Array](),
        )

    def queries(self, index: int) -> dict[str, Asked]:
        """What frame `index` can be looked at from: what any of the policies can, the first one's labels."""
        found: dict[str, Asked] = {}
        for name in reversed(self.captures):
            found |= self._queries(name, index)
        kinds = [*KIND_LABELS]
        return dict(sorted(found.items(), key=lambda item: kinds.index(item[1].kind)))

    def rationales(self, index: int, key: str) -> dict[str, tuple[str, tuple[int, int]]]:
        """Policy -> the rationale in its sequence of the frame and the part of it that is asked about; only
        where there is one. `FED_ALL` where all were fed the same: then it says nothing about who would have
        written it.
        """
        texts = {name: found[index].rationale for name, found in self.captures.items()}
        found = {
            name: (text, one.span if (one := self._queries(name, index).get(key)) else (0, 0))
            for name, text in texts.items()
            if text
        }
        return (
            {FED_ALL: next(iter(found.values()))} if len(found) > 1 and len({*found.values()}) == 1 else found
        )

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
        if not 0 <= index < len(self.frames):
            raise KitError(f"there is no frame {index}", f"choose 0 to {len(self.frames) - 1}")
        if method not in self.methods:
            raise KitError(f"there is no method {method!r} here", f"choose one of {', '.join(self.methods)}")
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
        mine = self.episodes[frame.episode]
        what = next(one for name in self.captures if (one := self._queries(name, index).get(key)))
        where = (
            f"layer {layer + 1}, {'mean of heads' if head is None else f'head {head + 1}'}"
            if method == ATTENTION
            else method
        )
        detail = f"from {what.said}; {where}"
        steps = np.array([self.frames[i].step for i in mine])
        plots = self._over_time(mine, key, layer, head) if method == ATTENTION and len(mine) > 1 else ()
        return View(
            frame.image,
            maps,
            frame.masks,
            moment_title(frame),
            detail,
            opacity,
            outlines,
            steps,
            mine.index(index),
            plots,
            method,
        )

    def _over_time(self, mine: Sequence[int], key: str, layer: int, head: int | None) -> tuple[Plot, ...]:
        """A plot an object: the share of each policy's attention over the episode, and the object's share of
        the area, dotted.
        """
        if not any(self.frames[i].masks for i in mine):
            return ()
        colour, values = (
            colours([*self.captures]),
            {name: np.full((len(SHOWN), len(mine)), np.nan) for name in self.captures},
        )
        area = np.full((len(SHOWN), len(mine)), np.nan)
        for place, index in enumerate(mine):
            names, cover, sizes = self._covered(index)
            rows = [names.index(thing) for thing in SHOWN if thing in names]
            kept = [i for i, thing in enumerate(SHOWN) if thing in names]
            area[kept, place] = sizes[rows]
            for name in self.captures:
                one = self._queries(name, index).get(key)
                if one is not None:
                    flat = self._attention(name, index, one, layer, head).ravel()
                    values[name][kept, place] = cover[rows] @ flat / max(float(flat.sum()), 1e-12)
        end = scale_end([*area.ravel(), *np.concatenate([one.ravel() for one in values.values()])])
        plots = []
        for i, thing in enumerate(SHOWN):
            lines = [Line(label(name), colour[name], values[name][i]) for name in self.captures]
            plots.append(
                Plot(
                    THING_LABELS[thing],
                    (Line("area", INK, area[i], dashed=True), *lines),
                    0.0,
                    end,
                    OUTLINES[thing],
                    share=True,
                )
            )
        return tuple(plots)

    def _covered(self, index: int) -> tuple[list[str], Array, Array]:
        """(things, how much of each patch they cover: (things, patches), their share of the picture) of a
        frame, kept.
        """
        if index not in self._cover:
            masks, grid = self.frames[index].masks, next(iter(self.captures.values()))[index].grid
            sizes = areas(masks) if masks else {}
            names = [name for name in sizes if name != REST]
            cover = (
                np.stack([to_patches(masks[name], grid).ravel() for name in names])
                if names
                else np.zeros((0, grid[0] * grid[1]))
            )
            self._cover[index] = names, cover, np.array([sizes[name] for name in names])
        return self._cover[index]

    def _map(self, name: str, index: int, key: str, layer: int, head: int | None, method: str) -> Array:
        frame = self.frames[index]
        one = self._queries(name, index).get(key)
        if one is None:
            what = (
                f"{label(name)}: there is no {key.replace(':', ' ')} to look from in episode "
                f"{frame.episode}, step {frame.step}"
            )
            raise KitError(
                what, "choose what every policy has, or capture all of them with the same rationale"
            )
        if method == ATTENTION:
            return self._attention(name, index, one, layer, head)
        at = method, name, index, key
        if at not in self._computed:
            self._computed[at] = np.asarray(self._methods[method](name, index, one))
        return self._computed[at]

    def _attention(self, name: str, index: int, one: Asked, layer: int, head: int | None) -> Array:
        seen = self.captures[name][index]
        for what, value, size in (("layer", layer, seen.layers), ("head", head, seen.heads)):
            if value is not None and not 0 <= value < size:
                raise KitError(f"{label(name)} has no {what} {value + 1}", f"choose 1 to {size}")
        heads = seen.patches[layer][:, one.rows].mean(1)  # heads, patches
        return np.asarray(heads.mean(0) if head is None else heads[head]).reshape(seen.grid)

    def _queries(self, name: str, index: int) -> dict[str, Asked]:
        if (name, index) not in self._asked:
            self._asked[name, index] = asked(self.captures[name][index])
        return self._asked[name, index]


def moment_title(frame: Frame) -> str:
    """Which moment of what a frame is."""
    return f"{frame.instruction}: episode {frame.episode}, step {frame.step}" + (
        f" ({frame.phase})" if frame.phase else ""
    )


def _check(frames: Sequence[Frame], captures: Mapping[str, Sequence[Capture]]) -> Capture:
    """The first capture, once all are known to belong together."""
    if not isinstance(captures, Mapping):
        raise KitError(
            f"captures are given as {type(captures).__name__}",
            "give a mapping: the policy's name to its captures, one a frame",
        )
    if not frames or not captures:
        raise KitError(
            "there is nothing to explore", "give at least one frame and one policy's captures of it"
        )
    pictures = [image_hash(frame.image) for frame in frames]
    for name, found in captures.items():
        if len(found) != len(frames):
            raise KitError(
                f"{len(found)} captures of {name} for {len(frames)} frames",
                "capture each policy on each of these frames",
            )
        if len(hashes := {one.checkpoint_hash for one in found}) > 1:
            what = f"the captures of {name} are of {len(hashes)} checkpoints ({', '.join(sorted(hashes))})"
            raise KitError(what, "capture again with one checkpoint")
        for index, (seen, frame, picture) in enumerate(zip(found, frames, pictures, strict=True)):
            if seen.image_hash and seen.image_hash != picture:
                what = (
                    f"the capture {index} of {name} is of another picture than the frame (episode "
                    f"{frame.episode}, step {frame.step})"
                )
                raise KitError(what, "give captures and frames in one order, or capture again")
    first = next(iter(captures.values()))[0]
    for name, found in captures.items():
        if any((*one.patches.shape[:2], one.grid) != (*first.patches.shape[:2], first.grid) for one in found):
            raise KitError(
                f"{name} has another number of layers, heads or patches",
                "explore policies of one size together",
            )
    return first


def _spans(text: str, words: Sequence[str]) -> list[tuple[int, int]]:
    """Where each word stands in the text, searched one after another; an empty span where a tokenizer writes
    a word otherwise than the text does.
    """
    lowered, at, spans = text.lower(), 0, list[tuple[int, int]]()
    for word in words:
        start = lowered.find(word.lower(), at)
        spans.append((at, at) if start < 0 else (start, start + len(word)))
        at = spans[-1][1]
    return spans


def _sentences(text: str, spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Numbers of the words of each sentence; a sentence ends with ".", "!" or "?" before a space, or with its
    line.
    """
    groups: list[list[int]] = []
    for i, (start, _) in enumerate(spans):
        if i == 0 or SENTENCE_ENDS.search(text[spans[i - 1][1] : start]):
            groups.append([])
        groups[-1].append(i)
    return groups


def _short(text: str, longest: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"
