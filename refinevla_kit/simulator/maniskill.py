"""The default backend: ManiSkill 3's own WidowX digital twins, unchanged, on the CPU.
`google_robot.py` has the Google Robot's tasks.

ManiSkill's classes stay as they are; what is set from outside is where they look for assets, the camera, and
the class-level containers that two environments in one process would otherwise share (the second one would
show the first one's background, and things that should be hidden). Its own observation is switched off after
the first one: it costs more than the physics. The picture is taken here, the same to the byte.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import warnings
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from refinevla_kit.errors import KitError, as_kit_error, listed, set_up
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.simulator.contract import (
    AnyStart,
    Arrangement,
    Array,
    Observation,
    Pose,
    StepResult,
    checked_action,
)
from refinevla_kit.simulator.demonstrator import observed
from refinevla_kit.simulator.geometry import CAMERAS, camera_setting, intrinsic
from refinevla_kit.simulator.variants import basket_outline, dress
from refinevla_kit.tasks import VARIANT_AGGREGATION, Protocol, Start, Task, Variant

BRIDGE = Path("data/tasks/bridge_v2_real2sim_dataset")
REQUIRED = (
    BRIDGE / "custom/info_bridge_custom_v0.json",
    BRIDGE / "custom/info_bridge_custom_baked_tex_v0.json",
    BRIDGE / "real_inpainting/bridge_real_eval_1.png",
    BRIDGE / "real_inpainting/bridge_sink.png",
    BRIDGE / "stages/bridge_table_1_v1.glb",
    BRIDGE / "stages/bridge_table_1_v2.glb",
    Path("data/robots/widowx/wx250s.urdf"),
)
EMBEDDED = REPOSITORY / "data" / "assets"  # scripts/embedded_assets makes it
RESTORE = "bring data/assets back: git checkout data/assets, or install the kit's wheel anew"
DOWNLOAD = (
    f"{sys.executable} -m mani_skill.utils.download_asset bridge_v2_real2sim, then the same with widowx250s"
)

CAMERA = CAMERAS["widowx"]
CLOSED, OPEN = 0.015, 0.037  # finger joint positions (m)
GRIPPER_LINKS = (
    "gripper_link",
    "gripper_prop_link",
    "gripper_bar_link",
    "left_finger_link",
    "right_finger_link",
)
FIRSTS = ("touched_first", "lifted_first", "ended_on")  # what a step may say beside success
FARTHEST = 2.0  # m from the robot: an object beyond it was thrown there by broken physics
# Set by the kit's simulator processes: in anyone else's the garbage collector is left as it is.
own_process = False


class ManiSkillSimulator:
    """`Simulator` over one ManiSkill 3 environment (physx on the CPU, one scene)."""

    scenes = "mani_skill.envs"  # the module that registers the environments

    def __init__(
        self,
        task: Task,
        assets: str | Path,
        width: int,
        height: int,
        privileged: bool,
        protocol: Protocol,
        variant: Variant,
    ) -> None:
        self.task, self.variant, self.privileged = task, variant, privileged
        self.instruction = task.instruction
        self._assets = resolve_assets(assets)
        import_maniskill(self.scenes)
        import sapien
        from mani_skill.envs.tasks.digital_twins.base_env import BaseDigitalTwinEnv

        _read_from(self._assets)
        overlays: dict[str, Any] = {}
        BaseDigitalTwinEnv._rgb_overlay_images = overlays
        BaseDigitalTwinEnv._objects_to_remove_from_greenscreen = []
        camera = camera_setting(task, variant)
        pose = sapien.Pose(camera.camera_position, camera.camera_quaternion)
        size = {"width": width, "height": height}
        sensors = {**size, "intrinsic": intrinsic(task.robot, width, height), CAMERA: {"pose": pose}}
        self._env = build_environment(task.env_id, obs_mode="rgb+segmentation", sensor_configs=sensors)
        self._env._rgb_overlay_images = overlays
        self._env._obs_mode = "none"
        self._grid = (self._env.xyz_configs, self._env.quat_configs)  # as converted by the first reset
        self._dressed = protocol.setting == VARIANT_AGGREGATION
        self._photograph: Array | None = None  # uint8 (H, W, 3), shown wherever none of `_kept` is seen
        self._basket: Array | None = None  # bool (H, W), where the photograph shows it
        if not self._dressed:
            self._photograph = self._env._rgb_overlay_images[CAMERA].numpy()
            self._basket = basket_outline(task, width, height)
        self._steps = 0
        self._segmentation: Array = np.zeros((height, width), np.int16)

    def reset(self, episode: AnyStart, seed: int = 0) -> Observation:
        """See `Simulator.reset`. Raises `KitError` for an episode outside the task's grid, or a start of
        other tasks.
        """
        import torch

        index = self._arrange(episode)
        # The scene is built anew: what PhysX remembers of an episode (contacts, their order, when a thing may
        # come to rest) cannot be cleared, and ManiSkill leaves the motors on the last command. So an episode
        # does not depend on which one was played before it.
        _read_from(self._assets)
        options = {"episode_id": torch.tensor([index]), "reconfigure": True}
        _, info = self._env.reset(seed=seed, options=options)
        self._bind()
        self._robot = self._env.agent.robot
        self._links = self._robot.links_map
        self._ids = self._segmentation_ids()
        self._kept = self._env._segmentation_ids_to_keep.numpy()
        if self._dressed:
            place, turn = divmod(index, len(self._env.quat_configs))
            both = (self._env.xyz_configs[place], self._env.quat_configs[turn])
            starts = torch.cat(both, dim=1).numpy()  # n x 7
            models = self._assets / BRIDGE / "custom/models"
            things = dict(zip(self._things(), starts, strict=True))
            self._ids |= dress(self._env, self.task, self.variant, models, things)
        self._steps = 0
        return self._observe(bool(info.get("success", False)), grasped=False)

    def _arrange(self, episode: AnyStart) -> int:
        """Tell the environment where things start; returns the number of its configuration."""
        import torch

        if isinstance(episode, Pose):
            poses = torch.as_tensor(np.stack([episode.source, episode.target]), dtype=torch.float32)  # 2 x 7
            self._env.xyz_configs, self._env.quat_configs = poses[None, :, :3], poses[None, :, 3:]
            return 0
        if isinstance(episode, Start | Arrangement):
            what = f"{self.task.name} does not start from this {type(episode).__name__}"
            raise KitError(what, "give a number or a Pose")
        if not 0 <= episode < self.task.grid:
            raise KitError(
                f"episode {episode} is outside the grid of {self.task.name}",
                f"choose 0 to {self.task.grid - 1}",
            )
        self._env.xyz_configs, self._env.quat_configs = self._grid
        return int(episode)

    def _bind(self) -> None:
        """Take hold of what is asked for now, and of what must not be thrown off by broken physics."""
        self._source = self._env.objs[self._env.source_obj_name]
        self._watched = [self._source]
        self._target = self._env.objs[self._env.target_obj_name]

    def _things(self) -> dict[str, Any]:
        """Actor of each thing, by name, in the environment's order."""
        return {self.task.source: self._source, self.task.target: self._target}

    def _asked(self) -> dict[str, Any]:
        """Of the state, what only some tasks have."""
        return {}

    def step(self, action: Array) -> StepResult:
        """See `Simulator.step`."""
        action = checked_action(action)
        # ManiSkill's controller turns about the turning axes; a pure yaw is the same either way.
        if action[3:5].any():
            turn = Rotation.from_euler("xyz", action[3:6]).as_euler("XYZ")
            action = np.concatenate([action[:3], turn, action[6:]]).astype(np.float32)
        *_, info = self._env.step(action)
        self._steps += 1
        success = bool(info["success"])
        grasped = bool(self._env.consecutive_grasp[0] > 0)  # counted anew by each step's own evaluation
        positions = np.stack([thing.pose.p[0].numpy() for thing in self._watched])
        broken = not np.isfinite(positions).all() or float(np.abs(positions).max()) > FARTHEST
        reason = "physics" if broken else "budget" if self._steps >= self.task.max_steps else ""
        observation = self._observe(bool(info.get("placed", success)), grasped)
        result = StepResult(observation, success and not broken, grasped, bool(reason), reason)
        return replace(result, **{name: info[name] for name in FIRSTS if name in info})

    def masks(self) -> dict[str, Array]:
        """See `Simulator.masks`. The photograph of visual matching is background, but for the yellow basket:
        there, it is where the box around the basket lies in the picture, less what is seen before it.
        """
        found = {name: np.isin(self._segmentation, ids) for name, ids in self._ids.items()}
        if self._basket is not None:
            found[self.task.target] = self._basket & ~np.isin(self._segmentation, self._kept)
        return {**found, "background": ~np.logical_or.reduce(list(found.values()))}

    def advance(self) -> bool:
        """See `Simulator.advance`: these tasks have one sub-task each."""
        return False

    def close(self) -> None:
        self._env.close()

    def _observe(self, placed: bool, grasped: bool) -> Observation:
        image = self._take_picture()
        tool, base = self._links["ee_gripper_link"].pose, self._robot.pose
        opening = np.clip((self._robot.get_qpos()[0, -2:].mean().item() - CLOSED) / (OPEN - CLOSED), 0.0, 1.0)
        commanded = self._env.agent.controller.controllers["arm"]._target_pose
        shown = (self.task, image, self.instruction, _vector(base.inv() * tool), opening, _vector(commanded))
        if not self.privileged:
            return observed(*shown)
        return observed(
            *shown,
            source=_vector(self._source.pose),
            target=_vector(self._target.pose),
            tcp=_vector(tool),
            tcp_target=_vector(base * commanded),
            grasped=grasped,
            placed=placed,
            **self._asked(),
        )

    def _take_picture(self) -> Array:
        """uint8 (H, W, 3), what ManiSkill's own observation shows: its rendering of robot and objects, before
        the photograph.
        """
        colour, position = self._textures("Color", "PositionSegmentation")
        self._segmentation = position[..., 3]
        if self._photograph is None:
            return np.ascontiguousarray(colour[..., :3])
        shown = np.isin(self._segmentation, self._kept)
        image = self._photograph.copy()
        image[shown] = colour[shown, :3]
        return image

    def _textures(self, *names: str) -> list[Array]:
        """What the camera sees now, (H, W, ...) each, by SAPIEN's names."""
        sensor = self._env._sensors[CAMERAS[self.task.robot]]
        self._env.scene.update_render(update_sensors=True, update_human_render_cameras=False)
        sensor.capture()
        return [texture[0].numpy() for texture in sensor.camera.get_picture(list(names))]

    def _segmentation_ids(self) -> dict[str, Array]:
        def ids(*things: Any) -> Array:
            return np.array([int(thing.per_scene_id[0]) for thing in things])

        arm = [link for name, link in self._links.items() if name not in GRIPPER_LINKS]
        gripper = [self._links[name] for name in GRIPPER_LINKS]
        things = {name: ids(actor) for name, actor in self._things().items()}
        return {**things, "gripper": ids(*gripper), "arm": ids(*arm)}


def _vector(pose: Any) -> Array:
    """float32 (7,): position and quaternion (w, x, y, z) of a ManiSkill pose."""
    return np.array(pose.raw_pose[0].numpy(), np.float32)


def import_maniskill(environments: str) -> None:
    """Import the module that registers `environments`. Raises `KitError` where ManiSkill is not installed."""
    with as_kit_error(
        "ManiSkill 3 cannot be imported", f"{set_up()}, then `refinevla doctor`", (ImportError,)
    ):
        import_module(environments)
    # The blank is theirs. It warns, at every start, of what its own classes do.
    logging.getLogger("mani_skill ").setLevel(logging.ERROR)
    if own_process:
        _set_imports_aside()


def build_environment(name: str, *, render_backend: str = "cpu", **arguments: Any) -> Any:
    """The registered environment `name`, one scene on the CPU.

    Raises:
        KitError: no Vulkan device, or a file of the assets is missing.
    """
    from mani_skill.utils.registration import REGISTERED_ENVS

    if name not in REGISTERED_ENVS:
        what = f"{name} was registered after the first simulator was made"
        raise KitError(what, "say register_task where your file begins, and start it again")
    spec = REGISTERED_ENVS[name]
    arguments = {**spec.default_kwargs, "num_envs": 1, "sim_backend": "physx_cpu", **arguments}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of how its task files make tensors
            # Not through gymnasium.make, which first looks for assets in ManiSkill's own folder and asks at
            # the terminal to download them.
            return _without_reflections(spec.cls, EMBEDDED / REQUIRED[3])(
                render_backend=render_backend, **arguments
            )
    except RuntimeError as error:
        if any(word in str(error).lower() for word in ("device", "vulkan", "vk::")):
            remedy = (
                "install Mesa's Vulkan driver (a checkout's `make setup` does) and run `refinevla doctor`"
            )
            raise KitError(f"no Vulkan device to render with ({error})", remedy) from error
        if "No such file" in str(error):
            remedy = "copy the whole pack again, or give another `assets`"
            raise KitError(f"the asset pack is incomplete ({error})", remedy) from error
        raise


def _without_reflections(environment_class: type, picture: Path) -> Any:
    """`environment_class` without SAPIEN's table of reflections.

    The table says how much of its surroundings a surface reflects. The software renderer needs 10 s for it in
    every process, but the surroundings of these scenes are black: any picture in its place gives the same
    pixels.

    Args:
        environment_class: a ManiSkill environment, of a scene without an environment map.
        picture: any file that SAPIEN can read as a texture.
    """

    def setup_sensors(self: Any, options: dict[str, Any]) -> None:
        import sapien

        environment_class._setup_sensors(self, options)  # type: ignore[attr-defined]
        context = sapien.render.SapienRenderer()._internal_context  # the one that this process renders with
        table = context.create_texture_from_file(str(picture), 1)
        for sensor in self._sensors.values():
            for camera in sensor.camera._render_cameras:
                camera._internal_renderer.set_custom_texture("BRDFLUT", table)

    return type(environment_class.__name__, (environment_class,), {"_setup_sensors": setup_sensors})


@cache
def _set_imports_aside() -> None:
    """Once: what has been imported is no longer searched for garbage, as ManiSkill has it done for every
    scene (170 ms each time; 2 ms without).
    """
    gc.collect()
    gc.freeze()


def _read_from(assets: Path) -> None:
    """ManiSkill's classes build scenes from `assets` from now on; every simulator of a process says it again
    before it builds one.
    """
    from mani_skill.agents.robots.widowx.widowx import WidowX250S
    from mani_skill.envs.tasks.digital_twins.bridge_dataset_eval import base_env

    base_env.BRIDGE_DATASET_ASSET_PATH = assets / BRIDGE
    WidowX250S.urdf_path = str(assets / "data/robots/widowx/wx250s.urdf")


def resolve_assets(assets: str | Path) -> Path:
    """The directory that holds `data/tasks/...` and `data/robots/...`.

    Args:
        assets: "embedded", the pack that the kit ships; "official", ManiSkill's downloads; or a directory.

    Raises:
        KitError: a file ManiSkill needs is missing, with the way to get it.
    """
    official = Path(os.environ.get("MS_ASSET_DIR", "~/.maniskill"))
    known = {
        "embedded": (EMBEDDED, RESTORE),
        "official": (official, f"run: {DOWNLOAD}"),
    }
    other = (
        f'give the folder that holds data/tasks and data/robots, use assets="embedded", or run: {DOWNLOAD}'
    )
    directory, remedy = known.get(str(assets), (Path(assets), other))
    directory = directory.expanduser()
    missing = missing_files(directory)
    if missing:
        lacking = listed([str(path) for path in missing], 1)
        raise KitError(f"asset directory {directory} lacks {lacking}", remedy)
    return directory.resolve()


def missing_files(directory: Path) -> list[Path]:
    """Files of `REQUIRED` that `directory` does not have."""
    return [path for path in REQUIRED if not (directory / path).is_file()]
