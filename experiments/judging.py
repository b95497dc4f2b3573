"""How well a base reads and writes: whether it answers questions about frames that it has never seen, and how
much of what it writes of itself is true.

    python -m experiments.judging widowx --official FOLDER [--base FOLDER]
    python -m experiments.judging google_robot [--base FOLDER]

The demonstrator plays anew, from a seed that no recipe has, and also what the language suite holds out of
them. Of each episode are drawn a few questions of each kind and one frame to write about. What is recorded is
not recorded again. Prints tables; leaves `answers.parquet` and `statements.parquet` in a folder of the base.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from experiments.bases import BASES, Recording, drive
from experiments.questions import WORDINGS, answers, ask, right
from refinevla_kit.episodes import open_dataset
from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.intervals import Rate, rate
from refinevla_kit.evaluation.written import LEAST, write_about
from refinevla_kit.figures.style import rate_text
from refinevla_kit.files import replacing
from refinevla_kit.policies import load_policy
from refinevla_kit.policies.conversion import check_conventions
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.tasks import find_tasks
from refinevla_kit.training.examples import load_examples

FRESH = {
    "widowx": (
        Recording("four", "widowx", 10, noise=1),
        Recording("trained_pairs", "widowx_language_trained", 4, noise=1),
        Recording("held_out_pairs", "widowx_language_held_out", 8, noise=1),
        Recording("four_official", "widowx", 6, official=True, noise=1),
        Recording("trained_pairs_official", "widowx_language_trained", 2, official=True, noise=1),
        Recording("held_out_pairs_official", "widowx_language_held_out", 4, official=True, noise=1),
    ),
    "google_robot": (
        Recording("cans", "pick_coke_can", 3, noise=1),
        Recording("near", "move_near", 10, noise=1),
        Recording("drawers", "open_close_drawer", 1, noise=0.5),
        Recording("trained_things", "google_robot_language_trained", 1, noise=1),
        Recording("held_out_things", "google_robot_language_held_out", 3, noise=1),
    ),
}
SEED = 3000  # recipes and rounds have lower ones
DRAWN = 8.0  # questions about a frame, from which those of an episode are drawn
NAMED = "seen, in any order"
ANSWERS = ["dataset", "episode", "kind", "question", "wanted", "said", "clear", "right"]
STATEMENTS = ["dataset", "episode", "frame", "kind", "said", "verdict"]


def judge(policy: VLAPolicy, dataset: Path, each: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What a policy answers about frames of a dataset, and what it states of itself about one an episode.

    Args:
        policy: its order is "rationale_first".
        dataset: with the simulator's sidecar.
        each: questions of a kind an episode.
        seed: of what is drawn.

    Returns:
        A row a question: `dataset`, `episode`, `kind`, `question`, `wanted`, `said`, `clear`, `right`; and a
        row a statement: `dataset`, `episode`, `frame`, `kind`, `said`, `verdict`. What a text leaves out of
        the least that a rationale says has a row as well, of the verdict "left out".
    """
    examples, source, rng = load_examples(dataset), open_dataset(dataset), np.random.default_rng(seed)
    asked = ask(dataset, DRAWN, seed)
    drawn = pd.DataFrame({"episode": examples.episodes[[one.row for one in asked]], "asked": asked})
    drawn["kind"] = [one.kind for one in asked]
    drawn = drawn.sample(frac=1, random_state=rng).groupby(["episode", "kind"]).head(each).sort_index()
    said = answers(policy, examples, drawn.asked.tolist())
    rows = [
        (dataset.name, episode, one.kind, one.text, one.answer, answer, one.clear, right(one, answer))
        for episode, one, answer in zip(drawn.episode, drawn.asked, said, strict=True)
    ]
    frames = [(info.index, int(rng.integers(info.length))) for info in source.episodes]
    stated = []
    for frame, one in zip(frames, write_about(policy, source, frames), strict=True):
        found: list[tuple[str, str, str]] = [
            (finding.kind, finding.text, finding.verdict) for finding in one.findings
        ]
        found += [("left out", "", "left out")] * (LEAST - len(found))
        stated += [(dataset.name, *frame, *each) for each in found]
    return pd.DataFrame(rows, columns=ANSWERS), pd.DataFrame(stated, columns=STATEMENTS)


def answered(table: pd.DataFrame) -> pd.DataFrame:
    """The share of right answers of each kind, with its interval, among clear questions and among all.

    Args:
        table: answers, as `judge` gives them.
    """
    seen = table[table.kind == "seen"]
    named = seen.assign(kind=NAMED, clear=True, right=_names(seen.wanted) == _names(seen.said))
    every = pd.concat([table, named])
    kinds = [kind for kind in ("seen", NAMED, *WORDINGS) if (every.kind == kind).any()]
    groups = {kind: every[every.kind == kind] for kind in kinds}
    clear = {kind: _share(group.right[group.clear.astype(bool)]) for kind, group in groups.items()}
    both = {kind: _share(group.right) for kind, group in groups.items()}
    return pd.DataFrame({"clear": clear, "all": both})


def true_statements(table: pd.DataFrame) -> pd.DataFrame:
    """The share of true statements of each kind among those that could be checked, with its interval.

    Args:
        table: statements, as `judge` gives them.
    """
    checked = table[table.verdict != "undecided"]
    groups = {str(kind): group for kind, group in checked.groupby("kind") if kind != "left out"}
    shares = {kind: _share(group.verdict == "true") for kind, group in {**groups, "all": checked}.items()}
    return pd.DataFrame({"true": shares})


def _names(lists: pd.Series) -> pd.Series:
    """What is named in "carrot, plate and towel.", in the alphabet's order."""
    return lists.map(lambda text: " ".join(sorted(re.split(", | and ", text.strip().rstrip(".")))))


def _share(right: pd.Series) -> str:
    return rate_text(rate(int(right.sum()), len(right)) if len(right) else Rate(0, 0, 1, 0, 0))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.judging",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("robot", choices=sorted(FRESH))
    parser.add_argument("--base", type=Path, help="the checkpoint; by default the shipped base")
    parser.add_argument("--official", type=Path, help="SimplerEnv's own assets; without, those are left out")
    parser.add_argument("--each", type=int, default=2, help="questions of a kind an episode")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "runs" / "judging")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        base = given.base or BASES[given.robot]
        policy = load_policy(base, order="rationale_first")
        check_conventions(policy, find_tasks(given.robot)[0])
        if given.official is None and (out := [one.name for one in FRESH[given.robot] if one.official]):
            print(f"without {', '.join(out)}, which want --official")
        datasets = drive(None, FRESH[given.robot], given.output / given.robot, given.official, SEED)
        folder = given.output / f"{given.robot}-{policy.checkpoint_hash}"
        judged = [judge(policy, dataset, given.each, SEED) for dataset in datasets]
        asked, stated = map(pd.concat, zip(*judged, strict=True))
        for name, table in {"answers": asked, "statements": stated}.items():
            with replacing(folder / f"{name}.parquet") as part:
                table.assign(checkpoint_hash=policy.checkpoint_hash).to_parquet(part, index=False)
    except KitError as error:
        raise SystemExit(f"judging: {error}") from None
    print(answered(asked).to_string(), true_statements(stated).to_string(), sep="\n\n")


if __name__ == "__main__":
    main()
