"""Attention as pictures: heat over the camera image with the objects' outlines, policies side by side on one
scale, shares by object, and how it went over an episode.

Heat is drawn as the policy has it, one value a patch, in multiples of even attention (1 = what each patch
would get if attention were spread evenly over the picture), so panels and policies compare. The picture under
it is greyed, so that an object's own colour is not read as heat.

`View` holds the numbers of one moment. `comparison` draws them for paper; the explorer hands the same numbers
to the browser, so that both show one thing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

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
    canvas,
    colours,
    label,
    name_policies,
    note,
    offsets,
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
        return scale_top([_relative(one) for one in self.maps.values()]) if self.maps else 1.0


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


def peak(patch_map: Array, masks: Mapping[str, Array]) -> Peak:
    """Where a map, float (rows, columns), is largest, and what is there."""
    row, column = (int(place) for place in np.unravel_index(int(np.argmax(patch_map)), patch_map.shape))
    times = float(_relative(patch_map)[row, column])
    if not masks:
        return Peak(row, column, times, None)
    parts = {name: to_patches(masks[name], patch_map.shape)[row, column] for name in SHOWN if name in masks}
    return Peak(row, column, times, {name: float(part) for name, part in parts.items() if part >= VISIBLE})


def found_shares(view: View) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """(thing -> share of the picture's area, policy -> thing -> share of its attention); empty without
    masks.
    """
    if not view.masks:
        return {}, {policy: {} for policy in view.maps}
    by_policy = {}
    for policy, one in view.maps.items():
        by_policy[policy] = {name: float(share) for name, share in shares(one, view.masks).items()}
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
    for policy, one in view.maps.items():
        if one.shape[0] > height or one.shape[1] > width:
            what = f"{policy} looks at {one.shape[1]} x {one.shape[0]} patches, the picture is {size}"
            raise KitError(what, "give its own picture")


def scale_end(values: Sequence[float]) -> float:
    """End of a scale for shares: the first of `ENDS` that holds them all."""
    largest = max([0.0, *(value for value in values if np.isfinite(value))])
    return next(end for end in ENDS if largest <= end + 1e-9)


def scale_top(heats: Sequence[Array]) -> float:
    """End of a scale for `heats` (multiples of even attention, a patch or a pixel each): a power of two, so
    that it stays put while a slider moves.

    It holds 98 % of the values: one patch that takes thirty times its share would leave all others dark. The
    colour bar's arrow says so.
    """
    most = max(LARGEST, float(np.quantile(np.stack(heats), 0.98, method="higher")))
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
    return np.asarray(np.clip(0.6 * (0.15 * image + 0.85 * grey[..., None]), 0, 255).astype(np.uint8))


def outline_layer(
    masks: Mapping[str, Array], shape: tuple[int, ...], factor: int = 4, thickness: int = 3
) -> Array:
    """Masks' edges as a picture of `factor` times the size: uint8 (factor * H, factor * W, 4), transparent
    elsewhere.
    """
    layer = np.zeros((shape[0] * factor, shape[1] * factor, 4), np.uint8)
    for name, mask in masks.items():
        large = np.asarray(mask, bool).repeat(factor, 0).repeat(factor, 1)
        inside = large.copy()
        for axis in (0, 1):
            for shift in (-thickness, thickness):
                inside &= np.roll(large, shift, axis)
        layer[large & ~inside] = [*(int(255 * part) for part in to_rgb(OUTLINES.get(name, INK))), 255]
    return layer


def draw_overlay(
    axes: Axes,
    image: Array,
    heat: Array,
    masks: Mapping[str, Array],
    norm: Normalize,
    opacity: float = 0.9,
    thickness: int = 3,
) -> None:
    """Draw image, heat and outlines into `axes`.

    Args:
        axes: empty ones.
        image: uint8 (H, W, 3).
        heat: float (H, W), multiples of even attention, the more opaque the stronger it is.
        masks: thing -> bool (H, W).
        norm: the scale, shared by the panels that are to be compared.
        opacity: of the heat; at 0 the picture is as it was.
        thickness: of the outlines.
    """
    height, width = image.shape[:2]
    extent = (0, width, height, 0)
    grey = np.asarray((1 - opacity) * image + opacity * greyed(image), np.uint8)
    alpha = opacity * np.clip(norm(heat), 0, 1)
    axes.imshow(grey, extent=extent)
    axes.imshow(heat, extent=extent, cmap=HEAT, norm=norm, interpolation="nearest", alpha=alpha)
    axes.imshow(outline_layer(masks, image.shape, thickness=thickness), extent=extent)
    axes.set_axis_off()


def heated(image: Array, patch_map: Array, factor: int = 3) -> Array:
    """Image with heat as plain pixels, for videos: uint8 (H, W, 3) and float (rows, columns) -> uint8 (factor
    * H, factor * W, 3).

    The scale is fixed at `LARGEST` times even attention, so that frames compare.
    """
    strength = np.clip(times_even(patch_map, image.shape) / LARGEST, 0, 1)  # H, W
    colour = colormaps[HEAT](strength)[..., :3] * 255
    mixed = greyed(image) * (1 - 0.9 * strength[..., None]) + colour * (0.9 * strength[..., None])
    return np.asarray(mixed.round().astype(np.uint8).repeat(factor, 0).repeat(factor, 1))


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
    maps: Mapping[str, Array],
    dimensions: Sequence[str],
    masks: Mapping[str, Array],
    title: str = "",
) -> Figure:
    """One row a policy, one column an action dimension, all on one scale; the picture itself at the left.

    Args:
        image: uint8 (H, W, 3).
        maps: policy -> float (A, rows, columns).
        dimensions: names of the A.
        masks: thing -> bool (H, W).
        title: above the grid.
    """
    heats = {policy: [times_even(one, image.shape) for one in stack] for policy, stack in maps.items()}
    norm = Normalize(0, scale_top([heat for row in heats.values() for heat in row]))
    columns, shape = len(dimensions) + 1, image.shape[0] / image.shape[1]
    height = (1.45 * shape + 0.1) * len(maps) + 0.75
    with canvas(1.45 * columns + 0.6, height, len(maps), columns) as (figure, axes):
        for panel in axes[::columns]:
            panel.imshow(image)
            panel.set_axis_off()
        for panel, name in zip(axes, ("picture", *dimensions), strict=False):
            panel.set_title(name, loc="center", fontweight="normal")
        frames = [(image, masks)] * len(dimensions)
        _draw_rows(figure, axes, heats, frames, norm, 6, title)  # thick outlines: the panels are small
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
    columns, rows = len(frames), len(maps) + 1
    height, width = frames[0].image.shape[:2]
    heats = {}
    for policy, row in maps.items():
        heats[policy] = [times_even(one, frame.image.shape) for one, frame in zip(row, frames, strict=True)]
    tall = (2.1 * height / width + 0.08) * rows + 0.75
    with canvas(2.1 * columns + 0.9, tall, rows, columns) as (figure, axes):
        for panel, frame in zip(axes, frames, strict=False):
            panel.imshow(frame.image)
            panel.set_axis_off()
            name = f"step {frame.step}: {frame.phase}"
            panel.set_title(name, loc="center", fontweight="normal", fontsize=8.5)
        pictures = [(frame.image, frame.masks) for frame in frames]
        _draw_rows(figure, axes[columns:], heats, pictures, Normalize(0, LARGEST), 4, title)
    return figure


def fused_maps(policy: Any, frames: Sequence[Frame], k: int = 3) -> list[Array]:
    """What `attention_over_time` draws of a policy: for each frame its k strongest maps of the upper layers
    as one.
    """
    from refinevla_kit.attention import capture
    from refinevla_kit.attention.flows import fuse_top

    maps = []
    for frame in frames:
        seen = capture(policy, frame.image, frame.instruction, proprioception=frame.proprioception)
        maps.append(fuse_top(seen.patches, k, upper_middle(seen.layers)).reshape(seen.grid))
    return maps


def _draw_rows(
    figure: Figure,
    axes: Sequence[Axes],
    heats: Mapping[str, Sequence[Array]],
    pictures: Sequence[tuple[Array, Mapping[str, Array]]],
    norm: Normalize,
    thickness: int,
    title: str,
) -> None:
    """A row of overlays a policy in the last columns of `axes`, with the scale, the outlines' names and the
    title.
    """
    columns, colour = len(axes) // len(heats), colours([*heats])
    for number, (policy, row) in enumerate(heats.items()):
        panels = axes[number * columns : (number + 1) * columns]
        for panel, heat, (image, masks) in zip(panels[-len(row) :], row, pictures, strict=True):
            draw_overlay(panel, image, heat, masks, norm, thickness=thickness)
        name = textwrap.fill(label(policy), 15)
        look: dict[str, Any] = {"rotation": 90, "ha": "right", "va": "center", "fontweight": "bold"}
        panels[0].text(-0.05, 0.5, name, transform=panels[0].transAxes, color=colour[policy], **look)
    _heat_scale(figure, axes[-1], figure.axes, EVEN)
    named = {name for _, masks in pictures for name in masks}
    handles = [
        Line2D([], [], color=OUTLINES[name], linewidth=2, label=THING_LABELS[name])
        for name in OUTLINES
        if name in named
    ]
    if handles:
        figure.legend(
            handles=handles, loc="outside lower left", ncols=len(handles), fontsize=8, handlelength=1.2
        )
    figure.suptitle(title, x=0.01, ha="left", fontsize=9)


def _heat_scale(figure: Any, panel: Axes, beside: Sequence[Axes], unit: str) -> None:
    """The colour bar of an overlay's heat."""
    scale = figure.colorbar(panel.images[1], ax=beside, shrink=0.85, pad=0.01, aspect=26, extend="max")
    scale.set_label(unit, fontsize=7.5)
    scale.outline.set_visible(False)


def share_bars(summary: Any, title: str = "") -> Figure:
    """Share of the attention to the picture by object, a bar a policy with its interval, and the object's
    share of the picture as a mark.

    Args:
        summary: pandas table of `grounding.summarise_scores`.
        title: above the bars.
    """
    rest, summary = summary[summary["thing"] == REST], summary[summary["thing"] != REST]
    policies = list(dict.fromkeys(summary["policy"]))
    things = [thing for thing in THINGS if thing in set(summary["thing"])]
    colour, places = colours(policies), offsets(len(policies))
    step = 0.8 / len(policies)
    with canvas(7.2, 3.4) as (figure, (axes,)):
        for row in summary.itertuples():
            x = things.index(row.thing) + places[policies.index(row.policy)]
            bar(axes, x, row.share, (row.low, row.high), step * 0.86, colour[row.policy])
            ends = [x - step * 0.43, x + step * 0.43]
            axes.plot(ends, [row.area] * 2, color=INK, linewidth=1.6, linestyle=DOTTED)
            text = f"x{row.ratio:.2f}" if np.isfinite(row.ratio) else "hidden"
            style: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": 7.5, "color": MUTED}
            axes.annotate(text, (x, 0), (0, -4), textcoords="offset points", **style)
        axes.set_xticks(range(len(things)), [THING_LABELS.get(thing, thing) for thing in things])
        axes.tick_params(axis="x", pad=14)
        axes.grid(axis="x", visible=False)
        top = np.nanmax([summary["share"].max(), summary["high"].max(), summary["area"].max()])
        axes.set_ylim(0, float(top) * 1.08)
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
    with canvas(width, tall + 1.45 * rows) as (figure, (only,)):
        only.remove()
        upper: Any = figure
        if view.plots:
            upper, lower = figure.subfigures(2, 1, height_ratios=[tall, 1.45 * rows], squeeze=False)[:, 0]
            cells = lower.subplots(rows, min(len(view.plots), ACROSS), squeeze=False).ravel()
            for axes, plot in zip(cells, view.plots, strict=False):
                _draw_plot(axes, plot, view.steps, view.now)
            for axes in cells[len(view.plots) :]:
                axes.set_axis_off()
        wide = 0.62 * (width - 3.5 * count) / 3.6  # of the bars: what the pictures leave
        grid = GridSpec(1, count + bars, figure=upper, width_ratios=[1.0] * count + [wide] * bars)
        panels = [upper.add_subplot(grid[0, place]) for place in range(count)]
        norm, colour = Normalize(0, view.top), colours([*view.maps])
        for panel, (policy, one) in zip(panels, view.maps.items(), strict=False):
            heat = times_even(one, view.image.shape)
            draw_overlay(panel, view.image, heat, view.masks if view.outlines else {}, norm, view.opacity)
            panel.set_title(label(policy), color=colour[policy])
            _mark_peak(panel, view, one)
        if bars:
            _heat_scale(upper, panels[0], panels, view.unit)
            _share_panel(upper.add_subplot(grid[0, count]), view, colour)
        else:
            panels[0].imshow(view.image)
            panels[0].set_axis_off()
            panels[0].set_anchor("W")
        detail = textwrap.fill(view.detail, int(16 * width))
        title = f"{view.title}\n{detail}" if detail else view.title or " "
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    return figure


def _draw_plot(axes: Axes, plot: Plot, steps: Array, now: int) -> None:
    """Curves over the episode, with a mark at the moment on show and a dot on each curve there."""
    for line in plot.lines:
        look: dict[str, Any] = {"linewidth": 1.1, "linestyle": DOTTED} if line.dashed else {"linewidth": 1.4}
        look["drawstyle"] = "steps-post" if line.steps else "default"
        axes.plot(steps, line.values, color=line.colour, label=line.label, **look)
        if not line.dashed and len(line.values):
            axes.plot(steps[now], line.values[now], "o", color=line.colour, markersize=3.5)
    if len(steps):
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
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    elif len(plot.lines) > 1:
        axes.legend(
            fontsize=6.5, loc="upper left", bbox_to_anchor=(1.0, 1.05), handlelength=1.0, borderaxespad=0.2
        )


def _mark_peak(panel: Axes, view: View, patch_map: Array) -> None:
    brightest = peak(patch_map, view.masks)
    height, width = view.image.shape[0] / patch_map.shape[0], view.image.shape[1] / patch_map.shape[1]
    corner = (brightest.column * width, brightest.row * height)
    look: dict[str, Any] = {"fill": False, "edgecolor": "white", "linestyle": (0, (2, 2)), "linewidth": 1}
    panel.add_patch(Rectangle(corner, width, height, **look))
    panel.text(0, -0.02, str(brightest), transform=panel.transAxes, va="top", fontsize=7.5, color=MUTED)


def _share_panel(side: Axes, view: View, colour: Mapping[str, str]) -> None:
    """A bar a policy and object, its number, and a dotted mark at the object's share of the area."""
    area, by_policy = found_shares(view)
    places, thick = offsets(len(colour)), 0.8 / len(colour) * 0.86
    end = scale_end([one.get(thing, 0) for one in (area, *by_policy.values()) for thing in SHOWN])
    for row, thing in enumerate(SHOWN):
        size = area.get(thing, 0.0)
        for place, (policy, found) in zip(places, by_policy.items(), strict=True):
            share = found.get(thing, 0.0)
            side.barh(row + place, share, thick, color=colour[policy], alpha=0.85)
            text = f"{share:.1%}" if size else "not visible" if view.masks else "no mask"
            right = max(share, size) + 0.03 * end
            side.text(right, row + place, text, va="center", fontsize=7.5, color=INK)
        mark = Line2D([size] * 2, [row - 0.42, row + 0.42], color=INK, linewidth=1.6, linestyle=DOTTED)
        side.add_line(mark)
    side.set_yticks(range(len(SHOWN)), [THING_LABELS[thing] for thing in SHOWN])
    for tick, thing in zip(side.get_yticklabels(), SHOWN, strict=True):
        tick.set(color=OUTLINES[thing], fontweight="bold")
    side.set(xlim=(0, 1.25 * end), ylim=(len(SHOWN) - 0.5, -0.5))
    side.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    side.locator_params(axis="x", nbins=4)
    side.grid(axis="y", visible=False)
    rest = " | ".join(f"{found[REST]:.0%}" for found in by_policy.values() if REST in found)
    text = f"share of {view.measure} (dotted: area)" + (f"\neverything else: {rest}" if rest else "")
    side.set_xlabel(text, fontsize=7.5)
