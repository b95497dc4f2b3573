"""The explorer without a browser: a choice changes what is on show, the kernel answers what the page asks,
and what is wrong is said.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from refinevla_kit.attention.attribution import attribute
from refinevla_kit.attention.captured import KINDS, Capture
from refinevla_kit.attention.forward import capture
from refinevla_kit.attention.grounding import shares
from refinevla_kit.errors import KitError
from refinevla_kit.figures.overlays import EVEN
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.simulator.contract import Array
from refinevla_kit.widgets import AttentionExplorer, attention_explorer
from refinevla_kit.widgets.attention_explorer import attribution_methods, capture_words
from tests.attention.conftest import small_policy
from tests.widgets.explored import CAPTURES, FRAMES, NAMES, attention, shown


@pytest.fixture
def explorer(tmp_path: Path) -> Iterator[AttentionExplorer]:
    made = AttentionExplorer(FRAMES, CAPTURES, folder=tmp_path)
    yield made
    made.close()


@pytest.fixture
def replies(explorer: AttentionExplorer, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the kernel sends to the page."""
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(explorer, "send", sent.append)
    return sent


def ask(explorer: AttentionExplorer, **question: Any) -> None:
    """As the page asks."""
    explorer._handle_custom_msg({"id": "7", **question}, [])


def title_of(figure: Figure) -> str:
    """The title over the whole, which stands in the part of the figure below it."""
    return "".join(part.get_suptitle() for part in (figure, *figure.subfigs))


def page_numbers(explorer: AttentionExplorer) -> str:
    return json.dumps(shown(explorer.view()))


@pytest.mark.parametrize(
    "choice",
    [
        {"step": 2},
        {"episode": 4},
        {"layer": 1},
        {"head": 2},
        {"query": "action:gripper"},
        {"query": "word:The:1"},
        {"opacity": 0.2},
        {"outlines": False},
    ],
)
def test_each_choice_changes_what_is_on_show(explorer: AttentionExplorer, choice: dict[str, object]) -> None:
    before = page_numbers(explorer), explorer.view().outlines
    explorer.choose(**choice)
    assert (page_numbers(explorer), explorer.view().outlines) != before
    assert explorer.choice.items() >= choice.items()


def test_the_view_has_the_numbers_of_the_captures(explorer: AttentionExplorer) -> None:
    explorer.choose(episode=4, step=1, layer=3, head=2, query="action:yaw")
    view = explorer.view()
    assert view.title == "put carrot on plate: episode 4, step 1 (reach)"
    assert view.detail == "from action yaw; layer 3, head 2"
    for name in NAMES:
        row = CAPTURES[name][4].patches[2, 1, 5]
        np.testing.assert_allclose(view.maps[name].ravel(), row, rtol=1e-4)
    found = shares(CAPTURES["with_reasoning"][4].patches[2, 1, 5].reshape(6, 8), FRAMES[4].masks)
    page = shown(view)["shares"]
    assert [thing["values"][1] for thing in page["things"]] == pytest.approx(
        [float(found[name]) for name in FRAMES[4].masks]
    )
    assert page["rest"][1] == pytest.approx(float(found["rest"]))


def test_what_another_method_computed_is_not_called_attention() -> None:
    explorer = AttentionExplorer(FRAMES, CAPTURES, methods={"grad_cam": lambda *_: np.ones((6, 8))})
    assert explorer.view().unit == EVEN
    explorer.choose(method="grad_cam")
    assert explorer.view().unit == "grad_cam of a patch (1 = spread evenly)"
    texts = [text.get_text() for text in explorer.figure().findobj(Text)]
    assert explorer.view().unit in texts and EVEN not in texts
    assert any(text.startswith("share of grad_cam") for text in texts)


def test_controls_are_numbers_in_their_range(explorer: AttentionExplorer) -> None:
    for values in ({"opacity": 5}, {"opacity": "x"}, {"layer": "2"}, {"layer": 99}):
        before = dict(explorer.choice)
        with pytest.raises(KitError, match=r"opacity is|layer is"):
            explorer.choose(**values)
        assert explorer.choice == before


def test_a_shorter_episode_holds_the_step(explorer: AttentionExplorer) -> None:
    explorer.choose(step=2)
    explorer.choose(episode=4)  # has two frames
    assert explorer.choice["step"] == 1
    assert "episode 4, step 1" in explorer.view().title


def test_a_frame_with_another_rationale_offers_its_words() -> None:
    captures = {
        name: [*found[:1], attention(FRAMES[1], 7, name, "Lift the spoon."), *found[2:]]
        for name, found in CAPTURES.items()
    }
    explorer = AttentionExplorer(FRAMES, captures)
    explorer.choose(query="word:the:1")
    explorer.choose(step=1)
    words = [group.label for group in explorer.exploration.queries(1).values() if group.kind == "word"]
    assert words == ["Lift", "the", "spoon"] and explorer.choice["query"] == "word:the:1"
    explorer.choose(query="word:spoon:1")
    explorer.choose(step=2)
    assert explorer.choice["query"] == "word:The:1"  # no spoon here: the first word


def test_the_static_figure_is_of_the_same_view(explorer: AttentionExplorer) -> None:
    explorer.choose(query="action:z")
    figure = explorer.figure()
    assert title_of(figure).splitlines() == [explorer.view().title, explorer.view().detail]
    bars = next(axes for axes in figure.axes if len(axes.patches) == 8)
    value = shown(explorer.view())["shares"]["things"][1]["values"][1]
    assert bars.patches[3].get_width() == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("form", ["png", "svg", "pdf", "html"])
def test_what_is_on_show_is_saved(
    explorer: AttentionExplorer, replies: list[dict[str, Any]], tmp_path: Path, form: str
) -> None:
    explorer.choose(query="action:x", layer=2)
    ask(explorer, ask="save", form=form)
    (path,) = tmp_path.glob(f"*.{form}")
    assert replies == [{"id": "7", "answer": str(path)}]
    if form != "html":
        assert path.stem == "explorer-0-0-action_x-attention-layer2-head_mean"
        assert json.loads(path.with_suffix(".json").read_text())["made_from"]["policies"] == {
            name: f"hash-{name}" for name in NAMES
        }


def test_pictures_of_other_heads_and_methods_are_kept_beside_each_other(tmp_path: Path) -> None:
    methods = {"grad_cam": lambda *_: np.ones((6, 8))}
    explorer = AttentionExplorer(FRAMES, CAPTURES, methods=methods, folder=tmp_path)
    saved = {explorer.save()}
    for choice in ({"head": 1}, {"head": 2}, {"method": "grad_cam"}):
        explorer.choose(**choice)
        saved.add(explorer.save())
    assert len(saved) == 4 and all(path.is_file() for path in saved)


def test_a_frame_that_cannot_be_shown_says_so_and_the_others_are() -> None:
    frames = [*FRAMES]
    frames[1] = replace(FRAMES[1], masks=dict.fromkeys(FRAMES[1].masks, np.ones((60, 80), bool)))
    frames[2] = replace(FRAMES[2], masks={"arm": np.ones((5, 80), bool)})
    explorer = AttentionExplorer(frames, CAPTURES)
    errors = [frame.get("error", "") for frame in explorer.state["frames"]]
    assert "object masks overlap" in errors[1] and "the mask of arm" in errors[2]
    assert [*map(bool, errors)] == [False, True, True, False, False]
    with pytest.raises(KitError, match="object masks overlap"):
        explorer.choose(step=1)
    explorer.choose(episode=4)
    assert "episode 4" in title_of(explorer.figure())


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"step": 3}, "unknown frame 3 -> choose 0 to 2"),
        ({"layer": 4}, "layer is 4"),
        ({"head": 3}, "unknown head 3"),
        ({"episode": 7}, "unknown episode 7"),
        ({"query": "word:spoon:1"}, "choose one of word:The:1"),
        ({"method": "grad_cam"}, "choose one of attention"),
        ({"tone": 1}, "unknown control 'tone'.* -> choose one of episode"),
    ],
)
def test_what_cannot_be_chosen_is_said(
    explorer: AttentionExplorer, choice: dict[str, object], says: str
) -> None:
    before = explorer.choice
    with pytest.raises(KitError, match=says):
        explorer.choose(**choice)
    assert explorer.choice == before
    explorer.choose(step=1)
    assert "step 1" in explorer.view().title


@pytest.mark.parametrize(
    ("captures", "layer", "says"),
    [
        ({}, None, "nothing to explore"),
        (list(CAPTURES.values()), None, "captures are given as list -> give a mapping"),
        ({"a": CAPTURES["action_only"][:2]}, None, "2 captures of a for 5 frames"),
        (CAPTURES, 4, "whole number from 1 to 3"),
    ],
)
def test_what_does_not_fit_is_refused(
    captures: dict[str, list[Capture]], layer: int | None, says: str
) -> None:
    with pytest.raises(KitError, match=says):
        AttentionExplorer(FRAMES, captures, layer)


@pytest.mark.parametrize(("easy", "held"), [(70_000, "mean"), (1, "nothing")])
def test_what_is_too_large_for_the_page_is_asked_of_the_kernel(
    monkeypatch: pytest.MonkeyPatch, easy: int, held: str
) -> None:
    monkeypatch.setattr(attention_explorer, "EASY_PAGE", easy)
    explorer, sent = AttentionExplorer(FRAMES, CAPTURES), list[dict[str, Any]]()
    monkeypatch.setattr(explorer, "send", sent.append)
    assert explorer.state["held"] == held
    assert ("values" in explorer.state["frames"][0]["seen"]["action_only"]) == (held == "mean")
    ask(explorer, ask="layer", choice={**explorer.choice, "step": 1, "layer": 3})
    answer = sent[0]["answer"]
    assert [*answer] == [0, 1, 2]  # the whole episode, for the next moves and for its curves
    kept = CAPTURES["with_reasoning"][1].patches[2]
    assert answer[1]["with_reasoning"] == attention_explorer.packed(kept)
    ask(explorer, ask="map", choice={**explorer.choice, "method": "lime"})
    assert "unknown method 'lime'" in sent[1]["error"]


def test_policies_are_asked_about_the_words_that_one_of_them_writes() -> None:
    policies = {name: small_policy(seed, name=name) for seed, name in enumerate(("a", "b"))}
    found = capture_words(policies, FRAMES[:2], writer="b")
    text = policies["b"].explain(FRAMES[1].image, FRAMES[1].instruction)
    assert [(name, one[1].rationale) for name, one in found.items()] == [("a", text), ("b", text)]
    words = [
        [query for query in one[1].queries if query.kind != "action"] for one in found.values()
    ]  # their actions are their own
    assert words[0] == words[1] and {query.kind for query in found["a"][1].queries} == {*KINDS}
    assert AttentionExplorer(FRAMES[:2], found).view().maps.keys() == {"a", "b"}
    with pytest.raises(KitError, match="unknown policy 'c' -> choose one of a, b"):
        capture_words(policies, FRAMES[:2], writer="c")
    with pytest.raises(KitError, match=r"unknown attribution method 'lime'.* -> choose one of raw"):
        attribution_methods(policies, FRAMES[:2], found, names=("lime",))


class Wordless(VLAPolicy):
    """Writes a full stop and no word, as one does that has hardly been trained."""

    def explain(self, image: Array, instruction: str, proprioception: Array | None = None) -> str:
        return " . "


def test_where_nothing_is_written_there_are_no_words_to_look_from() -> None:
    (found,) = capture_words({"a": Wordless(small_policy().vla, "a")}, FRAMES[:1], writer="a")["a"]
    assert {query.kind for query in found.queries} == {"action", "instruction"}


def test_a_method_is_computed_on_the_policy_when_it_is_chosen() -> None:
    policy, frames = small_policy(name="a"), FRAMES[:1]
    captures = {"a": [capture(policy, frames[0].image, frames[0].instruction)]}
    explorer = AttentionExplorer(
        frames, captures, methods=attribution_methods({"a": policy}, frames, captures, ["relevance"])
    )
    explorer.choose(method="relevance", query="action:z")
    found = attribute(policy, frames[0], "z", "relevance").patch_map
    np.testing.assert_allclose(explorer.view().maps["a"], found, rtol=1e-4)
    absent = AttentionExplorer(
        frames, captures, methods=attribution_methods({}, frames, captures, ["relevance"])
    )
    with pytest.raises(KitError, match="a is not here to compute relevance"):
        absent.choose(method="relevance")
