"""Reads the attention of chosen tokens while a policy acts: only the wanted rows of each layer, never all
layers' squares.

The sequence is fed in one piece with the policy's own greedy tokens, which gives the rows that cached
decoding used (queries.py says which rows). Token types are passed, so the prefix is read in both directions;
without them the model would silently use a causal mask. Gemma 2 caps its attention logits, which fused
attention (SDPA) cannot do, so its plain forward is "eager" and has the weights of one layer at a time anyway:
reading rows of them costs next to nothing (benchmarks/attention.py). Any other implementation is an error,
never a missing answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from refinevla_kit.attention.captured import (
    ACTION_QUERY,
    OWN_STATE,
    RATIONALE_QUERY,
    Capture,
    Query,
    image_hash,
    upper_middle,
)
from refinevla_kit.attention.queries import TokenSequence, check_kinds, check_policy, lay_out
from refinevla_kit.errors import KitError
from refinevla_kit.policies.contract import Action, Array
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.vlas.decoder import hidden_states

__all__ = [
    "Capture",
    "Query",
    "attention_rows",
    "capture",
    "capture_batch",
    "teacher_forced",
    "upper_middle",
    "watching",
]


def capture(
    policy: VLAPolicy,
    image: Array,
    instruction: str,
    action: Action | None = None,
    rationale: str | None = None,
    proprioception: Array | None = None,
    queries: Sequence[str] = (ACTION_QUERY,),
) -> Capture:
    """Attention of each query on one picture.

    Args:
        policy: of the compact VLA.
        image: uint8 (H, W, 3).
        action: what to feed as the answer; None is the policy's own greedy action.
        rationale: the text to feed, tokenized anew; None is the policy's own greedy one where the sequence
            has one: a policy that writes before it acts takes the action's own, any other writes one only if
            "rationale" is asked about.
        proprioception: float (15,), for a policy that reads it.
        queries: kinds of what to look from, of "action" (each action dimension), "rationale" and
            "instruction" (each word).

    Raises:
        KitError: the policy has no tokens to look from, or wrote no rationale where one is asked about; an
            attention implementation that does not return weights; unknown queries.
    """
    own = None if proprioception is None else np.asarray(proprioception)[None]
    actions, texts = None if action is None else [action], None if rationale is None else [rationale]
    return capture_batch(policy, np.asarray(image)[None], [instruction], actions, texts, own, queries)[0]


@torch.inference_mode()
def capture_batch(
    policy: VLAPolicy,
    images: Array | Sequence[Array],
    instructions: Sequence[str],
    actions: Sequence[Action] | None = None,
    rationales: Sequence[str] | None = None,
    proprioception: Array | None = None,
    queries: Sequence[str] = (ACTION_QUERY,),
    batch_size: int = 16,
) -> list[Capture]:
    """`capture` of B pictures, those with equally long sequences together; the same arguments in the plural.

    Args:
        images: uint8 (B, H, W, 3), or a sequence of B pictures of any sizes.
        proprioception: float (B, 15).
        batch_size: most pictures of one forward pass; one layer's attention of so many is in memory at a
            time.
    """
    if not len(images):
        return []
    sequences, answers = teacher_forced(
        policy, images, instructions, actions, rationales, proprioception, queries
    )
    vla = policy.vla
    pixels, states = vla.pixel_values(images), vla.states(proprioception)
    groups: dict[tuple[int, int], list[int]] = {}
    for row, sequence in enumerate(sequences):
        groups.setdefault((len(sequence.ids), sequence.prefix), []).append(row)
    captures: dict[int, Capture] = {}
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            chosen = group[start : start + batch_size]
            positions = sorted({position for row in chosen for position in sequences[row].positions})
            ids = torch.tensor([sequences[row].ids for row in chosen], device=vla.device)
            words = vla.see(pixels[chosen], None if states is None else states[chosen])
            rows = attention_rows(policy, words, ids, sequences[chosen[0]].prefix, positions)
            for row, found in zip(chosen, rows, strict=True):
                captures[row] = _pack(
                    policy, sequences[row], answers[row], image_hash(images[row]), found, positions
                )
    return [captures[row] for row in range(len(sequences))]


def teacher_forced(
    policy: VLAPolicy,
    images: Array | Sequence[Array],
    instructions: Sequence[str],
    actions: Sequence[Action] | None,
    rationales: Sequence[str] | None,
    proprioception: Array | None,
    queries: Sequence[str],
) -> tuple[list[TokenSequence], list[Action]]:
    """The sequences to feed, one a picture, and the actions in them: given ones, else the policy's own.
    Arguments as in `capture_batch`.
    """
    check_policy(policy)
    check_kinds(queries)
    counts = {
        "instructions": instructions,
        "actions": actions,
        "rationales": rationales,
        "proprioception": proprioception,
    }
    for name, given in counts.items():
        if isinstance(given, str) or (given is not None and len(given) != len(images)):
            said = "one text" if isinstance(given, str) else f"{len(given)}"
            raise KitError(f"{name}: {said} for {len(images)} pictures", "give one a picture, in a list")
    answers = policy.act_batch(images, instructions, proprioception) if actions is None else list(actions)
    sequences = []
    for row, (instruction, answer) in enumerate(zip(instructions, answers, strict=True)):
        text = answer.rationale if rationales is None else rationales[row]
        if rationales is None and not text and RATIONALE_QUERY in queries:
            text = policy.explain(
                images[row], instruction, None if proprioception is None else np.asarray(proprioception)[row]
            )
        sequences.append(lay_out(policy, instruction, answer.tokens.tolist(), text, queries))
    return sequences, answers


def attention_rows(
    policy: VLAPolicy, words: Tensor, ids: Tensor, prefix: int, positions: Sequence[int]
) -> Array:
    """One forward pass over B sequences of N tokens.

    Args:
        words: of the picture, (B, image_tokens, d).
        ids: int64 (B, N).
        prefix: how many tokens are read in both directions.
        positions: the wanted rows, Q of 0 to N - 1.

    Returns:
        float32 (B, layers, heads, Q, N), as the model computed them.

    Raises:
        KitError: the model's attention implementation returns no weights.
    """
    types = torch.ones_like(ids)
    types[:, :prefix] = 0
    kept: list[Tensor] = []
    wanted = torch.tensor(list(positions), device=ids.device)
    with watching(
        policy, lambda weights: kept.append(weights.index_select(2, wanted))
    ):  # a copy: a view would keep the whole square alive
        hidden_states(policy.vla, words, ids, types)
    if len(kept) != len(policy.vla.layers):
        raise KitError(f"only {len(kept)} layers of {policy.name} were run", "load the policy again")
    return torch.stack(kept, dim=1).float().cpu().numpy()


def _pack(
    policy: VLAPolicy,
    sequence: TokenSequence,
    action: Action,
    picture: str,
    rows: Array,
    positions: Sequence[int],
) -> Capture:
    """Rows (layers, heads, positions, N) of one picture as a `Capture`: a query is the mean of its tokens'
    rows.
    """
    vla = policy.vla
    place = {position: i for i, position in enumerate(positions)}
    means = [
        rows[:, :, [place[position] for position in query.positions]].mean(2) for query in sequence.queries
    ]
    found = np.stack(means, axis=2)  # layers, heads, Q, N
    patches, end = vla.on_patches, vla.image_end
    to_others = np.concatenate(
        [found[..., end:], found[..., : patches.start], found[..., patches.stop : end]], axis=-1
    )
    spoken = [*sequence.ids[end:], *sequence.ids[: patches.start]]
    labels = (
        tuple(str(vla.tokenizer.decode([token])).strip() or " " for token in spoken)
        + (OWN_STATE,) * vla.reads_state
    )
    words = sequence.prefix - end
    return Capture(
        found[..., patches].copy(),
        to_others,
        labels,
        words,
        sequence.queries,
        vla.grid,
        action,
        policy.name,
        policy.checkpoint_hash or "",
        sequence.rationale,
        picture,
    )


@contextmanager
def watching(policy: VLAPolicy, keep: Callable[[Tensor], None]) -> Iterator[None]:
    """While open, call `keep` with each attention layer's weights (B, heads, N, N), from the lowest layer up.

    Raises:
        KitError: from the forward pass, when the attention implementation returns no weights.
    """

    def look(layer: nn.Module, _: object, output: tuple[Tensor, Tensor | None]) -> None:
        if output[1] is None:
            implementation = layer.config._attn_implementation  # type: ignore[union-attr]
            remedy = "call policy.vla.model.set_attn_implementation('eager')"
            raise KitError(f"the attention implementation {implementation!r} gives no weights", remedy)
        keep(output[1])

    layers = policy.vla.decoder.layers
    handles = [layer.self_attn.register_forward_hook(look) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
