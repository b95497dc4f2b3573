"""OpenVLA equals its authors' code, stage by stage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from refinevla_kit.errors import KitError
from refinevla_kit.vlas import load_vla
from refinevla_kit.vlas.checkpoint import Folder
from refinevla_kit.vlas.decoder import embed, hidden_states, logits_of, masks_of, run_layers
from refinevla_kit.vlas.openvla import SPACE, OpenVLA, OpenVLAConfig, OpenVLAModel
from refinevla_kit.vlas.random_start import REAL_OPENVLA
from refinevla_kit.vlas.vision_tower import VisionTower
from tests.vlas.reference import FOLDER, arrays, difference, facts

CHECKPOINT = FOLDER / "openvla"
SAMPLES = ("s0", "s1", "s2")
GOLDEN, FACTS = arrays("openvla"), facts("openvla")


@pytest.fixture(scope="module")
def vla() -> OpenVLA:
    vla = load_vla(CHECKPOINT)
    assert isinstance(vla, OpenVLA)
    return vla


@pytest.fixture(params=SAMPLES)
def sample(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def see(vla: OpenVLA, sample: str) -> Tensor:
    return vla.see(vla.pixel_values([GOLDEN[f"{sample}/image"].numpy()]), None)


def with_places(vla: OpenVLA, ids: Tensor, filler: int) -> Tensor:
    """The authors' ids or labels, with the places of the picture in them."""
    places = torch.full((len(ids), vla.image_tokens), filler)
    return torch.cat([ids[:, :1], places, ids[:, 1:]], 1)


def logits(vla: OpenVLA, picture: Tensor, ids: Tensor, seen: Tensor | None = None) -> Tensor:
    """Of sequences in which the picture has its places."""
    return logits_of(vla, hidden_states(vla, picture, ids, torch.ones_like(ids), seen))


def nll(values: Tensor, labels: Tensor) -> Tensor:
    losses = functional.cross_entropy(
        values[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="none"
    )
    return losses[labels[:, 1:].flatten() != -100]


def prompt(vla: OpenVLA, sample: str) -> Tensor:
    """What an action follows."""
    task = FACTS["tasks"][SAMPLES.index(sample)]
    return torch.tensor([[*vla.prefix_ids(task), SPACE]])


@pytest.mark.parametrize("strategy", ["resize-naive", "resize-crop", "letterbox"])
def test_pictures_are_the_authors_to_the_bit(vla: OpenVLA, sample: str, strategy: str) -> None:
    name = "preprocessor_config.json"
    settings = json.dumps(vla.folder.json(name) | {"image_resize_strategy": strategy})
    chosen = replace(vla, folder=Folder(vla.folder.path, {**vla.folder.files, name: settings.encode()}))
    pixels = chosen.pixel_values([GOLDEN[f"{sample}/image"].numpy()])
    assert torch.equal(pixels, GOLDEN[f"{sample}/pixels/{strategy}"])


def test_borders_are_equal_on_both_sides_and_have_the_last_towers_colour(vla: OpenVLA) -> None:
    name = "preprocessor_config.json"
    settings = vla.folder.json(name) | {"image_resize_strategy": "letterbox"}
    settings["means"] = [settings["means"][0], [0.3, 0.6, 0.2]]
    files = {**vla.folder.files, name: json.dumps(settings).encode()}
    other = replace(vla, folder=Folder(vla.folder.path, files))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (77, 101, 3), np.uint8))
    framed = ImageOps.expand(picture, (0, 12), (76, 153, 51))
    assert framed.size == (101, 101)
    odd = Image.fromarray(np.asarray(picture)[:76])
    framed_odd = ImageOps.expand(odd, (0, 12), (76, 153, 51))
    assert framed_odd.size == (101, 100), "25 pixels cannot be halved: the last is left out"
    for given, bordered in ((picture, framed), (odd, framed_odd)):
        pixels = other.pixel_values([np.asarray(given)])
        resized = np.asarray(bordered.resize(vla.image_size, Image.Resampling.BICUBIC))
        expected = torch.from_numpy(resized).permute(2, 0, 1) / 255
        deviations = torch.tensor(settings["stds"][1]).view(3, 1, 1)
        means = torch.tensor(settings["means"][1]).view(3, 1, 1)
        assert difference(pixels[0, 3:], (expected - means) / deviations) < 1e-6


def with_one_tower(folder: Path) -> Path:
    """The checkpoint without its second tower, and with the smaller projector that belongs to it."""
    folder.mkdir()
    for file in CHECKPOINT.iterdir():
        if file.suffix == ".json" and "index" not in file.name:
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | {"use_fused_vision_backbone": False}
    (folder / "config.json").write_text(json.dumps(config))
    name = folder / "preprocessor_config.json"
    settings = json.loads(name.read_text())
    settings |= {key: settings[key][:1] for key in ("means", "stds", "input_sizes", "interpolations")}
    name.write_text(json.dumps(settings))
    tensors = {
        key: tensor for file in CHECKPOINT.glob("*.safetensors") for key, tensor in load_file(file).items()
    }
    kept = {
        key: tensor for key, tensor in tensors.items() if not key.startswith(("vision_backbone.f", "proj"))
    }
    kept |= {key: tensor for key, tensor in tensors.items() if key.startswith("vision_backbone.featurizer")}
    width, hidden = config["timm_model_args"][0]["embed_dim"], config["text_config"]["hidden_size"]
    random = torch.Generator().manual_seed(0)
    for layer, before in (("fc1", width), ("fc2", hidden)):
        kept[f"projector.{layer}.weight"] = torch.randn(hidden, before, generator=random)
        kept[f"projector.{layer}.bias"] = torch.randn(hidden, generator=random)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


@torch.no_grad()
def test_a_model_with_one_tower_has_three_channels_and_two_layers_behind_them(tmp_path: Path) -> None:
    vla = load_vla(with_one_tower(tmp_path / "one"))
    assert isinstance(vla, OpenVLA)
    pixels = vla.pixel_values([GOLDEN["s0/image"].numpy()])
    assert torch.equal(pixels, GOLDEN["s0/pixel_values"][:, :3])
    tokens = vla.look(pixels)
    assert difference(tokens, GOLDEN["s0/dino_features"]) < 1e-5
    assert vla.constant and set(vla.constant) <= set(vla.tower[0].modules())
    first, second = vla.projector[0].children()
    assert torch.equal(vla.image_words(tokens, None), second(functional.gelu(first(tokens))))
    ids = prompt(vla, "s0")
    copy = load_vla(vla.save(tmp_path / "copy"))
    assert isinstance(copy, OpenVLA)
    assert torch.equal(logits(copy, see(copy, "s0"), ids), logits(vla, see(vla, "s0"), ids))


@pytest.mark.parametrize(
    ("given", "count"), [({}, 5), ({"no_embed_class": True}, 0), ({"class_token": False}, 4)]
)
def test_tokens_before_the_patches_have_positions_unless_told_not_to(
    given: dict[str, Any], count: int
) -> None:
    size = {"embed_dim": 8, "depth": 2, "num_heads": 2, "reg_tokens": 4, **given}
    tower = VisionTower(size, 28)
    assert tower.pos_embed.shape == (1, count + 4, 8)
    with torch.no_grad():
        tower.pos_embed.copy_(torch.randn(tower.pos_embed.shape))
        before = tower(torch.zeros(1, 3, 28, 28))
        tower.pos_embed[:, : count or None].zero_()
        assert before.shape == (1, 4, 8)
        assert not torch.equal(tower(torch.zeros(1, 3, 28, 28)), before)


def test_the_prompt_is_theirs_with_the_space_that_an_action_follows(vla: OpenVLA, sample: str) -> None:
    ids = prompt(vla, sample)
    assert torch.equal(with_places(vla, GOLDEN[f"{sample}/prompt_ids"], vla.image_id), ids)


@torch.no_grad()
def test_towers_and_image_words_are_theirs(vla: OpenVLA, sample: str) -> None:
    tokens = vla.look(GOLDEN[f"{sample}/pixel_values"])
    theirs = [GOLDEN[f"{sample}/{name}_features"] for name in ("dino", "siglip")]
    assert difference(tokens, torch.cat(theirs, -1)) < 1e-5
    assert difference(vla.image_words(tokens, None), GOLDEN[f"{sample}/projected"]) < 1e-5


@torch.no_grad()
def test_logits_of_a_prompt_are_theirs(vla: OpenVLA, sample: str) -> None:
    found = logits(vla, see(vla, sample), prompt(vla, sample))
    actions = slice(vla.first_action, vla.first_action + vla.bins.words)
    assert difference(found[..., actions], GOLDEN[f"{sample}/logits_action_range"]) < 1e-4
    assert difference(found.logsumexp(-1), GOLDEN[f"{sample}/logits_lse"]) < 1e-4
    assert torch.equal(found.argmax(-1), GOLDEN[f"{sample}/argmax"])


@torch.no_grad()
@pytest.mark.parametrize("part", ["act", "text", "textact"])
def test_losses_of_each_word_are_theirs(vla: OpenVLA, sample: str, part: str) -> None:
    ids = with_places(vla, GOLDEN[f"{sample}/{part}/input_ids"], vla.image_id)
    labels = with_places(vla, GOLDEN[f"{sample}/{part}/labels"], -100)
    losses = nll(logits(vla, see(vla, sample), ids), labels)
    assert difference(losses, GOLDEN[f"{sample}/{part}/nll"]) < 1e-4
    assert difference(losses.mean()[None], GOLDEN[f"{sample}/{part}/loss"]) < 1e-5


@torch.no_grad()
def test_attention_is_theirs(vla: OpenVLA) -> None:
    ids = prompt(vla, "s0")
    positions = torch.arange(ids.shape[1])[None]
    words = embed(vla, ids, see(vla, "s0"))
    masks = masks_of(vla, words, None, None, positions)
    rows: list[Tensor] = []
    hooks = [
        layer.self_attn.register_forward_hook(lambda _, __, out: rows.append(out[1])) for layer in vla.layers
    ]
    run_layers(vla, words, masks, positions)
    for hook in hooks:
        hook.remove()
    assert difference(torch.cat(rows), GOLDEN["s0/attentions"]) < 1e-5


def test_gradients_are_theirs_and_the_towers_last_blocks_get_none(vla: OpenVLA) -> None:
    vla.model.zero_grad(set_to_none=True)
    ids = with_places(vla, GOLDEN["s0/act/input_ids"], vla.image_id)
    labels = with_places(vla, GOLDEN["s0/act/labels"], -100)
    nll(logits(vla, see(vla, "s0"), ids), labels).mean().backward()
    gradients = {name: parameter.grad for name, parameter in vla.model.named_parameters()}
    keys = [key for key in GOLDEN if key.startswith("grad/")]
    assert len(keys) == 6
    for key in keys:
        ours = gradients[key[5:]]
        assert ours is not None
        assert difference(ours, GOLDEN[key]) < 1e-5, key
    without = {name for name, gradient in gradients.items() if gradient is None}
    assert without == set(FACTS["parameters_without_gradient"])
    vla.model.zero_grad(set_to_none=True)


@torch.no_grad()
@pytest.mark.parametrize("cached", [True, False])
def test_greedy_words_are_theirs_with_and_without_a_cache(vla: OpenVLA, sample: str, cached: bool) -> None:
    ids, picture = prompt(vla, sample), see(vla, sample)
    theirs = GOLDEN[f"{sample}/generated"][0].tolist()
    said: list[int] = []
    length, cache = ids.shape[1], DynamicCache(config=vla.decoder.config)
    for _ in theirs:
        whole = torch.cat([ids, torch.tensor([said], dtype=torch.int64)], 1)
        start = length + len(said) - 1 if cached and said else 0
        words = embed(vla, whole[:, start:], picture if start == 0 else None)
        positions = torch.arange(start, whole.shape[1])[None]
        masks = masks_of(vla, words, None, None, positions, cache if cached else None)
        states = run_layers(vla, words, masks, positions, cache=cache if cached else None)
        said.append(int(logits_of(vla, vla.decoder.norm(states[:, -1:])).argmax()))
    assert said == theirs


def test_actions_of_every_dataset_are_theirs(sample: str) -> None:
    for key in FACTS["statistics_keys"]:
        vla = load_vla(CHECKPOINT, dataset=key)
        words = GOLDEN[f"{sample}/generated"][0, : len(vla.bins.ranges)].numpy() - vla.first_action
        np.testing.assert_array_equal(vla.bins.decode(words), GOLDEN[f"{sample}/predict/{key}"].numpy())


def test_the_action_table_is_theirs(vla: OpenVLA) -> None:
    bins: Any = vla.bins
    ids = GOLDEN["tok/ids"].numpy() - vla.first_action
    np.testing.assert_array_equal(bins.encode_normalised(GOLDEN["tok/actions"].numpy()), ids)
    np.testing.assert_array_equal(bins.decode_normalised(ids), GOLDEN["tok/decoded"].numpy())
    every = GOLDEN["tok/all_ids"].numpy() - vla.first_action
    np.testing.assert_array_equal(bins.decode_normalised(every), GOLDEN["tok/all_decoded"].numpy())


@torch.no_grad()
def test_a_padded_batch_has_their_loss(vla: OpenVLA) -> None:
    ids = with_places(vla, GOLDEN["batch/input_ids"], vla.image_id)
    labels = with_places(vla, GOLDEN["batch/labels"], -100)
    seen = with_places(vla, GOLDEN["batch/attention_mask"].long(), 1)
    picture = torch.cat([see(vla, sample) for sample in SAMPLES])
    loss = nll(logits(vla, picture, ids, seen), labels).mean()
    assert difference(loss[None], GOLDEN["batch/loss"]) < 1e-5


@torch.no_grad()
def test_half_precision_is_theirs(sample: str) -> None:
    vla = load_vla(CHECKPOINT, torch.bfloat16)
    assert isinstance(vla, OpenVLA)
    found = logits(vla, see(vla, sample), prompt(vla, sample))[:, -1]
    actions = slice(vla.first_action, vla.first_action + vla.bins.words)
    assert difference(found[:, actions], GOLDEN[f"{sample}/bf16_logits_action_range_last"]) < 0.05


def test_what_is_written_has_the_authors_names_and_is_read_back_equal(vla: OpenVLA, tmp_path: Path) -> None:
    copy = load_vla(vla.save(tmp_path / "copy"))
    assert isinstance(copy, OpenVLA)
    with torch.no_grad():
        assert torch.equal(
            logits(copy, see(copy, "s0"), prompt(copy, "s0")), logits(vla, see(vla, "s0"), prompt(vla, "s0"))
        )
    names = {name for file in CHECKPOINT.glob("*.safetensors") for name in load_file(file)}
    assert set(load_file(tmp_path / "copy" / "model.safetensors")) == names


def test_every_tensor_of_the_real_size_has_a_place() -> None:
    real = json.loads((FOLDER / "real_keys_openvla.json").read_text())
    with torch.device("meta"):
        model = OpenVLAModel(OpenVLAConfig(**REAL_OPENVLA))
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == real["shapes"]
    assert len(shapes) == 982
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_541_237_184


def test_an_unknown_dataset_is_said_with_the_known_ones() -> None:
    with pytest.raises(KitError, match="bridge_orig"):
        load_vla(CHECKPOINT, dataset="droid")


def test_pickled_weights_are_never_opened(tmp_path: Path) -> None:
    for file in (file for file in CHECKPOINT.glob("*.json") if "index" not in file.name):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(KitError, match="convert them to safetensors"):
        load_vla(tmp_path)
