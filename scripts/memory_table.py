"""The tables in docs/your_vla.md and docs/your_gpu.md: what fine-tuning SpatialVLA and OpenVLA takes,
computed from models of the released sizes that hold no numbers (the meta device), and the smallest GPU for
it.

    python -m scripts.memory_table      # prints both tables
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refinevla_kit.settings import REPOSITORY
from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.memory import Memory, training_memory
from refinevla_kit.training.plan import skeleton_of

GUIDE, GPU = REPOSITORY / "docs" / "your_vla.md", REPOSITORY / "docs" / "your_gpu.md"
CARDS = (16, 24, 48, 80, 141)  # GB that GPUs have
ROOM = 0.75  # share of a card that weights, gradients and moments may fill; activations need the rest
MODELS = {"SpatialVLA 4B": ("spatialvla", 24), "OpenVLA 7B": ("openvla", 30)}
"""The base, and how many lower layers its two upper ones leave frozen."""
LIGHT = {"precision": "bf16", "frozen_weights": "bf16"}
UPPER, LORA, FULL = "two upper layers", "adapters as its authors'", "all"
WAYS: dict[str, dict[str, Any]] = {
    f"{UPPER}, the rest in float32": {},
    UPPER: LIGHT,
    "adapters of two upper layers": {"mode": "lora", "lora_rank": 32, **LIGHT},
    LORA: {"mode": "lora", "adapter_preset": "authors", **LIGHT},
    FULL: {"mode": "full"},
}
"""Settings of notebook 2 by what trains."""
Found = Mapping[str, Mapping[str, Memory]]  # by model and way


def memories(name: str) -> dict[str, Memory]:
    """What each way of fine-tuning takes."""
    base, frozen = MODELS[name]
    return {
        way: training_memory(skeleton_of(base), TrainingConfig(steps=1, freeze_layers=frozen, **how))
        for way, how in WAYS.items()
    }


def card(size: int) -> str:
    """The smallest GPU that has room for so many bytes."""
    fitting = [gigabytes for gigabytes in CARDS if size <= ROOM * gigabytes * 1e9]
    return f"{fitting[0]} GB" if fitting else "several, by FSDP"


def long_table(found: Found) -> str:
    """The guide's table in Markdown."""
    lines = ["| what trains | parameters of it | weights | gradients, moments | together | GPU |"]
    lines.append("|---" * 6 + "|")
    for name, ways in found.items():
        for way, memory in ways.items():
            parts = (memory.weights, memory.gradients + memory.moments, memory.total)
            cells = [f"{name}: {way}", f"{memory.trainable / 1e6:,.0f} million"]
            cells += [f"{size / 1e9:.1f} GB" for size in parts]
            lines.append(f"| {' | '.join([*cells, card(memory.total)])} |")
    return "\n".join(lines)


def short_table(found: Found) -> str:
    """The one about GPUs."""
    lines = [f"| | {' | '.join((UPPER, LORA, FULL))} |", "|---" * 4 + "|"]
    for name, ways in found.items():
        sizes = [ways[way].total for way in (UPPER, LORA, FULL)]
        cells = [f"{size / 1e9:.0f} GB: {card(size)}" for size in sizes]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    found = {name: memories(name) for name in MODELS}
    print(long_table(found), short_table(found), sep="\n\n")
