"""JupyterLab as seen through a browser: open a notebook, run it, use its widgets, and say what went wrong on
the page.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from refinevla_kit.settings import REPOSITORY

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Locator, Page

RUN_SECONDS = 300
FAILED = '[data-mime-type="application/vnd.jupyter.error"], [data-mime-type="application/vnd.jupyter.stderr"]'
ALL_RAN = f"""(cells) => {{
    const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];
    return [...document.querySelectorAll('{FAILED}')].some((each) => each.textContent)
        || prompts.filter((each) => /\\d/.test(each.textContent)).length === cells;
}}"""

PIXELS = """async (each) => each.tagName === "CANVAS"
    ? each.toDataURL() : String(new Uint8Array(await (await fetch(each.src)).arrayBuffer()))"""


class Lab:
    """A running JupyterLab."""

    def __init__(self, browser: Browser, address: str, folder: Path, screenshots: Path) -> None:
        self._browser, self._address, self._folder, self.screenshots = browser, address, folder, screenshots

    @contextmanager
    def notebook(self, name: str, **parameters: Any) -> Iterator[NotebookPage]:
        """A copy of a notebook of the kit with these parameters, opened in a new page. Its kernel is ended
        afterwards.
        """
        node = load_notebook_node(str(REPOSITORY / "notebooks" / f"{name}.ipynb"))
        node = parameterize_notebook(node, parameters)
        nbformat.write(node, self._folder / f"{name}.ipynb")
        context = self._browser.new_context(viewport={"width": 1500, "height": 1100})
        page = context.new_page()
        cells = sum(cell.cell_type == "code" for cell in node.cells)
        shown = NotebookPage(page, name, cells, self.screenshots)
        try:
            page.goto(f"{self._address}/lab/tree/notebooks/{name}.ipynb?reset")
            yield shown
        except BaseException:
            shown.screenshot("failed")
            raise
        finally:
            token = next((cookie["value"] for cookie in context.cookies() if cookie["name"] == "_xsrf"), "")
            for session in context.request.get(f"{self._address}/api/sessions").json():
                ended = context.request.delete(
                    f"{self._address}/api/sessions/{session['id']}", headers={"X-XSRFToken": token}
                )
                assert ended.ok, (
                    ended.text()
                )  # else the next notebook of this name goes on with this kernel and its variables
            context.close()


class NotebookPage:
    """An open notebook.

    Attributes:
        complaints: what the browser's console reported as an error, and exceptions that no script caught.
    """

    def __init__(self, page: Page, name: str, cells: int, screenshots: Path) -> None:
        self.page, self.complaints, self._name, self._cells, self._screenshots = (
            page,
            list[str](),
            name,
            cells,
            screenshots,
        )
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _note(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def run_all(self) -> None:
        """Run > Run All Cells, from the menu, and wait until every cell has its number or one has failed."""
        self.page.locator("#jp-main-statusbar", has_text="| Idle").wait_for(
            timeout=60_000
        )  # before that, JupyterLab drops what it is told to run
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        self.page.wait_for_function(ALL_RAN, arg=self._cells, timeout=1000 * RUN_SECONDS)

    def errors(self) -> list[str]:
        """The text of every error output."""
        return self.page.locator(FAILED).all_text_contents()

    def press(self, label: str, key: str) -> None:
        """Press a key on the explorer's slider of this name."""
        self.page.locator(f".refinevla-explorer [name={label}]").press(key)

    def picture(self, other_than: str = "") -> str:
        """The pixels of the last widget's picture as text; waits until they differ from `other_than`."""
        shown = self.page.locator(".jupyter-widgets img, .refinevla-explorer canvas").last
        shown.scroll_into_view_if_needed()
        for _ in range(400):
            pixels = str(shown.evaluate(PIXELS))
            if pixels != other_than:
                return pixels
            self.page.wait_for_timeout(50)
        raise AssertionError("the picture stayed as it was")

    def screenshot(self, what: str, of: Locator | None = None) -> Path:
        """A picture of the page, or of a part of it."""
        path = self._screenshots / f"{self._name}-{what}.png"
        (of or self.page).screenshot(path=path)
        return path
