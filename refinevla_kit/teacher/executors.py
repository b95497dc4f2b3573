"""Where a teacher's calls are made: in threads of this process, on a Ray cluster, or in anything with
`concurrent.futures`' submit.

The run reserves, schedules, retries and stores; an executor makes one call a submit and no more: budget and
limits hold for all workers together.
"""

from __future__ import annotations

import logging
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Protocol

from refinevla_kit.errors import KitError, install
from refinevla_kit.teacher.schema import CallFailed, Reply, Request, Teacher


class Calls(Protocol):
    """Makes calls to one teacher."""

    def submit(self, request: Request, previous: Reply | None) -> Future[Reply]:
        """Start one `Teacher.annotate`."""
        ...

    def close(self) -> None:
        """Give the workers back; calls not yet begun are dropped."""
        ...


def connect(executor: str | Executor | Calls, teacher: Teacher, concurrency: int) -> Calls:
    """Calls to `teacher` through "threads", "ray", a `concurrent.futures.Executor` (which stays open), or a
    `Calls` of the user's own.
    """
    if executor == "threads":
        return PoolCalls(ThreadPoolExecutor(concurrency, "teacher"), teacher, own=True)
    if executor == "ray":
        return RayCalls(teacher, concurrency)
    if isinstance(executor, Executor):
        return PoolCalls(executor, teacher)
    if isinstance(executor, str):
        raise KitError(f"unknown executor {executor!r}", "choose threads or ray, or pass an executor")
    return executor


class PoolCalls:
    """Calls through a `concurrent.futures.Executor`; one with processes gets the teacher pickled with each
    call.
    """

    def __init__(self, pool: Executor, teacher: Teacher, own: bool = False) -> None:
        self.pool, self.teacher, self.own = pool, teacher, own

    def submit(self, request: Request, previous: Reply | None) -> Future[Reply]:
        return self.pool.submit(self.teacher.annotate, request, previous)

    def close(self) -> None:
        if self.own:
            self.pool.shutdown(wait=False, cancel_futures=True)


class RayCalls:
    """Calls through Ray actors, each of which holds its own copy of the teacher and reads the key from its
    own environment.

    Args:
        concurrency: calls at a time, over all actors.
        workers: actors; None: one a CPU of the cluster.
        options: of the actors, as Ray has them.
            Connects to the cluster that `ray.init` or RAY_ADDRESS names, else starts one on this machine.
    Raises: `KitError` when Ray is not installed.
    """

    def __init__(
        self, teacher: Teacher, concurrency: int, workers: int | None = None, **options: Any
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise KitError(
                "executor ray: Ray is not installed", f"{install('ray')}; or use executor threads"
            ) from error
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        count = max(1, min(concurrency, workers or int(ray.cluster_resources().get("CPU", 1))))
        # A dead worker is replaced; its calls are not repeated by Ray (they may have been paid for), the run
        # decides.
        settings = {
            "num_cpus": 0 if workers is None else 1,
            "max_concurrency": -(-concurrency // count),
            "max_restarts": -1,
            "max_task_retries": 0,
        }
        actor: Any = ray.remote(**settings | options)(_Worker)
        self._actors: list[Any] = [actor.remote(teacher) for _ in range(count)]
        ray.get(
            [each.__ray_ready__.remote() for each in self._actors]
        )  # a call that waits for its worker would reach the server in another minute
        self._free = self._actors * settings["max_concurrency"]

    def submit(self, request: Request, previous: Reply | None) -> Future[Reply]:
        actor = self._free.pop(0)
        done: Future[Reply] = Future()
        remote = actor.annotate.remote(request, previous).future()
        remote.add_done_callback(lambda _: self._finish(actor, remote, done))
        return done

    def _finish(self, actor: Any, remote: Future[Any], done: Future[Reply]) -> None:
        from ray.exceptions import RayActorError

        self._free.append(actor)
        error = remote.exception()
        if isinstance(error, RayActorError):
            done.set_exception(CallFailed("connection", "a worker of the Ray cluster died during the call"))
        elif error or isinstance(remote.result(), BaseException):
            done.set_exception(error or remote.result())
        else:
            done.set_result(remote.result())

    def close(self) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)


class _Worker:
    """Runs in a Ray worker; what a call raises comes back as a value, whole."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    def annotate(self, request: Request, previous: Reply | None) -> Reply | BaseException:
        try:
            return self.teacher.annotate(request, previous)
        except Exception as error:
            return error
