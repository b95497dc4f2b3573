"""How every picture and table of the kit looks, and how they are saved: one colour-blind safe palette
(Okabe and Ito 2008), light grids, names and colours that stay the same; beside each picture what made it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, zip_longest
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, PercentFormatter

from refinevla_kit import __version__
from refinevla_kit.errors import KitError, check_choice
from refinevla_kit.evaluation.intervals import Rate
from refinevla_kit.files import replacing, sha256, write_json
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.tasks import ALL_TASKS

INK, MUTED, GRID = "#222222", "#6b6b6b", "#e3e3e3"
BLUE, VERMILION, GREEN, ORANGE = "#0072b2", "#d55e00", "#009e73", "#e69f00"
SKY, PINK, GREY = "#56b4e9", "#cc79a7", "#8a8a8a"
KNOWN = {
    "action_only": BLUE,
    "with_reasoning": VERMILION,
    "shuffled_rationales": ORANGE,
    "demonstrator": GREY,
    "ReFineVLA": VERMILION,
    "SpatialVLA (fine-tuning)": BLUE,
}
OTHERS = (GREEN, PINK, SKY, ORANGE)
LABELS = {
    "action_only": "actions only",
    "with_reasoning": "with reasoning loss",
    "shuffled_rationales": "shuffled rationales",
    "compact_base": "the base",
    "widowx_spoon_on_towel": "spoon on towel",
    "widowx_carrot_on_plate": "carrot on plate",
    "widowx_stack_cube": "stack cubes",
    "widowx_put_eggplant_in_basket": "eggplant in basket",
    "pick_coke_can": "pick coke can",
    "move_near": "move near",
    "open_close_drawer": "open or close drawer",
    "place_apple_in_closed_top_drawer": "place apple in drawer",
    "visual_matching": "visual matching",
    "variant_aggregation": "variant aggregation",
    "variant_aggregation - visual_matching": "aggregation minus matching",
}
SETTINGS: dict[Any, Any] = {
    "font.size": 9,
    "figure.titlesize": 9,
    "legend.fontsize": 8,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
    "text.parse_math": False,  # a model may write anything; axes with log scales set their ticks' labels
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "legend.frameon": False,
}
Bounded = tuple[float, float, float]  # a value, low and high end of its interval
K = TypeVar("K")
DASHED, DOTTED = (0, (4, 3)), (0, (1.5, 1))
DPI = 160
# Left out of a picture's metadata, so that the same figure has the same bytes
CHANGING = {"png": "Software", "svg": "Date", "pdf": "CreationDate"}
FORMATS = tuple(CHANGING)
AS_TEXT: dict[Any, Any] = {"svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "refinevla"}


@contextmanager
def page(width: float, height: float, title: str = "") -> Iterator[Figure]:
    """An empty figure (inches) in the kit's style; no pyplot, so nothing global is touched."""
    with rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        headline(figure, title)
        yield figure


def headline(figure: FigureBase, title: str) -> None:
    """The title of a figure or of a part of one."""
    figure.suptitle(title, x=0.01, ha="left")


@contextmanager
def canvas(
    width: float, height: float, rows: int = 1, columns: int = 1, title: str = "", **arguments: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure (inches) and its axes, row by row."""
    check_shown(columns)
    with page(width, height, title) as figure:
        yield figure, list(figure.subplots(rows, columns, squeeze=False, **arguments).flat)


def colours(names: Iterable[str]) -> dict[str, str]:
    """Each name once, in order, with its colour: its own where it is known, else the next of the palette."""
    spare = cycle(OTHERS)
    return {name: KNOWN[name] if name in KNOWN else next(spare) for name in dict.fromkeys(names)}


def check_shown(what: Any) -> None:
    """Raise `KitError` where there is nothing of what a picture or a table is of."""
    if not what:
        raise KitError("there is nothing to show", "give what was recorded, measured or published")


def name_policies(figure: Figure, colour: dict[str, str]) -> None:
    """The policies' names in their colours, above the panels."""
    handles = [Patch(color=value, label=label(name)) for name, value in colour.items()]
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=len(handles),
        labelcolor="linecolor",
        handlelength=0.8,
        handleheight=0.8,
        fontsize=10,
    )


def per_cent(axis: Axis) -> None:
    """This axis is a share, shown in per cent."""
    axis.set_major_formatter(PercentFormatter(1.0))


def note(axes: Axes, text: str) -> None:
    """A line above the panel that explains it."""
    axes.set_title(text, fontweight="normal", fontsize=8, color=MUTED)


def beside_each_other(names: Iterable[K], width: float = 0.8) -> dict[K, float]:
    """Where the bars or dots of each name stand at one place, about 0."""
    listed = list(names)
    check_shown(listed)
    count = len(listed)
    return {name: (place - (count - 1) / 2) * width / count for place, name in enumerate(listed)}


def bar(axes: Axes, x: float, bounded: Bounded, width: float, colour: str, **look: Any) -> None:
    """A bar and its interval, where that is known (not NaN)."""
    height, low, high = bounded
    axes.bar(x, height, width, color=colour, alpha=0.85, **look)
    if np.isfinite(low):
        error = np.clip([[height - max(low, 0)], [high - height]], 0, None)
        axes.errorbar(x, height, yerr=error, color=INK, linewidth=1, capsize=2.5)


def dot(axes: Axes, y: float, bounded: Bounded, colour: str) -> None:
    """A value as a dot on a line as long as its interval."""
    value, low, high = bounded
    axes.plot([low, high], [y, y], color=colour, linewidth=2.2, alpha=0.45, solid_capstyle="round")
    axes.plot(value, y, "o", color=colour, markersize=5)


def name_bars(axes: Axes, names: Sequence[str]) -> None:
    """The panel has bars at x = 0, 1, ..., one place a name; what is said of a bar is below it."""
    axes.set_xticks(range(len(names)), names)
    axes.tick_params(axis="x", pad=14)
    axes.grid(axis="x", visible=False)


def name_lines(axes: Axes, names: Sequence[str]) -> None:
    """The panel has a line a name at y = 0, 1, ..., the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def points(axes: Axes, values: Iterable[float] = ()) -> None:
    """The x axis is a difference of rates, shown in percentage points.

    Args:
        values: what the panel has to hold, about a zero in its middle; without any the limits stay.
    """
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{100 * value:+.3g}" if abs(value) > 1e-9 else "0")
    )
    axes.set_xlabel("percentage points")
    if widest := max(map(abs, values), default=0.0):
        axes.set_xlim(-1.08 * max(0.1, widest), 1.08 * max(0.1, widest))


def beside(axes: Axes, y: float, *texts: str, width: float = 44.0, color: str = INK) -> None:
    """Columns of text to the right of the axes, on the line at `y` (data); each ends `width` points after the
    one before.
    """
    for index, text in enumerate(texts, 1):
        axes.annotate(
            text,
            (1, y),
            (index * width, 0),
            ("axes fraction", "data"),
            "offset points",
            ha="right",
            va="center",
            fontsize=8.5,
            color=color,
            annotation_clip=False,
        )


def p_text(value: float) -> str:
    """A p-value with three decimals; "< 0.001" below."""
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def rate_text(rate: Rate, counts: bool = True, decimals: int = 0) -> str:
    """'18/24 = 75 % (55-88)'; without counts '75 % (55-88)'. The interval is whole per cents."""
    if not rate.episodes:
        return "nothing to count"
    interval = f"{100 * rate.rate:.{decimals}f} % ({100 * rate.low:.0f}-{100 * rate.high:.0f})"
    return f"{rate.successes}/{rate.episodes} = {interval}" if counts else interval


def interval_text(low: float, high: float) -> str:
    """'-4.4 to +44.7': percentage points."""
    return f"{100 * low:+.1f} to {100 * high:+.1f}"


def points_text(difference: float) -> str:
    """'+20.1': percentage points."""
    return f"{100 * difference:+.1f}"


def text_table(
    rows: Mapping[Any, Mapping[Any, str]], columns: Sequence[Any], names: Sequence[str] = ()
) -> pd.DataFrame:
    """Rows of text by column, "" where a row has nothing.

    Args:
        rows: name -> column -> text; names may be tuples, for rows of several levels.
        columns: those to show, in order; `label` says what they are called. Where some are pairs, the table
            has two levels of columns.
        names: headings of the rows' levels.
    """
    check_shown(columns)
    cells = [[row.get(column, "") for column in columns] for row in rows.values()]
    heads = [list(map(label, [column] if isinstance(column, str) else column)) for column in columns]
    levels = list(zip_longest(*heads, fillvalue=""))
    head = pd.MultiIndex.from_arrays(levels) if len(levels) > 1 else pd.Index(levels[0])
    table = pd.DataFrame(cells, pd.Index(list(rows)), head)
    return table.rename_axis(list(names)) if names else table


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, without a line end after it."""
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (heads, *rows)]
    lines.insert(1, ["---"] * len(heads))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def label(name: str) -> str:
    """What a policy, a task, a row of the published tables or a setting is called in pictures and tables."""
    task = re.sub("^(widowx|google_robot)_", "", name).replace("language_", "language: ").replace("_", " ")
    return LABELS.get(name, task if name in ALL_TASKS else name)


def save_figure(
    figure: Figure, path: str | Path, made_from: dict[str, Any], formats: Sequence[str] = FORMATS[:1]
) -> Path:
    """Write `figure` and, beside it, a JSON of the same name with what made it: no picture is ever an orphan.

    Args:
        figure: what to save.
        path: a suffix of a format is replaced by that of each of `formats`.
        made_from: JSON values that let someone make the picture again: the function, its inputs' paths and
            settings, the numbers it shows. Paths to existing files get their SHA-256 beside them.
        formats: of `FORMATS`; "svg" and "pdf" are vectors, with text as text.

    Returns:
        The (first) picture's path.
    """
    for suffix in formats or ("",):
        check_choice("format of pictures", suffix, FORMATS)
    for suffix in formats:
        with replacing(_ending(path, suffix)) as part, rc_context(AS_TEXT):
            figure.savefig(part, format=suffix, dpi=DPI, metadata={CHANGING[suffix]: None})
    path = _ending(path, formats[0])
    save_source({"picture": path.name}, path, made_from)
    return path


def rows_by(key: str, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A table of these rows, named by their value of `key`; an empty one of none."""
    return pd.DataFrame(rows, columns=None if rows else [key]).set_index(key)


def save_table(frame: pd.DataFrame, path: str | Path, made_from: Mapping[str, Any]) -> Path:
    """Write a table as Markdown and, beside it, a JSON with its cells and what made it.

    Returns:
        The Markdown's path.
    """
    path = _ending(path, "md")
    heads = [" ".join(column).strip() if isinstance(column, tuple) else str(column) for column in frame]
    rows = [[str(name), *map(str, row)] for name, row in zip(frame.index, frame.to_numpy(), strict=True)]
    text = markdown(["", *heads], rows)
    with replacing(path) as part:
        part.write_text(text + "\n", encoding="utf-8")
    cells = [dict(zip(["row", *heads], row, strict=True)) for row in rows]
    save_source({"table": path.name, "cells": cells}, path, made_from)
    return path


def show_table(frame: pd.DataFrame, path: str | Path, made_from: Mapping[str, Any]) -> None:
    """Save a table as `save_table` does and show it in the notebook."""
    from IPython.display import display

    save_table(frame, path, made_from)
    display(frame)


def save_source(about: Mapping[str, Any], path: Path, made_from: Mapping[str, Any]) -> None:
    """Write the JSON beside a picture or table: what made it, files with their SHA-256."""
    home = f"{REPOSITORY.as_posix()}/"  # what made a picture should not say whose machine it was
    values = {
        name: str(value).removeprefix(home) if isinstance(value, Path | str) else value
        for name, value in made_from.items()
    }
    digests = {
        name: sha256(value)[:16]
        for name, value in made_from.items()
        if isinstance(value, Path) and value.is_file()
    }
    source = {**about, "made_from": values, "sha256": digests, "refinevla_kit": __version__}
    write_json(_ending(path, "json"), source)


def _ending(path: str | Path, suffix: str) -> Path:
    """A picture's or table's path with this suffix; a name may have dots of its own, as lambda_0.1 has."""
    path = Path(path)
    known = path.suffix[1:].lower() in (*FORMATS, "md", "json", "gif", "jpg")
    return path.with_name(f"{path.stem if known else path.name}.{suffix}")


def as_png(figure: Figure, dpi: int = 90) -> bytes:
    """What a PNG file of it holds."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=dpi)
    return png.getvalue()


def show_figure(figure: Figure, path: str | Path, made_from: dict[str, Any], width: int = 900) -> None:
    """Save `figure` as `save_figure` does and show it in the notebook, `width` pixels wide."""
    from IPython.display import Image, display

    display(Image(filename=save_figure(figure, path, made_from), width=width))
