"""What a teacher is asked about a dataset: one request a step, a segment or a trajectory, made when it is needed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from refinevla_kit.errors import KitError
from refinevla_kit.teacher.answers import Span
from refinevla_kit.teacher.schema import Request

if TYPE_CHECKING:
    from refinevla_kit.episodes import EpisodeDataset, EpisodeInfo

T = TypeVar("T")
GRANULARITIES = ("step", "segment", "trajectory")
GRIPPER = 6  # dimension of the gripper in this kit's own displacement actions
FRAMES = 64  # decoded at a time


def ranges(actions: Any, deltas: bool, granularity: str) -> list[tuple[int, int]]:
    """Frame ranges [start, end) of one episode with `actions` (T, A) that a teacher is asked about. Raises `KitError` for an unknown granularity."""
    from refinevla_kit.episodes.segments import split_segments

    if granularity not in GRANULARITIES:
        raise KitError(f"unknown granularity {granularity!r}", f"choose one of {', '.join(GRANULARITIES)}")
    if granularity == "step":
        return [(frame, frame + 1) for frame in range(len(actions))]
    if granularity == "trajectory":
        return [(0, len(actions))]
    return [(segment.start, segment.end) for segment in split_segments(actions, deltas, GRIPPER if deltas else None)]


def keyframe_indices(start: int, end: int, keyframes: int) -> list[int]:
    """At most `keyframes` frame numbers of [start, end): the first always, the others evenly up to the last."""
    count = max(1, min(keyframes, end - start))
    return [start + round(i * (end - 1 - start) / max(1, count - 1)) for i in range(count)]


def sampled(dataset: EpisodeDataset, count: int) -> list[EpisodeInfo]:
    """At most `count` episodes, evenly spread."""
    chosen = np.unique(np.linspace(0, len(dataset.episodes) - 1, min(count, len(dataset.episodes))).astype(int))
    return [dataset.episodes[i] for i in chosen]


def count_requests(dataset: EpisodeDataset, granularity: str, sample: int = 200) -> int:
    """How many requests there are: exact for up to `sample` episodes, else from that many of them."""
    chosen = sampled(dataset, sample)
    counts = {info.index: len(ranges(dataset.actions(info.index), dataset.deltas, granularity)) for info in chosen}
    return round(sum(counts.values()) * len(dataset.episodes) / len(chosen))


def requests(dataset: EpisodeDataset, granularity: str = "segment", keyframes: int = 3, episodes: list[EpisodeInfo] | None = None,
             wanted: Callable[[int, str, list[Span]], list[Span]] | None = None) -> Iterator[Request]:
    """The requests about `dataset`, in order.

    Args:
        episodes: None for all.
        wanted: called with each episode's index, digest and spans; answers with the spans to ask about. What is not asked is not decoded.
    """
    for info in dataset.episodes if episodes is None else episodes:
        actions, proprioception = dataset.actions(info.index), dataset.proprioception(info.index)
        spans = [(info.index, *span) for span in ranges(actions, dataset.deltas, granularity)]
        asked = wanted(info.index, digest(dataset, info, actions, spans), spans) if wanted else spans
        states, masks = (dataset.states(info.index), dataset.masks(info.index)) if asked else (None, None)
        for first in range(0, len(asked), step := max(1, FRAMES // max(1, keyframes))):
            group = asked[first: first + step]
            frames = sorted({frame for _, start, end in group for frame in keyframe_indices(start, end, keyframes)})
            images = dict(zip(frames, dataset.images(info.index, frames), strict=True))
            for _, start, end in group:
                indices = keyframe_indices(start, end, keyframes)
                yield Request(
                    dataset.name, info.index, start, end, info.instruction, np.stack([images[i] for i in indices]), indices, actions[start:end],
                    states[start] if states else None, {name: mask[start] for name, mask in masks.items()} if masks else None,
                    dataset.action_names, dataset.deltas, float(dataset.fps), proprioception[start:end] if proprioception.shape[1] else None,
                    dataset.state_names, granularity,
                )  # fmt: skip


def digest(dataset: EpisodeDataset, info: EpisodeInfo, actions: Any, spans: list[Span]) -> str:
    """16 hex digits of what answers about an episode depend on: instruction, actions, where it is cut, the simulator's state."""
    from refinevla_kit.episodes.sidecar import sidecar_path

    beside = sidecar_path(dataset.path, info.index)
    parts = [info.instruction.encode(), actions.tobytes(), repr(spans).encode(), beside.read_bytes() if beside.is_file() else b""]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]


def ahead(items: Iterator[T], count: int) -> Generator[T, None, None]:
    """The same items, up to `count` of them made in advance by a thread: decoding does not hold calls up."""
    end: Any = object()
    with ThreadPoolExecutor(1, "requests") as thread:
        coming = [thread.submit(next, items, end) for _ in range(count)]
        try:
            while (item := coming.pop(0).result()) is not end:
                coming.append(thread.submit(next, items, end))
                yield item
        finally:
            for future in coming:
                future.cancel()
