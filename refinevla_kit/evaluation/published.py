"""The published numbers, with their source and mark, and what their episode counts can support.

Two marks: "primary" was seen in the source itself, "secondary" only in third-party reading notes of the ReFineVLA paper. Percentages are as printed;
the episode counts behind them are SIMPLER's protocol (`SimplerEnv protocol` rows) or, where a row's cells are not multiples of it, deduced from them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.statistics import AVERAGE, Rate, Score, average_rate, episodes_needed_unpaired, rate, unpaired_difference, wilson
from refinevla_kit.tasks import WIDOWX_TASKS

DATA = Path(__file__).parents[2] / "data/paper/published.json"
WIDOWX_EPISODES = (24, 72, 21)  # SIMPLER's grid; three seeds of it; what ReFineVLA's cells are multiples of
GOOGLE_WEIGHTS = {"pick_coke_can": 3, "move_near": 1, "open_close_drawer": 2}  # how the published averages weigh the tasks: by their sub-tasks


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


@dataclass(frozen=True)
class Claim:
    """A published gain of `a` over `b` and what it rests on; rates are fractions.

    Attributes:
        low, high: interval of the difference, from both counts, as on independent episodes (which the published runs do not say they are not).
        needed: independent episodes each side needs to resolve a gain of this size with 80 % power.
        tier: "primary" only when both numbers were seen in their source.
    """

    name: str
    a: Rate
    b: Rate
    low: float
    high: float
    needed: int
    tier: str

    @property
    def difference(self) -> float:
        return self.a.rate - self.b.rate

    @property
    def supported(self) -> bool:
        """The interval of the difference excludes zero."""
        return self.low > 0


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


def count_behind(percent: float, episodes: int) -> int | None:
    """Successes out of `episodes` that print as `percent` (one decimal, rounded or cut off); None when there is no such count."""
    successes = round(percent * episodes / 100)
    return successes if abs(100 * successes / episodes - percent) < 0.0999 else None


def episodes_behind(percents: Sequence[float], candidates: Sequence[int] = WIDOWX_EPISODES) -> int | None:
    """The first candidate number of episodes that every percentage is a multiple of; None when there is none."""
    return next((n for n in candidates if all(count_behind(percent, n) is not None for percent in percents)), None)


def widowx_scores(numbers: Iterable[Published], tables: Sequence[str] = ("ReFineVLA Table 1", "SpatialVLA README")) -> list[Score]:
    """Published WidowX success per model, task and average, with intervals from the counts behind them; the first table wins.

    The rule is given as "last": SIMPLER's evaluator scores the last step, and the tables do not say otherwise.
    """
    cells: dict[str, dict[str, dict[str, float]]] = {}
    for number in select(numbers, robot="WidowX", metric="success"):
        cells.setdefault(number.table, {}).setdefault(number.model, {})[number.task] = float(number.value or 0.0)
    scores: list[Score] = []
    for model, percents in {model: row for table in reversed(tables) for model, row in cells.get(table, {}).items() if len(row) > 4}.items():
        tasks = {task.name: percents[task.name] for task in WIDOWX_TASKS}
        episodes = episodes_behind(list(tasks.values()))
        if episodes is None:
            continue
        rates = {task: _rate(percent, episodes) for task, percent in tasks.items()}
        scores += [Score(model, task, "last", value) for task, value in {**rates, AVERAGE: average_rate(list(rates.values()))}.items()]
    return scores


def claims(numbers: Sequence[Published]) -> list[Claim]:
    """The paper's gains, each with the interval its episode counts allow."""
    ours, base, without = "ReFineVLA", "SpatialVLA (as reported in ReFineVLA)", "transfer fine-tuning only (no reasoning loss)"
    table_2, table_3, readme = "ReFineVLA Table 2", "ReFineVLA Table 3", "SpatialVLA README"
    widowx = {score.policy: score.rate for score in widowx_scores(numbers) if score.task == AVERAGE}
    found = [_claim("WidowX average, over SpatialVLA", widowx[ours], widowx["SpatialVLA (fine-tuning)"], "secondary")]
    for name, setting, task, (table, other) in (
        ("Google matching average, over SpatialVLA", "visual_matching", AVERAGE, (table_2, base)),
        ("Google matching move near, over SpatialVLA", "visual_matching", "move_near", (table_2, base)),
        ("Google matching average, over no reasoning loss", "visual_matching", AVERAGE, (table_3, without)),
        ("Google variants average, over SpatialVLA", "variant_aggregation", AVERAGE, (table_2, base)),
        ("Google variants drawer, over SpatialVLA", "variant_aggregation", "open_close_drawer", (table_2, base)),
        ("Google variants average, over no reasoning loss", "variant_aggregation", AVERAGE, (table_3, without)),
        ("Google variants average, over SpatialVLA's own table", "variant_aggregation", AVERAGE, (readme, "SpatialVLA (fine-tuning)")),
    ):
        a, b = (select(numbers, table=t, setting=setting, task=task, model=m, metric="success")[0] for t, m in ((table_2, ours), (table, other)))
        episodes = _google_episodes(numbers, setting, task)
        tier = "primary" if a.tier == b.tier == "primary" else "secondary"
        found.append(_claim(name, _printed(a, episodes), _printed(b, episodes), tier))
    return found


def _claim(name: str, a: Rate, b: Rate, tier: str) -> Claim:
    return Claim(name, a, b, *unpaired_difference(a, b), episodes_needed_unpaired(a.rate, b.rate), tier)


def _google_episodes(numbers: Sequence[Published], setting: str, task: str) -> int:
    """Scored episodes of a task; for the weighted average, the number an unweighted rate would need for the same uncertainty."""
    counts = {number.task: float(number.value or 0) for number in select(numbers, robot="GoogleRobot", setting=setting, metric="episodes")}
    if task != AVERAGE:
        return int(counts[task])
    weights = np.array(list(GOOGLE_WEIGHTS.values())) / sum(GOOGLE_WEIGHTS.values())
    return int(1 / np.sum(weights**2 / [counts[name] for name in GOOGLE_WEIGHTS]))


def _printed(number: Published, episodes: int) -> Rate:
    """A printed percentage as it stands, with the interval that `episodes` give it."""
    value = float(number.value or 0) / 100
    return Rate(value, *wilson(value * episodes, episodes), round(value * episodes), episodes)


def _rate(percent: float, episodes: int) -> Rate:
    """The exact fraction behind a percentage printed from `episodes`."""
    successes = count_behind(percent, episodes)
    assert successes is not None, f"{percent} % is no count out of {episodes}"
    return rate(successes, episodes)
