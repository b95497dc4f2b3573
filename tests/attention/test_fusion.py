"""Fusing: a patch is as bright as the strongest few maps make it, whatever each map has left for the
picture.
"""

import numpy as np
import pytest

from refinevla_kit.attention.flows import fuse_top
from refinevla_kit.errors import KitError


def test_what_few_heads_look_at_stays_visible() -> None:
    patches = np.full((2, 4, 3, 10), 0.1)
    patches[1, 2, 0] = 0
    patches[1, 2, 0, 7] = 1  # one map of 24 looks at one patch alone
    fused = fuse_top(patches, k=1)
    assert (
        fused.argmax() == 7
        and fused[7] == pytest.approx(1 / (1 + 9 * 0.1))
        and fused.sum() == pytest.approx(1)
    )
    assert fuse_top(patches, k=24)[7] == pytest.approx((1 + 23 * 0.1) / 24), "all of them: the mean"


def test_what_goes_to_words_does_not_weigh_and_lower_layers_can_be_left_out() -> None:
    rng = np.random.default_rng(0)
    patches = rng.random((2, 2, 1, 6))
    patches[0] *= 0.01
    np.testing.assert_allclose(
        fuse_top(patches, 2), fuse_top(patches / patches.sum(-1, keepdims=True), 2), rtol=1e-5
    )
    np.testing.assert_allclose(fuse_top(patches, 2, first_layer=1), fuse_top(patches[1:], 2))
    with pytest.raises(KitError, match="the 3 strongest of 2 attention maps"):
        fuse_top(patches, 3, first_layer=1)
