"""Teachers compared from audits: counts, intervals and refusals in a table and a picture."""

from __future__ import annotations

from itertools import product

import pandas as pd
import pytest

from refinevla_kit.evaluation.intervals import wilson
from refinevla_kit.figures.audit import compare_teachers, teachers_compared, teachers_table
from refinevla_kit.teacher.audit import COUNTS
from refinevla_kit.teacher.schema import PARTS


def audits(teacher: str, false: int, refusals: tuple[str, ...]) -> pd.DataFrame:
    """As `audit_dataset` gives them: ten answers, each part with 4 true claims, the first `false` answers
    with one false claim.
    """
    rows = []
    for index in range(10):
        refusal = refusals[index] if index < len(refusals) else ""
        counts = {f"{part}_{name}": 0 for part, name in product(PARTS, COUNTS)}
        if not refusal:
            counts |= {f"{part}_true": 4 for part in PARTS} | {
                "task_planning_false": int(index < false),
                "observation_unread": 1,
            }
        rows.append(
            {
                "episode": 0,
                "start": index,
                "end": index + 1,
                "teacher": teacher,
                "refusal": refusal,
                "doubt": index < false and not refusal,
                "doubts": "",
                **counts,
            }
        )
    return pd.DataFrame(rows)


def test_teachers_are_compared_with_intervals_and_refusals_by_kind() -> None:
    comparison = compare_teachers([audits("one", 3, ()), audits("two", 0, ("safety", "safety", "quota"))])
    value = comparison.set_index(["teacher", "measure"])
    assert value.loc[("one", "task_planning"), ["count", "of"]].tolist() == [40, 43]
    assert value.loc[("one", "task_planning"), ["low", "high"]].tolist() == pytest.approx(wilson(40, 43))
    assert value.loc[("one", "all parts"), ["count", "of"]].tolist() == [160, 163]
    assert value.loc[("one", "checked"), ["count", "of"]].tolist() == [163, 173]
    assert value.loc[("one", "doubted"), ["count", "of"]].tolist() == [3, 10]
    assert value.loc[("two", "doubted"), ["count", "of"]].tolist() == [0, 7]
    assert value.loc[("two", "refused"), ["count", "of"]].tolist() == [3, 10]
    assert value.loc[("two", "refused: safety"), "count"] == 2
    assert teachers_table(comparison).loc["one", "rationales doubted"] == "30% (11-60) of 10"
    assert teachers_table(comparison).loc["one", "for safety"] == "-"


def test_a_teacher_that_only_refuses_has_no_shares() -> None:
    comparison = compare_teachers(audits("mute", 0, ("server",) * 10))
    assert comparison.set_index("measure").loc["observation", "of"] == 0
    assert teachers_table(comparison).loc["mute", "observation"] == "-"
    teachers_compared(comparison).draw_without_rendering()


def test_texts_without_a_checked_claim_have_no_score() -> None:
    table = audits("vague", 0, ())
    for part in PARTS:
        table[f"{part}_undecided"], table[f"{part}_true"] = 3, 0
    comparison = compare_teachers([table, audits("one", 3, ())])
    line = teachers_table(comparison).loc["vague"]
    assert line["all parts"] == "nothing could be checked"
    assert (line["task planning"], line["claims checked"], line["rationales doubted"]) == (
        "-",
        "none of 130",
        "-",
    )
    figure = teachers_compared(comparison)
    assert "nothing could be checked" in [text.get_text() for text in figure.axes[0].texts]
    table.loc[0, "doubt"] = True  # of an undecided claim: a person should look, though nothing is false
    assert teachers_table(compare_teachers(table)).loc["vague", "rationales doubted"] == "10% (2-40) of 10"


def test_the_picture_shows_every_share_with_its_interval() -> None:
    comparison = compare_teachers([audits("one", 3, ()), audits("two", 0, ("safety", "safety", "quota"))])
    figure = teachers_compared(comparison)
    figure.draw_without_rendering()
    left, right = figure.axes
    points = [line.get_xdata()[0] for line in left.lines if line.get_marker() == "o"]
    assert points == pytest.approx([1, 1, 1, 40 / 43, 160 / 163, 1, 1, 1, 1, 1])  # one, then two
    spans = [tuple(line.get_xdata()) for line in left.lines if line.get_marker() != "o"]
    assert all(low - 1e-9 <= point <= high + 1e-9 for (low, high), point in zip(spans, points, strict=True))
    assert [text.get_text() for text in right.get_yticklabels()] == [
        "claims checked",
        "rationales doubted",
        "answers refused",
        "for safety",
        "for quota",
    ]
