"""Two ways of training compared over all their training seeds, with what starts and training contribute."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import nan, sqrt

import numpy as np

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.records import EpisodeRecord
from refinevla_kit.evaluation.statistics import AVERAGE, Comparison, Rule, compare
from refinevla_kit.evaluation.training_seeds import (
    Estimate,
    as_one_policy,
    by_seed,
    difference_over_seeds,
    within_seeds,
)


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
    records = [record for record in records if record.policy in (a, b) and setting in (None, record.setting)]
    each = by_seed(records, a, b, rule, task, setting)
    if not each:
        raise KitError(f"{a!r} and {b!r} share no episode of {task}", "run both with the same seeds")
    shared = as_one_policy(record for record in records if record.seed in each)
    values = [comparison.difference for comparison in each.values()]
    over = float(np.var(values, ddof=1)) - within_seeds(each) if len(values) > 1 else nan
    return SeedComparison(
        a,
        b,
        task,
        rule,
        setting or shared[0].setting,
        seeds=tuple(each),
        differences=tuple(values),
        estimate=difference_over_seeds(each),
        between=nan if np.isnan(over) else sqrt(max(0.0, over)),
        pooled=compare(shared, a, b, rule, task, setting),
    )
