"""Frames to look at: pictures with the masks of what is in them, taken from recorded demonstrations.

Both policies are asked about the very same frames, the demonstrator's, so a difference in attention is not a
difference in where each of them went.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refinevla_kit.episodes import EpisodeDataset, open_dataset
from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import PHASES, Array
from refinevla_kit.tasks import find_task

# Added to the seed of demonstrations recorded here, so that they are not those of notebook 1 again
UNSEEN = 4_000_000
STAGES = {
    "reach": "approach",
    "descend": "approach",
    "grasp": "grasp",
    "lift": "carry",
    "carry": "carry",
    "lower": "place",
    "release": "place",
    "retreat": "place",
}
"""The demonstrator's sub-tasks in four: before the object is touched, while the gripper closes on it, while
it is held, and putting it down.
"""


@dataclass(frozen=True)
class Frame:
    """One moment of a demonstration.

    Attributes:
        image: uint8 (H, W, 3).
        masks: {"source", "target", "gripper", "arm"} -> bool (H, W), visible pixels.
        instruction, task, episode, step: where it is from.
        phase: sub-task, one of `PHASES`.
        proprioception: float32 (15,), see `Observation`; None where there is none.
    """

    image: Array
    masks: dict[str, Array]
    instruction: str
    task: str
    episode: int
    step: int
    phase: str
    proprioception: Array | None = None


def demonstrations(
    source: str | Path, task: str, episodes: int, folder: Path, seed: int = 0
) -> EpisodeDataset:
    """Demonstrations of `task` with masks.

    Args:
        source: folder of a dataset; or "embedded" or "official", the assets to record `episodes` new ones
            with, from random starts: frames that no policy was trained on. A dataset that has no
            demonstration of `task` with masks (another task's, a real robot's) is left aside, and new ones
            are recorded with the embedded assets.
        folder: where new ones go; a recording that is there is taken as it is (`Settings.place` keeps others
            apart).
    """
    assets = str(source)
    if assets not in ("embedded", "official"):
        found = open_dataset(source)
        if any(info.task == task and found.masks(info.index) for info in found.episodes):
            return found
        assets = "embedded"
    if not folder.exists():
        from refinevla_kit.rollouts.recording import record

        record(folder, [find_task(task)], episodes, assets, seed=seed + UNSEEN)
    return open_dataset(folder)


def choose_frames(dataset: EpisodeDataset, task: str, episodes: int, every: int = 1) -> list[Frame]:
    """Every `every`-th frame of the first `episodes` demonstrations of `task`; of all there are when there
    are fewer.

    Raises:
        KitError: no such demonstration, or frames without masks and state.
    """
    known = list(dict.fromkeys(info.task for info in dataset.episodes))
    if task not in known or not task:
        have = ", ".join(name for name in known if name) or "none of the kit's tasks"
        raise KitError(
            f"{dataset.name} has no demonstration of {task!r}",
            f"choose a task it has ({have}) or another dataset",
        )
    if episodes < 1 or every < 1:
        raise KitError(f"{episodes} episodes, every {every}th frame", "ask for at least one of each")
    roles = {find_task(task).source: "source", find_task(task).target: "target"}
    frames = []
    for info in [one for one in dataset.episodes if one.task == task][:episodes]:
        masks, states = dataset.masks(info.index), dataset.states(info.index)
        if masks is None or states is None:
            raise KitError(
                f"episode {info.index} of {dataset.name} has no object masks",
                "record it with this kit: only the simulator knows them",
            )
        steps, own = list(range(0, info.length, every)), dataset.proprioception(info.index)
        for step, image in zip(steps, dataset.images(info.index, steps), strict=True):
            named = {roles.get(name, name): mask[step] for name, mask in masks.items()}
            frames.append(
                Frame(
                    image,
                    named,
                    info.instruction,
                    task,
                    info.index,
                    step,
                    PHASES[int(states[step].phase)],
                    own[step],
                )
            )
    return frames
