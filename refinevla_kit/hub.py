"""Models and datasets of the Hugging Face hub by their names: downloaded once, only what is wanted of them,
and gone on with after an interruption.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from refinevla_kit.errors import KitError

ONE_BY_ONE = 1000  # files; of more, whole folders are taken


def is_name(source: str | Path) -> bool:
    """Whether this is how the hub names something: owner/name, and no folder here."""
    text = str(source)
    return text.count("/") == 1 and not text.startswith((".", "/")) and not Path(source).exists()


def download(name: str, files: Sequence[str], kind: str = "model", revision: str | None = None) -> Path:
    """The folder of a model or dataset in the hub's cache.

    Args:
        name: owner/name.
        files: those wanted, as patterns of their paths in it.
        kind: "model" or "dataset".
        revision: a branch, tag or commit; None: the newest.

    Raises:
        KitError: it is not there, the hub cannot be reached, or the download was interrupted.
    """
    # seconds to import, and not needed for what lies here
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=list(files)))
    except LocalEntryNotFoundError as error:
        what = f"{name} is neither in the hub's cache nor can the hub be reached"
        remedy = f"connect, or download the {kind} on another machine and give its folder"
        raise KitError(what, remedy) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        what = f"{name} could not be downloaded ({type(error).__name__}: {str(error).splitlines()[0]})"
        remedy = "check the name, the revision and your access; what was downloaded is kept and continued"
        raise KitError(what, remedy) from error


def patterns_of(files: Sequence[str]) -> list[str]:
    """What to ask for to get these files; of very many, the folders that they lie in."""
    if len(files) <= ONE_BY_ONE:
        return list(files)
    return sorted({f"{file.rpartition('/')[0]}/*" for file in files})
