"""A real JupyterLab and a real Chromium: what a person sees and does, without one.

Chromium is the system's (`make browser`), driven by Playwright, whose own browsers are not downloaded.
Screenshots go to the test's temporary folder, or to REFINEVLA_SCREENSHOTS to keep and look at.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from refinevla_kit.settings import REPOSITORY
from tests.browser.lab import Lab

pytest.importorskip("playwright", reason="Playwright is not installed: it comes with the extra [dev]")
from playwright.sync_api import Browser, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (  # a container's root has no sandbox, and a test wants nothing of the network
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
QUIET = '{"fetchNews": "false", "checkForUpdates": false}'  # JupyterLab asks about its news otherwise


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, with a new and empty profile."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: run `make browser`")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures of the pages go."""
    kept = os.environ.get("REFINEVLA_SCREENSHOTS")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def lab(browser: Browser, screenshots: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab on a free port, its notebooks in a temporary folder, its kernel this Python with this
    checkout.
    """
    home = tmp_path_factory.mktemp("lab")
    quiet = home / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text(QUIET)
    (home / "notebooks").mkdir()
    shutil.copytree(REPOSITORY / "figures", home / "figures")  # the notebooks' headers show them
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {
        name: str(home / folder)
        for name, folder in {
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "IPYTHONDIR": "ipython",
        }.items()
    }
    command = [
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
    ]
    command += [
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={home}",
        "--IdentityProvider.token=",
        "--ServerApp.password=",
    ]
    log = home / "log.txt"
    with log.open("w") as written:
        server = subprocess.Popen(
            command,
            env={**os.environ, **places, "PYTHONPATH": str(REPOSITORY)},
            stdout=written,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait(f"http://127.0.0.1:{port}/api", server, log)
            yield Lab(browser, f"http://127.0.0.1:{port}", home / "notebooks", screenshots)
        finally:
            server.terminate()  # ends its kernels too
            server.wait(30)


def _wait(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.1)
    raise AssertionError(log.read_text())
