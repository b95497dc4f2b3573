"""Saving a picture together with what made it, so that no figure is ever an orphan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from refinevla_kit import __version__
from refinevla_kit.files import replacing, sha256, write_json
from refinevla_kit.settings import REPOSITORY

DPI = 160


def save_figure(figure: Figure, path: str | Path, made_from: dict[str, Any]) -> Path:
    """Write `figure` as PNG and, beside it, a JSON of the same name with what made it. Returns the PNG's path.

    Args:
        path: ends in .png (added when missing).
        made_from: JSON values that let someone make the picture again: the function, its inputs' paths and settings, the numbers it shows.
            Paths to existing files get their SHA-256 beside them.
    """
    path = Path(path).with_suffix(".png")
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=DPI, metadata={"Software": None})
    files = {name: sha256(value)[:16] for name, value in made_from.items() if isinstance(value, Path) and value.is_file()}
    values = {name: _inside(str(value)) if isinstance(value, Path | str) else value for name, value in made_from.items()}
    write_json(path.with_suffix(".json"), {"picture": path.name, "made_from": values, "sha256": files, "refinevla_kit": __version__})
    return path


def _inside(text: str) -> str:
    """A path in this checkout, relative to it: what made a picture should not say whose machine it was."""
    return text.removeprefix(f"{REPOSITORY.as_posix()}/")
