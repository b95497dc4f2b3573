"""Which machine of a cluster an actor is put on."""

from __future__ import annotations

from typing import Any

from refinevla_kit.ray_cluster import machines_in_turn


def node(name: str, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"NodeID": name, "Alive": alive, "Resources": {"memory": 1e9, **resources}}


def test_machines_take_turns_as_often_as_they_have_cores() -> None:
    nodes = [node("b", CPU=1.0), node("a", CPU=3.0), node("lost", alive=False, CPU=8.0), node("head")]
    assert machines_in_turn(nodes) == ["a", "b", "a", "a"]


def test_machines_that_say_no_cores_take_turns_once() -> None:
    assert machines_in_turn([node("b", CPU=0.5), node("a")]) == ["a", "b"]
