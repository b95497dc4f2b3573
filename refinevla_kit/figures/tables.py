"""Tables to print: data frames of text, computed from scores, comparisons and published numbers, so that a notebook shows them as they are."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from refinevla_kit.evaluation.published import Claim, Published, select
from refinevla_kit.evaluation.statistics import AVERAGE, Comparison, Rate, Score
from refinevla_kit.figures.style import label


def success_table(scores: Sequence[Score]) -> pd.DataFrame:
    """Policies and rules by tasks: successes of episodes, the rate and its 95 % Wilson interval in per cent."""
    tasks = [task for task in dict.fromkeys(score.task for score in scores) if task != AVERAGE]
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for score in scores:
        rows.setdefault((label(score.policy), f"{score.rule} step"), {})[score.task] = rate_text(score.rate, counts=score.task != AVERAGE)
    policies = list(dict.fromkeys(policy for policy, _ in rows))
    rows = dict(sorted(rows.items(), key=lambda item: policies.index(item[0][0])))  # both rules of a policy under each other
    index = pd.MultiIndex.from_tuples(list(rows), names=["policy", "success at"])
    return pd.DataFrame(
        [[row.get(task, "") for task in [*tasks, AVERAGE]] for row in rows.values()], index, [label(task) for task in [*tasks, AVERAGE]]
    )


def comparison_table(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """One line a task: the episodes only one policy won, the difference with its interval, the exact p-value, the episodes it would need."""
    return pd.DataFrame(
        [
            {
                "task": label(one.task), "success at": f"{one.rule} step", "episodes": one.episodes, "both": one.both,
                f"only {label(one.a)}": one.only_a, f"only {label(one.b)}": one.only_b, "neither": one.neither,
                "difference, points": f"{100 * one.difference:+.1f}",
                "95 % interval": f"{100 * one.low:+.1f} to {100 * one.high:+.1f}", "exact McNemar p": f"{one.p_value:.3f}",
                "episodes a gain of this size needs": "-" if one.needed is None else f"{one.needed:,}",
            }
            for one in comparisons
        ]
    ).set_index("task")  # fmt: skip


def claims_table(claims: Sequence[Claim]) -> pd.DataFrame:
    """The published gains and what their episode counts support."""
    return pd.DataFrame(
        [
            {
                "gain": claim.name, "rates, %": f"{100 * claim.a.rate:.1f} against {100 * claim.b.rate:.1f}",
                "episodes": f"{claim.a.episodes:,} and {claim.b.episodes:,}", "gain, points": f"{100 * claim.difference:+.1f}",
                "95 % interval": f"{100 * claim.low:+.1f} to {100 * claim.high:+.1f}", "above zero": "yes" if claim.supported else "no",
                "episodes a side it needs": f"{claim.needed:,}", "mark": claim.tier,
            }
            for claim in claims
        ]
    ).set_index("gain")  # fmt: skip


def published_table(numbers: Sequence[Published], table: str, setting: str, metric: str = "success") -> pd.DataFrame:
    """A published table as printed: models by tasks, per cent, and the mark of its weakest cell."""
    rows: dict[str, dict[str, str]] = {}
    for number in select(numbers, table=table, setting=setting, metric=metric):
        row = rows.setdefault(number.model, {})
        row[label(number.task)] = f"{number.value:.1f}"
        row["mark"] = "secondary" if "secondary" in (number.tier, row.get("mark")) else number.tier
    frame = pd.DataFrame.from_dict(rows, orient="index").fillna("")
    return frame[[column for column in frame if column != "mark"] + ["mark"]] if len(frame) else frame


def rate_text(rate: Rate, counts: bool = True) -> str:
    """'18/24 = 75 % (55-88)'; without counts '75 % (55-88)'."""
    interval = f"{100 * rate.rate:.0f} % ({100 * rate.low:.0f}-{100 * rate.high:.0f})"
    return f"{rate.successes}/{rate.episodes} = {interval}" if counts else interval
