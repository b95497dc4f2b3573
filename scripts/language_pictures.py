"""Draws the language suite, each sentence with what the camera sees first: figures/language_tasks.png
(WidowX) and figures/google_robot_language_tasks.png.

python -m scripts.language_pictures [embedded | official | FOLDER] [FOLDER OF FIGURES]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.figure import Figure

from refinevla_kit.figures.style import DPI, canvas, save_figure
from refinevla_kit.simulator import make
from refinevla_kit.tasks import BASE, CAMERA_SIZES, SETTINGS, VARIANT_AGGREGATION, Task, find_tasks

COLUMNS = 6
EPISODE = 4
DRESSED = ("more_distractors", "background_1", "table_2", "lighting_darker")
Picture = tuple[str, Any]  # what is written above, uint8 (H, W, 3)


def sheet(pictures: Sequence[Picture]) -> Figure:
    """All of one size, row by row."""
    height, width, _ = pictures[0][1].shape
    rows = -(-len(pictures) // COLUMNS)
    across, down = (width / DPI + 0.06) * COLUMNS, (height / DPI + 0.42) * rows
    with canvas(across, down, rows, COLUMNS) as (figure, axes):
        figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
        for ax in axes:
            ax.set_axis_off()
        for ax, (title, image) in zip(axes, pictures, strict=False):
            ax.imshow(image, interpolation="nearest")
            ax.set_title(fill(title, 26), fontsize=5.5, fontweight="normal")
    return figure


def first_picture(task: Task, assets: str, setting: str, variant: str) -> Picture:
    """What is seen before the first step, a quarter of its size, and the sentence."""
    width, height = (side // 4 for side in CAMERA_SIZES[task.robot])
    simulator = make(task, assets, width, height, setting=setting, variant=variant)
    image = simulator.reset(EPISODE).image
    simulator.close()
    sentence = task.instruction if task.goals else simulator.instruction
    notes = ["held out"] if task.held_out else []
    if variant != BASE:
        notes.append(variant.replace("_", " "))
    return sentence + (f" ({', '.join(notes)})" if notes else ""), image


def main(assets: str = "embedded", folder: str = "figures") -> None:
    shown = [(task, SETTINGS[0], BASE) for task in find_tasks("widowx_language")]
    first = shown[0][0]
    shown += [(first, VARIANT_AGGREGATION, variant) for variant in DRESSED]
    google = find_tasks("google_robot_language")
    sheets = {
        "language_tasks": shown,
        "google_robot_language_tasks": [(task, SETTINGS[0], BASE) for task in google],
    }
    for name, wanted in sheets.items():
        pictures = [first_picture(task, assets, *how) for task, *how in wanted]
        made_from = {"assets": assets, "episode": EPISODE}
        print(save_figure(sheet(pictures), Path(folder) / name, made_from))


if __name__ == "__main__":
    main(*sys.argv[1:])
