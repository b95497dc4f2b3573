"""Who plays: any policy, asked in batches; a function; the scripted demonstrator as a policy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np

from refinevla_kit.conventions import ROBOT_CONVENTIONS
from refinevla_kit.errors import KitError
from refinevla_kit.files import sha256
from refinevla_kit.policies.contract import Action, ask, begin, has, name_of, naming, read_answer
from refinevla_kit.rollouts.engine import PlannedEpisode, T, Take
from refinevla_kit.simulator import demonstrator, google_demonstrator
from refinevla_kit.simulator.contract import Array, SceneState
from refinevla_kit.tasks import find_task

# Metres, radians, gripper: what is beyond is no action of these robots.
LIMITS = np.array([1, 1, 1, np.pi, np.pi, np.pi, 1], np.float32) * 1.001


def batches(policy: Any) -> bool:
    """Whether a policy can play several episodes at a time."""
    return has(policy, "act_batch") or bool(getattr(policy, "needs_state", False))


class PolicyTake(Take):
    """An episode that a policy plays.

    Attributes:
        instruction: the one that the policy was told last.
        chunk: actions that the policy has answered already, to be executed without asking again.
    """

    def __init__(self, episode: PlannedEpisode) -> None:
        super().__init__(episode)
        self.instruction: str | None = None
        self.chunk: deque[Action] = deque()

    def answered(self, action: Action) -> None:
        """What the policy does on seeing `observation`; called before it is carried out."""


P = TypeVar("P", bound=PolicyTake)


class PolicyPlayer(Generic[P]):
    """Plays a policy of anyone; what it may be is told in `policies.contract`.

    Args:
        new_take: makes the takes.
    """

    def __init__(self, policy: Any, new_take: Callable[[PlannedEpisode], P]) -> None:
        self.policy, self.name, self.begin = policy, name_of(policy), new_take

    def act(self, takes: Sequence[PolicyTake]) -> Iterator[Action]:
        """See `Player.act`. The rows of a chunk are executed one after another before the policy is asked
        again, unless another instruction holds.

        Raises:
            KitError: the policy fails, or returns something else than 7 finite numbers in range; policy,
                episode and step are named.
        """
        self._ask([take for take in takes if not take.chunk or _instruction(take) != take.instruction])
        for take in takes:
            action = take.chunk.popleft()
            self._check(action.processed, take)
            take.answered(action)
            yield action

    def _ask(self, takes: Sequence[PolicyTake]) -> None:
        """Fill the chunks of these takes."""
        seen = [take.observation for take in takes if take.observation]
        if not seen:
            return
        with naming(self._where(takes[0]) + (f" (and {len(takes) - 1} more)" if takes[1:] else "")):
            for take in takes:
                if take.instruction != _instruction(take):
                    take.instruction = _instruction(take)
                    begin(self.policy, _instruction(take))
            answers = ask(
                self.policy,
                [observation.image for observation in seen],
                [observation.instruction for observation in seen],
                [observation.proprioception for observation in seen],
                [observation.state for observation in seen],
                [take.episode.scene.task for take in takes],
            )
        for take, answer in zip(takes, answers, strict=True):
            with naming(self._where(take)):
                take.chunk = deque(read_answer(answer))

    def _check(self, action: Array, take: PolicyTake) -> None:
        if not np.isfinite(action).all():
            what = f"{self._where(take)} returned {action.tolist()}"
            raise KitError(what, "check the policy's un-normalisation statistics and its checkpoint")
        if (np.abs(action) > LIMITS).any():
            raise KitError(
                f"{self._where(take)} returned {action.round(3).tolist()}, beyond 1 m, pi radians or a "
                "gripper of 1",
                "return metres, radians and a gripper between -1 and 1: check un-normalisation and "
                "the gripper's convention",
            )

    def _where(self, take: PolicyTake) -> str:
        return f"policy {self.name!r} in {take.episode}, step {take.steps}"


def _instruction(take: Take) -> str:
    """The instruction that holds in the picture that waits for an action."""
    return take.observation.instruction if take.observation else ""


class FunctionPlayer(Generic[T]):
    """Plays what a function says.

    Args:
        decide: take -> the action on seeing its observation.
        new_take: makes the takes.
    """

    def __init__(self, decide: Callable[[T], Action], new_take: Callable[[PlannedEpisode], T]) -> None:
        self.begin, self._decide = new_take, decide

    def act(self, takes: Sequence[T]) -> Iterator[Action]:
        """See `Player.act`."""
        return map(self._decide, takes)


class DemonstratorPolicy:
    """The scripted demonstrator as a policy: it sees simulator state instead of pixels, and marks the ceiling
    of the other policies.

    `evaluate` hands it `SceneState`s because of `needs_state`. Its `checkpoint_hash` is that of the
    demonstrator's own code: it has no weights, and a changed script is another policy.

    Args:
        robot: whose tasks it is to play.
    """

    needs_state = True
    name = "demonstrator"

    def __init__(self, robot: str = "widowx") -> None:
        script = google_demonstrator if robot == "google_robot" else demonstrator
        self.checkpoint_hash = sha256(str(script.__file__))[:12]
        self.conventions = replace(ROBOT_CONVENTIONS[robot], image_size=None)  # it looks at no image

    def on(self, robot: str) -> DemonstratorPolicy:
        """The demonstrator of that robot's tasks."""
        return DemonstratorPolicy(robot)

    def act_states(self, states: Sequence[SceneState], tasks: Sequence[str]) -> list[Action]:
        """One action a state, for the task of that name."""
        experts = [demonstrator.Demonstrator(find_task(task)) for task in tasks]
        return [
            plain_action(expert.act(state), expert.finished(state))
            for expert, state in zip(experts, states, strict=True)
        ]


def plain_action(processed: Array, terminate: bool = False) -> Action:
    """An action without tokens; the script has no range of its own, so normalised is the action itself."""
    processed = np.asarray(processed, np.float32)
    return Action(processed, processed, np.empty(0), np.empty(0), terminate=terminate)
