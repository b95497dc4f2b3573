"""See to it that SAPIEN can draw: test it, and where it cannot, install Mesa's software Vulkan driver with
apt.

Mesa must be 24.3 or newer. Where the distribution's own archive has that (Debian 13, Ubuntu 24.10 and later)
it is installed from there; Debian 12's is too old, its suite bookworm-backports is not, so that suite is
added, at the archive address that the machine's own apt sources name. Elsewhere, or without root, the remedy
is printed and the exit status is 1. Standard library only, apart from the probe that `refinevla doctor` uses
too.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

MESA = (24, 3)
# The driver and loader, and the system libraries that SAPIEN (libX11) and OpenCV (libGL, glib) load.
PACKAGES = ("mesa-vulkan-drivers", "libvulkan1", "libx11-6", "libgl1", "libglib2.0-0")
# What of a source says how its archive is to be trusted, in the one-line format and in deb822; a further
# suite of it needs the same.
OPTIONS = {
    "signed-by": "Signed-By",
    "arch": "Architectures",
    "trusted": "Trusted",
    "check-valid-until": "Check-Valid-Until",
}
SOURCE_FILE = Path("/etc/apt/sources.list.d/refinevla-backports.sources")


@dataclass(frozen=True)
class Source:
    """One apt source of binary packages: where, which suites and components, and its options as deb822 fields
    (such as Signed-By).
    """

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: dict[str, str] = field(default_factory=dict)


def parse_deb822(text: str) -> list[Source]:
    """The enabled binary sources of a `.sources` file (deb822: stanzas of `Field: value`, continued by
    indented lines).
    """
    sources = []
    for stanza in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n")):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.split("\n"):
            if line.startswith("#") or not line.strip():
                continue
            if line[0] in " \t" and name:
                fields[name] += "\n" + line
            elif ":" in line:
                name, value = line.split(":", 1)
                name = name.strip().title()
                fields[name] = value.strip()
        if "deb" in fields.get("Types", "").split() and fields.get("Enabled", "yes").lower() not in (
            "no",
            "false",
            "0",
        ):
            options = {key: value for key, value in fields.items() if key in OPTIONS.values()}
            sources.append(
                Source(
                    *(tuple(fields.get(key, "").split()) for key in ("Uris", "Suites", "Components")), options
                )
            )
    return sources


def parse_one_line(text: str) -> list[Source]:
    """The binary sources of a `.list` file (`deb [option=value ...] uri suite component ...`)."""
    sources = []
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)((?:\s+[^\s#]+)*)", line.split(" #")[0])
        if match:
            given = dict(word.split("=", 1) for word in (match[1] or "").split() if "=" in word)
            options = {
                OPTIONS[key]: value.replace(",", " ") for key, value in given.items() if key in OPTIONS
            }
            sources.append(Source((match[2],), (match[3],), tuple(match[4].split()), options))
    return sources


def read_sources(folder: str | Path = "/etc/apt") -> list[Source]:
    """Every enabled binary source of the machine, from both formats."""
    root = Path(folder)
    sources = parse_one_line((root / "sources.list").read_text()) if (root / "sources.list").is_file() else []
    for path in sorted((root / "sources.list.d").glob("*")):
        if path.suffix == ".list":
            sources += parse_one_line(path.read_text())
        elif path.suffix == ".sources":
            sources += parse_deb822(path.read_text())
    return sources


def backports_source(sources: Sequence[Source], codename: str) -> str | None:
    """Text of the `.sources` file that adds `<codename>-backports`; empty if the machine has it already, None
    if no source names the archive.
    """
    suite = f"{codename}-backports"
    if any(suite in source.suites for source in sources):
        return ""
    for source in sources:
        if (
            codename in source.suites
            and "main" in source.components
            and not any(uri.startswith("cdrom:") for uri in source.uris)
        ):
            lines = ["Types: deb", f"URIs: {' '.join(source.uris)}", f"Suites: {suite}", "Components: main"]
            return "\n".join([*lines, *(f"{key}: {value}" for key, value in source.options.items())]) + "\n"
    return None


def version_of(text: str) -> tuple[int, int]:
    """Major and minor of a Debian version such as `25.0.7-2~bpo12+1` or `1:24.3.1-1`; (0, 0) if there is
    none.
    """
    match = re.match(r"(?:\d+:)?(\d+)\.(\d+)", text.strip())
    return (int(match[1]), int(match[2])) if match else (0, 0)


def os_release(text: str) -> dict[str, str]:
    """Fields of /etc/os-release."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {key.strip(): "".join(shlex.split(value)) for key, value in pairs}


def newest_offered(policy: str) -> tuple[int, int]:
    """Newest version in the table that `apt-cache policy` prints, whatever its priority."""
    table = policy.split("Version table:")[-1] if "Version table:" in policy else ""
    return max(
        (version_of(match[1]) for match in re.finditer(r"^ (?:\*\*\*|   ) (\S+) -?\d+$", table, re.M)),
        default=(0, 0),
    )


def remedy(release: dict[str, str]) -> str:
    """What a person should do by hand, for this system."""
    if "debian" in [release.get("ID"), *release.get("ID_LIKE", "").split()]:
        return (
            f"as root, run: {shlex.join([sys.executable, str(Path(__file__).resolve())])} (or install "
            "mesa-vulkan-drivers >= 24.3, libvulkan1)"
        )
    names = {
        "fedora": "dnf install mesa-vulkan-drivers vulkan-loader libX11",
        "arch": "pacman -S vulkan-swrast vulkan-icd-loader libx11",
    }
    command = names.get(release.get("ID", ""), "a package such as mesa-vulkan-drivers")
    return f"install a Vulkan driver: a GPU's own, or Mesa's lavapipe 24.3 or newer ({command})"


def _apt(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    return subprocess.run([*arguments], capture_output=True, text=True, check=False, env=environment)


def install(release: dict[str, str]) -> str | None:
    """Install the driver with apt. Returns None, or why it could not be done."""
    if shutil.which("apt-get") is None:
        return f"{release.get('PRETTY_NAME', 'this system')} has no apt"
    if os.geteuid() != 0:
        return "installing a driver needs root"
    print("  apt: reading the package lists", flush=True)
    _apt("apt-get", "update")  # a third-party source that fails must not stop this
    suite: list[str] = []
    if newest_offered(_apt("apt-cache", "policy", PACKAGES[0]).stdout) < MESA:
        codename = release.get("VERSION_CODENAME", "")
        if release.get("ID") != "debian":
            return f"{release.get('PRETTY_NAME', 'this system')} offers no Mesa of version 24.3 or newer"
        text = backports_source(read_sources(), codename)
        if text is None:
            return f"no apt source of this machine names the Debian archive with the suite {codename}"
        if text:
            print(f"  apt: adding the suite {codename}-backports in {SOURCE_FILE}", flush=True)
            SOURCE_FILE.write_text(text)
            _apt("apt-get", "update")
    if newest_offered(_apt("apt-cache", "policy", PACKAGES[0]).stdout) < MESA:
        SOURCE_FILE.unlink(missing_ok=True)
        return "no Mesa of version 24.3 or newer is offered"
    backports = f"{release.get('VERSION_CODENAME')}-backports"
    if release.get("ID") == "debian" and any(backports in source.suites for source in read_sources()):
        suite = ["-t", backports]
    print(f"  apt: installing {' '.join(PACKAGES)}", flush=True)
    done = _apt("apt-get", "install", "-y", "--no-install-recommends", *suite, *PACKAGES)
    if done.returncode:
        return "apt-get install failed: " + " ".join(
            (done.stderr.strip().splitlines() or done.stdout.strip().splitlines() or ["no message"])[-2:]
        )
    return None


def main() -> int:
    """Exit status 0 when SAPIEN draws, at once or after installing."""
    from refinevla_kit.doctor import render_probe

    drawn, detail = render_probe()
    if drawn:
        print(f"Vulkan: SAPIEN draws on {detail}; nothing to install")
        return 0
    path = Path("/etc/os-release")
    release = os_release(path.read_text()) if path.is_file() else {}
    print(f"Vulkan: SAPIEN cannot draw ({detail}).")
    print(
        "  What is needed: Mesa's software Vulkan driver, because the simulator renders its pictures "
        "with it.",
        flush=True,
    )
    problem = install(release)
    if problem is None:
        drawn, detail = render_probe()
        if drawn:
            print(f"Vulkan: SAPIEN draws on {detail}")
            return 0
        problem = f"the driver is installed and SAPIEN still cannot draw ({detail})"
    print(f"Vulkan: {problem} -> {remedy(release)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
