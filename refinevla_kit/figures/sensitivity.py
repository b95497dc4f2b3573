"""The paper's Figure 8: success against what was varied in training."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from refinevla_kit.errors import as_kit_error
from refinevla_kit.evaluation.intervals import Rate
from refinevla_kit.evaluation.records import EpisodeRecord, load_records
from refinevla_kit.evaluation.training_seeds import WEIGHT, Arms, arms_of, sweep
from refinevla_kit.figures.style import (
    DASHED,
    MUTED,
    beside_each_other,
    canvas,
    colours,
    name_policies,
    per_cent,
)
from refinevla_kit.files import read_json
from refinevla_kit.tasks import VISUAL_MATCHING

FACTORS = {  # title and x axis
    WEIGHT: ("weight of the reasoning loss", "lambda"),
    "freeze_layers": ("selective transfer", "frozen language layers"),
    "share": ("fine-tuning data", "share of the demonstrations"),
}
PAPERS_WEIGHT = 0.3  # of the reasoning loss, where the paper has its peak
Lines = Mapping[str, Sequence[tuple[float, Rate]]]  # policy's name -> its points (x, rate)


def sweeps(records: Sequence[EpisodeRecord], arms: Arms) -> dict[str, Lines]:
    """What was varied, of `FACTORS` -> `training_seeds.sweep`, where that has more than the main comparison's
    own value.

    Args:
        records: of one setting.
        arms: see `sweep`.
    """
    found = {factor: sweep(records, arms, factor) for factor in FACTORS}
    return {
        factor: lines
        for factor, lines in found.items()
        if max(map(len, lines.values()), default=0) > (2 if factor == WEIGHT else 1)
    }


def of_experiment(folder: Path, claims: Mapping[str, str]) -> Figure | None:
    """`sensitivity` of an experiment's records and study in a folder; None where it varied nothing."""
    remedy = "give the folder with its records.parquet and study.json"
    with as_kit_error(f"{folder} is no experiment", remedy, (OSError, ValueError)):
        study = read_json(folder / "study.json")
    records = [record for record in load_records(folder) if record.setting == VISUAL_MATCHING]
    varied = sweeps(records, arms_of(study))
    return sensitivity(varied, claims) if varied else None


def sensitivity(varied: Mapping[str, Lines], claims: Mapping[str, str] | None = None) -> Figure:
    """Success against what was varied, one panel each; bars are 95 % intervals with the checkpoints as they
    are.

    Args:
        varied: from `sweeps`.
        claims: factor -> what the paper says about it.
    """
    colour = colours(name for lines in varied.values() for name in lines)
    with canvas(max(4.2, 3.3 * len(varied)), 3.2, columns=len(varied), sharey=True) as (figure, panels):
        for axes, (factor, lines) in zip(panels, varied.items(), strict=True):
            values = sorted({x for line in lines.values() for x, _ in line})
            step = 0.06 * min([b - a for a, b in pairwise(values)], default=1.0)
            shifts = beside_each_other(lines, step * len(lines))
            for name, line in lines.items():
                places, rates, low, high = np.transpose([(x, *rate.bounded) for x, rate in line])
                reach = np.abs([low - rates, high - rates])
                axes.errorbar(places + shifts[name], rates, reach, fmt="o-", color=colour[name], markersize=5)
            if factor == WEIGHT:
                axes.axvline(PAPERS_WEIGHT, color=MUTED, linewidth=1.0, linestyle=DASHED)
            axes.text(
                0.03,
                0.98,
                (claims or {}).get(factor, ""),
                transform=axes.transAxes,
                va="top",
                fontsize=8,
                color=MUTED,
                bbox={"color": "white", "pad": 1.0},
            )
            title, about = FACTORS[factor]
            axes.set_title(title)
            axes.set_xlabel(about)
            axes.set_xticks(values, [f"{value:g}" for value in values])
            axes.set_ylim(-0.02, 1.02)
        per_cent(panels[0].yaxis)
        panels[0].set_ylabel("success, average of the tasks")
        name_policies(figure, colour)
    return figure
