"""What a step of training takes, before there is a GPU for it: its memory and its arithmetic, counted while a
model without numbers (on torch's meta device) runs it.

Every tensor that the step makes is counted while it lives, so what is found is what an allocator would have
been asked for; what kernels take for themselves is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.examples import Examples
from refinevla_kit.training.freezing import adapters, freeze_lower, lighten, preset_of, recomputing
from refinevla_kit.training.memory import Memory, marked_memory
from refinevla_kit.training.objective import Batch, WholeModel, lay_out, objective
from refinevla_kit.vlas.contract import VLA

ITEM = torch.ops.aten._local_scalar_dense.default
HALVED = {
    F.linear,
    F.conv2d,
    F.conv_transpose2d,
    F.scaled_dot_product_attention,
    torch.matmul,
    torch.bmm,
    torch.baddbmm,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
}
"""What autocast computes in bfloat16."""


@dataclass(frozen=True)
class StepCost:
    """What one process needs for the frames that it computes at once.

    Attributes:
        memory: of weights, gradients and the optimiser's moments.
        peak: bytes at most, weights and moments included, at any moment of a step.
        flops: floating-point operations of forward and backward pass and the optimiser's step.
        tokens: of the longest sequence, words of the picture included.
    """

    memory: Memory
    peak: int
    flops: int
    tokens: int

    @property
    def activations(self) -> int:
        """Bytes of the peak that are neither weights nor moments: activations and the gradients that are
        there at that moment.
        """
        return self.peak - self.memory.weights - self.memory.moments


def step_cost(vla: VLA, config: TrainingConfig, examples: Examples, at_once: bool = True) -> StepCost:
    """Run one step of training on a model without numbers, pictures included.

    Args:
        vla: on the meta device; used up.
        config: how it is trained.
        examples: the frames that are computed at once. Of the pictures only number and shape matter.
        at_once: the optimiser takes all parameters at once, as it does on a GPU, which takes memory.
    """
    freeze_lower(vla, config.depth, config.tower_frozen)
    lora = config.mode == "lora"
    with adapters(vla, preset_of(vla, config), config.seed) if lora else nullcontext():
        memory = marked_memory(vla, config)
        if config.frozen_weights == "bf16":
            lighten(vla)
        with recomputing(vla) if config.gradient_checkpointing else nullcontext():
            return _run(vla, config, examples, memory, at_once)


def _run(vla: VLA, config: TrainingConfig, examples: Examples, memory: Memory, at_once: bool) -> StepCost:
    trained = [parameter for parameter in vla.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, foreach=at_once)
    for parameter in trained:  # as they are after a first step
        moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.tensor(1.0), **moments}
    model, rows = WholeModel(vla).train(), np.arange(len(examples))
    sequences = lay_out(vla, examples, rows, config)
    shape = (len(rows), *vla.pixel_values(examples.shown(rows[:1])).shape[1:])

    def step() -> None:
        states = vla.states(examples.proprioception)
        # What says where the words of an answer are stays readable.
        words = replace(sequences.to(vla.device), kinds=sequences.kinds)
        batch = Batch(words, torch.empty(shape, device=vla.device), states=states)
        with _Autocast() if config.precision == "bf16" else nullcontext():
            action, reasoning, *_ = objective(model(batch), batch.sequences, config.texts_alike)
            loss = action + config.lambda_reasoning * reasoning
            _backward(loss)
        optimizer.step()
        optimizer.zero_grad()

    live, operations = _LiveBytes(), FlopCounterMode(display=False)
    live.ignore(vla.model.parameters())
    live.ignore(vla.model.buffers())
    live.ignore(value for state in optimizer.state.values() for value in state.values())
    with live:
        step()
    with operations, _LiveBytes():  # apart, because it keeps what layers compute again alive
        step()
    peak = memory.weights + memory.moments + live.peak
    return StepCost(memory, peak, operations.get_total_flops(), sequences.input_ids.shape[1])


def _backward(loss: Tensor) -> None:
    """`loss.backward()`, which would leave `_Autocast`: layers computed again would not be halved."""
    engine: Any = torch.autograd.Variable._execution_engine
    ones, inputs = torch.ones_like(loss), ()
    engine.run_backward((loss,), (ones,), False, False, inputs, allow_unreachable=True, accumulate_grad=True)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside it, as long as they live.

    Attributes:
        peak: the most there were at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._known: set[int] = set()  # storages that are counted, or not to be

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """These were there before."""
        self._known |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is ITEM and args[0].is_meta:
            return 0  # SpatialVLA's depth asks which of two heads is the likelier
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


class _Autocast(TorchFunctionMode):
    """Autocast to bfloat16, which torch does not offer on the meta device: products take halved copies, and
    keep those of the weights until the end.
    """

    def __init__(self) -> None:
        super().__init__()
        self._weights: dict[Tensor, Tensor] = {}

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in HALVED:
            args = [self._halved(value) for value in args]
            kwargs = {name: self._halved(value) for name, value in kwargs.items()}
        return function(*args, **kwargs)

    def _halved(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(torch.bfloat16)
        if value not in self._weights:
            self._weights[value] = value.to(torch.bfloat16)
        return self._weights[value]
