"""Set-up finds a driver on machines unlike this one: other systems' apt sources are read as text; SAPIEN is
really asked to draw.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinevla_kit.settings import REPOSITORY


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "vulkan_driver", REPOSITORY / "scripts" / "vulkan_driver.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["vulkan_driver"] = module
    spec.loader.exec_module(module)
    return module


driver = load_script()

DEB822 = """\
# the archive
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/archive.gpg

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://disabled.example/debian
Suites: bookworm
Components: main
"""


def test_new_suite_takes_address_and_key_from_deb822() -> None:
    sources = driver.parse_deb822(DEB822)
    assert [source.suites for source in sources] == [("bookworm", "bookworm-updates"), ("bookworm-security",)]
    assert driver.backports_source(sources, "bookworm").splitlines() == [
        "Types: deb",
        "URIs: http://mirror.example/debian",
        "Suites: bookworm-backports",
        "Components: main",
        "Signed-By: /usr/share/keyrings/archive.gpg",
    ]


def test_key_written_into_the_source_is_kept_whole() -> None:
    key = (
        "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n -----END PGP PUBLIC KEY "
        "BLOCK-----\n"
    )
    stanza = "Types: deb\nURIs: http://m.example/d\nSuites: bookworm\nComponents: main\n" + key
    text = driver.backports_source(driver.parse_deb822(stanza), "bookworm")
    assert text.endswith(key.replace("Signed-By:\n", "Signed-By: \n"))
    assert driver.parse_deb822(text)[0].suites == ("bookworm-backports",)


def test_new_suite_takes_address_and_key_from_one_line() -> None:
    text = "deb cdrom:[Debian 12]/ bookworm main\ndeb-src http://a.example/debian bookworm main\n"
    text += (
        "deb [arch=amd64,arm64 signed-by=/etc/key.gpg] http://b.example/debian bookworm main non-free # "
        "ours\n"
    )
    text += "#deb http://c.example/debian bookworm main\n"
    written = driver.backports_source(driver.parse_one_line(text), "bookworm")
    assert driver.parse_deb822(written) == [
        driver.Source(
            ("http://b.example/debian",),
            ("bookworm-backports",),
            ("main",),
            {"Architectures": "amd64 arm64", "Signed-By": "/etc/key.gpg"},
        )
    ]


addresses = st.from_regex(r"https?://[a-z]{1,8}\.example(/[a-z]{1,6}){0,3}", fullmatch=True)
components = st.lists(st.sampled_from(["main", "contrib", "non-free"]), min_size=1)


@given(addresses, components)
def test_both_formats_say_the_same(uri: str, components: list[str]) -> None:
    one_line = driver.parse_one_line(f"deb {uri} bookworm {' '.join(components)}\n")
    deb822 = driver.parse_deb822(
        f"Types: deb\nURIs: {uri}\nSuites: bookworm\nComponents: {' '.join(components)}\n"
    )
    assert one_line == deb822


@given(st.text())
def test_any_text_is_read_without_error(text: str) -> None:
    driver.parse_deb822(text)
    driver.parse_one_line(text)


def test_suite_that_is_there_is_not_added_twice_and_unknown_archive_is_none() -> None:
    sources = driver.parse_one_line(
        "deb http://m.example/debian bookworm-backports main\ndeb http://m.example/debian bookworm main\n"
    )
    assert driver.backports_source(sources, "bookworm") == ""
    assert driver.backports_source(sources, "trixie") is None


def test_sources_are_collected_from_every_file(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("deb http://a.example/debian bookworm main\n")
    (tmp_path / "sources.list.d" / "debian.sources").write_text(DEB822)
    (tmp_path / "sources.list.d" / "old.list.disabled").write_text(
        "deb http://z.example/debian bookworm main\n"
    )
    addresses = [source.uris[0] for source in driver.read_sources(tmp_path)]
    assert addresses == [
        "http://a.example/debian",
        "http://mirror.example/debian",
        "http://mirror.example/security",
    ]


def test_newest_version_is_found_behind_a_pinned_older_one() -> None:
    policy = """mesa-vulkan-drivers:
  Installed: 22.3.6-1+deb12u1
  Candidate: 22.3.6-1+deb12u1
  Version table:
     25.0.7-2~bpo12+1 100
        100 http://mirror.example/debian bookworm-backports/main amd64 Packages
 *** 22.3.6-1+deb12u1 500
        500 http://mirror.example/debian bookworm/main amd64 Packages
        100 /var/lib/dpkg/status
"""
    assert driver.newest_offered(policy) == (25, 0)
    assert driver.newest_offered("") == (0, 0)
    assert driver.version_of("1:24.3.1-1ubuntu2") == (24, 3) >= driver.MESA > driver.version_of("24.2.8-1")


def test_remedy_names_a_command_for_the_system() -> None:
    assert "vulkan_driver.py" in driver.remedy(
        driver.os_release('ID=ubuntu\nID_LIKE=debian\nPRETTY_NAME="Ubuntu 24.04"\n')
    )
    assert "dnf install" in driver.remedy({"ID": "fedora"})


def test_repository_names_no_archive() -> None:
    text = "".join((REPOSITORY / "scripts" / name).read_text() for name in ("setup.sh", "vulkan_driver.py"))
    assert re.findall(r"https?://", text) == []


def test_without_root_it_says_what_to_do(tmp_path: Path) -> None:
    """The real script, as nobody, where the Vulkan loader is told of no driver: it must fail with the remedy,
    and change nothing.
    """
    if os.geteuid() != 0:
        pytest.skip("taking another user's identity needs root")
    environment = {
        **os.environ,
        "VK_DRIVER_FILES": "/nonexistent.json",
        "VK_ICD_FILENAMES": "/nonexistent.json",
        "HOME": str(tmp_path),
    }
    code = (
        f"import os, runpy, sys; sys.path.insert(0, {str(REPOSITORY)!r}); os.geteuid = lambda: 1000; "
        f"runpy.run_path({str(REPOSITORY / 'scripts/vulkan_driver.py')!r}, run_name='__main__')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert run.returncode == 1
    assert "failed to find a rendering device" in run.stdout
    assert run.stderr.startswith("Vulkan: ") and " -> " in run.stderr and len(run.stderr.splitlines()) == 1


def test_where_sapien_draws_nothing_is_installed() -> None:
    run = subprocess.run(
        [sys.executable, REPOSITORY / "scripts" / "vulkan_driver.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("Vulkan: SAPIEN draws on ") and run.stdout.endswith("nothing to install\n")


@pytest.mark.parametrize(
    "start",
    [
        "import refinevla_kit",
        "from refinevla_kit.cli import main; main()",
        "import refinevla_kit.evaluation.records",
    ],
)
@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_on_another_system_it_says_so_in_one_line(start: str, system: str) -> None:
    code = f"import sys; sys.platform = {system!r}; {start}"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    line = (
        f"refinevla: the kit runs on Linux, this is {system} -> use a Linux machine, WSL 2 or a container\n"
    )
    assert (run.returncode, run.stdout, run.stderr) == (1, "", line)


def test_in_a_notebook_on_another_system_it_is_a_line_too() -> None:
    code = (
        "import sys; sys.modules['ipykernel'] = sys; sys.platform = 'darwin'\ntry:\n    import "
        "refinevla_kit\n"
    )
    code += "except Exception as error:\n    print(error._render_traceback_())"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert run.stdout.startswith("['KitError: the kit runs on Linux, this is darwin -> ")


def test_set_up_on_another_system_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "uname").write_text("#!/bin/sh\necho Darwin\n")
    (tmp_path / "uname").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = REPOSITORY / "scripts" / "setup.sh"
    run = subprocess.run(["bash", script], capture_output=True, text=True, check=False, env=environment)
    assert (run.returncode, run.stderr) == (
        1,
        "setup: the kit runs on Linux, this is Darwin -> use a Linux machine, WSL 2 or a container\n",
    )


SAYS = (
    "import refinevla_kit, os; print(os.environ.get('GOMP_SPINCOUNT'), "
    "os.environ.get('OMP_WAIT_POLICY')); import torch"
)


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({}, "10000 None"),
        ({"GOMP_SPINCOUNT": "7"}, "7 None"),
        ({"OMP_WAIT_POLICY": "active"}, "None active"),
    ],
)
def test_torchs_threads_soon_stop_to_spin_unless_the_user_says_otherwise(
    own: dict[str, str], says: str
) -> None:
    kept = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    environment = {**kept, **own, "OMP_DISPLAY_ENV": "verbose"}
    run = subprocess.run(
        [sys.executable, "-c", SAYS],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=REPOSITORY,
    )
    assert run.stdout == f"{says}\n"
    if count := says.split()[0].replace("None", ""):
        assert f"GOMP_SPINCOUNT = '{count}'" in run.stderr, "libgomp itself has read it"
