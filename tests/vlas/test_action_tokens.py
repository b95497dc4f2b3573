"""Actions as tokens: what goes in comes out within half a bin, and zero comes out as zero."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from refinevla_kit.errors import KitError
from refinevla_kit.vlas.action_tokens import BINS, UniformBins

BOUNDS = UniformBins((0.04, 0.04, 0.04, 0.01, 0.01, 0.3, 1.0))
ACTIONS = hnp.arrays(np.float32, (7,), elements=st.floats(-1, 1, width=32)).map(
    lambda unit: unit * np.array(BOUNDS.limits, np.float32)
)


@given(ACTIONS)
def test_a_decoded_action_is_within_half_a_bin(action: np.ndarray) -> None:
    error = np.abs(BOUNDS.decode(BOUNDS.encode(action)) - action)
    assert (error <= np.array(BOUNDS.limits) / BINS * 1.0001 + 1e-7).all()


@given(hnp.arrays(np.int64, (5, 7), elements=st.integers(0, BINS - 1)))
def test_encoding_inverts_decoding_exactly(bins: np.ndarray) -> None:
    assert (BOUNDS.encode(BOUNDS.decode(bins)) == bins).all()


def test_zero_can_be_said() -> None:
    assert (BOUNDS.decode(BOUNDS.encode(np.zeros(7))) == 0).all()


def test_the_limits_ignore_the_rarest_hundredth() -> None:
    actions = np.tile(np.linspace(-1, 1, 1001)[:, None], (1, 7))
    actions[0] = 50.0
    assert np.allclose(UniformBins.fit(actions).limits, 0.98, atol=0.01)


def test_a_dimension_that_never_moves_still_decodes_to_rest() -> None:
    bins = UniformBins.fit(np.zeros((10, 7)))
    assert (bins.decode(bins.encode(np.zeros((1, 7)))) == 0).all()


def test_statistics_round_trip_and_refuse_another_scheme() -> None:
    assert UniformBins.from_dict(BOUNDS.to_dict()) == BOUNDS
    with pytest.raises(KitError, match="256 bins"):
        UniformBins.from_dict({"kind": "uniform", "bins": 256, "limits": [1.0] * 7})


def test_a_token_outside_the_bins_is_an_error() -> None:
    with pytest.raises(KitError, match="outside"):
        BOUNDS.decode(np.full(7, BINS))
