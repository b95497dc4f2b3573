"""SIMPLER's Google Robot tasks in the default backend: the kit's own ManiSkill 3 environments behind the
`Simulator` contract, in both settings.

How closely they follow the original, measured step by step: docs/google_robot.md.
"""

from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import (
    AnyStart,
    Array,
    Observation,
    StepResult,
    checked_action,
    vector,
)
from refinevla_kit.simulator.demonstrator import observed
from refinevla_kit.simulator.geometry import intrinsic
from refinevla_kit.simulator.maniskill import (
    FARTHEST,
    FIRSTS,
    ManiSkillSimulator,
    build_environment,
    import_maniskill,
)
from refinevla_kit.tasks import SIMPLER_SEED, Protocol, Start, Task, Variant

FARTHEST_MOVE, WIDEST_TURN = 1.0, np.pi / 2  # m, rad: the controller's own range


class GoogleRobotSimulator(ManiSkillSimulator):
    """`Simulator` over one of the kit's Google Robot environments.

    What is particular to this robot: translation and rotation are added to the *measured* tool pose, not to
    the controller's last target, and action [6] is relative: +1 closes and -1 opens the fingers by their
    whole range (1.31 rad, at 1 rad/s at most), 0 goes on to where they were sent.
    """

    def __init__(
        self,
        task: Task,
        assets: str | Path,
        width: int,
        height: int,
        privileged: bool,
        protocol: Protocol,
        variant: Variant,
        shader: str = "default",
    ) -> None:
        self.task, self.variant, self.privileged = task, variant, privileged
        self.protocol = protocol
        camera = {
            "width": width,
            "height": height,
            "intrinsic": intrinsic(task.robot, width, height),
            "shader_pack": shader,
        }
        import_maniskill("refinevla_kit.simulator.google_robot_scenes")
        self._env = build_environment(
            task.env_id,
            assets=str(assets),
            setting=protocol.setting,
            variant=variant.name,
            obs_mode="none",
            sensor_configs=camera,
            render_backend="cpu" if shader == "default" else "gpu",  # no ray tracing in software
        )
        self.instruction = self._env.instruction
        self._basket, self._photograph = None, None
        self._size = (width, height)
        self._photographs: dict[str, Array] = {}
        self._steps = 0
        self._segmentation: Array = np.zeros((height, width), np.int16)

    def reset(self, episode: AnyStart, seed: int = 0) -> Observation:
        """See `Simulator.reset`. Seed 0 is SIMPLER's own; only distractors depend on it.

        Raises:
            KitError: an episode outside the grid of the task in this setting; a start of the WidowX.
        """
        starts = self.protocol.starts
        if not isinstance(episode, int | np.integer | Start):
            what = f"{self.task.name} does not start from this {type(episode).__name__}"
            raise KitError(what, "give the number of an episode, or a `tasks.Start`")
        if not isinstance(episode, Start) and not 0 <= episode < len(starts):
            raise KitError(
                f"episode {episode} is outside the grid of {self.task.name} in {self.protocol.setting}",
                f"choose 0 to {len(starts) - 1}",
            )
        start = episode if isinstance(episode, Start) else starts[episode]
        self._env.start, self._env.seed = start, (SIMPLER_SEED + seed) % 2**32
        self._env.reset(seed=seed, options={"reconfigure": True})
        self._photograph = self._background(start)
        self._steps = 0
        self._ids = self._segmentation_ids()
        self._kept = np.concatenate(list(self._ids.values()))
        self._rest = self._source
        return self._observe(placed=False, grasped=False)

    def step(self, action: Array) -> StepResult:
        """See `Simulator.step`. Raises `KitError` for an action outside the controller's range."""
        action = checked_action(action)
        turn = Rotation.from_euler("xyz", action[3:6]).as_rotvec()
        far, wide = np.abs(action[:3]).max(), np.linalg.norm(turn)
        if far > FARTHEST_MOVE or wide > WIDEST_TURN:
            raise KitError(
                f"an action of {far:.2f} m and {wide:.2f} rad is outside the controller's range"
                f" ({FARTHEST_MOVE:g} m, {WIDEST_TURN:.2f} rad)",
                "check the policy's un-normalisation and its units",
            )
        before = self.unsolved
        self._env.step(np.concatenate([action[:3], turn, action[6:]]).astype(np.float32))
        self._steps += 1
        success, grasped = self._env.flags["success"], self._env.grasped
        moved = self._source[:3]
        thrown = bool(self._env.objects) and float(np.abs(moved[:2]).max()) > FARTHEST
        broken = thrown or not (np.isfinite(moved).all() and np.isfinite(self.joints).all())
        reason = "physics" if broken else "budget" if self._steps >= self.task.max_steps else ""
        success = success and not broken
        seen, unsolved = self._observe(success, grasped), self.unsolved > before
        noted = [self._word(getattr(self._env, name)) for name in FIRSTS]
        return StepResult(seen, success, grasped, bool(reason), reason, unsolved, *noted)

    def advance(self) -> bool:
        """See `Simulator.advance`. Placing the apple goes on by itself after 100 steps."""
        more = bool(self._env.advance())
        self.instruction = self._env.instruction
        return more

    @property
    def unsolved(self) -> int:
        """Actions of this episode to which inverse kinematics found no answer: the arm kept its pose."""
        return int(self._env.controller.unsolved)

    @property
    def flags(self) -> dict[str, bool]:
        """What the task's own evaluation found at the last step, by the original's names."""
        return dict(self._env.flags)

    @property
    def joints(self) -> Array:
        """Measured joint positions, float64 (11,), rad: torso, shoulder, bicep, elbow, forearm, wrist,
        gripper, right finger, left finger, head pan, head tilt.
        """
        return self._env.controller.positions

    @property
    def joint_targets(self) -> Array:
        """Where inverse kinematics and the gripper's command send the joints, float64 (11,), rad."""
        return np.array(self._env.controller.target)

    @property
    def objects(self) -> dict[str, Array]:
        """Pose of every thing that can move, float32 (7,), world frame, by model name."""
        return {name: vector(entity.pose) for name, entity in self._env.objects.items()}

    @property
    def drawers(self) -> Array:
        """How far top, middle and bottom drawer are open, float64 (3,), m; (0,) without a cabinet."""
        return getattr(self._env, "drawers", np.zeros(0))

    @property
    def tool(self) -> Array:
        """Measured pose of the tool, float32 (7,), world frame."""
        return vector(self._env.links["link_gripper_tcp"].entity_pose)

    @property
    def _source(self) -> Array:
        """Pose of the thing to move: an object, else the drawer. Before the apple, the drawer is opened."""
        opening = self._env.source is None or getattr(self._env, "subtask", 1) == 0
        return vector(self._env.drawer_pose if opening else self._env.source.pose)

    @property
    def _target(self) -> Array:
        """Pose of where it goes: an object, a drawer, or where it started."""
        if self._env.target is not None:
            return vector(self._env.target.pose)
        return vector(self._env.drawer_pose) if getattr(self._env, "subtask", 0) else self._rest

    def set_state(self, joints: Array, objects: Array, drawers: Array) -> None:
        """Put everything where it was at some moment, at rest, to look at it.

        Args:
            joints: (11,), as `joints` has them.
            objects: (n, 7), in the order of `objects`.
            drawers: (3,), or (0,) without a cabinet.
        """
        self._env.place(joints, objects, drawers)

    def observe(self) -> Observation:
        """What is seen now, without a step."""
        return self._observe(self._env.flags["success"], self._env.grasped)

    def _observe(self, placed: bool, grasped: bool) -> Observation:
        controller, base = self._env.controller, self._env.agent.robot._objs[0].root_pose
        self.instruction = self._env.instruction
        image = self._take_picture()
        opening = float(np.clip(1 - controller.positions[7:9].mean() / 1.3, 0, 1))
        poses = vector(controller.tool_pose), opening, vector(controller.target_pose)
        if not self.privileged:
            return observed(self.task, image, self.instruction, *poses)
        return observed(
            self.task,
            image,
            self.instruction,
            *poses,
            source=self._source,
            target=self._target,
            tcp=self.tool,
            tcp_target=vector(base * controller.target_pose),
            grasped=grasped,
            placed=placed,
        )

    def _take_picture(self) -> Array:
        """uint8 (H, W, 3): robot, things and cabinet before the photograph, else the whole room."""
        colour, bodies = self._textures("Color", "Segmentation")
        self._segmentation = bodies[..., 1]
        image = (colour[..., :3].clip(0, 1) * 255).astype(np.uint8)
        if self._photograph is None:
            image[self._segmentation == 0] = 0  # nothing there: SAPIEN 2 leaves it black
        else:
            hidden = ~np.isin(self._segmentation, self._kept)
            image[hidden] = self._photograph[hidden]
        return image

    def _background(self, start: Start) -> Array | None:
        """The photograph behind the scene, uint8 (H, W, 3); None where everything is rendered."""
        name = start.overlay or self._env.build.get("overlay")
        if not name:
            return None
        if name not in self._photographs:
            import cv2
            from PIL import Image

            picture = np.asarray(Image.open(self._env.files.photograph(name)).convert("RGB")) / 255
            self._photographs[name] = (cv2.resize(picture, self._size) * 255).astype(np.uint8)
        return self._photographs[name]

    def _segmentation_ids(self) -> dict[str, Array]:
        """Ids of what masks name; a cabinet's parts are "top drawer", "middle drawer", "bottom drawer" and
        "cabinet".
        """
        ids: dict[str, list[int]] = {name: [] for name in (self.task.source, self.task.target) if name}
        environment = self._env
        for name, entity in environment.objects.items():
            ids.setdefault(self._word(name), []).append(entity.per_scene_id)
        for name, part in getattr(environment, "parts", {}).items():
            word = "cabinet" if name == "body" else name.replace("_", " ")
            ids.setdefault(word, []).append(part.entity.per_scene_id)
        for name, link in environment.links.items():
            word = "gripper" if "gripper" in name or "finger" in name else "arm"
            ids.setdefault(word, []).append(link.entity.per_scene_id)
        return {word: np.array(numbers) for word, numbers in ids.items()}

    def _word(self, model: str) -> str:
        """What masks and records call an object; "" for none."""
        from refinevla_kit.simulator.google_robot_scenes import spoken

        entity = self._env.objects.get(model)
        if entity is not None and entity == self._env.source:
            return self.task.source
        return self.task.target if entity is not None and entity == self._env.target else spoken(model)
