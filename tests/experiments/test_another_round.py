"""One more round of learning from a base, with several seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments import another_round
from experiments.another_round import DRIVEN, FIRST_SEED, learn_again, main
from experiments.bases import BASES, ROUNDS, Recording
from refinevla_kit.evaluation import load_records
from refinevla_kit.files import sha256
from refinevla_kit.policies import load_policy
from refinevla_kit.tasks import find_tasks

TASK = "widowx_carrot_on_plate"


@pytest.mark.slow
def test_each_seed_drives_learns_and_plays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(another_round, "DRIVEN", {"widowx": (Recording("driven", TASK, 1),)})
    monkeypatch.setattr(another_round, "LEARNING", replace(another_round.LEARNING, steps=1, batch_size=4))
    monkeypatch.setattr(another_round, "PUBLISHED_WEIGHTS", {"widowx": {TASK: 1}})
    given = ["widowx", "--episodes", "1", "--workers", "0", "--output", str(tmp_path)]
    main([*given, "--seeds", "1", "--until", "learn"])
    (folder,) = tmp_path.iterdir()
    made = sha256(folder / "seed_1" / "base")
    assert not (folder / "records.parquet").exists()
    main([*given, "--seeds", "0", "1"])
    assert sha256(folder / "seed_1" / "base") == made, "what is finished is not done again"
    made_by = {seed: folder / f"seed_{seed}" / "base" for seed in (0, 1)}
    policies = [load_policy(path) for path in made_by.values()]
    rounds = [policy.vla.provenance["improved"][-1] for policy in policies]
    assert [one["seed"] for one in rounds] == [FIRST_SEED, FIRST_SEED + 1]
    assert {one["kept"] for one in rounds} == {ROUNDS["widowx"][-1].kept}
    assert rounds[0]["driven"] != rounds[1]["driven"], "each seed drives episodes of its own"
    records = load_records(folder / "records.parquet")
    assert [record.policy for record in records] == ["base", "seed_0", "seed_1", "mean-0-1"]
    assert len({record.checkpoint_hash for record in records}) == 4
    mean, *seeds = (
        load_policy(path).vla.model.state_dict() for path in (folder / "mean-0-1", *made_by.values())
    )
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, (seeds[0][name] + seeds[1][name]) / 2, rtol=1e-2, atol=1e-4)
    assert len({(record.task, record.episode_id) for record in records}) == 1
    assert "seed_0" in capsys.readouterr().out


@pytest.mark.slow
def test_a_round_goes_on_from_the_base_that_is_named_and_learns_from_what_the_demonstrator_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(another_round, "DRIVEN", {"widowx": (Recording("driven", TASK, 1),)})
    monkeypatch.setattr(another_round, "LEARNING", replace(another_round.LEARNING, steps=1, batch_size=4))
    monkeypatch.setattr(another_round, "OPENED", TASK)
    base = learn_again(BASES["widowx"], "widowx", 0, tmp_path / "once", None)
    made = learn_again(base, "widowx", 1, tmp_path / "twice", None, openings=1)
    once, twice = (load_policy(path).vla.provenance["improved"] for path in (base, made))
    assert twice[:-1] == once and once[-1]["seed"] == FIRST_SEED
    assert [[one["name"] for one in rounds[-1]["demonstrations"]] for rounds in (once, twice)] == [
        [],
        ["openings"],
    ]
    assert [[one["name"] for one in rounds[-1]["driven"]] for rounds in (once, twice)] == [["driven"]] * 2


def test_a_base_that_is_none_or_of_the_other_robot_is_refused_before_anything_is_driven(
    tmp_path: Path,
) -> None:
    for base in (BASES["google_robot"], tmp_path):
        with pytest.raises(SystemExit, match="another_round: "):
            main(["widowx", "--base", str(base), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_openings_are_of_a_robot_that_has_drawers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["widowx", "--openings", "1"])
    assert "only the Google Robot has drawers" in capsys.readouterr().err


def test_nothing_that_is_held_out_is_driven() -> None:
    for robot, recordings in DRIVEN.items():
        tasks = [task for one in recordings for task in find_tasks(one.tasks)]
        assert {task.robot for task in tasks} == {robot} and not any(task.held_out for task in tasks)
