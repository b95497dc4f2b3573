"""What reading attention costs on top of the forward pass it is read from.

    python benchmarks/attention.py [--repeats 20]

"plain" is one teacher-forced forward pass of the compact VLA from its picture's tokens on, "rows" the same
with the wanted rows of every layer kept (`attention_rows`), "squares" transformers' own
`output_attentions=True`, which keeps all of every layer and is what the rows are asserted to equal to 1e-6.
"fused" is the plain pass on SDPA, with the logits' soft-capping taken out, which fused attention cannot do:
another function, so only its time counts; it says what a model that needs no weights would save. The four
take turns within one run, so that a busy machine slows all of them. Weights are random, at the size of the
shipped checkpoints. "action" asks about the action's tokens, "all" about every word of a 60-word rationale
and of the instruction too. Of a small SpatialVLA and a small OpenVLA "squares" are all the weights that the
same pass shows. Prints a table of ratios and, as its last line, one JSON object. Medians, with the
least in brackets. One process, one thread.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from refinevla_kit.attention.captured import KINDS
from refinevla_kit.attention.forward import forward_pass, query_rows, token_sequence, watching
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.vlas.action_tokens import UniformBins
from refinevla_kit.vlas.compact import CompactConfig, CompactVLA, build
from refinevla_kit.vlas.compact_parts import first_action_id, train_vocabulary
from refinevla_kit.vlas.random_start import random_openvla, random_spatialvla, small_openvla, small_spatialvla

BATCHES = (1, 8)
INSTRUCTION, RATIONALE = (
    "put carrot on plate",
    "the carrot is left of the plate " * 8 + "so move to the carrot",
)
WAYS = ("plain", "rows", "squares", "fused")


def without_softcap(vla: CompactVLA) -> CompactVLA:
    """A copy on SDPA that does not cap its attention logits."""
    model = copy.deepcopy(vla.model)
    model.config.get_text_config()._attn_implementation = "sdpa"
    for layer in model.model.language_model.layers:
        layer.self_attn.attn_logit_softcapping = None
    return CompactVLA(model, vla.tokenizer, vla.bins, {})


def seconds(call: Callable[[], object]) -> float:
    """What one call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@torch.inference_mode()
def measure(kinds: tuple[str, ...], batch: int, repeats: int) -> dict[str, Any]:
    """Seconds a batch of each way, taken in turns; the rows are compared with the squares' each time."""
    bins = UniformBins((0.04, 0.04, 0.04, 0.01, 0.01, 0.3, 1.0))
    vla = build(CompactConfig(proprioception=True), train_vocabulary([INSTRUCTION, RATIONALE]), bins, seed=0)
    policy, fused, random = VLAPolicy(vla, "compact"), without_softcap(vla), np.random.default_rng(batch)
    first = first_action_id(vla.tokenizer)
    sequence = token_sequence(policy, INSTRUCTION, [first + 30 * i for i in range(7)], RATIONALE, kinds)
    ids = torch.tensor([sequence.ids] * batch)
    types = (torch.arange(ids.shape[1]) >= sequence.prefix).long().expand_as(ids)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(repeats + 1):  # the first warms up
        images = random.integers(0, 256, (batch, 120, 160, 3), dtype=np.uint8)
        states = vla.states(random.normal(size=(batch, 15)))
        words = vla.see(vla.pixel_values(images), states)
        picture = {"image": BaseModelOutputWithPooling(None, words)}
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "token_type_ids": types,
            "mm_encoder_outputs": picture,
            "use_cache": False,
        }
        kept: dict[str, Any] = {}
        ways: dict[str, Callable[[], object]] = {
            "plain": lambda inputs=inputs: vla.model.model(**inputs),
            "rows": lambda kept=kept, words=words: kept.update(
                rows=query_rows(policy, words, [sequence] * batch)
            ),
            "squares": lambda kept=kept, inputs=inputs: kept.update(
                squares=vla.model.model(**inputs, output_attentions=True).attentions
            ),
            "fused": lambda inputs=inputs: fused.model.model(**inputs),
        }  # type: ignore[misc]
        for name in (
            WAYS[turn % len(WAYS) :] + WAYS[: turn % len(WAYS)]
        ):  # whoever comes first finds a cold cache
            took = seconds(ways[name])
            times[name] += [took] if turn else []
        squares: Tensor = torch.stack(kept["squares"], 1)  # B, layers, heads, N, N
        means = [squares[..., list(query.positions), :].mean(-2) for query in sequence.queries]
        np.testing.assert_allclose(kept["rows"], torch.stack(means, 3).numpy(), atol=1e-6)
    row: dict[str, Any] = {
        "queries": "all" if len(kinds) > 1 else kinds[0],
        "queried": sum(len(query.positions) for query in sequence.queries),
        "tokens": ids.shape[1],
        "batch": batch,
    }
    row["rows_over_plain"] = statistics.median(
        rows / plain for rows, plain in zip(times["rows"], times["plain"], strict=True)
    )
    return row | {
        way: {"median_s": statistics.median(found), "least_s": min(found)} for way, found in times.items()
    }


@torch.inference_mode()
def measure_released(model: str, kinds: tuple[str, ...], repeats: int) -> dict[str, Any]:
    """Seconds of a forward pass and of one whose rows are kept, taken in turns; compared with the squares."""
    actions = np.random.default_rng(0).normal(0, 0.01, (200, 7))
    texts = (INSTRUCTION, RATIONALE)
    if model == "spatialvla":
        vla = random_spatialvla(small_spatialvla(), texts, actions)
    else:
        vla = random_openvla(small_openvla(), texts, actions)
    policy, random = VLAPolicy(vla, model), np.random.default_rng(1)
    words = [vla.first_action + low for low, _ in vla.ranges]
    sequence = token_sequence(policy, INSTRUCTION, words, RATIONALE, kinds)
    times: dict[str, list[float]] = {"plain": [], "rows": []}
    for turn in range(repeats + 1):  # the first warms up
        seen = torch.from_numpy(random.normal(size=(1, vla.image_tokens, vla.decoder.config.hidden_size)))
        seen, kept = seen.float(), dict[str, Any]()
        ways: dict[str, Callable[[], object]] = {
            "plain": lambda seen=seen: forward_pass(policy, seen, [sequence]),
            "rows": lambda seen=seen, kept=kept: kept.update(rows=query_rows(policy, seen, [sequence])),
        }  # type: ignore[misc]
        for name in ("plain", "rows") if turn % 2 else ("rows", "plain"):
            took = seconds(ways[name])
            times[name] += [took] if turn else []
        squares: list[Tensor] = []
        with watching(policy, squares.append):
            forward_pass(policy, seen, [sequence])
        whole = torch.stack(squares, 1)[0]  # layers, heads, N, N
        means = [whole[..., list(query.positions), :].mean(-2) for query in sequence.queries]
        np.testing.assert_allclose(kept["rows"][0], torch.stack(means, 2).numpy(), atol=1e-6)
    ratios = [rows / plain for rows, plain in zip(times["rows"], times["plain"], strict=True)]
    row: dict[str, Any] = {
        "model": model,
        "queries": "all" if len(kinds) > 1 else kinds[0],
        "queried": sum(len(query.positions) for query in sequence.queries),
        "tokens": len(sequence.ids),
        "rows_over_plain": statistics.median(ratios),
    }
    return row | {
        way: {"median_s": statistics.median(found), "least_s": min(found)} for way, found in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    rows = [measure(kinds, batch, repeats) for kinds in (("action",), KINDS) for batch in BATCHES]
    head = " ".join(f"{way:>15}" for way in WAYS)
    print(
        f"{'queries':<8} {'tokens':>6} {'batch':>5} {head} {'rows/plain':>11}   ms a batch, median "
        "(least); median ratio of a turn"
    )
    for row in rows:
        cells = " ".join(
            f"{1000 * row[way]['median_s']:.1f} ({1000 * row[way]['least_s']:.1f})".rjust(15) for way in WAYS
        )
        print(
            f"{row['queries']:<8} {row['tokens']:>6} {row['batch']:>5} {cells} "
            f"{row['rows_over_plain']:>10.2f}x"
        )
    released = [
        measure_released(model, kinds, repeats)
        for model in ("spatialvla", "openvla")
        for kinds in (("action",), KINDS)
    ]
    for row in released:
        cells = " ".join(
            f"{1000 * row[way]['median_s']:.1f} ({1000 * row[way]['least_s']:.1f})" for way in WAYS[:2]
        )
        ratio = f"{row['rows_over_plain']:.2f}x"
        print(f"{row['model']}, {row['queries']}: {row['tokens']} tokens, plain and rows {cells} ms, {ratio}")
    about = {"benchmark": "attention", "repeats": repeats, "rows_equal": True}
    print(json.dumps(about | {"rows": rows, "released": released}))


if __name__ == "__main__":
    main()
