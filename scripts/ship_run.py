"""Make what a run left the repository's own: both policies, their records, the pictures and tables that
figures/ has of the same names, and the reference of the shipped policies' episodes.

    refinevla reproduce --profile laptop --only 01,02 --output runs/laptop
    refinevla reproduce --profile laptop --only 03 --output runs/laptop -p episodes=24
    refinevla reproduce --profile laptop --only 04,05,06 --output runs/laptop
    python -m scripts.ship_run runs/laptop

Prints README's table of success, made from the records.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.records import EpisodeRecord, load_records
from refinevla_kit.evaluation.statistics import AVERAGE, summarise
from refinevla_kit.figures.style import label, markdown, rate_text
from refinevla_kit.files import replacing
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.tasks import WIDOWX_TASKS
from refinevla_kit.training.resume import HISTORY
from scripts import cards
from tests.reference import shipped_policies

RECORDS = "03_simpler_evaluation/records.parquet"
KEPT = {RECORDS: "records", "04_attention_maps/scores.parquet": "attention_scores"}
PICTURES = (".png", ".md", ".json")


def ship(run: Path, home: Path = REPOSITORY) -> None:
    """Copy from a run's folder into the repository.

    Raises:
        KitError: the run is not whole.
    """
    checkpoints = {name: run / "02_fine_tuning" / name for name in shipped_policies.POLICIES}
    records = {run / source: home / "data" / "records" / f"{name}.parquet" for source, name in KEPT.items()}
    histories = {name: run / "02_fine_tuning" / "training" / name / HISTORY for name in checkpoints}
    for needed in (*checkpoints.values(), *histories.values(), *records):
        if not needed.exists():
            raise KitError(f"there is no {needed}", "run all six notebooks into this folder first")
    for name, source in checkpoints.items():
        with replacing(home / "data" / "checkpoints" / name) as part:
            shutil.copytree(source, part)
            shutil.copyfile(histories[name], part / HISTORY)
    pictures = {path.name: path for path in run.glob("0*/*") if path.suffix in PICTURES}
    known = {path.stem for path in (home / "figures").iterdir()}
    records |= {path: home / "figures" / name for name, path in pictures.items() if path.stem in known}
    for source, target in records.items():
        with replacing(target) as part:
            shutil.copyfile(source, part)
    episodes = load_records(run / RECORDS)
    for name in checkpoints:
        policy = home / "data" / "checkpoints" / name
        cards.write(policy, cards.policy_text(policy, episodes))
    cards.write(home / "data" / "records", cards.dataset_text(home / "data" / "records"))


def success_table(records: Sequence[EpisodeRecord]) -> str:
    """Markdown: a row a policy, a column a task of the grid, and their average."""
    tasks = [task.name for task in WIDOWX_TASKS]
    rows: dict[str, dict[str, str]] = {}
    for score in summarise([record for record in records if record.task in tasks]):
        rows.setdefault(label(score.policy), {})[score.task] = rate_text(score.rate, score.task != AVERAGE)
    heads = [*tasks, AVERAGE]
    cells = [[name, *(row.get(head, "") for head in heads)] for name, row in rows.items()]
    return markdown(["policy", *map(label, heads)], cells)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.ship_run", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder that `refinevla reproduce` wrote")
    given = parser.parse_args(arguments)
    try:
        ship(given.run)
    except KitError as error:
        raise SystemExit(f"ship_run: {error}") from None
    shipped_policies.write(shipped_policies.outcomes(given.run / RECORDS))
    print(success_table(load_records(given.run / RECORDS)))


if __name__ == "__main__":
    main()
