"""The trainings of which several shares of the base are compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.averaged_weights import configs_of, find_summary
from refinevla_kit.errors import KitError
from refinevla_kit.settings import read_settings


def test_both_policies_are_trained_as_notebook_2_trained_them(tmp_path: Path) -> None:
    settings = read_settings("02_fine_tuning", "laptop", tmp_path, 3, order="rationale_first", steps=7)
    settings.write_summary(settings.as_dict())
    control, reasoning = configs_of(find_summary(tmp_path)).values()
    assert (reasoning.steps, reasoning.seed, reasoning.learning_rate) == (7, 3, settings.learning_rate)
    assert reasoning.order == "rationale_first" and reasoning.lambda_reasoning == settings.lambda_reasoning
    assert control.order == "action_first" and control.lambda_reasoning == 0
    assert control.base_share == reasoning.base_share == settings.base_share


def test_a_folder_without_such_a_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"there is no .*summary.json -> run notebooks 1 and 2"):
        find_summary(tmp_path)
