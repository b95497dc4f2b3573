"""Interventions on trained policies: a table of states and one of episodes, which goes on where it was."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

from experiments import interventions
from refinevla_kit.errors import KitError
from tests.conftest import REPOSITORY

SHIPPED = REPOSITORY / "data" / "checkpoints"
POLICIES = {
    "action_only": "action_only",
    "with_reasoning": "with_reasoning",
    "empty_texts": "action_only",
    "action_only_wordless": "acting_base",
}


def episodes(arm: str, seed: int, obeyed: list[bool]) -> pd.DataFrame:
    return pd.DataFrame({"way": "listening", "told": False, "arm": arm, "seed": seed, "obeyed": obeyed})


def test_obedience_is_compared_by_training_seed() -> None:
    table = pd.concat(
        [
            episodes("base", -1, [True, False]),
            *(episodes("action_only", seed, [True, False, False, False]) for seed in (0, 1)),
            *(episodes("with_reasoning", seed, [True, True, False, False]) for seed in (0, 1)),
        ]
    )
    line = interventions.obeyed(table).splitlines()[-1]
    assert "told its own task" in line
    assert "1/2 = 50%" in line
    assert "2/8 = 25%" in line
    assert "4/8 = 50%" in line
    assert "+25.0 (+25.0 to +25.0)" in line


@pytest.mark.slow
def test_both_tables_are_made_of_the_policies_in_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        for arm, policy in POLICIES.items():
            folder = tmp_path / "run" / "runs" / f"{arm}-seed{seed}-0"
            folder.mkdir(parents=True)
            (folder / arm).symlink_to(SHIPPED / policy)
    monkeypatch.setattr(interventions, "HELD_OUT", interventions.HELD_OUT[:1])
    monkeypatch.setattr(interventions, "EPISODES", 1)
    monkeypatch.setattr(interventions, "EVERY", 40)
    monkeypatch.setattr(interventions, "STARTS", 1)
    arguments = ["interventions", str(tmp_path / "run"), "--output", str(tmp_path), "--workers", "0"]
    monkeypatch.setattr(sys, "argv", arguments)
    interventions.main()
    states = pd.read_parquet(tmp_path / "interventions.parquet")
    played = pd.read_parquet(tmp_path / "told_otherwise.parquet")
    assert set(played["arm"]) == {"base", *interventions.ARMS}
    assert set(states["arm"]) == {"base", *POLICIES}
    assert states.groupby(["arm", "seed"])["checkpoint_hash"].nunique().eq(1).all()
    said = states[states["measure"] == interventions.TRUE].set_index(["arm", "seed"])["value"]
    assert len(said) == 7 and "action_only_wordless" not in said, "it writes nothing"
    assert said["with_reasoning"].gt(0.6).all() and said["with_reasoning"].nunique() == 1
    edits = states[states["measure"].str.startswith("text edited")]
    assert set(edits["arm"]) == {"base", *POLICIES} - {"action_only_wordless"}
    assert edits["frames"].between(1, 2).all(), "every fourth frame, where there is something to edit"
    assert played.groupby(["arm", "seed", "way", "told"]).size().eq(1).all()
    printed = capsys.readouterr().out
    assert "changed on the way, told the other thing" in printed
    assert "(+0.000, +0.000 to +0.000)" in printed, "the other arm is the control under another name"
    written = (tmp_path / "told_otherwise.parquet").read_bytes()
    monkeypatch.setattr(sys, "argv", [*arguments, "--parts", "episodes"])
    interventions.main()
    assert (tmp_path / "told_otherwise.parquet").read_bytes() == written
    changed = tmp_path / "run" / "runs" / "action_only-seed0-0" / "action_only"
    changed.unlink()
    changed.symlink_to(SHIPPED / "with_reasoning")
    with pytest.raises(KitError, match=r"has rows of another action_only of seed 0 .* -> give another"):
        interventions.main()
    changed.unlink()
    changed.symlink_to(SHIPPED / "google_base")
    for other in (tmp_path / "run" / "runs").glob("with_reasoning-*"):
        (other / "with_reasoning").unlink()
        (other / "with_reasoning").symlink_to(SHIPPED / "google_base")
    with pytest.raises(KitError, match=r"acts for the google_robot -> give a run of following_laptop"):
        interventions.main()


def test_arms_are_compared_with_actions_only_from_the_same_base() -> None:
    values = {
        "action_only": 1.0,
        "text_dropout": 1.5,
        "action_only_wordless": 5.0,
        "with_reasoning_wordless": 4.0,
    }
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "measure": interventions.APART,
            "value": value + seed * (arm == "text_dropout"),
        }
        for arm, value in values.items()
        for seed in (0, 1)
    ]
    lines = interventions.of_arms(pd.DataFrame(rows)).splitlines()
    by_arm = {line.split(" | ")[0].strip("| "): line for line in lines}
    assert "2.000 (+1.000, -5.353 to +7.353)" in by_arm["text_dropout"]
    assert "4.000 (-1.000, -1.000 to -1.000)" in by_arm["with_reasoning_wordless"]
    assert "| 5.000 |" in by_arm["action_only_wordless"] and "| none |" in by_arm["action_only_wordless"]
