"""The picture of a moment shows its numbers: one scale, bars as long as the shares, the brightest patch where
it is, curves as they were.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from refinevla_kit.attention.grounding import areas, pointing, shares
from refinevla_kit.errors import KitError
from refinevla_kit.figures.overlays import SHOWN, Line, Plot, View, comparison, peak, scale_end
from refinevla_kit.figures.style import save_figure
from tests.figures.test_overlays import IMAGE, drawn, maps, masks

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
    first, second = (axes for axes in comparison(view).axes if len(axes.images) == 3)
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
    (marked,) = (axes for axes in comparison(View(IMAGE, {"a": one}, masks())).axes if len(axes.images) == 3)
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
    with pytest.raises(KitError, match="not saved as bmp"):
        save_figure(figure, tmp_path / "view", {}, ["bmp"])
