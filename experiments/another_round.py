"""What chance does to a base: one more round of learning from the shipped base, with several seeds.

    python -m experiments.another_round google_robot [--seeds 0 1] [--episodes 3] [--output FOLDER]
    python -m experiments.another_round widowx --official FOLDER

The round is like the last one of the WidowX's base: with each seed the base drives other episodes, learns
from these alone, in another order, and is averaged with what it was. Then the base, what the seeds made of it
and the mean of their weights (Wortsman et al. 2022, arXiv 2203.05482) play the same starts, spread over the
grid. Goes on where it was stopped, so that each seed may have a process of its own (`--until learn`); prints
a table, and leaves `records.parquet`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState

from experiments.bases import ROUNDS, Recording, Round, drive, learn_round
from experiments.playing import play_each
from experiments.pretraining import save_base
from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.statistics import PUBLISHED_AVERAGE, compare, summarise
from refinevla_kit.figures.success import comparison_table, success_table
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.tasks import PUBLISHED_WEIGHTS
from refinevla_kit.vlas.compact import load

BASES = {"widowx": "compact_base", "google_robot": "google_base"}
DRIVEN = {
    "widowx": ROUNDS["widowx"][-1].driven,
    "google_robot": (
        Recording("drawers", "open_close_drawer", 2),
        Recording("cans", "pick_coke_can", 3),
        Recording("near", "move_near", 12),
    ),
}
LEARNING = ROUNDS["widowx"][-1].config
FIRST_SEED = 1000  # the recipe has lower ones


def learn_again(robot: str, seed: int, folder: Path, official: Path | None) -> Path:
    """The checkpoint that one seed makes of the shipped base, where it is not there yet."""
    base, target = shipped(robot), folder / "base"
    driven = drive(base, DRIVEN[robot], folder, official, FIRST_SEED + seed)
    if not target.exists():
        one = Round(replace(LEARNING, seed=FIRST_SEED + seed), kept=ROUNDS[robot][-1].kept)
        learn_round(one, base, [], driven, folder / "learning", target, PartialState())
    return target


@torch.no_grad()
def mean_of(seeds: dict[str, Path], target: Path) -> Path:
    """A checkpoint with the mean of the weights of several, where it is not there yet."""
    if not target.exists():
        vla, *others = map(load, seeds.values())
        weights = [dict(one.model.named_parameters()) for one in (vla, *others)]
        for name, tensor in weights[0].items():
            tensor.copy_(torch.stack([each[name] for each in weights]).mean(0))
        vla.provenance["improved"][-1].update(mean_of=list(seeds))
        save_base(vla, target)
    return target


def shipped(robot: str) -> Path:
    """The base that is gone on from."""
    return REPOSITORY / "data" / "checkpoints" / BASES[robot]


def main(arguments: list[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.another_round",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("robot", choices=sorted(BASES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--official", type=Path, help="SimplerEnv's own assets; without, those are left out")
    parser.add_argument("--until", choices=("learn", "play"), default="play", help="the last stage")
    parser.add_argument("--episodes", type=int, default=3, help="starts a task and variant")
    parser.add_argument("--workers", type=int, default=2, help="simulator processes")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "runs" / "another_round")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # a process a seed, and simulators beside a policy
    folder, players = given.output / given.robot, {"base": shipped(given.robot)}
    try:
        for seed in given.seeds:
            name = f"seed_{seed}"
            players[name] = learn_again(given.robot, seed, folder / name, given.official)
        if given.until == "play":
            made = {name: path for name, path in players.items() if name != "base"}
            if len(made) > 1:
                players["mean"] = mean_of(made, folder / "mean")
            play(players, given.robot, given.episodes, given.workers, folder)
    except KitError as error:
        raise SystemExit(f"another_round: {error}") from None


def play(players: dict[str, Path], robot: str, episodes: int, workers: int, folder: Path) -> None:
    """Play what the published average is of, and print how each went, and each seed beside the base."""
    records = play_each(players, folder, PUBLISHED_WEIGHTS[robot], "spread", episodes, workers=workers)
    print(success_table(summarise(records)).to_string())
    for name in [*players][1:]:  # all but the base
        against = compare(records, name, "base", task=PUBLISHED_AVERAGE)
        print("\n", comparison_table([against]).T.to_string())


if __name__ == "__main__":
    main()
