"""A run on one page: what the teacher wrote, where the policies look, how often they succeed."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.image import imread

from refinevla_kit.figures.style import canvas


def overview(rationales: str | Path, overlays: str | Path, success: str | Path) -> Figure:
    """Three pictures that notebooks 1, 4 and 3 saved (PNG), put together: rationales at the left, attention
    above success at the right.
    """
    with canvas(16, 8.2) as (figure, (only,)):
        only.remove()
        grid = GridSpec(2, 2, figure=figure, width_ratios=(6, 10), height_ratios=(37, 63))
        _show(
            figure.add_subplot(grid[:, 0]),
            rationales,
            "A teacher explains each piece of the robot's trajectory",
        )
        _show(
            figure.add_subplot(grid[0, 1]),
            overlays,
            "Where each action token looks, with the simulator's own outlines",
        )
        _show(figure.add_subplot(grid[1, 1]), success, "How often each policy succeeds, and how sure that is")
    return figure


def _show(axes: Axes, picture: str | Path, title: str) -> None:
    axes.imshow(imread(picture), interpolation="antialiased")
    axes.set_axis_off()
    axes.set_anchor("NW")
    axes.set_title(title, fontsize=11)
