"""SIMPLER's Google Robot tasks as ManiSkill 3 environments, registered under the kit's names.

Sizes, weights, lights, resets and success rules are those of ManiSkill2_real2sim (`envs/custom_scenes`); what
a variant changes comes from `tasks.py`. A scene is built anew for every episode. World frame, metres,
kilograms; poses are position and quaternion (w, x, y, z).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import sapien
import torch
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.utils.registration import register_env
from mani_skill.utils.structs.types import DefaultMaterialsConfig, SceneConfig, SimConfig
from sapien import Pose
from transforms3d.euler import euler2quat
from transforms3d.quaternions import quat2mat

from refinevla_kit.simulator import google_robot_agent as agent
from refinevla_kit.simulator import variants
from refinevla_kit.simulator.contract import RISEN, Array
from refinevla_kit.simulator.google_robot_agent import ITERATIONS, SMALLEST_IMPULSE, impulse_of
from refinevla_kit.simulator.google_robot_assets import GoogleRobotAssets
from refinevla_kit.tasks import ALL_TASKS, SIMPLER_SEED, Start, find_task

SIMULATION_HZ, CONTROL_HZ = 513, 3
SETTLING_SLEEP = 0.1  # m2/s2, for 0.005 while things fall: an orange would roll away before it comes to rest
BASE_HEIGHT, TABLE_HEIGHT, FALL = 0.07905, 0.87, 0.5
AWAY = Pose([-10, 0, 0])  # where the robot waits while things fall
TILTS = {"AltGoogleCamera2": 0.6651361, "AltGoogleCamera": 0.9351361}  # of the head, camera variants
DENSITIES = {"can": 50.0, "bottle": 50.0, "apple": 800.0, "orange": 800.0, "sponge": 150.0, "spoon": 1200.0}
LIGHT_DENSITY = 200.0  # of move near's apple and orange: toys
WIDEST_ANGLE = np.deg2rad(80)  # of what counts as grasp
LIGHTS = {  # (direction, brightness) on the table's scenes, above an ambient light of 0.3
    "": variants.LIGHTS["normal"],
    "slightly_brighter_lighting": variants.LIGHTS["brighter"],
    "slightly_darker_lighting": variants.LIGHTS["darker"][::-1],
}
STAGE_ORIGIN = np.array([1.6616, 3.0337, 0.0])
UP = Pose(q=[0.5**0.5, 0.5**0.5, 0, 0])  # stages are modelled with y up
STAGE_TURNS = {
    "modern_bedroom": Pose([0.178, -2.235, 1.669], [0.007, 0, 0, -1]),
    "modern_office": Pose([-0.192, -1.728, 1.48], [0.709, 0, 0, -0.705]),
}


class GoogleRobotScene(BaseEnv):
    """What the tasks share: the robot, the room, things that fall into place.

    Attributes:
        start: of the episode; set it before `reset(options={"reconfigure": True})`.
        seed: of the draw of distractors' places.
        flags: what the last step's evaluation found, by the original's names.
        objects: dynamic things by model name, in the original's order.
        touched_first, lifted_first: model names; see `StepResult`.
        stage: entity of the room or table, for masks.
    """

    SUPPORTED_REWARD_MODES = ("none",)
    contact_offset = 0.02  # m
    settling_iterations = ITERATIONS  # of the solver, while things fall into place
    on_table = True  # things stand on the stage, which for a cabinet's scenes is only looked at

    def __init__(self, task: str, assets: str, setting: str, variant: str, **arguments: Any) -> None:
        self.task = find_task(task)
        protocol = self.task.protocol(setting)
        self.environment, self.build = self.task.original(protocol.variant(variant))
        self.files = GoogleRobotAssets(assets)
        self.start: Start = protocol.starts[0]
        self.seed = SIMPLER_SEED
        self.flags: dict[str, bool] = {}
        super().__init__(robot_uids=agent.UID, reward_mode="none", **arguments)

    @property
    def _default_sim_config(self) -> Any:
        scene = SceneConfig(
            contact_offset=self.contact_offset,
            solver_position_iterations=ITERATIONS[0],
            solver_velocity_iterations=ITERATIONS[1],
            enable_pcm=False,
        )
        return SimConfig(
            sim_freq=SIMULATION_HZ,
            control_freq=CONTROL_HZ,
            scene_config=scene,
            default_materials_config=DefaultMaterialsConfig(1.0, 1.0, 0.0),
        )

    @property
    def instruction(self) -> str:
        """The sentence that holds now."""
        return self.task.instruction

    @property
    def controller(self) -> agent.PlannedController:
        """The robot's controller."""
        return self.agent.controller

    @property
    def source(self) -> Any:
        """Entity of the thing to move; None where there is none (drawers)."""
        return next(iter(self.objects.values()), None)

    @property
    def target(self) -> Any:
        """Entity of where it goes; None where there is none."""
        return None

    def advance(self) -> bool:
        """Go on to the next sub-task; False where there is none."""
        return False

    def _load_agent(self, options: dict[str, Any]) -> None:
        agent.GoogleRobot.urdf_path = str(self.files.robot(self.build.get("urdf_version") or ""))
        super()._load_agent(options, AWAY)
        self.links = {name: link._objs[0] for name, link in self.agent.robot.links_map.items()}
        if not self.build.get("disable_bad_material"):
            for link in self.links.values():
                _polish(link.entity, specular=0.9, roughness=0.3)

    def _load_scene(self, options: dict[str, Any]) -> None:
        self.objects: dict[str, Any] = {}
        self._load_stage()
        self._load_things()

    def _load_stage(self) -> None:
        name = self.build["scene_name"]
        path = str(self.files.stage(name))
        builder = self.scene.create_actor_builder()
        turn = next((turn for room, turn in STAGE_TURNS.items() if room in name), Pose()) * UP
        if self.on_table:
            _add_collision(builder, path, turn)
        builder.add_visual_from_file(path, turn)
        builder.initial_pose = Pose(STAGE_ORIGIN)
        builder.build_static("arena")

    def _load_things(self) -> None:
        """Put into the scene what the task is about."""
        raise NotImplementedError

    def _add(self, model: str, density: float | None = None) -> Any:
        """Put an object into the scene; returns its entity."""
        builder = self.scene.create_actor_builder()
        word = next(word for word in DENSITIES if word in model)
        builder.add_multiple_convex_collisions_from_file(
            str(self.files.collision(model)),
            material=sapien.physx.PhysxMaterial(0.5, 0.5, 0.0),
            density=density or DENSITIES[word],
        )
        builder.add_visual_from_file(str(self.files.visual(model) or self.files.collision(model)))
        builder.initial_pose = Pose([0, 0, 10 + len(self.objects)])
        entity = builder.build(model)._objs[0]
        body = _body(entity)
        body.linear_damping = body.angular_damping = 0.1
        for material in _materials(entity):
            if (
                material.emission_texture is not None
            ):  # light baked into the texture: SAPIEN 2 shows it in full
                material.emission = [1.0, 1.0, 1.0, 1.0]
        self.objects[model] = entity
        return entity

    def _load_lighting(self, options: dict[str, Any]) -> None:
        lights = LIGHTS[next(filter(self.build.get, LIGHTS), "")]
        self.scene.set_ambient_light([0.3] * 3)
        for direction, brightness in lights:
            self.scene.add_directional_light(direction, [brightness] * 3)

    def _initialize_episode(self, env_idx: Any, options: dict[str, Any]) -> None:
        robot = self.agent.robot._objs[0]
        robot.set_root_pose(AWAY)
        self._place_things()
        rest = agent.REST.copy()
        rest[-1] = next((tilt for name, tilt in TILTS.items() if name in self.environment), rest[-1])
        self.agent.reset(torch.as_tensor(rest[np.argsort(self.controller._order)], dtype=torch.float32)[None])
        half, (x, y) = self.start.robot_yaw / 2, self.start.robot_xy or (0.0, 0.0)
        robot.set_root_pose(Pose([x, y, BASE_HEIGHT], [-np.sin(half), 0, 0, np.cos(half)]))
        self._steps = 0
        self.flags = {"success": False}
        self.touched_first = self.lifted_first = ""
        self._level = {model: entity.pose.p[2] for model, entity in self.objects.items()}

    def _place_things(self) -> None:
        """Bring everything but the robot to where the episode starts."""

    def _settle(self, seconds: float) -> None:
        bodies = [_body(entity) for entity in self.objects.values()]
        usual = [body.sleep_threshold for body in bodies]
        self._solve_with(*self.settling_iterations)
        for body in bodies:
            body.sleep_threshold = SETTLING_SLEEP
        for _ in range(int(SIMULATION_HZ * seconds)):
            self.scene.step()
        self._solve_with(*ITERATIONS)
        for body, threshold in zip(bodies, usual, strict=True):
            body.sleep_threshold = threshold

    def _solve_with(self, positions: int, velocities: int) -> None:
        """Everything at once: PhysX takes the most of a batch for all of it."""
        articulations = [each._objs[0] for each in self.scene.articulations.values()]
        for each in (*map(_body, self.objects.values()), *articulations):
            each.set_solver_position_iterations(positions)
            each.set_solver_velocity_iterations(velocities)

    def _drop(self, places: dict[str, tuple[Array, Array]]) -> None:
        """Let objects fall onto what is below them, upright first, then freely, until they rest.

        Args:
            places: of each object's model its (x, y) and its quaternion.
        """
        bodies = [_body(self.objects[model]) for model in places]
        for body, (place, turn) in zip(bodies, places.values(), strict=True):
            body.entity.set_pose(Pose([*place, TABLE_HEIGHT + FALL], turn))
            body.set_locked_motion_axes([False, False, False, True, True, False])
        self._settle(0.5)
        for body in bodies:
            _release(body)
        self._settle(0.5)
        if _moving(bodies):
            self._settle(1.5)

    def place(self, joints: Array, objects: Array, drawers: Array) -> None:
        """Put robot and things where they were; see `GoogleRobotSimulator.set_state`."""
        self.agent.robot._objs[0].set_qpos(joints[np.argsort(self.controller._order)])
        for entity, pose in zip(self.objects.values(), objects, strict=True):
            entity.set_pose(Pose(pose[:3], pose[3:]))
            _stop(_body(entity))

    def evaluate(self) -> dict[str, Any]:
        """Once after each control step, as the original does; nothing is judged at a reset."""
        if self._elapsed_steps[0] > self._steps:
            self._steps += 1
            self.flags = {name: bool(flag) for name, flag in self._judge().items()}
            self._note()
        return {name: torch.tensor([flag]) for name, flag in self.flags.items()}

    def _judge(self) -> dict[str, Any]:
        """The original's flags, "success" among them."""
        raise NotImplementedError

    def _note(self) -> None:
        """What is touched first, and lifted first."""
        fingers = [link for name, link in self.links.items() if "finger" in name]
        for model, entity in self.objects.items():
            pressed = (np.linalg.norm(self.impulse(_body(entity), finger)) for finger in fingers)
            if not self.touched_first and any(impulse > SMALLEST_IMPULSE for impulse in pressed):
                self.touched_first = model
            if not self.lifted_first and entity.pose.p[2] - self._level[model] > RISEN:
                self.lifted_first = model

    @property
    def ended_on(self) -> str:
        """What `lifted_first` was brought to, a model's name; "" for nothing."""
        return ""

    def impulse(self, thing: Any, other: Any, shape: Any = None) -> Array:
        """Of the last physics step, from `other` on `thing`, (3,), N s. Both are components.

        Args:
            shape: of `other`; None: all of them.
        """
        total = np.zeros(3)
        for contact in self.scene.px.get_contacts():
            touching = thing in contact.bodies and other in contact.bodies
            if touching and (shape is None or shape in contact.shapes):
                sign = 1 if contact.bodies[0] == thing else -1
                total += sign * impulse_of(contact)
        return total

    @property
    def grasped(self) -> bool:
        """Whether both fingers press on the thing to move, from the sides that close."""
        return self.source is not None and all(self._presses(side) for side in ("left", "right"))

    def _presses(self, side: str) -> bool:
        """The larger of the impulses on finger and tip counts, and the smaller of their angles."""
        sizes, angles = [], []
        for link in (self.links[f"link_finger_tip_{side}"], self.links[f"link_finger_{side}"]):
            impulse = self.impulse(link, _body(self.source))
            size = float(np.linalg.norm(impulse))
            opening = quat2mat(link.entity_pose.q)[:, 1]
            sizes.append(size)
            pressed = size >= SMALLEST_IMPULSE
            angles.append(np.arccos(np.clip(impulse @ opening / size, -1, 1)) if pressed else np.pi / 2)
        return max(sizes) >= SMALLEST_IMPULSE and min(angles) <= WIDEST_ANGLE


class PickCan(GoogleRobotScene):
    """Grasp the coke can, in three orientations, and lift it."""

    def _load_things(self) -> None:
        self._add("opened_coke_can")
        if "Distractor" in self.environment:
            more = self.build.get("distractor_config") == "more"
            for model in MORE_DISTRACTORS if more else DISTRACTORS:
                self._add(model)

    def _place_things(self) -> None:
        turn = next(turn for keyword, turn in CAN_TURNS.items() if self.build.get(keyword))
        place = np.array(self.start.object_xy)
        self._drop({"opened_coke_can": (place, turn)})
        self._begin()
        self._place_distractors(place, turn)

    def _begin(self) -> None:
        """Nothing is lifted yet."""
        self._height = self.source.pose.p[2]
        self._grasps, self._lifted, self._lifts = 0, False, 0

    def _place_distractors(self, place: Array, turn: Array) -> None:
        """One after the other, around the can; they keep the can's turn."""
        rng = np.random.RandomState(self.seed)
        bodies = [_body(entity) for entity in list(self.objects.values())[1:]]
        for body in bodies:
            spot = place
            while np.linalg.norm(spot - place) <= 0.25:
                spot = np.clip(place + rng.uniform(-0.3, 0.3, 2), [-0.50, 0.05], [-0.1, 0.35])
            body.entity.set_pose(Pose([*spot, TABLE_HEIGHT + FALL], turn))
            _stop(body)
            body.set_locked_motion_axes([True, True, False, True, True, False])
            self._settle(0.5)
        for body in bodies:
            _release(body)
            self._settle(0.5)
        if _moving(bodies):
            self._settle(1.5)

    def _judge(self) -> dict[str, Any]:
        grasped = self.grasped
        self._grasps = self._grasps + 1 if grasped else 0
        body, robot = _body(self.source), self.links.values()
        height = self.source.pose.p[2] - self._height
        free = all(
            np.linalg.norm(impulse_of(contact)) <= SMALLEST_IMPULSE
            for contact in self.scene.px.get_contacts()
            if body in contact.bodies and not any(other in robot for other in contact.bodies)
        )
        self._lifted = (self._lifted and grasped) or (free and height > 0.01)
        significantly = self._lifted and height > 0.02
        self._lifts += significantly
        return {
            "is_grasped": grasped,
            "consecutive_grasp": self._grasps >= 5,
            "lifted_object": self._lifted,
            "lifted_object_significantly": significantly,
            "success": self._lifted or self._lifts >= 5,
        }


class MoveNear(GoogleRobotScene):
    """Bring one of three things near another."""

    contact_offset = 0.005
    settling_iterations = (50, 0)  # a bottle comes to rest 0.2 mm nearer to where the original has it

    @property
    def instruction(self) -> str:
        source, target = (spoken(name) for name in self._pair)
        return f"move {source} near {target}"

    @property
    def source(self) -> Any:
        return self.objects[self._pair[0]]

    @property
    def target(self) -> Any:
        return self.objects[self._pair[1]]

    def _load_things(self) -> None:
        number = self.start.object_episode or 0
        triplet, pair = NEAR_TRIPLETS[number // 12], NEAR_PAIRS[number % 6]
        baked = "overlay" in self.build  # visual matching
        models = [BAKED.get(model, f"baked_{model}") if baked else model for model in triplet]
        self._pair = models[pair[0]], models[pair[1]]
        places = NEAR_PLACES[number % 12 // 6]
        chosen = pair if self.build.get("no_distractor") else range(3)
        self._starts = {}
        for index in chosen:
            light = triplet[index] in ("apple", "orange")
            self._add(models[index], LIGHT_DENSITY if light else None)
            turn = NEAR_TURNS.get(triplet[index], UPRIGHT_CAN)
            shift = self.start.object_xy or (0.0, 0.0)
            place = places[self._order(number)[index]]
            self._starts[models[index]] = np.add(place, shift), turn

    def _order(self, number: int) -> tuple[int, ...]:
        """Of each thing, on which of the three places it stands."""
        return 0, 1, 2

    def _place_things(self) -> None:
        self._drop(self._starts)
        self._settled = {model: entity.pose.p for model, entity in self.objects.items()}
        turned = [quat2mat(self.objects[model].pose.q) @ _extents(model) for model in self._pair]
        self._reach = sum(np.linalg.norm(extent[:2]) / 2 for extent in turned)

    @property
    def ended_on(self) -> str:
        if not self.lifted_first:
            return ""
        moved = _centre(self.objects[self.lifted_first])
        others = [model for model in self.objects if model != self.lifted_first]
        nearest = min(others, key=lambda model: _apart(moved, _centre(self.objects[model])))
        near = _apart(moved, _centre(self.objects[nearest])) < self._reach + 0.10
        return nearest if near else ""

    def _judge(self) -> dict[str, Any]:
        centres = {model: _centre(entity) for model, entity in self.objects.items()}
        origins = {model: entity.pose.p for model, entity in self.objects.items()}
        source, target = self._pair
        others = [model for model in self.objects if model != source]
        dropped = {model: self._settled[model][2] - origins[model][2] for model in self.objects}
        keep = all(dropped[model] < 0.02 for model in others if model != target)
        keep = keep and all(centres[model][2] - self._settled[model][2] > -0.15 for model in self._pair)
        moved = {model: _apart(self._settled[model], origins[model]) for model in self.objects}
        most = max(moved[model] for model in others)
        apart = _apart(centres[source], centres[target])
        near = apart < self._reach + 0.10
        closest = all(apart < _apart(centres[source], origins[model]) + 0.01 for model in others)
        correct = moved[source] > 0.03 and most < moved[source]
        return {
            "all_obj_keep_height": keep,
            "moved_correct_obj": correct,
            "moved_wrong_obj": most > 0.03 and most > moved[source],
            "near_tgt_obj": near,
            "is_closest_to_tgt": closest,
            "success": keep and correct and near and closest,
        }


class PickNamed(MoveNear, PickCan):
    """Grasp the one of move near's three things that the sentence names, and lift it. Each stands on each of
    the places in turn, so that the place does not tell.
    """

    instruction = GoogleRobotScene.instruction
    target = GoogleRobotScene.target
    ended_on = GoogleRobotScene.ended_on
    _judge = PickCan._judge

    @property
    def source(self) -> Any:
        return next(entity for model, entity in self.objects.items() if spoken(model) == self.task.source)

    def _order(self, number: int) -> tuple[int, ...]:
        first, second = NEAR_PAIRS[number % 6]
        return first, second, 3 - first - second

    def _place_things(self) -> None:
        super()._place_things()
        self._begin()


class Drawer(GoogleRobotScene):
    """Open or close one of the cabinet's three drawers.

    Attributes:
        cabinet: the articulation; `drawers` are its joints' positions.
        drawer: which drawer the task is about, 0 the top one.
    """

    on_table = False

    @property
    def drawer(self) -> int:
        return next(index for index, word in enumerate(DRAWERS) if word in self.task.name)

    @property
    def drawers(self) -> Array:
        """How far each drawer is open, top first, float64 (3,), m."""
        return np.asarray(self.cabinet.get_qpos()[self._order], np.float64)

    @property
    def drawer_pose(self) -> Pose:
        """Of the drawer that the task is about; it moves along x."""
        return self.parts[f"{DRAWERS[self.drawer]}_drawer"].entity_pose

    def _load_stage(self) -> None:
        if self.build["scene_name"] != "dummy_drawer":
            super()._load_stage()
            return
        builder = self.scene.create_actor_builder()  # a floor
        builder.add_box_visual(half_size=[10.0, 10.0, 0.017], material=[1, 1, 1])
        builder.initial_pose = Pose(STAGE_ORIGIN)
        builder.build_static("arena")

    def _load_things(self) -> None:
        loader = self.scene.create_urdf_loader()
        loader.fix_root_link = True
        loader.name = "cabinet"
        path = self.files.station(self.build.get("station_name", "mk_station"))
        builder = loader.parse(str(path))["articulation_builders"][0]
        builder.initial_pose = Pose([-0.295, 0, 0.017])
        built = builder.build()
        self.cabinet = built._objs[0]
        self.parts = {name: link._objs[0] for name, link in built.links_map.items()}
        names = [joint.name for joint in built.active_joints]
        self._order = np.array([names.index(f"{word}_drawer_joint") for word in DRAWERS])
        for joint in self.cabinet.active_joints:
            joint.set_friction(0.05)
            joint.set_drive_properties(0, 1)
        for part in self.parts.values():
            _polish(part.entity, metallic=1.0, roughness=0.1)

    def _load_lighting(self, options: dict[str, Any]) -> None:
        mode = self.build.get("light_mode", "")
        if mode == "simple":
            turn = np.deg2rad(75)
            self.scene.set_ambient_light([1.0] * 3)
            self.scene.add_directional_light([-np.cos(turn), 0, -np.sin(turn)], [1.0] * 3)
            return
        bright = {"darker": 0.5, "brighter": 2.0}.get(mode, 1.0)
        self.scene.set_ambient_light([0.3] * 3)
        shadow = {"shadow": True, "shadow_scale": 5, "shadow_map_size": 2048}
        self.scene.add_directional_light([-0.2, 0, -1], [bright] * 3, **shadow)
        for direction in ([-1, 1, -0.05], [-1, -1, -0.05]):
            self.scene.add_directional_light(direction, [0.5] * 3)

    def _initialize_episode(self, env_idx: Any, options: dict[str, Any]) -> None:
        super()._initialize_episode(env_idx, options)
        opening = np.zeros(3)
        if self._closes:
            opening[self.drawer] = 0.2
        self.cabinet.set_qpos(opening[np.argsort(self._order)])

    def place(self, joints: Array, objects: Array, drawers: Array) -> None:
        super().place(joints, objects, drawers)
        self.cabinet.set_qpos(drawers[np.argsort(self._order)])

    @property
    def _closes(self) -> bool:
        return "close_" in self.task.name

    def _judge(self) -> dict[str, Any]:
        opening = self.drawers[self.drawer]
        return {"success": opening <= 0.05 if self._closes else opening >= 0.15}


class PlaceApple(Drawer):
    """Open the top drawer, then put the apple into it.

    Attributes:
        subtask: 0 opens, 1 places.
    """

    contact_offset = 0.005
    subtask = 0

    @property
    def instruction(self) -> str:
        return ("open top drawer", "place apple into top drawer")[self.subtask]

    def advance(self) -> bool:
        more = self.subtask == 0
        self.subtask = 1
        return more

    def step(self, action: Any) -> Any:
        """As ManiSkill's; from the 100th step on the second sub-task holds."""
        if self._steps >= LAST_STEP_OF_OPENING:
            self.subtask = 1
        return super().step(action)

    def _load_things(self) -> None:
        super()._load_things()
        self._add(self.build["model_ids"])

    def _place_things(self) -> None:
        self.subtask, self._touched = 0, False
        self._drop({self.build["model_ids"]: (np.array(self.start.object_xy), np.array([1.0, 0, 0, 0]))})

    def _judge(self) -> dict[str, Any]:
        drawer = self.parts["top_drawer"]
        impulse = self.impulse(_body(self.source), drawer, drawer.collision_shapes[2])
        self._touched = self._touched or bool(np.linalg.norm(impulse) > SMALLEST_IMPULSE)
        return {"success": self.subtask == 1 and self.drawers[0] >= 0.05 and self._touched}


DRAWERS = ("top", "middle", "bottom")
LAST_STEP_OF_OPENING = 100
UPRIGHT_CAN = euler2quat(np.pi / 2, 0, 0)
CAN_TURNS = {
    "lr_switch": euler2quat(0, 0, np.pi),
    "laid_vertically": euler2quat(0, 0, np.pi / 2),
    "upright": UPRIGHT_CAN,
}
DISTRACTORS = ("opened_pepsi_can", "apple", "sponge", "orange")
MORE_DISTRACTORS = (
    "opened_7up_can",
    "opened_sprite_can",
    "sponge",
    "orange",
    "opened_fanta_can",
    "bridge_spoon_generated_modified",
)
NEAR_TRIPLETS = (
    ("blue_plastic_bottle", "opened_pepsi_can", "orange"),
    ("opened_7up_can", "apple", "sponge"),
    ("opened_coke_can", "opened_redbull_can", "apple"),
    ("sponge", "blue_plastic_bottle", "opened_7up_can"),
    ("orange", "opened_pepsi_can", "opened_redbull_can"),
)
NEAR_PAIRS = ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1))  # source, target
NEAR_PLACES = (((-0.33, 0.04), (-0.33, 0.34), (-0.13, 0.19)), ((-0.13, 0.04), (-0.33, 0.19), (-0.13, 0.34)))
NEAR_TURNS = {
    "blue_plastic_bottle": euler2quat(np.pi / 2, 0, np.pi / 2),
    "orange": euler2quat(0, 0, np.pi / 2),
    "apple": np.array([1.0, 0, 0, 0]),
    "sponge": euler2quat(0, 0, np.pi / 2),
}
BAKED = {"blue_plastic_bottle": "blue_plastic_bottle", "orange": "orange"}  # these have no baked twin
EXTENTS = {  # m, of the original's list of models
    "redbull": (0.0585, 0.172, 0.0585),
    "can": (0.066, 0.123, 0.066),
    "bottle": (0.0601, 0.203, 0.0605),
    "apple": (0.08, 0.08, 0.08),
    "orange": (0.07, 0.07, 0.068),
    "sponge": (0.07, 0.10, 0.036),
}


def spoken(model: str) -> str:
    """The words for a model in an instruction."""
    return " ".join(word for word in model.split("_") if word not in UNSPOKEN)


UNSPOKEN = ("opened", "baked", "generated", "modified", "bridge", "v2")


def _extents(model: str) -> Array:
    return np.array(next(size for word, size in EXTENTS.items() if word in model))


def _centre(entity: Any) -> Array:
    """The centre of mass, (3,)."""
    return (entity.pose * _body(entity).cmass_local_pose).p


def _apart(one: Array, other: Array) -> float:
    """Distance in the plane."""
    return float(np.linalg.norm(one[:2] - other[:2]))


def _add_collision(builder: Any, path: str, pose: Pose) -> None:
    """The stage's own triangles, as in the original; a stage of boxes collides as boxes.

    Triangles are hollow and SAPIEN finds other contacts with them: an orange that stays where it fell on a
    box rolls away.
    """
    import trimesh

    stage: Any = trimesh.load(path, force="mesh")
    pieces = stage.split(only_watertight=False)
    sizes = [np.ptp(piece.bounds, axis=0) for piece in pieces]
    if not all(np.isclose(piece.volume, size.prod(), rtol=1e-3) for piece, size in zip(pieces, sizes)):
        builder.add_nonconvex_collision_from_file(path, pose)
        return
    for piece, size in zip(pieces, sizes):
        builder.add_box_collision(pose * Pose(piece.bounds.mean(axis=0)), half_size=size / 2)


def _body(entity: Any) -> Any:
    """The physical component of an entity."""
    return entity.find_component_by_type(sapien.physx.PhysxRigidDynamicComponent)


def _stop(body: Any) -> None:
    body.set_linear_velocity(np.zeros(3))
    body.set_angular_velocity(np.zeros(3))


def _release(body: Any) -> None:
    """Let a thing move in every way, from rest, and awake."""
    body.set_locked_motion_axes([False] * 6)
    body.entity.set_pose(body.entity.pose)
    _stop(body)


def _moving(bodies: list[Any]) -> bool:
    speed = sum(np.linalg.norm(body.linear_velocity) for body in bodies)
    return bool(speed > 1e-3 or sum(np.linalg.norm(body.angular_velocity) for body in bodies) > 1e-2)


def _materials(entity: Any) -> Iterator[Any]:
    body = entity.find_component_by_type(sapien.render.RenderBodyComponent)
    for shape in body.render_shapes if body else ():
        for part in getattr(shape, "parts", [shape]):
            yield part.material


def _polish(entity: Any, **properties: float) -> None:
    """Set properties of every material of an entity."""
    for material in _materials(entity):
        for name, number in properties.items():
            setattr(material, name, number)


_CLASSES = {"pick_coke_can": PickCan, "move_near": MoveNear, "open_close_drawer": Drawer}
_CLASSES["google_robot_language"] = PickNamed
for _task in ALL_TASKS.values():
    if _task.robot == "google_robot":
        _scene = _CLASSES.get(_task.group, PlaceApple)
        register_env(_task.name, max_episode_steps=_task.max_steps, task=_task.name)(_scene)
