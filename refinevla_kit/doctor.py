"""What the kit needs and whether it is here: one finding a requirement, each with the fix.

Every check looks for real: the Vulkan line draws a frame with SAPIEN in a process of its own (a missing
driver can take the process down), the assets line resolves the packs. `scripts/vulkan_driver.py` uses the
same probe, so set-up and doctor cannot disagree. Nothing heavy is imported at the top.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from refinevla_kit.errors import KitError

State = Literal["ok", "missing", "optional"]

TORCH, TRANSFORMERS, MANI_SKILL = "2.13", "5.23", "3.0"
"""The release series the kit is checked against; pyproject.toml holds the same bounds."""

FREE_DISK_GB = 3.0
TEACHER_KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY")

# A box in front of a camera, lit: the picture must not be uniform, or the driver draws nothing.
RENDER_PROBE = """
import json, sapien
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
    """One requirement: its name, whether it is met (`optional`: absent, and the default way does not need
    it), what was found, and the fix.
    """

    name: str
    state: State
    detail: str
    remedy: str = ""

    def line(self) -> str:
        """The finding as the one line that `refinevla doctor` prints."""
        return f"{self.state:<9}{self.name:<18}{self.detail}" + (f" -> {self.remedy}" if self.remedy else "")


def render_probe(python: str = sys.executable, timeout: float = 180.0) -> tuple[bool, str]:
    """Draw one frame with SAPIEN in a subprocess. Returns (it worked, the device's name or the reason in one
    line).
    """
    try:
        run = subprocess.run(
            [python, "-c", RENDER_PROBE], capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"SAPIEN drew nothing within {timeout:.0f} s"
    except OSError as error:
        return False, f"{python} cannot be run: {error}"
    lines = run.stdout.strip().splitlines()
    if run.returncode == 0 and lines and lines[-1].startswith("{"):
        return True, str(json.loads(lines[-1])["device"])
    reason = run.stderr.strip().splitlines()[-1:] or [f"the process ended with status {run.returncode}"]
    return False, reason[0]


def installed(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _series(name: str, distribution: str, series: str) -> Finding:
    version = installed(distribution)
    if version is None:
        return Finding(name, "missing", "not installed", "run `make setup`")
    if not version.startswith(f"{series}."):
        return Finding(
            name,
            "missing",
            f"{version}, the kit is checked with {series}.x",
            f"pip install '{distribution}=={series}.*'",
        )
    return Finding(name, "ok", version)


def check_python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    good = (3, 11) <= sys.version_info[:2] < (3, 14)
    return Finding(
        "Python",
        "ok" if good else "missing",
        f"{version} ({sys.executable})",
        "" if good else "make setup PYTHON=/path/to/python3.11",
    )


def check_torch() -> Finding:
    return _series("torch", "torch", TORCH)


def check_transformers() -> Finding:
    return _series("transformers", "transformers", TRANSFORMERS)


def check_vulkan() -> Finding:
    drawn, detail = render_probe()
    if drawn:
        return Finding("Vulkan device", "ok", f"SAPIEN draws on {detail}")
    return Finding(
        "Vulkan device",
        "missing",
        detail,
        "run `make setup` as root, or install Mesa's Vulkan driver, version 24.3 or newer",
    )


def check_simulator() -> Finding:
    original = (
        "original SimplerEnv present"
        if util.find_spec("simpler_env")
        else "original SimplerEnv absent (optional, environment.yml brings it)"
    )
    version = installed("mani_skill")
    if version is None and "absent" in original:
        return Finding(
            "simulator", "missing", "neither ManiSkill 3 nor the original SimplerEnv", "run `make setup`"
        )
    return Finding("simulator", "ok", f"ManiSkill {version or 'absent'}, {original}")


def check_assets() -> Finding:
    """The embedded pack is shipped with the checkout."""
    from refinevla_kit.simulator.maniskill import resolve_assets

    try:
        embedded = resolve_assets("embedded")
    except KitError as error:
        return Finding("assets", "missing", f"the embedded pack is not whole: {error.what}", error.remedy)
    return Finding("assets", "ok", f"embedded pack in {embedded}")


def check_official_assets() -> Finding:
    from refinevla_kit.simulator.maniskill import resolve_assets

    try:
        return Finding("official assets", "ok", str(resolve_assets("official")))
    except KitError as error:
        return Finding("official assets", "optional", error.what, error.remedy)


def check_gpu() -> Finding:
    try:
        import torch
    except ImportError:
        return Finding("GPU", "optional", "torch is not installed", "run `make setup`")
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return Finding("GPU", "ok", f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB")
    return Finding(
        "GPU",
        "optional",
        f"none for torch {torch.__version__}; smoke and laptop need none",
        "for the gpu profile: a CUDA build of torch",
    )


def check_teacher_key() -> Finding:
    """Says whether a key is set; its value is never read into the output."""
    names = [name for name in TEACHER_KEYS if os.environ.get(name)]
    if names:
        return Finding("teacher key", "ok", f"{names[0]} is set")
    return Finding(
        "teacher key",
        "optional",
        "none; the oracle teacher needs none",
        "for the gemini teacher: export GEMINI_API_KEY=...",
    )


def check_disk(folder: str | Path = ".") -> Finding:
    free = shutil.disk_usage(folder).free / 1e9
    good = free >= FREE_DISK_GB
    return Finding(
        "disk",
        "ok" if good else "missing",
        f"{free:.1f} GB free",
        "" if good else f"free at least {FREE_DISK_GB:.0f} GB",
    )


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_python,
    check_torch,
    check_transformers,
    check_vulkan,
    check_simulator,
    check_assets,
    check_official_assets,
    check_gpu,
    check_teacher_key,
    check_disk,
)


def examine() -> list[Finding]:
    """Run every check. A check that itself fails is reported as missing, with its error, instead of hiding
    the rest.
    """
    findings = []
    for check in CHECKS:
        try:
            findings.append(check())
        except Exception as error:
            name = check.__name__.removeprefix("check_").replace("_", " ")
            findings.append(
                Finding(
                    name,
                    "missing",
                    f"{type(error).__name__}: {' '.join(str(error).split())}",
                    "run `make setup`",
                )
            )
    return findings


def summary(findings: list[Finding]) -> dict[str, object]:
    """The findings as JSON values; `ready` is False if a requirement is missing."""
    return {
        "ready": all(finding.state != "missing" for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }
