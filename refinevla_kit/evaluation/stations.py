"""Where episodes are played: a station holds one simulator, in this process or in a spawned one, and answers resets and steps.

A simulator takes 1-12 seconds to make and 0.1 to reset, so a station keeps the one it has while the task stays the same. Requests and replies are
split in two calls, so that several process stations work at the same time while the caller waits for them one after another.
"""

from __future__ import annotations

import multiprocessing
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
    """One simulator at a time. Each request is followed by one `receive`."""

    def reset(self, task: Task, episode: int, seed: int) -> None: ...

    def step(self, action: Array) -> None: ...

    def receive(self) -> Reply: ...

    def close(self) -> None: ...


class LocalStation:
    """A station in this process: requests are carried out at once."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._simulator: Simulator | None = None
        self._reply: Reply | None = None

    def reset(self, task: Task, episode: int, seed: int) -> None:
        if self._simulator is None or self._simulator.task != task:
            self.close()
            self._simulator = make(task, self._scene.assets, self._scene.width, self._scene.height, self._scene.privileged)
        self._reply = self._simulator.reset(episode, seed)

    def step(self, action: Array) -> None:
        assert self._simulator is not None, "reset comes first"
        self._reply = self._simulator.step(action)

    def receive(self) -> Reply:
        assert self._reply is not None, "nothing was asked"
        return self._reply

    def close(self) -> None:
        if self._simulator is not None:
            self._simulator.close()
            self._simulator = None


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

    def reset(self, task: Task, episode: int, seed: int) -> None:
        self._send(("reset", task.name, episode, seed))

    def step(self, action: Array) -> None:
        self._send(("step", action))

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
        try:
            self._connection.send(message)
        except OSError as error:
            raise self._dead() from error

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

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads of several workers would fight over the cores
    station = LocalStation(scene)
    try:
        while (message := connection.recv()) is not None:
            try:
                if message[0] == "reset":
                    station.reset(find_task(message[1]), *message[2:])
                else:
                    station.step(message[1])
                connection.send(("reply", station.receive()))
            except KitError as error:
                connection.send(("mistake", error.what, error.remedy))
            except Exception:  # sent to the parent, which raises it
                connection.send(("error", traceback.format_exc()))
    except (EOFError, KeyboardInterrupt):
        pass
    finally:
        station.close()
