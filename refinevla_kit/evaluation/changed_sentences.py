"""Episodes in which a policy is told something else than the task: does it do what the sentence says, or what
it would have done anyway?

Each start of a language task is played under its own sentence, and under one that names the other thing of
the scene instead.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from refinevla_kit.errors import KitError, checked_integer
from refinevla_kit.evaluation.run import plan, processes
from refinevla_kit.policies.contract import identity_of, name_of
from refinevla_kit.rollouts.engine import Engine, Masks, PlannedEpisode
from refinevla_kit.rollouts.players import PolicyPlayer, PolicyTake, batches
from refinevla_kit.simulator.contract import Arrangement, StepResult
from refinevla_kit.simulator.geometry import start_pose
from refinevla_kit.tasks import SOURCES, Tasks, find_task, put, tasks_of


class _ToldTake(PolicyTake):
    """An episode of which the policy is told, from step `at` on, to move the other thing."""

    def __init__(self, episode: PlannedEpisode, told: bool, at: int) -> None:
        super().__init__(episode)
        self.told, self.at, self.task = told, at, find_task(episode.scene.task)
        start = start_pose(self.task, episode.start, episode.number, episode.seed)
        assert isinstance(start, Arrangement)
        self.other = next(name for name in start.things if name in SOURCES and name != self.task.source)

    def note(self, result: StepResult, masks: Masks) -> None:
        super().note(result, masks)
        if self.told and self.observation and self.steps >= self.at:
            self.observation = replace(self.observation, instruction=put(self.other, self.task.target))


def tell_otherwise(
    policy: Any,
    tasks: Tasks,
    n: int,
    at: int = 0,
    *,
    workers: int | None = 0,
    batch: int = 8,
    progress: bool = True,
    **where: Any,
) -> pd.DataFrame:
    """Play `n` dense starts a task twice: under its own sentence, and told to move the other thing.

    Args:
        policy: any that `evaluate` takes.
        tasks: of the WidowX's language suite, of one pair each.
        at: the step from which the other sentence holds; 0: from the start.
        workers, batch, progress, where: as in `evaluate`.

    Returns:
        A row an episode: policy, checkpoint_hash, task, episode, at, told, named and other (the two things),
        touched_first, lifted_first, obeyed (the thing that was asked for last was touched first; with `at`,
        lifted first), reason (why it ended, as in an `EpisodeRecord`).

    Raises:
        KitError: a task of another kind; what `evaluate` raises.
    """
    chosen = tasks_of(tasks)
    if other := [task.name for task in chosen if len(task.goals) != 1]:
        what = f"in {other[0]} the sentence names no single one of two things"
        raise KitError(what, "choose of find_tasks('widowx_language'), those of one pair")
    at = checked_integer(at, "at", 0)
    episodes = plan(policy, chosen, "dense", n, **where).values()
    lanes = min(checked_integer(batch, "batch", 1), len(episodes)) if batches(policy) else 1
    described = {"desc": name_of(policy), "unit": "episode", "disable": not progress}
    rows = []
    with Engine(processes(workers), lanes) as engine, tqdm(total=2 * len(episodes), **described) as bar:
        for told in (False, True):
            player = PolicyPlayer(policy, partial(_ToldTake, told=told, at=at))
            for take in engine.play(episodes, player):
                asked = take.other if told else take.task.source
                row = {
                    "policy": name_of(policy),
                    "checkpoint_hash": identity_of(policy),
                    "task": take.task.name,
                    "episode": take.episode.number,
                    "at": at,
                    "told": told,
                    "named": take.task.source,
                    "other": take.other,
                    "touched_first": take.touched_first,
                    "lifted_first": take.lifted_first,
                    "obeyed": asked == (take.lifted_first if at else take.touched_first),
                    "reason": take.reason,
                }
                rows.append(row)
                bar.update()
    return pd.DataFrame(rows).sort_values(["task", "episode", "told"], ignore_index=True)
