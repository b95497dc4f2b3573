"""Closed-loop evaluation: play episodes, one record each, resumable, with the policy batched over simulator
processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from refinevla_kit.errors import KitError, check_choice, checked_integer
from refinevla_kit.evaluation.intervals import wilson
from refinevla_kit.evaluation.records import (
    KEY,
    EpisodeRecord,
    Key,
    add_record,
    check_journal,
    journal_path,
    load_records,
    save_parquet,
    versions,
)
from refinevla_kit.files import abandoned, replacing
from refinevla_kit.journal import Journal
from refinevla_kit.policies.contract import Action, check_acts, has, identity_of, name_of, naming
from refinevla_kit.policies.conversion import check_conventions
from refinevla_kit.rollouts.engine import Engine, Masks, PlannedEpisode, Scene
from refinevla_kit.rollouts.players import PolicyPlayer, PolicyTake, batches
from refinevla_kit.rollouts.ray_station import EXECUTORS
from refinevla_kit.simulator import find_backend, picture_size
from refinevla_kit.simulator.contract import Array, Observation, StepResult
from refinevla_kit.simulator.geometry import start_pose
from refinevla_kit.tasks import (
    CAMERA_SIZES,
    MANISKILL,
    PROTOCOL_VERSION,
    VISUAL_MATCHING,
    Task,
    Tasks,
    find_task,
    tasks_of,
)

LARGEST_SEED = 2**32 - 1
Overlay = Callable[[Observation, Any], Array]


def evaluate(
    policy: Any,
    tasks: Tasks,
    episodes: str | int | Iterable[int] | None = None,
    n: int | None = None,
    *,
    workers: int | None = None,
    batch: int = 32,
    output: str | Path = "records.parquet",
    progress: bool = True,
    videos: str | Path | None = None,
    overlay: Overlay | None = None,
    executor: str = "processes",
    **where: Any,
) -> Path:
    """Play `policy` on episodes of `tasks` and record each. Returns the parquet file, which holds all records
    ever written to `output`.

    Calling it again with the same arguments continues: recorded episodes are not repeated. Several policies
    may go into one file.

    Args:
        policy: anything with `reset(instruction)` and `act(image)` or `step(image, instruction)`, which plays
            one episode at a time, or with `act_batch(images, instructions)`, which plays many; what it may
            return: `policies.contract`. The rows of a chunk are executed one after another before it
            is asked again. `name` and `checkpoint_hash` (see `Policy`) go into the records: another hash is
            another policy, whose episodes are played. `conventions` are compared with the task's before the
            first episode. With `needs_proprioception = True` both get the robot's own state too, `act(image,
            proprioception)`; with `needs_state = True` it gets simulator state instead: `act_states(states,
            tasks)`.
        tasks: names of tasks, of groups of them ("pick_coke_can") or of a robot ("widowx"), or `Task`s; what
            is named twice is played once.
        episodes: number of grid episodes a task and variant (the first ones), the ids themselves (NumPy's and
            pandas' too), None for those SIMPLER scores, or "dense" for `n` continuous starts drawn from
            `seed` (`simulator.geometry.start_pose`): the same for every policy, as many as a small gain
            needs. "spread" for `n` scored grid episodes from all over the grid (`Protocol.spread`).
        workers: simulator processes; None for one a core; 0 plays in this process. With processes, a script
            must guard its entry with `if __name__ == "__main__"`.
        batch: episodes played at the same time, over all workers; a batched policy gets half that many images
            at once. A kill costs at most these.
        output: parquet file, or a folder for `records.parquet`. A journal lies beside it while the run is
            going on.
        progress: show a bar with the successes so far and their 95 % interval.
        videos: folder for one mp4 an episode, in a folder of the policy's name, or None. A name ends in a
            digest of the record's key.
        overlay: draws on a video frame: (`Observation`, the policy's `Action` or None at the end) -> image
            uint8, of any one size. `figures.overlays.attention_overlay(policy)` is one.
        executor: "ray" has the simulators on the machines of a Ray cluster, as many as `workers` says; each
            needs the kit and the assets. The policy stays here, and the records are the same.
        where: setting, variants, backend, assets, seed, width and height, as in `plan`.

    Raises:
        KitError: unknown task, variant or episode; conventions that differ; an output or folder of videos
            that cannot be written, or that another run writes to. A policy that fails, or returns something
            else than 7 finite numbers in range, is named with episode and step; what it raised is the
            `__cause__`. Episodes finished before are kept.
    """
    output = Path(output)
    if output.suffix != ".parquet" or output.is_dir():
        output /= "records.parquet"
    batch = checked_integer(batch, "batch", 1)
    check_choice("executor", executor, EXECUTORS)
    workers = processes(workers)
    with naming(f"policy {name_of(policy)!r}"):
        check_acts(policy)
    wanted = plan(policy, tasks, episodes, n, **where)
    folder = _video_folder(videos)
    check_journal(journal_path(output))
    with Journal(journal_path(output)) as journal:
        records = {record.key: record for record in load_records(output)}
        done = [records[key] for key in wanted if key in records]
        if done and identity_of(policy).partition("+")[0] == "":
            warnings.warn(
                f"{len(done)} of {len(wanted)} episodes are taken from {output}: {name_of(policy)!r} has no "
                "`checkpoint_hash`, so nothing tells this policy "
                "from another of that name; give it one, or another output, when it has changed",
                stacklevel=2,
            )
        keys = {episode: key for key, episode in wanted.items() if key not in records}
        if folder and done:
            what = f"{len(done)} of {len(wanted)} episodes are recorded in {output} already"
            warnings.warn(f"{what} and not filmed again: give another output to film all", stacklevel=2)
        described = {"desc": name_of(policy), "unit": "episode", "disable": not progress}
        with tqdm(total=len(wanted), initial=len(done), **described) as bar:

            def begin(episode: PlannedEpisode) -> _FilmedTake:
                path = _video_path(folder, keys[episode]) if folder else None
                return _FilmedTake(episode, path, overlay)

            player = PolicyPlayer(policy, begin)
            lanes = min(batch, len(keys)) if batches(policy) else 1
            with Engine(workers, lanes, EXECUTORS[executor]) as engine:
                for take in engine.play(keys, player):
                    record = _record(keys[take.episode], take)
                    take.keep()
                    add_record(journal, record)
                    records[record.key] = record
                    done.append(record)
                    bar.set_postfix_str(_success(done), refresh=False)
                    bar.update()
        save_parquet(sorted(records.values(), key=lambda record: record.key), output)
        journal.remove()  # its rows are in the parquet file now
    return output


def processes(workers: int | None) -> int:
    """How many simulator processes `workers` asks for."""
    return len(os.sched_getaffinity(0)) if workers is None else checked_integer(workers, "workers", 0)


def line_up(policies: Sequence[Any], tasks: Tasks) -> list[tuple[Any, list[Task]]]:
    """Who plays what, robot by robot: a policy of the kit with that robot's action statistics, the
    demonstrator with its script for that robot.

    Raises:
        KitError: an unknown task, or a policy without statistics of a robot.
    """
    chosen = tasks_of(tasks)
    return [
        (policy.on(robot) if has(policy, "on") else policy, [task for task in chosen if task.robot == robot])
        for robot in dict.fromkeys(task.robot for task in chosen)
        for policy in policies
    ]


def plan(
    policy: Any,
    tasks: Tasks,
    episodes: Any = None,
    n: int | None = None,
    *,
    setting: str = VISUAL_MATCHING,
    variants: Iterable[str] | None = None,
    backend: str = "auto",
    assets: str | Path | None = None,
    seed: int = 0,
    width: int | None = None,
    height: int | None = None,
) -> dict[Key, PlannedEpisode]:
    """The episodes that `evaluate` with the same arguments plays, by `EpisodeRecord.key`, in its order, each
    once; nothing is played.

    Args:
        policy, tasks, episodes, n: as in `evaluate`.
        setting: "visual_matching" or "variant_aggregation".
        variants: names of the task's variants in this setting; None for those that are scored.
        backend, assets: as in `simulator.make`.
        seed: of the simulator's resets and of dense starts.
        width, height: camera resolution in pixels; with one of them, the other follows the camera's aspect.
            None: what the policy's conventions ask for, else SIMPLER's own (640 x 480 for the WidowX), the
            one to use in comparisons with the literature.

    Raises:
        KitError: as `evaluate`, of what can be known beforehand.
    """
    seed = checked_integer(seed, "seed", 0, LARGEST_SEED)
    chosen = tasks_of(tasks)
    if not chosen:
        raise KitError("no tasks were asked for", 'name one, as in tasks="widowx"')
    episodes = wanted_episodes(episodes)
    if n not in (None, episodes) and not isinstance(episodes, str):
        remedy = f'say episodes={n}, or episodes="dense" (or "spread") with it'
        raise KitError(f"n={n} with episodes={episodes}", remedy)
    variants = [variants] if isinstance(variants, str) else variants and list(variants)
    who = (name_of(policy), identity_of(policy), PROTOCOL_VERSION)
    privileged = bool(getattr(policy, "needs_state", False))
    asked: dict[Key, PlannedEpisode] = {}
    for task in chosen:
        check_conventions(policy, task)
        protocol = task.protocol(setting)
        start, ids = wanted_starts(task, setting, episodes, n)
        found = find_backend(protocol, backend)
        size = _camera_size(policy, task, width, height)
        place = str(Path(assets or ("embedded" if found == MANISKILL else "official")))  # "pack/" is "pack"
        for name in protocol.scored_variants if variants is None else variants:
            variant = protocol.variant(name).name
            scene = Scene(task.name, variant, setting, found, place, *size, privileged)
            for number in ids:
                key = (*who, found, task.name, setting, variant, place, start, number, seed, *size)
                asked.setdefault(key, PlannedEpisode(scene, start, number, seed))
    if not asked:
        raise KitError("no episodes were asked for", "name at least one variant, or leave `variants` out")
    return asked


def wanted_episodes(episodes: Any) -> str | int | list[int] | None:
    """The number of episodes, or their ids, each once, as plain ints; None and words as they are.

    Raises:
        KitError: something else, or bools among them.
    """
    if episodes is None or isinstance(episodes, str):
        return episodes
    if isinstance(episodes, Iterable) and getattr(episodes, "ndim", 1) != 0:  # without a dimension: a number
        return list(dict.fromkeys(checked_integer(each, "an episode's id", 0) for each in episodes))
    return checked_integer(episodes, "episodes", 0)


def wanted_starts(
    task: Task, setting: str, episodes: str | int | list[int] | None, n: Any
) -> tuple[str, list[int]]:
    """(kind of start, ids) that were asked for."""
    protocol = task.protocol(setting)
    if isinstance(episodes, str):
        if episodes not in ("dense", "spread") or n is None:
            what = f"episodes={episodes!r} with n={n}"
            remedy = 'give a number, ids, None, episodes="spread" or episodes="dense" with n=200 or so'
            raise KitError(what, remedy)
        n = checked_integer(n, "n", 1)
        if episodes == "dense":
            start_pose(task, episodes, 0, 0, setting)  # not every task has such starts
        return ("grid", protocol.spread(n)) if episodes == "spread" else ("dense", list(range(n)))
    if episodes is None:
        episodes = protocol.scored
    ids = list(range(episodes)) if isinstance(episodes, int) else episodes
    most = len(protocol.starts) - 1
    if not ids or max(ids) > most:
        what = (
            f"episode {max(ids)} is outside the grid of {task.name}" if ids else "no episodes were asked for"
        )
        raise KitError(what, f'choose from 0 to {most}, or episodes="dense" with n=200 or so')
    return "grid", ids


def _camera_size(policy: Any, task: Task, width: Any, height: Any) -> tuple[int, int]:
    """Width and height in pixels."""
    if width is None and height is None:
        asked = getattr(getattr(policy, "conventions", None), "image_size", None)
        width, height = asked or CAMERA_SIZES[task.robot]
    return picture_size(task.robot, width, height)


def _success(done: list[EpisodeRecord]) -> str:
    """Successes so far and what they allow to say, for the bar."""
    succeeded = sum(record.success_last for record in done)
    low, high = wilson(succeeded, len(done))
    return f"success {succeeded}/{len(done)} = {succeeded / len(done):.0%} ({low:.0%} to {high:.0%})"


def _record(key: Key, take: PolicyTake) -> EpisodeRecord:
    """What came of an ended episode."""
    columns: dict[str, Any] = dict(zip(KEY, key, strict=True)) | versions()
    return EpisodeRecord(
        **columns,
        success_any=take.success_any,
        success_last=take.success,
        grasped=take.grasped,
        steps=take.steps,
        reason=take.reason,
        wall_time=round(time.perf_counter() - take.began, 3) if take.began else 0.0,
        unsolved=take.unsolved,
        touched_first=take.touched_first,
        lifted_first=take.lifted_first,
        ended_on=take.ended_on,
    )


class _FilmedTake(PolicyTake):
    """An episode of which a video appears, where there is a path for one, when it is kept."""

    def __init__(self, episode: PlannedEpisode, path: Path | None, overlay: Overlay | None) -> None:
        super().__init__(episode)
        self._path, self._overlay, self._part = path, overlay, ExitStack()
        self._writer: Any = None

    def answered(self, action: Action) -> None:
        self._film(action)

    def note(self, result: StepResult, masks: Masks) -> None:
        super().note(result, masks)
        if self.over:
            self._film(None)

    def keep(self) -> None:
        """The video is done."""
        if self._path:
            with self._writing():
                if self._writer:
                    self._writer.close()
                self._part.close()
            self._path = None

    def drop(self) -> None:
        if self._path:
            with suppress(OSError, KitError):  # its disk may be full
                if self._writer:
                    self._writer.close(flush=False)
            error = InterruptedError("the episode did not end")
            self._part.__exit__(InterruptedError, error, None)  # takes the part away
            self._path = None

    def _film(self, action: Action | None) -> None:
        """Add a frame: what is seen, and what the policy makes of it."""
        from refinevla_kit.episodes.video import VideoWriter

        if not self._path or not self.observation:
            return
        frame = self.observation.image
        try:
            if self._overlay:
                frame = np.asarray(self._overlay(self.observation, action))
            with self._writing():
                if self._writer is None:
                    rate = find_task(self.episode.scene.task).control_hz
                    part = self._part.enter_context(replacing(self._path))
                    self._writer = VideoWriter(part, rate, *frame.shape[:2])
                self._writer.write(frame[None])
        except KitError:
            raise
        except Exception as error:  # of the overlay, which may be anyone's
            what = f"the overlay failed in {self.episode}, step {self.steps}: {type(error).__name__}: {error}"
            remedy = "an overlay makes a uint8 picture (H, W, 3) of one size; or evaluate without it"
            raise KitError(what, remedy) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, KitError) as error:  # the writer speaks of the part that it writes
            cause = error.__cause__ or error
            reason = getattr(cause, "strerror", None) or cause
            remedy = "free space and run again: finished episodes are kept"
            raise KitError(f"cannot write {self._path} ({reason})", remedy) from error


def _video_path(folder: Path, key: Key) -> Path:
    """No other episode has it, of whatever policy, setting or size."""
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]
    columns = dict(zip(KEY, key, strict=True))
    # As a folder's name, wherever it is looked at.
    policy = re.sub(r"[^\w.+-]", "_", columns["policy"]).strip(".")[:80] or "policy"
    episode = "{task}-{variant}-{start}-{episode_id:03d}".format(**columns)
    return folder / policy / f"{episode}-{digest}.mp4"


def _video_folder(path: str | Path | None) -> Path | None:
    """The folder of videos, made, and without the parts that killed runs have left in it."""
    if not path:
        return None
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part in folder.rglob(".*.mp4.part-*"):
            if abandoned(part):
                part.unlink(missing_ok=True)
    except OSError as error:
        what = f"videos cannot be written to {folder} ({error.strerror})"
        raise KitError(what, "give a folder where files can be written") from error
    return folder
