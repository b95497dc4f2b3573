"""Two ways of training, compared over several training runs of each: what another run would give is uncertain
too.

An interval over episodes speaks for the two checkpoints that played them. A claim about a way of training
needs several runs of it, and their spread. Here a run's seed is that of its training and of its starts
(`EpisodeRecord.seed`), so that the runs of a policy name are independent of each other, while the two
policies of one seed share data order and starts. Each seed gives one paired difference; Student's t over them
is the interval, which holds whatever starts and training contribute. `Comparison` beside it takes the
checkpoints as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import isnan, nan, sqrt

import numpy as np
from scipy import stats

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.aggregation import AVERAGE, Rule
from refinevla_kit.evaluation.records import EpisodeRecord
from refinevla_kit.evaluation.statistics import Comparison, compare

EQUAL = 1e-9  # a smaller range of rates is rounding
Z = float(stats.norm.ppf(0.975))


@dataclass(frozen=True)
class Estimate:
    """A mean over training seeds. `low`, `high` (95 %) and `p_value` (against 0) are NaN with one seed: it
    has no spread.
    """

    mean: float
    low: float
    high: float
    p_value: float

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return not isnan(self.low)


@dataclass(frozen=True)
class SeedComparison:
    """Policy `a` against policy `b`, both trained several times.

    Attributes:
        setting: of the episodes; "variant_aggregation - visual_matching" for the change of the difference
            between the two.
        seeds, differences: the training seeds and what each gives: rate of a minus rate of b on the same
            starts.
        estimate: their mean, with Student's t over seeds.
        between: standard deviation of the difference over training runs, without what the starts contribute
            (moments, not below 0); NaN with one.
        pooled: the same episodes with the checkpoints taken as they are; None for a change between settings.
    """

    a: str
    b: str
    task: str
    rule: Rule
    setting: str
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    estimate: Estimate
    between: float
    pooled: Comparison | None


def over_seeds(values: Sequence[float], floor: float = 0.0, limit: float = 1.0) -> Estimate:
    """Mean of one number a training seed, its 95 % interval and two-sided p-value by Student's t.

    Args:
        floor: standard error of a single value, for the case that all are equal and show no spread.
        limit: the largest value there is, beyond which no interval goes.
    """
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return Estimate(mean, nan, nan, nan)
    error = (float(np.std(values, ddof=1)) if np.ptp(values) > EQUAL else floor) / sqrt(n)
    half = float(stats.t.ppf(0.975, n - 1)) * error
    p_value = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error else 1.0
    return Estimate(mean, max(-limit, mean - half), min(limit, mean + half), p_value)


def compare_seeds(
    records: Iterable[EpisodeRecord],
    a: str,
    b: str,
    rule: Rule = "last",
    task: str = AVERAGE,
    setting: str | None = None,
) -> SeedComparison:
    """Compare two ways of training on all seeds that both were trained with and that share episodes.
    Arguments as of `statistics.compare`.

    Raises:
        KitError: no seed has episodes of both, or what `compare` raises.
    """
    records = list(records)
    each = by_seed(records, a, b, rule, task, setting)
    if not each:
        raise KitError(f"{a!r} and {b!r} share no episode of {task}", "run both with the same seeds")
    shared = as_one_policy(
        one for one in records if one.policy in (a, b) and setting in (None, one.setting) and one.seed in each
    )
    pooled = compare(shared, a, b, rule, task, setting)
    values = [one.difference for one in each.values()]
    errors = [(one.high - one.low) / (2 * Z) for one in each.values()]
    within = float(np.mean(np.square(errors)))
    between = nan if len(values) < 2 else sqrt(max(0.0, float(np.var(values, ddof=1)) - within))
    where = setting or next(one.setting for one in shared)
    return SeedComparison(
        a, b, task, rule, where, tuple(each), tuple(values), over_seeds(values, sqrt(within)), between, pooled
    )


def by_seed(
    records: Iterable[EpisodeRecord],
    a: str,
    b: str,
    rule: Rule = "last",
    task: str = AVERAGE,
    setting: str | None = None,
) -> dict[int, Comparison]:
    """Training seed -> the two policies of that seed, for the seeds of which both have episodes. Arguments as
    of `statistics.compare`.
    """
    played: dict[int, list[EpisodeRecord]] = {}
    for record in records:
        if record.policy in (a, b) and setting in (None, record.setting):
            played.setdefault(record.seed, []).append(record)
    paired = {
        seed: played[seed] for seed in sorted(played) if len({record.policy for record in played[seed]}) == 2
    }
    return {seed: compare(both, a, b, rule, task, setting) for seed, both in paired.items()}


def as_one_policy(records: Iterable[EpisodeRecord]) -> list[EpisodeRecord]:
    """The same records without their checkpoints' hashes: several training runs count as one policy, for
    statistics that ask for one checkpoint.
    """
    return [replace(record, checkpoint_hash="") for record in records]
