"""What can be looked at, and that each choice gives the numbers of the captures and no others."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from refinevla_kit.attention.captured import Capture, save_captures
from refinevla_kit.attention.grounding import areas, shares
from refinevla_kit.errors import KitError
from refinevla_kit.figures.overlays import SHOWN
from refinevla_kit.widgets.exploration import Exploration, query_groups
from tests.widgets.explored import CAPTURES, FRAMES, NAMES, WORDS, attention, without_words


@pytest.fixture
def exploration() -> Exploration:
    return Exploration(FRAMES, CAPTURES)


def test_a_capture_is_looked_at_from_dimensions_sentences_and_words() -> None:
    found = query_groups(CAPTURES["action_only"][0])
    assert [*found][:3] == ["action", "action:x", "action:y"]
    assert [one.label for one in found.values() if one.kind == "sentence"] == [
        "1: The carrot is near",
        "2: Move to the carrot",
    ]
    assert found["sentence:2"].rows == (11, 12, 13, 14)
    assert (found["word:carrot:2"].label, found["word:carrot:2"].rows) == ("carrot (2)", (14,))
    assert found["instruction:put:1"].rows == (15,)
    text = CAPTURES["action_only"][0].rationale
    assert [text[slice(*found[key].span)] for key in ("sentence:1", "word:carrot:2")] == [
        "The carrot is near",
        "carrot",
    ]


def test_a_number_ends_no_sentence_and_an_unknown_spelling_no_search() -> None:
    capture = attention(FRAMES[0], 0, "a", "Up 0.5 cm now\nThen left")
    assert [one.label for one in query_groups(capture).values() if one.kind == "sentence"] == [
        "1: Up 0.5 cm now",
        "2: Then left",
    ]
    odd = replace(
        capture,
        queries=tuple(
            replace(query, label="zzz") if query.label == "cm" else query for query in capture.queries
        ),
    )
    assert [one.rows for one in query_groups(odd).values() if one.kind == "sentence"] == [
        (7, 8, 9, 10),
        (11, 12),
    ]


@pytest.mark.parametrize(
    ("key", "rows"),
    [
        ("action", slice(0, 7)),
        ("action:gripper", slice(6, 7)),
        ("sentence:1", slice(7, 11)),
        ("word:near:1", slice(10, 11)),
        ("instruction:put:1", slice(15, 16)),
    ],
)
@pytest.mark.parametrize("head", [None, 1])
def test_a_map_is_the_mean_of_its_rows(
    exploration: Exploration, key: str, rows: slice, head: int | None
) -> None:
    for name, one in exploration.maps(2, key, 1, head).items():
        heads = CAPTURES[name][2].patches[1][:, rows].mean(1)
        np.testing.assert_allclose(one.ravel(), heads.mean(0) if head is None else heads[head], rtol=1e-6)


def test_curves_are_the_shares_of_each_frame(exploration: Exploration) -> None:
    view = exploration.view(1, "word:near:1", 2)
    assert (view.steps.tolist(), view.now) == ([0, 1, 2], 1)
    assert [plot.title for plot in view.plots] == ["object to move", "where it goes", "gripper", "arm"]
    for thing, plot in zip(SHOWN, view.plots, strict=True):
        np.testing.assert_allclose(plot.lines[0].values, [areas(one.masks)[thing] for one in FRAMES[:3]])
        for name, line in zip(NAMES, plot.lines[1:], strict=True):
            expected = [
                float(shares(exploration.maps(i, "word:near:1", 2)[name], FRAMES[i].masks)[thing])
                for i in range(3)
            ]
            np.testing.assert_allclose(line.values, expected, rtol=1e-6)


def test_further_methods_are_asked_once_for_what_is_shown() -> None:
    calls = []

    def method(policy, index, one):
        calls.append((policy, index, one.key))
        return np.full((6, 8), 2.0)

    exploration = Exploration(FRAMES, CAPTURES, {"mine": method})
    for _ in range(2):
        view = exploration.view(3, "action:x", 0, method="mine")
    assert (
        calls == [(name, 3, "action:x") for name in NAMES]
        and view.detail == "from action x; mine"
        and view.plots == ()
    )


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ((9, "action", 0), "unknown frame 9"),
        ((0, "word:plate:1", 0), "there is no word plate 1 to look from in episode 0"),
        ((0, "action", 3), "unknown layer 4"),
        ((0, "action", 0, 2), "unknown head 3"),
        ((0, "action", 0, 0, "grad_cam"), "choose one of attention"),
    ],
)
def test_what_is_not_there_is_said(exploration: Exploration, choice: tuple, says: str) -> None:
    with pytest.raises(KitError, match=says):
        exploration.view(*choice)


def test_a_policy_without_words_is_named() -> None:
    exploration = Exploration(
        FRAMES, CAPTURES | {"with_reasoning": without_words(CAPTURES["with_reasoning"])}
    )
    assert "word:near:1" in exploration.queries(0)  # one of them has it
    with pytest.raises(KitError, match="with reasoning loss: there is no word near 1"):
        exploration.maps(0, "word:near:1", 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda found: found[:2], "2 captures of action_only for 5 frames"),
        (lambda found: [replace(found[0], checkpoint_hash="other"), *found[1:]], "of 2 checkpoints"),
        (lambda found: [replace(one, patches=one.patches[:2]) for one in found], "another number of layers"),
    ],
)
def test_captures_that_do_not_fit_are_refused(change, says: str) -> None:
    with pytest.raises(KitError, match=says):
        Exploration(
            FRAMES,
            {"with_reasoning": CAPTURES["with_reasoning"], "action_only": change(CAPTURES["action_only"])},
        )


def test_a_capture_of_another_picture_is_named_before_anything_is_drawn_or_exported() -> None:
    frames = [FRAMES[0], replace(FRAMES[1], image=FRAMES[1].image[:, ::-1]), *FRAMES[2:]]
    with pytest.raises(
        KitError, match=r"capture 1 of action_only is of another picture than the frame \(episode 0, step 1\)"
    ):
        Exploration(frames, CAPTURES)


def test_saved_captures_are_explored_without_torch(tmp_path) -> None:
    """As one looks, on a laptop, at what a large policy did on a GPU."""
    path = save_captures(CAPTURES["action_only"], tmp_path / "captures.safetensors")
    code = f"""
import sys
from refinevla_kit.attention.captured import load_captures
from refinevla_kit.widgets import AttentionExplorer
from tests.widgets.explored import FRAMES
explorer = AttentionExplorer(FRAMES, {{"large": load_captures({str(path)!r})}})
assert explorer.state["frames"][0]["seen"]["large"]["values"] and explorer.figure().axes
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_words_are_told_apart_by_their_count() -> None:
    capture: Capture = CAPTURES["action_only"][0]
    assert [one.rows[0] - 7 for one in query_groups(capture).values() if one.kind == "word"] == [
        *range(len(WORDS))
    ]
