"""Episodes made by hand: small, with every feature of a recorded one."""

from __future__ import annotations

import numpy as np
import pytest

from refinevla_kit.episodes import Episode
from refinevla_kit.simulator.contract import SceneState


def make_episode(
    seed: int = 0,
    frames: int = 5,
    height: int = 32,
    width: int = 48,
    instruction: str = "put carrot on plate",
) -> Episode:
    """A grey table with one coloured square that moves, random numbers everywhere else."""
    rng = np.random.default_rng(seed)
    images = np.full((frames, height, width, 3), rng.integers(60, 190, 3), np.uint8)
    masks = {name: np.zeros((frames, height, width), bool) for name in ("carrot", "plate")}
    for t in range(frames):
        masks["carrot"][t, 8:16, 4 + 2 * t : 12 + 2 * t] = True
        masks["plate"][t, 20:30, 30:44] = True
        images[t][masks["carrot"][t]] = (230, 120, 20)
        images[t][masks["plate"][t]] = (240, 240, 235)
    pose = lambda: rng.normal(size=7).astype(np.float32)  # noqa: E731
    states = [
        SceneState(
            pose(),
            pose(),
            pose(),
            pose(),
            np.float32(rng.random()),
            np.bool_(t > 1),
            np.bool_(t > 3),
            np.int8(t % 8),
        )
        for t in range(frames)
    ]
    return Episode(
        images=images,
        actions=rng.normal(size=(frames, 7)).astype(np.float32),
        proprioception=rng.normal(size=(frames, 15)).astype(np.float32),
        instruction=instruction,
        task="widowx_carrot_on_plate",
        success=bool(seed % 2),
        seed=seed,
        start=f"grid:{seed}",
        states=states,
        masks=masks,
    )


@pytest.fixture
def episodes() -> list[Episode]:
    """Three episodes of different lengths, two instructions."""
    return [
        make_episode(0, 5),
        make_episode(1, 1, instruction="put the spoon on the towel"),
        make_episode(2, 12),
    ]
