"""Ray, for what is spread over machines: annotation and evaluation."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from refinevla_kit.errors import as_kit_error, install


def cluster() -> Any:
    """Ray, connected to the cluster that `ray.init` or RAY_ADDRESS names, else to one started here.

    Raises:
        KitError: it is not installed, or no cluster answers.
    """
    with as_kit_error(
        "executor ray: Ray is not installed", f"{install('ray')}; or choose another executor", (ImportError,)
    ):
        import ray
    if not ray.is_initialized():
        remedy = "look at RAY_ADDRESS, or unset it to start one here"
        with as_kit_error("executor ray: no cluster answers", remedy, (ConnectionError, RuntimeError)):
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    return ray


def place(machine: str) -> Any:
    """Where an actor is put, if that machine is there: what takes no share of a core, Ray itself may put on
    one machine. See `machines_in_turn`.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(machine, soft=True)


def machines_in_turn(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The identities of a cluster's machines, each as often as it has cores; where none says how many, each
    once.

    Args:
        nodes: from `ray.nodes`.
    """
    alive = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]}
    cores = sorted((core, name) for name, count in alive.items() for core in range(count))
    return [name for _, name in cores] or sorted(alive)
