"""Before an evaluation: do the policy's conventions fit, and how well can anyone do through its action
encoding? It reports; `evaluate` refuses.

The scripted demonstrator plays each start four times. First freely. Then its recorded actions are replayed as
they are (does the simulator repeat itself?), and after the policy's own encoding and decoding: what is left
where nothing is corrected. Last it acts in closed loop, every action passing through them. That is the
ceiling the policy's tokens allow, as a policy that sees corrects its errors, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from refinevla_kit.conventions import ROBOT_CONVENTIONS, Conventions
from refinevla_kit.errors import KitError, as_kit_error
from refinevla_kit.evaluation.intervals import Rate, rate
from refinevla_kit.evaluation.run import wanted_episodes, wanted_starts
from refinevla_kit.policies.contract import Action, conventions_of, name_of
from refinevla_kit.policies.conversion import Mismatch, mismatches, motion_as_place
from refinevla_kit.rollouts.engine import Engine, PlannedEpisode, Scene, Take
from refinevla_kit.rollouts.players import FunctionPlayer, plain_action
from refinevla_kit.simulator.contract import Array, SceneState
from refinevla_kit.simulator.demonstrator import Demonstrator
from refinevla_kit.tasks import BASE, MANISKILL, VISUAL_MATCHING, Task, find_task

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
        lines += [f"  conventions: {each} -> {each.remedy}" for each in self.mismatches]
        lines.append(f"  {REFUSED}" if self.mismatches else "  conventions: nothing that differs")
        rows = {
            "demonstrator": self.demonstrator,
            "its actions replayed": self.replay,
            "replayed through the policy's encoding": self.replay_encoded,
            "demonstrator acting through it (the ceiling)": self.ceiling,
        }
        for name, found in rows.items():
            if found is not None:
                count = f"{found.successes}/{found.episodes} = {found.rate:.0%}"
                lines.append(f"  {name:<45}{count} ({found.low:.0%} to {found.high:.0%})")
        if self.error is not None:
            named = zip(DIMENSIONS, self.error, UNITS, strict=True)
            errors = [f"{name} {value:.2g} {unit}".rstrip() for name, value, unit in named]
            lines.append(f"  largest error of an action: {', '.join(errors)}")
        if self.clipped is not None:
            shares = zip(DIMENSIONS, self.clipped, strict=True)
            beyond = [f"{name} {share:.1%}" for name, share in shares if share > 0]
            lines.append(f"  actions clipped to the encoding's range: {', '.join(beyond) or 'none'}")
        if self.note:
            lines.append(f"  {self.note}")
        return "\n".join(lines)


def preflight(
    policy: Any,
    task: str | Task,
    episodes: str | int | Iterable[int] = 24,
    n: int = 24,
    seed: int = 0,
    assets: str | Path | None = None,
    progress: bool = False,
    engine: Engine | None = None,
) -> Preflight:
    """Compare the conventions of `policy` with those of `task`, and replay demonstrations through its action
    encoding (2 s a start).

    Args:
        policy: needs `round_trip(actions)` (see `Policy`) for the replay; without it only the conventions are
            checked.
        episodes: number of grid starts (the first ones, at most all; 0 replays none), the ids themselves, or
            "dense" for `n` continuous starts drawn from `seed`.
        assets: as in `simulator.make`; demonstrations exist on the ManiSkill backend.
        progress: show a bar.
        engine: plays the episodes; None plays them in this process.

    Raises:
        KitError: what `simulator.make` raises, or a `round_trip` that fails or returns something else than
            float (N, 7).
    """
    task, wanted = find_task(task), wanted_episodes(episodes)
    report = Preflight(name_of(policy), task.name, 0, tuple(mismatches(policy, task)))
    why = "" if hasattr(policy, "round_trip") else "the policy has no round_trip(actions)"
    if wanted == 0:
        why = "no start is replayed"
    elif find_spec("mani_skill") is None:
        why = "demonstrations are replayed in ManiSkill 3, which is not here"
    elif motion_as_place(_said_by(policy), ROBOT_CONVENTIONS[task.robot]):
        why = "a motion of the robot's fingers is no place in which the policy says they are"
    if why:
        return replace(report, note=f"only the conventions were checked: {why}")
    if isinstance(wanted, int):
        wanted = min(wanted, len(task.protocol().starts))
    # Small pictures: nobody looks.
    scene = Scene(
        task.name, BASE, VISUAL_MATCHING, MANISKILL, str(assets or "embedded"), 48, 36, privileged=True
    )
    kind, numbers = wanted_starts(task, VISUAL_MATCHING, wanted, n)
    starts = [PlannedEpisode(scene, kind, number, seed) for number in numbers]
    encoded(policy, np.zeros((2, 7), np.float32))  # fails before a simulator is made, if it does
    with nullcontext(engine) if engine else Engine(workers=0) as playing:
        rates, actions, decoded = _replays(policy, task, starts, progress, playing)
    clipped = None
    if hasattr(policy, "action_range"):
        low, high = (np.asarray(bound) for bound in policy.action_range)
        # float32 noise of a limit is no clipping.
        clipped = np.mean((actions < low - 1e-6) | (actions > high + 1e-6), axis=0)
    error = np.abs(decoded - actions).max(axis=0) * SCALE
    return replace(report, episodes=len(starts), error=error, clipped=clipped, **rates)


def preflight_each(
    players: Iterable[tuple[Any, Iterable[Task]]],
    episodes: str | int | Iterable[int] = 24,
    assets: str | Path | None = None,
    workers: int = 0,
    progress: bool = False,
) -> Iterator[Preflight]:
    """`preflight` of every task, with the first of those who play it, one after the other.

    Args:
        players: of `line_up`.
        episodes, assets, progress: as for `preflight`.
        workers: simulator processes; 0 plays in this process.
    """
    first: dict[str, Any] = {}
    for policy, tasks in players:
        for task in tasks:
            first.setdefault(task.name, policy)
    with Engine(workers, lanes=max(1, 2 * workers)) as engine:
        for name, player in first.items():
            yield preflight(player, name, episodes, assets=assets, progress=progress, engine=engine)


def _replays(
    policy: Any, task: Task, starts: list[PlannedEpisode], progress: bool, engine: Engine
) -> tuple[dict[str, Any], Array, Array]:
    """The four rates of a `Preflight` by name; the demonstrator's actions and what the encoding leaves of
    them, float32 (N, 7).
    """
    expert = Demonstrator(task)
    wanted: dict[PlannedEpisode, list[Array]] = {start: [] for start in starts}

    def demonstrate(take: Take) -> Action:
        if not take.steps:
            wanted[take.episode].clear()  # an episode whose process died begins anew
        wanted[take.episode].append(expert.act(_state(take)))
        return plain_action(wanted[take.episode][-1])

    def demonstrate_encoded(take: Take) -> Action:
        return plain_action(encoded(policy, expert.act(_state(take))[None])[0])

    def repeat(actions: dict[PlannedEpisode, Array], take: Take) -> Action:
        last = take.steps == len(actions[take.episode]) - 1
        return plain_action(actions[take.episode][take.steps], terminate=last)

    described = {"desc": f"preflight {task.name}", "unit": "episode", "disable": not progress}
    with tqdm(total=4 * len(starts), **described) as bar:

        def success(decide: Callable[[Take], Action]) -> Rate:
            succeeded = 0
            for take in engine.play(starts, FunctionPlayer(decide, Take)):
                succeeded += take.success
                bar.update()
            return rate(succeeded, len(starts))

        rates = {"demonstrator": success(demonstrate), "ceiling": success(demonstrate_encoded)}
        recorded = {start: np.stack(actions) for start, actions in wanted.items()}
        decoded = {start: encoded(policy, actions) for start, actions in recorded.items()}
        rates["replay"] = success(partial(repeat, recorded))
        rates["replay_encoded"] = success(partial(repeat, decoded))
    return rates, np.concatenate(list(recorded.values())), np.concatenate(list(decoded.values()))


def _said_by(policy: Any) -> Conventions:
    """Conventions of what a VLA's action words say, before they are converted."""
    return conventions_of(getattr(policy, "vla", policy))


def encoded(policy: Any, actions: Array) -> Array:
    """float32 (N, 7): what the policy's encoding leaves of such actions."""
    remedy = "see what it raises for float32 (2, 7) of zeros"
    with as_kit_error(f"{name_of(policy)}.round_trip failed", remedy):
        decoded = np.asarray(policy.round_trip(actions), np.float32)
    if decoded.shape != actions.shape or not np.isfinite(decoded).all():
        raise KitError(
            f"{name_of(policy)}.round_trip made {decoded.shape} of actions {actions.shape}",
            "return one action of 7 finite numbers for each",
        )
    return decoded


def _state(take: Take) -> SceneState:
    assert take.observation is not None and take.observation.state is not None  # the scene is privileged
    return take.observation.state
