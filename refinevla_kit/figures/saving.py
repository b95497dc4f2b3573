"""Saving a picture together with what made it, so that no figure is ever an orphan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from refinevla_kit import __version__
from refinevla_kit.errors import KitError
from refinevla_kit.files import replacing, sha256, write_json
from refinevla_kit.settings import REPOSITORY

DPI = 160
FORMATS = ("png", "svg", "pdf")
NO_DATE: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}  # same figure, same bytes
AS_TEXT: dict[Any, Any] = {"svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "refinevla"}


def save_figure(
    figure: Figure, path: str | Path, made_from: dict[str, Any], formats: Sequence[str] = FORMATS[:1]
) -> Path:
    """Write `figure` and, beside it, a JSON of the same name with what made it. Returns the (first) picture's
    path.

    Args:
        path: any suffix is replaced by that of the format.
        formats: of `FORMATS`; "svg" and "pdf" are vectors, with text as text.
        made_from: JSON values that let someone make the picture again: the function, its inputs' paths and
            settings, the numbers it shows. Paths to existing files get their SHA-256 beside them.
    """
    if not formats or any(one not in FORMATS for one in formats):
        raise KitError(
            f"pictures are not saved as {', '.join(formats) or 'nothing'}",
            f"choose from {', '.join(FORMATS)}",
        )
    for one in formats:
        with replacing(Path(path).with_suffix(f".{one}")) as part, rc_context(AS_TEXT):
            figure.savefig(part, format=one, dpi=DPI, metadata=NO_DATE[one])
    path = Path(path).with_suffix(f".{formats[0]}")
    files = {
        name: sha256(value)[:16]
        for name, value in made_from.items()
        if isinstance(value, Path) and value.is_file()
    }
    values = {
        name: _inside(str(value)) if isinstance(value, Path | str) else value
        for name, value in made_from.items()
    }
    write_json(
        path.with_suffix(".json"),
        {"picture": path.name, "made_from": values, "sha256": files, "refinevla_kit": __version__},
    )
    return path


def show_figure(figure: Figure, path: str | Path, made_from: dict[str, Any], width: int = 900) -> None:
    """Save `figure` as `save_figure` does and show it in the notebook, `width` pixels wide."""
    from IPython.display import Image, display

    display(Image(filename=save_figure(figure, path, made_from), width=width))


def _inside(text: str) -> str:
    """A path in this checkout, relative to it: what made a picture should not say whose machine it was."""
    return text.removeprefix(f"{REPOSITORY.as_posix()}/")
