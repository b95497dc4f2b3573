"""How well a base reads and writes: what is asked, how it is counted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from experiments import judging
from experiments.bases import BASES, Recording
from experiments.judging import ANSWERS, NAMED, answered, judge, main, true_statements
from refinevla_kit.policies import load_policy
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.settings import REPOSITORY

DEMO = REPOSITORY / "data" / "demo"


def test_right_answers_are_counted_by_kind_and_what_is_borderline_apart() -> None:
    rows = [
        ("d", 0, "where", "where?", "at the left.", "at the left.", True, True),
        ("d", 0, "where", "where?", "at the left.", "at the top left.", False, False),
        ("d", 1, "seen", "what?", "carrot, plate and towel.", "plate, carrot and towel.", False, False),
        ("d", 1, "seen", "what?", "carrot and towel.", "towel.", True, False),
    ]
    table = answered(pd.DataFrame(rows, columns=ANSWERS))
    assert table.index.tolist() == ["seen", NAMED, "where"]
    assert table.clear.str.split(" ").str[0].tolist() == ["0/1", "1/2", "1/1"]
    assert table["all"].str.split(" ").str[0].tolist() == ["0/2", "1/2", "1/2"]


def test_what_a_text_leaves_out_is_not_true() -> None:
    verdicts = ["true", "true", "false", "undecided", "left out"]
    rows = [("d", 0, 3, "held" if one != "left out" else one, "", one) for one in verdicts]
    table = true_statements(pd.DataFrame(rows, columns=judging.STATEMENTS))
    assert table.true.str.split(" ").str[0].to_dict() == {"held": "2/3", "all": "2/4"}


def test_each_episode_is_asked_a_few_questions_of_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        VLAPolicy,
        "decide",
        lambda _, images, *given: [SimpleNamespace(rationale="no.")] * len(images),
    )
    monkeypatch.setattr(VLAPolicy, "explain", lambda *given: "No text.")
    policy = load_policy(BASES["widowx"], order="rationale_first")
    table, stated = judge(policy, DEMO, 2, seed=0)
    assert table.groupby(["episode", "kind"]).size().max() == 2
    assert (table.right == ((table.kind == "done") & (table.wanted == "no."))).all()
    assert set(stated.verdict) == {"left out"} and len(stated) == 8 * stated.episode.nunique()
    pd.testing.assert_frame_equal(judge(policy, DEMO, 2, seed=0)[0], table)


@pytest.mark.slow
def test_a_base_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = (Recording("few", "widowx_carrot_on_plate", 1),)
    monkeypatch.setattr(judging, "FRESH", {"widowx": few, "google_robot": few})
    main(["widowx", "--output", str(tmp_path)])
    assert "point" in capsys.readouterr().out
    folder = next(tmp_path.glob("widowx-*"))
    table = pd.read_parquet(folder / "answers.parquet")
    assert table.columns.tolist() == [*ANSWERS, "checkpoint_hash"] and table.right.mean() > 0.5
    stated = pd.read_parquet(folder / "statements.parquet")
    assert (stated.verdict == "true").mean() > 0.5
    with pytest.raises(SystemExit, match=r"judging: .*robot"):
        main(["google_robot", "--base", str(BASES["widowx"]), "--output", str(tmp_path)])
