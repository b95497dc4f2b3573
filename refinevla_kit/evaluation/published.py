"""The published numbers, with their source and mark, the episodes behind them, and what these can support.

Two marks: "primary" was seen in the source itself, "secondary" only in third-party reading notes of the ReFineVLA paper. Percentages are as printed.
The episodes behind them are what SIMPLER's protocol (`tasks`) plays or, for a row whose percentages cannot come from that many, the smallest number
that gives them all. Intervals take these episodes for independent. The Google Robot's are 4-9 variants of each start, and what is printed does not
say how alike those fare: claims therefore carry a second interval, in which a start counts once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.aggregation import AVERAGE
from refinevla_kit.evaluation.intervals import Rate, episodes_needed_unpaired, unpaired_difference, wilson
from refinevla_kit.evaluation.printed import count_behind, fitting_episodes, impossible, impossible_mean
from refinevla_kit.evaluation.statistics import Score
from refinevla_kit.tasks import GROUPS, PUBLISHED_WEIGHTS, VARIANT_AGGREGATION, VISUAL_MATCHING, find_tasks

DATA = Path(__file__).parents[2] / "data/paper/published.json"
TABLE_1, TABLE_2, TABLE_3, README = "ReFineVLA Table 1", "ReFineVLA Table 2", "ReFineVLA Table 3", "SpatialVLA README"
TABLES = (TABLE_1, TABLE_2, f"{README}, row shift corrected", README)  # that stand side by side; of two numbers the first table's counts
MISPLACED = "one row too low"  # in the note of a number that its source prints in another model's row
OURS, SPATIALVLA, TIERS = "ReFineVLA", "SpatialVLA (fine-tuning)", ("secondary", "primary")
WHERE = {  # what a gain is called, and where its cell is
    "WidowX": ("widowx", VISUAL_MATCHING, TABLE_1, {
        "average": AVERAGE, "spoon": "widowx_spoon_on_towel", "carrot": "widowx_carrot_on_plate", "stack": "widowx_stack_cube",
        "eggplant": "widowx_put_eggplant_in_basket"}),
    "Google matching": ("google_robot", VISUAL_MATCHING, TABLE_2, {"average": AVERAGE, "coke can": "pick_coke_can", "move near": "move_near"}),
    "Google variants": ("google_robot", VARIANT_AGGREGATION, TABLE_2, {"average": AVERAGE, "drawer": "open_close_drawer"}),
}  # fmt: skip
OVER = {  # over whom, and where its cell is
    "SpatialVLA": ((TABLE_1, SPATIALVLA), (TABLE_2, "SpatialVLA (as reported in ReFineVLA)")),
    "SpatialVLA's own table": ((README, SPATIALVLA),),
    "no reasoning loss": ((TABLE_3, "transfer fine-tuning only (no reasoning loss)"),),
}


@dataclass(frozen=True)
class Published:
    """One printed number. `value` is in per cent or percentage points (episodes for the metric "episodes"), None for an empty cell."""

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
        fits: the smallest number of episodes that every percentage of its row can come from; None where there is none, or nothing to look for.
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
        widest: the same if the variants of a start always fare alike, so that only starts count (WidowX: no other).
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
        return ("supported" if self.supported else "the opposite") + (" if variants are independent" if self.widest[0] <= 0 <= self.widest[1] else "")


def load_published(path: str | Path = DATA) -> list[Published]:
    """All printed numbers, in the file's order."""
    try:
        groups = json.loads(Path(path).read_text(encoding="utf-8"))["groups"]
        return [
            Published(group["table"], group["robot"], group["setting"], group["metric"], model, task, value, group["tier"], group["source"],
                      group.get("note") or group.get("notes", {}).get(f"{model} / {task}", ""))
            for group in groups for model, cells in group["values"].items() for task, value in cells.items()
        ]  # fmt: skip
    except (OSError, ValueError, KeyError) as error:
        raise KitError(
            f"published numbers cannot be read from {path} ({type(error).__name__}: {error})", "restore data/paper/published.json from the repository"
        ) from error


def select(numbers: Iterable[Published], **conditions: str) -> list[Published]:
    """Those whose fields have these values, e.g. `select(numbers, table="ReFineVLA Table 1", metric="success")`; empty cells are left out."""
    return [number for number in numbers if number.value is not None and all(getattr(number, name) == value for name, value in conditions.items())]


def stated_episodes(robot: str, setting: str, task: str, starts: bool = False) -> int:
    """Episodes (or different starts) that the protocol plays for a task, a row of the published tables or a part of one; for `AVERAGE`, for all rows
    that it is made of."""
    protocols = [one.protocol(setting) for name in (PUBLISHED_WEIGHTS[robot] if task == AVERAGE else [task]) for one in find_tasks(name)]
    return sum(one.scored if starts else len(one.episodes()) for one in protocols)


def inconsistencies(numbers: Iterable[Published]) -> list[Inconsistency]:
    """The printed rates that no count of the protocol's episodes gives, and the printed means that do not follow from the cells beside them."""
    found = []
    for row in _rows(numbers, ("success", "grasp")):
        behind = _episodes_behind(row)
        for task, one in row.items():
            stated = stated_episodes(one.robot, one.setting, task)
            if task != AVERAGE and impossible(one.percent, stated):
                found.append(Inconsistency(one, f"no count out of {stated}", stated, behind[task] if behind[task] != stated else None))
            parts = PUBLISHED_WEIGHTS[one.robot] if task == AVERAGE else {part: 1 for part, _ in GROUPS[task].parts} if task in GROUPS else {}
            if len(parts) > 1 and parts.keys() <= row.keys():
                cells, weights = [(row[part].percent, behind[part]) for part in parts], list(parts.values())
                if impossible_mean(one.percent, cells, weights):
                    found.append(Inconsistency(one, f"its cells give {np.average([cell for cell, _ in cells], weights=weights):.2f}", stated))
    return found


def published_scores(
    numbers: Iterable[Published], robot: str = "widowx", setting: str = VISUAL_MATCHING, tables: Sequence[str] = TABLES
) -> list[Score]:
    """Published success per model, row of the tables and average, with intervals from the episodes behind them, in the tables' order.

    An average has Wilson's interval at 1 / sum(weight^2 / episodes): most are printed without all of their cells, so that all episodes have to be
    taken as equally hard, which makes it a little wide. The rule is given as "last": SIMPLER's evaluator scores the last step, and no table says
    otherwise.
    """
    rates, cells = _rates(numbers), dict[tuple[str, str], _Cell]()
    for key, found in sorted(((key, found) for key, found in rates.items() if key[0] in tables), key=lambda item: tables.index(item[0][0])):
        if key[1:3] == (robot, setting):
            cells.setdefault(key[3:], found)
    order = [*PUBLISHED_WEIGHTS[robot], AVERAGE]
    return [
        Score(model, task, "last", cells[model, task].rate, setting, mark=cells[model, task].mark)
        for model in dict.fromkeys(model for model, _ in cells) for task in order if (model, task) in cells
    ]  # fmt: skip


def claims(numbers: Sequence[Published]) -> list[Claim]:
    """ReFineVLA's gains: all that its tables allow to compute, and those that v1's abstract prints without a rate, on SpatialVLA's own."""
    rates, found = _rates(numbers), list[Claim]()
    for where, (robot, setting, table, tasks) in WHERE.items():
        for over, short, (reported, model) in ((over, short, cell) for over, cells in OVER.items() for short in tasks for cell in cells):
            a, b = (rates.get((t, robot, setting, m, tasks[short])) for t, m in ((table, OURS), (reported, model)))
            if a and b and not any((one.a, one.b) == (a.rate, b.rate) for one in found):
                found.append(_claim(f"{where} {short}, over {over}", "v2", a, b))
    for one in select(numbers, table="ReFineVLA abstract", metric="gain over second best", model="ReFineVLA v1"):
        (where,) = (name for name, (robot, setting, *_) in WHERE.items() if (robot, setting) == (one.robot, one.setting))
        base = rates[README, one.robot, one.setting, SPATIALVLA, AVERAGE]
        gained = _average(base.rate.rate + one.percent / 100, one.robot, one.setting, {}, one.tier)
        found.append(_claim(f"{where} average, over the second best", "v1", gained, base, "that the second best is SpatialVLA, as in its own table"))
    return found


@dataclass(frozen=True)
class _Cell:
    """A rate, the same rate with the interval of its starts alone, and its mark."""

    rate: Rate
    widest: Rate
    mark: str


def _claim(name: str, version: str, a: _Cell, b: _Cell, assumed: str = "") -> Claim:
    what, over = name.split(", over ")
    gain = a.rate.rate - b.rate.rate
    text = f"{what}: ReFineVLA succeeds {abs(100 * gain):.1f} points {'more' if gain > 0 else 'less'} often than {over}"
    return Claim(name, version, text, a.rate, b.rate, *unpaired_difference(a.rate, b.rate), unpaired_difference(a.widest, b.widest),
                 episodes_needed_unpaired(a.rate.rate, b.rate.rate), min(a.mark, b.mark, key=TIERS.index), assumed)  # fmt: skip


def _rows(numbers: Iterable[Published], metrics: Sequence[str]) -> list[dict[str, Published]]:
    """The rows of all tables, task -> number, without the numbers that their source prints in another model's row."""
    rows: dict[tuple[str, ...], dict[str, Published]] = {}
    for one in numbers:
        if one.value is not None and one.metric in metrics and MISPLACED not in one.note:
            rows.setdefault((one.metric, one.table, one.robot, one.setting, one.model), {})[one.task] = one
    return list(rows.values())


def _episodes_behind(row: dict[str, Published]) -> dict[str, int]:
    """Episodes behind each percentage of a row: the protocol's or, where those are as many for each task and cannot give it, the fewest that can."""
    stated = {task: stated_episodes(one.robot, one.setting, task) for task, one in row.items() if task != AVERAGE}
    percents, sizes = [row[task].percent for task in stated], set(stated.values())
    if len(stated) == 1 or len(sizes) != 1 or not any(impossible(percent, *sizes) for percent in percents):
        return stated
    return dict.fromkeys(stated, (fitting_episodes(percents, *sizes) or [*sizes])[0])


def _rates(numbers: Iterable[Published]) -> dict[tuple[str, str, str, str, str], _Cell]:
    """(table, robot, setting, model, task) -> every printed success, with the interval of the count behind it where there is one."""
    rates = {}
    for row in _rows(numbers, ("success",)):
        behind = _episodes_behind(row)
        for task, one in row.items():
            if task == AVERAGE:
                deduced = any(size != stated_episodes(one.robot, one.setting, name) for name, size in behind.items())
                mark = min((number.tier for number in row.values()), key=TIERS.index) if deduced else one.tier
                found = _average(one.percent / 100, one.robot, one.setting, behind, mark)
            else:
                size, count = behind[task], count_behind(one.percent, behind[task])
                share = stated_episodes(one.robot, one.setting, task, True) / stated_episodes(one.robot, one.setting, task)
                narrow, widest = (_rate(one.percent / 100, part * size, size, count) for part in (1, share))
                found = _Cell(narrow, widest, one.tier)
            rates[one.table, one.robot, one.setting, one.model, task] = found
    return rates


def _average(value: float, robot: str, setting: str, behind: dict[str, int], mark: str) -> _Cell:
    """A printed average; `behind` has the episodes of its rows where they are other than the protocol's."""
    weights = np.array(list(PUBLISHED_WEIGHTS[robot].values())) / sum(PUBLISHED_WEIGHTS[robot].values())
    stated, starts = (np.array([stated_episodes(robot, setting, task, kind) for task in PUBLISHED_WEIGHTS[robot]]) for kind in (False, True))
    sizes = np.array([behind.get(task, size) for task, size in zip(PUBLISHED_WEIGHTS[robot], stated)])
    narrow, widest = (_rate(value, float(1 / np.sum(weights**2 / one)), int(sizes.sum())) for one in (sizes, sizes * starts / stated))
    return _Cell(narrow, widest, mark)


def _rate(value: float, size: float, episodes: int, count: int | None = None) -> Rate:
    """A rate as printed, of `episodes` that are as sure as `size` independent ones."""
    exact = value if count is None else count / episodes
    return Rate(value, *wilson(exact * size, size), round(exact * episodes), episodes)
