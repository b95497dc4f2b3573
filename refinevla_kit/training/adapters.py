"""Low-rank adapters (LoRA, by peft) on the upper language layers, for as long as a run lasts.

Afterwards the weights are plain again, with what was learned. A checkpoint made so is one like any other:
nothing that reads it needs to know.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from refinevla_kit.errors import KitError
from refinevla_kit.vlas.contract import VLA


def adapted_modules(vla: VLA, depth: int) -> str:
    """A regular expression for the linear maps of language layers `depth` and above. Bare suffixes would hit
    a SigLIP tower's attention as well.
    """
    numbers = "|".join(map(str, range(depth, len(vla.layers))))
    (path,) = (re.escape(name) for name, module in vla.model.named_modules() if module is vla.layers)
    return rf"{path}\.({numbers})\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


@contextmanager
def adapters(vla: VLA, depth: int, rank: int, alpha: float, seed: int) -> Iterator[None]:
    """Only adapters train inside the block; they act at once as nothing (B is 0), and are merged into the
    weights at its end, whatever ended it.

    Raises:
        KitError: no layer is left to adapt, or the rank is below 1.
    """
    layers = len(vla.layers)
    if depth >= layers:
        raise KitError(
            f"all {layers} language layers are frozen, adapters have no place", f"freeze at most {layers - 1}"
        )
    if rank < 1:
        raise KitError(f"adapters of rank {rank}", "choose a rank of 1 or more")
    targets = adapted_modules(vla, depth)
    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped: Any = get_peft_model(vla.model, settings)  # changes `vla.model` in place
    try:
        yield
    finally:
        wrapped.merge_and_unload()
        for left in ("peft_config", "active_adapter", "active_adapters"):
            vla.model.__dict__.pop(left, None)
