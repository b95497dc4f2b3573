"""The interval of a share, for success rates and for what an audit finds alike."""

from __future__ import annotations

LEVEL = 0.95  # of every interval and test


def wilson(successes: float, episodes: float) -> tuple[float, float]:
    """Wilson's score interval (95 %) of a proportion (Wilson 1927; recommended for small samples by Newcombe
    1998).
    """
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, episodes, alpha=1 - LEVEL, method="wilson")
    return max(0.0, float(low)), min(1.0, float(high))
