"""A record played again on the real simulator is the episode it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation import evaluate, load_records
from refinevla_kit.evaluation.replay import Replayer
from refinevla_kit.rollouts.players import DemonstratorPolicy
from refinevla_kit.settings import REPOSITORY
from tests.evaluation.test_rollouts import CARROT, SMALL, RestPolicy


@pytest.mark.slow
def test_a_record_is_played_again_as_it_was(tmp_path) -> None:
    for policy in (DemonstratorPolicy(), RestPolicy()):
        evaluate(policy, CARROT, 1, output=tmp_path, workers=0, **SMALL)
    records = load_records(tmp_path)
    with Replayer([DemonstratorPolicy(), RestPolicy()]) as replayer:
        for record in records:
            rollout = replayer.play(record, masks=record.policy == "rest")
            assert rollout.differences == {}
            assert (
                rollout.actions.shape == (record.steps, 7) and len(rollout.observations) == record.steps + 1
            )
            assert (rollout.success[-1], rollout.grasped.any()) == (record.success_last, record.grasped)
            if record.policy == "rest":
                assert {"carrot", "plate", "gripper"} <= set(rollout.masks[-1])
                assert not rollout.success.any() and (rollout.actions[:, 6] == 1).all()
        other = replace(record, success_any=not record.success_any, steps=3)
        assert replace(rollout, record=other).differences["steps"] == (3, record.steps)
        assert (
            np.ptp(np.stack([each.image for each in rollout.observations[:2]]).astype(int), axis=0).max()
            < 255
        )


def test_an_episode_of_a_policy_that_is_not_here_is_refused() -> None:
    record = replace(
        load_records(REPOSITORY / "data/records/records.parquet")[0], policy="rest", checkpoint_hash="other"
    )
    with pytest.raises(KitError, match="checkpoint other, here is seed-0"):
        Replayer([RestPolicy()]).play(record)
    with pytest.raises(KitError, match="no policy of that name is here"):
        Replayer([]).play(record)
