"""The published numbers, with their source and mark, the episodes behind them, and what these can support.

Two marks: "primary" was seen in the source itself, "secondary" only in third-party reading notes of the
ReFineVLA paper. Percentages are as printed. The episodes behind them are what SIMPLER's protocol (`tasks`)
plays or, for a row whose percentages cannot come from that many, the smallest number that gives them all.
Intervals take these episodes for independent. The Google Robot's are 4-9 variants of each start, and what is
printed does not say how alike those fare: claims therefore carry a second interval, in which a start counts
once.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path

from refinevla_kit.errors import as_kit_error
from refinevla_kit.evaluation.intervals import Rate, episodes_needed_unpaired, unpaired_difference, wilson
from refinevla_kit.evaluation.statistics import AVERAGE, Score
from refinevla_kit.files import read_json
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.tasks import PUBLISHED_WEIGHTS, VARIANT_AGGREGATION, VISUAL_MATCHING, find_tasks

DATA = REPOSITORY / "data/paper/published.json"
INCONSISTENCIES, CLAIMS = DATA.with_name("inconsistencies.json"), DATA.with_name("claims.json")
LEADERBOARD = DATA.with_name("leaderboard.csv")
COLUMNS = {  # of the leaderboard
    "widowx_vm": ("widowx", VISUAL_MATCHING),
    "google_vm": ("google_robot", VISUAL_MATCHING),
    "google_va": ("google_robot", VARIANT_AGGREGATION),
}
OURS, BASE = "ReFineVLA", "SpatialVLA"
CELL = ("table", "robot", "setting", "metric", "model", "task")  # what tells a printed number from the others
TABLE_1, TABLE_2, TABLE_3 = (f"ReFineVLA Table {number}" for number in (1, 2, 3))
README = "SpatialVLA README"
# that stand side by side; of two numbers the first table's counts
TABLES = (TABLE_1, TABLE_2, f"{README}, row shift corrected", README)
MISPLACED = "one row too low"  # in the note of a number that its source prints in another model's row
TIERS = ("secondary", "primary")
Row = dict[str, str]  # of the leaderboard


@dataclass(frozen=True)
class Published:
    """One printed number. `value` is in per cent or percentage points (episodes for the metric "episodes"),
    None for an empty cell.
    """

    table: str
    robot: str
    setting: str
    metric: str
    model: str
    task: str
    value: float | None
    tier: str
    source: str
    note: str

    @property
    def percent(self) -> float:
        return float(self.value or 0.0)


@dataclass(frozen=True)
class Inconsistency:
    """A printed number that is not what it should be.

    Attributes:
        why: in words.
        stated: episodes that the protocol plays for it.
        fits: the smallest number of episodes that every percentage of its row can come from; None where there
            is none, or nothing to look for.
    """

    number: Published
    why: str
    stated: int
    fits: int | None = None


@dataclass(frozen=True)
class Claim:
    """A published gain of `a` over `b` and what it rests on; rates are fractions.

    Attributes:
        version: of the paper, "v1" or "v2".
        low, high: interval of the difference, from both counts, as on independent episodes.
        widest: the same if the variants of a start always fare alike, so that only starts count (WidowX: no
            other).
        needed: independent episodes each side needs to resolve a gain of this size with 80 % power.
        tier: "primary" only when both numbers were seen in their source.
        assumed: what is not printed and had to be assumed; "" if nothing.
    """

    name: str
    version: str
    a: Rate
    b: Rate
    low: float
    high: float
    widest: tuple[float, float]
    needed: int
    tier: str
    assumed: str = ""

    @property
    def difference(self) -> float:
        return self.a.rate - self.b.rate

    @property
    def supported(self) -> bool:
        """The interval of the difference lies above zero."""
        return self.low > 0

    @property
    def verdict(self) -> str:
        """What both intervals say, in words."""
        if self.low <= 0 <= self.high:
            return "not resolved"
        return ("supported" if self.supported else "the opposite") + (
            " if variants are independent" if self.widest[0] <= 0 <= self.widest[1] else ""
        )


@dataclass(frozen=True)
class Standing:
    """Where ReFineVLA's printed average stands in a column of the leaderboard, which does not list it.

    Attributes:
        rows: of the leaderboard, best first, with their numbers; those of other tasks are left out.
        ours: ReFineVLA's.
        alike: how many rows above it and (ties included) below it cannot be told from it at 95 %.
        alike_starts: the same if the variants of a start always fare alike.
        left_out: rows of other tasks.
    """

    column: str
    rows: list[tuple[Row, Rate]]
    ours: Rate
    alike: tuple[int, int]
    alike_starts: tuple[int, int]
    left_out: int

    @property
    def place(self) -> int:
        """Among the rows; ties share the upper place."""
        return 1 + sum(value.rate > self.ours.rate for _, value in self.rows)

    @property
    def place_of_models(self) -> tuple[int, int]:
        """The place if each model has its best row only, and how many models those are with ReFineVLA."""
        best = {row["model"]: value.rate for row, value in reversed(self.rows)}
        return 1 + sum(value > self.ours.rate for value in best.values()), 1 + len(best)


@dataclass(frozen=True)
class Spread:
    """One model's different numbers in a column: its lowest and highest row, and how many papers print it."""

    column: str
    low: Row
    high: Row
    papers: int

    @property
    def points(self) -> float:
        return float(self.high[self.column]) - float(self.low[self.column])


def load_published(path: str | Path = DATA) -> list[Published]:
    """All printed numbers, in the file's order."""
    with as_kit_error(
        f"published numbers cannot be read from {path}",
        "restore data/paper/published.json from the repository",
        (OSError, ValueError, KeyError),
    ):
        groups = read_json(path)["groups"]
        numbers = []
        for group in groups:
            common = {name: group[name] for name in ("table", "robot", "setting", "metric", "tier", "source")}
            for model, cells in group["values"].items():
                for task, value in cells.items():
                    note = group.get("note") or group.get("notes", {}).get(f"{model} / {task}", "")
                    numbers.append(Published(model=model, task=task, value=value, note=note, **common))
        return numbers


def select(numbers: Iterable[Published], **conditions: str) -> list[Published]:
    """Those whose fields have these values, e.g. `select(numbers, table="ReFineVLA Table 1",
    metric="success")`; empty cells are left out.
    """
    return [
        number
        for number in numbers
        if number.value is not None and conditions.items() <= vars(number).items()
    ]


def stated_episodes(robot: str, setting: str, task: str, starts: bool = False) -> int:
    """Episodes (or different starts) that the protocol plays for a task, a row of the published tables or a
    part of one; for `AVERAGE`, for all rows that it is made of.
    """
    protocols = [
        one.protocol(setting)
        for name in (PUBLISHED_WEIGHTS[robot] if task == AVERAGE else [task])
        for one in find_tasks(name)
    ]
    return sum(one.scored if starts else len(one.episodes()) for one in protocols)


def inconsistencies(numbers: Iterable[Published]) -> list[Inconsistency]:
    """The printed rates that no count of the protocol's episodes gives, and the printed means that do not
    follow from the cells beside them. `experiments.printed_numbers` finds them.
    """
    where = itemgetter(*CELL)
    cells = {where(vars(number)): number for number in numbers}
    return [
        Inconsistency(cells[where(each)], each["why"], each["stated"], each["fits"])
        for each in read_json(INCONSISTENCIES)["inconsistencies"]
        if where(each) in cells
    ]


def published_scores(
    numbers: Iterable[Published],
    robot: str = "widowx",
    setting: str = VISUAL_MATCHING,
) -> list[Score]:
    """Published success per model, row of the tables and average, with intervals from the episodes behind
    them, in the tables' order.

    The rule is given as "last": SIMPLER's evaluator scores the last step, and no table says otherwise.
    """
    rates, cells = _rates(numbers), dict[tuple[str, ...], _Cell]()
    for table in TABLES:
        for key, cell in rates.items():
            if key[:3] == (table, robot, setting):
                cells.setdefault(key[3:], cell)
    return [
        Score(model, task, "last", cells[model, task].rate(), setting, mark=cells[model, task].mark)
        for model in dict.fromkeys(model for model, _ in cells)
        for task in (*PUBLISHED_WEIGHTS[robot], AVERAGE)
        if (model, task) in cells
    ]


def claims(numbers: Sequence[Published]) -> list[Claim]:
    """ReFineVLA's gains: all that its tables allow to compute, and those that v1's abstract prints without a
    rate, on SpatialVLA's own.
    """
    rates, found = _rates(numbers), list[Claim]()
    for entry in read_json(CLAIMS)["claims"]:
        base = rates[tuple(entry["over"])]
        if "of" in entry:
            cell = rates[tuple(entry["of"])]
        else:
            (gain,) = select(numbers, **entry["gain"])
            cell = replace(base, value=base.value + gain.percent / 100, mark=gain.tier)
        ours, theirs = cell.rate(), base.rate()
        low, high = unpaired_difference(ours, theirs)
        claim = Claim(
            entry["name"],
            entry["version"],
            ours,
            theirs,
            low,
            high,
            widest=unpaired_difference(cell.rate(cell.starts), base.rate(cell.starts)),
            needed=episodes_needed_unpaired(cell.value, base.value),
            tier=min(cell.mark, base.mark, key=TIERS.index),
            assumed=entry.get("assumed", ""),
        )
        found.append(claim)
    return found


def load_leaderboard() -> list[Row]:
    """Success of many models as third parties list it (2026-08-10), one row a model and paper.

    `stands` says whose number it is and what differs from the protocol; "google_vm: 4 tasks" is said of that
    column alone, which then compares with no other row.
    """
    with LEADERBOARD.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def standings(numbers: Iterable[Published], rows: Sequence[Row]) -> list[Standing]:
    """ReFineVLA among the leaderboard's `rows`, one column after the other.

    Each row is taken to be of the protocol's episodes, although few say how many they played. Google averages
    are plain means of three tasks, ReFineVLA's are weighted: SpatialVLA's own differ by 1.3 and 3.2 points.
    """
    rates, found = _rates(numbers), list[Standing]()
    for column, (robot, setting) in COLUMNS.items():
        ours = rates[TABLE_1 if robot == "widowx" else TABLE_2, robot, setting, OURS, AVERAGE]
        sizes = {task: stated_episodes(robot, setting, task) for task in PUBLISHED_WEIGHTS[robot]}
        size, filled = _effective(dict.fromkeys(sizes, 1), sizes), [row for row in rows if row[column]]
        kept = [row for row in filled if f"{column}:" not in row["stands"]]
        cells = [
            (row, _Cell(float(row[column]) / 100, size, sum(sizes.values()), ours.starts, row["mark"]))
            for row in sorted(kept, key=lambda row: -float(row[column]))
        ]
        alike = []
        for share in (1, ours.starts):
            same = []
            for _, cell in cells:
                low, high = unpaired_difference(cell.rate(share), ours.rate(share))
                if low <= 0 <= high:
                    same.append(cell.value > ours.value)
            alike.append((same.count(True), same.count(False)))
        values = [(row, cell.rate()) for row, cell in cells]
        found.append(Standing(column, values, ours.rate(), alike[0], alike[1], len(filled) - len(kept)))
    return found


def spreads(rows: Iterable[Row], papers: int = 2) -> list[Spread]:
    """The models whose numbers in at least so many papers lie a point or more apart, the widest first."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        for column in COLUMNS:
            if row[column]:
                groups.setdefault((column, row["model"]), []).append(row)
    found = []
    for (column, _), group in groups.items():
        group.sort(key=lambda row: float(row[column]))
        found.append(Spread(column, group[0], group[-1], len({row["paper"] for row in group})))
    wide = [one for one in found if one.papers >= papers and one.points >= 1]
    return sorted(wide, key=lambda one: -one.points)


@dataclass(frozen=True)
class _Cell:
    """A printed rate of `episodes`, as sure as `size` independent ones; `starts` is the share of different
    starts in them.
    """

    value: float
    size: float
    episodes: int
    starts: float
    mark: str

    def rate(self, share: float = 1.0) -> Rate:
        size = self.size * share
        successes = round(self.value * self.episodes)
        return Rate(self.value, *wilson(self.value * size, size), successes, self.episodes)


def rows_of(numbers: Iterable[Published], metrics: Sequence[str]) -> list[dict[str, Published]]:
    """The rows of all tables, task -> number, without the numbers that their source prints in another model's
    row.
    """
    rows: dict[tuple[str, ...], dict[str, Published]] = {}
    for one in numbers:
        if one.value is not None and one.metric in metrics and MISPLACED not in one.note:
            rows.setdefault((one.metric, one.table, one.robot, one.setting, one.model), {})[one.task] = one
    return list(rows.values())


def _rates(numbers: Iterable[Published]) -> dict[tuple[str, ...], _Cell]:
    """(table, robot, setting, model, task) -> every printed success.

    The episodes behind a percentage are the protocol's or, where those cannot give all of its row, the fewest
    that can. An average is as sure as 1 / sum(weight^2 / episodes). Most are printed without all of their
    cells, so all episodes are taken as equally hard, which makes its interval a little wide.
    """
    cells: dict[tuple[str, ...], _Cell] = {}
    for row in rows_of(numbers, ("success",)):
        fits = [found.fits for found in inconsistencies(row.values()) if found.fits]
        for task, number in row.items():
            where = (number.robot, number.setting)
            stated = stated_episodes(*where, task)
            weights = PUBLISHED_WEIGHTS[number.robot] if task == AVERAGE else {task: 1}
            sizes = {
                name: fits[0] if fits and name in row else stated_episodes(*where, name) for name in weights
            }
            episodes = sum(sizes.values())
            # Where the number of episodes was deduced from the cells, it is no better known than they are.
            tiers = {number.tier} if episodes == stated else {cell.tier for cell in row.values()}
            cells[(number.table, *where, number.model, task)] = _Cell(
                number.percent / 100,
                size=_effective(weights, sizes),
                episodes=episodes,
                starts=stated_episodes(*where, task, starts=True) / stated,
                mark=min(tiers, key=TIERS.index),
            )
    return cells


def _effective(weights: Mapping[str, int], sizes: Mapping[str, int]) -> float:
    """Independent episodes as sure as a weighted mean of tasks of these `sizes`."""
    return sum(weights.values()) ** 2 / sum(weights[name] ** 2 / sizes[name] for name in weights)
