"""Records the scripted demonstrator in the simulator as a LeRobot dataset, in one process or several, with
the same result.

Each attempt's seed follows from (seed, task, number, attempt) alone, so it does not matter which simulator
played it. An episode that fails is drawn again.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refinevla_kit.episodes.contract import Episode
from refinevla_kit.episodes.writer import DatasetWriter
from refinevla_kit.errors import KitError, as_kit_error, check_choice, checked_integer
from refinevla_kit.policies.contract import Action
from refinevla_kit.rollouts.engine import Engine, Masks, PlannedEpisode, Scene, Take
from refinevla_kit.rollouts.players import FunctionPlayer, plain_action
from refinevla_kit.settings import CHOICES
from refinevla_kit.simulator.contract import Array, Observation, StepResult
from refinevla_kit.simulator.demonstrator import Demonstrator
from refinevla_kit.simulator.maniskill import resolve_assets
from refinevla_kit.tasks import BASE, CAMERA_SIZES, VISUAL_MATCHING, Task, Tasks, find_task, tasks_of

ATTEMPTS = 20  # draws of one episode; the demonstrator succeeds in more than nine of ten
Drive = Callable[[Observation, Task], Array]
MOVE, TURN = 0.03, 0.2  # m and rad a step, the range of a random move
NOISE, NOISE_TURN = 0.015, 0.15  # m and rad, the largest standard deviation of what `noise` adds to each step


@dataclass(frozen=True)
class Manner:
    """How demonstrations are made.

    Attributes:
        seed: same seed, same bytes, however many workers.
        random_moves: random actions before the recording starts, so that the arm's pose does not betray where
            the expert goes.
        drive: what acts in the demonstrator's place: (observation, task) -> action. Each frame is still
            recorded with the demonstrator's action, the right one in a state that it would not have come to
            by itself. Such episodes are kept however they end.
        disturb: chance a step that 1 to 4 random moves, the gripper's among them, take the place of what was
            decided; what is recorded is still the demonstrator's own action. So the data also hold what has
            gone wrong, and how it is mended.
        noise: 0 to 1, what is added to every motion that is carried out: normal noise, of a standard
            deviation drawn for the episode, up to this share of 15 mm and 0.15 rad (DART, Laskey et al.
            2017). The demonstrator's own action is recorded. Without noise it is always already on its way:
            the right correction is nearly always zero, and that is what a policy learns to say.
        settle: frames in a row with success after which a recording ends. Evaluations run on to the step
            limit, and what to do once all is done has to be learned too.
    """

    seed: int = 0
    random_moves: int = 0
    drive: Drive | None = None
    disturb: float = 0.0
    noise: float = 0.0
    settle: int = 3

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("random_moves", 0), ("settle", 1)):
            checked_integer(getattr(self, name), name, least)
        for name in ("disturb", "noise"):
            share = getattr(self, name)
            with as_kit_error(f"{name} is {share!r}", "give a share from 0 to 1", (TypeError, ValueError)):
                if not 0 <= share <= 1:
                    raise ValueError("no share")


def record(
    path: str | Path,
    tasks: Tasks,
    episodes_per_task: int,
    assets: str | Path = "embedded",
    start: str = "random",
    *,
    workers: int = 1,
    width: int = 160,
    progress: bool = True,
    overwrite: bool = False,
    setting: str = VISUAL_MATCHING,
    variants: str | Sequence[str] | None = (BASE,),
    **manner: Any,
) -> dict[str, Any]:
    """Record demonstrations into a new dataset at `path`.

    Args:
        path: folder of the dataset; it appears when everything is recorded.
        tasks: as `evaluate` takes them, recorded one after the other.
        episodes_per_task: how many of each; with start="grid", the grid configurations 0 .. n - 1.
        assets: as `simulator.make` takes them.
        start: "random" (continuous poses around the grid; a failed episode is drawn again) or "grid" (a
            failed one is left out; where chance decides, after 20 attempts).
        workers: simulator processes; with 1 there is none but this one.
        width: of the pictures in pixels, even; their aspect is the camera's.
        progress: show a bar.
        overwrite: replace what is at `path`, unless it holds what was paid for or reviewed
            (`files.paid_files`).
        setting, variants: of each task's protocol; None: the variants that are scored. `episodes_per_task`
            are recorded in each, from starts of their own.
        manner: fields of `Manner`: seed, random_moves, drive, disturb, noise, settle.

    Returns:
        {"path", "episodes", "frames", "successes", "failures" (attempts that failed), "seconds", "bytes"}.

    Raises:
        KitError: unknown task or start, a number out of bounds, `path` exists, whatever the simulator raises,
            or the demonstrator failing 20 times in a row on a random start.
    """
    from tqdm.auto import tqdm

    chosen = tasks_of(tasks)
    variants = [variants] if isinstance(variants, str) else variants
    _check(chosen, episodes_per_task, start, workers)
    how = Manner(**manner)
    robot = chosen[0].robot
    folder = str(resolve_assets(assets) if robot == "widowx" else assets)
    height = even_height(robot, checked_integer(width, "width", 2, 4096))
    planned = []
    for task in chosen:
        protocol = task.protocol(setting)
        for place, name in enumerate(protocol.scored_variants if variants is None else variants):
            variant = protocol.variant(name).name
            scene = Scene(task.name, variant, setting, "auto", folder, width, height, True, True)
            first = 0 if start == "grid" else place * episodes_per_task
            for number in range(first, first + episodes_per_task):
                planned.append(plan_attempt(scene, start, number, how))
    began = time.perf_counter()
    made: dict[str, Any] = {"path": str(path), "episodes": 0, "frames": 0, "successes": 0, "failures": 0}
    with (
        DatasetWriter(path, chosen[0].control_hz, robot, overwrite=overwrite) as writer,
        tqdm(total=len(planned), desc="recording", unit="episode", disable=not progress) as bar,
    ):
        for episode, failed in demonstrations(planned, how, workers):
            made["failures"] += failed
            if episode is not None:
                writer.add(episode)
                made["episodes"] += 1
                made["frames"] += len(episode.images)
                made["successes"] += episode.success
            bar.set_postfix(failures=made["failures"], refresh=False)
            bar.update()
    size = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
    return made | {"seconds": round(time.perf_counter() - began, 1), "bytes": size}


def even_height(robot: str, width: int) -> int:
    """Of a recorded picture, pixels: the aspect of the robot's camera, and a number that videos can have."""
    full_width, full_height = CAMERA_SIZES[robot]
    return 2 * round(width * full_height / full_width / 2)


def episode_of(
    seen: Sequence[Observation], masks: Sequence[Masks], actions: Sequence[Array], task: Task, **about: Any
) -> Episode:
    """An episode of frames that show the simulator's state, each with its masks and its right action.

    Args:
        about: success, seed and start of `Episode`.
    """
    sentences = [frame.instruction for frame in seen]
    return Episode(
        images=np.stack([frame.image for frame in seen]),
        actions=np.stack(actions).astype(np.float32),
        proprioception=np.stack([frame.proprioception for frame in seen]).astype(np.float32),
        instruction=sentences if len(set(sentences)) > 1 else sentences[0],
        task=task.name,
        states=[frame.state for frame in seen if frame.state is not None],
        masks={  # the background is what no mask names
            name: np.stack([shown[name] for shown in masks]) for name in masks[0] if name != "background"
        },
        **about,
    )


def recording_code() -> str:
    """Digest of the code that decides what a recording holds: settings alone do not tell two recordings
    apart.
    """
    package = Path(__file__).resolve().parents[1]
    folders = [file for room in ("simulator", "rollouts") for file in sorted(package.glob(f"{room}/*.py"))]
    sources = b"".join(file.read_bytes() for file in [package / "tasks.py", *folders])
    return hashlib.sha256(sources).hexdigest()[:12]


def plan_attempt(scene: Scene, start: str, number: int, manner: Manner, failed: int = 0) -> PlannedEpisode:
    """The attempt at demonstration `number` of a task that follows on so many failed ones.

    Args:
        scene: shows privileged state and masks.
    """
    return PlannedEpisode(scene, start, number, episode_seed(manner.seed, scene.task, number, failed))


def episode_seed(seed: int, task: str, number: int, attempt: int) -> int:
    """Seed of one attempt at one episode, uint32; depends on nothing else."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(task.encode()), number, attempt])
    return int(sequence.generate_state(1)[0])


def demonstrations(
    planned: Sequence[PlannedEpisode], manner: Manner, workers: int
) -> Iterator[tuple[Episode | None, int]]:
    """(episode, attempts that failed) in the order of `planned`; None where the failed one is left out.

    Raises:
        KitError: whatever the simulator raises, a process that died twice of one episode, or 20 failures in a
            row on a random start.
    """
    keep = manner.drive is not None
    chance = manner.random_moves > 0 or manner.disturb > 0 or manner.noise > 0
    attempts = {episode: (place, 0) for place, episode in enumerate(planned)}
    finished: dict[int, tuple[Episode | None, int]] = {}
    due = 0
    player = FunctionPlayer(_DemonstratedTake.act, lambda episode: _DemonstratedTake(episode, manner))
    with Engine(workers if workers > 1 else 0, min(workers, len(planned))) as engine:
        for take in engine.play(planned, player, in_order=True):
            episode = take.episode
            place, failed = attempts.pop(episode)
            if take.reason == "crash":
                what = f"{episode}: its simulator process died twice"
                raise KitError(what, "record with fewer workers: most likely memory ran out")
            if not take.success and not keep and (chance or episode.start == "random"):
                if failed + 1 < ATTEMPTS:
                    again = plan_attempt(episode.scene, episode.start, episode.number, manner, failed + 1)
                    attempts[again] = place, failed + 1
                    engine.insert(again)
                    continue
                if episode.start != "grid":
                    what = f"the demonstrator failed {ATTEMPTS} times in a row on {episode.scene.task}"
                    raise KitError(what, "check the assets with `refinevla doctor`")
            kept = take.recorded() if take.success or keep else None
            finished[place] = kept, failed + (not take.success)
            while due in finished:
                yield finished.pop(due)
                due += 1


class _DemonstratedTake(Take):
    """A demonstration while it is made: what is seen, and the demonstrator's own action on seeing it."""

    def __init__(self, episode: PlannedEpisode, manner: Manner) -> None:
        super().__init__(episode)
        self._task, self._manner = find_task(episode.scene.task), manner
        self._expert = Demonstrator(self._task)
        self._rng = np.random.default_rng([episode.seed, 1])
        self._deviation: Array | None = None  # standard deviation of the noise in each motion
        self._disturbed = 0  # steps that the random move `_move` goes on for
        self._settled = 0  # steps in a row with success
        self._seen: list[Observation] = []
        self._masks: list[Masks] = []
        self._actions: list[Array] = []

    def act(self) -> Action:
        """What is carried out next, which need not be what is recorded."""
        manner, rng, observation = self._manner, self._rng, self.observation
        if self.steps < manner.random_moves:
            return plain_action(self._random_move())
        if self.steps == manner.random_moves and manner.noise:
            share = np.array([NOISE, NOISE, NOISE, 0.0, 0.0, NOISE_TURN, 0.0])
            self._deviation = manner.noise * rng.uniform() * share
        assert observation is not None and observation.state is not None  # the scene is privileged
        self._seen.append(observation)
        self._masks.append(self.masks)
        self._actions.append(self._expert.act(observation.state))
        executed = self._actions[-1] if manner.drive is None else manner.drive(observation, self._task)
        if self._deviation is not None:
            executed = (executed + self._deviation * rng.standard_normal(7)).astype(np.float32)
        if not self._disturbed and rng.random() < manner.disturb:
            self._disturbed = int(rng.integers(1, 5))
            self._move = self._random_move()
            self._move[6] = rng.choice([-1, 1])
        if self._disturbed:
            self._disturbed -= 1
            executed = self._move
        return plain_action(executed, self._expert.finished(observation.state))

    def _random_move(self) -> Array:
        """float32 (7,): somewhere near, fingers open."""
        move = self._rng.uniform(-MOVE, MOVE, 3)
        turn = self._rng.uniform(-TURN, TURN)
        opens = -1.0 if self._task.robot == "google_robot" else 1.0
        return np.array([*move, 0.0, 0.0, turn, opens], np.float32)

    def note(self, result: StepResult, masks: Masks) -> None:
        """See `Take.note`. Nothing that happens during the random moves ends the episode."""
        super().note(result, masks)
        if self.steps <= self._manner.random_moves:
            self.over = False
            return
        self._settled = self._settled + 1 if result.success else 0
        self.over = result.done or self._settled == self._manner.settle

    def recorded(self) -> Episode:
        """The episode, once it is over; it may have failed: see `success`."""
        planned = self.episode
        start = f"grid:{planned.number}" if planned.start == "grid" else "random"
        frames = self._seen, self._masks, self._actions
        return episode_of(*frames, self._task, success=self.success, seed=planned.seed, start=start)


def _check(tasks: Sequence[Task], episodes: int, start: str, workers: int) -> None:
    if not tasks:
        raise KitError("no tasks to record", 'name one, as in tasks="widowx"')
    checked_integer(episodes, "episodes a task", 1)
    checked_integer(workers, "workers", 1)
    check_choice("start", start, CHOICES["start"])
    if len({(task.control_hz, task.robot) for task in tasks}) > 1:
        raise KitError(
            "the tasks have different robots or control rates", "record them into one dataset each"
        )
    if start == "grid" and (short := [task.name for task in tasks if episodes > task.grid]):
        raise KitError(
            f"{short[0]} has fewer than {episodes} grid configurations",
            f"ask for at most {min(task.grid for task in tasks)}",
        )
