"""Frames and captures to explore: random pictures, masks and attention, of a shape small enough to be
compared number by number.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from refinevla_kit.attention.captured import Capture, Frame, Query, image_hash
from refinevla_kit.attention.grounding import REST
from refinevla_kit.episodes.contract import ACTION_NAMES
from refinevla_kit.figures.overlays import OUTLINES, SHOWN, THING_LABELS, View, found_shares, peak, scale_end
from refinevla_kit.figures.style import colours, label
from refinevla_kit.policies.contract import Action
from refinevla_kit.widgets.explorer_page import data_uri

LAYERS, HEADS, GRID = 3, 2, (6, 8)
NAMES = ("action_only", "with_reasoning")
RATIONALE = "The carrot is near. Move to the carrot"
WORDS = ("The", "carrot", "is", "near", "Move", "to", "the", "carrot")


def frame(episode: int, step: int) -> Frame:
    rng = np.random.default_rng([episode, step])
    masks = {name: np.zeros((60, 80), bool) for name in ("source", "target", "gripper", "arm")}
    for i, mask in enumerate(masks.values()):
        mask[10 * i : 10 * i + 8, 10 + step : 30 + step] = True
    return Frame(
        rng.integers(0, 255, (60, 80, 3), dtype=np.uint8),
        masks,
        "put carrot on plate",
        "widowx_carrot_on_plate",
        episode,
        step,
        "reach",
    )


def attention(of: Frame, seed: int, name: str, rationale: str = RATIONALE) -> Capture:
    """Random attention of the seven action dimensions, of the rationale's words and of one word of the
    instruction.
    """
    said = [*ACTION_NAMES, *(word.strip(".") for word in rationale.split()), "put"]
    rows = np.random.default_rng(seed).random((LAYERS, HEADS, len(said), 50)).astype(np.float32)
    rows /= rows.sum(-1, keepdims=True)
    kinds = ["action"] * 7 + ["rationale"] * (len(said) - 8) + ["instruction"]
    queries = tuple(
        Query(word, kind, (49 + i,), (i,)) for i, (word, kind) in enumerate(zip(said, kinds, strict=True))
    )
    action = Action(*[np.zeros(7, np.float32)] * 4)
    about = (action, name, f"hash-{name}", rationale, image_hash(of.image))
    return Capture(rows[..., :48], rows[..., 48:], ("put", "<action>"), 1, queries, GRID, *about)


FRAMES = [frame(0, 0), frame(0, 1), frame(0, 2), frame(4, 0), frame(4, 1)]
CAPTURES = {
    name: [attention(one, 10 * i + k, name) for i, one in enumerate(FRAMES)] for k, name in enumerate(NAMES)
}
CHOICE = {
    "episode": 0,
    "step": 0,
    "query": "action",
    "method": "attention",
    "layer": 2,
    "head": "mean",
    "opacity": 0.9,
    "outlines": True,
}


def without_words(captures: list[Capture]) -> list[Capture]:
    """The same captures, of the action dimensions alone."""
    return [
        replace(
            one,
            patches=one.patches[:, :, :7],
            others=one.others[:, :, :7],
            queries=one.queries[:7],
            rationale="",
        )
        for one in captures
    ]


def numbers(values: np.ndarray) -> list[float | None]:
    """As JSON has them: None for NaN."""
    return [None if np.isnan(value) else float(value) for value in np.asarray(values).ravel()]


def shown(view: View) -> dict[str, Any]:
    """What the page has to draw for a view, from the numbers that the figure for paper has."""
    colour = colours([*view.maps])
    panels = []
    for name, patch_map in view.maps.items():
        brightest = peak(patch_map, view.masks)
        panels.append(
            {
                "name": label(name),
                "colour": colour[name],
                "rows": patch_map.shape[0],
                "columns": patch_map.shape[1],
                "heat": numbers(patch_map / patch_map.mean()),
                "peak": [brightest.row, brightest.column],
                "note": str(brightest),
            }
        )
    area, found = found_shares(view)
    things = []
    for thing in (thing for thing in SHOWN if thing in area):
        values = [share[thing] for share in found.values()]
        named = {"label": THING_LABELS[thing], "colour": OUTLINES[thing]}
        things.append(named | {"area": area[thing], "values": values})
    end = scale_end([part for row in things for part in (row["area"], *row["values"])])
    plots = [
        vars(plot) | {"lines": [vars(line) | {"values": numbers(line.values)} for line in plot.lines]}
        for plot in view.plots
    ]
    return {
        "title": view.title,
        "detail": view.detail,
        "unit": view.unit,
        "whole": "the attention to the picture",
        "height": view.image.shape[0],
        "width": view.image.shape[1],
        "image": data_uri(view.image),
        "opacity": view.opacity,
        "top": view.top,
        "panels": panels,
        "shares": {"things": things, "end": end, "rest": [share[REST] for share in found.values()]},
        "plots": plots,
        "steps": view.steps.tolist(),
        "now": view.now,
    }
