"""Cuts a trajectory into segments a teacher can explain: at gripper events, and where the motion changes.

Motion changes are found by least squares, exactly, by dynamic programming. The velocity is described as
constant over each segment. A cut is made where it explains at least `GAIN` of the trajectory's whole
variation in velocity. The threshold is relative, so one value serves a gripper's displacements at 5 Hz and a
humanoid's joint angles at 30 Hz.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from refinevla_kit.episodes.columns import filled
from refinevla_kit.simulator.contract import Array

GAIN = 0.06  # at most 1 / GAIN cuts for motion; 4-8 segments in practice
LEVER = 0.1  # m: a rotation counts as what it moves at this distance, about a finger's length


@dataclass(frozen=True)
class Segment:
    """Frames start .. end - 1 of an episode. `reason` says why it starts there: "start", "gripper closes",
    "gripper opens", "motion" or "task".
    """

    start: int
    end: int
    reason: str


def split_segments(
    actions: Array,
    deltas: bool | None,
    gripper: int | None,
    shortest: int | None = None,
    instructions: Sequence[str] = (),
) -> list[Segment]:
    """Cut a trajectory into segments; the same actions give the same segments.

    Args:
        actions: float (T, A), T >= 1. With `deltas` and A = 7: [0:3] metres, [3:6] radians, a step.
        deltas: actions are displacements; otherwise (or where that is not known) positions, whose differences
            are taken and smoothed over half a shortest segment. What is not finite counts as no displacement,
            or as the position before it.
        gripper: index of the gripper's dimension (larger is more open), None where there is none.
        shortest: least number of frames of a segment; None means T / 16, and at least 2. A shorter trajectory
            is one segment.
        instructions: the T frames' sentences; no segment goes on where the sentence changes, and each stretch
            is cut as its own trajectory.

    Returns:
        Segments in order, covering [0, T) without gap or overlap.
    """
    stretches = same(instructions)
    if len(stretches) > 1:
        segments: list[Segment] = []
        for first, last in stretches:
            for part in split_segments(actions[first:last], deltas, gripper, shortest):
                reason = "task" if first and not part.start else part.reason
                segments.append(Segment(first + part.start, first + part.end, reason))
        return segments
    actions = filled(actions, deltas)
    gripper = gripper if gripper is not None and gripper < actions.shape[1] else None
    length = len(actions)
    least = max(shortest or max(2, length // 16), 1)
    cuts = {0: "start"} | _gripper_events(actions, gripper, least)
    velocity = _velocity(actions, deltas, gripper, least)
    whole = float(((velocity - velocity.mean(0)) ** 2).sum())
    for start, end in pairwise([*cuts, length]):
        if whole > 1e-12:
            changes = _change_points(velocity[start:end], GAIN * whole, least)
            cuts |= {start + change: "motion" for change in changes}
    starts = sorted(cuts)
    return [Segment(start, end, cuts[start]) for start, end in pairwise([*starts, length])]


def same(values: Sequence[str]) -> list[tuple[int, int]]:
    """Stretches [start, end) in which neighbouring values are equal."""
    bounds = [0, *(i for i, (before, now) in enumerate(pairwise(values), 1) if before != now), len(values)]
    return list(pairwise(bounds))


def _gripper_events(actions: Array, gripper: int | None, least: int) -> dict[int, str]:
    """Frames at which the gripper's command crosses the middle of its range, `least` frames apart from each
    other and from both ends.
    """
    if gripper is None:
        return {}
    command = actions[:, gripper]
    middle = (command.min() + command.max()) / 2
    is_open = command > middle if command.max() - command.min() > 1e-6 else np.ones(len(command), bool)
    events: dict[int, str] = {}
    last = 0
    for frame in (np.flatnonzero(is_open[1:] != is_open[:-1]) + 1).tolist():
        if frame - last >= least and len(actions) - frame >= least:
            events[frame] = "gripper opens" if is_open[frame] else "gripper closes"
            last = frame
    return events


def _velocity(actions: Array, deltas: bool | None, gripper: int | None, least: int) -> Array:
    """float64 (T, D): what changes a step, the gripper left out."""
    moving = [i for i in range(actions.shape[1]) if gripper is None or i != gripper % actions.shape[1]]
    if deltas:
        scale = np.array([LEVER if actions.shape[1] == 7 and 3 <= i < 6 else 1.0 for i in moving])
        return actions[:, moving] * scale
    velocity = np.diff(actions[:, moving], axis=0, append=actions[-1:, moving])
    width = max(least // 2, 1)
    padded = np.pad(velocity, ((width // 2, width - 1 - width // 2), (0, 0)), mode="edge")
    total = np.concatenate([np.zeros((1, len(moving))), np.cumsum(padded, axis=0)])
    return (total[width:] - total[:-width]) / width


def _change_points(velocity: Array, penalty: float, least: int) -> list[int]:
    """Cuts of the piecewise constant fit of velocity (n, D) that minimises squared error + penalty * cuts;
    segments of at least `least` frames.
    """
    n = len(velocity)
    sums = np.concatenate([np.zeros((1, velocity.shape[1])), np.cumsum(velocity, axis=0)])
    squares = np.concatenate([[0.0], np.cumsum((velocity**2).sum(1))])
    best, previous = np.full(n + 1, np.inf), np.zeros(n + 1, np.int64)
    best[0] = -penalty
    for end in range(least, n + 1):
        starts = np.arange(end - least + 1)
        error = squares[end] - squares[starts] - ((sums[end] - sums[starts]) ** 2).sum(1) / (end - starts)
        cost = best[starts] + error + penalty
        previous[end] = int(cost.argmin())
        best[end] = cost[previous[end]]
    cuts: list[int] = []
    end = n
    while previous[end] > 0:
        end = int(previous[end])
        cuts.append(end)
    return cuts[::-1]
