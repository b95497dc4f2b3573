"""What the oracle writes is read back as the facts it was written from; other words are not read."""

from __future__ import annotations

from dataclasses import replace

from refinevla_kit.teacher.audit import Scene
from refinevla_kit.teacher.oracle import OracleTeacher
from refinevla_kit.teacher.schema import Facts, Rationale
from refinevla_kit.teacher.wording import read_wording

from .test_oracle import ask


def test_the_oracles_texts_are_read_as_the_facts_they_were_written_from(frames) -> None:
    kinds: set[str] = set()
    for one in frames:
        for start in range(len(one.actions)):
            answer = OracleTeacher(seed=start).annotate(ask(one, start, start + 1)).result
            assert isinstance(answer, Rationale) and answer.facts
            read = read_wording(answer.text())
            assert replace(read, facts=answer.facts) == answer  # the four parts
            assert read.facts
            wanted, found = vars(answer.facts), {k: v for k, v in vars(read.facts).items() if v is not None}
            assert found == {name: wanted[name] for name in found}
            left_out = {name for name, value in wanted.items() if value is not None} - set(found)
            unsaid = {"goal_height_cm", "goal_side"}
            if wanted["held"] == wanted["source"]:
                unsaid |= {"gripper", "reach_cm", "reach_height_cm", "reach_side"}
            elif not wanted["reach_cm"] and not wanted["reach_height_cm"]:
                unsaid |= {"reach_side"}
            assert left_out <= unsaid
            kinds |= set(found)
    assert kinds == set(vars(Facts()))


def test_a_false_text_is_found_false(frames) -> None:
    one = frames[0]
    request = ask(one, 0, 1)
    text = OracleTeacher().annotate(request).result.text()
    scene = Scene(request)
    for true, false in (("not held", "held"), ("not gripped", "held"), ("open gripper", "closed gripper")):
        if true in text:
            facts = read_wording(text.replace(true, false)).facts
            assert "false" in {finding.verdict for finding in scene.fact_findings(facts)}, true
    assert {finding.verdict for finding in scene.fact_findings(read_wording(text).facts)} <= {
        "true",
        "undecided",
    }


def test_other_words_are_not_read() -> None:
    read = read_wording("Observation: the arm waits.\nPlan: grab it; then go.\nnothing")
    assert read.facts is None and read.observation == "the arm waits." and read.spatial_reasoning == ""
    assert read_wording("").facts is None
    some = read_wording("Observation: Half open gripper at the top left.\nSpatial: the gripper is near.")
    assert some.facts == Facts(gripper="half open", gripper_zone="top left")
    assert sum(value is not None for value in vars(some.facts).values()) == 2
