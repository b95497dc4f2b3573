"""Closes the loop for a small SpatialVLA and a small OpenVLA: from a random start to the simulator and back.

    python benchmarks/closed_loop.py [--model spatialvla] [--lambda-reasoning 0.3] [--steps 500]

Four demonstrations of the kit's carrot task, carried out through the model's own action words, are learned by
heart and then played from the same four starts. Nothing but the picture tells the phases of the task apart.
With a reasoning loss the oracle's rationales are learned too, and what the policy writes for every fourth
frame is held against the teacher's text.

The classes are those of the real models, SpatialVLA's with Ego3D and ZoeDepth, at small size. The towers are
random and stay as they are, everything else is trained. Prints what came of it and, as its last line, one
JSON object. One process, one thread.
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
WIDTH, HEIGHT = 160, 120  # pixels of the camera
HIDDEN, LAYERS, IMAGE = 96, 3, 84
CELLS = (16, 32, 8, 3, 3, 16)  # the carrot's demonstrations neither roll nor pitch
TOGETHER = 16  # frames looked at in one pass


def random_start(model: str, texts: tuple[str, ...], actions: Array) -> VLA:
    """The model that has learned nothing, with words for these texts and actions."""
    small = small_spatialvla if model == "spatialvla" else small_openvla
    config = small(HIDDEN, LAYERS, IMAGE)
    config["text_config"]["intermediate_size"] = 2 * HIDDEN
    if model == "spatialvla":
        return random_spatialvla(config, texts, actions, CELLS)
    return random_openvla(config, texts, actions)


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
    )


def words_known(policy: VLAPolicy, examples: Examples) -> float:
    """Share of frames whose whole answer is the one that was taught."""
    vla, right = policy.vla, 0
    for start in range(0, len(examples), TOGETHER):
        rows = np.arange(start, min(start + TOGETHER, len(examples)))
        plans = examples.plans(rows, vla.chunk)
        taught = vla.bins.encode(vla.own_actions(plans)).reshape(len(rows), -1) + vla.first_action
        answers = policy.decide(examples.images[rows], [examples.instructions[row] for row in rows])
        right += sum(
            np.array_equal(answer.tokens, words) for answer, words in zip(answers, taught, strict=True)
        )
    return right / len(examples)


def texts_known(policy: VLAPolicy, examples: Examples, every: int) -> dict[str, Any]:
    """How many of every so many frames' rationales are written as the teacher wrote them."""
    rows = [row for row in range(0, len(examples), every) if examples.rationales[row]]
    written = [policy.explain(examples.images[row], examples.instructions[row]) for row in rows]
    taught = [" ".join(examples.rationales[row].split()) for row in rows]
    equal = [" ".join(text.split()) == truth for text, truth in zip(written, taught, strict=True)]
    different = len(set(taught))
    return {"frames": len(rows), "different": different, "equal": sum(equal), "written": written[0]}


def close_loop(
    model: str, folder: Path, steps: int, weight: float, episodes: int = 4, settle: int = 6
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
        batch_size=16,
        learning_rate=2e-3,
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
    shown = ("step", "loss_action", "action_accuracy", "loss_reasoning")
    for row in [*history[:: max(1, steps // 12)], history[-1]]:
        print("  ".join(f"{name} {row[name]:.4g}" for name in shown if name in row))
    policy = load_policy(folder / model)
    found: dict[str, Any] = {
        "model": model,
        "parameters": sum(parameter.numel() for parameter in policy.vla.model.parameters()),
        "demonstrations": recorded["successes"],
        "frames": len(examples),
        "steps": steps,
        "lambda_reasoning": weight,
        "loss_first": history[0]["loss"],
        "loss_last": history[-1]["loss"],
        "answers_known": words_known(policy, examples),
    }
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
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--episodes", type=int, default=4)
    parser.add_argument("--lambda-reasoning", type=float, default=0.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    rows = []
    for model in given.model or ("spatialvla", "openvla"):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(close_loop(model, Path(folder), given.steps, given.lambda_reasoning, given.episodes))
        print(json.dumps(rows[-1], indent=2), flush=True)
    print(json.dumps({"benchmark": "closed_loop", "rows": rows}))


if __name__ == "__main__":
    main()
