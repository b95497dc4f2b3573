"""Writing files so that a reader never sees half of one: write under a temporary name, then rename."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from refinevla_kit.errors import KitError, listed
from refinevla_kit.journal import whole_lines

HOST = f"{zlib.crc32(platform.node().encode()):08x}."
"""Of this machine: on a shared disk another's processes have the same numbers."""
DATASET = ("data", "meta", "videos", "images")  # folders of a LeRobot dataset, in which nothing else lies


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success it replaces `path`, on any error it is removed.

    Works for a file and for a directory (the block decides which it makes). What processes that were killed
    left next to `path` is removed.

    Raises:
        KitError: the folder cannot be made or written; the disk is full; the directory at `path` holds what
            was paid for (see `paid_files`).
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.part-{HOST}{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(target.parent, os.W_OK):
            raise PermissionError(errno.EACCES, "no permission", str(target.parent))
        clear(target)
        _keep_paid(target)
        yield temporary
        if target.is_dir() and temporary.is_dir():
            _keep_paid(target)  # what came meanwhile
            old = target.with_name(f".{target.name}.old-{HOST}{os.getpid()}")
            target.rename(old)
            temporary.rename(target)
            _remove(old)
        else:
            temporary.replace(target)
    except BaseException as error:
        _remove(temporary)
        if getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error):  # safetensors' words
            what = f"no space left on the disk while writing {target}"
            raise KitError(what, "free space or choose another output folder") from error
        if isinstance(error, OSError) and str(temporary).startswith(str(error.filename)):
            what = f"{target.parent} cannot be made or written ({error.strerror})"
            raise KitError(what, "choose another output folder") from error
        raise


def paid_files(folder: str | Path) -> list[Path]:
    """What in a folder cost money or a person's time: tables of paid rationales, their journals, people's
    reviews.

    Tables of a teacher that takes no tokens (the oracle) are none: the same command writes them again.
    """
    root = Path(folder)
    skipped = DATASET if (root / "meta/info.json").exists() else ()
    inside = [child for child in root.iterdir() if child.name not in skipped]
    files = {file for child in inside for file in (child, *child.rglob("*")) if file.is_file()}
    return sorted(file for file in files if file.name.endswith(".reviews.jsonl") or _paid(file))


def _paid(file: Path) -> bool:
    """Whether tokens were paid for what `teacher.store` wrote into this file; True where that cannot be
    told.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with file.open("rb") as opened:
            begins = opened.read(11)  # tells a journal and a table whatever they are called
        if file.name.endswith(".parquet.part") or begins == b'{"identity"':
            return any(any(line["spent"][1:3]) for _, line in whole_lines(file))
        if file.suffix != ".parquet" and begins[:4] != b"PAR1":
            return False
        schema = pq.read_schema(file)
        about = json.loads((schema.metadata or {}).get(b"refinevla", b"{}"))
        if "spent" in about:
            return any(about["spent"][1:3])
        return "refusal_kind" in schema.names  # of an older version, or no table of ours
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, KitError):
        return True


def _keep_paid(target: Path) -> None:
    if target.is_dir() and not target.is_symlink() and (paid := paid_files(target)):
        what = f"{target} would be replaced and holds what was paid for or reviewed by a person"
        files = listed([str(file) for file in paid], 1)
        raise KitError(f"{what}: {files}", "give another output, or move these files out of it")


def clear(target: Path) -> None:
    """Remove what dead processes, and an earlier try of this one, left of replacing `target`."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.*-*"):
        kind, _, whose = left.name[len(target.name) + 2 :].partition("-")
        if kind not in ("part", "old") or not (abandoned(left) or whose == f"{HOST}{os.getpid()}"):
            continue
        if kind == "old" and not target.exists():
            left.rename(target)  # killed between the two renames: what was there before comes back
        _remove(left)


def abandoned(part: Path) -> bool:
    """Whether the process whose number a part's name ends in is gone; another machine's are taken to live."""
    number = part.name.rpartition("-")[2].removeprefix(HOST)
    return number.isdecimal() and not _alive(int(number))


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return True


def _remove(path: Path) -> None:
    with suppress(OSError):  # another user's
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def read_json(path: str | Path) -> Any:
    """What a UTF-8 JSON file holds."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def plain_number(value: Any) -> Any:
    """A number of NumPy or torch as Python has it; for `json.dumps`."""
    if not hasattr(value, "item"):
        raise TypeError(f"JSON has no {type(value).__name__}")
    return value.item()


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented JSON, atomically. Returns the path."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=plain_number)
    with replacing(path) as part:
        part.write_text(text + "\n", encoding="utf-8")
    return Path(path)


def file_name(text: str) -> str:
    """`text` as a file's name without suffix: letters, digits, - and _. Names that had to be changed differ
    by a checksum.
    """
    plain = re.sub(r"[^0-9A-Za-z_-]+", "_", text)[:120]
    if plain and plain == text:
        return plain
    return f"{plain}-{zlib.crc32(text.encode(errors='surrogatepass')):08x}"


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, or of a directory's files in name order (names included), as hex digits."""
    root = Path(path)
    digest = hashlib.sha256()
    if not root.is_dir():
        with root.open("rb") as content:
            while part := content.read(2**24):  # weights are too large to be read at once
                digest.update(part)
        return digest.hexdigest()
    for file in sorted(root.rglob("*")):
        if file.is_file():
            digest.update(file.relative_to(root).as_posix().encode() + b"\0")
            digest.update(file.read_bytes())
    return digest.hexdigest()
