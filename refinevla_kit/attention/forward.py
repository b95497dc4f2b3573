"""One teacher-forced pass: what the policy would say at the queries' positions, differentiable.

The score of a query is the log-probability of its tokens, given everything before them. An action token is
scored among the words allowed at its place, as decoding does it, so the score of a policy's own action is
`Action.log_probability`; a rationale's token among the whole vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refinevla_kit.attention.captured import ACTION_QUERY, INSTRUCTION_QUERY, Query
from refinevla_kit.attention.queries import TokenSequence
from refinevla_kit.errors import KitError
from refinevla_kit.policies.contract import Array
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.vlas import decoder


def hidden_states(policy: VLAPolicy, words: Tensor, sequence: TokenSequence) -> Tensor:
    """The decoder's output at every position, (B, N, d), for B pictures under one sequence; `words` (B,
    image_tokens, d) of `VLA.see`.
    """
    ids = torch.tensor([sequence.ids], device=words.device).expand(len(words), -1)  # B, N
    types = (torch.arange(ids.shape[1], device=ids.device) >= sequence.prefix).long().expand_as(ids)
    return decoder.hidden_states(policy.vla, words, ids, types)


def log_probabilities(policy: VLAPolicy, hidden: Tensor, query: Query) -> list[Tensor]:
    """For each of a query's tokens the log-probability of every word that may be said there, (B, words)."""
    words = slice(None)
    if query.kind == ACTION_QUERY:
        low, high = policy.vla.bins.ranges[policy.vla.bins.names.index(query.label)]
        words = slice(policy.vla.first_action + low, policy.vla.first_action + high)
    found = []
    for position in query.positions:
        found.append(
            decoder.logits_of(policy.vla, hidden[:, position], words).float().log_softmax(-1)
        )  # B, words
    return found


def score(policy: VLAPolicy, picture: Tensor, sequence: TokenSequence, query: Query) -> Tensor:
    """Log-probability of the query's tokens together, (B,), in nats.

    Raises:
        KitError: a word of the instruction, which the policy reads and never says.
    """
    if query.kind == INSTRUCTION_QUERY:
        what = (
            f"the policy does not say {query.label!r}, a word of its instruction, so there is nothing to "
            "explain"
        )
        raise KitError(
            what,
            "choose an action dimension or a word of the rationale, or look from the word with an "
            "attention method",
        )
    return said(policy, hidden_states(policy, picture, sequence), query)


def said(policy: VLAPolicy, hidden: Tensor, query: Query) -> Tensor:
    """`score` from the hidden states (B, N, d) of a pass: (B,) log-probability of the query's tokens."""
    first = 0
    if query.kind == ACTION_QUERY:
        first = policy.vla.first_action + policy.vla.bins.ranges[policy.vla.bins.names.index(query.label)][0]
    words = log_probabilities(policy, hidden, query)
    return torch.stack([at[:, token - first] for at, token in zip(words, query.tokens, strict=True)]).sum(0)


@dataclass(frozen=True)
class Asked:
    """One question to explain: what `policy` says at `query`, having seen `image`.

    Attributes:
        image: uint8 (H, W, 3).
        states: (1, 22) where the policy reads its own state.
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
        return self.policy.vla.see(
            pixels, None if self.states is None else self.states.expand(len(pixels), -1)
        )

    def score(self, pixels: Tensor) -> Tensor:
        """(B,) log-probabilities, see `score`."""
        return score(self.policy, self.words(pixels), self.sequence, self.query)


@dataclass(frozen=True)
class Found:
    """What a method found.

    Attributes:
        patches: float64 (rows, columns), may be negative.
        pixels: float64 (height, width) at the tower's resolution, None for a method that knows
            patches only. details: for the provenance.
    """

    patches: Array
    pixels: Array | None
    details: dict[str, Any]
