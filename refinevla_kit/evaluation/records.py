"""One row an episode: what ran, what came of it, and with which versions.

While a run is going on, rows are appended to a journal of JSON lines. Each is on the disk before the next
episode starts: a run killed at any point has lost nothing. At the end the journal becomes a parquet file. A
line the kill cut in half is dropped when the journal is opened again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from refinevla_kit import __version__
from refinevla_kit.errors import KitError, as_kit_error
from refinevla_kit.files import replacing
from refinevla_kit.journal import Journal, whole_lines
from refinevla_kit.tasks import PROTOCOL_VERSION, SIMPLER_ENV, find_task

VERSIONED = ("mani_skill", "mani_skill2_real2sim", "sapien", "torch", "transformers", "numpy")
# What makes two rows the same episode; the first columns of a record.
KEY = (
    *("policy", "checkpoint_hash", "protocol", "backend", "task", "setting", "variant"),
    *("assets", "start", "episode_id", "seed", "width", "height"),
)
Key = tuple[Any, ...]
BROKEN = ("physics", "crash")  # reasons for which an episode is never a success by what it moved
OUTCOME = ("success_any", "success_last", "grasped", "steps", "reason")  # what they have in common


@dataclass(frozen=True)
class EpisodeRecord:
    """What happened in one episode.

    Attributes:
        policy, checkpoint_hash: what acted; the second is the policy's identity (see `Policy`), which tells
            two of one name apart.
        protocol: `tasks.PROTOCOL_VERSION` the episode was played under.
        backend: "maniskill" or "simpler_env".
        task, setting, variant: task name (`tasks.TASKS`), SIMPLER's setting, and the named change of the
            scene ("base": none).
        assets: "embedded", "official" or the asset directory.
        start: "grid" (the task's own start configurations) or "dense" (drawn from `seed`):
            `simulator.geometry.start_pose`.
        episode_id: which of them the episode started from.
        seed: of the run.
        width, height: camera resolution in pixels.
        success_any, success_last: the task's condition held after any step / after the last step (SIMPLER's
            evaluator scores the last).
        grasped: the source object was held after any step.
        steps: control steps taken.
        reason: why it ended. "budget": the step budget is used up; "terminated": the policy said it had
            finished; "physics": the simulation broke, never a success at the last step; "crash": its
            simulator process died twice, never a success.
        wall_time: seconds from the end of the reset to the last step, waiting for other workers included.
        refinevla_kit ...
        numpy: versions of the packages that made the row ("" when not installed).
        unsolved: actions that inverse kinematics found no answer to, so that the arm kept its pose (Google
            Robot); records of earlier versions do not say, and have 0.
        touched_first, lifted_first, ended_on: what the fingers touched first, what rose by 2 cm first, and
            what that lay on after the last step (`StepResult`); "" for nothing, where it was not looked at,
            and in records of earlier versions.
    """

    policy: str
    checkpoint_hash: str
    protocol: int
    backend: str
    task: str
    setting: str
    variant: str
    assets: str
    start: str
    episode_id: int
    seed: int
    width: int
    height: int
    success_any: bool
    success_last: bool
    grasped: bool
    steps: int
    reason: str
    wall_time: float
    refinevla_kit: str
    mani_skill: str
    mani_skill2_real2sim: str
    sapien: str
    torch: str
    transformers: str
    numpy: str
    unsolved: int = 0
    touched_first: str = ""
    lifted_first: str = ""
    ended_on: str = ""

    @property
    def right_object(self) -> bool:
        """What was lifted first is what was asked for; of two goals, in the first. Never where the simulator
        or its process broke.
        """
        return self.lifted_first == find_task(self.task).source and self.reason not in BROKEN

    @property
    def right_target(self) -> bool:
        """What was lifted first ended where the sentence says, whatever it was; never where it says none, or
        the simulator or its process broke.
        """
        right = bool(self.ended_on) and self.ended_on == find_task(self.task).target
        return right and self.reason not in BROKEN

    @property
    def tells(self) -> bool:
        """Whether `touched_first`, `lifted_first` and `ended_on` can be believed where they are "". Not of
        the original SimplerEnv, which does not say them, and not where something was held and nothing
        touched: that is of an earlier version.
        """
        silent = not (self.touched_first or self.lifted_first)
        return not (silent and (self.backend == SIMPLER_ENV or self.grasped))

    @property
    def key(self) -> Key:
        """What makes two rows the same episode: a continued run skips keys it already has."""
        return tuple(getattr(self, name) for name in KEY)


COLUMNS = {
    field.name: {"str": str, "int": int, "bool": bool, "float": float}[str(field.type)]
    for field in fields(EpisodeRecord)
}
BEGINS = b'{"policy": '  # a line of a journal, which a kill may have cut
LATER: dict[str, Any] = {  # columns that earlier versions lack
    field.name: field.default for field in fields(EpisodeRecord) if field.default is not MISSING
}


@cache
def versions() -> dict[str, str]:
    """Version columns of a record, read from the installed packages' metadata (nothing is imported)."""
    found = {"refinevla_kit": __version__}
    for package in VERSIONED:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = ""
    return found


def parse_record(row: Any, where: str) -> EpisodeRecord:
    """A record from a decoded row; raises `KitError` for another protocol version, or naming the column that
    is missing, unknown or ill-typed.
    """
    given: dict[str, Any] = row if isinstance(row, dict) else {}
    if "policy" in given and given.get("protocol", 1) != PROTOCOL_VERSION:
        raise KitError(
            f"{where} was recorded under protocol version {given.get('protocol', 1)}, this is version "
            f"{PROTOCOL_VERSION}",
            "evaluate again into a new file: episodes of two versions are not the same episodes",
        )
    if given:
        given = LATER | {name: _as_written(name, value) for name, value in given.items()}
    kinds = {name: type(value) for name, value in given.items()}
    wrong = [name for name in kinds | COLUMNS if kinds.get(name) is not COLUMNS.get(name)]
    if wrong:
        raise KitError(
            f"{where} is not an evaluation record of this version (columns that differ: {', '.join(wrong)})",
            "take out what is no column of a record, mend the others, or evaluate again into a new file",
        )
    return EpisodeRecord(**given)


def _as_written(name: str, value: Any) -> Any:
    """A column's value, where pandas put an empty cell or made whole numbers into others as it merged."""
    number = value if isinstance(value, float) else 0.0
    if name in LATER and (value is None or math.isnan(number)):
        return LATER[name]
    return int(value) if COLUMNS.get(name) is int and value == number and number.is_integer() else value


def load_records(path: str | Path) -> list[EpisodeRecord]:
    """Records of a parquet file (or of the folder that `evaluate` wrote it to), or of the journal of a run
    that is going on or was killed.
    """
    path = Path(path) / "records.parquet" if Path(path).is_dir() else Path(path)
    journal = journal_path(path)
    if not path.exists() and not journal.exists():
        raise KitError(
            f"no evaluation records at {path}", "run notebook 03, or give the records.parquet of another run"
        )
    records = [] if path == journal or not path.exists() else _load_parquet(path)
    if journal.exists():
        for number, (_, row) in enumerate(whole_lines(journal), 1):
            records.append(parse_record(row, f"{journal}, line {number}"))
    return distinct(records)


def distinct(records: Iterable[EpisodeRecord]) -> list[EpisodeRecord]:
    """Each episode once, in order: records of two machines may have the same ones, and differ in time and
    versions.

    Raises:
        KitError: two records of one episode differ in what came of it.
    """
    kept: dict[Key, EpisodeRecord] = {}
    for record in records:
        first = kept.setdefault(record.key, record)
        differing = [name for name in OUTCOME if getattr(first, name) != getattr(record, name)]
        if differing:
            outcomes = [
                ", ".join(f"{name} {getattr(each, name)}" for name in differing) for each in (first, record)
            ]
            raise KitError(
                f"{record.policy!r} has two records of {record.task} ({record.variant}), {record.start} "
                f"episode {record.episode_id}: {' and '.join(outcomes)}",
                "keep the records of one machine, or play the episode again into a new file",
            )
    return list(kept.values())


def save_parquet(records: Iterable[EpisodeRecord], path: str | Path) -> Path:
    """Write records as parquet, one row each, in the order given."""
    types = {str: pa.string(), int: pa.int64(), bool: pa.bool_(), float: pa.float64()}
    schema = pa.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
    with replacing(path) as part:
        pq.write_table(pa.Table.from_pylist([asdict(record) for record in records], schema=schema), part)
    return Path(path)


def journal_path(path: Path) -> Path:
    """Where the journal of `path` lies while a run is going on."""
    return path.with_suffix(".jsonl")


def check_journal(path: Path) -> None:
    """Raises `KitError` where what lies there is no journal of records, which would be cut and removed."""
    with suppress(OSError), path.open("rb") as lines:
        first = lines.readline()
        if first.endswith(b"\n"):
            with as_kit_error(f"{path} is no journal of an evaluation", "move it away", (ValueError,)):
                parse_record(json.loads(first), f"{path}, line 1")
        elif not BEGINS.startswith(first[: len(BEGINS)]):
            raise KitError(f"{path} is no journal of an evaluation", "move it away")


def add_record(journal: Journal, record: EpisodeRecord) -> None:
    """Put one record on the disk; it is there when this returns."""
    journal.append(asdict(record))
    journal.sync()


def _load_parquet(path: Path) -> list[EpisodeRecord]:
    with as_kit_error(
        f"{path} is not a readable parquet file",
        "give a records.parquet that evaluate() wrote",
        (pa.ArrowInvalid, OSError),
    ):
        table = pq.read_table(path)
        kept = [name for name in table.column_names if not name.startswith("__index_level_")]  # pandas' own
        rows = table.select(kept).to_pylist()
    return [parse_record(row, f"{path}, row {number}") for number, row in enumerate(rows)]
