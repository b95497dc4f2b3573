"""OpenVLA: Llama 2 that reads the patches of two vision towers, DINOv2 and SigLIP, or of one alone, and
writes actions as its 256 rarest words.

The modules have the names of the authors' checkpoints (timm's for the towers). Facts of their code that are
kept (arXiv 2406.09246; measured against it on random checkpoints, tests/vlas): the towers end before their
last block, without a final norm; they use the exact GELU; everything is causal; the picture's words follow
the first token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from refinevla_kit.errors import KitError, check_choice, listed
from refinevla_kit.simulator.contract import Array
from refinevla_kit.vlas.action_tokens import STATISTICS, dimension_names
from refinevla_kit.vlas.checkpoint import (
    CONFIG,
    Folder,
    chosen,
    load_tokenizer,
    provenance_file,
    provenance_of,
    read_model,
    resized,
    write_folder,
)
from refinevla_kit.vlas.contract import VLA, AdapterPreset, Marks
from refinevla_kit.vlas.released import (
    PREPROCESSOR,
    Quantiles,
    QuantileWords,
    ReleasedVLA,
    check_picture,
)
from refinevla_kit.vlas.vision_tower import TOWERS, VisionTower

SPACE = 29871  # Llama's token of a lone space: what the prompt ends with before an action


class OpenVLAConfig(PreTrainedConfig):  # type: ignore[misc]
    """The authors' config.json."""

    model_type = "openvla"
    sub_configs_defaults = {"text_config": LlamaConfig}  # type: ignore[dict-item]  # noqa: RUF012

    text_config: Any = None
    timm_model_ids: Any = None
    timm_model_args: Any = None
    use_fused_vision_backbone: bool | None = None
    image_sizes: Any = None
    n_action_bins: int = 256
    pad_to_multiple_of: int = 64
    norm_stats: Any = None
    tie_word_embeddings: bool = False

    @property
    def towers(self) -> list[dict[str, Any]]:
        """Sizes of the vision towers: of `timm_model_args`, or known by timm's name.

        Raises:
            KitError: another tower.
        """
        count = 1 if self.use_fused_vision_backbone is False else 2
        if self.timm_model_args:
            return [dict(size) for size in self.timm_model_args][:count]
        unknown = [name for name in self.timm_model_ids or ["none"] if name not in TOWERS]
        if unknown:
            raise KitError(
                f"unknown vision towers {listed(unknown)}", f"the kit knows {listed(list(TOWERS))}"
            )
        return [TOWERS[name] for name in self.timm_model_ids][:count]


class _Towers(nn.Module):
    def __init__(self, sizes: list[dict[str, Any]], image: int) -> None:
        super().__init__()
        for name, size in zip(("featurizer", "fused_featurizer"), sizes):
            self.add_module(name, VisionTower(size, image))

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3 or 6, s, s), normalised for each tower -> tokens of all (B, patches, e)."""
        parts = zip(self.children(), pixels.split(3, dim=1), strict=True)
        return torch.cat([tower(part) for tower, part in parts], -1)


class _Projector(nn.Module):
    """Three layers behind two towers, two behind one."""

    def __init__(self, widths: Sequence[int], hidden: int) -> None:
        super().__init__()
        width = sum(widths)
        sizes = [width, *[4 * width] * (len(widths) > 1), hidden, hidden]
        for number, (before, after) in enumerate(pairwise(sizes), 1):
            self.add_module(f"fc{number}", nn.Linear(before, after))

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.children()
        x = first(x)
        for layer in others:
            x = layer(nn.functional.gelu(x))
        return x


class OpenVLAModel(PreTrainedModel):  # type: ignore[misc]
    """Every parameter of an OpenVLA."""

    config_class = OpenVLAConfig
    base_model_prefix = ""
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlamaDecoderLayer", "VisionTower"]  # noqa: RUF012

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__(config)
        sizes, text = config.towers, config.text_config
        text.tie_word_embeddings = False
        self.vision_backbone = _Towers(sizes, config.image_sizes[0])
        self.projector = _Projector([size["embed_dim"] for size in sizes], text.hidden_size)
        self.language_model = LlamaForCausalLM(text)
        self.language_model.set_attn_implementation("eager")  # the weights of attention can be read
        self.post_init()


@dataclass(frozen=True)
class UniformWords(QuantileWords):
    """OpenVLA's words, as its authors number them: a word a dimension, the centre between two of evenly
    spaced edges. Word 0 is the highest value: ids descend.

    Attributes:
        edges: how many edges there are (`n_action_bins`).
        quantiles: how the dataset's actions are scaled.
    """

    edges: int
    quantiles: Quantiles

    @property
    def names(self) -> tuple[str, ...]:
        return dimension_names(len(self.quantiles.low))

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """All places share their words."""
        return ((0, self.edges),) * len(self.quantiles.low)

    @property
    def words(self) -> int:
        return self.edges

    def encode_normalised(self, actions: Array) -> Array:
        """float (..., A) in [-1, 1] -> int64 (..., A)."""
        unit = np.clip(np.asarray(actions, np.float64), -1, 1)
        return self.edges - np.digitize(unit, np.linspace(-1, 1, self.edges))

    def decode_normalised(self, words: Array) -> Array:
        """int (..., A) -> float64 (..., A) in [-1, 1]."""
        edges = np.linspace(-1, 1, self.edges)
        place = np.clip(self.edges - 1 - np.asarray(words), 0, self.edges - 2)
        return ((edges[:-1] + edges[1:]) / 2)[place]

    def to_dict(self) -> dict[str, Any]:
        """For records; the checkpoint has them in its own form."""
        return {"kind": "openvla", "edges": self.edges, **self.quantiles.to_dict()}


@dataclass(frozen=True)
class OpenVLA(ReleasedVLA):
    """OpenVLA behind the kit's contract."""

    sticky = 15
    reference = "step"
    two_way = False
    first_position = 0
    image_start = 1
    # The authors' vla-scripts/finetune.py: rank 32, alpha 16, every linear layer but the head's.
    adapter_preset = AdapterPreset(
        32,
        16.0,
        r"(language_model\.model|vision_backbone)\..*\."
        r"([qkvo]_proj|gate_proj|up_proj|down_proj|qkv|attn\.proj|fc[12])|projector\.fc[123]",
    )

    @property
    def grid(self) -> tuple[int, int]:
        side = self._model.vision_backbone.featurizer.grid
        return side, side

    @property
    def image_size(self) -> tuple[int, int]:
        side = int(self.model.config.image_sizes[0])
        return side, side

    @property
    def image_id(self) -> int:
        """One that nobody says, of the padding behind the vocabulary."""
        return int(self.model.config.text_config.vocab_size) - 1

    @property
    def marks(self) -> Marks:
        tokenizer = self.tokenizer
        return Marks(tokenizer.pad_token_id, tokenizer.eos_token_id, SPACE, None, closes=True)

    @property
    def first_action(self) -> int:
        config = self.model.config
        return int(config.text_config.vocab_size - config.pad_to_multiple_of - config.n_action_bins)

    @property
    def tower(self) -> tuple[nn.Module, ...]:
        return (self._model.vision_backbone,)

    @property
    def constant(self) -> tuple[nn.Module, ...]:
        towers: Any = self._model.vision_backbone.children()  # one or two
        return tuple(module for tower in towers for module in tower.unused)

    @property
    def projector(self) -> tuple[nn.Module, ...]:
        return (self._model.projector,)

    def prefix_ids(self, instruction: str) -> list[int]:
        """The authors' prompt, the picture's places behind its first token."""
        prompt = f"In: What action should the robot take to {instruction.lower()}?\nOut:"
        first, *text = self.tokenizer.encode(prompt)
        return [first, *[self.image_id] * self.image_tokens, *text]

    def pixel_values(self, images: Array | Sequence[Array]) -> Tensor:
        """uint8 (B, H, W, 3), or B pictures of several sizes -> float32 (B, 3 or 6, s, s), three
        channels for each tower.
        """
        settings = self._preprocessor
        strategy, size = settings["image_resize_strategy"], self.image_size
        border = tuple(int(x * 255) for x in settings["means"][-1])  # one for both towers, as the authors
        pictures = np.stack([to_square(image, size, strategy, border) for image in images])
        unit = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(self.device) / 255  # B, 3, s, s
        parts = [
            (unit - unit.new_tensor(mean).view(3, 1, 1)) / unit.new_tensor(deviation).view(3, 1, 1)
            for mean, deviation in zip(settings["means"], settings["stds"], strict=True)
        ]
        return torch.cat(parts, 1)

    @cached_property
    def _preprocessor(self) -> dict[str, Any]:
        return self.folder.json(PREPROCESSOR)  # asked for at every step

    def look(self, pixels: Tensor) -> Tensor:
        return self._model.vision_backbone(pixels.to(self.model.dtype))

    def image_words(self, tokens: Tensor, states: Tensor | None) -> Tensor:
        projector = self._model.projector
        return projector(tokens.to(projector.fc1.weight.dtype))

    def fitted(self, actions: Array, adapt: bool, robot: str = "widowx") -> VLA:
        """See `ReleasedVLA.fitted`; there is no grid to adapt."""
        if adapt:
            raise KitError("OpenVLA's bins are even: there is no grid to adapt", 'take "refitted"')
        return super().fitted(actions, adapt, robot)

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32, adapter: Path | None = None) -> Path:
        """Write the authors' layout: their key names, their files, with these statistics."""
        statistics = json.dumps(dict(self.statistics), indent=2)
        config = self.folder.json(CONFIG) | {"norm_stats": dict(self.statistics)}
        content = {STATISTICS: statistics.encode(), CONFIG: json.dumps(config).encode()}
        content |= provenance_file(self.provenance, self.dataset)
        return write_folder(self.model, {**self.folder.files, **content}, path, dtype, adapter)


def to_square(image: Array, size: tuple[int, int], strategy: str, border: tuple[int, ...]) -> Array:
    """uint8 (H, W, 3) -> uint8 (s, s, 3) by one of the authors' strategies: "resize-naive" stretches,
    "resize-crop" cuts the middle, "letterbox" first adds borders of the colour `border` (RGB), equal on both
    sides: where the sides differ by an odd number, one pixel stays too much and is cut.

    Raises:
        KitError: another strategy, or no RGB picture.
    """
    image = resized(image, np.shape(image)[1::-1])  # a picture, or refused
    if strategy == "resize-naive":
        return resized(image, size)
    check_choice("image_resize_strategy", strategy, ("resize-naive", "resize-crop", "letterbox"))
    height, width = image.shape[:2]
    if strategy == "letterbox":
        side = max(height, width)
        left, top = (side - width) // 2, (side - height) // 2
        framed = np.full((height + 2 * top, width + 2 * left, 3), border, np.uint8)
        framed[top : top + height, left : left + width] = image
        image, (height, width) = framed, framed.shape[:2]
    short = min(height, width)
    image = resized(image, (int(width * size[0] / short), int(height * size[0] / short)))
    top = round((image.shape[0] - size[1]) / 2)
    left = round((image.shape[1] - size[0]) / 2)
    return image[top : top + size[1], left : left + size[0]]


def load(
    folder: Folder,
    dtype: torch.dtype = torch.float32,
    device_map: Any = None,
    dataset: str | None = None,
    read: Callable[..., Any] = read_model,
) -> OpenVLA:
    """Read an OpenVLA.

    Args:
        folder: in the authors' layout.
        dtype: of the weights in memory.
        device_map: see transformers' `from_pretrained`.
        dataset: whose statistics un-normalise the actions; None is the first one.
        read: what gives the model its weights, as `read_model` does from the folder.

    Raises:
        KitError: damaged or foreign files, an unknown dataset.
    """
    config = OpenVLAConfig.from_dict(folder.json(CONFIG))
    for size in folder.json(PREPROCESSOR).get("input_sizes") or []:
        check_picture(folder, size[-2:], config.image_sizes[0])
    statistics = folder.json(STATISTICS) if STATISTICS in folder.files else config.norm_stats or {}
    about = provenance_of(folder)
    dataset = chosen(dataset or about.get("dataset"), statistics, "dataset's statistics", folder)
    tokenizer = load_tokenizer(folder)
    bins = UniformWords(config.n_action_bins, Quantiles.from_statistics(statistics[dataset], dataset))
    model = read(OpenVLAModel, config, folder, dtype, device_map)
    return OpenVLA(model, tokenizer, bins, about, folder, statistics, dataset)
