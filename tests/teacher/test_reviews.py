"""Decisions about rationales: on disk at once, tied to the text they are about, and what training makes of
them.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refinevla_kit.episodes import DatasetWriter, Episode
from refinevla_kit.errors import KitError
from refinevla_kit.files import sha256
from refinevla_kit.journal import Journal
from refinevla_kit.teacher.answers import SCHEMA, StoredRationale, load_rationales
from refinevla_kit.teacher.reviews import applied, decide, decision_of, load_decisions, reviewed, reviews_path
from refinevla_kit.teacher.schema import PARTS, Rationale, Refusal
from refinevla_kit.training.examples import find_rationales, load_examples

TEXT = Rationale(
    "The carrot is left.", "Nothing is held.", "The plate is right of it.", "Go down to the carrot."
)
WRONG = replace(TEXT, instruction_matches=False, mismatch="It is a can.")


def answer(start: int, rationale: Rationale | None = TEXT) -> StoredRationale:
    refusal = None if rationale else Refusal("safety", "stopped")
    return StoredRationale(0, start, start + 2, rationale, refusal, "raw", "oracle", "1", "hash", 10, 20, 0.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return reviews_path(tmp_path / "oracle-segment.parquet")


def test_the_last_decision_about_a_text_counts_and_a_later_process_reads_it(path: Path) -> None:
    assert path.name == "oracle-segment.reviews.jsonl" and load_decisions(path) == {}
    decide(path, answer(0), "accept", reviewer="R")
    decide(path, answer(2), "accept")
    decide(path, answer(0), "reject", reason=" wrong side ")
    decisions = load_decisions(path)
    assert [(one.start, one.verdict, one.reason) for one in decisions.values()] == [
        (0, "reject", "wrong side"),
        (2, "accept", ""),
    ]
    assert len(path.read_text().splitlines()) == 3  # nothing is overwritten
    assert decisions[(0, 0, 2), decision_of(decisions, answer(0)).about].time.endswith("+00:00")


def test_edits_apply_and_the_rest_of_the_answer_stays(path: Path) -> None:
    edit = decide(
        path,
        answer(0),
        "edit",
        {"observation": " The carrot\n is  right. ", "task_planning": TEXT.task_planning},
    )
    assert edit.edits == {"observation": "The carrot is right."}  # one line, and only what differs
    after = applied(answer(0), load_decisions(path)[(0, 0, 2), edit.about])
    assert after == replace(answer(0), rationale=replace(TEXT, observation="The carrot is right."))
    assert decide(path, answer(0), "edit", {part: getattr(TEXT, part) for part in PARTS}).verdict == "accept"
    matches = decide(path, answer(2, WRONG), "edit", {"instruction_matches": True})
    assert applied(answer(2, WRONG), matches).rationale == TEXT
    written = decide(path, answer(4, None), "edit", {part: f"{part} by hand" for part in PARTS})
    assert applied(answer(4, None), written).rationale.spatial_reasoning == "spatial_reasoning by hand"


def test_a_decision_does_not_carry_over_to_another_text(path: Path) -> None:
    decide(path, answer(0), "accept")
    newer = answer(0, replace(TEXT, observation="The carrot is on the left."))
    assert decision_of(load_decisions(path), newer) is None
    assert reviewed([newer], load_decisions(path)) == (
        [],
        {"accepted": 0, "edited": 0, "rejected": 0, "changed since its review": 1},
    )
    decide(path, newer, "reject", reason="left of what?")
    assert decision_of(load_decisions(path), answer(0)).verdict == "accept"  # should the old text come back


def test_reviewed_is_what_was_accepted_or_edited(path: Path) -> None:
    answers = [answer(0), answer(2), answer(4), answer(6), answer(8, None)]
    decide(path, answers[0], "accept")
    decide(path, answers[1], "edit", {"observation": "Mended."})
    decide(path, answers[2], "reject", reason="vague")
    rows, counts = reviewed(answers, load_decisions(path))
    assert [(row.start, row.rationale.observation) for row in rows] == [(0, TEXT.observation), (2, "Mended.")]
    assert counts == {
        "accepted": 1,
        "edited": 1,
        "rejected": 1,
        "not reviewed": 1,
        "refused by the teacher": 1,
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((answer(0), "reject"), "needs a reason"),
        ((answer(0), "perhaps"), "choose from accept, edit, reject"),
        ((answer(0), "edit", {"observation": "  "}), "observation is empty"),
        ((answer(0), "edit", {"raw": "x"}), "edits of raw"),
        ((answer(0), "accept", {"observation": "x"}), "edits of observation"),
        ((answer(0, None), "accept"), "observation is empty"),
    ],
)
def test_what_makes_no_sense_is_not_recorded(path: Path, arguments: tuple, says: str) -> None:
    with pytest.raises(KitError, match=says):
        decide(path, *arguments)
    assert not path.exists()


def test_a_torn_last_line_is_ignored_then_mended_and_other_damage_is_named(path: Path) -> None:
    decide(path, answer(0), "accept")
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    assert len(load_decisions(path)) == 1
    decide(path, answer(2), "accept")
    assert len(load_decisions(path)) == 2 and path.read_bytes().startswith(whole)
    for damage in (b"\0\0\0\n", b"[1]\n", b'{"episode": 0}\n', whole.replace(b"accept", b"perhaps")):
        path.write_bytes(whole + damage + whole)
        with pytest.raises(KitError, match="line 2 is no decision"):
            load_decisions(path)


def test_another_program_that_writes_the_file_is_respected(path: Path) -> None:
    held = Journal(path)
    with pytest.raises(KitError, match="another run is writing"):
        decide(path, answer(0), "accept")
    assert path.read_bytes() == b""
    held.close()
    decide(path, answer(0), "accept")


def test_a_decision_survives_a_kill(path: Path) -> None:
    code = f"""
import os, signal
from tests.teacher.test_reviews import answer, decide, Path
decide(Path({str(path)!r}), answer(0), "accept")
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert (
        subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode
        == -signal.SIGKILL
    )
    assert [one.verdict for one in load_decisions(path).values()] == ["accept"]


def test_training_reads_what_was_reviewed(tmp_path: Path) -> None:
    """Five segments of two frames: kept, edited, rejected, not reviewed, and one whose instruction does not
    match.
    """
    dataset = tmp_path / "mine"
    with DatasetWriter(dataset, fps=5, robot_type="widowx") as writer:
        images = np.random.default_rng(0).integers(0, 255, (10, 32, 48, 3), dtype=np.uint8)
        writer.add(
            Episode(
                images, np.zeros((10, 7), np.float32), np.zeros((10, 15), np.float32), "put carrot on plate"
            )
        )
    table = dataset / "rationales/oracle-segment.parquet"
    table.parent.mkdir()
    plain = {name: "" for name in SCHEMA.names if SCHEMA.field(name).type == pa.string()} | {
        "refusal_kind": None,
        "dataset_hash": "0" * 16,
    }
    numbers = {
        "input_tokens": 1,
        "output_tokens": 1,
        "cost": 0.0,
        "attempts": 1,
        "keyframes": 3,
        "instruction_matches": True,
        "mismatch": "",
    }
    texts = {part: getattr(TEXT, part) for part in PARTS}
    rows = [
        plain | numbers | texts | {"episode": 0, "start": start, "end": start + 2}
        for start in (0, 2, 4, 6, 8)
    ]
    rows[4] |= {"instruction_matches": False, "mismatch": "It is a can."}
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), table)
    before, answers = sha256(table), load_rationales(table)
    with pytest.raises(KitError, match="no reviewed rationales beside it"):
        load_examples(dataset, "reviewed")
    path = reviews_path(table)
    decide(path, answers[2], "reject", reason="vague")
    with pytest.raises(KitError, match=r"no rationale of .* was accepted"):
        load_examples(dataset, "reviewed")
    decide(path, answers[0], "accept")
    decide(path, answers[1], "edit", {"observation": "Mended."})
    decide(path, answers[4], "accept")

    examples = load_examples(dataset, "reviewed")
    assert [text.split("\n")[0] for text in examples.rationales[::2]] == [
        "Observation: The carrot is left.",
        "Observation: Mended.",
        "",
        "",
        "",
    ]
    assert examples.about.startswith(
        f"2 rationales of {table}; 2 accepted; 1 edited; 1 rejected; 1 not reviewed; 1 left out "
        "because the instruction"
    )
    assert load_examples(dataset, path).rationales == examples.rationales
    assert find_rationales(dataset, tmp_path, reviews=True) == path
    unreviewed = load_examples(
        dataset, table
    )  # the teacher's text as it is, but never about a wrong instruction
    assert [bool(text) for text in unreviewed.rationales[::2]] == [True, True, True, True, False]
    assert unreviewed.rationales[2].startswith("Observation: The carrot is left.")
    assert sha256(table) == before and json.loads(path.read_text().splitlines()[2])["edits"] == {
        "observation": "Mended."
    }
