"""The audit believes what is true and finds what was made false in facts; of prose it reads little, and what
it cannot read it leaves alone.
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
from refinevla_kit.episodes.segments import split_segments
from refinevla_kit.evaluation.intervals import wilson
from refinevla_kit.figures.audit import compare_teachers, teachers_table
from refinevla_kit.teacher.answers import StoredRationale, load_rationales
from refinevla_kit.teacher.audit import Audit, audit, audit_dataset
from refinevla_kit.teacher.oracle import OracleTeacher
from refinevla_kit.teacher.requests import requests
from refinevla_kit.teacher.schema import PARTS, Facts, Rationale, Refusal, Request

from .corruption import Frame, facts_lies, facts_of, free_texts, oracle_lies, told, told_lies, write

DEMO = Path(__file__).resolve().parents[2] / "data/demo"


READ = ("absent", "held", "left/right", "sub-task", "sub-task of the plan")
"""The kinds of lies that the audit looks for in prose; the other kinds it finds in facts only."""


def lie_found(honest: Audit, changed: Audit) -> bool:
    """Something is doubted that was not doubted before."""
    before = {(finding.part, finding.kind, finding.text) for finding in honest.findings if finding.doubt}
    return any(
        finding.doubt and (finding.part, finding.kind, finding.text) not in before
        for finding in changed.findings
    )


class Count:
    """Lies found by kind, and true rationales that were doubted; printed with their intervals (pytest -s)."""

    def __init__(self) -> None:
        self.lies: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()
        self.true = self.doubted = 0

    def add(self, request: Request, rationale: Rationale, lies: list[tuple[str, Rationale]]) -> None:
        honest = audit(request, rationale)
        self.true, self.doubted = self.true + 1, self.doubted + honest.doubt
        self.verdicts.update(finding.verdict for finding in honest.findings)
        for kind, lie in lies:
            assert lie != rationale, (kind, rationale)
            self.lies[kind] += 1
            self.found[kind] += lie_found(honest, audit(request, lie))

    def report(self, name: str, kinds: tuple[str, ...] = ()) -> tuple[float, float]:
        """(share of lies of these kinds found, all without any; share of true rationales doubted)."""
        of_kinds = [kind for kind in self.lies if kind in kinds or not kinds]
        found, lies = (sum(counts[kind] for kind in of_kinds) for counts in (self.found, self.lies))
        rows = [
            *((kind, self.found[kind], n) for kind, n in self.lies.items()),
            ("these lies", found, lies),
            ("true, doubted", self.doubted, self.true),
            ("claims called false", self.verdicts["false"], self.verdicts["false"] + self.verdicts["true"]),
        ]
        for kind, count, of in rows:
            low, high = wilson(count, of)
            print(f"{name:>14} {kind:<22} {count:>4} of {of:<4} {count / of:7.1%} ({low:.1%} to {high:.1%})")
        return found / lies, self.doubted / self.true


@pytest.fixture(scope="module")
def recorded(frames) -> list[Frame]:
    """Segments of the demonstration episodes (four tasks) and every third frame of the episodes just played
    (two).
    """
    found = []
    demo = open_dataset(DEMO)
    for info in demo.episodes:
        actions, states, masks = demo.actions(info.index), demo.states(info.index), demo.masks(info.index)
        for segment in split_segments(actions, True, 6):
            start, end = segment.start, segment.end
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


def test_lies_in_the_oracles_facts_are_found_and_its_truths_believed(recorded: list[Frame]) -> None:
    """Every field of its own facts made false, one at a time, under prose that stays true."""
    count = Count()
    for index, frame in enumerate(recorded):
        for seed in (index, index + 1000, index + 2000):
            rationale = OracleTeacher(seed).annotate(frame.request).result
            lies = facts_lies(rationale.facts, frame, np.random.default_rng(seed)) if seed == index else ()
            count.add(frame.request, rationale, [(kind, replace(rationale, facts=lie)) for kind, lie in lies])
    found, doubted = count.report("oracle's facts")
    assert len(count.lies) >= 13
    assert min(count.lies.values()) >= 20
    assert found >= 0.98
    assert doubted < 0.01


def test_lies_in_others_facts_are_found_and_truths_believed(recorded: list[Frame]) -> None:
    """Facts measured without the auditor's geometry, beside prose that the oracle would not write."""
    count = Count()
    for index, frame in enumerate(recorded):
        words = told(frame)
        rationale = replace(write(words, index), facts=facts_of(words))
        lies = facts_lies(rationale.facts, frame, np.random.default_rng(index))
        count.add(frame.request, rationale, [(kind, replace(rationale, facts=lie)) for kind, lie in lies])
    found, doubted = count.report("others' facts")
    assert len(count.lies) >= 12
    assert found >= 0.98
    assert doubted < 0.01


def test_prose_alone_is_believed_and_lies_that_can_be_read_are_found(recorded: list[Frame]) -> None:
    """Template sentences, the oracle's and others, without facts: five kinds of lies are looked for."""
    oracle, others = Count(), Count()
    for index, frame in enumerate(recorded):
        rationale = replace(OracleTeacher(index).annotate(frame.request).result, facts=None)
        oracle.add(
            frame.request, rationale, list(oracle_lies(rationale, frame, np.random.default_rng(index)))
        )
        words, rng = told(frame), np.random.default_rng(index)
        lies = [(kind, write(lie, index)) for kind, lie in told_lies(words, frame, rng)]
        others.add(frame.request, write(words, index), lies)
    found, doubted = oracle.report("oracle's words", READ)
    assert found >= 0.8 and doubted < 0.01
    found, doubted = others.report("other words", READ)
    assert found >= 0.7 and doubted < 0.01


@pytest.mark.parametrize(
    ("rounds", "least_found", "most_doubted"),
    [((1,), 0.85, 0.0), ((2, 3, 4), 0.7, 0.06)],
    ids=["seen", "unseen"],
)
def test_free_texts_are_believed_and_edits_that_can_be_read_are_found(
    rounds: tuple[int, ...], least_found: float, most_doubted: float
) -> None:
    """Only round 1 was looked at while the reader of prose was written; the others never were."""
    count = Count()
    texts = [text for text in free_texts() if text.round in rounds]
    assert len(texts) >= 20
    for text in texts:
        edits = [(kind, text.edited(old, new)) for kind, old, new in text.edits]
        count.add(text.frame.request, text.rationale, edits)
    found, doubted = count.report("free text", READ)
    assert len(count.lies) >= 10
    assert found >= least_found
    assert doubted <= most_doubted


# About a carrot on the left, a plate at the bottom right, an open gripper 8 cm above the carrot, reaching
SENTENCES = [
    (0, "The banana is on the table.", "object false"),
    (0, "The carrot is on the left.", "object true"),
    (0, "There is no banana.", ""),
    (0, "The arm can move.", ""),
    (0, "The gripper is empty.", "held true"),
    (1, "The carrot has not been grasped yet.", "held true"),
    (1, "The robot holds the carrot.", "held false"),
    (1, "The plate is in the gripper.", "held false"),
    (1, "It will then hold the carrot.", ""),
    (1, "Once the carrot is held, it is easy.", ""),
    (1, "It is time to descend.", "sub-task undecided"),
    (1, "It is time to release the carrot.", "sub-task false"),
    (1, "The robot is reaching for the carrot.", "sub-task true"),
    (2, "The carrot is left of the plate.", "side true"),
    (2, "The carrot is not left of the plate.", "side false"),
    (2, "To the left of the carrot is the plate.", "side false"),
    (2, "Move the carrot to the left of the plate.", ""),
    (3, "Reach over the carrot; then descend, grasp it and lift it.", "sub-task true"),
    (3, "Release the carrot.", "sub-task false"),
    (3, "Do not grasp the plate.", ""),
]


def asked() -> Request:
    return next(text.frame.request for text in free_texts_cached() if text.frame.request.span[:2] == (4, 3))


@pytest.mark.parametrize(("part", "sentence", "expected"), SENTENCES, ids=[one[1] for one in SENTENCES])
def test_what_is_read_from_a_sentence(part: int, sentence: str, expected: str) -> None:
    """Negation turns a claim round, conditions and plans are no claims, what is borderline is undecided."""
    found = audit(asked(), replace(Rationale("", "", "", ""), **{PARTS[part]: sentence})).findings
    kind, verdict = expected.split() if expected else ("", "")
    assert {each.verdict for each in found if each.kind == kind} == ({verdict} if expected else set()), found
    assert not [each for each in found if each.doubt and each.kind != kind]


FIELDS = [
    ({"source": "carrot"}, "true"),
    ({"source": "orange carrot"}, "true"),
    ({"source": "banana"}, "false"),
    ({"target": "carrot"}, "false"),
    ({"source_zone": "left"}, "true"),
    ({"source_zone": "right"}, "false"),
    ({"source_zone": "centre"}, "undecided"),
    ({"gripper": "open"}, "true"),
    ({"gripper": "closed"}, "false"),
    ({"held": "nothing"}, "true"),
    ({"held": "carrot"}, "false"),
    ({"reach_height_cm": 8}, "true"),
    ({"reach_height_cm": 11}, "undecided"),
    ({"reach_height_cm": 30}, "false"),
    ({"reach_height_cm": -8}, "false"),
    ({"goal_side": "left"}, "true"),
    ({"goal_side": "right"}, "false"),
    ({"sub_task": "reach"}, "true"),
    ({"sub_task": "descend"}, "undecided"),
    ({"sub_task": "release"}, "false"),
    ({"next_sub_task": "descend"}, "undecided"),
    ({"next_sub_task": "carry"}, "false"),
    ({"done": False}, "true"),
    ({"done": True}, "false"),
]


@pytest.mark.parametrize(("said", "verdict"), FIELDS, ids=[str(one[0]) for one in FIELDS])
def test_each_field_of_facts_is_checked(said: dict, verdict: str) -> None:
    result = audit(asked(), Rationale("", "", "", "", facts=Facts(**said)))
    (finding,) = result.findings
    assert (finding.part, finding.kind, finding.verdict) == ("facts", *said, verdict)
    assert finding.doubt == result.doubt == (verdict == "false")
    assert getattr(result.parts["facts"], verdict) == 1


def test_a_finding_points_at_its_words_and_scores_add_up() -> None:
    text = free_texts()[0]
    found = audit(text.frame.request, text.rationale)
    for each in found.findings:
        assert each.text and each.text in getattr(text.rationale, each.part)
    assert sum(score.decided + score.undecided for score in found.parts.values()) == len(found.findings)
    lie = audit(
        text.frame.request,
        replace(
            text.rationale, observation="The spoon is right of the towel. What a day! The fork is there."
        ),
    )
    assert (lie.parts["observation"].false, lie.parts["observation"].unread) == (2, 2)
    assert lie.parts["observation"].share == pytest.approx(2 / 4)


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
    assert not [each for each in found.findings if each.verdict == "false"]


WORDS = """the carrot plate gripper banana robot left right of above below 10 cm is not held and , . ;
then move lift lower open until it on in top to its holding nothing task done moving over down
time now E3 green one with"""


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(WORDS.split()), max_size=60).map(" ".join), st.text(max_size=30))
def test_any_words_are_audited_without_error(words: str, text: str) -> None:
    found = audit(free_texts_cached()[5].frame.request, Rationale(words, words + text, text + words, words))
    assert set(found.parts) == {*PARTS, "facts"}


def free_texts_cached(cache: list = []) -> list:  # noqa: B006
    return cache or cache.extend(free_texts()) or cache


def test_the_simulators_instruction_may_be_rejected_and_a_person_is_told() -> None:
    text = free_texts()[0]
    rejected = replace(text.rationale, instruction_matches=False, mismatch="the robot picks up a fork")
    assert not audit(text.frame.request, text.rationale).doubt
    assert [each.reason for each in audit(text.frame.request, rejected).findings if each.doubt] == [
        "the teacher finds that the instruction does not match: the robot picks up a fork"
    ]


def test_without_a_simulator_actions_readings_and_instruction_decide() -> None:
    """A recorded arm: displacements and a gripper's command by name, the finger opening among the
    readings.
    """
    # carried left, held
    frame = next(text.frame.request for text in free_texts() if text.frame.request.span[:2] == (5, 9))
    request = replace(
        frame,
        state=None,
        masks=None,
        action_names=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
        proprioception=np.full((len(frame.actions), 8), 0.1, np.float32),
        proprioception_names=(*"abcdefg", "gripper"),
    )
    plain = Rationale("A carrot and a plate.", "", "", "")

    def verdict(**said: str | float) -> str:
        (finding,) = [
            each
            for each in audit(request, replace(plain, facts=Facts(**said))).findings
            if each.part == "facts"
        ]
        return finding.verdict

    assert (verdict(motion="left"), verdict(motion="right")) == ("true", "false")
    assert (verdict(gripper="closed"), verdict(gripper="open")) == ("true", "false")
    assert verdict(sub_task="carry") == "undecided"
    assert verdict(sub_task="release") == "false"  # the gripper is told to close throughout
    assert verdict(goal_side="left") == verdict(goal_cm=10) == verdict(held="carrot") == "undecided"
    assert verdict(source="carrot") == verdict(done=True) == "undecided"

    def read(text: str) -> set[tuple[str, str]]:
        findings = audit(request, replace(plain, task_planning=text)).findings
        return {(each.kind, each.verdict) for each in findings if each.kind != "object"}

    assert read("Release the carrot, then retreat.") == {("sub-task", "false")}
    assert read("Carry the carrot to the plate.") == {("sub-task", "undecided")}
    named = audit(request, replace(plain, observation="A banana and a plate."))
    assert ("naming", "undecided", True) in {(each.kind, each.verdict, each.doubt) for each in named.findings}
    facts = audit(request, Rationale("", "", "", "", facts=Facts(source="banana", target="plate")))
    assert [each.text for each in facts.findings if each.doubt] == ["source: banana"]


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
}


@pytest.mark.parametrize("case", REAL)
def test_a_real_robots_data(real_dataset: Path, case: str) -> None:
    """A humanoid's joint angles: only the label that calls a can a bottle is noticed; no place, no distance,
    no hold can be checked, and nothing about them is called false.
    """
    span, rationale, doubts = REAL[case]
    request = next(one for one in requests(open_dataset(real_dataset), keyframes=1) if one.span == span)
    found = audit(request, rationale)
    assert {each.reason for each in found.findings if each.doubt} == doubts
    assert {each.verdict for each in found.findings} == {"undecided"}


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
    lie = replace(answers[1].rationale, facts=Facts(done=True))
    answers[:2] = [
        replace(answers[0], rationale=None, refusal=Refusal("safety", "stopped")),
        replace(answers[1], rationale=lie),
    ]
    table = audit_dataset(DEMO, answers)
    assert table["refusal"].tolist() == ["safety"] + [""] * 11
    assert table["doubt"].tolist() == [False, True] + [False] * 10
    assert (
        table["doubts"][1]
        == "facts: 'done: True': the task's own success condition does not hold in this frame"
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
