"""Teachers side by side: how much of what they say is true, how many of their rationales are doubted, and
what they refuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from refinevla_kit.evaluation.intervals import wilson
from refinevla_kit.figures.style import INK, MUTED, canvas, colours, name_policies
from refinevla_kit.teacher.audit import AUDITED, COUNTS

WHOLE, CHECKED, DOUBTED, REFUSED = "all parts", "checked", "doubted", "refused"
NOTHING = "nothing could be checked"


def compare_teachers(audits: pd.DataFrame | Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Shares with their 95 % Wilson intervals.

    Statements of one rationale hang together: their intervals are somewhat too narrow.

    Args:
        audits: rows of `teacher.audit.audit_dataset`, of one or several teachers.

    Returns:
        One row a teacher and measure: teacher, measure, count, of, share, low, high (NaN where `of` is 0).
        The measures are each of `AUDITED` and "all parts" (true statements of the decided ones), "checked"
        (decided statements, of all statements and the sentences without one), "doubted" (of the rationales;
        of 0 where no statement was decided and none is doubted), "refused" and "refused: <kind>" (of the
        answers).
    """
    table = audits if isinstance(audits, pd.DataFrame) else pd.concat(audits, ignore_index=True)
    parts = [part for part in AUDITED if f"{part}_true" in table]  # tables of before there were facts
    rows = []
    for teacher, answers in table.groupby("teacher", sort=False):
        written = answers[answers["refusal"] == ""]
        counts = {part: [int(written[f"{part}_{name}"].sum()) for name in COUNTS] for part in parts}
        counts[WHOLE] = [sum(column) for column in zip(*counts.values())]
        measures = {part: (true, true + false) for part, (true, false, *_) in counts.items()}
        decided = measures[WHOLE][1]
        doubted = int(written["doubt"].sum())
        measures[CHECKED] = (decided, sum(counts[WHOLE]))
        measures[DOUBTED] = (doubted, len(written) if doubted or decided else 0)
        measures[REFUSED] = (len(answers) - len(written), len(answers))
        for kind, count in answers["refusal"].value_counts().items():
            if kind:
                measures[f"{REFUSED}: {kind}"] = (count, len(answers))
        for measure, (count, of) in measures.items():
            shares = (count / of, *wilson(count, of)) if of else (nan, nan, nan)
            rows.append((teacher, measure, count, of, *shares))
    return pd.DataFrame(rows, columns=["teacher", "measure", "count", "of", "share", "low", "high"])


def teachers_table(comparison: pd.DataFrame) -> pd.DataFrame:
    """`compare_teachers` to print: a line a teacher, "97 % (95-98) of 412" a measure."""
    cells = comparison.assign(text=[_cell(row) for row in comparison.itertuples()])
    wide = cells.pivot(index="teacher", columns="measure", values="text").fillna("-")
    ordered = wide.loc[comparison["teacher"].unique(), comparison["measure"].unique()]
    return ordered.rename(columns=_label).rename_axis(columns=None)


def teachers_compared(comparison: pd.DataFrame) -> Figure:
    """Left: the share of checked statements that are true, part by part. Right: rationales with something to
    doubt, and refused answers by kind.

    Args:
        comparison: from `compare_teachers`.
    """
    teachers, measured = list(comparison["teacher"].unique()), list(comparison["measure"].unique())
    right = [measure for measure in measured if measure in (CHECKED, DOUBTED, REFUSED) or ": " in measure]
    left = [measure for measure in measured if measure not in right]
    colour = colours(teachers)
    step = 0.72 / max(2, len(teachers))
    height = 1.2 + 0.16 * max(len(left), len(right)) * max(2, len(teachers))
    with canvas(8.6, height, columns=2) as (figure, both):
        titles = ("statements that are true, of those checked", "how much was checked, what to look at")
        for axes, measures, title in zip(both, (left, right), titles, strict=True):
            for place, measure in enumerate(measures):
                for row in comparison[comparison["measure"] == measure].itertuples():
                    shift = teachers.index(row.teacher) - (len(teachers) - 1) / 2
                    _point(axes, row, place + shift * step, colour[row.teacher])
            axes.set_yticks(range(len(measures)), [_label(measure) for measure in measures])
            axes.set_ylim(len(measures) - 0.4, -0.6)
            axes.set_xlim(-0.02, 1.02)
            axes.xaxis.set_major_formatter(PercentFormatter(1.0))
            axes.grid(axis="y", visible=False)
            axes.set_title(title, fontsize=9, color=INK)
        name_policies(figure, colour)
    return figure


def _point(axes: Axes, row: Any, y: float, colour: str) -> None:
    """A share with its interval, and its counts beside the panel."""
    if row.of:
        axes.plot(
            [row.low, row.high], [y, y], color=colour, linewidth=2.2, alpha=0.45, solid_capstyle="round"
        )
        axes.plot(row.share, y, "o", color=colour, markersize=5)
        words, beside = f"{row.count:,} of {row.of:,}", axes.get_yaxis_transform()
        axes.text(1.03, y, words, transform=beside, va="center", fontsize=6.5, color=MUTED)
    elif row.measure == WHOLE:
        axes.text(0.5, y, NOTHING, va="center", ha="center", fontsize=6.5, color=MUTED)


def _cell(row: Any) -> str:
    if not row.of:
        return NOTHING if row.measure == WHOLE else "-"
    if row.measure == CHECKED and not row.count:
        return f"none of {row.of}"
    return f"{row.share:.0%} ({100 * row.low:.0f}-{100 * row.high:.0f}) of {row.of}"


def _label(measure: str) -> str:
    names = {CHECKED: "claims checked", DOUBTED: "rationales doubted", REFUSED: "answers refused"}
    return names.get(measure, measure.replace("_", " ").replace(f"{REFUSED}: ", "for "))
