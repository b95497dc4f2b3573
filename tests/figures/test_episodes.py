"""Pictures of an episode show the frames, segments and words they are given."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex

from refinevla_kit.episodes import DatasetWriter, Episode, open_dataset
from refinevla_kit.episodes.segments import Segment
from refinevla_kit.figures.episodes import COLOURS, action_curves, contact_sheet, rationale_cards
from refinevla_kit.teacher import Rationale, Refusal, StoredRationale

SEGMENTS = [Segment(0, 3, "start"), Segment(3, 8, "gripper closes")]


def stored(start: int, end: int, answer: Rationale | Refusal) -> StoredRationale:
    rationale, refusal = (answer, None) if isinstance(answer, Rationale) else (None, answer)
    return StoredRationale(0, start, end, rationale, refusal, "", "oracle", "1", "", 0, 0, 0.0)


@pytest.fixture
def dataset(tmp_path):
    """Eight frames that grow brighter; a mask in the left half."""
    images = np.stack([np.full((32, 48, 3), 20 * frame, np.uint8) for frame in range(8)])
    masks = {"carrot": np.zeros((8, 32, 48), bool)}
    masks["carrot"][:, 8:20, 4:16] = True
    with DatasetWriter(tmp_path / "eight", fps=5, robot_type="widowx") as writer:
        writer.add(
            Episode(
                images,
                np.zeros((8, 7), np.float32),
                np.zeros((8, 15), np.float32),
                "put carrot on plate",
                masks=masks,
            )
        )
    return open_dataset(tmp_path / "eight")


def test_each_picture_is_framed_in_the_colour_of_its_segment() -> None:
    images = np.zeros((3, 12, 16, 3), np.uint8)
    figure = contact_sheet(images, [0, 2, 5], SEGMENTS, "an episode", columns=2)
    shown = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title(loc="left") for ax in shown] == [
        "frame 0, segment 0",
        "frame 2, segment 0",
        "frame 5, segment 1",
    ]
    assert [to_hex(ax.spines["top"].get_edgecolor()) for ax in shown] == [COLOURS[0], COLOURS[0], COLOURS[1]]


def test_displacements_are_drawn_in_centimetres_and_degrees() -> None:
    actions = np.zeros((8, 7), np.float32)
    actions[:, 2], actions[:, 5], actions[4:, 6] = 0.03, np.pi / 18, 1
    move, turn, gripper = action_curves(actions, SEGMENTS, fps=5).axes
    assert move.lines[2].get_ydata()[0] == pytest.approx(3)
    assert turn.lines[2].get_ydata()[0] == pytest.approx(10)
    assert gripper.lines[0].get_ydata()[-1] == 1
    assert move.lines[0].get_xdata()[-1] == pytest.approx(8 / 5)
    assert len(move.patches) == len(SEGMENTS)


def test_of_many_joints_those_that_move_most_are_drawn() -> None:
    actions = np.outer(np.arange(8), np.arange(26)).astype(np.float32)
    (panel,) = action_curves(actions, SEGMENTS, [f"joint{i}" for i in range(26)], 30, deltas=False).axes
    assert [line.get_label() for line in panel.lines] == [f"joint{i}" for i in range(20, 26)]


def test_a_card_shows_the_first_frame_its_masks_and_the_words(dataset) -> None:
    figure = rationale_cards(
        dataset,
        [
            stored(5, 8, Rationale("seen", "now", "there", "next")),
            stored(0, 5, Refusal("no_state", "a real robot")),
        ],
    )
    picture, words, _, refused = figure.axes
    assert picture.get_title(loc="left") == "episode 0, frames 5 to 7"
    assert abs(float(picture.images[0].get_array().mean()) - 100) < 6  # frame 5, through the video codec
    assert [text.get_text() for text in picture.texts] == ["carrot"]
    assert 4 <= picture.texts[0].get_position()[0] <= 16
    assert all(part in words.texts[0].get_text() for part in ("seen", "now", "there", "next"))
    assert refused.texts[0].get_text() == "Refused (no_state): a real robot"


def test_what_a_model_writes_is_no_formula(dataset) -> None:
    """Matplotlib would stop at a macro that it does not know."""
    words = "It lies $\\SI{5}{cm}$ to the left, for $2."
    spoken = stored(0, 3, Rationale(words, words, words, words))
    figure = rationale_cards(dataset, [spoken, stored(3, 8, Refusal("blocked", words))])
    figure.canvas.draw()
