"""The examples of one's own policy, dataset, teacher and task run as they stand and say what is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from refinevla_kit.episodes import open_dataset
from refinevla_kit.evaluation import load_records
from refinevla_kit.teacher import load_rationales
from refinevla_kit.training.examples import load_examples
from tests.conftest import REPOSITORY

SCRIPTS = sorted((REPOSITORY / "examples").glob("own_*.py"))
ORACLE = REPOSITORY / "data/demo/rationales/oracle-segment.parquet"


def run(name: str, *arguments: Path | str) -> list[str]:
    """The lines that an example prints, started as a reader starts it."""
    program = [sys.executable, f"examples/own_{name}.py", *map(str, arguments)]
    done = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_each_is_short_and_says_how_it_is_run() -> None:
    assert [path.stem for path in SCRIPTS] == ["own_dataset", "own_policy", "own_task", "own_teacher"]
    for path in SCRIPTS:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) < 60
        assert f"python examples/{path.name} [FOLDER" in text
        assert 'if __name__ == "__main__":' in text


@pytest.mark.slow
def test_a_policy_is_checked_and_compared_with_the_demonstrator(tmp_path: Path) -> None:
    lines = run("policy", tmp_path)
    assert lines[0] == "preflight of replay on widowx_carrot_on_plate"
    assert lines[1] == "  conventions: nothing that differs"
    assert lines[-3:-1] == ["demonstrator: 4/4 (51% to 100%)", "replay: 0/4 (0% to 49%)"]
    assert re.fullmatch(r"difference -100% \(-100% to -\d+%\), 4 pairs, p = 0\.125", lines[-1])
    records = load_records(tmp_path / "records.parquet")
    ended = {(record.policy, record.reason) for record in records}
    assert ended == {("demonstrator", "budget"), ("replay", "terminated")}
    lengths = {record.steps for record in records if record.policy == "replay"}
    demo = open_dataset(REPOSITORY / "data/demo")
    assert lengths == {[each.length for each in demo.episodes if "carrot" in each.instruction][-1]}
    again = run("policy", tmp_path)
    assert again == lines
    assert load_records(tmp_path / "records.parquet") == records  # nothing was played twice


def test_a_dataset_is_written_looked_at_annotated_and_loaded(tmp_path: Path) -> None:
    lines = run("dataset", tmp_path)
    assert lines[0] == "dataset: LeRobot v3.0, my_arm"
    assert "  episodes    2 of 50 frames, 5 a second" in lines
    assert "  state       observation.state: x y z gripper" in lines
    assert "trainable: yes" in lines
    written, answers = open_dataset(tmp_path / "dataset"), load_rationales(tmp_path / "rationales.parquet")
    segments = [(each.index, cut.start) for each in written.episodes for cut in written.segments(each.index)]
    assert [(answer.episode, answer.start) for answer in answers] == segments
    assert f"{len(segments)} rationales (0 find the instruction wrong); refusals: none" in lines
    # source, target, held and motion of each; of these only the motion follows from actions
    decided = f"facts: {len(segments)} true, 0 false, {3 * len(segments)} that only"
    assert any(line.startswith(decided) for line in lines)
    assert lines[-1] == "50 examples, 50 of them with a rationale"
    assert len(load_examples(written)) == 50


def test_a_dataset_that_is_there_already_is_taken_as_it_is(tmp_path: Path) -> None:
    lines = run("dataset", tmp_path, "data/demo")
    assert lines[0] == "demo: LeRobot v3.0, widowx"
    assert lines[-1] == "260 examples, 260 of them with a rationale"
    assert [path.name for path in tmp_path.iterdir()] == ["rationales.parquet"]


def test_a_teacher_stops_at_its_budget_goes_on_and_is_audited(tmp_path: Path) -> None:
    lines = run("teacher", tmp_path)
    answers, oracle = load_rationales(tmp_path / "rationales.parquet"), load_rationales(ORACLE)
    assert [answer.span for answer in answers] == [answer.span for answer in oracle]
    calls = [int(line.split()[0]) for line in lines if " calls, " in line]
    assert calls == [40, len(oracle)]
    found = re.fullmatch(r"facts: (\d+) true, (\d+) false; (\d+) of (\d+) for a person to look at", lines[-1])
    assert found
    true, false, doubted, total = map(int, found.groups())
    assert total == len(oracle)
    # what the fingers only close on is not held yet: an untruth an episode or two, and the audit finds it
    held = [answer.rationale.facts.held for answer in answers if answer.rationale and answer.rationale.facts]
    assert 12 <= false == doubted <= len([name for name in held if name != "nothing"])
    assert true + false <= 4 * total < true + false + total


@pytest.mark.slow
def test_a_task_is_played_by_the_demonstrator(tmp_path: Path) -> None:
    lines = run("task", tmp_path)
    assert lines[0].startswith(
        "it begins with: put the green block on the plate; things: carrot, green block"
    )
    assert lines[1:3] == [f"start {each}: green block first, 120 steps, budget" for each in (0, 1)]
    sentence = "put the green block on the plate, then put the carrot on the towel"
    assert lines[3:] == [f"demonstrator: 2/2 did: {sentence}"]
    records = load_records(tmp_path / "records.parquet")
    assert [record.ended_on for record in records] == ["plate", "plate"]
