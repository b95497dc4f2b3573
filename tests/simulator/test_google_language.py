"""The Google Robot's part of the language suite: pick the one of three things that the sentence names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from refinevla_kit.simulator import make
from refinevla_kit.simulator.contract import Array, StepResult
from refinevla_kit.simulator.demonstrator import Demonstrator
from refinevla_kit.tasks import VARIANT_AGGREGATION, find_task

APPLE, SPONGE, CAN = (
    find_task(f"google_robot_language_pick_{name}") for name in ("apple", "sponge", "7up_can")
)
THINGS = {"apple", "sponge", "7up can"}


@pytest.fixture
def simulators() -> Iterator[Callable[..., Any]]:
    """Makes simulators, and closes them."""
    made: list[Any] = []

    def one(*arguments: Any, **settings: Any) -> Any:
        made.append(make(*arguments, None, 80, 64, True, **settings))
        return made[-1]

    yield one
    for simulator in made:
        simulator.close()


def pick(simulator: Any, start: int, model: str = "") -> StepResult:
    """Lift what is asked for, or `model`, of which the state then speaks."""
    demonstrator, seen = Demonstrator(simulator.task), simulator.reset(start)
    rest = simulator.objects.get(model)
    for _ in range(45):
        state = seen.state
        if model:
            state = replace(state, source=simulator.objects[model], target=rest)
            held = state.tcp[2] - state.source[2] < 0.05 and state.opening < 0.75
            state = replace(state, grasped=np.bool_(held))
        result = simulator.step(demonstrator.act(state))
        seen = result.observation
    return result


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["visual_matching", VARIANT_AGGREGATION])
def test_the_scene_is_the_same_whichever_of_its_things_is_asked_for(
    setting: str, simulators: Callable[..., Any]
) -> None:
    def first(task: Any) -> tuple[Array, dict[str, Array]]:
        simulator = simulators(task, setting=setting)
        image = simulator.reset(3).image
        assert simulator.instruction == f"pick the {task.source}"
        assert set(simulator.masks()) >= THINGS
        return image, simulator.objects

    (image, things), *others = map(first, (APPLE, SPONGE, CAN))
    for other, places in others:
        assert np.array_equal(image, other)
        assert all(np.array_equal(things[name], places[name]) for name in things)


@pytest.mark.slow
def test_each_thing_stands_on_each_place_equally_often(simulators: Callable[..., Any]) -> None:
    simulator, places = simulators(APPLE), Counter[tuple[float, ...]]()
    for number in range(12):  # of the one scene
        simulator.reset(number)
        place = next(pose for name, pose in simulator.objects.items() if "apple" in name)[:2]
        places[tuple(np.round(place / 0.05).tolist())] += 1
    assert len(places) == 6 and set(places.values()) == {2}


@pytest.mark.slow
def test_what_the_sentence_names_is_lifted_and_another_thing_is_no_success(
    simulators: Callable[..., Any],
) -> None:
    simulator = simulators(APPLE)
    result = pick(simulator, 3)
    assert result.success and (result.touched_first, result.lifted_first) == ("apple", "apple")
    sponge = next(name for name in simulator.objects if "sponge" in name)
    result = pick(simulator, 3, sponge)
    assert not result.success and result.touched_first == "sponge"
    assert result.lifted_first == "sponge" and result.ended_on == ""


@pytest.mark.slow
def test_move_near_says_what_it_moved_as_its_masks_name_it(simulators: Callable[..., Any]) -> None:
    simulator = simulators(find_task("google_robot_move_near"))
    demonstrator, seen = Demonstrator(simulator.task), simulator.reset(37)
    for _ in range(45):
        result = simulator.step(demonstrator.act(seen.state))
        seen = result.observation
    assert result.success
    ended = (result.touched_first, result.lifted_first, result.ended_on)
    assert ended == ("source object", "source object", "target object")
