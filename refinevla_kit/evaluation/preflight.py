"""Before an evaluation: do the policy's conventions fit, and how well can anyone do through its action
encoding? It reports; `evaluate` refuses.

The scripted demonstrator plays each start four times: freely; its recorded actions replayed as they are (does
the simulator repeat itself?); the same after the policy's own encoding and decoding; and in closed loop with
every action passing through them. The last is the ceiling the policy's tokens allow (a policy that sees
corrects its errors, as the demonstrator does); the open-loop replay is what is left where nothing is
corrected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.rollouts import wanted_episodes, whole
from refinevla_kit.evaluation.statistics import Rate, rate
from refinevla_kit.policies.contract import name_of
from refinevla_kit.policies.conversion import Mismatch, mismatches
from refinevla_kit.simulator import make
from refinevla_kit.simulator.contract import Array, Pose, Simulator
from refinevla_kit.tasks import MANISKILL, VISUAL_MATCHING, Task, find_task

DIMENSIONS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
UNITS = ("mm", "mm", "mm", "deg", "deg", "deg", "")
REFUSED = "evaluate() refuses this policy until that is mended; preflight only reports"
SCALE = np.array([1e3, 1e3, 1e3, *[180 / np.pi] * 3, 1.0])  # metres and radians into `UNITS`


@dataclass(frozen=True)
class Preflight:
    """What was found. Rates are of success after the last step (SIMPLER's rule) on the same starts; None
    where there was nothing to replay.

    Attributes:
        policy, task, episodes: whose encoding, where, from how many starts.
        mismatches: conventions that differ; empty when the policy may be evaluated.
        demonstrator: playing freely.
        replay: its actions again, open loop.
        replay_encoded: its actions again, open loop, each through the policy's encoding and decoding.
        ceiling: closed loop through encoding and decoding: the success the policy's tokens allow.
        error: float (7,), the largest difference that encoding and decoding made to an action: mm, degrees,
            gripper command.
        clipped: float (7,), fraction of actions beyond what the encoding can say; None when the policy does
            not give its `action_range`.
        note: why something is missing, "" when nothing is.
    """

    policy: str
    task: str
    episodes: int
    mismatches: tuple[Mismatch, ...]
    demonstrator: Rate | None = None
    replay: Rate | None = None
    replay_encoded: Rate | None = None
    ceiling: Rate | None = None
    error: Array | None = None
    clipped: Array | None = None
    note: str = ""

    def __str__(self) -> str:
        lines = [f"preflight of {self.policy} on {self.task}"]
        lines += [f"  conventions: {each} -> {each.remedy}" for each in self.mismatches] or [
            "  conventions: nothing that differs"
        ]
        if self.mismatches:
            lines.append(f"  {REFUSED}")
        rows = {
            "demonstrator": self.demonstrator,
            "its actions replayed": self.replay,
            "replayed through the policy's encoding": self.replay_encoded,
            "demonstrator acting through it (the ceiling)": self.ceiling,
        }
        for name, found in rows.items():
            if found is not None:
                lines.append(
                    f"  {name:<45}{found.successes}/{found.episodes} = {found.rate:.0%} "
                    f"({found.low:.0%} to {found.high:.0%})"
                )
        if self.error is not None:
            named = zip(DIMENSIONS, self.error, UNITS, strict=True)
            lines.append(
                "  largest error of an action: "
                + ", ".join(f"{name} {value:.2g} {unit}".rstrip() for name, value, unit in named)
            )
        if self.clipped is not None:
            beyond = [
                f"{name} {share:.1%}"
                for name, share in zip(DIMENSIONS, self.clipped, strict=True)
                if share > 0
            ]
            lines.append(f"  actions clipped to the encoding's range: {', '.join(beyond) or 'none'}")
        return "\n".join([*lines, *([f"  {self.note}"] if self.note else [])])


def preflight(
    policy: Any,
    task: str | Task,
    episodes: str | int | Iterable[int] = 24,
    n: int = 24,
    seed: int = 0,
    assets: str | Path | None = None,
    setting: str = VISUAL_MATCHING,
    variant: str = "base",
    progress: bool = False,
) -> Preflight:
    """Compare the conventions of `policy` with those of `task`, and replay demonstrations through its action
    encoding (2 s a start).

    Args:
        policy: needs `round_trip(actions)` (see `Policy`) for the replay; without it only the conventions are
            checked.
        episodes: number of grid starts (the first ones), the ids themselves, or "dense" for `n` continuous
            starts drawn from `seed`.
        assets, setting, variant: as in `simulator.make`; demonstrations exist on the ManiSkill backend.
        progress: show a bar.

    Raises:
        KitError: what `simulator.make` raises, or a `round_trip` that returns something else than float (N,
            7).
    """
    from refinevla_kit.simulator.demonstrator import RECIPES

    task = task if isinstance(task, Task) else find_task(task)
    name, found = name_of(policy), tuple(mismatches(policy, task))
    if not hasattr(policy, "round_trip"):
        return Preflight(
            name,
            task.name,
            0,
            found,
            note="only the conventions were checked: the policy has no round_trip(actions)",
        )
    if task.name not in RECIPES:
        return Preflight(
            name,
            task.name,
            0,
            found,
            note="only the conventions were checked: this task has no scripted demonstrator",
        )
    from tqdm.auto import tqdm

    starts: list[int | Pose] = []
    if isinstance(episodes, str) and episodes == "dense":  # an array is compared number by number
        from refinevla_kit.simulator.start_poses import dense_pose

        starts.extend(dense_pose(task, number, seed) for number in range(whole(n, "n", 1)))
    else:
        wanted = wanted_episodes(episodes)
        starts.extend(range(wanted) if isinstance(wanted, int) else wanted)
    if not starts:
        raise KitError("no starts to replay from", "ask for at least one")

    def encoded(actions: Array) -> Array:
        """float32 (N, 7) -> what the policy's encoding leaves of it."""
        decoded = np.asarray(policy.round_trip(actions), np.float32)
        if decoded.shape != actions.shape or not np.isfinite(decoded).all():
            raise KitError(
                f"{name}.round_trip made {decoded.shape} of actions {actions.shape}",
                "return one action of 7 finite numbers for each",
            )
        return decoded

    encoded(np.zeros((2, 7), np.float32))  # fails before a simulator is made, if it does
    simulator = make(
        task, assets, 48, 36, privileged=True, backend=MANISKILL, setting=setting, variant=variant
    )  # small: nobody looks
    outcomes, recorded = [], []
    try:
        for start in tqdm(starts, desc=f"preflight {task.name}", unit="start", disable=not progress):
            success, actions = _demonstrate(simulator, start, seed, lambda action: action)
            through, _ = _demonstrate(simulator, start, seed, lambda action: encoded(action[None])[0])
            outcomes.append(
                (
                    success,
                    _replay(simulator, start, seed, actions),
                    _replay(simulator, start, seed, encoded(actions)),
                    through,
                )
            )
            recorded.append(actions)
    finally:
        simulator.close()
    actions = np.concatenate(recorded)  # N, 7
    free, replay, replay_encoded, ceiling = (
        rate(sum(column), len(starts)) for column in zip(*outcomes, strict=True)
    )
    clipped = None
    if hasattr(policy, "action_range"):
        low, high = (np.asarray(bound) for bound in policy.action_range)
        clipped = np.mean(
            (actions < low - 1e-6) | (actions > high + 1e-6), axis=0
        )  # float32 noise of a limit is no clipping
    error = np.abs(encoded(actions) - actions).max(axis=0) * SCALE
    return Preflight(
        name, task.name, len(starts), found, free, replay, replay_encoded, ceiling, error, clipped
    )


def _demonstrate(
    simulator: Simulator, start: int | Pose, seed: int, through: Callable[[Array], Array]
) -> tuple[bool, Array]:
    """(success after the last step, float32 (T, 7) the actions the demonstrator wanted); `through` changes
    what is executed.
    """
    from refinevla_kit.simulator.demonstrator import Demonstrator

    expert, observation, wanted = Demonstrator(simulator.task), simulator.reset(start, seed), []
    while True:
        assert observation.state is not None  # the simulator was made with privileged=True
        wanted.append(expert.act(observation.state))
        result = simulator.step(through(wanted[-1]))
        observation = result.observation
        if result.done:
            return result.success, np.stack(wanted)


def _replay(simulator: Simulator, start: int | Pose, seed: int, actions: Array) -> bool:
    """Success after the last of `actions`, float32 (T, 7)."""
    simulator.reset(start, seed)
    success = False
    for action in actions:
        result = simulator.step(action)
        success = result.success
        if result.done:
            break
    return success
