"""From records to numbers that say how sure they are: each policy's success on each task and on average, and
two policies on the same episodes.

Two success rules exist: "last" (the task's condition holds after the last step; what SIMPLER's own evaluator
scores) and "any" (it held after any step; what several published evaluations count). Whatever is computed
from records says which.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation import aggregation
from refinevla_kit.evaluation.aggregation import (
    AVERAGE,
    PUBLISHED_AVERAGE,
    RULES,
    Rule,
    start_of,
    start_values,
    succeeded,
    task_weights,
)
from refinevla_kit.evaluation.intervals import (
    FEWEST,
    Rate,
    mean_rate,
    paired_adjusted,
    paired_bootstrap,
    paired_size,
    rate,
    sign_flip,
    wilson,
)
from refinevla_kit.evaluation.records import KEY, EpisodeRecord, distinct
from refinevla_kit.tasks import BASE, GROUPS, TASKS, VISUAL_MATCHING

__all__ = [
    "AVERAGE",
    "PUBLISHED_AVERAGE",
    "RULES",
    "Comparison",
    "Rate",
    "Rule",
    "Score",
    "against_base",
    "compare",
    "rate",
    "shown_tasks",
    "summarise",
    "summarise_variants",
    "wilson",
]


@dataclass(frozen=True)
class Score:
    """A policy's rate on one task, on a row of the published tables that has several tasks (`tasks.GROUPS`),
    or on one of the two averages.

    Attributes:
        variant: the one variant the rate is from; "" where it is the mean over all scored ones.
        mark: of a published number, "primary" or "secondary" (`published`); "" for the kit's own.
    """

    policy: str
    task: str
    rule: Rule
    rate: Rate
    setting: str = VISUAL_MATCHING
    variant: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Comparison:
    """Policy `a` against policy `b` on the very same episodes.

    Attributes:
        task: task, row of the published tables, or average.
        both, only_a, only_b, neither: episodes that succeeded under both, one or none of the two.
        difference, low, high: rate of a minus rate of b, with its paired bootstrap interval over starts;
            where hardly a start speaks for one of the two, a bootstrap has nothing to draw from, and the
            interval is that of `paired_adjusted`.
        p_value: two-sided exact McNemar test (`sign_flip`).
        needed: paired episodes that would resolve this difference with 80 % power, None when there is no
            difference to resolve.
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

    @property
    def discordant(self) -> float:
        """Share of the episodes on which the two differ."""
        return (self.only_a + self.only_b) / self.episodes


def summarise(records: Iterable[EpisodeRecord], rule: Rule = "last") -> list[Score]:
    """Scores of every policy in every setting: its tasks, the published rows it has played all tasks of, the
    average, and the published average where it is another number. Policies, settings and tasks in the order
    in which they first appear.

    Raises:
        KitError: a policy's records are of two checkpoints, backends, asset packs, kinds of start or
            resolutions; two records of one episode contradict each other (the same one twice counts once).
    """
    return _summarise([record for record in records if aggregation.is_scored(record)], rule)


def summarise_variants(records: Iterable[EpisodeRecord], rule: Rule = "last") -> list[Score]:
    """The same for each variant by itself, scored or not, in the order in which they first appear;
    `Score.variant` names it.
    """
    variants: dict[str, list[EpisodeRecord]] = {}
    for record in records:
        variants.setdefault(record.variant, []).append(record)
    return [
        replace(score, variant=name)
        for name, played in variants.items()
        for score in _summarise(played, rule)
    ]


def _summarise(records: list[EpisodeRecord], rule: Rule) -> list[Score]:
    records = distinct(records)
    aggregation.check_one_kind(records)
    cells: dict[tuple[str, str], dict[str, list[EpisodeRecord]]] = {}
    for record in records:
        cells.setdefault((record.policy, record.setting), {}).setdefault(record.task, []).append(record)
    scores = []
    for (policy, setting), played in cells.items():
        values = {
            task: start_values((start_of(one), one.variant, succeeded(one, rule)) for one in rows)
            for task, rows in played.items()
        }
        means = {task: task_weights([task]) for task in played}
        means |= {row: task_weights(GROUPS[row].tasks) for row in aggregation.complete_rows(played)}
        means[AVERAGE] = task_weights(played)
        if aggregation.has_published_average(played):
            means[PUBLISHED_AVERAGE] = task_weights(played, published=True)
        for name, weights in means.items():
            rows = [record for task in weights for record in played[task]]
            mean = mean_rate(
                [values[task] for task in weights],
                list(weights.values()),
                sum(succeeded(one, rule) for one in rows),
                len(rows),
            )
            scores.append(Score(policy, name, rule, mean, setting))
    return scores


def shown_tasks(scores: Iterable[Score]) -> list[str]:
    """What a table or a picture of `scores` has room for: rows of the published tables, tasks of rows that
    are not there, averages last.
    """
    names, order = list(dict.fromkeys(score.task for score in scores)), list(GROUPS)
    rows = {
        task: TASKS[task].group if task in TASKS else task
        for task in names
        if task not in aggregation.AVERAGES
    }
    shown = [task for task, row in rows.items() if row == task or row not in names]
    shown.sort(key=lambda task: order.index(rows[task]) if rows[task] in order else len(order))
    return shown + [task for task in aggregation.AVERAGES if task in names]


def compare(
    records: Iterable[EpisodeRecord],
    a: str,
    b: str,
    rule: Rule = "last",
    task: str = AVERAGE,
    setting: str | None = None,
    resample_tasks: bool = False,
) -> Comparison:
    """Compare two policies on the scored episodes both have played (same task, variant, assets, start, seed,
    resolution).

    Args:
        task: a task, a row of the published tables, `AVERAGE` or `PUBLISHED_AVERAGE`.
        setting: None takes the one there is.
        resample_tasks: as in `paired_bootstrap`.

    Raises:
        KitError: no shared episode, two settings and none chosen, or records of one policy that do not belong
            together.
    """
    members = aggregation.members(task)
    chosen = [
        one
        for one in records
        if one.policy in (a, b)
        and setting in (None, one.setting)
        and aggregation.is_scored(one)
        and (members is None or one.task in members)
    ]
    chosen = distinct(chosen)
    aggregation.check_one_kind(chosen)
    if len(settings := list(dict.fromkeys(one.setting for one in chosen))) > 1:
        raise KitError(
            f"the records of {a!r} and {b!r} are of {' and '.join(settings)}",
            f"choose one, as in setting={settings[0]!r}",
        )
    played: dict[str, dict[tuple[object, ...], EpisodeRecord]] = {a: {}, b: {}}
    for one in chosen:
        played[one.policy][
            tuple(getattr(one, name) for name in KEY if name not in ("policy", "checkpoint_hash"))
        ] = one
    shared = [
        (one, succeeded(one, rule), succeeded(played[b][place], rule))
        for place, one in played[a].items()
        if place in played[b]
    ]
    if not shared:
        raise KitError(
            f"{a!r} and {b!r} share no episode" + (f" of {task}" if members else ""),
            "evaluate both on the same tasks, episodes, assets and seed",
        )
    weights = task_weights((one.task for one, _, _ in shared), published=task == PUBLISHED_AVERAGE)
    differences = [
        start_values(
            (start_of(one), one.variant, won_a - won_b) for one, won_a, won_b in shared if one.task == name
        )
        for name in weights
    ]
    by_start = Counter[Hashable]()
    for one, won_a, won_b in shared:
        by_start[start_of(one)] += won_a - won_b
    # A bootstrap cannot draw what it has not seen: with hardly a loss on one side its interval never reaches
    # beyond zero.
    enough = (
        resample_tasks
        or min(sum(one > 0 for one in by_start.values()), sum(one < 0 for one in by_start.values())) >= FEWEST
    )
    weight = list(weights.values())
    interval = (
        paired_bootstrap(differences, resample_tasks=resample_tasks, weights=weight)
        if enough
        else paired_adjusted(differences, weight)
    )
    cells = Counter((won_a, won_b) for _, won_a, won_b in shared)
    pooled = np.concatenate(differences)
    needed = (
        ceil(len(shared) / len(pooled) * paired_size((pooled**2).mean(), pooled.mean()))
        if abs(pooled.mean()) > 1e-9
        else None
    )
    return Comparison(
        a,
        b,
        task,
        rule,
        cells[True, True],
        cells[True, False],
        cells[False, True],
        cells[False, False],
        float(np.dot(weight, [one.mean() for one in differences])),
        *interval,
        sign_flip(by_start.values()),
        needed,
    )


def against_base(
    records: Iterable[EpisodeRecord], policy: str, rule: Rule = "last", task: str = AVERAGE
) -> list[Comparison]:
    """What each change of the scene costs one policy: its success in every variant minus that in "base", from
    the same starts.
    """
    own = [
        replace(record, policy=record.variant, variant=BASE) for record in records if record.policy == policy
    ]
    return [
        compare(own, variant, BASE, rule, task)
        for variant in dict.fromkeys(record.policy for record in own)
        if variant != BASE
    ]
