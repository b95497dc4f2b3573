"""The demonstrator of the Google Robot's tasks: it solves them, labels any state, names what comes next."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refinevla_kit.simulator import make
from refinevla_kit.simulator.contract import ORDERS, PHASES, SceneState
from refinevla_kit.simulator.demonstrator import Demonstrator, phase_of
from refinevla_kit.tasks import GOOGLE_TASKS, Task, find_task

SOLVED = {  # task -> a start from which it is solved
    "google_robot_pick_horizontal_coke_can": 12,
    "google_robot_pick_vertical_coke_can": 12,
    "google_robot_pick_standing_coke_can": 12,
    "google_robot_move_near": 29,
    "google_robot_open_top_drawer": 4,
    "google_robot_open_middle_drawer": 4,
    "google_robot_close_middle_drawer": 4,
    "google_robot_place_apple_in_closed_top_drawer": 13,
}
REST = np.array([-0.089, 0.418, 1.041, 0.147, 0.937, 0.288, 0.135], np.float32)  # the tool before the table


def state(task: Task, **changes: object) -> SceneState:
    """At rest before the table or a closed cabinet."""
    source = np.array([-0.235, 0.2, 0.902, 0, 0, 0, 1], np.float32)
    if "drawer" in task.source or task.target == "top drawer":
        source = np.array([-0.295, 0, 0.685, 1, 0, 0, 0], np.float32)
    closed, false = np.float32(1), np.bool_(False)
    return replace(SceneState(source, source, REST, REST, closed, false, false, np.int8(0)), **changes)


def played(task: Task, start: int, assets: Path) -> tuple[bool, list[str]]:
    """Success at any step, and the sub-tasks in the order in which they came."""
    simulator, demonstrator = make(task, assets, 80, 64, True), Demonstrator(task)
    seen, phases, success = simulator.reset(start), [], False
    for _ in range(task.max_steps):
        assert seen.state is not None
        if demonstrator.finished(seen.state):
            assert simulator.advance()
        else:
            phases.append(PHASES[seen.state.phase])
        result = simulator.step(demonstrator.act(seen.state))
        seen, success = result.observation, success or result.success
        if success:
            break
    simulator.close()
    return success, list(dict.fromkeys(phases))


def phases_of(task: Task) -> tuple[str, ...]:
    """The sub-tasks of `task` in the order in which they are due."""
    if task.group == "open_close_drawer":
        return ORDERS["open" if "open" in task.name else "close"]
    if task.target == "top drawer":
        return (*ORDERS["open"][:-1], *ORDERS["place"])
    return ORDERS["place" if task.target else "pick"]


@pytest.mark.assets
@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVED)
def test_it_solves_every_task_by_the_sub_tasks_it_names(name: str, official_assets: Path) -> None:
    task = find_task(name)
    success, phases = played(task, SOLVED[name], official_assets)
    assert success
    assert phases == [phase for phase in phases_of(task) if phase in phases]
    assert len(phases) > 1


@pytest.mark.parametrize("task", GOOGLE_TASKS, ids=lambda task: task.name)
def test_any_state_has_a_sub_task_and_an_action_within_reach(task: Task) -> None:
    rng = np.random.default_rng(0)
    demonstrator, at_rest = Demonstrator(task), state(task)
    for _ in range(200):
        tool = REST.copy()
        tool[:3] = rng.uniform([-0.4, -0.3, 0.3], [0.4, 0.5, 1.2])
        tool[3:] = rng.normal(size=4)
        tool[3:] /= np.linalg.norm(tool[3:])
        opening, held = np.float32(rng.uniform()), np.bool_(rng.uniform() < 0.5)
        somewhere = replace(at_rest, tcp=tool, opening=opening, grasped=held, placed=np.bool_(False))
        if "drawer" in task.source:
            at = at_rest.source + np.array([rng.uniform(0, 0.3), *np.zeros(6)], np.float32)
            somewhere = replace(somewhere, source=at)
        assert PHASES[phase_of(task, somewhere)] in (*phases_of(task), "retreat")
        action = demonstrator.act(somewhere)
        assert action.shape == (7,) and action.dtype == np.float32 and np.isfinite(action).all()
        assert np.linalg.norm(action[:3]) < 0.081 and abs(action[6]) <= 1
        np.testing.assert_array_equal(action, demonstrator.act(somewhere))


def test_each_task_names_its_own_order() -> None:
    orders = {task.name.removeprefix("google_robot_"): phases_of(task) for task in GOOGLE_TASKS}
    assert orders["pick_standing_coke_can"] == ORDERS["pick"] == PHASES[:4]
    assert orders["move_near"] == PHASES[:8]
    assert orders["open_top_drawer"] == ("approach", "hook", "pull", "retreat")
    assert orders["close_top_drawer"] == ("approach", "push", "retreat")
    assert orders["place_apple_in_closed_top_drawer"][2:5] == ("pull", "reach", "descend")


def test_the_drawer_is_opened_before_the_apple_is_taken() -> None:
    task = find_task("google_robot_place_apple_in_closed_top_drawer")
    demonstrator, closed = Demonstrator(task), state(task)
    assert PHASES[phase_of(task, closed)] == "approach" and not demonstrator.finished(closed)
    pulled = closed.source + np.array([0.21, *np.zeros(6)], np.float32)
    assert demonstrator.finished(replace(closed, source=pulled))
    apple = np.array([-0.05, 0.0, 0.905, 1, 0, 0, 0], np.float32)
    placing = replace(closed, source=apple, target=pulled)
    assert PHASES[phase_of(task, placing)] == "reach" and not demonstrator.finished(placing)
    assert not Demonstrator(find_task("google_robot_open_top_drawer")).finished(
        replace(closed, source=pulled)
    )
