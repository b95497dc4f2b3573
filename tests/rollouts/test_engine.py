"""The loop over stations that answer as processes do, one after another, with simulators in which nothing
happens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from refinevla_kit.errors import KitError
from refinevla_kit.policies.contract import Action
from refinevla_kit.rollouts import engine
from refinevla_kit.rollouts.engine import Engine, LocalStation, PlannedEpisode, ProcessStation, Scene, Take
from refinevla_kit.rollouts.players import FunctionPlayer, plain_action
from refinevla_kit.simulator.contract import Observation
from tests.evaluation.test_rollouts import CARROT, Room

SCENE = Scene(CARROT, "base", "visual_matching", "auto", "embedded", 4, 3)
BAD = 3  # the episode that its simulator does not survive, or refuses


class Station(ProcessStation):
    """Its simulators are in this process. It has died too often after ten times."""

    restarts = 0

    def _launch(self) -> None:
        self._local, self._coming = LocalStation(), deque[tuple[Any, ...]]()

    def request(self, lane: int, *message: Any) -> None:
        self.asked.append(lane)
        self._coming.append((lane, *message))

    def _next_reply(self) -> engine.Answer:
        return engine.answer(self._local, self._coming.popleft())

    def restart(self) -> None:
        self.restarts += 1
        assert self.restarts < 10
        super().restart()

    def close(self, wait: float = 5) -> None:
        self._local.close()


@pytest.fixture
def bad(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Exception], None]]:
    """Says what comes of a reset to the bad episode."""

    def raise_at_reset(error: Exception) -> None:
        class Bad(Room):
            def reset(self, episode: Any, seed: int = 0) -> Observation:
                if episode == BAD:
                    raise error
                return super().reset(episode, seed)

        monkeypatch.setattr(Scene, "make", lambda scene: Bad(scene))

    yield raise_at_reset


def episodes(*numbers: int) -> list[PlannedEpisode]:
    return [PlannedEpisode(SCENE, "grid", number, 0) for number in numbers]


def decide(take: Take) -> Action:
    """Episode 2 is over after one step, any other after three; what is seen is of this episode."""
    assert take.observation is not None and (take.observation.image == take.steps).all()
    return plain_action(np.zeros(7), terminate=take.steps == (0 if take.episode.number == 2 else 2))


def outcomes(playing: Engine, planned: list[PlannedEpisode]) -> dict[int, str]:
    ended = list(playing.play(planned, FunctionPlayer(decide, Take)))
    assert len(ended) == len(planned)
    return {take.episode.number: take.reason for take in ended}


@pytest.mark.filterwarnings("ignore:.*the process was started again:RuntimeWarning")
def test_an_episode_that_crashed_is_given_up_in_the_next_play_too(bad: Any) -> None:
    bad(RuntimeError("memory ran out"))
    planned = episodes(0, BAD, 1)
    with Engine(1, 1, Station) as playing:
        for _ in range(2):
            assert outcomes(playing, planned) == {0: "terminated", BAD: "crash", 1: "terminated"}
            assert planned[1].crashes == engine.CRASHES


@pytest.mark.filterwarnings("ignore:.*the process was started again:RuntimeWarning")
def test_a_lane_that_a_crash_leaves_without_an_episode_is_not_waited_for(
    bad: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lanes 0 and 2 take turns with lane 1: the bad episode, in lane 2, is the last, and dies while lane 0 is
    read.
    """
    monkeypatch.setattr(engine, "CRASHES", 1)
    bad(RuntimeError("memory ran out"))
    with Engine(1, 3, Station) as playing:
        ended = outcomes(playing, episodes(0, 1, 2, BAD))
    assert ended == {0: "terminated", 1: "terminated", 2: "terminated", BAD: "crash"}


def test_a_refusal_is_of_the_episode_that_was_asked_for_first(bad: Any) -> None:
    bad(KitError("no such start", "choose another"))
    with Engine(1, 3, Station) as playing, pytest.raises(KitError) as refused:
        outcomes(playing, episodes(0, 1, 2, BAD))
    assert str(refused.value) == f"{CARROT}, episode {BAD}, step 0: no such start -> choose another"


@pytest.mark.parametrize("step", [0, 1])
def test_replies_to_a_play_that_failed_are_not_taken_for_the_next_ones(bad: Any, step: int) -> None:
    """The first play fails when lane 1's reply is read and not taken, or not yet read."""
    bad(KitError("no such start", "choose another"))

    def fail(take: Take) -> Action:
        if take.steps == step:
            raise ValueError("mine")
        return decide(take)

    with Engine(1, 3, Station) as playing:
        with pytest.raises(ValueError, match="mine"):
            list(playing.play(episodes(0, 1, 4), FunctionPlayer(fail, Take)))
        with pytest.raises(KitError, match="no such start"):
            outcomes(playing, episodes(BAD))
        assert outcomes(playing, episodes(0, 1, 2, 4)) == dict.fromkeys((0, 1, 2, 4), "terminated")
