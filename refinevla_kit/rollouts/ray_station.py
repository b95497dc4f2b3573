"""Simulators on the machines of a Ray cluster; the policy stays where the run was started, which may be the
only machine with a GPU.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from typing import Any

from refinevla_kit.ray_cluster import cluster, machines_in_turn, place
from refinevla_kit.rollouts import engine
from refinevla_kit.rollouts.engine import Answer, ProcessStation, StationDied

RESTARTS, PAUSE = 10, 3.0  # times, and seconds between them, that a lost actor is made again


class _Actor:
    """What runs on a machine of the cluster."""

    def __init__(self) -> None:
        self._station = engine.station_alone()

    def answer(self, message: tuple[Any, ...]) -> Answer:
        """See `engine.answer`."""
        return engine.answer(self._station, message)


class RayStation(ProcessStation):
    """A station whose simulators are in an actor; where its machine is lost, another takes its place."""

    def _launch(self) -> None:
        self._ray = cluster()
        # No share of a core is reserved: after a loss all stations fit what is left.
        turns = machines_in_turn(self._ray.nodes())
        machine = turns[self.number % len(turns)]
        remote = self._ray.remote(num_cpus=0, scheduling_strategy=place(machine))
        self._actor = remote(_Actor).remote()
        self._coming: deque[Any] = deque()

    def request(self, lane: int, *message: Any) -> None:
        """See `LocalStation.request`."""
        self.asked.append(lane)
        self._coming.append(self._actor.answer.remote((lane, *message)))

    def _next_reply(self) -> Answer:
        errors = self._ray.exceptions
        try:
            reply: Answer = self._ray.get(self._coming.popleft(), timeout=engine.PATIENCE)
        except errors.GetTimeoutError as error:
            raise StationDied(self, f"no reply within {engine.PATIENCE:.0f} s") from error
        except errors.RayError as error:
            raise StationDied(self, f"its actor is lost ({type(error).__name__})") from error
        return reply

    def restart(self) -> None:
        """Another actor takes its place. A cluster notices late that a machine is lost, and may put the first
        ones there again.
        """
        for _ in range(RESTARTS):
            self.close()
            self.number += 1
            self._start()
            with suppress(self._ray.exceptions.RayError):
                self._ray.get(self._actor.__ray_ready__.remote(), timeout=engine.PATIENCE)
                return
            time.sleep(PAUSE)

    def close(self, wait: float = 5) -> None:
        """Let the actor go."""
        with suppress(Exception):  # the cluster may be gone before it
            self._ray.kill(self._actor)


EXECUTORS: dict[str, type[ProcessStation]] = {"processes": ProcessStation, "ray": RayStation}
"""Where simulators may be."""
