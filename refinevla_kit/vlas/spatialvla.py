"""SpatialVLA: PaliGemma 2 with depth seen by ZoeDepth, positions in space added to what the eye sees, and its
own words for actions.

The modules have the authors' names, so their checkpoints are read and written as they are. Facts of their
code that are kept (arXiv 2501.15830; measured against it on random checkpoints, tests/vlas): pictures are
only divided by 255, the model normalises; depth comes from a picture padded by reflection; image words are
not scaled, text and action words are (inside the embedding of transformers 5); the head is a matrix of its
own; a second table holds the embeddings of the action words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ZoeDepthConfig,
    ZoeDepthForDepthEstimation,
)

from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import Array
from refinevla_kit.vlas.checkpoint import (
    CONFIG,
    COPY,
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
    ReleasedVLA,
    check_picture,
)
from refinevla_kit.vlas.spatial_words import LEAST_DEVIATION, SpatialWords, adapted, edges_of, gaussians_of

PROCESSOR = "processor_config.json"
RESCALE = 0.00392156862745098
DEPTH_PADDING = 31  # pixels on each side of the picture that the depth is estimated from
DEPTH_SIZE = 384  # pixels, height and width of that picture
DEPTH_OFFSET = 2.0  # metres; a point's distance is centred on it and all coordinates are divided by it


class SpatialVLAConfig(PreTrainedConfig):  # type: ignore[misc]
    """The authors' config.json. Their top-level `hidden_size` and `num_hidden_layers` are not used."""

    model_type = "spatialvla"
    sub_configs_defaults = {  # noqa: RUF012 - transformers' own protocol
        "text_config": Gemma2Config,  # type: ignore[dict-item]
        "vision_config": SiglipVisionConfig,  # type: ignore[dict-item]
        "vision_zoe_config": ZoeDepthConfig,  # type: ignore[dict-item]
    }

    text_config: Any = None
    vision_config: Any = None
    vision_zoe_config: Any = None
    image_token_index: int = 257152
    action_token_begin_idx: int = 257153
    spatial_token_num: int = 8194
    use_spatial_token: bool = True
    use_vision_zoe: bool = True
    n_freqs: int = 8
    ego3d_patch_reso: int = 2
    tie_word_embeddings: bool = False


class _Tower(nn.Module):
    """The authors' name for the vision model has one level more."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        self.vision_model = SiglipVisionModel(config)


class _Projector(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, hidden)


class Ego3DPosition(nn.Module):
    """Points in the camera's frame -> what is added to the vision tower's tokens."""

    def __init__(self, points: int, frequencies: int, width: int) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.position_embedding_head = nn.Sequential(
            nn.Linear(3 * points * (2 * frequencies + 1), width),
            nn.LayerNorm(width),
            nn.ReLU(),
            nn.Linear(width, width),
        )

    def encode(self, points: Tensor) -> Tensor:
        """Points (B, patches, 3 r²) in metres -> their waves (B, patches, 3 r² (2 n + 1))."""
        centre = points.new_tensor([0.0, 0.0, DEPTH_OFFSET]).repeat(points.shape[-1] // 3)
        unit = (points - centre) / DEPTH_OFFSET
        scales = 2.0 ** torch.arange(self.frequencies, device=points.device)  # not stored: exact in any dtype
        angles = unit[..., None] * scales.to(unit.dtype)  # B, patches, 3 r², n
        return torch.cat([unit[..., None], angles.sin(), angles.cos()], -1).flatten(-2)

    def forward(self, points: Tensor) -> Tensor:
        head: Any = self.position_embedding_head
        return head(self.encode(points.float()).to(head[0].weight.dtype))


class SpatialVLAModel(PreTrainedModel):  # type: ignore[misc]
    """Every parameter of a SpatialVLA, and the way from pictures to words of the decoder."""

    config_class = SpatialVLAConfig
    base_model_prefix = ""
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    _no_split_modules = ["Gemma2DecoderLayer", "SiglipEncoderLayer", "ZoeDepthForDepthEstimation"]  # noqa: RUF012

    def __init__(self, config: SpatialVLAConfig) -> None:
        super().__init__(config)
        text, vision = config.text_config, config.vision_config
        text.tie_word_embeddings = False
        self.vision_tower = _Tower(vision)
        self.multi_modal_projector = _Projector(vision.hidden_size, text.hidden_size)
        self.position_embedding_3d = Ego3DPosition(
            config.ego3d_patch_reso**2, config.n_freqs, vision.hidden_size
        )
        self.spatial_embed_tokens = nn.Embedding(config.spatial_token_num, text.hidden_size)
        self.vision_zoe_model = ZoeDepthForDepthEstimation(config.vision_zoe_config)
        self.language_model = Gemma2ForCausalLM(text)
        self.post_init()

    def train(self, mode: bool = True) -> SpatialVLAModel:
        """ZoeDepth stays as it is when it acts: its dropout would move the depth."""
        super().train(mode)
        self.vision_zoe_model.eval()
        return self

    @torch.no_grad()
    def depth(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, s, s) in 0..1 -> metres (B, 1, s, s)."""
        size = pixels.shape[-1] + 2 * DEPTH_PADDING
        padded = functional.pad(pixels, (DEPTH_PADDING,) * 4, mode="reflect")
        padded = _bicubic(padded, DEPTH_SIZE)
        metres = self.vision_zoe_model(pixel_values=2 * padded - 1).predicted_depth[:, None]
        metres = _bicubic(metres, size)
        return metres[..., DEPTH_PADDING:-DEPTH_PADDING, DEPTH_PADDING:-DEPTH_PADDING]

    def points(self, depth: Tensor, intrinsic: Tensor) -> Tensor:
        """Metres (B, 1, s, s) and the camera's matrix (B, 3, 3) -> points of each patch (B, patches, 3 r²),
        row by row, x, y, z in metres.
        """
        patch, fine = self.config.vision_config.patch_size, self.config.ego3d_patch_reso
        grid = depth.shape[-1] // patch
        side = grid * fine
        distance = functional.interpolate(depth, (side, side), mode="area").float()  # B, 1, side, side
        centres = torch.arange(side, device=depth.device) * (patch // fine) + patch / (2 * fine)
        v, u = torch.meshgrid(centres, centres, indexing="ij")
        rays = torch.stack([u, v, torch.ones_like(u)]).flatten(1)  # 3, side²
        points = torch.linalg.inv(intrinsic.float()) @ rays * distance.flatten(2)  # B, 3, side²
        points = points.view(len(depth), 3, grid, fine, grid, fine).permute(0, 2, 4, 3, 5, 1)
        return points.reshape(len(depth), grid * grid, -1)

    def look(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, s, s) in 0..1 -> the vision tower's tokens (B, patches, e)."""
        tower: Any = self.vision_tower.vision_model
        return tower(pixel_values=2 * pixels - 1).last_hidden_state

    def image_words(self, tokens: Tensor, points: Tensor) -> Tensor:
        """The tower's tokens and the points of its patches -> words of the decoder (B, patches, h)."""
        places = self.position_embedding_3d(points)
        return self.multi_modal_projector.linear(tokens.to(places.dtype) + places)


def _bicubic(images: Tensor, size: int) -> Tensor:
    return functional.interpolate(images, (size, size), mode="bicubic", align_corners=True)


@dataclass(frozen=True)
class SpatialVLA(ReleasedVLA):
    """SpatialVLA behind the kit's contract.

    Attributes:
        camera: whose matrix of `intrinsic_config` places the points.
    """

    camera: str

    sticky = 10
    reference = "motion"
    two_way = True
    first_position = 1
    # The authors' finetune_lora.sh: --lora 32 --lora_alpha 32 --lora_target linear, which
    # spatialvla_finetune.py spells out. Its "out_proj" also hits ZoeDepth, which is left as it is here.
    adapter_preset = AdapterPreset(
        32,
        32.0,
        r"(language_model\.model|vision_tower)\..*\."
        r"([qkvo]_proj|out_proj|gate_proj|up_proj|down_proj|fc[12])"
        r"|multi_modal_projector\.linear|position_embedding_3d\.position_embedding_head\.[03]",
    )

    @property
    def chunk(self) -> int:
        return int(self._processor["action_chunk_size"])

    @property
    def settings(self) -> str:
        """See `ReleasedVLA.settings`."""
        return f"{super().settings}\n{self.camera}"

    @property
    def grid(self) -> tuple[int, int]:
        side = self._vision.image_size // self._vision.patch_size
        return side, side

    @property
    def image_size(self) -> tuple[int, int]:
        return self._vision.image_size, self._vision.image_size

    @property
    def image_id(self) -> int:
        return int(self.model.config.image_token_index)

    @property
    def marks(self) -> Marks:
        tokenizer = self.tokenizer
        return Marks(tokenizer.pad_token_id, tokenizer.eos_token_id, None, None, closes=True)

    @property
    def first_action(self) -> int:
        return int(self.model.config.action_token_begin_idx)

    @property
    def tower(self) -> tuple[nn.Module, ...]:
        return self._model.vision_tower, self._model.vision_zoe_model

    @property
    def constant(self) -> tuple[nn.Module, ...]:
        return (self._model.vision_zoe_model,)

    @property
    def projector(self) -> tuple[nn.Module, ...]:
        return self._model.multi_modal_projector, self._model.position_embedding_3d

    @property
    def embeddings(self) -> tuple[nn.Module, ...]:
        return self.decoder.embed_tokens, self._model.spatial_embed_tokens

    @property
    def intrinsic(self) -> Tensor:
        """The camera's matrix (3, 3) in pixels of the model's picture."""
        entry = self._processor["intrinsic_config"][self.camera]
        matrix = torch.tensor(entry["intrinsic"], dtype=torch.float32)
        width, height = self.image_size
        matrix[0] *= width / entry["width"]
        matrix[1] *= height / entry["height"]
        return matrix

    @property
    def _vision(self) -> Any:
        return self.model.config.vision_config

    @cached_property
    def _processor(self) -> dict[str, Any]:
        return self.folder.json(PROCESSOR)  # asked for at every step

    def prefix_ids(self, instruction: str) -> list[int]:
        """The authors' prompt: the picture's places, `<bos>`, the instruction, a line end."""
        text = self.tokenizer.encode(instruction + "\n", add_special_tokens=False)
        return [self.image_id] * self.image_tokens + [self.tokenizer.bos_token_id, *text]

    def pixel_values(self, images: Array | Sequence[Array]) -> Tensor:
        """uint8 (B, H, W, 3), or B pictures of several sizes -> float32 (B, 3, s, s) in 0..1."""
        pixels = np.stack([resized(image, self.image_size) for image in images])  # B, s, s, 3
        unit = (pixels * RESCALE).astype(np.float32)  # rounded once, as the authors' processor does
        return torch.from_numpy(unit).permute(0, 3, 1, 2).to(self.device)

    def look(self, pixels: Tensor) -> Tensor:
        """The tower's tokens and the points of each patch beside them (B, patches, e + 3 r²)."""
        model, pixels = self._model, pixels.to(self.model.dtype)
        intrinsic = self.intrinsic.to(self.device)[None]
        return torch.cat([model.look(pixels), model.points(model.depth(pixels), intrinsic)], -1)

    def image_words(self, tokens: Tensor, states: Tensor | None) -> Tensor:
        width = self._vision.hidden_size
        return self._model.image_words(tokens[..., :width], tokens[..., width:])

    def words(self, ids: Tensor) -> Tensor:
        """See `VLA.words`; those of action words are of their own table."""
        embedding, table = self.decoder.embed_tokens, self._model.spatial_embed_tokens
        numbers = (ids - self.first_action).clamp(0, table.num_embeddings - 1)
        actions = table(numbers) * embedding.embed_scale.to(embedding.weight.dtype)
        return torch.where(self.is_action(ids)[..., None], actions, embedding(ids))

    def with_dataset(self, dataset: str) -> VLA:
        """See `ReleasedVLA.with_dataset`; the camera is the dataset's, too, where there is one."""
        camera = dataset if dataset in self._processor["intrinsic_config"] else self.camera
        return replace(super().with_dataset(dataset), camera=camera)  # type: ignore[call-arg]

    def fitted(self, actions: Array, adapt: bool, robot: str = "widowx") -> VLA:
        """The same model with statistics of these actions; adapted, with cells and embeddings for them."""
        refitted = super().fitted(actions, adapt, robot)
        if not adapt:
            return refitted
        bins, own = refitted.bins, self.own_actions(actions)
        assert isinstance(bins, SpatialWords)
        unit = bins.quantiles.normalise(own[np.isfinite(own).all(axis=1)])
        edges = edges_of(gaussians_of(np.clip(unit, -1, 1)), bins.cells, LEAST_DEVIATION)
        table = self._model.spatial_embed_tokens.weight.data
        table.copy_(adapted(table, bins.edges, edges))
        return replace(refitted, bins=replace(bins, edges=edges))

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32, adapter: Path | None = None) -> Path:
        """Write the authors' layout: their key names, their files, with these statistics and cells."""
        assert isinstance(self.bins, SpatialWords)
        processor = self._processor | {
            "statistics": dict(self.statistics),
            "bin_policy": self.bins.to_processor(),
        }
        content = {PROCESSOR: json.dumps(processor, indent=2).encode()}
        content |= provenance_file(self.provenance, self.dataset, self.camera)
        return write_folder(self.model, {**self.folder.files, **content}, path, dtype, adapter)


def load(
    folder: Folder,
    dtype: torch.dtype = torch.float32,
    device_map: Any = None,
    dataset: str | None = None,
    camera: str | None = None,
    read: Callable[..., Any] = read_model,
) -> SpatialVLA:
    """Read a SpatialVLA.

    Args:
        folder: in the authors' layout.
        dtype: of the weights in memory.
        device_map: see transformers' `from_pretrained`.
        dataset: whose statistics un-normalise the actions; None is the first one.
        camera: whose matrix is used; None is the dataset's where there is one, else "default".
        read: what gives the model its weights, as `read_model` does from the folder.

    Raises:
        KitError: damaged or foreign files, an unknown dataset or camera.
    """
    processor = folder.json(PROCESSOR)
    statistics = processor.get("statistics") or {}
    about = provenance_of(folder)
    remembered = about.get("camera") if dataset in (None, about.get("dataset")) else None
    dataset = chosen(dataset or about.get("dataset"), statistics, "dataset's statistics", folder)
    cameras = processor.get("intrinsic_config") or {}
    camera = camera or remembered or (dataset if dataset in cameras else "default")
    camera = chosen(camera, cameras, "camera's matrix (intrinsic_config)", folder)
    config = SpatialVLAConfig.from_dict(folder.json(CONFIG))
    spherical = (processor.get("action_config") or {}).get("use_spherical", True)
    if not (config.use_vision_zoe and config.use_spatial_token and spherical):
        what = f"{folder.path} does without depth, own words for actions or spherical cells"
        raise KitError(what, "give one with use_vision_zoe, use_spatial_token and use_spherical")
    stated = folder.json(PREPROCESSOR).get("size") if PREPROCESSOR in folder.files else None
    if isinstance(stated, dict) and {"width", "height"} <= stated.keys():
        check_picture(folder, (stated["width"], stated["height"]), config.vision_config.image_size)
    tokenizer = load_tokenizer(folder)
    quantiles = Quantiles.from_statistics(statistics[dataset], dataset)
    bins = SpatialWords.from_processor(processor.get("bin_policy") or {}, quantiles)
    if bins.words != config.spatial_token_num:
        what = f"{folder.path} has {config.spatial_token_num} action words and cells for {bins.words}"
        raise KitError(what, "copy config.json and processor_config.json of one checkpoint")
    model = read(SpatialVLAModel, config, folder, dtype, device_map)
    vla = SpatialVLA(model, tokenizer, bins, about, folder, statistics, dataset, camera)
    if vla.chunk < 1 or not vla.intrinsic.isfinite().all():
        raise KitError(f"{folder.path / PROCESSOR} gives no action_chunk_size or no matrix", COPY)
    return vla
