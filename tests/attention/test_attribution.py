"""Each method against its own definition, computed another way, and against pictures of known answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from refinevla_kit.attention.attribution import METHODS, Attribution, ask, attribute, filling, masked
from refinevla_kit.attention.captured import KINDS
from refinevla_kit.attention.flows import Question, fuse_top
from refinevla_kit.attention.forward import capture
from refinevla_kit.errors import KitError
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.rollouts.players import DemonstratorPolicy
from refinevla_kit.simulator.contract import Array, Observation
from refinevla_kit.vlas.compact_parts import first_action_id
from refinevla_kit.vlas.random_start import random_openvla, small_openvla
from refinevla_kit.vlas.sequence import ORDERS
from tests.training.launched import noise
from tests.vlas.paligemma import features

from .conftest import INSTRUCTION, small_policy

OWN = np.linspace(0, 1, 15, dtype=np.float32)
GREY = (120, 120, 120)


@pytest.fixture(scope="module")
def reader() -> VLAPolicy:
    """Reads its own state, so that there is a sink to leave out."""
    return small_policy(proprioception=True)


@pytest.fixture
def seen(image: Array) -> Observation:
    return Observation(image, OWN, INSTRUCTION)


def squares(asked: Question) -> tuple[Tensor, ...]:
    """transformers' own attention, with its graph; features cut off, as they are no part of the methods."""
    vla = asked.policy.vla
    ids = torch.tensor([asked.sequence.ids])
    types = (torch.arange(ids.shape[1]) >= asked.sequence.prefix).long()[None]
    out = vla.model.model(
        input_ids=ids,
        token_type_ids=types,
        mm_encoder_outputs=features(asked.words(asked.pixels())),
        output_attentions=True,
    )
    return tuple(out.attentions)


def test_the_score_is_the_policys_own_log_probability(reader: VLAPolicy, seen: Observation) -> None:
    action = reader.act_batch(seen.image[None], [INSTRUCTION], OWN[None])[0]
    for i, name in enumerate(reader.vla.bins.names):
        asked = ask(reader, seen, name)
        with torch.no_grad():
            assert float(asked.score(asked.pixels())[0]) == pytest.approx(
                float(action.log_probability[i]), abs=1e-5
            )


@pytest.mark.parametrize("order", ORDERS)
def test_a_words_score_is_that_of_all_its_tokens(order: str, seen: Observation) -> None:
    policy = small_policy(order=order, proprioception=True)
    found = capture(
        policy, seen.image, INSTRUCTION, rationale="carrot is unhurried", proprioception=OWN, queries=KINDS
    )
    word = next(query for query in found.queries if query.label == "unhurried")
    asked = ask(policy, seen, word, rationale="carrot is unhurried")
    vla, laid = policy.vla, asked.sequence
    with torch.no_grad():
        words = asked.words(asked.pixels())
        types = (torch.arange(len(laid.ids)) >= laid.prefix).long()[None]
        logits = (
            vla.model(
                input_ids=torch.tensor([laid.ids]), token_type_ids=types, mm_encoder_outputs=features(words)
            )
            .logits[0]
            .log_softmax(-1)
        )
        whole = sum(
            float(logits[position, token])
            for position, token in zip(word.positions, word.tokens, strict=True)
        )
        assert len(word.tokens) > 1 and float(asked.score_words(words)[0]) == pytest.approx(whole, abs=1e-4)


def test_attention_methods_are_the_captured_rows(reader: VLAPolicy, seen: Observation) -> None:
    found = capture(reader, seen.image, INSTRUCTION, proprioception=OWN, queries=("action", "instruction"))
    np.testing.assert_allclose(
        attribute(reader, seen, "yaw", "raw", layer=2, head=1).patch_map, found.map(2, 5, 1), atol=1e-6
    )
    np.testing.assert_allclose(
        attribute(reader, seen, "yaw", "head_mean").patch_map, found.map(1, 5), atol=1e-6
    )
    word = attribute(
        reader, seen, found.queries[-1], "head_mean", layer=0
    )  # a word of the instruction can be looked from, though not explained
    np.testing.assert_allclose(word.patch_map, found.map(0, len(found.queries) - 1), atol=1e-6)
    assert word.provenance["score"] is None and word.provenance["target"] == "plate"


def test_top_k_is_the_fusion_that_the_figures_draw(reader: VLAPolicy, seen: Observation) -> None:
    rows = capture(reader, seen.image, INSTRUCTION, proprioception=OWN).patches[
        :, :, :1
    ]  # layers, heads, 1, P
    np.testing.assert_allclose(
        attribute(reader, seen, "x", "top_k").patch_map.ravel(), fuse_top(rows, 3, first_layer=1), atol=1e-6
    )
    found = attribute(reader, seen, "x", "top_k", k=2, layers=[1])
    np.testing.assert_allclose(found.patch_map.ravel(), fuse_top(rows[1:2], 2), atol=1e-6)
    assert (found.provenance["k"], found.provenance["layers"]) == (2, [1])


def test_rollout_is_the_product_of_the_layers(reader: VLAPolicy, seen: Observation) -> None:
    asked = ask(reader, seen, "z")
    flow = np.eye(len(asked.sequence.ids))
    for weights in squares(asked):
        flow = (0.5 * weights[0].mean(0).detach().double().numpy() + 0.5 * np.eye(len(flow))) @ flow
    row = flow[asked.query.positions[0]]
    found = attribute(reader, seen, "z", "rollout")
    np.testing.assert_allclose(found.patch_map.ravel(), row[:48], atol=1e-6)
    assert row.sum() == pytest.approx(1) and found.provenance["image_share"] == pytest.approx(
        row[:48].sum(), abs=1e-5
    )


def test_relevance_is_chefers_rule(reader: VLAPolicy, seen: Observation) -> None:
    asked = ask(reader, seen, "gripper")
    vla, token, first = reader.vla, asked.query.tokens[0], first_action_id(reader.vla.tokenizer)
    types = (torch.arange(len(asked.sequence.ids)) >= asked.sequence.prefix).long()[None]
    words = features(asked.words(asked.pixels()))
    out = vla.model(
        input_ids=torch.tensor([asked.sequence.ids]),
        token_type_ids=types,
        mm_encoder_outputs=words,
        output_attentions=True,
    )
    chance = out.logits[0, asked.query.positions[0], first : first + 255].log_softmax(-1)[token - first]
    flow = np.eye(len(asked.sequence.ids))
    for layer, gradient in zip(out.attentions, torch.autograd.grad(chance, out.attentions), strict=True):
        flow = flow + (layer * gradient)[0].clamp(min=0).mean(0).detach().double().numpy() @ flow
    expected = flow[asked.query.positions[0], :48]
    np.testing.assert_allclose(
        attribute(reader, seen, "gripper", "relevance").patch_map.ravel(), expected, rtol=1e-3, atol=1e-9
    )


@pytest.mark.parametrize("method", ["head_mean", "rollout", "relevance"])
def test_sinks_can_be_left_out_and_are_always_told(reader: VLAPolicy, seen: Observation, method: str) -> None:
    whole, without = (
        attribute(reader, seen, "x", method, exclude=names) for names in ((), ("state", "newline"))
    )
    assert (
        0 < whole.provenance["sinks"]["state"] < 1
        and without.provenance["sinks"].keys() == whole.provenance["sinks"].keys()
    )
    assert whole.provenance["sinks"]["bos"] == 0, "the compact VLA has none"
    assert without.provenance["image_share"] > whole.provenance["image_share"]
    with pytest.raises(KitError, match="unknown sink 'sky'"):
        attribute(reader, seen, "x", method, exclude=["sky"])


def test_leaving_a_sink_out_divides_its_share_among_the_rest(reader: VLAPolicy, seen: Observation) -> None:
    whole, without = (
        attribute(reader, seen, "x", "raw", head=1, exclude=names) for names in ((), ("state",))
    )
    np.testing.assert_allclose(without.patch_map, whole.patch_map / (1 - whole.provenance["sinks"]["state"]))


def test_integrated_gradients_account_for_the_whole_difference(reader: VLAPolicy, seen: Observation) -> None:
    found = attribute(reader, seen, "x", "integrated_gradients", part="signed", steps=64)
    asked = ask(reader, seen, "x")
    with torch.no_grad():
        difference = float(
            asked.score(asked.pixels())[0] - asked.score(asked.pixels(filling(seen.image, "blur")))[0]
        )
    assert (
        found.patch_map.sum() == pytest.approx(difference, abs=0.02)
        and abs(found.provenance["residual"]) < 0.02
    )
    assert found.pixel_map.shape == (120, 160) and found.pixel_map.sum() == pytest.approx(
        found.patch_map.sum()
    )


def test_occlusion_is_what_filling_a_patch_does(reader: VLAPolicy, seen: Observation) -> None:
    found = attribute(reader, seen, "y", "occlusion", part="signed", fill="mean").patch_map
    asked, mask = ask(reader, seen, "y"), np.zeros((120, 160), bool)
    mask[40:60, 100:120] = True  # patch (2, 5)
    with torch.no_grad():
        fall = float(asked.score(asked.pixels())[0] - asked.score(asked.pixels(masked(seen.image, mask)))[0])
    assert found[2, 5] == pytest.approx(fall, abs=1e-5)
    assert found.min() < 0 < found.max()
    np.testing.assert_array_equal(
        attribute(reader, seen, "y", "occlusion").patch_map, np.clip(found, 0, None)
    )
    np.testing.assert_array_equal(
        attribute(reader, seen, "y", "occlusion", part="absolute").patch_map, np.abs(found)
    )


def test_grad_cam_weights_the_towers_channels_by_their_gradient(reader: VLAPolicy, seen: Observation) -> None:
    asked, tower = ask(reader, seen, "x"), reader.vla.model.model.vision_tower
    kept: list[Tensor] = []
    handle = tower.stages.register_forward_hook(lambda _, __, output: kept.append(output))
    reached = asked.score(asked.pixels())[0]
    handle.remove()
    weight = torch.autograd.grad(reached, kept[0])[0][0].mean((1, 2))  # channels
    expected = (weight[:, None, None] * kept[0][0]).sum(0).detach()
    np.testing.assert_allclose(
        attribute(reader, seen, "x", "grad_cam", part="signed").patch_map, expected, rtol=1e-3, atol=1e-7
    )


def test_occlusion_hides_a_patch_from_both_towers_of_openvla(seen: Observation) -> None:
    """Their pictures lie in channels of one array, three each."""
    examples = noise(4)
    vla = random_openvla(small_openvla(), [*examples.instructions, INSTRUCTION], examples.actions)
    policy, name = VLAPolicy(vla, "openvla", "abc"), vla.word_names[1]
    found = attribute(policy, seen, name, "occlusion", part="signed", fill="mean").patch_map
    asked, (rows, columns) = ask(policy, seen, name), vla.grid
    plain, filled = asked.pixels(), asked.pixels(filling(seen.image, "mean"))
    assert plain.shape[1] == 6
    hidden, height, width = plain.clone(), plain.shape[2] // rows, plain.shape[3] // columns
    patch = np.s_[:, :, height : 2 * height, width : 2 * width]
    hidden[patch] = filled[patch]
    with torch.no_grad():
        fall = float(asked.score(plain)[0] - asked.score(hidden)[0])
    assert found[1, 1] == pytest.approx(fall, abs=1e-5) and abs(fall) > 1e-4


@pytest.mark.parametrize(("height", "width"), [(120, 160), (240, 320), (96, 200), (330, 150)])
@pytest.mark.parametrize("method", ["occlusion", "integrated_gradients"])
def test_the_only_thing_in_a_picture_is_found_where_it_is(
    reader: VLAPolicy, method: str, height: int, width: int
) -> None:
    """A grey picture, filled with the same grey, but for one patch: nothing else can matter, at any size and
    aspect ratio.
    """
    row, column = 4, 6
    top, bottom, left, right = (
        height * row // 6,
        height * (row + 1) // 6,
        -(-width * column // 8),
        width * (column + 1) // 8,
    )  # within the patch
    image = np.full((height, width, 3), GREY, np.uint8)
    image[top:bottom, left:right] = np.random.default_rng(0).integers(0, 255, 3)
    found = attribute(reader, Observation(image, OWN, INSTRUCTION), "x", method, part="absolute", fill=GREY)
    assert np.unravel_index(found.patch_map.argmax(), (6, 8)) == (row, column)
    elsewhere = np.ones((6, 8), bool)
    elsewhere[row, column] = False
    assert found.patch_map[elsewhere].max() < 1e-6
    outside = np.ones((height, width), bool)
    outside[top - 1 : bottom + 1, left - 1 : right + 1] = False
    assert (
        found.pixel_map.shape == (height, width)
        and found.pixel_map[outside].max() < 1e-6 < found.pixel_map.max()
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_says_where_it_comes_from(reader: VLAPolicy, seen: Observation, method: str) -> None:
    found = attribute(
        reader, seen, "roll", method, **({"steps": 4} if method == "integrated_gradients" else {})
    )
    assert (
        isinstance(found, Attribution)
        and found.patch_map.shape == (6, 8)
        and found.pixel_map.shape == (120, 160)
    )
    assert (found.patch_map >= 0).all() and np.isfinite(found.pixel_map).all()
    provenance = found.provenance
    assert (provenance["method"], provenance["target"], provenance["checkpoint_hash"]) == (
        method,
        "roll",
        "hash-0+decoding=greedy",
    )
    assert provenance["score"] < 0
    assert all(parameter.grad is None for parameter in reader.vla.model.parameters())


def test_what_cannot_be_done_is_said(reader: VLAPolicy, seen: Observation) -> None:
    words = capture(reader, seen.image, INSTRUCTION, proprioception=OWN, queries=("instruction",)).queries
    before = [len(layer.self_attn._forward_hooks) for layer in reader.vla.model.model.language_model.layers]
    for arguments, says in (
        ((seen, "x", "magic"), "unknown method 'magic'"),
        ((seen, "w"), "has no w"),
        ((seen, words[0], "relevance"), "does not say 'put'"),
    ):
        with pytest.raises(KitError, match=says):
            attribute(reader, *arguments)
    with pytest.raises(KitError, match="unknown occlusion option 'layer'"):
        attribute(reader, seen, "x", "occlusion", layer=1)
    with pytest.raises(KitError, match="layer is 3"):
        attribute(reader, seen, "x", "raw", layer=3)
    with pytest.raises(KitError, match="the 0 strongest of 4 attention maps -> choose 1 to 4"):
        attribute(reader, seen, "x", "top_k", k=0)
    with pytest.raises(KitError, match="unknown fill 'sand'"):
        attribute(reader, seen, "x", "occlusion", fill="sand")
    with pytest.raises(KitError, match="no attention"):
        attribute(DemonstratorPolicy(), seen, "x")  # type: ignore[arg-type]
    assert [
        len(layer.self_attn._forward_hooks) for layer in reader.vla.model.model.language_model.layers
    ] == before


def test_what_few_heads_look_at_stays_visible() -> None:
    patches = np.full((2, 4, 3, 10), 0.1)
    patches[1, 2, 0] = 0
    patches[1, 2, 0, 7] = 1  # one map of 24 looks at one patch alone
    fused = fuse_top(patches, k=1)
    assert (
        fused.argmax() == 7
        and fused[7] == pytest.approx(1 / (1 + 9 * 0.1))
        and fused.sum() == pytest.approx(1)
    )
    assert fuse_top(patches, k=24)[7] == pytest.approx((1 + 23 * 0.1) / 24), "all of them: the mean"


def test_what_goes_to_words_does_not_weigh_and_lower_layers_can_be_left_out() -> None:
    rng = np.random.default_rng(0)
    patches = rng.random((2, 2, 1, 6))
    patches[0] *= 0.01
    np.testing.assert_allclose(
        fuse_top(patches, 2), fuse_top(patches / patches.sum(-1, keepdims=True), 2), rtol=1e-5
    )
    np.testing.assert_allclose(fuse_top(patches, 2, first_layer=1), fuse_top(patches[1:], 2))
    with pytest.raises(KitError, match="the 3 strongest of 2 attention maps"):
        fuse_top(patches, 3, first_layer=1)
