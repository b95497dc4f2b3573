"""Where the optional data of the suite is, and how the suite runs: offline, few threads, the same examples
each time.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault(
    "HF_HUB_OFFLINE", "1"
)  # nothing may be downloaded, on a machine with a network as on one without
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[1]

settings.register_profile("kit", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("kit")
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell starts background jobs deaf to it, and what they start is deaf too


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
