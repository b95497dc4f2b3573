"""The kit without its checkout: the wheel holds what it should, and works from an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from refinevla_kit.errors import SHIPPED
from refinevla_kit.settings import NOTEBOOKS, REPOSITORY

SOURCES = (
    "refinevla_kit",
    "notebooks",
    "data",
    "figures",
    "pyproject.toml",
    "setup.py",
    "README.md",
    "LICENSE",
)
LIMIT = 20e6  # bytes
CHECKPOINTS = {"compact_base", "with_reasoning"}
USE = """
import json, refinevla_kit
from pathlib import Path
from refinevla_kit.episodes import open_dataset
from refinevla_kit.policies import load_policy
from refinevla_kit.settings import REPOSITORY, read_settings
print(json.dumps({
    "package": refinevla_kit.__file__,
    "repository": str(REPOSITORY),
    "output": str(read_settings("00_quickstart", "smoke").output),
    "policy": load_policy(REPOSITORY / "data/checkpoints/with_reasoning").name,
    "episodes": len(open_dataset(REPOSITORY / "data/demo").episodes),
}))
"""


def python(*arguments: str, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built beside links to the sources, so that nothing comes to lie in the checkout."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        (folder / name).symlink_to(REPOSITORY / name)
    built = python("-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-w", "dist", cwd=folder)
    assert built.returncode == 0, built.stderr[-3000:]
    [path] = (folder / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    done = python("-m", "pip", "install", "--no-deps", "--target", str(target), str(wheel), cwd=target)
    assert done.returncode == 0, done.stderr[-3000:]
    return target


def test_the_checkout_is_itself() -> None:
    assert not SHIPPED.exists() and Path(__file__).parents[1] == REPOSITORY


@pytest.mark.slow
def test_the_wheel_is_small_and_holds_what_the_notebooks_start_from(wheel: Path) -> None:
    assert wheel.stat().st_size < LIMIT
    with zipfile.ZipFile(wheel) as held:
        names = {Path(name) for name in held.namelist()}
    assert {name.parts[0] for name in names} - {"refinevla_kit"} == {"refinevla_kit-0.1.0.dist-info"}
    shipped = Path("refinevla_kit/shipped")
    files = {name.relative_to(shipped) for name in names if name.is_relative_to(shipped)}
    assert {name.parts[0] for name in files} == {"notebooks", "data", "figures"}
    assert {name.parts[2] for name in files if name.parts[:2] == ("data", "checkpoints")} == CHECKPOINTS
    assert {name.stem for name in files if name.suffix == ".ipynb"} == set(NOTEBOOKS)
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if tracked.returncode == 0:
        assert sorted(map(str, files - {Path(name) for name in tracked.stdout.splitlines()})) == []
    code = {path.relative_to(REPOSITORY) for path in (REPOSITORY / "refinevla_kit").rglob("*.py")}
    assert {name for name in names if name.suffix == ".py"} == code


@pytest.mark.slow
def test_an_installed_wheel_works_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    path, before = str(installed), sorted(installed.rglob("shipped/**/*"))
    used = python("-c", USE, cwd=tmp_path, path=path)
    assert used.returncode == 0, used.stderr[-3000:]
    shipped = installed / "refinevla_kit" / "shipped"
    assert json.loads(used.stdout.splitlines()[-1]) == {
        "package": str(installed / "refinevla_kit" / "__init__.py"),
        "repository": str(shipped),
        "output": str(tmp_path / "runs" / "smoke"),
        "policy": "with_reasoning",
        "episodes": 12,
    }
    cli = ("-m", "refinevla_kit.cli")
    report = json.loads(python(*cli, "doctor", "--json", cwd=tmp_path, path=path).stdout)
    found = {finding["name"]: finding for finding in report["findings"]}
    assert found["assets"]["state"] == "ok" and found["assets"]["detail"] == str(shipped / "data" / "assets")
    base = str(shipped / "data" / "checkpoints" / "compact_base")
    planned = python(*cli, "plan", "--base", base, "--frames", "1000", cwd=tmp_path, path=path)
    assert json.loads(planned.stdout.splitlines()[-1])["frames"] == 1000
    assert list(tmp_path.iterdir()) == [], "none of these writes anything"
    assert sorted(installed.rglob("shipped/**/*")) == before


@pytest.mark.slow
def test_the_notebooks_of_a_wheel_are_written_once(installed: Path, tmp_path: Path) -> None:
    command = ("-m", "refinevla_kit.cli", "init", "mine")
    done = python(*command, cwd=tmp_path, path=str(installed))
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout.splitlines()[-1])["written"]
    found = {path.relative_to(tmp_path / "mine") for path in (tmp_path / "mine").rglob("*") if path.is_file()}
    assert found == set(map(Path, written)) and Path("notebooks/profiles/laptop.yaml") in found
    (tmp_path / "mine" / "notebooks" / "00_quickstart.ipynb").write_text("mine")
    again = python(*command, cwd=tmp_path, path=str(installed))
    assert (again.returncode, len(again.stderr.splitlines())) == (2, 1)
    assert "differs from the kit's -> choose another folder" in again.stderr
