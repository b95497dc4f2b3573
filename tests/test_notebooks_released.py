"""Notebooks 2 to 4 in the paper's own profile, on tiny checkpoints in the layout of SpatialVLA and OpenVLA:
what is smaller than in the profile is named here, all else is as it stands there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from refinevla_kit.evaluation import load_records
from refinevla_kit.notebook_runner import run_notebooks
from refinevla_kit.rollouts.recording import record
from refinevla_kit.settings import load_profile
from refinevla_kit.teacher import annotate_dataset
from refinevla_kit.teacher.oracle import OracleTeacher
from refinevla_kit.vlas import load_vla
from tests.vlas.reference import FOLDER

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SMALLER: dict[str, Any] = {
    "steps": 2,
    "batch_size": 2,
    "accumulate": 2,
    "freeze_layers": 2,  # of 3; of the real 26 the profile freezes 24
    "tasks": ["widowx_carrot_on_plate"],
    "episodes": 1,
    "assets": "embedded",
    "workers": 0,
    "width": 160,
    "preflight_starts": 1,
    "include_demonstrator": False,
    "every": 16,
    "probes": 1,
    "threads": 1,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One demonstration with rationales: SpatialVLA takes a second a frame for its depth."""
    folder = tmp_path_factory.mktemp("recorded") / "dataset"
    record(folder, SMALLER["tasks"], 1, start="grid", progress=False)
    annotate_dataset(folder, OracleTeacher(), progress=False)
    return str(folder)


@pytest.fixture(scope="module", params=["spatialvla", "openvla"])
def run(
    request: pytest.FixtureRequest, dataset: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Any]]:
    base = str(FOLDER / request.param)
    output = tmp_path_factory.mktemp(request.param)
    changed = SMALLER | {"base": base, "dataset": dataset}
    if request.param == "spatialvla":  # most processors emulate bf16: a look takes 1.2 s for 0.2 s
        changed["weights"] = "fp32"
    return base, run_notebooks(["2", "3", "4"], "paper", output, changed, progress=False)


def summary(run: dict[str, Any], notebook: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(run["output"]) / notebook / "summary.json").read_text())
    return found


def test_the_profile_is_the_paper() -> None:
    """Its base, weight of the reasoning loss, frozen layers and robots (arXiv 2505.19080, 2604.17800)."""
    profile = load_profile("paper")
    tuning = profile["02_fine_tuning"]
    assert tuning["base"] == "IPEC-COMMUNITY/spatialvla-4b-224-pt"
    assert (tuning["lambda_reasoning"], tuning["freeze_layers"], tuning["mode"]) == (0.3, 24, "upper")
    evaluated = profile["03_simpler_evaluation"]
    assert evaluated["tasks"] == ["widowx"]
    assert evaluated["google_robot"]["tasks"] == ["google_robot"]  # with robot="google_robot"
    assert profile["03_simpler_evaluation"]["base"] == tuning["base"]


def test_a_released_model_goes_through_tuning_evaluation_and_maps(run: tuple[str, dict[str, Any]]) -> None:
    base, result = run
    assert result["failed"] is None
    folder = Path(result["output"])
    tuned = summary(result, "02_fine_tuning")
    assert tuned["base"] == base and tuned["precision"] == "bf16" and tuned["frozen_weights"] == "bf16"
    assert 0 < tuned["trainable"] < tuned["frozen"]
    for name in ("action_only", "with_reasoning"):
        vla = load_vla(folder / "02_fine_tuning" / name)
        assert type(vla) is type(load_vla(base)) and vla.conventions.normalisation == "refinevla"

    records = load_records(folder / "03_simpler_evaluation" / "records.parquet")
    assert [record.policy for record in records] == ["action_only", "with_reasoning", "base"]
    assert len({record.checkpoint_hash for record in records}) == 3

    maps = summary(result, "04_attention_maps")
    assert set(maps["policies"]) == {"action_only", "with_reasoning", "base"}
    assert (folder / "04_attention_maps" / "explorer.html").is_file()
    for picture in ("overlays", "shares", "covered", "deletion_insertion", "explorer"):
        assert (folder / "04_attention_maps" / f"{picture}.png").is_file(), picture
