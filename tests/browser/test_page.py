"""The saved page, opened from the disk: the same numbers as the figure for paper, and nothing asked of a
network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from refinevla_kit.errors import KitError
from refinevla_kit.widgets import AttentionExplorer, attention_explorer, explorer_page
from refinevla_kit.widgets.exploration import Exploration
from refinevla_kit.widgets.explorer_page import SCRIPT, write_page
from tests.widgets.explored import CAPTURES, CHOICE, FRAMES, RATIONALE, attention, shown, without_words

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
CHOICES = [
    (0, "action", 1, None),
    (2, "action:gripper", 2, 1),
    (4, "sentence:2", 0, None),
    (3, "word:carrot:2", 1, 0),
    (1, "instruction:put:1", 2, None),
]


@pytest.fixture(scope="module")
def exploration() -> Exploration:
    return Exploration(FRAMES, CAPTURES)


@pytest.fixture(scope="module")
def page(
    browser: Browser, exploration: Exploration, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    path = write_page(tmp_path_factory.mktemp("page") / "explorer.html", exploration, CHOICE)
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
def test_a_choice_shows_what_the_figure_for_paper_shows(
    page: Page, exploration: Exploration, choice: tuple[int, str, int, int | None]
) -> None:
    index, key, layer, head = choice
    frame = FRAMES[index]
    chosen = {
        **CHOICE,
        "episode": frame.episode,
        "step": exploration.episodes[frame.episode].index(index),
        "query": key,
        "layer": layer + 1,
        "head": "mean" if head is None else head + 1,
    }
    drawn = page.evaluate(f"explorer.viewOf({json.dumps(chosen)})")
    same(drawn, json.loads(json.dumps(shown(exploration.view(index, key, layer, head)))))
    assert len(drawn["outlines"]) == 4
    (text,) = drawn["texts"]  # one for both: they were fed the same
    span = exploration.queries(index)[key].span
    marked = RATIONALE[: span[0]], RATIONALE[slice(*span)], RATIONALE[span[1] :]
    assert text["name"] == "rationale fed to each policy"
    assert (text["before"], text["marked"], text["after"]) == marked


def test_each_control_redraws_the_picture(page: Page, screenshots: Path) -> None:
    seen = [canvas(page)]
    for control, key in (
        ("frame", "ArrowRight"),
        ("token", "End"),
        ("layer", "Home"),
        ("head", "End"),
        ("opacity", "Home"),
    ):
        page.locator(f"[name={control}]").press(key)
        seen.append(canvas(page))
    page.locator("[name=from]").select_option("sentence")
    seen.append(canvas(page))
    page.locator("[name=outlines]").uncheck()
    seen.append(canvas(page))
    page.locator("[name=episode]").select_option("4")
    seen.append(canvas(page))
    assert len(set(seen)) == len(seen)
    page.screenshot(path=screenshots / "page.png")


def test_pointing_reads_a_patchs_value(page: Page) -> None:
    page.evaluate(f"explorer.choose({json.dumps({**CHOICE, 'query': 'action:x'})})")
    page.wait_for_timeout(100)
    box = page.locator("canvas").bounding_box()
    assert box is not None
    scale, tall = (
        box["width"] / page.evaluate("explorer.places(explorer.viewOf(explorer.choice)).width"),
        350 * 60 / 80,
    )
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


def test_the_arrow_keys_read_patches_too(page: Page) -> None:
    page.evaluate(f"explorer.choose({json.dumps({**CHOICE, 'query': 'action:x'})})")
    before, value = canvas(page), page.locator(".refinevla-value")
    page.locator("canvas").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert value.inner_text().startswith("actions only, row 2, column 1: ")
    for _ in range(8):
        page.keyboard.press("ArrowRight")
    assert value.inner_text().startswith("with reasoning loss, row 2, column 1: ")
    assert canvas(page) != before
    page.keyboard.press("Tab")
    assert value.inner_text().startswith("Point at a patch")
    assert canvas(page) == before


def test_a_kernel_is_asked_once_for_what_is_too_large_for_the_page(
    browser: Browser, exploration: Exploration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_explorer, "EASY_PAGE", 1)
    explorer, answers = AttentionExplorer(FRAMES, CAPTURES), list[dict[str, Any]]()
    monkeypatch.setattr(explorer, "send", answers.append)
    explorer._handle_custom_msg({"id": "1", "ask": "layer", "choice": explorer.choice}, [])
    page = browser.new_page()
    page.set_content("<main></main>")
    page.add_script_tag(content=f"{SCRIPT}\nwindow.mountExplorer = mountExplorer;", type="module")
    page.wait_for_function("Boolean(window.mountExplorer)")
    page.evaluate(
        """([state, choice, answer]) => {
            window.asked = [];
            const ask = async (question) => { asked.push(question.ask); return answer; };
            const kernel = { keep: () => {}, ask };
            window.explorer = mountExplorer(document.querySelector("main"), state, choice, kernel);
            return explorer.ready;
        }""",
        json.loads(json.dumps([explorer.state, explorer.choice, answers[0]["answer"]])),
    )
    layer = explorer.choice["layer"] - 1
    same(page.evaluate("explorer.viewOf(explorer.choice)"), shown(exploration.view(0, "action", layer)))
    page.locator("[name=frame]").press("End")
    page.locator("[name=head]").press("End")
    same(page.evaluate("explorer.viewOf(explorer.choice)"), shown(exploration.view(2, "action", layer, 1)))
    assert page.evaluate("asked") == ["layer"]
    page.close()


def test_what_only_one_policy_said_is_named(browser: Browser, tmp_path: Path) -> None:
    captures = CAPTURES | {"with_reasoning": without_words(CAPTURES["with_reasoning"])}
    page = browser.new_page()
    page.goto(write_page(tmp_path / "explorer.html", Exploration(FRAMES, captures), CHOICE).as_uri())
    page.locator("[name=from]").select_option("word")
    assert "with reasoning loss: there is no word The 1" in page.locator(".refinevla-value").inner_text()
    page.close()


def test_a_frame_that_cannot_be_shown_says_so_and_the_page_lives_on(browser: Browser, tmp_path: Path) -> None:
    overlapping = replace(FRAMES[1], masks=dict.fromkeys(FRAMES[1].masks, np.ones((60, 80), bool)))
    exploration = Exploration([FRAMES[0], overlapping, *FRAMES[2:]], CAPTURES)
    page = browser.new_page()
    page.goto(write_page(tmp_path / "explorer.html", exploration, CHOICE).as_uri())
    before = canvas(page)
    page.locator("[name=frame]").press("ArrowRight")
    assert "object masks overlap" in page.locator(".refinevla-value").inner_text()
    page.locator("[name=frame]").press("ArrowRight")
    assert canvas(page) != before
    page.close()


HOSTILE = [
    "SCRIPT",
    "STORE",
    "TITLE VERSION",
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "<img src=x onerror=alert(1)>",
    "a&b\\u2028'\"",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_policies_and_people_write_is_never_code(browser: Browser, tmp_path: Path, text: str) -> None:
    captures = {
        text: [
            replace(attention(frame, i, "action_only", f"Go {text} now"), policy=text)
            for i, frame in enumerate(FRAMES)
        ],
        "with_reasoning": CAPTURES["with_reasoning"],
    }
    frames = [replace(frame, instruction=text, phase=text) for frame in FRAMES]
    page, failed = browser.new_page(), list[Any]()
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.on("dialog", lambda dialog: (failed.append(dialog.message), dialog.dismiss()))
    page.goto(write_page(tmp_path / "explorer.html", Exploration(frames, captures), CHOICE).as_uri())
    page.locator("[name=from]").select_option("word")
    page.locator("[name=token]").press("End")
    assert page.title() == f"Where they look: {text}, with reasoning loss"
    assert page.evaluate("explorer.state.policies[0].name") == text
    page.evaluate(f"explorer.choose({json.dumps(CHOICE)})")
    page.wait_for_timeout(100)
    assert f"Go {text} now" in page.locator(".refinevla-texts").inner_text()
    assert page.evaluate("explorer.viewOf(explorer.choice).title").startswith(f"{text}: episode 0")
    assert failed == []
    page.close()


def test_a_page_can_be_made_smaller_and_is_never_too_large(
    exploration: Exploration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, small = (
        write_page(tmp_path / f"{heads}.html", exploration, CHOICE, heads, every=1 if heads else 2)
        for heads in (True, False)
    )
    assert small.stat().st_size < whole.stat().st_size
    stored = json.loads(small.read_text().split('id="store">')[1].split("</script>")[0])
    assert (stored[0]["held"], [frame["step"] for frame in stored[0]["frames"]]) == ("mean", [0, 2, 1])
    with pytest.raises(KitError, match="every is 0"):
        write_page(tmp_path / "none.html", exploration, CHOICE, every=0)
    monkeypatch.setattr(explorer_page, "EASY_PAGE", 1000)
    assert write_page(tmp_path / "easy.html", exploration, CHOICE, every=2).read_text() == small.read_text()
    monkeypatch.setattr(explorer_page, "LARGEST_PAGE", 1000)
    with pytest.raises(KitError, match="heads=False"):
        write_page(tmp_path / "large.html", exploration, CHOICE)
    assert not (tmp_path / "large.html").exists()
