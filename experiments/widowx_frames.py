"""Random frames of the WidowX's scenes: see `random_frames.py`, which records them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import RigidTransform

from experiments.hands import Hand, Hands, moved, onto, pool_of
from refinevla_kit.simulator.contract import Arrangement, Array, Observation, Pose
from refinevla_kit.simulator.geometry import SINK_TASK, SPREAD, SPREAD_CENTRE, arrangement, start_pose
from refinevla_kit.simulator.maniskill import CLOSED, OPEN
from refinevla_kit.tasks import THINGS, Task

NEAR = 0.6  # of the empty hands are near the source; of those that hold it, this part is not near the target
OTHER = 0.1  # of the scenes with several sources, in which the hand holds the wrong one
TURN, SHIFT = 0.5, 0.012  # rad and m, standard deviations of what a hand is turned and moved by
SINK_TURN, SINK_SHIFT = 0.15, 0.04  # in the sink, where there is little room
LOW, HIGH = 0.93, 1.06  # m, where a hand is when it is anywhere
REACHED = 0.004  # m that inverse kinematics may be off


def attempts(
    simulator: Any, task: Task, hands: Hands, seed: int, rng: np.random.Generator
) -> Iterator[Observation | None]:
    """Frames of one scene, without end; None where the arm cannot come there."""
    others = int(rng.integers(6))
    simulator.reset(_lying(task, others, rng), seed)
    while True:
        yield show(simulator, *_draw(task, hands, others, rng))


def show(simulator: Any, things: dict[str, Array], hand: Hand, held: str) -> Observation | None:
    """Put things and arm where they are asked for, without physics, and look.

    Args:
        simulator: of the WidowX, after a reset, privileged.
        things: name -> float (7,), world.
        held: which of them the hand holds, "" for none; `hand.grasped` says whether it is the source.

    Returns:
        None where the arm cannot come there.
    """
    robot, arm = simulator._robot, simulator._env.agent.controller.controllers["arm"]
    base = robot.pose.inv()
    wanted = base * _frame(hand.tool)
    joints = robot.get_qpos()
    solution = arm.kinematics.compute_ik(wanted, joints, solver_config=arm.config.delta_solver_config)
    if solution is None:
        return None
    joints = joints.clone()
    joints[0, :6], joints[0, 6:] = solution, CLOSED + hand.opening * (OPEN - CLOSED)
    robot.set_qpos(joints)
    reached = base * simulator._links["ee_gripper_link"].pose
    if float((reached.p - wanted.p).norm()) > REACHED:
        return None
    arm._target_pose = base * _frame(hand.command)
    for name, actor in simulator._things().items():
        actor.set_pose(_frame(things[name]))
    observation: Observation = simulator._observe(hand.placed, hand.grasped)
    assert observation.state is not None
    if observation.state.held is None:
        return observation
    number = np.array(THINGS.index(held) if held else -1, np.int8)
    return replace(observation, state=replace(observation.state, held=number))


def _frame(pose: Array) -> Any:
    from mani_skill.utils.structs import Pose as Frame

    return Frame.create(torch.as_tensor(np.asarray(pose, np.float32))[None])


def _draw(
    task: Task, hands: Hands, others: int, rng: np.random.Generator
) -> tuple[dict[str, Array], Hand, str]:
    """What may be shown: poses of things, a hand, what it holds."""
    start = _lying(task, others, rng)
    if isinstance(start, Pose):
        things = {task.source: start.source.copy(), task.target: start.target.copy()}
    else:
        things = dict(start.things)
    wrong = [name for name in things if name != task.source and ("language", name) in hands]
    if wrong and rng.random() < OTHER:
        other = wrong[int(rng.integers(len(wrong)))]
        held = [hand for hand in hands["language", other] if hand.grasped]
        hand = held[int(rng.integers(len(held)))]
        hand = moved(hand, _anywhere(task, hand, rng))
        return things | {other: hand.source}, replace(hand, grasped=False, placed=False), other
    pool = pool_of(hands, task, task.instruction)
    hand = pool[int(rng.integers(len(pool)))]
    near, anywhere = rng.random() < NEAR, _anywhere(task, hand, rng)
    if hand.placed:
        turn = 0.0 if task.name == SINK_TASK else _turn(task, rng)
        hand = moved(hand, onto(hand.target, things[task.target], turn))
        things |= {task.source: hand.source, task.target: hand.target}
        return things, hand, task.source if hand.grasped else ""
    if hand.grasped:
        over = onto(hand.target, things[task.target] + _scatter(rng), _turn(task, rng))
        hand = moved(hand, anywhere if near else over)
        return things | {task.source: hand.source}, hand, task.source
    lying = things[task.source]
    hand = moved(hand, onto(hand.source, lying + _scatter(rng), _turn(task, rng)) if near else anywhere)
    if near and rng.random() < NEAR:  # turned as the hand is; else however it lies
        things[task.source] = np.concatenate([lying[:3], hand.source[3:]])
    return things, hand, ""


def _lying(task: Task, others: int, rng: np.random.Generator) -> Pose | Arrangement:
    """Things at places where an episode may start, in a language task beside the `others`."""
    seed = int(rng.integers(2**32))
    if task.goals:
        return arrangement(task, [seed], others)
    start = start_pose(task, "random", 0, seed)
    assert isinstance(start, Pose)
    return start


def _turn(task: Task, rng: np.random.Generator) -> float:
    return float(rng.normal(0, SINK_TURN if task.name == SINK_TASK else TURN))


def _scatter(rng: np.random.Generator) -> Array:
    """Something to add to a pose, (7,)."""
    return np.concatenate([rng.normal(0, SHIFT, 2), np.zeros(5)])


def _anywhere(task: Task, hand: Hand, rng: np.random.Generator) -> RigidTransform:
    """Brings a hand somewhere over the table, in the sink somewhere near."""
    if task.name == SINK_TASK:
        place = hand.tool[:3] + np.append(rng.normal(0, SINK_SHIFT, 2), rng.uniform(0, SINK_SHIFT))
    else:
        height = hand.tool[2] if hand.tool[2] > LOW else rng.uniform(LOW, HIGH)
        place = np.append(SPREAD_CENTRE + rng.uniform(-1.2, 1.2, 2) * SPREAD, height)
    return onto(hand.tool, place, _turn(task, rng))
