"""Records the scripted demonstrator in the simulator as a LeRobot dataset, in one process or several, with
the same result.

Each episode's seed follows from (seed, task, number, attempt) alone, so it does not matter which process made
it. An episode that fails is drawn again. Processes are spawned, each keeps the simulator of the task it is
at, and the parent writes the episodes in order as they come.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from refinevla_kit.episodes.contract import Episode
from refinevla_kit.episodes.writer import DatasetWriter
from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import Array, Observation, Pose, Simulator
from refinevla_kit.tasks import BASE, VISUAL_MATCHING, Task, find_task

ATTEMPTS = 20  # draws of one episode; the demonstrator succeeds in more than nine of ten
Drive = Callable[[Observation, Task], Array]
MOVE, TURN = 0.03, 0.2  # m and rad a step, the range of a random move
NOISE, NOISE_TURN = 0.015, 0.15  # m and rad, the largest standard deviation of what `noise` adds to each step


@dataclass(frozen=True)
class Job:
    """One episode to record: everything a process needs to know. Fields as the arguments of `record`;
    `number` counts within the task.
    """

    task: str
    number: int
    assets: Path
    start: str
    seed: int
    width: int
    height: int
    random_moves: int
    keep_failures: bool
    setting: str = VISUAL_MATCHING
    variant: str = BASE
    drive: Drive | None = None
    disturb: float = 0.0
    noise: float = 0.0
    settle: int = 3


@dataclass(frozen=True)
class Recorded:
    """What came of a job: the episode (None when every attempt failed), and how many attempts failed."""

    episode: Episode | None
    failures: int


def record(
    path: str | Path,
    tasks: Sequence[str | Task],
    episodes_per_task: int,
    assets: str | Path = "embedded",
    start: str = "random",
    seed: int = 0,
    workers: int = 1,
    width: int = 160,
    height: int = 120,
    progress: bool = True,
    random_moves: int = 0,
    keep_failures: bool = False,
    overwrite: bool = False,
    setting: str = VISUAL_MATCHING,
    variants: Sequence[str] = (BASE,),
    drive: Drive | None = None,
    disturb: float = 0.0,
    noise: float = 0.0,
    settle: int = 3,
) -> dict[str, Any]:
    """Record demonstrations into a new dataset at `path`.

    Args:
        path: folder of the dataset; it appears when everything is recorded.
        tasks: names of tasks, recorded one after the other.
        episodes_per_task: how many of each; with start="grid", the grid configurations 0 .. n - 1.
        assets: as `simulator.make` takes them.
        start: "random" (continuous poses around the grid; a failed episode is drawn again) or "grid" (a
            failed one is left out).
        seed: same seed, same bytes, however many workers.
        workers: processes.
        width, height: pixels, even numbers.
        progress: show a bar.
        random_moves: random actions before the recording starts, so that the arm's pose does not betray where
            the expert goes.
        keep_failures: keep failed episodes too (success False) and draw nothing again.
        overwrite: replace what is at `path`, unless it holds what was paid for or reviewed
            (`files.paid_files`).
        setting, variants: of each task's protocol; `episodes_per_task` are recorded in each variant, from
            starts of their own.
        drive: what acts in the demonstrator's place: (observation, task) -> action. Each frame is still
            recorded with the demonstrator's action, the right one in a state that it would not have come to
            by itself. Such episodes are kept however they end. Picklable, for processes.
        disturb: chance a step that 1 to 4 random moves, the gripper's among them, take the place of what was
            decided; what is recorded is still the demonstrator's own action. So the data also hold what has
            gone wrong, and how it is mended.
        noise: 0 to 1; every motion that is carried out has normal noise in it, of a standard deviation drawn
            for the episode up to this share of 15 mm and 0.15 rad, while the demonstrator's own action is
            recorded (DART, Laskey et al. 2017). Without it a demonstrator is always already on its way, the
            right correction is nearly always zero, and that is what a policy learns to say.
        settle: frames in a row with success after which a recording ends. Evaluations run on to the step
            limit, and what to do once all is done has to be learned too.

    Returns:
        {"path", "episodes", "frames", "successes", "failures" (attempts that failed), "seconds", "bytes"}.

    Raises:
        KitError: unknown task or start, `path` exists, whatever the simulator raises, or the demonstrator
            failing 20 times in a row.
    """
    from tqdm.auto import tqdm

    from refinevla_kit.simulator.assets import resolve_assets

    chosen = [task if isinstance(task, Task) else find_task(task) for task in tasks]
    _check(chosen, episodes_per_task, start, workers)
    folder = resolve_assets(assets)  # here, so that processes do not generate the embedded pack side by side
    jobs = [
        Job(
            task.name,
            number if start == "grid" else place * episodes_per_task + number,
            folder,
            start,
            seed,
            width,
            height,
            random_moves,
            keep_failures,
            setting,
            variant,
            drive,
            disturb,
            noise,
            settle,
        )
        for task in chosen
        for place, variant in enumerate(task.protocol(setting).variant(name).name for name in variants)
        for number in range(episodes_per_task)
    ]
    began, frames, successes, failures = time.perf_counter(), 0, 0, 0
    with (
        DatasetWriter(path, chosen[0].control_hz, chosen[0].robot, overwrite=overwrite) as writer,
        tqdm(total=len(jobs), desc="recording", unit="episode", disable=not progress) as bar,
    ):
        kept = 0
        for result in run_jobs(jobs, workers):
            failures += result.failures
            if result.episode is not None:
                writer.add(result.episode)
                kept, frames, successes = (
                    kept + 1,
                    frames + len(result.episode.images),
                    successes + result.episode.success,
                )
            bar.set_postfix(failures=failures, refresh=False)
            bar.update()
    size = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
    seconds = round(time.perf_counter() - began, 1)
    return {
        "path": str(path),
        "episodes": kept,
        "frames": frames,
        "successes": successes,
        "failures": failures,
        "seconds": seconds,
        "bytes": size,
    }


def recording_code() -> str:
    """Digest of the code that decides what a recording holds: settings alone do not tell two recordings
    apart.
    """
    package = Path(__file__).resolve().parents[1]
    sources = [*sorted((package / "simulator").rglob("*.py")), package / "tasks.py", Path(__file__)]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]


def demonstrate(
    simulator: Simulator,
    start: int | Pose,
    seed: int,
    random_moves: int = 0,
    drive: Drive | None = None,
    disturb: float = 0.0,
    noise: float = 0.0,
    settle: int = 3,
) -> Episode:
    """Run the demonstrator, or `drive`, once from `start`; `simulator` must show privileged state. The
    episode may have failed: see `success`. Arguments as `record` has them.
    """
    from refinevla_kit.simulator.demonstrator import Demonstrator

    task, expert = simulator.task, Demonstrator(simulator.task)
    observation = simulator.reset(start, seed)
    rng = np.random.default_rng([seed, 1])
    for _ in range(random_moves):
        observation = simulator.step(_random_move(rng)).observation
    seen: list[Observation] = []
    actions: list[Array] = []
    masks: list[dict[str, Array]] = []
    settled, done, disturbed = 0, False, 0
    deviation = (
        noise * rng.uniform() * np.array([NOISE, NOISE, NOISE, 0.0, 0.0, NOISE_TURN, 0.0]) if noise else None
    )
    while not done and settled < settle:
        assert observation.state is not None  # the simulator was made with privileged=True
        seen.append(observation)
        masks.append(
            {name: mask for name, mask in simulator.masks().items() if name != "background"}
        )  # which is what no mask names
        actions.append(expert.act(observation.state))
        executed = actions[-1] if drive is None else drive(observation, task)
        if deviation is not None:
            executed = (executed + deviation * rng.standard_normal(7)).astype(np.float32)
        if not disturbed and rng.random() < disturb:
            disturbed, move = int(rng.integers(1, 5)), _random_move(rng)
            move[6] = rng.choice([-1, 1])
        if disturbed:
            executed, disturbed = move, disturbed - 1
        result = simulator.step(executed)
        observation, done = result.observation, result.done
        settled = settled + 1 if result.success else 0
    return Episode(
        images=np.stack([frame.image for frame in seen]),
        actions=np.stack(actions).astype(np.float32),
        proprioception=np.stack([frame.proprioception for frame in seen]).astype(np.float32),
        instruction=simulator.instruction,
        task=task.name,
        success=settled > 0,
        seed=seed,
        start=f"grid:{start}" if isinstance(start, int) else "random",
        states=[frame.state for frame in seen if frame.state is not None],
        masks={name: np.stack([mask[name] for mask in masks]) for name in masks[0]},
    )


class Recorder:
    """Does jobs in this process, and keeps the simulator while the task stays the same."""

    def __init__(self) -> None:
        self._simulator: Simulator | None = None
        self._made_for: tuple[Any, ...] = ()

    def run(self, job: Job) -> Recorded:
        """Record one episode, drawing again until it succeeds."""
        from refinevla_kit.simulator.start_poses import random_pose

        simulator = self._get(job)
        keep = job.keep_failures or job.drive is not None
        again = not keep and (
            job.start == "random" or job.random_moves > 0 or job.disturb > 0 or job.noise > 0
        )
        for attempt in range(ATTEMPTS if again else 1):
            seed = episode_seed(job.seed, job.task, job.number, attempt)
            start = (
                job.number
                if job.start == "grid"
                else random_pose(simulator.task, np.random.default_rng(seed))
            )
            episode = demonstrate(
                simulator, start, seed, job.random_moves, job.drive, job.disturb, job.noise, job.settle
            )
            if episode.success:
                return Recorded(episode, attempt)
        if again:
            raise KitError(
                f"the demonstrator failed {ATTEMPTS} times in a row on {job.task}",
                "check the assets with `refinevla doctor`",
            )
        return Recorded(episode if keep else None, 1)

    def close(self) -> None:
        if self._simulator is not None:
            self._simulator.close()
            self._simulator = None

    def _get(self, job: Job) -> Simulator:
        from refinevla_kit.simulator import make

        wanted = (job.task, job.assets, job.width, job.height, job.setting, job.variant)
        if self._simulator is None or wanted != self._made_for:
            self.close()
            self._simulator = make(*wanted[:4], privileged=True, setting=job.setting, variant=job.variant)
            self._made_for = wanted
        return self._simulator


def episode_seed(seed: int, task: str, number: int, attempt: int) -> int:
    """Seed of one attempt at one episode, uint32; depends on nothing else."""
    return int(
        np.random.SeedSequence([seed, zlib.crc32(task.encode()), number, attempt]).generate_state(1)[0]
    )


def run_jobs(jobs: Sequence[Job], workers: int) -> Iterator[Recorded]:
    """Results in the order of `jobs`; at most two finished or running episodes a worker are held in
    memory.
    """
    if workers == 1:
        recorder = Recorder()
        try:
            yield from map(recorder.run, jobs)
        finally:
            recorder.close()
        return
    waiting: deque[Future[Recorded]] = deque()
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_one_thread) as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(_run_in_worker, job))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise KitError(
                "a recording process died", "record with fewer workers: most likely memory ran out"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _one_thread() -> None:
    """Several processes with several torch threads each would wait for each other; torch reads this when the
    first simulator is made.
    """
    from refinevla_kit.simulator import maniskill

    os.environ["OMP_NUM_THREADS"] = "1"
    maniskill.own_process = True


@cache
def _process_recorder() -> Recorder:
    """The recorder of this worker process, kept from job to job: making a simulator takes seconds."""
    return Recorder()


def _run_in_worker(job: Job) -> Recorded:
    return _process_recorder().run(job)


def _random_move(rng: np.random.Generator) -> Array:
    """float32 (7,): somewhere near, fingers open."""
    return np.concatenate([rng.uniform(-MOVE, MOVE, 3), [0.0, 0.0, rng.uniform(-TURN, TURN)], [1.0]]).astype(
        np.float32
    )


def _check(tasks: Sequence[Task], episodes: int, start: str, workers: int) -> None:
    if not tasks or episodes < 1 or workers < 1:
        raise KitError(
            f"nothing to record: {len(tasks)} tasks, {episodes} episodes a task, {workers} workers",
            "ask for at least one of each",
        )
    if start not in ("random", "grid"):
        raise KitError(f"unknown start {start!r}", 'choose "random" or "grid"')
    if len({(task.control_hz, task.robot) for task in tasks}) > 1:
        raise KitError(
            "the tasks have different robots or control rates", "record them into one dataset each"
        )
    if start == "grid" and (short := [task.name for task in tasks if episodes > task.grid]):
        raise KitError(
            f"{short[0]} has fewer than {episodes} grid configurations",
            f"ask for at most {min(task.grid for task in tasks)}",
        )
