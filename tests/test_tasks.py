"""The protocol is complete and stays what it is: its episode counts and averages are those SIMPLER's own
tools and the published tables have.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from refinevla_kit import tasks
from refinevla_kit.errors import KitError
from refinevla_kit.tasks import (
    ALL_TASKS,
    BASE,
    GROUPS,
    HELD_OUT_PAIRS,
    HELD_OUT_THINGS,
    LANGUAGE,
    LANGUAGE_TASKS,
    MANISKILL,
    PICKED_THINGS,
    PROTOCOL_VERSION,
    PUBLISHED_WEIGHTS,
    SETTINGS,
    SIMPLER,
    SIMPLER_ENV,
    SOURCES,
    TARGETS,
    TASKS,
    Protocol,
    Task,
    Variant,
    find_task,
    find_tasks,
    register_task,
    roles_of,
)
from refinevla_kit.tasks import VARIANT_AGGREGATION as AGGREGATION
from refinevla_kit.tasks import VISUAL_MATCHING as MATCHING

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYENV_VERSION": "3.10"}  # for machines whose `python3.10` is a switch of pyenv's
TABLES = json.loads((ROOT / "data/paper/published.json").read_text(encoding="utf-8"))["groups"]
PLAYED = [(task, protocol) for task in TASKS.values() for protocol in task.protocols]
GOOGLE = [
    (task, protocol)
    for task, protocol in PLAYED
    if SIMPLER_ENV in protocol.backends and task.robot == "google_robot"
]
DRAWERS = (*find_tasks("open_close_drawer"), *find_tasks("place_apple_in_closed_top_drawer"))


def published(table: str, setting: str, metric: str = "success") -> dict[str, dict[str, float]]:
    """Model -> cell -> printed number of a Google Robot table; empty cells are left out."""
    rows: dict[str, dict[str, float]] = {}
    for block in TABLES:
        if (block["table"], block["robot"], block["setting"], block["metric"]) == (
            table,
            "google_robot",
            setting,
            metric,
        ):
            for model, cells in block["values"].items():
                rows.setdefault(model, {}).update(
                    {name: value for name, value in cells.items() if value is not None}
                )
    return rows


def count(name: str, setting: str) -> int:
    """Scored episodes of a task, group or robot."""
    return sum(len(task.protocol(setting).episodes()) for task in find_tasks(name))


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_episode_counts_are_those_of_simplers_scripts(setting: str) -> None:
    """Scored: 300, 240, 216 and 675, 480, 378; the camera variants are played (150, 120) but not scored."""
    rows = published("SimplerEnv protocol", setting, "episodes")["protocol"]
    assert len(rows) == (3 if setting == MATCHING else 5)
    for row, episodes in rows.items():
        name, _, unscored = row.partition(", camera variants")
        played = [
            (task.protocol(setting), variant)
            for task in find_tasks(name)
            for variant in task.protocol(setting).variants
        ]
        assert episodes == sum(
            len(protocol.starts) for protocol, variant in played if variant.scored != bool(unscored)
        ), row
        assert unscored or episodes == count(name, setting)


def test_the_widowx_plays_24_episodes_a_task_and_the_apple_has_its_own_numbers() -> None:
    assert {count(name, MATCHING) for name in PUBLISHED_WEIGHTS["widowx"]} == {24}
    assert count("widowx", MATCHING) == 96
    assert (
        count("place_apple_in_closed_top_drawer", MATCHING) == 4 * 3 * 9
    )  # robots, poses, places of the apple
    assert count("place_apple_in_closed_top_drawer", AGGREGATION) == 7 * 3 * 9


# Rows of SpatialVLA's table whose printed average does not follow from their printed cells; its columns
# slipped by a row in variant aggregation.
SLIPPED = {
    "HPT": "TraceVLA",
    "TraceVLA": "RT-1-X",
    "RT-1-X": "RT-2-X",
}  # where drawer and average stand -> whose they are
DEVIANT = {
    MATCHING: {"RT-1-X": 0.13},
    AGGREGATION: {
        "RT-1 (Begin)": 0.13,
        "RT-1 (15%)": 0.78,
        "RT-1 (Converged)": 0.7,
        "TraceVLA": 4.73,
        "RT-2-X": 1.82,
        "OpenVLA": 1.3,
        "SpatialVLA (fine-tuning)": 0.65,
    },
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_published_averages_follow_from_their_cells_by_the_published_weights(setting: str) -> None:
    weights = PUBLISHED_WEIGHTS["google_robot"]
    printed = published("SpatialVLA README", setting)
    rows = {model: dict(cells) for model, cells in printed.items()}
    if setting == AGGREGATION:
        for place, owner in SLIPPED.items():
            rows[owner] |= {cell: printed[place][cell] for cell in ("open_close_drawer", "average")}
        del rows["HPT"]
    whole = {model: row for model, row in rows.items() if set(row) == {*weights, "average"}}
    assert len(whole) == (13 if setting == MATCHING else 12)
    off = {
        model: abs(
            sum(weights[name] * row[name] for name in weights) / sum(weights.values()) - row["average"]
        )
        for model, row in whole.items()
    }
    rounding = 0.1  # half a last digit of the cells and half a one of the average
    assert {model: round(gap, 2) for model, gap in off.items() if gap > rounding} == pytest.approx(
        DEVIANT[setting], abs=0.01
    )


def test_the_one_deviant_visual_matching_row_follows_from_simplers_own_drawer_cells() -> None:
    """RT-1-X: the average is right, the drawer cell printed beside it is not. The parts weigh one each, which
    the weights of the groups repeat.
    """
    own = published("SimplerEnv metrics.py", MATCHING)["RT-1-X"]
    mean = (3 * own["pick_coke_can"] + own["move_near"] + own["open_drawer"] + own["close_drawer"]) / 6
    assert mean == pytest.approx(published("SpatialVLA README", MATCHING)["RT-1-X"]["average"], abs=0.1)
    assert {name: len(GROUPS[name].parts) for name in PUBLISHED_WEIGHTS["google_robot"]} == PUBLISHED_WEIGHTS[
        "google_robot"
    ]


def test_the_parts_of_a_group_are_cells_of_the_published_tables() -> None:
    cells = {cell for block in TABLES for row in block["values"].values() for cell in row}
    for group in GROUPS.values():
        assert {part for part, _ in group.parts} <= cells
        assert sorted(group.tasks) == sorted(task.name for task in TASKS.values() if task.group == group.name)
    assert sorted(task for group in GROUPS.values() for task in group.tasks) == sorted(TASKS)


def test_names_are_unique_and_every_protocol_has_a_base() -> None:
    assert len({(task.original_id, task.original_build, task.protocols) for task in TASKS.values()}) == len(
        TASKS
    )
    for task, protocol in PLAYED:
        names = [variant.name for variant in protocol.variants]
        assert names[0] == BASE and len(set(names)) == len(names), task.name
        assert len(set(protocol.starts)) == len(protocol.starts) >= protocol.scored
        assert len({task.original(variant)[0] + repr(variant.build) for variant in protocol.variants}) == len(
            names
        )
    assert len({protocol.setting for protocol in TASKS["google_robot_move_near"].protocols}) == len(SETTINGS)


@pytest.mark.parametrize(
    ("task", "protocol"), GOOGLE, ids=lambda each: each.name if isinstance(each, Task) else each.setting
)
def test_a_variant_changes_one_thing(task: Task, protocol: Protocol) -> None:
    """Against the base variant, one argument of the environment differs; the larger set of distractors is an
    environment and its setting.
    """

    def made(variant: Variant) -> dict[str, object]:
        env_id, build = task.original(variant)
        return {"env_id": env_id, **build}

    base = made(protocol.variant(BASE))
    for variant in protocol.variants[1:]:
        other = made(variant)
        changed = {key for key in {*base, *other} if base.get(key) != other.get(key)}
        assert len(changed) == 1 or changed == {"env_id", "distractor_config"}, variant.name
        assert variant.scored == (variant.axis != "camera")
    axes = Counter(variant.axis for variant in protocol.variants)
    assert axes.pop("robot", 0) == (3 if protocol.setting == MATCHING else 0)
    twice = (
        ["background", "lighting", "table_texture", *(() if task in DRAWERS else ("camera",))]
        if protocol.setting == AGGREGATION
        else []
    )
    assert axes == Counter({BASE: 1, **dict.fromkeys(twice, 2)}) + Counter(distractor=axes["distractor"])


def test_a_photograph_is_shown_in_visual_matching_alone_and_at_the_cabinet_it_fits_the_robots_pose() -> None:
    for task, protocol in GOOGLE:
        for variant in protocol.variants:
            photographs = {
                start.overlay or task.original(variant)[1].get("overlay") for start in protocol.starts
            }
            assert (None in photographs) == (protocol.setting == AGGREGATION)
    poses = {
        (start.overlay, start.robot_xy, start.robot_yaw)
        for task in DRAWERS
        for start in task.protocol(MATCHING).starts
    }
    assert sorted(str(overlay) for overlay, *_ in poses) == [
        f"open_drawer_{column}{row}.png" for column in "abc" for row in "012"
    ]
    for task in DRAWERS[:-1]:
        assert len({start.overlay for start in task.protocol().starts}) == task.grid == 9


def test_grids_are_nested_as_simplers_evaluator_loops() -> None:
    can = TASKS["google_robot_pick_standing_coke_can"].protocol(AGGREGATION).starts
    assert [start.object_xy for start in can[:6]] == [
        (-0.35, -0.02),
        (-0.35, 0.09),
        (-0.35, 0.2),
        (-0.35, 0.31),
        (-0.35, 0.42),
        (-0.2925, -0.02),
    ]
    room = TASKS["google_robot_open_top_drawer"].protocol(AGGREGATION).starts
    assert [start.robot_xy for start in room[:4]] == [(0.65, -0.2), (0.65, 0.0), (0.65, 0.2), (0.75, -0.2)]
    apple = TASKS["google_robot_place_apple_in_closed_top_drawer"].protocol().starts
    assert [start.overlay for start in apple[::9]] == [
        "open_drawer_a0.png",
        "open_drawer_b0.png",
        "open_drawer_c0.png",
    ]
    assert [start.object_xy for start in apple[:4]] == [
        (-0.08, -0.02),
        (-0.08, 0.03),
        (-0.08, 0.08),
        (-0.05, -0.02),
    ]


CHECKSUMS = {"SIMPLER": "6844680819281b35", "kit": "88a2a5fe7381b3b8"}


@pytest.mark.parametrize(("whose", "backend"), [("SIMPLER", SIMPLER_ENV), ("kit", MANISKILL)])
def test_what_a_record_means_does_not_change_in_silence(whose: str, backend: str) -> None:
    """Everything SIMPLER's protocol says, and the kit's own WidowX variants. Where a change is meant: raise
    PROTOCOL_VERSION, set the checksum.
    """
    own = whose == "kit"
    content = {
        f"{task.name} {protocol.setting}": asdict(protocol)
        | {"made": [task.original(variant) for variant in protocol.variants]}
        for task, protocol in PLAYED
        if (protocol.backends == (MANISKILL,)) == own
    }
    text = json.dumps([PROTOCOL_VERSION, content], sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == CHECKSUMS[whose], "the protocol changed"


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("pick_coke_can", 3),
        ("pick_coke_can/standing", 1),
        ("open_close_drawer", 6),
        ("open_drawer", 3),
        ("google_robot", 11),
        ("widowx", 4),
        ("widowx_carrot_on_plate", 1),
        ("google_robot_move_near", 1),
    ],
)
def test_tasks_are_found_by_task_row_cell_and_robot(name: str, number: int) -> None:
    found = find_tasks(name)
    assert len(found) == number
    assert all(name in (task.name, task.group, task.part, task.robot) for task in found)


def test_names_that_overlap_stand_for_each_task_once() -> None:
    stack = find_task("widowx_stack_cube")
    found = find_tasks("widowx_carrot_on_plate", stack, "widowx")
    assert len(found) == 4 and found[:2] == (TASKS["widowx_carrot_on_plate"], stack)


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        KitError, match=r"unknown task 'widowx_carot_on_plate' \(did you mean 'widowx_carrot_on_plate'"
    ):
        find_task("widowx_carot_on_plate")
    with pytest.raises(KitError, match=r"did you mean 'pick_coke_can'.*open_close_drawer"):
        find_tasks("pick_coke_cans")
    with pytest.raises(KitError, match="choose one of visual_matching, variant_aggregation"):
        TASKS["google_robot_move_near"].protocol("real")
    with pytest.raises(KitError, match="no_distractors"):
        TASKS["google_robot_move_near"].protocol(AGGREGATION).variant("distractors")


def test_it_is_read_without_any_package_installed() -> None:
    """The protocol stands in the standard library alone, on any machine."""
    run(
        sys.executable,
        "-S",
        program=f"import sys; sys.path.insert(0, {str(ROOT)!r}); import refinevla_kit.tasks",
    )


@pytest.mark.parametrize("module", ["simulator", "simulator.contract", "evaluation", "conventions"])
def test_the_evaluators_contracts_need_no_simulator_and_no_torch(module: str) -> None:
    """The original SimplerEnv lives in an environment that has neither ManiSkill 3 nor this torch."""
    program = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'sapien', 'mani_skill', 'gymnasium', "
        "'transformers'): raise ModuleNotFoundError(name)\n"
        f"sys.meta_path.insert(0, Missing())\nimport refinevla_kit.{module}"
    )
    run(sys.executable, program=program)


def test_python_3_10_reads_it() -> None:
    """SAPIEN 2, which the original SimplerEnv needs, has no wheel for later ones than 3.11."""
    python = shutil.which("python3.10")
    if (
        not python
        or subprocess.run([python, "-c", ""], env=ENVIRONMENT, capture_output=True, check=False).returncode
    ):
        pytest.skip("no python3.10 on this machine")
    program = (
        f"import sys, pathlib; sys.path.insert(0, {str(ROOT)!r}); import refinevla_kit.tasks\n"
        "for path in pathlib.Path('refinevla_kit').glob('*/*.py'):\n"
        "    if path.parent.name in ('simulator', 'evaluation'): "
        "compile(path.read_text(encoding='utf-8'), str(path), 'exec')"
    )
    run(python, "-S", "-B", program=program)


def run(*command: str, program: str) -> None:
    done = subprocess.run(
        [*command, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", ["google_robot_pick_vertical_coke_can", "google_robot_move_near"])
def test_a_few_starts_are_spread_over_the_grid(name: str) -> None:
    protocol = TASKS[name].protocol()
    five, every = protocol.spread(5), protocol.spread(10**6)
    rows = protocol.scored // 5
    assert {number // rows for number in five} == set(range(5)), "one in each fifth"
    assert every[:5] == five and sorted(every) == list(range(protocol.scored))


# The language suite


def test_the_language_suite_is_found_by_its_names_and_is_none_of_simplers_tasks() -> None:
    counts = {
        "language": 12 + 2 + 8 + 1,
        "widowx_language": 14,
        "google_robot_language": 8 + 1,  # with move near, which is SIMPLER's own
        "language_trained": 8 + 1 + 6,
        "language_held_out": 4 + 1 + 2,
        "widowx_language_held_out": 5,
        "google_robot_language_trained": 6,
    }
    assert {name: len(find_tasks(name)) for name in counts} == counts
    assert not set(LANGUAGE_TASKS) & set(TASKS) and {task.suite for task in TASKS.values()} == {SIMPLER}
    assert all(task.suite == LANGUAGE for task in LANGUAGE_TASKS.values())
    assert not {task.group for task in LANGUAGE_TASKS.values()} & set(GROUPS)
    with pytest.raises(KitError, match="did you mean 'widowx_language_held_out'"):
        find_tasks("widowx_language_heldout")


def test_what_is_held_out_occurs_in_trained_pairs_and_simplers_own_pairs_are_trained() -> None:
    pairs = [task for task in find_tasks("widowx_language") if len(task.goals) == 1]
    trained = {task.goals[0] for task in pairs if not task.held_out}
    assert {task.goals[0] for task in pairs} - trained == set(HELD_OUT_PAIRS)
    assert {source for source, _ in trained} == set(SOURCES)
    assert {target for _, target in trained} == set(TARGETS)
    simplers = {(task.source, task.target) for task in find_tasks("widowx")}
    assert len(simplers & trained) == 3
    for task in find_tasks("widowx_language"):
        assert (task.source, task.target) == task.goals[0]
        assert len(task.goals) == 1 or set(task.goals) <= trained
        assert task.max_steps == 60 * len(task.goals)


def test_the_kit_alone_plays_the_language_suite_in_the_widowxs_settings() -> None:
    carrot = find_task("widowx_carrot_on_plate")
    for task in LANGUAGE_TASKS.values():
        assert [protocol.setting for protocol in task.protocols] == list(SETTINGS)
        assert all(protocol.backends == (MANISKILL,) for protocol in task.protocols)
        if task.goals:
            assert task.protocol(AGGREGATION).variants == carrot.protocol(AGGREGATION).variants
            assert task.grid == task.scored == 24


def test_each_thing_to_pick_is_asked_for_in_the_scenes_that_show_it() -> None:
    from refinevla_kit.simulator.google_robot_scenes import NEAR_TRIPLETS, spoken

    scenes = [{spoken(model) for model in triplet} for triplet in NEAR_TRIPLETS]
    for thing, places in PICKED_THINGS.items():
        assert tuple(place for place, things in enumerate(scenes) if thing in things) == places
        task = find_task(f"google_robot_language_pick_{thing.replace(' ', '_')}")
        assert {int(start.object_episode or 0) // 12 for start in task.protocol().starts} == set(places)
        assert task.scored == 12 * len(places) and task.held_out == (thing in HELD_OUT_THINGS)
    assert set(PICKED_THINGS) == set.union(*scenes)


def test_a_changed_task_under_a_known_name_is_not_taken_for_that_one() -> None:
    known = find_task("widowx_carrot_on_plate")
    assert find_tasks(known) == (known,)
    for changed in (replace(known, max_steps=5), replace(known, name="widowx_mine")):
        with pytest.raises(
            KitError, match=f"{changed.name} is not the task that is known .* name of its own"
        ):
            find_tasks(changed)


def test_a_task_of_ones_own_is_found_once_it_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "ALL_TASKS", dict(ALL_TASKS))
    monkeypatch.setattr(tasks, "LANGUAGE_TASKS", dict(LANGUAGE_TASKS))
    pair = find_task("widowx_language_carrot_on_plate")
    mine = replace(pair, name="widowx_mine", max_steps=5)
    with pytest.raises(KitError, match=r"widowx_mine is not the task .* `register_task`"):
        find_tasks(mine)
    register_task(mine)
    register_task(mine)  # a file may be imported twice
    assert find_task("widowx_mine") is mine and find_tasks(mine, "widowx_mine") == (mine,)
    assert mine in find_tasks(LANGUAGE) and tasks.LANGUAGE_TASKS["widowx_mine"] is mine
    with pytest.raises(KitError, match="widowx_mine is the name of something else -> give yours"):
        register_task(replace(mine, max_steps=6))
    with pytest.raises(KitError, match="widowx is the name of something else"):
        register_task(replace(mine, name="widowx"))
    assert find_task("widowx_mine") is mine
    register_task(replace(find_task("widowx_carrot_on_plate"), name="widowx_other"))
    assert "widowx_other" in tasks.ALL_TASKS and "widowx_other" not in tasks.LANGUAGE_TASKS


def test_what_is_moved_and_where_it_goes_is_what_the_sentence_asks_for() -> None:
    long = find_task("widowx_language_carrot_on_plate_then_spoon_on_towel")
    assert roles_of(long, "put the carrot on the plate") == {"carrot": "source", "plate": "target"}
    assert roles_of(long, "put the spoon on the towel") == {"spoon": "source", "towel": "target"}
    plain = find_task("widowx_carrot_on_plate")
    assert roles_of(plain, plain.instruction) == {"carrot": "source", "plate": "target"}
