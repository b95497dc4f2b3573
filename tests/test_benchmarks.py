"""What the benchmarks need and is not there is said in one line, before anything is measured."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from refinevla_kit.settings import REPOSITORY


def test_the_explorers_benchmark_without_a_browser_says_what_to_install(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "explorer.py"), "--moves", "1"]
    environment = {**os.environ, "PATH": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 1
    assert (
        run.stderr
        == "explorer: no Chromium on this machine -> run `make browser` as root, or install the package "
        "chromium\n"
    )
