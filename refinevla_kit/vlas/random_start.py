"""SpatialVLA and OpenVLA of any size with random weights, in their authors' layout: to try a recipe, a robot
or a machine before the released weights are there.

The modules, words, statistics and files are those of the real ones; only sizes and numbers differ. Every size
is a field of config.json, so a real size is made in the same way (scripts/gpu_check.py).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, processors
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from refinevla_kit.simulator.contract import Array
from refinevla_kit.simulator.geometry import intrinsic
from refinevla_kit.vlas import openvla, spatialvla
from refinevla_kit.vlas.checkpoint import CONFIG, OWN, Folder, open_folder
from refinevla_kit.vlas.compact_parts import train_pieces
from refinevla_kit.vlas.contract import VLA
from refinevla_kit.vlas.released import Quantiles, gripper_to_share, statistics_of
from refinevla_kit.vlas.spatial_words import LEAST_DEVIATION, SpatialWords, edges_of, gaussians_of
from refinevla_kit.vlas.spherical_grid import CELLS

Config = dict[str, Any]
PIECES = 1024  # of a vocabulary trained on the texts at hand
LLAMA_WORDS = 32000  # Llama's own; the padding stands behind them
# Of the WidowX's camera as SpatialVLA's authors have it: 640 x 480, pixels.
CAMERA = {"width": 640, "height": 480, "intrinsic": intrinsic("widowx", 640, 480).tolist()}

REAL_SPATIALVLA: Config = {
    "spatial_token_num": 8194,
    "action_token_begin_idx": 257153,
    "image_token_index": 257152,
    "text_config": {"model_type": "gemma2", "tie_word_embeddings": False, "vocab_size": 265347},
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "vision_use_head": False,
    },
    "vision_zoe_config": {
        "model_type": "zoedepth",
        "bin_configurations": [
            {"name": "nyu", "n_bins": 64, "min_depth": 1e-3, "max_depth": 10.0},
            {"name": "kitti", "n_bins": 64, "min_depth": 1e-3, "max_depth": 80.0},
        ],
        "neck_hidden_sizes": [256, 512, 1024, 1024],
        "num_patch_transformer_layers": 4,
        "patch_transformer_hidden_size": 128,
        "patch_transformer_intermediate_size": 1024,
        "patch_transformer_num_attention_heads": 4,
    },
}
"""The configuration of the released SpatialVLA 4B at 224 pixels, as far as it decides shapes and is not what
transformers' classes begin with.
"""
REAL_OPENVLA: Config = {
    "text_config": {"model_type": "llama", "vocab_size": 32064, "pad_token_id": 32000},
    "image_sizes": [224, 224],
    "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
}
"""The configuration of the released OpenVLA 7B, likewise."""


def small_spatialvla(hidden: int = 128, layers: int = 4, image: int = 112, vision: int = 64) -> Config:
    """config.json of a SpatialVLA of some million parameters.

    Args:
        hidden, layers: width and depth of the decoder.
        image: pixels, width and height of the picture; patches are of 14.
        vision: width of the vision tower.
    """
    heads = max(hidden // 32, 1)
    text = _text(hidden, layers, heads) | {"model_type": "gemma2", "query_pre_attn_scalar": hidden // heads}
    eye = {
        "model_type": "siglip_vision_model",
        "hidden_size": vision,
        "intermediate_size": 2 * vision,
        "num_attention_heads": max(vision // 32, 1),
        "num_hidden_layers": 2,
        "image_size": image,
        "patch_size": 14,
        "vision_use_head": False,
    }
    backbone = {
        "model_type": "beit",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 4,
        "image_size": 384,
        "patch_size": 16,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
        "reshape_hidden_states": False,
    }
    depth = {
        "model_type": "zoedepth",
        "backbone_config": backbone,
        "backbone_hidden_size": 32,
        "neck_hidden_sizes": [12, 16, 20, 24],
        "fusion_hidden_size": 16,
        "bottleneck_features": 16,
        "num_relative_features": 8,
        "bin_embedding_dim": 16,
        "num_attractors": [4, 3, 2, 1],
        "bin_configurations": [
            {"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"},
            {"n_bins": 8, "min_depth": 0.001, "max_depth": 80.0, "name": "kitti"},
        ],
        "num_patch_transformer_layers": 4,  # this and the width are all that the authors' code can read
        "patch_transformer_hidden_size": 128,
        "patch_transformer_intermediate_size": 64,
        "patch_transformer_num_attention_heads": 2,
    }
    return {"text_config": text, "vision_config": eye, "vision_zoe_config": depth}


def small_openvla(hidden: int = 128, layers: int = 4, image: int = 112, vision: int = 64) -> Config:
    """config.json of an OpenVLA of some million parameters, most of them Llama's 32,064 words. Arguments as
    in `small_spatialvla`; both towers have the same width.
    """
    text = _text(hidden, layers, max(hidden // 32, 1)) | {"model_type": "llama"}
    tower = {"embed_dim": vision, "depth": 3, "num_heads": max(vision // 32, 1), "mlp_ratio": 2.0}
    towers = [
        tower | {"patch_size": 14, "reg_tokens": 4, "init_values": 1e-5},
        tower | {"patch_size": 14, "class_token": False, "global_pool": "map"},
    ]
    return {"text_config": text, "image_sizes": [image, image], "timm_model_args": towers}


def _text(hidden: int, layers: int, heads: int) -> Config:
    return {
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": hidden // heads,
        "initializer_range": hidden**-0.5,
    }


def random_spatialvla(
    config: Config,
    texts: Sequence[str],
    actions: Array,
    cells: Sequence[int] = CELLS,
    chunk: int = 4,
    seed: int = 0,
    **where: Any,
) -> VLA:
    """A SpatialVLA that has learned nothing; `save` writes its folder.

    Args:
        config: its sizes, as config.json has them. A `vocab_size` in it is kept, with the ids beside it.
        texts: instructions and rationales, which the vocabulary is made for.
        actions: float (N, 7) as the kit records them, which statistics and cells are made for.
        cells: how many of theta, phi, r, roll, pitch, yaw.
        chunk: steps that one answer plans.
        seed: same seed, same weights.
        where: `dtype` of the weights and `device` they are made on.
    """
    own = gripper_to_share(actions)
    statistics = {OWN: statistics_of(own)}
    quantiles = Quantiles.from_statistics(statistics[OWN], OWN)
    unit = np.clip(quantiles.normalise(own), -1, 1)
    words = SpatialWords(edges_of(gaussians_of(unit), cells, LEAST_DEVIATION), quantiles)
    raw = train_pieces(texts, PIECES, ["<pad>", "<eos>", "<bos>", "<unk>"])
    raw.add_special_tokens(["<image>"])
    first = raw.get_vocab_size()
    raw.add_special_tokens([f"<ACTION{word:05d}>" for word in range(words.words)])
    ids = {"image_token_index": first - 1, "action_token_begin_idx": first, "spatial_token_num": words.words}
    text = {"vocab_size": first + words.words, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    vision = {"image_size": 224} | config["vision_config"]
    processor = {
        "action_chunk_size": chunk,
        "bin_policy": words.to_processor(),
        "intrinsic_config": {"default": CAMERA},
        "statistics": statistics,
        "processor_class": "SpatialVLAProcessor",
    }
    pictures = {
        "do_normalize": False,
        "image_processor_type": "SiglipImageProcessor",
        "image_seq_length": (vision["image_size"] // vision["patch_size"]) ** 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 3,
    }
    files = {
        CONFIG: {"model_type": "spatialvla", **ids, **config, "text_config": text | config["text_config"]},
        spatialvla.PROCESSOR: processor,
        "preprocessor_config.json": pictures,
    }
    marks = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    return _made(files, raw, marks, spatialvla.load, seed, **where)


def random_openvla(config: Config, texts: Sequence[str], actions: Array, seed: int = 0, **where: Any) -> VLA:
    """An OpenVLA that has learned nothing; `save` writes its folder. Arguments as in `random_spatialvla`.

    The vocabulary has Llama's size, because the authors' code knows its ids of a space and of actions.
    """
    statistics = {OWN: statistics_of(gripper_to_share(actions))}
    pieces = train_pieces(texts, PIECES, ["<unk>", "<s>", "</s>"])
    trained = json.loads(pieces.to_str())
    words = trained["model"]["vocab"]
    words |= {f"<word{number:05d}>": number for number in range(len(words), LLAMA_WORDS)}
    del words[f"<word{openvla.SPACE:05d}>"]
    words["▁"] = openvla.SPACE
    raw = Tokenizer.from_str(json.dumps(trained))
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    raw.add_special_tokens(["<PAD>"])
    text = {"vocab_size": LLAMA_WORDS + 64, "pad_token_id": LLAMA_WORDS}
    side = config["image_sizes"][0]
    pictures = {
        "image_resize_strategy": "resize-naive",
        "input_sizes": [[3, side, side]] * 2,
        "means": [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]],
        "stds": [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]],
    }
    about = {"model_type": "openvla", "n_action_bins": 256, "pad_to_multiple_of": 64}
    files = {
        CONFIG: {**about, **config, "text_config": text | config["text_config"]},
        openvla.STATISTICS: statistics,
        openvla.PREPROCESSOR: pictures,
    }
    marks = {"pad_token": "<PAD>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    return _made(files, raw, marks, openvla.load, seed, **where)


def _made(
    files: Mapping[str, Any],
    raw: Tokenizer,
    marks: dict[str, str],
    load: Any,
    seed: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> VLA:
    """The model of these files and words, read as from a folder that has weights, too."""

    def fresh(kind: type[PreTrainedModel], config: PreTrainedConfig, _: Folder, *__: Any) -> PreTrainedModel:
        """Random weights, made on their device in their precision: nothing larger is ever in memory."""
        usual, devices = torch.get_default_dtype(), [device] if device.startswith("cuda") else []
        torch.set_default_dtype(dtype)
        try:
            with torch.random.fork_rng(devices=devices), torch.device(device):
                torch.manual_seed(seed)
                model = kind(config)
                for name, values in model.named_parameters():
                    # timm's position; zero by default, and then patches have none
                    if name.endswith("pos_embed"):
                        torch.nn.init.normal_(values, std=0.02)
        finally:
            torch.set_default_dtype(usual)
        return model.eval()

    with tempfile.TemporaryDirectory() as name:
        for file, content in files.items():
            (Path(name) / file).write_text(json.dumps(content, indent=2), encoding="utf-8")
        PreTrainedTokenizerFast(tokenizer_object=raw, **marks).save_pretrained(name)
        vla: VLA = load(open_folder(name), read=fresh)
    return vla
