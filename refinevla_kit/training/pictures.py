"""Pictures that stay in their files until a step needs them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np

from refinevla_kit.episodes import EpisodeDataset
from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import Array

DECODERS = 4  # threads; FFmpeg lets go of Python's lock


class StreamedPictures:
    """The pictures of N frames of datasets, indexed as the array uint8 (N, H, W, 3) is that holds them all.

    What is asked for is decoded then, or was begun by `ahead`.

    Args:
        sources: the datasets.
        source: int (N,), which of them.
        episodes, frames: int (N,), number of the episode in its dataset, and of the frame in it.

    Attributes:
        shape: (N, H, W, 3).
        unreadable: (source, episode) -> why, of those that a row was asked of in vain.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self, sources: Sequence[EpisodeDataset], source: Array, episodes: Array, frames: Array
    ) -> None:
        self.sources, self._source = tuple(sources), source.astype(np.int16)
        self._episodes, self._frames = episodes.astype(np.int32), frames.astype(np.int32)
        self.unreadable: dict[tuple[int, int], KitError] = {}
        self._coming: dict[bytes, Future[Any]] = {}
        self._pool = ThreadPoolExecutor(DECODERS, "decoder")
        self._background = ThreadPoolExecutor(1, "ahead")

    @classmethod
    def joined(cls, parts: Sequence[StreamedPictures]) -> StreamedPictures:
        """The pictures of several, one after the other."""
        shifts = np.cumsum([0, *(len(part.sources) for part in parts)])
        return cls(
            [one for part in parts for one in part.sources],
            np.concatenate([part._source + shift for part, shift in zip(parts, shifts)]),
            np.concatenate([part._episodes for part in parts]),
            np.concatenate([part._frames for part in parts]),
        )

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, 3), by the first picture that can be read."""
        for row in range(len(self)):
            try:
                return len(self), *self[np.array([row])].shape[1:]
            except KitError:
                continue
        raise next(iter(self.unreadable.values()))

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, rows: Array | slice) -> Any:
        """The pictures of these rows, uint8 (B, H, W, 3); a list of B, where datasets have several sizes.

        Raises:
            KitError: one cannot be read.
        """
        rows = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
        coming = self._coming.pop(rows.tobytes(), None)
        return coming.result() if coming else self._decode(rows)

    def ahead(self, parts: Sequence[Array]) -> None:
        """Begin to decode what is asked for next, part by part."""
        self._coming = {part.tobytes(): self._background.submit(self._decode, part) for part in parts}

    def readable(self, row: int) -> bool:
        """Whether a row is of no episode that is known to be unreadable."""
        return self._place(row) not in self.unreadable

    def digest(self) -> str:
        """SHA-256 of which pictures these are: the datasets' own listings, and the frames."""
        found = hashlib.sha256(json.dumps([(one.name, one.camera) for one in self.sources]).encode())
        for source in self.sources:
            for file in sorted((source.path / "meta").rglob("*")):
                if file.is_file():
                    found.update(file.read_bytes())
        for array in (self._source, self._episodes, self._frames):
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

    def _place(self, row: int) -> tuple[int, int]:
        """Number of its dataset, and of its episode there."""
        return int(self._source[row]), int(self._episodes[row])

    def _decode(self, rows: Array) -> Any:
        places: dict[tuple[int, int], list[int]] = {}
        for number, row in enumerate(rows.tolist()):
            places.setdefault(self._place(row), []).append(number)
        for place in places.keys() & self.unreadable.keys():
            raise self.unreadable[place]
        found = list(self._pool.map(self._of_episode, places, [rows[at] for at in places.values()]))
        if broken := sorted(places.keys() & self.unreadable.keys()):
            for number, episode in broken:
                self.sources[number].leave_out(episode, self.unreadable[number, episode])
                self.sources[number].warn()
            raise self.unreadable[broken[0]]
        pictures: dict[int, Array] = {}
        for at, part in zip(places.values(), found, strict=True):
            pictures.update(zip(at, part, strict=True))
        images = [pictures[number] for number in range(len(rows))]
        return np.stack(images) if len({each.shape for each in images}) == 1 else images

    def _of_episode(self, place: tuple[int, int], rows: Array) -> Array:
        """Pictures of one episode; none where it cannot be read, which is noted."""
        source, episode = place
        try:
            return self.sources[source].images(episode, self._frames[rows].tolist())
        except KitError as error:
            self.unreadable[place] = error
            return np.empty((0, 0, 0, 3), np.uint8)


def check_sizes(pictures: Iterable[Array | StreamedPictures]) -> None:
    """Raise `KitError` unless these (N, H, W, 3) each have pictures of one height and width."""
    sizes = {each.shape[1:3] for each in pictures}
    if len(sizes) > 1:
        listed = " and ".join(f"{width} x {height}" for height, width in sorted(sizes))
        what = f"the episodes have pictures of {len(sizes)} sizes ({listed})"
        raise KitError(what, "train on episodes of one camera and size")


def bytes_of(pictures: Array | StreamedPictures) -> Any:
    """What a hash of an array, or of pictures wherever they are, is taken of."""
    if isinstance(pictures, StreamedPictures):
        return pictures.digest().encode()
    return np.ascontiguousarray(pictures)
