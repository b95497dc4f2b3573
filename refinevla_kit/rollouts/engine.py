"""The one loop that plays episodes: a player decides, simulators step, in this process or in several.

Each scene (a task in a variant) has a queue of episodes. A lane that is free goes on with its own scene, and
takes over another when that is done, so that few environments are made. The lanes are split in two tables
that take turns: while the player thinks for one, the simulators step the other. Turns, not timing, decide
what is played where, so a run gives the same results however the machine is loaded (a network's rounding may
depend on the size of its batch).
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, Protocol, TypeVar

from refinevla_kit.errors import KitError
from refinevla_kit.policies.contract import Action
from refinevla_kit.simulator import make
from refinevla_kit.simulator.contract import AnyStart, Array, Observation, Simulator, StepResult
from refinevla_kit.simulator.geometry import start_pose
from refinevla_kit.tasks import find_task

# Seconds without a reply after which a simulator process counts as dead; making an environment takes 12 at
# most.
PATIENCE = 600.0
CRASHES = 2  # of one episode, after which it ends with the reason "crash"
Masks = dict[str, Array]
Answer = tuple[Any, ...]


@dataclass(frozen=True)
class Scene:
    """What a simulator is made from: the arguments of `simulator.make`, the task by its name.

    Attributes:
        masks: whether the object masks are wanted at every step.
    """

    task: str
    variant: str
    setting: str
    backend: str
    assets: str
    width: int
    height: int
    privileged: bool = False
    masks: bool = False

    def make(self) -> Simulator:
        """The simulator of this scene."""
        arguments = dict(vars(self))
        del arguments["masks"]
        return make(**arguments)


@dataclass(eq=False)
class PlannedEpisode:
    """One episode to play.

    Attributes:
        start, number, seed: as `start_pose` takes them; the reset has the same seed.
        crashes: how often the simulator's process has died of it in this `play`.
    """

    scene: Scene
    start: str
    number: int
    seed: int
    crashes: int = 0

    def __str__(self) -> str:
        variant = "" if self.scene.variant == "base" else f" ({self.scene.variant})"
        dense = "dense " if self.start == "dense" else ""
        return f"{self.scene.task}{variant}, {dense}episode {self.number}"


class Take:
    """An episode while it is played, and when it has been. A player's own takes keep what it wants to know.

    Attributes:
        observation: the one that waits for an action; None while the simulator is at work.
        masks: of that observation.
        steps: actions executed.
        success, success_any, grasped: after the last step, after any step, held after any step.
        unsolved: actions that inverse kinematics found no answer to.
        touched_first, lifted_first, ended_on: as the last `StepResult` has them.
        over, reason: whether and why it has ended: "budget", "terminated", "physics" or "crash".
        began: when the reset was done, seconds.
    """

    def __init__(self, episode: PlannedEpisode) -> None:
        self.episode = episode
        self.observation: Observation | None = None
        self.masks: Masks = {}
        self.steps = 0
        self.success = self.success_any = self.grasped = self.over = False
        self.unsolved = 0
        self.touched_first = self.lifted_first = self.ended_on = ""
        self.reason = ""
        self.began = 0.0

    def note(self, result: StepResult, masks: Masks) -> None:
        """Take note of a step; `began` is 0 before the first call, which is the reset's."""
        self.observation, self.masks = result.observation, masks
        if not self.began:
            self.began = time.perf_counter()
            return
        self.steps += 1
        self.success = result.success
        self.success_any |= result.success
        self.grasped |= result.grasped
        self.unsolved += result.unsolved
        self.touched_first, self.lifted_first = result.touched_first, result.lifted_first
        self.ended_on = result.ended_on
        self.over, self.reason = result.done, result.reason

    def drop(self) -> None:
        """Let go of what is held; called when the take is left, ended or not."""


T = TypeVar("T", bound=Take)


class Player(Protocol[T]):
    """Who decides what is done in the episodes."""

    def begin(self, episode: PlannedEpisode) -> T:
        """A new take of `episode`."""

    def act(self, takes: Sequence[T]) -> Iterable[Action]:
        """One action each, for takes that wait for one; taken one after another."""


@dataclass
class _Lane:
    """A place at a station, and the take that is played there."""

    station: Station
    number: int
    take: Any = None  # of the player's own kind


class Engine:
    """Simulators in `workers` processes (0: in this one), which are kept from one `play` to the next.


    A lane keeps its simulator while the scene stays the same.

    Args:
        workers: processes; no more than there are lanes are started.
        lanes: episodes played at the same time.
        station: makes what stands for a process, from its number; None for one of this machine.
    """

    def __init__(
        self, workers: int, lanes: int = 1, station: Callable[[int], ProcessStation] | None = None
    ) -> None:
        self._process = station or ProcessStation
        self._stations: list[Station] = []
        self._lanes: list[_Lane] = []
        self._queues: dict[Hashable, deque[PlannedEpisode]] = {}
        self._workers, self._count = min(workers, lanes), lanes

    def play(
        self, episodes: Iterable[PlannedEpisode], player: Player[T], in_order: bool = False
    ) -> Iterator[T]:
        """Play `episodes`, yielding each take when it has ended.

        Args:
            in_order: begin the episodes in the order given, whatever their scenes.

        Raises:
            KitError: what a simulator refuses, or a process that fails before its first reply.
        """
        self._in_order, self._player = in_order, player
        for episode in episodes:
            episode.crashes = 0
            self._queues.setdefault(self._queue_of(episode), deque()).append(episode)
        while len(self._stations) < max(self._workers, 1):
            number = len(self._stations)
            self._stations.append(self._process(number) if self._workers else LocalStation())
        count = len(self._stations)
        self._lanes = [_Lane(self._stations[index % count], index) for index in range(self._count)]
        tables = [[lane for lane in self._lanes if lane.number // count % 2 == side] for side in (0, 1)]
        try:
            for lane in self._lanes:
                self._begin(lane, self._next(lane))
            while any(lane.take for lane in self._lanes):
                for table in tables:
                    yield from self._turn(table)
        finally:
            self._leave()

    def insert(self, episode: PlannedEpisode) -> None:
        """Play this one next; for whoever takes what `play` yields."""
        self._queues.setdefault(self._queue_of(episode), deque()).appendleft(episode)

    def close(self) -> None:
        """Let all simulators go."""
        self._leave()
        while self._stations:
            self._stations.pop().close()

    def _leave(self) -> None:
        """Leave what is being played; also where whoever takes what `play` yields has failed.

        A process that is left at work goes: what it still says would be taken for replies to the next `play`.
        """
        for lane in self._lanes:
            if lane.take:
                lane.take.drop()
                lane.take = None
                if self._workers and lane.station in self._stations:
                    self._stations.remove(lane.station)
                    lane.station.close()
        self._queues.clear()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _turn(self, table: list[_Lane]) -> Iterator[Any]:
        """Take what the simulators of a table have to say, and answer."""
        for lane in table:
            take: Take = lane.take
            if not take:  # nothing is left to play
                continue
            try:
                result, masks = lane.station.receive(lane.number)
            except KitError as error:
                assert isinstance(lane.station, ProcessStation)  # any other refuses what it is asked at once
                take = self._lanes[lane.station.asked[0]].take
                raise KitError(f"{take.episode}, step {take.steps}: {error.what}", error.remedy) from error
            except StationDied as death:
                yield from self._recover(death)
                continue
            take.note(result, masks)
            if take.over:
                yield take
                self._begin(lane, self._next(lane))
        asking = [(lane, lane.take) for lane in table if lane.take and lane.take.observation]
        actions = self._player.act([take for _, take in asking])
        for (lane, take), action in zip(asking, actions, strict=True):
            take.observation = None
            lane.station.request(lane.number, "step", action.processed, action.terminate)

    def _queue_of(self, episode: PlannedEpisode) -> Hashable:
        return "all" if self._in_order else episode.scene

    def _next(self, lane: _Lane) -> PlannedEpisode | None:
        """The next episode of the lane's own scene, else of the scene with the most episodes left for each
        lane that plays it.
        """
        mine = self._queue_of(lane.take.episode) if lane.take else None
        if mine not in self._queues:
            others = [other.take for other in self._lanes if other.take and other is not lane]
            playing = Counter(self._queue_of(take.episode) for take in others)
            mine = max(
                self._queues, key=lambda name: len(self._queues[name]) / (1 + playing[name]), default=None
            )
        if mine is None:
            return None
        episode = self._queues[mine].popleft()
        if not self._queues[mine]:
            del self._queues[mine]
        return episode

    def _begin(self, lane: _Lane, episode: PlannedEpisode | None) -> None:
        """Send the lane to the start of `episode`."""
        if lane.take:
            lane.take.drop()
        lane.take = self._player.begin(episode) if episode else None
        if episode:
            task, setting = find_task(episode.scene.task), episode.scene.setting
            start = start_pose(task, episode.start, episode.number, episode.seed, setting)
            lane.station.request(lane.number, "reset", episode.scene, start, episode.seed)

    def _recover(self, death: StationDied) -> Iterator[Any]:
        """Start a dead process again and repeat its episodes; the one that killed it twice ends as a
        crash.
        """
        lanes = [lane for lane in self._lanes if lane.station is death.station and lane.take]
        take: Take = self._lanes[death.station.asked[0]].take
        why = str(death).strip().splitlines()[-1]
        if not death.station.answered:
            raise KitError(
                f"{take.episode}: a simulator process failed before its first step: {why}",
                "set workers=0 (`evaluate`) or 1 (`record`) to see the fault, or run with fewer workers "
                "where memory ran out; guard a script with `if __name__ == '__main__'`",
            ) from death
        death.station.restart()
        take.episode.crashes += 1
        warnings.warn(
            f"{take.episode}, step {take.steps}: {why}; the process was started again",
            RuntimeWarning,
            stacklevel=2,
        )
        if take.episode.crashes >= CRASHES:
            take.over, take.reason, take.success, take.success_any = True, "crash", False, False
            yield take
        for lane in lanes:
            self._begin(lane, self._next(lane) if lane.take.over else lane.take.episode)


class StationDied(Exception):
    """The process of a station is gone or failed, at the request of the first lane in `station.asked`."""

    def __init__(self, station: ProcessStation, why: str) -> None:
        super().__init__(why)
        self.station = station


class LocalStation:
    """Simulators by lane, in this process. A lane has one request at a time, and each has one reply.

    Requests and replies are two calls, so that process stations work while the player thinks.
    """

    def __init__(self) -> None:
        self._simulators: dict[int, tuple[Scene, Simulator]] = {}
        self._replies: dict[int, tuple[StepResult, Masks]] = {}

    def request(self, lane: int, verb: str, *details: Any) -> None:
        """Ask for a "reset" (scene, start, seed) or a "step" (action, whether the policy has finished)."""
        result = self._reset(lane, *details) if verb == "reset" else self._step(lane, *details)
        scene, simulator = self._simulators[lane]
        self._replies[lane] = result, simulator.masks() if scene.masks else {}

    def receive(self, lane: int) -> tuple[StepResult, Masks]:
        """The reply to the lane's request; a reset's has nothing but an observation."""
        return self._replies.pop(lane)

    def close(self) -> None:
        while self._simulators:
            self._simulators.popitem()[1][1].close()

    def _reset(self, lane: int, scene: Scene, start: AnyStart, seed: int) -> StepResult:
        if lane in self._simulators and self._simulators[lane][0] != scene:
            self._simulators.pop(lane)[1].close()
        if lane not in self._simulators:
            self._simulators[lane] = scene, scene.make()
        return StepResult(self._simulators[lane][1].reset(start, seed), False, False, False)

    def _step(self, lane: int, action: Array, terminate: bool) -> StepResult:
        """With `terminate` a long-horizon task first goes on to its next sub-task; any other episode ends
        here.
        """
        simulator = self._simulators[lane][1]
        over = terminate and not simulator.advance()
        result = simulator.step(action)
        return replace(result, done=True, reason=result.reason or "terminated") if over else result


class ProcessStation:
    """A `LocalStation` in a spawned process, which `restart` replaces when it has died.

    Attributes:
        number: of the station, from 0.
        asked: lanes whose request is not answered yet, in order.
        answered: whether the process, or one before it, has answered anything.
    """

    def __init__(self, number: int = 0) -> None:
        self.number, self.answered = number, False
        self._start()

    def _start(self) -> None:
        self._launch()
        self.asked: deque[int] = deque()
        self._replies: dict[int, tuple[StepResult, Masks]] = {}

    def _launch(self) -> None:
        # A fork would copy the parent's threads and its Vulkan state.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def request(self, lane: int, *message: Any) -> None:
        """See `LocalStation.request`."""
        self.asked.append(lane)
        # A dead process is told by `receive`, to which the caller can put an episode's name.
        with suppress(OSError):
            self._connection.send((lane, *message))

    def receive(self, lane: int) -> tuple[StepResult, Masks]:
        """See `LocalStation.receive`.

        Raises:
            KitError: what the simulator refused.
            StationDied: the process is gone, hangs, or the simulator failed.
        """
        while lane not in self._replies:
            kind, *content = self._next_reply()
            if kind == "mistake":
                raise KitError(*content)
            if kind == "error":
                raise StationDied(self, content[0])
            self.answered = True
            self._replies[self.asked.popleft()] = content[0]
        return self._replies.pop(lane)

    def _next_reply(self) -> Answer:
        try:
            if not self._connection.poll(PATIENCE):
                raise StationDied(self, f"no reply within {PATIENCE:.0f} s")
            reply: Answer = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(5)
            raise StationDied(self, f"its process died (exit code {self._process.exitcode})") from error
        return reply

    def restart(self) -> None:
        """Another process takes its place."""
        self.close(wait=0)
        self._start()

    def close(self, wait: float = 5) -> None:
        with suppress(OSError):
            self._connection.send(None)
            self._process.join(wait)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._connection.close()


Station = LocalStation | ProcessStation


def _serve(connection: Connection) -> None:
    """What a process station runs: carry out requests until None comes or the other end is gone."""
    station = station_alone()
    try:
        while (message := connection.recv()) is not None:
            connection.send(answer(station, message))
    except (EOFError, KeyboardInterrupt):
        pass
    finally:
        station.close()


def station_alone() -> LocalStation:
    """A station in a process of its own."""
    from refinevla_kit.simulator import maniskill

    maniskill.own_process = True
    # Torch's threads of several workers would wait for each other, whatever the parent may use.
    os.environ["OMP_NUM_THREADS"] = "1"
    # The software renderer then draws in this thread: there is a simulator for each core already.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    return LocalStation()


def answer(station: LocalStation, message: tuple[Any, ...]) -> Answer:
    """Carry out (lane, verb, details ...): what came of it, or what went wrong, under a word for which."""
    lane, *request = message
    try:
        station.request(lane, *request)
        return "reply", station.receive(lane)
    except KitError as error:
        return "mistake", error.what, error.remedy
    except Exception:  # told to the parent, which repeats the episode in a new process
        return "error", traceback.format_exc()
