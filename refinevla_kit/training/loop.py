"""The fine-tuning loop: batches drawn from (seed, step) alone, so a run killed at any point continues exactly where its last checkpoint stood.

Runs on accelerate: one CPU process in a notebook, several processes or GPUs under `accelerate launch`, the same code.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from refinevla_kit.errors import KitError
from refinevla_kit.files import replacing, write_json
from refinevla_kit.policies.action_tokens import check_actions
from refinevla_kit.policies.compact_vla import CompactVLA
from refinevla_kit.policies.contract import Array
from refinevla_kit.policies.sequence import Sequences, answer_ids, pad_batch, prefix_ids
from refinevla_kit.policies.vocabulary import PAD, first_action_id, token_id
from refinevla_kit.training.examples import Examples
from refinevla_kit.training.freezing import freeze_lower
from refinevla_kit.training.objective import Losses, joint_loss

RESUME, ROWS, HISTORY = "resume", "rows.jsonl", "history.jsonl"


@dataclass(frozen=True)
class TrainingConfig:
    """How to fine-tune.

    Attributes:
        steps, batch_size: optimiser steps, frames a step (over all processes).
        learning_rate: peak, after a linear warm-up over `warmup` of the steps; then a cosine down to a tenth.
        lambda_reasoning: weight of the rationale loss; 0 leaves the rationales out of the sequence (nothing to pay for).
        freeze_layers: lower language layers frozen, with projector and embeddings when there are any.
        freeze_tower: the vision tower is frozen; its tokens are then computed once and kept.
        order: "action_first" or "rationale_first".
        precision: "bf16" (autocast) or "fp32".
        validate_every, save_every: steps between evaluations on held-out episodes and between resumable states.
        seed: of the batches; same seed, same run.
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
    precision: str = "bf16"
    validate_every: int = 50
    save_every: int = 200
    seed: int = 0


@dataclass(frozen=True)
class Batch:
    """What the model sees: pixel_values float32 (B, 3, H, W), or the frozen tower's patches (B, P, d) instead; states (B, 22) where the policy reads
    the robot's own; and the sequences over them."""

    sequences: Sequences
    pixel_values: Tensor | None
    tokens: Tensor | None
    states: Tensor | None


@torch.no_grad()
def tower_tokens(vla: CompactVLA, images: Array, chunk: int = 64) -> Tensor:
    """The vision tower's tokens of every picture: uint8 (N, H, W, 3) -> float16 (N, P, d). Frozen is computed once: 18 kB a frame, on the CPU."""
    tower = vla.model.model.vision_tower
    parts = (tower(pixel_values=vla.pixel_values(images[i : i + chunk])) for i in range(0, len(images), chunk))
    return torch.cat([part.last_hidden_state.half().cpu() for part in parts])


def make_batch(vla: CompactVLA, examples: Examples, rows: Array, config: TrainingConfig, tokens: Tensor | None = None) -> Batch:
    """Lay out the frames `rows` (int (B,)) as sequences on the model's device. `tokens`: of all examples, where the tower is frozen."""
    first = first_action_id(vla.tokenizer)
    acts: Array = np.isfinite(examples.actions[rows]).all(axis=1)  # B; a frame that is only spoken about has no action
    bins = vla.bins.encode(np.nan_to_num(examples.actions[rows])) + first  # B, A
    prefixes = [prefix_ids(vla.tokenizer, vla.image_tokens, examples.instructions[row]) for row in rows]
    texts = [examples.rationales[row] if config.lambda_reasoning > 0 else "" for row in rows]
    actions = [action.tolist() if acted else [] for action, acted in zip(bins, acts, strict=True)]
    answers = [answer_ids(vla.tokenizer, action, text, config.order) for action, text in zip(actions, texts, strict=True)]
    sequences = pad_batch(prefixes, answers, token_id(vla.tokenizer, PAD))
    device = vla.model.device
    sequences = Sequences(*(getattr(sequences, field).to(device) for field in Sequences.__dataclass_fields__))
    states = vla.states(None if examples.proprioception is None else examples.proprioception[rows])
    if tokens is not None:
        return Batch(sequences, None, tokens[torch.from_numpy(rows)].to(device).float(), states)
    return Batch(sequences, vla.pixel_values(examples.images[rows]), None, states)


def forward(model: Any, vla: CompactVLA, batch: Batch, config: TrainingConfig) -> Losses:
    """Run the model on a batch and take the objective. `model` is `vla.model`, or what accelerate made of it."""
    sequences = batch.sequences
    if batch.tokens is not None:
        features = vla.image_features(batch.tokens, batch.states)
    else:
        assert batch.pixel_values is not None
        features = vla.encode(batch.pixel_values, batch.states)
    logits = model(
        input_ids=sequences.input_ids, mm_encoder_outputs=features, attention_mask=sequences.attention_mask,
        token_type_ids=sequences.token_type_ids, logits_to_keep=sequences.input_ids.shape[1] - vla.image_tokens, use_cache=False,
    ).logits  # B, K, V  # fmt: skip
    return joint_loss(logits, sequences, config.lambda_reasoning, first_action_id(vla.tokenizer), vla.bins)


def fine_tune(
    vla: CompactVLA, examples: Examples, config: TrainingConfig, output: str | Path, name: str, progress: bool = True
) -> list[dict[str, Any]]:
    """Fine-tune `vla` in place; keep a history and a resumable state in `output`.

    A second call with the same configuration and data continues an interrupted run, and returns at once when it had ended.

    Args:
        output: folder for `history.jsonl` and `resume/`. name: the policy's name in the history and on the bar.

    Returns:
        The history: one row a step ({"step", "split": "train", "policy", losses, "seconds"}) and one an evaluation ("validation").

    Raises:
        KitError: no examples, actions outside the checkpoint's tokens, rationales missing though the reasoning loss is asked for, a state of another
            configuration, a loss that is no number.
    """
    from tqdm.auto import tqdm

    _check(examples, config)
    check_actions(vla.bins, examples.actions)
    accelerator = Accelerator(mixed_precision="bf16" if config.precision == "bf16" else "no", cpu=not torch.cuda.is_available())
    counts = freeze_lower(vla, config.freeze_layers, config.freeze_tower)
    vla.model.to(accelerator.device)
    trained = [parameter for parameter in vla.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.95))
    folder = Path(output)
    identity = _identity(vla, examples, config, counts)
    step, history = _resume(folder, vla, optimizer, identity)
    model, optimizer = accelerator.prepare(vla.model, optimizer)
    training, validation = examples.split()
    tokens = tower_tokens(vla, examples.images) if config.freeze_tower else None
    share = max(1, config.batch_size // accelerator.num_processes)
    mine = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
    model.train()
    hidden = not (progress and accelerator.is_main_process)
    with tqdm(total=config.steps, initial=step, desc=f"fine-tuning {name}", unit="step", disable=hidden) as bar:
        while step < config.steps:
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * _schedule(step, config)
            rows = np.sort(_rows(training, config, step)[mine])
            losses = forward(model, vla, make_batch(vla, examples, rows, config, tokens), config)
            if not torch.isfinite(losses.total):
                raise KitError(f"the loss of {name} is {float(losses.total)} at step {step}", "lower the learning rate")
            accelerator.backward(losses.total)
            accelerator.clip_grad_norm_(trained, config.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            history.append({"step": step, "split": "train", "policy": name, **losses.to_floats(), "seconds": time.perf_counter() - began})
            if len(validation) and (step % config.validate_every == 0 or step == config.steps):
                history.append({"step": step, "split": "validation", "policy": name, **validate(vla, examples, validation, config, tokens)})
                bar.set_postfix(action_accuracy=f"{history[-1]['action_accuracy']:.2f}", loss=f"{history[-1]['loss']:.2f}", refresh=False)
            if accelerator.is_main_process and (step % config.save_every == 0 or step == config.steps):
                _save_state(folder, vla, optimizer, step, history, identity)
            bar.update()
    vla.model.eval()
    return history


@torch.no_grad()
def validate(
    vla: CompactVLA, examples: Examples, rows: Array, config: TrainingConfig, tokens: Tensor | None = None, frames: int = 128
) -> dict[str, float]:
    """The objective's parts on at most `frames` of the held-out frames `rows` (at least one), evenly spaced."""
    chosen = rows[np.linspace(0, len(rows) - 1, min(frames, len(rows))).astype(int)]
    was_training = vla.model.training
    vla.model.eval()
    parts = []
    for batch in np.array_split(chosen, math.ceil(len(chosen) / config.batch_size)):
        with torch.autocast(vla.model.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            parts.append((len(batch), forward(vla.model, vla, make_batch(vla, examples, batch, config, tokens), config).to_floats()))
    vla.model.train(was_training)
    having = {key: [(n, part[key]) for n, part in parts if key in part] for key in parts[0][1]}
    return {key: sum(n * value for n, value in rows) / sum(n for n, _ in rows) for key, rows in having.items()}


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


def _check(examples: Examples, config: TrainingConfig) -> None:
    if len(examples) == 0:
        raise KitError("no training examples", "record at least one episode")
    if config.steps < 1 or config.batch_size < 1:
        raise KitError(f"{config.steps} steps of {config.batch_size} frames", "ask for at least one of each")
    if config.lambda_reasoning > 0 and not any(examples.rationales):
        raise KitError("the reasoning loss is on, but no frame has a rationale", "annotate the dataset (notebook 01) or set lambda_reasoning to 0")


def _identity(vla: CompactVLA, examples: Examples, config: TrainingConfig, counts: dict[str, int]) -> dict[str, Any]:
    """What a resumable state must agree on: the settings, the weights that training starts from, the data."""
    base, data = hashlib.sha256(), hashlib.sha256(json.dumps([examples.instructions, examples.rationales]).encode())
    for tensor in vla.model.state_dict().values():
        base.update(tensor.cpu().numpy().tobytes())
    for array in (examples.images, examples.actions, examples.episodes):
        data.update(np.ascontiguousarray(array).tobytes())
    return {**asdict(config), **counts, "frames": len(examples), "base": base.hexdigest(), "data": data.hexdigest()}


def _save_state(folder: Path, vla: CompactVLA, optimizer: Any, step: int, history: list[dict[str, Any]], identity: dict[str, Any]) -> None:
    """Trained weights and moments as safetensors, the rest as JSON, in one folder that is replaced whole."""
    tensors = {f"model.{name}": p.detach().contiguous() for name, p in vla.model.named_parameters() if p.requires_grad}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value.contiguous() for key, value in moments.items()}
    with replacing(folder / RESUME) as part:
        part.mkdir(parents=True)
        save_file(tensors, part / "state.safetensors")
        write_json(part / "state.json", {"step": step, "identity": identity})
        write_history(part / ROWS, history)
    write_history(folder / HISTORY, history)


def _resume(folder: Path, vla: CompactVLA, optimizer: torch.optim.Optimizer, identity: dict[str, Any]) -> tuple[int, list[dict[str, Any]]]:
    """Put the last state back; (0, []) when there is none."""
    state = folder / RESUME / "state.json"
    if not state.is_file():
        return 0, []
    try:
        stored = json.loads(state.read_text(encoding="utf-8"))
        tensors = load_file(folder / RESUME / "state.safetensors")
    except (SafetensorError, OSError, ValueError) as error:
        raise KitError(f"the state in {folder / RESUME} cannot be read ({error})", "delete that folder to start again") from error
    if stored["identity"] != identity:
        different = [key for key in identity if stored["identity"].get(key) != identity[key]]
        raise KitError(f"{folder} holds a run with another {', '.join(different)}", "give another output folder, or delete this one")
    vla.model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}, strict=False)
    layout = optimizer.state_dict()
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, field = key.split(".", 2)
            moments.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": moments, "param_groups": layout["param_groups"]})
    return int(stored["step"]), read_history(folder / RESUME / ROWS)


def write_history(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line."""
    with replacing(path) as part:
        part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """Inverse of `write_history`."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
