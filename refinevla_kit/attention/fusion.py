"""Many attention maps as one: for each patch, the strongest few of what layers, heads and action tokens give
it.

ReFineVLA's attention figures fuse the top k; the paper's own text was not read, so which k of what it takes
is not known. This is the kit's reading: an object that a few heads look at stays visible, where a mean over
all heads dilutes it.
"""

from __future__ import annotations

import numpy as np

from refinevla_kit.errors import KitError
from refinevla_kit.policies.contract import Array


def fuse_top(patches: Array, k: int = 3, first_layer: int = 0) -> Array:
    """float32 (P,): for each patch the mean of its k largest values, over layers from `first_layer` on, heads
    and action tokens; it adds up to 1.

    Args:
        patches: float (layers, heads, A, P), attention to each patch, as `Capture.patches`. Each map is first
            brought to a sum of 1, so that what goes to words does not weigh.

    Raises:
        KitError: fewer than k maps.
    """
    maps = np.asarray(patches[first_layer:], np.float64).reshape(
        -1, patches.shape[-1]
    )  # layers * heads * A, P
    if not 1 <= k <= len(maps):
        raise KitError(f"the {k} strongest of {len(maps)} attention maps", f"choose 1 to {len(maps)}")
    maps = maps / np.maximum(maps.sum(1, keepdims=True), 1e-12)
    strongest = np.partition(maps, len(maps) - k, axis=0)[len(maps) - k :].mean(0)
    return np.asarray(strongest / strongest.sum(), np.float32)
