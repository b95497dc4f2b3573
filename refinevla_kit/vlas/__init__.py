"""Vision-language-action models behind one contract (`contract.VLA`), told apart by their folder's
config.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from refinevla_kit.errors import KitError

if TYPE_CHECKING:
    from refinevla_kit.vlas.contract import VLA

__all__ = ["load_vla"]


def load_vla(path: str | Path) -> VLA:
    """Read the checkpoint folder `path`, in float32.

    Raises:
        KitError: no checkpoint of a VLA that the kit knows, a damaged one, or weights that are not exactly
            the model's.
    """
    config = Path(path) / "config.json"
    try:
        kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        what = f"{path} is no checkpoint of a VLA: {config} cannot be read ({error})"
        raise KitError(what, "give a folder with config.json") from error
    if kind != "paligemma":
        raise KitError(
            f"{path} holds a {kind!r}, which the kit does not know", "give a checkpoint of the compact VLA"
        )
    from refinevla_kit.vlas import compact

    return compact.load(path)
