"""How a policy is fine-tuned: one frozen dataclass, and what cannot work is said before the first step."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from refinevla_kit import settings
from refinevla_kit.errors import KitError, check_choice
from refinevla_kit.settings import PRECISIONS

CHOICES = settings.CHOICES | {
    "precision": PRECISIONS,
    "cache_precision": ("same", *PRECISIONS),
    "order": (*settings.ORDERS, "both"),
}
ONE_OR_MORE = ("steps", "batch_size", "lora_rank", "accumulate")  # other numbers may be 0
LEAST_GRACE = 100  # steps; before them nothing is learned that could have collapsed


@dataclass(frozen=True)
class TrainingConfig:
    """How to fine-tune. Making one raises `KitError` for a setting that cannot work.

    Attributes:
        steps: optimiser steps.
        batch_size: frames a step, over all processes.
        learning_rate: its peak, after a linear warm-up; then a cosine down to a tenth.
        warmup: share of the steps in which the rate rises, in [0, 1).
        weight_decay: of AdamW.
        clip: largest norm of the gradient; 0 never clips.
        lambda_reasoning: weight of the rationale loss; 0 leaves the rationales out of the sequence.
        freeze_layers: lower language layers frozen, with projector and embeddings when there are any.
        freeze_tower: the vision tower is frozen; its tokens are then computed once and kept.
        order: "action_first", "rationale_first", or "both": every other frame is answered the other way
            round, and the policy acts first unless it is asked to write first.
        precision: "bf16" (autocast) or "fp32". "auto" becomes "bf16" where this machine computes in it, else
            "fp32".
        validate_every: steps between evaluations on held-out episodes; there is one after the last step too.
            0 is never.
        save_every: steps between resumable states; there is one after the last step too. 0 is never.
        seed: of the batches, and of the adapters' first values; same seed, same run.
        mode: "upper" trains what lies above the `freeze_layers`. "lora" trains low-rank adapters of those
            layers alone, merged into plain weights at the end. "full" trains everything, whatever
            `freeze_layers` says (the tower as `freeze_tower` says).
        lora_rank, lora_alpha: of the adapters.
        action_words: "base" keeps the base's action statistics. "refitted" takes the quantiles of the data.
            "adapted" also moves SpatialVLA's grid, and the embeddings of its words, to the data.
        cache: whether the hidden states below the trained layers are kept on disk. "auto" does so when they
            never change and as many frames are drawn as there are, so that it pays; "on" always; "off" never.
            Pictures that stay in their files are cached where it is "on".
        cache_precision: how they are stored: "bf16", "fp32", or "same" as `precision`.
        cache_limit_gb: a larger one is refused, unwritten.
        accumulate: parts that a step's frames are computed in, like lengths together; less memory and less
            padding, the same step.
        early_stop: evaluations without a better held-out action loss after which training ends; 0 never does.
            The last weights are kept, or their average.
        collapse_grace: steps before a policy that says the same everywhere, or no action at all, is stopped;
            None is half the run, at least 100.
        tensorboard: also write the history for TensorBoard, where it is installed.
        gradient_checkpointing: keep the input of each layer alone and compute the rest again for the
            gradients; less memory, more time, the same numbers.
        frozen_weights: "bf16" halves the memory of all that is frozen, which is read in bfloat16 then, as
            released models are stored. What trains stays float32. Needs `precision` "bf16".
        adapter_preset: "authors" trains adapters as the authors of a released base do: their modules, in the
            whole model, their rank and alpha, whatever `freeze_layers`, `lora_rank`, `lora_alpha` say.
        adapter_form: "merged" saves adapters merged into the base's weights. "peft" saves them alone, as
            peft's own files, and the base by its name.
        robot: whose action statistics a released base takes; it has some for each robot of its data.
        base_share: share of the weights before training, 0 to less than 1, in their average with those after
            it, which is what the policy gets (Wortsman et al. 2022, arXiv 2109.01903): it keeps more of what
            the base can do. Of adapters, what they add is scaled down by as much.
        texts_alike: in the reasoning loss each text counts alike, however long, instead of each word: for
            short answers beside rationales.
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
    action_words: str = "base"
    cache: str = "auto"
    cache_precision: str = "same"
    cache_limit_gb: float = 8.0
    accumulate: int = 1
    early_stop: int = 0
    collapse_grace: int | None = None
    tensorboard: bool = False
    gradient_checkpointing: bool = False
    frozen_weights: str = "fp32"
    adapter_preset: str = "kit"
    adapter_form: str = "merged"
    robot: str = "widowx"
    texts_alike: bool = False
    base_share: float = 0.0

    def __post_init__(self) -> None:
        if self.precision == "auto":
            object.__setattr__(self, "precision", native_precision())
        for field in fields(self):
            value = _checked(field.name, str(field.type), getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        if self.warmup >= 1:
            remedy = "give the share of the steps in which the rate rises, 0 to less than 1"
            if self.warmup < self.steps:
                share = self.warmup / self.steps
                remedy += f"; for {self.warmup:g} of the {self.steps} steps give {share:.3g}"
            raise KitError(f"warmup is {self.warmup:g}", remedy)
        if self.base_share >= 1:
            remedy = "give the share of the base in the average, 0 to less than 1"
            raise KitError(f"base_share is {self.base_share:g}", remedy)
        if self.accumulate > self.batch_size:
            what = f"{self.batch_size} frames a step cannot be computed in {self.accumulate} parts"
            raise KitError(what, f"set accumulate to 1 to {self.batch_size}")
        if self.early_stop and not self.validate_every:
            what = f"early_stop={self.early_stop} waits for evaluations, and validate_every=0 makes none"
            raise KitError(what, "set validate_every, or early_stop to 0")
        if self.frozen_weights == "bf16" and self.precision != "bf16":
            what = f'frozen_weights="bf16" cannot be computed with in precision="{self.precision}"'
            raise KitError(what, 'set precision to "bf16", or frozen_weights to "fp32"')
        if self.mode != "lora" and (self.adapter_preset != "kit" or self.adapter_form != "merged"):
            what = f'adapter_preset and adapter_form say nothing about mode="{self.mode}"'
            raise KitError(what, 'set mode to "lora", or leave them out')
        if self.adapter_form == "peft" and self.action_words == "adapted":
            what = "adapted action words move embeddings of the base, which adapters alone do not hold"
            raise KitError(what, 'set adapter_form to "merged", or action_words to "refitted"')
        if self.cache == "on" and not self.constant_below:
            what = "nothing can be cached: the layers below the first trained one change during training"
            raise KitError(
                what, 'freeze at least one language layer and the tower, or set cache to "auto" or "off"'
            )

    @property
    def depth(self) -> int:
        """Lower language layers that stay as they are."""
        return 0 if self.mode == "full" or self.adapter_preset == "authors" else self.freeze_layers

    @property
    def tower_frozen(self) -> bool:
        """The vision tower stays as it is."""
        return (self.freeze_tower or self.mode == "lora") and self.adapter_preset != "authors"

    @property
    def constant_below(self) -> bool:
        """What reaches the first trained layer never changes."""
        return self.depth >= 1 and self.tower_frozen

    @property
    def orders(self) -> tuple[str, ...]:
        """Of the answers, frame by frame; the first is the policy's own."""
        return settings.ORDERS if self.order == "both" else (self.order,)

    @property
    def stored_precision(self) -> str:
        """Of an activation cache: "bf16" or "fp32"."""
        return self.precision if self.cache_precision == "same" else self.cache_precision

    @property
    def grace(self) -> int:
        """Steps before a collapse is looked for."""
        return max(self.steps // 2, LEAST_GRACE) if self.collapse_grace is None else self.collapse_grace

    def autocast(self, device: torch.device) -> torch.autocast:
        """Inside, this `precision` is computed in."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def caches(self, frames: int) -> bool:
        """Whether a run over `frames` frames works from an activation cache."""
        pays = self.cache == "auto" and self.steps * self.batch_size >= frames
        return self.constant_below and (self.cache == "on" or pays)


def _checked(name: str, kind: str, value: Any) -> Any:
    """A setting as Python's own type, because numpy's is not written to JSON; `KitError` for another kind."""
    if kind == "str":
        check_choice(name, value, CHOICES[name])
        return value
    if kind == "bool":
        if not isinstance(value, bool | np.bool_):
            raise KitError(f"{name} is {value!r}", "give True or False")
        return bool(value)
    if value is None and kind == "int | None":
        return None
    whole = kind.startswith("int")
    number: Any = Integral if whole else Real
    least, limit = int(name in ONE_OR_MORE), 2**63 if whole else math.inf
    if isinstance(value, bool) or not isinstance(value, number) or not least <= value < limit:
        raise KitError(f"{name} is {value!r}", f"give a {'whole ' if whole else ''}number, {least} or more")
    return int(value) if whole else float(value)


def native_precision() -> str:
    """Either "bf16", on a GPU or CPU that computes in it, or "fp32", as emulation takes ten times as long."""
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        abilities = torch.cpu.get_capabilities()
        native = any(abilities.get(name) for name in ("avx512_bf16", "amx_tile", "bf16"))
    return "bf16" if native else "fp32"
