"""What a printed percentage can be, and that what is shipped about the published ones is what is found."""

from __future__ import annotations

import json

import pytest

from experiments.printed_numbers import (
    counts_behind,
    find_inconsistencies,
    fitting_episodes,
    impossible,
    impossible_mean,
    listed,
)
from refinevla_kit.evaluation.published import INCONSISTENCIES, load_published
from refinevla_kit.tasks import WIDOWX_TASKS
from tests.evaluation.test_published import value


def test_the_shipped_inconsistencies_are_those_of_the_published_numbers() -> None:
    shipped = json.loads(INCONSISTENCIES.read_text(encoding="utf-8"))["inconsistencies"]
    assert listed(find_inconsistencies(load_published())) == shipped


@pytest.mark.parametrize(
    ("percent", "episodes", "counts"),
    [
        (38.1, 21, [8]),
        (38.1, 24, []),
        (4.1, 24, [1]),
        (4.2, 24, [1]),
        (4.3, 24, []),
        (100.0, 24, [24]),
        (0.0, 24, [0]),
        (99.9, 24, []),
        (6.2, 16, [1]),
        (6.3, 16, [1]),
        (6.1, 16, []),
        (38.1, 2000, [761, 762, 763]),
    ],
)
def test_a_percentage_may_be_rounded_either_way_or_cut_off(
    percent: float, episodes: int, counts: list[int]
) -> None:
    """1/24 = 4.1667 prints as 4.2 or, cut off, 4.1. 1/16 = 6.25 prints as 6.3 (half up) or 6.2 (half to even,
    cut off).
    """
    assert counts_behind(percent, episodes) == counts
    assert impossible(percent, episodes) == (not counts)


def test_decimals_decide_what_is_possible() -> None:
    assert not impossible(38, 24, decimals=0) and impossible(38.10, 24, decimals=2)


def test_the_numbers_of_episodes_that_a_row_can_come_from_are_found() -> None:
    """ReFineVLA's WidowX cells are multiples of 1/21, Octo's of 1/72 (three seeds), the baselines' of
    1/24.
    """
    for model, episodes in (("ReFineVLA", 21), ("Octo-Small", 72), ("SpatialVLA (fine-tuning)", 24)):
        table = "ReFineVLA Table 1" if model == "ReFineVLA" else "SpatialVLA README"
        cells = [
            value(table=table, robot="widowx", metric="success", model=model, task=task.name)
            for task in WIDOWX_TASKS
        ]
        assert fitting_episodes(cells, 24)[0] == episodes


def test_an_average_of_printed_cells_is_not_called_impossible() -> None:
    """RT-1-X on the WidowX: 1 of 96 is 1.04, but the mean of the printed 0, 4.2, 0, 0 is 1.05 and prints as
    1.1.
    """
    assert not impossible_mean(1.1, [(0.0, 24), (4.2, 24), (0.0, 24), (0.0, 24)], [1, 1, 1, 1])
    assert impossible_mean(1.2, [(0.0, 24), (4.2, 24), (0.0, 24), (0.0, 24)], [1, 1, 1, 1])
