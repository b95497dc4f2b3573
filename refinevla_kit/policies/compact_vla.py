"""The compact VLA: transformers' own PaliGemma (projector, Gemma 2 decoder) in a small configuration, around a convolutional tower.

The same classes a 4-billion-parameter VLA runs, so freezing, adapters, cached decoding and attention are the same code. Two settings differ from
PaliGemma's release, both because of the size: a larger initial range (with 0.02 the inputs drown behind the post-norms at this width), and an untied
output head, so that "policy head trained, vocabulary frozen" can be said.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import Gemma2Config, PaliGemmaConfig, PaliGemmaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging as hub_logging

from refinevla_kit.errors import KitError
from refinevla_kit.files import replacing, sha256, write_json
from refinevla_kit.policies.action_tokens import ActionTokens, read_action_tokens
from refinevla_kit.policies.contract import Array
from refinevla_kit.policies.robot_state import FEATURES, state_features
from refinevla_kit.policies.vision_tower import ConvTowerConfig
from refinevla_kit.policies.vocabulary import EOS, IMAGE, PAD, check_action_words, load_vocabulary, token_id

STATISTICS = "dataset_statistics.json"
FORMAT = "refinevla-compact-1"


@dataclass(frozen=True)
class CompactConfig:
    """Size of a compact VLA. layers: of the language model; hidden, heads, feedforward: its widths; channels: of the tower's first stage;
    proprioception: one more token for the robot's own state (see robot_state.py)."""

    layers: int = 4
    hidden: int = 192
    heads: int = 4
    feedforward: int = 512
    channels: int = 48
    height: int = 120
    width: int = 160
    proprioception: bool = False


@dataclass(frozen=True)
class CompactVLA:
    """A policy's parts: the model, its tokenizer, how it writes actions, and where it came from.

    Attributes:
        bins: its action tokens, `UniformBins` or `SphericalGrid`.
        provenance: what made it (data hash, steps, seed, base hash, ...); free form, saved with the checkpoint.
    """

    model: PaliGemmaForConditionalGeneration
    tokenizer: PreTrainedTokenizerFast
    bins: ActionTokens
    provenance: dict[str, Any]

    @property
    def image_tokens(self) -> int:
        """Tokens in front of the instruction: a patch each, and the robot's own state where the policy reads it (the last one)."""
        return self.patches + self.reads_state

    @property
    def patches(self) -> int:
        rows, columns = self.grid
        return rows * columns

    @property
    def reads_state(self) -> bool:
        """The policy wants proprioception beside the picture."""
        return self._vision.state_size > 0

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image patches; patch (r, c) covers 20 x 20 pixels of the resized picture."""
        rows, columns = self._vision.grid
        return rows, columns

    @property
    def _vision(self) -> ConvTowerConfig:
        config = self.model.config.vision_config
        assert isinstance(config, ConvTowerConfig)
        return config

    def states(self, proprioception: Array | None) -> Tensor | None:
        """float (B, 15) -> float32 (B, 22), what the tower takes; None for a policy that reads no state.

        Raises:
            KitError: the policy reads it and there is none, or of another size.
        """
        if not self.reads_state:
            return None
        if proprioception is None:
            remedy = "pass `proprioception` (see Observation), as `evaluate` does for policies with `needs_proprioception`"
            raise KitError("this policy reads the robot's own state beside the picture, and none was given", remedy)
        return torch.from_numpy(state_features(proprioception)).to(self.model.device)

    def image_features(self, patches: Tensor, states: Tensor | None) -> dict[str, BaseModelOutputWithPooling]:
        """What `model(mm_encoder_outputs=...)` takes in the place of pixels.

        Args:
            patches: the tower's tokens of the picture, (B, patches, d). states: (B, 22) where the policy reads them.
        """
        tokens = patches if states is None else torch.cat([patches, self.model.model.vision_tower.state_token(states)], dim=1)  # B, image_tokens, d
        return {"image": BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=self.model.model.multi_modal_projector(tokens))}

    def encode(self, pixels: Tensor, states: Tensor | None) -> dict[str, BaseModelOutputWithPooling]:
        """`image_features` from pixel values (B, 3, H, W)."""
        return self.image_features(self.model.model.vision_tower(pixel_values=pixels).last_hidden_state, states)

    def pixel_values(self, images: Array) -> Tensor:
        """uint8 (B, H, W, 3) -> float32 (B, 3, height, width) in [-1, 1], area-resampled when the size differs; `KitError` for anything else."""
        config, images = self._vision, np.array(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise KitError(f"pictures are {images.dtype} {images.shape[1:]}", "give RGB as the camera has it: uint8 (H, W, 3), 0 to 255")
        x = torch.from_numpy(images).to(self.model.device).permute(0, 3, 1, 2).float()  # B, 3, H, W
        if x.shape[-2:] != (config.height, config.width):
            x = torch.nn.functional.interpolate(x, size=(config.height, config.width), mode="area")
        return x / 127.5 - 1.0


def build(config: CompactConfig, tokenizer: PreTrainedTokenizerFast, bins: ActionTokens, seed: int) -> CompactVLA:
    """A freshly initialised compact VLA; same seed, same weights. Raises `KitError` when the tokenizer lacks words of `bins`."""
    check_action_words(tokenizer, bins.words)
    text = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=config.hidden, intermediate_size=config.feedforward, num_hidden_layers=config.layers,
        num_attention_heads=config.heads, num_key_value_heads=config.heads, head_dim=config.hidden // config.heads,
        query_pre_attn_scalar=config.hidden // config.heads, max_position_embeddings=1024, initializer_range=config.hidden**-0.5,
        pad_token_id=token_id(tokenizer, PAD), eos_token_id=token_id(tokenizer, EOS), bos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    vision = ConvTowerConfig(config.height, config.width, config.channels, config.hidden, config.hidden, FEATURES if config.proprioception else 0)
    full = PaliGemmaConfig(
        vision_config=vision, text_config=text, image_token_index=token_id(tokenizer, IMAGE), projection_dim=config.hidden,
        hidden_size=config.hidden, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PaliGemmaForConditionalGeneration(full)
        torch.nn.init.orthogonal_(model.model.multi_modal_projector.linear.weight)  # the tower's norm gives rms 1; keep it
    return CompactVLA(model.eval(), tokenizer, bins, {})


def save(vla: CompactVLA, path: str | Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a checkpoint directory: safetensors, config, tokenizer, dataset statistics. Appears whole or not at all."""
    with replacing(path) as part:
        part.mkdir(parents=True)
        hub_logging.disable_progress_bar()
        exact = ("state_mean", "state_scale")  # in metres: bfloat16 would shift them by half a millimetre
        state = {name: x.detach() if name.endswith(exact) else x.detach().to(dtype) for name, x in vla.model.state_dict().items()}
        vla.model.save_pretrained(part, state_dict=state)
        vla.tokenizer.save_pretrained(part)
        write_json(part / STATISTICS, {"format": FORMAT, "action_tokens": vla.bins.to_dict(), "provenance": vla.provenance})
    return Path(path)


def load(path: str | Path) -> CompactVLA:
    """Read a checkpoint directory, in float32.

    Raises:
        KitError: not a checkpoint, a damaged one, another format, or weights of another vocabulary.
    """
    directory = Path(path)
    if not (directory / STATISTICS).is_file():
        what = f"{directory} is no checkpoint of the compact VLA ({STATISTICS} is missing)"
        raise KitError(what, "give a folder written by notebook 02 or shipped in data/checkpoints")
    hub_logging.disable_progress_bar()  # a bar for a 20 MB file only flickers
    try:
        statistics = json.loads((directory / STATISTICS).read_text(encoding="utf-8"))
        if statistics.get("format") != FORMAT:
            raise KitError(f"{directory} has format {statistics.get('format')!r}", f"this version reads {FORMAT!r}")
        tokenizer = load_vocabulary(directory)
        model = PaliGemmaForConditionalGeneration.from_pretrained(str(directory), dtype=torch.float32, local_files_only=True, use_safetensors=True)
    except (SafetensorError, OSError, ValueError) as error:
        raise KitError(f"the checkpoint {directory} is damaged ({error})", "copy or make it again") from error
    words = model.get_input_embeddings().num_embeddings
    if words != len(tokenizer):
        raise KitError(
            f"the model in {directory} has {words} words, its tokenizer {len(tokenizer)}",
            "the files are of two checkpoints: copy the whole folder again",
        )
    bins = read_action_tokens(statistics["action_tokens"])
    check_action_words(tokenizer, bins.words)
    return CompactVLA(model.eval(), tokenizer, bins, statistics["provenance"])


def checkpoint_hash(path: str | Path) -> str:
    """First 12 hex digits of the SHA-256 over the checkpoint's weights; goes into every evaluation record."""
    return sha256(Path(path) / "model.safetensors")[:12]
