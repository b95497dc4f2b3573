"""Episodes that a policy drives, recorded by the command: in processes of their own, labelled by the
demonstrator.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.driving import main
from refinevla_kit.episodes import open_dataset
from refinevla_kit.settings import REPOSITORY

CARROT = "widowx_carrot_on_plate"


@pytest.mark.slow
def test_processes_record_what_the_policy_drives(bases: dict[str, Path], tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "experiments.driving",
        bases["main"],
        tmp_path / "driven",
        "--task",
        CARROT,
    ]
    command += ["--episodes", "2", "--workers", "2"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["episodes"] == 2
    lengths = [episode.length for episode in open_dataset(tmp_path / "driven").episodes]
    assert lengths == [60, 60], "an untrained policy does not succeed, and its episodes are kept"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--task", "widowx_fly"], "widowx_fly"),
        (["--settle", "0"], "settle 0"),
        (["--noise", "2"], "noise 2"),
        ([], "is no checkpoint"),
    ],
)
def test_what_cannot_be_driven_is_one_line_and_nothing_is_written(
    options: list[str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=f"^driving: .*{words}.* -> ") as stopped:
        main([str(tmp_path / "absent"), str(tmp_path / "dataset"), *options])
    assert "\n" not in str(stopped.value) and not list(tmp_path.iterdir())
