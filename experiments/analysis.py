"""From the records of an experiment to its numbers: every contrast that was planned and has been played, what
each arm reaches, what it costs.

Nothing is chosen here: contrasts come from the design, statistics from `refinevla_kit.evaluation`, and what
an interval says was fixed before.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

from experiments.design import PROFILES, Block, Profile
from experiments.following import FOLLOWING
from experiments.runner import RECORDS, STUDY
from experiments.seeds import SeedComparison, compare_seeds
from refinevla_kit.errors import KitError
from refinevla_kit.evaluation import load_records
from refinevla_kit.evaluation.intervals import Rate
from refinevla_kit.evaluation.records import EpisodeRecord
from refinevla_kit.evaluation.statistics import AVERAGE, Rule, summarise
from refinevla_kit.evaluation.training_seeds import (
    REFERENCES,
    Estimate,
    arms_of,
    as_one_policy,
    by_seed,
    over_seeds,
)
from refinevla_kit.figures.sensitivity import Lines, sweeps
from refinevla_kit.files import read_json
from refinevla_kit.tasks import SETTINGS, VARIANT_AGGREGATION, VISUAL_MATCHING

PRIMARY = tuple(reversed(REFERENCES))


@dataclass(frozen=True)
class Results:
    """An experiment's records with the design they belong to.

    Attributes:
        study: what `runner.collect` wrote about it.
        records: of all finished stages; `policy` is the arm's name.
    """

    profile: Profile
    study: Mapping[str, Any]
    records: tuple[EpisodeRecord, ...]


def load_results(folder: str | Path, profile: Profile | None = None) -> Results:
    """Read `folder`, which `runner.collect` wrote.

    Args:
        profile: None for the one of `PROFILES` that the study names.
    Raises:
        KitError: it is not there, or its profile is none of this version.
    """
    path = Path(folder) / STUDY
    if not path.is_file():
        raise KitError(
            f"no experiment at {folder}",
            "give the `records` folder that `python -m experiments.reasoning_loss` wrote",
        )
    study = read_json(path)
    known = PROFILES | FOLLOWING
    if profile is None and study["profile"] not in known:
        raise KitError(
            f"{path} is of profile {study['profile']!r}", f"choose records of one of {', '.join(known)}"
        )
    return Results(profile or known[study["profile"]], study, tuple(load_records(Path(folder) / RECORDS)))


def of_block(results: Results, block: Block) -> list[EpisodeRecord]:
    """The episodes of a block's tasks in its setting, of whichever arms."""
    tasks = results.profile.tasks_of(block)
    return [one for one in results.records if one.setting == block.setting and one.task in tasks]


def contrasts(
    results: Results, block: Block, rule: Rule | None = None, task: str = AVERAGE
) -> list[SeedComparison]:
    """The block's contrasts that have been played; `rule`: another one than the block's own."""
    found = (_compare(results, a, b, block, rule or block.rule, task) for a, b in block.contrasts)
    return [one for one in found if one]


def interactions(results: Results) -> list[SeedComparison]:
    """How much larger the main contrasts are in variant aggregation than in visual matching; none where the
    main comparison is of one setting: what exploratory blocks play in the other are other tasks.
    """
    main = [block for block in results.profile.blocks if not block.exploratory]
    if len({block.setting for block in main}) < 2:
        return []
    pairs = {pair for block in main for pair in block.contrasts}
    ordered = [
        pair
        for block in results.profile.blocks
        for pair in block.contrasts
        if pair in pairs and block.setting == VARIANT_AGGREGATION
    ]
    found = [
        change_between_settings(results.records, a, b)
        for a, b in ordered
        if {a, b} <= {one.policy for one in results.records}
    ]
    return [one for one in found if one]


def by_variant(results: Results, a: str, b: str) -> dict[str, SeedComparison]:
    """A contrast of the main comparison in each variant of the scene by itself."""
    blocks = [block for block in results.profile.blocks if not block.exploratory]
    played = [
        one
        for block in blocks
        if block.setting == VARIANT_AGGREGATION
        for one in of_block(results, block)
        if one.policy in (a, b)
    ]
    names, rule = list(dict.fromkeys(one.variant for one in played)), blocks[-1].rule
    return {
        name: compare_seeds([one for one in played if one.variant == name], a, b, rule)
        for name in names
        if len({one.policy for one in played}) == 2
    }


def conclusion(results: Results, one: SeedComparison) -> str:
    """What a contrast of the main comparison says; preliminary while seeds are missing."""
    blocks = [block for block in results.profile.blocks if not block.exploratory]
    planned = set(blocks[0].seeds).intersection(
        *(block.seeds for block in blocks if block.setting == one.setting or one.pooled is None)
    )
    low, high = one.estimate.low, one.estimate.high
    if (one.a, one.b) == PRIMARY and one.setting in (VISUAL_MATCHING, VARIANT_AGGREGATION):
        claimed = results.profile.claimed
        text = verdict(one.estimate, claimed)
        if (
            one.pooled
            and (control := (one.pooled.both + one.pooled.only_b) / one.pooled.episodes) > 1 - claimed
        ):
            text = f"no room for the claimed gain, the control succeeds in {control:.0%}: {text}"
    else:
        text = (
            "one training run: no verdict"
            if not one.estimate.known
            else ("above zero" if low > 0 else "below zero" if high < 0 else "not told apart from zero")
        )
    return (
        text
        if len(one.seeds) == len(planned)
        else f"preliminary ({len(one.seeds)} of {len(planned)} seeds): {text}"
    )


def change_between_settings(
    records: Sequence[EpisodeRecord], a: str, b: str, rule: Rule = "last", task: str = AVERAGE
) -> SeedComparison | None:
    """How much larger the difference is in variant aggregation than in visual matching, by seed; None where
    no seed has both.
    """
    matching, aggregation = (by_seed(records, a, b, rule, task, setting) for setting in SETTINGS)
    seeds = tuple(seed for seed in matching if seed in aggregation)
    if not seeds:
        return None
    values = tuple(aggregation[seed].difference - matching[seed].difference for seed in seeds)
    name = " - ".join(reversed(SETTINGS))
    return SeedComparison(a, b, task, rule, name, seeds, values, over_seeds(values, limit=2.0), nan, None)


def verdict(estimate: Estimate, claimed: float) -> str:
    """What a 95 % interval says about a gain that was claimed (a fraction above 0), in fixed words."""
    if not estimate.known:
        return "one training run: no verdict"
    if estimate.high < 0:
        return "a loss"
    if estimate.low > 0:
        return (
            "a gain, as large as claimed or not told apart from it"
            if estimate.high >= claimed
            else "a gain, smaller than claimed"
        )
    return (
        "no gain shown; the claimed one is excluded"
        if estimate.high < claimed
        else "undecided: neither no gain nor the claimed one is excluded"
    )


def rates(
    results: Results, setting: str, rule: Rule = "last", records: Iterable[EpisodeRecord] | None = None
) -> dict[str, dict[str, Rate]]:
    """Arm -> task (and average) -> rate, over all its seeds, with the checkpoints as they are."""
    chosen = [
        one
        for one in as_one_policy(results.records if records is None else records)
        if one.setting == setting
    ]
    found: dict[str, dict[str, Rate]] = {}
    for score in summarise(chosen, rule):
        found.setdefault(score.policy, {})[score.task] = score.rate
    return found


def varied(results: Results) -> dict[str, Lines]:
    """Success by loss weight, frozen layers and amount of demonstrations, as far as they have been varied."""
    matching = [record for record in results.records if record.setting == VISUAL_MATCHING]
    return sweeps(matching, arms_of(results.study))


def costs(results: Results) -> list[dict[str, Any]]:
    """One row an arm: seconds of training (a run, a step), of a control step in evaluation, with everything
    that runs beside; medians over runs.
    """
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for run in results.study["runs"]:
        runs.setdefault(run["arm"]["name"], []).append(run)
    acting: dict[str, list[float]] = {}
    for one in results.records:
        acting.setdefault(one.policy, []).append(one.wall_time / one.steps)
    return [
        {
            "arm": name,
            "runs": len(found),
            "training": statistics.median(run["training_seconds"] for run in found),
            "step": statistics.median(run["step_seconds"] for run in found),
            "control step": statistics.median(acting[name]),
            **{
                key: statistics.mean(run["validation"][key] for run in found if key in run["validation"])
                for key in ("action_accuracy", "loss_action", "loss_reasoning")
                if all(key in run["validation"] for run in found)
            },
        }
        for name, found in runs.items()
    ]


def _compare(results: Results, a: str, b: str, block: Block, rule: Rule, task: str) -> SeedComparison | None:
    played = [one for one in of_block(results, block) if one.policy in (a, b)]
    seeds = [{one.seed for one in played if one.policy == name} for name in (a, b)]
    return compare_seeds(played, a, b, rule, task, block.setting) if seeds[0] & seeds[1] else None
