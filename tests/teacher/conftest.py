"""What teachers are tried on: frames of real episodes with their state and masks, and a question about a
shipped one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from refinevla_kit.episodes import open_dataset
from refinevla_kit.simulator.contract import SceneState
from refinevla_kit.tasks import Task
from refinevla_kit.teacher.requests import requests
from refinevla_kit.teacher.schema import Request
from tests.conftest import REPOSITORY


@dataclass(frozen=True)
class Frames:
    """One recorded episode; masks name -> bool (T, H, W), actions float32 (T, 7)."""

    task: Task
    images: np.ndarray
    actions: np.ndarray
    states: list[SceneState]
    masks: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def request_() -> Request:
    """The second segment of the first shipped episode."""
    asked = requests(open_dataset(REPOSITORY / "data/demo"))
    next(asked)
    return next(asked)


@pytest.fixture(scope="session")
def frames() -> list[Frames]:
    from refinevla_kit.simulator import make
    from refinevla_kit.simulator.demonstrator import Demonstrator
    from refinevla_kit.tasks import find_task

    played = []
    for name, episode in (("widowx_carrot_on_plate", 5), ("widowx_put_eggplant_in_basket", 11)):
        task = find_task(name)
        simulator, demonstrator = make(task, privileged=True), Demonstrator(task)
        observation = simulator.reset(episode)
        images, actions, states, masks = [], [], [], []
        for _ in range(30):
            images.append(observation.image)
            states.append(observation.state)
            masks.append(simulator.masks())
            actions.append(demonstrator.act(observation.state))
            observation = simulator.step(actions[-1]).observation
        simulator.close()
        played.append(
            Frames(
                task,
                np.stack(images),
                np.stack(actions),
                states,
                {key: np.stack([mask[key] for mask in masks]) for key in masks[0]},
            )
        )
    return played


@pytest.fixture
def dataset(frames: list[Frames], tmp_path):
    """The same episodes as a LeRobot dataset on disk."""
    from refinevla_kit.episodes import DatasetWriter, Episode, open_dataset

    with DatasetWriter(tmp_path / "played", fps=5, robot_type="widowx") as writer:
        for one in frames:
            proprioception = np.zeros((len(one.actions), 15), np.float32)
            proprioception[:, 7] = [state.opening for state in one.states]
            writer.add(
                Episode(
                    one.images,
                    one.actions,
                    proprioception,
                    one.task.instruction,
                    one.task.name,
                    True,
                    states=one.states,
                    masks=one.masks,
                )
            )
    return open_dataset(tmp_path / "played")
