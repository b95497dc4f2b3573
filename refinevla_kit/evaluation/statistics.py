"""From records to numbers that say how sure they are: each policy's success on each task and on average, and
two policies on the same episodes. SIMPLER's rule of averaging is here, and nowhere else.

Two rules of success exist: "last" (the task's condition holds after the last step; what SIMPLER's own
evaluator scores) and "any" (it held after any step; what several published evaluations count). A third,
"named", is about the sentence: the right object was lifted first, and it ended on the right target. Whatever
is computed from records says which.

What an evaluation draws is the start: every variant, policy and repeated seed is played from the same ones.
So the unit is the start, and its value is its share in the task's rate: a statistic over starts counts once
what stands or falls together.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, lcm
from typing import Any, Literal, get_args

import numpy as np

from refinevla_kit.errors import KitError, check_choice, listed
from refinevla_kit.evaluation.intervals import (
    FEWEST,
    Rate,
    mean_rate,
    paired_adjusted,
    paired_bootstrap,
    paired_size,
    sign_flip,
)
from refinevla_kit.evaluation.records import KEY, EpisodeRecord, Key, distinct
from refinevla_kit.simulator.contract import Array
from refinevla_kit.tasks import (
    ALL_TASKS,
    BASE,
    GROUPS,
    PUBLISHED_WEIGHTS,
    TASKS,
    VISUAL_MATCHING,
    decided_by_the_sentence,
    find_task,
)

Rule = Literal["last", "any", "named"]
RULES: tuple[Rule, Rule] = ("last", "any")  # of success
# Each row of the published table (a WidowX task; coke can, move near, drawer) weighs the same.
AVERAGE = "average"
PUBLISHED_AVERAGE = "average, published weights"  # `tasks.PUBLISHED_WEIGHTS`; the same for the WidowX
AVERAGES = (AVERAGE, PUBLISHED_AVERAGE)
# What the episodes behind one number have in common.
ONE_KIND = ("checkpoint_hash", "backend", "assets", "start", "width", "height")
PAIRED = tuple(name for name in KEY if name not in ("policy", "checkpoint_hash"))


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

    @property
    def row(self) -> dict[str, Any]:
        """As JSON can hold it: policy, task, rule and what the rate holds."""
        return {"policy": self.policy, "task": self.task, "rule": self.rule, **vars(self.rate)}


@dataclass(frozen=True)
class Comparison:
    """Policy `a` against policy `b` on the very same episodes.

    Attributes:
        task: task, row of the published tables, or average.
        both, only_a, only_b, neither: episodes that succeeded under both, one or none of the two; only those
            that count in the average, where it is one.
        difference, low, high: rate of a minus rate of b, with its paired bootstrap interval over starts.
            Where hardly a start speaks for one of the two, a bootstrap has nothing to draw from: there the
            interval is that of `paired_adjusted`.
        p_value: two-sided exact McNemar test (`sign_flip`), in which an episode weighs what it does in the
            difference.
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
    def bounded(self) -> tuple[float, float, float]:
        """The difference with both ends of its interval."""
        return self.difference, self.low, self.high

    @property
    def episodes(self) -> int:
        """Number of shared episodes."""
        return self.both + self.only_a + self.only_b + self.neither

    def __str__(self) -> str:
        gain, low, high = (f"{100 * value:+.1f}" for value in self.bounded)
        told = "tell" if self.p_value < 0.05 else "do not tell"
        return (
            f"{self.a} minus {self.b}: {gain} points ({low} to {high}), p = {self.p_value:.3f}: "
            f"these {self.episodes} shared episodes {told} the two apart"
        )


def summarise(records: Iterable[EpisodeRecord], rule: Rule = "last") -> list[Score]:
    """Scores of every policy in every setting: its tasks, the published rows it has played all tasks of, the
    average, and the published average where it is another number. Policies, settings and tasks in the order
    in which they first appear.

    Raises:
        KitError: a policy's records are of two checkpoints, backends, asset packs, kinds of start or
            resolutions; two records of one episode contradict each other (the same one twice counts once).
    """
    return _scores([record for record in records if is_scored(record)], rule)


def summarise_variants(records: Iterable[EpisodeRecord], rule: Rule = "last") -> list[Score]:
    """The same for each variant by itself, scored or not, in the order in which they first appear;
    `Score.variant` names it.
    """
    records = list(records)
    return [
        replace(score, variant=name)
        for name in dict.fromkeys(record.variant for record in records)
        for score in _scores([record for record in records if record.variant == name], rule)
    ]


def _scores(records: list[EpisodeRecord], rule: Rule) -> list[Score]:
    records = distinct(records)
    check_one_kind(records)
    played: dict[tuple[str, str], list[tuple[EpisodeRecord, bool]]] = defaultdict(list)
    for record in records:
        played[record.policy, record.setting].append((record, succeeded(record, rule)))
    scores = []
    for (policy, setting), outcomes in played.items():
        values = _values(outcomes)
        for name, weights in _means(values).items():
            counted = [won for record, won in outcomes if record.task in weights]
            means = [values[task] for task in weights]
            rate = mean_rate(means, list(weights.values()), sum(counted), len(counted))
            scores.append(Score(policy, name, rule, rate, setting))
    return scores


def _values(outcomes: Iterable[tuple[EpisodeRecord, float]]) -> dict[str, Array]:
    """Task -> `start_values` of what came of its episodes."""
    tasks: dict[str, list[tuple[Hashable, str, float]]] = defaultdict(list)
    for record, outcome in outcomes:
        tasks[record.task].append((start_of(record), record.variant, outcome))
    return {task: start_values(episodes) for task, episodes in tasks.items()}


def _means(played: Collection[str]) -> dict[str, dict[str, float]]:
    """What the tasks that were played give: name -> weight of each task."""
    complete = [name for name, group in GROUPS.items() if set(group.tasks) <= set(played)]
    means = {task: {task: 1.0} for task in played}
    means |= {row: task_weights(GROUPS[row].tasks) for row in complete}
    counted = averaged(played)
    means[AVERAGE] = task_weights(counted)
    published = task_weights(counted, published=True)
    whole_average = any(set(rows) <= set(complete) for rows in PUBLISHED_WEIGHTS.values())
    if whole_average and published != means[AVERAGE]:
        means[PUBLISHED_AVERAGE] = published
    return means


def shown_tasks(scores: Iterable[Score]) -> list[str]:
    """What a table or a picture of `scores` has room for: rows of the published tables, tasks of rows that
    are not there, averages last.
    """
    names, order = list(dict.fromkeys(score.task for score in scores)), list(GROUPS)
    rows = {task: row_of(task) for task in names if task not in AVERAGES}
    shown = [task for task, row in rows.items() if row == task or row not in names]
    shown.sort(key=lambda task: order.index(rows[task]) if rows[task] in order else len(order))
    return shown + [task for task in AVERAGES if task in names]


def compare(
    records: Iterable[EpisodeRecord],
    a: str,
    b: str,
    rule: Rule = "last",
    task: str = AVERAGE,
    setting: str | None = None,
) -> Comparison:
    """Compare two policies on the scored episodes both have played (same task, variant, assets, start, seed,
    resolution).

    Args:
        task: a task, a row of the published tables, `AVERAGE` or `PUBLISHED_AVERAGE`.
        setting: None takes the one there is.

    Raises:
        KitError: no shared episode, a row of which not all tasks are shared, two settings and none chosen, or
            records of one policy that do not belong together.
    """
    shared = _shared(records, a, b, rule, task, setting)
    values = _values((record, won_a - won_b) for record, won_a, won_b in shared)
    weights = task_weights(values, published=task == PUBLISHED_AVERAGE)
    differences = [values[name] for name in weights]
    shares, unit = _shares([record for record, *_ in shared], weights)
    by_start = Counter[Hashable]()
    for record, won_a, won_b in shared:
        by_start[start_of(record)] += shares[record.task, record.variant] * (won_a - won_b)
    # A bootstrap cannot draw what it has not seen: with hardly a loss on one side its interval never reaches
    # beyond zero.
    gains = np.array(list(by_start.values())) / unit * len(by_start)  # their mean is the difference
    weight = list(weights.values())
    enough = min((gains > 0).sum(), (gains < 0).sum()) >= FEWEST
    low, high = (paired_bootstrap if enough else paired_adjusted)(differences, weight)
    cells = Counter((won_a, won_b) for _, won_a, won_b in shared)
    starts_needed = paired_size((gains**2).mean(), gains.mean()) if abs(gains.mean()) > 1e-9 else None
    return Comparison(
        a,
        b,
        task,
        rule,
        both=cells[True, True],
        only_a=cells[True, False],
        only_b=cells[False, True],
        neither=cells[False, False],
        difference=float(np.dot(weight, [values.mean() for values in differences])),
        low=low,
        high=high,
        p_value=sign_flip(by_start.values()),
        needed=None if starts_needed is None else ceil(len(shared) / len(gains) * starts_needed),
    )


def _shares(
    records: Sequence[EpisodeRecord], weights: dict[str, float]
) -> tuple[dict[tuple[str, str], int], int]:
    """What an episode of a task and variant weighs in the average, in whole units, and how many units there
    are in all: the test is exact in whole numbers. Where it would take more than 100,000, shares are rounded
    to these.
    """
    episodes = Counter((record.task, record.variant) for record in records)
    variants = Counter(task for task, _ in episodes)
    shares = {
        (task, variant): Fraction(weights[task]).limit_denominator(10_000) / (number * variants[task])
        for (task, variant), number in episodes.items()
    }
    unit = min(lcm(*(share.denominator for share in shares.values())), 100_000)
    return {place: round(share * unit) for place, share in shares.items()}, unit


def compare_each(
    records: Sequence[EpisodeRecord], a: str, b: str, rules: Iterable[Rule] = RULES
) -> list[Comparison]:
    """`compare` by each rule: the tasks that both have played one by one, then the average where there are
    several.
    """
    played = {policy: [record.task for record in records if record.policy == policy] for policy in (a, b)}
    tasks = [task for task in dict.fromkeys(played[a]) if task in played[b]]
    tasks += [AVERAGE] * (len(tasks) > 1)
    return [compare(records, a, b, rule, task) for rule in rules for task in tasks]


def _shared(
    records: Iterable[EpisodeRecord], a: str, b: str, rule: Rule, task: str, setting: str | None
) -> list[tuple[EpisodeRecord, bool, bool]]:
    """Each episode that both policies have played: (record of a, success of a, success of b)."""
    records = list(records)
    known = dict.fromkeys(record.policy for record in records)
    for policy in (a, b):
        check_choice("policy among these records:", policy, known)
    tasks: Collection[str] = GROUPS[task].tasks if task in GROUPS else (task,)
    if task in AVERAGES:
        ours, theirs = ({record.task for record in records if record.policy == policy} for policy in (a, b))
        counted = averaged(record.task for record in records if record.task in ours & theirs)
        tasks = task_weights(counted, published=task == PUBLISHED_AVERAGE)
    chosen = distinct(
        record
        for record in records
        if record.policy in (a, b)
        and setting in (None, record.setting)
        and is_scored(record)
        and record.task in tasks
    )
    check_one_kind(chosen)
    settings = list(dict.fromkeys(record.setting for record in chosen))
    if len(settings) > 1:
        raise KitError(
            f"the records of {a!r} and {b!r} are of {' and '.join(settings)}",
            f"choose one, as in [r for r in records if r.setting == {settings[0]!r}]",
        )
    played: dict[str, dict[Key, EpisodeRecord]] = {a: {}, b: {}}
    for record in chosen:
        played[record.policy][shared_key(record)] = record
    shared = [
        (record, succeeded(record, rule), succeeded(played[b][place], rule))
        for place, record in played[a].items()
        if place in played[b]
    ]
    if not shared:
        raise KitError(
            f"{a!r} and {b!r} share no episode" + ("" if task in AVERAGES else f" of {task}"),
            "evaluate both on the same tasks, episodes, assets, seed and size of pictures (`width=`)",
        )
    lacking = sorted(set(tasks) - {record.task for record, *_ in shared})
    if lacking and task in GROUPS:
        what = f"{a!r} and {b!r} share only some tasks of {task}"
        raise KitError(what, f"evaluate both on {listed(lacking)} too, or compare a task")
    return shared


def against_base(records: Iterable[EpisodeRecord], policy: str, rule: Rule = "last") -> list[Comparison]:
    """What each change of the scene costs one policy: its success in every variant minus that in "base", from
    the same starts; nothing where that was not played. One setting after the other.
    """
    settings: dict[str, list[EpisodeRecord]] = defaultdict(list)
    for record in records:
        if record.policy == policy:
            settings[record.setting].append(replace(record, policy=record.variant, variant=BASE))
    comparisons = []
    for as_policies in settings.values():
        variants = dict.fromkeys(record.policy for record in as_policies)
        if BASE in variants:  # the unchanged scene was played
            comparisons += [compare(as_policies, name, BASE, rule) for name in variants if name != BASE]
    return comparisons


def succeeded(record: EpisodeRecord, rule: Rule) -> bool:
    """Whether the episode is a success under `rule`. Where the sentence names no target ("pick the can") the
    right object is enough for "named".

    Raises:
        KitError: an unknown rule; "named" for a task that the sentence does not decide, or where the record
            does not tell (`EpisodeRecord.tells`).
    """
    check_choice("rule", rule, get_args(Rule))
    if rule == "named":
        task = find_task(record.task)
        if not decided_by_the_sentence(task):
            what = f"rule 'named' is for tasks that the sentence decides, which {task.name} is not"
            raise KitError(what, "give it records of find_tasks('language')")
        if not record.tells:
            what = f"a record of {task.name} ({record.backend}) does not say what was moved"
            raise KitError(what, "evaluate again on the backend maniskill, or choose another rule")
        return record.right_object and (record.right_target or not task.target)
    return record.success_last if rule == "last" else record.success_any


def shared_key(record: EpisodeRecord) -> Key:
    """What two policies' records of one episode have in common."""
    return tuple(getattr(record, name) for name in PAIRED)


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


def row_of(task: str) -> str:
    """The row of the published tables that a task is averaged into."""
    return TASKS[task].group if task in TASKS else task


def averaged(tasks: Iterable[str]) -> list[str]:
    """What averages count of these: SIMPLER's tasks; others only where there are none of them."""
    tasks = list(tasks)
    return [task for task in tasks if task in TASKS] or tasks


def task_weights(tasks: Iterable[str], published: bool = False) -> dict[str, float]:
    """What each task weighs in the average of `tasks`: a mean over rows of the published table, of means over
    their parts, of means over their tasks.

    Args:
        published: weigh the rows as `PUBLISHED_WEIGHTS` does, without those it lacks, instead of equally.
    """
    present = list(dict.fromkeys(tasks))
    weights: dict[str, float] = {}
    for row in dict.fromkeys(map(row_of, present)):
        if row not in GROUPS:
            weights[row] = 1.0
            continue
        group = GROUPS[row]
        row_weight = PUBLISHED_WEIGHTS[group.robot].get(row, 0) if published else 1
        parts = [[task for task in members if task in present] for _, members in group.parts]
        parts = [part for part in parts if part]
        for part in parts:
            weights |= dict.fromkeys(part, row_weight / len(parts) / len(part))
    total = sum(weights.values())
    return {task: weights[task] / total for task in present if weights[task]}


def is_scored(record: EpisodeRecord) -> bool:
    """Whether averages contain the episode's variant: SIMPLER plays camera variants, but leaves them out."""
    protocols = ALL_TASKS[record.task].protocols if record.task in ALL_TASKS else ()
    return all(
        variant.scored
        for protocol in protocols
        if protocol.setting == record.setting
        for variant in protocol.variants
        if variant.name == record.variant
    )


def check_one_kind(records: Iterable[EpisodeRecord]) -> None:
    """Raises `KitError` where a policy's records are of two kinds (`ONE_KIND`): their mean would be the rate
    of neither.
    """
    first: dict[str, EpisodeRecord] = {}
    for record in records:
        for name in ONE_KIND:
            expected, value = getattr(first.setdefault(record.policy, record), name), getattr(record, name)
            if expected != value:
                raise KitError(
                    f"the records of {record.policy!r} mix {name} {expected!r} and {value!r}",
                    f"keep one of them, as in [r for r in records if r.{name} == {value!r}]",
                )
