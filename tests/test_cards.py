"""Cards have the Hub's form, say nothing that is not in their text or beside them, and keep that text."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import DatasetCard, ModelCard

from experiments.pretraining import write_card
from refinevla_kit.episodes import DatasetWriter, Episode
from refinevla_kit.episodes.contract import ACTION_NAMES
from refinevla_kit.settings import REPOSITORY
from scripts import cards

BASES = sorted(path.name for path in cards.CHECKPOINTS.glob("*_base"))
POLICIES = ("action_only", "with_reasoning")
ROW = {"assets": "embedded", "setting": "visual matching", "task": "widowx_carrot_on_plate"}


@pytest.mark.parametrize("name", [*BASES, *POLICIES])
def test_a_checkpoints_head_has_the_rates_of_its_table_and_no_others(name: str) -> None:
    card = ModelCard.load(cards.CHECKPOINTS / name / cards.CARD)
    tables = re.findall(r"^\| (\w+) \| ([\w ]+) \| (\w+) \| (\d+)/(\d+) \| (\d+)/(\d+) \|$", card.text, re.M)
    assert len(tables) >= 4
    counted = [(each.metric_value, each.metric_args) for each in card.data.eval_results or []]
    assert counted == [
        (round(int(row[at]) / int(row[at + 1]), 4), {"successes": int(row[at]), "episodes": int(row[at + 1])})
        for row in tables
        for at in (3, 5)
    ]
    assert (card.data.license, card.data.pipeline_tag) == ("apache-2.0", "robotics")
    assert card.data.library_name == "refinevla_kit" and card.data.language == "en"
    assert ("google_robot" if name == "google_base" else "widowx") in (card.data.tags or [])


@pytest.mark.parametrize(
    ("name", "base"),
    [("compact_base", "acting_base"), ("google_base", "compact_base"), ("acting_base", None)]
    + [(name, "compact_base") for name in POLICIES],
)
def test_a_checkpoint_names_the_one_it_goes_on_from(name: str, base: str | None) -> None:
    assert ModelCard.load(cards.CHECKPOINTS / name / cards.CARD).data.base_model == base


@pytest.mark.parametrize("name", POLICIES)
def test_a_policys_table_is_what_its_records_say(name: str) -> None:
    records = pd.read_parquet(cards.RECORDS).query("policy == @name")
    for row in cards.RESULT.findall((cards.CHECKPOINTS / name / cards.CARD).read_text()):
        played = records[(records.task == row[2]) & (records.setting == row[1].replace(" ", "_"))]
        assert list(map(int, row[3:])) == [
            played.success_last.sum(),
            len(played),
            played.success_any.sum(),
            len(played),
        ]


@pytest.mark.parametrize("name", cards.DATASETS)
def test_a_datasets_head_names_its_tables_and_its_text_counts_them(name: str) -> None:
    folder = REPOSITORY / name
    card = DatasetCard.load(folder / cards.CARD)
    assert (card.data.license, card.data.task_categories) == ("apache-2.0", ["robotics"])
    shown = {path for each in card.data.configs for path in folder.glob(each["data_files"])}
    assert shown == {path for path in folder.rglob("*.parquet") if "meta" not in path.parts}
    if (folder / "meta").is_dir():
        info = json.loads((folder / "meta/info.json").read_text())
        assert f"{info['total_episodes']} episodes, {info['total_frames']} frames" in card.text
        assert "LeRobot" in card.data.tags and card.data.configs[0]["config_name"] == "default"


def test_recorded_data_of_others_are_not_called_simulated_or_licensed(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    with DatasetWriter(folder, 5, "my_robot", action_names=ACTION_NAMES) as writer:
        moves, own = np.zeros((3, 7), np.float32), np.zeros((3, 15), np.float32)
        writer.add(Episode(np.zeros((3, 48, 64, 3), np.uint8), moves, own, "put carrot on plate"))
    cards.main([str(folder)])
    card = DatasetCard.load(folder / cards.CARD)
    assert card.data.license is None and "simpler-env" not in card.data.tags
    assert "simulat" not in card.text
    head, text = "---\nlicense: mit\n---\n", card.text
    (folder / cards.CARD).write_text(head + text, encoding="utf-8")
    cards.main([str(folder)])
    assert DatasetCard.load(folder / cards.CARD).data.license == "mit"


def test_a_new_head_keeps_the_text(tmp_path: Path) -> None:
    folder = tmp_path / "compact_base"
    shutil.copytree(cards.CHECKPOINTS / "compact_base", folder)
    before = (folder / cards.CARD).read_text()
    cards.renew(folder)
    assert (folder / cards.CARD).read_text() == before, "and is the same from the same text"
    text = before.partition("\n---\n\n")[2]
    (folder / cards.CARD).write_text(text.replace("| 17/24 | 19/24 |", "| 18/24 | 19/24 |"))
    cards.renew(folder)
    changed = ModelCard.load(folder / cards.CARD)
    assert changed.text.strip() == text.replace("| 17/24 | 19/24 |", "| 18/24 | 19/24 |").strip()
    assert 0.75 in [each.metric_value for each in changed.data.eval_results or []]


def test_the_card_of_a_new_base_has_a_head_too(tmp_path: Path) -> None:
    shutil.copyfile(cards.CHECKPOINTS / "acting_base/model.safetensors", tmp_path / "model.safetensors")
    made = {"made_by": "a test", "pretraining": {"steps": 3}, "demonstrations": [], "scenery": []}
    rows = [ROW | {"last": 6, "any": 9, "episodes": 24}]
    write_card(tmp_path, made, rows, "Goes on from the weights of `../acting_base`.")
    card = ModelCard.load(tmp_path / cards.CARD)
    assert card.data.base_model == "acting_base"
    assert [each.metric_value for each in card.data.eval_results or []] == [0.25, 0.375]
    assert card.text.startswith("\n# Compact VLA, base\n\nMade by `a test`: {'steps': 3}.")


def test_a_policy_of_ones_own_gets_no_rates_of_a_shipped_one(tmp_path: Path) -> None:
    folder = tmp_path / "with_reasoning"
    shutil.copytree(cards.CHECKPOINTS / "with_reasoning", folder, ignore=lambda *_: [cards.CARD])
    cards.main([str(folder)])
    card = ModelCard.load(folder / cards.CARD)
    assert card.data.base_model == "compact_base" and not card.data.eval_results
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=r"cards: .*empty has neither weights nor tables -> give"):
        cards.main([str(tmp_path / "empty")])


@pytest.mark.parametrize("name", cards.ABOUT)
def test_a_card_of_records_tells_what_is_there(name: str) -> None:
    folder = REPOSITORY / "data" / name
    assert cards.dataset_text(folder).strip() in (folder / cards.CARD).read_text(encoding="utf-8")
