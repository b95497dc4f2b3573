"""The scripted demonstrator as a policy: it sees simulator state instead of pixels, and marks the ceiling of
the other policies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from refinevla_kit.conventions import WIDOWX
from refinevla_kit.files import sha256
from refinevla_kit.policies.contract import Action
from refinevla_kit.simulator import demonstrator
from refinevla_kit.simulator.contract import Array, SceneState
from refinevla_kit.tasks import find_task


class DemonstratorPolicy:
    """Acts from privileged state; `evaluate` hands it `SceneState`s because of `needs_state`.

    `checkpoint_hash` is that of the demonstrator's own code: it has no weights, and a changed script is
    another policy.
    """

    needs_state = True
    name = "demonstrator"
    conventions = replace(WIDOWX, image_size=None)  # it looks at no image

    def __init__(self) -> None:
        self.checkpoint_hash = sha256(demonstrator.__file__)[:12]

    def act_states(self, states: Sequence[SceneState], tasks: Sequence[str]) -> list[Action]:
        """One action a state, for the task of that name."""
        return [
            _action(demonstrator.Demonstrator(find_task(task)).act(state))
            for state, task in zip(states, tasks, strict=True)
        ]


def _action(processed: Array) -> Action:
    """An action without tokens; the script has no range of its own, so normalised is the action itself."""
    processed = np.asarray(processed, np.float32)
    return Action(processed, processed, np.empty(0, np.int64), np.empty(0, np.float32))
