"""Models and datasets of the Hugging Face hub by their names: downloaded once, only what is wanted of them,
and gone on with after an interruption.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refinevla_kit.errors import KitError

FILES = {"model": ("*.json", "*.safetensors", "*.model", "*.txt"), "dataset": ("meta/**",)}
"""What is always wanted; never code."""
ONE_BY_ONE = 1000  # files; of more, whole folders are taken


def is_name(source: str | Path) -> bool:
    """Whether this is how the hub names something: owner/name, and no folder here."""
    text = str(source)
    return text.count("/") == 1 and not text.startswith((".", "/")) and not Path(source).exists()


def name_in_cache(path: str | Path) -> str:
    """Which dataset a folder of the hub's cache is a snapshot of, as owner/name; "" for another folder."""
    cached, _, _ = str(Path(path)).partition("/snapshots/")
    kind, _, name = Path(cached).name.partition("--")
    return name.replace("--", "/", 1) if kind == "datasets" and "/snapshots/" in str(path) else ""


def download(name: str, files: Sequence[str], kind: str = "model", revision: str | None = None) -> Path:
    """The folder of a model or dataset in the hub's cache.

    Args:
        name: owner/name.
        files: those wanted, as patterns of their paths in it.
        kind: "model" or "dataset".
        revision: a branch, tag or commit; None: the newest.

    Raises:
        KitError: it is not there, the hub cannot be reached, the download was interrupted, or what is still
            to come does not fit the disk, which is said before it begins.
    """
    # seconds to import, and not needed for what lies here
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted: dict[str, Any] = {"repo_type": kind, "revision": revision, "allow_patterns": list(files)}
    try:
        if not HF_HUB_OFFLINE:
            planned = snapshot_download(name, dry_run=True, **wanted)
            _check_room(
                name, sum(file.file_size or 0 for file in planned if file.will_download), HF_HUB_CACHE
            )
        return Path(snapshot_download(name, **wanted))
    except LocalEntryNotFoundError as error:
        what = f"{name} is no folder here, not in the hub's cache, and the hub cannot be reached"
        remedy = f"connect, or download the {kind} on another machine and give its folder"
        raise KitError(what, remedy) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        what = f"{name} could not be downloaded ({type(error).__name__}: {str(error).splitlines()[0]})"
        remedy = "check the name, the revision and your access; what was downloaded is kept and continued"
        raise KitError(what, remedy) from error


def _check_room(name: str, size: int, cache: str) -> None:
    """Raises `KitError` where `size` bytes do not fit the disk of the cache."""
    there = next(folder for folder in (Path(cache), *Path(cache).parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if size > free:
        what = f"{name} takes {size / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free in {there}"
        raise KitError(what, "choose fewer episodes, free space, or set HF_HOME to a larger disk")


def patterns_of(files: Sequence[str]) -> list[str]:
    """What to ask for to get these files; of very many, the folders that they lie in."""
    if len(files) <= ONE_BY_ONE:
        return list(files)
    return sorted({f"{file.rpartition('/')[0]}/*" for file in files})
