"""Notebooks with widgets, in a real JupyterLab: every cell runs, the controls change the picture, and nothing
on the page complains.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from refinevla_kit.settings import REPOSITORY
from tests.browser.lab import Lab

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_the_quickstarts_film_can_be_played_and_its_slider_moves(lab: Lab, tmp_path: Path) -> None:
    with lab.notebook("00_quickstart", profile="smoke", output=str(tmp_path)) as notebook:
        notebook.run_all()
        assert (notebook.errors(), notebook.complaints) == ([], [])
        film = notebook.page.locator(".jp-OutputArea video")
        film.scroll_into_view_if_needed()
        assert film.evaluate("each => each.play().then(() => each.videoWidth)") == 160
        before = notebook.picture()
        notebook.page.locator(".widget-slider .noUi-handle").press("ArrowRight")
        assert notebook.picture(other_than=before) != before
        notebook.screenshot("slider")
        assert (notebook.errors(), notebook.complaints) == ([], [])


def test_the_explorers_controls_change_its_picture(lab: Lab, tmp_path: Path) -> None:
    with lab.notebook("04_attention_maps", profile="smoke", output=str(tmp_path), every=4) as notebook:
        notebook.run_all()
        assert (notebook.errors(), notebook.complaints) == ([], [])
        seen = [notebook.picture()]
        for slider, key in (
            ("frame", "ArrowRight"),
            ("token", "End"),
            ("layer", "ArrowLeft"),
            ("head", "End"),
        ):
            notebook.press(slider, key)
            seen.append(notebook.picture(other_than=seen[-1]))
        notebook.page.locator("[name=method]").select_option("grad_cam")  # the policy is asked
        seen.append(notebook.picture(other_than=seen[-1]))
        notebook.page.locator("[name=method]").select_option("attention")
        notebook.picture(other_than=seen[-1])
        notebook.page.locator("[name=from]").select_option("instruction")
        seen.append(notebook.picture(other_than=seen[-1]))
        assert len(set(seen)) == 7
        notebook.page.locator("[name=form]").select_option("svg")
        notebook.page.get_by_role("button", name="save", exact=True).click()
        notebook.page.locator(".refinevla-value", has_text="saved").wait_for(timeout=60_000)
        assert len([*(tmp_path / "04_attention_maps").glob("explorer-*.svg")]) == 1
        canvas = notebook.page.locator(".refinevla-explorer canvas")
        canvas.hover(position={"x": 100, "y": 150})
        value = re.compile(
            r"^actions only, row \d, column \d: \d+\.\d\d × even \(\d+\.\d\d % of the attention to "
            r"the picture\)$"
        )
        expect(notebook.page.locator(".refinevla-value")).to_have_text(value)
        notebook.screenshot("explorer")
        assert (notebook.errors(), notebook.complaints) == ([], [])
        for name in ("explorer.png", "explorer.html"):
            assert (tmp_path / "04_attention_maps" / name).is_file()


def test_a_cell_that_fails_is_seen(lab: Lab, tmp_path: Path) -> None:
    """What the other tests rely on."""
    with lab.notebook(
        "04_attention_maps", profile="smoke", output=str(tmp_path), frames="nowhere"
    ) as notebook:
        notebook.run_all()
        assert "nowhere does not exist" in "".join(notebook.errors())


def test_the_reviewers_keys_decide(lab: Lab, tmp_path: Path) -> None:
    with lab.notebook(
        "01_teacher_annotation", profile="smoke", output=str(tmp_path), dataset=str(REPOSITORY / "data/demo")
    ) as notebook:
        notebook.run_all()
        assert (notebook.errors(), notebook.complaints) == ([], [])
        before = notebook.picture()
        notebook.page.locator(".refinevla-keys img").click()
        notebook.page.keyboard.press("a")
        after = notebook.picture(other_than=before)
        notebook.page.locator(".refinevla-keys", has_text="1 accepted").wait_for()
        notebook.page.locator(".refinevla-keys button", has_text="←").click()
        assert notebook.picture(other_than=after) != after
        notebook.screenshot("reviewer")
        assert (notebook.errors(), notebook.complaints) == ([], [])


def test_an_episode_is_chosen_from_the_table_and_played_again(lab: Lab, tmp_path: Path) -> None:
    carrot = ["widowx_carrot_on_plate"]
    with lab.notebook(
        "03_simpler_evaluation", profile="smoke", output=str(tmp_path), tasks=carrot
    ) as notebook:
        notebook.run_all()
        assert (notebook.errors(), notebook.complaints) == ([], [])
        seen = [notebook.picture()]
        for slider, key in (("frame", "End"), ("frame", "ArrowLeft"), ("layer", "Home"), ("opacity", "Home")):
            notebook.press(slider, key)
            seen.append(notebook.picture(other_than=seen[-1]))
        notebook.page.locator("[name=outlines]").uncheck()
        seen.append(notebook.picture(other_than=seen[-1]))
        assert len(set(seen)) == 6
        rows = notebook.page.locator(".refinevla-rollouts option")
        everything = rows.count()
        notebook.page.locator(".widget-dropdown", has_text="policy").locator("select").select_option(
            "with reasoning loss"
        )
        count = notebook.page.locator(".widget-label", has_text=f"of {everything} episodes")
        expect(count).not_to_have_text(
            re.compile(rf"^{everything} of")
        )  # the kernel answers in its own time: asked again until it has
        shown = int(count.inner_text().split()[0])
        assert 0 < shown < everything
        expect(rows).to_have_count(shown)
        rows.last.click()
        notebook.page.get_by_role("button", name="replay").click()
        notebook.page.locator(".widget-html", has_text="It ended as recorded.").wait_for(timeout=60_000)
        notebook.page.locator("[name=rationale]").check()
        notebook.page.locator(".refinevla-texts", has_text="with reasoning loss: Observation:").wait_for(
            timeout=60_000
        )
        assert notebook.picture() not in seen
        notebook.screenshot("rollouts")
        assert (notebook.errors(), notebook.complaints) == ([], [])
