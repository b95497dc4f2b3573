"""The rationale reviewer without a browser: its buttons, fields and key messages decide, and every decision
is on the disk.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from refinevla_kit.episodes import open_dataset
from refinevla_kit.errors import KitError
from refinevla_kit.figures.reviews import action_paths, review_card
from refinevla_kit.files import sha256
from refinevla_kit.journal import Journal
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.teacher.answers import load_rationales
from refinevla_kit.teacher.requests import requests
from refinevla_kit.teacher.reviews import load_decisions, reviews_path
from refinevla_kit.teacher.schema import PARTS, Request
from refinevla_kit.training.examples import load_examples
from refinevla_kit.widgets.rationale_reviewer import RationaleReviewer

DEMO = REPOSITORY / "data/demo"
WRONG = 1  # the answer of which the fixture makes something false
REFUSED = 3


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """The first six answers about the shipped episodes, one made false and one refused."""
    rows = sorted(
        pq.read_table(DEMO / "rationales/oracle-segment.parquet").to_pylist(),
        key=lambda row: (row["episode"], row["start"]),
    )[:6]
    situation = rows[WRONG]["situation_analysis"]
    rows[WRONG]["situation_analysis"] = situation.replace("is not held", "is held").replace(
        "not grip", "grip"
    )
    assert rows[WRONG]["situation_analysis"] != situation
    rows[REFUSED] |= dict.fromkeys(PARTS) | {
        "refusal_kind": "not_json",
        "refusal_reason": "the answer is not JSON",
        "raw": "<b>That</b> $1 and $2",
    }
    path = tmp_path / "oracle-segment.parquet"
    pq.write_table(
        pa.Table.from_pylist(rows, pq.read_schema(DEMO / "rationales/oracle-segment.parquet")), path
    )
    return path


@pytest.fixture
def reviewer(table: Path) -> RationaleReviewer:
    return RationaleReviewer(DEMO, table, keyframes=2, reviewer="R")


def press(reviewer: RationaleReviewer, key: str, *texts: str) -> None:
    """As the browser reports a key."""
    reviewer.keys._handle_custom_msg({"key": key, "texts": list(texts)}, [])


def visible(*controls) -> list[bool]:
    return [control.layout.display != "none" for control in controls]


def test_keys_accept_reject_and_edit_and_go_on_to_the_next(reviewer: RationaleReviewer, table: Path) -> None:
    before, first = sha256(table), bytes(reviewer.picture.value)
    assert (
        reviewer.progress.value == "0 of 6 reviewed (0 accepted, 0 edited, 0 rejected)"
        and reviewer.of.value == "of 6"
    )
    with Image.open(io.BytesIO(first)) as image:
        assert image.format == "PNG" and image.width > 900
    press(reviewer, "a")
    assert reviewer.place.value == 2 and bytes(reviewer.picture.value) != first
    press(reviewer, "r")
    assert visible(reviewer.reason, reviewer.save, reviewer._fields["editing"]) == [True, True, False]
    press(reviewer, "a")  # letters are text while one writes
    press(reviewer, "save", *[""] * 4, "wrong relation")
    press(reviewer, "e")
    texts = [reviewer.parts[part].value for part in PARTS]
    assert texts[0] == reviewer.answer.rationale.observation and visible(reviewer._fields["editing"]) == [
        True
    ]
    press(reviewer, "save", "The spoon is held.", *texts[1:], "")  # what was typed comes with the key
    decisions = list(load_decisions(reviews_path(table)).values())
    assert [(one.verdict, one.reason, one.edits, one.reviewer) for one in decisions] == [
        ("accept", "", {}, "R"),
        ("reject", "wrong relation", {}, "R"),
        ("edit", "", {"observation": "The spoon is held."}, "R"),
    ]
    assert reviewer.progress.value == "3 of 6 reviewed (1 accepted, 1 edited, 1 rejected)"
    assert (reviewer.place.value, visible(reviewer._fields["editing"], reviewer.reason)) == (
        4,
        [False, False],
    )
    assert sha256(table) == before  # the teacher's text stays


def test_buttons_do_the_same_and_arrows_move(reviewer: RationaleReviewer, table: Path) -> None:
    press(reviewer, "ArrowRight")
    press(reviewer, "ArrowRight")
    press(reviewer, "ArrowLeft")
    assert reviewer.place.value == 2
    reviewer.reject.click()
    reviewer.cancel.click()
    assert not reviews_path(table).exists() and visible(reviewer.reason) == [False]
    reviewer.back.click()
    reviewer.back.click()
    assert reviewer.place.value == 1  # held at the first
    reviewer.edit.click()
    reviewer.parts["task_planning"].value = "Reach over the spoon."
    reviewer.save.click()
    assert [one.edits for one in load_decisions(reviews_path(table)).values()] == [
        {"task_planning": "Reach over the spoon."}
    ]


def test_a_new_widget_shows_what_was_decided(reviewer: RationaleReviewer, table: Path) -> None:
    press(reviewer, "e")
    press(reviewer, "save", "Mended.", *[reviewer.parts[part].value for part in PARTS[1:]])
    again = RationaleReviewer(DEMO, table)
    assert again.progress.value.startswith("1 of 6 reviewed") and again.decision.edits == {
        "observation": "Mended."
    }
    said = _texts(again.figure())
    assert (
        "Mended." in said
        and any("edited by R" in text for text in said)
        and any("(edited)" in text for text in said)
    )
    press(again, "e")
    assert again.parts["observation"].value == "Mended."
    press(again, "Escape")
    press(again, "a")  # accepting it again keeps the edit
    assert next(iter(load_decisions(reviews_path(table)).values())).edits == {"observation": "Mended."}


def test_filters_leave_what_the_audit_doubts_what_is_open_and_what_was_refused(
    reviewer: RationaleReviewer,
) -> None:
    reviewer.filter.value = "doubted"
    assert (reviewer.of.value, reviewer.answer) == ("of 1", reviewer._answers[WRONG])
    assert any(text.startswith("✗") for text in _texts(reviewer.figure()))
    reviewer.filter.value = "refused"
    assert (
        reviewer.answer.refusal.kind == "not_json"
        and "Refused (not_json): the answer is not JSON" in _texts(reviewer.figure())
    )
    press(reviewer, "a")
    assert "observation is empty" in reviewer.message.value
    press(reviewer, "e")
    press(reviewer, "save", *(f"{part} by hand" for part in PARTS))
    assert reviewer.decision.verdict == "edit" and "That was the last one" in reviewer.message.value
    reviewer.filter.value = "open"
    assert reviewer.of.value == "of 5"
    press(reviewer, "a")
    assert (reviewer.of.value, reviewer.place.value) == ("of 5", 2)  # the list stays, so that one can go back
    for _ in range(4):
        press(reviewer, "a")
    reviewer.filter.value = "all"
    reviewer.filter.value = "open"
    assert "no answer is not yet reviewed" in reviewer.message.value and reviewer.of.value == "of 6"


def test_mistakes_are_said_and_nothing_is_recorded(reviewer: RationaleReviewer, table: Path) -> None:
    press(reviewer, "r")
    press(reviewer, "save", *[""] * 5)
    assert "needs a reason" in reviewer.message.value and visible(reviewer.reason) == [True]
    press(reviewer, "Escape")
    held = Journal(reviews_path(table))
    press(reviewer, "a")
    assert "another run is writing" in reviewer.message.value and reviewer.place.value == 1
    held.close()
    press(reviewer, "a")
    assert reviewer.place.value == 2 and reviewer.message.value == ""
    for key in ("x", "", "Enter", "save"):
        press(reviewer, key)
    assert len(load_decisions(reviews_path(table))) == 1
    reviews_path(table).write_text("not JSON\n")
    with pytest.raises(KitError, match="line 1 is no decision"):
        RationaleReviewer(DEMO, table)


def test_an_answer_that_cannot_be_shown_is_not_decided(
    reviewer: RationaleReviewer, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = reviewer._request

    def lost() -> Request:
        if reviewer.place.value == 2:
            raise KitError("a picture is lost", "copy it")
        return request()

    monkeypatch.setattr(reviewer, "_request", lost)
    press(reviewer, "a")
    assert reviewer.place.value == 2 and bytes(reviewer.picture.value) == b""
    assert "a picture is lost" in reviewer.message.value and reviewer.progress.value.startswith("1 of 6")
    for key in ("a", "e", "r"):
        press(reviewer, key)
        assert "nothing is decided" in reviewer.message.value
        assert visible(*reviewer._fields.values()) == [False, False]
    assert len(load_decisions(reviews_path(table))) == 1
    press(reviewer, "ArrowRight")
    assert reviewer.place.value == 3 and reviewer.picture.value and reviewer.message.value == ""
    press(reviewer, "a")
    assert len(load_decisions(reviews_path(table))) == 2


def test_another_reviewers_decisions_are_taken_in(reviewer: RationaleReviewer, table: Path) -> None:
    other = RationaleReviewer(DEMO, table, reviewer="S")
    other.place.value = 3
    press(other, "a")
    press(reviewer, "a")
    assert reviewer.progress.value.startswith("2 of 6 reviewed")


def test_training_uses_the_decisions(table: Path, tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "mine")
    dataset = tmp_path / "mine"
    shutil.copy(table, dataset / "rationales/oracle-segment.parquet")
    reviewer = RationaleReviewer(dataset, dataset / "rationales/oracle-segment.parquet", keyframes=1)
    press(reviewer, "a")
    press(reviewer, "r")
    press(reviewer, "save", *[""] * 4, "wrong relation")
    examples = load_examples(dataset, "reviewed")
    accepted = reviewer._answers[0]
    assert {text for text in examples.rationales if text} == {accepted.rationale.text()}
    assert sum(map(bool, examples.rationales)) == accepted.end - accepted.start
    assert "1 accepted; 1 rejected; 3 not reviewed; 1 refused by the teacher" in examples.about


def test_the_path_of_the_actions_ends_where_the_tool_will_be(table: Path) -> None:
    """Along a whole segment, the drawn path ends near the tool's place in a later frame (the controller lags
    behind by a step).
    """
    dataset, pixels = open_dataset(DEMO), 160
    errors = []
    for answer in load_rationales(table):
        request = next(
            requests(
                dataset,
                "trajectory",
                2,
                [dataset.info(answer.episode)],
                lambda *_, one=answer: [(one.episode, one.start, one.end)],
            )
        )
        first, last = action_paths(dataset, request)
        assert len(first) == request.keyframe_indices[1] - request.start + 1 and len(last) == 2
        errors.append(float(abs(first[-1] - last[0]).max()))
    assert max(errors) < 0.08 * pixels
    figure = review_card(request, answer, paths=[first, last])
    assert "There is nothing to audit." in _texts(figure)


def test_a_real_robots_actions_are_drawn_beside_the_pictures(real_dataset: Path) -> None:
    dataset = open_dataset(real_dataset)
    info = dataset.episodes[0]
    request = next(requests(dataset, "trajectory", 3, [info], lambda *_: [(info.index, 10, 60)]))
    answer = load_rationales(DEMO / "rationales/oracle-segment.parquet")[0]
    assert action_paths(dataset, request) == []
    said = _texts(review_card(request, answer))
    assert (
        "50 actions together, as recorded" in said
        and sum(name in text for text in said for name in dataset.action_names) >= 6
    )


def _texts(figure) -> list[str]:
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text)]


def test_what_is_typed_is_not_left_by_going_elsewhere(reviewer: RationaleReviewer) -> None:
    for key in ("e", "r"):
        press(reviewer, key)
        assert reviewer.place.disabled and reviewer.filter.disabled
        press(reviewer, "Escape")
        assert not reviewer.place.disabled and not reviewer.filter.disabled
