"""What policies that write before they act make of the text: the error of their action, after texts of
several origins.

    python -m experiments.text_use OUTPUT [--episodes 96] [--seed 0]

OUTPUT is an experiment's folder, with `dataset` and runs of the arm `rationale_first`. One frame of each
demonstration is drawn; each run acts on it after its own text, after the teacher's text for that frame, and
after the teacher's text about another episode of the same instruction. Runs of `with_reasoning`, which act
first, and an action of nothing stand beside them. Written into OUTPUT/records/text_use.json, where the report
finds it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.controls import shuffle_rationales
from experiments.design import SHUFFLE_SEED
from experiments.runner import DEMONSTRATIONS, TEXT_USE
from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.training_seeds import over_seeds
from refinevla_kit.files import write_json
from refinevla_kit.policies import load_policy
from refinevla_kit.policies.contract import Action, Array
from refinevla_kit.training.examples import find_rationales, load_examples

STILL, FIRST = "no movement at all", "acting first"
OWN, TRUE, OTHER = "after its own text", "after the teacher's", "after the teacher's about another episode"


def measure(output: Path, episodes: int = 96, seed: int = 0) -> Path:
    """See the module's docstring. Returns the path of what it wrote.

    Raises:
        KitError: no run of the arm that writes first.
    """
    examples = load_examples(output / DEMONSTRATIONS, find_rationales(output / DEMONSTRATIONS), strict=True)
    others, rng = shuffle_rationales(examples, SHUFFLE_SEED).rationales, np.random.default_rng(seed)
    chosen = rng.permutation(np.unique(examples.episodes))[:episodes]
    rows = np.array([rng.choice(np.flatnonzero(examples.episodes == episode)) for episode in np.sort(chosen)])
    instructions, own = (
        [examples.instructions[row] for row in rows],
        None if examples.proprioception is None else examples.proprioception[rows],
    )

    def error(actions: Sequence[Action]) -> Array:
        return _millimetres(np.stack([one.processed for one in actions]) - examples.actions[rows])

    lines: list[dict[str, Any]] = [_line(None, STILL, _millimetres(examples.actions[rows]))]
    for run in _runs(output, "with_reasoning"):
        lines.append(
            _line(
                run,
                FIRST,
                error(load_policy(_checkpoint(run)).act_batch(examples.images[rows], instructions, own)),
            )
        )
    if not (found := _runs(output, "rationale_first")):
        raise KitError(
            f"no run of rationale_first in {output / 'runs'}",
            "run `python -m experiments.reasoning_loss --only main,order` first",
        )
    for run in found:
        policy, errors = load_policy(_checkpoint(run)), dict[str, Array]()
        for name, texts in ((OWN, None), (TRUE, examples.rationales), (OTHER, others)):
            given = texts and [texts[row] for row in rows]
            errors[name] = error(policy.act_batch(examples.images[rows], instructions, own, given))
            lines.append(_line(run, name, errors[name]))
        lines += [_line(run, f"{OWN} minus {name}", errors[OWN] - errors[name]) for name in (TRUE, OTHER)]
    path = output / "records" / TEXT_USE
    write_json(path, {"episodes": len(rows), "seed": seed, "lines": lines})
    return path


def _millimetres(movement: Array) -> Array:
    """Sum over x, y and z of the distance, float (n,); `movement`: float (n, 7), metres."""
    return np.asarray(1000 * np.abs(movement[:, :3]).sum(1))


def _line(run: Path | None, what: str, values: Array) -> dict[str, Any]:
    found = over_seeds(values.tolist(), limit=np.inf)  # Student's t; here over episodes
    arm, seed = run.name.rsplit("-", 1)[0].split("-seed") if run else ("", "")
    return {"arm": arm, "seed": seed, "what": what, "mean": found.mean, "low": found.low, "high": found.high}


def _runs(output: Path, arm: str) -> list[Path]:
    return sorted(run for run in (output / "runs").glob(f"{arm}-seed*") if _checkpoint(run).is_dir())


def _checkpoint(run: Path) -> Path:
    return run / run.name.split("-seed")[0]


def main(arguments: list[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.text_use",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--episodes", type=int, default=96, help="at most; one frame of each")
    parser.add_argument("--seed", type=int, default=0, help="of the frames")
    given = parser.parse_args(arguments)
    try:
        print(measure(given.output, given.episodes, given.seed))
    except KitError as error:
        raise SystemExit(f"text use: {error}") from None


if __name__ == "__main__":
    main()
