"""`make(task, ...)` gives one `Simulator`, whichever backend is behind it. Nothing heavy is imported until it is called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from refinevla_kit.tasks import Task, find_task

if TYPE_CHECKING:
    from refinevla_kit.simulator.contract import Simulator

__all__ = ["make"]


def make(
    task: str | Task, assets: str | Path = "embedded", width: int = 160, height: int = 120, privileged: bool = False
) -> Simulator:
    """Make the simulator of one task. Made once (1-12 s), reset many times (0.1 s).

    Args:
        task: a `Task` or its name.
        assets: "embedded" (generated on first use), "official" (what ManiSkill's downloader brought) or a directory in ManiSkill's layout.
        width, height: camera resolution in pixels; SIMPLER's own is 640 x 480, the intrinsics are scaled with it.
        privileged: put `SceneState` into every observation.

    Raises:
        KitError: unknown task, incomplete asset directory, no Vulkan device, ManiSkill not installed.
    """
    from refinevla_kit.simulator.maniskill import ManiSkillSimulator

    return ManiSkillSimulator(task if isinstance(task, Task) else find_task(task), assets, width, height, privileged)
