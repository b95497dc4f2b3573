"""Frames that are put together at random instead of played: things somewhere, the arm somewhere above them,
and what the demonstrator would do there.

A recorded episode shows one arrangement thirty times. Here each frame is another one, at a fifth of the cost,
because nothing has to be moved there. The demonstrator's action follows from the state alone, so each frame
has its right action, its facts and its masks. How a hand holds a thing, how its fingers stand and how far it
trails its command are taken from recorded frames, moved and turned together.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from experiments import google_frames, widowx_frames
from experiments.hands import Hands, about
from refinevla_kit.episodes.contract import Episode
from refinevla_kit.episodes.writer import DatasetWriter
from refinevla_kit.errors import KitError
from refinevla_kit.rollouts.engine import Masks, Scene
from refinevla_kit.rollouts.recording import episode_of, episode_seed, even_height
from refinevla_kit.simulator.contract import Observation
from refinevla_kit.simulator.demonstrator import Demonstrator
from refinevla_kit.tasks import BASE, VISUAL_MATCHING, Task

TRIES = 30  # draws of one frame
ROBOTS = {"widowx": widowx_frames.attempts, "google_robot": google_frames.attempts}


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
) -> None:
    """Write a dataset whose episodes are frames of one scene that have nothing else to do with each other.

    Args:
        tasks: of one robot, of one goal each.
        scenes: of each task and variant: which things there are changes from one to the next.
        frames: of a scene.
        hands: what `hands.read_hands` gives.

    Raises:
        KitError: no hand was recorded of a task, or none that the arm reaches.
    """
    known = {scene for scene, _ in hands}
    for task in tasks:
        if about(task, "")[0] not in known:
            raise KitError(f"no recorded hand of {task.name}", "record demonstrations of it first")
    height = even_height(tasks[0].robot, width)
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
    tried = islice(ROBOTS[task.robot](simulator, task, hands, seed, rng), TRIES * frames)
    seen: list[Observation] = []
    masks: list[Masks] = []
    for shown in tried:
        if shown is not None:
            seen.append(shown)
            masks.append(simulator.masks())
        if len(seen) == frames:
            break
    else:
        raise KitError(f"no arm reaches the hands of {task.name}", "look at the recorded ones")
    actions = [expert.act(one.state) for one in seen if one.state is not None]  # the scene is privileged
    return episode_of(seen, masks, actions, task, seed=seed)
