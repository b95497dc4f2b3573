"""What the compact VLA is made of beside the decoder: its vision tower, the robot's own state as numbers a
network can use, and its words.

The tower is a small convolutional stem that gives one token a 20 x 20 pixel patch, 6 x 8 of a 120 x 160
picture; with patches of 10 pixels, 12 x 16. It stands where SigLIP stands in PaliGemma (registered with
transformers' AutoModel). At this size convolutions place objects to a fraction of a pixel after a minute of
training where plain patches need many. Each token carries its absolute position, because the language model's
rotary positions are relative.

The words are a byte-level BPE trained on the texts at hand, plus PaliGemma's `<loc>` tokens and one token an
action word. No download: any other text still tokenizes (bytes), only into more pieces.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutputWithPooling

from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import Array
from refinevla_kit.vlas.action_tokens import BINS

PROPRIOCEPTION = 15  # numbers of `Observation.proprioception`
FEATURES = 22  # of the robot's own state, for the tower
PAD, EOS, IMAGE, ACTION, RATIONALE = "<pad>", "<eos>", "<image>", "<action>", "<rationale>"
LOCATIONS = 1024  # PaliGemma's: <locY><locX>, each the picture divided into 1024
LOCATION_TOKENS = tuple(f"<loc{i:04d}>" for i in range(LOCATIONS))


def action_tokens(words: int) -> tuple[str, ...]:
    """`<act000>`, `<act001>`, ...: the tokens of so many action words, in order."""
    return tuple(f"<act{i:03d}>" for i in range(words))


ACTION_TOKENS = action_tokens(BINS)  # those of uniform bins; every vocabulary has at least these


class ConvTowerConfig(PreTrainedConfig):
    """Size of the tower.

    Args:
        height, width: picture size in pixels, multiples of the patch.
        channels: of the first stage.
        hidden_size: token width.
        projection_dim: width of the decoder, for PaliGemma's projector.
        state_size: numbers of the robot's own state, which become one more token; 0: none.
        patch_size: pixels, 10 or 20.
    """

    model_type = "refinevla_conv_tower"

    def __init__(
        self,
        height: int = 120,
        width: int = 160,
        channels: int = 48,
        hidden_size: int = 192,
        projection_dim: int = 192,
        state_size: int = 0,
        patch_size: int = 20,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.height, self.width, self.channels = height, width, channels
        self.hidden_size, self.projection_dim = hidden_size, projection_dim
        self.patch_size, self.image_size, self.state_size = patch_size, width, state_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.height // self.patch_size, self.width // self.patch_size


class _Stage(nn.Sequential):
    """Convolution, group norm, GELU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2),
            nn.GroupNorm(8, outputs),
            nn.GELU(),
        )


class ConvTower(PreTrainedModel):
    """pixel_values float (B, 3, H, W) in [-1, 1] -> last_hidden_state (B, rows * columns, hidden_size), row
    by row.
    """

    config_class = ConvTowerConfig
    main_input_name = "pixel_values"
    state_mean: Tensor
    state_scale: Tensor
    base_model_prefix = "conv_tower"

    def __init__(self, config: ConvTowerConfig) -> None:
        super().__init__(config)
        c, d = config.channels, config.hidden_size
        self.stages = nn.Sequential(
            _Stage(3, c, 7, 5),
            _Stage(c, 2 * c, 3, 2),
            _Stage(2 * c, 2 * c, 3, 1),
            _Stage(2 * c, d, 3, config.patch_size // 10),
        )
        # one residual block between neighbouring patches
        self.mix = nn.Sequential(_Stage(d, d, 3, 1), nn.Conv2d(d, d, 3, padding=1))
        rows, columns = config.grid
        self.position = nn.Parameter(torch.zeros(rows * columns, d))
        self.norm = nn.LayerNorm(d)
        if config.state_size:
            self.state = nn.Sequential(
                nn.Linear(config.state_size, d), nn.GELU(), nn.Linear(d, d), nn.LayerNorm(d)
            )
            # of the data it was trained on
            self.register_buffer("state_mean", torch.zeros(config.state_size))
            self.register_buffer("state_scale", torch.ones(config.state_size))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ConvTower):
            nn.init.normal_(module.position, std=0.5)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        elif isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        x = self.stages(pixel_values)  # B, d, rows, columns
        patches = (x + self.mix(x)).flatten(2).transpose(1, 2)  # B, rows * columns, d
        tokens = self.norm(patches + self.position)
        return BaseModelOutputWithPooling(last_hidden_state=tokens)

    def state_token(self, states: Tensor) -> Tensor:
        """float (B, state_size) in their own units -> the token of the robot's own state (B, 1,
        hidden_size).
        """
        features = (states - self.state_mean) / self.state_scale
        return self.state(features.to(self.position.dtype))[:, None]


AutoConfig.register(ConvTowerConfig.model_type, ConvTowerConfig)
AutoModel.register(ConvTowerConfig, ConvTower)


def state_features(proprioception: Array) -> Array:
    """The robot's own state without the quaternions' double meaning.

    A quaternion and its negative are one rotation, and a network that sees both learns the same thing twice;
    two columns of the rotation matrix say it once. The way from the measured to the commanded position comes
    ready made: it is what a picture cannot show, how far the arm will still go.

    Args:
        proprioception: float (N, 15), see `Observation.proprioception`.

    Returns:
        float32 (N, 22): measured position (3), rotation (6), finger opening (1), commanded position (3),
        rotation (6), commanded less measured position (3). Metres.

    Raises:
        KitError: another number of columns.
    """
    state = np.asarray(proprioception, np.float64)
    if state.ndim != 2 or state.shape[1] != PROPRIOCEPTION:
        what = (
            f"proprioception of shape {state.shape} was given to a policy that reads {PROPRIOCEPTION} "
            "numbers a frame"
        )
        remedy = (
            "record with this version of the kit: measured tool pose, finger opening, commanded tool pose"
        )
        raise KitError(what, remedy)
    measured, opening, commanded = state[:, :3], state[:, 7:8], state[:, 8:11]
    turns = _columns(state[:, 3:7]), _columns(state[:, 11:15])
    parts = (measured, turns[0], opening, commanded, turns[1], commanded - measured)
    return np.concatenate(parts, axis=1).astype(np.float32)


def _columns(quaternions: Array) -> Array:
    """The first two columns (N, 6) of the rotations of unit quaternions (N, 4) (w, x, y, z)."""
    w, x, y, z = (quaternions / np.maximum(np.linalg.norm(quaternions, axis=1, keepdims=True), 1e-9)).T
    first = [1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)]
    second = [2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)]
    return np.stack([*first, *second], axis=1)


def train_vocabulary(
    texts: Iterable[str], words: int = 1024, action_words: int = BINS
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of at most `words` pieces on `texts`; add special, location and `action_words`
    (`ActionTokens.words`) tokens.
    """
    raw = train_pieces(texts, words, [PAD, EOS, IMAGE, ACTION, RATIONALE])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token=PAD, eos_token=EOS, extra_special_tokens=[IMAGE, ACTION, RATIONALE]
    )
    tokenizer.add_tokens(list(LOCATION_TOKENS + action_tokens(max(action_words, BINS))), special_tokens=True)
    return tokenizer


def train_pieces(texts: Iterable[str], words: int, specials: list[str]) -> Tokenizer:
    """Byte-level BPE of at most `words` pieces, the first of which are `specials`."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=words,
        special_tokens=specials,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator(sorted(set(texts)), trainer)  # sorted: merges must not depend on the data's order
    return raw


def load_vocabulary(path: str | Path) -> PreTrainedTokenizerFast:
    """Read the tokenizer of a checkpoint. Raises `KitError` when it lacks the kit's tokens."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(path))
    known = tokenizer.get_vocab()
    for token in (IMAGE, ACTION, RATIONALE, LOCATION_TOKENS[-1], ACTION_TOKENS[-1]):
        if token not in known:
            raise KitError(
                f"the tokenizer in {path} has no {token} token", "give a checkpoint of the compact VLA"
            )
    return tokenizer


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Vocabulary id of one token."""
    number = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(number, int)
    return number


def first_action_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """Vocabulary id of action word 0; word i has this id + i."""
    return token_id(tokenizer, ACTION_TOKENS[0])


def check_action_words(tokenizer: PreTrainedTokenizerFast, words: int) -> None:
    """Raise `KitError` unless the vocabulary has tokens for so many action words."""
    last = action_tokens(words)[-1]
    if last not in tokenizer.get_vocab():
        what = f"the tokenizer has no {last}, and the action tokens have {words} words"
        raise KitError(
            what, "train the vocabulary with action_words=tokens.words, or copy the whole checkpoint again"
        )
