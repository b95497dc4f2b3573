"""What chance does to a base: one more round of learning from a base, with several seeds.

    python -m experiments.another_round google_robot [--openings 6] [--seeds 0 1] [--episodes 3]
    python -m experiments.another_round widowx --official FOLDER [--base FOLDER]

The round is like the last one of the WidowX's base: with each seed the base drives other episodes, learns
from these alone, in another order, and is averaged with what it was. Then the base, what the seeds made of it
and the mean of their weights (Wortsman et al. 2022, arXiv 2203.05482) play the same starts, spread over the
grid. Goes on where it was stopped, so that each seed may have a process of its own (`--until learn`); prints
a table, and leaves `records.parquet`.

It goes on from the shipped base. With `--base`, the one that the WidowX's last round went on from, the seeds
are other seeds of that round, and what is shipped plays beside them. With `--openings`, the demonstrator
opens drawers too.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState

from experiments.bases import BASES, ROUNDS, Recording, Round, drive, learn_round
from experiments.playing import play_each
from experiments.pretraining import save_base
from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.statistics import PUBLISHED_AVERAGE, compare, summarise
from refinevla_kit.figures.success import comparison_table, success_table
from refinevla_kit.policies import load_policy
from refinevla_kit.policies.conversion import check_conventions
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.tasks import PUBLISHED_WEIGHTS, find_tasks
from refinevla_kit.vlas.compact import load

DRIVEN = {
    "widowx": ROUNDS["widowx"][-1].driven,
    "google_robot": (
        Recording("drawers", "open_close_drawer", 2),
        Recording("cans", "pick_coke_can", 3),
        Recording("near", "move_near", 12),
    ),
}
LEARNING = ROUNDS["widowx"][-1].config
OPENED = "open_drawer"
FIRST_SEED = 1000  # the recipe has lower ones


def learn_again(
    base: Path, robot: str, seed: int, folder: Path, official: Path | None, openings: int = 0
) -> Path:
    """The checkpoint that one seed makes of a base, where it is not there yet.

    Args:
        base: the checkpoint that is gone on from.
        robot: whose.
        seed: of what is driven and of the learning.
        folder: of all that this seed makes.
        official: SimplerEnv's own assets; without, those are left out.
        openings: demonstrations of opening each drawer, a variant.
    """
    target, seed = folder / "base", FIRST_SEED + seed
    opened = [Recording("openings", OPENED, openings, noise=0.5)] if openings else []
    shown = drive(None, opened, folder, official, seed)
    driven = drive(base, DRIVEN[robot], folder, official, seed)
    if not target.exists():
        one = Round(replace(LEARNING, seed=seed), kept=ROUNDS[robot][-1].kept)
        learn_round(one, base, shown, driven, folder / "learning", target, PartialState())
    return target


@torch.no_grad()
def mean_of(seeds: dict[str, Path], target: Path) -> Path:
    """A checkpoint with the mean of the weights of several."""
    vla, *others = map(load, seeds.values())
    weights = [dict(one.model.named_parameters()) for one in (vla, *others)]
    for name, tensor in weights[0].items():
        tensor.copy_(torch.stack([each[name] for each in weights]).mean(0))
    vla.provenance["improved"][-1].update(mean_of=list(seeds))
    return save_base(vla, target)


def main(arguments: list[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.another_round",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("robot", choices=sorted(DRIVEN))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--base", type=Path, help="what is gone on from; by default the shipped base")
    parser.add_argument(
        "--openings", type=int, default=0, help="demonstrations of opening, a drawer and variant"
    )
    parser.add_argument("--official", type=Path, help="SimplerEnv's own assets; without, those are left out")
    parser.add_argument("--until", choices=("learn", "play"), default="play", help="the last stage")
    parser.add_argument("--episodes", type=int, default=3, help="starts a task and variant")
    parser.add_argument("--workers", type=int, default=2, help="simulator processes")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "runs" / "another_round")
    given = parser.parse_args(arguments)
    if given.openings and given.robot != "google_robot":
        parser.error("--openings: only the Google Robot has drawers")
    torch.set_num_threads(1)  # a process a seed, and simulators beside a policy
    base = given.base or BASES[given.robot]
    try:
        policy = load_policy(base)
        check_conventions(policy, find_tasks(given.robot)[0])
        made_from = f"{given.robot}-{policy.checkpoint_hash}-{given.openings}-openings"
        folder, players = given.output / made_from, {"base": base}
        if given.base:
            players["shipped"] = BASES[given.robot]
        for seed in given.seeds:
            name = f"seed_{seed}"
            players[name] = learn_again(
                base, given.robot, seed, folder / name, given.official, given.openings
            )
        if given.until == "play":
            made = {name: path for name, path in players.items() if name.startswith("seed_")}
            if len(made) > 1:
                name = "-".join(["mean", *map(str, given.seeds)])
                players[name] = mean_of(made, folder / name)
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
