"""The demonstrations of an experiment: recorded and annotated once, and what each arm is given of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.controls import (
    drop_actions,
    drop_texts,
    empty_texts,
    exchange_objects,
    first_episodes,
    movement_texts,
    shuffle_rationales,
)
from experiments.design import SHUFFLE_SEED, Arm, Profile
from refinevla_kit.episodes import EpisodeDataset, open_dataset
from refinevla_kit.episodes.contract import Episode
from refinevla_kit.episodes.writer import DatasetWriter
from refinevla_kit.errors import KitError
from refinevla_kit.rollouts.recording import record
from refinevla_kit.tasks import SOURCES, TARGETS, find_task
from refinevla_kit.teacher import OracleTeacher, annotate_dataset
from refinevla_kit.training.examples import Examples, find_rationales, load_examples


@dataclass(frozen=True)
class Layout:
    """What a language task's first frame shows.

    Attributes:
        other: the thing beside the one that the sentence names.
        left: the named thing is the left one of two in the picture, and so is the named target.
    """

    other: str
    left: bool


def demonstrations(
    profile: Profile, folder: str | Path, assets: str = "embedded", workers: int = 1, progress: bool = True
) -> Examples:
    """The profile's demonstrations with the oracle's rationales; recorded into `folder` where they are not
    there yet.

    Raises:
        KitError: too few of one kind for the share that the profile asks for.
    """
    prepare(profile, folder, assets, workers, progress)
    return load_examples(folder, find_rationales(folder), strict=True)


def prepare(
    profile: Profile, folder: str | Path, assets: str = "embedded", workers: int = 1, progress: bool = True
) -> None:
    """Record, choose and annotate what `demonstrations` reads, where that has not been done."""
    folder = Path(folder)
    recorded = folder.with_name("recorded") if profile.confounded else folder
    if not folder.exists() and not recorded.exists():
        record(
            recorded,
            profile.tasks,
            profile.episodes_per_task,
            assets=assets,
            seed=profile.data_seed,
            workers=workers,
            disturb=profile.disturb,
            noise=profile.noise,
            settle=profile.settle,
            progress=progress,
        )
    if not folder.exists():
        copy_episodes(recorded, choose(layouts(recorded), profile.confounded, profile.data_seed), folder)
    if profile.per_frame:
        annotate_dataset(folder, OracleTeacher(), "step", keyframes=1, progress=progress)
    else:
        annotate_dataset(folder, OracleTeacher(), progress=progress)


def copy_episodes(dataset: str | Path, chosen: Sequence[int], folder: str | Path) -> None:
    """A dataset of the `chosen` episodes of another one, their videos encoded once more."""
    source = open_dataset(dataset)
    with DatasetWriter(folder, int(source.fps), source.robot_type) as writer:
        for index in chosen:
            info = source.info(index)
            writer.add(
                Episode(
                    source.images(index),
                    source.actions(index),
                    source.proprioception(index),
                    info.instruction,
                    info.task,
                    bool(info.success),
                    info.seed or 0,
                    info.start or "random",
                    source.states(index),
                    source.masks(index),
                )
            )


def layouts(dataset: str | Path) -> dict[int, Layout]:
    """Episode -> what its first frame shows, of those in which both things and both targets are in view."""
    source, found = open_dataset(dataset), dict[int, Layout]()
    for episode in source.episodes:
        task, across = find_task(episode.task), _across(source, episode.index)
        things, targets = ([name for name in names if name in across] for names in (SOURCES, TARGETS))
        if {task.source, task.target} <= across.keys() and len(things) == len(targets) == 2:
            named = task.source, task.target
            left = all(
                across[name] == min(across[each] for each in names)
                for name, names in zip(named, (things, targets))
            )
            found[episode.index] = Layout(next(name for name in things if name != task.source), left)
    return found


def _across(source: EpisodeDataset, episode: int) -> dict[str, float]:
    """Name -> column of its middle in the first frame, of what is in view."""
    masks = source.masks(episode) or {}
    return {name: float(np.nonzero(mask[0])[1].mean()) for name, mask in masks.items() if mask[0].any()}


def choose(found: dict[int, Layout], share: float, seed: int) -> list[int]:
    """As many episodes as can be had of which `share` have the named things left, in ascending order."""
    rng = np.random.default_rng(seed)
    left, others = (
        rng.permutation([episode for episode, one in found.items() if one.left == side]).tolist()
        for side in (True, False)
    )
    most = min(len(left) / share, len(others) / (1 - share) if share < 1 else np.inf)
    counts = round(most * share), round(most * (1 - share))
    if not counts[0] or (share < 1 and not counts[1]):
        what = f"{len(left)} of {len(found)} episodes have the named things left: {share:.0%} cannot be had"
        raise KitError(what, "record more episodes a task")
    return sorted(left[: counts[0]] + others[: counts[1]])


def given_to(arm: Arm, examples: Examples, found: dict[int, Layout] | None = None) -> Examples:
    """What an arm trains on; `found`: of the demonstrations, for texts that name the other object."""
    chosen = first_episodes(examples, arm.share)
    match arm.rationales:
        case "shuffled":
            chosen = shuffle_rationales(chosen, SHUFFLE_SEED)
        case "movement":
            chosen = movement_texts(chosen)
        case "wrong_object":
            others = {episode: one.other for episode, one in (found or {}).items()}
            chosen = exchange_objects(chosen, others)
        case "empty":
            chosen = empty_texts(chosen)
        case "half":
            chosen = drop_texts(chosen, SHUFFLE_SEED)
    return drop_actions(chosen, arm.acting, SHUFFLE_SEED) if arm.acting < 1 else chosen


def content_hash(examples: Examples) -> str:
    """First 12 hex digits of the SHA-256 over everything in the examples that training reads; where they lie
    does not matter.
    """
    return examples.digest()[:12]
