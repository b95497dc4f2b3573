"""What to say of a file that cannot be read: what it is, where that shows, and what mends it."""

from __future__ import annotations

import re
from pathlib import Path

from refinevla_kit.errors import KitError

AGAIN = "the dataset is cut off or damaged: copy or download it again"
LINK = re.compile(rb"(\.\./)+blobs/[0-9a-f]{40,64}")
POINTER = b"version https://git-lfs"


def behind(file: Path) -> Path:
    """The file, or the blob of a Hub cache that it names: where a copy keeps no links, their targets are left
    as text.

    Nothing but a blob is followed, so a stranger's file cannot lead elsewhere.
    """
    try:
        if file.stat().st_size < 200 and LINK.fullmatch(text := file.read_bytes().strip()):
            return file.parent / text.decode()
    except (OSError, ValueError):
        pass
    return file


def unreadable(file: Path, why: object, remedy: str = AGAIN) -> KitError:
    """The error to raise; a pointer of Git LFS, which stands where a clone left the file out, is called
    that.
    """
    return pointer_of(file) or KitError(f"{file} cannot be read ({why})", remedy)


def pointer_of(file: Path) -> KitError | None:
    """The error to raise where a pointer of Git LFS stands for the file; None elsewhere."""
    try:
        with file.open("rb") as stream:
            if stream.read(len(POINTER)) != POINTER:
                return None
    except (OSError, ValueError):
        return None
    what = f"{file} is a pointer of Git LFS, not the file itself"
    return KitError(what, f"fetch the files: run `git lfs pull` in {file.parent}")


def exists(file: Path) -> bool:
    """Whether there is such a file; False too for a name that no file system takes."""
    try:
        return file.is_file()
    except (OSError, ValueError):
        return False
