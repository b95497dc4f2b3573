"""Append-only JSON lines of one run, held by one process at a time: what is in them survives a kill at any
instant.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from refinevla_kit.errors import KitError

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
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            remedy = "give an output, on a command line --output, in a folder that can be written"
            raise KitError(f"cannot write {path} ({error.strerror})", remedy) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # it is another file where the run that had it ended between the two lines above
            if not path.exists() or not os.path.samestat(os.fstat(self._file), path.stat()):
                raise BlockingIOError
            self.end = os.fstat(self._file).st_size
            while self.end and os.pread(self._file, 1, self.end - 1) != b"\n":
                chunk = os.pread(self._file, min(self.end, 2**16), max(0, self.end - 2**16))
                self.end = max(0, self.end - 2**16) + chunk.rfind(b"\n") + 1
            os.ftruncate(self._file, self.end)
            sync(path.parent)
        except BlockingIOError:
            os.close(self._file)
            remedy = "wait for it to end, or give another output"
            raise KitError(f"another run is writing to {path}", remedy) from None
        except OSError as error:
            os.close(self._file)
            what = f"{path} cannot be opened and locked ({error.strerror})"
            raise KitError(what, "give an output on a disk of this machine") from error

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
            try:
                yield start, json.loads(line)
            except ValueError as error:
                raise KitError(
                    f"{path}, line {number} is damaged", "remove that line: the others are kept"
                ) from error
            start += len(line)


def sync(path: Path) -> None:
    """Put a file's content, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
