"""Writing files so that a reader never sees half of one: write under a temporary name, then rename."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refinevla_kit.errors import KitError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success it replaces `path`, on any error it is removed.

    Works for a file and for a directory (the block decides which it makes). A full disk becomes a `KitError`.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.part-{os.getpid()}")
    _remove(temporary)
    try:
        yield temporary
        if target.is_dir() and temporary.is_dir():
            old = target.with_name(f".{target.name}.old-{os.getpid()}")
            target.rename(old)
            temporary.rename(target)
            _remove(old)
        else:
            temporary.replace(target)
    except BaseException as error:
        _remove(temporary)
        if getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error):  # the latter is how safetensors says it
            raise KitError(f"no space left on the disk while writing {target}", "free space or choose another output folder") from error
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented JSON, atomically. Returns the path."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    return Path(path)


def file_name(text: str) -> str:
    """`text` as a file's name without suffix: letters, digits, - and _. Names that had to be changed differ by a checksum."""
    plain = re.sub(r"[^0-9A-Za-z_-]+", "_", text)[:120]
    return plain if plain == text != "" else f"{plain}-{zlib.crc32(text.encode(errors='surrogatepass')):08x}"


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, or of a directory's files in name order (names included), as hex digits."""
    root = Path(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]:
        if root.is_dir():
            digest.update(file.relative_to(root).as_posix().encode() + b"\0")
        digest.update(file.read_bytes())
    return digest.hexdigest()
