"""What fine-tuning costs on what the base can do already, and what the average of both weights gives back.

    python -m experiments.averaged_weights [runs/laptop] [--shares 0,0.25,0.5] [--episodes 24]
        [--output runs/averaged_weights]

Both policies of notebook 2 against `compact_base`: each weight is `share` of the base's and the rest of the
fine-tuned one's (Wortsman et al. 2022, arXiv 2109.01903). All play the four tasks from the grid, which the
base can do, and the two things after one another that it cannot; so does the base. Goes on where it was
stopped; prints a table with the held-out action loss, and leaves `records.parquet`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from refinevla_kit.evaluation import evaluate, load_records
from refinevla_kit.evaluation.intervals import rate
from refinevla_kit.evaluation.records import save_parquet
from refinevla_kit.evaluation.statistics import compare
from refinevla_kit.figures.style import interval_text, markdown, points_text, rate_text
from refinevla_kit.files import read_json
from refinevla_kit.policies import load_policy
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.tasks import WIDOWX_TASKS, find_tasks
from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.examples import Examples, load_examples
from refinevla_kit.training.loop import validate
from refinevla_kit.vlas.compact import load

BASE = REPOSITORY / "data" / "checkpoints" / "compact_base"
ARMS = ("action_only", "with_reasoning")
FOUR = tuple(task.name for task in WIDOWX_TASKS)
IN_TURN = tuple(task.name for task in find_tasks("widowx_language_held_out") if len(task.goals) > 1)


@torch.no_grad()
def average(policy: Path, share: float, path: Path) -> Path:
    """A checkpoint at `path` with the average of the weights of `policy` and of the base, whose part is
    `share`.
    """
    vla, base = load(policy), dict(load(BASE).model.named_parameters())
    for name, tensor in vla.model.named_parameters():
        tensor.lerp_(base[name], share)
    return vla.save(path)


def held_out_loss(path: Path, examples: Examples) -> float:
    """Nats an action word, on frames that fine-tuning held out."""
    _, kept_back = examples.split()
    return validate(load(path), examples, kept_back, TrainingConfig(1, 32))["loss_action"]


def main() -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", default=REPOSITORY / "runs" / "laptop")
    parser.add_argument("--shares", default="0,0.25,0.5", help="of the base, comma-separated")
    parser.add_argument("--episodes", type=int, default=24, help="starts of the grid a task")
    parser.add_argument("--workers", type=int, default=2, help="simulator processes")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "runs" / "averaged_weights")
    given = parser.parse_args()
    examples = load_examples(read_json(given.run / "01_teacher_annotation" / "summary.json")["dataset"])
    torch.set_num_threads(1)  # the simulators have the other cores
    players = {"base": BASE}
    for arm in ARMS:
        for share in map(float, given.shares.split(",")):
            name = f"{arm}_{share:g}"
            players[name] = average(given.run / "02_fine_tuning" / arm, share, given.output / name)
    records = []
    for name, path in players.items():
        policy, played = load_policy(path, name), given.output / f"{name}.parquet"
        evaluate(policy, [*FOUR, *IN_TURN], given.episodes, workers=given.workers, output=played)
        records += load_records(played)
    save_parquet(records, given.output / "records.parquet")
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
