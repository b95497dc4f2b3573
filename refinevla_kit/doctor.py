"""What the kit needs and whether it is here: one finding a requirement, each with the fix.

Every check looks for real. The Vulkan line draws a frame with SAPIEN, in a process of its own, because a
missing driver can take the process down. The assets line resolves the packs. `scripts/vulkan_driver.py` uses
the same probe, so set-up and doctor cannot disagree. Nothing heavy is imported at the top.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata, util
from typing import Literal

from refinevla_kit.errors import KitError, set_up

State = Literal["ok", "missing", "optional"]

TORCH, TRANSFORMERS, MANI_SKILL = "2.13", "5.23", "3.0"
"""The release series the kit is checked against; pyproject.toml holds the same bounds."""

FREE_DISK_GB = 3.0
TEACHER_KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY")

# A box in front of a camera, lit: the picture must not be uniform, or the driver draws nothing.
# With the shaders that need no table of reflections, which costs a processor 10 s.
RENDER_PROBE = """
import json, sapien
sapien.render.set_camera_shader_dir("trivial")
scene = sapien.Scene()
scene.set_ambient_light([0.5, 0.5, 0.5])
scene.add_directional_light([1, 0.5, -1], [1, 1, 1])
builder = scene.create_actor_builder()
builder.add_box_visual(half_size=[0.2, 0.2, 0.2])
builder.build_kinematic(name="box")
camera = scene.add_camera("camera", 32, 32, 1.0, 0.01, 10)
camera.entity.set_pose(sapien.Pose([-1, 0, 0]))
scene.update_render()
camera.take_picture()
picture = camera.get_picture("Color")[..., :3]
assert picture.max() - picture.min() > 0.1, "the picture is uniform"
print(json.dumps({"device": scene.render_system.device.name}))
"""


@dataclass(frozen=True)
class Finding:
    """One requirement: its name, whether it is met, what was found, and the fix.

    `optional` is absent, and the default way does not need it.
    """

    name: str
    state: State
    detail: str
    remedy: str = ""

    def line(self) -> str:
        """The finding as the one line that `refinevla doctor` prints."""
        return f"{self.state:<9}{self.name:<18}{self.detail}" + (f" -> {self.remedy}" if self.remedy else "")


def render_probe(python: str = sys.executable, timeout: float = 180.0) -> tuple[bool, str]:
    """Draw one frame with SAPIEN in a subprocess.

    Returns:
        Whether it worked, and the device's name or the reason in one line.
    """
    command = [python, "-c", RENDER_PROBE]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return False, f"SAPIEN drew nothing within {timeout:.0f} s"
    except OSError as error:
        return False, f"{python} cannot be run: {error}"
    if run.returncode == 0:
        return True, str(json.loads(run.stdout.strip().splitlines()[-1])["device"])
    reason = run.stderr.strip().splitlines() or [f"the process ended with status {run.returncode}"]
    return False, reason[-1]


def examine(names: Iterable[str] = ()) -> list[Finding]:
    """Run the named checks, by default all. A check that itself fails is missing, with its error."""
    return [_examine(name) for name in names or CHECKS]


def summary(findings: list[Finding]) -> dict[str, object]:
    """The findings as JSON values; `ready` is False if a requirement is missing."""
    return {
        "ready": all(finding.state != "missing" for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }


def _examine(name: str) -> Finding:
    try:
        return Finding(name, "ok", CHECKS[name]())
    except KitError as error:
        return Finding(name, "optional" if name in OPTIONAL else "missing", error.what, error.remedy)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Finding(name, "missing", reason, set_up())


def _series(distribution: str, series: str) -> str:
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        raise KitError("not installed", set_up()) from None
    if not version.startswith(f"{series}."):
        what = f"{version}, the kit is checked with {series}.x"
        raise KitError(what, f"pip install '{distribution}=={series}.*'")
    return version


def _python() -> str:
    found = f"{platform.python_version()} ({sys.executable})"
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        raise KitError(found, "make setup PYTHON=/path/to/python3.11")
    return found


def _vulkan() -> str:
    drawn, detail = render_probe()
    if not drawn:
        raise KitError(
            detail, "run `make setup` as root, or install Mesa's Vulkan driver, version 24.3 or newer"
        )
    return f"SAPIEN draws on {detail}"


def _simulator() -> str:
    if util.find_spec("simpler_env"):
        return "original SimplerEnv"
    version = _series("mani_skill", MANI_SKILL)
    return f"ManiSkill {version}; the original SimplerEnv is optional, environment.yml brings it"


def _assets(pack: str) -> str:
    from refinevla_kit.simulator.maniskill import resolve_assets

    return str(resolve_assets(pack))


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        what = f"none for torch {torch.__version__}; smoke and laptop need none"
        lacking = "an NVIDIA GPU with its driver" if torch.version.cuda else "a CUDA build of torch"
        raise KitError(what, f"for the gpu profile: {lacking}")
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB"


def _teacher_key() -> str:
    """Says whether a key is set; its value is never read into the output."""
    for name in TEACHER_KEYS:
        if os.environ.get(name):
            return f"{name} is set"
    remedy = "for the gemini teacher: export GEMINI_API_KEY=..."
    raise KitError("none; the oracle teacher needs none", remedy)


def _disk() -> str:
    free = shutil.disk_usage(".").free / 1e9
    if free < FREE_DISK_GB:
        raise KitError(f"{free:.1f} GB free", f"free at least {FREE_DISK_GB:.0f} GB")
    return f"{free:.1f} GB free"


CHECKS: dict[str, Callable[[], str]] = {
    "Python": _python,
    "torch": partial(_series, "torch", TORCH),
    "transformers": partial(_series, "transformers", TRANSFORMERS),
    "Vulkan device": _vulkan,
    "simulator": _simulator,
    "assets": partial(_assets, "embedded"),
    "official assets": partial(_assets, "official"),
    "GPU": _gpu,
    "teacher key": _teacher_key,
    "disk": _disk,
}
"""Each returns what was found, or raises a `KitError` that says what is missing and how to mend it."""
OPTIONAL = ("official assets", "GPU", "teacher key")
