"""What a run left becomes the repository's own, all of it or nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation import load_records
from refinevla_kit.settings import REPOSITORY
from scripts.ship_run import RECORDS, ship, success_table

SHIPPED = REPOSITORY / "data" / "records" / "records.parquet"


def made(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_what_the_repository_shows_is_replaced_by_the_run(tmp_path: Path) -> None:
    run = made(
        tmp_path / "run",
        "02_fine_tuning/action_only/model.safetensors",
        "02_fine_tuning/with_reasoning/model.safetensors",
        "02_fine_tuning/training/action_only/history.jsonl",
        "02_fine_tuning/training/with_reasoning/history.jsonl",
        "03_simpler_evaluation/success.png",
        "03_simpler_evaluation/other.png",
        "04_attention_maps/scores.parquet",
        RECORDS,
    )
    home = made(
        tmp_path / "home",
        "figures/success.png",
        "data/records/records.parquet",
        "data/checkpoints/action_only/old",
    )
    for table in (RECORDS, "04_attention_maps/scores.parquet"):
        shutil.copyfile(SHIPPED, run / table)
    ship(run, home)
    kept = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}
    assert kept == {
        "figures/success.png",
        "data/records/records.parquet",
        "data/records/attention_scores.parquet",
        "data/checkpoints/action_only/model.safetensors",
        "data/checkpoints/with_reasoning/model.safetensors",
        "data/checkpoints/action_only/history.jsonl",
        "data/checkpoints/with_reasoning/history.jsonl",
        "data/checkpoints/action_only/README.md",
        "data/checkpoints/with_reasoning/README.md",
        "data/records/README.md",
    }
    card = ModelCard.load(home / "data/checkpoints/with_reasoning/README.md")
    shares = {each.dataset_config: each.metric_value for each in card.data.eval_results or []}
    won = [
        record.success_last
        for record in load_records(SHIPPED)
        if record.policy == "with_reasoning" and record.task == "widowx_spoon_on_towel"
    ]
    share = shares["widowx_spoon_on_towel, visual matching, embedded assets"]
    assert share == pytest.approx(sum(won) / len(won), abs=1e-4)
    assert (home / "figures/success.png").read_text() == "03_simpler_evaluation/success.png"


def test_a_run_that_is_not_whole_changes_nothing(tmp_path: Path) -> None:
    home = made(tmp_path / "home", "figures/success.png", "data/records/records.parquet")
    with pytest.raises(KitError, match=r"there is no .*action_only -> run all six notebooks"):
        ship(made(tmp_path / "run", RECORDS), home)
    assert (home / "figures/success.png").read_text() == "figures/success.png"


def test_the_table_has_a_row_a_policy_and_a_column_a_task() -> None:
    heads, _, *rows = success_table(load_records(SHIPPED)).strip().splitlines()
    assert heads.count("|") == 7 and len(rows) == 4
    assert rows[-1].startswith("| demonstrator") and rows[-1].count("24/24 = 100 %") == 4
