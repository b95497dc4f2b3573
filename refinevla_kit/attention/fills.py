"""What stands in for a part of a picture that is taken away: the picture's mean colour, the picture blurred,
or a colour of one's choice.

No fill is neutral: a flat patch is itself an edge that a policy never saw, a blur leaves large shapes in
place. So effects are reported with both.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import Array

MEAN, BLUR = FILLS = ("mean", "blur")
Fill = str | tuple[int, int, int]
BLUR_SHARE = (
    1 / 12
)  # standard deviation of the blur in picture heights: half an object's size and more at the WidowX's camera


def filling(image: Array, fill: Fill = MEAN) -> Array:
    """The picture to paste from: uint8 (H, W, 3) -> uint8 (H, W, 3).

    Args:
        fill: "mean", "blur", or a colour (r, g, b).

    Raises:
        KitError: another name.
    """
    image = np.asarray(image)
    if fill == BLUR:
        sigma = BLUR_SHARE * image.shape[0]
        return np.asarray(
            ndimage.gaussian_filter(image.astype(np.float32), (sigma, sigma, 0), mode="nearest")
            .round()
            .astype(np.uint8)
        )
    if isinstance(fill, str) and fill != MEAN:
        raise KitError(f"unknown fill {fill!r}", f"choose {MEAN!r}, {BLUR!r} or a colour (r, g, b)")
    colour = image.reshape(-1, 3).mean(0).round() if fill == MEAN else np.asarray(fill)
    return np.broadcast_to(colour.astype(np.uint8), image.shape).copy()


def masked(image: Array, mask: Array, fill: Fill = MEAN) -> Array:
    """The picture with the pixels of a mask (bool (H, W)) taken away."""
    return np.where(np.asarray(mask, bool)[..., None], filling(image, fill), image)
