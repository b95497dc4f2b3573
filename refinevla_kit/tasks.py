"""The benchmark as data: SIMPLER's tasks, settings, variants, start grids and step budgets. Nothing here imports a simulator.

Numbers are those of SIMPLER's own evaluation scripts (simpler-env/SimplerEnv, `scripts/`) and of ManiSkill 3's digital twins
(`mani_skill/envs/tasks/digital_twins/bridge_dataset_eval`). An episode is one variant of the scene (what the robot looks like, the light, the
background) from one start of a grid (where things lie); a protocol says which of them SIMPLER scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from refinevla_kit.errors import KitError

PROTOCOL_VERSION = 2
"""Goes into every record. Raised when what an episode number or a variant's name means changes: records of two versions do not mix."""

VISUAL_MATCHING, VARIANT_AGGREGATION = "visual_matching", "variant_aggregation"
SETTINGS = (VISUAL_MATCHING, VARIANT_AGGREGATION)
MANISKILL, SIMPLER_ENV = "maniskill", "simpler_env"
BACKENDS = (MANISKILL, SIMPLER_ENV)
BASE = "base"  # the variant that changes nothing
CAMERA_SIZES = {"widowx": (640, 480), "google_robot": (640, 512)}  # width, height (pixels) of the camera that SIMPLER's policies see


@dataclass(frozen=True)
class Start:
    """One start of a grid. What is None is left to the environment. Metres and radians, world frame.

    Attributes:
        object_episode: the environment's own number of the objects' placement (WidowX, move near).
        object_xy: where the object stands (coke can, apple).
        robot_xy, robot_yaw: where the robot's base stands, and its turn about z (on top of the base quaternion (0, 0, 0, 1)).
        overlay: file name of the background photograph, where it depends on the start (drawers, visual matching).
    """

    object_episode: int | None = None
    object_xy: tuple[float, float] | None = None
    robot_xy: tuple[float, float] | None = None
    robot_yaw: float = 0.0
    overlay: str | None = None


@dataclass(frozen=True)
class Variant:
    """One named change of the scene.

    Attributes:
        name: unique within its protocol; a column of every record.
        axis: what it changes: "base" (nothing), "robot", "background", "lighting", "table_texture", "distractor" or "camera".
        scored: whether the published averages contain it.
        build: how the backend makes the environment: keys and values that it documents.
    """

    name: str
    axis: str = BASE
    scored: bool = True
    build: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Protocol:
    """How one task is evaluated in one setting: every variant from every start.

    Attributes:
        starts: the environment's grid; `episode_id` is an index into it.
        scored: how many of them are scored (the first ones).
        backends: which simulators can play it.
    """

    setting: str
    variants: tuple[Variant, ...]
    starts: tuple[Start, ...]
    scored: int
    backends: tuple[str, ...]

    def variant(self, name: str) -> Variant:
        """The variant called `name`; raises `KitError` naming the known ones."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise KitError(f"unknown variant {name!r} in {self.setting}", f"choose one of {', '.join(v.name for v in self.variants)}")

    def episodes(self) -> list[tuple[str, int]]:
        """What is scored: (variant name, episode id), variant by variant."""
        return [(variant.name, index) for variant in self.variants if variant.scored for index in range(self.scored)]


@dataclass(frozen=True)
class Task:
    """One SimplerEnv task.

    Attributes:
        name: SimplerEnv's name of the task; what records, parameters and figures use.
        robot: `widowx` (WidowX 250S) or `google_robot`.
        instruction: the sentence the policy is given, as SimplerEnv gives it; where it changes with the episode (move near) or within it
            (place in drawer), a description, and `Observation.instruction` has the sentence.
        source, target: words for the object to move and where it goes ("" where there is none); also keys of `Simulator.masks()`.
        max_steps: step budget of an episode.
        control_hz: control steps a second.
        protocols: one a setting.
        env_id: ManiSkill 3's gymnasium id, "" where it has none.
        original_id: gymnasium id in ManiSkill2_real2sim, and what it is made with beside the variant's own arguments.
        group: the published table's row this task is averaged into (`open_close_drawer`, ...); for WidowX the task itself.
    """

    name: str
    robot: str
    instruction: str
    source: str
    target: str
    max_steps: int
    control_hz: int
    protocols: tuple[Protocol, ...]
    env_id: str = ""
    original_id: str = ""
    original_build: tuple[tuple[str, Any], ...] = ()
    group: str = ""

    def protocol(self, setting: str = VISUAL_MATCHING) -> Protocol:
        """The protocol of a setting; raises `KitError` for one that this task does not have."""
        for protocol in self.protocols:
            if protocol.setting == setting:
                return protocol
        raise KitError(f"{self.name} has no setting {setting!r}", f"choose one of {', '.join(p.setting for p in self.protocols)}")

    @property
    def grid(self) -> int:
        """Number of starts in visual matching."""
        return len(self.protocol().starts)

    @property
    def scored(self) -> int:
        """How many of them are scored."""
        return self.protocol().scored


_WIDOWX_VARIANTS: tuple[Variant, ...] = (Variant(BASE),)  # variant aggregation of the WidowX, ManiSkill backend: the kit's own, SIMPLER has none


def _widowx(name: str, env: str, instruction: str, source: str, target: str, max_steps: int = 60, grid: int = 24) -> Task:
    starts = tuple(Start(object_episode=index) for index in range(grid))
    matching = Protocol(VISUAL_MATCHING, (Variant(BASE),), starts, 24, BACKENDS)
    aggregation = Protocol(VARIANT_AGGREGATION, _WIDOWX_VARIANTS, starts, 24, (MANISKILL,))
    return Task(name, "widowx", instruction, source, target, max_steps, 5, (matching, aggregation), f"{env}-v1", f"{env}-v0", group=name)


WIDOWX_TASKS: tuple[Task, ...] = (
    _widowx("widowx_spoon_on_towel", "PutSpoonOnTableClothInScene", "put the spoon on the towel", "spoon", "towel"),
    _widowx("widowx_carrot_on_plate", "PutCarrotOnPlateInScene", "put carrot on plate", "carrot", "plate"),
    _widowx("widowx_stack_cube", "StackGreenCubeOnYellowCubeBakedTexInScene", "stack the green block on the yellow block",
            "green block", "yellow block"),
    _widowx("widowx_put_eggplant_in_basket", "PutEggplantInBasketScene", "put eggplant into yellow basket", "eggplant", "yellow basket", 120, 64),
)

TASKS: dict[str, Task] = {task.name: task for task in WIDOWX_TASKS}


def find_task(name: str) -> Task:
    """The task called `name`; raises `KitError` naming the known ones."""
    if name not in TASKS:
        raise KitError(f"unknown task {name!r}", f"choose one of {', '.join(TASKS)}")
    return TASKS[name]
