"""Closed-loop evaluation: play episodes, one record each, resumable, with the policy batched over simulator processes.

The episodes of all tasks form one queue in task order; a worker that is done takes the next. All workers step together, so the policy sees full
batches and a run gives the same records however the machine is loaded (a network's rounding may depend on the size of its batch, not on timing).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.records import EpisodeRecord, Journal, Key, journal_path, load_records, save_parquet, versions
from refinevla_kit.evaluation.stations import LocalStation, ProcessStation, Reply, Scene, Station
from refinevla_kit.simulator.contract import Array, Observation, StepResult
from refinevla_kit.tasks import Task, find_task

SETTING = "visual_matching"  # the only setting SIMPLER defines for the WidowX
ACTION_SIZE = 7


def evaluate(
    policy: Any,
    tasks: Iterable[str | Task],
    episodes: int | Iterable[int] | None = None,
    assets: str | Path = "embedded",
    seed: int = 0,
    workers: int = 1,
    batch: int = 8,
    output: str | Path = "records.parquet",
    progress: bool = True,
    width: int = 160,
    height: int = 120,
    videos: str | Path | None = None,
) -> Path:
    """Play `policy` on grid episodes of `tasks` and record each. Returns the parquet file, which holds all records ever written to `output`.

    Calling it again with the same arguments continues: recorded episodes are not repeated. Several policies may go into one file.

    Args:
        policy: a `Policy`, or anything with `name`, `checkpoint_hash` and `act_batch(images, instructions)`. One with only `reset(instruction)` and
            `act(image)` plays one episode at a time. With `needs_state = True` it gets simulator state: `act_states(states, tasks)`.
        tasks: task names or `Task`s.
        episodes: number of grid episodes a task (the first ones), the ids themselves, or None for those SIMPLER scores.
        assets: as in `simulator.make`.
        seed: of the simulator's resets.
        workers: simulator processes; 0 plays in this process. With processes, a script must guard its entry with `if __name__ == "__main__"`.
        batch: episodes played at the same time, over all workers; the policy gets that many images at once. A kill costs at most these.
        output: parquet file, or a folder for `records.parquet`. A journal lies beside it while the run is going on.
        progress: show a bar with the successes so far.
        width, height: camera resolution in pixels.
        videos: folder for one mp4 an episode, or None.

    Raises:
        KitError: unknown task or episode; a policy that returns something else than 7 finite numbers; a dead worker (both name the episode);
            another run writing to `output`. Episodes finished before are kept.
    """
    output = Path(output) if Path(output).suffix == ".parquet" else Path(output) / "records.parquet"
    chosen = [task if isinstance(task, Task) else find_task(task) for task in tasks]
    wanted = [(task, episode) for task in chosen for episode in _episode_ids(task, episodes)]
    batched = hasattr(policy, "act_batch") or getattr(policy, "needs_state", False)
    scene = Scene(str(assets), width, height, bool(getattr(policy, "needs_state", False)))
    with Journal(journal_path(output)) as journal:
        records = {record.key: record for record in [*(load_records(output) if output.exists() else []), *journal.records]}
        run = _Run(policy, scene, seed, journal, Path(videos) if videos else None)
        done = [records[run.key(*job)] for job in wanted if run.key(*job) in records]
        run.jobs.extend(job for job in wanted if run.key(*job) not in records)
        with tqdm(total=len(wanted), initial=len(done), desc=policy.name, unit="episode", disable=not progress) as bar:
            succeeded = sum(record.success_last for record in done)
            for record in run.play(workers, batch if batched else 1):
                records[record.key] = record
                succeeded += record.success_last
                bar.update()
                bar.set_postfix_str(f"success {succeeded}/{bar.n}")
        save_parquet(sorted(records.values(), key=lambda record: record.key), output)
        journal.path.unlink()  # its rows are in the parquet file now
    return output


@dataclass
class _Seat:
    """A lane of a station and the episode it is playing."""

    station: Station
    lane: int
    task: Task
    episode: int
    observation: Observation | None = None
    started: float = 0.0
    steps: int = 0
    success_any: bool = False
    grasped: bool = False
    frames: list[Array] = field(default_factory=list)


class _Run:
    """The episodes still to play, and how."""

    def __init__(self, policy: Any, scene: Scene, seed: int, journal: Journal, videos: Path | None) -> None:
        self.policy, self.scene, self.seed, self.journal, self.videos = policy, scene, seed, journal, videos
        self.jobs: deque[tuple[Task, int]] = deque()

    def key(self, task: Task, episode: int) -> Key:
        """`EpisodeRecord.key` of an episode of this run."""
        scene = self.scene
        return (self.policy.name, self.policy.checkpoint_hash, task.name, SETTING, scene.assets, episode, self.seed, scene.width, scene.height)

    def play(self, workers: int, batch: int) -> Iterable[EpisodeRecord]:
        """Play all jobs, `batch` at a time, yielding each record when it is on the disk."""
        stations: list[Station] = []
        seated = min(batch, len(self.jobs))
        try:
            for _ in range(min(max(workers, 1), seated)):
                stations.append(ProcessStation(self.scene) if workers else LocalStation(self.scene))
            seats = self._begin([(stations[index % len(stations)], index) for index in range(seated)])
            while seats:
                for seat, action in zip(seats, self._act(seats), strict=True):
                    seat.station.step(seat.lane, action)
                free: list[tuple[Station, int]] = []
                for seat in seats:
                    result = self._receive(seat)
                    assert isinstance(result, StepResult)
                    if record := self._advance(seat, result):
                        free.append((seat.station, seat.lane))
                        yield record
                playing = [seat for seat in seats if (seat.station, seat.lane) not in free]
                seats = playing + self._begin(free)
        finally:
            for station in stations:
                station.close()

    def _begin(self, free: list[tuple[Station, int]]) -> list[_Seat]:
        """Reset free lanes to the next jobs, the stations at the same time; seats of those for which there was one."""
        seats = []
        for station, lane in free:
            if self.jobs:
                seats.append(_Seat(station, lane, *self.jobs.popleft()))
                station.reset(lane, seats[-1].task, seats[-1].episode, self.seed)
        for seat in seats:
            observation = self._receive(seat)
            assert isinstance(observation, Observation)
            seat.observation, seat.started = observation, time.perf_counter()
            if self.videos:
                seat.frames.append(observation.image)
            if hasattr(self.policy, "reset"):
                self.policy.reset(seat.task.instruction)
        return seats

    def _receive(self, seat: _Seat) -> Reply:
        try:
            return seat.station.receive()
        except KitError as error:
            raise KitError(f"{seat.task.name}, episode {seat.episode}, step {seat.steps}: {error.what}", error.remedy) from error

    def _act(self, seats: list[_Seat]) -> list[Array]:
        """One checked action a seat, float32 (7,)."""
        observations = [seat.observation for seat in seats if seat.observation is not None]
        if self.scene.privileged:
            answers = self.policy.act_states([observation.state for observation in observations], [seat.task.name for seat in seats])
        elif hasattr(self.policy, "act_batch"):
            answers = self.policy.act_batch(np.stack([observation.image for observation in observations]), [seat.task.instruction for seat in seats])
        else:
            answers = [self.policy.act(observation.image) for observation in observations]
        if len(answers) != len(seats):
            raise KitError(
                f"policy {self.policy.name!r} returned {len(answers)} actions for {len(seats)} images", "act_batch returns one action an image"
            )
        return [self._checked(answer, seat) for answer, seat in zip(answers, seats, strict=True)]

    def _checked(self, answer: Any, seat: _Seat) -> Array:
        action = np.asarray(getattr(answer, "processed", answer), np.float32)
        where = f"policy {self.policy.name!r} in {seat.task.name}, episode {seat.episode}, step {seat.steps}"
        if action.shape != (ACTION_SIZE,):
            raise KitError(f"{where} returned an action of shape {action.shape}", f"an action is {ACTION_SIZE} numbers: see Simulator.step")
        if not np.isfinite(action).all():
            raise KitError(f"{where} returned {action.tolist()}", "check the policy's un-normalisation statistics and its checkpoint")
        return action

    def _advance(self, seat: _Seat, result: StepResult) -> EpisodeRecord | None:
        """Take note of a step; the record when it was the episode's last."""
        seat.observation = result.observation
        seat.steps += 1
        seat.success_any |= result.success
        seat.grasped |= result.grasped
        if self.videos:
            seat.frames.append(result.observation.image)
        if not result.done:
            return None
        policy, checkpoint, task, setting, assets, episode, seed, width, height = self.key(seat.task, seat.episode)
        record = EpisodeRecord(
            policy=policy, checkpoint_hash=checkpoint, task=task, setting=setting, assets=assets, episode_id=episode, seed=seed,
            width=width, height=height, success_any=seat.success_any, success_last=result.success, grasped=seat.grasped, steps=seat.steps,
            reason=result.reason, wall_time=round(time.perf_counter() - seat.started, 3), **versions(),
        )  # fmt: skip
        if self.videos:
            _write_video(self.videos / policy / f"{task}-{episode:03d}.mp4", seat.frames, seat.task.control_hz)
        self.journal.append(record)
        return record


def _episode_ids(task: Task, episodes: int | Iterable[int] | None) -> list[int]:
    ids = list(range(task.scored if episodes is None else episodes) if episodes is None or isinstance(episodes, int) else episodes)
    outside = [episode for episode in ids if not 0 <= episode < task.grid]
    if outside or not ids:
        raise KitError(
            f"episode {outside[0]} is outside the grid of {task.name}" if outside else "no episodes were asked for",
            f"choose from 0 to {task.grid - 1}",
        )
    return ids


def _write_video(path: Path, frames: list[Array], fps: int) -> None:
    """frames: uint8 (H, W, 3) each."""
    from refinevla_kit.episodes.video import VideoWriter
    from refinevla_kit.files import replacing

    with replacing(path) as part:
        writer = VideoWriter(part, fps, *frames[0].shape[:2])
        writer.write(np.stack(frames))
        writer.close()
