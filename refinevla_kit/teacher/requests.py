"""What a teacher is asked about a dataset: one request a step, a segment or a trajectory, made when it is
needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice

import numpy as np

from refinevla_kit.episodes import EpisodeDataset, EpisodeInfo
from refinevla_kit.episodes.contract import sidecar_path
from refinevla_kit.episodes.segments import same
from refinevla_kit.errors import KitError, check_choice
from refinevla_kit.settings import GRANULARITIES
from refinevla_kit.teacher.answers import Span
from refinevla_kit.teacher.schema import Request

FRAMES = 64  # decoded at a time


def keyframe_indices(start: int, end: int, keyframes: int) -> list[int]:
    """At most `keyframes` frame numbers of [start, end): the first always, the others evenly up to the
    last.
    """
    count = max(1, min(keyframes, end - start))
    return [start + round(i * (end - 1 - start) / max(1, count - 1)) for i in range(count)]


def episode_spans(dataset: EpisodeDataset, episode: int, granularity: str) -> list[Span]:
    """The frames of `dataset` that a teacher is asked about together; where the instruction changes, another
    question begins. Raises `KitError` for an unknown granularity.
    """

    check_choice("granularity", granularity, GRANULARITIES)
    if granularity == "segment":
        return [(episode, segment.start, segment.end) for segment in dataset.segments(episode)]
    if granularity == "trajectory":
        return [(episode, *stretch) for stretch in same(dataset.instructions(episode))]
    return [(episode, frame, frame + 1) for frame in range(dataset.info(episode).length)]


def sampled(dataset: EpisodeDataset, count: int) -> list[EpisodeInfo]:
    """At most `count` episodes, evenly spread."""
    last = len(dataset.episodes) - 1
    chosen = np.unique(np.linspace(0, last, min(count, last + 1)).astype(int))
    return [dataset.episodes[i] for i in chosen]


def count_requests(dataset: EpisodeDataset, granularity: str) -> int:
    """How many requests there are: exact for up to 200 episodes, else from that many of them."""
    counts = []
    for info in sampled(dataset, 200):
        try:
            counts.append(len(episode_spans(dataset, info.index, granularity)))
        except KitError as error:
            dataset.leave_out(info.index, error)
    return round(sum(counts) * len(dataset.episodes) / len(counts))


def requests(
    dataset: EpisodeDataset,
    granularity: str = "segment",
    keyframes: int = 3,
    episodes: list[EpisodeInfo] | None = None,
    wanted: Callable[[int, str, list[Span]], list[Span]] | None = None,
) -> Iterator[Request]:
    """The requests about `dataset`, in order. Episodes that cannot be read are left out, unless the dataset
    is strict.

    Args:
        episodes: None for all.
        wanted: called with each episode's index, digest and spans; answers with the spans to ask about. What
            is not asked is not decoded.
    """
    for info in dataset.episodes if episodes is None else episodes:
        try:
            spans = episode_spans(dataset, info.index, granularity)
            if wanted:
                spans = wanted(info.index, digest(dataset, info.index, spans), spans)
            yield from _with_pictures(dataset, info.index, spans, granularity, keyframes)
        except KitError as error:
            dataset.leave_out(info.index, error)
    dataset.warn()


def _with_pictures(
    dataset: EpisodeDataset, episode: int, spans: list[Span], granularity: str, keyframes: int
) -> Iterator[Request]:
    known = without_pictures(dataset, episode, spans)
    group = max(1, FRAMES // max(1, keyframes))
    while asked := list(islice(known, group)):
        places = [keyframe_indices(request.start, request.end, keyframes) for request in asked]
        frames = sorted({frame for indices in places for frame in indices})
        images = dict(zip(frames, dataset.images(episode, frames), strict=True))
        for request, indices in zip(asked, places, strict=True):
            pictures = np.stack([images[i] for i in indices])
            yield replace(request, keyframes=pictures, keyframe_indices=indices, granularity=granularity)


def without_pictures(dataset: EpisodeDataset, episode: int, spans: Sequence[Span]) -> Iterator[Request]:
    """What is known of spans of one episode, each with the instruction that holds in it."""
    if not spans:
        return
    actions, readings = dataset.actions(episode), dataset.proprioception(episode)
    instructions = dataset.instructions(episode)
    states, masks = dataset.states(episode), dataset.masks(episode)
    for _, start, end in spans:
        if end > len(actions):
            what = f"frames {start} to {end - 1} of episode {episode} are not in {dataset.name}"
            raise KitError(what, "these answers are about another recording: annotate this one")
        yield Request(
            dataset.name,
            episode,
            start,
            end,
            instructions[min(start, len(instructions) - 1)],
            np.zeros((0, 1, 1, 3), np.uint8),
            (),
            actions[start:end],
            states[start] if states else None,
            {name: mask[start] for name, mask in masks.items()} if masks else None,
            dataset.action_names,
            dataset.deltas,
            float(dataset.fps),
            readings[start:end] if readings.shape[1] else None,
            dataset.state_names,
            metric=dataset.metric,
            gripper=dataset.gripper,
            gripper_dimension=dataset.gripper_dimension,
        )


def digest(dataset: EpisodeDataset, episode: int, spans: list[Span]) -> str:
    """16 hex digits of what answers about an episode depend on.

    That is instructions, actions, where it is cut, the simulator's state, and what a person said of the
    numbers' meaning and the camera.
    """

    beside = sidecar_path(dataset.path, episode)
    sentences = [sentence for sentence, _ in groupby(dataset.instructions(episode))]
    parts = [
        "\n".join(sentences).encode("utf-8", "replace"),
        dataset.actions(episode).tobytes(),
        repr(spans).encode(),
        beside.read_bytes() if beside.is_file() else b"",
    ]
    if dataset.overrides:
        parts.append(repr(sorted(dataset.overrides.items())).encode())
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]
