"""Teaches policies to write a rationale first and to act on it, and plays them beside one that acts first.

    python -m experiments.writing_first [runs/laptop] [--steps 480] [--base-share 0.5] [--episodes 24]
        [--own-texts] [--seed 0] [--output runs/writing_first]

A teacher's text is always true. A policy that learned from such texts alone trusts what it then writes
itself, of which a tenth is wrong. So with `--own-texts` there is one more, for which the first has written
about every frame of the demonstrations: it has learned the same actions after the teacher's text and after
the written one, as often after either. All start from `compact_base` and take as many steps.

Takes the demonstrations of notebook 1 on the WidowX. Goes on where it was stopped; prints a table, and leaves
`records.parquet`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import trange

from experiments.averaged_weights import examples_of, find_summary
from experiments.playing import play_each
from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.records import EpisodeRecord
from refinevla_kit.evaluation.statistics import compare_each
from refinevla_kit.figures.style import markdown
from refinevla_kit.figures.success import comparison_table
from refinevla_kit.files import read_json, write_json
from refinevla_kit.policies import load_policy
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.examples import SHIPPED_BASE, Examples
from refinevla_kit.training.mixture import mix
from refinevla_kit.training.policy_run import train_policy

ACTS_FIRST, TAUGHT, OWN = "acts_first", "writes_first", "writes_first_own_texts"
AT_ONCE = 64  # frames written about together


def written_by(policy_folder: Path, examples: Examples, path: Path) -> tuple[str, ...]:
    """What a policy writes about every frame before it acts; kept in `path`, for this policy."""
    policy = load_policy(policy_folder)
    kept = read_json(path) if path.exists() else {}
    if kept.get("policy") != policy.checkpoint_hash:
        texts: list[str] = []
        for first in trange(0, len(examples), AT_ONCE, desc="writing", unit="batch"):
            rows = np.arange(first, min(first + AT_ONCE, len(examples)))
            sentences = [examples.instructions[row] for row in rows]
            own = None if examples.proprioception is None else examples.proprioception[rows]
            texts += [action.rationale for action in policy.decide(examples.shown(rows), sentences, own)]
        kept = {"policy": policy.checkpoint_hash, "texts": texts}
        write_json(path, kept)
    return tuple(kept["texts"])


def main() -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", default=REPOSITORY / "runs" / "laptop")
    parser.add_argument("--steps", type=int, default=480)
    parser.add_argument("--base-share", type=float, default=0.5, help="of the base's weights in each average")
    parser.add_argument("--episodes", type=int, default=24, help="starts of the grid a task")
    parser.add_argument("--own-texts", action="store_true", help="teach one on what the first writes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="simulator processes")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "runs" / "writing_first")
    given = parser.parse_args()
    try:
        records = teach_and_play(given)
    except KitError as error:
        raise SystemExit(f"writing_first: {error}") from None
    for name in (TAUGHT, OWN) if given.own_texts else (TAUGHT,):
        table = comparison_table(compare_each(records, name, ACTS_FIRST, ["last"])).reset_index()
        print(markdown(list(map(str, table.columns)), table.astype(str).to_numpy().tolist()), "\n")


def teach_and_play(given: argparse.Namespace) -> list[EpisodeRecord]:
    """Train those policies that are not trained yet, and play all."""
    data = find_summary(given.run, "01_teacher_annotation")
    examples = examples_of(data, data["rationales_file"])
    config = TrainingConfig(
        given.steps,
        32,
        5e-4,
        lambda_reasoning=0.3,
        freeze_layers=3,
        order="rationale_first",
        seed=given.seed,
        validate_every=max(1, given.steps // 6),
        base_share=given.base_share,
    )
    train_policy(SHIPPED_BASE, examples, replace(config, order="action_first"), given.output, ACTS_FIRST)
    train_policy(SHIPPED_BASE, examples, config, given.output, TAUGHT)
    if given.own_texts:
        texts = written_by(given.output / TAUGHT, examples, given.output / "written.json")
        both = mix([examples, replace(examples, rationales=texts)], [1, 1])
        train_policy(SHIPPED_BASE, both, config, given.output, OWN)
    torch.set_num_threads(1)  # the simulators have the other cores
    arms = (ACTS_FIRST, TAUGHT, *([OWN] if given.own_texts else []))
    players = {name: given.output / name for name in arms}
    return play_each(players, given.output, "widowx", given.episodes, workers=given.workers)


if __name__ == "__main__":
    main()
