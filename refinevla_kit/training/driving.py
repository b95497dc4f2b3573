"""Episodes that a policy drives and the demonstrator labels: where the policy goes wrong, the data say what would have been right (DAgger)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from refinevla_kit.simulator.contract import Array, Observation
from refinevla_kit.tasks import Task


@dataclass(frozen=True)
class PolicyDrive:
    """`episodes.recording.record`'s `drive`: the policy of a checkpoint. Picklable, and read once a process."""

    checkpoint: Path

    def __call__(self, observation: Observation, task: Task) -> Array:
        """float32 (7,), as `Simulator.step` takes it."""
        (action,) = _policy(self.checkpoint).act_batch(observation.image[None], [observation.instruction], observation.proprioception[None])
        processed: Array = action.processed
        return processed


@cache
def _policy(checkpoint: Path) -> Any:
    from refinevla_kit.policies.vla_policy import load_policy

    return load_policy(checkpoint)
