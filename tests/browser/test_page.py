"""The exported page, opened from the disk: the same numbers as the notebook's widget, and nothing asked of a
network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from refinevla_kit.errors import KitError
from refinevla_kit.widgets import explorer_page
from refinevla_kit.widgets.exploration import Exploration
from refinevla_kit.widgets.explorer_page import write_page
from refinevla_kit.widgets.picture import payload
from tests.widgets.explored import CAPTURES, FRAMES, without_words

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
CHOICES = [
    (0, "action", 1, None),
    (2, "action:gripper", 2, 1),
    (4, "sentence:2", 0, None),
    (3, "word:carrot:2", 1, 0),
]
CHOICES += [(1, "instruction:put:1", 2, None)]


@pytest.fixture(scope="module")
def exploration() -> Exploration:
    return Exploration(FRAMES, CAPTURES)


@pytest.fixture(scope="module")
def page(
    browser: Browser, exploration: Exploration, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    path = write_page(tmp_path_factory.mktemp("page") / "explorer.html", exploration, "action:z", 1)
    context = browser.new_context(viewport={"width": 1200, "height": 1000}, offline=True)
    opened, wrong = context.new_page(), list[str]()
    opened.on("console", lambda message: wrong.append(message.text))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on(
        "request",
        lambda request: (
            None if request.url.startswith(("file:", "data:", "blob:")) else wrong.append(request.url)
        ),
    )
    opened.goto(path.as_uri())
    yield opened
    assert wrong == []
    context.close()


def same(page: Any, kit: Any, where: str = "") -> None:
    """Numbers agree to 2 in 10,000, everything else exactly."""
    if isinstance(kit, dict):
        for key in kit:
            same(page[key], kit[key], f"{where}.{key}")
    elif isinstance(kit, list):
        assert len(page) == len(kit), where
        for i, (one, other) in enumerate(zip(page, kit, strict=True)):
            same(one, other, f"{where}[{i}]")
    elif isinstance(kit, float):
        assert page == pytest.approx(kit, rel=2e-4, abs=2e-4), where
    else:
        assert page == kit, where


def canvas(page: Page) -> str:
    page.wait_for_timeout(100)
    return str(page.evaluate("document.querySelector('canvas').toDataURL()"))


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_shows_what_the_widget_shows(
    page: Page, exploration: Exploration, choice: tuple[int, str, int, int | None]
) -> None:
    index, key, layer, head = choice
    frame = FRAMES[index]
    chosen = {
        "episode": frame.episode,
        "step": exploration.episodes[frame.episode].index(index),
        "query": key,
        "layer": layer,
        "head": -1 if head is None else head,
        "opacity": 0.9,
        "outlines": True,
    }
    shown = page.evaluate(f"viewOf({json.dumps(chosen)})")
    same(
        shown,
        json.loads(
            json.dumps(payload(exploration.view(index, key, layer, head), exploration.rationales(index, key)))
        ),
    )


def test_each_control_redraws_the_picture(page: Page, screenshots: Path) -> None:
    seen = [canvas(page)]
    for control, key in (
        ("frame", "ArrowRight"),
        ("token", "End"),
        ("layer", "Home"),
        ("head", "End"),
        ("opacity", "Home"),
    ):
        page.locator(f"#{control}").press(key)
        seen.append(canvas(page))
    page.locator("#from").select_option("sentence")
    seen.append(canvas(page))
    page.locator("#outlines").uncheck()
    seen.append(canvas(page))
    page.locator("#episode").select_option("4")
    seen.append(canvas(page))
    assert len(set(seen)) == len(seen)
    page.screenshot(path=screenshots / "page.png")


def test_pointing_reads_a_patchs_value(page: Page) -> None:
    page.evaluate(
        "Object.assign(choice, { episode: 0, step: 0, kind: 'action', query: 'action:x', layer: 1, "
        "head: -1 }); refresh()"
    )
    page.wait_for_timeout(100)
    box = page.locator("canvas").bounding_box()
    assert box is not None
    scale, tall = box["width"] / page.evaluate("places(viewOf(choice)).width"), 350 * 60 / 80
    page.mouse.move(
        box["x"] + scale * (360 + 350 * 2.5 / 8), box["y"] + scale * (70 + tall * 3.5 / 6)
    )  # the second panel, row 4, column 3
    row = CAPTURES["with_reasoning"][0].patches[1, :, 0].mean(0)
    times = row[3 * 8 + 2] / row.mean()
    expected = (
        f"with reasoning loss, row 4, column 3: {times:.2f} × even ({100 * times / 48:.2f} % of the "
        "attention to the picture)"
    )
    assert page.locator(".refinevla-value").inner_text() == expected


def test_what_only_one_policy_said_is_named(browser: Browser, tmp_path: Path) -> None:
    captures = CAPTURES | {"with_reasoning": without_words(CAPTURES["with_reasoning"])}
    page = browser.new_page()
    page.goto(write_page(tmp_path / "explorer.html", Exploration(FRAMES, captures)).as_uri())
    page.locator("#from").select_option("word")
    assert "with reasoning loss: there is no word The 1" in page.locator(".refinevla-value").inner_text()
    page.close()


@pytest.mark.parametrize(
    "name",
    [
        "SCRIPT",
        "STORE",
        "TITLE VERSION",
        "</script><script>alert(1)</script>",
        "<!--<script>",
        "a&b\\u2028'\"",
    ],
)
def test_a_policys_name_is_never_code(browser: Browser, tmp_path: Path, name: str) -> None:
    hostile = {
        name: [replace(one, policy=name) for one in CAPTURES["action_only"]],
        "with_reasoning": CAPTURES["with_reasoning"],
    }
    page, failed = browser.new_page(), list[Any]()
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.on("dialog", lambda dialog: (failed.append(dialog.message), dialog.dismiss()))
    page.goto(write_page(tmp_path / "explorer.html", Exploration(FRAMES, hostile)).as_uri())
    assert page.title() == f"Where they look: {name}, with reasoning loss"
    assert (page.evaluate("store.policies[0].name"), failed) == (name, [])
    page.close()


def test_a_page_can_be_made_smaller_and_is_never_too_large(
    exploration: Exploration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, small = (
        write_page(tmp_path / f"{heads}.html", exploration, heads=heads, every=1 if heads else 2)
        for heads in (True, False)
    )
    assert small.stat().st_size < whole.stat().st_size
    stored = json.loads(small.read_text().split('id="store">')[1].split("</script>")[0])
    assert (stored["heads"], [frame["step"] for frame in stored["frames"]]) == (1, [0, 2, 1])
    with pytest.raises(KitError, match="every is 0"):
        write_page(tmp_path / "none.html", exploration, every=0)
    monkeypatch.setattr(explorer_page, "EASY_PAGE", 1000)
    assert write_page(tmp_path / "easy.html", exploration, every=2).read_text() == small.read_text()
    monkeypatch.setattr(explorer_page, "LARGEST_PAGE", 1000)
    with pytest.raises(KitError, match="heads=False"):
        write_page(tmp_path / "large.html", exploration)
    assert not (tmp_path / "large.html").exists()
