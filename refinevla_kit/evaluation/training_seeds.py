"""Ways of training, compared over several training runs of each: what another run would give is uncertain
too. And success against one factor of training.

An interval over episodes speaks for the two checkpoints that played them. A claim about a way of training
needs several runs of it, and their spread. Here a run's seed is that of its training and of its starts
(`EpisodeRecord.seed`). So the runs of a policy name are independent of each other, while the two policies of
one seed share data order and starts. Each seed gives one paired difference; Student's t over them is the
interval, which holds whatever starts and training contribute.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan, nan, sqrt
from typing import Any

import numpy as np
from scipy import stats

from refinevla_kit.errors import as_kit_error
from refinevla_kit.evaluation.intervals import TWO_SIDED, Rate
from refinevla_kit.evaluation.records import EpisodeRecord
from refinevla_kit.evaluation.statistics import AVERAGE, Comparison, Rule, compare, shared_key, summarise

EQUAL = 1e-9  # a smaller range of rates is rounding
WEIGHT = "lambda_reasoning"
REFERENCES = ("action_only", "with_reasoning")  # the arms from which the others are varied
Arms = Mapping[str, Mapping[str, Any]]  # name -> factors


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


def difference_over_seeds(each: Mapping[int, Comparison]) -> Estimate:
    """The mean of what each training seed gives, `by_seed`; where all give the same, its interval is that of
    their starts.
    """
    return over_seeds([comparison.difference for comparison in each.values()], sqrt(within_seeds(each)))


def within_seeds(each: Mapping[int, Comparison]) -> float:
    """Variance that the starts contribute to one seed's difference."""
    return float(np.mean([((one.high - one.low) / (2 * TWO_SIDED)) ** 2 for one in each.values()]))


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
    return {
        seed: compare(both, a, b, rule, task, setting)
        for seed, both in sorted(played.items())
        if len({record.policy for record in both}) == 2
    }


def as_one_policy(records: Iterable[EpisodeRecord]) -> list[EpisodeRecord]:
    """The same records without their checkpoints' hashes: several training runs count as one policy, for
    statistics that ask for one checkpoint.
    """
    return [replace(record, checkpoint_hash="") for record in records]


def arms_of(study: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Arm's name -> its factors, from an experiment's study.json.

    Raises:
        KitError: it is not one.
    """
    with as_kit_error(
        "this is no study of an experiment",
        "give the study.json that `python -m experiments.reasoning_loss` wrote",
        (KeyError, TypeError),
    ):
        return {
            run["arm"]["name"]: {key: value for key, value in run["arm"].items() if key != "name"}
            for run in study["runs"]
        }


def sweep(
    records: Sequence[EpisodeRecord], arms: Arms, factor: str, rule: Rule = "last"
) -> dict[str, list[tuple[float, Rate]]]:
    """Average success by the value of one factor: policy's name -> its points, by value.

    Only episodes count that every arm of the picture has played, so that no point has easier starts than
    another. The weight of the reasoning loss makes one line, whose zero is the control; any other factor
    makes one with and one without the reasoning loss. Rates are over all seeds with the checkpoints as they
    are.

    Args:
        records: of one setting.
        arms: name -> factors, as `arms_of` gives them.
    """
    varied = {name: _varied(arms, name, factor) for name in REFERENCES if name in arms}
    if factor == WEIGHT:
        varied.pop(REFERENCES[0], None)
    arms_shown = {name for names in varied.values() for name in names}
    played: dict[str, set[Any]] = {}
    for record in records:
        if record.policy in arms_shown:
            played.setdefault(record.policy, set()).add(shared_key(record))
    common = set.intersection(*played.values()) if played else set()
    kept = [record for record in records if record.policy in played and shared_key(record) in common]
    scores = summarise(as_one_policy(kept), rule)
    rates = {score.policy: score.rate for score in scores if score.task == AVERAGE}
    remedy = f"choose {WEIGHT} or another factor that is a number in each arm"
    with as_kit_error(f"{factor!r} is no axis of a picture", remedy, (KeyError, TypeError, ValueError)):
        lines = {
            name: sorted((float(arms[arm][factor]), rates[arm]) for arm in names if arm in rates)
            for name, names in varied.items()
        }
    return {name: points for name, points in lines.items() if points}


def _varied(arms: Arms, reference: str, factor: str) -> list[str]:
    """Arms that differ from `reference` in nothing but `factor`, itself among them; without a reasoning loss
    nothing about rationales matters.
    """

    def others(name: str) -> dict[str, Any]:
        return {key: value for key, value in arms[name].items() if key != factor}

    return [name for name in arms if others(name) == others(reference)]
