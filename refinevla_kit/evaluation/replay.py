"""A recorded episode played again, to look at: every picture, mask and action, and whether it ended as its
record says.

`evaluate` keeps no pictures. An episode is determined by its record's start, seed and scene and by the
policy, and attention needs the policy again anyway, so playing it again costs seconds and no disk. What may
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
from refinevla_kit.evaluation.stations import Scene
from refinevla_kit.policies.contract import Action, ask, begin, identity_of, name_of, naming, read_answer
from refinevla_kit.simulator.contract import Array, Observation, Simulator
from refinevla_kit.tasks import find_task


@dataclass(frozen=True)
class Rollout:
    """One episode of T steps.

    Attributes:
        record: of what was played again.
        observations: the T + 1, first to last.
        masks: name -> bool (H, W) of each, {} when they
            were not asked for.
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
        return {
            name: (getattr(self.record, name), value)
            for name, value in now.items()
            if getattr(self.record, name) != value
        }


class Replayer:
    """Plays records again, in this process. The last scene's simulator is kept; `close` it, or use this as a
    context.

    Args:
        policies: those that may be asked for, found by the hash of their checkpoint; any policy that
            `evaluate` takes.
    """

    def __init__(self, policies: Iterable[Any]) -> None:
        self._policies = {(name_of(one), identity_of(one)): one for one in policies}
        self._scene: Scene | None = None
        self._simulator: Simulator | None = None

    def policy(self, record: EpisodeRecord) -> Any:
        """The policy that played `record`. Raises `KitError` when it is not here, or only another checkpoint
        of its name.
        """
        if (record.policy, record.checkpoint_hash) not in self._policies:
            hashes = [checkpoint for name, checkpoint in self._policies if name == record.policy]
            known = (
                f"checkpoint {record.checkpoint_hash}, here is {', '.join(hashes)}"
                if hashes
                else "no policy of that name is here"
            )
            raise KitError(
                f"the episode was played by {record.policy}: {known}",
                "give the policy that played it, with its checkpoint",
            )
        return self._policies[record.policy, record.checkpoint_hash]

    def play(self, record: EpisodeRecord, masks: bool = True) -> Rollout:
        """Play it from its start to its end.

        Args:
            masks: keep the masks too, which costs a second rendering a step.

        Raises:
            KitError: the policy is not here, or the scene cannot be made on this machine (its backend or its
                assets are missing).
        """
        policy = self.policy(record)
        simulator = self._at(record, bool(getattr(policy, "needs_state", False)))
        observation = simulator.reset(_start(record), record.seed)
        observations, seen, answers = [observation], [simulator.masks() if masks else {}], list[Action]()
        results: list[tuple[bool, bool, bool, str]] = []
        instruction, rows = None, list[Action]()
        while not results or not results[-1][2]:
            with naming(
                f"policy {record.policy!r} in {record.task}, episode {record.episode_id}, step {len(results)}"
            ):
                if observation.instruction != instruction:
                    begin(policy, observation.instruction)
                    rows = []
                instruction = observation.instruction
                if not rows:
                    own, state = observation.proprioception, observation.state
                    (answer,) = ask(policy, [observation.image], [instruction], [own], [state], [record.task])
                    rows = read_answer(answer)
            answers.append(rows.pop(0))
            over = answers[-1].terminate and not simulator.advance()
            step = simulator.step(answers[-1].processed)
            results.append(
                (step.success, step.grasped, step.done or over, step.reason or ("terminated" if over else ""))
            )
            observation = step.observation
            observations.append(observation)
            seen.append(simulator.masks() if masks else {})
        actions = np.stack([answer.processed for answer in answers])
        success, grasped = (np.array([result[i] for result in results]) for i in (0, 1))
        return Rollout(
            record,
            tuple(observations),
            tuple(seen),
            tuple(answers),
            actions,
            success,
            grasped,
            results[-1][3],
        )

    def close(self) -> None:
        """Let the simulator go."""
        if self._simulator is not None:
            self._simulator.close()
        self._scene = self._simulator = None

    def __enter__(self) -> Replayer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _at(self, record: EpisodeRecord, privileged: bool) -> Simulator:
        scene = Scene(
            record.task,
            record.variant,
            record.setting,
            record.backend,
            record.assets,
            record.width,
            record.height,
            privileged,
        )
        if self._simulator is None or scene != self._scene:
            self.close()
            self._simulator, self._scene = scene.make(), scene
        return self._simulator


def _start(record: EpisodeRecord) -> Any:
    if record.start == "grid":
        return record.episode_id
    from refinevla_kit.simulator.start_poses import dense_pose

    return dense_pose(find_task(record.task), record.episode_id, record.seed)
