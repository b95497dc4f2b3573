"""Where the simulator's meshes and pictures come from: the pack that the kit ships, ManiSkill's downloads, or
a directory.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from refinevla_kit.errors import KitError, listed

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
EMBEDDED = Path(__file__).resolve().parents[2] / "data" / "assets"  # scripts/embedded_assets makes it
DOWNLOAD = (
    f"{sys.executable} -m mani_skill.utils.download_asset bridge_v2_real2sim, then the same with widowx250s"
)


def resolve_assets(assets: str | Path) -> Path:
    """The directory that holds `data/tasks/...` and `data/robots/...`.

    Args:
        assets: "embedded", the pack that the kit ships; "official", ManiSkill's downloads; or a directory.

    Raises:
        KitError: a file ManiSkill needs is missing, with the way to get it.
    """
    if str(assets) == "embedded":
        directory, remedy = EMBEDDED, "bring data/assets of the checkout back: git checkout data/assets"
    elif str(assets) == "official":
        directory, remedy = (
            Path(os.environ.get("MS_ASSET_DIR", "~/.maniskill")).expanduser(),
            f"run: {DOWNLOAD}",
        )
    else:
        directory = Path(assets).expanduser()
        remedy = (
            'give the folder that holds data/tasks and data/robots, use assets="embedded", or run: '
            f"{DOWNLOAD}"
        )
    missing = missing_files(directory)
    if missing:
        raise KitError(
            f"asset directory {directory} lacks {listed([str(path) for path in missing], 1)}", remedy
        )
    return directory.resolve()


def missing_files(directory: Path) -> list[Path]:
    """Files of `REQUIRED` that `directory` does not have."""
    return [path for path in REQUIRED if not (directory / path).is_file()]
