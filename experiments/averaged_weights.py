"""What fine-tuning costs on what the base can do already, and what the average of both weights gives back.

    python -m experiments.averaged_weights [runs/laptop] [--shares 0 0.25 0.5] [--episodes 24]
        [--output runs/averaged_weights]

Both policies of a run of notebook 2 on the WidowX are fine-tuned as there, but for the share of the base in
the average of its weights and theirs (`TrainingConfig.base_share`). All play the four tasks from the grid,
which the shipped base can do, and the two things after one another that it cannot; so does the base. Goes on
where it was stopped; prints a table with the held-out action loss, and leaves `records.parquet`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from experiments.playing import play_each
from refinevla_kit.episodes import open_dataset
from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.intervals import rate
from refinevla_kit.evaluation.statistics import compare
from refinevla_kit.figures.style import interval_text, markdown, points_text, rate_text
from refinevla_kit.files import read_json
from refinevla_kit.policies import load_policy
from refinevla_kit.settings import REPOSITORY, Reading, Settings
from refinevla_kit.tasks import WIDOWX_TASKS, find_tasks
from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.examples import Examples, load_examples
from refinevla_kit.training.loop import validate
from refinevla_kit.training.mixture import with_others
from refinevla_kit.training.policy_run import train_policy

FOUR = tuple(task.name for task in WIDOWX_TASKS)
IN_TURN = tuple(task.name for task in find_tasks("widowx_language_held_out") if len(task.goals) > 1)
READING = sorted(
    Reading.model_fields.keys() - Settings.model_fields.keys()
)  # what a run was told of its data


def find_summary(run: Path, notebook: str = "02_fine_tuning") -> dict[str, Any]:
    """What a notebook says of itself in a run's folder."""
    path = run / notebook / "summary.json"
    if not path.is_file():
        raise KitError(f"there is no {path}", "run notebooks 1 and 2 into this folder first")
    return dict(read_json(path))


def examples_of(said: Mapping[str, Any], rationales: str | None) -> Examples:
    """The dataset that a notebook names in its summary, read as it was told to, and those mixed with it."""
    told = {name: said[name] for name in READING if said.get(name) is not None}
    return with_others(
        load_examples(open_dataset(said["dataset"], **told), rationales), said.get("mixture") or {}
    )


def configs_of(tuned: Mapping[str, Any]) -> dict[str, TrainingConfig]:
    """How notebook 2 fine-tuned both policies, from its summary."""
    given = {name: tuned[name] for name in tuned.keys() & TrainingConfig.__dataclass_fields__.keys()}
    config = TrainingConfig(**given)
    control = replace(config, lambda_reasoning=0, order=TrainingConfig.order)
    return {"action_only": control, "with_reasoning": config}


def held_out_loss(path: Path, examples: Examples) -> float:
    """Nats an action word, on frames that fine-tuning held out, in the order that the policy learned."""
    _, kept_back = examples.split()
    policy = load_policy(path)
    config = TrainingConfig(1, 32, order=policy.order)
    return validate(policy.vla, examples, kept_back, config)["loss_action"]


def main() -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", default=REPOSITORY / "runs" / "laptop")
    parser.add_argument("--shares", type=float, nargs="+", default=[0, 0.25, 0.5], help="of the base")
    parser.add_argument("--episodes", type=int, default=24, help="starts of the grid a task")
    parser.add_argument("--workers", type=int, default=2, help="simulator processes")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "runs" / "averaged_weights")
    given = parser.parse_args()
    try:
        tuned = find_summary(given.run)
        examples, base = examples_of(tuned, tuned["rationales"]), Path(tuned["base"])
        players = {"base": base}
        for arm, config in configs_of(tuned).items():
            for share in given.shares:
                name = f"{arm}_{share:g}"
                one = replace(config, base_share=share)
                train_policy(base, examples, one, given.output, name)
                players[name] = given.output / name
        torch.set_num_threads(1)  # the simulators have the other cores
        records = play_each(players, given.output, [*FOUR, *IN_TURN], given.episodes, workers=given.workers)
    except KitError as error:
        raise SystemExit(f"averaged_weights: {error}") from None
    of_four = [record for record in records if record.task in FOUR]
    lines = []
    for name, path in players.items():
        cells = [name, f"{held_out_loss(path, examples):.3f}"]
        for tasks in (FOUR, IN_TURN):
            last = [one.success_last for one in records if one.policy == name and one.task in tasks]
            cells.append(rate_text(rate(sum(last), len(last))))
        against = compare(of_four, name, "base")
        change = f"{points_text(against.difference)} ({interval_text(against.low, against.high)})"
        lines.append([*cells, change])
    heads = [
        "",
        "held-out action loss",
        "the four tasks",
        "two things in turn",
        "the four tasks, minus the base",
    ]
    print(markdown(heads, lines))


if __name__ == "__main__":
    main()
