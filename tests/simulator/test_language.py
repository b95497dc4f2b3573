"""The WidowX's language tasks: several things in one scene, and only the sentence says which goes where."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mani_skill.utils.structs.pose import Pose as Place

from refinevla_kit.errors import KitError
from refinevla_kit.simulator import geometry, make
from refinevla_kit.simulator.contract import Arrangement, Array, Pose, SceneState, StepResult
from refinevla_kit.simulator.demonstrator import Demonstrator
from refinevla_kit.simulator.geometry import RADII, grid_arrangement, project, start_pose
from refinevla_kit.simulator.language import LanguageSimulator
from refinevla_kit.simulator.maniskill import ManiSkillSimulator
from refinevla_kit.tasks import SOURCES, TARGETS, THINGS, VARIANT_AGGREGATION, Task, find_task, find_tasks

PAIRS = [task for task in find_tasks("widowx_language") if len(task.goals) == 1]
CARROT, SPOON = find_task("widowx_language_carrot_on_plate"), find_task("widowx_language_spoon_on_towel")
LONG = find_task("widowx_language_carrot_on_plate_then_spoon_on_towel")
Make = Callable[..., Any]


@pytest.fixture
def simulators() -> Iterator[Make]:
    """Makes simulators, and closes them."""
    made: list[Any] = []

    def one(task: Task, assets: str | Path = "embedded", **arguments: Any) -> Any:
        made.append(make(task, assets, 48, 36, True, **arguments))
        return made[-1]

    yield one
    for simulator in made:
        simulator.close()


def dense(task: Task, number: int) -> Arrangement:
    start = start_pose(task, "dense", number, 0)
    assert isinstance(start, Arrangement)
    return start


def play(simulator: Any, start: Any, settle: int = 6) -> StepResult:
    """The demonstrator, until the task has been done for `settle` steps in a row."""
    demonstrator, seen, done = Demonstrator(simulator.task), simulator.reset(start), 0
    while True:
        if demonstrator.finished(seen.state):
            simulator.advance()
        result = simulator.step(demonstrator.act(seen.state))
        seen, done = result.observation, done + 1 if result.success else 0
        if result.done or done == settle:
            return result


# Where things lie


@pytest.mark.parametrize("start", ["grid", "dense"])
@pytest.mark.parametrize("task", find_tasks("widowx_language"), ids=lambda task: task.name)
def test_two_sources_and_two_targets_lie_apart_and_in_the_picture(task: Task, start: str) -> None:
    shown = set()
    for number in range(24):
        things = (grid_arrangement(task, number) if start == "grid" else dense(task, number)).things
        asked = {name for pair in task.goals for name in pair}
        assert (
            asked <= set(things) and len(set(things) & set(SOURCES)) == len(set(things) & set(TARGETS)) == 2
        )
        shown.add(frozenset(things))
        names = list(things)
        for place, one in enumerate(names):
            centre = things[one][:2]
            for other in names[:place]:
                assert np.linalg.norm(centre - things[other][:2]) > RADII[one] + RADII[other]
            angles = np.arange(0, 2 * np.pi, np.pi / 2)
            rim = np.column_stack([*(centre + RADII[one] * np.stack([np.cos(angles), np.sin(angles)], 1)).T])
            seen = project(task, np.column_stack([rim, np.full(len(rim), 0.87)]), 1, 1)
            assert ((seen > 0) & (seen < 1)).all()
            assert np.linalg.norm(centre - [0.147, 0.028]) < 0.44, "within the arm's reach"
    assert len(shown) == (6 if len(task.goals) == 1 else 1) or start == "dense"


def test_the_scene_does_not_tell_what_is_asked_for() -> None:
    """The same things lie at the same places, whichever sentence is said: of four sentences, each has a start
    with the very same scene.
    """
    scenes: dict[tuple[str, ...], dict[str, set[bytes]]] = {}
    for task in PAIRS:
        for number in range(24):
            things = grid_arrangement(task, number).things
            drawn = scenes.setdefault(tuple(things), {}).setdefault(task.name, set())
            drawn.add(np.concatenate(list(things.values())).tobytes())
    assert len(scenes) == 6 * 3, "pairs of sources times pairs of targets"
    for drawn in scenes.values():
        assert len(drawn) == 4
        first, *others = drawn.values()
        assert len(first) == 4 and all(other == first for other in others)


def test_starts_are_drawn_from_seed_and_number_alone() -> None:
    def places(*how: Any) -> Array:
        return np.stack(list(start_pose(CARROT, *how).things.values()))  # type: ignore[union-attr]

    assert np.array_equal(places("dense", 3, 7), places("dense", 3, 7))
    assert not np.array_equal(places("dense", 3, 7), places("dense", 4, 7))
    assert not np.array_equal(places("dense", 3, 7), places("dense", 3, 8))
    assert np.array_equal(places("random", 3, 7), places("random", 4, 7))
    assert start_pose(CARROT, "grid", 5, 0) == 5


def test_things_that_do_not_fit_on_the_table_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "BATCHES", 2)
    monkeypatch.setattr(geometry, "SPREAD", np.array([0.05, 0.05]))
    with pytest.raises(KitError, match=f"these things do not fit on the table: {CARROT.name}"):
        dense(CARROT, 0)


# The scene


def test_every_thing_has_its_mask_and_lies_where_it_was_laid(simulators: Make) -> None:
    simulator = simulators(CARROT)
    for number in (0, 5):
        things, seen = grid_arrangement(CARROT, number).things, simulator.reset(number)
        masks = simulator.masks()
        assert set(masks) == {*things, "gripper", "arm", "background"}
        assert sum(mask.astype(int) for mask in masks.values()).max() == 1
        assert sum(bool(masks[name].any()) for name in things) >= 3, "at most the gripper hides one"
        assert np.allclose(seen.state.source[:2], things["carrot"][:2], atol=0.005)
        assert np.allclose(seen.state.target[:2], things["plate"][:2], atol=0.005)
        assert seen.instruction == "put the carrot on the plate"
        assert (seen.state.goal, seen.state.held) == (0, -1)


def test_distractors_are_none_of_the_scenes_things(simulators: Make) -> None:
    simulator = simulators(CARROT, setting=VARIANT_AGGREGATION, variant="more_distractors")
    simulator.reset(0)
    names = set(simulator.masks()) - {"gripper", "arm", "background"}
    assert names == set(THINGS), "the scene's four and the three that are left"


@pytest.mark.slow
def test_what_happens_is_the_same_in_every_variant(simulators: Make) -> None:
    dressed = simulators(CARROT, setting=VARIANT_AGGREGATION, variant="distractors")
    ends = [play(each, 2).observation.state for each in (simulators(CARROT), dressed)]
    assert np.array_equal(ends[0].source, ends[1].source) and np.array_equal(ends[0].tcp, ends[1].tcp)


def test_a_start_that_does_not_fit_is_refused_in_one_line(simulators: Make) -> None:
    simulator = simulators(CARROT)
    with pytest.raises(KitError, match="does not start from this Pose"):
        simulator.reset(Pose(np.zeros(7), np.zeros(7)))
    with pytest.raises(KitError, match="episode 24 is outside the grid"):
        simulator.reset(24)
    things = dense(CARROT, 0).things
    with pytest.raises(KitError, match="do not fit widowx_language_carrot_on_plate: plate"):
        simulator.reset(Arrangement({name: pose for name, pose in things.items() if name != "plate"}))
    with pytest.raises(KitError, match="do not fit widowx_language_carrot_on_plate: fork"):
        simulator.reset(Arrangement({**things, "fork": things["plate"]}))
    with pytest.raises(KitError, match="does not start from this Arrangement"):
        simulators(find_task("widowx_carrot_on_plate")).reset(dense(CARROT, 0))


def test_broken_physics_of_any_thing_ends_the_episode(simulators: Make) -> None:
    simulator = simulators(CARROT)
    simulator.reset(0)
    other = next(name for name in simulator._env.things if name not in CARROT.goals[0])
    simulator._env.things[other].set_pose(Place.create_from_pq(torch.tensor([[0.0, 9.0, 1.0]])))
    result = simulator.step(np.array([0, 0, 0, 0, 0, 0, 1], np.float32))
    assert result.done and result.reason == "physics" and not result.success


# What is done


@pytest.mark.slow
@pytest.mark.parametrize("task", PAIRS, ids=lambda task: task.name)
def test_the_demonstrator_solves_every_pair_and_the_step_says_what_it_moved(
    task: Task, simulators: Make
) -> None:
    result = play(simulators(task), dense(task, 1))
    assert result.success
    assert (result.touched_first, result.lifted_first, result.ended_on) == (task.source, *task.goals[0])


@pytest.mark.slow
@pytest.mark.assets
@pytest.mark.parametrize("task", [SPOON, find_task("widowx_language_green_block_on_plate")])
def test_it_does_so_with_the_official_assets(task: Task, simulators: Make, official_assets: Path) -> None:
    assert play(simulators(task, official_assets), 3).success


@pytest.mark.slow
@pytest.mark.parametrize("task", [task for task in find_tasks("widowx_language") if len(task.goals) > 1])
def test_two_goals_are_asked_for_one_after_the_other_and_must_hold_both(task: Task, simulators: Make) -> None:
    simulator, demonstrator, said = simulators(task), Demonstrator(task), []
    seen = simulator.reset(0)
    for _ in range(task.max_steps):
        said.append(seen.instruction)
        if demonstrator.finished(seen.state):
            assert bool(seen.state.placed) and seen.state.goal == 0
            assert simulator.advance()
        result = simulator.step(demonstrator.act(seen.state))
        seen = result.observation
        assert result.success <= (seen.state.goal == 1), "the first alone is no success"
        if result.success:
            break
    assert result.success and not simulator.advance()
    assert list(dict.fromkeys(said)) == [f"put the {one} on the {other}" for one, other in task.goals]


def test_each_of_three_goals_has_its_share_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(LanguageSimulator):
        def __init__(self) -> None:
            goals = (*LONG.goals, ("eggplant", "towel"))
            self.task, self._steps = replace(LONG, goals=goals, max_steps=9), 0
            self._env = SimpleNamespace(goal=0, ask_for=lambda goal: setattr(self._env, "goal", goal))

        def _bind(self) -> None:
            pass

    def count(self: Any, action: Array) -> int:
        self._steps += 1
        return int(self._env.goal)

    monkeypatch.setattr(ManiSkillSimulator, "step", count)
    still, early = Counting(), Counting()
    assert [still.step(np.zeros(7)) for _ in range(9)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert early.advance()
    assert [early.step(np.zeros(7)) for _ in range(9)] == [1, 1, 1, 1, 1, 1, 2, 2, 2]


@pytest.mark.slow
def test_the_second_goal_is_asked_for_after_half_the_steps_at_the_latest(simulators: Make) -> None:
    simulator, still = simulators(LONG), np.array([0, 0, 0, 0, 0, 0, 1], np.float32)
    simulator.reset(0)
    said = [simulator.step(still).observation.instruction for _ in range(LONG.max_steps // 2 + 1)]
    assert said[-2:] == ["put the carrot on the plate", "put the spoon on the towel"]


class Deaf:
    """Solves a task of the things it sees, drawn without listening.

    Attributes:
        chosen: the task that it carries out.
    """

    def __init__(self, simulator: Any, rng: np.random.Generator) -> None:
        things = list(simulator._env.things)
        source = rng.choice([name for name in things if name in SOURCES])
        target = rng.choice([name for name in things if name in TARGETS])
        self.chosen = next(task for task in PAIRS if task.goals == ((source, target),))
        self._environment, self._demonstrator = simulator._env, Demonstrator(self.chosen)

    def act(self, state: SceneState) -> Array:
        environment, (source, target) = self._environment, self.chosen.goals[0]
        poses = [np.array(environment.things[name].pose.raw_pose[0]) for name in (source, target)]
        return self._demonstrator.act(
            replace(
                state,
                source=poses[0],
                target=poses[1],
                goal=np.int8(0),
                grasped=np.bool_(environment.held == source),
                placed=np.bool_(environment.lies_on(source, target)),
            )
        )


def deafly(simulator: Any, number: int, rng: np.random.Generator) -> tuple[Task, StepResult]:
    """What a policy that ignores the sentence has chosen to do, and what came of it."""
    seen = simulator.reset(dense(simulator.task, number))
    policy = Deaf(simulator, rng)
    for _ in range(32):
        result = simulator.step(policy.act(seen.state))
        seen = result.observation
    return policy.chosen, result


@pytest.mark.slow
def test_who_ignores_the_sentence_moves_the_right_thing_half_the_time(simulators: Make) -> None:
    simulator, rng = simulators(CARROT), np.random.default_rng(0)
    ends = [deafly(simulator, number, rng) for number in range(12)]
    for chosen, result in ends:
        assert result.success <= (chosen == CARROT)
    right = sum(result.lifted_first == CARROT.source for _, result in ends)
    assert 3 <= right <= 9
    assert sum(result.lifted_first == chosen.source for chosen, result in ends) >= 11
