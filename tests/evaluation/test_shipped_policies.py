"""The shipped policies do what they did, episode by episode, but for what a processor rounds otherwise."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path

import pytest

from refinevla_kit.evaluation import evaluate, load_records
from refinevla_kit.evaluation.statistics import PAIRED
from refinevla_kit.rollouts.players import DemonstratorPolicy
from refinevla_kit.settings import REPOSITORY
from tests.reference.shipped_policies import COLUMNS, POLICIES, differences, kept_outcomes, outcomes, play

# Of each task: among them are successes and failures of both policies.
EPISODES = (1, 13)


def test_the_shipped_records_are_the_reference() -> None:
    shipped = outcomes(REPOSITORY / "data" / "records" / "records.parquet")
    kept = kept_outcomes()
    assert len(kept) == 2 * 4 * 24
    assert differences({episode: shipped[episode] for episode in kept}, kept) == []


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_a_shipped_policy_does_what_it_did(policy: str, tmp_path: Path) -> None:
    played = play(policy, EPISODES, tmp_path / "records.parquet")
    assert len(played) == 4 * len(EPISODES)
    kept, last = kept_outcomes(), COLUMNS.index("success_last")
    otherwise = {name for name, values in played.items() if values[last] != kept[name][last]}
    lines = differences({name: played[name] for name in sorted(otherwise)}, kept)
    assert len(lines) <= 1, (
        f"{len(lines)} of {len(played)} episodes ended otherwise: {'; '.join(lines)}. One alone may be a "
        "processor that rounds otherwise; more are a change of the policy, the simulator or the assets."
    )


@pytest.mark.slow
def test_the_google_robots_demonstrator_does_what_it_did(tmp_path: Path) -> None:
    # Without the script's hash: a comment put otherwise changes it, and what it does is compared here.
    episode = attrgetter(*PAIRED)
    kept = {
        episode(record): record for record in load_records(REPOSITORY / "data/records/google_robot.parquet")
    }
    policy, tasks = DemonstratorPolicy("google_robot"), ["pick_standing_coke_can", "close_top_drawer"]
    path = evaluate(
        policy,
        [f"google_robot_{task}" for task in tasks],
        "spread",
        n=1,
        variants=["base"],
        workers=0,
        width=160,
        output=tmp_path / "records.parquet",
        progress=False,
    )
    played = load_records(path)
    assert len(played) == 2
    for record in played:
        before = kept[episode(record)]
        assert (record.success_any, record.success_last) == (before.success_any, before.success_last)
