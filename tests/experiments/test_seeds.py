"""Over training seeds: the interval is Student's t over them, it covers when training matters, and the one
over starts alone does not.
"""

from dataclasses import replace
from math import isnan

import numpy as np
import pytest
from scipy import stats

from experiments.seeds import compare_seeds
from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.records import EpisodeRecord
from refinevla_kit.evaluation.statistics import compare
from refinevla_kit.evaluation.training_seeds import as_one_policy, over_seeds
from tests.evaluation.rows import row

TASKS = ("widowx_carrot_on_plate", "widowx_stack_cube")


def played(policy: str, seed: int, wins: dict[str, str], variant: str = "base") -> list[EpisodeRecord]:
    """Records of one training run: for each task a string of 1 and 0, one an episode."""
    return [
        replace(
            row(policy, number, won == "1", task=task, variant=variant),
            seed=seed,
            checkpoint_hash=f"{policy}{seed}",
            start="dense",
        )
        for task, outcomes in wins.items()
        for number, won in enumerate(outcomes)
    ]


def two_policies() -> list[EpisodeRecord]:
    carrot, stack = TASKS
    return [
        *played("a", 0, {carrot: "1111", stack: "1000"}),
        *played("b", 0, {carrot: "1000", stack: "1000"}),
        *played("a", 1, {carrot: "1110", stack: "0000"}),
        *played("b", 1, {carrot: "1100", stack: "0100"}),
        *played("a", 2, {carrot: "1010", stack: "1100"}),
        *played("b", 2, {carrot: "1000", stack: "0000"}),
    ]


def test_each_seed_gives_the_difference_of_compare_and_their_spread_the_interval() -> None:
    records = two_policies()
    found = compare_seeds(records, "a", "b")
    assert found.seeds == (0, 1, 2) and found.differences == pytest.approx([0.375, 0.0, 0.375])
    for seed, value in zip(found.seeds, found.differences):
        assert compare([one for one in records if one.seed == seed], "a", "b").difference == pytest.approx(
            value
        )
    reference = stats.ttest_1samp(found.differences, 0)
    assert found.estimate.mean == pytest.approx(0.25) and found.estimate.p_value == pytest.approx(
        reference.pvalue
    )
    assert (found.estimate.low, found.estimate.high) == pytest.approx(reference.confidence_interval(0.95))


def test_the_pooled_comparison_takes_all_runs_as_one_policy() -> None:
    records = two_policies()
    pooled = compare_seeds(records, "a", "b").pooled
    assert (
        pooled == compare(as_one_policy(records), "a", "b") and pooled is not None and pooled.episodes == 24
    )
    with pytest.raises(KitError, match="mix checkpoint_hash"):
        compare(records, "a", "b")


def test_a_seed_that_only_one_of_the_two_has_is_left_out() -> None:
    records = [one for one in two_policies() if (one.policy, one.seed) != ("b", 2)]
    assert compare_seeds(records, "a", "b").seeds == (0, 1)
    with pytest.raises(KitError, match="share no episode"):
        compare_seeds([one for one in records if one.policy == "a" or one.seed == 3], "a", "b")


def test_one_seed_has_no_interval_over_seeds_and_equal_seeds_have_that_of_their_starts() -> None:
    found = compare_seeds([one for one in two_policies() if one.seed == 0], "a", "b")
    assert not found.estimate.known and isnan(found.between)
    assert found.pooled is not None and found.pooled.low < found.estimate.mean < found.pooled.high
    same = over_seeds([0.1, 0.1, 0.1], floor=0.05)
    assert same.low == pytest.approx(0.1 - stats.t.ppf(0.975, 2) * 0.05 / np.sqrt(3)) and same.p_value > 0.05


def test_where_training_runs_differ_the_interval_over_seeds_covers_and_that_over_starts_does_not() -> None:
    rng, truth, covered = np.random.default_rng(0), 0.05, {"seeds": 0, "starts": 0}
    draws, seeds, starts, between = 400, 6, 144, 0.06
    for _ in range(draws):
        effects = truth + between * rng.standard_normal(seeds)
        outcomes = [
            rng.choice([1, -1, 0], starts, p=[0.15 + effect / 2, 0.15 - effect / 2, 0.7])
            for effect in effects.clip(-0.3, 0.3)
        ]
        found = over_seeds([float(one.mean()) for one in outcomes])
        pooled, error = np.concatenate(outcomes), np.concatenate(outcomes).std() / np.sqrt(seeds * starts)
        covered["seeds"] += found.low <= truth <= found.high
        covered["starts"] += abs(pooled.mean() - truth) <= 1.96 * error
    assert covered["seeds"] / draws > 0.92 and covered["starts"] / draws < 0.85, covered
