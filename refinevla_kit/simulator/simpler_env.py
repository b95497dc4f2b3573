"""The second backend: the original SimplerEnv (ManiSkill2_real2sim on SAPIEN 2), both robots, both settings,
on a CPU or a GPU.

The environments stay as they are; they are made once from the protocol's data and reset between episodes,
where SIMPLER's own evaluator makes a new one for each. What an episode starts from (robot, objects,
photograph) goes in by `reset`. Needs an environment of its own: sapien 2.2.2, numpy < 2, gymnasium < 1,
Python 3.10 or 3.11 (environment.yml). Nothing of it is imported before the first `make`.

SAPIEN 2.2.2 renders with a GPU's driver or Mesa 26.2 and newer; with no Vulkan driver at all it crashes the
process. Ray tracing (drawers, apple) is part of SIMPLER's protocol and is kept: it wants an NVIDIA RTX GPU.
Without the GPU's denoiser SAPIEN says so on stderr and the pictures are grainy; on a CPU one of 640 x 512
takes a minute. To look at such a task without it (never for numbers): `make(replace(task,
original_build=(*task.original_build, ("shader_dir", "ibl"))))`.
"""

from __future__ import annotations

import os
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from refinevla_kit.errors import KitError, as_kit_error
from refinevla_kit.simulator.contract import (
    AnyStart,
    Arrangement,
    Array,
    Observation,
    Pose,
    StepResult,
    checked_action,
    vector,
)
from refinevla_kit.simulator.demonstrator import observed
from refinevla_kit.simulator.geometry import CAMERAS, intrinsic
from refinevla_kit.simulator.variants import basket_outline
from refinevla_kit.tasks import SIMPLER_SEED, Protocol, Start, Task, Variant

SCENERY = (
    "",
    "arena",
    "ground",
    "goal_site",
)  # actors that are no things of the scene, as the environments themselves have it
WHOLE = "complete the asset folder: a whole copy of data/ of github.com/simpler-env/ManiSkill2_real2sim"
FARTHEST = 2.0  # m from the origin, in the plane: an object beyond it was thrown there by broken physics

_assets_in_use: str | None = None  # ManiSkill2_real2sim reads its asset directory once, when it is imported


class SimplerEnvSimulator:
    """`Simulator` over one ManiSkill2_real2sim environment.

    What is particular to the Google Robot: translation and rotation are added to the *measured* tool pose,
    not to the controller's last target, and action [6] is relative: +1 closes and -1 opens the fingers by
    their whole range (1.31 rad, at 1 rad/s at most), 0 goes on to where they were sent.
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
    ) -> None:
        if privileged and task.robot != "widowx":
            raise KitError(
                f"{task.name} has no privileged state: it is that of the WidowX's pick-and-place",
                "make it with privileged=False",
            )
        self.task, self.privileged, self.protocol = task, privileged, protocol
        self.instruction = task.instruction
        root = _import_original(assets)
        self._photographs = root / "real_inpainting"
        name, arguments = build_arguments(task, variant, width, height, self._photographs)
        stage = root / "hab2_bench_assets/stages" / f"{arguments['scene_name']}.glb"
        if "dummy" not in stage.name and not stage.exists():  # SAPIEN would go on without a table
            raise KitError(f"the scene {stage} is missing", WHOLE)
        self._env, self._shader = _make_environment(name, arguments), arguments.get("shader_dir", "ibl")
        self._camera = CAMERAS[task.robot]
        self._basket = basket_outline(task, width, height)  # where the photograph shows it
        self._steps = 0
        self._things: dict[int, str] = {}  # segmentation id -> name
        self._segmentation: Array = np.zeros((height, width), np.uint32)

    def reset(self, episode: AnyStart, seed: int = 0) -> Observation:
        """See `Simulator.reset`. Objects fall onto the table from above, so the height in a `Pose` is not
        used. Seed 0 is SIMPLER's own.

        Raises:
            KitError: an episode outside the grid; a `Pose` for a task other than the WidowX's, the can's and
                the apple's.
        """
        starts = self.protocol.starts
        grid = (self._env._xy_configs, self._env._quat_configs) if self.task.robot == "widowx" else None
        # The eggplant has 24 places here, 64 in ManiSkill 3.
        count = len(grid[0]) * len(grid[1]) if grid else len(starts)
        moved = isinstance(episode, Start) and episode.object_episode is not None
        if moved or isinstance(episode, Arrangement):
            raise KitError(
                f"{self.task.name} starts from its grid only in the original SimplerEnv",
                "give the number of an episode, or backend='maniskill'",
            )
        if not isinstance(episode, Pose | Start) and not 0 <= episode < count:
            raise KitError(
                f"episode {episode} is outside the grid of {self.task.name} in the original SimplerEnv",
                f"choose 0 to {count - 1}",
            )
        start = starts[0] if isinstance(episode, Pose) else episode
        start = start if isinstance(start, Start) else starts[start]
        # The scene is built anew (0.5 s): how the last episode left arm and solver would show in where
        # objects come to rest, by up to 4 mm.
        options = {**reset_options(start), "reconfigure": True}
        if isinstance(episode, Pose):
            if not grid and not start.object_xy:
                raise KitError(
                    f"{self.task.name} starts from its grid only",
                    "give the number of an episode instead of a Pose",
                )
            both = np.stack([episode.source, episode.target])
            self._env._xy_configs, self._env._quat_configs = [both[:, :2]], [both[:, 3:]]
            options["obj_init_options"] = (
                {"episode_id": 0}
                if grid
                else {"init_xy": episode.source[:2], "init_rot_quat": episode.source[3:]}
            )
        if start.overlay:
            self._env.rgb_overlay_img = _photograph(self._photographs / start.overlay)
        _use_shader(self._shader)
        try:
            raw, _ = self._env.reset(seed=(SIMPLER_SEED + seed) % 2**32, options=options)
        finally:
            if grid:
                self._env._xy_configs, self._env._quat_configs = grid
        self._steps = 0
        # An environment that loads other objects numbers everything anew.
        self._things = self._segmentation_names()
        return self._observe(raw, placed=False, grasped=False)

    def step(self, action: Array) -> StepResult:
        """See `Simulator.step`."""
        action = checked_action(action)
        raw, _, _, _, info = self._env.step(to_axis_angle(action))
        self._steps += 1
        source = self._source
        grasped = source is not None and bool(self._env.agent.check_grasp(source))
        moved = source.pose.p if source is not None else self._env.art_obj.get_qpos()
        state = np.concatenate([self._env.agent.robot.get_qpos(), moved])
        thrown = source is not None and float(np.abs(moved[:2]).max()) > FARTHEST
        broken = thrown or not np.isfinite(state).all()
        success = bool(info["success"]) and not broken
        reason = "physics" if broken else "budget" if self._steps >= self.task.max_steps else ""
        return StepResult(self._observe(raw, success, grasped), success, grasped, bool(reason), reason)

    def advance(self) -> bool:
        """See `Simulator.advance`. The environment goes on by itself after 100 steps."""
        if self._env.is_final_subtask():
            return False
        self._env.advance_to_next_subtask()
        self.instruction = self._env.get_language_instruction()
        return True

    def masks(self) -> dict[str, Array]:
        """See `Simulator.masks`. A cabinet's parts are "top drawer", "middle drawer", "bottom drawer" and
        "cabinet". A photograph is background, but for the yellow basket: that is where the box around it lies
        in the picture, less what is seen before it.
        """
        ids: dict[str, list[int]] = {name: [] for name in (self.task.source, self.task.target) if name}
        for number, name in self._things.items():
            ids.setdefault(name, []).append(number)
        masks = {name: np.isin(self._segmentation, numbers) for name, numbers in ids.items()}
        if self._basket is not None:
            masks[self.task.target] = self._basket & ~np.isin(self._segmentation, list(self._things))
        return {**masks, "background": ~np.any(list(masks.values()), axis=0)}

    def close(self) -> None:
        self._env.close()

    @property
    def _source(self) -> Any:
        """The object to move; None where there is none (drawers)."""
        return getattr(self._env, "episode_source_obj", None) or getattr(self._env, "obj", None)

    def _observe(self, raw: dict[str, Any], placed: bool, grasped: bool) -> Observation:
        camera, robot, tool = raw["image"][self._camera], self._env.agent.robot, self._env.tcp.pose
        self._segmentation = camera["Segmentation"][..., 1]  # of actors and links; [..., 0] is of meshes
        image = np.ascontiguousarray((np.clip(camera["Color"][..., :3], 0, 1) * 255).astype(np.uint8))
        opening = np.clip(1 - self._env.agent.get_gripper_closedness(), 0.0, 1.0)
        commanded = self._env.agent.controller.controllers["arm"]._target_pose
        self.instruction = self._env.get_language_instruction()
        poses = vector(robot.pose.inv() * tool), opening, vector(commanded)
        if not self.privileged:
            return observed(self.task, image, self.instruction, *poses)
        return observed(
            self.task,
            image,
            self.instruction,
            *poses,
            source=vector(self._source.pose),
            target=vector(self._env.episode_target_obj.pose),
            tcp=vector(tool),
            tcp_target=vector(robot.pose * commanded),
            grasped=grasped,
            placed=placed,
        )

    def _segmentation_names(self) -> dict[int, str]:
        """Segmentation id -> name, of everything but the background and what the photograph is always shown
        for (the sink).
        """
        env = self._env
        hidden = (*SCENERY, *env.rgb_always_overlay_objects)
        names = {
            actor.id: env._get_instruction_obj_name(actor.name)
            for actor in env.get_actors()
            if actor.name not in hidden
        }
        for actor, name in (
            (self._source, self.task.source),
            (getattr(env, "episode_target_obj", None), self.task.target),
        ):
            if actor is not None and actor.id in names:
                names[actor.id] = name
        for link in env.art_obj.get_links() if hasattr(env, "art_obj") else ():
            names[link.id] = "cabinet" if link.name == "body" else link.name.replace("_", " ")
        for link in env.agent.robot.get_links():
            names[link.id] = "gripper" if "gripper" in link.name or "finger" in link.name else "arm"
        return names


def build_arguments(
    task: Task, variant: Variant, width: int, height: int, photographs: Path
) -> tuple[str, dict[str, Any]]:
    """What one variant of `task` is made from: gymnasium id and keyword arguments.

    Args:
        width, height: of the picture, pixels; the intrinsics, which the environment does not scale, are
            scaled with them.
        photographs: folder of the background photographs.
    """
    name, build = task.original(variant)
    overlay = build.pop("overlay", None)  # a start's own photograph comes with `reset`
    size = {"width": width, "height": height}
    camera = {
        **size,
        "intrinsic": intrinsic(task.robot, width, height),
        "texture_names": ("Color", "Segmentation"),
    }
    # A second camera that nobody looks at, and that would be rendered at every step.
    unseen: dict[str, Any] = {"width": 1, "height": 1, "texture_names": ()}
    return name, {
        **build,
        "obs_mode": "image",
        "camera_cfgs": {CAMERAS[task.robot]: camera, "base_camera": unseen},
        "rgb_overlay_path": str(photographs / overlay) if overlay else None,
        "renderer_kwargs": {"offscreen_only": True},
    }


def reset_options(start: Start) -> dict[str, Any]:
    """`options` of the environment's reset for one start of a grid."""
    robot: dict[str, Any] = {}
    if start.robot_xy:  # the turn comes on top of the base's quaternion (0, 0, 0, 1)
        robot = {
            "init_xy": np.array(start.robot_xy),
            "init_rot_quat": [-np.sin(start.robot_yaw / 2), 0.0, 0.0, np.cos(start.robot_yaw / 2)],
        }
    places = {"episode_id": start.object_episode, "init_xy": start.object_xy and np.array(start.object_xy)}
    return {
        "robot_init_options": robot,
        "obj_init_options": {key: value for key, value in places.items() if value is not None},
    }


def to_axis_angle(action: Array) -> Array:
    """The contract's action as SIMPLER's controllers take it: float32 (7,), [3:6] a rotation vector instead
    of extrinsic XYZ Euler angles.
    """
    from scipy.spatial.transform import Rotation

    return np.concatenate(
        [action[:3], Rotation.from_euler("xyz", action[3:6]).as_rotvec(), action[6:]]
    ).astype(np.float32)


def _photograph(path: Path) -> Array:
    """float64 (H, W, 3) RGB in [0, 1], as the environments hold it."""
    from PIL import Image

    if not path.exists():
        raise KitError(f"the background photograph {path} is missing", WHOLE)
    return np.asarray(Image.open(path).convert("RGB")) / 255


def _import_original(assets: str | Path) -> Path:
    """Import ManiSkill2_real2sim so that it reads `assets`; returns its asset directory."""
    global _assets_in_use
    assets = str(assets)
    if assets == "embedded":
        raise KitError(
            "the embedded assets are in ManiSkill 3's layout, not the original SimplerEnv's",
            "use 'official', or backend='maniskill'",
        )
    if find_spec("mani_skill2_real2sim") is None:
        raise KitError(
            "the original SimplerEnv is not installed",
            "make the environment of environment.yml, or use backend='maniskill' (WidowX)",
        )
    if int(np.__version__.split(".")[0]) > 1:
        raise KitError(
            f"SAPIEN 2.2.2 crashes with numpy {np.__version__}", "install 'numpy<2' (environment.yml)"
        )
    if _assets_in_use not in (None, assets):
        raise KitError(
            f"this process reads SimplerEnv's assets from {_assets_in_use!r} and cannot change to {assets!r}",
            "start a new process",
        )
    if assets != "official":
        for part in ("custom", "hab2_bench_assets/stages", "real_inpainting"):
            if not (Path(assets) / part).is_dir():
                raise KitError(
                    f"{assets} is no asset directory of ManiSkill2_real2sim: {part}/ is missing",
                    "give a copy of its data/ folder",
                )
        os.environ["MS2_REAL2SIM_ASSET_DIR"] = str(Path(assets).resolve())
    with as_kit_error(
        "the original SimplerEnv cannot be imported",
        "make the environment of environment.yml",
        (ImportError,),
    ):
        import mani_skill2_real2sim.envs
    _assets_in_use = assets
    return Path(mani_skill2_real2sim.ASSET_DIR)


def _use_shader(name: str) -> None:
    """SAPIEN makes a camera with the shader that the environment made last had asked for, in the whole
    process; each reset makes cameras.
    """
    from sapien.core import render_config

    render_config.camera_shader_dir = render_config.viewer_shader_dir = name


def _make_environment(name: str, arguments: dict[str, Any]) -> Any:
    import gymnasium

    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # that move near has a version 1: SIMPLER's scripts play version 0
            return gymnasium.make(name, **arguments).unwrapped
    except FileNotFoundError as error:
        raise KitError(str(error), WHOLE) from error
    except RuntimeError as error:
        traced = (
            " with ray tracing, which an NVIDIA RTX GPU has" if arguments.get("shader_dir") == "rt" else ""
        )
        raise KitError(
            f"no Vulkan device to render with{traced} ({error})",
            "use a GPU's driver, or Mesa 26.2 or newer (software)",
        ) from error
