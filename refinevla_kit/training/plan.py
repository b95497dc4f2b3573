"""What fine-tuning on so much data would take on such GPUs: memory, hours, money, and which way of training
fits. Sizes are counted on the model itself (`step_cost`); what is assumed is said with the answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refinevla_kit import hub
from refinevla_kit.errors import KitError, as_kit_error
from refinevla_kit.files import read_json
from refinevla_kit.training.activation_cache import cache_bytes
from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.examples import Examples
from refinevla_kit.training.step_cost import StepCost, step_cost
from refinevla_kit.vlas import load_vla
from refinevla_kit.vlas.checkpoint import CONFIG, locate
from refinevla_kit.vlas.contract import VLA
from refinevla_kit.vlas.random_start import REAL_OPENVLA, REAL_SPATIALVLA, random_openvla, random_spatialvla

CARDS = {
    16: ("T4", 65),
    24: ("L4", 121),
    40: ("A100", 312),
    48: ("L40S", 362),
    80: ("A100", 312),
    141: ("H200", 989),
}
"""GB of a GPU -> one that has them, and its 10^12 half-precision operations a second without sparsity, as its
maker's data sheet has them.
"""
REACHED = 0.3  # share of that speed
USABLE = 0.92  # share of the memory; the rest is CUDA's own, and gaps between blocks
SENTENCE = "put the carrot on the plate"
ACTIONS = np.linspace(-0.02, 0.02, 70).reshape(10, 7)  # any: no size depends on them
RELEASED = {"spatialvla": REAL_SPATIALVLA, "openvla": REAL_OPENVLA}
MAKERS: dict[str, Any] = {"spatialvla": random_spatialvla, "openvla": random_openvla}
WORDS = "the carrot lies left of the plate and the gripper is open above it so move down and close it"
LIGHT = {"precision": "bf16", "frozen_weights": "bf16"}
WAYS: dict[str, dict[str, Any]] = {
    "upper layers": LIGHT,
    "adapters": {"mode": "lora", **LIGHT},
    "everything": {"mode": "full", "precision": "bf16"},
}
"""What trains, as notebook 2 is told it."""


@dataclass(frozen=True)
class Gpus:
    """Machines.

    Attributes:
        count: of GPUs.
        gigabytes: memory of one.
        model: one that has so much.
        tflops: its 10^12 operations a second.
        price: of one for an hour, in any currency; None: unknown.
    """

    count: int
    gigabytes: int
    model: str
    tflops: float
    price: float | None = None

    @property
    def usable(self) -> float:
        """Bytes of one."""
        return USABLE * self.gigabytes * 1e9


@dataclass(frozen=True)
class Job:
    """What is to be learned.

    Attributes:
        frames: of the data.
        batch: frames a step, over all GPUs.
        epochs: how often each frame is seen.
        rationale: words of a rationale.
    """

    frames: int
    batch: int = 32
    epochs: float = 1.0
    rationale: int = 90

    @property
    def steps(self) -> int:
        """Of the optimiser."""
        return max(1, math.ceil(self.frames * self.epochs / self.batch))


@dataclass(frozen=True)
class Way:
    """One way of training.

    Attributes:
        name: what trains.
        config: how; `accumulate` and `gradient_checkpointing` are such that it fits, where it can.
        cost: of the frames that a GPU computes at once.
        sharded: weights, gradients and moments are divided among the GPUs (FSDP).
        peak: bytes on one GPU.
        fits: it has them.
        hours: of all steps.
        cache: bytes of an activation cache of all frames; 0 where nothing is constant.
    """

    name: str
    config: TrainingConfig
    cost: StepCost
    sharded: bool
    peak: float
    fits: bool
    hours: float
    cache: int


def parse_gpus(text: str, tflops: float | None = None, price: float | None = None) -> Gpus:
    """GPUs from "COUNTxGIGABYTES", such as 1x80.

    Raises:
        KitError: it is not written so, or a number is not above zero.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip())
    if not match or not all(int(number) for number in match.groups()):
        raise KitError(f"gpus is {text!r}", "write COUNTxGIGABYTES of one, such as 1x80 or 8x80")
    for name, number in (("tflops", tflops), ("price", price)):
        if number is not None and not 0 < number < math.inf:
            raise KitError(f"{name} is {number}", "give a number above 0, or leave it out")
    count, gigabytes = map(int, match.groups())
    nearest = max((size for size in CARDS if size <= gigabytes), default=min(CARDS))
    model, speed = CARDS[nearest]
    return Gpus(count, gigabytes, model, tflops or speed, price)


def skeleton_of(base: str | Path) -> VLA:
    """A model without numbers.

    Args:
        base: "spatialvla" or "openvla" for the released sizes; a checkpoint's folder or hub name otherwise.
    """
    if base in RELEASED:
        config = RELEASED[str(base)]
    else:  # of the hub's, sizes alone
        folder = hub.download(str(base), (CONFIG,)) if hub.is_name(base) else locate(base)
        with as_kit_error(f"{folder / CONFIG} cannot be read", "give a checkpoint, or a name on the hub"):
            config = dict(read_json(folder / CONFIG))
    kind = str(config.get("model_type", base))
    if kind in MAKERS:
        with as_kit_error(f"{base}: its {CONFIG} makes no {kind}", "give that of a released model"):
            return MAKERS[kind](config, [SENTENCE, WORDS], ACTIONS, device="meta")
    vla = load_vla(base)
    vla.model.to(torch.device("meta"))  # type: ignore[arg-type]
    return vla


def plan(
    base: str | Path, job: Job, gpus: Gpus, upper: int = 2, ways: Sequence[str] = tuple(WAYS)
) -> list[Way]:
    """Each way of training, with the fewest parts a step that fit.

    Args:
        base: see `skeleton_of`.
        job: what is to be learned.
        gpus: where.
        upper: language layers that train where the upper ones do.
        ways: keys of `WAYS`.

    Raises:
        KitError: fewer frames a step than GPUs.
    """
    if job.batch < gpus.count:
        what = f"{gpus.count} GPUs share steps of {job.batch} frames"
        raise KitError(what, "raise the batch, or take fewer GPUs")
    return [_way(name, base, job, gpus, upper) for name in ways]


def _way(name: str, base: str | Path, job: Job, gpus: Gpus, upper: int) -> Way:
    """The fewest parts of a step that fit; with layers computed again where nothing fits without."""
    model = skeleton_of(base)
    how = WAYS[name] | {"freeze_layers": max(0, len(model.layers) - upper)}
    if how.get("mode") == "lora" and model.adapter_preset is not None:
        how["adapter_preset"] = "authors"

    def attempt(parts: int, recomputed: bool) -> Way:
        """A step in so many parts; divided among the GPUs only where it fits no other way."""
        at_once = math.ceil(job.batch / gpus.count / parts)
        model = skeleton_of(base)
        config = TrainingConfig(
            job.steps,
            batch_size=job.batch,
            accumulate=parts,
            gradient_checkpointing=recomputed,
            cache="off",
            **how,
        )
        cost = step_cost(model, config, _frames(model, at_once, job.rationale))
        peak: float = cost.peak
        if gpus.count > 1:  # several keep the gradients twice, in the buckets that are sent
            peak += cost.memory.gradients
        dividable = gpus.count > 1 and config.frozen_weights == "fp32"  # one precision throughout
        sharded = dividable and peak > gpus.usable
        if sharded:
            peak = cost.memory.total / gpus.count + max(0, cost.activations - cost.memory.gradients)
        operations = cost.flops / at_once * job.frames * job.epochs
        hours = operations / (gpus.count * gpus.tflops * 1e12 * REACHED) / 3600
        cached = 0
        if config.constant_below:
            width = int(model.decoder.config.hidden_size)
            cached = cache_bytes(cost.tokens * job.frames, width, config.stored_precision)
        return Way(name, config, cost, sharded, peak, peak <= gpus.usable, hours, cached)

    share = math.ceil(job.batch / gpus.count)  # frames of one GPU
    fewer = [2**power for power in range(math.ceil(math.log2(share)))]  # parts, below one a frame
    for recomputed in (False, True):
        smallest = attempt(share, recomputed)
        if not smallest.fits:
            continue
        for count in fewer:
            way = attempt(count, recomputed)
            if way.fits:
                return way
        return smallest
    return smallest


def _frames(vla: VLA, count: int, words: int) -> Examples:
    """As many frames as are computed at once, all alike."""
    width, height = vla.image_size
    text = " ".join((WORDS.split() * (words // len(WORDS.split()) + 1))[:words])
    actions = np.zeros((count, 7), np.float32)
    states = np.zeros((count, 15), np.float32) if vla.reads_state else None
    pictures = np.zeros((count, height, width, 3), np.uint8)
    episodes = np.zeros(count, np.int64)
    return Examples(pictures, actions, episodes, (SENTENCE,) * count, (text,) * count, proprioception=states)


def table(ways: list[Way], job: Job, gpus: Gpus) -> str:
    """What `plan` found, in Markdown, and what it assumes."""
    head = ("what trains", "weights", "gradients", "moments", "peak", "fits", "how", "hours", "cost", "cache")
    lines = [
        f"{job.frames:,} frames, seen {job.epochs:g} times, {job.batch} a step: {job.steps:,} steps on "
        f"{gpus.count} GPU of {gpus.gigabytes} GB",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
        *(f"| {' | '.join(_cells(way, gpus))} |" for way in ways),
        "",
        f"Assumed: {REACHED:.0%} of the {gpus.tflops:g} TFLOPS that a {gpus.model} has by its maker's data "
        f"sheet; {USABLE:.0%} of its memory usable; rationales of {job.rationale} words, a token each; "
        "pictures decoded beside the step. Peak and operations are counted on one step of the model; what "
        "kernels take for themselves is not seen. The cache would hold the frozen layers' states of all "
        "frames, on disk.",
    ]
    return "\n".join(lines)


def _cells(way: Way, gpus: Gpus) -> list[str]:
    memory, config, how = way.cost.memory, way.config, []
    if config.accumulate > 1:
        how.append(f"accumulate={config.accumulate}")
    if config.gradient_checkpointing:
        how.append("gradient_checkpointing")
    if way.sharded:
        how.append("FSDP")
    sizes = (memory.weights, memory.gradients, memory.moments, way.peak)
    money = "no price given" if gpus.price is None else f"{way.hours * gpus.count * gpus.price:,.0f}"
    cells = [way.name, *(f"{size / 1e9:.1f} GB" for size in sizes), "yes" if way.fits else "no"]
    cache = f"{way.cache / 1e9:,.0f} GB" if way.cache else "none"
    return [*cells, ", ".join(how) or "as it is", f"{way.hours:,.1f}", money, cache]
