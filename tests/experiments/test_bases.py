"""The recipe of the shipped bases, on one episode: what is finished is not done again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments import bases
from experiments.bases import RECORDINGS, ROUNDS, Recording, Round, main
from refinevla_kit.files import sha256
from refinevla_kit.policies import load_policy
from refinevla_kit.tasks import find_tasks


@pytest.mark.slow
def test_a_base_is_recorded_learned_from_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(ROUNDS["widowx"][0].config, grounding_steps=1, steps=2, batch_size=4)
    more = replace(few, grounding_steps=0, steps=1)
    driven, alone = (Recording(name, "widowx_carrot_on_plate", 1) for name in ("driven", "alone"))
    monkeypatch.setattr(bases, "RECORDINGS", {"widowx": (Recording("few", "widowx_carrot_on_plate", 1),)})
    rounds = (
        Round(few),
        Round(more, (), (driven,), 2),
        Round(more, (), (alone,), afresh=True, kept=0.5),
        Round(few, times=2, patch=10),
    )
    monkeypatch.setattr(bases, "ROUNDS", {"widowx": rounds})
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    main(["widowx", str(tmp_path)])
    last = tmp_path / "widowx" / "base_3"
    policy, digest = load_policy(last), sha256(last)
    assert policy.order == "action_first" and policy.conventions.robot == "widowx"
    assert policy.vla.grid == (12, 16)
    assert [one["name"] for one in policy.vla.provenance["demonstrations"]] == ["few", "driven", "driven"]
    improved = load_policy(tmp_path / "widowx" / "base_1").vla.provenance["improved"][0]
    assert improved["steps"] == 1
    assert [one["name"] for one in improved["driven"]] == ["driven", "driven"]
    averaged = load_policy(tmp_path / "widowx" / "base_2").vla.provenance["improved"][-1]
    assert averaged["demonstrations"] == [] and averaged["kept"] == 0.5
    assert [one["name"] for one in averaged["driven"]] == ["alone"]
    main(["widowx", str(tmp_path)])
    assert sha256(last) == digest


def test_what_is_held_out_is_never_recorded() -> None:
    for robot, demonstrated in RECORDINGS.items():
        recordings = [*demonstrated, *(one for each in ROUNDS[robot] for one in each.driven)]
        tasks = [task for one in recordings for task in find_tasks(one.tasks)]
        assert {task.robot for task in tasks} == {robot}
        assert not any(task.held_out for task in tasks)
        assert len({one.name for one in recordings}) == len(recordings)


def test_rounds_name_only_recordings_that_there_are() -> None:
    for robot, rounds in ROUNDS.items():
        assert {name for one in rounds for name in one.recordings} <= {one.name for one in RECORDINGS[robot]}
