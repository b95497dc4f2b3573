"""What the second experiment's trained policies use of the sentence: the same interventions on each of them,
arm against arm by training seed, and on the base that all started from.

    python -m experiments.interventions [runs/experiment/following_laptop] [--parts states,episodes]
        [--output data/experiment_2]

Takes the policies that are in the run's folder. `states`, about half a minute each on two cores, writes
`interventions.parquet`, a row a policy and measure; `episodes`, of the two main arms, about a minute each,
writes `told_otherwise.parquet`, a row an episode. Both go on where they were stopped, and print tables of
docs/experiment_2.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from experiments.following import HELD_OUT
from refinevla_kit.attention import captured, grounding, interventions
from refinevla_kit.attention.captured import Frame
from refinevla_kit.episodes import EpisodeDataset
from refinevla_kit.errors import KitError
from refinevla_kit.evaluation import changed_sentences, written
from refinevla_kit.figures.style import label, markdown
from refinevla_kit.files import replacing
from refinevla_kit.policies import load_policy
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.training.examples import SHIPPED_BASE
from refinevla_kit.vlas.checkpoint import files_hash

ARMS = ("action_only", "with_reasoning")
BASE = "base"
EPISODES, EVERY, SEED = 4, 8, 0  # as in notebook 6: demonstrations of each task, frames of each, their seed
# every so manieth frame: a text is written first, which takes a hundred times as long as an action
EDITED = 4
STARTS, AT_ONCE = 2, 16  # of a task; episodes played at a time
CHANGED_AT = 6  # the step at which the sentence changes: the arm is on its way, nothing is held yet
HIDDEN = "{} hidden from the action, nats"
APART = "between two sentences, nats"
EDITED_TEXT = "text edited ({}), nats beyond its control"
TRUE = "true statements"


def measures(path: Path, dataset: EpisodeDataset, frames: list[Frame]) -> pd.DataFrame:
    """A row a mean over frames: nats that the action's distribution moves where picture or sentence are
    hidden from it in all layers; nats between the frame's sentence and another one; the share of these that
    comes over with the states of a place before a layer (from 1); nats that an edited text moves the action;
    and the share of true statements in what the policy writes. What is not there has no row.
    """
    policy = load_policy(path)
    hidden = interventions.knock_out(policy, frames, layers=1)
    found = {
        HIDDEN.format(role): float(rows["divergence"].mean())
        for role, rows in hidden[~hidden["control"]].groupby("read", sort=False)
    }
    moved = interventions.patch(policy, frames, [captured.other_sentence(frame) for frame in frames])
    found[APART] = float(moved["apart"].mean())
    own = moved[~moved["control"]]
    for (place, layer), rows in own.groupby(["place", "layer"], sort=False):
        found[f"carried by the {place} before layer {layer + 1}"] = float(rows["recovered"].mean())
    texts = written.write_about(policy, dataset, [(frame.episode, frame.step) for frame in frames])
    if any(text.findings for text in texts):
        found[TRUE] = written.truth(texts).rate
    rows = pd.DataFrame({"measure": found.keys(), "value": found.values(), "frames": len(frames)})
    edited = moved_by_texts(load_policy(path, order="rationale_first"), frames[::EDITED])
    return pd.concat([rows, edited], ignore_index=True).assign(checkpoint_hash=policy.checkpoint_hash)


def moved_by_texts(writer: VLAPolicy, frames: list[Frame]) -> pd.DataFrame:
    """Nats that the action of a policy that writes first moves where its text is exchanged, a row an edit,
    over the frames whose text has something to edit. What as many words in other places move it is taken off;
    a text that is left out has no such control.
    """
    others = [captured.other_sentence(frame) for frame in frames]
    moved = interventions.edit_rationales(writer, frames, others)
    edited, controls = (
        moved[moved["control"].eq(side)].groupby("edit", sort=False) for side in (False, True)
    )
    beyond = edited["divergence"].mean().sub(controls["divergence"].mean(), fill_value=0.0)
    named = [EDITED_TEXT.format(edit) for edit in beyond.index]
    return pd.DataFrame({"measure": named, "value": beyond, "frames": edited.size().loc[beyond.index]})


def told(policy: VLAPolicy, workers: int) -> pd.DataFrame:
    """Episodes of `tell_otherwise` on the held-out pairs: as it is; with the sentence hidden from all tokens;
    and with another sentence from a step on.
    """
    hides = [interventions.Knockout("instruction", by) for by in ("image", "state", "action")]
    deaf = interventions.blocked(policy, *hides)
    ways = {
        "listening": (policy, 0),
        "sentence hidden": (deaf, 0),
        "changed on the way": (policy, CHANGED_AT),
    }
    tables = []
    for way, (player, at) in ways.items():
        table = changed_sentences.tell_otherwise(
            player, HELD_OUT, STARTS, at, workers=workers, batch=AT_ONCE, progress=False, seed=SEED
        )
        tables.append(table.assign(way=way))
    return pd.concat(tables)


def obeyed(table: pd.DataFrame) -> str:
    """How often each arm does what it is told, as Markdown, and what differs between the two."""
    lines = []
    for (way, other), rows in table.groupby(["way", "told"], sort=False):
        cells = []
        for arm in (BASE, *ARMS):
            of_arm = rows[rows["arm"] == arm]["obeyed"]
            cells.append(f"{of_arm.sum()}/{len(of_arm)} = {of_arm.mean():.0%}")
        rates = rows.groupby(["seed", "arm"])["obeyed"].mean().unstack()
        difference = 100 * (rates[ARMS[1]] - rates[ARMS[0]]).dropna()
        mean, low, high = grounding.mean_with_interval(difference)
        change = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
        lines.append([f"{way}, told {'the other thing' if other else 'its own task'}", *cells, change])
    return markdown(["", "base", *map(label, ARMS), "difference, points (95 % over seeds)"], lines)


def compared(table: pd.DataFrame) -> str:
    """A row a measure, as Markdown: the base, both arms, and their difference with its 95 % interval over
    training seeds.
    """
    lines = []
    for measure, rows in table.groupby("measure", sort=False):
        arms = [rows[rows["arm"] == arm].set_index("seed")["value"] for arm in ARMS]
        difference = (arms[1] - arms[0]).dropna()
        mean, low, high = grounding.mean_with_interval(difference)
        values = [rows[rows["arm"] == BASE]["value"].mean(), *(arm.mean() for arm in arms)]
        change = f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
        lines.append([str(measure), *(f"{value:.3f}" for value in values), change])
    return markdown(["", "base", *map(label, ARMS), "difference (95 % over seeds)"], lines)


def of_arms(table: pd.DataFrame) -> str:
    """A row an arm, as Markdown: its mean of some measures and, in brackets, what that is more than actions
    only from the same base have in the same seeds, with its 95 % interval over them.
    """
    chosen = (HIDDEN.format("instruction"), APART, TRUE)
    values = table.pivot(index=["arm", "seed"], columns="measure", values="value").reindex(columns=chosen)
    lines = []
    for arm in sorted(set(table["arm"]) - {BASE, *ARMS}):
        control = f"{ARMS[0]}_wordless" if arm.endswith("_wordless") else ARMS[0]
        cells = []
        for measure in chosen:
            own = values.loc[arm, measure]
            difference = (own - values.loc[control, measure]).dropna()
            mean, low, high = grounding.mean_with_interval(difference)
            compared_with = (
                f" ({mean:+.3f}, {low:+.3f} to {high:+.3f})" if len(difference) and arm != control else ""
            )
            cells.append(f"{own.mean():.3f}{compared_with}" if own.notna().any() else "none")
        lines.append([label(arm), *cells])
    return markdown(["", *chosen], lines)


def main() -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/experiment/following_laptop"))
    parser.add_argument("--parts", default="states,episodes", help="comma-separated")
    parser.add_argument("--workers", type=int, default=2, help="simulator processes")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "data" / "experiment_2")
    given = parser.parse_args()
    policies = {(BASE, -1): SHIPPED_BASE}
    for folder in sorted(given.run.glob("runs/*-seed*")):
        arm, _, rest = folder.name.rpartition("-seed")
        if (folder / arm).is_dir():
            policies[arm, int(rest.partition("-")[0])] = path = folder / arm
    policies = dict(sorted(policies.items(), key=lambda policy: policy[0][::-1]))  # both arms of a seed
    if len(policies) == 1:
        raise KitError(f"no trained policies in {given.run}", "run python -m experiments.reasoning_loss")
    if (robot := load_policy(path).vla.conventions.robot) != "widowx":
        raise KitError(f"{path} acts for the {robot}", "give a run of following_laptop or following_full")
    if "states" in given.parts:
        read_states(policies, given.run / "shown", given.output / "interventions.parquet")
    if "episodes" in given.parts:
        main_arms = {name: path for name, path in policies.items() if name[0] in (BASE, *ARMS)}
        played = continued(
            main_arms,
            given.output / "told_otherwise.parquet",
            lambda path: told(load_policy(path), given.workers),
        )
        print(obeyed(played))


def read_states(policies: Mapping[tuple[str, int], Path], shown: Path, output: Path) -> None:
    """`measures` of each policy, as a table in `output` and printed."""
    dataset = captured.demonstrations("embedded", HELD_OUT, EPISODES, shown, SEED)
    frames = [frame for name in HELD_OUT for frame in captured.choose_frames(dataset, name, EPISODES, EVERY)]
    table = continued(policies, output, lambda path: measures(path, dataset, frames))
    seeds = table[table["arm"] == ARMS[0]]["seed"].nunique()
    print(f"{len(frames)} frames of {len(HELD_OUT)} held-out pairs; {seeds} training seeds an arm\n")
    print(f"{compared(table)}\n\n{of_arms(table)}")


def continued(
    policies: Mapping[tuple[str, int], Path], output: Path, made: Callable[[Path], pd.DataFrame]
) -> pd.DataFrame:
    """The table in `output` with the rows of each policy that it has none of yet; it is whole after each of
    them.

    Raises:
        KitError: it has rows of another policy of that arm and training seed.
    """
    columns = ["arm", "seed", "checkpoint_hash"]
    table = pd.read_parquet(output) if output.exists() else pd.DataFrame(columns=columns)
    done = table.groupby(columns[:2])["checkpoint_hash"].first().to_dict()
    for name, path in tqdm(policies.items(), unit="policy"):
        own = files_hash(path)  # what the policy calls itself, without loading it
        if done.get(name, own) != own:
            what = f"{output} has rows of another {name[0]} of seed {name[1]} than {path}"
            raise KitError(what, "give another --output")
        if name not in done:
            table = pd.concat([table, made(path).assign(arm=name[0], seed=name[1])], ignore_index=True)
            with replacing(output) as part:
                table.to_parquet(part)
    return table


if __name__ == "__main__":
    main()
