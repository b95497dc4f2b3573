"""Weights, gradients and moments divided among the processes of a run (torch's FSDP), for what one GPU cannot
hold. Every file that a run leaves is the same as without.

It is asked for at the launch, as accelerate has it (scripts/accelerate/fsdp.yaml).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from refinevla_kit.errors import KitError


def asked_for() -> bool:
    """Whether the launch wants it."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def shard(model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, processes: int) -> None:
    """Divide a model in place, layer by layer, and the state of its optimiser, which may be of a run before.

    Args:
        model: what a step runs (`loop.runner`), on the device.
        optimizer: of its parameters, in one group.
        device, processes: of the run.

    Raises:
        KitError: the weights are of several precisions.
    """
    kinds = {parameter.dtype for parameter in model.parameters()}
    if len(kinds) > 1:
        what = f"weights of {len(kinds)} precisions cannot be divided among processes"
        raise KitError(what, 'set frozen_weights to "fp32", or launch without FSDP')
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = optimizer.param_groups
    trained = [names[parameter] for parameter in groups[0]["params"]]
    states = [optimizer.state.get(parameter, {}) for parameter in groups[0]["params"]]
    mesh = init_device_mesh(device.type, (processes,))
    for layer in [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    in_parts = dict(model.named_parameters())
    optimizer.state.clear()
    groups[0]["params"] = [in_parts[name] for name in trained]
    for parameter, state in zip(groups[0]["params"], states, strict=True):
        if state:
            optimizer.state[parameter] = {key: divided(value, parameter) for key, value in state.items()}


def divided(value: Any, parameter: Any) -> Any:
    """A moment of a divided parameter, or its value of before, divided likewise."""
    if not isinstance(value, Tensor) or not value.dim():
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


def whole(tensor: Tensor) -> Tensor:
    """A tensor of the run in one piece; where it is divided, all processes have to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextmanager
def at_hand(model: nn.Module) -> Iterator[None]:
    """Inside, what is in no layer (embeddings, head, ...) is there in one piece, so that parts of the model
    can be run by themselves; layers come and go as they are run.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


@torch.no_grad()
def gather(model: nn.Module) -> None:
    """Put a divided model together again, in place, on the CPU of every process."""
    done: dict[Tensor, nn.Parameter] = {}  # tied ones stay tied
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if isinstance(parameter, DTensor):
                if parameter not in done:
                    full = parameter.full_tensor().cpu()
                    done[parameter] = nn.Parameter(full, requires_grad=parameter.requires_grad)
                module._parameters[name] = done[parameter]
