"""Sweeps: arms that differ in one factor make a line, on the episodes that all of them played."""

from dataclasses import replace

import pytest

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.records import EpisodeRecord
from refinevla_kit.evaluation.training_seeds import WEIGHT, arms_of, sweep
from tests.evaluation.rows import row

FACTORS = {WEIGHT: 0.3, "freeze_layers": 3, "share": 1.0, "rationales": "own"}
ARMS = {
    "action_only": FACTORS | {WEIGHT: 0.0},
    "with_reasoning": FACTORS,
    "lambda_1": FACTORS | {WEIGHT: 1.0},
    "with_reasoning_depth_1": FACTORS | {"freeze_layers": 1},
    "action_only_depth_1": FACTORS | {WEIGHT: 0.0, "freeze_layers": 1},
    "shuffled": FACTORS | {"rationales": "shuffled"},
}


def played(arm: str, wins: int, starts: int, seed: int = 0) -> list[EpisodeRecord]:
    """The first `wins` of `starts` episodes succeed."""
    return [
        replace(row(arm, number, number < wins), seed=seed, checkpoint_hash=f"{arm}{seed}", start="dense")
        for number in range(starts)
    ]


RECORDS = [
    *played("action_only", 2, 8),
    *played("with_reasoning", 6, 8),
    *played("lambda_1", 1, 4),
    *played("with_reasoning_depth_1", 3, 4),
    *played("action_only_depth_1", 0, 4),
    *played("shuffled", 4, 8),
    *played("with_reasoning", 8, 8, seed=1),
    *played("action_only", 8, 8, seed=1),
]


def test_the_weight_of_the_loss_makes_one_line_with_the_control_as_its_zero() -> None:
    lines = sweep(RECORDS, ARMS, WEIGHT)
    assert list(lines) == ["with_reasoning"]
    assert [(x, rate.successes, rate.episodes) for x, rate in lines["with_reasoning"]] == [
        (0.0, 2, 4),
        (0.3, 4, 4),
        (1.0, 1, 4),
    ]


def test_another_factor_makes_a_line_with_and_one_without_the_reasoning_loss() -> None:
    lines = sweep(RECORDS, ARMS, "freeze_layers")
    assert {name: [(x, rate.successes) for x, rate in line] for name, line in lines.items()} == {
        "action_only": [(1.0, 0), (3.0, 2)],
        "with_reasoning": [(1.0, 3), (3.0, 4)],
    }


def test_an_arm_that_has_not_been_played_takes_no_episodes_from_the_others() -> None:
    without = [one for one in RECORDS if one.policy != "lambda_1"]
    assert [rate.episodes for _, rate in sweep(without, ARMS, WEIGHT)["with_reasoning"]] == [16, 16]
    assert sweep([], ARMS, WEIGHT) == {}


def test_arms_come_from_a_study() -> None:
    study = {"runs": [{"arm": {"name": "action_only", WEIGHT: 0.0}, "seed": seed} for seed in (0, 1)]}
    assert arms_of(study) == {"action_only": {WEIGHT: 0.0}}
    with pytest.raises(KitError, match="no study of an experiment"):
        arms_of({"records": []})
