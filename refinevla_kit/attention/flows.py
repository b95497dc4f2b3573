"""Attribution by attention: one layer's rows, rows fused, attention followed through the layers, and
attention weighted by its gradient.

Each gives a row over all tokens; what falls on patches is the map. Tokens that collect attention without
being looked at ("sinks": Xiao et al. 2024) can be left out. Each layer's rows are then divided anew among the
others. How much they held is said either way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refinevla_kit.attention.captured import INSTRUCTION_QUERY, Query, upper_middle
from refinevla_kit.attention.forward import TokenSequence, forward_pass, query_score, watching
from refinevla_kit.errors import KitError, check_choice, checked_integer
from refinevla_kit.policies.contract import Array
from refinevla_kit.policies.vla_policy import VLAPolicy


@dataclass(frozen=True)
class Question:
    """One thing to explain: what `policy` says at `query`, having seen `image`.

    Attributes:
        policy: who speaks.
        image: uint8 (H, W, 3).
        states: (1, 22) where the policy reads its own state.
        sequence: what it is fed.
        query: one of the sequence's.
    """

    policy: VLAPolicy
    image: Array
    states: Tensor | None
    sequence: TokenSequence
    query: Query

    def pixels(self, image: Array | None = None) -> Tensor:
        """float32 (1, 3, height, width) as the tower takes them, of another picture where one is given."""
        return self.policy.vla.pixel_values(np.asarray(self.image if image is None else image)[None])

    def words(self, pixels: Tensor) -> Tensor:
        """Words (B, image_tokens, d) of B pictures, with the own state of this one."""
        states = None if self.states is None else self.states.expand(len(pixels), -1)
        return self.policy.vla.see(pixels, states)

    def hidden(self, words: Tensor) -> Tensor:
        """The decoder's output (B, N, d) for the words of B pictures."""
        return forward_pass(self.policy, words, [self.sequence] * len(words))

    def score_words(self, words: Tensor) -> Tensor:
        """(B,) log-probabilities of the query's tokens, nats, for the words of B pictures.

        Raises:
            KitError: a word of the instruction, which the policy reads and never says.
        """
        if self.query.kind == INSTRUCTION_QUERY:
            raise KitError(
                f"the policy does not say {self.query.label!r}, a word of its instruction, so there is "
                "nothing to explain",
                "choose an action dimension or a word of the rationale, or look from the word with an "
                "attention method",
            )
        return query_score(self.policy, self.hidden(words), self.query)

    def score(self, pixels: Tensor) -> Tensor:
        """The same for the pixels of B pictures."""
        return self.score_words(self.words(pixels))

    def row(self, square: Tensor) -> Tensor:
        """The query's row of attention (..., N) from (..., N, N), the mean over its tokens."""
        return square[..., list(self.query.positions), :].mean(-2)

    def sinks(self) -> dict[str, list[int]]:
        """Positions of what may be left out: the begin-of-sequence token, line ends of the prefix (PaliGemma
        ends its prompt with one), image tokens that are no patch, and the robot's own state. Empty for what
        the policy does not have.
        """
        vla, ids = self.policy.vla, self.sequence.ids
        first, prefix = vla.tokenizer.bos_token_id, range(vla.image_end, self.sequence.prefix)
        return {
            "bos": [at for at, token in enumerate(ids) if first is not None and token == first],
            "newline": [at for at in prefix if str(vla.tokenizer.decode([ids[at]])) == "\n"],
            "registers": list(range(vla.on_patches.stop, vla.image_end - vla.reads_state)),
            "state": [vla.image_end - 1] if vla.reads_state else [],
        }

    def excluded(self, names: Sequence[str]) -> list[int]:
        """Positions of these sinks."""
        sinks = self.sinks()
        for name in names:
            check_choice("sink", name, sinks)
        return [at for name in names for at in sinks[name]]

    def held(self, row: Array) -> dict[str, float]:
        """How much of rows (..., N) each sink holds, the mean over rows."""
        return {name: float(row[..., at].sum(-1).mean()) for name, at in self.sinks().items()}


@dataclass(frozen=True)
class Answer:
    """What a method makes of a question.

    Attributes:
        patches: float64 (rows, columns), may be negative.
        pixels: float64 (height, width) at the tower's resolution; None for a method that knows patches only.
        details: for the provenance.
    """

    patches: Array
    pixels: Array | None
    details: dict[str, Any]


def raw(
    question: Question, layer: int | None = None, head: int | None = 0, exclude: Sequence[str] = ()
) -> Answer:
    """One layer's and head's attention, both from 0; `layer` None is `upper_middle`, `head` None the mean."""
    rows = _rows(question)  # layers, heads, N
    layer = upper_middle(len(rows)) if layer is None else checked_integer(layer, "layer", 0, len(rows) - 1)
    if head is None:
        row = rows[layer].mean(0)
    else:
        row = rows[layer, checked_integer(head, "head", 0, rows.shape[1] - 1)]
    kept = _without(torch.from_numpy(row), question.excluded(exclude)).numpy()
    answer = _answer(question, kept, exclude, row)
    answer.details.update({"layer": layer} if head is None else {"layer": layer, "head": head})
    return answer


def head_mean(question: Question, layer: int | None = None, exclude: Sequence[str] = ()) -> Answer:
    """One layer's attention, mean over heads."""
    return raw(question, layer, None, exclude)


def top_k(question: Question, k: int = 3, layers: Sequence[int] | None = None) -> Answer:
    """For each patch the mean of the `k` strongest maps among heads and `layers` (from 0; None:
    `upper_middle` and above): `fuse_top`.
    """
    rows = _rows(question)  # layers, heads, N
    if layers is None:
        layers = range(upper_middle(len(rows)), len(rows))
    chosen = [checked_integer(layer, "layer", 0, len(rows) - 1) for layer in layers]
    vla = question.policy.vla
    details = {
        "k": k,
        "layers": chosen,
        "sinks": question.held(rows[chosen]),
        "fusion": "the kit's own reading of the paper's top-k attention fusion",
    }
    return Answer(fuse_top(rows[chosen, :, None, vla.on_patches], k).reshape(vla.grid), None, details)


def fuse_top(patches: Array, k: int = 3, first_layer: int = 0) -> Array:
    """Many attention maps as one, float32 (P,): for each patch the mean of its k largest values. These are
    over layers from `first_layer` on, heads and action tokens; the map adds up to 1.

    ReFineVLA's attention figures fuse the top k; the paper's own text was not read, so which k of what it
    takes is not known. This is the kit's reading: an object that a few heads look at stays visible, where a
    mean over all heads dilutes it.

    Args:
        patches: float (layers, heads, A, P), attention to each patch, as `Capture.patches`. Each map is first
            brought to a sum of 1, so that what goes to words does not weigh.
        k: how many.
        first_layer: from 0.

    Raises:
        KitError: fewer than k maps.
    """
    maps = np.asarray(patches[first_layer:], np.float64).reshape(-1, patches.shape[-1])
    if not 1 <= k <= len(maps):
        raise KitError(f"the {k} strongest of {len(maps)} attention maps", f"choose 1 to {len(maps)}")
    maps = maps / np.maximum(maps.sum(1, keepdims=True), 1e-12)
    strongest = np.partition(maps, len(maps) - k, axis=0)[len(maps) - k :].mean(0)
    return np.asarray(strongest / strongest.sum(), np.float32)


@torch.no_grad()
def rollout(question: Question, exclude: Sequence[str] = ()) -> Answer:
    """Attention rollout (Abnar and Zuidema 2020): the layers' head means, each half with the identity for the
    residual, multiplied.
    """
    places = question.excluded(exclude)
    means = _watched(question, lambda weights: weights[0].mean(0))  # layers, N, N
    one = torch.eye(means.shape[-1], dtype=torch.float64)
    flow = one
    for mean in means:
        both = _without(mean, places) + one
        flow = both / both.sum(-1, keepdim=True) @ flow
    return _answer(question, question.row(flow).numpy(), exclude, question.row(means).numpy())


@torch.enable_grad()
def relevance(question: Question, exclude: Sequence[str] = ()) -> Answer:
    """Gradient-weighted attention (Chefer, Gur and Wolf 2021, rule for self-attention): R <- R + mean over
    heads of (gradient * attention)+ R.

    The gradient is the score's. It needs all layers' squares at once, as every backward pass does.
    """
    places = question.excluded(exclude)
    weights: list[Tensor] = []
    # the words ask for a gradient, so that frozen weights do not matter
    words = question.words(question.pixels()).detach().requires_grad_()
    with watching(question.policy, weights.append):
        score = question.score_words(words).sum()
    gradients = torch.autograd.grad(score, weights)  # nothing is left in the parameters' .grad
    one = torch.eye(len(question.sequence.ids), dtype=torch.float64)
    flow = one
    for layer, gradient in zip(weights, gradients, strict=True):
        moved = (layer * gradient).clamp(min=0)[0].mean(0).detach().double().cpu()  # N, N
        moved[:, places] = 0
        flow = flow + moved @ flow
    row = question.row(flow - one).numpy()
    return _answer(question, row, exclude, row / max(float(row.sum()), 1e-300))


@torch.no_grad()
def _rows(question: Question) -> Array:
    """float64 (layers, heads, N): the query's attention."""
    return _watched(question, lambda weights: question.row(weights[0])).numpy()


def _watched(question: Question, kept: Callable[[Tensor], Tensor]) -> Tensor:
    """What is `kept` of each layer's weights (1, heads, N, N) on this picture, float64, one above another."""
    parts: list[Tensor] = []
    with watching(question.policy, lambda weights: parts.append(kept(weights).double().cpu())):
        question.hidden(question.words(question.pixels()))
    return torch.stack(parts)


def _answer(question: Question, row: Array, exclude: Sequence[str], whole: Array) -> Answer:
    """Of a row over all tokens (N,); `whole`: rows before anything was left out."""
    vla = question.policy.vla
    patches = row[vla.on_patches]
    share = float(patches.sum() / max(float(row.sum()), 1e-300))
    details = {"exclude": list(exclude), "sinks": question.held(whole), "image_share": share}
    return Answer(patches.reshape(vla.grid), None, details)


def _without(rows: Tensor, places: list[int]) -> Tensor:
    """Rows (..., N) with some columns set to 0 and the rest scaled to add up to 1 again."""
    left = rows.clone()
    left[..., places] = 0
    return left / left.sum(-1, keepdim=True).clamp(min=1e-300)
