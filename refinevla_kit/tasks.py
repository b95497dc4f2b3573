"""The benchmark as data: SIMPLER's tasks, settings, variants, start grids, step budgets and averages, and the
kit's own language suite. Nothing here imports a simulator.

Numbers are those of SIMPLER's own evaluation scripts (simpler-env/SimplerEnv, `scripts/rt1_*.sh`,
`scripts/rt1x_bridge.sh` and, for what is scored and averaged, `tools/calc_metrics_evaluation_videos.py`) and
of ManiSkill 3's digital twins (`mani_skill/envs/tasks/digital_twins/ bridge_dataset_eval`). An episode is one
variant of the scene (what the robot looks like, the light, the background) from one start of a grid (where
things lie); a protocol says which of them SIMPLER scores.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import product
from math import gcd
from typing import Any

from refinevla_kit.errors import KitError

PROTOCOL_VERSION = 2
"""Goes into every record. Raised when what an episode number or a variant's name means changes: records of
two versions do not mix.
"""

SIMPLER_SEED = 40194941
"""Episode seed of SIMPLER's own evaluator: the first draw of its environments' main generator,
`RandomState(2022).randint(2**32)`, the same for every episode because it makes a new environment for each.
Distractors' places are drawn from it, so `reset(seed=0)` has to mean this one.
"""

VISUAL_MATCHING, VARIANT_AGGREGATION = "visual_matching", "variant_aggregation"
SETTINGS = (VISUAL_MATCHING, VARIANT_AGGREGATION)
MANISKILL, SIMPLER_ENV = "maniskill", "simpler_env"
BACKENDS = (MANISKILL, SIMPLER_ENV)
BASE = "base"  # the variant that changes nothing
SIMPLER, LANGUAGE = "simpler", "language"  # suites
# Width, height (pixels) of the camera that SIMPLER's policies see.
CAMERA_SIZES = {"widowx": (640, 480), "google_robot": (640, 512)}


@dataclass(frozen=True)
class Start:
    """One start of a grid. What is None is left to the environment. Metres and radians, world frame.

    Attributes:
        object_episode: the environment's own number of the objects' placement (WidowX, move near).
        object_xy: where the object stands (coke can, apple); how far all of them are moved (move near).
        robot_xy, robot_yaw: where the robot's base stands, and its turn about z (on top of the base
            quaternion (0, 0, 0, 1)).
        overlay: file name of the background photograph, where it depends on the start (drawers, visual
            matching).
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
        axis: what it changes: "base" (nothing), "robot", "background", "lighting", "table_texture",
            "distractor" or "camera".
        scored: whether the published averages contain it.
        build: how the backend makes the environment. For the original SimplerEnv these are keyword arguments
            of ManiSkill2_real2sim's environment (scene_name, urdf_version, station_name, light_mode, ...),
            over those of `Task.original_build`, and two keys of our own: `env_id` (gymnasium id, instead of
            `Task.original_id`) and `overlay` (file name of the background photograph in `real_inpainting/`; a
            start's own photograph goes before it). `Task.original` puts them together. ManiSkill 3's keys:
            `simulator.variants`.
    """

    name: str
    axis: str = BASE
    scored: bool = True
    build: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Protocol:
    """How one task is evaluated in one setting: every variant from every start.

    Attributes:
        starts: the environment's grid; `episode_id` is an index into it. Grids are nested as SIMPLER's
            evaluator loops (the last runs fastest): robot x, robot y, robot yaw, object x, object y.
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
        raise KitError(
            f"unknown variant {name!r} in {self.setting}",
            f"choose one of {', '.join(v.name for v in self.variants)}",
        )

    def spread(self, count: int) -> list[int]:
        """`count` of the scored starts, all if there are fewer: every next one lies the grid's golden section
        further on, so that any few are spread over its places.
        """
        apart = [step for step in range(1, self.scored + 1) if gcd(step, self.scored) == 1]
        step = min(apart, key=lambda step: abs(step - 0.618 * self.scored))
        return [index * step % self.scored for index in range(min(count, self.scored))]

    @property
    def scored_variants(self) -> list[str]:
        """Names of the variants that are scored."""
        return [variant.name for variant in self.variants if variant.scored]

    def episodes(self) -> list[tuple[str, int]]:
        """What is scored: (variant name, episode id), variant by variant."""
        return [(name, index) for name in self.scored_variants for index in range(self.scored)]


@dataclass(frozen=True)
class Task:
    """One SimplerEnv task.

    Attributes:
        name: SimplerEnv's name of the task; what records, parameters and figures use.
        robot: `widowx` (WidowX 250S) or `google_robot`.
        instruction: the sentence the policy is given, as SimplerEnv gives it; where it changes with the
            episode (move near) or within it (place in drawer), a description, and `Observation.instruction`
            has the sentence.
        source, target: words for the object to move and where it goes ("" where there is none); also keys of
            `Simulator.masks()`. Move near, whose things change with the episode, has "source object" and
            "target object".
        max_steps: step budget of an episode.
        control_hz: control steps a second.
        protocols: one a setting.
        env_id: gymnasium id in ManiSkill 3; of the Google Robot's tasks the kit's own.
        original_id: gymnasium id in ManiSkill2_real2sim.
        original_build: what it is made with beside the variant's own arguments (same keys as
            `Variant.build`).
        group, part: the published table's row this task is averaged into, and the cell within it (a key of
            `GROUPS`, and one of its parts).
        suite: "simpler", or "language": several things lie in one scene, and only the sentence says which
            one is meant.
        held_out: of the language suite, not to be trained on.
        goals: of the WidowX's language tasks, what is to be put on what, in this order.
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
    part: str = ""
    suite: str = SIMPLER
    held_out: bool = False
    goals: tuple[tuple[str, str], ...] = ()

    def protocol(self, setting: str = VISUAL_MATCHING) -> Protocol:
        """The protocol of a setting; raises `KitError` for one that this task does not have."""
        for protocol in self.protocols:
            if protocol.setting == setting:
                return protocol
        raise KitError(
            f"{self.name} has no setting {setting!r}",
            f"choose one of {', '.join(p.setting for p in self.protocols)}",
        )

    def original(self, variant: Variant) -> tuple[str, dict[str, Any]]:
        """The original SimplerEnv's gymnasium id and keyword arguments for one variant; `overlay` among them
        is still a bare file name.
        """
        limits = {"control_freq": self.control_hz, "max_episode_steps": self.max_steps}
        build = {**dict(self.original_build), **limits, **dict(variant.build)}
        return build.pop("env_id", self.original_id), build

    @property
    def grid(self) -> int:
        """Number of starts in visual matching."""
        return len(self.protocol().starts)

    @property
    def scored(self) -> int:
        """How many of them are scored."""
        return self.protocol().scored


# Variant aggregation of the WidowX, ManiSkill backend: the kit's own, SIMPLER has none. `build`:
# simulator/variants.py; camera_move in metres, robot's base frame; camera_turn in radians, left and down.
_WIDOWX_VARIANTS: tuple[Variant, ...] = (
    Variant(BASE),
    Variant("background_1", "background", build=(("wall", "brick"),)),
    Variant("background_2", "background", build=(("wall", "tiled"),)),
    Variant("lighting_brighter", "lighting", build=(("lights", "brighter"),)),
    Variant("lighting_darker", "lighting", build=(("lights", "darker"),)),
    Variant("distractors", "distractor", build=(("distractors", 2),)),
    Variant("more_distractors", "distractor", build=(("distractors", 4),)),
    Variant("table_1", "table_texture", build=(("table", "granite"),)),
    Variant("table_2", "table_texture", build=(("table", "checked"),)),
    Variant(
        "camera_1", "camera", False, (("camera_move", (0.0, -0.08, 0.0)), ("camera_turn", (0.13, -0.05)))
    ),
    Variant("camera_2", "camera", False, (("camera_move", (0.0, 0.0, 0.08)), ("camera_turn", (0.0, 0.05)))),
)


def _range(low: float, high: float, count: int) -> list[float]:
    """`count` evenly spaced values, both ends included (SIMPLER's scripts give their grids so)."""
    return [round(low + (high - low) * index / max(count - 1, 1), 6) for index in range(count)]


def _widowx(name: str, env: str, instruction: str, source: str, target: str, sink: bool = False) -> Task:
    # The sink's grid has 8 x 8 places, of which SIMPLER plays the first 24.
    build = {
        "robot": "widowx_sink_camera_setup" if sink else "widowx",
        "sim_freq": 500,
        "control_mode": "arm_pd_ee_target_delta_pose_align2_gripper_pd_joint_pos",
        "rgb_overlay_cameras": "3rd_view_camera",
        "scene_name": "bridge_table_1_v2" if sink else "bridge_table_1_v1",
        "overlay": "bridge_sink.png" if sink else "bridge_real_eval_1.png",
    }
    robot_xy = (0.127, 0.06) if sink else (0.147, 0.028)
    starts = tuple(Start(object_episode=index, robot_xy=robot_xy) for index in range(64 if sink else 24))
    matching = Protocol(VISUAL_MATCHING, (Variant(BASE),), starts, 24, BACKENDS)
    aggregation = Protocol(VARIANT_AGGREGATION, _WIDOWX_VARIANTS, starts, 24, (MANISKILL,))
    return Task(
        name,
        "widowx",
        instruction,
        source,
        target,
        120 if sink else 60,
        5,
        (matching, aggregation),
        f"{env}-v1",
        f"{env}-v0",
        tuple(build.items()),
        name,
        name,
    )


WIDOWX_TASKS: tuple[Task, ...] = (
    _widowx(
        "widowx_spoon_on_towel", "PutSpoonOnTableClothInScene", "put the spoon on the towel", "spoon", "towel"
    ),
    _widowx("widowx_carrot_on_plate", "PutCarrotOnPlateInScene", "put carrot on plate", "carrot", "plate"),
    _widowx(
        "widowx_stack_cube",
        "StackGreenCubeOnYellowCubeBakedTexInScene",
        "stack the green block on the yellow block",
        "green block",
        "yellow block",
    ),
    _widowx(
        "widowx_put_eggplant_in_basket",
        "PutEggplantInBasketScene",
        "put eggplant into yellow basket",
        "eggplant",
        "yellow basket",
        sink=True,
    ),
)


# Google Robot. Visual matching: four colourings of the robot before a photograph. Variant aggregation: a
# scanned room, changed one thing at a time.
_Changes = dict[str, dict[str, dict[str, Any]]]  # axis -> variant -> what it changes
_TABLE_SCENE, _COLOUR = "google_pick_coke_can_1_v4", "recolor_{}_visual_matching_{}"


def _variants(changes: _Changes, **common: Any) -> tuple[Variant, ...]:
    """SIMPLER runs the camera variants too, but leaves them out of its averages."""
    every: _Changes = {BASE: {BASE: {}}, **changes}
    return tuple(
        Variant(name, axis, axis != "camera", tuple({**common, **build}.items()))
        for axis, named in every.items()
        for name, build in named.items()
    )


def _matching_variants(**common: Any) -> tuple[Variant, ...]:
    robots = {
        f"robot_{place}_{n}": {"urdf_version": _COLOUR.format(place, n)}
        for place, n in (("tabletop", 1), ("tabletop", 2), ("cabinet", 1))
    }
    return _variants({"robot": robots}, urdf_version="", **common)


def _table_variants(env: str, camera_env: str, distractors: dict[str, dict[str, Any]]) -> tuple[Variant, ...]:
    return _variants(
        {
            "background": {
                "background_1": {"scene_name": f"{_TABLE_SCENE}_alt_background"},
                "background_2": {"scene_name": f"{_TABLE_SCENE}_alt_background_2"},
            },
            "lighting": {
                "lighting_brighter": {"slightly_brighter_lighting": True},
                "lighting_darker": {"slightly_darker_lighting": True},
            },
            "distractor": distractors,
            "table_texture": {
                f"table_{n}": {"scene_name": f"Baked_sc1_staging_objaverse_cabinet{n}_h870"} for n in (1, 2)
            },
            "camera": {
                f"camera_{n}": {"env_id": f"{camera_env}AltGoogleCamera{n if n > 1 else ''}InScene-v0"}
                for n in (1, 2)
            },
        },
        env_id=f"{env}-v0",
        scene_name=_TABLE_SCENE,
    )


def _cabinet_variants(**common: Any) -> tuple[Variant, ...]:
    return _variants(
        {
            "background": {
                "background_1": {"scene_name": "modern_bedroom_no_roof"},
                "background_2": {"scene_name": "modern_office_no_roof"},
            },
            "lighting": {
                "lighting_brighter": {"light_mode": "brighter"},
                "lighting_darker": {"light_mode": "darker"},
            },
            "table_texture": {
                "table_1": {"station_name": "mk_station2"},
                "table_2": {"station_name": "mk_station3"},
            },
        },
        scene_name="frl_apartment_stage_simple",
        **common,
    )


def _google(
    name: str,
    env: str,
    instruction: str,
    source: str,
    target: str,
    max_steps: int,
    group: str,
    part: str,
    matching: tuple[tuple[Variant, ...], tuple[Start, ...]],
    aggregation: tuple[tuple[Variant, ...], tuple[Start, ...]],
    **build: Any,
) -> Task:
    common = {
        "robot": "google_robot_static",
        "sim_freq": 513,
        "rgb_overlay_cameras": "overhead_camera",
        "control_mode": "arm_pd_ee_delta_pose_align_interpolate_by_planner"
        "_gripper_pd_joint_target_delta_pos_interpolate_by_planner",
        **build,
    }
    protocols = tuple(
        Protocol(setting, *played, len(played[1]), BACKENDS)
        for setting, played in zip(SETTINGS, (matching, aggregation))
    )
    return Task(
        f"google_robot_{name}",
        "google_robot",
        instruction,
        source,
        target,
        max_steps,
        3,
        protocols,
        f"google_robot_{name}",
        f"{env}-v0",
        tuple(common.items()),
        group,
        part,
    )


# Robot pose of each photograph of the cabinet: x, y (m), yaw (rad). Letters: left to right as the robot sees
# it; digits: near to far.
_CABINET_POSES = {
    "a0": (0.644, -0.179, -0.03),
    "a1": (0.765, -0.182, -0.02),
    "a2": (0.889, -0.203, -0.06),
    "b0": (0.652, 0.009, 0.0),
    "b1": (0.752, 0.009, 0.0),
    "b2": (0.851, 0.035, 0.0),
    "c0": (0.665, 0.224, 0.0),
    "c1": (0.765, 0.222, -0.025),
    "c2": (0.865, 0.222, -0.025),
}


def _cabinet_starts(
    poses: tuple[str, ...], objects: tuple[tuple[float, float] | None, ...] = (None,)
) -> tuple[Start, ...]:
    return tuple(
        Start(
            object_xy=place,
            robot_xy=_CABINET_POSES[pose][:2],
            robot_yaw=_CABINET_POSES[pose][2],
            overlay=f"open_drawer_{pose}.png",
        )
        for pose in poses
        for place in objects
    )


_CAN_STARTS = tuple(
    Start(object_xy=xy, robot_xy=(0.35, 0.20))
    for xy in product(_range(-0.35, -0.12, 5), _range(-0.02, 0.42, 5))
)
_NEAR_STARTS = tuple(
    Start(object_episode=index, robot_xy=(0.35, 0.21), robot_yaw=-0.09) for index in range(60)
)
_ROOM_STARTS = tuple(Start(robot_xy=xy) for xy in product(_range(0.65, 0.85, 3), _range(-0.2, 0.2, 3)))
_APPLE_PLACES = tuple(product(_range(-0.08, -0.02, 3), _range(-0.02, 0.08, 3)))
_APPLE_ROOM_STARTS = tuple(
    Start(object_xy=xy, robot_xy=(0.65, y)) for y in _range(-0.2, 0.2, 3) for xy in _APPLE_PLACES
)
_CABINET = {
    "scene_name": "dummy_drawer",
    "station_name": "mk_station_recolor",
    "light_mode": "simple",
    "disable_bad_material": True,
}

_CAN_ENV = "GraspSingleOpenedCokeCan"  # its distractors lie where the seed of the reset puts them
_CAN_VARIANTS = _table_variants(
    f"{_CAN_ENV}InScene",
    _CAN_ENV,
    {
        "distractors": {"env_id": f"{_CAN_ENV}DistractorInScene-v0"},
        "more_distractors": {"env_id": f"{_CAN_ENV}DistractorInScene-v0", "distractor_config": "more"},
    },
)
# Move near shows a third object as a matter of course. Visual matching plays with objects of baked textures,
# variant aggregation with plain ones.
_NEAR_VARIANTS = _table_variants(
    "MoveNearGoogleInScene", "MoveNear", {"no_distractors": {"no_distractor": True}}
)

GOOGLE_TASKS: tuple[Task, ...] = (
    *(
        _google(
            f"pick_{how}_coke_can",
            f"{_CAN_ENV}InScene",
            "pick coke can",
            "coke can",
            "",
            80,
            "pick_coke_can",
            f"pick_coke_can/{how}",
            (
                _matching_variants(scene_name=_TABLE_SCENE, overlay="google_coke_can_real_eval_1.png"),
                _CAN_STARTS,
            ),
            (_CAN_VARIANTS, _CAN_STARTS),
            **{keyword: True},
        )
        for how, keyword in (
            ("horizontal", "lr_switch"),
            ("vertical", "laid_vertically"),
            ("standing", "upright"),
        )
    ),
    _google(
        "move_near",
        "MoveNearGoogleBakedTexInScene",
        "move one object near another",
        "source object",
        "target object",
        80,
        "move_near",
        "move_near",
        (
            _matching_variants(scene_name=_TABLE_SCENE, overlay="google_move_near_real_eval_1.png"),
            _NEAR_STARTS,
        ),
        (_NEAR_VARIANTS, _NEAR_STARTS),
    ),
    *(
        _google(
            f"{verb}_{drawer}_drawer",
            f"{verb.title()}{drawer.title()}DrawerCustomInScene",
            f"{verb} {drawer} drawer",
            f"{drawer} drawer",
            "",
            113,
            "open_close_drawer",
            f"{verb}_drawer",
            (_matching_variants(**_CABINET), _cabinet_starts(tuple(_CABINET_POSES))),
            (_cabinet_variants(), _ROOM_STARTS),
            shader_dir="rt",
        )  # ray tracing: policies read depth from the shadows
        for verb in ("open", "close")
        for drawer in ("top", "middle", "bottom")
    ),
    _google(
        "place_apple_in_closed_top_drawer",
        "PlaceIntoClosedTopDrawerCustomInScene",
        "open top drawer, then place apple into top drawer",
        "apple",
        "top drawer",
        200,
        "place_apple_in_closed_top_drawer",
        "place_apple_in_closed_top_drawer",
        (
            _matching_variants(**_CABINET, model_ids="baked_apple_v2"),
            _cabinet_starts(("a0", "b0", "c0"), _APPLE_PLACES),
        ),
        (_cabinet_variants(model_ids="apple"), _APPLE_ROOM_STARTS),
        shader_dir="rt",
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in (*WIDOWX_TASKS, *GOOGLE_TASKS)}


# The language suite: the kit's own, in ManiSkill alone.
SOURCES = ("carrot", "spoon", "green block", "eggplant")
TARGETS = ("plate", "towel", "yellow block")
THINGS = (*SOURCES, *TARGETS)
# Every source and every target is also in trained pairs, and SIMPLER's own pairs are trained.
HELD_OUT_PAIRS = (
    ("carrot", "towel"),
    ("spoon", "plate"),
    ("green block", "towel"),
    ("eggplant", "yellow block"),
)
# Pairs one after the other, and whether the two are held out; each of the pairs is trained by itself.
LONG_TASKS = (
    ((("carrot", "plate"), ("spoon", "towel")), False),
    ((("eggplant", "towel"), ("green block", "yellow block")), True),
)
# What move near shows, and in which of its five scenes.
PICKED_THINGS = {
    "blue plastic bottle": (0, 3),
    "pepsi can": (0, 4),
    "orange": (0, 4),
    "7up can": (1, 3),
    "apple": (1, 2),
    "sponge": (1, 3),
    "coke can": (2,),
    "redbull can": (2, 4),
}
HELD_OUT_THINGS = ("orange", "7up can")


def put(source: str, target: str) -> str:
    """The sentence that asks for it."""
    return f"put the {source} on the {target}"


def roles_of(task: Task, sentence: str) -> dict[str, str]:
    """Thing -> "source" or "target", of the goal that a sentence asks for where a task has several."""
    goal = next((pair for pair in task.goals if put(*pair) == sentence), (task.source, task.target))
    return dict(zip(goal, ("source", "target")))


def _language(goals: tuple[tuple[str, str], ...], held_out: bool) -> Task:
    carrot, (source, target) = TASKS["widowx_carrot_on_plate"], goals[0]
    name = "_then_".join("_on_".join(pair) for pair in goals).replace(" ", "_")
    return replace(
        carrot,
        name=f"widowx_language_{name}",
        instruction=", then ".join(put(*pair) for pair in goals),
        source=source,
        target=target,
        max_steps=carrot.max_steps * len(goals),
        protocols=tuple(replace(protocol, backends=(MANISKILL,)) for protocol in carrot.protocols),
        env_id=f"widowx_language_{name}",
        original_id="",
        group="widowx_language",
        part="",
        suite=LANGUAGE,
        held_out=held_out,
        goals=goals,
    )


def _pick(thing: str) -> Task:
    near, name = TASKS["google_robot_move_near"], f"google_robot_language_pick_{thing.replace(' ', '_')}"
    starts = tuple(
        start
        for index, start in enumerate(near.protocol().starts)  # twelve a scene
        if index // 12 in PICKED_THINGS[thing]
    )
    protocols = tuple(
        replace(
            protocol,
            variants=tuple(each for each in protocol.variants if each.axis != "distractor"),
            starts=starts,
            scored=len(starts),
            backends=(MANISKILL,),
        )
        for protocol in near.protocols
    )
    return replace(
        near,
        name=name,
        instruction=f"pick the {thing}",
        source=thing,
        target="",
        protocols=protocols,
        env_id=name,
        group="google_robot_language",
        part="",
        suite=LANGUAGE,
        held_out=thing in HELD_OUT_THINGS,
    )


LANGUAGE_TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        *(_language((pair,), pair in HELD_OUT_PAIRS) for pair in product(SOURCES, TARGETS)),
        *(_language(goals, held_out) for goals, held_out in LONG_TASKS),
        *map(_pick, PICKED_THINGS),
    )
}
ALL_TASKS = {**TASKS, **LANGUAGE_TASKS}


@dataclass(frozen=True)
class Group:
    """One row of the published tables.

    SIMPLER's rule: success over a variant's starts; the mean of these over the scored variants and the tasks
    of a part; the mean over the parts.

    Attributes:
        name, robot: as the published tables call the row, and whose table it is in.
        parts: (name, its tasks) of what the row is the plain mean of: the orientations of the can; open and
            close.
    """

    name: str
    robot: str
    parts: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of all parts."""
        return tuple(task for _, tasks in self.parts for task in tasks)


def _group(name: str) -> Group:
    tasks = [task for task in TASKS.values() if task.group == name]
    parts = dict.fromkeys(task.part for task in tasks)
    return Group(
        name,
        tasks[0].robot,
        tuple((part, tuple(task.name for task in tasks if task.part == part)) for part in parts),
    )


GROUPS: dict[str, Group] = {
    name: _group(name) for name in dict.fromkeys(task.group for task in TASKS.values())
}

PUBLISHED_WEIGHTS: dict[str, dict[str, int]] = {
    "widowx": {task.name: 1 for task in WIDOWX_TASKS},
    "google_robot": {"pick_coke_can": 3, "move_near": 1, "open_close_drawer": 2},
}
"""How a robot's published average weighs its groups, in both settings: by the number of their parts. Placing
the apple is in no published average. SpatialVLA's table follows this within the rounding of its cells in
visual matching (RT-1-X with SIMPLER's own drawer cells); in variant aggregation Octo, RoboVLM, SpatialVLA
zero-shot and RT-1-X do, but the averages of RT-1, RT-2-X, OpenVLA, TraceVLA and SpatialVLA fine-tuned do not
follow from their cells.
"""


def register_task(task: Task) -> None:
    """Make a task of your own known by its name.

    Say it where a file begins, before a simulator is made: simulator processes import that file, and need to
    know the task, too. Raises `KitError` where another task, a group or a robot has the name.
    """
    if any(task.name in _names_of(other) for other in ALL_TASKS.values() if other != task):
        raise KitError(f"{task.name} is the name of something else", "give yours a name of its own")
    ALL_TASKS[task.name] = task
    if task.suite == LANGUAGE:
        LANGUAGE_TASKS[task.name] = task


def find_task(name: str | Task) -> Task:
    """The task called `name`, or itself; raises `KitError` naming the known ones."""
    if isinstance(name, Task):
        return name
    if name not in ALL_TASKS:
        what = f"unknown task {name!r}{_nearest(name, ALL_TASKS)}"
        raise KitError(what, f"choose one of {', '.join(ALL_TASKS)}")
    return ALL_TASKS[name]


def find_tasks(*names: str | Task) -> tuple[Task, ...]:
    """The tasks that `names` stand for, each once, one after the other: a task, its name, a row of the
    published tables or a part of one ("pick_coke_can", "open_drawer"), or a robot (SIMPLER's tasks).

    The language suite: "language", by robot "widowx_language" and "google_robot_language", and any of these
    with "_trained" or "_held_out" behind it. Move near, in which the sentence decides as well, counts to
    "language" and "google_robot_language".

    Raises `KitError` for an unknown name, with the nearest known one, and for a task that is not the one that
    is known by its name: simulators look it up, and would play the other.
    """
    return tuple(dict.fromkeys(task for name in names for task in _called(name)))


Tasks = str | Task | Iterable[str | Task]  # as `tasks_of` reads them


def tasks_of(tasks: Tasks) -> tuple[Task, ...]:
    """`find_tasks` of one task or several."""
    return find_tasks(*([tasks] if isinstance(tasks, str | Task) else tasks))


def _called(name: str | Task) -> list[Task]:
    found = [task for task in ALL_TASKS.values() if name in (task, *_names_of(task))]
    if found:
        return found
    if isinstance(name, Task):
        what = f"{name.name} is not the task that is known by this name"
        raise KitError(what, "give it a name of its own and to `register_task`, as examples/own_task.py does")
    names = sorted({name for task in ALL_TASKS.values() for name in _names_of(task)} - {""})
    what = f"unknown task, group or robot {name!r}{_nearest(name, names)}"
    raise KitError(what, f"choose one of {', '.join(names)}")


def _names_of(task: Task) -> tuple[str, ...]:
    """Everything that `find_tasks` finds a task by."""
    if task.suite == SIMPLER:
        if task.name not in TASKS:  # a user's, no part of the benchmark
            return (task.name,)
        decides = (LANGUAGE, f"{task.robot}_{LANGUAGE}") if decided_by_the_sentence(task) else ()
        return task.name, task.robot, task.group, task.part, *decides
    kind = "held_out" if task.held_out else "trained"
    return task.name, LANGUAGE, task.group, f"{LANGUAGE}_{kind}", f"{task.group}_{kind}"


def decided_by_the_sentence(task: Task) -> bool:
    """Whether several things lie in the scene and the sentence says which is meant."""
    return task.suite == LANGUAGE or task.group == "move_near"


def _nearest(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
