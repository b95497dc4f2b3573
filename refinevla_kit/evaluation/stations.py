"""Where episodes are played: a station holds simulators, in this process or in a spawned one, and answers
resets and steps.

A station has lanes, one simulator each, so that a few processes can fill a policy's batch. A lane keeps its
simulator while task and variant stay the same. Requests and replies are split in two calls, so that several
process stations work at the same time, and while the policy thinks.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, Protocol

from refinevla_kit.errors import KitError
from refinevla_kit.simulator import make
from refinevla_kit.simulator.contract import Array, Observation, Pose, Simulator, StepResult
from refinevla_kit.tasks import find_task

Reply = Observation | StepResult
# Seconds without a reply after which a simulator process counts as dead; making an environment takes 12 at
# most
PATIENCE = 600.0


@dataclass(frozen=True)
class Scene:
    """What a simulator is made from: the arguments of `simulator.make`, the task by its name."""

    task: str
    variant: str
    setting: str
    backend: str
    assets: str
    width: int
    height: int
    privileged: bool

    def make(self) -> Simulator:
        """The simulator of this scene."""
        return make(
            find_task(self.task),
            self.assets,
            self.width,
            self.height,
            self.privileged,
            backend=self.backend,
            setting=self.setting,
            variant=self.variant,
        )


class StationDied(Exception):
    """A simulator process is gone or failed; `lane` is the one whose request it was carrying out."""

    def __init__(self, lane: int, why: str, answered: bool) -> None:
        super().__init__(why)
        self.lane, self.answered = lane, answered


class Station(Protocol):
    """Simulators by lane. Each request has one reply, and a lane has one request at a time."""

    def reset(self, lane: int, scene: Scene, start: int | Pose, seed: int) -> None: ...

    def step(self, lane: int, action: Array, terminate: bool) -> None: ...

    def receive(self, lane: int) -> Reply: ...

    def restart(self) -> None: ...

    def close(self) -> None: ...


class LocalStation:
    """A station in this process: requests are carried out at once."""

    def __init__(self) -> None:
        self._simulators: dict[int, tuple[Scene, Simulator]] = {}
        self._replies: dict[int, Reply] = {}

    def reset(self, lane: int, scene: Scene, start: int | Pose, seed: int) -> None:
        if lane in self._simulators and self._simulators[lane][0] != scene:
            self._simulators.pop(lane)[1].close()
        if lane not in self._simulators:
            self._simulators[lane] = scene, scene.make()
        self._replies[lane] = self._simulators[lane][1].reset(start, seed)

    def step(self, lane: int, action: Array, terminate: bool) -> None:
        """Advance one control step. With `terminate` a long-horizon task first goes on to its next sub-task;
        any other episode ends here.
        """
        simulator = self._simulators[lane][1]
        over = terminate and not simulator.advance()
        result = simulator.step(action)
        self._replies[lane] = (
            replace(result, done=True, reason=result.reason or "terminated") if over else result
        )

    def receive(self, lane: int) -> Reply:
        return self._replies.pop(lane)

    def restart(self) -> None:
        raise NotImplementedError("what fails in this process is raised in it")

    def close(self) -> None:
        while self._simulators:
            self._simulators.popitem()[1][1].close()


class ProcessStation:
    """A station in a spawned process, which `restart` replaces when it has died."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context(
            "spawn"
        )  # a fork would copy the parent's threads and its Vulkan state
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._asked: deque[int] = deque()  # lanes whose request is not answered yet, in order
        self._replies: dict[int, Reply] = {}
        self._answered = False

    def reset(self, lane: int, scene: Scene, start: int | Pose, seed: int) -> None:
        self._send(lane, "reset", scene, start, seed)

    def step(self, lane: int, action: Array, terminate: bool) -> None:
        self._send(lane, "step", action, terminate)

    def receive(self, lane: int) -> Reply:
        """The reply to the lane's request.

        Raises:
            KitError: what the simulator refused.
            StationDied: the process is gone, hangs, or the simulator failed.
        """
        while lane not in self._replies:
            try:
                if not self._connection.poll(PATIENCE):
                    raise StationDied(self._asked[0], f"no reply within {PATIENCE:.0f} s", self._answered)
                kind, *content = self._connection.recv()
            except (EOFError, OSError) as error:
                self._process.join(5)
                raise StationDied(
                    self._asked[0], f"its process died (exit code {self._process.exitcode})", self._answered
                ) from error
            if kind == "mistake":
                raise KitError(*content)
            if kind == "error":
                raise StationDied(self._asked[0], content[0], self._answered)
            self._answered = True
            self._replies[self._asked.popleft()] = content[0]
        return self._replies.pop(lane)

    def restart(self) -> None:
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

    def _send(self, lane: int, *message: Any) -> None:
        self._asked.append(lane)
        with suppress(
            OSError
        ):  # a dead process is told by `receive`, to which the caller can put an episode's name
            self._connection.send((lane, *message))


def _serve(connection: Connection) -> None:
    """What a process station runs: carry out requests until None comes or the other end is gone."""
    import os
    import traceback

    from refinevla_kit.simulator import maniskill

    maniskill.own_process = True
    os.environ["OMP_NUM_THREADS"] = (
        "1"  # torch's threads of several workers would wait for each other, whatever the parent may use
    )
    station = LocalStation()
    try:
        while (message := connection.recv()) is not None:
            try:
                lane, kind, *content = message
                (station.reset if kind == "reset" else station.step)(lane, *content)
                connection.send(("reply", station.receive(lane)))
            except KitError as error:
                connection.send(("mistake", error.what, error.remedy))
            except Exception:  # told to the parent, which repeats the episode in a new process
                connection.send(("error", traceback.format_exc()))
    except (EOFError, KeyboardInterrupt):
        pass
    finally:
        station.close()
