"""Whether a policy does what the sentence says: rates of the language suite, from records.

A policy that ignores its instruction lifts the right one of two objects half the time, and brings it to the
right one of two targets half the time again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from refinevla_kit.evaluation.intervals import Rate, rate
from refinevla_kit.evaluation.records import EpisodeRecord, distinct
from refinevla_kit.evaluation.statistics import RULES, Rule, check_one_kind, is_scored, succeeded
from refinevla_kit.tasks import find_task, find_tasks

KINDS = ("trained", "held out", "move near")


@dataclass(frozen=True)
class Following:
    """What came of a policy's episodes of one kind, in one setting.

    Attributes:
        robot: whose tasks they are.
        kind: one of `KINDS`.
        success, right_object, right_target, both: of all these episodes, with Wilson's 95 % interval
            (`EpisodeRecord`); the last two, of which `both` is right object and right target, are None where
            the tasks have no target.
    """

    policy: str
    setting: str
    robot: str
    kind: str
    success: Rate
    right_object: Rate
    right_target: Rate | None
    both: Rate | None


def following(records: Iterable[EpisodeRecord], rule: Rule = RULES[0]) -> list[Following]:
    """Rates of each policy's episodes of the language suite, in the order in which they first appear; other
    records, and variants that are not scored, are passed over.

    What was moved is counted where the record says it (`EpisodeRecord.tells`). Where one of a kind does not,
    an earlier version may have played them, and none that names no thing is counted; a kind of which nothing
    is known is passed over.

    Raises:
        KitError: as `summarise`.
    """
    suite = {task.name for task in find_tasks("language")}
    groups: dict[tuple[str, str, str, str], list[EpisodeRecord]] = {}
    kept = distinct(record for record in records if record.task in suite and is_scored(record))
    check_one_kind(kept)
    for record in kept:
        task = find_task(record.task)
        kind = KINDS[task.held_out] if task.group.endswith("language") else KINDS[2]
        groups.setdefault((record.policy, record.setting, task.robot, kind), []).append(record)
    rows = []
    for place, played in groups.items():
        known = played
        if not all(record.tells for record in played):
            known = [record for record in played if record.touched_first or record.lifted_first]
        if not known:
            continue
        aimed = [record for record in known if find_task(record.task).target]
        success = rate(sum(succeeded(record, rule) for record in played), len(played))
        right_object = rate(sum(record.right_object for record in known), len(known))
        right_target = both = None
        if aimed:
            right_target = rate(sum(record.right_target for record in aimed), len(aimed))
            both = rate(sum(succeeded(record, "named") for record in aimed), len(aimed))
        rows.append(Following(*place, success, right_object, right_target, both))
    return rows
