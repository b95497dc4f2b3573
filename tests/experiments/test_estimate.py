"""The difference that a plan can find is found as often as it says."""

import numpy as np
import pytest

from experiments.estimate import detectable
from refinevla_kit.evaluation.training_seeds import over_seeds


def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    rng, seeds, starts, discordant, between = np.random.default_rng(1), 6, 144, 0.3, 0.03
    gain = detectable(seeds, starts, discordant, between)
    values = gain + np.sqrt(discordant / starts + between**2) * rng.standard_normal((2000, seeds))
    found = [over_seeds(row.tolist()).p_value < 0.05 for row in values]
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)
