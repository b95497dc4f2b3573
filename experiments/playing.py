"""Several checkpoints on the same episodes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refinevla_kit.evaluation import evaluate, load_records, plan
from refinevla_kit.evaluation.records import EpisodeRecord, save_parquet
from refinevla_kit.policies import load_policy


def play_each(players: Mapping[str, Path], folder: Path, *where: Any, workers: int) -> list[EpisodeRecord]:
    """Play every checkpoint, under its name, and keep the records of all in `folder/records.parquet`.

    Each has a file of its own beside it, from which a run that was stopped goes on; of what lies there from
    another one, that asked for other episodes, nothing is taken.

    Args:
        players: name -> checkpoint.
        folder: of the records.
        where: tasks, episodes and their number, as `evaluate` takes them after the policy.
        workers: simulator processes.
    """
    records: list[EpisodeRecord] = []
    for name, path in players.items():
        policy, played = load_policy(path, name), folder / f"{name}.parquet"
        wanted = set(plan(policy, *where))
        evaluate(policy, *where, workers=workers, output=played)
        records += [record for record in load_records(played) if record.key in wanted]
    save_parquet(records, folder / "records.parquet")
    return records
