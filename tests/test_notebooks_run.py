"""The notebooks, run one after another with papermill in the smoke profile: the files pass from each to the
next.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest

from refinevla_kit.evaluation import load_records
from refinevla_kit.notebook_runner import run_notebooks
from refinevla_kit.settings import NOTEBOOKS, REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_notebooks(list(NOTEBOOKS), "smoke", tmp_path_factory.mktemp("smoke"), progress=False)


def last_json_line(executed: Path) -> dict[str, Any]:
    """What the last code cell printed on its last line."""
    outputs = [cell for cell in nbformat.read(executed, as_version=4).cells if cell.cell_type == "code"][
        -1
    ].outputs
    text = "".join(
        output.text for output in outputs if output.output_type == "stream" and output.name == "stdout"
    )
    value: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return value


def test_all_ran_to_the_end(run: dict[str, Any]) -> None:
    assert run["failed"] is None
    assert list(run["notebooks"]) == list(NOTEBOOKS)
    assert json.loads((Path(run["output"]) / "summary.json").read_text()) == run


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_ends_with_its_summary(run: dict[str, Any], notebook: str) -> None:
    folder = Path(run["output"])
    assert notebook in run["notebooks"], run["failed"]
    outcome = run["notebooks"][notebook]
    assert outcome["summary"] == f"{notebook}/summary.json"
    summary = json.loads((folder / outcome["summary"]).read_text())
    assert summary and summary == last_json_line(folder / outcome["executed"])


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_leaves_pictures_that_can_be_opened(run: dict[str, Any], notebook: str) -> None:
    from PIL import Image

    assert notebook in run["notebooks"], run["failed"]
    for picture in run["notebooks"][notebook]["pictures"]:
        with Image.open(Path(run["output"]) / picture) as image:
            image.load()
            assert min(image.size) > 50


def test_hand_over_files(run: dict[str, Any]) -> None:
    """What the next notebook, or another program, reads."""
    folder = Path(run["output"])
    assert run["failed"] is None
    assert (
        json.loads((folder / "01_teacher_annotation" / "dataset" / "meta" / "info.json").read_text())[
            "codebase_version"
        ]
        == "v3.0"
    )
    assert list((folder / "01_teacher_annotation" / "rationales").glob("*.parquet"))
    for policy in ("action_only", "with_reasoning"):
        assert list((folder / "02_fine_tuning" / policy).rglob("*.safetensors")), policy
    assert (folder / "03_simpler_evaluation" / "records.parquet").is_file()
    assert (folder / "06_interventions" / "obeyed.csv").is_file()
    assert len(list((folder / "00_quickstart" / "film").rglob("*.mp4"))) == 1
    assert not list(folder.rglob("*.part-*")) and not list(folder.rglob("*.pkl"))


def test_run_again_it_goes_on_and_other_settings_get_places_of_their_own(run: dict[str, Any]) -> None:
    """The folder of the run above, once more: nothing is recorded, asked, trained or played twice, and
    nothing old is lost.
    """
    folder = Path(run["output"])
    dataset = folder / "01_teacher_annotation" / "dataset"
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}
    recorded, answers = (
        (dataset / "meta" / "info.json").stat().st_mtime_ns,
        list((folder / "01_teacher_annotation" / "rationales").iterdir()),
    )
    again = run_notebooks(["1"], "smoke", folder, {"dataset": str(dataset)}, progress=False)
    assert again["failed"] is None
    assert not dataset.is_symlink() and (dataset / "meta" / "info.json").stat().st_mtime_ns == recorded
    assert list((folder / "01_teacher_annotation" / "rationales").iterdir()) == answers

    longer = run_notebooks(["2"], "smoke", folder, {"steps": 5}, progress=False)
    assert longer["failed"] is None
    assert {file: file.stat().st_mtime_ns for file in before} == before, (
        "the four steps' policies are as they were"
    )
    assert (folder / "02_fine_tuning" / "with_reasoning-2").is_dir()

    asked = {"width": 64, "tasks": ["widowx_carrot_on_plate"], "workers": 1}
    smaller = run_notebooks(["3"], "smoke", folder, asked, progress=False)
    assert smaller["failed"] is None
    records = load_records(folder / "03_simpler_evaluation" / "records.parquet")
    assert {(record.width, record.task) for record in records} == {(64, "widowx_carrot_on_plate")}, (
        "what was asked for, and no more"
    )
    everything = load_records(folder / "03_simpler_evaluation" / "episodes.parquet")
    assert len(everything) == len(records) + 6 and len({record.checkpoint_hash for record in everything}) == 5


def test_actions_alone_are_learned_from_data_without_rationales(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(REPOSITORY / "data" / "demo", bare, ignore=shutil.ignore_patterns("rationales"))
    given = {"dataset": str(bare), "lambda_reasoning": 0}
    trained = run_notebooks(["2"], "smoke", tmp_path / "run", given, progress=False)
    assert trained["failed"] is None
    summary = json.loads((tmp_path / "run" / "02_fine_tuning" / "summary.json").read_text())
    assert summary["rationales"] is None and set(summary["true_statements"]) == set(summary["policies"])


def test_the_google_robot_is_recorded_and_played_by_the_demonstrator_alone(tmp_path: Path) -> None:
    """No shipped policy plays it: there is nothing to compare, and the notebook goes on."""
    run = run_notebooks(["1", "3"], "smoke", tmp_path, {"robot": "google_robot"}, progress=False)
    assert run["failed"] is None
    records = load_records(tmp_path / "03_simpler_evaluation" / "google_robot.parquet")
    assert {(record.policy, record.success_last) for record in records} == {("demonstrator", True)}
    summary = json.loads((tmp_path / "03_simpler_evaluation" / "summary.json").read_text())
    assert summary["with_reasoning_minus_action_only"] == {}
