"""How a policy is fine-tuned: one frozen dataclass, and what cannot work is said before the first step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from refinevla_kit.errors import KitError
from refinevla_kit.training.examples import Examples
from refinevla_kit.vlas.sequence import ORDERS

MODES = ("full", "upper", "lora")
PRECISIONS = ("bf16", "fp32")
LEAST_GRACE = 100  # steps; before them nothing is learned that could have collapsed
LEAST_WHOLE = {
    "steps": 1,
    "batch_size": 1,
    "freeze_layers": 0,
    "validate_every": 0,
    "save_every": 0,
    "seed": 0,
    "lora_rank": 1,
    "accumulate": 1,
    "early_stop": 0,
    "collapse_grace": 0,
}
NOT_NEGATIVE = (
    "learning_rate",
    "warmup",
    "weight_decay",
    "clip",
    "lambda_reasoning",
    "lora_alpha",
    "cache_limit_gb",
)


@dataclass(frozen=True)
class TrainingConfig:
    """How to fine-tune. Making one raises `KitError` for a setting that cannot work.

    Attributes:
        steps, batch_size: optimiser steps, frames a step (over all processes).
        learning_rate: peak, after a linear warm-up over `warmup` of the steps, a share in [0, 1); then a
            cosine down to a tenth.
        clip: largest norm of the gradient; 0 never clips.
        lambda_reasoning: weight of the rationale loss; 0 leaves the rationales out of the sequence (nothing
            to pay for).
        freeze_layers: lower language layers frozen, with projector and embeddings when there are any.
        freeze_tower: the vision tower is frozen; its tokens are then computed once and kept.
        order: "action_first" or "rationale_first".
        precision: "bf16" (autocast), "fp32", or "auto": "bf16" where this machine computes in it, elsewhere
            "fp32".
        validate_every, save_every: steps between evaluations on held-out episodes and between resumable
            states; both come after the last step too. 0 is never.
        seed: of the batches, and of the adapters' first values; same seed, same run.
        mode: "upper" trains what lies above the `freeze_layers`; "lora" trains low-rank adapters of those
            layers' linear maps and nothing else, merged into plain weights at the end; "full" trains
            everything, whatever `freeze_layers` says (the tower as `freeze_tower` says).
        lora_rank, lora_alpha: of the adapters.
        cache: "auto" keeps the hidden states below the trained layers on disk when they never change and as
            many frames are drawn as there are, so that computing each once pays; "on" always does; "off"
            never does.
        cache_precision: how they are stored: "bf16", "fp32", or "same" as `precision`.
        cache_limit_gb: a larger one is refused, unwritten.
        accumulate: parts that a step's frames are computed in; less memory, the same step.
        early_stop: evaluations without a better held-out action loss after which training ends; 0 never does.
            The last weights are kept.
        collapse_grace: steps before a policy that says the same everywhere, or no action at all, is stopped;
            None is half the run, at least 100.
        tensorboard: also write the history for TensorBoard, where it is installed.
    """

    steps: int
    batch_size: int = 32
    learning_rate: float = 3e-4
    warmup: float = 0.05
    weight_decay: float = 0.01
    clip: float = 1.0
    lambda_reasoning: float = 0.3
    freeze_layers: int = 2
    freeze_tower: bool = True
    order: str = "action_first"
    precision: str = "auto"
    validate_every: int = 50
    save_every: int = 200
    seed: int = 0
    mode: str = "upper"
    lora_rank: int = 8
    lora_alpha: float = 16.0
    cache: str = "auto"
    cache_precision: str = "same"
    cache_limit_gb: float = 8.0
    accumulate: int = 1
    early_stop: int = 0
    collapse_grace: int | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in (*LEAST_WHOLE, *NOT_NEGATIVE):
            value: Any = getattr(self, name)
            whole, least = name in LEAST_WHOLE, LEAST_WHOLE.get(name, 0)
            if name == "collapse_grace" and value is None:
                continue
            kind: Any = Integral if whole else Real
            if (
                isinstance(value, bool)
                or not isinstance(value, kind)
                or not least <= value < (2**63 if whole else math.inf)
            ):
                raise KitError(
                    f"{name} is {value!r}", f"give a {'whole ' if whole else ''}number, {least} or more"
                )
            object.__setattr__(
                self, name, int(value) if whole else float(value)
            )  # numpy's own numbers are not written to JSON
        for name in ("freeze_tower", "tensorboard"):
            if not isinstance(switch := getattr(self, name), bool | np.bool_):
                raise KitError(f"{name} is {switch!r}", "give True or False")
            object.__setattr__(self, name, bool(switch))
        if self.warmup >= 1:
            steps = (
                f"; for {self.warmup:g} of the {self.steps} steps give {self.warmup / self.steps:.3g}"
                if self.warmup < self.steps
                else ""
            )
            raise KitError(
                f"warmup is {self.warmup:g}",
                f"give the share of the steps in which the rate rises, 0 to less than 1{steps}",
            )
        if self.accumulate > self.batch_size:
            what = f"{self.batch_size} frames a step cannot be computed in {self.accumulate} parts"
            raise KitError(what, f"set accumulate to 1 to {self.batch_size}")
        if self.early_stop and not self.validate_every:
            what = f"early_stop={self.early_stop} waits for evaluations, and validate_every=0 makes none"
            raise KitError(what, "set validate_every, or early_stop to 0")
        if self.precision == "auto":
            object.__setattr__(self, "precision", native_precision())
        allowed = {
            "mode": MODES,
            "order": ORDERS,
            "precision": PRECISIONS,
            "cache": ("auto", "on", "off"),
            "cache_precision": ("same", *PRECISIONS),
        }
        for setting, values in allowed.items():
            if (value := getattr(self, setting)) not in values:
                raise KitError(f"unknown {setting} {value!r}", f"choose one of {', '.join(values)}")
        if self.cache == "on" and not self.caches(0):
            what = "nothing can be cached: the layers below the first trained one change during training"
            raise KitError(
                what, 'freeze at least one language layer and the tower, or set cache to "auto" or "off"'
            )

    @property
    def depth(self) -> int:
        """Lower language layers that stay as they are."""
        return 0 if self.mode == "full" else self.freeze_layers

    @property
    def tower_frozen(self) -> bool:
        """The vision tower stays as it is."""
        return self.freeze_tower or self.mode == "lora"

    @property
    def stored_precision(self) -> str:
        """ "bf16" or "fp32", of an activation cache."""
        return self.precision if self.cache_precision == "same" else self.cache_precision

    @property
    def grace(self) -> int:
        """Steps before a collapse is looked for."""
        return max(self.steps // 2, LEAST_GRACE) if self.collapse_grace is None else self.collapse_grace

    def caches(self, frames: int) -> bool:
        """Whether a run over `frames` frames works from an activation cache."""
        constant = self.depth >= 1 and self.tower_frozen
        return constant and (
            self.cache == "on" or (self.cache == "auto" and self.steps * self.batch_size >= frames)
        )


def native_precision() -> str:
    """Either "bf16", on a GPU or CPU that computes in it, or "fp32", as emulation takes ten times as long."""
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        abilities = torch.cpu.get_capabilities()
        native = any(abilities.get(name) for name in ("avx512_bf16", "amx_tile", "bf16"))
    return "bf16" if native else "fp32"


def check(examples: Examples, config: TrainingConfig) -> None:
    """Raises `KitError` for examples that cannot be trained with in this way."""
    if len(examples) == 0:
        raise KitError("no training examples", "record at least one episode")
    if config.lambda_reasoning > 0 and not any(examples.rationales):
        raise KitError(
            "the reasoning loss is on, but no frame has a rationale",
            "annotate the dataset (notebook 01) or set lambda_reasoning to 0",
        )
    if (
        examples.proprioception is not None
        and not (known := np.isfinite(examples.proprioception).all(axis=1)).all()
    ):
        what = (
            f"the robot's state holds what is no number, first in episode {int(examples.episodes[~known][0])}"
        )
        raise KitError(what, "leave that episode out, or mend its observation.state")
