"""The compact VLA: transformers' own PaliGemma (projector, Gemma 2 decoder) in a small configuration, around
a convolutional tower.

The same classes a 4-billion-parameter VLA runs, so freezing, adapters, cached decoding and attention are the
same code. Two settings differ from PaliGemma's release, both because of the size: a larger initial range
(with 0.02 the inputs drown behind the post-norms at this width), and an untied output head, so that "policy
head trained, vocabulary frozen" can be said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from refinevla_kit.conventions import ROBOT_CONVENTIONS, Conventions
from refinevla_kit.errors import KitError, as_kit_error, check_choice
from refinevla_kit.files import write_json
from refinevla_kit.simulator.contract import Array
from refinevla_kit.vlas.action_tokens import STATISTICS, ActionTokens, UniformBins
from refinevla_kit.vlas.checkpoint import CONFIG, COPY, Folder, new_folder, open_folder, read_model
from refinevla_kit.vlas.compact_parts import (
    ACTION,
    EOS,
    FEATURES,
    IMAGE,
    PAD,
    RATIONALE,
    ConvTowerConfig,
    check_action_words,
    first_action_id,
    load_vocabulary,
    state_features,
    token_id,
)
from refinevla_kit.vlas.contract import VLA, Marks
from refinevla_kit.vlas.spherical_grid import SphericalGrid

FORMAT = "refinevla-compact-1"


@dataclass(frozen=True)
class CompactConfig:
    """Size of a compact VLA.

    Attributes:
        layers, hidden, heads, feedforward: of the language model.
        channels: of the tower's first stage.
        height, width: of the picture in pixels, multiples of the patch.
        proprioception: one more token, for the robot's own state.
        patch: pixels a side that a token stands for, 10 or 20.
    """

    layers: int = 4
    hidden: int = 192
    heads: int = 4
    feedforward: int = 512
    channels: int = 48
    height: int = 120
    width: int = 160
    proprioception: bool = False
    patch: int = 20

    def __post_init__(self) -> None:
        if self.patch not in (10, 20) or self.height % self.patch or self.width % self.patch:
            what = f"patches of {self.patch} pixels on a picture of {self.width} x {self.height}"
            raise KitError(what, "give 10 or 20, and a picture whose sides are multiples of it")


@dataclass(frozen=True)
class CompactVLA(VLA):
    """The compact VLA, see the top of this module."""

    two_way = True
    first_position = 1

    @property
    def decoder(self) -> Any:
        return self._paligemma.language_model

    @property
    def head(self) -> nn.Module:
        model: Any = self.model
        return model.lm_head

    @property
    def reads_state(self) -> bool:
        return self._vision.state_size > 0

    @property
    def grid(self) -> tuple[int, int]:
        """Patch (r, c) covers 20 x 20 pixels of the resized picture, or 10 x 10."""
        rows, columns = self._vision.grid
        return rows, columns

    @property
    def image_size(self) -> tuple[int, int]:
        return self._vision.width, self._vision.height

    @property
    def image_id(self) -> int:
        return token_id(self.tokenizer, IMAGE)

    @property
    def marks(self) -> Marks:
        pad, end, action, rationale = (
            token_id(self.tokenizer, token) for token in (PAD, EOS, ACTION, RATIONALE)
        )
        return Marks(pad, end, action, rationale)

    @property
    def first_action(self) -> int:
        return first_action_id(self.tokenizer)

    @property
    def tower(self) -> tuple[nn.Module, ...]:
        return (self._paligemma.vision_tower,)

    @property
    def projector(self) -> tuple[nn.Module, ...]:
        return (self._paligemma.multi_modal_projector,)

    @property
    def state_encoder(self) -> nn.Module | None:
        return self._paligemma.vision_tower.state if self.reads_state else None

    @property
    def convolutions(self) -> nn.Module | None:
        return getattr(self._paligemma.vision_tower, "stages", None)

    @property
    def conventions(self) -> Conventions:
        """The kit's own contract for the robot of the demonstrations it learned from, at the picture size of
        its tower; but 1 opens any gripper, as in `training.examples`.
        """
        robot = ROBOT_CONVENTIONS[str(self.provenance.get("robot", "widowx"))]
        gripper: Any = "relative_opening+1" if robot.robot == "google_robot" else robot.gripper
        return replace(robot, image_size=self.image_size, normalisation="own", gripper=gripper)

    @property
    def _paligemma(self) -> Any:
        return self.model.model

    @property
    def _vision(self) -> ConvTowerConfig:
        config = self.model.config.vision_config
        assert isinstance(config, ConvTowerConfig)
        return config

    def states(self, proprioception: Array | None) -> Tensor | None:
        """float (B, 15) -> float32 (B, 22), what the tower takes; None for a policy that reads no state.

        Raises:
            KitError: the policy reads it and there is none, of another size, or with what is no number.
        """
        if not self.reads_state:
            return None
        if proprioception is None:
            what = "this policy reads the robot's own state beside the picture, and none was given"
            how = "as `evaluate` does for policies with `needs_proprioception`"
            raise KitError(what, f"pass `proprioception` (see Observation), {how}")
        features = state_features(proprioception)
        if not np.isfinite(features).all():
            raise KitError(
                "the robot's own state holds what is no number", "leave that frame out, or mend its state"
            )
        return torch.from_numpy(features).to(self.device)

    def look(self, pixels: Tensor) -> Tensor:
        tower = self._paligemma.vision_tower
        return tower(pixel_values=pixels.to(tower.dtype)).last_hidden_state

    def image_words(self, tokens: Tensor, states: Tensor | None) -> Tensor:
        if states is not None:
            own = self._paligemma.vision_tower.state_token(states)
            tokens = torch.cat([tokens, own], dim=1)  # B, image_tokens, d
        projector = self._paligemma.multi_modal_projector
        return projector(tokens.to(projector.linear.weight.dtype))

    def pixel_values(self, images: Array | Sequence[Array]) -> Tensor:
        """uint8 (B, H, W, 3) -> float32 (B, 3, height, width) in [-1, 1], area-resampled when the size
        differs; `KitError` for anything else.

        B pictures of several sizes come as a sequence.
        """
        if len({np.shape(image) for image in images}) > 1:
            return torch.cat([self.pixel_values(np.asarray(image)[None]) for image in images])
        config, images = self._vision, np.array(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
            what = f"pictures are {images.dtype} {images.shape[1:]}"
            raise KitError(what, "give RGB as the camera has it: uint8 (H, W, 3), 0 to 255")
        x = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float()  # B, 3, H, W
        if x.shape[-2:] != (config.height, config.width):
            x = torch.nn.functional.interpolate(x, size=(config.height, config.width), mode="area")
        return x / 127.5 - 1.0

    def forget_state(self) -> None:
        """The state's token leaves the sequence."""
        if self.reads_state:
            tower = self._paligemma.vision_tower
            tower.config.state_size = self._vision.state_size = 0
            for part in ("state", "state_mean", "state_scale"):
                delattr(tower, part)

    def fitted(self, actions: Array, adapt: bool, robot: str = "widowx") -> VLA:
        """The same model with bins over the range of these actions: what its words move is learned anew."""
        if adapt or not isinstance(self.bins, UniformBins):
            raise KitError("a compact VLA's bins have no grid to adapt", 'take "refitted", or "base"')
        return replace(self, bins=UniformBins.fit(actions[np.isfinite(actions).all(axis=1)]))

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32, adapter: Path | None = None) -> Path:
        """Write a checkpoint directory: safetensors, config, tokenizer, dataset statistics. Appears whole or
        not at all.
        """
        about = {"format": FORMAT, "action_tokens": self.bins.to_dict(), "provenance": self.provenance}
        with new_folder(self.model, path, dtype, adapter) as part:
            if adapter is not None:
                self.model.config.save_pretrained(part)
            self.tokenizer.save_pretrained(part)
            write_json(part / STATISTICS, about)
        return Path(path)


def build(
    config: CompactConfig, tokenizer: PreTrainedTokenizerFast, bins: ActionTokens, seed: int
) -> CompactVLA:
    """A freshly initialised compact VLA; same seed, same weights. Raises `KitError` when the tokenizer lacks
    words of `bins`.
    """
    check_action_words(tokenizer, bins.words)
    text = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden,
        intermediate_size=config.feedforward,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        head_dim=config.hidden // config.heads,
        query_pre_attn_scalar=config.hidden // config.heads,
        max_position_embeddings=1024,
        initializer_range=config.hidden**-0.5,
        pad_token_id=token_id(tokenizer, PAD),
        eos_token_id=token_id(tokenizer, EOS),
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    vision = ConvTowerConfig(
        config.height,
        config.width,
        config.channels,
        config.hidden,
        config.hidden,
        FEATURES if config.proprioception else 0,
        config.patch,
    )
    full = PaliGemmaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=token_id(tokenizer, IMAGE),
        projection_dim=config.hidden,
        hidden_size=config.hidden,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PaliGemmaForConditionalGeneration(full)
        # the tower's norm gives rms 1; keep it
        torch.nn.init.orthogonal_(model.model.multi_modal_projector.linear.weight)
    return CompactVLA(model.eval(), tokenizer, bins, {})


def load(source: str | Path | Folder) -> CompactVLA:
    """Read a checkpoint directory, or one that is open, in float32.

    Raises:
        KitError: not a checkpoint, a damaged one, another format, weights that are not exactly the model's,
            or of another vocabulary.
    """
    folder = source if isinstance(source, Folder) else open_folder(source)
    directory = folder.path
    if STATISTICS not in folder.files:
        raise KitError(
            f"{directory} is no checkpoint of the compact VLA ({STATISTICS} is missing)",
            "give a folder written by notebook 02 or shipped in data/checkpoints",
        )
    kind, own = folder.json(CONFIG).get("model_type"), PaliGemmaConfig.model_type
    if kind != own:
        raise KitError(f"{directory}/config.json is of a {kind!r}, the compact VLA is a {own!r}", COPY)
    with as_kit_error(f"the checkpoint {directory} is damaged", COPY):
        statistics = folder.json(STATISTICS)
        if statistics.get("format") != FORMAT:
            raise KitError(
                f"{directory} has format {statistics.get('format')!r}", f"this version reads {FORMAT!r}"
            )
        bins, provenance = read_action_tokens(statistics["action_tokens"]), dict(statistics["provenance"])
        tokenizer, config = load_vocabulary(directory), PaliGemmaConfig.from_dict(folder.json(CONFIG))
        model = read_model(PaliGemmaForConditionalGeneration, config, folder, torch.float32)
    check_choice(f"robot, in {directory}:", provenance.get("robot", "widowx"), [*ROBOT_CONVENTIONS])
    words = model.get_input_embeddings().num_embeddings
    if words != len(tokenizer):
        what = f"the model in {directory} has {words} words, its tokenizer {len(tokenizer)}"
        raise KitError(what, "the files are of two checkpoints: copy the whole folder again")
    check_action_words(tokenizer, bins.words)
    return CompactVLA(model, tokenizer, bins, provenance)


def read_action_tokens(value: Mapping[str, Any]) -> ActionTokens:
    """The scheme that a `to_dict` describes.

    Raises:
        KitError: a kind that this version does not know, or limits that are none.
    """
    spherical = value.get("kind") == "spherical"
    tokens = SphericalGrid.from_dict(value) if spherical else UniformBins.from_dict(value)
    if not all(0 < limit < inf for limit in tokens.limits):
        what = f"action tokens with the limits {list(tokens.limits)}"
        raise KitError(what, "give numbers above 0: the dataset's statistics are damaged")
    return tokens
