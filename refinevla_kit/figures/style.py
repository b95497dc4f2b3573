"""How every picture of the kit looks: one colour-blind safe palette (Okabe and Ito 2008), light grids, names
and colours that stay the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from refinevla_kit.tasks import TASKS

INK, MUTED, GRID = "#222222", "#6b6b6b", "#e3e3e3"
BLUE, VERMILION, GREEN, ORANGE, SKY, PINK, GREY = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#e69f00",
    "#56b4e9",
    "#cc79a7",
    "#8a8a8a",
)
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
    "pick_coke_can": "pick coke can",
    "move_near": "move near",
    "open_close_drawer": "open or close drawer",
    "place_apple_in_closed_top_drawer": "place apple in drawer",
    "visual_matching": "visual matching",
    "variant_aggregation": "variant aggregation",
    "shuffled_rationales": "shuffled rationales",
    "compact_base": "the base",
    "variant_aggregation - visual_matching": "aggregation minus matching",
}
SHORT_TASKS = {
    "widowx_spoon_on_towel": "spoon on towel",
    "widowx_carrot_on_plate": "carrot on plate",
    "widowx_stack_cube": "stack cubes",
    "widowx_put_eggplant_in_basket": "eggplant in basket",
}
SETTINGS: dict[Any, Any] = {
    "font.size": 9,
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
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "legend.frameon": False,
}


@contextmanager
def canvas(
    width: float, height: float, rows: int = 1, columns: int = 1, **arguments: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure (inches) and its axes, row by row, in the kit's style; no pyplot, so nothing global is
    touched.
    """
    with rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, list(figure.subplots(rows, columns, squeeze=False, **arguments).flat)


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour a name: the fixed one where the name is known, else the next free one of the palette."""
    spare = iter(OTHERS * (1 + len(names) // len(OTHERS)))
    return {name: KNOWN[name] if name in KNOWN else next(spare) for name in names}


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


def points(axes: Axes) -> None:
    """The x axis is a difference of rates, shown in percentage points."""
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{100 * value:+.3g}" if abs(value) > 1e-9 else "0")
    )
    axes.set_xlabel("percentage points")


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


def label(name: str) -> str:
    """What a policy, a task, a row of the published tables or a setting is called in pictures and tables."""
    if name in TASKS and name not in LABELS:
        return SHORT_TASKS.get(name, name.removeprefix("google_robot_").replace("_", " "))
    return LABELS.get(name, name)
