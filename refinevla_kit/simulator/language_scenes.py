"""The WidowX's language tasks as ManiSkill environments, registered under the kit's names: two sources and
two targets on SIMPLER's table, and only the sentence says which goes where.

What counts as "on" is ManiSkill's own rule for the digital twins, with contact for all things.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mani_skill.envs.tasks.digital_twins.bridge_dataset_eval import base_env
from mani_skill.utils import io_utils
from mani_skill.utils.registration import register_env
from transforms3d.quaternions import quat2mat

from refinevla_kit.simulator.contract import RISEN, Arrangement, Array
from refinevla_kit.simulator.geometry import grid_arrangement
from refinevla_kit.simulator.variants import MODELS
from refinevla_kit.tasks import LANGUAGE_TASKS, find_task

BAKED = "info_bridge_custom_baked_tex_v0.json"  # the blocks' sizes; the usual file has the others'
TOUCH = 0.05  # N, ManiSkill's own


class LanguageScene(base_env.BaseBridgeEnv):
    """Several things on the table.

    Attributes:
        arrangement: of the episode; set it before `reset(options={"reconfigure": True})`.
        things: actor of each thing, by name.
        goal: index into `task.goals`, what is asked for now.
        touched_first, lifted_first: see `StepResult`.
    """

    def __init__(self, task: str, **arguments: Any) -> None:
        self.task = find_task(task)
        self.arrangement: Arrangement = grid_arrangement(self.task, 0)
        super().__init__([""] * 2, torch.zeros(1), torch.zeros(1), **arguments)

    def ask_for(self, goal: int) -> None:
        """Go on to this one of the task's goals."""
        self.goal = goal
        self.source_obj_name, self.target_obj_name = (MODELS[name] for name in self.task.goals[goal])

    def _load_scene(self, options: dict[str, Any]) -> None:
        self.ask_for(0)
        self.objs.clear()
        self.obj_names = [MODELS[name] for name in self.arrangement.things]
        self.objects_excluded_from_greenscreening = self.obj_names
        self.model_db |= io_utils.load_json(base_env.BRIDGE_DATASET_ASSET_PATH / "custom" / BAKED)
        poses = np.stack(list(self.arrangement.things.values()))[None]
        self.xyz_configs, self.quat_configs = poses[..., :3], poses[..., 3:]
        super()._load_scene(options)
        self.things = dict(zip(self.arrangement.things, self.objs.values(), strict=True))

    def _initialize_episode(self, env_idx: Any, options: dict[str, Any]) -> None:
        super()._initialize_episode(env_idx, options)
        self._level = {name: self.place_of(name)[2] for name in self.things}
        self.touched_first = self.lifted_first = ""

    def place_of(self, thing: str) -> Array:
        """Where it is, (3,)."""
        return np.asarray(self.things[thing].pose.p[0])

    @property
    def held(self) -> str:
        """What both fingers press on, "" for nothing."""
        return next((name for name, actor in self.things.items() if self.agent.is_grasping(actor)[0]), "")

    def evaluate(self) -> dict[str, Any]:
        """Success: all goals hold. Placed: those up to the current one do."""
        self._note()
        source = self.objs[self.source_obj_name]
        self.consecutive_grasp[:] = self.agent.is_grasping(source)
        done = [self.lies_on(*pair) for pair in self.task.goals]
        under = [name for name in self.things if self.lifted_first and self.lies_on(self.lifted_first, name)]
        return {
            "success": torch.tensor([all(done)]),
            "placed": all(done[: self.goal + 1]),
            "touched_first": self.touched_first,
            "lifted_first": self.lifted_first,
            "ended_on": next(iter(under), ""),
        }

    def _note(self) -> None:
        """What is touched first, and lifted first."""
        fingers = self.agent.finger1_link, self.agent.finger2_link
        for name, actor in self.things.items():
            if not self.touched_first and any(self._touch(finger, actor) for finger in fingers):
                self.touched_first = name
        risen = {name: self.place_of(name)[2] - self._level[name] for name in self.things}
        highest = max(risen, key=lambda name: risen[name])
        if not self.lifted_first and risen[highest] > RISEN:
            self.lifted_first = highest

    def _touch(self, one: Any, other: Any) -> bool:
        return bool(torch.linalg.norm(self.scene.get_pairwise_contact_forces(one, other)) > TOUCH)

    def lies_on(self, thing: str, other: str) -> bool:
        """Whether `thing` lies on `other`: over it, not much higher than it, and touching it."""
        if thing == other:
            return False
        offset = self.place_of(thing) - self.place_of(other)
        beside = np.linalg.norm(offset[:2]) <= np.linalg.norm(self._half(other)[:2]) + 0.003
        height = self._half_height(thing) + self._half_height(other)
        above = 0 < offset[2] <= height + 0.02
        return bool(beside and above and self._touch(self.things[thing], self.things[other]))

    def _half(self, thing: str) -> Array:
        """Half the sides of its box, (3,)."""
        box = self.model_db[MODELS[thing]]["bbox"]
        return np.subtract(box["max"], box["min"]) / 2

    def _half_height(self, thing: str) -> float:
        """Half the height of its box as it lies now."""
        turn = quat2mat(self.things[thing].pose.q[0].numpy().astype(np.float64))
        return float(np.abs(turn[2]) @ self._half(thing))


for _task in LANGUAGE_TASKS.values():
    if _task.goals:
        register_env(_task.name, max_episode_steps=_task.max_steps, task=_task.name)(LanguageScene)
