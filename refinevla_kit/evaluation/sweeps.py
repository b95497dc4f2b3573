"""Success against one factor of training: which arms of an experiment differ in nothing else, and their rates
on the episodes they all played.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.aggregation import AVERAGE, Rule
from refinevla_kit.evaluation.intervals import Rate
from refinevla_kit.evaluation.records import KEY, EpisodeRecord
from refinevla_kit.evaluation.statistics import summarise
from refinevla_kit.evaluation.training_seeds import as_one_policy

WEIGHT = "lambda_reasoning"
REFERENCES = ("action_only", "with_reasoning")  # the arms from which the others are varied
EPISODE = tuple(name for name in KEY if name not in ("policy", "checkpoint_hash"))


def arms_of(study: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Arm's name -> its factors, from an experiment's study.json.

    Raises:
        KitError: it is not one.
    """
    try:
        return {
            run["arm"]["name"]: {key: value for key, value in run["arm"].items() if key != "name"}
            for run in study["runs"]
        }
    except (KeyError, TypeError) as error:
        raise KitError(
            "this is no study of an experiment",
            "give the study.json that `python -m experiments.reasoning_loss` wrote",
        ) from error


def sweep(
    records: Sequence[EpisodeRecord], arms: Mapping[str, Mapping[str, Any]], factor: str, rule: Rule = "last"
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
    lines = {
        name: _varied(arms, name, factor)
        for name in REFERENCES[1 if factor == WEIGHT else 0 :]
        if name in arms
    }
    shown = {name for line in lines.values() for name in line}
    played: dict[str, set[Any]] = {name: set() for name in shown}
    for one in records:
        if one.policy in shown:
            played[one.policy].add(tuple(getattr(one, field) for field in EPISODE))
    played = {name: keys for name, keys in played.items() if keys}
    common = set.intersection(*played.values()) if played else set()
    if not common:
        return {}
    kept = [
        one
        for one in as_one_policy(records)
        if one.policy in played and tuple(getattr(one, field) for field in EPISODE) in common
    ]
    rates = {score.policy: score.rate for score in summarise(kept, rule) if score.task == AVERAGE}
    points = {
        name: sorted((float(arms[arm][factor]), rates[arm]) for arm in line if arm in rates)
        for name, line in lines.items()
    }
    return {name: line for name, line in points.items() if line}


def _varied(arms: Mapping[str, Mapping[str, Any]], reference: str, factor: str) -> list[str]:
    """Arms that differ from `reference` in nothing but `factor`, itself among them; without a reasoning loss
    nothing about rationales matters.
    """

    def others(name: str) -> dict[str, Any]:
        return {key: value for key, value in arms[name].items() if key != factor}

    return [name for name in arms if others(name) == others(reference)]
