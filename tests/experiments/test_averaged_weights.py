"""The trainings of which several shares of the base are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.averaged_weights import configs_of, examples_of, find_summary
from experiments.playing import play_each
from refinevla_kit.errors import KitError
from refinevla_kit.settings import REPOSITORY, read_settings
from refinevla_kit.training.examples import SHIPPED_BASE


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


def test_the_dataset_is_read_as_the_run_was_told_and_mixed_as_it_was() -> None:
    demo = str(REPOSITORY / "data" / "demo")
    plain = examples_of({"dataset": demo}, None)
    turned = examples_of({"dataset": demo, "gripper": -1, "camera": None}, None)
    np.testing.assert_array_equal(turned.actions[:, 6], -plain.actions[:, 6])
    mixed = examples_of({"dataset": demo, "mixture": {demo: 0.25}}, None)
    assert mixed.shares == (0.75, 0.25) and len(mixed) == 2 * len(plain)


@pytest.mark.slow
def test_of_what_was_played_before_only_what_is_asked_for_is_taken(tmp_path: Path) -> None:
    players, task = {"base": SHIPPED_BASE}, "widowx_carrot_on_plate"
    first, again = ([one.start for one in play_each(players, tmp_path, task, n, workers=0)] for n in (2, 1))
    assert len(first) == 2 and again == first[:1]
