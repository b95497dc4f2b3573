"""The one-page picture shows the three pictures it was given, whole and undistorted."""

from pathlib import Path

import numpy as np
from PIL import Image

from refinevla_kit.figures.paper_figures import overview


def test_three_pictures_with_their_proportions(tmp_path: Path) -> None:
    sizes = {"a": (300, 400), "b": (800, 200), "c": (600, 260)}
    for name, size in sizes.items():
        Image.fromarray(np.full((size[1], size[0], 3), 90, np.uint8)).save(tmp_path / f"{name}.png")
    figure = overview(*(tmp_path / f"{name}.png" for name in sizes))
    shown = [axes.images[0] for axes in figure.axes]
    assert [image.get_array().shape[:2] for image in shown] == [
        (height, width) for width, height in sizes.values()
    ]
    assert all(axes.get_aspect() == 1 for axes in figure.axes)
