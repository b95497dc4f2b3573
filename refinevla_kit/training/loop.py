"""The fine-tuning loop: batches drawn from (seed, step) alone, so a run killed at any point continues exactly
where its last checkpoint stood.

Runs on accelerate: one CPU process in a notebook, several processes or GPUs under `accelerate launch`, the
same code (on CPUs `accelerate launch --multi_gpu` or torchrun: with --cpu it starts one process). With an
activation cache only the upper layers run, on stored states; the rest of the loop does not know.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from refinevla_kit.errors import KitError
from refinevla_kit.policies.contract import Array
from refinevla_kit.training.activation_cache import ActivationCache, open_or_write
from refinevla_kit.training.adapters import adapters
from refinevla_kit.training.batches import Batch, WholeModel, forward, make_batch, tower_tokens
from refinevla_kit.training.boundary import UpperLayers
from refinevla_kit.training.collapse import check_collapse
from refinevla_kit.training.config import TrainingConfig, check
from refinevla_kit.training.examples import Examples
from refinevla_kit.training.freezing import freeze_lower
from refinevla_kit.training.resume import (
    HISTORY,
    RESUME,
    identity_of,
    read_history,
    resume,
    save_state,
    write_history,
)
from refinevla_kit.vlas.action_tokens import check_actions
from refinevla_kit.vlas.contract import VLA
from refinevla_kit.vlas.sequence import ACTION_KIND, RATIONALE_KIND

__all__ = [
    "HISTORY",
    "RESUME",
    "Batch",
    "TrainingConfig",
    "fine_tune",
    "forward",
    "make_batch",
    "read_history",
    "tower_tokens",
    "validate",
    "write_history",
]

Kept = ActivationCache | Tensor | None
Watch = Callable[[dict[str, Any]], None]
BOARD = "tensorboard"  # folder in a run's
KEYS = {ACTION_KIND: ("loss_action", "action_accuracy", "action_l1"), RATIONALE_KIND: ("loss_reasoning",)}


def fine_tune(
    vla: VLA,
    examples: Examples,
    config: TrainingConfig,
    output: str | Path,
    name: str,
    progress: bool = True,
    cache_folder: str | Path | None = None,
    watch: Watch | None = None,
) -> list[dict[str, Any]]:
    """Fine-tune `vla` in place; keep a history and a resumable state in `output`.

    A second call with the same configuration and data continues an interrupted run, and returns at once when
    it had ended. Where the examples have no state that the policy could read (`Examples.stateful`), it
    becomes one that reads none.

    Args:
        output: folder for `history.jsonl` and `resume/`.
        name: the policy's name in the history and on the bar.
        cache_folder: of activation caches (see `TrainingConfig.cache`), shared by runs that differ in seed or
            learning rate; None: in `output`.
        watch: called with each new row of the history as it comes, in the main process; what it does changes
            nothing about the run.

    Returns:
        The history: one row a step ({"step", "split": "train", "policy", losses, "seconds"}) and one an
            evaluation ("validation").

    Raises:
        KitError: no examples, actions outside the checkpoint's tokens, rationales missing though the
            reasoning loss is asked for, a state or a cache of something else, a cache above its limit, a loss
            that is no number, a policy that has collapsed.
    """
    check(examples, config)
    check_actions(vla.bins, examples.actions)
    if vla.reads_state and not examples.stateful:
        vla.forget_state()
        if progress:
            tqdm.write(
                f"{name} will not read the robot's own state: the data have none in the form of the "
                "kit's recordings"
            )
    counts = freeze_lower(vla, config.depth, config.tower_frozen)
    identity = identity_of(vla, examples, config, counts)
    adapted: AbstractContextManager[None] = nullcontext()
    if config.mode == "lora":
        adapted = adapters(vla, config.depth, config.lora_rank, config.lora_alpha, config.seed)
    folder = Path(output)
    with adapted, _board(folder / BOARD if config.tensorboard else None) as board:
        watchers, caches = [board, *([watch] if watch else [])], Path(cache_folder or folder / "activations")
        history = _train(vla, examples, config, folder, name, progress, caches, identity, watchers)
    vla.model.eval()
    return history


def _train(
    vla: VLA,
    examples: Examples,
    config: TrainingConfig,
    folder: Path,
    name: str,
    progress: bool,
    cache_folder: Path,
    identity: dict[str, Any],
    watchers: Sequence[Watch],
) -> list[dict[str, Any]]:
    # Autocast is entered here, not by accelerate: it keeps the first precision it was given for as long as
    # the process lives.
    accelerator = Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available())
    vla.model.to(accelerator.device)
    trained = [parameter for parameter in vla.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.95)
    )
    step, history = resume(folder, vla, optimizer, identity)
    if step >= config.steps or _stalled(history, config.early_stop):
        return history
    with (
        accelerator.local_main_process_first() if config.caches(len(examples)) else nullcontext()
    ):  # it writes the cache, the others open it
        kept = _keep(vla, examples, config, cache_folder, progress and accelerator.is_local_main_process)
    model, optimizer = accelerator.prepare(runner(vla, config, kept), optimizer)
    training, validation = examples.split()
    if accelerator.num_processes > (most := min(config.batch_size, len(training))):
        raise KitError(
            f"{accelerator.num_processes} processes share steps of {most} frames",
            "launch fewer processes, or raise batch_size",
        )
    model.train()
    hidden = not (progress and accelerator.is_main_process)
    with tqdm(
        total=config.steps, initial=step, desc=f"fine-tuning {name}", unit="step", disable=hidden
    ) as bar:
        while step < config.steps and not _stalled(history, config.early_stop):
            began, known = time.perf_counter(), len(history)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * _schedule(step, config)
            rows = np.sort(
                np.array_split(_rows(training, config, step), accelerator.num_processes)[
                    accelerator.process_index
                ]
            )
            batches = [
                make_batch(vla, examples, part, config, kept)
                for part in np.array_split(rows, min(config.accumulate, len(rows)))
            ]
            row = _backward(accelerator, model, vla, batches, config, f"{name} is {{}} at step {step}")
            if config.clip:
                accelerator.clip_grad_norm_(trained, config.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            history.append(
                {
                    "step": step,
                    "split": "train",
                    "policy": name,
                    **row,
                    "seconds": time.perf_counter() - began,
                }
            )
            last = step == config.steps
            due, saves = (
                every and (last or step % every == 0) for every in (config.validate_every, config.save_every)
            )
            if len(validation) and due:
                history.append(
                    {
                        "step": step,
                        "split": "validation",
                        "policy": name,
                        **validate(vla, examples, validation, config, kept),
                    }
                )
                bar.set_postfix(
                    {
                        key: f"{history[-1][key]:.2f}"
                        for key in ("action_accuracy", "loss")
                        if key in history[-1]
                    },
                    refresh=False,
                )
            if accelerator.is_main_process:
                for new, watcher in product(history[known:], watchers):
                    watcher(new)
            ends = _stalled(history, config.early_stop)
            if (
                due or saves or ends or last
            ) and step > config.grace:  # before a state is saved, so that the one on disk has passed
                vla.model.eval()
                check_collapse(runner(vla, config, kept), vla, examples, validation, config, kept, name, step)
                model.train()
            if accelerator.is_main_process and (saves or (ends and config.save_every)):
                save_state(folder, vla, optimizer, step, history, identity)
            bar.update()
    if accelerator.is_main_process and not config.save_every:
        write_history(folder / HISTORY, history)
    return history


def runner(vla: VLA, config: TrainingConfig, kept: Kept) -> nn.Module:
    """What is run on a batch: the whole model, or its upper layers on cached states."""
    return UpperLayers(vla, config.depth) if isinstance(kept, ActivationCache) else WholeModel(vla)


def _keep(vla: VLA, examples: Examples, config: TrainingConfig, folder: Path, progress: bool) -> Kept:
    """What is computed once, see `make_batch`."""
    if config.caches(len(examples)):
        return open_or_write(vla, examples, config, folder, progress)
    return tower_tokens(vla, examples.images) if config.tower_frozen else None


def _backward(
    accelerator: Accelerator, model: Any, vla: VLA, batches: list[Batch], config: TrainingConfig, about: str
) -> dict[str, float]:
    """Gradients of one step, its frames in parts and over processes; each part counts by its tokens, so that
    neither makes a difference.

    Returns the history's numbers, of the frames of all processes.
    """
    kinds, processes = (ACTION_KIND, RATIONALE_KIND), accelerator.num_processes
    counts = [[int((batch.sequences.kinds == kind).sum()) for batch in batches] for kind in kinds]
    sums = accelerator.reduce(
        torch.tensor([sum(numbers) for numbers in counts], device=accelerator.device), "sum"
    ).tolist()
    row = dict.fromkeys(
        ["loss", *(KEYS[ACTION_KIND] if sums[0] else ()), *(KEYS[RATIONALE_KIND] if sums[1] else ())], 0.0
    )
    for number, batch in enumerate(batches):
        # gradients are averaged over processes, hence their number
        act, think = (
            processes * numbers[number] / max(1, total) for numbers, total in zip(counts, sums, strict=True)
        )
        with accelerator.no_sync(model) if number < len(batches) - 1 else nullcontext():
            with torch.autocast(vla.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                losses = forward(model, vla, batch, config)
            total = (
                losses.total
                if len(batches) * processes == 1
                else act * losses.action + config.lambda_reasoning * think * losses.reasoning
            )
            if not torch.isfinite(total):
                raise KitError(f"the loss of {about.format(float(total))}", "lower the learning rate")
            accelerator.backward(total)
        if len(batches) * processes == 1:
            return losses.to_floats()
        for key, value in {**losses.to_floats(), "loss": float(total.detach())}.items():
            share = {"loss": 1.0, "loss_reasoning": think}.get(key, act)
            row[key] += share * value if share else 0.0
    means = accelerator.reduce(
        torch.tensor(list(row.values()), dtype=torch.float64, device=accelerator.device), "mean"
    )
    return dict(zip(row, means.tolist(), strict=True))


@torch.no_grad()
def validate(
    vla: VLA, examples: Examples, rows: Array, config: TrainingConfig, kept: Kept = None, frames: int = 128
) -> dict[str, float]:
    """The objective's parts on at most `frames` of the held-out frames `rows` (at least one), evenly spaced.
    `kept`: see `make_batch`.
    """
    chosen = rows[np.linspace(0, len(rows) - 1, min(frames, len(rows))).astype(int)]
    was_training = vla.model.training
    vla.model.eval()
    model = runner(vla, config, kept)
    parts = []
    for batch in np.array_split(chosen, math.ceil(len(chosen) / config.batch_size)):
        with torch.autocast(vla.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            parts.append(
                (
                    len(batch),
                    forward(model, vla, make_batch(vla, examples, batch, config, kept), config).to_floats(),
                )
            )
    vla.model.train(was_training)
    having = {
        key: [(n, part[key]) for n, part in parts if key in part]
        for key in dict.fromkeys(key for _, part in parts for key in part)
    }
    return {
        key: sum(n * value for n, value in rows) / sum(n for n, _ in rows) for key, rows in having.items()
    }


def _rows(training: Array, config: TrainingConfig, step: int) -> Array:
    """Frames of step `step`: successive slices of one permutation an epoch."""
    epoch, place = divmod(step, max(1, len(training) // config.batch_size))
    order = np.random.default_rng([config.seed, epoch]).permutation(len(training))
    return training[order[place * config.batch_size : (place + 1) * config.batch_size]]


def _schedule(step: int, config: TrainingConfig) -> float:
    """Share of the peak learning rate: linear warm-up, cosine to a tenth."""
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(1, config.steps - warm)))


def _stalled(history: list[dict[str, Any]], patience: int) -> bool:
    """The last `patience` evaluations brought no better action loss than there had been."""
    losses = [row["loss_action"] for row in history if row["split"] == "validation" and "loss_action" in row]
    return 0 < patience < len(losses) and min(losses[-patience:]) >= min(losses[:-patience])


@contextmanager
def _board(folder: Path | None) -> Iterator[Any]:
    """A function that shows a row of the history in TensorBoard; one that does nothing for None.

    Raises:
        KitError: TensorBoard is not installed.
    """
    if folder is None:
        yield lambda row: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise KitError(
            f"TensorBoard cannot be imported ({error})",
            "install it (pip install tensorboard), or set tensorboard to False",
        ) from error
    with SummaryWriter(str(folder)) as writer:

        def show(row: dict[str, Any]) -> None:
            for key in row.keys() - {"step", "split", "policy"}:
                writer.add_scalar(f"{row['split']}/{key}", row[key], row["step"])

        yield show
