"""One moment of an episode: where each policy looks, how much of that falls on each object, and how it went
over the episode.

`View` holds the numbers. `comparison` draws them for paper; the explorer's page (widgets/explorer.js)
computes the same ones in the browser, so that both show one thing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from refinevla_kit.attention.grounding import REST, areas, shares, to_patches
from refinevla_kit.errors import KitError
from refinevla_kit.figures.overlays import (
    EVEN,
    OUTLINES,
    SHOWN,
    THING_LABELS,
    draw_overlay,
    scale_top,
    times_even,
)
from refinevla_kit.figures.style import INK, MUTED, canvas, colours, label

Array = NDArray[Any]

ACROSS = 4  # plots in a row
VISIBLE = 0.005  # of a patch; what covers less is not named
ENDS = (0.05, 0.1, 0.25, 0.5, 1.0)  # of scales of shares, so that they stay put while a slider moves


@dataclass(frozen=True)
class Line:
    """A curve of a `Plot`: float (T,) values, NaN where there is none. `steps`: each value holds until the
    next.
    """

    label: str
    colour: str
    values: Array
    dashed: bool = False
    steps: bool = False


@dataclass(frozen=True)
class Plot:
    """Curves over the episode's steps: a title in its colour, the range of the values, and whether those are
    shares (shown in %).
    """

    title: str
    lines: tuple[Line, ...]
    low: float
    high: float
    colour: str = INK
    share: bool = False


@dataclass(frozen=True)
class View:
    """What is on show at one moment.

    Attributes:
        image: uint8 (H, W, 3).
        maps: policy -> float (rows, columns) attention; {} shows the picture alone.
        masks: thing -> bool (H, W), {} for none.
        title, detail: the two lines above.
        opacity: of the heat, 0 to 1; at 0 the picture is as the policy saw it.
        outlines: draw the masks' outlines.
        steps: int (T,), the episode's steps on the plots' axes.
        now: which of them is shown.
        plots: curves over the steps.
        measure: what the maps are of: attention, or another method's name.
    """

    image: Array
    maps: Mapping[str, Array]
    masks: Mapping[str, Array] = field(default_factory=dict)
    title: str = ""
    detail: str = ""
    opacity: float = 0.9
    outlines: bool = True
    steps: Array = field(default_factory=lambda: np.zeros(0, int))
    now: int = 0
    plots: tuple[Plot, ...] = ()
    measure: str = "attention"

    @property
    def unit(self) -> str:
        """Of the heat."""
        return EVEN if self.measure == "attention" else f"{self.measure} of a patch (1 = spread evenly)"

    @property
    def top(self) -> float:
        """End of the heat's scale, the same for all policies, in multiples of even attention."""
        return (
            scale_top([one / max(float(one.mean()), 1e-12) for one in self.maps.values()])
            if self.maps
            else 1.0
        )


@dataclass(frozen=True)
class Peak:
    """The patch with the most attention.

    Attributes:
        row, column: of the grid.
        times: its attention in multiples of even attention.
        covered: how much of it each visible thing of `SHOWN` covers (its score in the pointing game,
            `measures.pointing`); None without masks.
    """

    row: int
    column: int
    times: float
    covered: dict[str, float] | None

    def __str__(self) -> str:
        said = f"brightest patch: {self.times:.1f} × even"
        if self.covered is None:
            return said
        return f"{said}; " + (
            ", ".join(f"{part:.0%} {THING_LABELS[thing]}" for thing, part in self.covered.items())
            or "none of the objects on it"
        )


def peak(patch_map: Array, masks: Mapping[str, Array]) -> Peak:
    """Where a map, float (rows, columns), is largest, and what is there."""
    row, column = (int(i) for i in np.unravel_index(int(np.argmax(patch_map)), patch_map.shape))
    times = float(patch_map[row, column] / max(float(patch_map.mean()), 1e-12))
    covered = {
        name: float(to_patches(masks[name], patch_map.shape)[row, column]) for name in SHOWN if name in masks
    }
    return Peak(
        row,
        column,
        times,
        {name: part for name, part in covered.items() if part >= VISIBLE} if masks else None,
    )


def found_shares(view: View) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """(thing -> share of the picture's area, policy -> thing -> share of its attention); empty without
    masks.
    """
    if not view.masks:
        return {}, {policy: {} for policy in view.maps}
    return areas(view.masks), {
        policy: {name: float(share) for name, share in shares(one, view.masks).items()}
        for policy, one in view.maps.items()
    }


def scale_end(values: Sequence[float]) -> float:
    """End of a scale for shares: the first of `ENDS` that holds them all."""
    return next(
        end for end in ENDS if max([0.0, *(value for value in values if np.isfinite(value))]) <= end + 1e-9
    )


def check_view(view: View) -> None:
    """Raise `KitError` unless masks and maps belong to the picture."""
    height, width = view.image.shape[:2]
    for name, mask in view.masks.items():
        if mask.shape != (height, width):
            raise KitError(
                f"the mask of {name} is {_size(mask)}, the picture {_size(view.image)}",
                "give masks of this picture",
            )
    for policy, one in view.maps.items():
        if one.shape[0] > height or one.shape[1] > width:
            raise KitError(
                f"{policy} looks at {one.shape[1]} x {one.shape[0]} patches, the picture is "
                f"{_size(view.image)}",
                "give its own picture",
            )


def comparison(view: View) -> Figure:
    """An overlay a policy on one scale, shares by object of this moment, and the plots over the episode;
    `view.maps` {} shows the picture alone.
    """
    check_view(view)
    count, tall = max(len(view.maps), 1), 3.4 * view.image.shape[0] / view.image.shape[1]
    bars, lower = bool(view.maps), 1.45 * -(-len(view.plots) // ACROSS)
    width = max(3.5 * count + (3.6 if bars else 0.2), 10.0 if view.plots else 0.0)
    with canvas(width, tall + 0.75 + lower) as (figure, (only,)):
        only.remove()
        upper, under = (
            figure.subfigures(2, 1, squeeze=False, height_ratios=[tall + 0.75, lower])[:, 0]
            if view.plots
            else (figure, None)
        )
        wide = 0.62 * (width - 3.5 * count) / 3.6  # of the bars: what the pictures leave
        grid = GridSpec(1, count + bars, figure=upper, width_ratios=[1.0] * count + [wide] * bars)
        panels = [upper.add_subplot(grid[0, i]) for i in range(count)]
        heats = {policy: times_even(one, view.image.shape) for policy, one in view.maps.items()}
        norm, colour = Normalize(0, view.top), colours([*view.maps])
        for panel, policy in zip(panels, view.maps, strict=False):
            draw_overlay(
                panel, view.image, heats[policy], view.masks if view.outlines else {}, norm, view.opacity
            )
            panel.set_title(label(policy), color=colour[policy])
            _mark_peak(panel, view, policy)
        if not view.maps:
            panels[0].imshow(view.image)
            panels[0].set_axis_off()
            panels[0].set_anchor("W")
        if bars:
            bar = upper.colorbar(
                panels[0].images[1], ax=panels, shrink=0.85, pad=0.01, aspect=24, extend="max"
            )
            bar.set_label(view.unit, fontsize=7.5)
            bar.outline.set_visible(False)  # type: ignore[operator]
            _share_panel(upper.add_subplot(grid[0, count]), view, colour)
        if under:
            cells = under.subplots(
                -(-len(view.plots) // ACROSS), min(len(view.plots), ACROSS), squeeze=False
            ).ravel()
            for ax, plot in zip(cells, view.plots, strict=False):
                draw_plot(ax, plot, view.steps, view.now)
            for ax in cells[len(view.plots) :]:
                ax.set_axis_off()
        detail = textwrap.fill(view.detail, int(16 * width))
        figure.suptitle(
            f"{view.title}\n{detail}" if detail else view.title or " ", x=0.01, ha="left", fontsize=9
        )
    return figure


def draw_plot(ax: Axes, plot: Plot, steps: Array, now: int) -> None:
    """Curves over the episode, with a mark at the moment on show and a dot on each curve there."""
    for line in plot.lines:
        style = {"linestyle": (0, (1.5, 1)), "linewidth": 1.1} if line.dashed else {"linewidth": 1.4}
        ax.plot(
            steps,
            line.values,
            color=line.colour,
            drawstyle="steps-post" if line.steps else "default",
            label=line.label,
            **style,
        )  # type: ignore[arg-type]
        if not line.dashed and len(line.values):
            ax.plot(steps[now], line.values[now], "o", color=line.colour, markersize=3.5)
    if len(steps):
        ax.axvline(steps[now], color=MUTED, linewidth=0.9)
    margin = 0.04 * (plot.high - plot.low)
    ax.set_ylim(plot.low - (0 if plot.share else margin), plot.high + margin)
    ax.set_title(plot.title, color=plot.colour, fontsize=8)
    ax.tick_params(labelsize=7)
    ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2.5, 5, 10]))
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.margins(x=0.02)
    ax.set_xlabel("step", fontsize=7)
    if plot.share:
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    elif len(plot.lines) > 1:
        ax.legend(
            fontsize=6.5, loc="upper left", bbox_to_anchor=(1.0, 1.05), handlelength=1.0, borderaxespad=0.2
        )


def _mark_peak(panel: Axes, view: View, policy: str) -> None:
    found, (rows, columns) = peak(view.maps[policy], view.masks), view.maps[policy].shape
    height, width = view.image.shape[0] / rows, view.image.shape[1] / columns
    corner, dashes = (found.column * width, found.row * height), (0, (2, 2))
    panel.add_patch(
        Rectangle(corner, width, height, fill=False, edgecolor="white", linestyle=dashes, linewidth=1)
    )
    panel.text(0, -0.02, str(found), transform=panel.transAxes, va="top", fontsize=7.5, color=MUTED)


def _share_panel(side: Axes, view: View, colour: Mapping[str, str]) -> None:
    """A bar a policy and object, its number, and a dotted mark at the object's share of the area."""
    area, found = found_shares(view)
    step, count = 0.8 / len(colour), len(colour)
    end = scale_end(
        [
            *(area.get(thing, 0) for thing in SHOWN),
            *(one.get(thing, 0) for one in found.values() for thing in SHOWN),
        ]
    )
    for row, thing in enumerate(SHOWN):
        for i, (policy, one) in enumerate(found.items()):
            y, value = row + (i - (count - 1) / 2) * step, one.get(thing, 0.0)
            side.barh(y, value, step * 0.86, color=colour[policy], alpha=0.85)
            said = f"{value:.1%}" if area.get(thing) else "not visible" if view.masks else "no mask"
            side.text(
                max(value, area.get(thing, 0.0)) + 0.03 * end, y, said, va="center", fontsize=7.5, color=INK
            )
        mark = [area.get(thing, 0.0)] * 2
        side.add_line(
            Line2D(mark, [row - 0.42, row + 0.42], color=INK, linewidth=1.6, linestyle=(0, (1.5, 1)))
        )
    side.set_yticks(range(len(SHOWN)), [THING_LABELS[thing] for thing in SHOWN])
    for tick, thing in zip(side.get_yticklabels(), SHOWN, strict=True):
        tick.set(color=OUTLINES[thing], fontweight="bold")
    side.set(xlim=(0, 1.25 * end), ylim=(len(SHOWN) - 0.5, -0.5))
    side.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    side.locator_params(axis="x", nbins=4)
    side.grid(axis="y", visible=False)
    rest = " | ".join(f"{one[REST]:.0%}" for one in found.values() if REST in one)
    side.set_xlabel(
        f"share of {view.measure} (dotted: area)" + (f"\neverything else: {rest}" if rest else ""),
        fontsize=7.5,
    )


def _size(image: Array) -> str:
    return f"{image.shape[1]} x {image.shape[0]} pixels"
