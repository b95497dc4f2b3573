"""Texts stand beside each other with each statement marked, and rates by kind are those of the records."""

from __future__ import annotations

from matplotlib.colors import to_hex

from refinevla_kit.episodes import open_dataset
from refinevla_kit.evaluation.written import by_kind, judged
from refinevla_kit.figures.style import GREEN, VERMILION
from refinevla_kit.figures.written import texts_beside, truth_by_kind
from refinevla_kit.policies import load_policy
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.teacher import OracleTeacher
from refinevla_kit.teacher.requests import without_pictures

DATA = REPOSITORY / "data"


def test_true_and_false_statements_are_marked() -> None:
    dataset, policy = open_dataset(DATA / "demo"), load_policy(DATA / "checkpoints" / "with_reasoning")
    first, last = without_pictures(dataset, 0, [(0, 0, 1), (0, 14, 15)])
    true = judged(first, OracleTeacher().annotate(first).result.text(), policy)
    false = judged(first, OracleTeacher().annotate(last).result.text(), policy)
    (image,) = dataset.images(0, [0])
    figure = texts_beside(
        image, {"teacher": true, "with_reasoning": false, "action_only": judged(first, "", policy)}
    )
    columns = [{text.get_text(): to_hex(text.get_color()) for text in axes.texts} for axes in figure.axes[1:]]
    marked = [
        {colour for text, colour in column.items() if text[:1] == mark} for column, mark in zip(columns, "✓✗")
    ]
    assert marked == [{to_hex(GREEN)}, {to_hex(VERMILION)}]
    assert not any(text.startswith("✗") for text in columns[0])
    assert any("with reasoning" in text.lower() and "true" in text for text in columns[1])
    assert "(nothing)" in columns[2] and "no statement was read" in columns[2]
    rates = truth_by_kind({"teacher": [true], "with_reasoning": [false]})
    named = [text.get_text() for text in rates.axes[0].get_yticklabels()]
    assert set(named) == {kind.replace("_", " ") for kind in {**by_kind([true]), **by_kind([false])}} | {
        "all"
    }
