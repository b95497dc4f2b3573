"""All variants of the scene on one sheet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from numpy.typing import NDArray

from refinevla_kit.figures.saving import DPI
from refinevla_kit.figures.style import canvas, label


def variant_sheet(images: Mapping[str, Mapping[str, NDArray[Any]]]) -> Figure:
    """One row a variant, one column a task.

    Args:
        images: variant -> task -> uint8 (H, W, 3), the same tasks in each.
    """
    tasks = list(next(iter(images.values())))
    height, width, _ = images[next(iter(images))][tasks[0]].shape
    wide, tall = width / DPI, height / DPI  # a pixel of the figure for each of the pictures
    with canvas(
        (wide + 0.04) * len(tasks) + 1.0, (tall + 0.04) * len(images) + 0.25, len(images), len(tasks)
    ) as (figure, axes):
        figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
        for number, (variant, row) in enumerate(images.items()):
            for column, task in enumerate(tasks):
                ax = axes[number * len(tasks) + column]
                ax.imshow(row[task], interpolation="nearest")
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(False)
                if number == 0:
                    ax.set_title(label(task), fontsize=6.5)
                if column == 0:
                    ax.set_ylabel(variant.replace("_", " "), rotation=0, ha="right", va="center", fontsize=7)
    return figure
