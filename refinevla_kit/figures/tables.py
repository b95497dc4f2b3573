"""Tables to print: data frames of text, computed from scores, comparisons and published numbers, so that a
notebook shows them as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from refinevla_kit.evaluation.intervals import Rate, resolvable_gain
from refinevla_kit.evaluation.published import Claim, Inconsistency, Published, select
from refinevla_kit.evaluation.statistics import (
    AVERAGE,
    AVERAGES,
    PUBLISHED_AVERAGE,
    Comparison,
    Score,
    shown_tasks,
)
from refinevla_kit.figures.overlays import THING_LABELS
from refinevla_kit.figures.style import label, p_text


def success_table(scores: Sequence[Score]) -> pd.DataFrame:
    """Policies and rules by tasks: successes of episodes, the rate and its 95 % interval in per cent."""
    tasks = shown_tasks(scores)
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for score in scores:
        key = (label(score.policy), label(score.setting), f"{score.rule} step")
        rows.setdefault(key, {})[score.task] = rate_text(score.rate, counts=score.task not in AVERAGES)
    policies = list(dict.fromkeys(policy for policy, *_ in rows))
    rows = dict(
        sorted(rows.items(), key=lambda item: policies.index(item[0][0]))
    )  # both rules of a policy under each other
    index = pd.MultiIndex.from_tuples(list(rows), names=["policy", "setting", "success at"])
    frame = pd.DataFrame(
        [[row.get(task, "") for task in tasks] for row in rows.values()],
        index,
        [label(task) for task in tasks],
    )
    return frame.droplevel("setting") if len({score.setting for score in scores}) == 1 else frame


def results_table(published: Sequence[Score], own: Sequence[Score] = ()) -> pd.DataFrame:
    """Published success and the kit's own below it, by rows of the published tables: per cent, 95 % interval,
    episodes and mark.

    Args:
        published: from `published.published_scores`; ordered by their average, best first.
        own: from `statistics.summarise`, one rule and setting; their average is the one with the published
            weights.
    """
    rows: dict[tuple[str, str], dict[str, Score]] = {}
    for score in [*published, *own]:
        name = AVERAGE if score.task == PUBLISHED_AVERAGE else score.task
        rows.setdefault(("published" if score.mark else "this kit", label(score.policy)), {})[name] = score
    rows = dict(
        sorted(
            rows.items(),
            key=lambda item: (
                -item[1][AVERAGE].rate.rate if item[0][0] == "published" and AVERAGE in item[1] else 1
            ),
        )
    )
    tasks, lines = shown_tasks(published), []
    for row in rows.values():
        cells = [rate_text(row[task].rate, counts=False, decimals=1) if task in row else "" for task in tasks]
        mark = (
            "secondary"
            if any(score.mark == "secondary" for score in row.values())
            else next(iter(row.values())).mark
        )
        lines.append([*cells, f"{row[AVERAGE].rate.episodes:,}" if AVERAGE in row else "", mark])
    index = pd.MultiIndex.from_tuples(list(rows), names=["", "success (95 % interval)"])
    return pd.DataFrame(lines, index, [*(label(task) for task in tasks), "episodes", "mark"])


def variants_table(scores: Sequence[Score], comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """What each change of the scene does to a policy's average: its success, and the difference from the
    unchanged scene on the same starts.

    Args:
        scores: of one policy and rule, from `statistics.summarise_variants`.
        comparisons: of the same, from `statistics.against_base`.
    """
    changes = {one.a: one for one in comparisons}
    return (
        pd.DataFrame(
            [
                {"variant": score.variant, "success": rate_text(score.rate)}
                | (
                    {}
                    if (one := changes.get(score.variant)) is None
                    else {
                        "minus base, points": f"{100 * one.difference:+.1f}",
                        "95 % interval": interval_text(one.low, one.high),
                        "exact p": p_text(one.p_value),
                    }
                )
                for score in scores
                if score.task == AVERAGE
            ]
        )
        .set_index("variant")
        .fillna("")
    )


def comparison_table(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """One line a task: the episodes only one policy won, the difference with its interval, the exact p-value,
    the episodes it would need.
    """
    return pd.DataFrame(
        [
            {
                "task": label(one.task),
                "success at": f"{one.rule} step",
                "episodes": one.episodes,
                "both": one.both,
                f"only {label(one.a)}": one.only_a,
                f"only {label(one.b)}": one.only_b,
                "neither": one.neither,
                "difference, points": f"{100 * one.difference:+.1f}",
                "95 % interval": interval_text(one.low, one.high),
                "exact McNemar p": p_text(one.p_value),
                "episodes a gain of this size needs": "-" if one.needed is None else f"{one.needed:,}",
            }
            for one in comparisons
        ]
    ).set_index("task")


def claims_table(claims: Sequence[Claim]) -> pd.DataFrame:
    """The published gains and what their episode counts support."""
    return pd.DataFrame(
        [
            {
                "gain": claim.name,
                "paper": claim.version,
                "rates, %": f"{100 * claim.a.rate:.1f} against {100 * claim.b.rate:.1f}",
                "episodes": f"{claim.a.episodes:,} and {claim.b.episodes:,}",
                "gain, points": f"{100 * claim.difference:+.1f}",
                "95 % interval": interval_text(claim.low, claim.high),
                "if only starts count": interval_text(*claim.widest),
                "verdict": claim.verdict,
                "episodes a side it needs": f"{claim.needed:,}",
                "mark": claim.tier,
                "assumed": claim.assumed,
            }
            for claim in claims
        ]
    ).set_index("gain")


def inconsistency_table(found: Sequence[Inconsistency]) -> pd.DataFrame:
    """The printed numbers that cannot be what they should be, one line each."""
    return pd.DataFrame(
        [
            {
                "table": one.number.table,
                "setting": label(one.number.setting),
                "model": one.number.model,
                "number": f"{one.number.metric}, " + label(one.number.task),
                "printed, %": f"{one.number.value:.1f}",
                "but": one.why,
                "the row fits": f"{one.fits} episodes a task" if one.fits else "",
                "mark": one.number.tier,
            }
            for one in found
        ]
    ).set_index("table")


def resolution_table(
    base: float = 0.45,
    episodes: Sequence[int] = (24, 96, 300, 1000, 3000),
    discordant: Sequence[float] = (0.2, 0.1),
) -> pd.DataFrame:
    """What so many episodes can tell: the smallest gain over a success rate of `base` that they find four
    times in five, in percentage points.

    Args:
        discordant: shares of the episodes on which the two policies differ, where both play the same ones; a
            column each.
    """
    shares = {"independent episodes": None, "the same, failing independently": 2 * base * (1 - base)}
    shares |= {f"the same, differing on {share:.0%}": share for share in discordant}
    gains = {
        name: [resolvable_gain(base, size, share) for size in episodes] for name, share in shares.items()
    }
    return pd.DataFrame(
        {
            name: ["none" if one is None else f"{100 * one:.1f}" for one in column]
            for name, column in gains.items()
        },
        pd.Index([f"{size:,}" for size in episodes], name="episodes a policy"),
    )


def differences_table(tests: pd.DataFrame) -> pd.DataFrame:
    """Differences between two policies as text with their p-values: a row a measure and stage, a column a
    thing.

    Args:
        tests: tables of `grounding.compare` put together, with columns measure and stage.

    Returns:
        Of text; shares and scores as fractions, so +0.010 is a percentage point of a share.
    """
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for row in tests.itertuples():
        sure = f"p {p_text(row.p_value)}" if row.episodes > 1 else "one episode"
        text = f"{row.difference:+.3f} ({sure})" if row.episodes else "not visible"
        rows.setdefault((row.measure, row.stage), {})[THING_LABELS.get(row.thing, row.thing)] = text
    return pd.DataFrame(
        rows.values(), index=pd.MultiIndex.from_tuples(rows, names=["measure", "stage"])
    ).fillna("")


def published_table(
    numbers: Sequence[Published], table: str, setting: str, metric: str = "success"
) -> pd.DataFrame:
    """A published table as printed: models by tasks, per cent, and the mark of its weakest cell."""
    rows: dict[str, dict[str, str]] = {}
    for number in select(numbers, table=table, setting=setting, metric=metric):
        row = rows.setdefault(number.model, {})
        row[label(number.task)] = f"{number.value:.1f}"
        row["mark"] = "secondary" if "secondary" in (number.tier, row.get("mark")) else number.tier
    frame = pd.DataFrame.from_dict(rows, orient="index").fillna("")
    return frame[[column for column in frame if column != "mark"] + ["mark"]] if len(frame) else frame


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, without a line end after it."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows))


def rate_text(rate: Rate, counts: bool = True, decimals: int = 0) -> str:
    """'18/24 = 75 % (55-88)'; without counts '75 % (55-88)'. The interval is whole per cents."""
    interval = f"{100 * rate.rate:.{decimals}f} % ({100 * rate.low:.0f}-{100 * rate.high:.0f})"
    return f"{rate.successes}/{rate.episodes} = {interval}" if counts else interval


def interval_text(low: float, high: float) -> str:
    """'-4.4 to +44.7': percentage points."""
    return f"{100 * low:+.1f} to {100 * high:+.1f}"
