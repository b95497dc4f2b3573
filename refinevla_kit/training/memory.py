"""What memory fine-tuning takes, before it is taken: weights, gradients and the optimiser's moments.
Activations come on top; gradient checkpointing and `accumulate` keep them small.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import psutil
import torch

from refinevla_kit.errors import KitError
from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.freezing import adapters, freeze_lower, preset_of
from refinevla_kit.vlas.contract import VLA

FLOAT32, BFLOAT16 = 4, 2  # bytes


@dataclass(frozen=True)
class Memory:
    """What a model in training takes.

    Attributes:
        trainable, frozen: parameters.
        weights, gradients, moments: bytes; AdamW keeps two moments of each parameter.
    """

    trainable: int
    frozen: int
    weights: int
    gradients: int
    moments: int

    @property
    def total(self) -> int:
        """Bytes of all three."""
        return self.weights + self.gradients + self.moments

    def __str__(self) -> str:
        parts = {"weights": self.weights, "gradients": self.gradients, "moments": self.moments}
        sizes = ", ".join(f"{name} {size / 1e9:.3g}" for name, size in parts.items())
        counts = f"{self.trainable:,} parameters train, {self.frozen:,} are frozen"
        return f"{counts}; {self.total / 1e9:.3g} GB ({sizes}) and activations"


def training_memory(vla: VLA, config: TrainingConfig) -> Memory:
    """What fine-tuning this model with this configuration takes.

    Args:
        vla: the model, which may be on the meta device; its parameters are marked, in place.
        config: how it would be trained.
    """
    freeze_lower(vla, config.depth, config.tower_frozen)
    lora = config.mode == "lora"
    with adapters(vla, preset_of(vla, config), config.seed) if lora else nullcontext():
        return marked_memory(vla, config)


def marked_memory(vla: VLA, config: TrainingConfig) -> Memory:
    """The same of a model on which it is marked already what trains."""
    trainable = vla.model.num_parameters(only_trainable=True)
    frozen = vla.model.num_parameters() - trainable
    kept = BFLOAT16 if config.frozen_weights == "bf16" else FLOAT32
    trained = trainable * FLOAT32
    copies = 1 + bool(config.base_share)  # with those from before, for the average
    return Memory(trainable, frozen, frozen * kept + copies * trained, trained, 2 * trained)


def check_training_memory(vla: VLA, device: torch.device, averaged: bool = False) -> None:
    """Raises `KitError` where a model that is ready to train does not fit the device.

    Args:
        averaged: with the weights from before, of which a copy is kept.
    """
    # gradients and moments
    needed = (3 + averaged) * FLOAT32 * vla.model.num_parameters(only_trainable=True)
    if device.type == "cuda":
        parameters = vla.model.parameters()
        needed += sum(p.numel() * p.element_size() for p in parameters if p.device.type != "cuda")
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = psutil.virtual_memory().available
    if needed > free:
        what = f"training takes {needed / 1e9:.1f} GB more, and {free / 1e9:.1f} GB of {device} are free"
        remedy = 'freeze more layers, set mode to "lora" or frozen_weights to "bf16", or take another machine'
        raise KitError(what, remedy)
