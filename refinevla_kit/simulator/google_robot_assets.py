"""Files of the Google Robot's tasks: where they lie, in ManiSkill's layout or the original's."""

from __future__ import annotations

import os
from pathlib import Path

from refinevla_kit.errors import KitError
from refinevla_kit.simulator.maniskill import EMBEDDED, RESTORE
from refinevla_kit.simulator.variants import visual_file

URDF = "google_robot_meta_sim_fix_wheel_fix_fingertip"
CLONE = "clone github.com/simpler-env/ManiSkill2_real2sim and set REFINEVLA_OFFICIAL_ASSETS to its folder"
TASKS, ROBOTS = Path("data/tasks/google_robot_real2sim"), Path("data/robots/googlerobot")
ORIGINAL_ROBOTS = Path("mani_skill2_real2sim/assets/descriptions/googlerobot_description")


class GoogleRobotAssets:
    """Folders of one asset pack. Each method names a file and raises `KitError` where it is missing.

    Args:
        assets: "embedded"; "official", the folder that REFINEVLA_OFFICIAL_ASSETS names, else ManiSkill's own
            (MS_ASSET_DIR); or a folder: in ManiSkill's layout (it holds data/tasks/google_robot_real2sim and
            data/robots/googlerobot), a checkout of ManiSkill2_real2sim, or the data folder of one.

    Raises:
        KitError: a folder in none of these layouts.

    Attributes:
        robots: the robot's URDFs and meshes.
        custom: cabinets (`mk_station*.urdf`) and `models/NAME/` of each object.
        stages: tables and rooms, `NAME.glb`.
        photographs: backgrounds of visual matching.
        remedy: how to get what is missing.
    """

    def __init__(self, assets: str | Path) -> None:
        embedded = str(assets) == "embedded"
        self.remedy = RESTORE if embedded else CLONE
        names = ("REFINEVLA_OFFICIAL_ASSETS", "MS_ASSET_DIR")
        official = next(filter(None, map(os.environ.get, names)), "~/.maniskill")
        known = {"embedded": EMBEDDED, "official": Path(official)}
        root = known.get(str(assets), Path(assets)).expanduser().resolve()
        tasks = root / TASKS
        checkout = root if (root / "data/custom").is_dir() else root.parent
        data = checkout / "data"
        if tasks.is_dir():
            self.robots, self.stages = root / ROBOTS, tasks / "stages"
        elif not (data / "custom").is_dir() or root not in (checkout, data):
            layouts = f"{TASKS}, or ManiSkill2_real2sim's data"
            raise KitError(
                f"asset directory {root} lacks the Google Robot's tasks ({layouts})",
                self.remedy if embedded else f'use assets="embedded", or {CLONE}',
            )
        else:
            tasks = data
            self.robots, self.stages = checkout / ORIGINAL_ROBOTS, data / "hab2_bench_assets/stages"
        self.custom, self.photographs = tasks / "custom", tasks / "real_inpainting"

    def robot(self, colours: str) -> Path:
        """The robot's URDF; `colours`: SIMPLER's `urdf_version`, "" for the base's."""
        return self._existing(self.robots / f"{URDF}{colours and '_'}{colours}.urdf")

    def station(self, name: str) -> Path:
        """A cabinet's URDF."""
        return self._existing(self.custom / f"{name}.urdf")

    def stage(self, name: str) -> Path:
        """The room or table of a scene."""
        return self._existing(self.stages / f"{name}.glb")

    def photograph(self, name: str) -> Path:
        """A background of visual matching."""
        return self._existing(self.photographs / name)

    def collision(self, model: str) -> Path:
        """Shape of an object, convex pieces."""
        return self._existing(self._folder(model) / "collision.obj")

    def visual(self, model: str) -> Path | None:
        """What an object looks like, the first that is there; None: as its collision shape does."""
        return visual_file(self._folder(model))

    def _folder(self, model: str) -> Path:
        """Folder of an object. Objects have several: plain, with light baked into the texture, and anew."""
        plain = model.removeprefix("baked_").removesuffix("_v2")
        names = (model, f"{model}_v2", plain, f"baked_{plain}_v2", f"baked_{plain}")
        folders = [self.custom / "models" / name for name in names]
        return next((folder for folder in folders if folder.is_dir()), folders[0])

    def _existing(self, path: Path) -> Path:
        if path.is_file():
            return path
        raise KitError(f"{path} of the Google Robot's assets is missing", self.remedy)
