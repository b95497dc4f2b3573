"""Where the optional data of the suite is, and how the suite runs: offline, few threads, the same examples
each time.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

# Nothing may be downloaded, on a machine with a network as on one without.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# One core a process, because processes run side by side: arithmetic, and the software renderer.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("LP_NUM_THREADS", "0")

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[1]

settings.register_profile("kit", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("kit")
# A shell starts background jobs deaf to Ctrl-C, and what they start is deaf too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist, which reads the marks in a hook of this name
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests and say which ones must run in the same process, one after another.

    `pytest -n 2 --dist loadgroup` gives each test to whichever process is free. Tests of a file that share a
    fixture of their module, or the browser, stay together, so that it is made once. What takes longest comes
    first, so that neither process is left alone with it: files that stay together and have slow tests, then
    other slow tests, then the rest.
    """
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    together = {item.path for item in items if shares_fixture(item)}
    items.sort(key=lambda item: (item.path not in slow_files, item.path not in together))
    for item in items:
        if shares_fixture(item):
            item.add_marker(pytest.mark.xdist_group(item.location[0]))


def pytest_collection_finish() -> None:
    """Call this process the kit's own: what has been imported is searched for garbage once, and not for every
    scene (as long as ten steps).
    """
    from refinevla_kit.simulator import maniskill

    maniskill.own_process = True


def shares_fixture(item: pytest.Item) -> bool:
    """Whether a test uses a fixture that is made once for its module, or the browser."""
    fixtures = getattr(item, "_fixtureinfo", None)
    definitions = fixtures.name2fixturedefs.values() if fixtures else ()
    made_once = any(each[-1].scope == "module" for each in definitions)
    return made_once or item.get_closest_marker("browser") is not None


def optional_folder(variable: str, beside: str, holds: str, what: str) -> Path:
    """The folder named by an environment variable, else the one beside the checkout; skips, saying why, where
    it is absent.
    """
    folder = Path(os.environ.get(variable) or REPOSITORY.parent / "shared" / beside)
    if not (folder / holds).exists():
        pytest.skip(f"{what} not here: set {variable} to a folder that holds {holds}")
    return folder


@pytest.fixture(scope="session")
def official_assets() -> Path:
    """SimplerEnv's own assets in ManiSkill's layout."""
    return optional_folder(
        "REFINEVLA_OFFICIAL_ASSETS",
        "simpler_assets",
        "data/tasks/bridge_v2_real2sim_dataset",
        "the official SimplerEnv assets",
    )


@pytest.fixture(scope="session")
def real_dataset() -> Path:
    """A LeRobot dataset of a real robot that the kit did not write."""
    return optional_folder(
        "REFINEVLA_REAL_DATASET", "real_robot_sample", "meta/info.json", "a real LeRobot dataset"
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)], check=False, capture_output=True
    ).returncode:
        pytest.skip("this machine does not allow mounting")
    yield folder
    subprocess.run(["umount", folder], check=True)
