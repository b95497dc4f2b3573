"""A view in the browser: drawn there, so that a slider sends numbers and no pixels but the camera's, and a
patch's value can be read by pointing.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets
from matplotlib import colormaps
from PIL import Image

from refinevla_kit.attention.grounding import REST
from refinevla_kit.figures.overlays import (
    HEAT,
    OUTLINES,
    SHOWN,
    THING_LABELS,
    View,
    check_view,
    found_shares,
    peak,
    scale_end,
)
from refinevla_kit.figures.style import INK, colours, label
from refinevla_kit.simulator.contract import Array

WHOLE = "the attention to the picture"
Texts = Mapping[str, tuple[str, tuple[int, int]]]


def script() -> str:
    """The JavaScript that draws a view: `mount(element)` gives an object with `show(view)`."""
    table = (255 * np.asarray(colormaps[HEAT](np.linspace(0, 1, 256)))[:, :3]).round().astype(int)
    return f"const LUT = {table.ravel().tolist()};\n" + (Path(__file__).parent / "picture.js").read_text(
        encoding="utf-8"
    )


class Picture(anywidget.AnyWidget):  # type: ignore[misc]  # anywidget's base has no type hints
    """Shows `view`, which `payload` makes."""

    _esm = (
        script()
        + """
    function render({ model, el }) {
      const picture = mount(el), show = () => model.get("view").image && picture.show(model.get("view"));
      model.on("change:view", show);
      show();
      return () => model.off("change:view", show);
    }
    export default { render };
    """
    )
    view = traitlets.Dict().tag(sync=True)


def payload(view: View, texts: Texts | None = None) -> dict[str, Any]:
    """`view` as JSON values, as picture.js draws it.

    Args:
        texts: policy -> (a rationale, the part of it to mark).

    Raises:
        KitError: masks or maps that do not belong to the picture, or masks that overlap.
    """
    check_view(view)
    colour = colours([*view.maps])
    heats = {
        name: np.asarray(one, np.float64) / max(float(np.mean(one)), 1e-12) for name, one in view.maps.items()
    }
    panels: list[dict[str, Any]] = []
    for name, heat in heats.items():
        best = peak(view.maps[name], view.masks)
        at = {
            "name": label(name),
            "colour": colour[name],
            "rows": heat.shape[0],
            "columns": heat.shape[1],
            "heat": _numbers(heat),
        }
        panels.append(at | {"peak": [best.row, best.column], "note": str(best)})
    area, found = found_shares(view) if view.maps else ({}, {})
    rows: list[dict[str, Any]] = []
    for thing in (thing for thing in SHOWN if thing in area):
        values = [one[thing] for one in found.values()]
        rows.append(
            {"label": THING_LABELS[thing], "colour": OUTLINES[thing], "area": area[thing], "values": values}
        )
    end = scale_end([part for row in rows for part in (row["area"], *row["values"])])
    plots = [
        vars(plot) | {"lines": [vars(line) | {"values": _numbers(line.values)} for line in plot.lines]}
        for plot in view.plots
    ]
    whole = WHOLE if view.measure == "attention" else f"{view.measure} of the picture"
    return {
        "title": view.title,
        "detail": view.detail,
        "unit": view.unit,
        "whole": whole,
        "height": view.image.shape[0],
        "width": view.image.shape[1],
        "image": data_uri(view.image),
        "outlines": outlines(view.masks) if view.outlines else [],
        "opacity": view.opacity,
        "top": view.top,
        "panels": panels,
        "shares": {"things": rows, "end": end, "rest": [one[REST] for one in found.values() if REST in one]},
        "plots": plots,
        "steps": np.asarray(view.steps).tolist(),
        "now": view.now,
        "texts": [
            marked(name, text, span, colour.get(name, INK)) for name, (text, span) in (texts or {}).items()
        ],
    }


def marked(name: str, text: str, span: tuple[int, int], colour: str) -> dict[str, str]:
    """A policy's text with the part to mark."""
    return {
        "name": label(name),
        "colour": colour,
        "before": text[: span[0]],
        "marked": text[slice(*span)],
        "after": text[span[1] :],
    }


def data_uri(image: Array, largest: int = 320 * 240) -> str:
    """uint8 (H, W, 3) as an address that holds the picture: PNG, exact, up to `largest` pixels; a JPEG of
    high quality above.
    """
    packed = io.BytesIO()
    kind = "png" if image.shape[0] * image.shape[1] <= largest else "jpeg"
    Image.fromarray(np.ascontiguousarray(image)).save(packed, kind, compress_level=3, quality=92)
    return f"data:image/{kind};base64,{base64.b64encode(packed.getvalue()).decode()}"


def outlines(masks: Mapping[str, Array]) -> list[dict[str, str]]:
    """Colour and SVG path of each mask's edges, in pixels of the picture."""
    return [
        {"colour": OUTLINES.get(name, INK), "path": edge_path(mask)}
        for name, mask in masks.items()
        if name != REST and np.any(mask)
    ]


def edge_path(mask: Array) -> str:
    """The borders between a mask, bool (H, W), and what is not in it (the picture's own border apart) as an
    SVG path of straight runs.
    """
    mask, parts = np.asarray(mask, bool), list[str]()
    for across, cells in ((True, mask), (False, mask.T)):
        edges = np.zeros((cells.shape[0], cells.shape[1] + 2), np.int8)
        edges[1:, 1:-1] = cells[1:] != cells[:-1]  # between row i - 1 and row i
        for row, start, end in _runs(edges):
            parts.append(f"M{start} {row}H{end}" if across else f"M{row} {start}V{end}")
    return "".join(parts)


def _runs(edges: Array) -> list[tuple[int, int, int]]:
    """(row, first, end) of each run of ones; the first and last column of `edges` are zeros."""
    change = np.diff(edges.astype(np.int8), axis=1)
    rows, starts = np.nonzero(change == 1)
    ends = np.nonzero(change == -1)[1]
    return list(zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True))


def _numbers(values: Array) -> list[float | None]:
    """Five digits each, None for NaN: JSON has none."""
    return [
        None if np.isnan(value) else float(f"{value:.5g}") for value in np.asarray(values, np.float64).ravel()
    ]
