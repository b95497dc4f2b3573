"""Pictures and tables of nothing say so in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from refinevla_kit.errors import KitError
from refinevla_kit.figures import (
    audit,
    faithfulness,
    interventions,
    overlays,
    published,
    sensitivity,
    success,
)

TESTS = ["measure", "stage", "thing", "episodes", "difference", "low", "high", "p_value"]
MADE: dict[str, Callable[[], Any]] = {
    "success_bars": lambda: success.success_bars([]),
    "success_table": lambda: success.success_table([]),
    "paired_differences": lambda: success.paired_differences([]),
    "attention_over_time": lambda: overlays.attention_over_time([], {}),
    "share_bars": lambda: overlays.share_bars(pd.DataFrame(columns=["policy", "thing", "share", "area"])),
    "teachers_compared": lambda: audit.teachers_compared(pd.DataFrame(columns=["teacher", "measure"])),
    "compare_teachers": lambda: audit.compare_teachers(pd.DataFrame()),
    "leaderboard": lambda: published.leaderboard([]),
    "sensitivity": lambda: sensitivity.sensitivity({}),
    "differences_table": lambda: faithfulness.differences_table(pd.DataFrame(columns=TESTS)),
}


@pytest.mark.parametrize("name", MADE)
def test_nothing_to_show_is_said(name: str) -> None:
    with pytest.raises(KitError, match="nothing to show -> give what was recorded, measured or published"):
        MADE[name]()


@pytest.mark.parametrize("measure", faithfulness.MEASURE_LABELS)
def test_nothing_was_covered(measure: str) -> None:
    with pytest.raises(KitError, match="nothing to show"):
        faithfulness.cover_bars(pd.DataFrame(columns=["policy", "covered", "fill", "area", measure]))


@pytest.mark.parametrize("measure", interventions.MEASURES)
def test_nothing_was_changed(measure: str) -> None:
    with pytest.raises(KitError, match="nothing to show"):
        interventions.by_layer(pd.DataFrame(columns=["policy", "read", "layer", measure]), "read")
