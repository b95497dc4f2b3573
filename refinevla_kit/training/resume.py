"""What a run leaves on disk while it goes: a history that any program reads, and a state from which it
continues bit for bit.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from refinevla_kit.errors import KitError, listed
from refinevla_kit.files import replacing, write_json
from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.examples import Examples
from refinevla_kit.vlas.contract import VLA

RESUME, ROWS, HISTORY = "resume", "rows.jsonl", "history.jsonl"
WITHOUT_EFFECT = (
    "cache_limit_gb",
    "tensorboard",
    "collapse_grace",
)  # settings that change nothing about the weights


def identity_of(
    vla: VLA, examples: Examples, config: TrainingConfig, counts: dict[str, int]
) -> dict[str, Any]:
    """What a resumable state must agree on: the settings, the weights that training starts from, the data."""
    base = hashlib.sha256()
    for tensor in vla.model.state_dict().values():
        base.update(tensor.cpu().numpy().tobytes())
    settings = {key: value for key, value in asdict(config).items() if key not in WITHOUT_EFFECT}
    return {
        **settings,
        **counts,
        "frames": len(examples),
        "base": base.hexdigest(),
        "data": examples.digest(vla.reads_state),
    }


def save_state(
    folder: Path, vla: VLA, optimizer: Any, step: int, history: list[dict[str, Any]], identity: dict[str, Any]
) -> None:
    """Trained weights and moments as safetensors, the rest as JSON, in one folder that is replaced whole."""
    tensors = {
        f"model.{name}": p.detach().contiguous()
        for name, p in vla.model.named_parameters()
        if p.requires_grad
    }
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value.contiguous() for key, value in moments.items()}
    with replacing(folder / RESUME) as part:
        part.mkdir(parents=True)
        save_file(tensors, part / "state.safetensors")
        write_json(part / "state.json", {"step": step, "identity": identity})
        write_history(part / ROWS, history)
    write_history(folder / HISTORY, history)


def resume(
    folder: Path, vla: VLA, optimizer: torch.optim.Optimizer, identity: dict[str, Any]
) -> tuple[int, list[dict[str, Any]]]:
    """Put the last state back; (0, []) when there is none.

    Raises:
        KitError: it cannot be read, is of another run, or its tensors are not exactly those that train now.
    """
    state = folder / RESUME / "state.json"
    if not state.is_file():
        return 0, []
    again = "delete that folder to start again"
    try:
        stored, rows = json.loads(state.read_text(encoding="utf-8")), read_history(folder / RESUME / ROWS)
        tensors, found, step = (
            load_file(folder / RESUME / "state.safetensors"),
            dict(stored["identity"]),
            int(stored["step"]),
        )
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise KitError(f"the state in {folder / RESUME} cannot be read ({error})", again) from error
    if different := [
        key for key in {**identity, **found} if key not in identity or found.get(key) != identity[key]
    ]:
        raise KitError(
            f"{folder} holds a run with another {', '.join(different)}",
            "give another output folder, or delete this one",
        )
    trained = {f"model.{name}": p for name, p in vla.model.named_parameters() if p.requires_grad}
    wanted = {name: p.shape for name, p in trained.items()}
    for number, p in enumerate(trained.values()):
        wanted |= {f"optimizer.{number}.step": torch.Size([])} | {
            f"optimizer.{number}.{key}": p.shape for key in ("exp_avg", "exp_avg_sq")
        }
    shapes = {name: x.shape for name, x in tensors.items()}
    if strange := sorted(name for name in {**wanted, **shapes} if wanted.get(name) != shapes.get(name)):
        raise KitError(
            f"the state in {folder / RESUME} is not of this model ({len(strange)} tensors differ: "
            f"{listed(strange)})",
            again,
        )
    if broken := [name for name, x in tensors.items() if not torch.isfinite(x).all()]:
        raise KitError(f"the state in {folder / RESUME} holds what is no number ({listed(broken)})", again)
    vla.model.load_state_dict(
        {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}, strict=False
    )
    layout = optimizer.state_dict()
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, field = key.split(".", 2)
            moments.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": moments, "param_groups": layout["param_groups"]})
    return step, rows


def write_history(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line."""
    with replacing(path) as part:
        part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """Inverse of `write_history`."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
