"""Training curves of several policies in one picture, with the two panels of the paper's Figure 4: L1 error
and accuracy of the actions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from refinevla_kit.errors import KitError, as_kit_error
from refinevla_kit.figures.style import MUTED, canvas, colours, name_policies

PANELS = {
    "action_l1": "L1 error of the actions",
    "action_accuracy": "accuracy of the action tokens",
    "loss_action": "loss on action tokens",
    "loss_reasoning": "loss on rationale tokens",
}
FIGURE_4 = {name: PANELS[name] for name in ("action_l1", "action_accuracy")}  # the paper's


def load_histories(path: str | Path, names: Collection[str] | None = None) -> dict[str, pd.DataFrame]:
    """Training histories by policy: of one file, or of every `history.jsonl` / `history.parquet` below a
    folder (none there: an empty dictionary).

    Args:
        names: of the policies wanted; None: all there are.

    A history has one row a logged step: columns step, split ("train", "validation", "averaged"), policy and
    any of `PANELS`.

    Raises:
        KitError: no such path, or a file that is not a training history.
    """
    path, remedy = Path(path), "give the history that notebook 02 wrote"
    if not path.exists():
        raise KitError(
            f"no training history at {path}", "run notebook 02, or give the history of another run"
        )
    histories: dict[str, pd.DataFrame] = {}
    for file in sorted(path.rglob("history.*")) if path.is_dir() else [path]:
        with as_kit_error(f"{file} is not a readable training history", remedy, (ValueError, OSError)):
            frame = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_json(file, lines=True)
        if missing := {"step", "split", "policy"} - set(frame.columns):
            raise KitError(f"{file} has no column {', '.join(sorted(missing))}", remedy)
        for policy, rows in frame.groupby("policy", sort=False):
            if str(policy) in histories:
                raise KitError(f"{path} holds several histories of {policy}", "give the folder of one run")
            if names is None or policy in names:
                histories[str(policy)] = rows
    return histories


def training_curves(histories: Mapping[str, pd.DataFrame], panels: Mapping[str, str] | None = None) -> Figure:
    """One panel a quantity, one line a policy. Training thin, validation strong, a diamond the average with
    the base.

    Args:
        histories: policy name -> table from `load_histories`.
        panels: column -> title; default those of `PANELS` that any history has.
    """
    panels = panels or {
        column: title
        for column, title in PANELS.items()
        if any(column in frame and frame[column].notna().any() for frame in histories.values())
    }
    if not panels:
        raise KitError("there is no training history to draw", "give that of a policy that was trained")
    colour = colours(histories)
    held_out = [policy for policy, frame in histories.items() if frame["split"].nunique() > 1]
    with canvas(max(5.0, 2.9 * len(panels)), 3.0, columns=len(panels)) as (figure, all_axes):
        for axes, (column, title) in zip(all_axes, panels.items(), strict=True):
            for policy, frame in histories.items():
                for split, part in frame.dropna(subset=[column]).groupby("split") if column in frame else ():
                    alpha, width = (0.35, 1.0) if split == "train" and policy in held_out else (1.0, 1.9)
                    axes.plot(
                        part["step"],
                        part[column],
                        color=colour[policy],
                        alpha=alpha,
                        linewidth=width,
                        marker="D" if split == "averaged" else None,
                    )
            axes.set_title(title)
            axes.set_xlabel("training step")
            axes.set_ylim(bottom=0)
        if held_out:
            key = "thin: training, strong: held out"
            if any("averaged" in frame["split"].values for frame in histories.values()):
                key += ", diamond: held out, averaged with the base"
            figure.supxlabel(key, x=0.99, ha="right", fontsize=8, color=MUTED)
        name_policies(figure, colour)
    return figure
