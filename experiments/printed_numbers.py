"""What printed percentages can be: the counts that round to them, the numbers of episodes that a row
of them can come from, and the published numbers that fit none.

    python -m experiments.printed_numbers

writes data/paper/inconsistencies.json, from which `refinevla_kit.evaluation.published` reads what was found.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np

from refinevla_kit.evaluation.published import (
    CELL,
    INCONSISTENCIES,
    Inconsistency,
    Published,
    load_published,
    rows_of,
    stated_episodes,
)
from refinevla_kit.evaluation.statistics import AVERAGE
from refinevla_kit.files import write_json
from refinevla_kit.tasks import GROUPS, PUBLISHED_WEIGHTS


def find_inconsistencies(numbers: Iterable[Published]) -> list[Inconsistency]:
    """The printed rates that no count of the protocol's episodes gives, and the printed means that do not
    follow from the cells beside them.
    """
    found = []
    for row in rows_of(numbers, ("success", "grasp")):
        behind = episodes_behind(row)
        for task, number in row.items():
            stated = stated_episodes(number.robot, number.setting, task)
            if task != AVERAGE and impossible(number.percent, stated):
                fits = behind[task] if behind[task] != stated else None
                found.append(Inconsistency(number, f"no count out of {stated}", stated, fits))
            parts: dict[str, int] = {}
            if task == AVERAGE:
                parts = PUBLISHED_WEIGHTS[number.robot]
            elif task in GROUPS:
                parts = {part: 1 for part, _ in GROUPS[task].parts}
            if len(parts) > 1 and parts.keys() <= row.keys():
                cells, weights = [(row[part].percent, behind[part]) for part in parts], list(parts.values())
                if impossible_mean(number.percent, cells, weights):
                    mean = np.average([cell for cell, _ in cells], weights=weights)
                    found.append(Inconsistency(number, f"its cells give {mean:.2f}", stated))
    return found


def episodes_behind(row: dict[str, Published]) -> dict[str, int]:
    """Episodes behind each percentage of a row: the protocol's or, where those are as many for each task and
    cannot give it, the fewest that can.
    """
    stated = {
        task: stated_episodes(number.robot, number.setting, task)
        for task, number in row.items()
        if task != AVERAGE
    }
    percents, sizes = [row[task].percent for task in stated], set(stated.values())
    if len(stated) == 1 or len(sizes) != 1 or not any(impossible(percent, *sizes) for percent in percents):
        return stated
    return dict.fromkeys(stated, (fitting_episodes(percents, *sizes) or [*sizes])[0])


def counts_behind(percent: float, episodes: int, decimals: int = 1) -> list[int]:
    """The counts out of `episodes` that print as `percent` with this many decimals, be it rounded half up,
    half to even or cut off.
    """
    low, high = (ceil(bound * episodes / 100) for bound in _printed_as(percent, decimals))
    return list(range(max(0, low), min(episodes, high - 1) + 1))


def impossible(percent: float, episodes: int, decimals: int = 1) -> bool:
    """Whether no count out of `episodes` prints as `percent`. With one decimal, out of 667 episodes and more
    every percentage is possible.
    """
    return not counts_behind(percent, episodes, decimals)


def fitting_episodes(percents: Iterable[float], stated: int, decimals: int = 1) -> list[int]:
    """The numbers of episodes, up to four times the stated one (repeated seeds), that each of `percents` can
    come from.
    """
    percents = list(percents)
    return [
        size
        for size in range(1, 4 * stated + 1)
        if not any(impossible(percent, size, decimals) for percent in percents)
    ]


def impossible_mean(
    percent: float, cells: Sequence[tuple[float, int]], weights: Sequence[int], decimals: int = 1
) -> bool:
    """Whether `percent` is the weighted mean neither of `cells` as printed nor of the counts behind them.

    Args:
        cells: (percentage, episodes) of each; where no count gives the percentage, it may be anything that
            prints so.
    """
    low, high = _printed_as(percent, decimals)
    least = most = Fraction(0)
    for (cell, episodes), weight in zip(cells, weights, strict=True):
        exact = [Fraction(100 * count, episodes) for count in counts_behind(cell, episodes, decimals)]
        possible = [Fraction(str(cell)), *(exact or _printed_as(cell, decimals))]
        least += min(possible) * weight / sum(weights)
        most += max(possible) * weight / sum(weights)
    return most < low or least >= high


def _printed_as(percent: float, decimals: int) -> tuple[Fraction, Fraction]:
    """What prints as `percent` lies from the first on and below the second: up to half a unit less is rounded
    up, up to a unit more is cut off.
    """
    unit = Fraction(1, 10**decimals)
    return Fraction(str(percent)) - unit / 2, Fraction(str(percent)) + unit


def listed(found: Iterable[Inconsistency]) -> list[dict[str, Any]]:
    """What was found, as data/paper/inconsistencies.json has it."""
    return [
        {name: getattr(one.number, name) for name in CELL}
        | {"why": one.why, "stated": one.stated, "fits": one.fits}
        for one in found
    ]


if __name__ == "__main__":
    about = "written by python -m experiments.printed_numbers from published.json"
    found = find_inconsistencies(load_published())
    write_json(INCONSISTENCIES, {"about": about, "inconsistencies": listed(found)})
    print(f"{INCONSISTENCIES}: {len(found)}")
