"""`make(task, ...)` gives one `Simulator`, whichever backend is behind it. Nothing heavy is imported until it
is called.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from refinevla_kit.errors import KitError, check_choice, checked_integer
from refinevla_kit.tasks import (
    BACKENDS,
    BASE,
    CAMERA_SIZES,
    MANISKILL,
    SIMPLER_ENV,
    VISUAL_MATCHING,
    Protocol,
    Task,
    find_task,
)

if TYPE_CHECKING:
    from refinevla_kit.simulator.contract import Simulator

__all__ = ["find_backend", "make", "picture_size"]
LARGEST_SIDE = 4096  # pixels
SHADERS = ("default", "rt", "rt-med", "rt-fast")


def make(
    task: str | Task,
    assets: str | Path | None = None,
    width: int | None = None,
    height: int | None = None,
    privileged: bool = False,
    *,
    backend: str = "auto",
    setting: str = VISUAL_MATCHING,
    variant: str = BASE,
    shader: str = "default",
) -> Simulator:
    """Make the simulator of one task in one variant of its scene. Made once (1-2 s), reset many times (0.1
    s).

    Args:
        task: a `Task` or its name.
        assets: "embedded" (generated on first use), "official" (what the backend's downloader or package
            brought) or a directory in the backend's layout. None: embedded with ManiSkill 3, official with
            the original SimplerEnv (which has no other).
        width, height: camera resolution in pixels; the intrinsics are scaled with it. With one of them, the
            other follows the camera's aspect; with none, a quarter of SIMPLER's own (`CAMERA_SIZES`).
        privileged: put `SceneState` into every observation.
        backend: "maniskill", "simpler_env" or "auto": the first of them that is installed and can play the
            task in this setting.
        setting, variant: of the task's `protocol`.
        shader: of the Google Robot with ManiSkill 3: "default", or "rt" (ray tracing, on a GPU that has it;
            "rt-fast" and "rt-med" likewise).

    Raises:
        KitError: unknown task, setting or variant; a backend that cannot play it; incomplete asset directory;
            no Vulkan device; nothing installed.
    """
    chosen = task if isinstance(task, Task) else find_task(task)
    protocol = chosen.protocol(setting)
    change = protocol.variant(variant)
    if width is None and height is None:
        width = CAMERA_SIZES[chosen.robot][0] // 4
    size = picture_size(chosen.robot, width, height)
    name = find_backend(protocol, backend)
    google = chosen.robot == "google_robot" and name == MANISKILL
    if shader not in SHADERS or (shader != SHADERS[0] and not google):
        what = f"{chosen.name} on {name} is not drawn with shader {shader!r}"
        raise KitError(what, f"choose one of {', '.join(SHADERS)}" if google else "leave shader out")
    where = assets or ("official" if name == SIMPLER_ENV else "embedded")
    arguments = chosen, where, *size, privileged, protocol, change
    if name == SIMPLER_ENV:
        from refinevla_kit.simulator.simpler_env import SimplerEnvSimulator

        return SimplerEnvSimulator(*arguments)
    if google:
        from refinevla_kit.simulator.google_robot import GoogleRobotSimulator

        return GoogleRobotSimulator(*arguments, shader)
    if chosen.goals:
        from refinevla_kit.simulator.language import LanguageSimulator

        return LanguageSimulator(*arguments)
    from refinevla_kit.simulator.maniskill import ManiSkillSimulator

    return ManiSkillSimulator(*arguments)


def picture_size(robot: str, width: int | None = None, height: int | None = None) -> tuple[int, int]:
    """Width and height in pixels; one that is not given follows the aspect of the robot's camera.

    Raises:
        KitError: no whole number, or not from 1 to `LARGEST_SIDE`.
    """
    full_width, full_height = CAMERA_SIZES[robot]
    if width is not None:
        width = checked_integer(width, "width", 1, LARGEST_SIDE)
    if height is None:
        height = max(1, round((width or full_width) * full_height / full_width))
    height = checked_integer(height, "height", 1, LARGEST_SIDE)
    return width or max(1, round(height * full_width / full_height)), height


def find_backend(protocol: Protocol, backend: str = "auto") -> str:
    """The backend that plays `protocol`: the one asked for, or the first installed one that can.

    Raises:
        KitError: an unknown backend, one that cannot play this setting, or none that is installed.
    """
    check_choice("backend", backend, ("auto", *BACKENDS))
    if backend != "auto":
        if backend not in protocol.backends:
            raise KitError(
                f"{backend} cannot play this task in {protocol.setting}",
                f"use backend={protocol.backends[0]!r}",
            )
        return backend
    modules = {MANISKILL: "mani_skill", SIMPLER_ENV: "mani_skill2_real2sim"}
    for name in protocol.backends:
        if find_spec(modules[name]):
            return name
    how = {MANISKILL: "ManiSkill 3 (`make setup`)", SIMPLER_ENV: "the original SimplerEnv (environment.yml)"}
    raise KitError(
        "no simulator that can play this task is installed",
        f"install {' or '.join(how[name] for name in protocol.backends)}",
    )
