"""What the simulator knew about each frame, beside the dataset: `simulator/episode_000000.npz`, one an
episode, and `simulator/simulator.json`.

An npz holds `state.<field>` (T, ...) for each field of `SceneState`, `mask_labels` uint8 (T, H, W), 0 for
nothing and i for the i-th of `mask_names`. Other LeRobot readers do not look here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from refinevla_kit.episodes.damage import unreadable
from refinevla_kit.errors import KitError
from refinevla_kit.files import write_json
from refinevla_kit.simulator.contract import PHASES, Array, SceneState

FOLDER = "simulator"


def write_description(root: Path) -> None:
    """Write simulator.json: what the arrays mean, for a reader without the kit."""
    about = {
        "format": 1,
        "files": "episode_{episode_index:06d}.npz",
        "frame": "world, metres, quaternions (w, x, y, z), z up",
        "state": [field.name for field in fields(SceneState)],
        "phases": list(PHASES),
        "masks": "mask_labels (T, H, W): 0 nothing, i the i-th of mask_names; visible pixels",
    }
    write_json(root / FOLDER / "simulator.json", about)


def write_sidecar(
    root: Path, episode: int, states: Sequence[SceneState] | None, masks: dict[str, Array] | None
) -> None:
    """Write one episode's npz; writes nothing when there is neither state nor masks. The same arrays give the
    same bytes.
    """
    arrays: dict[str, Array] = {}
    if states is not None:
        rows = [state.to_arrays() for state in states]
        arrays |= {f"state.{name}": np.stack([row[name] for row in rows]) for name in rows[0]}
    if masks:
        stack = np.stack([np.asarray(mask, bool) for mask in masks.values()])  # (M, T, H, W)
        if len(stack) > 255 or stack.sum(0, dtype=np.uint16).max() > 1:
            raise ValueError(
                "masks overlap (or are more than 255): a pixel can only be labelled with one name"
            )
        arrays["mask_names"] = np.array(list(masks))
        arrays["mask_labels"] = np.tensordot(
            np.arange(1, len(stack) + 1, dtype=np.uint8), stack.astype(np.uint8), 1
        )
    if arrays:
        path = sidecar_path(root, episode)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # NumPy's stub reads the arrays as flags


def sidecar_path(root: Path, episode: int) -> Path:
    return root / FOLDER / f"episode_{episode:06d}.npz"


def read_states(root: Path, episode: int) -> list[SceneState] | None:
    """The states of an episode's frames, None when none were kept; raises `KitError` for a damaged file."""
    arrays = _load(sidecar_path(root, episode), "state.")
    if not arrays:
        return None
    names = [field.name for field in fields(SceneState)]
    if missing := [name for name in names if f"state.{name}" not in arrays]:
        raise KitError(
            f"{sidecar_path(root, episode)} lacks {', '.join(missing)}",
            "record the dataset again with this version of the kit",
        )
    return [
        SceneState(**{name: np.asarray(arrays[f"state.{name}"][t]) for name in names})
        for t in range(len(arrays["state.phase"]))
    ]


def read_masks(root: Path, episode: int) -> dict[str, Array] | None:
    """name -> bool (T, H, W), None when none were kept; raises `KitError` for a damaged file."""
    arrays = _load(sidecar_path(root, episode), "mask_")
    if not arrays:
        return None
    return {
        str(name): arrays["mask_labels"] == label for label, name in enumerate(arrays["mask_names"], start=1)
    }


def _load(path: Path, prefix: str) -> dict[str, Array]:
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files if name.startswith(prefix)}
        if len({len(array) for name, array in arrays.items() if name != "mask_names"}) > 1 or (
            "mask_names" in arrays
        ) != ("mask_labels" in arrays):
            raise ValueError("arrays are missing, or of different lengths")
        return arrays
    except Exception as error:  # NumPy and zipfile raise anything of damaged files
        raise unreadable(
            path, error, "the file is cut off or damaged: copy or record the dataset again"
        ) from error
