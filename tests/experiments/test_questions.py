"""Questions about the shipped demonstrations: every kind is asked, every answer follows from the frame."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.questions import (
    AT_ONCE,
    POINTED,
    STEPS,
    WORDINGS,
    Question,
    answers,
    as_examples,
    ask,
    in_groups,
    listed_words,
    located,
    location,
    right,
)
from refinevla_kit.episodes import open_dataset
from refinevla_kit.policies.contract import Array
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.teacher.audit import NEAR_SIDE, Scene
from refinevla_kit.teacher.requests import episode_spans, without_pictures
from refinevla_kit.training.examples import load_examples
from tests.attention.conftest import small_policy

DEMO = REPOSITORY / "data" / "demo"


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return ask(DEMO, 1.0, seed=0)


def kind_of(questions: list[Question], kind: str) -> list[Question]:
    return [question for question in questions if question.kind == kind]


def test_every_kind_is_asked_in_all_its_wordings() -> None:
    questions = ask(DEMO, 4.0, seed=0)
    counts = Counter(question.kind for question in questions)
    assert set(counts) == set(WORDINGS)
    assert min(counts.values()) > 10
    for kind in ("seen", "held", "next"):
        asked = {question.text.split(": ")[-1] for question in kind_of(questions, kind)}
        assert asked == {wording.split(": ")[-1] for wording in WORDINGS[kind]}


def test_there_is_one_question_a_frame_and_the_seed_decides_which(questions: list[Question]) -> None:
    frames = sum(info.length for info in open_dataset(DEMO).episodes)
    assert [question.row for question in questions] == list(range(frames))
    assert ask(DEMO, 1.0, seed=0) == questions
    assert ask(DEMO, 1.0, seed=1) != questions
    assert 0.1 * frames < len(ask(DEMO, 0.2, seed=0)) < 0.3 * frames


def test_only_the_kinds_that_are_wanted_are_asked() -> None:
    asked = ask(DEMO, 3.0, 0, ("point", "side"))
    assert {question.kind for question in asked} == {"point", "side"}


def test_answers_are_of_the_frame(questions: list[Question]) -> None:
    source = open_dataset(DEMO)
    states = [state for info in source.episodes for state in source.states(info.index) or []]
    for question in kind_of(questions, "done"):
        assert (question.answer == "yes.") == bool(states[question.row].placed)
    for question in kind_of(questions, "held"):
        assert (question.answer != "nothing.") == bool(states[question.row].grasped)
    for question in kind_of(questions, "distance"):
        state = states[question.row]
        away = 100 * float(np.linalg.norm((state.tcp - state.source)[:2]))
        assert abs(float(question.answer.split()[1]) - away) <= 2.6


def test_a_question_becomes_an_example_without_an_action(questions: list[Question]) -> None:
    examples = load_examples(DEMO)
    spoken = as_examples(examples, questions[:7])
    assert len(spoken) == 7 and np.isnan(spoken.actions).all()
    assert spoken.instructions[3] == questions[3].text and spoken.rationales[3] == questions[3].answer
    np.testing.assert_array_equal(spoken.images[3], examples.images[questions[3].row])


@pytest.mark.parametrize("at", [(0.0, 0.0), (0.25, 0.75), (1.0, 1.0)])
def test_a_place_is_read_as_it_was_written(at: tuple[float, float]) -> None:
    (read,) = located(location(*at)).values()
    assert np.abs(read - at).max() < 1 / STEPS


def test_a_list_of_places_is_read_by_name() -> None:
    read = located(f"carrot {location(0.2, 0.5)}; green block {location(0.9, 0.1)}")
    assert list(read) == ["carrot", "green block"] and read["green block"][0] > 0.85
    assert located("the carrot.") == {}


def test_an_answer_is_right_word_for_word_and_a_place_nearly() -> None:
    held, point = Question(0, "held", "", "the carrot."), Question(0, "point", "", location(0.5, 0.5))
    assert right(held, " the carrot. ") and not right(held, "the plate.") and not right(held, "")
    assert right(point, location(0.53, 0.48)) and not right(point, location(0.6, 0.5))
    assert not right(point, "the carrot.") and not right(point, "<locabcd><loc0001>")
    assert not right(point, f"carrot {location(0.5, 0.5)}")
    away = Question(0, "distance", "", "about 10 cm.")
    assert right(away, "about 8 cm.") and not right(away, "about 7 cm.") and not right(away, "10 cm.")


def test_questions_about_one_frame_are_asked_together() -> None:
    one, two = Question(3, "held", "what is held?", "nothing."), Question(3, "done", "is it done?", "no.")
    other = Question(4, "held", "what is held?", "nothing.")
    assert in_groups([one, two, other], 1, seed=0) == [one, two, other]
    groups = [tuple(in_groups([one, two, other], 2, seed)) for seed in range(8)]
    joined = Question(3, "several", "what is held? is it done?", "nothing. no.")
    assert set(groups) == {(one, two, other), (joined, other)}


def test_names_are_listed_as_a_person_would() -> None:
    assert listed_words([]) == "nothing"
    assert listed_words(["plate"]) == "plate"
    assert listed_words(["carrot", "plate", "towel"]) == "carrot, plate and towel"


def test_every_question_is_answered_in_its_turn(
    questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    def decide(_: VLAPolicy, images: Array, texts: list[str], states: Array) -> list[SimpleNamespace]:
        assert len(images) == len(texts) == len(states)
        return [SimpleNamespace(rationale=text) for text in texts]

    monkeypatch.setattr(VLAPolicy, "decide", decide)
    asked = questions[: AT_ONCE + 3]
    assert answers(small_policy(), load_examples(DEMO), asked) == [question.text for question in asked]


def test_what_is_borderline_is_not_clear() -> None:
    asked, source = ask(DEMO, 6.0, seed=0), open_dataset(DEMO)
    requests = [
        request
        for info in source.episodes
        for request in without_pictures(source, info.index, episode_spans(source, info.index, "step"))
    ]
    for kind in ("where", "seen", "next"):
        assert 0.1 < np.mean([question.clear for question in kind_of(asked, kind)]) < 0.95
    assert all(question.clear for question in asked if question.kind not in ("where", "seen", "next"))
    for question in kind_of(asked, "where"):
        centres = Scene(requests[question.row]).centres
        across, down = centres[max((name for name in centres if name in question.text), key=len)]
        off = min(abs(share - border) for share in (across, down) for border in (NEAR_SIDE, 1 - NEAR_SIDE))
        assert question.clear == (off >= POINTED)
    episodes = [request.episode for request in requests]
    phases = [request.state.phase for request in requests]
    for question in kind_of(asked, "next"):
        beside = [
            row
            for row in (question.row - 1, question.row + 1)
            if 0 <= row < len(phases) and episodes[row] == episodes[question.row]
        ]
        assert question.clear == all(phases[row] == phases[question.row] for row in beside)
