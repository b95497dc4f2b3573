"""How the two shipped bases are made, one for each robot: what is recorded, and how it is learned from. Every
stage has a seed, and one that is finished is not done again.

    python -m experiments.bases widowx WORK --official FOLDER
    python -m experiments.bases google_robot WORK
    python -m experiments.judging widowx --base WORK/widowx/base_8  # how well it reads and writes

Starts are drawn at random around those that SIMPLER scores; only the drawers of visual matching have none but
the nine places of their photographs. Pairs and things that the language suite holds out are not recorded.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import PartialState

from experiments.driving import PolicyDrive
from experiments.hands import read_hands
from experiments.pretraining import PretrainingConfig, blend, improve, pretrain, save_base
from experiments.questions import WORDINGS
from experiments.random_frames import record_frames
from refinevla_kit.errors import KitError
from refinevla_kit.rollouts.recording import record
from refinevla_kit.tasks import VARIANT_AGGREGATION, VISUAL_MATCHING, find_tasks
from refinevla_kit.teacher import annotate_dataset
from refinevla_kit.teacher.oracle import OracleTeacher
from refinevla_kit.training.examples import SHIPPED_BASE
from refinevla_kit.vlas.compact import CompactConfig


@dataclass(frozen=True)
class Recording:
    """Demonstrations of one kind, or episodes that a base drives and the demonstrator labels.

    Attributes:
        name: of the dataset.
        tasks: as `find_tasks` takes them.
        episodes: a task and variant.
        setting: its scored variants are shown.
        official: on SimplerEnv's own assets.
        noise: see `recording.Manner`.
        frames: put together at random (`random_frames.py`), so many a scene, instead of demonstrated;
            `episodes` is then the number of scenes.
    """

    name: str
    tasks: str
    episodes: int
    setting: str = VISUAL_MATCHING
    official: bool = False
    noise: float = 0.0
    frames: int = 0


RECORDINGS: dict[str, tuple[Recording, ...]] = {
    "widowx": (
        Recording("four", "widowx", 100, noise=1),
        Recording("pairs", "widowx_language_trained", 40, noise=1),
        Recording("four_official", "widowx", 50, official=True, noise=1),
        Recording("pairs_official", "widowx_language_trained", 16, official=True, noise=1),
        Recording("pair_frames", "widowx_language_trained", 60, frames=16),
        Recording("four_frames", "widowx", 60, frames=16),
        Recording("pair_frames_official", "widowx_language_trained", 30, official=True, frames=16),
        Recording("four_frames_official", "widowx", 30, official=True, frames=16),
        Recording("four_frames_looks", "widowx", 3, VARIANT_AGGREGATION, frames=16),
    ),
    "google_robot": (
        Recording("cans", "pick_coke_can", 12, noise=1),
        Recording("near", "move_near", 30, noise=1),
        Recording("drawers", "open_close_drawer", 5, noise=0.5),
        Recording("things", "google_robot_language_trained", 3, noise=1),
        Recording("apple", "place_apple_in_closed_top_drawer", 4, noise=1),
        Recording("can_frames", "pick_coke_can", 24, frames=12),
        Recording("near_frames", "move_near", 80, frames=12),
        Recording("drawer_frames", "open_close_drawer", 8, frames=12),
        Recording("thing_frames", "google_robot_language_trained", 15, frames=12),
        Recording("can_frames_looks", "pick_coke_can", 4, VARIANT_AGGREGATION, frames=12),
        Recording("near_frames_looks", "move_near", 12, VARIANT_AGGREGATION, frames=12),
        Recording("drawer_frames_looks", "open_close_drawer", 3, VARIANT_AGGREGATION, frames=12),
    ),
}

BASES = {"widowx": SHIPPED_BASE, "google_robot": SHIPPED_BASE.with_name("google_base")}  # what they gave
STARTS = {"widowx": SHIPPED_BASE.with_name("acting_base"), "google_robot": SHIPPED_BASE}
STAGES = ("record", "learn")
DRIVEN_SEED = 98  # and the round's number; demonstrations have those from 0 on


@dataclass(frozen=True)
class Round:
    """One round of learning; the next one goes on from it.

    Attributes:
        config: with `grounding_steps` the tower learns too, and the vocabulary takes in what is new.
        recordings: names of the robot's; none for all.
        driven: recorded with the base that the round goes on from, where that goes wrong. They are learned
            from in this round and in all later ones.
        times: how often what was driven is counted, against once for what was demonstrated.
        patch: pixels a side that a token stands for; where it changes, the tower learns too.
        afresh: learned from what was driven in this round alone, and not kept for later ones.
        kept: share of the base that it goes on from in the average of both weights, which is the result: a
            round on little data gains what is new and loses some of the rest, and the average has both.
    """

    config: PretrainingConfig
    recordings: tuple[str, ...] = ()
    driven: tuple[Recording, ...] = ()
    times: int = 1
    patch: int = 20
    afresh: bool = False
    kept: float = 0.0


_FIRST = PretrainingConfig(
    grounding_steps=300,
    steps=1600,
    learning_rate=7e-4,
    pointing=0,
    questions=0.8,
    rationales=0.5,
    grounding_rate=4e-4,
    order="both",
    accumulate=3,
)
# Rationales have fifteen times as many words as answers and outweigh them; then answers have their turn.
_ANSWERS = replace(_FIRST, grounding_steps=0, steps=800, learning_rate=5e-4, questions=1.5, rationales=0.1)
_FRAMES = replace(_ANSWERS, grounding_steps=3000, grounding_rate=8e-4, steps=3000, questions=2.4, seed=2)
# Looking up a place by its name is learned at once from nothing else, and hardly beside all the rest.
_POINT = replace(
    _ANSWERS, steps=400, learning_rate=1e-3, questions=1, asked=("point",), acting=False, accumulate=1, seed=5
)
_SIDE = replace(_POINT, asked=("side",))
_LOOKED_UP = replace(
    _POINT,
    steps=800,
    learning_rate=7e-4,
    asked=("side", "point", "where", "height", "nearest", "next", "distance", "seen"),
    texts_alike=True,
    seed=6,
)
_DRIVEN = replace(
    _ANSWERS, steps=1400, learning_rate=7e-4, questions=1, rationales=0.3, texts_alike=True, seed=3
)
_ALL_BUT_PLACES = tuple(kind for kind in WORDINGS if kind != "places")  # too long an answer to be learned
_LAST = replace(
    _DRIVEN,
    steps=600,
    learning_rate=4e-4,
    questions=0.5,
    rationales=0.1,
    seed=8,
    asked=_ALL_BUT_PLACES,
)
_PLAYED = tuple(one.name for one in RECORDINGS["widowx"] if not one.frames)
_PUT_TOGETHER = tuple(one.name for one in RECORDINGS["widowx"] if one.frames)
_ACTED_GOOGLE = tuple(one.name for one in RECORDINGS["google_robot"] if not one.frames)
_OF_THINGS = ("can_frames", "near_frames", "drawer_frames", "thing_frames", "near_frames_looks")
_DRIVE = (
    Recording("driven_pairs", "widowx_language_trained", 16),
    Recording("driven_stack", "widowx_stack_cube", 40),
    Recording("driven_pairs_official", "widowx_language_trained", 4, official=True),
    Recording("driven_four_official", "widowx", 8, official=True),
)
_DRIVE_AGAIN = (
    Recording("driven_again_pairs", "widowx_language_trained", 8),
    Recording("driven_again_stack", "widowx_stack_cube", 40),
    Recording("driven_again_stack_official", "widowx_stack_cube", 30, official=True),
)
_DRIVE_LAST = (
    Recording("last_stack", "widowx_stack_cube", 72),
    Recording("last_pairs", "widowx_language_trained", 8),
    Recording("last_stack_official", "widowx_stack_cube", 48, official=True),
    Recording("last_pairs_official", "widowx_language_trained", 3, official=True),
    Recording("last_four", "widowx", 6),
    Recording("last_four_official", "widowx", 8, official=True),
)
_DRIVE_GOOGLE = (
    Recording("driven_cans", "pick_coke_can", 4),
    Recording("driven_near", "move_near", 12),
    Recording("driven_drawers", "open_close_drawer", 1),
    Recording("driven_things", "google_robot_language_trained", 1),
)
_DRIVE_GOOGLE_AGAIN = (  # in the order that two processes share alike
    Recording("driven_again_drawers", "open_close_drawer", 4),
    Recording("driven_again_cans", "pick_coke_can", 8),
    Recording("driven_again_near", "move_near", 24),
    Recording("driven_again_things", "google_robot_language_trained", 1),
)
_DRIVE_GOOGLE_LAST = (
    Recording("last_drawers", "open_close_drawer", 3),
    Recording("last_cans", "pick_coke_can", 8),
    Recording("last_near", "move_near", 24),
)
ROUNDS = {
    "widowx": (
        Round(_FIRST, _PLAYED),
        Round(_ANSWERS, _PLAYED),
        Round(_FRAMES),
        Round(_POINT, _PUT_TOGETHER, _DRIVE),
        Round(_DRIVEN, _PLAYED, times=2),
        Round(_SIDE, _PUT_TOGETHER, _DRIVE_AGAIN),
        Round(_LOOKED_UP, _PUT_TOGETHER),
        Round(replace(_DRIVEN, seed=7, asked=_ALL_BUT_PLACES), _PLAYED, times=2),
        Round(_LAST, driven=_DRIVE_LAST, afresh=True, kept=0.7),
    ),
    "google_robot": (
        Round(replace(_FRAMES, steps=100)),  # the tower and the words
        Round(_POINT, _OF_THINGS),
        Round(replace(_DRIVEN, steps=1600, questions=0.7, rationales=0.2)),
        Round(replace(_DRIVEN, seed=4, questions=0.7, rationales=0.2), driven=_DRIVE_GOOGLE, times=2),
        Round(
            replace(_DRIVEN, steps=1600, seed=10, questions=0.5, rationales=0.1),
            _ACTED_GOOGLE,
            driven=_DRIVE_GOOGLE_AGAIN,
            times=2,
        ),
        Round(
            replace(_DRIVEN, steps=1600, seed=11, questions=0.5, rationales=0.1),
            _ACTED_GOOGLE,
            driven=_DRIVE_GOOGLE_LAST,
            times=2,
            kept=0.5,
        ),
    ),
}


def record_all(robot: str, folder: Path, official: Path | None) -> list[Path]:
    """Record what is not recorded yet, each process its share; without `official`, what needs SimplerEnv's
    own assets is left out.

    Returns the datasets, in the order of `RECORDINGS`.
    """
    state = PartialState()
    able = [
        (number, one)
        for number, one in enumerate(RECORDINGS[robot])
        if official is not None or not one.official
    ]
    acted = [one for one in able if not one[1].frames]
    put_together = [one for one in able if one[1].frames]
    # Random frames take their hands from what was acted out with the embedded assets.
    hands = [folder / one.name for _, one in acted if not one.official]
    for wanted in (acted, put_together):
        for number, one in wanted[state.process_index :: state.num_processes]:
            _record(folder / one.name, one, number, official, hands)
        state.wait_for_everyone()
    return [folder / one.name for _, one in able]


def drive(
    base: Path | None, wanted: Sequence[Recording], folder: Path, official: Path | None, seed: int
) -> list[Path]:
    """Let a base, or without one the demonstrator, act in what is to be learned from, where that is not
    recorded yet; each process has its share.

    Returns all the datasets, in the order of `wanted`.
    """
    state = PartialState()
    able = [one for one in wanted if official is not None or not one.official]
    for one in able[state.process_index :: state.num_processes]:
        _record(folder / one.name, one, seed, official, (), PolicyDrive(base) if base else None)
    state.wait_for_everyone()
    return [folder / one.name for one in able]


def _record(
    path: Path,
    one: Recording,
    seed: int,
    official: Path | None,
    played: Sequence[Path],
    driver: PolicyDrive | None = None,
) -> None:
    """Record one dataset and let the oracle write about it, where that is not done; random frames take their
    hands from those that were `played` before.
    """
    assets, tasks = official if one.official and official else "embedded", find_tasks(one.tasks)
    variants = tasks[0].protocol(one.setting).scored_variants
    if one.frames and not path.exists():
        of_one_goal, hands = [task for task in tasks if len(task.goals) < 2], read_hands(played)
        record_frames(
            path, of_one_goal, one.episodes, one.frames, hands, assets, one.setting, variants, seed=seed
        )
    elif not path.exists():
        record(
            path,
            tasks,
            one.episodes,
            assets=assets,
            setting=one.setting,
            variants=variants,
            seed=seed,
            noise=one.noise,
            settle=6,
            drive=driver,
        )
    annotate_dataset(path, OracleTeacher(), "step", keyframes=1)


def learn(
    robot: str, datasets: Sequence[Path], folder: Path, official: Path | None, state: PartialState
) -> Path:
    """All rounds of learning that are not done yet; returns the last checkpoint."""
    base, driven = STARTS[robot], list[Path]()
    for number, one in enumerate(ROUNDS[robot]):
        target, work = folder / f"base_{number}", folder / f"learning_{number}"
        new = drive(base, one.driven, folder, official, DRIVEN_SEED + number)
        if not one.afresh:
            driven += new
        if not target.exists():
            taken = [path for path in datasets if path.name in one.recordings or not one.recordings]
            seen = driven * one.times
            if one.afresh:
                taken, seen = [], new
            learn_round(one, base, taken, seen, work, target, state)
        base = target
    return base


def learn_round(
    one: Round,
    base: Path,
    taken: Sequence[Path],
    seen: Sequence[Path],
    work: Path,
    target: Path,
    state: PartialState,
) -> None:
    """Learn from what was demonstrated (`taken`) and driven (`seen`), as a round says, and save the result as
    `target`.
    """
    if one.config.grounding_steps:
        size = CompactConfig(layers=5, proprioception=True, patch=one.patch)
        vla = pretrain([*taken, *seen], work, one.config, model=size, start=base)
    else:
        vla = improve(base, taken, seen, work, one.config)
    if one.kept:
        blend(vla, base, one.kept)
    if state.is_main_process:
        save_base(vla, target)
    state.wait_for_everyone()


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bases",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("robot", choices=sorted(RECORDINGS))
    parser.add_argument("work", type=Path, help="folder of everything that is made on the way")
    parser.add_argument("--official", type=Path, help="SimplerEnv's own assets; without, those are left out")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage")
    parser.add_argument("--threads", type=int, default=1, help="compute threads")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    gc.freeze()  # each reset of a simulator looks through all there is for garbage
    try:
        folder = given.work / given.robot
        state = PartialState(cpu=not torch.cuda.is_available())
        datasets = record_all(given.robot, folder, given.official)
        if given.until != "record":
            learn(given.robot, datasets, folder, given.official, state)
    except KitError as error:
        raise SystemExit(f"bases: {error}") from None


if __name__ == "__main__":
    main()
