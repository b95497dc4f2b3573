"""The attention explorer: choose the moment, what to look from, layer and head; policies side by side on one
scale, with the shares by object.

What it shows was computed before and lies in the page (explorer_page.py, explorer.js), so a move needs no
kernel. The kernel is asked for what needs a policy, for pictures for paper, and for layers of attention that
is too large for a page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import traitlets
from matplotlib.figure import Figure

from refinevla_kit.attention.captured import (
    ACTION_QUERY,
    INSTRUCTION_QUERY,
    KINDS,
    Capture,
    Frame,
    upper_middle,
)
from refinevla_kit.errors import KitError, check_choice, checked_integer
from refinevla_kit.figures.overlays import View, comparison
from refinevla_kit.figures.style import save_figure
from refinevla_kit.files import file_name
from refinevla_kit.simulator.contract import Array
from refinevla_kit.widgets.exploration import ATTENTION, Captures, Commentary, Exploration, Method, QueryGroup
from refinevla_kit.widgets.explorer_page import (
    EACH_HEAD,
    EASY_PAGE,
    MEAN,
    NOTHING,
    PAGE,
    SCRIPT,
    head_bytes,
    packed,
    page_state,
    write_page,
)

if TYPE_CHECKING:
    from refinevla_kit.policies.vla_policy import VLAPolicy


def attribution_methods(
    policies: Mapping[str, VLAPolicy],
    frames: Sequence[Frame],
    captures: Captures,
    names: Sequence[str] = ("relevance", "grad_cam"),
) -> dict[str, Method]:
    """Methods of `attention.attribution` for an explorer: computed on these policies when they are chosen,
    the mean over what is asked about.

    Args:
        names: of `attribution.METHODS`; the costly ones take seconds a picture.
    """
    # Needs torch; looking at saved captures does not
    from refinevla_kit.attention.attribution import METHODS, attribute

    for name in names:
        check_choice("attribution method", name, METHODS)

    def compute(method: str, policy: str, index: int, group: QueryGroup) -> Array:
        if policy not in policies:
            remedy = "give it to attribution_methods, or choose the method 'attention'"
            raise KitError(f"{policy} is not here to compute {method}", remedy)
        capture = captures[policy][index]
        known = capture.action, capture.rationale or None
        targets = [capture.queries[row] for row in group.rows]
        answers = [attribute(policies[policy], frames[index], each, method, *known) for each in targets]
        return np.mean([answer.patch_map for answer in answers], axis=0)

    return {name: partial(compute, name) for name in names}


def capture_words(
    policies: Mapping[str, VLAPolicy], frames: Sequence[Frame], writer: str
) -> dict[str, list[Capture]]:
    """Captures from the action, the instruction and a rationale of each frame.

    The rationale is the one that `writer` writes. It is fed to every policy, so that they are asked about the
    same words. A frame for which it writes no word is
    captured without.

    Args:
        policies: name -> policy.
        writer: one of the names.
    """
    from refinevla_kit.attention.forward import capture, check_policy  # needs torch

    check_choice("policy", writer, policies)
    check_policy(policies[writer])
    captures: dict[str, list[Capture]] = {name: [] for name in policies}
    for frame in frames:
        text = policies[writer].explain(frame.image, frame.instruction, frame.proprioception)
        kinds = KINDS if any(letter.isalnum() for letter in text) else (ACTION_QUERY, INSTRUCTION_QUERY)
        moment = (frame.image, frame.instruction, None, text, frame.proprioception, kinds)
        for name, policy in policies.items():
            captures[name].append(capture(policy, *moment))
    return captures


class AttentionExplorer(anywidget.AnyWidget):  # type: ignore[misc]  # anywidget's base has no type hints
    """Widget over frames and what each policy attended to in them; a cell's last line shows it.

    Attributes:
        choice: what is on show: episode; step, which counts the chosen frames of the episode; query, a key of
            `Exploration.queries`; method; layer, from 1; head, from 1, or "mean"; opacity, 0 to 1; outlines.
            The page keeps it up to date; `choose` sets it.
        state: what the page holds.

    Args:
        frames, captures, methods, commentary: as in `Exploration`.
        layer: shown first, from 1; None is `upper_middle`.
        folder: where `save` writes.

    Raises:
        KitError: no frames, captures that do not belong to the frames, or policies of different size.
    """

    _esm = SCRIPT
    state = traitlets.Dict().tag(sync=True)
    choice = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        frames: Sequence[Frame],
        captures: Captures,
        layer: int | None = None,
        methods: Mapping[str, Method] | None = None,
        folder: str | Path = ".",
        commentary: Commentary | None = None,
    ) -> None:
        self.exploration = Exploration(frames, captures, methods, commentary)
        self._folder = Path(folder)
        layers = self.exploration.layers
        shown = upper_middle(layers) + 1 if layer is None else layer
        if captures:
            shown = checked_integer(shown, "layer", 1, layers)
        kept = range(len(frames))
        size = head_bytes(self.exploration, kept)
        held = MEAN if size <= EASY_PAGE else NOTHING
        if self.exploration.heads * size <= EASY_PAGE:
            held = EACH_HEAD
        choice = {
            "episode": frames[0].episode,
            "step": 0,
            "query": next(iter(self.exploration.queries(0)), ""),
            "method": ATTENTION,
            "layer": shown,
            "head": MEAN,
            "opacity": 0.9,
            "outlines": True,
        }
        super().__init__(state=page_state(self.exploration, held, kept), choice=choice)
        self.on_msg(self._answer)

    def choose(self, **values: Any) -> None:
        """Set parts of `choice`, such as `choose(episode=3, step=5, query="word:carrot:1", layer=4)`.

        What is not named stays, or becomes the nearest that there is in the frame.

        Raises:
            KitError: what cannot be chosen; then nothing changes.
        """
        for name in values:
            check_choice("control", name, self.choice)
        choice = {**self.choice, **values}
        check_choice("episode", choice["episode"], self.exploration.episodes)
        steps = range(len(self.exploration.episodes[choice["episode"]]))
        if "step" not in values:
            choice["step"] = min(choice["step"], steps[-1])
        check_choice("frame", choice["step"], steps)
        offered = [*self.exploration.queries(self._index(choice))]
        kind = str(choice["query"]).split(":")[0]
        alike = [key for key in offered if key.split(":")[0] == kind] or offered
        if "query" in values:
            check_choice("query", choice["query"], alike)
        elif choice["query"] not in alike:
            choice["query"] = alike[0] if alike else ""
        choice["layer"] = checked_integer(choice["layer"], "layer", 1, max(1, self.exploration.layers))
        if not isinstance(choice["opacity"], int | float) or not 0 <= choice["opacity"] <= 1:
            raise KitError(f"opacity is {choice['opacity']!r}", "give a number from 0 to 1")
        self._view(choice)
        self.choice = choice

    def view(self) -> View:
        """What is on show. Raises `KitError` where a policy has nothing to look from there."""
        return self._view(self.choice)

    def figure(self) -> Figure:
        """The same picture for paper, drawn by the pure function; for a run without a browser too."""
        return comparison(self.view())

    def export(self, path: str | Path, heads: bool | None = None, every: int | None = None) -> Path:
        """Write the page that shows all of this without a kernel; see `write_page`."""
        return write_page(path, self.exploration, self.choice, heads, every)

    def save(self, form: str = "png") -> Path:
        """Write what is on show into the folder: "png", "svg" or "pdf", or "html", the page. Returns its
        path.
        """
        if form == PAGE:
            return self.export(self._folder / "explorer.html")
        commentary, frame = self.exploration.commentary, self.exploration.frames[self._index(self.choice)]
        name = f"{commentary.name if commentary else 'explorer'}-{frame.episode}-{frame.step}"
        if query := str(self.choice["query"]).replace(":", "_"):
            name += "-{}-{method}-layer{layer}-head_{head}".format(query, **self.choice)
        hashes = {
            policy: captures[0].checkpoint_hash for policy, captures in self.exploration.captures.items()
        }
        made_from = {**self.choice, "episode": frame.episode, "step": frame.step, "policies": hashes}
        if commentary:
            made_from |= commentary.made_from
        return save_figure(self.figure(), self._folder / file_name(name), made_from, [form])

    def _index(self, choice: Mapping[str, Any]) -> int:
        return self.exploration.episodes[choice["episode"]][choice["step"]]

    def _view(self, choice: Mapping[str, Any]) -> View:
        return self.exploration.view(
            self._index(choice),
            choice["query"],
            choice["layer"] - 1,
            None if choice["head"] == MEAN else choice["head"] - 1,
            choice["method"],
            choice["opacity"],
            choice["outlines"],
        )

    def _answer(self, _: Any, question: dict[str, Any], __: Any) -> None:
        """Answer the page, which waits for the reply with the question's id."""
        try:
            self.send({"id": question["id"], "answer": self._reply(question)})
        except Exception as error:  # whatever it is: the page waits, and an exception would be swallowed here
            self.send({"id": question["id"], "error": str(error)})

    def _reply(self, question: Mapping[str, Any]) -> Any:
        """What the page asks for.

        "save": the path of what was saved. "text": a rationale for a frame, written by the policy that
        played. "map": the frame's number -> policy -> a number a patch, by the method chosen. "layer": number
        of each frame of the episode -> policy -> attention of one layer; the next moves need no kernel then.
        """
        asked, commentary = question["ask"], self.exploration.commentary
        if asked == "save":
            return str(self.save(question["form"]))
        if asked == "text":
            return commentary.write(question["index"]) if commentary else ""
        choice = question["choice"]
        if asked == "map":
            maps = self._view(choice).maps
            return {self._index(choice): {name: each.ravel().tolist() for name, each in maps.items()}}
        layer, captures = choice["layer"] - 1, self.exploration.captures.items()
        return {
            index: {name: packed(policy_captures[index].patches[layer]) for name, policy_captures in captures}
            for index in self.exploration.episodes[choice["episode"]]
        }
