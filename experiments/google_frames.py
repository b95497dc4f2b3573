"""Random frames of the Google Robot's scenes: see `random_frames.py`, which records them.

Things are moved about the places where they came to rest, drawers along their rails; a hand stays in the box
that recorded hands were seen in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from sapien import Pose

from experiments.hands import Hand, Hands, moved, onto, pool_of
from refinevla_kit.simulator.contract import Array, Observation
from refinevla_kit.simulator.geometry import start_pose
from refinevla_kit.simulator.google_demonstrator import CLOSED, CLOSED_AT
from refinevla_kit.simulator.google_robot_agent import HAND, IK_ITERATIONS, REST
from refinevla_kit.tasks import Task

NEAR = 0.6  # of the hands are where they were to what they are about, but for `SHIFT`
TURN, SHIFT = 0.15, 0.012  # rad and m, standard deviations of what a hand is turned and moved by
FAR = 0.07  # m, likewise, before a drawer
ASIDE, APART = 0.03, 0.11  # m: standard deviation of a thing's place, least distance of two
SLID, FARTHEST = 0.03, 0.30  # m: standard deviation of a drawer's place, and the farthest that it opens
REACHED = 0.004  # m that inverse kinematics may be off
LOOKED_AT, MORE = 60, 0.1  # recorded hands that tell how the arm's joints stand; rad beyond these
BOX = (2, 98)  # percentiles of recorded tools between which one is anywhere


def attempts(
    simulator: Any, task: Task, hands: Hands, seed: int, rng: np.random.Generator
) -> Iterator[Observation | None]:
    """Frames of one scene, without end; None where the arm cannot come there.

    Raises:
        KitError: no recorded hand was about what the scene asks for.
    """
    simulator.reset(start_pose(task, "random", 0, seed, simulator.protocol.setting), seed)
    rest, pool = simulator.objects, pool_of(hands, task, simulator.instruction)
    limits, box = _usual(simulator, pool, rng), _box(pool)
    while True:
        yield show(simulator, *draw(simulator, rest, pool, box, rng), limits)


def draw(
    simulator: Any,
    rest: dict[str, Array],
    pool: Sequence[Hand],
    box: tuple[Array, Array],
    rng: np.random.Generator,
) -> tuple[dict[str, Array], Array, Hand]:
    """What may be shown: poses of things by model, drawers' openings, a hand.

    Args:
        simulator: after a reset.
        rest: poses of its things then.
        pool: recorded hands that were about the same thing.
        box: least and greatest place of a tool that is anywhere, (3,) each.
    """
    hand = pool[int(rng.integers(len(pool)))]
    near, turn = rng.random() < NEAR, float(rng.normal(0, TURN))
    if not rest:
        return {}, *_before_the_cabinet(simulator, hand, near, turn, rng)
    things, environment = _elsewhere(simulator, rest, rng), simulator._env
    source, target = (_model(environment, entity) for entity in (environment.source, environment.target))
    scatter = np.append(rng.normal(0, SHIFT, 2), 0.0)
    anywhere = onto(hand.tool, rng.uniform(*box), turn)
    if hand.placed and target:
        hand = moved(hand, onto(hand.target, things[target][:3], turn))
        return things | {source: hand.source}, np.zeros(0), hand
    if hand.grasped:
        over = not near and target
        hand = moved(hand, onto(hand.target, things[target][:3] + scatter, turn) if over else anywhere)
        return things | {source: hand.source}, np.zeros(0), hand
    way = onto(hand.source, things[source][:3] + scatter, turn) if near else anywhere
    return things, np.zeros(0), moved(hand, way)


def show(
    simulator: Any, things: dict[str, Array], drawers: Array, hand: Hand, limits: tuple[Array, Array]
) -> Observation | None:
    """Put everything there, without physics, and look; None where the arm does not come there within these
    limits of its joints.
    """
    controller, joints = simulator._env.controller, _reach(simulator, hand)
    if (joints < limits[0]).any() or (joints > limits[1]).any():
        return None
    simulator.set_state(joints, np.array(list(things.values())), drawers)
    if np.linalg.norm(simulator.tool[:3] - hand.tool[:3]) > REACHED:
        return None
    base = controller._body.root_pose
    controller.target_pose = base.inv() * Pose(hand.command[:3], hand.command[3:])
    if simulator._env.source is not None and simulator._env.target is None:
        lying = things[_model(simulator._env, simulator._env.source)]
        height = simulator._rest[2:3] if hand.grasped else lying[2:3]
        simulator._rest = np.concatenate([lying[:2], height, simulator._rest[3:]]).astype(np.float32)
    observation: Observation = simulator._observe(hand.placed, hand.grasped)
    return observation


def _reach(simulator: Any, hand: Hand) -> Array:
    """The arm's joints (11,) with the tool there, as near to where an episode begins as may be."""
    controller, rest = simulator._env.controller, REST.copy()
    rest[-1] = simulator.joints[-1]  # the head looks where the scene wants it to
    solution, _, _ = controller._model.compute_inverse_kinematics(
        controller._tool_index,
        controller._body.root_pose.inv() * Pose(hand.tool[:3], hand.tool[3:]),
        initial_qpos=rest[np.argsort(controller._order)],
        active_qmask=controller._mask,
        max_iterations=IK_ITERATIONS,
    )
    joints = np.asarray(solution)[controller._order]
    joints[HAND], joints[-2:] = CLOSED * (1 - hand.opening), rest[-2:]
    return joints


def _usual(simulator: Any, pool: Sequence[Hand], rng: np.random.Generator) -> tuple[Array, Array]:
    """Least and greatest angles of the joints, (11,) each, with recorded hands, and a little more: farther
    off, the arm comes before the camera in postures that it never takes.
    """
    chosen = rng.permutation(len(pool))[:LOOKED_AT]
    joints = np.stack([_reach(simulator, pool[number]) for number in chosen])
    return joints.min(0) - MORE, joints.max(0) + MORE


def _before_the_cabinet(
    simulator: Any, hand: Hand, near: bool, turn: float, rng: np.random.Generator
) -> tuple[Array, Hand]:
    drawers, opening = np.zeros_like(simulator.drawers), float(hand.source[0]) - CLOSED_AT
    slid = float(np.clip(opening + rng.normal(0, SLID), 0, FARTHEST))
    drawers[simulator._env.drawer] = slid
    along = np.array([slid - opening, 0.0, 0.0])
    place = hand.tool[:3] + along + rng.normal(0, SHIFT if near else FAR, 3)
    return drawers, moved(hand, onto(hand.tool, place, turn / 3 if near else turn))


def _elsewhere(simulator: Any, rest: dict[str, Array], rng: np.random.Generator) -> dict[str, Array]:
    """The things on other places: a can anywhere in its grid, several on each other's, all a little aside."""
    corners = np.array([start.object_xy for start in simulator.protocol.starts if start.object_xy])
    models, poses = list(rest), np.stack(list(rest.values())).astype(np.float64)
    while True:
        places = rng.permutation(poses[:, :2]) + rng.normal(0, ASIDE, (len(poses), 2))
        if len(corners) and simulator._env.start.object_episode is None:
            places[0] = rng.uniform(corners.min(0), corners.max(0))
        apart = np.linalg.norm(places[:, None] - places, axis=2) + np.eye(len(places))
        if apart.min() > APART:
            return dict(zip(models, np.column_stack([places, poses[:, 2:]]), strict=True))


def _box(pool: Sequence[Hand]) -> tuple[Array, Array]:
    low, high = np.percentile([hand.tool[:3] for hand in pool], BOX, axis=0)
    return low, high


def _model(environment: Any, entity: Any) -> str:
    """An object's name; "" for none."""
    return next((name for name, one in environment.objects.items() if one == entity), "")
