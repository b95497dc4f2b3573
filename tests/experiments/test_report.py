"""The main picture of an experiment: marks lie at the numbers of the statistics."""

import numpy as np
import pytest

from experiments.report import seed_differences
from experiments.seeds import compare_seeds
from refinevla_kit.tasks import VISUAL_MATCHING
from tests.figures.test_experiment_figures import RECORDS


def test_a_difference_is_drawn_with_its_seeds_and_its_interval_over_them() -> None:
    found = compare_seeds(RECORDS, "with_reasoning", "action_only", setting=VISUAL_MATCHING)
    (axes,) = seed_differences({"visual matching": {"reasoning minus actions": found}}, 0.05).axes
    lines = {
        line.get_marker(): np.asarray(line.get_xdata())
        for line in axes.lines
        if line.get_marker() in ("o", "|")
    }
    assert lines["|"] == pytest.approx(found.differences) and lines["o"] == pytest.approx(
        [found.estimate.mean]
    )
    assert any(
        np.asarray(line.get_xdata()) == pytest.approx([found.estimate.low, found.estimate.high])
        for line in axes.lines
    )
    texts = [text.get_text() for text in axes.texts]
    assert (
        f"{100 * found.estimate.mean:+.1f}" in texts
        and "the paper's +5.0" in texts
        and "visual matching" in texts
    )
