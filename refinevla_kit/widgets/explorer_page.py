"""The explorer as a page: everything that it shows as JSON values, and one HTML file around them.

`page_state` and explorer.js are the notebook's widget and the saved page alike; the page needs no kernel, no
server and no network. Attention is kept as 16-bit integers under each row's largest value. A value read
from the page is off by 1/131,000 of that largest at most.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image

from refinevla_kit import __version__
from refinevla_kit.attention.grounding import REST, areas, to_patches
from refinevla_kit.errors import KitError, checked_integer
from refinevla_kit.figures.overlays import (
    ENDS,
    EVEN,
    HEAT,
    LARGEST,
    OUTLINES,
    SHOWN,
    THING_LABELS,
    Plot,
    View,
    check_view,
)
from refinevla_kit.figures.style import FORMATS, INK, colours, label
from refinevla_kit.files import plain_number, replacing
from refinevla_kit.simulator.contract import Array
from refinevla_kit.widgets.exploration import ATTENTION, KIND_LABELS, Exploration

SCRIPT = Path(__file__).with_name("explorer.js").read_text(encoding="utf-8")
LARGEST_PAGE, EASY_PAGE = 100e6, 25e6  # bytes that a browser opens still, and that go by mail
EACH_HEAD, MEAN, NOTHING = "heads", "mean", "nothing"  # how much of the attention lies in the page
STEPS = 65535
PAGE = "html"
FOOTER = (
    f"Made by the ReFineVLA kit {__version__}. Attention shows where information is read; it does not prove "
    "that the action depends on it."
)


def write_page(
    path: str | Path,
    exploration: Exploration,
    choice: Mapping[str, Any],
    heads: bool | None = None,
    every: int | None = None,
) -> Path:
    """Write the page. Returns its path.

    Args:
        choice: shown first, see `AttentionExplorer`.
        heads: keep each head; False keeps their mean alone, a fraction of the size; None keeps them where
            that is less than `EASY_PAGE`.
        every: keep each n-th frame; None keeps as many as `LARGEST_PAGE` holds.

    Raises:
        KitError: `every` is less than 1, or the page would be larger than `LARGEST_PAGE`.
    """
    frames = len(exploration.frames)
    for nth in range(1, frames + 1) if every is None else [checked_integer(every, "every", 1)]:
        kept = range(0, frames, nth)
        size = head_bytes(exploration, kept)
        if heads is None:
            heads = exploration.heads * size <= EASY_PAGE
        size *= exploration.heads if heads else 1
        if size <= LARGEST_PAGE:
            break
    else:
        what = f"the page would hold {size / 1e6:.0f} MB of attention, at most {LARGEST_PAGE / 1e6:.0f} MB is"
        remedy = "give heads=False, a larger every=, fewer frames or fewer kinds of queries"
        raise KitError(f"{what} written", remedy)
    shown = {**choice, "method": ATTENTION}  # a page can compute no other
    if not heads:
        shown["head"] = MEAN
    if nth > 1:
        shown["step"] = 0
    page = page_html(page_state(exploration, EACH_HEAD if heads else MEAN, kept), shown)
    with replacing(Path(path)) as part:
        part.write_text(page, encoding="utf-8")
    return Path(path)


def page_html(state: Mapping[str, Any], choice: Mapping[str, Any]) -> str:
    """The page as text. Whatever policies, instructions and rationales say stays text in it."""
    store = json.dumps(
        [state, choice], ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=plain_number
    )
    store = store.replace("<", "\\u003c")  # "</script>" and "<!--" would end or hide the rest of the page
    names = ", ".join(policy["name"] for policy in state["policies"]) or state["frames"][0]["title"]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Where they look: {escape(names)}</title>
<style>body {{ margin: 16px auto; max-width: 1140px; padding: 0 12px; background: white }}</style>
</head>
<body>
<main id="explorer"></main>
<script type="application/json" id="store">{store}</script>
<script type="module">
{SCRIPT}
const [state, choice] = JSON.parse(document.getElementById("store").textContent);
window.explorer = mountExplorer(document.getElementById("explorer"), state, choice);
</script>
</body>
</html>
"""


def head_bytes(exploration: Exploration, kept: Sequence[int]) -> float:
    """How much a page with one head of the kept frames holds; 4/3 for base64."""
    captures = [captures[index] for captures in exploration.captures.values() for index in kept]
    rows = [(capture.patches[:, 0, :, 0].size, capture.patches.shape[-1]) for capture in captures]
    return sum(number * (2 * patches + 4) for number, patches in rows) * 4 / 3


def page_state(exploration: Exploration, held: str, kept: Sequence[int]) -> dict[str, Any]:
    """What explorer.js reads, as JSON values.

    Args:
        held: how much of the attention is in it: `EACH_HEAD`, `MEAN` or `NOTHING`. For more than that, the
            kernel is asked.
        kept: numbers of the frames.
    """
    colour, commentary = colours([*exploration.captures]), exploration.commentary
    policies = []
    checkpoints = []
    for name, captures in exploration.captures.items():
        policies.append({"key": name, "name": label(name), "colour": colour[name]})
        checkpoints.append(f"{label(name)}: checkpoint {captures[0].checkpoint_hash or 'unknown'}. ")
    speaker = commentary.policy if commentary else ""
    return {
        "policies": policies,
        "layers": exploration.layers,
        "heads": exploration.heads,
        "held": held,
        "rows": exploration.grid[0],
        "columns": exploration.grid[1],
        "methods": exploration.methods,
        "kinds": KIND_LABELS,
        "things": {thing: {"label": THING_LABELS[thing], "colour": OUTLINES[thing]} for thing in SHOWN},
        "unit": EVEN,
        "least": LARGEST,
        "ends": ENDS,
        "heat": (255 * colormaps[HEAT](np.linspace(0, 1, 256))[:, :3]).round().astype(int).ravel().tolist(),
        "forms": [*FORMATS, PAGE],
        "fedAll": "rationale fed to each policy",
        "speaker": {"name": label(speaker), "colour": colour.get(speaker, INK)},
        "writes": commentary is not None,
        "plots": [_plot(plot, kept) for plot in commentary.plots] if commentary else [],
        "frames": [_frame(exploration, index, held) for index in kept],
        "footer": "".join(checkpoints) + FOOTER,
    }


def _frame(exploration: Exploration, index: int, held: str) -> dict[str, Any]:
    frame, commentary = exploration.frames[index], exploration.commentary
    seen = {}
    for name, captures in exploration.captures.items():
        capture = captures[index]
        groups = [vars(group) for group in exploration.groups[name][index].values()]
        seen[name] = {"groups": groups, "text": capture.rationale, "count": len(capture.queries)}
        if held != NOTHING:
            seen[name] |= packed(capture.patches if held == EACH_HEAD else capture.patches.mean(1))
    state = {
        "index": index,
        "episode": frame.episode,
        "step": frame.step,
        "title": exploration.title(index),
        "note": commentary.notes[index] if commentary else "",
        "text": commentary.texts[index] if commentary else "",
        "seen": seen,
    }
    try:
        check_view(View(frame.image, {}, frame.masks))
        sizes = areas(frame.masks) if frame.masks else {}
    except KitError as error:  # the other frames can be looked at all the same
        return state | {"error": str(error)}
    cover = {}
    for thing, mask in frame.masks.items():
        parts = to_patches(mask, exploration.grid).ravel() if exploration.captures else np.zeros(0)
        cover[thing] = {"area": sizes[thing], "part": np.round(parts, 5).tolist()}
    outlines = [
        {"colour": OUTLINES.get(thing, INK), "path": edge_path(mask)}
        for thing, mask in frame.masks.items()
        if thing != REST and np.any(mask)
    ]
    height, width = frame.image.shape[:2]
    picture = {"image": data_uri(frame.image), "height": height, "width": width}
    return state | picture | {"outlines": outlines, "cover": cover}


def _plot(plot: Plot, kept: Sequence[int]) -> dict[str, Any]:
    """A plot as JSON values: five digits, None for NaN."""
    lines = []
    for line in plot.lines:
        values = [None if np.isnan(value) else float(f"{value:.5g}") for value in line.values[[*kept]]]
        lines.append(vars(line) | {"values": values})
    return vars(plot) | {"lines": lines}


def packed(maps: Array) -> dict[str, str]:
    """float (..., patches), not negative -> {"largest": float32 of each row, "values": uint16 in `STEPS` of
    it}, as base64, little-endian.
    """
    largest = np.asarray(maps.max(-1, keepdims=True), "<f4")
    values = np.round(maps / np.maximum(largest, 1e-30) * STEPS).astype("<u2")
    arrays = {"largest": largest, "values": values}
    return {name: base64.b64encode(array.tobytes()).decode() for name, array in arrays.items()}


def data_uri(image: Array) -> str:
    """uint8 (H, W, 3) as an address that holds the picture: PNG, exact, up to 320 x 240; a JPEG of
    high quality above.
    """
    file = io.BytesIO()
    kind = "png" if image.shape[0] * image.shape[1] <= 320 * 240 else "jpeg"
    Image.fromarray(np.ascontiguousarray(image)).save(file, kind, compress_level=3, quality=92)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def edge_path(mask: Array) -> str:
    """The borders of a mask, bool (H, W), as an SVG path of straight runs.

    The picture's own border is left out.
    """
    mask = np.asarray(mask, bool)
    parts = []
    for across, cells in ((True, mask), (False, mask.T)):
        edges = np.zeros((cells.shape[0], cells.shape[1] + 2), np.int8)
        edges[1:, 1:-1] = cells[1:] != cells[:-1]  # between row i - 1 and row i
        change = np.diff(edges, axis=1)
        rows, starts = np.nonzero(change == 1)
        ends = np.nonzero(change == -1)[1]
        for row, start, end in zip(rows, starts, ends, strict=True):
            parts.append(f"M{start} {row}H{end}" if across else f"M{row} {start}V{end}")
    return "".join(parts)
