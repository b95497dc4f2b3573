"""The explorer as one HTML file: the same picture and controls without a kernel, a server or a network; to
send to a reviewer, or beside a paper.

Attention is kept as 16-bit integers under each row's largest value, so a value read from the page is off by
1/131,000 of that row's largest at most.
"""

from __future__ import annotations

import base64
import json
import re
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from refinevla_kit import __version__
from refinevla_kit.attention.grounding import REST, areas, to_patches
from refinevla_kit.errors import KitError
from refinevla_kit.figures.overlays import ENDS, EVEN, LARGEST, OUTLINES, SHOWN, THING_LABELS
from refinevla_kit.figures.style import colours, label
from refinevla_kit.files import replacing
from refinevla_kit.simulator.contract import Array
from refinevla_kit.widgets.exploration import FED_ALL, KIND_LABELS, Exploration, asked, moment_title
from refinevla_kit.widgets.picture import WHOLE, data_uri, outlines, script

LARGEST_PAGE, EASY_PAGE = 100e6, 25e6  # bytes that a browser opens still, and that go by mail
STEPS = 65535


def write_page(
    path: str | Path,
    exploration: Exploration,
    query: str = "",
    layer: int = 0,
    heads: bool | None = None,
    every: int = 1,
) -> Path:
    """Write the page. Returns its path.

    Args:
        query, layer: shown first; layer from 0.
        heads: keep each head; False keeps their mean alone, a fraction of the size; None keeps them where
            that is less than `EASY_PAGE`.
        every: keep each n-th frame.

    Raises:
        KitError: `every` is less than 1, or the page would be larger than `LARGEST_PAGE`.
    """
    if every < 1:
        raise KitError(f"every is {every}", "give 1 for all frames, 2 for each second one")
    kept = range(0, len(exploration.frames), every)
    kept_captures = [found[i] for found in exploration.captures.values() for i in kept]
    bytes_a_head = sum(
        one.patches[:, 0, :, 0].size * (2 * one.patches.shape[-1] + 4) * 4 / 3 for one in kept_captures
    )
    heads = exploration.heads * bytes_a_head <= EASY_PAGE if heads is None else heads
    if (size := bytes_a_head * (exploration.heads if heads else 1)) > LARGEST_PAGE:
        what = (
            f"the page would hold {size / 1e6:.0f} MB of attention, at most {LARGEST_PAGE / 1e6:.0f} MB "
            "is written"
        )
        raise KitError(what, "give heads=False, a larger every=, fewer frames or fewer kinds of queries")
    store = json.dumps(
        _store(exploration, kept, query, layer, heads),
        ensure_ascii=False,
        allow_nan=False,
        separators=(",", ":"),
    )
    title = escape(", ".join(label(name) for name in exploration.captures))
    page = Path(__file__).with_name("explorer_page.html").read_text(encoding="utf-8")
    code = script() + Path(__file__).with_name("explorer_page.js").read_text(encoding="utf-8")
    store = store.replace("<", "\\u003c")  # "</script>" and "<!--" would end or hide the rest of the page
    parts = {"TITLE": title, "VERSION": __version__, "STORE": store, "SCRIPT": code}
    filled = re.sub(
        "|".join(parts), lambda place: parts[place[0]], page
    )  # in one pass: what is filled in is never filled again
    with replacing(Path(path)) as part:
        part.write_text(filled, encoding="utf-8")
    return Path(path)


def _store(exploration: Exploration, kept: range, query: str, layer: int, heads: bool) -> dict[str, Any]:
    """What the page's script reads, as JSON values."""
    colour, first = colours([*exploration.captures]), next(iter(exploration.captures.values()))[0]
    policies = [
        {"key": name, "name": label(name), "colour": colour[name], "hash": found[0].checkpoint_hash}
        for name, found in exploration.captures.items()
    ]
    things = {thing: {"label": THING_LABELS[thing], "colour": OUTLINES[thing]} for thing in SHOWN}
    return {
        "policies": policies,
        "layers": exploration.layers,
        "heads": exploration.heads if heads else 1,
        "allHeads": heads,
        "rows": first.grid[0],
        "columns": first.grid[1],
        "kinds": KIND_LABELS,
        "things": things,
        "unit": EVEN,
        "whole": WHOLE,
        "ends": ENDS,
        "fedAll": FED_ALL,
        "least": LARGEST,
        "query": query,
        "layer": layer,
        "frames": [_frame(exploration, index, heads) for index in kept],
    }


def _frame(exploration: Exploration, index: int, heads: bool) -> dict[str, Any]:
    frame = exploration.frames[index]
    grid = next(iter(exploration.captures.values()))[index].grid
    sizes = areas(frame.masks) if frame.masks else {}
    cover = {
        name: {"area": sizes[name], "part": np.round(to_patches(mask, grid).ravel(), 5).tolist()}
        for name, mask in frame.masks.items()
    }
    seen = {}
    for name, captured in exploration.captures.items():
        one = captured[index]
        maps = one.patches if heads else one.patches.mean(1, keepdims=True)  # layers, heads, Q, patches
        ways = [[way.key, way.kind, way.label, way.said, way.rows, way.span] for way in asked(one).values()]
        seen[name] = {"count": len(one.queries), "asked": ways, "text": one.rationale, **packed(maps)}
    return {
        "episode": frame.episode,
        "step": frame.step,
        "title": moment_title(frame),
        "image": data_uri(frame.image),
        "height": frame.image.shape[0],
        "width": frame.image.shape[1],
        "outlines": outlines(frame.masks),
        "cover": cover,
        "rest": sizes.get(REST),
        "seen": seen,
    }


def packed(maps: Array) -> dict[str, str]:
    """float (..., patches), not negative -> {"largest": float32 of each row, "values": uint16 in `STEPS` of
    it}, as base64, little-endian.
    """
    largest = np.asarray(maps.max(-1, keepdims=True), "<f4")
    values = np.round(maps / np.maximum(largest, 1e-30) * STEPS).astype("<u2")
    return {
        "largest": base64.b64encode(largest.tobytes()).decode(),
        "values": base64.b64encode(values.tobytes()).decode(),
    }
