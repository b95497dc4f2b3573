"""The two bases of the block `grounding`: made alike, but that one was taught where things are and the other
never was.

    python -m experiments.grounding_bases OUTPUT [--episodes 100] [--steps 2500] [--grounding-steps 2500]

Both see the same noisy demonstrations of the four tasks, and take the same steps of actions with the tower
learning along, from the same first weights. OUTPUT/grounded began with grounding of the tower and was asked
for places between actions; OUTPUT/ungrounded was not. Started again after a stop, it keeps what is done. The
shipped ones were made so; others go to the experiment by --grounding OUTPUT/grounded OUTPUT/ungrounded.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from experiments.data import prepare
from experiments.design import PROFILES
from experiments.pretraining import PretrainingConfig, pretrain, save_base
from refinevla_kit.errors import KitError
from refinevla_kit.vlas.compact import CompactConfig

DATA_SEED = 3000  # the demonstrations that policies are fine-tuned on have another


def make_bases(
    output: Path,
    episodes: int,
    steps: int,
    grounding_steps: int,
    batch_size: int = 64,
    workers: int = 2,
    model: CompactConfig | None = None,
) -> list[Path]:
    """Record `episodes` demonstrations a task and make both bases in `output`; returns their folders, the
    grounded one first.
    """
    data, made = output / "demonstrations", []
    profile = replace(PROFILES["laptop"], episodes_per_task=episodes, data_seed=DATA_SEED)
    prepare(
        profile, data, workers=workers, progress=sys.stderr.isatty()
    )  # rationales give words to the vocabulary, nothing else
    for name, taught in (("grounded", True), ("ungrounded", False)):
        made.append(output / name)
        if made[-1].exists():
            continue
        pointing, first = (0.25, grounding_steps) if taught else (0.0, 0)
        config = PretrainingConfig(first, steps, batch_size, pointing=pointing, train_tower=True)
        save_base(pretrain([data], output / f"{name}_training", config, model=model), made[-1])
        shutil.rmtree(output / f"{name}_training")
    return made


def main(arguments: list[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.grounding_bases",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--episodes", type=int, default=100, help="demonstrations a task")
    parser.add_argument("--steps", type=int, default=2500, help="of 64 frames, language model and tower")
    parser.add_argument(
        "--grounding-steps",
        type=int,
        default=2500,
        help="of 64 frames, the tower alone, of the grounded base",
    )
    parser.add_argument("--workers", type=int, default=2, help="simulator processes while recording")
    given = parser.parse_args(arguments)
    try:
        print(
            *make_bases(
                given.output, given.episodes, given.steps, given.grounding_steps, workers=given.workers
            ),
            sep="\n",
        )
    except KitError as error:
        raise SystemExit(f"grounding bases: {error}") from None


if __name__ == "__main__":
    main()
