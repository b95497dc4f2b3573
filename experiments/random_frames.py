"""Frames that are put together at random instead of played: things somewhere on the table, the arm somewhere
above it, and what the demonstrator would do there.

A recorded episode shows one arrangement thirty times. Here each frame is another one, at a fifth of the cost,
because nothing has to be moved there. The demonstrator's action follows from the state alone, so each frame
has its right action, its facts and its masks. How a hand holds a thing, how its fingers stand and how far it
trails its command are taken from recorded frames, moved and turned together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import RigidTransform, Rotation
from tqdm.auto import tqdm

from refinevla_kit.episodes import open_dataset
from refinevla_kit.episodes.contract import Episode
from refinevla_kit.episodes.writer import DatasetWriter
from refinevla_kit.errors import KitError
from refinevla_kit.rollouts.engine import Scene
from refinevla_kit.rollouts.recording import episode_seed
from refinevla_kit.simulator.contract import Arrangement, Array, Observation, Pose, SceneState
from refinevla_kit.simulator.demonstrator import Demonstrator
from refinevla_kit.simulator.geometry import SINK_TASK, SPREAD, SPREAD_CENTRE, arrangement, start_pose
from refinevla_kit.simulator.maniskill import CLOSED, OPEN
from refinevla_kit.tasks import BASE, THINGS, VISUAL_MATCHING, Task, find_task

NEAR = 0.6  # of the empty hands are near the source; of those that hold it, this part is not near the target
OTHER = 0.1  # of the scenes with several sources, in which the hand holds the wrong one
TURN, SHIFT = 0.5, 0.012  # rad and m, standard deviations of what a hand is turned and moved by
SINK_TURN, SINK_SHIFT = 0.15, 0.04  # in the sink, where there is little room
LOW, HIGH = 0.93, 1.06  # m, where a hand is when it is anywhere
REACHED = 0.004  # m that inverse kinematics may be off
TRIES = 30  # draws of one frame


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
    """The hands of recorded WidowX episodes, by the scene (a task, or "language") and the source."""
    found: dict[tuple[str, str], list[Hand]] = {}
    for dataset in datasets:
        source = open_dataset(dataset)
        for item in source.episodes:
            task = find_task(item.task)
            if len(task.goals) < 2:
                hands = [_hand(state) for state in source.states(item.index) or []]
                found.setdefault((_scene(task), task.source), []).extend(hands)
    return found


def _hand(state: SceneState) -> Hand:
    flags = float(state.opening), bool(state.grasped), bool(state.placed)
    return Hand(state.tcp, state.tcp_target, state.source, state.target, *flags)


def _scene(task: Task) -> str:
    return "language" if task.goals else task.name


def record_frames(
    path: Path,
    tasks: Sequence[Task],
    scenes: int,
    frames: int,
    hands: Hands,
    assets: str | Path = "embedded",
    setting: str = VISUAL_MATCHING,
    variants: Sequence[str] = (BASE,),
    seed: int = 0,
    width: int = 160,
    height: int = 120,
) -> None:
    """Write a dataset whose episodes are frames of one scene that have nothing else to do with each other.

    Args:
        tasks: of the WidowX, of one goal each.
        scenes: of each task and variant: which things there are changes from one to the next.
        frames: of a scene.
        hands: what `read_hands` gives.

    Raises:
        KitError: no hand was recorded with a task's source.
    """
    for task in tasks:
        if not hands.get((_scene(task), task.source)):
            raise KitError(f"no recorded hand of {task.name}", "record demonstrations of it first")
    planned = [(task, name) for task in tasks for name in variants]
    with (
        DatasetWriter(path, tasks[0].control_hz, tasks[0].robot) as writer,
        tqdm(total=len(planned) * scenes, desc="random frames", unit="scene") as bar,
    ):
        for place, (task, name) in enumerate(planned):
            variant = task.protocol(setting).variant(name).name
            made = Scene(task.name, variant, setting, "auto", str(assets), width, height, True, True)
            simulator = made.make()
            for number in range(scenes):
                drawn = episode_seed(seed, task.name, place * scenes + number, 0)
                writer.add(_episode(simulator, task, frames, hands, drawn))
                bar.update()
            simulator.close()


def _episode(simulator: Any, task: Task, frames: int, hands: Hands, seed: int) -> Episode:
    rng, expert = np.random.default_rng([seed, 1]), Demonstrator(task)
    others = int(rng.integers(6))
    simulator.reset(_lying(task, others, rng), seed)
    seen: list[tuple[Observation, dict[str, Array], Array]] = []
    while len(seen) < frames:
        for _ in range(TRIES):
            shown = show(simulator, *_draw(task, hands, others, rng))
            if shown is not None:
                break
        else:
            raise KitError(f"no arm reaches {TRIES} hands of {task.name}", "look at the recorded ones")
        masks = {name: mask for name, mask in simulator.masks().items() if name != "background"}
        assert shown.state is not None
        seen.append((shown, masks, expert.act(shown.state)))
    observations, masks_of, actions = zip(*seen, strict=True)
    return Episode(
        images=np.stack([one.image for one in observations]),
        actions=np.stack(actions).astype(np.float32),
        proprioception=np.stack([one.proprioception for one in observations]).astype(np.float32),
        instruction=simulator.instruction,
        task=task.name,
        success=False,
        seed=seed,
        states=[one.state for one in observations],
        masks={name: np.stack([masks[name] for masks in masks_of]) for name in masks_of[0]},
    )


def show(simulator: Any, things: dict[str, Array], hand: Hand, held: str) -> Observation | None:
    """Put things and arm where they are asked for, without physics, and look.

    Args:
        simulator: of the WidowX, after a reset, privileged.
        things: name -> float (7,), world.
        held: which of them the hand holds, "" for none; `hand.grasped` says whether it is the source.

    Returns:
        None where the arm cannot come there.
    """
    from mani_skill.utils.structs import Pose as Frame

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
    arm._target_pose = Frame.create((base * _frame(hand.command)).raw_pose)
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
        hand = _moved(hand, _anywhere(task, hand, rng))
        return things | {other: hand.source}, replace(hand, grasped=False, placed=False), other
    pool = hands[_scene(task), task.source]
    hand = pool[int(rng.integers(len(pool)))]
    near, anywhere = rng.random() < NEAR, _anywhere(task, hand, rng)
    if hand.placed:
        turn = 0.0 if task.name == SINK_TASK else _turn(task, rng)
        hand = _moved(hand, _onto(hand.target, things[task.target], turn))
        things |= {task.source: hand.source, task.target: hand.target}
        return things, hand, task.source if hand.grasped else ""
    if hand.grasped:
        over = _onto(hand.target, things[task.target] + _scatter(rng), _turn(task, rng))
        hand = _moved(hand, anywhere if near else over)
        return things | {task.source: hand.source}, hand, task.source
    lying = things[task.source]
    hand = _moved(hand, _onto(hand.source, lying + _scatter(rng), _turn(task, rng)) if near else anywhere)
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


def _onto(pose: Array, goal: Array, turn: float) -> RigidTransform:
    """Turns about the vertical through `pose` and brings it over to where `goal` is."""
    upright = Rotation.from_euler("z", turn)
    return RigidTransform.from_components(goal[:3] - upright.apply(pose[:3]), upright)


def _anywhere(task: Task, hand: Hand, rng: np.random.Generator) -> RigidTransform:
    """Brings a hand somewhere over the table, in the sink somewhere near."""
    if task.name == SINK_TASK:
        place = hand.tool[:3] + np.append(rng.normal(0, SINK_SHIFT, 2), rng.uniform(0, SINK_SHIFT))
    else:
        height = hand.tool[2] if hand.tool[2] > LOW else rng.uniform(LOW, HIGH)
        place = np.append(SPREAD_CENTRE + rng.uniform(-1.2, 1.2, 2) * SPREAD, height)
    return _onto(hand.tool, place, _turn(task, rng))


def _moved(hand: Hand, way: RigidTransform) -> Hand:
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
