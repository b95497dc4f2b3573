"""Teaching the vision tower where things are, before it is asked what to do about them.

At a hundred thousand samples the action loss alone does not teach a small tower to see: a policy trained so
finds the plate to 3 mm and the carrot to
15. The simulator knows every object's place for free, so each patch token first learns to say which patch
  holds which thing, where inside the patch,
how it is turned and how high it is. The heads are thrown away; the tokens keep the knowledge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from refinevla_kit.episodes import open_dataset
from refinevla_kit.policies.contract import Array
from refinevla_kit.simulator.contract import SceneState
from refinevla_kit.simulator.geometry import project
from refinevla_kit.tasks import WIDOWX_TASKS, Task, find_task
from refinevla_kit.training.config import native_precision
from refinevla_kit.vlas.compact import CompactVLA

THINGS = (*(name for task in WIDOWX_TASKS for name in (task.source, task.target)), "gripper")
TABLE_HEIGHT = 0.87  # m
NOWHERE = -1


@dataclass(frozen=True)
class Places:
    """Where each of `THINGS` is in N frames.

    Attributes:
        pixels: float32 (N, T, 2), column and row as shares of the picture;
        present: bool (N, T), it belongs to the frame's task and is in view.
        attributes: float32 (N, T, 4): cos and sin of twice its long axis' angle in the table plane (the
            fingers' for the gripper), height above the table in decimetres, finger opening (gripper; 0 for
            objects).
    """

    pixels: Array
    present: Array
    attributes: Array


def load_places(dataset: str | Path) -> Places:
    """Places from the simulator sidecar of a dataset, in the order of its frames."""
    source = open_dataset(dataset)
    parts = [frame_places(find_task(item.task), source.states(item.index) or []) for item in source.episodes]
    return Places(
        *(np.concatenate([getattr(part, field) for part in parts]) for field in Places.__dataclass_fields__)
    )


def frame_places(task: Task, states: Sequence[SceneState]) -> Places:
    """Places in the frames of one episode."""
    n = len(states)
    pixels, attributes = np.zeros((n, len(THINGS), 2), np.float32), np.zeros((n, len(THINGS), 4), np.float32)
    present = np.zeros((n, len(THINGS)), bool)
    for name, field in ((task.source, "source"), (task.target, "target"), ("gripper", "tcp")):
        thing = THINGS.index(name)
        poses = np.stack([getattr(state, field) for state in states]).astype(np.float64)  # n, 7
        where = project(task, poses[:, :3], 1, 1)  # n, 2
        pixels[:, thing], present[:, thing] = where, ((where > 0) & (where < 1)).all(1)
        axis = _axis(poses[:, 3:], 1 if name == "gripper" else 0)
        angle = 2 * np.arctan2(axis[:, 1], axis[:, 0])
        opening = [float(state.opening) for state in states] if name == "gripper" else np.zeros(n)
        attributes[:, thing] = np.stack(
            [np.cos(angle), np.sin(angle), (poses[:, 2] - TABLE_HEIGHT) * 10, opening], axis=1
        )
    return Places(pixels, present, attributes)


def ground_tower(
    vla: CompactVLA,
    images: Array,
    places: Places,
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> list[dict[str, float]]:
    """Train `vla`'s vision tower in place. images: uint8 (N, H, W, 3).

    Returns:
        History: {"step", "loss", "pixel_error" (mean distance in pixels of a 160 x 120 picture; left out
            where no patch is right), "cell_accuracy"} every 50 steps, on the batch.
    """
    from tqdm.auto import trange

    tower, (rows, columns) = vla.model.model.vision_tower, vla.grid
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(
            tower.config.hidden_size, len(THINGS) * 7
        )  # a thing: is it here, 2 offsets, 4 attributes
    optimizer = torch.optim.AdamW(
        [*tower.parameters(), *head.parameters()], lr=learning_rate, weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    rng, history = np.random.default_rng(seed), []
    native = native_precision() == "bf16"
    tower.train()
    for step in trange(steps, desc="grounding the vision tower", unit="step"):
        chosen = np.sort(rng.integers(0, len(images), batch_size))
        pixels, present, attributes = (
            torch.from_numpy(np.asarray(x[chosen]))
            for x in (places.pixels, places.present, places.attributes)
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=native):
            tokens = tower(pixel_values=vla.pixel_values(images[chosen])).last_hidden_state  # B, P, d
        said = head(tokens.float()).unflatten(-1, (len(THINGS), 7))  # B, P, T, 7
        scaled = pixels * torch.tensor([columns, rows])  # B, T, 2 in patches
        cell = scaled.floor().long()
        index = cell[..., 1].clamp(0, rows - 1) * columns + cell[..., 0].clamp(0, columns - 1)  # B, T
        scores = said[..., 0].transpose(1, 2)[present]  # M, P
        here = said.gather(1, index[:, None, :, None].expand(-1, 1, -1, 7))[:, 0][present]  # M, 7
        offset = (scaled - cell - 0.5)[present]  # M, 2
        place_loss = nn.functional.cross_entropy(scores, index[present])
        offset_loss = nn.functional.smooth_l1_loss(here[:, 1:3], offset, beta=0.1)
        loss = (
            place_loss
            + 4 * offset_loss
            + nn.functional.smooth_l1_loss(here[:, 3:], attributes[present], beta=0.1)
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 49 or step == steps - 1:
            history.append(
                {
                    "step": step + 1,
                    "loss": float(loss.detach()),
                    **_errors(scores, here, index[present], offset),
                }
            )
    tower.eval()
    return history


@torch.no_grad()
def _errors(scores: Tensor, here: Tensor, index: Tensor, offset: Tensor) -> dict[str, float]:
    right = scores.argmax(-1) == index
    error = (here[:, 1:3] - offset).norm(dim=-1) * 20  # patches of 20 pixels
    found = (
        {"pixel_error": float(error[right].mean())} if right.any() else {}
    )  # in the wrong patch there is no such error
    return found | {"cell_accuracy": float(right.float().mean())}


def _axis(quaternions: Array, axis: int) -> Array:
    """World direction (N, 3) of a body's local axis, from quaternions (N, 4) (w, x, y, z)."""
    w, v = quaternions[:, :1], quaternions[:, 1:]
    unit = np.tile(np.eye(3)[axis], (len(quaternions), 1))
    return unit + 2 * np.cross(v, np.cross(v, unit) + w * unit)
