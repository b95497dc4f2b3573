"""Closes the loop for a small SpatialVLA and a small OpenVLA: from a random start to the simulator and back.

    python benchmarks/closed_loop.py [--model spatialvla] [--lambda-reasoning 0.3] [--steps 400]

Four demonstrations of the kit's carrot task, carried out through the model's own action words, are learned by
heart and then played from the same four starts. What is learned is the picture: nothing else tells the
phases of the task apart. With a reasoning loss the oracle's rationales are learned too, and what the policy
writes for each frame is held against the teacher's text.

The classes are those of the real models, with Ego3D and ZoeDepth, at small size; towers are random and stay
as they are, everything else is trained. Prints what came of it and, as its last line, one JSON object. One
process, one thread.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from refinevla_kit.episodes import open_dataset
from refinevla_kit.evaluation import evaluate, load_records
from refinevla_kit.policies import load_policy
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.rollouts.recording import record
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.simulator.contract import Array, Observation
from refinevla_kit.simulator.demonstrator import Demonstrator
from refinevla_kit.tasks import Task
from refinevla_kit.teacher import annotate_dataset
from refinevla_kit.teacher.oracle import OracleTeacher
from refinevla_kit.training.examples import Examples, load_examples
from refinevla_kit.training.loop import TrainingConfig
from refinevla_kit.training.policy_run import train_policy
from refinevla_kit.vlas.contract import VLA
from refinevla_kit.vlas.random_start import random_openvla, random_spatialvla, small_openvla, small_spatialvla

TASK = "widowx_carrot_on_plate"
WIDTH, HEIGHT = 160, 120


def random_start(model: str, texts: tuple[str, ...], actions: Array) -> VLA:
    """The model that has learned nothing, with words for these texts and actions."""
    if model == "spatialvla":
        return random_spatialvla(small_spatialvla(), texts, actions)
    return random_openvla(small_openvla(), texts, actions)


def demonstrate(policy: VLAPolicy, folder: Path, episodes: int, settle: int) -> dict[str, Any]:
    """Record the demonstrator, its actions rounded to the policy's words before they are carried out."""

    def drive(observation: Observation, task: Task) -> Array:
        assert observation.state is not None
        rounded: Array = policy.round_trip(Demonstrator(task).act(observation.state)[None])[0]
        return rounded.astype(np.float32)

    return record(
        folder,
        [TASK],
        episodes,
        start="grid",
        drive=drive,
        settle=settle,
        progress=False,
        width=WIDTH,
        height=HEIGHT,
    )


def words_known(policy: VLAPolicy, examples: Examples) -> float:
    """Share of frames whose whole answer is the one that was taught."""
    vla = policy.vla
    right = 0
    for row in range(len(examples)):
        plan = examples.plans(np.array([row]), vla.chunk)
        taught = vla.bins.encode(vla.own_actions(plan)).reshape(-1) + vla.first_action
        (answer,) = policy.decide(examples.images[row : row + 1], [examples.instructions[row]])
        right += bool((answer.tokens == taught).all())
    return right / len(examples)


def texts_known(policy: VLAPolicy, examples: Examples, every: int) -> dict[str, Any]:
    """How many of every so many frames' rationales are written as the teacher wrote them."""
    rows = [row for row in range(0, len(examples), every) if examples.rationales[row]]
    written = [policy.explain(examples.images[row], examples.instructions[row]) for row in rows]
    taught = [" ".join(examples.rationales[row].split()) for row in rows]
    equal = [" ".join(text.split()) == truth for text, truth in zip(written, taught, strict=True)]
    return {"frames": len(rows), "equal": sum(equal), "example": {"written": written[0], "taught": taught[0]}}


def close_loop(
    model: str, folder: Path, steps: int, rate: float, weight: float, episodes: int = 4, settle: int = 6
) -> dict[str, Any]:
    """One model, from random weights to its episodes; what came of it."""
    began = time.perf_counter()
    demo = open_dataset(REPOSITORY / "data" / "demo")
    actions = np.concatenate([demo.actions(episode.index) for episode in demo.episodes])
    start = random_start(model, ("put carrot on plate",), actions)
    recorded = demonstrate(VLAPolicy(start, model), folder / "dataset", episodes, settle)
    dataset = open_dataset(folder / "dataset")
    rationales = annotate_dataset(dataset, OracleTeacher(), progress=False) if weight else None
    examples = load_examples(dataset, rationales)
    start = random_start(model, (*examples.instructions, *examples.rationales), actions)
    start.save(folder / "base")
    config = TrainingConfig(
        steps,
        batch_size=32,
        learning_rate=rate,
        lambda_reasoning=weight,
        freeze_layers=0,
        weight_decay=0.0,
        validate_every=0,
        save_every=0,
        precision="fp32",
    )
    prepared = time.perf_counter()
    history = train_policy(folder / "base", examples, config, folder, model, progress=False)
    trained = time.perf_counter()
    for row in history[:: max(1, steps // 12)] + history[-1:]:
        print({name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()})
    policy = load_policy(folder / model)
    known = words_known(policy, examples)
    found: dict[str, Any] = {
        "model": model,
        "parameters": sum(parameter.numel() for parameter in policy.vla.model.parameters()),
        "demonstrations": recorded["successes"],
        "frames": len(examples),
        "steps": steps,
        "lambda_reasoning": weight,
        "loss_action": history[-1]["loss_action"],
        "answers_known": known,
    }
    print(json.dumps(found), flush=True)
    if weight:
        found["texts"] = texts_known(policy, examples, 4)
    checked = time.perf_counter()
    path = evaluate(
        policy, TASK, episodes, workers=0, output=folder, width=WIDTH, height=HEIGHT, progress=False
    )
    records = load_records(path)
    seconds = {
        "prepare": prepared - began,
        "train": trained - prepared,
        "check": checked - trained,
        "play": time.perf_counter() - checked,
    }
    return found | {
        "episodes": len(records),
        "success_last": int(sum(record.success_last for record in records)),
        "success_any": int(sum(record.success_any for record in records)),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("spatialvla", "openvla"), action="append")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--lambda-reasoning", type=float, default=0.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    rows = []
    for model in given.model or ("spatialvla", "openvla"):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(close_loop(model, Path(folder), given.steps, given.rate, given.lambda_reasoning))
        print(json.dumps(rows[-1], indent=2))
    print(json.dumps({"benchmark": "closed_loop", "rows": rows}))


if __name__ == "__main__":
    main()
