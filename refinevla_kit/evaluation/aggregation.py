"""From episodes to the numbers a statistic is made of: one value a start, one weight a task. SIMPLER's rule
of averaging is here, and nowhere else.

What an evaluation draws is the start: every variant, policy and repeated seed is played from the same ones.
So the unit is the start, and its value is its share in the task's rate: a statistic over starts counts once
what stands or falls together.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable
from typing import Literal

import numpy as np

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.records import EpisodeRecord
from refinevla_kit.simulator.contract import Array
from refinevla_kit.tasks import GROUPS, PUBLISHED_WEIGHTS, TASKS

Rule = Literal["last", "any"]
RULES: tuple[Rule, Rule] = ("last", "any")
AVERAGE = (
    "average"  # each row of the published table (a WidowX task; coke can, move near, drawer) weighs the same
)
PUBLISHED_AVERAGE = (
    "average, published weights"  # as `tasks.PUBLISHED_WEIGHTS` has it; for the WidowX it is the same
)
AVERAGES = (AVERAGE, PUBLISHED_AVERAGE)
ONE_KIND = (
    "checkpoint_hash",
    "backend",
    "assets",
    "start",
    "width",
    "height",
)  # what the episodes behind one number have in common


def succeeded(record: EpisodeRecord, rule: Rule) -> bool:
    """Whether the episode is a success under `rule`; raises `KitError` for another than `RULES`."""
    if rule not in RULES:
        raise KitError(f"unknown rule {rule!r}", f"choose one of {', '.join(RULES)}")
    return record.success_last if rule == "last" else record.success_any


def is_scored(record: EpisodeRecord) -> bool:
    """Whether averages contain the episode's variant: SIMPLER plays camera variants, but leaves them out."""
    protocols = TASKS[record.task].protocols if record.task in TASKS else ()
    return all(
        one.scored
        for protocol in protocols
        if protocol.setting == record.setting
        for one in protocol.variants
        if one.name == record.variant
    )


def start_of(record: EpisodeRecord) -> Hashable:
    """The start an episode was played from: a place of the grid, whatever the seed, or a pose drawn from seed
    and number.
    """
    return record.task, record.start, record.episode_id, record.seed if record.start == "dense" else None


def start_values(episodes: Iterable[tuple[Hashable, str, float]]) -> Array:
    """One value a start, float64 (starts,). Their mean is the mean over the variants of each variant's mean
    over its episodes.

    Args:
        episodes: (start, variant, outcome) of one task. Where every start was played in every variant, a
            start's value is its own mean outcome.
    """
    episodes = list(episodes)
    played = Counter(variant for _, variant, _ in episodes)
    values: dict[Hashable, float] = defaultdict(float)
    for start, variant, outcome in episodes:
        values[start] += outcome / played[variant]
    return np.array(list(values.values())) * len(values) / len(played)


def members(name: str) -> Collection[str] | None:
    """The tasks behind a task's or a published row's name; None for the averages: all there are."""
    return None if name in AVERAGES else GROUPS[name].tasks if name in GROUPS else (name,)


def task_weights(tasks: Iterable[str], published: bool = False) -> dict[str, float]:
    """What each task weighs in the average of `tasks`: a mean over rows of the published table, of means over
    their parts, of means over their tasks.

    Args:
        published: weigh the rows as `PUBLISHED_WEIGHTS` does, without those it lacks, instead of equally.
    """
    present, weights = list(dict.fromkeys(tasks)), dict[str, float]()
    for name in dict.fromkeys(TASKS[task].group if task in TASKS else task for task in present):
        group = GROUPS.get(name)
        parts = (
            [part for _, tasks in group.parts if (part := [task for task in tasks if task in present])]
            if group
            else [[name]]
        )
        row = PUBLISHED_WEIGHTS[group.robot].get(name, 0) if published and group else 1
        weights |= {task: row / len(parts) / len(part) for part in parts for task in part}
    return {task: weights[task] / sum(weights.values()) for task in present if weights[task]}


def complete_rows(tasks: Collection[str]) -> list[str]:
    """The rows of the published tables of which all tasks are among `tasks`."""
    return [name for name, group in GROUPS.items() if set(group.tasks) <= set(tasks)]


def has_published_average(tasks: Collection[str]) -> bool:
    """Whether `tasks` hold all that a published average is made of, and it is another number than the plain
    average.
    """
    complete = any(set(rows) <= set(complete_rows(tasks)) for rows in PUBLISHED_WEIGHTS.values())
    return complete and task_weights(tasks) != task_weights(tasks, published=True)


def check_one_kind(records: Iterable[EpisodeRecord]) -> None:
    """Raises `KitError` where a policy's records are of two kinds (`ONE_KIND`): their mean would be the rate
    of neither.
    """
    seen: dict[tuple[str, str], object] = {}
    for record in records:
        for name in ONE_KIND:
            first, value = (
                seen.setdefault((record.policy, name), getattr(record, name)),
                getattr(record, name),
            )
            if first != value:
                raise KitError(
                    f"the records of {record.policy!r} mix {name} {first!r} and {value!r}",
                    f"keep one of them, as in [r for r in records if r.{name} == {value!r}]",
                )
