"""Vision-language-action models behind one contract (`contract.VLA`), told apart by their folder's
config.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refinevla_kit.errors import KitError, as_kit_error

if TYPE_CHECKING:
    import torch

    from refinevla_kit.vlas.contract import VLA

__all__ = ["load_vla"]


def load_vla(
    path: str | Path,
    dtype: torch.dtype | None = None,
    device_map: Any = None,
    dataset: str | None = None,
    camera: str | None = None,
) -> VLA:
    """Read a checkpoint: a folder, or a model of the Hugging Face hub by its name.

    Args:
        path: of the folder, or "organisation/model".
        dtype: of the weights in memory; None is float32.
        device_map: see transformers' `from_pretrained`; for SpatialVLA and OpenVLA.
        dataset: whose statistics un-normalise the actions, for SpatialVLA and OpenVLA; None is the first one.
        camera: whose matrix SpatialVLA uses; None is the dataset's, else "default".

    Raises:
        KitError: no checkpoint of a VLA that the kit knows, a damaged one, too little memory, or weights that
            are not exactly the model's.
    """
    import torch

    from refinevla_kit.vlas import checkpoint, compact, openvla, spatialvla

    folder = checkpoint.open_folder(path)
    config = folder.json(checkpoint.CONFIG)
    kind, dtype = config.get("model_type"), dtype or torch.float32
    if kind not in ("spatialvla", "openvla", "paligemma"):
        what = f"{path} holds a {kind!r}, which the kit does not know"
        raise KitError(what, "give a compact VLA, a SpatialVLA or an OpenVLA")
    with as_kit_error(f"the checkpoint {path} is damaged", checkpoint.COPY):  # whatever odd settings lead to
        vla: VLA
        if not isinstance(config["text_config"], dict):
            raise TypeError("text_config is no object")
        if kind == "spatialvla":
            vla = spatialvla.load(folder, dtype, device_map, dataset, camera)
        elif kind == "openvla":
            vla = openvla.load(folder, dtype, device_map, dataset)
        else:
            vla = compact.load(folder)
        vla.pixel_values([np.zeros((8, 8, 3), np.uint8)])  # as the folder says
    return vla
