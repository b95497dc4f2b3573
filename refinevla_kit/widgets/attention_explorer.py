"""The attention explorer: sliders over captured attention, one picture of all policies side by side.

Everything it shows was computed before; a slider only chooses. The figure is laid out once, then its artists get new data and the browser a PNG.
`view` and `figure` give the same picture without a browser.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as widgets
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from refinevla_kit.attention.capture import Capture, upper_middle
from refinevla_kit.attention.frames import Frame
from refinevla_kit.errors import KitError
from refinevla_kit.figures.overlays import View, comparison, refresh

MEAN = "mean"
DPI = 110


class AttentionExplorer:
    """Widget over frames and what each policy attended to in them.

    Attributes:
        box: what to display. episode, step, layer, head, token, opacity, outlines: the controls; setting a `.value` works without a browser too.
            Layers and heads count from 1. `step` counts the chosen frames of the episode.
        picture: the PNG on show. message: why there is none, for instance.

    Args:
        frames: in the order of the captures.
        captures: policy name -> one capture a frame.
        layer: shown first, from 1; None is `upper_middle`.

    Raises:
        KitError: no frames, captures that do not belong to the frames, or policies of different size.
    """

    def __init__(self, frames: Sequence[Frame], captures: Mapping[str, Sequence[Capture]], layer: int | None = None) -> None:
        self._frames, self._captures = list(frames), {name: list(found) for name, found in captures.items()}
        first = _check(self._frames, self._captures)
        self._episodes: dict[int, list[int]] = {}
        for index, frame in enumerate(self._frames):
            self._episodes.setdefault(frame.episode, []).append(index)
        self._figure: Figure | None = None
        shown = upper_middle(first.layers) + 1 if layer is None else layer
        if not 1 <= shown <= first.layers:
            raise KitError(f"there is no layer {shown}", f"choose 1 to {first.layers}")
        style: dict[str, Any] = {"description_width": "4.5em"}
        self.episode = widgets.Dropdown(options=list(self._episodes), description="episode", style=style)
        self.step = widgets.IntSlider(0, 0, len(self._episodes[self.episode.value]) - 1, description="frame", style=style)
        self.play = widgets.Play(interval=300, min=0, max=self.step.max, description="play")
        self.token = widgets.SelectionSlider(options=[MEAN, *first.dimensions], description="action", style=style)
        self.layer = widgets.IntSlider(shown, 1, first.layers, description="layer", style=style)
        self.head = widgets.SelectionSlider(options=[MEAN, *range(1, first.heads + 1)], description="head", style=style)
        self.opacity = widgets.FloatSlider(0.9, min=0.0, max=1.0, step=0.05, description="opacity", style=style)
        self.outlines = widgets.Checkbox(True, description="outlines", indent=False)
        self.picture = widgets.Image(format="png")
        self.message = widgets.HTML()
        widgets.jslink((self.play, "value"), (self.step, "value"))
        self.episode.observe(self._other_episode, "value")
        for control in (self.step, self.token, self.layer, self.head, self.opacity, self.outlines):
            control.observe(self._redraw, "value")
        rows = [[self.episode, self.step, self.play], [self.token, self.layer, self.head], [self.opacity, self.outlines]]
        self.box = widgets.VBox([*(widgets.HBox(row) for row in rows), self.message, self.picture])
        self._redraw()

    def view(self) -> View:
        """What the controls choose now."""
        index = self._episodes[self.episode.value][self.step.value]
        frame, head, token = self._frames[index], self.head.value, self.token.value
        chosen = {"layer": self.layer.value - 1, "head": None if head == MEAN else head - 1}
        maps = {}
        for name, found in self._captures.items():
            maps[name] = found[index].map(token=None if token == MEAN else found[index].dimensions.index(token), **chosen)
        actions = "all action dimensions" if token == MEAN else f"action {token}"
        heads = "mean of heads" if head == MEAN else f"head {head}"
        title = f"{frame.instruction}: episode {frame.episode}, step {frame.step} ({frame.phase}); {actions}, layer {self.layer.value}, {heads}"
        return View(frame.image, maps, frame.masks, title, self.opacity.value, self.outlines.value)

    def figure(self) -> Figure:
        """The same picture, newly drawn by the pure function; for a run without a browser."""
        return comparison(self.view())

    def _other_episode(self, _: Any) -> None:
        last = len(self._episodes[self.episode.value]) - 1
        before = self.step.value
        self.step.max = self.play.max = last  # moves the slider, which draws, when the new episode is shorter
        if self.step.value == before:
            self._redraw()

    def _redraw(self, _: Any = None) -> None:
        try:
            view = self.view()
            if self._figure is None:
                self._figure = comparison(view)
                self._figure.set_dpi(DPI)
            else:
                refresh(self._figure, view)
            self.picture.value, self.message.value = _png(self._figure), ""
        except KitError as error:  # said in the widget: an exception in a callback would be swallowed and leave the old picture
            self.message.value = f"<b>{error}</b>"


def _check(frames: Sequence[Frame], captures: Mapping[str, Sequence[Capture]]) -> Capture:
    if not frames or not captures:
        raise KitError("there is nothing to explore", "give at least one frame and one policy's captures of it")
    first = next(iter(captures.values()))[:1]
    for name, found in captures.items():
        if len(found) != len(frames):
            raise KitError(f"{len(found)} captures of {name} for {len(frames)} frames", "capture each policy on each of these frames")
        if any(one.patches.shape[:3] != first[0].patches.shape[:3] for one in found):
            raise KitError(f"{name} has another number of layers, heads or action dimensions", "explore policies of one size together")
    return first[0]


def _png(figure: Figure) -> bytes:
    """Drawn once (savefig would draw twice) and packed lightly: the bytes only travel to the browser."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    packed = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(packed, "png", compress_level=1)
    return packed.getvalue()
