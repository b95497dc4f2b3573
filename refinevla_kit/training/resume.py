"""What a run leaves on disk while it goes: a history that any program reads, and a state from which it
continues bit for bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from refinevla_kit.errors import KitError, as_kit_error, listed
from refinevla_kit.files import clear, read_json, replacing, write_json
from refinevla_kit.journal import sync
from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.examples import Examples
from refinevla_kit.training.sharding import whole
from refinevla_kit.vlas.contract import VLA

RESUME, ROWS, HISTORY = "resume", "rows.jsonl", "history.jsonl"
# settings that change nothing about the weights
WITHOUT_EFFECT = ("cache_limit_gb", "tensorboard", "collapse_grace", "gradient_checkpointing")
# settings that came later: left out at their usual values, so that what was made before still counts
ADDED = ("frozen_weights", "adapter_preset", "adapter_form", "robot", "texts_alike", "base_share")


def effective(config: TrainingConfig) -> dict[str, Any]:
    """The settings that the trained weights depend on."""
    settings = without_unchanged(config, ADDED)
    return {name: value for name, value in settings.items() if name not in WITHOUT_EFFECT}


def without_unchanged(config: TrainingConfig, names: Sequence[str]) -> dict[str, Any]:
    """All settings, but for those of `names` that have their usual values."""
    usual = {name: getattr(TrainingConfig, name) for name in names}
    return {
        name: value for name, value in asdict(config).items() if name not in usual or value != usual[name]
    }


def identity_of(
    vla: VLA, examples: Examples, config: TrainingConfig, counts: dict[str, int]
) -> dict[str, Any]:
    """What a resumable state must agree on: the settings, the weights that training starts from, the data."""
    base = hashlib.sha256()
    for tensor in vla.model.state_dict().values():
        base.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    base.update(vla.settings.encode())
    data = examples.digest(vla.reads_state)
    return {**effective(config), **counts, "frames": len(examples), "base": base.hexdigest(), "data": data}


def state_tensors(vla: VLA, optimizer: Any) -> dict[str, torch.Tensor]:
    """Trained weights and moments by name, each in one piece; all processes of a run have to ask."""
    tensors = {
        f"model.{name}": whole(p.detach()).contiguous()
        for name, p in vla.model.named_parameters()
        if p.requires_grad
    }
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": whole(value).contiguous() for key, value in moments.items()}
    return tensors


def save_state(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    step: int,
    history: list[dict[str, Any]],
    identity: dict[str, Any],
) -> None:
    """Trained weights and moments as safetensors, the rest as JSON, in one folder that is replaced whole."""
    write_history(folder / HISTORY, history)  # first: nothing writes it once the last state is there
    with replacing(folder / RESUME) as part:
        part.mkdir(parents=True)
        save_file(tensors, part / "state.safetensors")
        write_json(part / "state.json", {"step": step, "identity": identity})
        write_history(part / ROWS, history)
        for file in (*part.iterdir(), part):
            sync(file)  # the state before it goes now


def resume(
    folder: Path, vla: VLA, optimizer: torch.optim.Optimizer, identity: dict[str, Any]
) -> tuple[int, list[dict[str, Any]]]:
    """Put the last state back: the step it is of, and the history until then; (0, []) when there is none.

    Raises:
        KitError: it cannot be read, is of another run, or its tensors are not exactly those that train now.
    """
    state, again = folder / RESUME, "delete that folder to start again"
    clear(state)  # a kill while it was replaced may have left the one before
    if not (state / "state.json").is_file():
        return 0, []
    # No lack of memory is among these: that state is good.
    damage = (SafetensorError, OSError, ValueError, KeyError, TypeError)
    with as_kit_error(f"the state in {state} cannot be read", again, damage):
        stored = read_json(state / "state.json")
        found, step = dict(stored["identity"]), int(stored["step"])
        rows, tensors = read_history(state / ROWS), load_file(state / "state.safetensors")
    keys = {**identity, **found}
    other = [key for key in keys if key not in identity or found.get(key) != identity[key]]
    if other:
        said = [f"{key} ({str(found.get(key))[:12]}, now {str(identity.get(key))[:12]})" for key in other]
        what = f"{folder} holds a run with another {', '.join(said)}"
        raise KitError(what, "set back what was set otherwise, or give another output folder")
    trained = {name: p for name, p in vla.model.named_parameters() if p.requires_grad}
    wanted = {f"model.{name}": p.shape for name, p in trained.items()}
    for number, p in enumerate(trained.values()):
        wanted[f"optimizer.{number}.step"] = torch.Size([])
        for key in ("exp_avg", "exp_avg_sq"):
            wanted[f"optimizer.{number}.{key}"] = p.shape
    shapes = {name: x.shape for name, x in tensors.items()}
    strange = sorted(name for name in {**wanted, **shapes} if wanted.get(name) != shapes.get(name))
    if strange:
        what = f"the state in {state} is not of this model ({len(strange)} tensors differ: {listed(strange)})"
        raise KitError(what, again)
    broken = [name for name, x in tensors.items() if not torch.isfinite(x).all()]
    if broken:
        raise KitError(f"the state in {state} holds what is no number ({listed(broken)})", again)
    vla.model.load_state_dict({name: tensors[f"model.{name}"] for name in trained}, strict=False)
    moments = {
        number: {key: tensors[f"optimizer.{number}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        for number in range(len(trained))
    }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    return step, rows


def write_history(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line."""
    with replacing(path) as part:
        part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """Inverse of `write_history`."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
