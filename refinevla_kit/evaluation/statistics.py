"""How sure a success rate is: intervals, paired tests and the number of episodes a claim would need. Computed from records, by scipy and statsmodels.

Rates are fractions in [0, 1] throughout. Two success rules exist: "last" (the task's condition holds after the last step; what SIMPLER's own
evaluator scores) and "any" (it held after any step; what several published evaluations count). Whatever is computed from records says which.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np
from scipy import stats

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.records import EpisodeRecord
from refinevla_kit.simulator.contract import Array

Rule = Literal["last", "any"]
RULES: tuple[Rule, Rule] = ("last", "any")
AVERAGE = "average"
FEWEST = 5  # discordant episodes on each side below which the paired interval is not bootstrapped


@dataclass(frozen=True)
class Rate:
    """A success rate with its interval; `successes` and `episodes` are what it was computed from."""

    rate: float
    low: float
    high: float
    successes: int
    episodes: int


@dataclass(frozen=True)
class Score:
    """A policy's rate on one task, or on `AVERAGE`: the mean of its tasks' rates, each task weighing the same."""

    policy: str
    task: str
    rule: Rule
    rate: Rate


@dataclass(frozen=True)
class Comparison:
    """Policy `a` against policy `b` on the very same episodes.

    Attributes:
        task: task name, or `AVERAGE` for all tasks of both, each weighing the same.
        both, only_a, only_b, neither: episodes that succeeded under both, one or none of the two.
        difference, low, high: rate of a minus rate of b, with its paired bootstrap interval; where all episodes of a task gave the same difference,
            a bootstrap has nothing to draw from, and the interval is that of `paired_adjusted`.
        p_value: two-sided exact McNemar test.
        needed: paired episodes that would resolve this difference with 80 % power, None when there is no difference to resolve.
    """

    a: str
    b: str
    task: str
    rule: Rule
    both: int
    only_a: int
    only_b: int
    neither: int
    difference: float
    low: float
    high: float
    p_value: float
    needed: int | None

    @property
    def episodes(self) -> int:
        """Number of shared episodes."""
        return self.both + self.only_a + self.only_b + self.neither


def wilson(successes: float, episodes: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927; recommended for small samples by Newcombe 1998)."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, episodes, alpha=1 - level, method="wilson")
    return max(0.0, float(low)), min(1.0, float(high))


def rate(successes: int, episodes: int) -> Rate:
    """A proportion with its Wilson interval."""
    return Rate(successes / episodes, *wilson(successes, episodes), successes, episodes)


def average_rate(rates: Sequence[Rate], weights: Sequence[float] | None = None) -> Rate:
    """Weighted mean of tasks' rates (equal weights by default) with a Wilson interval at the effective number of episodes, 1 / sum(w^2 / n).

    That number treats all episodes as equally uncertain, which makes the interval slightly wide when the tasks differ much in difficulty.
    """
    weight = np.full(len(rates), 1 / len(rates)) if weights is None else np.asarray(weights, float) / np.sum(weights)
    mean = float(weight @ [one.rate for one in rates])
    effective = float(1 / np.sum(weight**2 / [one.episodes for one in rates]))
    return Rate(mean, *wilson(mean * effective, effective), sum(one.successes for one in rates), sum(one.episodes for one in rates))


def succeeded(record: EpisodeRecord, rule: Rule) -> bool:
    """Whether the episode is a success under `rule`."""
    return record.success_last if rule == "last" else record.success_any


def summarise(records: Iterable[EpisodeRecord], rule: Rule = "last") -> list[Score]:
    """Scores of every policy on every task and on average; policies and tasks in the order in which they first appear."""
    cells: dict[str, dict[str, list[bool]]] = {}
    for record in records:
        cells.setdefault(record.policy, {}).setdefault(record.task, []).append(succeeded(record, rule))
    scores = []
    for policy, tasks in cells.items():
        rates = {task: rate(sum(outcomes), len(outcomes)) for task, outcomes in tasks.items()}
        scores += [Score(policy, task, rule, value) for task, value in rates.items()]
        scores.append(Score(policy, AVERAGE, rule, average_rate(list(rates.values()))))
    return scores


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact p-value of McNemar's test: the discordant pairs are a fair coin if the policies are equally good."""
    return 1.0 if only_a + only_b == 0 else float(stats.binomtest(only_a, only_a + only_b).pvalue)


def paired_bootstrap(
    differences: Sequence[Array], level: float = 0.95, draws: int = 10_000, seed: int = 0, resample_tasks: bool = False
) -> tuple[float, float]:
    """Percentile interval of the mean over tasks of the mean paired difference.

    Args:
        differences: one array a task, float (episodes,): success of a minus success of b on the same episode (-1, 0, 1).
        resample_tasks: draw the tasks too. Off, the interval is about these tasks; on, about tasks like these (and needs more than a few of them).
    """
    generator = np.random.default_rng(seed)
    means = np.stack([one[generator.integers(0, len(one), (draws, len(one)))].mean(axis=1) for one in differences])  # tasks x draws
    if resample_tasks:
        means = means[generator.integers(0, len(means), means.shape), np.arange(draws)]
    low, high = np.quantile(means.mean(axis=0), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_adjusted(only_a: int, only_b: int, episodes: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a paired difference with one episode added to each discordant cell (Bonett and Price 2012): not empty when nothing differs."""
    alone_a, alone_b, size = (only_a + 1) / (episodes + 2), (only_b + 1) / (episodes + 2), episodes + 2
    difference = alone_a - alone_b
    half = float(stats.norm.ppf((1 + level) / 2) * np.sqrt((alone_a + alone_b - difference**2) / size))
    return max(-1.0, difference - half), min(1.0, difference + half)


def compare(records: Iterable[EpisodeRecord], a: str, b: str, rule: Rule = "last", task: str = AVERAGE) -> Comparison:
    """Compare two policies on the episodes both have played (same task, assets, start, seed, resolution)."""
    outcomes: dict[str, dict[tuple[object, ...], bool]] = {a: {}, b: {}}
    for record in records:
        if record.policy in outcomes and task in (AVERAGE, record.task):
            place = (record.task, *record.key[3:])
            if place in outcomes[record.policy]:
                raise KitError(
                    f"{record.policy!r} has played {record.task}, episode {record.episode_id} with two checkpoints", "keep one checkpoint a file"
                )
            outcomes[record.policy][place] = succeeded(record, rule)
    shared = [place for place in outcomes[a] if place in outcomes[b]]
    if not shared:
        raise KitError(
            f"{a!r} and {b!r} share no episode" + ("" if task == AVERAGE else f" of {task}"),
            "evaluate both on the same tasks, episodes, assets and seed",
        )
    pairs = np.array([(outcomes[a][place], outcomes[b][place]) for place in shared], int)  # episodes x 2
    tasks = np.array([str(place[0]) for place in shared])
    differences = [(pairs[tasks == name, 0] - pairs[tasks == name, 1]).astype(float) for name in dict.fromkeys(tasks)]
    only_a, only_b = int(np.sum(pairs[:, 0] > pairs[:, 1])), int(np.sum(pairs[:, 0] < pairs[:, 1]))
    # A bootstrap cannot draw what it has not seen: with hardly a loss on one side its interval never reaches beyond zero.
    interval = paired_bootstrap(differences) if min(only_a, only_b) >= FEWEST else paired_adjusted(only_a, only_b, len(shared))
    both, size = int(pairs.all(axis=1).sum()), len(shared)
    return Comparison(
        a, b, task, rule, both, only_a, only_b, size - both - only_a - only_b, float(np.mean([one.mean() for one in differences])),
        *interval, mcnemar(only_a, only_b), None if only_a == only_b else episodes_needed_paired(only_a / size, only_b / size),
    )  # fmt: skip


def episodes_needed_unpaired(a: float, b: float, power: float = 0.8, level: float = 0.95) -> int:
    """Episodes *each* of two policies with success rates a and b needs, on independent episodes, for a two-sided z-test to find the difference."""
    z_level, z_power, mean = stats.norm.ppf((1 + level) / 2), stats.norm.ppf(power), (a + b) / 2
    spread = z_level * np.sqrt(2 * mean * (1 - mean)) + z_power * np.sqrt(a * (1 - a) + b * (1 - b))
    return ceil((spread / (a - b)) ** 2)


def episodes_needed_paired(only_a: float, only_b: float, power: float = 0.8, level: float = 0.95) -> int:
    """Shared episodes two policies need for McNemar's test to find the difference (Connor 1987, Biometrics 43, 207-211).

    Args:
        only_a, only_b: probability that an episode succeeds under a alone, and under b alone. Policies that fail independently have a (1 - b) and
            b (1 - a); policies that fail on the same episodes have less, and need fewer episodes.
    """
    z_level, z_power, discordant, difference = stats.norm.ppf((1 + level) / 2), stats.norm.ppf(power), only_a + only_b, only_a - only_b
    return ceil(((z_level * np.sqrt(discordant) + z_power * np.sqrt(discordant - difference**2)) / difference) ** 2)


def unpaired_difference(a: Rate, b: Rate) -> tuple[float, float]:
    """95 % interval of rate a minus rate b on independent episodes, from their two Wilson intervals (Newcombe 1998, method 10)."""
    difference = a.rate - b.rate
    return difference - float(np.hypot(a.rate - a.low, b.high - b.rate)), difference + float(np.hypot(a.high - a.rate, b.rate - b.low))
