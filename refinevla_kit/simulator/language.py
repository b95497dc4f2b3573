"""The WidowX's language tasks behind the `Simulator` contract."""

from __future__ import annotations

from typing import Any

import numpy as np

from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import AnyStart, Arrangement, Array, Pose, StepResult
from refinevla_kit.simulator.geometry import grid_arrangement
from refinevla_kit.simulator.maniskill import ManiSkillSimulator
from refinevla_kit.tasks import THINGS, Start, put


class LanguageSimulator(ManiSkillSimulator):
    """`Simulator` over one scene of several things.

    A task of several goals has one sentence after the other: `advance` goes on to the next, and so does,
    at the latest, the end of the goal's share of the step budget.
    """

    scenes = "refinevla_kit.simulator.language_scenes"

    def step(self, action: Array) -> StepResult:
        """See `Simulator.step`."""
        if self._env.goal < self._steps * len(self.task.goals) // self.task.max_steps:
            self.advance()
        return super().step(action)

    def advance(self) -> bool:
        """See `Simulator.advance`."""
        following = self._env.goal + 1
        if following == len(self.task.goals):
            return False
        self._env.ask_for(following)
        self._bind()
        return True

    def _arrange(self, episode: AnyStart) -> int:
        if isinstance(episode, Pose | Start):
            what = f"{self.task.name} does not start from this {type(episode).__name__}"
            raise KitError(what, "give a number or an Arrangement")
        if not isinstance(episode, Arrangement):
            episode = grid_arrangement(self.task, super()._arrange(episode))
        asked = {name for pair in self.task.goals for name in pair}
        wrong = asked - episode.things.keys() or episode.things.keys() - set(THINGS)
        if wrong:
            what = f"the things of this Arrangement do not fit {self.task.name}: {', '.join(sorted(wrong))}"
            raise KitError(what, f"show {', '.join(sorted(asked))}, and others of {', '.join(THINGS)}")
        self._env.arrangement = episode
        return 0

    def _bind(self) -> None:
        super()._bind()
        self._watched = list(self._env.things.values())
        self.instruction = put(*self.task.goals[self._env.goal])

    def _things(self) -> dict[str, Any]:
        return dict(self._env.things)

    def _asked(self) -> dict[str, Any]:
        held = self._env.held
        return {
            "goal": np.array(self._env.goal, np.int8),
            "held": np.array(THINGS.index(held) if held else -1, np.int8),
        }
