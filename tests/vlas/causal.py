"""A second, tiny VLA behind the contract: causal as OpenVLA is, made on the spot with random weights.

A Llama decoder; the picture's words come after the first token; seven words of 256 edges, 255 centres. It
shares no class with the compact VLA but the tokenizer's, so whatever runs on both runs on the contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from refinevla_kit.conventions import WIDOWX, Conventions
from refinevla_kit.simulator.contract import ACTION_NAMES, Array
from refinevla_kit.vlas.compact_parts import (
    ACTION,
    EOS,
    IMAGE,
    PAD,
    RATIONALE,
    first_action_id,
    token_id,
    train_vocabulary,
)
from refinevla_kit.vlas.contract import VLA, Marks

WORDS = 256
PATCH, GRID = 16, (2, 3)


@dataclass(frozen=True)
class EvenEdges:
    """OpenVLA's words: 256 evenly spaced edges over [-limit, limit], an action is the centre between two of
    them.
    """

    limits: tuple[float, ...] = (0.1,) * 7

    names = ACTION_NAMES
    words = WORDS

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        return ((0, WORDS - 1),) * len(self.limits)

    def encode(self, actions: Array) -> Array:
        unit = np.clip(np.asarray(actions, np.float64) / np.asarray(self.limits), -1, 1)
        return np.minimum(np.digitize(unit, np.linspace(-1, 1, WORDS)) - 1, WORDS - 2)

    def decode_normalised(self, words: Array) -> Array:
        edges = np.linspace(-1, 1, WORDS)
        return ((edges[:-1] + edges[1:]) / 2)[np.asarray(words)].astype(np.float32)

    def decode(self, words: Array) -> Array:
        return (self.decode_normalised(words) * np.asarray(self.limits)).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "even edges", "limits": list(self.limits)}


class TinyModel(LlamaForCausalLM):
    """Llama with a patch embedding and a projector beside it."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.patches = nn.Conv2d(3, 12, PATCH, PATCH)
        self.projector = nn.Sequential(
            nn.Linear(12, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)
        )
        self.post_init()


@dataclass(frozen=True)
class CausalVLA(VLA):
    """See the top of this module."""

    two_way = False
    first_position = 0
    image_start = 1

    @property
    def decoder(self) -> Any:
        return self.model.model

    @property
    def head(self) -> nn.Module:
        head: nn.Module = self.model.lm_head  # type: ignore[assignment]
        return head

    @property
    def grid(self) -> tuple[int, int]:
        return GRID

    @property
    def image_size(self) -> tuple[int, int]:
        return GRID[1] * PATCH, GRID[0] * PATCH

    @property
    def reads_state(self) -> bool:
        return False

    @property
    def image_id(self) -> int:
        return token_id(self.tokenizer, IMAGE)

    @property
    def marks(self) -> Marks:
        return Marks(*(token_id(self.tokenizer, token) for token in (PAD, EOS, ACTION, RATIONALE)))

    @property
    def first_action(self) -> int:
        return first_action_id(self.tokenizer)

    @property
    def tower(self) -> tuple[nn.Module, ...]:
        return (self.model.patches,)  # type: ignore[return-value]

    @property
    def projector(self) -> tuple[nn.Module, ...]:
        return (self.model.projector,)  # type: ignore[return-value]

    @property
    def conventions(self) -> Conventions:
        return replace(WIDOWX, image_size=self.image_size, normalisation="own")

    def prefix_ids(self, instruction: str) -> list[int]:
        return [
            self.marks.end,
            *super().prefix_ids(instruction),
        ]  # `<eos>` stands for the `<s>` that this vocabulary lacks

    def pixel_values(self, images: Array | Sequence[Array]) -> Tensor:
        x = torch.from_numpy(np.stack(list(images))).permute(0, 3, 1, 2).float()  # B, 3, H, W
        return nn.functional.interpolate(x, size=self.image_size[::-1], mode="area") / 127.5 - 1

    def states(self, proprioception: Array | None) -> Tensor | None:
        return None

    def look(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.tower[0](pixels).flatten(2).transpose(1, 2)  # B, patches, 12
        return tokens

    def image_words(self, tokens: Tensor, states: Tensor | None) -> Tensor:
        words: Tensor = self.projector[0](tokens)
        return words

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> Path:
        raise NotImplementedError("lives in the tests only")


def build_causal(texts: Sequence[str] = (), layers: int = 3, seed: int = 0) -> CausalVLA:
    """A freshly initialised one; same seed, same weights."""
    tokenizer: PreTrainedTokenizerFast = train_vocabulary(
        ["put carrot on plate", "the gripper is left of the plate", *texts], 512, WORDS
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        attn_implementation="eager",
        pad_token_id=token_id(tokenizer, PAD),
        eos_token_id=token_id(tokenizer, EOS),
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TinyModel(config)
        for parameter in model.parameters():  # larger than the usual 0.02, so that pictures and words matter
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return CausalVLA(model.eval(), tokenizer, EvenEdges(), {})
