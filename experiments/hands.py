"""Recorded hands: how the tool stands to what it is about, how it holds it, how far it trails its command."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.spatial.transform import RigidTransform, Rotation

from refinevla_kit.episodes import open_dataset
from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import Array, SceneState
from refinevla_kit.tasks import Task, find_task


@dataclass(frozen=True)
class Hand:
    """A recorded hand, what it was asked for and whether it holds it.

    Attributes:
        tool, command, source, target: float (7,), poses in the world: where the tool is and where it is told
            to be.
        opening: of the fingers, 0 to 1.
        grasped, placed: see `SceneState`.
    """

    tool: Array
    command: Array
    source: Array
    target: Array
    opening: float
    grasped: bool
    placed: bool


Hands = Mapping[tuple[str, str], Sequence[Hand]]


def read_hands(datasets: Sequence[Path]) -> dict[tuple[str, str], list[Hand]]:
    """The hands of recorded episodes, by `about`."""
    found: dict[tuple[str, str], list[Hand]] = {}
    for dataset in datasets:
        source = open_dataset(dataset)
        for item in source.episodes:
            task = find_task(item.task)
            if len(task.goals) < 2:
                hands = [_hand(state) for state in source.states(item.index) or []]
                found.setdefault(about(task, item.instruction), []).extend(hands)
    return found


def about(task: Task, instruction: str) -> tuple[str, str]:
    """What tells pools of hands apart: the task, of the language tasks "language", and the source."""
    near = re.fullmatch("move (.+) near .+", instruction)
    return "language" if task.goals else task.name, near[1] if near else task.source


def pool_of(hands: Hands, task: Task, instruction: str) -> Sequence[Hand]:
    """The hands that were about what is asked for. Raises `KitError` where there are none."""
    asked = about(task, instruction)
    if not hands.get(asked):
        raise KitError(f"no recorded hand of {asked[1]}", "record more demonstrations first")
    return hands[asked]


def _hand(state: SceneState) -> Hand:
    flags = float(state.opening), bool(state.grasped), bool(state.placed)
    return Hand(state.tcp, state.tcp_target, state.source, state.target, *flags)


def onto(pose: Array, goal: Array, turn: float) -> RigidTransform:
    """Turns about the vertical through `pose` and brings it over to where `goal` is."""
    upright = Rotation.from_euler("z", turn)
    return RigidTransform.from_components(goal[:3] - upright.apply(pose[:3]), upright)


def moved(hand: Hand, way: RigidTransform) -> Hand:
    """A hand, its command, and what it was asked for, all moved alike."""
    return replace(
        hand,
        tool=_carried(hand.tool, way),
        command=_carried(hand.command, way),
        source=_carried(hand.source, way),
        target=_carried(hand.target, way),
    )


def _carried(pose: Array, way: RigidTransform) -> Array:
    turned = way.rotation * Rotation.from_quat(pose[3:], scalar_first=True)
    return np.concatenate([way.apply(pose[:3]), turned.as_quat(scalar_first=True)])
