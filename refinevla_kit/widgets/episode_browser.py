"""Browse an annotated dataset: pick an episode and a segment, see its frame and its rationale. A thin shell over `figures.episodes`."""

from __future__ import annotations

import io
from collections.abc import Sequence

import ipywidgets

from refinevla_kit.episodes import EpisodeDataset
from refinevla_kit.figures.episodes import rationale_cards
from refinevla_kit.teacher.annotation import StoredRationale


class EpisodeBrowser(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets has no type hints
    """A menu, a slider and a picture.

    Args:
        dataset: where the frames come from. rationales: answers about it, at least one.

    Attributes:
        episode, segment: menu and slider; setting their `value` redraws. picture: the `Image` that holds the PNG.
    """

    def __init__(self, dataset: EpisodeDataset, rationales: Sequence[StoredRationale]) -> None:
        self._dataset = dataset
        self._answers = {info.index: [one for one in rationales if one.episode == info.index] for info in dataset.episodes}
        options = [(f"{info.index}: {info.instruction}", info.index) for info in dataset.episodes if self._answers[info.index]]
        self.episode = ipywidgets.Dropdown(options=options, description="episode")
        self.segment = ipywidgets.IntSlider(min=0, max=0, description="segment")
        self.picture = ipywidgets.Image(format="png", width=900)
        self.episode.observe(self._choose_episode, "value")
        self.segment.observe(self._draw, "value")
        super().__init__([ipywidgets.HBox([self.episode, self.segment]), self.picture])
        self._choose_episode()

    def _choose_episode(self, _: object = None) -> None:
        with self.segment.hold_trait_notifications():
            self.segment.value = 0
            self.segment.max = len(self._answers[self.episode.value]) - 1
        self._draw()

    def _draw(self, _: object = None) -> None:
        png = io.BytesIO()
        rationale_cards(self._dataset, [self._answers[self.episode.value][self.segment.value]]).savefig(png, format="png", dpi=120)
        self.picture.value = png.getvalue()
