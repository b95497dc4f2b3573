"""Training curves that grow while a policy trains: give it to `fine_tune` or `train_policy` as `watch`.

A thin shell over `figures.training_curves`: one display, whose picture is replaced. Drawing takes time that
training does not have, so it happens at evaluations, and until the end at most once in `pause` seconds.
Without a notebook nothing is shown; `figure` gives the picture all the same.
"""

from __future__ import annotations

import time
from typing import Any

import pandas as pd
from IPython.display import DisplayHandle, Image
from matplotlib.figure import Figure

from refinevla_kit.errors import KitError
from refinevla_kit.figures.style import as_png
from refinevla_kit.figures.training_curves import PANELS, training_curves

LOSSES = {name: title for name, title in PANELS.items() if name.startswith("loss_")}


class LiveCurves:
    """Callable with one row of a training history (see `fine_tune`); several policies may come one after the
    other.

    Args:
        pause: seconds between pictures, at least.
    """

    def __init__(self, pause: float = 2.0) -> None:
        self.rows: list[dict[str, Any]] = []
        self._pause = pause
        self._handle: DisplayHandle | None = None
        self._drawn = -pause

    def __call__(self, row: dict[str, Any]) -> None:
        """Take note of a row; draw at evaluations."""
        self.rows.append(row)
        rested = time.monotonic() - self._drawn >= self._pause
        if row["split"] == "averaged" or (rested and row["split"] != "train"):
            self.draw()

    def again(self) -> LiveCurves:
        """The same curves, to be shown below the cell that asks: the next picture begins a display of its
        own.
        """
        self._handle, self._drawn = None, -self._pause
        return self

    def figure(self) -> Figure:
        """The curves so far, of the losses that any policy has. Raises `KitError` before the first row."""
        if not self.rows:
            raise KitError(
                "there is no training step to draw yet", "train first, with these curves as `watch`"
            )
        frame = pd.DataFrame(self.rows)
        shown = {name: title for name, title in LOSSES.items() if name in frame and frame[name].notna().any()}
        histories = {str(policy): rows for policy, rows in frame.groupby("policy", sort=False)}
        return training_curves(histories, shown)

    def draw(self) -> None:
        """Show the curves so far, in the place of the last picture."""
        picture = Image(data=as_png(self.figure()), width=760)
        if self._handle is None:
            self._handle = DisplayHandle()
            self._handle.display(picture)
        else:
            self._handle.update(picture)
        self._drawn = time.monotonic()
