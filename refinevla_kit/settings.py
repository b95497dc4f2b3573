"""A notebook's settings: the profile's values, with the notebook's parameters over them, checked at once.

One dial, `profile`, sets everything. A parameter that is None keeps the profile's value; any other value
overrides it. An unknown name is an error: a misspelt parameter would silently run the wrong experiment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from refinevla_kit import hub
from refinevla_kit.errors import SHIPPED, KitError, as_kit_error, check_choice
from refinevla_kit.files import read_json, write_json
from refinevla_kit.tasks import BACKENDS, CAMERA_SIZES, SETTINGS, find_task, find_tasks

REPOSITORY = SHIPPED if SHIPPED.is_dir() else SHIPPED.parents[1]
"""The checkout, or what an installed wheel holds of it; in there nothing is written."""
PROFILES = "notebooks/profiles"
PLACES = "places.json"  # in a notebook's folder: what each path there was made from, and which was used last
T = TypeVar("T")

GRANULARITIES = ("step", "segment", "trajectory")
"""What one rationale is about."""
ORDERS = ("action_first", "rationale_first")
"""What an answer of a VLA begins with."""
PRECISIONS = ("bf16", "fp32")
"""Of numbers: bfloat16 and float32."""
CHOICES = {
    "mode": ("full", "upper", "lora"),
    "action_words": ("base", "refitted", "adapted"),
    "cache": ("auto", "on", "off"),
    "precision": ("auto", *PRECISIONS),
    "frozen_weights": PRECISIONS,
    "weights": PRECISIONS,
    "adapter_preset": ("kit", "authors"),
    "adapter_form": ("merged", "peft"),
    "granularity": GRANULARITIES,
    "order": ORDERS,
    "start": ("random", "grid"),
    "starts": ("grid", "spread", "dense"),
    "robot": tuple(CAMERA_SIZES),
    "setting": SETTINGS,
    "backend": ("auto", *BACKENDS),
}


INPUTS = (
    *("checkpoint", "dataset", "rationales", "base", "action_only", "with_reasoning", "frames", "records"),
    *("history", "attention", "experiment"),
)
"""Parameters that name what is read."""
WORDS = ("reviewed", "embedded", "official")
"""Values of these that name no file."""


def _as_text(value: Any) -> Any:
    """Paths are texts, and papermill reads a folder called 2024 as a number."""
    return str(value) if isinstance(value, Path) or type(value) is int else value


def _as_whole(value: Any) -> Any:
    """1e3 is a whole number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _as_number(value: Any) -> Any:
    """YAML reads 5e-5 as a text."""
    with suppress(TypeError, ValueError):
        return float(value) if isinstance(value, str) else value
    return value


def _as_word(value: Any) -> Any:
    """YAML reads on and off as True and False."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


Text = Annotated[str, BeforeValidator(_as_text)]
Whole = Annotated[int, BeforeValidator(_as_whole)]
Count = Annotated[Whole, Field(ge=1)]
Number = Annotated[float, BeforeValidator(_as_number), Field(allow_inf_nan=False)]
Amount = Annotated[Number, Field(ge=0)]
Names = Annotated[list[Any], BeforeValidator(_as_list)]


class Settings(BaseModel):
    """What every notebook's settings hold, and where its results and those of earlier notebooks lie.

    Attributes:
        profile: the dial, as in the parameters cell.
        output: folder of this run, shared by the notebooks.
        seed: as in the parameters cell.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    notebook: ClassVar[str]

    profile: str
    output: Path
    seed: Annotated[Whole, Field(ge=0, lt=2**32)] = 0

    @field_validator("*")
    @classmethod
    def _check_choice(cls, value: Any, field: Any) -> Any:
        if field.field_name in CHOICES:
            check_choice(field.field_name, value, CHOICES[field.field_name])
        return value

    @field_validator("tasks", "language_tasks", check_fields=False)
    @classmethod
    def _check_tasks(cls, tasks: list[Any], field: Any) -> list[Any]:
        if not tasks:
            raise KitError(f"{field.field_name} is an empty list", 'name one or more, as in ["widowx"]')
        name, found = field.field_name, find_tasks(*map(str, tasks))
        if len({task.robot for task in found}) > 1:
            remedy = 'run the notebook once for each, with robot="google_robot" for that one'
            raise KitError(f"{name} are of two robots", remedy)
        if name == "language_tasks":
            if longer := [task.name for task in found if len(task.goals) != 1]:
                raise KitError(f"{name} has {longer[0]}, which has several goals", "leave it out")
            if len({task.source for task in found}) < 2:
                raise KitError(f"{name} ask for one thing alone", "name tasks of two things or more")
        return tasks

    @field_validator("task", check_fields=False)
    @classmethod
    def _check_task(cls, task: str) -> str:
        return find_task(task).name

    def __str__(self) -> str:
        return "\n".join(f"{name:<20} {value}" for name, value in self)

    def as_dict(self) -> dict[str, Any]:
        """The values as JSON can hold them (paths as strings), for summary.json."""
        return self.model_dump(mode="json")

    def pick(self, *names: str) -> dict[str, Any]:
        """The named values, to be passed on or kept by their names."""
        return {name: getattr(self, name) for name in names}

    def _from_output(self, name: str) -> str:
        return name.replace(f"{self.output}/", "")

    @property
    def folder(self) -> Path:
        """This notebook's own folder, `output/<notebook>`; made on first use."""
        folder = self.output / self.notebook
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = f"the output folder {folder} cannot be made: {error.strerror}"
            raise KitError(what, "choose another `output`") from error
        return folder

    def place(self, name: str, made_from: Mapping[str, Any]) -> Path:
        """Where what is made from `made_from` lies in this notebook's folder.

        The same `made_from` gives the same path, so that a notebook goes on with what is there. Later
        notebooks `find` the path that was given last.

        Args:
            name: its name, such as "dataset". It is numbered, "dataset-2", where that name was made from
                something else.
            made_from: all that it depends on, as JSON can hold it.
        """
        wanted = json.loads(json.dumps(dict(made_from), default=str, sort_keys=True))
        places = _read_places(self.folder)
        known = places["made_from"]
        number, chosen = 1, name
        while known.get(chosen) != wanted and (chosen in known or (self.folder / chosen).exists()):
            number += 1
            chosen = str(Path(name).with_name(f"{Path(name).stem}-{number}{Path(name).suffix}"))
        if chosen != name:
            old = self.folder / name
            print(f"{old} was made from something else and stays as it is; this run's is {chosen}")
        known[chosen] = wanted
        places["latest"][name] = chosen
        write_json(self.folder / PLACES, places)
        return self.folder / chosen

    def remember(self, name: str, value: T) -> T:
        """Keep `value` for later notebooks to `find` or `recall` under `name`, and return it.

        Paths in `output`, in the name too, are kept as they lie from there, so that a run may be moved.

        Args:
            name: what it is, such as "base of the policies".
            value: an existing path, or what JSON can hold.
        """
        kept: Any = value
        if isinstance(value, Path):
            inside = value.is_relative_to(self.output)
            kept = os.path.relpath(value, self.folder) if inside else str(value)
        places = _read_places(self.folder)
        places["latest"][self._from_output(name)] = kept
        write_json(self.folder / PLACES, places)
        return value

    def recall(self, run_path: str) -> Any:
        """What an earlier notebook remembered as `notebook/name`; None where it remembered nothing."""
        earlier, _, name = run_path.partition("/")
        return _read_places(self.output / earlier)["latest"].get(self._from_output(name))

    def reading_of(self, dataset: Path) -> dict[str, Any]:
        """What `open_dataset` is told of a dataset: what notebook 1 was, and what this one is."""
        first = self.notebook == LOOP[0]
        told = {} if first else self.recall(f"{LOOP[0]}/reading of {dataset}") or {}
        names = sorted(Reading.model_fields.keys() - Settings.model_fields.keys())
        names += ["episodes"] * bool(first and getattr(self, "dataset", None))
        own = {name: getattr(self, name, None) for name in names}
        return told | {name: value for name, value in own.items() if value is not None}

    def left(self, run_path: str) -> Path | None:
        """What an earlier notebook left as `notebook/name`; None where it left nothing.

        Raises:
            KitError: it is not there any more, or not yet.
        """
        earlier, _, name = run_path.partition("/")
        latest = self.recall(run_path)
        path = Path(os.path.normpath(self.output / earlier / (latest or name)))
        if path.exists():
            return path
        if latest is not None:
            what = f"{path}, the {name} of notebook {earlier}, is not there"
            raise KitError(what, f"run notebook {earlier} to its end, or give a path")
        return None

    def find(self, value: str | Path | None, run_path: str, shipped_name: str, from_hub: str = "") -> Path:
        """The input to read: what is given, else what an earlier notebook left last, else what is shipped.

        Args:
            value: the path that was given, from here or from the checkout; None where none was.
            run_path: `notebook/name` in `output`.
            shipped_name: path in `data/`.
            from_hub: "model" or "dataset": one of the Hugging Face hub may be named too. A model is
                downloaded once; of a dataset the listing, and the rest where it is opened.

        Raises:
            KitError: none of them exists, or what the earlier notebook left last is not there (any more).
        """
        if value is not None:
            given = Path(value).expanduser()
            for candidate in (given, REPOSITORY / given):
                if candidate.exists():
                    return candidate.resolve()
            if from_hub and hub.is_name(value):
                return hub.download(str(value), hub.FILES[from_hub], from_hub)
            raise KitError(
                f"{value} does not exist: there is no such file or folder in {Path.cwd()} or {REPOSITORY}",
                "give an existing path, or None for what the run folder or data/ holds",
            )
        left = self.left(run_path)
        if left is not None:
            return left
        earlier, _, name = run_path.partition("/")
        shipped = REPOSITORY / "data" / shipped_name
        own = earlier == self.notebook
        if shipped.exists():
            if not own:
                what = f"{self.output} has no {name or 'result'} of notebook {earlier}"
                print(f"{what}: {shipped}, which the kit ships, is used")
            return shipped
        remedy = "give a path as the parameter"
        if not own:
            remedy = f"run notebook {earlier} first, or {remedy}"
        raise KitError(f"neither {self.output / run_path} nor data/{shipped_name} exists", remedy)

    def find_policies(self, names: Sequence[str]) -> dict[str, Path]:
        """The checkpoint of each policy: given as the parameter of its name, else notebook 2's, else shipped
        (which are the WidowX's).
        A `base` that is given comes behind them.

        Raises:
            KitError: of those not given, notebook 2 left some and not others: they would be compared with
                policies of another training.
        """
        given = {name: getattr(self, name, None) for name in names}
        asked = [name for name in names if given[name] is None]
        left = [name for name in asked if self.left(f"02_fine_tuning/{name}")]
        if left and left != asked:
            missing = ", ".join(name for name in asked if name not in left)
            raise KitError(
                f"notebook 02_fine_tuning left {', '.join(left)} in {self.output}, but not {missing}",
                f"run notebook 2 to its end, or give {missing} as a parameter",
            )
        robot = getattr(self, "robot", "widowx")
        if robot != "widowx" and not left:
            given = {name: path for name, path in given.items() if path is not None}
            if len(given) < len(names):
                print(f"the shipped policies are the WidowX's: none of them plays the tasks of {robot}")
        found = {
            name: self.find(path, f"02_fine_tuning/{name}", f"checkpoints/{name}", from_hub="model")
            for name, path in given.items()
        }
        base = getattr(self, "base", None)
        return found if base is None else {**found, "base": self.find(base, "", "", from_hub="model")}

    def find_records(self, name: str) -> Path:
        """Notebook 3's records: given as the parameter of that name, else this run's, else shipped."""
        file = f"{name}.parquet"
        return self.find(getattr(self, name), f"03_simpler_evaluation/{file}", f"records/{file}")

    def check_inputs(self) -> None:
        """Raise `KitError` where a file or folder that is to be read is not there; the hub is not asked."""
        for name in INPUTS:
            value = getattr(self, name, None)
            if isinstance(value, str) and value not in WORDS and not hub.is_name(value):
                self.find(value, "", "")

    def write_summary(self, values: Mapping[str, Any]) -> None:
        """Write `summary.json` into this notebook's folder and print it as one line, for scripts to read."""
        summary = {"notebook": self.notebook, **values}
        write_json(self.folder / "summary.json", summary)
        print(json.dumps(summary))


class Quickstart(Settings):
    """Settings of the first look, which is no part of the loop of notebooks 1 to 6."""

    notebook = "00_quickstart"

    checkpoint: Text  # of the policy
    task: Text
    episodes: Count  # that the rate is of
    width: Count  # of the filmed pictures, pixels


class Reading(Settings):
    """Settings of a notebook that is told what a dataset's numbers mean."""

    camera: Text | None  # which pictures are shown
    columns: dict[str, Any] | None  # features by what they are, as in {action: command}
    deltas: bool | None  # whether the actions are displacements; None infers it
    gripper: Number | None  # the gripper command's value that means open; None infers it


class TeacherAnnotation(Reading):
    """Settings of notebook 1."""

    notebook = "01_teacher_annotation"

    robot: str  # whose tasks, where `tasks` is not given
    google_robot: dict[str, Any]  # over the profile's values where that is the robot
    dataset: Text | None  # folder of a LeRobot dataset; None records the scripted demonstrator
    tasks: Names  # what is recorded: tasks, rows of the published tables or a robot
    episodes_per_task: Count
    start: str  # random poses, or the task's own grid
    disturb: Amount  # chance a step that random moves take over, 0 to 1
    noise: Amount  # in every motion, share of 15 mm and 0.15 rad
    settle: Annotated[Whole, Field(ge=0)]  # frames of success after which a recording ends
    assets: Text  # embedded, official or a folder
    workers: Annotated[Whole, Field(ge=0)]  # processes that record
    teacher: Text  # oracle, gemini, gemini-legacy or openai
    model: Text | None  # of the teacher; None is its own default
    concurrency: Count  # calls at a time
    requests_per_minute: Count | None
    prices: Text | None  # "INPUT,OUTPUT,CURRENCY,DATE" of a million tokens
    budget_money: Amount | None  # in the currency of the prices
    confirm: bool | None  # True makes calls that cost something; None asks
    granularity: str  # what one rationale is about
    episodes: Any  # of a dataset that is given: how many, numbers, or a text such as 0-9,12


class FineTuning(Reading):
    """Settings of notebook 2."""

    notebook = "02_fine_tuning"

    dataset: Text | None  # LeRobot dataset with rationales
    rationales: Text | None  # a table of them, or "reviewed"
    mixture: dict[str, float]  # further datasets, folder or hub name -> share of each step
    base: Text | None  # checkpoint that both policies start from
    steps: Count
    batch_size: Count  # frames a step
    learning_rate: Annotated[Number, Field(gt=0, le=1)]
    lambda_reasoning: Amount  # weight of the reasoning loss
    freeze_layers: Annotated[Whole, Field(ge=0)]  # lower language layers kept as they are
    base_share: Annotated[Number, Field(ge=0, lt=1)]  # in the average of its weights and the trained ones
    order: str  # what an answer begins with
    mode: str  # upper layers, lora or full
    adapter_preset: str  # which modules adapters change: the kit's or the authors' of a released base
    adapter_form: str  # merged into the base, or peft's own files beside it
    lora_rank: Count  # of adapters, as is the next
    lora_alpha: Annotated[Number, Field(gt=0)]
    robot: str  # whose action statistics a released base takes
    action_words: str  # the base's, refitted to the data, or adapted with their embeddings
    cache: Annotated[str, BeforeValidator(_as_word)]  # activations of frozen layers kept on disk
    cache_limit_gb: Amount  # a larger one is refused
    precision: str  # of the computation
    frozen_weights: str  # in what precision the frozen parts are kept
    gradient_checkpointing: bool  # less memory, more time
    accumulate: Count  # parts that a step's frames are computed in
    texts: Count  # held-out frames that both policies write about
    threads: Count | None  # of torch; None is all cores

    @property
    def shipped_base(self) -> str:
        """Where in `data/` the base of this robot is."""
        return f"checkpoints/{'google' if self.robot == 'google_robot' else 'compact'}_base"


class Policies(Settings):
    """Settings of a notebook that takes both policies."""

    action_only: Text | None  # checkpoint
    with_reasoning: Text | None  # checkpoint
    base: Text | None  # a third checkpoint, such as what both started from
    weights: str  # in what precision released models are kept in memory


class SimplerEvaluation(Policies):
    """Settings of notebook 3."""

    notebook = "03_simpler_evaluation"

    robot: str  # whose tasks, where `tasks` is not given
    google_robot: dict[str, Any]  # over the profile's values where that is the robot
    tasks: Names  # tasks, rows of the published tables or a robot
    starts: str  # the grid's first, spread over it, or dense: continuous poses drawn from the seed
    episodes: Count  # a task and variant
    setting: str
    variants: Names | None  # names; None is those that are scored
    backend: str
    assets: Text  # embedded, official or a folder
    workers: Annotated[Whole, Field(ge=0)]  # simulator processes
    width: Count | None  # of the pictures, pixels; None is what the policy asks for
    preflight_starts: Annotated[Whole, Field(ge=0)]  # demonstrations replayed a task before the run
    include_demonstrator: bool  # play the scripted demonstrator too
    threads: Count | None  # of the policy; None is all cores

    @property
    def records_name(self) -> str:
        """Each robot's records have a file of their own, and notebook 5 shows both."""
        return "records.parquet" if self.robot == "widowx" else f"{self.robot}.parquet"


class AttentionMaps(Policies):
    """Settings of notebook 4."""

    notebook = "04_attention_maps"

    frames: Text | None  # dataset, or embedded or official to record new demonstrations
    task: Text
    episodes: Count
    threads: Count | None  # of torch; None is all cores
    every: Count  # n-th frame of an episode
    layer: Count | None  # from 1, the lowest; None is three fifths up
    probes: Count  # frames in which things are covered and patches taken away


class PaperFigures(Settings):
    """Settings of notebook 5."""

    notebook = "05_paper_figures"

    records: Text | None  # records.parquet of notebook 3
    google_robot: Text | None  # google_robot.parquet of notebook 3
    history: Text | None  # folder or file of training histories
    attention: Text | None  # scores.parquet of notebook 4
    experiment: Text | None  # records folder of a controlled experiment
    dataset: Text | None  # demonstrations with rationales


class Interventions(Policies):
    """Settings of notebook 6."""

    notebook = "06_interventions"

    frames: Text  # dataset, or embedded or official to record new demonstrations
    language_tasks: Names  # of the language suite: in their scenes another sentence has a meaning
    episodes: Count  # of each task
    every: Count  # n-th frame of an episode
    bands: Count | None  # that the layers are blocked in; None: each by itself
    told_starts: Count  # of each task, that are played under its own and another sentence
    edit_every: Count  # n-th of the frames whose rationales are edited
    workers: Annotated[Whole, Field(ge=0)]  # simulator processes
    threads: Count | None  # of torch; None is all cores


NOTEBOOKS: dict[str, type[Settings]] = {
    kind.notebook: kind
    for kind in (
        Quickstart,
        TeacherAnnotation,
        FineTuning,
        SimplerEvaluation,
        AttentionMaps,
        PaperFigures,
        Interventions,
    )
}
"""The notebooks in order, each with the kind of its settings."""
LOOP = [*NOTEBOOKS][1:]
"""Those that hand files on, from a dataset to the pictures; the quickstart stands by itself."""


def home() -> Path:
    """The folder whose notebooks and profiles are used: this one or the one above, else `REPOSITORY`."""
    here = Path.cwd()
    return next((each for each in (here, here.parent) if (each / PROFILES).is_dir()), REPOSITORY)


def profile_names() -> list[str]:
    """The profiles that exist."""
    return sorted(path.stem for path in (home() / PROFILES).glob("*.yaml"))


def load_profile(profile: str) -> dict[str, dict[str, Any]]:
    """The values of a profile, by notebook. Raises `KitError` naming the profiles that exist."""
    check_choice("profile", profile, profile_names())
    file = home() / PROFILES / f"{profile}.yaml"
    with as_kit_error(f"the profile {file} cannot be read", "mend it, or copy the kit's (refinevla init)"):
        sections = yaml.safe_load(file.read_text(encoding="utf-8"))
        return {notebook: dict(section or {}) for notebook, section in sections.items()}


def read_settings(
    notebook: str, profile: str = "laptop", output: str | Path | None = None, seed: int = 0, **parameters: Any
) -> Settings:
    """Settings of `notebook` from its profile and the parameters that are not None.

    Args:
        notebook: name without suffix, such as `01_teacher_annotation`.
        profile: smoke | laptop | gpu | paper.
        output: folder of the run; None is `runs/<profile>` beside the notebooks, or here where those are an
            installed wheel's.
        seed: 0 to 2**32 - 1.
        parameters: of the notebook, by name.

    Raises:
        KitError: the profile or a parameter is unknown, or a value is of the wrong kind.
    """
    sections = load_profile(profile)
    check_choice("notebook", notebook, NOTEBOOKS)
    check_choice("section of the profile", notebook, sections)
    usual = sections[notebook]
    if output == "":
        raise KitError("output is an empty text", "give a folder, or None for runs/<profile>")
    beside = home()
    folder = (Path.cwd() if beside == SHIPPED else beside) / "runs" / profile
    if output is not None:
        folder = Path(str(output)).expanduser().resolve()
    given = {name: value for name, value in parameters.items() if value is not None}
    if given.get("robot", usual.get("robot")) == "google_robot":
        usual = usual | (given.get("google_robot") or usual.get("google_robot", {}))
    values = usual | given | {"profile": profile, "output": folder, "seed": seed}
    try:
        return NOTEBOOKS[notebook](**values)
    except ValidationError as error:
        raise _refusal(notebook, error, usual) from None


KINDS = {
    "string_type": "a text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "True or False",
    "list_type": "a list",
    "dict_type": "a mapping",
}
"""What pydantic's errors say was wanted."""


def _refusal(notebook: str, error: ValidationError, usual: Mapping[str, Any]) -> KitError:
    """The first of pydantic's errors as one line."""
    first = error.errors()[0]
    name, kind, value = str(first["loc"][0]), first["type"], first["input"]
    if kind == "extra_forbidden":
        check_parameter(name, [notebook])
    if kind == "missing":
        return KitError(f"the profile has no {name} for {notebook}", "add it, or copy the kit's profile")
    if kind == "list_type" and isinstance(value, str):
        remedy = f"with papermill write -y '{name}: [...]', with refinevla -p '{name}=[\"...\"]'"
        return KitError(f"{name} is a list, not the text {value!r}", remedy)
    if kind in KINDS:
        example = f", such as {usual[name]}" if usual.get(name) is not None else ""
        what = f"{name} is {KINDS[kind]}{example}, not {value!r}"
        return KitError(what, f"give {name} a value of that kind")
    return KitError(f"{name} is {value!r}", first["msg"].replace("Input", "its value", 1))


def is_text(parameter: str) -> bool:
    """Whether every notebook that has this parameter takes it as a text."""
    fields = [kind.model_fields.get(parameter) for kind in NOTEBOOKS.values()]
    kinds = [field.annotation for field in fields if field is not None]
    return bool(kinds) and all(kind in (str, Text, Text | None) for kind in kinds)


def check_parameter(name: str, notebooks: Sequence[str]) -> None:
    """Raise `KitError` for a parameter that none of these notebooks has."""
    known = chain(*(NOTEBOOKS[notebook].model_fields for notebook in notebooks))
    check_choice("parameter", name, dict.fromkeys(known))


def _read_places(folder: Path) -> dict[str, dict[str, Any]]:
    """What each path in a notebook's folder was made from, and what was used last under each name."""
    path = folder / PLACES
    if not path.is_file():
        return {"made_from": {}, "latest": {}}
    with as_kit_error(f"{path} is damaged", "move the folder away, or give another output"):
        places = read_json(path)
        return {name: dict(places[name]) for name in ("made_from", "latest")}
