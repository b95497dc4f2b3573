"""Overlays show the numbers they are given: heat on the right pixels, one scale for compared panels, bars as
long as the shares, the brightest patch where it is, curves as they were.
"""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from refinevla_kit.attention.grounding import areas, pointing, shares
from refinevla_kit.errors import KitError
from refinevla_kit.figures.overlays import (
    SHOWN,
    Line,
    Plot,
    View,
    comparison,
    draw_overlay,
    heated,
    peak,
    scale_end,
    share_bars,
    times_even,
    token_grid,
)
from refinevla_kit.figures.style import save_figure

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
    axes = Figure().subplots()
    draw_overlay(axes, IMAGE, np.zeros((120, 160)), {"source": masks()["source"]}, Normalize(0, 4))
    (drawn,) = axes.collections
    edge = np.concatenate([path.vertices for path in drawn.get_paths()])  # x, y
    assert (edge.min(0), edge.max(0)) == (pytest.approx([40, 0]), pytest.approx([60, 15]))
    inside = (edge > [41, 1]).all(1) & (edge < [59, 14]).all(1)
    assert not inside.any()  # the inside stays clear


def test_token_grid_has_one_scale() -> None:
    stacks = {name: np.stack([one] * 7) for name, one in maps().items()}
    figure = token_grid(IMAGE, stacks, ("x", "y", "z", "roll", "pitch", "yaw", "gripper"), masks(), "title")
    panels = [axes for axes in figure.axes if len(axes.images) == 2]
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


def test_share_bars_of_a_scene_with_other_things_name_them() -> None:
    columns = ["policy", "thing", "share", "low", "high", "area", "ratio"]
    rows = [("a", thing, 0.1, 0.05, 0.2, 0.1, 1.0) for thing in ("green block", "target", "source", "rest")]
    axes = share_bars(pd.DataFrame(rows, columns=columns)).axes[0]
    names = [text.get_text() for text in axes.get_xticklabels()]
    assert names == ["object to move", "where it goes", "green block"] and len(axes.patches) == 3


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


Array = NDArray[np.generic]
AREA, FOUND = (
    Line("area", "#222222", np.array([0.1, 0.2, np.nan]), dashed=True),
    Line("a", "#0072b2", np.array([0.1, 0.3, 0.2])),
)
CURVES = Plot("gripper", (AREA, FOUND), 0, 0.5, share=True)


def test_shares_of_the_visible_frame_are_the_bars() -> None:
    side = comparison(View(IMAGE, maps(), masks(), "title")).axes[-1]
    area, bars = areas(masks()), iter(side.patches)
    for row, thing in enumerate(SHOWN):
        assert side.lines[row].get_xdata()[0] == pytest.approx(area[thing])
        for one in maps().values():
            assert next(bars).get_width() == pytest.approx(float(shares(one, masks())[thing]))  # type: ignore[attr-defined]
    assert "everything else" in side.get_xlabel()


def test_compared_panels_share_one_scale() -> None:
    view = View(IMAGE, maps(), masks())
    first, second = (axes for axes in comparison(view).axes if len(axes.images) == 2)
    assert first.images[1].norm is second.images[1].norm and first.images[1].norm.vmax == view.top


def test_the_brightest_patch_is_marked_and_scored_as_in_the_pointing_game() -> None:
    one = np.ones((6, 8))
    one[1, 2] = 9.0  # rows 20 to 40, columns 40 to 60: three quarters of it the target's
    found = peak(one, masks())
    assert (found.row, found.column, found.times) == (1, 2, pytest.approx(9 / one.mean()))
    assert (
        found.covered
        == {"target": pytest.approx(float(pointing(one, masks())["target"]))}
        == {"target": 0.75}
    )
    assert str(found) == "brightest patch: 7.7 × even; 75% where it goes"
    (marked,) = (axes for axes in comparison(View(IMAGE, {"a": one}, masks())).axes if len(axes.images) == 2)
    assert marked.patches[0].get_xy() == (40, 20)  # type: ignore[attr-defined]
    assert str(peak(one, {})) == "brightest patch: 7.7 × even"


@pytest.mark.parametrize(
    ("hidden", "says"), [({}, "no mask"), (masks() | {"source": np.zeros((120, 160), bool)}, "not visible")]
)
def test_missing_masks_are_said(hidden: dict[str, Array], says: str) -> None:
    assert comparison(View(IMAGE, maps(), hidden)).axes[-1].texts[0].get_text() == says


def test_curves_are_drawn_with_the_moment_marked() -> None:
    figure = comparison(View(IMAGE, maps(), masks(), steps=np.array([0, 4, 8]), now=1, plots=(CURVES,)))
    (axes,) = (axes for axes in figure.axes if axes.get_title(loc="left") == "gripper")
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), [0.1, 0.3, 0.2])
    assert axes.lines[2].get_xydata().tolist() == [[4, 0.3]]  # the dot
    assert list(axes.lines[3].get_xdata()) == [4, 4]


def test_a_picture_without_attention_is_drawn_too() -> None:
    figure = comparison(View(IMAGE, {}, masks(), "title", steps=np.arange(3), plots=(CURVES,)))
    assert len(figure.axes) == 2 and drawn(figure).any()


def test_scales_of_shares_stay_put() -> None:
    assert [scale_end(values) for values in ([0.0], [0.07, np.nan], [0.26], [1.0])] == [0.05, 0.1, 0.5, 1.0]


@pytest.mark.parametrize(
    ("view", "says"),
    [
        (
            View(IMAGE, {}, {"source": np.zeros((60, 80), bool)}),
            "the mask of source is 80 x 60 pixels, the picture 160 x 120",
        ),
        (View(IMAGE[:4], maps()), "8 x 6 patches, the picture is 160 x 4"),
    ],
)
def test_what_belongs_to_another_picture_is_refused(view: View, says: str) -> None:
    with pytest.raises(KitError, match=says):
        comparison(view)


def test_vectors_on_request(tmp_path) -> None:
    figure = comparison(View(IMAGE, maps(), masks(), "a title"))
    assert save_figure(figure, tmp_path / "view", {}, ["svg", "pdf"]) == tmp_path / "view.svg"
    assert ">a title<" in (tmp_path / "view.svg").read_text()  # text stays text
    assert (tmp_path / "view.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(KitError, match="unknown format of pictures 'bmp'"):
        save_figure(figure, tmp_path / "view", {}, ["bmp"])
