"""The explorer without a browser: setting a control's value changes what is on show, and says what is wrong
instead of dying.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text

from refinevla_kit.attention.attribution import attribute
from refinevla_kit.attention.captured import KINDS, Capture
from refinevla_kit.attention.forward import capture
from refinevla_kit.attention.grounding import shares
from refinevla_kit.errors import KitError
from refinevla_kit.figures.overlays import EVEN
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.simulator.contract import Array
from refinevla_kit.widgets.attention_explorer import AttentionExplorer, attribution_methods, capture_words
from tests.attention.conftest import small_policy
from tests.widgets.explored import CAPTURES, FRAMES, NAMES, attention


@pytest.fixture
def explorer(tmp_path: Path) -> Iterator[AttentionExplorer]:
    made = AttentionExplorer(FRAMES, CAPTURES, folder=tmp_path)
    yield made
    made.box.close()


@pytest.mark.parametrize(
    ("control", "value"),
    [
        ("step", 2),
        ("episode", 4),
        ("layer", 1),
        ("head", 2),
        ("query", "action:gripper"),
        ("kind", "word"),
        ("opacity", 0.2),
        ("outlines", False),
    ],
)
def test_each_control_changes_what_is_on_show(
    explorer: AttentionExplorer, control: str, value: object
) -> None:
    before = json.dumps(explorer.picture.view)
    getattr(explorer, control).value = value
    assert json.dumps(explorer.picture.view) != before
    assert explorer.message.value == ""


def test_the_picture_has_the_numbers_of_the_captures(explorer: AttentionExplorer) -> None:
    explorer.choose(episode=4, step=1, layer=3, head=2, query="action:yaw")
    shown = explorer.picture.view
    assert (
        shown["title"] == "put carrot on plate: episode 4, step 1 (reach)"
        and shown["detail"] == "from action yaw; layer 3, head 2"
    )
    for panel, name in zip(shown["panels"], NAMES, strict=True):
        row = CAPTURES[name][4].patches[2, 1, 5]
        np.testing.assert_allclose(panel["heat"], row / row.mean(), rtol=1e-4)
    found = shares(CAPTURES["with_reasoning"][4].patches[2, 1, 5].reshape(6, 8), FRAMES[4].masks)
    assert [thing["values"][1] for thing in shown["shares"]["things"]] == pytest.approx(
        [float(found[name]) for name in FRAMES[4].masks]
    )
    assert shown["shares"]["rest"][1] == pytest.approx(float(found["rest"]))


def test_a_word_is_marked_in_its_rationale(explorer: AttentionExplorer) -> None:
    explorer.choose(query="word:carrot:2")
    (text,) = explorer.picture.view[
        "texts"
    ]  # one for both: they were fed the same, which says nothing about who would have written it
    assert (text["name"], text["before"], text["marked"]) == (
        "rationale fed to each policy",
        "The carrot is near. Move to the ",
        "carrot",
    )


def test_what_another_method_computed_is_not_called_attention() -> None:
    explorer = AttentionExplorer(FRAMES, CAPTURES, methods={"grad_cam": lambda *_: np.ones((6, 8))})
    units = [explorer.picture.view["unit"], explorer.picture.view["whole"]]
    explorer.choose(method="grad_cam")
    units += [explorer.picture.view["unit"], explorer.picture.view["whole"]]
    assert units == [
        EVEN,
        "the attention to the picture",
        "grad_cam of a patch (1 = spread evenly)",
        "grad_cam of the picture",
    ]
    said = [text.get_text() for text in explorer.figure().findobj(Text)]
    assert (
        units[2] in said and any(text.startswith("share of grad_cam") for text in said) and EVEN not in said
    )


def test_a_shorter_episode_holds_the_step(explorer: AttentionExplorer) -> None:
    explorer.step.value = 2
    explorer.episode.value = 4  # has two frames
    assert (explorer.step.value, explorer.step.max, explorer.play.max) == (1, 1, 1)
    assert "episode 4, step 1" in explorer.picture.view["title"]


def test_a_frame_with_another_rationale_offers_its_words() -> None:
    captures = {
        name: [*found[:1], attention(FRAMES[1], 7, name, "Lift the spoon."), *found[2:]]
        for name, found in CAPTURES.items()
    }
    explorer = AttentionExplorer(FRAMES, captures)
    explorer.choose(query="word:the:1")
    explorer.step.value = 1
    assert [label for label, _ in explorer.query.options] == [
        "Lift",
        "the",
        "spoon",
    ] and explorer.query.value == "word:the:1"
    explorer.query.value = "word:spoon:1"
    explorer.step.value = 2
    assert (
        explorer.query.value == "word:The:1" and explorer.message.value == ""
    )  # no spoon here: the first word


def test_the_static_figure_is_of_the_same_view(explorer: AttentionExplorer) -> None:
    explorer.query.value = "action:z"
    figure = explorer.figure()
    assert figure.get_suptitle().splitlines() == [explorer.view().title, explorer.view().detail]
    bars = next(axes for axes in figure.axes if len(axes.patches) == 8)
    assert bars.patches[3].get_width() == pytest.approx(
        explorer.picture.view["shares"]["things"][1]["values"][1], rel=1e-4
    )


@pytest.mark.parametrize("form", ["png", "svg", "pdf", "html"])
def test_what_is_on_show_is_saved(explorer: AttentionExplorer, tmp_path: Path, form: str) -> None:
    explorer.choose(query="action:x", layer=2)
    explorer.form.value = form
    explorer.save.click()
    (path,) = tmp_path.glob(f"*.{form}")
    assert explorer.message.value == f"saved {path}"
    if form != "html":
        assert path.stem == "explorer-0-0-action_x-layer2"
        assert json.loads(path.with_suffix(".json").read_text())["made_from"]["policies"] == {
            name: f"hash-{name}" for name in NAMES
        }


def test_a_mistake_is_said_in_the_widget(explorer: AttentionExplorer) -> None:
    explorer.exploration.frames[1] = replace(
        FRAMES[1], masks=dict.fromkeys(FRAMES[1].masks, np.ones((60, 80), bool))
    )
    explorer.step.value = 1
    assert "object masks overlap" in explorer.message.value
    explorer.exploration.frames[1] = replace(FRAMES[1], image=FRAMES[1].image[:50], masks={})
    explorer.exploration.frames[2] = replace(FRAMES[2], image=FRAMES[2].image[:5])
    explorer.step.value = 2
    assert "the mask of" in explorer.message.value
    explorer.choose(episode=4)  # and it lives on
    assert explorer.message.value == "" and "episode 4" in explorer.picture.view["title"]


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"step": 3}, "there is no frame 3 -&gt; choose 0 to 2"),
        ({"layer": 4}, "no layer 4"),
        ({"episode": 7}, "no episode 7 here"),
        ({"query": "word:spoon:1"}, "choose one of word:The:1"),
        ({"method": "grad_cam"}, "choose one of attention"),
    ],
)
def test_what_cannot_be_chosen_is_said(
    explorer: AttentionExplorer, choice: dict[str, object], says: str
) -> None:
    explorer.choose(**choice)
    assert says in explorer.message.value
    explorer.choose(step=1)
    assert explorer.message.value == "" and "step 1" in explorer.picture.view["title"]


@pytest.mark.parametrize(
    ("captures", "layer", "says"),
    [
        ({}, None, "nothing to explore"),
        (list(CAPTURES.values()), None, "captures are given as list -> give a mapping"),
        ({"a": CAPTURES["action_only"][:2]}, None, "2 captures of a for 5 frames"),
        (CAPTURES, 4, "choose 1 to 3"),
    ],
)
def test_what_does_not_fit_is_refused(
    captures: dict[str, list[Capture]], layer: int | None, says: str
) -> None:
    with pytest.raises(KitError, match=says):
        AttentionExplorer(FRAMES, captures, layer)


def test_policies_are_asked_about_the_words_that_one_of_them_writes() -> None:
    policies = {name: small_policy(seed, name=name) for seed, name in enumerate(("a", "b"))}
    found = capture_words(policies, FRAMES[:2], writer="b")
    text = policies["b"].explain(FRAMES[1].image, FRAMES[1].instruction)
    assert [(name, one[1].rationale) for name, one in found.items()] == [("a", text), ("b", text)]
    words = [
        [query for query in one[1].queries if query.kind != "action"] for one in found.values()
    ]  # their actions are their own
    assert words[0] == words[1] and {query.kind for query in found["a"][1].queries} == {*KINDS}
    assert AttentionExplorer(FRAMES[:2], found).message.value == ""
    with pytest.raises(KitError, match="there is no policy 'c' to write rationales -> choose one of a, b"):
        capture_words(policies, FRAMES[:2], writer="c")
    with pytest.raises(KitError, match="unknown attribution method 'lime' -> choose from raw"):
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
    np.testing.assert_allclose(
        explorer.picture.view["panels"][0]["heat"], (found / found.mean()).ravel(), rtol=1e-4
    )
    absent = AttentionExplorer(
        frames, captures, methods=attribution_methods({}, frames, captures, ["relevance"])
    )
    absent.choose(method="relevance")
    assert "a is not here to compute relevance" in absent.message.value
