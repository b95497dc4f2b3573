"""Curves of a played episode: what was commanded, and when the object was held and the task solved."""

from __future__ import annotations

from typing import Any

import numpy as np

from refinevla_kit.evaluation.replay import Rollout
from refinevla_kit.figures.style import BLUE, GREEN, INK, VERMILION, label
from refinevla_kit.figures.views import Line, Plot
from refinevla_kit.simulator.contract import ACTION_NAMES, Array

AXES = (BLUE, VERMILION, GREEN)  # x, y, z and roll, pitch, yaw


def action_plots(rollout: Rollout) -> tuple[Plot, ...]:
    """Curves over the T + 1 observations: an action is drawn where it was decided (none at the last), what
    came of a step where it is seen.
    """
    actions = np.concatenate([rollout.actions, np.full((1, rollout.actions.shape[1]), np.nan)])
    first = np.zeros(1, bool)
    held, solved = (
        np.concatenate([first, values]).astype(float) for values in (rollout.grasped, rollout.success)
    )
    return (
        _plot("move (cm)", 100 * actions[:, :3], ACTION_NAMES[:3]),
        _plot("turn (degrees)", np.degrees(actions[:, 3:6]), ACTION_NAMES[3:6]),
        Plot("gripper (1 open)", (Line("command", INK, actions[:, 6], steps=True),), -1.0, 1.0),
        Plot(
            "state (1 yes)",
            (Line("held", BLUE, held, steps=True), Line("solved", GREEN, solved, steps=True)),
            0.0,
            1.0,
        ),
    )


def outcome(record: Any) -> str:
    """How an episode ended, in words."""
    ended = {
        "budget": "",
        "terminated": ", ended by the policy",
        "physics": ", the physics broke",
        "crash": ", its simulator crashed",
    }
    how = (
        "solved"
        if record.success_last
        else "solved, then lost"
        if record.success_any
        else "held, not placed"
        if record.grasped
        else "never held"
    )
    return f"{how} ({record.steps} steps{ended.get(record.reason, '')})"


def episode_title(record: Any) -> str:
    """Which episode a record is of."""
    variant = "" if record.variant == "base" else f", {record.variant}"
    start = "dense start" if record.start == "dense" else "episode"
    return (
        f"{label(record.policy)}, {label(record.task)}{variant}, {start} {record.episode_id}: "
        f"{outcome(record)}"
    )


def _plot(title: str, values: Array, names: tuple[str, ...]) -> Plot:
    """Curves about zero on a scale that holds them all."""
    largest = max(float(np.nanmax(np.abs(values))), 0.5)
    reach = next(
        step * ten
        for ten in (1.0, 10.0, 100.0)
        for step in (0.5, 1.0, 2.0, 4.0)
        if largest <= step * ten or step * ten >= 400
    )
    lines = tuple(
        Line(name, colour, values[:, i], steps=True)
        for i, (name, colour) in enumerate(zip(names, AXES, strict=True))
    )
    return Plot(title, lines, -reach, reach)
