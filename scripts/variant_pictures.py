"""Draws figures/variants.png: every variant of the four WidowX tasks from one start.

python scripts/variant_pictures.py [embedded | official | FOLDER] [figures/variants]
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from refinevla_kit.figures.style import DPI, canvas, label, save_figure
from refinevla_kit.simulator import make
from refinevla_kit.tasks import VARIANT_AGGREGATION, WIDOWX_TASKS

EPISODE = 5


def variant_sheet(images: Mapping[str, Mapping[str, Any]]) -> Figure:
    """One row a variant, one column a task.

    Args:
        images: variant -> task -> uint8 (H, W, 3), the same tasks in each.
    """
    first = next(iter(images.values()))
    tasks = list(first)
    height, width, _ = first[tasks[0]].shape
    # a pixel of the figure for each of the pictures
    across = (width / DPI + 0.04) * len(tasks) + 1.0
    down = (height / DPI + 0.04) * len(images) + 0.25
    with canvas(across, down, len(images), len(tasks)) as (figure, axes):
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
                    name = variant.replace("_", " ")
                    ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=7)
    return figure


def main(assets: str = "embedded", output: str = "figures/variants") -> None:
    images: dict[str, dict[str, Any]] = {}
    for variant in WIDOWX_TASKS[0].protocol(VARIANT_AGGREGATION).variants:
        for task in WIDOWX_TASKS:
            simulator = make(task, assets, 160, 120, setting=VARIANT_AGGREGATION, variant=variant.name)
            images.setdefault(variant.name, {})[task.name] = simulator.reset(EPISODE).image
            simulator.close()
    made_from = {"assets": assets, "episode": EPISODE, "setting": VARIANT_AGGREGATION}
    print(save_figure(variant_sheet(images), output, made_from))


if __name__ == "__main__":
    main(*sys.argv[1:])
