"""Interventions on trained policies: a table of states and one of episodes, which goes on where it was."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

from experiments import interventions
from tests.conftest import REPOSITORY

SHIPPED = REPOSITORY / "data" / "checkpoints"


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
        for arm in (*interventions.ARMS, "empty_texts"):
            folder = tmp_path / "run" / "runs" / f"{arm}-seed{seed}-0"
            folder.mkdir(parents=True)
            (folder / arm).symlink_to(SHIPPED / ("action_only" if arm == "empty_texts" else arm))
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
    assert set(states["arm"]) == {*played["arm"], "empty_texts"}
    assert states["measure"].str.startswith("text edited").any()
    assert states[states["measure"] == interventions.TRUE]["value"].between(0, 1).all()
    assert played.groupby(["arm", "seed", "way", "told"]).size().eq(1).all()
    printed = capsys.readouterr().out
    assert "changed on the way, told the other thing" in printed
    assert "(+0.000, +0.000 to +0.000)" in printed, "the other arm is the control under another name"
    written = (tmp_path / "told_otherwise.parquet").read_bytes()
    monkeypatch.setattr(sys, "argv", [*arguments, "--parts", "episodes"])
    interventions.main()
    assert (tmp_path / "told_otherwise.parquet").read_bytes() == written
