"""The published numbers, with their source and mark, the episodes behind them, and what these can support.

Two marks: "primary" was seen in the source itself, "secondary" only in third-party reading notes of the
ReFineVLA paper. Percentages are as printed. The episodes behind them are what SIMPLER's protocol (`tasks`)
plays or, for a row whose percentages cannot come from that many, the smallest number that gives them all.
Intervals take these episodes for independent. The Google Robot's are 4-9 variants of each start, and what is
printed does not say how alike those fare: claims therefore carry a second interval, in which a start counts
once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.intervals import Rate, episodes_needed_unpaired, unpaired_difference, wilson
from refinevla_kit.evaluation.statistics import AVERAGE, Score
from refinevla_kit.tasks import PUBLISHED_WEIGHTS, VARIANT_AGGREGATION, VISUAL_MATCHING, find_tasks

DATA = Path(__file__).parents[2] / "data/paper/published.json"
INCONSISTENCIES = DATA.with_name("inconsistencies.json")
CELL = ("table", "robot", "setting", "metric", "model", "task")  # what tells a printed number from the others
TABLE_1, TABLE_2, TABLE_3, README = (
    "ReFineVLA Table 1",
    "ReFineVLA Table 2",
    "ReFineVLA Table 3",
    "SpatialVLA README",
)
TABLES = (
    TABLE_1,
    TABLE_2,
    f"{README}, row shift corrected",
    README,
)  # that stand side by side; of two numbers the first table's counts
MISPLACED = "one row too low"  # in the note of a number that its source prints in another model's row
OURS, SPATIALVLA, TIERS = "ReFineVLA", "SpatialVLA (fine-tuning)", ("secondary", "primary")
WHERE = {  # what a gain is called, and where its cell is
    "WidowX": (
        "widowx",
        VISUAL_MATCHING,
        TABLE_1,
        {
            "average": AVERAGE,
            "spoon": "widowx_spoon_on_towel",
            "carrot": "widowx_carrot_on_plate",
            "stack": "widowx_stack_cube",
            "eggplant": "widowx_put_eggplant_in_basket",
        },
    ),
    "Google matching": (
        "google_robot",
        VISUAL_MATCHING,
        TABLE_2,
        {"average": AVERAGE, "coke can": "pick_coke_can", "move near": "move_near"},
    ),
    "Google variants": (
        "google_robot",
        VARIANT_AGGREGATION,
        TABLE_2,
        {"average": AVERAGE, "drawer": "open_close_drawer"},
    ),
}
OVER = {  # over whom, and where its cell is
    "SpatialVLA": ((TABLE_1, SPATIALVLA), (TABLE_2, "SpatialVLA (as reported in ReFineVLA)")),
    "SpatialVLA's own table": ((README, SPATIALVLA),),
    "no reasoning loss": ((TABLE_3, "transfer fine-tuning only (no reasoning loss)"),),
}


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
        text: the claim in words.
        low, high: interval of the difference, from both counts, as on independent episodes.
        widest: the same if the variants of a start always fare alike, so that only starts count (WidowX: no
            other).
        needed: independent episodes each side needs to resolve a gain of this size with 80 % power.
        tier: "primary" only when both numbers were seen in their source.
        assumed: what is not printed and had to be assumed; "" if nothing.
    """

    name: str
    version: str
    text: str
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


def load_published(path: str | Path = DATA) -> list[Published]:
    """All printed numbers, in the file's order."""
    try:
        groups = json.loads(Path(path).read_text(encoding="utf-8"))["groups"]
        numbers = []
        for group in groups:
            common = {name: group[name] for name in ("table", "robot", "setting", "metric", "tier", "source")}
            for model, cells in group["values"].items():
                for task, value in cells.items():
                    note = group.get("note") or group.get("notes", {}).get(f"{model} / {task}", "")
                    numbers.append(Published(model=model, task=task, value=value, note=note, **common))
        return numbers
    except (OSError, ValueError, KeyError) as error:
        raise KitError(
            f"published numbers cannot be read from {path} ({type(error).__name__}: {error})",
            "restore data/paper/published.json from the repository",
        ) from error


def select(numbers: Iterable[Published], **conditions: str) -> list[Published]:
    """Those whose fields have these values, e.g. `select(numbers, table="ReFineVLA Table 1",
    metric="success")`; empty cells are left out.
    """
    return [
        number
        for number in numbers
        if number.value is not None
        and all(getattr(number, name) == value for name, value in conditions.items())
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
    cells = {_cell_of(number): number for number in numbers}
    return [
        Inconsistency(cells[cell], *finding) for cell, finding in _known_inconsistencies() if cell in cells
    ]


@cache
def _known_inconsistencies() -> list[tuple[tuple[str, ...], tuple[str, int, int | None]]]:
    listed = json.loads(INCONSISTENCIES.read_text(encoding="utf-8"))["inconsistencies"]
    return [
        (tuple(each[name] for name in CELL), (each["why"], each["stated"], each["fits"])) for each in listed
    ]


def _cell_of(number: Published) -> tuple[str, ...]:
    return tuple(getattr(number, name) for name in CELL)


def published_scores(
    numbers: Iterable[Published],
    robot: str = "widowx",
    setting: str = VISUAL_MATCHING,
    tables: Sequence[str] = TABLES,
) -> list[Score]:
    """Published success per model, row of the tables and average, with intervals from the episodes behind
    them, in the tables' order.

    The rule is given as "last": SIMPLER's evaluator scores the last step, and no table says otherwise.
    """
    rates, cells = _rates(numbers), dict[tuple[str, str], _Cell]()
    for table in tables:
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
    for where, (robot, setting, table, tasks) in WHERE.items():
        for over, cells in OVER.items():
            for short, task in tasks.items():
                for reported, model in cells:
                    a = rates.get((table, robot, setting, OURS, task))
                    b = rates.get((reported, robot, setting, model, task))
                    if a and b and not any((one.a, one.b) == (a.rate(), b.rate()) for one in found):
                        found.append(_claim(f"{where} {short}, over {over}", "v2", a, b))
        v1 = {"metric": "gain over second best", "model": "ReFineVLA v1"}
        (gain,) = select(numbers, robot=robot, setting=setting, **v1)
        base = rates[README, robot, setting, SPATIALVLA, AVERAGE]
        gained = replace(base, value=base.value + gain.percent / 100, mark=gain.tier)
        assumed = "that the second best is SpatialVLA, as in its own table"
        found.append(_claim(f"{where} average, over the second best", "v1", gained, base, assumed))
    return found


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
        return Rate(
            self.value, *wilson(self.value * size, size), round(self.value * self.episodes), self.episodes
        )


def _claim(name: str, version: str, a: _Cell, b: _Cell, assumed: str = "") -> Claim:
    what, over = name.split(", over ")
    points = 100 * (a.value - b.value)
    more = "more" if points > 0 else "less"
    text = f"{what}: ReFineVLA succeeds {abs(points):.1f} points {more} often than {over}"
    low, high = unpaired_difference(a.rate(), b.rate())
    return Claim(
        name,
        version,
        text,
        a.rate(),
        b.rate(),
        low,
        high,
        widest=unpaired_difference(a.rate(a.starts), b.rate(a.starts)),
        needed=episodes_needed_unpaired(a.value, b.value),
        tier=min(a.mark, b.mark, key=TIERS.index),
        assumed=assumed,
    )


def rows_of(numbers: Iterable[Published], metrics: Sequence[str]) -> list[dict[str, Published]]:
    """The rows of all tables, task -> number, without the numbers that their source prints in another model's
    row.
    """
    rows: dict[tuple[str, ...], dict[str, Published]] = {}
    for one in numbers:
        if one.value is not None and one.metric in metrics and MISPLACED not in one.note:
            rows.setdefault((one.metric, one.table, one.robot, one.setting, one.model), {})[one.task] = one
    return list(rows.values())


def _episodes_behind(row: dict[str, Published]) -> dict[str, int]:
    """Episodes behind each percentage of a row: the protocol's or, where those are as many for each task and
    cannot give it, the fewest that can.
    """
    stated = {
        task: stated_episodes(number.robot, number.setting, task)
        for task, number in row.items()
        if task != AVERAGE
    }
    fits = [found.fits for found in inconsistencies(row.values()) if found.fits]
    return dict.fromkeys(stated, fits[0]) if fits else stated


def _rates(numbers: Iterable[Published]) -> dict[tuple[str, str, str, str, str], _Cell]:
    """(table, robot, setting, model, task) -> every printed success.

    An average is as sure as 1 / sum(weight^2 / episodes): most are printed without all of their cells, so
    that all episodes have to be taken as equally hard, which makes its interval a little wide.
    """
    cells = {}
    for row in rows_of(numbers, ("success",)):
        behind, marks = _episodes_behind(row), [number.tier for number in row.values()]
        for task, number in row.items():
            where = (number.robot, number.setting)
            stated = stated_episodes(*where, task)
            weights = PUBLISHED_WEIGHTS[number.robot] if task == AVERAGE else {task: 1}
            sizes = {name: behind.get(name) or stated_episodes(*where, name) for name in weights}
            episodes = sum(sizes.values())
            squares = sum(weights[name] ** 2 / sizes[name] for name in weights)
            cells[(number.table, *where, number.model, task)] = _Cell(
                number.percent / 100,
                size=sum(weights.values()) ** 2 / squares,
                episodes=episodes,
                starts=stated_episodes(*where, task, starts=True) / stated,
                # Where the number of episodes was deduced from the cells, it is no better known than they
                # are.
                mark=number.tier if episodes == stated else min(marks, key=TIERS.index),
            )
    return cells
