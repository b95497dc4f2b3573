"""Simulators on a Ray cluster play what local processes play, and survive the loss of a machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation import evaluate, load_records
from refinevla_kit.rollouts.players import DemonstratorPolicy
from tests.conftest import REPOSITORY

TASKS = ("widowx_carrot_on_plate", "widowx_stack_cube")
UNEQUAL = ("wall_time",)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and a second node, each with two processors."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 2, "object_store_memory": 80_000_000, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=small)
    environment = {"env_vars": {"PYTHONPATH": str(REPOSITORY)}}
    ray.init(address=made.address, log_to_driver=False, runtime_env=environment)
    yield made
    ray.shutdown()
    made.shutdown()


def outcomes(path: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in asdict(record).items() if name not in UNEQUAL}
        for record in load_records(path)
    ]


@pytest.mark.slow
def test_a_cluster_gives_the_records_of_local_processes(cluster: Any, tmp_path: Path) -> None:
    policy = DemonstratorPolicy()
    local = evaluate(policy, TASKS, 2, workers=2, output=tmp_path / "local.parquet", progress=False)
    far = evaluate(
        policy, TASKS, 2, workers=2, output=tmp_path / "far.parquet", progress=False, executor="ray"
    )
    assert outcomes(far) == outcomes(local)
    assert all(record.success_last for record in load_records(far))


@pytest.mark.slow
def test_episodes_of_a_lost_machine_are_played_again(cluster: Any, tmp_path: Path) -> None:
    """Its simulators start on another; what was played stays, nothing is there twice."""
    whole = evaluate(
        DemonstratorPolicy(), TASKS, 2, workers=2, output=tmp_path / "whole.parquet", progress=False
    )
    lost = cluster.add_node(num_cpus=2, object_store_memory=80_000_000)
    policy = _Losing(lambda: lose(cluster, lost))
    with pytest.warns(RuntimeWarning, match="its actor is lost .*; the process was started again"):
        path = evaluate(
            policy, TASKS, 2, workers=4, output=tmp_path / "x.parquet", progress=False, executor="ray"
        )
    assert outcomes(path) == outcomes(whole)


def lose(cluster: Any, node: Any) -> None:
    """Take a machine away, with all that runs on it."""
    (raylet,) = node.all_processes["raylet"]
    running = psutil.Process(raylet.process.pid).children(recursive=True)
    cluster.remove_node(node, allow_graceful=False)
    for process in running:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(running)


class _Losing(DemonstratorPolicy):
    """After some steps a machine is gone."""

    def __init__(self, lose: Any) -> None:
        super().__init__()
        self._lose, self._calls = lose, 0

    def act_states(self, *arguments: Any) -> Any:
        self._calls += 1
        if self._calls == 10:
            self._lose()
        return super().act_states(*arguments)


def test_an_unknown_executor_is_told_before_anything_is_played(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"unknown executor 'rey'.* -> choose one of processes, ray"):
        evaluate(DemonstratorPolicy(), TASKS, 1, output=tmp_path / "x.parquet", executor="rey")
