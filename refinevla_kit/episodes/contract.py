"""What an episode is, in memory and in a listing. One frame is what the robot saw, with the action it took on
seeing it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from refinevla_kit import hub
from refinevla_kit.simulator.contract import ACTION_NAMES as ACTION_NAMES
from refinevla_kit.simulator.contract import Array, SceneState

_POSE = ("x", "y", "z", "qw", "qx", "qy", "qz")
STATE_NAMES = (*_POSE, "gripper", *(f"commanded_{name}" for name in _POSE))  # `Observation.proprioception`
SIDECAR = "simulator"  # folder in a dataset
CAMERA = "observation.images.image_0"  # the name the public Bridge conversion gives this view


@dataclass(frozen=True)
class Episode:
    """One recorded episode of T frames.

    Attributes:
        images: uint8 (T, H, W, 3) RGB; H and W even.
        actions: float32 (T, A), the action taken on seeing the frame.
        proprioception: float32 (T, P), the robot's own state in the frame.
        instruction: the sentence the robot was given, or one a frame where it changes.
        task: the kit's name of the task; "" when the episode comes from elsewhere.
        success: the task's condition held at the last frame's end.
        seed: what the start was drawn with.
        start: "random", or "grid:7" for grid configuration 7.
        states: privileged state of each frame, or None.
        masks: name -> bool (T, H, W), visible pixels of each thing (no pixel belongs to two), or None.
    """

    images: Array
    actions: Array
    proprioception: Array
    instruction: str | Sequence[str]
    task: str = ""
    success: bool = False
    seed: int = 0
    start: str = "random"
    states: Sequence[SceneState] | None = None
    masks: dict[str, Array] | None = None


@dataclass(frozen=True)
class EpisodeInfo:
    """One line of a dataset's listing; `task` is "" and success, start and seed are None where the dataset
    does not say.
    """

    index: int
    length: int
    instruction: str
    task: str = ""
    success: bool | None = None
    start: str | None = None
    seed: int | None = None


def sidecar_path(dataset: Path, episode: int) -> Path:
    """Where the simulator's knowledge of an episode lies beside a dataset, see `writer.py`."""
    return dataset / SIDECAR / f"episode_{episode:06d}.npz"


def rationales_folder(dataset: str | Path) -> Path:
    """Where a teacher's answers about a dataset go: beside it. Those about one of the hub, whose cache has
    another folder for each revision and may be emptied, go into the working folder.
    """
    name = str(dataset) if hub.is_name(dataset) else hub.name_in_cache(dataset)
    return Path("rationales") / name.replace("/", "--") if name else Path(dataset) / "rationales"
