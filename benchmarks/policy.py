"""How many actions a second the kit's own decoding makes, against transformers' `generate` of the same model,
words and pictures: the compact VLA's, and a small SpatialVLA's and OpenVLA's.

    python benchmarks/policy.py [--repeats 12]

"own" is `VLAPolicy.act_batch`: cached, batched, at each place only the rows of the output head that may be
said there. "constrained" is `generate` held to the same words by a logits processor; its tokens are asserted
to be own's, every time. "plain" is `generate` held to nothing but the number of tokens: what it says is no
action, only its time counts. All three start from uint8 pictures and sentences and end in words, and take
turns within one run, so that a busy machine slows all of them. Weights are random and there is no
proprioception (`generate` takes pixels), at the size of the shipped checkpoints.

Of the other two "other" is `generate` of OpenVLA's language model on the same words and picture, held to
the same action words. That of SpatialVLA's language model cannot read a prompt in both directions: "other"
is then the whole sequence run again for every word. Their decoding is timed alone, too, from the words of
the picture on, because looking takes much of the time and is the same in both.

Prints tables of ratios and, as its last line, one JSON object. Medians, with the least in brackets. One
process, one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from refinevla_kit.policies.contract import Array
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.tasks import WIDOWX_TASKS
from refinevla_kit.vlas.action_tokens import ActionTokens, UniformBins
from refinevla_kit.vlas.compact import CompactConfig, CompactVLA, build
from refinevla_kit.vlas.compact_parts import ACTION, first_action_id, token_id, train_vocabulary
from refinevla_kit.vlas.contract import VLA
from refinevla_kit.vlas.decoder import embed, hidden_states, logits_of
from refinevla_kit.vlas.random_start import random_openvla, random_spatialvla, small_openvla, small_spatialvla
from refinevla_kit.vlas.spherical_grid import SphericalGrid

BATCHES = (1, 8)
LIMITS = np.array([0.04, 0.04, 0.04, 0.01, 0.01, 0.3, 1.0])
INSTRUCTION = "put carrot on plate"


class Allowed(LogitsProcessor):
    """Leaves only the action words of the next place; the answer starts after `start` tokens."""

    def __init__(self, bins: ActionTokens, first: int, start: int) -> None:
        self._ranges, self._first, self._start = bins.ranges, first, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        low, high = self._ranges[input_ids.shape[1] - self._start]
        kept = torch.full_like(scores, -torch.inf)
        kept[:, self._first + low : self._first + high] = scores[:, self._first + low : self._first + high]
        return kept


@torch.inference_mode()
def generated(vla: CompactVLA, images: Array, instructions: list[str], constrained: bool) -> Array:
    """int64 (B, T) tokens that `generate` writes after the action marker; decoded to actions when they are
    action words.
    """
    mark = token_id(vla.tokenizer, ACTION)
    ids = torch.tensor([[*vla.prefix_ids(text), mark] for text in instructions])
    types = torch.zeros_like(ids)
    types[:, -1] = 1  # without token types the prefix would be read in one direction only
    first, places = first_action_id(vla.tokenizer), len(vla.bins.ranges)
    tokens = vla.model.generate(
        input_ids=ids,
        token_type_ids=types,
        attention_mask=torch.ones_like(ids),
        pixel_values=vla.pixel_values(images),
        do_sample=False,
        min_new_tokens=places,
        max_new_tokens=places,
        logits_processor=LogitsProcessorList([Allowed(vla.bins, first, ids.shape[1])] if constrained else []),
    )[:, ids.shape[1] :].numpy()
    if constrained:
        vla.bins.decode(tokens - first)
    return np.asarray(tokens)


@torch.inference_mode()
def generated_by_llama(vla: VLA, images: Array, instructions: list[str]) -> Array:
    """int64 (B, T) action tokens that `generate` of OpenVLA's language model writes."""
    assert vla.marks.action is not None
    ids = torch.tensor([[*vla.prefix_ids(text), vla.marks.action] for text in instructions])
    words = embed(vla, ids, vla.see(vla.pixel_values(images), None))
    tokens = vla.model.language_model.generate(
        inputs_embeds=words,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=len(vla.ranges),
        max_new_tokens=len(vla.ranges),
        logits_processor=LogitsProcessorList([Allowed(vla.bins, vla.first_action, 0)]),
    )
    return np.asarray(tokens)


@torch.inference_mode()
def recomputed(vla: VLA, images: Array, instructions: list[str]) -> Array:
    """int64 (B, T) action tokens, the whole sequence run anew for each."""
    words = vla.see(vla.pixel_values(images), None)
    ids = torch.tensor([vla.prefix_ids(text) for text in instructions])
    prefix = ids.shape[1]
    for low, high in vla.ranges:
        types = (torch.arange(ids.shape[1]) >= prefix).long().expand_as(ids)
        hidden = hidden_states(vla, words, ids, types)[:, -1]
        allowed = slice(vla.first_action + low, vla.first_action + high)
        token = logits_of(vla, hidden, allowed).argmax(-1, keepdim=True) + vla.first_action + low
        ids = torch.cat([ids, token], 1)
    return np.asarray(ids[:, prefix:])


def measure_released(model: str, batch: int, repeats: int, data: Array) -> dict[str, Any]:
    """Seconds a batch of own decoding and of the other way; their tokens are compared each time."""
    texts = [task.instruction for task in WIDOWX_TASKS]
    if model == "openvla":
        vla, other = random_openvla(small_openvla(), texts, data), generated_by_llama
    else:
        vla, other = random_spatialvla(small_spatialvla(), texts, data), recomputed
    policy, random = VLAPolicy(vla, "own"), np.random.default_rng(batch)
    instructions = [INSTRUCTION] * batch
    times: dict[str, list[float]] = {"own": [], "other": [], "own_decoding": [], "other_decoding": []}
    for turn in range(repeats + 1):  # the first warms up
        images = random.integers(0, 256, (batch, 120, 160, 3), dtype=np.uint8)
        said = np.stack([action.tokens for action in policy.decide(images, instructions)])
        np.testing.assert_array_equal(said, other(vla, images, instructions))
        with torch.inference_mode():
            words = vla.see(vla.pixel_values(images), None)
        ways: dict[str, Callable[[], object]] = {
            "own": lambda images=images: policy.decide(images, instructions),
            "other": lambda images=images: other(vla, images, instructions),
        }  # type: ignore[misc]
        for name, way in ways.items():
            whole = seconds(way)
            with patch.object(type(vla), "see", lambda *_, words=words: words):
                decoding = seconds(way)
            if turn:
                times[name].append(whole)
                times[f"{name}_decoding"].append(decoding)
    medians = {name: statistics.median(found) for name, found in times.items()}
    return {
        "model": model,
        "against": "generate" if model == "openvla" else "the whole sequence anew for each word",
        "words": vla.bins.words,
        "tokens_an_answer": len(vla.ranges),
        "batch": batch,
        "parameters": sum(parameter.numel() for parameter in vla.model.parameters()),
        "answers_a_second": batch / medians["own"],
        "whole_ratio": medians["other"] / medians["own"],
        "decoding_ratio": medians["other_decoding"] / medians["own_decoding"],
    } | {name: {"median_s": medians[name], "least_s": min(found)} for name, found in times.items()}


def seconds(call: Callable[[], object]) -> float:
    """What one call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(bins: ActionTokens, batch: int, repeats: int) -> dict[str, Any]:
    """Seconds a batch of each way, taken in turns; the tokens of own and constrained decoding are compared on
    fresh pictures each time.
    """
    tokenizer = train_vocabulary([task.instruction for task in WIDOWX_TASKS], action_words=bins.words)
    vla = build(CompactConfig(proprioception=False), tokenizer, bins, seed=0)
    policy, random, instructions = (
        VLAPolicy(vla, "own", decoding="greedy"),
        np.random.default_rng(batch),
        [INSTRUCTION] * batch,
    )
    times: dict[str, list[float]] = {"own": [], "constrained": [], "plain": []}
    for turn in range(repeats + 1):  # the first warms up
        images = random.integers(0, 256, (batch, 120, 160, 3), dtype=np.uint8)
        said = np.stack([action.tokens for action in policy.act_batch(images, instructions)])
        np.testing.assert_array_equal(said, generated(vla, images, instructions, True))
        ways: dict[str, Callable[[], object]] = {
            "own": lambda images=images: policy.act_batch(images, instructions),
            "constrained": lambda images=images: generated(vla, images, instructions, True),
            "plain": lambda images=images: generated(vla, images, instructions, False),
        }  # type: ignore[misc]
        for name, way in ways.items():
            took = seconds(way)
            times[name] += [took] if turn else []
    parameters = sum(parameter.numel() for parameter in vla.model.parameters())
    row = {
        "tokens": bins.to_dict()["kind"],
        "words": bins.words,
        "tokens_an_action": len(bins.ranges),
        "batch": batch,
        "parameters": parameters,
    }
    for name, found in times.items():
        row[name] = {
            "median_s": statistics.median(found),
            "least_s": min(found),
            "actions_a_second": batch / statistics.median(found),
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=12)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    data = np.random.default_rng(0).normal(0, 0.4, (2000, 7)).clip(-1, 1) * LIMITS
    schemes = (UniformBins(tuple(float(x) for x in LIMITS)), SphericalGrid.fit(data))
    rows = [measure(bins, batch, repeats) for bins in schemes for batch in BATCHES]
    head = f"{'tokens':<10} {'batch':>5} {'own':>16} {'constrained':>16} {'plain':>16}"
    print(f"{head} {'constr./own':>12} {'plain/own':>10}   ms a batch, median (least)")
    for row in rows:
        cells = [
            f"{1000 * row[way]['median_s']:.1f} ({1000 * row[way]['least_s']:.1f})"
            for way in ("own", "constrained", "plain")
        ]
        faster = [row[way]["median_s"] / row["own"]["median_s"] for way in ("constrained", "plain")]
        print(
            f"{row['tokens']:<10} {row['batch']:>5} {cells[0]:>16} {cells[1]:>16} {cells[2]:>16} "
            f"{faster[0]:>11.2f}x {faster[1]:>9.2f}x"
        )
    print(f"{head}   actions a second")
    for row in rows:
        rates = [f"{row[way]['actions_a_second']:.1f}" for way in ("own", "constrained", "plain")]
        print(f"{row['tokens']:<10} {row['batch']:>5} {rates[0]:>16} {rates[1]:>16} {rates[2]:>16}")
    released = [
        measure_released(model, batch, repeats, data)
        for model in ("spatialvla", "openvla")
        for batch in BATCHES
    ]
    for row in released:
        own, other, own_decoding, other_decoding = (
            f"{1000 * row[way]['median_s']:.1f}" for way in ("own", "other", "own_decoding", "other_decoding")
        )
        print(
            f"{row['model']}, batch {row['batch']}, against {row['against']}: {own} and {other} ms, "
            f"{row['whole_ratio']:.2f}x; decoding alone {own_decoding} and {other_decoding} ms, "
            f"{row['decoding_ratio']:.2f}x"
        )
    about = {"benchmark": "policy", "repeats": repeats, "tokens_equal": True}
    print(json.dumps(about | {"rows": rows, "released": released}))


if __name__ == "__main__":
    main()
