"""Teaching the vision tower where things are, before it is asked what to do about them.

At a hundred thousand samples the action loss alone does not teach a small tower to see: a policy trained so
finds the plate to 3 mm and the carrot to
15. The simulator knows every object's place for free, so each patch token first learns to say which patch
  holds which thing, where inside the patch,
how it is turned and how high it is. The heads are thrown away; the tokens keep the knowledge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn

from refinevla_kit.episodes import open_dataset
from refinevla_kit.policies.contract import Array
from refinevla_kit.simulator.contract import SceneState
from refinevla_kit.simulator.geometry import project
from refinevla_kit.tasks import WIDOWX_TASKS, Task, find_task
from refinevla_kit.teacher.audit import named_masks
from refinevla_kit.training.config import native_precision
from refinevla_kit.vlas.compact import CompactVLA

THINGS = (*(name for task in WIDOWX_TASKS for name in (task.source, task.target)), "gripper")
"""Those of SIMPLER's WidowX tasks; `things_of` says what other datasets show."""
TABLE_HEIGHT = 0.87  # m
SEEN = 4  # pixels, of a thing that is in view


@dataclass(frozen=True)
class Places:
    """Where each of T things is in N frames.

    Attributes:
        pixels: float32 (N, T, 2), column and row as shares of the picture: of its origin where the state and
            the camera are known (the WidowX's source, target and gripper), else the middle of what is seen.
        present: bool (N, T), it is in view.
        attributes: float32 (N, T, 4): cos and sin of twice its long axis' angle in the table plane (the
            fingers' for the gripper), height above the table in decimetres, finger opening (gripper; 0 for
            objects).
        known: bool (N, T), the attributes are those of the state.
    """

    pixels: Array
    present: Array
    attributes: Array
    known: Array


def things_of(datasets: Sequence[str | Path]) -> tuple[str, ...]:
    """Everything that these datasets show and have a mask of, by the words of their instructions."""
    names = {"gripper"}
    for path in datasets:
        source = open_dataset(path)
        for item in source.episodes:
            names |= set(named_masks(item.instruction, source.masks(item.index)))
    return tuple(sorted(names - {"arm", "background"}))


def load_places(dataset: str | Path, things: Sequence[str] = THINGS) -> Places:
    """Places from the simulator sidecar of a dataset, in the order of its frames."""
    source = open_dataset(dataset)
    parts = [
        frame_places(
            find_task(item.task),
            source.states(item.index) or [],
            named_masks(item.instruction, source.masks(item.index)),
            things,
        )
        for item in source.episodes
    ]
    return Places(
        *(np.concatenate([getattr(part, field) for part in parts]) for field in Places.__dataclass_fields__)
    )


def frame_places(
    task: Task, states: Sequence[SceneState], masks: Mapping[str, Array], things: Sequence[str] = THINGS
) -> Places:
    """Places in the frames of one episode; masks: name -> bool (n, H, W)."""
    n = len(states)
    pixels, attributes = np.zeros((n, len(things), 2), np.float32), np.zeros((n, len(things), 4), np.float32)
    present, known = np.zeros((n, len(things)), bool), np.zeros((n, len(things)), bool)
    for thing, name in enumerate(things):
        if name in masks:
            pixels[:, thing], present[:, thing] = _middles(masks[name])
    roles = zip((*named_roles(task, masks), "gripper"), ("source", "target", "tcp"), strict=True)
    for name, field in ((name, field) for name, field in roles if name in things):
        thing = things.index(name)
        poses = np.stack([getattr(state, field) for state in states]).astype(np.float64)  # n, 7
        known[:, thing] = present[:, thing]
        if task.robot == "widowx":
            where = project(task, poses[:, :3], 1, 1)  # n, 2
            pixels[:, thing], present[:, thing] = where, ((where > 0) & (where < 1)).all(1)
            known[:, thing] = present[:, thing]
        axis = _axis(poses[:, 3:], 1 if name == "gripper" else 0)
        angle = 2 * np.arctan2(axis[:, 1], axis[:, 0])
        opening = [float(state.opening) for state in states] if name == "gripper" else np.zeros(n)
        attributes[:, thing] = np.stack(
            [np.cos(angle), np.sin(angle), (poses[:, 2] - TABLE_HEIGHT) * 10, opening], axis=1
        )
    return Places(pixels, present, attributes, known)


def named_roles(task: Task, masks: Mapping[str, Array]) -> tuple[str, str]:
    """What is to be moved and where it goes, as `masks` names them; "" where their names or their places
    change within an episode (move near, tasks of several goals, the apple's drawer).
    """
    steady = len(task.goals) < 2 and task.target != "top drawer"
    source, target = (name if name in masks and steady else "" for name in (task.source, task.target))
    return source, target


def _middles(mask: Array) -> tuple[Array, Array]:
    """The middle of what is seen in each frame as shares of the picture, (n, 2), and whether enough is."""
    _, height, width = mask.shape
    count = mask.sum((1, 2))
    divisor = np.maximum(count, 1)
    across = (mask.sum(1) * (np.arange(width) + 0.5)).sum(1) / divisor / width
    down = (mask.sum(2) * (np.arange(height) + 0.5)).sum(1) / divisor / height
    return np.stack([across, down], axis=1), count >= SEEN


def ground_tower(
    vla: CompactVLA,
    images: Array,
    places: Places,
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
    rows: Array | None = None,
) -> list[dict[str, float]]:
    """Train `vla`'s vision tower in place, each process on its share of a batch.

    images: uint8 (N, H, W, 3). rows: of them, those that are learned from; None for all.

    Returns:
        History: {"step", "loss", "pixel_error" (mean distance in pixels of a 160 x 120 picture; left out
            where no patch is right), "cell_accuracy"} every 50 steps, on the batch.
    """
    from tqdm.auto import trange

    tower, (down, across) = vla.model.model.vision_tower, vla.grid
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        things = places.present.shape[1]
        head = nn.Linear(tower.config.hidden_size, things * 7)  # is it here, 2 offsets, 4 attributes
    optimizer = torch.optim.AdamW(
        [*tower.parameters(), *head.parameters()], lr=learning_rate, weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    rows = np.arange(len(images)) if rows is None else rows
    rng, history, state = np.random.default_rng(seed), [], PartialState(cpu=not torch.cuda.is_available())
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    native = native_precision() == "bf16"
    tower.train()
    for step in trange(steps, desc="grounding the vision tower", unit="step"):
        drawn = rows[rng.integers(0, len(rows), batch_size)]
        chosen = np.sort(np.array_split(drawn, state.num_processes)[state.process_index])
        pixels, present, attributes, known = (
            torch.from_numpy(np.asarray(x[chosen]))
            for x in (places.pixels, places.present, places.attributes, places.known)
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=native):
            tokens = tower(pixel_values=vla.pixel_values(images[chosen])).last_hidden_state  # B, P, d
        said = head(tokens.float()).unflatten(-1, (things, 7))  # B, P, T, 7
        scaled = pixels * torch.tensor([across, down])  # B, T, 2 in patches
        cell = scaled.floor().long()
        index = cell[..., 1].clamp(0, down - 1) * across + cell[..., 0].clamp(0, across - 1)  # B, T
        scores = said[..., 0].transpose(1, 2)[present]  # M, P
        here = said.gather(1, index[:, None, :, None].expand(-1, 1, -1, 7))[:, 0][present]  # M, 7
        offset = (scaled - cell - 0.5)[present]  # M, 2
        place_loss = nn.functional.cross_entropy(scores, index[present])
        offset_loss = nn.functional.smooth_l1_loss(here[:, 1:3], offset, beta=0.1)
        told = known[present]  # M
        loss = place_loss + 4 * offset_loss
        if told.any():
            right = attributes[present][told]
            loss = loss + nn.functional.smooth_l1_loss(here[told, 3:], right, beta=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for parameter in trained if state.num_processes > 1 else ():
            if parameter.grad is not None:
                parameter.grad = reduce(parameter.grad, "mean")
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 49 or step == steps - 1:
            history.append(
                {
                    "step": step + 1,
                    "loss": float(loss.detach()),
                    **_errors(scores, here, index[present], offset, tower.config.patch_size),
                }
            )
    tower.eval()
    return history


@torch.no_grad()
def _errors(scores: Tensor, here: Tensor, index: Tensor, offset: Tensor, patch: int) -> dict[str, float]:
    right = scores.argmax(-1) == index
    error = (here[:, 1:3] - offset).norm(dim=-1) * patch
    found = (
        {"pixel_error": float(error[right].mean())} if right.any() else {}
    )  # in the wrong patch there is no such error
    return found | {"cell_accuracy": float(right.float().mean())}


def _axis(quaternions: Array, axis: int) -> Array:
    """World direction (N, 3) of a body's local axis, from quaternions (N, 4) (w, x, y, z)."""
    w, v = quaternions[:, :1], quaternions[:, 1:]
    unit = np.tile(np.eye(3)[axis], (len(quaternions), 1))
    return unit + 2 * np.cross(v, np.cross(v, unit) + w * unit)
