"""Pictures whose answer is known, a policy that cannot see, and maps that cannot change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from refinevla_kit.attention.attribution import ask, attribute, filling, masked
from refinevla_kit.attention.captured import Frame
from refinevla_kit.attention.faithfulness import (
    COVER_COLUMNS,
    by_episode,
    cover,
    curves,
    sanity,
    summarise_cover,
)
from refinevla_kit.attention.forward import log_probabilities
from refinevla_kit.errors import KitError
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.simulator.contract import Array
from refinevla_kit.vlas.compact_parts import first_action_id

from .conftest import INSTRUCTION, scene, small_policy

GREY = (120, 120, 120)


@pytest.fixture(scope="module")
def blind() -> VLAPolicy:
    """Sees the same in every picture."""
    policy = small_policy(name="blind")
    torch.nn.init.zeros_(policy.vla.model.model.multi_modal_projector.linear.weight)
    return policy


def frame_of(image: Array, episode: int = 0, step: int = 0) -> Frame:
    return Frame(image, scene(episode), INSTRUCTION, "widowx_carrot_on_plate", episode, step, "grasp")


@pytest.fixture
def frame(image: Array) -> Frame:
    return frame_of(image)


def test_curves_run_from_the_whole_picture_to_none_of_it(policy: VLAPolicy, frame: Frame) -> None:
    found = curves(policy, frame, np.random.default_rng(0).random((6, 8)), steps=5, orders=2)
    action = policy.act_batch(frame.image[None], [INSTRUCTION])[0]
    asked, words = ask(policy, frame, "x", action), action.tokens - first_action_id(policy.vla.tokenizer)
    with torch.no_grad():
        hidden = asked.hidden(asked.words(asked.pixels(filling(frame.image))))
        nothing = sum(
            float(log_probabilities(policy, hidden, q)[0][0, w])
            for q, w in zip(asked.sequence.queries, words, strict=True)
        )
    np.testing.assert_allclose(
        [found.deletion[0], found.insertion[-1], found.random[0]],
        float(action.log_probability.sum()),
        atol=1e-4,
    )
    np.testing.assert_allclose([found.deletion[-1], found.insertion[0], found.random[-1]], nothing, atol=1e-4)
    np.testing.assert_allclose(found.fractions, np.array([0, 10, 19, 29, 38, 48]) / 48)


def test_the_only_patch_that_is_there_decides_everything(policy: VLAPolicy) -> None:
    """A grey picture but for one patch, filled with the same grey: a map that knows is done at once, its
    opposite at the very end.
    """
    image = np.full((120, 160, 3), GREY, np.uint8)
    image[40:60, 100:120] = (250, 20, 90)
    patches = np.zeros((6, 8))
    patches[2, 5] = 1
    knows, opposite = (
        curves(policy, frame_of(image), one, fill=GREY, steps=48, orders=3) for one in (patches, -patches)
    )
    whole, nothing = knows.deletion[0], knows.deletion[-1]
    assert abs(whole - nothing) > 1e-3
    np.testing.assert_allclose(knows.deletion[1:], nothing, atol=1e-4)
    np.testing.assert_allclose(knows.insertion[1:], whole, atol=1e-4)
    np.testing.assert_allclose(opposite.deletion[:-1], whole, atol=1e-4)
    sign = np.sign(whole - nothing)  # the patch may speak for the action or against it
    assert (
        sign * knows.deletion_gain > 0 > sign * opposite.deletion_gain
        and sign * knows.insertion_gain > 0 > sign * opposite.insertion_gain
    )


def test_an_action_not_taken_from_the_picture_does_not_move(
    blind: VLAPolicy, policy: VLAPolicy, frame: Frame
) -> None:
    table = cover(blind, [frame])
    assert table["total_variation"].max() < 1e-5 and table["action_change"].max() == 0
    found = curves(blind, frame, np.random.default_rng(0).random((6, 8)), steps=4)
    assert abs(found.deletion_gain) < 1e-4 and abs(found.insertion_gain) < 1e-4
    assert cover(policy, [frame])["total_variation"].max() > 1e-3


def test_covering_is_measured_between_the_two_distributions(policy: VLAPolicy, frame: Frame) -> None:
    table = cover(policy, [frame], covered=("target", "image"), fills=("blur",))
    assert tuple(table.columns) == COVER_COLUMNS and len(table) == 2 * 7
    whole = policy.act_batch(frame.image[None], [INSTRUCTION])[0]
    changed = policy.act_batch(masked(frame.image, frame.masks["target"], "blur")[None], [INSTRUCTION])[0]
    row = table.query("covered == 'target' and dimension == 'x'").iloc[0]
    assert row["action_change"] == pytest.approx(float(np.abs(changed.normalised - whole.normalised).mean()))
    assert row["area"] == pytest.approx(frame.masks["target"].mean()) and row["stage"] == "grasp"
    p = []
    with torch.no_grad():
        for image in (frame.image, filling(frame.image, "blur")):
            asked = ask(
                policy, Frame(image, frame.masks, INSTRUCTION, frame.task, 0, 0, "grasp"), "yaw", whole
            )
            hidden = asked.hidden(asked.words(asked.pixels()))
            p.append(log_probabilities(policy, hidden, asked.query)[0].exp().numpy())
    expected = 1 - np.minimum(*p).sum()  # what two distributions do not share
    assert table.query("covered == 'image' and dimension == 'yaw'")["total_variation"].iloc[
        0
    ] == pytest.approx(expected, abs=1e-5)


def test_cover_is_summarised_over_episodes(policy: VLAPolicy) -> None:
    random = np.random.default_rng(0)
    seen = [
        frame_of(random.integers(0, 255, (120, 160, 3), dtype=np.uint8), episode, step)
        for episode in range(2)
        for step in range(2)
    ]
    table = cover(policy, seen, covered=("source", "image"), fills=("mean",))
    found = summarise_cover(table).set_index("covered")
    assert found.loc["image", "area"] == 1 and (found["episodes"] == 2).all()
    by_hand = table.query("covered == 'source'").groupby("episode")["total_variation"].mean()
    assert found.loc["source", "total_variation"] == pytest.approx(by_hand.mean())
    assert found.loc["source", "low"] < found.loc["source", "total_variation"] < found.loc["source", "high"]
    each = [curves(policy, one, np.ones((6, 8)), steps=2, orders=1) for one in seen]
    means = by_episode(seen, each)
    assert len(means) == 2
    np.testing.assert_allclose(means[1].deletion, (each[2].deletion + each[3].deletion) / 2)


def test_a_thing_that_is_not_visible_is_not_covered(policy: VLAPolicy, image: Array) -> None:
    masks = scene() | {"source": np.zeros((120, 160), bool)}
    table = cover(
        policy,
        [Frame(image, masks, INSTRUCTION, "widowx_carrot_on_plate", 0, 0, "grasp")],
        covered=("source", "target"),
    )
    assert set(table["covered"]) == {"target"}


def test_a_map_changes_from_where_the_weights_do(policy: VLAPolicy, frame: Frame) -> None:
    """The lowest layer's attention is computed before anything above it, and cannot know what was shuffled
    there.
    """
    found = sanity(policy, [frame], "x", "head_mean", layer=0).set_index("shuffled")["correlation"]
    assert list(found.index) == ["layer 3", "layer 2", "layer 1", "tower"]
    assert found["layer 3"] == found["layer 2"] == pytest.approx(1.0) and abs(found["tower"]) < 0.9
    before = {name: value.clone() for name, value in policy.vla.model.state_dict().items()}
    moved = sanity(policy, [frame], "x", "relevance", seed=1)["correlation"]
    assert (moved < 0.99).all()
    assert all(torch.equal(value, before[name]) for name, value in policy.vla.model.state_dict().items()), (
        "the policy itself is untouched"
    )


def test_what_cannot_be_done_is_said(policy: VLAPolicy, frame: Frame) -> None:
    with pytest.raises(KitError, match=r"map of \(3, 4\) patches"):
        curves(policy, frame, np.ones((3, 4)))
    with pytest.raises(KitError, match="49 steps"):
        curves(policy, frame, np.ones((6, 8)), steps=49)
    with pytest.raises(KitError, match="unknown thing to cover 'sky'"):
        cover(policy, [frame], covered=("sky",))


def test_what_is_given_in_another_form_is_taken_or_said(policy: VLAPolicy, frame: Frame) -> None:
    found = attribute(policy, frame, "x", "head_mean")
    np.testing.assert_array_equal(
        curves(policy, frame, found, orders=1).deletion,
        curves(policy, frame, found.patch_map, orders=1).deletion,
    )
    assert len(cover(policy, frame)) == len(cover(policy, [frame]))
    bad = np.full(policy.vla.grid, np.nan)
    for call, says in (
        (lambda: curves(policy, frame, bad), "no numbers"),
        (lambda: cover(policy, [frame.image]), "ndarray has no masks"),
        (lambda: cover(object(), [frame]), "no attention that this can read"),
        (lambda: curves(object(), frame, bad), "no attention that this"),
        (lambda: attribute(policy, frame.image, "x"), "ndarray is no moment to ask about"),
    ):
        with pytest.raises(KitError, match=says):
            call()
