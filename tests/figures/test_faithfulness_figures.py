"""The pictures show the numbers they are given, on one scale."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from refinevla_kit.attention.faithfulness import Curves
from refinevla_kit.figures.faithfulness import (
    FILL_LABELS,
    cover_bars,
    deletion_insertion,
    differences_table,
)

FRACTIONS = np.linspace(0, 1, 5)


def curve(depth: float) -> Curves:
    fall = -depth * FRACTIONS
    return Curves(FRACTIONS, fall, fall[::-1] / 2, fall / 2)


def test_curves_are_means_over_episodes_on_one_scale() -> None:
    figure = deletion_insertion(
        {"action_only": [curve(2), curve(4)], "with_reasoning": [curve(1), curve(1)]}, "title"
    )
    deletion, insertion = figure.axes
    assert deletion.get_ylim() == insertion.get_ylim() and deletion.get_ylabel().endswith("(nats)")
    np.testing.assert_allclose(deletion.lines[0].get_ydata(), -3 * FRACTIONS)
    np.testing.assert_allclose(deletion.lines[1].get_ydata(), -1.5 * FRACTIONS)  # random orders
    np.testing.assert_allclose(insertion.lines[1].get_ydata(), -1.5 * FRACTIONS[::-1])
    assert [text.get_text() for text in deletion.get_legend().get_texts()] == [  # type: ignore[union-attr]
        "actions only: +0.75 nats",
        "with reasoning loss: +0.25 nats",
        "random order",
    ]
    assert (
        len(deletion.collections) == 2
        and len(deletion_insertion({"one": [curve(1)]}).axes[0].collections) == 0
    )  # a band needs two episodes


@pytest.mark.parametrize("measure", ["total_variation", "action_change"])
def test_a_bar_a_policy_thing_and_fill(measure: str) -> None:
    rows = [
        (policy, thing, fill, 0.1 * number, 0.1 * number - 0.05, 0.1 * number + 0.05, area, 3)
        for number, (policy, thing, fill, area) in enumerate(
            (policy, thing, fill, area)
            for policy in ("action_only", "with_reasoning")
            for thing, area in (("source", 0.02), ("image", 1.0))
            for fill in ("mean", "blur")
        )
    ]
    summary = pd.DataFrame(
        rows, columns=["policy", "covered", "fill", measure, "low", "high", "area", "episodes"]
    )
    (axes,) = cover_bars(summary).axes
    assert sorted(round(bar.get_height(), 6) for bar in axes.patches if bar.get_height()) == [
        round(0.1 * i, 6) for i in range(1, 8)
    ]  # type: ignore
    assert [text.get_text() for text in axes.get_xticklabels()] == [
        "object to move\n2.0% of the area",
        "the whole picture\n100.0% of the area",
    ]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        FILL_LABELS["mean"],
        FILL_LABELS["blur"],
    ]  # type: ignore[union-attr]


def test_differences_are_a_column_a_thing_with_their_p_value() -> None:
    tests = pd.DataFrame(
        {
            "measure": "auc",
            "stage": ["all", "all", "grasp"],
            "thing": ["source", "target", "source"],
            "difference": [0.012, -0.3, np.nan],
            "low": [-0.1, -0.4, np.nan],
            "high": [0.124, -0.2, np.nan],
            "p_value": [0.25, 0.0004, np.nan],
            "episodes": [3, 3, 0],
        }
    )
    table = differences_table(tests)
    assert list(table.columns) == ["object to move", "where it goes"]
    assert (
        table.loc[("auc", "all"), "object to move"] == "+0.012 (-0.100 to +0.124, p 0.250)"
        and table.loc[("auc", "all"), "where it goes"] == "-0.300 (-0.400 to -0.200, p < 0.001)"
    )
    assert (
        table.loc[("auc", "grasp"), "object to move"] == "not visible"
        and table.loc[("auc", "grasp"), "where it goes"] == ""
    )
    one = differences_table(tests.assign(p_value=np.nan, episodes=1))
    assert one.loc[("auc", "all"), "object to move"] == "+0.012 (one episode)"
