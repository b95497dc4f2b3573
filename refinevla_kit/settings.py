"""A notebook's settings: the profile's values, overlaid by the parameters cell, checked against what the
notebook knows.

One dial, `profile`, sets everything; a parameter that is None keeps the profile's value, any other value
overrides it. A name that neither the profile nor the parameters cell knows is an error: papermill only warns,
and a misspelt parameter would silently run the wrong experiment.
"""

from __future__ import annotations

import ast
import difflib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import yaml

from refinevla_kit.errors import KitError
from refinevla_kit.files import write_json
from refinevla_kit.tasks import BACKENDS, SETTINGS, find_tasks

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOKS = (
    "01_teacher_annotation",
    "02_fine_tuning",
    "03_simpler_evaluation",
    "04_attention_maps",
    "05_paper_figures",
)
COMMON = ("profile", "output", "seed")
T = TypeVar("T")

KINDS: dict[str, type] = {
    **dict.fromkeys(
        ("output", "dataset", "rationales", "base", "action_only", "with_reasoning", "frames"), str
    ),
    **dict.fromkeys(("records", "history", "attention", "experiment"), str),
    **dict.fromkeys(("assets", "teacher", "model", "prices", "granularity", "camera"), str),
    **dict.fromkeys(("order", "starts", "setting", "backend", "task"), str),
    **dict.fromkeys(("seed", "width", "layer", "threads", "requests_per_minute"), int),
    **dict.fromkeys(("tasks", "variants"), list),
    "budget_money": float,
    "gripper": float,
    "confirm": bool,
    "deltas": bool,
    "columns": dict,
}
"""Kinds of the parameters that a profile may leave at null. Of any other parameter the profile's value shows
the kind.
"""

CHOICES = {
    "granularity": ("step", "segment", "trajectory"),
    "order": ("action_first", "rationale_first"),
    "starts": ("grid", "dense"),
    "start": ("random", "grid"),
    "setting": SETTINGS,
    "backend": ("auto", *BACKENDS),
}
LEAST = dict.fromkeys(
    ("episodes_per_task", "concurrency", "requests_per_minute", "steps", "batch_size", "width", "every"), 1
)
LEAST |= dict.fromkeys(
    ("seed", "workers", "settle", "disturb", "noise", "budget_money", "lambda_reasoning", "freeze_layers"), 0
)
"""What a value has to be, known before the first long step; what depends on more than the value is said by
who takes it.
"""

_READ = "_refinevla_settings_read"
PLACES = "places.json"  # in a notebook's folder: what each path there was made from, and which was used last


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
            raise KitError(
                f"the output folder {folder} cannot be made: {error.strerror}", "choose another `output`"
            ) from error
        return folder

    def place(self, name: str, made_from: Mapping[str, Any]) -> Path:
        """Where what is made from `made_from` lies in this notebook's folder. Later notebooks `find` the path
        that was given last.

        Args:
            name: its name, such as "dataset". It is numbered, "dataset-2", where that name was made from
                something else.
            made_from: all that it depends on, as JSON can hold it. The same gives the same path, so that a
                notebook goes on with what is there.
        """
        wanted = json.loads(json.dumps(dict(made_from), default=str, sort_keys=True))
        known, latest = _read_places(self.folder)
        number, chosen = 1, name
        while known.get(chosen) != wanted and (chosen in known or (self.folder / chosen).exists()):
            number += 1
            chosen = str(Path(name).with_name(f"{Path(name).stem}-{number}{Path(name).suffix}"))
        if chosen != name:
            print(
                f"{self.folder / name} was made from something else and stays as it is; this run's "
                f"is {chosen}"
            )
        write_json(
            self.folder / PLACES, {"made_from": known | {chosen: wanted}, "latest": latest | {name: chosen}}
        )
        return self.folder / chosen

    def remember(self, name: str, value: T) -> T:
        """Keep `value`, an existing path or JSON, for later notebooks to `find` or `recall` under `name`; it
        is returned.

        Paths in `output`, in the name too, are kept as they lie from there: the folder may be moved or
        copied.
        """
        known, latest = _read_places(self.folder)
        kept: Any = value
        if isinstance(value, Path):
            inside = value.is_relative_to(self._values["output"])
            kept = os.path.relpath(value, self.folder) if inside else str(value)
        write_json(self.folder / PLACES, {"made_from": known, "latest": latest | {self._moved(name): kept}})
        return value

    def _moved(self, name: str) -> str:
        return name.replace(f"{self._values['output']}/", "")

    def recall(self, run_path: str) -> Any:
        """What an earlier notebook remembered as `notebook/name`, None where it remembered nothing."""
        earlier, _, name = run_path.partition("/")
        return _read_places(self._values["output"] / earlier)[1].get(self._moved(name))

    def find(self, value: str | Path | None, run_path: str, shipped_name: str) -> Path:
        """The input to read: `value` if one is given, else what an earlier notebook left last as
        `output/run_path`, else `data/shipped_name`.

        Raises:
            KitError: none of them exists, or what the earlier notebook left last is not there (any more).
        """
        if value is not None:
            given = Path(value).expanduser()
            for candidate in (given, REPOSITORY / given):
                if candidate.exists():
                    return candidate.resolve()
            raise KitError(
                f"{value} does not exist: there is no such file or folder in {Path.cwd()} or {REPOSITORY}",
                "give an existing path, or None for what the run folder or data/ holds",
            )
        earlier, _, name = run_path.partition("/")
        left = self.left(run_path)
        if left is not None:
            return left
        shipped = REPOSITORY / "data" / shipped_name
        if shipped.exists():
            if earlier != self._notebook:
                print(
                    f"{self._values['output']} has no {name or 'result'} of notebook {earlier}: "
                    f"{shipped}, which the kit ships, is used"
                )
            return shipped
        remedy = (
            "give a path as the parameter"
            if earlier == self._notebook
            else f"run notebook {earlier} first, or give a path as the parameter"
        )
        raise KitError(f"neither {self._values['output'] / run_path} nor data/{shipped_name} exists", remedy)

    def find_policies(self, names: Sequence[str]) -> dict[str, Path]:
        """The checkpoint of each policy: the one given as the parameter of its name, else notebook 2's, else
        the shipped one.

        Raises:
            KitError: of those not given, notebook 2 left some and not others: they would be compared with
                policies of another training.
        """
        asked = [name for name in names if getattr(self, name, None) is None]
        left = [name for name in asked if self.left(f"02_fine_tuning/{name}")]
        if left and left != asked:
            missing = ", ".join(name for name in asked if name not in left)
            raise KitError(
                f"notebook 02_fine_tuning left {', '.join(left)} in {self._values['output']}, but "
                f"not {missing}",
                f"run notebook 2 to its end, or give {missing} as a parameter",
            )
        return {
            name: self.find(getattr(self, name, None), f"02_fine_tuning/{name}", f"checkpoints/{name}")
            for name in names
        }

    def left(self, run_path: str) -> Path | None:
        """What an earlier notebook left as `run_path`, None where it left nothing."""
        earlier, _, name = run_path.partition("/")
        latest = self.recall(run_path)
        path = Path(os.path.normpath(self._values["output"] / earlier / (latest or name)))
        if path.exists():
            return path
        if latest is not None:
            raise KitError(
                f"{path}, the {name} of notebook {earlier}, is not there",
                f"run notebook {earlier} to its end, or give a path",
            )
        return None

    def as_dict(self) -> dict[str, Any]:
        """The values as JSON can hold them (paths as strings), for summary.json."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in self}


def profile_names() -> list[str]:
    """The profiles that exist."""
    return sorted(path.stem for path in (REPOSITORY / "notebooks" / "profiles").glob("*.yaml"))


def load_profile(profile: str) -> dict[str, dict[str, Any]]:
    """The values of a profile, by notebook. Raises `KitError` naming the profiles that exist."""
    if profile not in profile_names():
        raise KitError(
            f"unknown profile {profile!r}{_suggest(str(profile), profile_names())}",
            f"choose one of {', '.join(profile_names())}",
        )
    values = yaml.safe_load(
        (REPOSITORY / "notebooks" / "profiles" / f"{profile}.yaml").read_text(encoding="utf-8")
    )
    return {notebook: section or {} for notebook, section in values.items()}


def parameter_names(notebook: str) -> list[str]:
    """Names that the parameters cell of a notebook assigns, in order. Empty where the notebook is not beside
    the package.
    """
    path = REPOSITORY / "notebooks" / f"{notebook}.ipynb"
    if not path.is_file():
        return []
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    source = next(
        (
            "".join(cell["source"])
            for cell in cells
            if "parameters" in cell.get("metadata", {}).get("tags", [])
        ),
        "",
    )
    return [
        target.id
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]


def read_settings(notebook: str, namespace: dict[str, Any]) -> Settings:
    """Settings of `notebook` from its profile and the notebook's own variables.

    Args:
        notebook: name without suffix, such as `01_teacher_annotation`.
        namespace: the notebook's `globals()`. In a kernel the names that the parameters cell and papermill's
            cell assign are parameters; elsewhere every public variable of a simple type.

    Raises:
        KitError: the profile or a parameter is unknown or of the wrong kind.
    """
    assigned, again = _assigned(namespace), namespace.get(_READ, False)
    given = {name: namespace[name] for name in assigned if namespace.get(name) is not None}
    profile = given.get("profile", "laptop")
    sections = load_profile(profile)
    if notebook not in sections:
        raise KitError(
            f"profile {profile!r} has no section {notebook!r}", f"name one of {', '.join(sections)}"
        )
    values = sections[notebook]
    known = list(dict.fromkeys([*COMMON, *values, *parameter_names(notebook)]))
    for name in assigned:
        # Outside of a kernel a later call sees what other lines have made, too: there only a near miss is an
        # error.
        if name not in known and (not again or difflib.get_close_matches(name, known, n=1, cutoff=0.8)):
            raise KitError(
                f"unknown parameter {name!r} of {notebook}{_suggest(name, known)}",
                f"choose from {', '.join(known)}",
            )
    if not _cells(namespace):
        namespace[_READ] = True
    given = {
        name: check_kind(name, values.get(name), value) for name, value in given.items() if name in known
    }
    output, seed = given.pop("output", None), given.pop("seed", 0)
    if output == "":
        raise KitError("output is an empty text", "give a folder, or None for runs/<profile>")
    for name, value in (given | {"seed": seed}).items():
        _check_value(name, value)
    folder = REPOSITORY / "runs" / profile if output is None else Path(output).expanduser().resolve()
    return Settings(
        notebook, dict.fromkeys(known) | values | given | {"profile": profile, "output": folder, "seed": seed}
    )


def _check_value(name: str, value: Any) -> None:
    """Raise `KitError` for a value that no run can use."""
    if name in CHOICES and value not in CHOICES[name]:
        raise KitError(
            f"unknown {name} {value!r}{_suggest(str(value), list(CHOICES[name]))}",
            f"choose one of {', '.join(CHOICES[name])}",
        )
    if name in LEAST and not LEAST[name] <= value < float("inf"):
        raise KitError(f"{name} is {value}", f"give a number from {LEAST[name]} on")
    if name == "seed" and value >= 2**32:
        raise KitError(f"seed is {value}", f"give a whole number below {2**32}")
    if name == "tasks":
        if not value:
            raise KitError("tasks is an empty list", 'name one or more, as in ["widowx"]')
        for task in value:
            find_tasks(str(task))


def _assigned(namespace: Mapping[str, Any]) -> list[str]:
    """Names of the parameters that were set, known or not, in order.

    What IPython's start-up files and other cells of the notebook define is none: a kernel keeps the source of
    each cell that was run in `In`.
    """
    cells = _cells(namespace)
    if not cells:
        simple = (str, bool, int, float, list, tuple, dict)
        own = [
            name
            for name, value in namespace.items()
            if isinstance(value, simple) and not name.startswith("_")
        ]
        return [name for name in own if name not in ("In", "Out")]
    names: dict[str, None] = {}
    for source in reversed(cells):
        found = _assignments(source)
        injected = source.startswith("# Parameters")  # papermill's cell, run after the notebook's own
        if injected or "profile" in found:
            names |= dict.fromkeys(found)
        if "profile" in found and not injected:
            break
    return list(names)


def _cells(namespace: Mapping[str, Any]) -> list[str]:
    """Sources of the cells that a kernel has run, in order; none outside of a kernel."""
    cells = namespace.get("In")
    return (
        [source for source in cells if isinstance(source, str) and source] if isinstance(cells, list) else []
    )


def _assignments(source: str) -> list[str]:
    """Names that a cell's own lines assign; none of a cell that is not plain Python."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError):
        return []
    targets: list[ast.expr] = []
    for node in body:
        if isinstance(node, ast.Assign):
            targets += node.targets
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets.append(node.target)
    return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]


def check_kind(name: str, usual: Any, value: Any) -> Any:
    """`value` as a parameter of the kind of `usual`, the profile's value; of `KINDS` where the profile has
    none.

    Raises:
        KitError: it is of another kind.
    """
    kind = type(usual) if usual is not None else KINDS.get(name)
    if value is None or kind is None:
        return value
    if kind is list and isinstance(value, str):
        remedy = f"with papermill write -y '{name}: [...]', with refinevla -p '{name}=[\"...\"]'"
        raise KitError(f"{name} is a list, not the text {value!r}", remedy)
    if kind is str and isinstance(value, Path):
        return str(value)
    if kind is str and type(value) is int:  # papermill reads a folder called 2024 as a number
        return str(value)
    if kind is list and isinstance(value, tuple):
        return list(value)
    fits = isinstance(value, (int, float)) if kind in (int, float) else isinstance(value, kind)
    whole = not isinstance(value, float) or value.is_integer()
    if not fits or isinstance(value, bool) != (kind is bool) or (kind is int and not whole):
        word = {
            str: "a text",
            int: "a whole number",
            float: "a number",
            bool: "True or False",
            list: "a list",
            dict: "a mapping",
        }[kind]
        example = "" if usual is None else f", such as {usual}"
        raise KitError(f"{name} is {word}{example}, not {value!r}", f"give {name} a value of that kind")
    return int(value) if kind is int and isinstance(value, float) else value


def _read_places(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what each path in a notebook's folder was made from, what was used or remembered last under each
    name).
    """
    path = folder / PLACES
    if not path.is_file():
        return {}, {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return dict(found["made_from"]), dict(found["latest"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KitError(
            f"{path} is damaged ({error})", "move the folder away, or give another output"
        ) from error


def _suggest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
