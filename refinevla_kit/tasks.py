"""The benchmark as data: each SimplerEnv task, its robot, grid, step budget and instruction.

Numbers are those of SIMPLER's own evaluation scripts (simpler-env/SimplerEnv, `scripts/bridge.sh`) and of ManiSkill 3's
digital twins (`mani_skill/envs/tasks/digital_twins/bridge_dataset_eval`). Nothing here imports a simulator.
"""

from __future__ import annotations

from dataclasses import dataclass

from refinevla_kit.errors import KitError


@dataclass(frozen=True)
class Task:
    """One SimplerEnv task in its visual-matching setting.

    Attributes:
        name: SimplerEnv's name of the task; what records, parameters and figures use.
        env_id: ManiSkill 3's gymnasium id.
        robot: `widowx` (WidowX 250S) or `google_robot`.
        instruction: the sentence the policy is given, as SimplerEnv gives it.
        source, target: words for the object to move and where it goes; also the keys of `Simulator.masks()`.
        max_steps: step budget of an episode.
        control_hz: control steps a second.
        grid: number of start configurations the environment has (`episode_id` 0 .. grid - 1).
        scored: how many of them SIMPLER scores (the first ones).
    """

    name: str
    env_id: str
    robot: str
    instruction: str
    source: str
    target: str
    max_steps: int
    control_hz: int = 5
    grid: int = 24
    scored: int = 24


WIDOWX_TASKS: tuple[Task, ...] = (
    Task("widowx_spoon_on_towel", "PutSpoonOnTableClothInScene-v1", "widowx", "put the spoon on the towel", "spoon", "towel", 60),
    Task("widowx_carrot_on_plate", "PutCarrotOnPlateInScene-v1", "widowx", "put carrot on plate", "carrot", "plate", 60),
    Task("widowx_stack_cube", "StackGreenCubeOnYellowCubeBakedTexInScene-v1", "widowx", "stack the green block on the yellow block",
         "green block", "yellow block", 60),
    Task("widowx_put_eggplant_in_basket", "PutEggplantInBasketScene-v1", "widowx", "put eggplant into yellow basket",
         "eggplant", "yellow basket", 120, grid=64),
)

TASKS: dict[str, Task] = {task.name: task for task in WIDOWX_TASKS}


def find_task(name: str) -> Task:
    """The task called `name`; raises `KitError` naming the known ones."""
    if name not in TASKS:
        raise KitError(f"unknown task {name!r}", f"choose one of {', '.join(TASKS)}")
    return TASKS[name]
