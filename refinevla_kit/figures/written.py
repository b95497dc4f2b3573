"""What policies write about a frame beside what the teacher wrote, each statement marked by whether it holds
in the simulator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap

from matplotlib.figure import Figure

from refinevla_kit.evaluation.written import Written, by_kind, truth
from refinevla_kit.figures.overlays import show_picture
from refinevla_kit.figures.reviews import LINE, Paragraph, write_lines
from refinevla_kit.figures.style import (
    GREEN,
    INK,
    MUTED,
    VERMILION,
    beside_each_other,
    canvas,
    colours,
    dot,
    label,
    name_lines,
    name_policies,
    page,
    per_cent,
)
from refinevla_kit.simulator.contract import Array

MARKS = {"true": ("✓", GREEN), "false": ("✗", VERMILION), "undecided": ("?", MUTED)}
WIDTH = 52  # characters of a line


def texts_beside(image: Array, written: Mapping[str, Written]) -> Figure:
    """One frame, and a column for each writer: the text, then each statement that was read from it, marked as
    true, false or undecided.

    Args:
        image: uint8 (H, W, 3).
        written: writer -> what it wrote about this frame.
    """
    columns = [_column(name, one) for name, one in written.items()]
    height = 0.6 + max(2.4, max(map(len, columns)) * LINE / 72)
    with page(3.4 + 3.5 * len(columns), height) as figure:
        picture, *axes = figure.subplots(1, 1 + len(columns), width_ratios=[3.2, *[3.5] * len(columns)])
        show_picture(picture, image)
        picture.set_anchor("N")
        for ax, lines in zip(axes, columns, strict=True):
            write_lines(ax, lines, 8.5)
    return figure


def _column(name: str, one: Written) -> list[Paragraph]:
    count = truth([one])
    lines = [(f"{label(name)}: {count.successes} of {count.episodes} true", INK, "bold")]
    text = one.text or "(nothing)"
    lines += [(line, INK, "normal") for part in text.splitlines() for line in wrap(part, WIDTH)]
    if not one.ended:
        lines.append(("... and it does not end", VERMILION, "normal"))
    lines.append(("", INK, "normal"))
    if not one.findings:
        lines.append(("no statement was read", MUTED, "normal"))
    for finding in one.findings:
        mark, colour = MARKS[finding.verdict]
        said = f"{mark} {finding.text.replace('_', ' ')}"
        if finding.verdict == "false":
            said += f"; {finding.reason}"
        lines += [(line, colour, "normal") for line in wrap(said, WIDTH, subsequent_indent="   ")]
    return lines


def truth_by_kind(written: Mapping[str, Sequence[Written]]) -> Figure:
    """How much of what was written is true, by kind of statement and in all, a dot a writer with its 95 %
    interval.

    Args:
        written: writer -> what it wrote about several frames.
    """
    rates = {name: {**by_kind(each), "all": truth(each)} for name, each in written.items()}
    kinds = [*sorted({kind for each in rates.values() for kind in each} - {"all"}), "all"]
    colour, places = colours(written), beside_each_other(written, 0.5)
    with canvas(6.4, 0.9 + 0.27 * len(kinds)) as (figure, (axes,)):
        for name, each in rates.items():
            for kind, found in each.items():
                if found.episodes:
                    dot(axes, kinds.index(kind) + places[name], found.bounded, colour[name])
        name_lines(axes, [kind.replace("_", " ") for kind in kinds])
        axes.set_xlim(0, 1.02)
        per_cent(axes.xaxis)
        axes.set_xlabel("of the statements that could be checked, how many are true")
        name_policies(figure, colour)
    return figure
