"""How soon the attention explorer shows what a slider chose.

    python benchmarks/explorer.py [--moves 60]

A move is measured in the saved page, whose code and numbers are those of the notebook's widget: from the new
choice until Chromium has painted it, the wait for two frames of the screen included. No move asks the kernel.
Random attention of the shape of the shipped checkpoints, two policies, one episode of 30 frames. Prints the
milliseconds, median (largest), and one JSON object. Needs Chromium (`make browser`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path

import numpy as np

from refinevla_kit.attention.captured import Capture, Frame, Query
from refinevla_kit.episodes.contract import ACTION_NAMES
from refinevla_kit.policies.contract import Action
from refinevla_kit.widgets import AttentionExplorer

LAYERS, HEADS, GRID, SIZE, FRAMES, WORDS = 5, 4, (6, 8), (120, 160), 30, 60
PAINTED = """async (moves) => {
    const frame = () => new Promise(requestAnimationFrame), times = [];
    for (let i = 0; i < moves; i++) {
        const began = performance.now();
        const { choice, state } = explorer;
        await explorer.choose({ ...choice, step: (choice.step + 1) % state.frames.length });
        await frame(); await frame();
        times.push(performance.now() - began);
    }
    return times;
}"""


def frame(step: int, random: np.random.Generator) -> Frame:
    masks = {name: np.zeros(SIZE, bool) for name in ("source", "target", "gripper", "arm")}
    for i, mask in enumerate(masks.values()):
        mask[25 * i : 25 * i + 20, 40 + step : 80 + step] = True
    return Frame(
        random.integers(0, 256, (*SIZE, 3), dtype=np.uint8),
        masks,
        "put carrot on plate",
        "widowx_carrot_on_plate",
        0,
        step,
        "reach",
    )


def capture(name: str, random: np.random.Generator) -> Capture:
    said = [(each, "action") for each in ACTION_NAMES] + [(f"word{i}", "rationale") for i in range(WORDS)]
    rows = random.random((LAYERS, HEADS, len(said), GRID[0] * GRID[1])).astype(np.float32) / 48
    queries = tuple(Query(word, kind, (i,), (i,)) for i, (word, kind) in enumerate(said))
    text = " ".join(word for word, kind in said if kind == "rationale")
    return Capture(
        rows,
        1 - rows.sum(-1, keepdims=True),
        ("rest",),
        0,
        queries,
        GRID,
        Action(*[np.zeros(7, np.float32)] * 4),
        name,
        name,
        text,
    )


def painted(explorer: AttentionExplorer, moves: int, chromium: str) -> list[float]:
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = opened.new_page(viewport={"width": 1250, "height": 900})
        page.goto(explorer.export(Path(folder) / "explorer.html").as_uri())
        times: list[float] = page.evaluate(PAINTED, moves)
        opened.close()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moves", type=int, default=60)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit(
            "explorer: no Chromium on this machine -> run `make browser` as root, or install the "
            "package chromium"
        )
    moves, random = parser.parse_args().moves, np.random.default_rng(0)
    frames = [frame(step, random) for step in range(FRAMES)]
    explorer = AttentionExplorer(
        frames, {name: [capture(name, random) for _ in frames] for name in ("action_only", "with_reasoning")}
    )
    times = painted(explorer, moves, chromium)
    print(f"{statistics.median(times):.1f} ({max(times):.1f}) ms a move, {len(times)} moves")
    print(
        json.dumps({"benchmark": "explorer", "median_ms": statistics.median(times), "largest_ms": max(times)})
    )


if __name__ == "__main__":
    main()
