"""Teachers side by side: how much of what they say is true, how many of their rationales are doubted, and
what they refuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

import pandas as pd
from matplotlib.figure import Figure

from refinevla_kit.evaluation.intervals import rate
from refinevla_kit.figures.style import (
    MUTED,
    beside_each_other,
    canvas,
    check_shown,
    colours,
    dot,
    name_lines,
    name_policies,
    per_cent,
)
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
    check_shown(len(table))
    parts = [part for part in AUDITED if f"{part}_true" in table]  # tables of before there were facts
    rows = []
    for teacher, answers in table.groupby("teacher", sort=False):
        written = answers[answers["refusal"] == ""]
        counts = {part: [int(written[f"{part}_{name}"].sum()) for name in COUNTS] for part in parts}
        counts[WHOLE] = [sum(column) for column in zip(*counts.values())]
        measures = {part: (true, true + false) for part, (true, false, *_) in counts.items()}
        decided, doubted = measures[WHOLE][1], int(written["doubt"].sum())
        measures[CHECKED] = (decided, sum(counts[WHOLE]))
        measures[DOUBTED] = (doubted, len(written) if doubted or decided else 0)
        measures[REFUSED] = (len(answers) - len(written), len(answers))
        kinds = answers["refusal"].value_counts().drop("", errors="ignore")
        measures |= {f"{REFUSED}: {kind}": (count, len(answers)) for kind, count in kinds.items()}
        for measure, (count, of) in measures.items():
            share = rate(count, of).bounded if of else (nan, nan, nan)
            rows.append((teacher, measure, count, of, *share))
    return pd.DataFrame(rows, columns=["teacher", "measure", "count", "of", "share", "low", "high"])


def teachers_table(comparison: pd.DataFrame) -> pd.DataFrame:
    """`compare_teachers` to print: a line a teacher, "97 % (95-98) of 412" a measure."""
    rows: dict[str, dict[str, str]] = {teacher: {} for teacher in comparison["teacher"]}
    for row in comparison.itertuples():
        text = f"{row.share:.0%} ({100 * row.low:.0f}-{100 * row.high:.0f}) of {row.of}"
        if not row.of:
            text = NOTHING if row.measure == WHOLE else "-"
        elif row.measure == CHECKED and not row.count:
            text = f"none of {row.of}"
        rows[row.teacher][_label(row.measure)] = text
    return pd.DataFrame.from_dict(rows, orient="index").fillna("-").rename_axis("teacher")


def teachers_compared(comparison: pd.DataFrame) -> Figure:
    """Left: the share of checked statements that are true, part by part. Right: rationales with something to
    doubt, and refused answers by kind.

    Args:
        comparison: from `compare_teachers`.
    """
    measured = list(comparison["measure"].unique())
    left = [measure for measure in measured if measure in (*AUDITED, WHOLE)]
    right = [measure for measure in measured if measure not in left]
    colour = colours(comparison["teacher"])
    room = max(2, len(colour))
    places = beside_each_other(colour, 0.72 * len(colour) / room)
    with canvas(8.6, 1.2 + 0.16 * max(len(left), len(right)) * room, columns=2) as (figure, both):
        titles = ("statements that are true, of those checked", "how much was checked")
        for axes, measures, title in zip(both, (left, right), titles, strict=True):
            for row in comparison[comparison["measure"].isin(measures)].itertuples():
                y = measures.index(row.measure) + places[row.teacher]
                if row.of:
                    dot(axes, y, (row.share, row.low, row.high), colour[row.teacher])
                    words, right_of = f"{row.count:,} of {row.of:,}", axes.get_yaxis_transform()
                    axes.text(1.03, y, words, transform=right_of, va="center", fontsize=6.5, color=MUTED)
                elif row.measure == WHOLE:
                    axes.text(0.5, y, NOTHING, va="center", ha="center", fontsize=6.5, color=MUTED)
            name_lines(axes, [_label(measure) for measure in measures])
            axes.set_xlim(-0.02, 1.02)
            per_cent(axes.xaxis)
            axes.set_title(title)
        name_policies(figure, colour)
    return figure


def _label(measure: str) -> str:
    names = {CHECKED: "claims checked", DOUBTED: "rationales doubted", REFUSED: "answers refused"}
    return names.get(measure, measure.replace("_", " ").replace(f"{REFUSED}: ", "for "))
