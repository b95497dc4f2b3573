"""Where episodes are played: a station holds simulators, in this process or in a spawned one, and answers resets and steps.

A station has lanes, one simulator each, so that a few processes can fill a policy's batch. A lane keeps its simulator while the task stays the same.
Requests and replies are split in two calls, so that several process stations work at the same time while the caller waits for one after another.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

from refinevla_kit.errors import KitError
from refinevla_kit.simulator import make
from refinevla_kit.simulator.contract import Array, Observation, Simulator, StepResult
from refinevla_kit.tasks import Task, find_task

Reply = Observation | StepResult


@dataclass(frozen=True)
class Scene:
    """How simulators are made: the arguments of `simulator.make`."""

    assets: str
    width: int
    height: int
    privileged: bool


class Station(Protocol):
    """Simulators by lane. Each request has one reply; `receive` gives them in the order of the requests."""

    def reset(self, lane: int, task: Task, episode: int, seed: int) -> None: ...

    def step(self, lane: int, action: Array) -> None: ...

    def receive(self) -> Reply: ...

    def close(self) -> None: ...


class LocalStation:
    """A station in this process: requests are carried out at once."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._simulators: dict[int, Simulator] = {}
        self._replies: deque[Reply] = deque()

    def reset(self, lane: int, task: Task, episode: int, seed: int) -> None:
        if lane in self._simulators and self._simulators[lane].task != task:
            self._simulators.pop(lane).close()
        if lane not in self._simulators:
            self._simulators[lane] = make(task, self._scene.assets, self._scene.width, self._scene.height, self._scene.privileged)
        self._replies.append(self._simulators[lane].reset(episode, seed))

    def step(self, lane: int, action: Array) -> None:
        self._replies.append(self._simulators[lane].step(action))

    def receive(self) -> Reply:
        return self._replies.popleft()

    def close(self) -> None:
        while self._simulators:
            self._simulators.popitem()[1].close()


class ProcessStation:
    """A station in a spawned process. An error over there is raised here, by `receive`.

    Raises:
        KitError: the process has died (with its exit code), or it raised a `KitError` itself.
    """

    def __init__(self, scene: Scene) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy the parent's threads and its Vulkan state
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, scene), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int | None:
        """Process id of the worker."""
        return self._process.pid

    def reset(self, lane: int, task: Task, episode: int, seed: int) -> None:
        self._send(("reset", lane, task.name, episode, seed))

    def step(self, lane: int, action: Array) -> None:
        self._send(("step", lane, action))

    def receive(self) -> Reply:
        try:
            kind, *content = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._dead() from error
        if kind == "mistake":
            raise KitError(*content)
        if kind == "error":
            raise RuntimeError(f"in a simulator process: {content[0]}")
        reply: Reply = content[0]
        return reply

    def close(self) -> None:
        try:
            self._connection.send(None)
            self._process.join(5)
        except OSError:
            pass
        if self._process.is_alive():
            self._process.terminate()
        self._process.join()
        self._connection.close()

    def _send(self, message: tuple[Any, ...]) -> None:
        with suppress(OSError):  # a dead process is told by `receive`, which the caller can put an episode's name to
            self._connection.send(message)

    def _dead(self) -> KitError:
        self._process.join(5)
        return KitError(
            f"a simulator process died (exit code {self._process.exitcode})",
            "run again: finished episodes are kept; with workers=0 the fault shows itself",
        )


def _serve(connection: Connection, scene: Scene) -> None:
    """What a process station runs: carry out requests until None comes or the other end is gone."""
    import os
    import traceback

    os.environ["OMP_NUM_THREADS"] = "1"  # torch's threads of several workers would wait for each other, whatever the parent may use
    station = LocalStation(scene)
    try:
        while (message := connection.recv()) is not None:
            try:
                kind, lane, *content = message
                if kind == "reset":
                    station.reset(lane, find_task(content[0]), *content[1:])
                else:
                    station.step(lane, content[0])
                connection.send(("reply", station.receive()))
            except KitError as error:
                connection.send(("mistake", error.what, error.remedy))
            except Exception:  # sent to the parent, which raises it
                connection.send(("error", traceback.format_exc()))
    except (EOFError, KeyboardInterrupt):
        pass
    finally:
        station.close()
