"""The Google Robot's rationales: the oracle writes of cans, drawers and things near each other, and the audit
believes them and finds what was made false.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refinevla_kit.episodes import EpisodeDataset, open_dataset
from refinevla_kit.rollouts.recording import record
from refinevla_kit.simulator.contract import ORDERS, PHASES, SceneState
from refinevla_kit.teacher.audit import audit
from refinevla_kit.teacher.oracle import DRAWERS, OracleTeacher, word_count
from refinevla_kit.teacher.requests import requests
from refinevla_kit.teacher.schema import Facts, Rationale, Request

from .corruption import ABSENT, OPPOSITE, swap

TASKS = {
    "pick coke can": "google_robot_pick_standing_coke_can",
    "move ": "google_robot_move_near",
    "open middle drawer": "google_robot_open_middle_drawer",
    "place apple": "google_robot_place_apple_in_closed_top_drawer",
}
PICKED = np.array([-0.2, 0.2, 0.94, 0.71, 0.71, 0, 0], np.float32)


def frame(instruction: str, phase: str, moved: float = 0.0, **masks: tuple[int, int]) -> Request:
    """One frame: the source is at PICKED, has moved along x, and the tool is 10 cm above it."""
    tool = PICKED + np.array([moved, 0, 0.1, 0, 0, 0, 0], np.float32)
    source = PICKED + np.array([moved, *np.zeros(6)], np.float32)
    false, number = np.bool_(False), np.int8(PHASES.index(phase))
    state = SceneState(source, PICKED, tool, tool, np.float32(0.9), false, false, number)
    seen = {}
    for name, (row, column) in {**masks, "gripper": (5, 40), "arm": (2, 70)}.items():
        seen[name.replace("_", " ")] = np.zeros((64, 80), bool)
        seen[name.replace("_", " ")][row : row + 6, column : column + 6] = True
    actions = np.array([[0, 0, -0.05, 0, 0, 0, -1]], np.float32)
    return Request("any", 0, 0, 1, instruction, np.zeros((0, 1, 1, 3), np.uint8), (), actions, state, seen)


@pytest.mark.parametrize("phase", ORDERS["pick"])
def test_a_can_goes_nowhere(phase: str) -> None:
    asked = frame("pick coke can", phase, coke_can=(40, 20), pepsi_can=(10, 60))
    rationale = OracleTeacher().annotate(asked).result
    assert isinstance(rationale, Rationale) and rationale.facts is not None
    assert (rationale.facts.source, rationale.facts.target) == ("coke can", None)
    assert "start" in rationale.spatial_reasoning and "pepsi" not in rationale.text()
    assert rationale.facts.next_sub_task == (*ORDERS["pick"], "end")[ORDERS["pick"].index(phase) + 1]
    assert not audit(asked, rationale).doubt


@pytest.mark.parametrize("verb", ["open", "close"])
def test_drawers_are_hooked_pulled_and_pushed(verb: str) -> None:
    for phase in ORDERS[verb]:
        for seed in range(4):
            asked = frame(f"{verb} top drawer", phase, 0.1, top_drawer=(30, 30), middle_drawer=(45, 30))
            rationale = OracleTeacher(seed).annotate(asked).result
            assert isinstance(rationale, Rationale) and rationale.facts is not None
            said = rationale.task_planning.lower()
            words = DRAWERS.get(f"do {phase}", ("back away from the {source}", "retreat from the {source}"))
            assert any(each.format(source="top drawer") in said for each in words)
            found = audit(asked, rationale)
            assert not found.doubt, found.findings
            wrong = replace(rationale.facts, sub_task="lift", next_sub_task=None)
            assert audit(asked, replace(rationale, facts=wrong)).doubt


def test_things_near_each_other_are_called_as_in_the_instruction() -> None:
    masks = {"source_object": (40, 20), "target_object": (40, 60), "orange": (20, 60)}
    asked = frame("move pepsi can near apple", "lower", **masks)
    rationale = OracleTeacher().annotate(asked).result
    assert isinstance(rationale, Rationale) and rationale.facts is not None
    assert (rationale.facts.source, rationale.facts.target) == ("pepsi can", "apple")
    assert "near the apple" in rationale.task_planning
    assert not audit(asked, rationale).doubt


def test_a_sub_task_of_another_task_is_refused() -> None:
    refusal = OracleTeacher().annotate(frame("pick coke can", "pull", coke_can=(40, 20))).result
    assert not isinstance(refusal, Rationale) and refusal.kind == "unknown_objects"


@pytest.fixture(scope="module")
def recorded(official_assets: Path, tmp_path_factory: pytest.TempPathFactory) -> EpisodeDataset:
    """One episode of a can, of move near, of a drawer and of the apple."""
    path = tmp_path_factory.mktemp("google") / "episodes"
    record(path, list(TASKS.values()), 1, official_assets, seed=3, progress=False)
    return open_dataset(path)


def lies(facts: Facts, order: tuple[str, ...], rng: np.random.Generator) -> Iterator[tuple[str, Facts]]:
    """(kind, the facts with one field made false in that way)."""
    for name, value in vars(facts).items():
        if value is None:
            continue
        if name.endswith("side"):
            yield "left/right", replace(facts, **{name: OPPOSITE[value]})
        elif name.endswith("zone") and value != "centre":
            yield "zone", replace(facts, **{name: swap(value, "left|right|top|bottom")})
        elif name.endswith("height_cm") and abs(value) >= 2:
            yield "above/below", replace(facts, **{name: -value})
        elif name.endswith("_cm") and "height" not in name:
            yield "distance", replace(facts, **{name: 3 * value + 6})
        elif name in ("source", "target"):
            absent = [word for word in ABSENT if word not in ("apple", "orange", "bottle")]
            yield "absent", replace(facts, **{name: str(rng.choice(absent))})
    yield "held", replace(facts, held=facts.source if facts.held == "nothing" else "nothing")
    yield "done", replace(facts, done=not facts.done)
    far = [phase for phase in PHASES if phase not in order]
    yield "sub-task", replace(facts, sub_task=str(rng.choice(far or ["hook"])), next_sub_task=None)
    others = [phase for phase in PHASES if phase not in (facts.sub_task, facts.next_sub_task)]
    yield "order", replace(facts, next_sub_task=str(rng.choice(others)))
    if facts.motion:
        yield "motion", replace(facts, motion=OPPOSITE[facts.motion])


@pytest.mark.assets
@pytest.mark.slow
def test_recorded_episodes_are_told_truly_and_lies_about_them_found(recorded: EpisodeDataset) -> None:
    rng = np.random.default_rng(0)
    told, found, doubted, words, answers = Counter[str](), Counter[str](), 0, [], 0
    for asked in requests(recorded, "step"):
        rationale = OracleTeacher().annotate(asked).result
        assert isinstance(rationale, Rationale) and rationale.facts is not None, (
            asked.instruction,
            rationale,
        )
        answers, words = answers + 1, [*words, word_count(rationale)]
        honest = audit(asked, rationale)
        doubted += honest.doubt
        order = ORDERS.get(asked.instruction.split()[0], ORDERS["place"])
        for kind, lie in lies(rationale.facts, order, rng) if not honest.doubt else ():
            told[kind] += 1
            found[kind] += audit(asked, replace(rationale, facts=lie)).doubt
    print(answers, doubted, dict(found), dict(told), np.percentile(words, [0, 50, 100]))
    assert answers > 100 and doubted < 0.01 * answers
    assert len(told) == 10 and sum(found.values()) >= 0.98 * sum(told.values())
    sentences = {sentence for info in recorded.episodes for sentence in recorded.instructions(info.index)}
    assert {"open top drawer", "place apple into top drawer", "pick coke can"} <= sentences
