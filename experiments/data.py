"""The demonstrations of an experiment: recorded and annotated once, and what each arm is given of them."""

from __future__ import annotations

from pathlib import Path

from experiments.controls import first_episodes, shuffle_rationales
from experiments.design import SHUFFLE_SEED, Arm, Profile
from refinevla_kit.rollouts.recording import record
from refinevla_kit.teacher import OracleTeacher, annotate_dataset
from refinevla_kit.training.examples import Examples, find_rationales, load_examples


def demonstrations(
    profile: Profile, folder: str | Path, assets: str = "embedded", workers: int = 1, progress: bool = True
) -> Examples:
    """The profile's demonstrations with the oracle's rationales, one a segment; recorded into `folder` where
    they are not there yet.
    """
    prepare(profile, folder, assets, workers, progress)
    return load_examples(folder, find_rationales(folder), strict=True)


def prepare(
    profile: Profile, folder: str | Path, assets: str = "embedded", workers: int = 1, progress: bool = True
) -> None:
    """Record and annotate what `demonstrations` reads, where that has not been done."""
    if not Path(folder).exists():
        record(
            folder,
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
    annotate_dataset(folder, OracleTeacher(), progress=progress)


def given_to(arm: Arm, examples: Examples) -> Examples:
    """What an arm trains on."""
    chosen = first_episodes(examples, arm.share)
    return shuffle_rationales(chosen, SHUFFLE_SEED) if arm.rationales == "shuffled" else chosen


def content_hash(examples: Examples) -> str:
    """First 12 hex digits of the SHA-256 over everything in the examples that training reads; where they lie
    does not matter.
    """
    return examples.digest()[:12]
