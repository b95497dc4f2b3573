"""Teachers side by side: how much of what they say is true, how many of their rationales are doubted, and
what they refuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from refinevla_kit.evaluation.intervals import wilson
from refinevla_kit.figures.style import INK, MUTED, canvas, colours, name_policies
from refinevla_kit.teacher.audit import COUNTS
from refinevla_kit.teacher.schema import PARTS

WHOLE, CHECKED, DOUBTED, REFUSED = "all parts", "checked", "doubted", "refused"
NOTHING = "nothing could be checked"


def compare_teachers(audits: pd.DataFrame | Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Shares with their 95 % Wilson intervals.

    Args:
        audits: rows of `teacher.audit.audit_dataset`, of one or several teachers.
    Returns: one row a teacher and measure: teacher, measure, count, of, share, low, high (NaN where `of` is
    0). Measures: each of `PARTS` and
        "all parts" (true claims of the decided ones), "checked" (decided claims, of all claims and the
        sentences without one), "doubted" (of the rationales; of 0 where no claim was decided and none is
        doubted), "refused" and "refused: <kind>" (of the answers). Claims of one rationale hang together:
        their intervals are somewhat too narrow.
    """
    table = audits if isinstance(audits, pd.DataFrame) else pd.concat(audits, ignore_index=True)
    rows = []
    for teacher, own in table.groupby("teacher", sort=False):
        told = own[own["refusal"] == ""]
        counts = {part: [int(told[f"{part}_{name}"].sum()) for name in COUNTS] for part in PARTS}
        counts[WHOLE] = [sum(column) for column in zip(*counts.values())]
        measures = {part: (true, true + false) for part, (true, false, *_) in counts.items()}
        measures[CHECKED] = (measures[WHOLE][1], sum(counts[WHOLE]))
        doubted = int(told["doubt"].sum())
        measures[DOUBTED] = (doubted, len(told) if doubted or measures[WHOLE][1] else 0)
        measures[REFUSED] = (len(own) - len(told), len(own))
        measures |= {
            f"{REFUSED}: {kind}": (count, len(own))
            for kind, count in own["refusal"].value_counts().items()
            if kind
        }
        for measure, (count, of) in measures.items():
            rows.append(
                (
                    teacher,
                    measure,
                    count,
                    of,
                    count / of if of else nan,
                    *(wilson(count, of) if of else (nan, nan)),
                )
            )
    return pd.DataFrame(rows, columns=["teacher", "measure", "count", "of", "share", "low", "high"])


def teachers_table(comparison: pd.DataFrame) -> pd.DataFrame:
    """`compare_teachers` to print: a line a teacher, "97 % (95-98) of 412" a measure."""
    text = [_cell(row) for row in comparison.itertuples()]
    measures = list(dict.fromkeys(comparison["measure"]))
    wide = comparison.assign(text=text).pivot(index="teacher", columns="measure", values="text").fillna("-")
    return (
        wide.loc[list(dict.fromkeys(comparison["teacher"])), measures]
        .rename(columns=_label)
        .rename_axis(columns=None)
    )


def teachers_compared(comparison: pd.DataFrame) -> Figure:
    """Left: the share of checked claims that are true, part by part. Right: rationales with something to
    doubt, and refused answers by kind.

    Args:
        comparison: from `compare_teachers`.
    """
    teachers = list(dict.fromkeys(comparison["teacher"]))
    kinds = [
        measure for measure in dict.fromkeys(comparison["measure"]) if measure.startswith(f"{REFUSED}: ")
    ]
    panels = ([*PARTS, WHOLE], [CHECKED, DOUBTED, REFUSED, *kinds])
    colour, cells = colours(teachers), {(row.teacher, row.measure): row for row in comparison.itertuples()}
    step = 0.72 / max(2, len(teachers))
    with canvas(8.6, 1.2 + 0.16 * max(5, len(panels[1])) * max(2, len(teachers)), columns=2) as (
        figure,
        both,
    ):
        titles = ("claims that are true, of those checked", "how much was checked, what to look at")
        for axes, measures, title in zip(both, panels, titles, strict=True):
            for place, measure in enumerate(measures):
                for index, teacher in enumerate(teachers):
                    cell, y = cells.get((teacher, measure)), place + (index - (len(teachers) - 1) / 2) * step
                    if cell is None or not cell.of:
                        if cell is not None and measure == WHOLE:
                            axes.text(0.5, y, NOTHING, va="center", ha="center", fontsize=6.5, color=MUTED)
                        continue
                    axes.plot(
                        [cell.low, cell.high],
                        [y, y],
                        color=colour[teacher],
                        linewidth=2.2,
                        alpha=0.45,
                        solid_capstyle="round",
                    )
                    axes.plot(cell.share, y, "o", color=colour[teacher], markersize=5)
                    words = f"{cell.count:,} of {cell.of:,}"
                    axes.text(
                        1.03,
                        y,
                        words,
                        transform=axes.get_yaxis_transform(),
                        va="center",
                        fontsize=6.5,
                        color=MUTED,
                    )
            axes.set_yticks(range(len(measures)), [_label(measure) for measure in measures])
            axes.set_ylim(len(measures) - 0.4, -0.6)
            axes.set_xlim(-0.02, 1.02)
            axes.xaxis.set_major_formatter(PercentFormatter(1.0))
            axes.grid(axis="y", visible=False)
            axes.set_title(title, fontsize=9, color=INK)
        name_policies(figure, colour)
    return figure


def _cell(row: Any) -> str:
    if not row.of:
        return NOTHING if row.measure == WHOLE else "-"
    if row.measure == CHECKED and not row.count:
        return f"none of {row.of}"
    return f"{row.share:.0%} ({100 * row.low:.0f}-{100 * row.high:.0f}) of {row.of}"


def _label(measure: str) -> str:
    names = {CHECKED: "claims checked", DOUBTED: "rationales doubted", REFUSED: "answers refused"}
    return names.get(measure, measure.replace("_", " ").replace(f"{REFUSED}: ", "for "))
