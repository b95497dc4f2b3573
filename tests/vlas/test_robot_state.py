"""The robot's own state as features: one rotation has one description, whatever the sign of its
quaternion.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from refinevla_kit.errors import KitError
from refinevla_kit.vlas.compact_parts import FEATURES, PROPRIOCEPTION, state_features


@given(st.integers(0, 10_000))
def test_features_are_positions_columns_of_rotations_and_the_way_still_to_go(seed: int) -> None:
    rng = np.random.default_rng(seed)
    measured, commanded = Rotation.random(3, rng=rng), Rotation.random(3, rng=rng)
    places, openings = rng.normal(size=(3, 6)), rng.random((3, 1))
    turned = (each.as_quat(scalar_first=True) for each in (measured, commanded))
    state = np.concatenate([places[:, :3], next(turned), openings, places[:, 3:], next(turned)], axis=1)
    found = state_features(state)
    assert found.shape == (3, FEATURES) and found.dtype == np.float32
    np.testing.assert_allclose(found[:, :3], places[:, :3], rtol=1e-5)
    np.testing.assert_allclose(
        found[:, 3:9].reshape(3, 2, 3), measured.as_matrix()[:, :, :2].transpose(0, 2, 1), atol=1e-5
    )
    np.testing.assert_allclose(
        found[:, 13:19].reshape(3, 2, 3), commanded.as_matrix()[:, :, :2].transpose(0, 2, 1), atol=1e-5
    )
    np.testing.assert_allclose(found[:, 19:], places[:, 3:] - places[:, :3], atol=1e-5)
    negated = state.copy()
    negated[:, 3:7] *= -1
    negated[:, 11:] *= -1
    np.testing.assert_allclose(state_features(negated), found, atol=1e-6)


def test_another_number_of_readings_is_refused() -> None:
    with pytest.raises(KitError, match=rf"shape \(1, 8\) was given to a policy that reads {PROPRIOCEPTION}"):
        state_features(np.zeros((1, 8)))
