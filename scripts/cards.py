"""Cards of checkpoints, datasets and records in the form of the Hugging Face Hub: what a program can tell of
them stands at the head, between two lines of `---`.

    python -m scripts.cards                      # all that is shipped
    python -m scripts.cards FOLDER [FOLDER ...]  # others, such as a policy that a notebook fine-tuned

A head is made anew from the text below it and from what lies beside it. The text is kept, and the license;
where there is no text, it is written. Outside of the repository's data/ the license is yours to name: without
one, `refinevla publish` refuses.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import DatasetCardData, EvalResult, ModelCardData, RepoCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from pyarrow.parquet import ParquetFile

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.records import EpisodeRecord, load_records
from refinevla_kit.files import read_json, replacing
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.tasks import find_task
from refinevla_kit.teacher import summarise
from refinevla_kit.vlas.checkpoint import checkpoint_hash, open_folder, provenance_of

CARD = "README.md"
LICENSED = "apache-2.0"  # what this repository ships (LICENSE)
CHECKPOINTS = REPOSITORY / "data" / "checkpoints"
RECORDS = REPOSITORY / "data" / "records" / "records.parquet"
DATASETS = (
    "data/demo",
    *(f"data/{name}{part}" for name in ("experiment", "experiment_2") for part in ("/dataset", "")),
    "data/experiment_2_google",
    "data/records",
)
RESULT = re.compile(r"^\| (\w+) \| ([\w ]+) \| (\w+) \| (\d+)/(\d+) \| (\d+)/(\d+) \|$", re.MULTILINE)
GRID = "From the starts of SimplerEnv's grid, also in the tasks of the language suite"
TABLE_HEAD = (
    "| assets | setting | task | success at the last step | success at any step |\n"
    "| --- | --- | --- | --- | --- |\n"
)
SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M"}
ABOUT = {
    "records": "What each figure of success and of attention in the repository is computed from.",
    "experiment": "The controlled experiment on the reasoning loss: its episodes, what was trained "
    "(study.json), what the policies made of their own texts (text_use.json), and in `dataset` what all "
    "learned from.",
    "experiment_2": "The second controlled experiment, on what the reasoning loss does for following the "
    "sentence: its episodes, what was trained (study.json), and in `dataset` what all learned from.",
    "experiment_2_google": "The second controlled experiment's companion on the Google Robot, on what the "
    "reasoning loss does for picking things that were not picked in training: its episodes and what was "
    "trained (study.json).",
}


def write(folder: str | Path, text: str) -> None:
    """Write the card of a checkpoint, a dataset or records.

    Args:
        folder: what it is a card of.
        text: the card, in Markdown, without a head.
    """
    folder = Path(folder)
    head = model_head(folder, text) if any(folder.glob("*.safetensors")) else dataset_head(folder)
    head.language, head.license = "en", license_of(folder)
    with replacing(folder / CARD) as part:
        part.write_text(f"---\n{head.to_yaml()}\n---\n\n{text.lstrip()}", encoding="utf-8")


def license_of(folder: Path) -> str | None:
    """What the card says already, else the repository's for what it ships; None for what others made."""
    card = folder / CARD
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    named = RepoCard(text).data.get("license") if REGEX_YAML_BLOCK.search(text) else None
    if named:
        return str(named)
    return LICENSED if is_shipped(folder) else None


def is_shipped(folder: Path) -> bool:
    """Whether it lies in this repository's `data/`."""
    return REPOSITORY / "data" in folder.resolve().parents


def renew(folder: Path, records: Iterable[EpisodeRecord] = ()) -> None:
    """Give a folder's card a new head; where there is no card, or it is of what is shipped here as records,
    write one of what the folder tells.

    Args:
        folder: of a checkpoint, a dataset or records.
        records: episodes, where a policy is to be told by its success.

    Raises:
        KitError: it has neither weights nor tables.
    """
    card = folder / CARD
    if not any((*folder.rglob("*.safetensors"), *folder.rglob("*.parquet"))):
        raise KitError(f"{folder} has neither weights nor tables", "give a checkpoint, a dataset or records")
    if card.exists() and not (folder.name in ABOUT and is_shipped(folder)):
        text = REGEX_YAML_BLOCK.sub("", card.read_text(encoding="utf-8"), count=1)
    elif any(folder.glob("*.safetensors")):
        text = policy_text(folder, records)
    else:
        text = dataset_text(folder)
    write(folder, text)


def model_head(folder: Path, text: str) -> ModelCardData:
    """Of a checkpoint: the base it goes on from, and the success rates in the tables of its card."""
    rows = RESULT.findall(text)
    robots = dict.fromkeys(find_task(row[2]).robot for row in rows)
    tags = ["vision-language-action", "robotics", *(["simpler-env"] if rows else []), *robots]
    return ModelCardData(
        library_name="refinevla_kit",
        pipeline_tag="robotics",
        tags=tags,
        base_model=base_of(folder, text),
        model_name=folder.name if rows else None,
        eval_results=[result for row in rows for result in results(*row)] or None,
    )


def results(
    assets: str, setting: str, task: str, last: str, episodes: str, at_any: str, of: str
) -> list[EvalResult]:
    """A row of a card's table as the Hub has it: shares of episodes, and what they were counted from."""
    counts = {"success at the last step": (last, episodes), "success at any step": (at_any, of)}
    where = f"{task}, {setting.replace('_', ' ')}, {assets} assets"
    return [
        EvalResult(
            task_type="robotics",
            dataset_type="simpler-env",
            dataset_name="SimplerEnv's grid",
            dataset_config=where,
            metric_type="success_rate",
            metric_name=name,
            metric_value=round(int(successes) / int(tried), 4),
            metric_args={"successes": int(successes), "episodes": int(tried)},
        )
        for name, (successes, tried) in counts.items()
    ]


def base_of(folder: Path, text: str = "") -> str | None:
    """The checkpoint that this one goes on from, by the name of its folder beside it: the shipped one with
    the weights that its provenance tells, or the one that its card names.
    """
    made = provenance_of(open_folder(folder))
    weights = str(made.get("base") or made.get("start") or "")[:12]
    shipped = {checkpoint_hash(path): path.name for path in CHECKPOINTS.glob("[!.]*")} if weights else {}
    named = re.search(r"from the weights of `\.\./(\w+)`", text)
    return shipped.get(weights) or (named[1] if named else None)


def success_rows(records: Iterable[EpisodeRecord], policy: str) -> list[dict[str, Any]]:
    """Of one policy from the starts of the grid, what `rate_table` takes."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for record in records:
        if (record.policy, record.start) == (policy, "grid"):
            key = {"assets": Path(record.assets).name, "setting": record.setting, "task": record.task}
            row = rows.setdefault(tuple(key.values()), key | {"last": 0, "any": 0, "episodes": 0})
            row["last"] += record.success_last
            row["any"] += record.success_any
            row["episodes"] += 1
    return list(rows.values())


def rate_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The table of a card, in the form that its head is made from.

    Args:
        rows: of assets, setting, task, successes at the last step and at any step, episodes.
    """
    return TABLE_HEAD + "".join(
        f"| {row['assets']} | {row['setting'].replace('_', ' ')} | {row['task']} | "
        f"{row['last']}/{row['episodes']} | {row['any']}/{row['episodes']} |\n"
        for row in rows
    )


def policy_text(folder: Path, records: Iterable[EpisodeRecord] = ()) -> str:
    """The card of a fine-tuned policy.

    Args:
        folder: its checkpoint.
        records: of its episodes among others'.
    """
    made = provenance_of(open_folder(folder))
    base, rows = base_of(folder), success_rows(records, folder.name)
    begun = f", from the weights of `../{base}`" if base else ""
    text = f"# VLA, {folder.name}\n\nMade by `{made.get('made_by', 'another program')}`{begun}."
    if "training" in made:
        text += f" Fine-tuned on {made['frames']} frames: {made['training']}."
        if share := made["training"].get("base_share"):
            text += f" Its weights are the average of the base's ({share:.0%}) and what training gave."
    return f"{text}\n" + (f"\n{GRID}:\n\n{rate_table(rows)}" if rows else "")


def dataset_head(folder: Path) -> DatasetCardData:
    """Of a dataset or records: how large it is, and which tables the Hub is to show."""
    tables = tables_of(folder)
    rows = max(sum(map(rows_of, files)) for files in tables.values())
    shown = {
        name: f"{files[0].parents[1].relative_to(folder)}/*/*.parquet"
        if "data" in files[0].relative_to(folder).parts
        else str(files[0].relative_to(folder))
        for name, files in tables.items()
    }
    dataset = (folder / "meta" / "info.json").exists()
    return DatasetCardData(
        pretty_name=name_of(folder),
        task_categories=["robotics"],
        size_categories=[next((size for most, size in SIZES.items() if rows < most), "other")],
        annotations_creators=["machine-generated"],
        tags=[
            "vision-language-action",
            *(["simpler-env"] if is_simulated(folder) else []),
            *(["LeRobot"] if dataset else []),
        ],
        configs=[{"config_name": name, "data_files": files} for name, files in shown.items()],
    )


def is_simulated(folder: Path) -> bool:
    """Whether it is of simulated episodes: a dataset's writer keeps a state for each, records are always."""
    dataset = (folder / "meta" / "info.json").exists()
    return not dataset or any((folder / "simulator").glob("episode_*.npz"))


def tables_of(folder: Path) -> dict[str, list[Path]]:
    """The tables of a folder by what they are: the frames of a LeRobot dataset lie in many files."""
    tables: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        parts = path.relative_to(folder).parts
        if "meta" not in parts:
            # "default": the name by which others look for a dataset's frames
            frames = ["default"] if len(parts) == 3 else [*parts[:-3], "episodes"]
            name = "-".join(frames if "data" in parts else [*parts[:-1], path.stem])
            tables.setdefault(name, []).append(path)
    return tables


def rows_of(table: Path) -> int:
    return int(ParquetFile(table).metadata.num_rows)


def name_of(folder: Path) -> str:
    """A dataset's folder inside another is called by both."""
    return f"{folder.parent.name}, {folder.name}" if folder.name == "dataset" else folder.name


def dataset_text(folder: Path) -> str:
    """The card of a LeRobot dataset, or of records."""
    text = f"# {name_of(folder)}\n\n"
    info_file = folder / "meta" / "info.json"
    if info_file.exists():
        info = read_json(info_file)
        tasks = pd.read_parquet(folder / "meta" / "tasks.parquet")
        text += (
            f"A LeRobot dataset ({info['codebase_version']}) of the robot {info['robot_type']}: "
            f"{info['total_episodes']} episodes, {info['total_frames']} frames, {info['fps']} a second.\n"
            + "".join(f"\n- {task}" for task in tasks.index)
            + "\n"
        )
        if is_simulated(folder):
            text += "\nRecorded in simulation; `simulator/` has the state and the masks of each frame.\n"
    elif folder.name in ABOUT:
        text += f"{ABOUT[folder.name]}\n"
    for files in tables_of(folder).values():
        if "rationales" in files[0].parts:
            told = summarise(files[0])
            text += f"\n`{files[0].relative_to(folder)}`: {told.rationales} rationales of a teacher.\n"
        elif not info_file.exists():
            columns = ", ".join(f"`{name}`" for name in ParquetFile(files[0]).schema_arrow.names)
            text += f"\n`{files[0].relative_to(folder)}`: {sum(map(rows_of, files))} rows of {columns}.\n"
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.cards", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="*", help="default: what is shipped in data/")
    parser.add_argument("--records", type=Path, help="of the policies' episodes; default: none of FOLDER's")
    given = parser.parse_args(arguments)
    shipped = [*sorted(CHECKPOINTS.glob("[!.]*")), *(REPOSITORY / name for name in DATASETS)]
    try:
        # the shipped records are not those of another policy, though it have the same name
        source = given.records or (None if given.folders else RECORDS)
        records = load_records(source) if source else ()
        for folder in given.folders or shipped:
            renew(folder, records)
    except KitError as error:
        raise SystemExit(f"cards: {error}") from None


if __name__ == "__main__":
    main()
