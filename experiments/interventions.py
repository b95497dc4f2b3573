"""What the second experiment's trained policies use of the sentence: the same interventions on each of them,
arm against arm by training seed, and on the base that all started from.

    python -m experiments.interventions [runs/experiment/following_laptop] [--output data/experiment_2]

Takes the policies that are in the run's folder, about 20 s each on two cores. Writes `interventions.parquet`
(a row a policy and measure) and prints the table of docs/experiment_2.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from experiments.following import HELD_OUT
from refinevla_kit.attention import captured, grounding, interventions
from refinevla_kit.attention.captured import Frame
from refinevla_kit.errors import KitError
from refinevla_kit.figures.style import label, markdown
from refinevla_kit.files import replacing
from refinevla_kit.policies import load_policy
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.settings import REPOSITORY

ARMS = ("action_only", "with_reasoning")
BASE = "base"
EPISODES, EVERY, SEED = 4, 8, 0  # as in notebook 6: demonstrations of each task, frames of each, their seed


def measures(policy: VLAPolicy, frames: list[Frame]) -> dict[str, float]:
    """Means over frames, by name: nats that the action's distribution moves where picture or sentence are
    hidden from it in all layers; nats between the frame's sentence and another one; the share of these that
    comes over with the states of a place before a layer (from 1).
    """
    hidden = interventions.knock_out(policy, frames, layers=1)
    found = {
        f"{role} hidden from the action, nats": float(rows["divergence"].mean())
        for role, rows in hidden[~hidden["control"]].groupby("read", sort=False)
    }
    moved = interventions.patch(policy, frames, [captured.other_sentence(frame) for frame in frames])
    found["between two sentences, nats"] = float(moved["apart"].mean())
    own = moved[~moved["control"]]
    for (place, layer), rows in own.groupby(["place", "layer"], sort=False):
        found[f"carried by the {place} before layer {layer + 1}"] = float(rows["recovered"].mean())
    return found


def compared(table: pd.DataFrame) -> str:
    """A row a measure, as Markdown: the base, both arms, and their difference with its 95 % interval over
    training seeds.
    """
    lines = []
    for measure, rows in table.groupby("measure", sort=False):
        arms = [rows[rows["arm"] == arm].set_index("seed")["value"] for arm in ARMS]
        difference = (arms[1] - arms[0]).dropna()
        low, high = grounding.mean_interval(difference)
        values = [rows[rows["arm"] == BASE]["value"].mean(), *(arm.mean() for arm in arms)]
        change = f"{difference.mean():+.3f} ({low:+.3f} to {high:+.3f})"
        lines.append([str(measure), *(f"{value:.3f}" for value in values), change])
    return markdown(["", "base", *map(label, ARMS), "difference (95 % over seeds)"], lines)


def main() -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/experiment/following_laptop"))
    parser.add_argument("--output", type=Path, default=REPOSITORY / "data" / "experiment_2")
    given = parser.parse_args()
    policies = {(BASE, -1): REPOSITORY / "data" / "checkpoints" / "compact_base"}
    for folder in sorted(given.run.glob("runs/*-seed*")):
        arm, _, rest = folder.name.rpartition("-seed")
        if arm in ARMS and (folder / arm).is_dir():
            policies[arm, int(rest.partition("-")[0])] = folder / arm
    if len(policies) == 1:
        raise KitError(f"no trained policies in {given.run}", "run python -m experiments.reasoning_loss")
    dataset = captured.demonstrations("embedded", HELD_OUT, EPISODES, given.run / "shown", SEED)
    frames = [frame for name in HELD_OUT for frame in captured.choose_frames(dataset, name, EPISODES, EVERY)]
    rows = [
        {"arm": arm, "seed": seed, "measure": measure, "value": value, "frames": len(frames)}
        for (arm, seed), path in tqdm(policies.items(), unit="policy")
        for measure, value in measures(load_policy(path), frames).items()
    ]
    table = pd.DataFrame(rows)
    with replacing(given.output / "interventions.parquet") as part:
        table.to_parquet(part)
    seeds = table[table["arm"] == ARMS[0]]["seed"].nunique()
    print(f"{len(frames)} frames of {len(HELD_OUT)} held-out pairs; {seeds} training seeds an arm\n")
    print(compared(table))


if __name__ == "__main__":
    main()
