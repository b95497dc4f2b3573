"""The episode browser draws what its menu and slider say."""

from __future__ import annotations

import numpy as np

from refinevla_kit.episodes import DatasetWriter, Episode, open_dataset
from refinevla_kit.teacher import OracleTeacher, annotate_dataset, load_rationales
from refinevla_kit.widgets.episode_browser import EpisodeBrowser


def test_choosing_a_segment_or_an_episode_redraws(tmp_path) -> None:
    rng = np.random.default_rng(0)
    with DatasetWriter(tmp_path / "two", fps=5, robot_type="widowx") as writer:
        for length in (6, 4):
            images = rng.integers(0, 255, (length, 32, 48, 3), dtype=np.uint8)
            writer.add(Episode(images, np.zeros((length, 7), np.float32), np.zeros((length, 8), np.float32), "put carrot on plate"))
    dataset = open_dataset(tmp_path / "two")
    browser = EpisodeBrowser(dataset, load_rationales(annotate_dataset(dataset, OracleTeacher(), "step", progress=False)))
    first = bytes(browser.picture.value)
    assert first.startswith(b"\x89PNG")
    assert browser.segment.max == 5
    browser.segment.value = 5
    last = bytes(browser.picture.value)
    assert last != first
    browser.episode.value = 1
    assert (browser.segment.value, browser.segment.max) == (0, 3)
    assert bytes(browser.picture.value) not in (first, last)
    browser.episode.value = 0
    assert bytes(browser.picture.value) == first
