"""Draws figures/variants.png: every variant of the four WidowX tasks from one start.

python scripts/variant_pictures.py [embedded | official | FOLDER] [figures/variants]
"""

from __future__ import annotations

import sys

from refinevla_kit.figures.saving import save_figure
from refinevla_kit.figures.variants import variant_sheet
from refinevla_kit.simulator import make
from refinevla_kit.tasks import VARIANT_AGGREGATION, WIDOWX_TASKS

EPISODE = 5


def main(assets: str = "embedded", output: str = "figures/variants") -> None:
    images: dict[str, dict[str, object]] = {}
    for variant in WIDOWX_TASKS[0].protocol(VARIANT_AGGREGATION).variants:
        for task in WIDOWX_TASKS:
            simulator = make(task, assets, 160, 120, setting=VARIANT_AGGREGATION, variant=variant.name)
            images.setdefault(variant.name, {})[task.name] = simulator.reset(EPISODE).image
            simulator.close()
    print(
        save_figure(
            variant_sheet(images),
            output,
            {"assets": assets, "episode": EPISODE, "setting": VARIANT_AGGREGATION},
        )
    )  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
