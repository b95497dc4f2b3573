"""Attention as pictures: heat over the camera image with the objects' outlines, policies side by side on one
scale, shares by object, and how it went over an episode.

Heat is drawn as the policy has it, one value a patch. Its unit is even attention: 1 is what each patch gets
if attention is spread evenly over the picture. So panels and policies compare. The picture under it is
greyed, so that an object's own colour is not read as heat.

`View` holds the numbers of one moment. `comparison` draws them for paper; the explorer hands the same numbers
to the browser, so that both show one thing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from refinevla_kit.attention.captured import Frame, upper_middle
from refinevla_kit.attention.grounding import REST, THINGS, areas, shares, to_patches, to_pixels
from refinevla_kit.errors import KitError
from refinevla_kit.figures.style import (
    DOTTED,
    GREEN,
    GREY,
    INK,
    MUTED,
    ORANGE,
    PINK,
    SKY,
    bar,
    beside_each_other,
    canvas,
    check_shown,
    colours,
    headline,
    label,
    name_bars,
    name_lines,
    name_policies,
    note,
    page,
    per_cent,
)
from refinevla_kit.simulator.contract import Array

HEAT = "inferno"  # perceptually uniform, and no neighbour of the outlines' colours at its bright end
OUTLINES = {"source": ORANGE, "target": SKY, "gripper": GREEN, "arm": PINK, "rest": GREY}
THING_LABELS = {
    "source": "object to move",
    "target": "where it goes",
    "gripper": "gripper",
    "arm": "arm",
    "rest": "everything else",
}
SHOWN = tuple(thing for thing in THINGS if thing != REST)
EVEN = "attention to a patch (1 = spread evenly)"
LARGEST = 4.0  # multiples of even attention; scales end here at least, so that noise does not glow
ACROSS = 4  # plots in a row
VISIBLE = 0.005  # of a patch; what covers less is not named
SMALL: dict[str, Any] = {"fontsize": 7.5, "color": MUTED}
ByName = Mapping[str, Array]  # policy -> its map, or thing -> its mask
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
    maps: ByName
    masks: ByName = field(default_factory=dict)
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
        return scale_top(list(self.maps.values()))


@dataclass(frozen=True)
class Peak:
    """The patch with the most attention.

    Attributes:
        row, column: of the grid.
        times: its attention in multiples of even attention.
        covered: how much of it each visible thing of `SHOWN` covers (its score in the pointing game,
            `grounding.pointing`); None without masks.
    """

    row: int
    column: int
    times: float
    covered: dict[str, float] | None

    def __str__(self) -> str:
        text = f"brightest patch: {self.times:.1f} × even"
        if self.covered is None:
            return text
        parts = [f"{part:.0%} {THING_LABELS[thing]}" for thing, part in self.covered.items()]
        return f"{text}; {', '.join(parts) or 'none of the objects on it'}"


def peak(patch_map: Array, masks: ByName) -> Peak:
    """Where a map, float (rows, columns), is largest, and what is there."""
    row, column = (int(place) for place in np.unravel_index(int(np.argmax(patch_map)), patch_map.shape))
    times = float(_relative(patch_map)[row, column])
    parts = {name: to_patches(masks[name], patch_map.shape)[row, column] for name in SHOWN if name in masks}
    covered = {name: float(part) for name, part in parts.items() if part >= VISIBLE}
    return Peak(row, column, times, covered if masks else None)


def found_shares(view: View) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """(thing -> share of the picture's area, policy -> thing -> share of its attention); empty without
    masks.
    """
    if not view.masks:
        return {}, {policy: {} for policy in view.maps}
    by_policy = {
        policy: {name: float(share) for name, share in shares(patch_map, view.masks).items()}
        for policy, patch_map in view.maps.items()
    }
    return areas(view.masks), by_policy


def check_view(view: View) -> None:
    """Raise `KitError` unless masks and maps belong to the picture."""
    height, width = view.image.shape[:2]
    size = f"{width} x {height} pixels"
    for name, mask in view.masks.items():
        if mask.shape != (height, width):
            across = f"{mask.shape[1]} x {mask.shape[0]} pixels"
            what = f"the mask of {name} is {across}, the picture {size}"
            raise KitError(what, "give masks of this picture")
    for policy, patch_map in view.maps.items():
        rows, columns = patch_map.shape
        if rows > height or columns > width:
            what = f"{policy} looks at {columns} x {rows} patches, the picture is {size}"
            raise KitError(what, "give its own picture")


def scale_end(values: Sequence[float]) -> float:
    """End of a scale for shares: the first of `ENDS` that holds them all."""
    largest = max([0.0, *(value for value in values if np.isfinite(value))])
    return next(end for end in ENDS if largest <= end + 1e-9)


def scale_top(maps: Sequence[Array]) -> float:
    """End of a scale for the heat of these maps: a power of two, so that it stays put while a slider moves.

    It holds 98 % of the values: one patch that takes thirty times its share would leave all others dark. The
    colour bar's arrow says so.
    """
    if not maps:
        return 1.0
    heats = np.stack([_relative(patch_map) for patch_map in maps])
    most = max(LARGEST, float(np.quantile(heats, 0.98, method="higher")))
    return float(2.0 ** np.ceil(np.log2(most)))


def _relative(patch_map: Array) -> Array:
    """A map in multiples of even attention; the mean is 1."""
    patch_map = np.asarray(patch_map, np.float64)
    return patch_map / max(float(patch_map.mean()), 1e-12)


def times_even(patch_map: Array, image_shape: tuple[int, ...]) -> Array:
    """float (rows, columns) attention -> float64 (H, W) in multiples of even attention; the mean is 1."""
    return to_pixels(_relative(patch_map), image_shape)


def greyed(image: Array) -> Array:
    """uint8 (H, W, 3) -> the same, darker and nearly without colour."""
    grey = image @ np.array([0.299, 0.587, 0.114])  # Rec. 601 luma
    return np.clip(0.6 * (0.15 * image + 0.85 * grey[..., None]), 0, 255).astype(np.uint8)


def show_picture(axes: Axes, image: Array, **look: Any) -> None:
    """Draw a picture (H, W) or (H, W, 3) into `axes`: a pixel is a unit, the first corner (0, 0)."""
    axes.imshow(image, extent=(0, image.shape[1], image.shape[0], 0), **look)
    axes.autoscale(False)  # what is drawn over it moves nothing
    axes.set_axis_off()


def outline(axes: Axes, mask: Array, colour: str) -> None:
    """Draw the edge of a mask, bool (H, W), over its picture."""
    if mask.any():
        height, width = mask.shape
        extent = (-0.5, width + 0.5, -0.5, height + 0.5)  # middles of the outer pixels, with one more around
        axes.contour(np.pad(mask, 1), [0.5], colors=colour, linewidths=1.2, extent=extent)


def draw_overlay(
    axes: Axes,
    image: Array,
    heat: Array,
    masks: ByName,
    norm: Normalize,
    opacity: float = 0.9,
) -> None:
    """Draw image, heat and outlines into `axes`.

    Args:
        axes: empty ones.
        image: uint8 (H, W, 3).
        heat: float (H, W), multiples of even attention, the more opaque the stronger it is.
        masks: thing -> bool (H, W).
        norm: the scale, shared by the panels that are to be compared.
        opacity: of the heat; at 0 the picture is as it was.
    """
    show_picture(axes, np.asarray((1 - opacity) * image + opacity * greyed(image), np.uint8))
    alpha = opacity * np.clip(norm(heat), 0, 1)
    show_picture(axes, heat, cmap=HEAT, norm=norm, interpolation="nearest", alpha=alpha)
    for name, mask in masks.items():
        outline(axes, mask, OUTLINES.get(name, INK))


def heated(image: Array, patch_map: Array, factor: int = 3) -> Array:
    """Image with heat as plain pixels, for videos: uint8 (H, W, 3) and float (rows, columns) -> uint8 (factor
    * H, factor * W, 3).

    The scale is fixed at `LARGEST` times even attention, so that frames compare.
    """
    strength = np.clip(times_even(patch_map, image.shape) / LARGEST, 0, 1)  # H, W
    colour = colormaps[HEAT](strength)[..., :3] * 255
    mixed = greyed(image) * (1 - 0.9 * strength[..., None]) + colour * (0.9 * strength[..., None])
    return mixed.round().astype(np.uint8).repeat(factor, 0).repeat(factor, 1)


def attention_overlay(policy: Any, layer: int | None = None) -> Callable[[Any, Any], Array]:
    """What `evaluate(videos=..., overlay=...)` draws on each frame: where the action tokens of the answer
    look, in `layer` (None: the usual one).
    """
    from refinevla_kit.attention import capture

    def draw(observation: Any, answer: Any) -> Array:
        # at the end there is no answer: the one the policy would give is taken
        image, state = observation.image, observation.proprioception
        seen = capture(policy, image, observation.instruction, answer, proprioception=state)
        return heated(image, seen.map(upper_middle(seen.layers) if layer is None else layer))

    return draw


def token_grid(
    image: Array,
    maps: Mapping[str, Array | Sequence[Array]],
    dimensions: Sequence[str],
    masks: ByName,
    title: str = "",
    size: float = 1.45,
) -> Figure:
    """One row a policy, one column an action dimension, all on one scale; the picture itself at the left.

    Args:
        image: uint8 (H, W, 3).
        maps: policy -> float (A, rows, columns).
        dimensions: names of the A.
        masks: thing -> bool (H, W).
        title: above the grid.
        size: width of a picture, inches.
    """
    columns = len(dimensions) + 1
    height = (size * image.shape[0] / image.shape[1] + 0.1) * len(maps) + 0.75
    with canvas(size * columns + 0.6, height, len(maps), columns, title) as (figure, axes):
        for panel in axes[::columns]:
            show_picture(panel, image)
        for panel, name in zip(axes, ("picture", *dimensions)):
            panel.set_title(name, loc="center", fontweight="normal")
        top = scale_top([patch_map for row in maps.values() for patch_map in row])
        _draw_rows(figure, axes, maps, [(image, masks)] * len(dimensions), top)
    return figure


def attention_over_time(
    frames: Sequence[Frame], maps: Mapping[str, Sequence[Array]], title: str = ""
) -> Figure:
    """The paper's Figures 1 and 6: moments of an episode in a row, the attention of each policy in a row
    below, all on one scale.

    Args:
        frames: the moments.
        maps: policy -> float (rows, columns) a moment, as `fused_maps` gives them.
        title: above the rows.
    """
    check_shown(frames)
    columns, rows = len(frames), len(maps) + 1
    height, width = frames[0].image.shape[:2]
    tall = (2.1 * height / width + 0.08) * rows + 0.75
    with canvas(2.1 * columns + 0.9, tall, rows, columns, title) as (figure, axes):
        for panel, frame in zip(axes, frames):
            show_picture(panel, frame.image)
            name = f"step {frame.step}: {frame.phase}"
            panel.set_title(name, loc="center", fontweight="normal", fontsize=8.5)
        pictures = [(frame.image, frame.masks) for frame in frames]
        _draw_rows(figure, axes[columns:], maps, pictures, LARGEST)
    return figure


def fused_maps(policy: Any, frames: Sequence[Frame]) -> list[Array]:
    """What `attention_over_time` draws of a policy: of each frame its three strongest maps of the upper
    layers as one.
    """
    from refinevla_kit.attention import capture
    from refinevla_kit.attention.flows import fuse_top

    maps = []
    for frame in frames:
        seen = capture(policy, frame.image, frame.instruction, proprioception=frame.proprioception)
        maps.append(fuse_top(seen.patches, first_layer=upper_middle(seen.layers)).reshape(seen.grid))
    return maps


def _draw_rows(
    figure: Figure,
    axes: Sequence[Axes],
    maps: Mapping[str, Array | Sequence[Array]],
    pictures: Sequence[tuple[Array, ByName]],
    top: float,
) -> None:
    """A row of overlays a policy in the last columns of `axes`, with the scale and the outlines' names."""
    columns, colour, norm = len(axes) // len(maps), colours(maps), Normalize(0, top)
    for number, (policy, row) in enumerate(maps.items()):
        panels = axes[number * columns : (number + 1) * columns]
        for panel, patch_map, (image, masks) in zip(panels[-len(row) :], row, pictures, strict=True):
            draw_overlay(panel, image, times_even(patch_map, image.shape), masks, norm)
        panels[0].text(
            -0.05,
            0.5,
            textwrap.fill(label(policy), 15),
            transform=panels[0].transAxes,
            color=colour[policy],
            rotation=90,
            ha="right",
            va="center",
            fontweight="bold",
        )
    _heat_scale(figure, axes[-1], figure.axes, EVEN)
    named = [thing for thing in OUTLINES if any(thing in masks for _, masks in pictures)]
    for thing in named:
        axes[-1].plot([], [], color=OUTLINES[thing], linewidth=2, label=THING_LABELS[thing])
    if named:
        figure.legend(loc="outside lower left", ncols=len(named), handlelength=1.2)


def _heat_scale(figure: Any, panel: Axes, beside: Sequence[Axes], unit: str) -> None:
    """The colour bar of an overlay's heat."""
    scale = figure.colorbar(panel.images[1], ax=beside, shrink=0.85, pad=0.01, aspect=26, extend="max")
    scale.set_label(unit, fontsize=7.5)
    scale.outline.set_visible(False)


def share_bars(summary: pd.DataFrame, title: str = "") -> Figure:
    """Share of the attention to the picture by object, a bar a policy with its interval, and the object's
    share of the picture as a mark.

    Args:
        summary: of `grounding.summarise_scores`.
        title: above the bars.
    """
    rest, summary = summary[summary["thing"] == REST], summary[summary["thing"] != REST]
    things = sorted(set(summary["thing"]), key=[*THINGS, *summary["thing"]].index)  # others after these
    colour = colours(summary["policy"])
    places, thick = beside_each_other(colour), 0.8 / len(colour) * 0.86
    with canvas(7.2, 3.4) as (figure, (axes,)):
        for row in summary.itertuples():
            x = things.index(row.thing) + places[row.policy]
            bar(axes, x, (row.share, row.low, row.high), thick, colour[row.policy])
            axes.hlines(row.area, x - thick / 2, x + thick / 2, color=INK, linewidth=1.6, linestyle=DOTTED)
            text = f"x{row.ratio:.2f}" if np.isfinite(row.ratio) else "hidden"
            axes.text(x, -0.025, text, transform=axes.get_xaxis_transform(), ha="center", va="top", **SMALL)
        name_bars(axes, [THING_LABELS.get(thing, thing) for thing in things])
        axes.set_ylim(0, 1.08 * float(np.nanmax(summary[["share", "high", "area"]])))
        per_cent(axes.yaxis)
        axes.set_ylabel("share of image attention")
        others = ", ".join(f"{row.share:.0%} ({label(row.policy)})" for row in rest.itertuples())
        line = (
            "dotted: the object's share of the area, which even attention scores; below: share / "
            f"area\neverything else: {others}"
        )
        note(axes, f"{title}\n{line}" if title else line)
        name_policies(figure, colour)
    return figure


def comparison(view: View) -> Figure:
    """An overlay a policy on one scale, shares by object of this moment, and the plots over the episode;
    `view.maps` {} shows the picture alone.
    """
    check_view(view)
    count, bars = max(len(view.maps), 1), bool(view.maps)
    tall = 3.4 * view.image.shape[0] / view.image.shape[1] + 0.75
    rows = -(-len(view.plots) // ACROSS)
    width = max(3.5 * count + (3.6 if bars else 0.2), 10.0 if view.plots else 0.0)
    detail = textwrap.fill(view.detail, int(16 * width))
    title = f"{view.title}\n{detail}" if detail else view.title or " "
    with page(width, tall + 1.45 * rows) as figure:
        upper: Any = figure
        if view.plots:
            upper, lower = figure.subfigures(2, 1, height_ratios=[tall, 1.45 * rows], squeeze=False)[:, 0]
            cells = lower.subplots(rows, min(len(view.plots), ACROSS), squeeze=False).ravel()
            for axes, plot in zip(cells, view.plots):
                _draw_plot(axes, plot, view.steps, view.now)
            for axes in cells[len(view.plots) :]:
                axes.set_axis_off()
        headline(upper, title)  # a whole figure's lies over its parts
        wide = 0.62 * (width - 3.5 * count) / 3.6  # of the bars: what the pictures leave
        grid = upper.add_gridspec(1, count + bars, width_ratios=[1.0] * count + [wide] * bars)
        panels = [upper.add_subplot(grid[place]) for place in range(count)]
        norm, colour = Normalize(0, view.top), colours(view.maps)
        for panel, (policy, patch_map) in zip(panels, view.maps.items()):
            heat, masks = times_even(patch_map, view.image.shape), view.masks if view.outlines else {}
            draw_overlay(panel, view.image, heat, masks, norm, view.opacity)
            panel.set_title(label(policy), color=colour[policy])
            _mark_peak(panel, view, patch_map)
        if bars:
            _heat_scale(upper, panels[0], panels, view.unit)
            _share_panel(upper.add_subplot(grid[count]), view, colour)
        else:
            show_picture(panels[0], view.image)
            panels[0].set_anchor("W")
    return figure


def _draw_plot(axes: Axes, plot: Plot, steps: Array, now: int) -> None:
    """Curves over the episode, with a mark at the moment on show and a dot on each curve there."""
    for line in plot.lines:
        look: dict[str, Any] = {"drawstyle": "steps-post" if line.steps else "default", "linewidth": 1.4}
        if line.dashed:
            look |= {"linewidth": 1.1, "linestyle": DOTTED}
        axes.plot(steps, line.values, color=line.colour, label=line.label, **look)
        if not line.dashed:
            axes.plot(steps[[now]], line.values[[now]], "o", color=line.colour, markersize=3.5)
    axes.axvline(steps[now], color=MUTED, linewidth=0.9)
    margin = 0.04 * (plot.high - plot.low)
    axes.set_ylim(plot.low - (0 if plot.share else margin), plot.high + margin)
    axes.set_title(plot.title, color=plot.colour, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2.5, 5, 10]))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.margins(x=0.02)
    axes.set_xlabel("step", fontsize=7)
    if plot.share:
        per_cent(axes.yaxis)
    elif len(plot.lines) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.05), handlelength=1.0)


def _mark_peak(panel: Axes, view: View, patch_map: Array) -> None:
    brightest = peak(patch_map, view.masks)
    height, width = np.divide(view.image.shape[:2], patch_map.shape)
    corner = (brightest.column * width, brightest.row * height)
    panel.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="white", linestyle=(0, (2, 2))))
    panel.text(0, -0.02, str(brightest), transform=panel.transAxes, va="top", **SMALL)


def _share_panel(side: Axes, view: View, colour: Mapping[str, str]) -> None:
    """A bar a policy and object, its number, and a dotted mark at the object's share of the area."""
    area, by_policy = found_shares(view)
    places, thick = beside_each_other(colour), 0.8 / len(colour) * 0.86
    end = scale_end([sizes.get(thing, 0) for sizes in (area, *by_policy.values()) for thing in SHOWN])
    for row, thing in enumerate(SHOWN):
        size = area.get(thing, 0.0)
        for policy, found in by_policy.items():
            share, place = found.get(thing, 0.0), places[policy]
            side.barh(row + place, share, thick, color=colour[policy], alpha=0.85)
            text = f"{share:.1%}" if size else "not visible" if view.masks else "no mask"
            side.text(max(share, size) + 0.03 * end, row + place, text, va="center", fontsize=7.5)
        side.plot([size] * 2, [row - 0.42, row + 0.42], color=INK, linewidth=1.6, linestyle=DOTTED)
    name_lines(side, [THING_LABELS[thing] for thing in SHOWN])
    for tick, thing in zip(side.get_yticklabels(), SHOWN, strict=True):
        tick.set(color=OUTLINES[thing], fontweight="bold")
    side.set_xlim(0, 1.25 * end)
    per_cent(side.xaxis)
    side.locator_params(axis="x", nbins=4)
    rest = " | ".join(f"{found[REST]:.0%}" for found in by_policy.values() if REST in found)
    text = f"share of {view.measure} (dotted: area)" + (f"\neverything else: {rest}" if rest else "")
    side.set_xlabel(text, fontsize=7.5)
