"""What analysis adds to the package's statistics: the change between settings by seed, and words for an
interval that were fixed before.
"""

import pytest

from experiments.analysis import change_between_settings, verdict
from experiments.seeds import compare_seeds
from refinevla_kit.evaluation.training_seeds import Estimate
from tests.experiments.test_seeds import TASKS, played


def test_the_change_between_settings_is_taken_seed_by_seed() -> None:
    carrot = TASKS[0]
    records = [
        *played("a", 0, {carrot: "1100"}),
        *played("b", 0, {carrot: "1000"}),
        *played("a", 1, {carrot: "1100"}),
        *played("b", 1, {carrot: "1100"}),
        *played("a", 0, {carrot: "1111"}, "lighting_darker"),
        *played("b", 0, {carrot: "1000"}, "lighting_darker"),
    ]
    found = change_between_settings(records, "a", "b")
    assert (
        found is not None
        and found.seeds == (0,)
        and found.differences == pytest.approx([0.75 - 0.25])
        and found.pooled is None
    )
    assert change_between_settings(records[:16], "a", "b") is None


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.01, 0.09, "a gain, as large as claimed or not told apart from it"),
        (0.06, 0.09, "a gain, as large as claimed or not told apart from it"),
        (0.01, 0.04, "a gain, smaller than claimed"),
        (-0.04, 0.04, "no gain shown; the claimed one is excluded"),
        (-0.04, 0.06, "undecided: neither no gain nor the claimed one is excluded"),
        (-0.09, -0.01, "a loss"),
    ],
)
def test_what_an_interval_says_was_fixed_before(low: float, high: float, words: str) -> None:
    assert verdict(Estimate((low + high) / 2, low, high, 0.1), 0.05) == words


def test_one_training_run_gives_no_verdict() -> None:
    records = [*played("a", 0, {TASKS[0]: "1111"}), *played("b", 0, {TASKS[0]: "1000"})]
    assert "one training run" in verdict(compare_seeds(records, "a", "b").estimate, 0.05)
