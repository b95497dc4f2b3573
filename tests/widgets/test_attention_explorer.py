"""The explorer without a browser: setting a control's value changes the picture, and says what is wrong instead of dying."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from refinevla_kit.attention.captured import Capture, Query
from refinevla_kit.attention.frames import Frame
from refinevla_kit.attention.grounding import shares
from refinevla_kit.episodes.contract import ACTION_NAMES
from refinevla_kit.errors import KitError
from refinevla_kit.policies.contract import Action
from refinevla_kit.widgets.attention_explorer import AttentionExplorer

LAYERS, HEADS, GRID = 3, 2, (6, 8)
NAMES = ("action_only", "with_reasoning")


def frame(episode: int, step: int) -> Frame:
    rng = np.random.default_rng([episode, step])
    masks = {name: np.zeros((60, 80), bool) for name in ("source", "target", "gripper", "arm")}
    for i, mask in enumerate(masks.values()):
        mask[10 * i : 10 * i + 8, 10 + step : 30 + step] = True
    return Frame(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8), masks, "put carrot on plate", "widowx_carrot_on_plate", episode, step, "reach")


def attention(seed: int, name: str) -> Capture:
    rows = np.random.default_rng(seed).random((LAYERS, HEADS, 7, 50)).astype(np.float32)
    rows /= rows.sum(-1, keepdims=True)
    nothing = np.zeros(7, np.float32)
    action = Action(nothing, nothing, nothing, nothing)
    queries = tuple(Query(dimension, "action", (49 + i,), (i,)) for i, dimension in enumerate(ACTION_NAMES))
    return Capture(rows[..., :48], rows[..., 48:], ("put", "<action>"), 1, queries, GRID, action, name, "hash")


FRAMES = [frame(0, 0), frame(0, 1), frame(0, 2), frame(4, 0), frame(4, 1)]
CAPTURES = {name: [attention(10 * i + k, name) for i in range(len(FRAMES))] for k, name in enumerate(NAMES)}


@pytest.fixture
def explorer() -> Iterator[AttentionExplorer]:
    made = AttentionExplorer(FRAMES, CAPTURES)
    yield made
    made.box.close()


@pytest.mark.parametrize(("control", "value"), [
    ("step", 2), ("episode", 4), ("layer", 1), ("head", 2), ("token", "gripper"), ("opacity", 0.2), ("outlines", False),
])  # fmt: skip
def test_each_control_changes_the_picture(explorer: AttentionExplorer, control: str, value: object) -> None:
    before = explorer.picture.value
    getattr(explorer, control).value = value
    assert explorer.picture.value != before
    with Image.open(io.BytesIO(explorer.picture.value)) as image:
        image.load()
        assert image.format == "PNG" and image.size[0] > 800
    assert explorer.message.value == ""


def test_the_view_is_what_the_controls_say(explorer: AttentionExplorer) -> None:
    explorer.episode.value, explorer.step.value, explorer.layer.value, explorer.head.value, explorer.token.value = 4, 1, 3, 2, "yaw"
    view = explorer.view()
    np.testing.assert_array_equal(view.image, FRAMES[4].image)
    for name in NAMES:
        np.testing.assert_array_equal(view.maps[name].ravel(), CAPTURES[name][4].patches[2, 1, 5])
    assert "episode 4, step 1 (reach); action yaw, layer 3, head 2" in view.title


def test_a_shorter_episode_holds_the_step(explorer: AttentionExplorer) -> None:
    explorer.step.value = 2
    explorer.episode.value = 4  # has two frames
    assert (explorer.step.value, explorer.step.max, explorer.play.max) == (1, 1, 1)
    assert "episode 4, step 1" in explorer.view().title


def test_the_static_figure_is_of_the_same_view(explorer: AttentionExplorer) -> None:
    explorer.token.value = "z"
    figure = explorer.figure()
    assert figure.get_suptitle() == explorer.view().title
    found = float(shares(explorer.view().maps["with_reasoning"], FRAMES[0].masks)["target"])
    assert figure.axes[2].patches[3].get_width() == pytest.approx(found)


def test_a_mistake_is_said_in_the_widget(explorer: AttentionExplorer) -> None:
    overlapping = dict.fromkeys(FRAMES[1].masks, np.ones((60, 80), bool))
    explorer._frames[1] = Frame(FRAMES[1].image, overlapping, "put carrot on plate", "", 0, 1, "reach")
    explorer.step.value = 1
    assert "object masks overlap" in explorer.message.value
    explorer.step.value = 2  # and it lives on
    assert explorer.message.value == ""


@pytest.mark.parametrize(("captures", "layer", "says"), [
    ({}, None, "nothing to explore"), ({"a": CAPTURES["action_only"][:2]}, None, "2 captures of a for 5 frames"), (CAPTURES, 4, "choose 1 to 3"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(captures: dict[str, list[Capture]], layer: int | None, says: str) -> None:
    with pytest.raises(KitError, match=says):
        AttentionExplorer(FRAMES, captures, layer)
