"""How soon the attention explorer shows what a slider chose.

    python benchmarks/explorer.py [--moves 60]

Two times make up a move: "kernel" from the slider's new value until the numbers are ready to be sent (what
the notebook's widget does), and "browser" from those numbers until Chromium has painted them (measured on the
exported page, which draws with the same code; it includes the wait for two frames of the screen). What
JupyterLab takes to carry about 50 kB in between is not in them. Random attention of the shape of the shipped
checkpoints, two policies, one episode of 30 frames. Prints both in milliseconds, median (largest), and one
JSON object. Needs Chromium (`make browser`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from refinevla_kit.attention.captured import Capture, Frame, Query
from refinevla_kit.episodes.contract import ACTION_NAMES
from refinevla_kit.policies.contract import Action
from refinevla_kit.widgets.attention_explorer import AttentionExplorer

LAYERS, HEADS, GRID, SIZE, FRAMES, WORDS = 5, 4, (6, 8), (120, 160), 30, 60
PAINTED = """async (moves) => {
    const frame = () => new Promise(requestAnimationFrame), times = [];
    for (let i = 0; i < moves; i++) {
        const began = performance.now();
        choice.step = (choice.step + 1) % inEpisode(choice.episode).length;
        await picture.show(viewOf(choice));
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


def kernel(explorer: AttentionExplorer, moves: int) -> list[float]:
    times = []
    for move in range(moves):
        began = time.perf_counter()
        explorer.step.value = (move + 1) % FRAMES
        times.append(1000 * (time.perf_counter() - began))
    return times


def browser(explorer: AttentionExplorer, moves: int, chromium: str) -> list[float]:
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
    found = {"kernel": kernel(explorer, moves), "browser": browser(explorer, moves, chromium)}
    for name, times in found.items():
        print(f"{name:<8} {statistics.median(times):7.1f} ({max(times):.1f}) ms a move, {len(times)} moves")
    print(
        json.dumps(
            {
                "benchmark": "explorer",
                **{
                    name: {"median_ms": statistics.median(t), "largest_ms": max(t)}
                    for name, t in found.items()
                },
            }
        )
    )


if __name__ == "__main__":
    main()
