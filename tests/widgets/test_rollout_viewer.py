"""The rollout viewer without a browser: filters choose rows, a row is played again on the real simulator and
gone through.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation import EpisodeRecord, evaluate, load_records
from refinevla_kit.figures.episodes import outcome
from refinevla_kit.rollouts.players import DemonstratorPolicy
from refinevla_kit.widgets import rollout_viewer
from refinevla_kit.widgets.rollout_viewer import FrameSlider, RolloutViewer, comment
from tests.attention.conftest import small_policy
from tests.evaluation.rows import row
from tests.evaluation.test_rollouts import CARROT

STACK = "widowx_stack_cube"
ROWS = [
    row("action_only", 0, True),
    row("action_only", 1, False, True),
    row("with_reasoning", 0, False),
    row("with_reasoning", 1, True, task=STACK),
    row("with_reasoning", 1, False, task=STACK, variant="lights_dark"),
]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> list[EpisodeRecord]:
    folder = tmp_path_factory.mktemp("records")
    for policy in (small_policy(), DemonstratorPolicy()):
        evaluate(policy, CARROT, 1, output=folder, workers=0, width=64, height=48, progress=False)
    return load_records(folder)


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"policy": "action_only"}, [0, 1]),
        ({"task": STACK, "outcome": "solved"}, [3]),
        ({"variant": "lights_dark"}, [4]),
        ({"outcome": "solved, then lost"}, [1]),
        ({"outcome": "held, not placed"}, []),
        ({"outcome": "not solved", "policy": "with_reasoning"}, [2, 4]),
    ],
)
def test_filters_choose_rows(filters: dict[str, str], kept: list[int]) -> None:
    viewer = RolloutViewer(ROWS)
    for name, value in filters.items():
        getattr(viewer, name).value = value
    assert [number for _, number in viewer.row.options] == kept
    assert viewer.count.value.startswith(
        f"{len(kept)} of 5 episodes, {sum(ROWS[number].success_last for number in kept)} solved"
    )


def test_a_filter_keeps_the_row_that_is_chosen() -> None:
    viewer = RolloutViewer(ROWS)
    viewer.row.value = 3
    viewer.policy.value = "with_reasoning"
    assert viewer.record == ROWS[3]
    viewer.policy.value = "action_only"
    assert viewer.record == ROWS[0]


def test_outcomes_in_words() -> None:
    assert [outcome(one) for one in ROWS[:3]] == [
        "solved (60 steps)",
        "solved, then lost (60 steps)",
        "never held (60 steps)",
    ]


def test_what_is_not_here_is_said_in_the_widget() -> None:
    viewer = RolloutViewer(ROWS)
    viewer.replay.click()
    assert "played by action_only: no policy of that name is here" in viewer.message.value
    assert viewer.box.children[-1].children == ()
    viewer.outcome.value = "held, not placed"
    viewer.replay.click()
    assert "no episode is chosen" in viewer.message.value
    with pytest.raises(KitError, match="no episodes to view"):
        RolloutViewer([])


def test_pictures_of_two_seeds_have_two_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_viewer, "action_plots", lambda _: ())
    rollouts = [
        SimpleNamespace(record=replace(ROWS[0], seed=seed), actions=[], observations=[], answers=[])
        for seed in (0, 1)
    ]
    assert [comment(rollout, None).name[-5:] for rollout in rollouts] == ["seed0", "seed1"]


@pytest.mark.slow
def test_an_episode_is_played_again_and_gone_through(
    played: list[EpisodeRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = small_policy()
    viewer = RolloutViewer(played, [policy, DemonstratorPolicy()], tmp_path)
    viewer.policy.value = policy.name
    viewer.replay.click()
    assert viewer.message.value == "It ended as recorded."
    rollout, explorer = viewer.rollout(), viewer.explorer()
    assert viewer.box.children[-1].children == (explorer,)
    first, state = explorer.view(), explorer.state
    assert len(state["frames"]) == rollout.record.steps + 1 and len(first.plots) == 8
    assert len(state["plots"]) == 4  # the page adds those of attention
    sent = state["plots"][0]["lines"][2]["values"]
    np.testing.assert_allclose(sent[:-1], 100 * rollout.actions[:, 2], rtol=1e-4)  # z, in cm
    assert sent[-1] is None  # at the last observation nothing was decided
    explorer.choose(step=rollout.record.steps)
    assert explorer.view().now == rollout.record.steps
    assert state["frames"][-1]["image"] != state["frames"][0]["image"]
    explorer.choose(layer=1)
    assert not np.array_equal(explorer.view().maps[policy.name], first.maps[policy.name])
    replies: list[dict] = []
    monkeypatch.setattr(explorer, "send", replies.append)
    seen = rollout.observations[-1]
    explorer._handle_custom_msg({"id": "1", "ask": "text", "index": rollout.record.steps}, [])
    written = policy.explain(seen.image, seen.instruction, seen.proprioception)
    assert replies == [{"id": "1", "answer": written}]
    saved = explorer.save("png")
    assert saved.parent == tmp_path and saved.stem.startswith(f"rollout-{policy.name}-{CARROT}-base-grid")
    made_from = json.loads(saved.with_suffix(".json").read_text())["made_from"]
    assert made_from["record"]["policy"] == policy.name and made_from["step"] == rollout.record.steps
    viewer.policy.value = "demonstrator"
    assert viewer.box.children[-1].children == ()
    viewer.replay.click()
    assert viewer.message.value == "It ended as recorded. The attention of this policy cannot be read."
    explorer = viewer.explorer()
    explorer.choose(step=viewer.rollout().record.steps)
    view = explorer.view()
    assert "solved" in view.detail and len(view.plots) == 4 and view.maps == {}
    monkeypatch.setattr(explorer, "send", replies.append)
    explorer._handle_custom_msg({"id": "2", "ask": "text", "index": 0}, [])
    assert replies[-1]["answer"] == "(this policy writes no rationales)"


@pytest.mark.slow
def test_one_slider_shows_each_picture_beside_where_the_policy_looked(played: list[EpisodeRecord]) -> None:
    policy = small_policy()
    record = next(one for one in played if one.policy == policy.name)
    slider = FrameSlider(policy, record)
    step, picture = slider.box.children
    assert step is slider.step and step.max == record.steps
    first = bytes(picture.value)
    step.value = record.steps
    assert first.startswith(b"\x89PNG") and bytes(picture.value) != first
    seen, looks = (axes for axes in slider.figure().axes if axes.images)
    assert (seen.get_title(), looks.get_title()) == ("picture", "where it looks")
    assert len(seen.images) == 1 and len(looks.images) == 2
    assert slider.figure().get_suptitle().startswith(f"put carrot on plate: step {record.steps} of")
