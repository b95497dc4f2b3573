"""A recorded episode played again, to look at: every picture, mask and action, and whether it ended as its
record says.

`evaluate` keeps no pictures. An episode is determined by its record's start, seed and scene and by the
policy. Attention needs the policy again anyway, so playing it again costs seconds and no disk. What may
differ is rounding: a network's depends on the size of its batch and on the machine. A replay that ended
otherwise says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.records import EpisodeRecord
from refinevla_kit.policies.contract import Action, identity_of, name_of
from refinevla_kit.rollouts.engine import Engine, Masks, PlannedEpisode, Scene
from refinevla_kit.rollouts.players import PolicyPlayer, PolicyTake
from refinevla_kit.simulator.contract import Array, Observation, StepResult


@dataclass(frozen=True)
class Rollout:
    """One episode of T steps.

    Attributes:
        record: of what was played again.
        observations: the T + 1, first to last.
        masks: name -> bool (H, W) of each, {} when they were not asked for.
        answers: the policy's T answers.
        actions: float32 (T, 7), as the simulator took them.
        success, grasped: bool (T,), after each step.
        reason: why it ended.
    """

    record: EpisodeRecord
    observations: tuple[Observation, ...]
    masks: tuple[dict[str, Array], ...]
    answers: tuple[Action, ...]
    actions: Array
    success: Array
    grasped: Array
    reason: str

    @property
    def differences(self) -> dict[str, tuple[Any, Any]]:
        """Column -> (what the record says, what came of it now), where those differ."""
        now = {
            "success_any": bool(self.success.any()),
            "success_last": bool(self.success[-1]) and self.reason != "physics",
            "grasped": bool(self.grasped.any()),
            "steps": len(self.actions),
            "reason": self.reason,
        }
        recorded = vars(self.record)
        return {name: (recorded[name], value) for name, value in now.items() if recorded[name] != value}


class _KeptTake(PolicyTake):
    """An episode of which everything is kept."""

    def __init__(self, episode: PlannedEpisode) -> None:
        super().__init__(episode)
        self.results: list[StepResult] = []  # the reset's first
        self.seen: list[Masks] = []
        self.answers: list[Action] = []

    def answered(self, action: Action) -> None:
        self.answers.append(action)

    def note(self, result: StepResult, masks: Masks) -> None:
        super().note(result, masks)
        self.results.append(result)
        self.seen.append(masks)


class Replayer:
    """Plays records again, in this process. The last scene's simulator is kept; `close` it, or use this as a
    context.

    Args:
        policies: those that may be asked for, found by the hash of their checkpoint; any policy that
            `evaluate` takes.
    """

    def __init__(self, policies: Iterable[Any]) -> None:
        self._policies = {(name_of(policy), identity_of(policy)): policy for policy in policies}
        self._engine = Engine(workers=0)

    def policy(self, record: EpisodeRecord) -> Any:
        """The policy that played `record`. Raises `KitError` when it is not here, or only another checkpoint
        of its name.
        """
        key = (record.policy, record.checkpoint_hash)
        if key not in self._policies:
            hashes = [checkpoint for name, checkpoint in self._policies if name == record.policy]
            known = f"checkpoint {record.checkpoint_hash}, here is {', '.join(hashes)}"
            raise KitError(
                f"the episode was played by {record.policy}: "
                f"{known if hashes else 'no policy of that name is here'}",
                "give the policy that played it, with its checkpoint",
            )
        return self._policies[key]

    def play(self, record: EpisodeRecord, masks: bool = True) -> Rollout:
        """Play it from its start to its end.

        Args:
            masks: keep the masks too.

        Raises:
            KitError: the policy is not here, or the scene cannot be made on this machine (its backend or its
                assets are missing).
        """
        policy = self.policy(record)
        scene = Scene(
            record.task,
            record.variant,
            record.setting,
            record.backend,
            record.assets,
            record.width,
            record.height,
            privileged=bool(getattr(policy, "needs_state", False)),
            masks=masks,
        )
        episode = PlannedEpisode(scene, record.start, record.episode_id, record.seed)
        (take,) = self._engine.play([episode], PolicyPlayer(policy, _KeptTake))
        return Rollout(
            record,
            observations=tuple(result.observation for result in take.results),
            masks=tuple(take.seen),
            answers=tuple(take.answers),
            actions=np.stack([answer.processed for answer in take.answers]),
            success=np.array([result.success for result in take.results[1:]]),
            grasped=np.array([result.grasped for result in take.results[1:]]),
            reason=take.reason,
        )

    def close(self) -> None:
        """Let the simulator go."""
        self._engine.close()

    def __enter__(self) -> Replayer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
