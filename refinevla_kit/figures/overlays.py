"""Attention as pictures: heat over the camera image with the objects' outlines, policies side by side on one
scale, and shares by object.

Heat is drawn as the policy has it, one value a patch, in multiples of even attention (1 = what each patch
would get if attention were spread evenly over the picture), so panels and policies compare. The picture under
it is greyed, so that an object's own colour is not read as heat.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from refinevla_kit.attention.grounding import REST, THINGS, to_pixels
from refinevla_kit.figures.style import (
    GREEN,
    GREY,
    INK,
    MUTED,
    ORANGE,
    PINK,
    SKY,
    canvas,
    colours,
    label,
    name_policies,
)

Array = NDArray[Any]

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


def times_even(patch_map: Array, image_shape: tuple[int, ...]) -> Array:
    """float (rows, columns) attention -> float64 (H, W) in multiples of even attention; the mean is 1."""
    patch_map = np.asarray(patch_map, np.float64)
    return to_pixels(patch_map / max(float(patch_map.mean()), 1e-12), image_shape)


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
        layer[large & ~inside] = [*(int(255 * c) for c in to_rgb(OUTLINES.get(name, INK))), 255]
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
    """Draw image, heat (float (H, W), multiples of even attention) and outlines into `axes`; drawn there
    before, only the data are replaced.

    Args:
        norm: the scale, shared by the panels that are to be compared. Heat is the more opaque the stronger it
            is.
    """
    edges, grey = (
        outline_layer(masks, image.shape, thickness=thickness),
        np.asarray((1 - opacity) * image + opacity * greyed(image), np.uint8),
    )
    alpha = opacity * np.clip(norm(heat), 0, 1)
    if not axes.images:
        height, width = image.shape[:2]
        extent = (0, width, height, 0)
        axes.imshow(image, extent=extent)
        axes.imshow(heat, extent=extent, cmap=HEAT, norm=norm, interpolation="nearest")
        axes.imshow(edges, extent=extent)
        axes.set_axis_off()
    for artist, layer in zip(axes.images, (grey, heat, edges), strict=True):
        artist.set_data(layer)
    axes.images[1].set_alpha(alpha)


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
    from refinevla_kit.attention.captured import upper_middle  # needs torch; the pictures alone do not
    from refinevla_kit.attention.forward import capture

    def draw(observation: Any, answer: Any) -> Array:
        image = observation.image  # at the end there is no answer: the one the policy would give is taken
        seen = capture(
            policy, image, observation.instruction, answer, proprioception=observation.proprioception
        )
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
    """
    heats = {policy: [times_even(one, image.shape) for one in stack] for policy, stack in maps.items()}
    norm = Normalize(0, scale_top([heat for row in heats.values() for heat in row]))
    columns, shape, colour = len(dimensions) + 1, image.shape[0] / image.shape[1], colours([*maps])
    with canvas(1.45 * columns + 0.6, (1.45 * shape + 0.1) * len(maps) + 0.75, len(maps), columns) as (
        figure,
        axes,
    ):
        for row, (policy, stack) in enumerate(heats.items()):
            first = axes[row * columns]
            first.imshow(image)
            first.set_axis_off()
            name = textwrap.fill(label(policy), 14)
            first.text(
                -0.05,
                0.5,
                name,
                rotation=90,
                ha="right",
                va="center",
                transform=first.transAxes,
                color=colour[policy],
                fontweight="bold",
            )
            for column, heat in enumerate(stack, 1):
                draw_overlay(
                    axes[row * columns + column], image, heat, masks, norm, thickness=6
                )  # small panels
        for column, name in enumerate(("picture", *dimensions)):
            axes[column].set_title(name, loc="center", fontweight="normal")
        bar = figure.colorbar(axes[1].images[1], ax=axes, shrink=0.9, pad=0.01, aspect=28, extend="max")
        bar.set_label(EVEN, fontsize=7.5)
        bar.outline.set_visible(False)  # type: ignore[operator]
        _name_outlines(figure, masks)
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    return figure


def share_bars(summary: Any, title: str = "") -> Figure:
    """Share of the attention to the picture by object, a bar a policy with its interval, and the object's
    share of the picture as a mark.

    Args:
        summary: pandas table of `grounding.summarise`.
    """
    rest, summary = summary[summary["thing"] == REST], summary[summary["thing"] != REST]
    policies, things = (
        list(dict.fromkeys(summary["policy"])),
        [thing for thing in THINGS if thing in set(summary["thing"])],
    )
    colour, step = colours(policies), 0.8 / len(policies)
    with canvas(7.2, 3.4) as (figure, (axes,)):
        for row in summary.itertuples():
            x = things.index(row.thing) + (policies.index(row.policy) - (len(policies) - 1) / 2) * step
            axes.bar(x, row.share, step * 0.86, color=colour[row.policy], alpha=0.85)
            if np.isfinite(row.low):
                axes.errorbar(
                    x,
                    row.share,
                    yerr=[[row.share - max(row.low, 0)], [row.high - row.share]],
                    color=INK,
                    linewidth=1,
                    capsize=2.5,
                )
            axes.plot(
                [x - step * 0.43, x + step * 0.43],
                [row.area] * 2,
                color=INK,
                linewidth=1.6,
                linestyle=(0, (1.5, 1)),
            )
            text = f"x{row.ratio:.2f}" if np.isfinite(row.ratio) else "hidden"
            axes.annotate(
                text,
                (x, 0),
                (0, -4),
                textcoords="offset points",
                ha="center",
                va="top",
                fontsize=7.5,
                color=MUTED,
            )
        axes.set_xticks(range(len(things)), [THING_LABELS.get(thing, thing) for thing in things])
        axes.tick_params(axis="x", pad=14)
        axes.grid(axis="x", visible=False)
        top = np.nanmax([summary["share"].max(), summary["high"].max(), summary["area"].max()])
        axes.set_ylim(0, float(top) * 1.08)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylabel("share of image attention")
        others = ", ".join(f"{row.share:.0%} ({label(row.policy)})" for row in rest.itertuples())
        line = (
            "dotted: the object's share of the area, which even attention scores; below: share / "
            f"area\neverything else: {others}"
        )
        axes.set_title(f"{title}\n{line}" if title else line, fontweight="normal", fontsize=8, color=MUTED)
        name_policies(figure, colour)
    return figure


def scale_top(heats: Sequence[Array]) -> float:
    """End of a scale for `heats` (multiples of even attention, a patch or a pixel each): a power of two, so
    that it stays put while a slider moves.

    It holds 98 % of the values: one patch that takes thirty times its share would leave all others dark. The
    colour bar's arrow says so.
    """
    return float(
        2.0 ** np.ceil(np.log2(max(LARGEST, float(np.quantile(np.stack(heats), 0.98, method="higher")))))
    )


def _name_outlines(figure: Figure, masks: Mapping[str, Array]) -> None:
    handles = [
        Line2D([], [], color=OUTLINES[name], linewidth=2, label=THING_LABELS[name])
        for name in THINGS
        if name in masks
    ]
    if handles:
        figure.legend(
            handles=handles, loc="outside lower left", ncols=len(handles), fontsize=8, handlelength=1.2
        )
