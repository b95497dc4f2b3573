"""Frames a second that training takes, plain and from an activation cache, at each depth of freezing, with
and without a rationale in the sequence.

    python benchmarks/training.py [--steps 8] [--layers 5] [--batch 32] [--deep 26] [--precision fp32]

Whole steps are timed: laying out the batch, forward, backward, clipping, AdamW. "pixels" runs the whole model
with its vision tower, as a loop that keeps nothing would; "tokens" keeps the frozen tower's tokens; "cached"
runs the upper layers on stored states. "all" trains every layer above a kept tower. The kinds take turns step
by step, so that what else the machine does hits all alike. A SpatialVLA and an OpenVLA follow, narrow but
with the real depth and number of patches: all but the two highest of `--deep` layers are frozen (24 of 26 in
the paper), in batches of two. Prints ratios of medians taken in one run and, as its last line, one JSON
object. One process, one thread; bf16 autocast where this machine computes in it, or as `--precision` says.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from refinevla_kit.training.activation_cache import open_or_write
from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.examples import Examples
from refinevla_kit.training.freezing import UpperLayers, freeze_lower
from refinevla_kit.training.objective import WholeModel, forward, make_batch, tower_tokens
from refinevla_kit.vlas.action_tokens import UniformBins
from refinevla_kit.vlas.compact import CompactConfig, build
from refinevla_kit.vlas.compact_parts import train_vocabulary
from refinevla_kit.vlas.contract import VLA
from refinevla_kit.vlas.random_start import random_openvla, random_spatialvla, small_openvla, small_spatialvla

RATIONALE = (  # about 40 tokens of the vocabulary below
    "the carrot lies {0} cm left of the plate and the gripper is open above it so move {0} cm left "
    "and down then close the fingers "
    "and lift it over the plate before letting go of it there"
)


def some_examples(frames: int) -> Examples:
    """Noise of the right shape: time does not depend on what is in the pictures."""
    rng = np.random.default_rng(0)
    return Examples(
        rng.integers(0, 256, (frames, 120, 160, 3), dtype=np.uint8),
        rng.uniform(-0.04, 0.04, (frames, 7)).astype(np.float32),
        np.zeros(frames, np.int64),
        ("put carrot on plate", "stack the green block on the yellow block") * (frames // 2),
        tuple(RATIONALE.format(i % 9) for i in range(frames)),
    )


def stepper(
    vla: VLA, examples: Examples, config: TrainingConfig, kept: Any, model: torch.nn.Module
) -> Callable[[Any], None]:
    """One training step on the frames it is given."""
    trained = [p for p in vla.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def step(rows: Any) -> None:
        batch = make_batch(vla, examples, rows, config, kept)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            losses = forward(model, vla, batch, config)
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def deep(model: str, layers: int, examples: Examples) -> VLA:
    """A random VLA of the real depth, 256 patches, and a width of 256: narrow enough for a CPU, and wide
    enough that the layers outweigh the head, as in the real ones.
    """
    texts = (*examples.instructions, *examples.rationales)
    if model == "spatialvla":
        return random_spatialvla(small_spatialvla(256, layers, 224), texts, examples.actions)
    return random_openvla(small_openvla(256, layers, 224), texts, examples.actions)


def measure(vla: VLA, examples: Examples, config: TrainingConfig, whole: VLA | None = None) -> dict[str, Any]:
    """Frames a second of each kind of step. `whole`: the same model, every layer of which is trained."""
    rng, depth, batch = np.random.default_rng(1), config.freeze_layers, config.batch_size
    freeze_lower(vla, depth)
    tokens = tower_tokens(vla, examples.images)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        cache = open_or_write(vla, examples, config, folder, progress=False)
        written = (time.perf_counter() - began) / len(examples)
        kinds = {
            "pixels": stepper(vla, examples, config, None, WholeModel(vla)),
            "tokens": stepper(vla, examples, config, tokens, WholeModel(vla)),
            "cached": stepper(vla, examples, config, cache, UpperLayers(vla, depth)),
        }
        if whole:
            freeze_lower(whole, 0)
            trained = replace(config, freeze_layers=0)
            kinds = {"all": stepper(whole, examples, trained, tokens, WholeModel(whole))} | kinds
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for number in range(config.steps + 1):
            rows = np.sort(rng.permutation(len(examples))[:batch])
            for kind, step in kinds.items():
                began = time.perf_counter()
                step(rows)
                if number:  # the first one only warms up
                    seconds[kind].append(time.perf_counter() - began)
    return {
        "frozen": depth,
        "rationales": config.lambda_reasoning > 0,
        "tokens_a_frame": float(np.diff(cache.offsets).mean()),
        "bytes_a_frame": cache.states.nbytes / len(examples),
        "frames_a_second": {kind: batch / statistics.median(times) for kind, times in seconds.items()},
        "best": {kind: batch / min(times) for kind, times in seconds.items()},
        "write_ms_a_frame": 1000 * written,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--deep", type=int, default=26)
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    given = parser.parse_args()
    torch.set_num_threads(1)
    examples = some_examples(2 * given.batch)
    words = train_vocabulary([*examples.instructions, *examples.rationales])
    bins, found = UniformBins.fit(examples.actions), []
    for weight in (0.0, 0.3):
        for depth in range(1, given.layers):
            settings = {"lambda_reasoning": weight, "freeze_layers": depth, "precision": given.precision}
            config = TrainingConfig(given.steps, given.batch, **settings)
            whole, vla = (build(CompactConfig(layers=given.layers), words, bins, seed=0) for _ in range(2))
            found.append(measure(vla, examples, config, whole))
    released = []
    examples = some_examples(4)
    for model in ("spatialvla", "openvla"):
        for weight in (0.0, 0.3):
            settings = {"lambda_reasoning": weight, "freeze_layers": given.deep - 2}
            config = TrainingConfig(given.steps, 2, precision=given.precision, **settings)
            row = measure(deep(model, given.deep, examples), examples, config)
            released.append({"model": model, "layers": given.deep} | row)
    heads = f"{'tokens':>7} {'pixels':>7} {'all':>7}   (by the fastest steps)"
    print(f"{'frozen':<8} {'rationales':<11} {'length':>6} {'cached/s':>9}   times as fast as: {heads}")
    for row in found:
        speeds: Any = (row["frames_a_second"], row["best"])
        median, least = (
            {kind: speed["cached"] / speed[kind] for kind in ("tokens", "pixels", "all")} for speed in speeds
        )
        cells = (
            " ".join(f"{value:>7.1f}" for value in median.values())
            + "   ("
            + " ".join(f"{value:.1f}" for value in least.values())
            + ")"
        )
        share = f"{row['frozen']}/{given.layers}"
        print(
            f"{share:<8} {row['rationales']!s:<11} {row['tokens_a_frame']:>6.0f} "
            f"{speeds[0]['cached']:>9.0f} {'':>19} {cells}"
        )
    for row in released:
        ratios = [
            f"{speed['cached'] / speed['tokens']:.1f} and {speed['cached'] / speed['pixels']:.1f}"
            for speed in (row["frames_a_second"], row["best"])
        ]
        kind = "with rationales" if row["rationales"] else "actions only"
        print(
            f"{row['model']}, {row['frozen']} of {row['layers']} frozen, {kind}, "
            f"{row['tokens_a_frame']:.0f} tokens: cached is {ratios[0]} times as fast as tokens and pixels "
            f"(fastest steps {ratios[1]})"
        )
    print(
        json.dumps(
            {
                "benchmark": "training",
                "layers": given.layers,
                "batch": given.batch,
                "steps": given.steps,
                "precision": config.precision,
                "rows": found,
                "released": released,
            }
        )
    )


if __name__ == "__main__":
    main()
