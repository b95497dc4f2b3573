"""Overlays show the numbers they are given: heat on the right pixels, one scale for compared panels, bars as
long as the shares.
"""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from refinevla_kit.figures.overlays import (
    draw_overlay,
    heated,
    outline_layer,
    share_bars,
    times_even,
    token_grid,
)

Array = NDArray[np.generic]
IMAGE = np.full((120, 160, 3), 200, np.uint8)


def masks() -> dict[str, Array]:
    found = {name: np.zeros((120, 160), bool) for name in ("source", "target", "gripper", "arm")}
    for i, mask in enumerate(found.values()):
        mask[20 * i : 20 * i + 15, 40 : 60 + 10 * i] = True
    return found


def maps(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {"action_only": rng.random((6, 8)), "with_reasoning": rng.random((6, 8)) ** 8}


def drawn(figure: Figure) -> Array:
    packed = io.BytesIO()
    figure.savefig(packed, format="rgba", dpi=50)
    return np.frombuffer(packed.getvalue(), np.uint8)


def test_heat_is_in_multiples_of_even_attention() -> None:
    patches = np.zeros((6, 8))
    patches[1, 2] = 0.02  # all there is
    heat = times_even(patches, IMAGE.shape)
    assert heat[30, 50] == pytest.approx(48) and heat[30, 70] == 0
    assert heat.mean() == pytest.approx(1)


def test_heat_covers_its_patch_and_nothing_else() -> None:
    heat = np.zeros((120, 160))
    heat[20:40, 40:60] = 4
    axes = Figure().subplots()
    draw_overlay(axes, IMAGE, heat, {}, Normalize(0, 4), opacity=0.5)
    alpha = np.asarray(axes.images[1].get_alpha())
    assert (alpha[20:40, 40:60] == 0.5).all() and alpha.sum() == 0.5 * 400


def test_without_opacity_the_picture_is_as_the_policy_saw_it() -> None:
    axes = Figure().subplots()
    draw_overlay(axes, IMAGE, np.full((120, 160), 4.0), {}, Normalize(0, 4), opacity=0.0)
    np.testing.assert_array_equal(axes.images[0].get_array(), IMAGE)
    assert not np.any(axes.images[1].get_alpha())


def test_outlines_follow_the_masks_edges() -> None:
    layer = outline_layer({"source": masks()["source"]}, (120, 160), factor=4, thickness=2)
    opaque = layer[..., 3] == 255
    large = masks()["source"].repeat(4, 0).repeat(4, 1)
    assert opaque.any() and not (opaque & ~large).any()
    assert not opaque[20:40, 180:220].any()  # the inside stays clear


def test_token_grid_has_one_scale() -> None:
    stacks = {name: np.stack([one] * 7) for name, one in maps().items()}
    figure = token_grid(IMAGE, stacks, ("x", "y", "z", "roll", "pitch", "yaw", "gripper"), masks(), "title")
    panels = [axes for axes in figure.axes if len(axes.images) == 3]
    assert len(panels) == 14
    assert len({id(panel.images[1].norm) for panel in panels}) == 1
    assert panels[0].images[1].norm.vmax >= max(times_even(one, IMAGE.shape).max() for one in maps().values())
    assert drawn(figure).any()


def test_share_bars_are_as_high_as_the_shares() -> None:
    rows = [
        (policy, thing, share, share - 0.01, share + 0.01, 0.03, share / 0.03, 0.8, 3)
        for policy, share in (("action_only", 0.05), ("with_reasoning", 0.12))
        for thing in ("source", "target", "rest")
    ]
    columns = ["policy", "thing", "share", "low", "high", "area", "ratio", "image_share", "episodes"]
    axes = share_bars(pd.DataFrame(rows, columns=columns)).axes[0]
    assert sorted(round(bar.get_height(), 3) for bar in axes.patches) == [
        0.05,
        0.05,
        0.12,
        0.12,
    ]  # the rest is written, not drawn
    assert "everything else: 5% (actions only), 12% (with reasoning loss)" in axes.get_title(loc="left")
    single = pd.DataFrame(rows, columns=columns).assign(
        low=np.nan, high=np.nan, ratio=np.nan
    )  # one episode, a hidden thing
    assert drawn(share_bars(single)).any()


def test_a_video_frame_glows_where_attention_is_and_nowhere_else() -> None:
    patches = np.zeros((6, 8))
    patches[1, 2] = 1.0
    frame = heated(IMAGE, patches, factor=2)
    assert frame.shape == (240, 320, 3) and frame.dtype == np.uint8
    glowing = (frame != frame[-1, -1]).any(axis=2)
    rows, columns = np.nonzero(glowing)
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (
        40,
        80,
        80,
        120,
    )  # the patch's pixels, doubled
