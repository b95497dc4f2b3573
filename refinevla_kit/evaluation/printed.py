"""What a printed percentage can and cannot be: the counts that round to it, and the numbers of episodes that
a row of them can come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from math import ceil


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
    ends = []
    for cell, episodes in cells:
        exact = [Fraction(100 * count, episodes) for count in counts_behind(cell, episodes, decimals)]
        ends.append([Fraction(str(cell)), *(exact or _printed_as(cell, decimals))])
    least, most = (
        sum(pick(one) * weight for one, weight in zip(ends, weights)) / sum(weights) for pick in (min, max)
    )
    return most < low or least >= high


def _printed_as(percent: float, decimals: int) -> tuple[Fraction, Fraction]:
    """What prints as `percent` lies from the first on and below the second: up to half a unit less is rounded
    up, up to a unit more is cut off.
    """
    unit = Fraction(1, 10**decimals)
    return Fraction(str(percent)) - unit / 2, Fraction(str(percent)) + unit
