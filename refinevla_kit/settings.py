"""A notebook's settings: the profile's values, overlaid by the parameters cell, checked against what the notebook knows.

One dial, `profile`, sets everything; a parameter that is None keeps the profile's value, any other value overrides it. A name that neither the
profile nor the parameters cell knows is an error: papermill only warns, and a misspelt parameter would silently run the wrong experiment.
"""

from __future__ import annotations

import ast
import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from refinevla_kit.errors import KitError

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOKS = ("01_teacher_annotation", "02_fine_tuning", "03_simpler_evaluation", "04_attention_maps", "05_paper_figures")
COMMON = ("profile", "output", "seed")

_SIMPLE = (str, bool, int, float, list, tuple, dict, type(None))
_NOT_PARAMETERS = ("In", "Out", "exit", "quit")  # IPython's own
_READ = "_refinevla_settings_read"


class Settings:
    """Frozen settings of one notebook: each value is an attribute.

    Attributes:
        output: folder of this run, shared by the five notebooks.
        profile, seed: as in the parameters cell.
    """

    __slots__ = ("_notebook", "_values")

    def __init__(self, notebook: str, values: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_notebook", notebook)
        object.__setattr__(self, "_values", MappingProxyType(dict(values)))

    def __getattr__(self, name: str) -> Any:
        try:
            return object.__getattribute__(self, "_values")[name]
        except KeyError:
            raise AttributeError(f"{self._notebook} has no setting {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"settings are frozen: set {name!r} in the parameters cell")

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self._values.items())

    def __repr__(self) -> str:
        return "\n".join(f"{name:<20} {value}" for name, value in self)

    @property
    def folder(self) -> Path:
        """This notebook's own folder, `output/<notebook>`; made on first use."""
        folder: Path = self._values["output"] / self._notebook
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise KitError(f"the output folder {folder} cannot be made: {error.strerror}", "choose another `output`") from error
        return folder

    def find(self, value: str | Path | None, run_path: str, shipped_name: str) -> Path:
        """The input to read: `value` if one is given, else `output/run_path` if an earlier notebook left it, else `data/shipped_name`."""
        if value is not None:
            given = Path(value).expanduser()
            for candidate in (given, REPOSITORY / given):
                if candidate.exists():
                    return candidate.resolve()
            raise KitError(f"{value} does not exist", "give an existing path, or None for what the run folder or data/ holds")
        for candidate in (self._values["output"] / run_path, REPOSITORY / "data" / shipped_name):
            if candidate.exists():
                return candidate
        earlier = run_path.split("/")[0]
        remedy = "give a path as the parameter" if earlier == self._notebook else f"run notebook {earlier} first, or give a path as the parameter"
        raise KitError(f"neither {self._values['output'] / run_path} nor data/{shipped_name} exists", remedy)

    def as_dict(self) -> dict[str, Any]:
        """The values as JSON can hold them (paths as strings), for summary.json."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in self}


def profile_names() -> list[str]:
    """The profiles that exist."""
    return sorted(path.stem for path in (REPOSITORY / "notebooks" / "profiles").glob("*.yaml"))


def load_profile(profile: str) -> dict[str, dict[str, Any]]:
    """The values of a profile, by notebook. Raises `KitError` naming the profiles that exist."""
    if profile not in profile_names():
        raise KitError(f"unknown profile {profile!r}{_suggest(str(profile), profile_names())}", f"choose one of {', '.join(profile_names())}")
    values = yaml.safe_load((REPOSITORY / "notebooks" / "profiles" / f"{profile}.yaml").read_text(encoding="utf-8"))
    return {notebook: section or {} for notebook, section in values.items()}


def parameter_names(notebook: str) -> list[str]:
    """Names that the parameters cell of a notebook assigns, in order. Empty where the notebook is not beside the package."""
    path = REPOSITORY / "notebooks" / f"{notebook}.ipynb"
    if not path.is_file():
        return []
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    source = next(("".join(cell["source"]) for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", [])), "")
    return [target.id for node in ast.parse(source).body if isinstance(node, ast.Assign) for target in node.targets if isinstance(target, ast.Name)]


def read_settings(notebook: str, namespace: dict[str, Any]) -> Settings:
    """Settings of `notebook` from its profile and the notebook's own variables.

    Args:
        notebook: name without suffix, such as `01_teacher_annotation`.
        namespace: the notebook's `globals()`. At the first call every public variable of a simple type counts as a parameter.

    Raises:
        KitError: the profile or a parameter is unknown.
    """
    profile = namespace.get("profile") or "laptop"
    sections = load_profile(profile)
    if notebook not in sections:
        raise KitError(f"profile {profile!r} has no section {notebook!r}", f"name one of {', '.join(sections)}")
    values = sections[notebook]
    known = list(dict.fromkeys([*COMMON, *values, *parameter_names(notebook)]))
    if _READ not in namespace:
        for name, value in namespace.items():
            if isinstance(value, _SIMPLE) and not name.startswith("_") and name not in _NOT_PARAMETERS and name not in known:
                raise KitError(f"unknown parameter {name!r} of {notebook}{_suggest(name, known)}", f"choose from {', '.join(known)}")
        namespace[_READ] = True
    given = {name: namespace[name] for name in known if namespace.get(name) is not None}
    for name, value in given.items():
        check_kind(name, values.get(name), value)
    values |= given
    output = namespace.get("output")
    folder = REPOSITORY / "runs" / profile if output is None else Path(output).expanduser().resolve()
    seed = 0 if namespace.get("seed") is None else namespace["seed"]
    return Settings(notebook, {"profile": profile, **dict.fromkeys(known), **values, "output": folder, "seed": seed})


def check_kind(name: str, usual: Any, value: Any) -> None:
    """Raise `KitError` when `value` is of another kind than the profile's value `usual` (None admits anything)."""
    if isinstance(usual, list) and isinstance(value, str):
        remedy = f"with papermill write -y '{name}: [...]', with refinevla -p '{name}=[\"...\"]'"
        raise KitError(f"{name} is a list, not the text {value!r}", remedy)
    if isinstance(usual, int | float) and (not isinstance(value, int | float) or isinstance(value, bool) != isinstance(usual, bool)):
        raise KitError(f"{name} is {type(usual).__name__}, such as {usual}, not {value!r}", f"give {name} a value of that kind")


def _suggest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
