"""environment.yml, pyproject.toml and constraints.txt tell one story, and pip can resolve it."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from refinevla_kit.settings import REPOSITORY

TOML = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PROJECT = TOML["project"]
PIP_PART: list[str] = yaml.safe_load((REPOSITORY / "environment.yml").read_text())["dependencies"][-1]["pip"]
FROM_PYPI = [line for line in PIP_PART if not line.startswith("-e")]


def by_name(lines: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def pins() -> dict[str, str]:
    lines = [
        line
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}


def test_research_environment_has_the_packages_bounds_of_the_project() -> None:
    """Each bound of the project stands in environment.yml, which may narrow it (numpy, gymnasium: for SAPIEN
    2.2.2).
    """
    project, research = (
        by_name(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["gemini"]),
        by_name(FROM_PYPI),
    )
    for name, requirement in project.items():
        assert set(requirement.specifier) <= set(research[name].specifier), name
    narrowed = {name for name in project if set(research[name].specifier) != set(project[name].specifier)}
    assert narrowed == {"numpy", "gymnasium"}


@pytest.fixture(scope="module")
def made_once() -> None:
    """Something that a file's tests share."""


def test_tests_that_share_a_fixture_run_in_one_process(
    request: pytest.FixtureRequest, made_once: None, worker_id: str
) -> None:
    """Else whatever takes minutes to make is made in every process: pytest-xdist says nothing when it cannot
    group.
    """
    assert worker_id == "master" or request.node.nodeid.endswith("@tests/test_environment.py")


def test_original_benchmark_is_pinned_to_commits() -> None:
    sources = [line for line in PIP_PART if "github.com" in line]
    assert {re.search(r"#egg=(\w+)", line)[1] for line in sources} == {"mani_skill2_real2sim", "simpler_env"}  # type: ignore[index]
    assert all(re.search(r"\.git@[0-9a-f]{40}#", line) for line in sources)


def test_research_environment_leaves_out_what_cannot_stand_beside_the_original() -> None:
    assert not {"mani-skill", "torchvision", "lerobot"} & set(by_name(FROM_PYPI))
    assert str(by_name(FROM_PYPI)["sapien"].specifier) == "==2.2.2"


def test_constraints_pin_every_requirement_within_its_bounds() -> None:
    extras = PROJECT["optional-dependencies"]
    pinned = pins()
    for name, requirement in by_name(
        PROJECT["dependencies"] + extras["maniskill"] + extras["gemini"] + extras["dev"]
    ).items():
        assert requirement.specifier.contains(pinned[name]), name


def test_python_3_13_gets_mani_skills_requirements_but_mplib() -> None:
    """Of mplib there is no wheel for 3.13 as old as mani_skill asks for; `scripts/setup.sh` then installs
    mani_skill alone.
    """
    listed = [Requirement(line) for line in PROJECT["optional-dependencies"]["maniskill"]]
    chosen = {
        canonicalize_name(each.name)
        for each in listed
        if each.marker is None or each.marker.evaluate({"python_version": "3.13"})
    }
    base = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    asked = [Requirement(line) for line in metadata.requires("mani_skill") or [] if "extra ==" not in line]
    wanted = {canonicalize_name(each.name) for each in asked if each.marker is None or each.marker.evaluate()}
    assert wanted - {"mplib"} <= chosen | base and "mani-skill" not in chosen
    assert "install --no-deps mani_skill" in (REPOSITORY / "scripts" / "setup.sh").read_text()


def test_uv_installs_what_set_up_does() -> None:
    """The same extras, the same torch, mani_skill on every Python and mplib not on 3.13."""
    script = (REPOSITORY / "scripts" / "setup.sh").read_text()
    extras = re.search(r"-e '\.\[(.+)\]'", script)
    assert extras is not None
    own = by_name(TOML["dependency-groups"]["dev"])["refinevla-kit"]
    assert own.extras == set(extras[1].split(","))
    uv = TOML["tool"]["uv"]
    assert uv["constraint-dependencies"] == [f"torch=={pins()['torch']}"] and uv.keys().isdisjoint(
        {"index", "sources", "index-url", "find-links"}
    )
    overrides = by_name(uv["override-dependencies"])
    simulator = by_name(PROJECT["optional-dependencies"]["maniskill"])["mani-skill"]
    assert overrides["mani-skill"].specifier == simulator.specifier and overrides["mani-skill"].marker is None
    assert str(overrides["mplib"].marker) == str(simulator.marker) == 'python_version < "3.13"'


def test_pythons_of_the_project_set_up_and_doctor_are_the_same() -> None:
    supported = SpecifierSet(PROJECT["requires-python"])
    fits = re.search(
        r"\((\d+), (\d+)\) <= sys\.version_info\[:2\] < \((\d+), (\d+)\)",
        (REPOSITORY / "scripts" / "setup.sh").read_text(),
    )
    assert fits is not None and fits[0] in (REPOSITORY / "refinevla_kit" / "doctor.py").read_text()
    assert [str(minor) for minor in range(int(fits[2]), int(fits[4]))] == ["11", "12", "13"]
    assert [minor for minor in range(9, 16) if f"3.{minor}" in supported] == [10, 11, 12, 13]


def test_every_requirement_is_imported_or_run() -> None:
    paths = [
        path
        for folder in ("refinevla_kit", "experiments", "notebooks", "scripts")
        for path in (REPOSITORY / folder).rglob("*")
    ]
    text = "".join(path.read_text(encoding="utf-8") for path in paths if path.suffix in (".py", ".ipynb"))
    owners = [
        (top, canonicalize_name(owner))
        for top, names in metadata.packages_distributions().items()
        for owner in names
    ]
    imported = {
        owner for top, owner in owners if re.search(rf"^\W*(import|from) {re.escape(top)}\b", text, re.M)
    }
    # the notebooks' front end and kernel
    run = {"jupyterlab", "ipykernel"}
    assert set(by_name(PROJECT["dependencies"])) - imported == run


def installed_pins() -> dict[str, str]:
    """Those of this Python: from some on, a package is not asked for."""
    ends = {"overrides": (3, 12), "mplib": (3, 13), "toppra": (3, 13)}
    return {name: pin for name, pin in pins().items() if sys.version_info < ends.get(name, (4, 0))}


def test_constraints_are_what_is_installed() -> None:
    made_by = Path(sys.prefix, "pyvenv.cfg")
    if made_by.is_file() and "\nuv = " in made_by.read_text():
        pytest.skip("uv made this environment: it takes the newest versions within the bounds")
    for name, version in installed_pins().items():
        assert metadata.version(name).split("+")[0] == version, name


def test_every_pinned_package_admits_debian_12s_python() -> None:
    """3.11.2; a pin that does not makes pip try every other version of everything instead of saying so."""
    required = {name: metadata.metadata(name)["Requires-Python"] for name in installed_pins()}
    assert {
        name: bounds for name, bounds in required.items() if bounds and "3.11.2" not in SpecifierSet(bounds)
    } == {}


def test_every_import_of_the_package_is_declared() -> None:
    declared = set(
        by_name(
            PROJECT["dependencies"]
            + [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
        )
    )
    original = {"mani_skill2_real2sim", "simpler_env"}  # of environment.yml, in an environment of their own
    known = {
        *sys.stdlib_module_names,
        "refinevla_kit",
        "examples",
        "experiments",
        "scripts",
        "tests",
        "conftest",
        "",
        *original,
    }
    owners = metadata.packages_distributions()
    undeclared = set()
    for path in (
        path
        for folder in ("refinevla_kit", "experiments", "scripts", "tests")
        for path in (REPOSITORY / folder).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for top in {name.split(".")[0] for name in names} - known:
                if not {canonicalize_name(owner) for owner in owners.get(top, [top])} & declared:
                    undeclared.add(f"{path.relative_to(REPOSITORY)}: {top}")
    assert undeclared == set()


@pytest.mark.slow
def test_pip_resolves_the_research_environment(tmp_path: Path) -> None:
    """The GitHub packages aside; what ManiSkill2_real2sim requires of PyPI is in the list."""
    listed = tmp_path / "requirements.txt"
    listed.write_text("\n".join(FROM_PYPI) + "\n")
    report = tmp_path / "report.json"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--quiet",
        "--report",
        str(report),
        "-r",
        str(listed),
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if any(
        sign in run.stderr
        for sign in ("Connection refused", "name resolution", "ConnectTimeoutError", "NewConnectionError")
    ):
        pytest.skip("no package index can be reached")
    assert run.returncode == 0, run.stderr[-2000:]
    found = [each["metadata"] for each in json.loads(report.read_text())["install"]]
    resolved = {canonicalize_name(each["name"]): each["version"] for each in found}
    assert all(
        requirement.specifier.contains(resolved[name]) for name, requirement in by_name(FROM_PYPI).items()
    )
