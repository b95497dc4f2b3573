"""The rollout viewer without a browser: filters choose rows, a row is played again on the real simulator and
gone through.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation import EpisodeRecord, evaluate, load_records
from refinevla_kit.evaluation.demonstrator_policy import DemonstratorPolicy
from refinevla_kit.figures.episodes import outcome
from refinevla_kit.widgets.rollout_viewer import RolloutViewer
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
    assert (
        "played by action_only: no policy of that name is here" in viewer.message.value
        and viewer.picture.view == {}
    )
    viewer.outcome.value = "held, not placed"
    viewer.replay.click()
    assert "no episode is chosen" in viewer.message.value
    with pytest.raises(KitError, match="no episodes to view"):
        RolloutViewer([])


@pytest.mark.slow
def test_an_episode_is_played_again_and_gone_through(played: list[EpisodeRecord], tmp_path: Path) -> None:
    policy = small_policy()
    viewer = RolloutViewer(played, [policy, DemonstratorPolicy()], tmp_path)
    viewer.policy.value = policy.name
    viewer.replay.click()
    assert viewer.message.value == "It ended as recorded."
    rollout, first = viewer.rollout(), json.loads(json.dumps(viewer.picture.view))
    assert viewer.step.max == rollout.record.steps and len(first["plots"]) == 8
    np.testing.assert_allclose(
        first["plots"][0]["lines"][2]["values"][:-1], 100 * rollout.actions[:, 2], rtol=1e-4
    )  # z, in cm
    assert first["plots"][0]["lines"][2]["values"][-1] is None  # at the last observation nothing was decided
    viewer.step.value = viewer.step.max
    assert (
        viewer.picture.view["now"] == rollout.record.steps and viewer.picture.view["image"] != first["image"]
    )
    viewer.layer.value = 1
    assert viewer.picture.view["panels"][0]["heat"] != first["panels"][0]["heat"]
    viewer.heat.value = False
    assert viewer.picture.view["panels"] == []
    viewer.think.value = True
    seen = rollout.observations[-1]
    assert viewer.picture.view["texts"][0]["after"] == policy.explain(
        seen.image, seen.instruction, seen.proprioception
    )
    viewer.save.click()
    (saved,) = tmp_path.glob("*.png")
    assert viewer.message.value == f"saved {saved}"
    viewer.policy.value = "demonstrator"
    assert viewer.moments.layout.display == "none"
    viewer.replay.click()
    assert viewer.message.value == "It ended as recorded. The attention of this policy cannot be read."
    viewer.step.value = viewer.step.max
    assert "solved" in viewer.picture.view["detail"] and len(viewer.picture.view["plots"]) == 4
    assert viewer.picture.view["texts"][0]["after"] == "(this policy writes no rationales)"
