"""What trains and what does not: freezing, adapters, and the layers above the line between both.

ReFineVLA's selective transfer trains the upper blocks and the policy head, and leaves the lower layers as
they were. What crosses the line is the input of language layer k (of the final norm, when all layers are
frozen). The lower part runs as the whole model does, and is stopped there; the upper part runs the same
layers under the same masks and positions, so both halves together are the whole model.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.gemma2.modeling_gemma2 import apply_rotary_pos_emb

from refinevla_kit.errors import KitError
from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.objective import Batch
from refinevla_kit.vlas.contract import VLA, AdapterPreset
from refinevla_kit.vlas.decoder import Rotary, embed, kinds_of, logits_of, masks_of, positions_of, run_layers

# peft 0.21, the newest, asks transformers by the old name of what is now `is_activation_checkpointing`.
warnings.filterwarnings("ignore", ".*is_gradient_checkpointing")


def freeze_lower(vla: VLA, layers: int, tower: bool = True) -> dict[str, int]:
    """Freeze the lower `layers` language layers, and with them the projector and the input embeddings.

    With `layers=0` projector, embeddings and every language layer train, and what makes the robot's own state
    a token.

    Args:
        vla: whose parameters are marked, in place.
        layers: how many language layers to freeze.
        tower: freeze the vision tower, too.

    Returns:
        {"trainable": parameters that train, "frozen": those that do not}.

    Raises:
        KitError: fewer layers exist.
    """
    if not 0 <= layers <= len(vla.layers):
        raise KitError(
            f"cannot freeze {layers} of {len(vla.layers)} language layers", f"choose 0 to {len(vla.layers)}"
        )
    vla.model.requires_grad_(True)
    frozen: list[nn.Module] = [*vla.constant, *vla.tower] if tower else [*vla.constant]
    if layers:
        frozen += [*vla.projector, *vla.embeddings, *vla.layers[:layers]]
    for module in frozen:
        module.requires_grad_(False)
    if not layers and vla.state_encoder is not None:
        vla.state_encoder.requires_grad_(True)
    trainable = vla.model.num_parameters(only_trainable=True)
    return {"trainable": trainable, "frozen": vla.model.num_parameters() - trainable}


def preset_of(vla: VLA, config: TrainingConfig) -> AdapterPreset:
    """Which modules adapters change: every linear map of the layers above the frozen ones, or those that the
    model's authors adapt.

    Raises:
        KitError: no layer is left to adapt, or the authors never trained adapters.
    """
    if config.adapter_preset == "authors":
        if vla.adapter_preset is None:
            what = f"the authors of a {type(vla).__name__} published no way to train adapters"
            raise KitError(what, 'set adapter_preset to "kit"')
        return vla.adapter_preset
    layers = len(vla.layers)
    if config.depth >= layers:
        raise KitError(
            f"all {layers} language layers are frozen, adapters have no place", f"freeze at most {layers - 1}"
        )
    # A regular expression, because bare suffixes would hit a SigLIP tower's attention as well.
    numbers = "|".join(map(str, range(config.depth, layers)))
    targets = rf"{_name(vla, vla.layers)}\.({numbers})\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
    return AdapterPreset(config.lora_rank, config.lora_alpha, targets)


@contextmanager
def adapters(vla: VLA, preset: AdapterPreset, seed: int, keep: Path | None = None) -> Iterator[None]:
    """Only low-rank adapters (LoRA, by peft) train inside the block.

    They act at once as nothing (B is 0), and are merged into the weights at its end, whatever ended it: a
    checkpoint made so is one like any other.

    Args:
        vla: the model, changed in place. Nothing of it that never learns is adapted.
        preset: which modules, and how.
        seed: of the first values.
        keep: folder for the adapters themselves, as peft writes them, when the block ends well.
    """
    never = "|".join(_name(vla, module) for module in vla.constant)
    settings = LoraConfig(
        r=preset.rank,
        lora_alpha=preset.alpha,  # type: ignore[arg-type]
        target_modules=preset.targets,
        exclude_modules=rf"({never})(\..*)?" if never else None,
        lora_dropout=0.0,
        # released models' authors start A from a normal distribution
        init_lora_weights="gaussian" if preset == vla.adapter_preset else True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped: Any = get_peft_model(vla.model, settings)  # changes `vla.model` in place
    try:
        yield
        if keep is not None and PartialState().is_main_process:
            wrapped.save_pretrained(keep, save_embedding_layers=False)
    finally:
        wrapped.merge_and_unload()
        for left in ("peft_config", "active_adapter", "active_adapters"):
            vla.model.__dict__.pop(left, None)


def _name(vla: VLA, module: nn.Module) -> str:
    """Where a module stands in the model, for a regular expression."""
    return next(re.escape(name) for name, other in vla.model.named_modules() if other is module)


@torch.no_grad()
def lighten(vla: VLA) -> None:
    """Keep what is frozen in bfloat16 and what trains in float32, in place."""
    for parameter in vla.model.parameters():
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else torch.bfloat16)


@contextmanager
def recomputing(vla: VLA) -> Iterator[None]:
    """Gradient checkpointing: inside the block each layer in training keeps its input alone."""
    layers: list[Any] = [m for m in vla.model.modules() if isinstance(m, GradientCheckpointingLayer)]
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        layer._can_checkpoint_with_cache = True  # `_Earlier` never changes: it can be read twice
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = False
            del layer._gradient_checkpointing_func, layer._can_checkpoint_with_cache


@torch.no_grad()
def boundary_states(vla: VLA, batch: Batch, depth: int) -> Tensor:
    """What language layer `depth` is given: (B, N, d)."""
    sequences = batch.sequences
    assert batch.tokens is not None
    words = embed(vla, sequences.input_ids, vla.image_words(batch.tokens, batch.states))
    positions = positions_of(vla, words.shape[1], words.device)
    masks = masks_of(vla, words, sequences.attention_mask, sequences.token_type_ids, positions)
    return run_layers(vla, words, masks, positions, slice(depth))


class UpperLayers(nn.Module):
    """Language layers from `depth` on, final norm and head; the very modules of `vla`, not copies."""

    def __init__(self, vla: VLA, depth: int) -> None:
        super().__init__()
        self.layers, self.norm, self.head = vla.layers[depth:], vla.decoder.norm, vla.head
        self._vla, self._depth = vla, depth

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, K, V) of the last K = `batch.predicting` places of a batch of boundary states."""
        vla, x, keep = self._vla, batch.boundary, batch.predicting
        assert x is not None
        positions = positions_of(vla, x.shape[1], x.device)
        masks = masks_of(vla, x, batch.sequences.attention_mask, batch.sequences.token_type_ids, positions)
        if not len(self.layers):
            return logits_of(vla, self.norm(x[:, -keep:]))
        rotary = vla.decoder.rotary_emb(x, positions)
        x = run_layers(vla, x, masks, positions, slice(self._depth, -1), rotary=rotary)
        x = _last_places(self.layers[-1], x, rotary, masks[kinds_of(vla)[-1]], keep)
        return logits_of(vla, self.norm(x))


class _Earlier:
    """Stands where a layer expects its key-value cache: keys and values (B, H, n, h) of the places before
    those it is run on.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)


def _last_places(layer: Any, x: Tensor, rotary: Rotary, mask: Tensor | None, keep: int) -> Tensor:
    """The last layer's output at its last `keep` places, (B, keep, d); x: (B, N, d).

    Places before them predict nothing, so only their keys and values are computed.
    """
    attention, early = layer.self_attn, layer.input_layernorm(x[:, :-keep])
    shape = (*early.shape[:-1], -1, attention.head_dim)  # B, N - keep, H, h
    keys = attention.k_proj(early).view(shape).transpose(1, 2)
    values = attention.v_proj(early).view(shape).transpose(1, 2)
    cos, sin = rotary
    keys, _ = apply_rotary_pos_emb(keys, keys, cos[:, :-keep], sin[:, :-keep])
    return layer(
        x[:, -keep:],
        position_embeddings=(cos[:, -keep:], sin[:, -keep:]),
        attention_mask=None if mask is None else mask[:, :, -keep:],
        past_key_values=_Earlier(keys, values),
    )
