"""The attention explorer: choose the moment, what to look from, layer and head; policies side by side on one
scale, with the shares by object.

Everything it shows was computed before; a slider only chooses. The browser draws it (picture.js) from the
numbers of a `View`; `figure` draws the same view for paper, without a browser.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure

from refinevla_kit.attention.captured import (
    ACTION_QUERY,
    INSTRUCTION_QUERY,
    KINDS,
    Capture,
    Frame,
    upper_middle,
)
from refinevla_kit.errors import KitError
from refinevla_kit.figures.overlays import View, comparison
from refinevla_kit.figures.style import FORMATS, save_figure
from refinevla_kit.simulator.contract import Array
from refinevla_kit.widgets.exploration import KIND_LABELS, Asked, Exploration, Method
from refinevla_kit.widgets.explorer_page import write_page
from refinevla_kit.widgets.picture import Picture, payload

if TYPE_CHECKING:
    from refinevla_kit.policies.vla_policy import VLAPolicy

MEAN = "mean"
PAGE = "html"


def attribution_methods(
    policies: Mapping[str, VLAPolicy],
    frames: Sequence[Frame],
    captures: Mapping[str, Sequence[Capture]],
    names: Sequence[str] = ("relevance", "grad_cam"),
) -> dict[str, Method]:
    """Methods of `attention.attribution` for an explorer: computed on these policies when they are chosen,
    the mean over what is asked about.

    Args:
        names: of `attribution.METHODS`; the costly ones take seconds a picture.
    """
    from refinevla_kit.attention.attribution import (
        METHODS,
        attribute,
    )  # needs torch; looking at saved captures does not

    if unknown := [name for name in names if name not in METHODS]:
        raise KitError(f"unknown attribution method {unknown[0]!r}", f"choose from {', '.join(METHODS)}")

    def method(name: str) -> Method:
        def compute(policy: str, index: int, one: Asked) -> Array:
            if policy not in policies:
                raise KitError(
                    f"{policy} is not here to compute {name}",
                    "give it to attribution_methods, or choose the method 'attention'",
                )
            seen = captures[policy][index]
            found = [
                attribute(
                    policies[policy],
                    frames[index],
                    seen.queries[row],
                    name,
                    seen.action,
                    seen.rationale or None,
                )
                for row in one.rows
            ]
            return np.asarray(np.mean([each.patch_map for each in found], axis=0))

        return compute

    return {name: method(name) for name in names}


def capture_words(
    policies: Mapping[str, VLAPolicy], frames: Sequence[Frame], writer: str
) -> dict[str, list[Capture]]:
    """Captures from the action, the instruction and a rationale of each frame: the one that `writer` writes,
    fed to every policy, so that they are asked about the same words. A frame for which it writes no word is
    captured without.

    Args:
        policies: name -> policy.
        writer: one of the names.
    """
    from refinevla_kit.attention.forward import capture, check_policy  # needs torch

    if writer not in policies:
        raise KitError(
            f"there is no policy {writer!r} to write rationales", f"choose one of {', '.join(policies)}"
        )
    check_policy(policies[writer])
    found: dict[str, list[Capture]] = {name: [] for name in policies}
    for frame in frames:
        text = policies[writer].explain(frame.image, frame.instruction, frame.proprioception)
        kinds = KINDS if any(letter.isalnum() for letter in text) else (ACTION_QUERY, INSTRUCTION_QUERY)
        for name, policy in policies.items():
            given = (frame.image, frame.instruction, None, text, frame.proprioception, kinds)
            found[name].append(capture(policy, *given))
    return found


class AttentionExplorer:
    """Widget over frames and what each policy attended to in them.

    Attributes:
        box: what to display. episode, step, kind, query, method, layer, head, opacity, outlines: the
            controls; setting a `.value` works without a browser too. Layers and heads count from 1. `step`
            counts the chosen frames of the episode. `query` is a key of `Exploration.queries`.
        picture: what is on show (`picture.view`).
        message: what was saved, or why there is nothing to show.
        form, save: the kind of file ("png", "svg", "pdf"; "html": a page with all of this that needs no
            kernel) and the button that writes it.

    Args:
        frames, captures, methods: as in `Exploration`.
        layer: shown first, from 1; None is `upper_middle`.
        folder: where `save` writes.

    Raises:
        KitError: no frames, captures that do not belong to the frames, or policies of different size.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        captures: Mapping[str, Sequence[Capture]],
        layer: int | None = None,
        methods: Mapping[str, Method] | None = None,
        folder: str | Path = ".",
    ) -> None:
        self.exploration, self._folder = Exploration(frames, captures, methods), Path(folder)
        layers, heads, episodes = self.exploration.layers, self.exploration.heads, self.exploration.episodes
        shown = upper_middle(layers) + 1 if layer is None else layer
        if not 1 <= shown <= layers:
            raise KitError(f"there is no layer {shown}", f"choose 1 to {layers}")
        style: dict[str, Any] = {"description_width": "4.5em"}
        first = next(iter(episodes))
        there = {one.kind for index in range(len(frames)) for one in self.exploration.queries(index).values()}
        kinds = [(name, kind) for kind, name in KIND_LABELS.items() if kind in there]
        shown_first = next(iter(self.exploration.queries(episodes[first][0]).values())).kind
        self.episode = widgets.Dropdown(options=list(episodes), description="episode", style=style)
        self.step = widgets.IntSlider(0, 0, len(episodes[first]) - 1, description="frame", style=style)
        self.play = widgets.Play(interval=300, min=0, max=self.step.max, description="play")
        self.kind = widgets.Dropdown(options=kinds, value=shown_first, description="from", style=style)
        self.query = widgets.SelectionSlider(
            options=self._options(), description="token", style=style, layout={"width": "400px"}
        )
        self.method = widgets.Dropdown(options=self.exploration.methods, description="method", style=style)
        self.layer = widgets.IntSlider(shown, 1, layers, description="layer", style=style)
        self.head = widgets.SelectionSlider(
            options=[MEAN, *range(1, heads + 1)], description="head", style=style
        )
        self.opacity = widgets.FloatSlider(
            0.9, min=0.0, max=1.0, step=0.05, description="opacity", style=style
        )
        self.outlines = widgets.Checkbox(
            True, description="outlines", indent=False, layout={"width": "110px"}
        )
        self.form = widgets.Dropdown(options=[*FORMATS, PAGE], layout={"width": "80px"})
        self.save = widgets.Button(description="save", layout={"width": "80px"})
        self.picture, self.message = Picture(), widgets.HTML()
        widgets.jslink((self.play, "value"), (self.step, "value"))
        self.episode.observe(self._other_episode, "value")
        self.kind.observe(self._other_kind, "value")
        for control in (
            self.step,
            self.query,
            self.method,
            self.layer,
            self.head,
            self.opacity,
            self.outlines,
        ):
            control.observe(self._redraw, "value")
        self.save.on_click(lambda _: self._say(self._save))
        rows = [
            [self.episode, self.step, self.play],
            [self.kind, self.query, self.method],
            [self.layer, self.head],
            [self.opacity, self.outlines, self.form, self.save],
        ]
        self.box = widgets.VBox([*(widgets.HBox(row) for row in rows), self.message, self.picture])
        self._held = False  # several controls are being set: draw once, at the end
        self._redraw()

    @property
    def index(self) -> int:
        """Number of the frame on show."""
        return self.exploration.episodes[self.episode.value][self.step.value]

    def choose(self, **values: Any) -> None:
        """Set controls by name, such as `choose(episode=3, step=5, query="word:carrot:1", layer=4)`; what
        cannot be chosen is said in the message.
        """

        def set_all() -> None:
            if "query" in values and "kind" not in values:
                values["kind"] = str(values["query"]).split(":")[0]
            for name in (
                "episode",
                "step",
                "kind",
                "query",
                "method",
                "layer",
                "head",
                "opacity",
                "outlines",
            ):
                if name in values:
                    self._set(name, values[name])

        self._held = True
        wrong = self._say(set_all)
        self._held = False
        if not wrong:
            self._redraw()

    def view(self) -> View:
        """What the controls choose now."""
        return self.exploration.view(
            self.index,
            self.query.value,
            self.layer.value - 1,
            self._head(),
            self.method.value,
            self.opacity.value,
            self.outlines.value,
        )

    def figure(self) -> Figure:
        """The same picture for paper, drawn by the pure function; for a run without a browser too."""
        return comparison(self.view())

    def export(self, path: str | Path) -> Path:
        """Write the page that shows all of this without a kernel; see `write_page`."""
        return write_page(path, self.exploration, self.query.value, self.layer.value - 1)

    def _save(self) -> None:
        frame = self.exploration.frames[self.index]
        query = re.sub(r"[^0-9A-Za-z]+", "_", self.query.value)
        name = f"explorer-{frame.episode}-{frame.step}-{query}-layer{self.layer.value}"
        if self.form.value == PAGE:
            path = self.export(self._folder / "explorer.html")
        else:
            made_from = {name: getattr(self, name).value for name in ("query", "method", "layer", "head")}
            made_from |= {"episode": frame.episode, "step": frame.step}
            made_from |= {
                "policies": {
                    name: found[0].checkpoint_hash for name, found in self.exploration.captures.items()
                }
            }
            path = save_figure(self.figure(), self._folder / name, made_from, [self.form.value])
        self.message.value = f"saved {escape(str(path))}"

    def _set(self, name: str, value: Any) -> None:
        control = getattr(self, name)
        if hasattr(control, "options"):
            known = [each[1] if isinstance(each, tuple) else each for each in control.options]
            if value not in known:
                raise KitError(
                    f"there is no {name} {value!r} here", f"choose one of {', '.join(map(str, known))}"
                )
        elif isinstance(control, widgets.IntSlider) and not control.min <= value <= control.max:
            raise KitError(
                f"there is no {control.description} {value}", f"choose {control.min} to {control.max}"
            )
        control.value = value

    def _head(self) -> int | None:
        return None if self.head.value == MEAN else self.head.value - 1

    def _options(self) -> list[tuple[str, str]]:
        """What can be looked from in the frame on show, of the kind chosen: (label, key)."""
        return [
            (one.label, key)
            for key, one in self.exploration.queries(self.index).items()
            if one.kind == self.kind.value
        ]

    def _other_episode(self, _: Any) -> None:
        held, self._held = self._held, True
        self.step.max = self.play.max = (
            len(self.exploration.episodes[self.episode.value]) - 1
        )  # moves the slider when the new episode is shorter
        self._held = held
        self._redraw()

    def _other_kind(self, _: Any) -> None:
        self._fit_query()
        self._redraw()

    def _fit_query(self) -> None:
        """Offer what this frame has; another frame's rationale has other words. The query is kept where there
        is one of its name.
        """
        options, key = self._options(), self.query.value
        if options and [*self.query.options] != options:
            held, self._held = self._held, True
            self.query.options = options
            self.query.value = key if key in {each for _, each in options} else options[0][1]
            self._held = held

    def _redraw(self, _: Any = None) -> None:
        if not self._held:
            self._say(self._show)

    def _show(self) -> None:
        self._fit_query()
        self.picture.view = payload(self.view(), self.exploration.rationales(self.index, self.query.value))
        self.message.value = ""

    def _say(self, what: Any) -> bool:
        """Do it; True when it went wrong, which is said in the widget: an exception in a callback would be
        swallowed and leave the old picture.
        """
        try:
            what()
        except KitError as error:
            self.message.value = f"<b>{escape(str(error))}</b>"
            return True
        return False
