"""The audit believes what is true, in the oracle's words and in others, and finds what was made false in it;
what it cannot read it leaves alone.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refinevla_kit.episodes import DatasetWriter, Episode, open_dataset
from refinevla_kit.evaluation.intervals import wilson
from refinevla_kit.figures.audit import compare_teachers, teachers_table
from refinevla_kit.teacher.answers import StoredRationale, load_rationales
from refinevla_kit.teacher.audit import Audit, audit, audit_dataset
from refinevla_kit.teacher.oracle import OracleTeacher
from refinevla_kit.teacher.requests import ranges, requests
from refinevla_kit.teacher.schema import PARTS, Rationale, Refusal, Request

from .corruption import Frame, free_texts, oracle_lies, told, told_lies, write

DEMO = Path(__file__).resolve().parents[2] / "data/demo"


def lie_found(honest: Audit, changed: Audit) -> bool:
    """Something is doubted that was not doubted before."""
    before = {(one.claim.part, one.claim.kind, one.claim.text) for one in honest.findings if one.doubt}
    return any(
        one.doubt and (one.claim.part, one.claim.kind, one.claim.text) not in before
        for one in changed.findings
    )


class Count:
    """Lies found by kind, and true rationales that were doubted; printed with their intervals (pytest -s)."""

    def __init__(self) -> None:
        self.lies: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        self.true = self.doubted = 0

    def add(self, request: Request, rationale: Rationale, lies: list[tuple[str, Rationale]]) -> None:
        honest = audit(request, rationale)
        self.true, self.doubted = self.true + 1, self.doubted + honest.doubt
        for kind, lie in lies:
            assert lie != rationale, (kind, rationale)
            self.lies[kind] += 1
            self.found[kind] += lie_found(honest, audit(request, lie))

    def report(self, name: str) -> tuple[float, float]:
        """(share of lies found, share of true rationales doubted)."""
        rows = [
            *((kind, self.found[kind], n) for kind, n in self.lies.items()),
            ("all lies", self.found.total(), self.lies.total()),
            ("true, doubted", self.doubted, self.true),
        ]
        for kind, count, of in rows:
            low, high = wilson(count, of)
            print(f"{name:>14} {kind:<22} {count:>4} of {of:<4} {count / of:7.1%} ({low:.1%} to {high:.1%})")
        return self.found.total() / self.lies.total(), self.doubted / self.true


@pytest.fixture(scope="module")
def recorded(frames) -> list[Frame]:
    """Segments of the demonstration episodes (four tasks) and every third frame of the episodes just played
    (two).
    """
    found = []
    demo = open_dataset(DEMO)
    for info in demo.episodes:
        actions, states, masks = demo.actions(info.index), demo.states(info.index), demo.masks(info.index)
        for start, end in ranges(actions, True, "segment"):
            found.append((info.index, start, end, info.instruction, actions, states, masks))
    for one in frames:
        found += [
            (99, start, start + 1, one.task.instruction, one.actions, one.states, one.masks)
            for start in range(0, len(one.actions), 3)
        ]
    return [
        Frame(
            Request(
                "recorded",
                episode,
                start,
                end,
                instruction,
                np.zeros((0, 1, 1, 3), np.uint8),
                (),
                actions[start:end],
                states[start],
                {name: mask[start] for name, mask in masks.items()},
            ),
            *list(masks)[:2],
            tuple(int(state.phase) for state in states[max(0, start - 1) : end + 1]),
        )
        for episode, start, end, instruction, actions, states, masks in found
    ]


def test_lies_in_the_oracles_words_are_found_and_its_truths_believed(recorded: list[Frame]) -> None:
    count = Count()
    for index, frame in enumerate(recorded):
        for seed in (index, index + 1000, index + 2000):
            rationale = OracleTeacher(seed).annotate(frame.request).result
            lies = list(oracle_lies(rationale, frame, np.random.default_rng(seed))) if seed == index else []
            count.add(frame.request, rationale, lies)
    found, doubted = count.report("oracle")
    assert len(count.lies) >= 14
    assert min(count.lies.values()) >= 20
    assert found >= 0.95
    assert doubted < 0.02


def test_lies_in_other_words_are_found_and_truths_believed(recorded: list[Frame]) -> None:
    """The same frames, told in wordings that the oracle does not have; a lie is told from one wrong fact."""
    count = Count()
    for index, frame in enumerate(recorded):
        facts = told(frame)
        lies = [
            (kind, write(wrong, index))
            for kind, wrong in told_lies(facts, frame, np.random.default_rng(index))
        ]
        count.add(frame.request, write(facts, index), lies)
        count.add(frame.request, write(facts, index + 1000), [])
    found, doubted = count.report("other words")
    assert len(count.lies) >= 12
    assert found >= 0.95
    assert doubted < 0.02


def test_free_texts_are_believed_and_their_edits_found() -> None:
    """In-sample: audited blind, rounds 2 to 4 gave 91 % of the edits and doubted 30 % of the true texts
    (free_texts.txt says it in full).
    """
    texts, count = free_texts(), Count()
    assert len(texts) >= 70
    for text in texts:
        count.add(
            text.frame.request,
            text.rationale,
            [(kind, text.edited(old, new)) for kind, old, new in text.edits],
        )
    found, doubted = count.report("free text")
    assert len(count.lies) >= 10
    assert found >= 0.95
    assert doubted < 0.02


# About a carrot on the left, a plate at the bottom right, an open gripper 8 cm above the carrot, reaching
SENTENCES = [
    (0, "The carrot is on the left.", "zone true"),
    (0, "The carrot is at the right.", "zone false"),
    (0, "A carrot lies at the centre.", "zone undecided"),
    (0, "The plate isn't visible.", "visible false"),
    (0, "The gripper is not open.", "grip false"),
    (0, "The jaws are apart.", "grip true"),
    (0, "The banana is on the table.", "object false"),
    (0, "There is no banana.", ""),
    (0, "The arm can move.", ""),
    (1, "The carrot has not been grasped yet.", "held true"),
    (1, "The robot holds the carrot.", "held false"),
    (1, "It will then hold the carrot.", ""),
    (1, "Once the carrot is held, it is easy.", ""),
    (1, "The task is almost done.", "done true"),
    (1, "It is time to descend.", "sub-task undecided"),
    (1, "It is time to release the carrot.", "sub-task false"),
    (1, "The robot is reaching for the carrot.", "sub-task true"),
    (2, "The carrot is left of the plate.", "side true"),
    (2, "To the left of the carrot is the plate.", "side false"),
    (2, "The gripper is 8 cm above the carrot.", "distance true"),
    (2, "The gripper is 80 mm above the carrot.", "distance true"),
    (2, "The gripper is 30 cm above the carrot.", "distance false"),
    (2, "The gripper is 11 cm above the carrot.", "distance undecided"),
    (2, "The gripper is less than 20 cm above the carrot.", "distance true"),
    (2, "The plate is in contact with the carrot.", "near false"),
    (2, "Relative to the carrot, the gripper is 8 cm up.", "distance true"),
    (3, "Reach over the carrot; then descend, grasp it and lift it.", "sub-task true"),
    (3, "Grasp the plate.", "role false"),
    (3, "Lift the carrot, then grasp it.", "order false"),
    (3, "Do not grasp the plate.", ""),
]


@pytest.mark.parametrize(("part", "sentence", "expected"), SENTENCES, ids=[one[1] for one in SENTENCES])
def test_what_is_read_from_a_sentence(part: int, sentence: str, expected: str) -> None:
    """Negation turns a claim round, conditions and plans are no claims, what is borderline is undecided."""
    request = next(text.frame.request for text in free_texts() if text.frame.request.span[:2] == (4, 3))
    found = audit(request, replace(Rationale("", "", "", ""), **{PARTS[part]: sentence})).findings
    kind, verdict = expected.split() if expected else ("", "")
    assert {one.verdict for one in found if one.claim.kind == kind} == ({verdict} if expected else set()), (
        found
    )
    assert not [one for one in found if one.doubt and one.claim.kind != kind and verdict != "false"]


def test_a_finding_points_at_its_words_and_scores_add_up() -> None:
    text = free_texts()[0]
    found = audit(text.frame.request, text.rationale)
    for one in found.findings:
        assert getattr(text.rationale, one.claim.part)[slice(*one.claim.span)] == one.claim.text != ""
    assert sum(score.decided + score.undecided for score in found.parts.values()) == len(found.findings)
    lie = audit(
        text.frame.request,
        replace(
            text.rationale, observation="The spoon is on the right. The towel is on the left. What a day!"
        ),
    )
    assert (lie.parts["observation"].false, lie.parts["observation"].unread) == (1, 1)
    assert lie.parts["observation"].share == pytest.approx(3 / 4)


STRANGE = [
    "Die Karotte liegt links vom Teller.",
    "",
    "   \n",
    "...;;!?",
    "carrot",
    "1.5 cm",
    "it it it",
    "İ E0 E1 E99 of the E5",
    "🥕 is left",
    "The situation is on track.",
]


@pytest.mark.parametrize("words", STRANGE)
def test_what_cannot_be_read_is_never_false(words: str) -> None:
    found = audit(free_texts()[5].frame.request, Rationale(words, words, words, words))
    assert not [one for one in found.findings if one.verdict == "false"]


WORDS = """the carrot plate gripper banana robot left right of above below 10 cm is not held and , . ;
then move lift lower open until it on in top to its holding nothing task done moving over down
time now E3 green one with"""


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(WORDS.split()), max_size=60).map(" ".join), st.text(max_size=30))
def test_any_words_are_audited_without_error(words: str, text: str) -> None:
    found = audit(free_texts_cached()[5].frame.request, Rationale(words, words + text, text + words, words))
    assert set(found.parts) == set(PARTS)


def free_texts_cached(cache: list = []) -> list:  # noqa: B006
    return cache or cache.extend(free_texts()) or cache


def test_the_simulators_instruction_may_be_rejected_and_a_person_is_told() -> None:
    text = free_texts()[0]
    rejected = replace(text.rationale, instruction_matches=False, mismatch="the robot picks up a fork")
    assert not audit(text.frame.request, text.rationale).doubt
    assert [one.reason for one in audit(text.frame.request, rejected).findings if one.doubt] == [
        "the teacher finds that the instruction does not match: the robot picks up a fork"
    ]


def test_without_a_simulator_actions_readings_and_instruction_decide() -> None:
    """A recorded arm: displacements and a gripper's command by name, the finger opening among the
    readings.
    """
    frame = next(
        text.frame.request for text in free_texts() if text.frame.request.span[:2] == (5, 9)
    )  # carried left, held
    names = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    readings = np.full((len(frame.actions), 8), 0.1, np.float32)
    request = replace(
        frame,
        state=None,
        masks=None,
        action_names=names,
        proprioception=readings,
        proprioception_names=(*"abcdefg", "gripper"),
    )

    def verdicts(part: str, text: str) -> set[tuple[str, str]]:
        told = replace(Rationale("A carrot and a plate.", "", "", ""), **{part: text})
        return {
            (one.claim.kind, one.verdict)
            for one in audit(request, told).findings
            if one.claim.kind not in ("object", "role")
        }

    assert verdicts("task_planning", "Move the carrot left to the plate.") == {
        ("motion", "true"),
        ("sub-task", "undecided"),
    }
    assert ("motion", "false") in verdicts("task_planning", "Move the carrot right to the plate.")
    assert ("sub-task", "false") in verdicts(
        "task_planning", "Release the carrot, then retreat."
    )  # the gripper is told to close throughout
    assert verdicts("task_planning", "Reach, descend, grasp, lift.") <= {
        ("order", "undecided"),
        ("sub-task", "undecided"),
    }  # so in any scene
    assert verdicts("observation", "The gripper is closed around the carrot and the plate.") == {
        ("grip", "true")
    }
    assert ("grip", "false") in verdicts("observation", "The gripper is open. A carrot and a plate.")
    assert verdicts("spatial_reasoning", "The carrot is left of the plate, 10 cm away.") == {
        ("side", "undecided"),
        ("distance", "undecided"),
    }
    assert ("order", "false") in verdicts(
        "task_planning", "Carry the carrot to the plate, release it, then lower it."
    )
    assert ("naming", "undecided") in verdicts("observation", "A banana and a plate.")


REAL = {
    "can": (
        (0, 0, 72),
        Rationale(
            "A tall yellow can of crisps stands on the table, between the hands.",
            "The right hand moves towards the can; the left hand rests.",
            "The can is left of the right hand, some 10 cm away.",
            "Reach for the can with the right hand, grasp it, and lift it.",
        ),
        {"the rationale speaks of 'yellow can', the instruction of 'yellow bottle'"},
    ),
    "bottle": (
        (0, 0, 72),
        Rationale(
            "A yellow bottle stands on the table.",
            "The right hand approaches the bottle.",
            "The bottle is left of the right hand.",
            "Reach for the bottle, close the hand around the bottle, and lift it.",
        ),
        set(),
    ),
    "other hand": (
        (0, 0, 72),
        Rationale(
            "A yellow bottle stands on the table.",
            "The left hand approaches the bottle.",
            "The bottle is near the hand.",
            "Reach for the bottle.",
        ),
        {"13% of the motion of both arms' joints is on the left"},
    ),
    "order": (
        (0, 236, 343),
        Rationale(
            "A yellow bottle stands on the table.",
            "The right hand withdraws.",
            "It is near the hand.",
            "Lift the bottle, then grasp the bottle.",
        ),
        {"the order of a pick and place is reach, descend, grasp, lift, carry, lower, release, retreat"},
    ),
}


@pytest.mark.parametrize("case", REAL)
def test_a_real_robots_data(real_dataset: Path, case: str) -> None:
    """A humanoid's joint angles: which arm moves, the order of the plan, and the label that calls a can a
    bottle can be checked; no place, no distance, no hold can, and nothing about them is called false.
    """
    span, rationale, doubts = REAL[case]
    request = next(one for one in requests(open_dataset(real_dataset), keyframes=1) if one.span == span)
    found = audit(request, rationale)
    assert {one.reason for one in found.findings if one.doubt} == doubts
    assert {one.claim.kind for one in found.findings if one.verdict != "undecided"} <= {
        "arm",
        "order",
        "object",
    }


def test_a_made_up_text_about_data_that_decides_nothing_has_no_score(tmp_path: Path) -> None:
    """The same words for every segment of a teleoperation; the second time the instruction happens to name
    the thing.
    """
    made_up = Rationale(
        "A red block lies on the wooden table to the left of the gripper.",
        "The arm has begun to reach and the block is not held yet.",
        "The gripper is above the block and about ten centimetres to the right of it.",
        "Reach, descend to the red block, then grasp and lift it.",
    )
    for name, instruction in (("other", "teleoperation session"), ("same", "pick up the red block")):
        with DatasetWriter(
            tmp_path / name,
            fps=5,
            robot_type="arm",
            action_names=list("abcdef"),
            state_names=list("abcdef"),
            deltas=False,
        ) as writer:
            for seed in range(2):
                numbers = np.random.default_rng(seed).normal(size=(2, 12, 6)).astype(np.float32)
                writer.add(Episode(np.zeros((12, 16, 16, 3), np.uint8), numbers[0], numbers[1], instruction))
        dataset = open_dataset(tmp_path / name)
        answers = [
            StoredRationale(*asked.span, made_up, None, "", "gemini", "m", "p", 1, 1, 0.0)
            for asked in requests(dataset, keyframes=1)
        ]
        table = audit_dataset(dataset, answers)
        assert (
            not table[[f"{part}_{verdict}" for part in PARTS for verdict in ("true", "false")]]
            .to_numpy()
            .any()
        )
        assert table[[f"{part}_undecided" for part in PARTS]].to_numpy().any()
        line = teachers_table(compare_teachers(table)).loc["gemini"]
        assert line["all parts"] == "nothing could be checked"
        assert line["claims checked"].startswith("none of ")
        assert "100%" not in " ".join(line)


def test_a_dataset_with_refusals_becomes_a_table() -> None:
    answers = load_rationales(DEMO / "rationales/oracle-segment.parquet")[:12]
    lie = replace(answers[1].rationale, situation_analysis="The task is done.")
    answers[:2] = [
        replace(answers[0], rationale=None, refusal=Refusal("safety", "stopped")),
        replace(answers[1], rationale=lie),
    ]
    table = audit_dataset(DEMO, answers)
    assert table["refusal"].tolist() == ["safety"] + [""] * 11
    assert table["doubt"].tolist() == [False, True] + [False] * 10
    assert (
        table["doubts"][1]
        == "situation_analysis: 'task is done': the task's own success condition does not hold in this frame"
    )
    assert table.loc[0, [f"{part}_true" for part in PARTS]].sum() == 0
    assert (table.loc[2:, [f"{part}_true" for part in PARTS]] > 0).all(axis=None)


def test_a_rationale_takes_milliseconds(recorded: list[Frame]) -> None:
    asked = [(frame.request, OracleTeacher(0).annotate(frame.request).result) for frame in recorded[:40]]
    seconds = []
    for request, rationale in asked:
        start = time.process_time()
        audit(request, rationale)
        seconds.append(time.process_time() - start)
    print(f"{1000 * np.median(seconds):.2f} ms a rationale, the median of {len(seconds)}")
    assert np.median(seconds) < 0.005
