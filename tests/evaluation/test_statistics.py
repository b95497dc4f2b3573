"""Statistics against worked examples that others have published, and against brute force where none is at hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation import statistics
from refinevla_kit.evaluation.records import EpisodeRecord
from tests.evaluation.rows import row


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_intervals_of_newcombe_1998(successes: int, episodes: int, low: float, high: float) -> None:
    assert statistics.wilson(successes, episodes) == pytest.approx((low, high), abs=5e-5)


def test_difference_of_two_rates_gives_newcombe_1998_method_10() -> None:
    """Its table II, contrast (a): 56/70 against 48/80."""
    low, high = statistics.unpaired_difference(statistics.rate(56, 70), statistics.rate(48, 80))
    assert (low, high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


@pytest.mark.parametrize(("only_a", "only_b", "p_value"), [(12, 2, 0.0129), (1, 7, 0.0703), (5, 5, 1.0), (0, 0, 1.0)])
def test_exact_mcnemar(only_a: int, only_b: int, p_value: float) -> None:
    """12 / 2: Armitage and Berry (1994), sputum media. 1 / 7: Bentur et al. (2009), as worked through by Fagerland et al. (2013)."""
    assert statistics.mcnemar(only_a, only_b) == pytest.approx(p_value, abs=5e-5)


def test_paired_episodes_needed_gives_connors_formula() -> None:
    """Discordant 0.45 / 0.05 at 80 % power needs 23 pairs (powerandsamplesize.com, McNemar two-sided)."""
    assert statistics.episodes_needed_paired(0.45, 0.05) == 23


def test_unpaired_episodes_needed_resolves_with_the_power_asked_for() -> None:
    """The 5 points between 42.7 and 47.7 % need about 1,550 episodes a policy; drawing that many finds them four times in five."""
    needed = statistics.episodes_needed_unpaired(0.427, 0.477)
    assert 1500 < needed < 1600
    a, b = np.random.default_rng(0).binomial(needed, [[0.427], [0.477]], (2, 20_000)) / needed
    z = (b - a) / np.sqrt((a + b) * (1 - (a + b) / 2) / needed)
    assert np.mean(np.abs(z) > stats.norm.ppf(0.975)) == pytest.approx(0.8, abs=0.02)


def test_bootstrap_agrees_with_the_normal_interval_when_there_are_many_episodes() -> None:
    differences = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], 2000, p=[0.1, 0.7, 0.2])
    low, high = statistics.paired_bootstrap([differences])
    error = 1.96 * differences.std() / np.sqrt(len(differences))
    assert (low, high) == pytest.approx((differences.mean() - error, differences.mean() + error), abs=0.002)


def test_drawing_the_tasks_too_widens_the_interval() -> None:
    differences = [np.full(24, value) for value in (0.0, 0.2, 0.4, 1.0)]
    assert statistics.paired_bootstrap(differences) == pytest.approx((0.4, 0.4))
    low, high = statistics.paired_bootstrap(differences, resample_tasks=True)
    assert low < 0.2 and high > 0.6


def test_average_weighs_tasks_equally_and_pools_equal_counts() -> None:
    average = statistics.average_rate([statistics.rate(6, 24), statistics.rate(18, 24)])
    assert average.rate == 0.5
    assert (average.low, average.high) == pytest.approx(statistics.wilson(24, 48))
    assert statistics.average_rate([statistics.rate(1, 2), statistics.rate(0, 200)]).rate == 0.25


def test_compare_pairs_the_same_episodes_and_leaves_the_rest_out() -> None:
    records = [row("a", episode, success=episode < 10) for episode in range(12)] + [
        row("b", episode, success=2 <= episode < 4) for episode in range(24)
    ]
    comparison = statistics.compare(records, "a", "b")
    assert (comparison.both, comparison.only_a, comparison.only_b, comparison.neither) == (2, 8, 0, 2)
    assert comparison.episodes == 12
    assert comparison.difference == pytest.approx(8 / 12)
    assert comparison.p_value == pytest.approx(2 * 0.5**8)
    assert comparison.low > 0


def test_policies_that_never_differ_are_not_said_to_be_equal() -> None:
    """Four episodes that both failed leave room for a difference of tens of points; a thousand do not."""
    few, many = ([row(policy, episode, success=False) for policy in "ab" for episode in range(n)] for n in (4, 1000))
    comparison = statistics.compare(few, "a", "b")
    assert comparison.low < -0.3 and comparison.high > 0.3
    assert statistics.compare(many, "a", "b").high < 0.01
    assert statistics.paired_adjusted(1, 7, 21) == pytest.approx((-0.508, -0.013), abs=1e-3)


def test_both_success_rules_are_kept_apart() -> None:
    records: list[EpisodeRecord] = [row("a", 0, success=False, success_any=True), row("a", 1, success=True)]
    last, any_step = (statistics.summarise(records, rule)[0].rate for rule in statistics.RULES)
    assert (last.successes, any_step.successes) == (1, 2)


def test_policies_without_a_shared_episode_cannot_be_compared() -> None:
    with pytest.raises(KitError, match="share no episode"):
        statistics.compare([row("a", 0, success=True), row("b", 1, success=True)], "a", "b")
