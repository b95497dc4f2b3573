"""Closed-loop evaluation: play episodes, one record each, resumable, with the policy batched over simulator processes.

Each scene (a task in a variant) has a queue of episodes; a lane that is free goes on with its own scene and takes over another when that is done, so
that few environments are made. The lanes are split in two tables that take turns: while the policy thinks for one, the simulators step the other.
Turns, not timing, decide what is played where, so a run gives the same records however the machine is loaded (a network's rounding may depend on the
size of its batch).
"""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from refinevla_kit.conventions import check_conventions
from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.records import KEY, EpisodeRecord, Journal, Key, journal_path, load_records, save_parquet, versions
from refinevla_kit.evaluation.stations import LocalStation, ProcessStation, Scene, Station, StationDied
from refinevla_kit.evaluation.statistics import wilson
from refinevla_kit.files import replacing
from refinevla_kit.simulator import find_backend
from refinevla_kit.simulator.contract import Array, Observation, Pose, StepResult
from refinevla_kit.tasks import CAMERA_SIZES, MANISKILL, PROTOCOL_VERSION, VISUAL_MATCHING, Task, find_task, find_tasks

LIMITS = np.array([1, 1, 1, np.pi, np.pi, np.pi, 1], np.float32) * 1.001  # metres, radians, gripper: what is beyond is no action of these robots
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
        return f"{self.scene.task}{variant}, {'dense ' if self.start == 'dense' else ''}episode {self.episode}"


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
    """Play `policy` on episodes of `tasks` and record each. Returns the parquet file, which holds all records ever written to `output`.

    Calling it again with the same arguments continues: recorded episodes are not repeated. Several policies may go into one file.

    Args:
        policy: anything with `reset(instruction)` and `act(image)`, which plays one episode at a time, or with `act_batch(images, instructions)`,
            which plays many. `name` and `checkpoint_hash` go into the records; `conventions` are compared with the task's before the first episode.
            With `needs_proprioception = True` both get the robot's own state too, `act(image, proprioception)`; with `needs_state = True` it gets
            simulator state instead: `act_states(states, tasks)`.
        tasks: names of tasks, of groups of them ("pick_coke_can") or of a robot ("widowx"), or `Task`s.
        episodes: number of grid episodes a task and variant (the first ones), the ids themselves, None for those SIMPLER scores, or "dense" for the
            `n` continuous starts that `start_poses.dense_pose` draws from `seed`: the same for every policy, as many as a small gain needs.
        setting: "visual_matching" or "variant_aggregation".
        variants: names of the task's variants in this setting; None for those that are scored.
        backend, assets: as in `simulator.make`.
        seed: of the simulator's resets and of dense starts.
        workers: simulator processes; None for one a core; 0 plays in this process. With processes, a script must guard its entry with
            `if __name__ == "__main__"`.
        batch: episodes played at the same time, over all workers; a batched policy gets half that many images at once. A kill costs at most these.
        output: parquet file, or a folder for `records.parquet`. A journal lies beside it while the run is going on.
        progress: show a bar with the successes so far and their 95 % interval.
        width, height: camera resolution in pixels. None: what the policy's conventions ask for, else SIMPLER's own (640 x 480 for the WidowX), the
            one to use in comparisons with the literature.
        videos: folder for one mp4 an episode, or None.
        overlay: draws on a video frame: (`Observation`, the policy's answer or None at the end) -> image uint8, of any one size.
            `figures.overlays.attention_overlay(policy)` is one.

    Raises:
        KitError: unknown task, variant or episode; conventions that differ; a policy that returns something else than 7 finite numbers in range
            (names the episode); another run writing to `output`. Episodes finished before are kept.
    """
    output = Path(output) if Path(output).suffix == ".parquet" else Path(output) / "records.parquet"
    named = [tasks] if isinstance(tasks, str) else tasks
    chosen = [task for each in named for task in ([each] if isinstance(each, Task) else find_tasks(each))]
    size = (width, height) if width and height else getattr(getattr(policy, "conventions", None), "image_size", None)
    wanted: list[Job] = []
    for task in chosen:
        check_conventions(policy, task)
        protocol = task.protocol(setting)
        start, ids = _episodes(task, setting, episodes, n)
        found = find_backend(protocol, backend)
        columns, rows = size or CAMERA_SIZES[task.robot]
        place = str(assets or ("embedded" if found == MANISKILL else "official"))
        names = [v.name for v in protocol.variants if v.scored] if variants is None else [protocol.variant(name).name for name in variants]
        for name in names:
            scene = Scene(task.name, name, setting, found, place, columns, rows, bool(getattr(policy, "needs_state", False)))
            wanted += [Job(scene, start, episode) for episode in ids]
    lanes = batch if hasattr(policy, "act_batch") or getattr(policy, "needs_state", False) else 1
    with Journal(journal_path(output)) as journal:
        records = {record.key: record for record in [*(load_records(output) if output.exists() else []), *journal.records]}
        run = _Run(policy, seed, journal, Path(videos) if videos else None, overlay)
        done = [records[run.key(job)] for job in wanted if run.key(job) in records]
        jobs = [job for job in wanted if run.key(job) not in records]
        if done and not run.checkpoint_hash:
            warnings.warn(
                f"{len(done)} of {len(wanted)} episodes are taken from {output}: {run.name!r} has no `checkpoint_hash`, so nothing tells this policy "
                "from another of that name; give it one, or another output, when it has changed", stacklevel=2,
            )  # fmt: skip
        with tqdm(total=len(wanted), initial=len(done), desc=run.name, unit="episode", disable=not progress) as bar:
            for record in run.play(jobs, len(os.sched_getaffinity(0)) if workers is None else workers, lanes):
                records[record.key] = record
                done.append(record)
                succeeded = sum(each.success_last for each in done)
                low, high = wilson(succeeded, len(done))
                bar.set_postfix_str(f"success {succeeded}/{len(done)} = {succeeded / len(done):.0%} ({low:.0%} to {high:.0%})", refresh=False)
                bar.update()
        save_parquet(sorted(records.values(), key=lambda record: record.key), output)
        journal.path.unlink()  # its rows are in the parquet file now
    return output


@dataclass
class _Seat:
    """A lane of a station, and the episode it is playing."""

    station: Station
    lane: int
    job: Job | None = None
    observation: Observation | None = None  # that the policy has not answered yet
    instruction: str = ""
    started: float = 0.0
    steps: int = 0
    success_any: bool = False
    grasped: bool = False
    video: _Video | None = None


class _Run:
    """A policy at its episodes."""

    def __init__(self, policy: Any, seed: int, journal: Journal, videos: Path | None, overlay: Overlay | None) -> None:
        self.policy, self.seed, self.journal, self.videos, self.overlay = policy, seed, journal, videos, overlay
        self.name, self.checkpoint_hash = str(getattr(policy, "name", type(policy).__name__)), str(getattr(policy, "checkpoint_hash", ""))
        self._queues: dict[Scene, deque[Job]] = {}
        self._seats: list[_Seat] = []
        self._crashes: Counter[Job] = Counter()

    def key(self, job: Job) -> Key:
        """`EpisodeRecord.key` of an episode of this run, in the order of `records.KEY`."""
        scene = job.scene
        return (
            self.name, self.checkpoint_hash, PROTOCOL_VERSION, scene.backend, scene.task, scene.setting, scene.variant, scene.assets, job.start,
            job.episode, self.seed, scene.width, scene.height,
        )  # fmt: skip

    def play(self, jobs: list[Job], workers: int, lanes: int) -> Iterator[EpisodeRecord]:
        """Play `jobs`, `lanes` at a time, yielding each record when it is on the disk."""
        for job in jobs:
            self._queues.setdefault(job.scene, deque()).append(job)
        stations: list[Station] = []
        count = min(lanes, len(jobs))
        try:
            stations += [ProcessStation() if workers else LocalStation() for _ in range(min(max(workers, 1), count))]
            self._seats = [_Seat(stations[index % len(stations)], index) for index in range(count)]
            tables = [[seat for seat in self._seats if seat.lane // len(stations) % 2 == side] for side in (0, 1)]
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
                seat.observation, seat.started, seat.instruction = reply, time.perf_counter(), ""
            elif record := self._advance(seat, reply):
                yield record
                self._begin(seat, self._next(seat))
        asking = [seat for seat in table if seat.observation]
        if asking:
            try:
                answers = self._ask(asking)
            except KitError as error:
                who = f"policy {self.name!r} in {asking[0].job}, step {asking[0].steps}" + (f" (and {len(asking) - 1} more)" if asking[1:] else "")
                raise KitError(f"{who}: {error.what}", error.remedy) from error
            for seat, answer in zip(asking, answers, strict=True):
                action = self._checked(answer, seat)
                if seat.video and seat.observation:
                    seat.video.write(seat.observation, answer)
                seat.observation = None
                seat.station.step(seat.lane, action, bool(getattr(answer, "terminate", False)))

    def _next(self, seat: _Seat) -> Job | None:
        """The next episode of the seat's own scene, else of the scene with the most episodes left for each seat that plays it."""
        mine = seat.job.scene if seat.job else None
        if mine not in self._queues:
            playing = Counter(other.job.scene for other in self._seats if other.job and other is not seat)
            mine = max(self._queues, key=lambda scene: len(self._queues[scene]) / (1 + playing[scene]), default=None)
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
        seat.job, seat.observation, seat.steps, seat.success_any, seat.grasped, seat.video = job, None, 0, False, False, None
        if job is None:
            return
        task = find_task(job.scene.task)
        if self.videos:
            path = self.videos / self.name / f"{task.name}-{job.scene.variant}-{job.start}-{job.episode:03d}.mp4"
            seat.video = _Video(path, task.control_hz, self.overlay)
        seat.station.reset(seat.lane, job.scene, self._start(task, job), self.seed)

    def _start(self, task: Task, job: Job) -> int | Pose:
        if job.start == "grid":
            return job.episode
        from refinevla_kit.simulator.start_poses import dense_pose

        return dense_pose(task, job.episode, self.seed)

    def _recover(self, station: Station, death: StationDied) -> Iterator[EpisodeRecord]:
        """Start a dead process again and repeat its episodes; the one that killed it twice is recorded as a crash."""
        seats = [seat for seat in self._seats if seat.station is station and seat.job]
        culprit = next(seat for seat in seats if seat.lane == death.lane)
        assert culprit.job is not None
        if not death.answered:
            raise KitError(
                f"{culprit.job}: a simulator process failed before its first step: {_last_line(death)}",
                "run with workers=0, where the fault shows itself; a script must guard its entry with `if __name__ == '__main__'`",
            ) from death
        station.restart()
        self._crashes[culprit.job] += 1
        warnings.warn(f"{culprit.job}, step {culprit.steps}: {_last_line(death)}; the process was started again", RuntimeWarning, stacklevel=2)
        if self._crashes[culprit.job] == CRASHES:
            culprit.success_any = False
            yield self._record(culprit, success=False, reason="crash")
            culprit.job = self._next(culprit)
        for seat in seats:
            self._begin(seat, seat.job)

    def _ask(self, seats: list[_Seat]) -> list[Any]:
        """One answer of the policy a seat."""
        observations = [seat.observation for seat in seats if seat.observation]
        for seat, observation in zip(seats, observations, strict=True):
            if seat.instruction != observation.instruction and hasattr(self.policy, "reset"):
                self.policy.reset(observation.instruction)
            seat.instruction = observation.instruction
        own = [observation.proprioception for observation in observations] if getattr(self.policy, "needs_proprioception", False) else None
        if getattr(self.policy, "needs_state", False):
            tasks = [seat.job.scene.task for seat in seats if seat.job]
            answers = self.policy.act_states([observation.state for observation in observations], tasks)
        elif hasattr(self.policy, "act_batch"):
            groups: dict[tuple[int, ...], list[int]] = {}
            for index, observation in enumerate(observations):  # robots differ in their cameras: one call a size
                groups.setdefault(observation.image.shape, []).append(index)
            answers = [None] * len(seats)
            for rows in groups.values():
                images, sentences = np.stack([observations[row].image for row in rows]), [observations[row].instruction for row in rows]
                found = self.policy.act_batch(images, sentences, *([np.stack([own[row] for row in rows])] if own else []))
                if len(found) != len(rows):
                    raise KitError(f"{len(found)} actions came back for {len(rows)} images", "act_batch returns one an image")
                for row, answer in zip(rows, found, strict=True):
                    answers[row] = answer
        else:
            answers = [self.policy.act(observation.image, *(own[row : row + 1] if own else [])) for row, observation in enumerate(observations)]
        return list(answers)

    def _checked(self, answer: Any, seat: _Seat) -> Array:
        """The action in an answer, float32 (7,)."""
        action = np.asarray(getattr(answer, "processed", answer), np.float32)
        where = f"policy {self.name!r} in {seat.job}, step {seat.steps}"
        if action.shape != LIMITS.shape:
            raise KitError(f"{where} returned an action of shape {action.shape}", f"an action is {len(LIMITS)} numbers: see Simulator.step")
        if not np.isfinite(action).all():
            raise KitError(f"{where} returned {action.tolist()}", "check the policy's un-normalisation statistics and its checkpoint")
        if (np.abs(action) > LIMITS).any():
            raise KitError(
                f"{where} returned {action.round(3).tolist()}, beyond 1 m, pi radians or a gripper of 1",
                "return metres, radians and a gripper between -1 and 1: check un-normalisation and the gripper's convention",
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
        if seat.video:
            seat.video.write(result.observation, None)
        return self._record(seat, result.success, result.reason)

    def _record(self, seat: _Seat, success: bool, reason: str) -> EpisodeRecord:
        """Put an ended episode on the disk."""
        assert seat.job is not None
        columns: dict[str, Any] = dict(zip(KEY, self.key(seat.job), strict=True)) | versions()
        wall_time = round(time.perf_counter() - seat.started, 3)
        record = EpisodeRecord(
            **columns, success_any=seat.success_any, success_last=success, grasped=seat.grasped, steps=seat.steps, reason=reason, wall_time=wall_time,
        )  # fmt: skip
        if seat.video:
            seat.video.keep()
            seat.video = None
        self.journal.append(record)
        return record


class _Video:
    """An mp4 that appears under its name when the episode is over."""

    def __init__(self, path: Path, fps: int, overlay: Overlay | None) -> None:
        self._path, self._fps, self._overlay, self._stack = path, fps, overlay, ExitStack()
        self._writer: Any = None

    def write(self, observation: Observation, answer: Any) -> None:
        """Add a frame; answer: what the policy makes of it."""
        from refinevla_kit.episodes.video import VideoWriter

        frame = observation.image if self._overlay is None else self._overlay(observation, answer)
        if self._writer is None:
            self._writer = VideoWriter(self._stack.enter_context(replacing(self._path)), self._fps, *frame.shape[:2])
        self._writer.write(frame[None])

    def keep(self) -> None:
        if self._writer:
            self._writer.close()
        self._stack.close()

    def drop(self) -> None:
        if self._writer:
            self._writer.close()
        error = InterruptedError("the episode did not end")
        self._stack.__exit__(InterruptedError, error, None)  # takes the part away


def _episodes(task: Task, setting: str, episodes: str | int | Iterable[int] | None, n: int | None) -> tuple[str, list[int]]:
    """(kind of start, ids) that were asked for."""
    protocol = task.protocol(setting)
    if isinstance(episodes, str):
        if episodes != "dense" or not n or n < 1:
            raise KitError(f"episodes={episodes!r} with n={n}", 'give a number, ids, None, or episodes="dense" with n=200 or so')
        return "dense", list(range(n))
    ids = list(range(protocol.scored if episodes is None else episodes) if episodes is None or isinstance(episodes, int) else episodes)
    outside = [episode for episode in ids if not 0 <= episode < len(protocol.starts)]
    if outside or not ids:
        what = f"episode {outside[0]} is outside the grid of {task.name}" if outside else "no episodes were asked for"
        raise KitError(what, f'choose from 0 to {len(protocol.starts) - 1}, or episodes="dense" with n=200 or so')
    return "grid", ids


def _last_line(death: StationDied) -> str:
    return str(death).strip().splitlines()[-1]
