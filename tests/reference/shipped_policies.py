"""What the shipped policies do on the embedded WidowX tasks, episode by episode: play them, compare, keep.

python -m tests.reference.shipped_policies [--write]     # 192 episodes, about ten minutes on two cores
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from refinevla_kit.evaluation import evaluate, load_records
from refinevla_kit.policies import load_policy
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.tasks import WIDOWX_TASKS

REFERENCE = Path(__file__).with_suffix(".json")
POLICIES = ("action_only", "with_reasoning")
COLUMNS = ("success_any", "success_last", "grasped", "steps")
Outcomes = dict[str, list[bool | int]]


def play(policy: str, episodes: Iterable[int], output: Path, workers: int | None = 0) -> Outcomes:
    """Play a shipped policy on the four WidowX tasks.

    Args:
        policy: folder in data/checkpoints.
        episodes: numbers of grid episodes, of each task.
        output: parquet file of the records.
        workers: simulator processes, as `evaluate` has it.

    Returns:
        "policy task episode" -> values of `COLUMNS`.
    """
    checkpoint = REPOSITORY / "data" / "checkpoints" / policy
    evaluate(
        load_policy(checkpoint),
        "widowx",
        list(episodes),
        assets="embedded",
        workers=workers,
        output=output,
        progress=False,
    )
    return outcomes(output)


def outcomes(records: Path) -> Outcomes:
    """ "policy task episode" -> values of `COLUMNS`, of the shipped policies' records on disk of the four
    WidowX tasks.
    """
    found, tasks = {}, {task.name for task in WIDOWX_TASKS}
    for record in load_records(records):
        if record.policy not in POLICIES or record.task not in tasks:
            continue
        values = asdict(record)
        found[f"{record.policy} {record.task} {record.episode_id}"] = [values[name] for name in COLUMNS]
    return found


def differences(played: Outcomes, kept: Outcomes) -> list[str]:
    """One line for each episode that went another way than the one kept."""
    return [
        f"{episode}: {dict(zip(COLUMNS, values))}, kept is {dict(zip(COLUMNS, kept[episode]))}"
        for episode, values in played.items()
        if values != kept[episode]
    ]


def kept_outcomes() -> Outcomes:
    """What REFERENCE holds."""
    kept: Outcomes = json.loads(REFERENCE.read_text())
    return kept


def write(found: Outcomes) -> None:
    """One episode a line."""
    lines = [f"{json.dumps(episode)}: {json.dumps(values)}" for episode, values in found.items()]
    REFERENCE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="keep what was played as the reference")
    arguments = parser.parse_args()
    played: Outcomes = {}
    with tempfile.TemporaryDirectory() as folder:
        for policy in POLICIES:
            played |= play(policy, range(24), Path(folder) / f"{policy}.parquet", workers=None)
    if arguments.write:
        write(played)
    else:
        different = differences(played, kept_outcomes())
        print(*different, f"{len(played) - len(different)} of {len(played)} episodes as kept", sep="\n")


if __name__ == "__main__":
    main()
