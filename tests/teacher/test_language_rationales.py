"""Rationales of the language suite: several things lie about, the oracle speaks of those that the sentence
names, and the audit does not confuse them with the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refinevla_kit.episodes import EpisodeDataset, open_dataset
from refinevla_kit.rollouts.recording import record
from refinevla_kit.simulator.contract import PHASES, SceneState
from refinevla_kit.tasks import THINGS, find_task
from refinevla_kit.teacher.audit import audit
from refinevla_kit.teacher.oracle import OracleTeacher
from refinevla_kit.teacher.requests import requests
from refinevla_kit.teacher.schema import Facts, Rationale, Request

SCENE = ("carrot", "plate", "spoon", "yellow block")
RECORDED = {
    "widowx": (
        "widowx_language_green_block_on_yellow_block",
        "widowx_language_carrot_on_plate_then_spoon_on_towel",
    ),
    "google_robot": ("google_robot_language_pick_redbull_can",),
}


def frame(held: str = "", grasped: bool = False) -> Request:
    """One frame of "put the carrot on the plate", with a spoon and a yellow block beside them."""
    pose, tool = (
        np.array([-0.16, 0, 0.89, 1, 0, 0, 0], np.float32),
        np.array([0, 0, 1, 1, 0, 0, 0], np.float32),
    )
    state = SceneState(
        source=pose,
        target=pose + np.array([0, 0.1, 0, 0, 0, 0, 0], np.float32),
        tcp=tool,
        tcp_target=tool,
        opening=np.float32(0.5),
        grasped=np.bool_(grasped),
        placed=np.bool_(False),
        phase=np.int8(PHASES.index("reach")),
        goal=np.int8(0),
        held=np.int8(THINGS.index(held) if held else -1),
    )
    masks = {}
    for place, name in enumerate((*SCENE, "gripper", "arm")):
        masks[name] = np.zeros((36, 48), bool)
        masks[name][6 * (place % 5) : 6 * (place % 5) + 5, 8 * place : 8 * place + 5] = True
    action = np.array([[0.03, 0, 0, 0, 0, 0, 1]], np.float32)
    sentence = "put the carrot on the plate"
    return Request("any", 0, 0, 1, sentence, np.zeros((0, 1, 1, 3), np.uint8), (), action, state, masks)


def told(request: Request) -> tuple[Rationale, Facts]:
    """What the oracle says, which is true."""
    rationale = OracleTeacher().annotate(request).result
    assert isinstance(rationale, Rationale) and rationale.facts
    assert not audit(request, rationale).doubt, rationale
    return rationale, rationale.facts


def test_the_oracle_speaks_of_what_the_sentence_names() -> None:
    rationale, facts = told(frame())
    assert (facts.source, facts.target, facts.held) == ("carrot", "plate", "nothing")
    assert "spoon" not in rationale.text() and "block" not in rationale.text()


@pytest.mark.parametrize("lie", [{"source": "spoon"}, {"target": "yellow block"}, {"held": "spoon"}], ids=str)
def test_another_thing_of_the_scene_in_its_place_is_false(lie: dict[str, str]) -> None:
    rationale, facts = told(frame())
    assert audit(frame(), replace(rationale, facts=replace(facts, **lie))).doubt


def test_another_thing_that_is_held_is_said_and_found() -> None:
    rationale, facts = told(frame(held="spoon"))
    assert facts.held == "spoon" and "the carrot is held" not in rationale.text()
    for wrong in ("nothing", "carrot"):
        assert audit(frame(held="spoon"), replace(rationale, facts=replace(facts, held=wrong))).doubt
    said = replace(rationale, observation="The gripper holds the spoon.")
    assert not audit(frame(held="spoon"), said).doubt
    assert audit(frame(held="carrot", grasped=True), said).doubt


@pytest.fixture(scope="module", params=RECORDED)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EpisodeDataset:
    """One demonstration of each."""
    path: Path = tmp_path_factory.mktemp("language") / "episodes"
    record(path, RECORDED[request.param], 1, seed=1, width=80, progress=False)
    return open_dataset(path)


def answers(dataset: EpisodeDataset) -> Iterator[tuple[Request, Facts]]:
    for request in requests(dataset, "step"):
        yield request, told(request)[1]


@pytest.mark.slow
def test_recorded_episodes_are_told_truly_sentence_by_sentence(recorded: EpisodeDataset) -> None:
    for info in recorded.episodes:
        task, states = find_task(info.task), recorded.states(info.index)
        assert states and info.success
        goals = [None if state.goal is None else int(state.goal) for state in states]
        assert sorted(set(goals), key=str) == (list(range(len(task.goals))) or [None])
        assert goals == sorted(goals, key=str), "the first sub-task comes first"
        sentences = list(dict.fromkeys(recorded.instructions(info.index)))
        assert ", then ".join(sentences) == task.instruction
    seen = {}
    for request, facts in answers(recorded):
        seen.setdefault(request.instruction, []).append(facts)
        assert facts.source in request.instruction and (facts.target or "") in request.instruction
        assert facts.held in ("nothing", facts.source)
    for sentence, facts in seen.items():
        phases = [PHASES.index(str(each.sub_task)) for each in facts]
        assert phases[0] == 0 and max(phases) >= 3, sentence
        assert any(each.held == each.source for each in facts)
