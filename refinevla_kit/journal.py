"""Append-only JSON lines of one run, held by one process at a time: what is in them survives a kill at any
instant.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from refinevla_kit.errors import KitError, as_kit_error

J = TypeVar("J", bound="Journal")


class Journal:
    """Opens (or makes) `path`, locks it, and cuts a half-written last line off.

    One thread writes; another may call `sync` meanwhile.

    Raises:
        KitError: it cannot be made; another run holds it; from reading: a line in its middle is damaged; from
            writing: no disk space.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        remedy = "give an output, on a command line --output, in a folder of this machine that can be written"
        with as_kit_error(f"cannot write {path}", remedy, (OSError,)):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            try:
                self._lock()
            except BaseException:
                os.close(self._file)
                raise

    def _lock(self) -> None:
        """Take the file for this process, and cut a half-written last line off."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # it is another file where the run that had it ended meanwhile
            if not self.path.exists() or not os.path.samestat(os.fstat(self._file), self.path.stat()):
                raise BlockingIOError
        except BlockingIOError:
            remedy = "wait for it to end, or give another output"
            raise KitError(f"another run is writing to {self.path}", remedy) from None
        self.end = os.fstat(self._file).st_size
        if self.end:
            with mmap.mmap(self._file, 0, access=mmap.ACCESS_READ) as content:
                self.end = content.rfind(b"\n") + 1
        os.ftruncate(self._file, self.end)
        sync(self.path.parent)

    def append(self, value: dict[str, Any]) -> int:
        """Hand one line to the kernel, which keeps it whatever happens to this process; returns its offset.
        `sync` puts it on the disk.
        """
        line = json.dumps(value, allow_nan=False).encode() + b"\n"
        start, left = self.end, memoryview(line)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            os.ftruncate(self._file, start)
            what = f"cannot write {self.path} ({error.strerror})"
            raise KitError(what, "free space and run again: what is written is kept") from error
        self.end = start + len(line)
        return start

    def sync(self) -> None:
        """Everything appended so far is on the disk when this returns."""
        os.fsync(self._file)

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(offset, line) of all lines."""
        return whole_lines(self.path)

    def read(self, offsets: Iterator[int]) -> Iterator[dict[str, Any]]:
        """The lines at `offsets`."""
        with self.path.open("rb") as lines:
            for offset in offsets:
                lines.seek(offset)
                yield json.loads(lines.readline())

    def remove(self) -> None:
        """Delete the file; the lock is held until `close`."""
        self.path.unlink()
        self.end = -1
        sync(self.path.parent)

    def close(self) -> None:
        """Give the file back; what is appended later fails instead of going into a file that got the same
        number.
        """
        os.close(self._file)
        self._file = -1

    def __enter__(self: J) -> J:
        return self

    def __exit__(self, *_: object) -> None:
        if self.end == 0:  # an empty file would be taken for a run without results
            with suppress(OSError):
                self.remove()
        self.close()


def whole_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(offset, line) of a journal, also of one that another run is writing: a last line cut in half is left
    out.

    Raises:
        KitError: a line in its middle is damaged.
    """
    start = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            remedy = "remove that line: the others are kept"
            with as_kit_error(f"{path}, line {number} is damaged", remedy, (ValueError,)):
                value = json.loads(line)
            yield start, value
            start += len(line)


def sync(path: Path) -> None:
    """Put a file's content, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
