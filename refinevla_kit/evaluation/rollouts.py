"""Closed-loop evaluation: play episodes, one record each, resumable, with the policy batched over simulator
processes.

Each scene (a task in a variant) has a queue of episodes; a lane that is free goes on with its own scene and
takes over another when that is done, so that few environments are made. The lanes are split in two tables
that take turns: while the policy thinks for one, the simulators step the other. Turns, not timing, decide
what is played where, so a run gives the same records however the machine is loaded (a network's rounding may
depend on the size of its batch).
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
import re
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.records import (
    KEY,
    EpisodeRecord,
    Key,
    RecordJournal,
    journal_path,
    load_records,
    save_parquet,
    versions,
)
from refinevla_kit.evaluation.stations import LocalStation, ProcessStation, Scene, Station, StationDied
from refinevla_kit.evaluation.statistics import wilson
from refinevla_kit.files import abandoned, replacing
from refinevla_kit.policies.contract import Action, ask, begin, has, identity_of, name_of, naming, read_answer
from refinevla_kit.policies.conversion import check_conventions
from refinevla_kit.simulator import find_backend
from refinevla_kit.simulator.contract import Array, Observation, Pose, StepResult
from refinevla_kit.tasks import (
    CAMERA_SIZES,
    MANISKILL,
    PROTOCOL_VERSION,
    VISUAL_MATCHING,
    Task,
    find_task,
    find_tasks,
)

LIMITS = (
    np.array([1, 1, 1, np.pi, np.pi, np.pi, 1], np.float32) * 1.001
)  # metres, radians, gripper: what is beyond is no action of these robots
LARGEST_SIDE = 4096  # pixels
CRASHES = 2  # of one episode, after which it is recorded as such
Overlay = Callable[[Observation, Any], Array]


@dataclass(frozen=True)
class Job:
    """One episode to play: a scene and the start ("grid" or "dense") of that number."""

    scene: Scene
    start: str
    episode: int

    def __str__(self) -> str:
        variant = "" if self.scene.variant == "base" else f" ({self.scene.variant})"
        return (
            f"{self.scene.task}{variant}, {'dense ' if self.start == 'dense' else ''}episode {self.episode}"
        )


def evaluate(
    policy: Any,
    tasks: str | Iterable[str | Task],
    episodes: str | int | Iterable[int] | None = None,
    n: int | None = None,
    *,
    setting: str = VISUAL_MATCHING,
    variants: Iterable[str] | None = None,
    backend: str = "auto",
    assets: str | Path | None = None,
    seed: int = 0,
    workers: int | None = None,
    batch: int = 8,
    output: str | Path = "records.parquet",
    progress: bool = True,
    width: int | None = None,
    height: int | None = None,
    videos: str | Path | None = None,
    overlay: Overlay | None = None,
) -> Path:
    """Play `policy` on episodes of `tasks` and record each. Returns the parquet file, which holds all records
    ever written to `output`.

    Calling it again with the same arguments continues: recorded episodes are not repeated. Several policies
    may go into one file.

    Args:
        policy: anything with `reset(instruction)` and `act(image)` or `step(image, instruction)`, which plays
            one episode at a time, or with `act_batch(images, instructions)`, which plays many; what it may
            return is told in `policies.answers`. The rows of a chunk are executed one after another before it
            is asked again. `name` and `checkpoint_hash` (see `Policy`) go into the records: another hash is
            another policy, whose episodes are played. `conventions` are compared with the task's before the
            first episode. With `needs_proprioception = True` both get the robot's own state too, `act(image,
            proprioception)`; with `needs_state = True` it gets simulator state instead: `act_states(states,
            tasks)`.
        tasks: names of tasks, of groups of them ("pick_coke_can") or of a robot ("widowx"), or `Task`s; what
            is named twice is played once.
        episodes: number of grid episodes a task and variant (the first ones), the ids themselves (NumPy's and
            pandas' too), None for those SIMPLER scores, or "dense" for the `n` continuous starts that
            `start_poses.dense_pose` draws from `seed`: the same for every policy, as many as a small gain
            needs.
        setting: "visual_matching" or "variant_aggregation".
        variants: names of the task's variants in this setting; None for those that are scored.
        backend, assets: as in `simulator.make`.
        seed: of the simulator's resets and of dense starts.
        workers: simulator processes; None for one a core; 0 plays in this process. With processes, a script
            must guard its entry with `if __name__ == "__main__"`.
        batch: episodes played at the same time, over all workers; a batched policy gets half that many images
            at once. A kill costs at most these.
        output: parquet file, or a folder for `records.parquet`. A journal lies beside it while the run is
            going on.
        progress: show a bar with the successes so far and their 95 % interval.
        width, height: camera resolution in pixels; with one of them, the other follows the camera's aspect.
            None: what the policy's conventions ask for, else SIMPLER's own (640 x 480 for the WidowX), the
            one to use in comparisons with the literature.
        videos: folder for one mp4 an episode, in a folder of the policy's name, or None. A name ends in a
            digest of the record's key.
        overlay: draws on a video frame: (`Observation`, the policy's `Action` or None at the end) -> image
            uint8, of any one size. `figures.overlays.attention_overlay(policy)` is one.

    Raises:
        KitError: unknown task, variant or episode; conventions that differ; a policy that fails, or returns
            something else than 7 finite numbers in range (names policy, episode and step; what the policy
            raised is the `__cause__`); an output or folder of videos that cannot be written, or that another
            run writes to. Episodes finished before are kept.
    """
    output = Path(output)
    if output.suffix != ".parquet" or output.is_dir():
        output /= "records.parquet"
    batch, seed = whole(batch, "batch", 1), whole(seed, "seed", 0, 2**32 - 1)
    workers = len(os.sched_getaffinity(0)) if workers is None else whole(workers, "workers", 0)
    if not any(has(policy, verb) for verb in ("act_states", "act_batch", "act", "step")):
        remedy = "give it `act(image)`, `act_batch(images, instructions)` or `step(image, instruction)`"
        raise KitError(f"policy {name_of(policy)!r} has nothing to act with", remedy)
    wanted = _planned(policy, tasks, episodes, n, setting, variants, backend, assets, seed, width, height)
    lanes = batch if has(policy, "act_batch") or getattr(policy, "needs_state", False) else 1
    folder = _video_folder(videos)
    with RecordJournal(journal_path(output)) as journal:
        records = {record.key: record for record in load_records(output)}
        run = _Run(policy, seed, journal, folder, overlay)
        done = [records[key] for key in wanted if key in records]
        jobs = [job for key, job in wanted.items() if key not in records]
        if done and run.checkpoint_hash.partition("+")[0] == "":
            warnings.warn(
                f"{len(done)} of {len(wanted)} episodes are taken from {output}: {run.name!r} has no "
                "`checkpoint_hash`, so nothing tells this policy "
                "from another of that name; give it one, or another output, when it has changed",
                stacklevel=2,
            )
        with tqdm(
            total=len(wanted), initial=len(done), desc=run.name, unit="episode", disable=not progress
        ) as bar:
            for record in run.play(jobs, workers, lanes):
                records[record.key] = record
                done.append(record)
                succeeded = sum(each.success_last for each in done)
                low, high = wilson(succeeded, len(done))
                bar.set_postfix_str(
                    f"success {succeeded}/{len(done)} = {succeeded / len(done):.0%} ({low:.0%} to "
                    f"{high:.0%})",
                    refresh=False,
                )
                bar.update()
        save_parquet(sorted(records.values(), key=lambda record: record.key), output)
        journal.remove()  # its rows are in the parquet file now
    return output


def plan(
    policy: Any,
    tasks: str | Iterable[str | Task],
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
) -> list[Key]:
    """`EpisodeRecord.key` of each episode that `evaluate` with the same arguments plays, in its order;
    nothing is played.

    Raises:
        KitError: as `evaluate`, of what can be known beforehand.
    """
    seed = whole(seed, "seed", 0, 2**32 - 1)
    return list(_planned(policy, tasks, episodes, n, setting, variants, backend, assets, seed, width, height))


def _planned(
    policy: Any,
    tasks: str | Iterable[str | Task],
    episodes: Any,
    n: int | None,
    setting: str,
    variants: Iterable[str] | None,
    backend: str,
    assets: str | Path | None,
    seed: int,
    width: int | None,
    height: int | None,
) -> dict[Key, Job]:
    """The episodes that `evaluate` was asked for by their keys, in order, each once."""
    named = [tasks] if isinstance(tasks, (str, Task)) else tasks
    chosen = [task for each in named for task in ([each] if isinstance(each, Task) else find_tasks(each))]
    if not chosen:
        raise KitError("no tasks were asked for", 'name one, as in tasks="widowx"')
    episodes = episodes if episodes is None or isinstance(episodes, str) else wanted_episodes(episodes)
    variants = None if variants is None else [variants] if isinstance(variants, str) else list(variants)
    asked: dict[Key, Job] = {}
    name, identity = name_of(policy), identity_of(policy)
    for task in chosen:
        check_conventions(policy, task)
        protocol = task.protocol(setting)
        start, ids = _episodes(task, setting, episodes, n)
        found = find_backend(protocol, backend)
        columns, rows = _camera_size(policy, task, width, height)
        place = str(assets or ("embedded" if found == MANISKILL else "official"))
        shown = (
            [v.name for v in protocol.variants if v.scored]
            if variants is None
            else [protocol.variant(each).name for each in variants]
        )
        for variant in shown:
            scene = Scene(
                task.name,
                variant,
                setting,
                found,
                place,
                columns,
                rows,
                bool(getattr(policy, "needs_state", False)),
            )
            jobs = [Job(scene, start, episode) for episode in ids]
            asked |= {_key(name, identity, seed, job): job for job in jobs}
    if not asked:
        raise KitError("no episodes were asked for", "name at least one variant, or leave `variants` out")
    return asked


def _key(name: str, identity: str, seed: int, job: Job) -> Key:
    """`EpisodeRecord.key` of an episode of a policy, in the order of `records.KEY`."""
    scene = job.scene
    return (
        name,
        identity,
        PROTOCOL_VERSION,
        scene.backend,
        scene.task,
        scene.setting,
        scene.variant,
        scene.assets,
        job.start,
        job.episode,
        seed,
        scene.width,
        scene.height,
    )


def whole(value: Any, name: str, least: int, most: int = 2**63 - 1) -> int:
    """`value` as an int, also of NumPy.

    Raises:
        KitError: no whole number, a bool, or out of bounds.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, (bool, np.bool_)) or not least <= number <= most:
        limits = f"from {least} to {most}" if most < 2**63 - 1 else f"of at least {least}"
        raise KitError(f"{name} is {value!r}", f"give a whole number {limits}")
    return number


def wanted_episodes(episodes: Any) -> int | list[int]:
    """The number of episodes, or their ids, as plain ints; each id once.

    Raises:
        KitError: something else, or bools among them.
    """
    if (
        isinstance(episodes, Iterable) and getattr(episodes, "ndim", 1) != 0
    ):  # an array without a dimension is a number
        return list(dict.fromkeys(whole(each, "an episode's id", 0) for each in episodes))
    return whole(episodes, "episodes", 0)


@dataclass
class _Seat:
    """A lane of a station, and the episode it is playing."""

    station: Station
    lane: int
    job: Job | None = None
    observation: Observation | None = None  # that the policy has not answered yet
    instruction: str | None = None
    chunk: deque[Action] = field(default_factory=deque)  # said already, to be executed without asking again
    started: float = 0.0
    steps: int = 0
    success_any: bool = False
    grasped: bool = False
    video: _Video | None = None


class _Run:
    """A policy at its episodes."""

    def __init__(
        self, policy: Any, seed: int, journal: RecordJournal, videos: Path | None, overlay: Overlay | None
    ) -> None:
        self.policy, self.seed, self.journal, self.videos, self.overlay = (
            policy,
            seed,
            journal,
            videos,
            overlay,
        )
        self.name, self.checkpoint_hash = name_of(policy), identity_of(policy)
        self._queues: dict[Scene, deque[Job]] = {}
        self._seats: list[_Seat] = []
        self._crashes: Counter[Job] = Counter()

    def key(self, job: Job) -> Key:
        """`EpisodeRecord.key` of an episode of this run, in the order of `records.KEY`."""
        return _key(self.name, self.checkpoint_hash, self.seed, job)

    def play(self, jobs: list[Job], workers: int, lanes: int) -> Iterator[EpisodeRecord]:
        """Play `jobs`, `lanes` at a time, yielding each record when it is on the disk."""
        for job in jobs:
            self._queues.setdefault(job.scene, deque()).append(job)
        stations: list[Station] = []
        count = min(lanes, len(jobs))
        try:
            stations += [
                ProcessStation() if workers else LocalStation() for _ in range(min(max(workers, 1), count))
            ]
            self._seats = [_Seat(stations[index % len(stations)], index) for index in range(count)]
            tables = [
                [seat for seat in self._seats if seat.lane // len(stations) % 2 == side] for side in (0, 1)
            ]
            for seat in self._seats:
                self._begin(seat, self._next(seat))
            while any(seat.job for seat in self._seats):
                for table in tables:
                    yield from self._turn([seat for seat in table if seat.job])
        finally:
            for seat in self._seats:
                if seat.video:
                    seat.video.drop()
            for station in stations:
                station.close()

    def _turn(self, table: list[_Seat]) -> Iterator[EpisodeRecord]:
        """Take what the simulators of a table have to say, and answer."""
        for seat in table:
            try:
                reply = seat.station.receive(seat.lane)
            except KitError as error:
                raise KitError(f"{seat.job}, step {seat.steps}: {error.what}", error.remedy) from error
            except StationDied as death:
                yield from self._recover(seat.station, death)
                continue
            if isinstance(reply, Observation):
                seat.observation, seat.started, seat.instruction = reply, time.perf_counter(), None
            elif record := self._advance(seat, reply):
                yield record
                self._begin(seat, self._next(seat))
        asking = [seat for seat in table if seat.observation]
        self._fill([seat for seat in asking if not seat.chunk or _told_anew(seat)])
        for seat in asking:
            answer = seat.chunk.popleft()
            action = self._checked(answer, seat)
            self._film(seat, seat.observation, answer)
            seat.observation = None
            seat.station.step(seat.lane, action, answer.terminate)

    def _fill(self, seats: list[_Seat]) -> None:
        """Ask the policy what the seats do next."""
        asking = [(seat, seat.observation) for seat in seats if seat.observation]
        if not asking:
            return
        with naming(self._where(seats[0]) + (f" (and {len(seats) - 1} more)" if seats[1:] else "")):
            for seat, observation in asking:
                if seat.instruction != observation.instruction:
                    begin(self.policy, observation.instruction)
                seat.instruction = observation.instruction
            answers = ask(
                self.policy,
                [observation.image for _, observation in asking],
                [observation.instruction for _, observation in asking],
                [observation.proprioception for _, observation in asking],
                [observation.state for _, observation in asking],
                [seat.job.scene.task for seat in seats if seat.job],
            )
        for seat, answer in zip(seats, answers, strict=True):
            with naming(self._where(seat)):
                seat.chunk = deque(read_answer(answer))

    def _where(self, seat: _Seat) -> str:
        return f"policy {self.name!r} in {seat.job}, step {seat.steps}"

    def _film(self, seat: _Seat, observation: Observation | None, answer: Action | None) -> None:
        """Add a frame to the seat's video, if there is one."""
        if not seat.video or not observation:
            return
        try:
            seat.video.write(observation, answer)
        except KitError:
            raise
        except Exception as error:  # of the overlay, which may be anyone's
            what = f"the overlay failed in {seat.job}, step {seat.steps}: {type(error).__name__}: {error}"
            raise KitError(
                what, "an overlay makes a uint8 picture (H, W, 3) of one size; or evaluate without it"
            ) from error

    def _next(self, seat: _Seat) -> Job | None:
        """The next episode of the seat's own scene, else of the scene with the most episodes left for each
        seat that plays it.
        """
        mine = seat.job.scene if seat.job else None
        if mine not in self._queues:
            playing = Counter(other.job.scene for other in self._seats if other.job and other is not seat)
            mine = max(
                self._queues, key=lambda scene: len(self._queues[scene]) / (1 + playing[scene]), default=None
            )
        if mine is None:
            return None
        job = self._queues[mine].popleft()
        if not self._queues[mine]:
            del self._queues[mine]
        return job

    def _begin(self, seat: _Seat, job: Job | None) -> None:
        """Send the seat to the start of `job`."""
        if seat.video:
            seat.video.drop()
        seat.job, seat.observation, seat.steps, seat.success_any, seat.grasped, seat.video = (
            job,
            None,
            0,
            False,
            False,
            None,
        )
        seat.chunk.clear()
        if job is None:
            return
        task = find_task(job.scene.task)
        if self.videos:
            seat.video = _Video(self._video_path(self.videos, job), task.control_hz, self.overlay)
        seat.station.reset(seat.lane, job.scene, self._start(task, job), self.seed)

    def _video_path(self, folder: Path, job: Job) -> Path:
        """No other episode has it, of whatever policy, setting or size."""
        digest = hashlib.sha256(json.dumps(self.key(job)).encode()).hexdigest()[:8]
        name = (
            re.sub(r"[^\w.+-]", "_", self.name).strip(".")[:80] or "policy"
        )  # as a folder's, wherever it is looked at
        return (
            folder / name / f"{job.scene.task}-{job.scene.variant}-{job.start}-{job.episode:03d}-{digest}.mp4"
        )

    def _start(self, task: Task, job: Job) -> int | Pose:
        if job.start == "grid":
            return job.episode
        from refinevla_kit.simulator.start_poses import dense_pose

        return dense_pose(task, job.episode, self.seed)

    def _recover(self, station: Station, death: StationDied) -> Iterator[EpisodeRecord]:
        """Start a dead process again and repeat its episodes; the one that killed it twice is recorded as a
        crash.
        """
        seats = [seat for seat in self._seats if seat.station is station and seat.job]
        culprit = next(seat for seat in seats if seat.lane == death.lane)
        assert culprit.job is not None
        if not death.answered:
            raise KitError(
                f"{culprit.job}: a simulator process failed before its first step: {_last_line(death)}",
                "run with workers=0, where the fault shows itself; a script must guard its entry "
                "with `if __name__ == '__main__'`",
            ) from death
        station.restart()
        self._crashes[culprit.job] += 1
        warnings.warn(
            f"{culprit.job}, step {culprit.steps}: {_last_line(death)}; the process was started again",
            RuntimeWarning,
            stacklevel=2,
        )
        if self._crashes[culprit.job] == CRASHES:
            culprit.success_any = False
            yield self._record(culprit, success=False, reason="crash")
            culprit.job = self._next(culprit)
        for seat in seats:
            self._begin(seat, seat.job)

    def _checked(self, answer: Action, seat: _Seat) -> Array:
        """The action of an answer, float32 (7,)."""
        action, where = answer.processed, self._where(seat)
        if not np.isfinite(action).all():
            raise KitError(
                f"{where} returned {action.tolist()}",
                "check the policy's un-normalisation statistics and its checkpoint",
            )
        if (np.abs(action) > LIMITS).any():
            raise KitError(
                f"{where} returned {action.round(3).tolist()}, beyond 1 m, pi radians or a gripper of 1",
                "return metres, radians and a gripper between -1 and 1: check un-normalisation and "
                "the gripper's convention",
            )
        return action

    def _advance(self, seat: _Seat, result: StepResult) -> EpisodeRecord | None:
        """Take note of a step; the record when it was the episode's last."""
        seat.steps += 1
        seat.success_any |= result.success
        seat.grasped |= result.grasped
        if not result.done:
            seat.observation = result.observation
            return None
        self._film(seat, result.observation, None)
        return self._record(seat, result.success, result.reason)

    def _record(self, seat: _Seat, success: bool, reason: str) -> EpisodeRecord:
        """Put an ended episode on the disk."""
        assert seat.job is not None
        columns: dict[str, Any] = dict(zip(KEY, self.key(seat.job), strict=True)) | versions()
        wall_time = round(time.perf_counter() - seat.started, 3)
        record = EpisodeRecord(
            **columns,
            success_any=seat.success_any,
            success_last=success,
            grasped=seat.grasped,
            steps=seat.steps,
            reason=reason,
            wall_time=wall_time,
        )
        if seat.video:
            seat.video.keep()
            seat.video = None
        self.journal.add(record)
        return record


class _Video:
    """An mp4 that appears under its name when the episode is over."""

    def __init__(self, path: Path, fps: int, overlay: Overlay | None) -> None:
        self._path, self._fps, self._overlay, self._stack = path, fps, overlay, ExitStack()
        self._writer: Any = None

    def write(self, observation: Observation, answer: Action | None) -> None:
        """Add a frame; answer: what the policy makes of it."""
        from refinevla_kit.episodes.video import VideoWriter

        frame = observation.image if self._overlay is None else np.asarray(self._overlay(observation, answer))
        with self._told():
            if self._writer is None:
                self._writer = VideoWriter(
                    self._stack.enter_context(replacing(self._path)), self._fps, *frame.shape[:2]
                )
            self._writer.write(frame[None])

    def keep(self) -> None:
        with self._told():
            if self._writer:
                self._writer.close()
            self._stack.close()

    def drop(self) -> None:
        with suppress(OSError, KitError):  # its disk may be full
            if self._writer:
                self._writer.close(flush=False)
        error = InterruptedError("the episode did not end")
        self._stack.__exit__(InterruptedError, error, None)  # takes the part away

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, KitError) as error:  # the writer speaks of the part that it writes
            cause = error.__cause__ or error
            reason = getattr(cause, "strerror", None) or cause
            raise KitError(
                f"cannot write {self._path} ({reason})",
                "free space and run again: finished episodes are kept",
            ) from error


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
        raise KitError(
            f"videos cannot be written to {folder} ({error.strerror})",
            "give a folder where files can be written",
        ) from error
    return folder


def _camera_size(policy: Any, task: Task, width: Any, height: Any) -> tuple[int, int]:
    """Width and height in pixels."""
    full_width, full_height = CAMERA_SIZES[task.robot]
    if width is None and height is None:
        width, height = getattr(getattr(policy, "conventions", None), "image_size", None) or (
            full_width,
            full_height,
        )
    if width is None:
        width = max(1, round(whole(height, "height", 1, LARGEST_SIDE) * full_width / full_height))
    if height is None:
        height = max(1, round(whole(width, "width", 1, LARGEST_SIDE) * full_height / full_width))
    return whole(width, "width", 1, LARGEST_SIDE), whole(height, "height", 1, LARGEST_SIDE)


def _episodes(
    task: Task, setting: str, episodes: str | int | list[int] | None, n: Any
) -> tuple[str, list[int]]:
    """(kind of start, ids) that were asked for."""
    protocol = task.protocol(setting)
    if isinstance(episodes, str):
        if episodes != "dense" or n is None:
            raise KitError(
                f"episodes={episodes!r} with n={n}",
                'give a number, ids, None, or episodes="dense" with n=200 or so',
            )
        return "dense", list(range(whole(n, "n", 1)))
    if episodes is None:
        episodes = protocol.scored
    ids = list(range(episodes)) if isinstance(episodes, int) else episodes
    outside = [episode for episode in ids if not 0 <= episode < len(protocol.starts)]
    if outside or not ids:
        what = (
            f"episode {outside[0]} is outside the grid of {task.name}"
            if outside
            else "no episodes were asked for"
        )
        raise KitError(
            what, f'choose from 0 to {len(protocol.starts) - 1}, or episodes="dense" with n=200 or so'
        )
    return "grid", ids


def _told_anew(seat: _Seat) -> bool:
    """Whether another instruction holds than that of the seat's chunk."""
    return seat.observation is not None and seat.observation.instruction != seat.instruction


def _last_line(death: StationDied) -> str:
    return str(death).strip().splitlines()[-1]
