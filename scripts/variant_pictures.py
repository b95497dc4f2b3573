"""Draws every variant from one start: figures/variants.png for the WidowX's tasks, and for one of each kind
of the Google Robot's figures/google_robot_variants.png.

python -m scripts.variant_pictures [embedded | official | FOLDER] [FOLDER OF FIGURES] [TASK OR GROUP ...]
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.figure import Figure

from refinevla_kit.figures.style import DPI, canvas, label, save_figure
from refinevla_kit.simulator import make
from refinevla_kit.tasks import (
    CAMERA_SIZES,
    GOOGLE_TASKS,
    SETTINGS,
    VISUAL_MATCHING,
    WIDOWX_TASKS,
    Task,
    find_tasks,
)

EPISODE = 5
SHOWN = ("horizontal_coke_can", "move_near", "open_middle_drawer", "close_top_drawer", "place_apple")


def variant_sheet(images: Mapping[str, Mapping[str, Any]]) -> Figure:
    """One row a variant, one column a task.

    Args:
        images: variant -> task -> uint8 (H, W, 3), all of one size; a task without a variant has a blank.
    """
    tasks = list(dict.fromkeys(task for row in images.values() for task in row))
    height, width, _ = next(iter(next(iter(images.values())).values())).shape
    # a pixel of the figure for each of the pictures
    across = (width / DPI + 0.04) * len(tasks) + 1.0
    down = (height / DPI + 0.04) * len(images) + 0.35
    with canvas(across, down, len(images), len(tasks)) as (figure, axes):
        figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
        for number, (variant, row) in enumerate(images.items()):
            for column, task in enumerate(tasks):
                ax = axes[number * len(tasks) + column]
                if task in row:
                    ax.imshow(row[task], interpolation="nearest")
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(False)
                if number == 0:
                    ax.set_title(fill(label(task), 15), fontsize=6.5)
                if column == 0:
                    name = variant.replace("_", " ")
                    ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=7)
    return figure


def first_pictures(tasks: Sequence[Task], settings: Sequence[str], assets: str) -> dict[str, dict[str, Any]]:
    """Variant -> task -> what the camera sees first, a quarter of its size."""
    images: dict[str, dict[str, Any]] = {}
    for task in tasks:
        width, height = (side // 4 for side in CAMERA_SIZES[task.robot])
        for setting in settings:
            matching = " (photograph)" if setting == VISUAL_MATCHING else ""
            for variant in task.protocol(setting).variants:
                simulator = make(task, assets, width, height, setting=setting, variant=variant.name)
                images.setdefault(variant.name + matching, {})[task.name] = simulator.reset(EPISODE).image
                simulator.close()
    return images


def main(assets: str = "embedded", folder: str = "figures", *names: str) -> None:
    chosen = [task for name in names for task in find_tasks(name)]
    google = [task for task in GOOGLE_TASKS if any(word in task.name for word in SHOWN)]
    sheets = (
        ("variants", [task for task in chosen or WIDOWX_TASKS if task in WIDOWX_TASKS], SETTINGS[1:]),
        ("google_robot_variants", [task for task in chosen or google if task in GOOGLE_TASKS], SETTINGS),
    )
    for name, tasks, settings in sheets:
        if tasks:
            made_from = {"assets": assets, "episode": EPISODE, "setting": " and ".join(settings)}
            images = first_pictures(tasks, settings, assets)
            print(save_figure(variant_sheet(images), Path(folder) / name, made_from))


if __name__ == "__main__":
    main(*sys.argv[1:])
