"""Blocked attention, patched states and probes tell a policy that follows the sentence from one that does
not; the same on the compact VLA and on tiny ones of the released kinds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from refinevla_kit.attention.captured import Frame
from refinevla_kit.attention.forward import forward_pass, query_score, token_sequence
from refinevla_kit.attention.grounding import over_episodes
from refinevla_kit.attention.interventions import (
    Knockout,
    bands,
    blocked,
    edit_rationales,
    edited,
    knock_out,
    layer_states,
    patch,
    probe,
)
from refinevla_kit.episodes import open_dataset
from refinevla_kit.errors import KitError
from refinevla_kit.policies.vla_policy import VLAPolicy, load_policy
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.simulator.contract import Array
from refinevla_kit.vlas.random_start import random_openvla, random_spatialvla, small_openvla, small_spatialvla
from refinevla_kit.vlas.sequence import (
    ACTION,
    IMAGE,
    INSTRUCTION,
    RATIONALE,
    ROLES,
    STATE,
    answer_ids,
    roles_of,
)
from tests.training.launched import noise

from .conftest import INSTRUCTION as CARROT
from .conftest import scene, small_policy

SPOON = "put spoon on towel"
COMPACT_BASE = REPOSITORY / "data" / "checkpoints" / "compact_base"
SWAPPED = "put plate on carrot"  # as many tokens, so that every other one stands where it did
MODELS = ("compact", "with_state", "spatialvla", "openvla")


def small(model: str) -> VLAPolicy:
    if model in ("compact", "with_state"):
        return small_policy(proprioception=model == "with_state")
    examples = noise(4)
    texts = [*examples.instructions, CARROT, SPOON]
    if model == "spatialvla":
        return VLAPolicy(random_spatialvla(small_spatialvla(layers=3), texts, examples.actions), model, "abc")
    return VLAPolicy(random_openvla(small_openvla(layers=3), texts, examples.actions), model, "abc")


@pytest.fixture(scope="module", params=MODELS)
def any_policy(request: pytest.FixtureRequest) -> VLAPolicy:
    return small(request.param)


def recorded(count: int) -> list[Frame]:
    """The tenth frame of as many demonstrations."""
    source = open_dataset(REPOSITORY / "data" / "demo")
    found = []
    for episode in source.episodes[:count]:
        image, state = source.images(episode.index)[10], source.proprioception(episode.index)[10]
        sentence = source.instructions(episode.index)[10]
        found.append(Frame(image, {}, sentence, episode.task, episode.index, 10, "reach", state))
    return found


def frames(count: int, instruction: str = CARROT) -> list[Frame]:
    rng = np.random.default_rng(3)
    state = np.zeros(15, np.float32)
    state[[3, 11]] = 1  # rotations that are none
    return [
        Frame(
            rng.integers(0, 255, (120, 160, 3), dtype=np.uint8),
            scene(number),
            instruction,
            "widowx_carrot_on_plate",
            number,
            0,
            "reach",
            state + np.float32(0.01 * number),
        )
        for number in range(count)
    ]


def deaf(policy: VLAPolicy) -> VLAPolicy:
    """One that no word of the instruction reaches."""
    return blocked(policy, *(Knockout(INSTRUCTION, by) for by in (IMAGE, STATE, ACTION)))


def said(policy: VLAPolicy, image: Array, instruction: str) -> Array:
    state = frames(1)[0].proprioception
    assert state is not None
    return np.asarray(policy.decide(image[None], [instruction], state[None])[0].log_probability)


def test_every_token_has_one_role(any_policy: VLAPolicy) -> None:
    vla = any_policy.vla
    prefix = vla.prefix_ids(CARROT)
    words = [vla.first_action + low for low, _ in vla.ranges]
    mark = [] if vla.marks.action is None else [vla.marks.action]
    ids = torch.tensor([[*prefix, *mark, *words]])
    roles = roles_of(vla, ids, len(prefix))
    assert tuple(roles) == ROLES
    counts = {role: int(found.sum()) for role, found in roles.items()}
    assert counts[IMAGE] + counts[STATE] == vla.image_tokens and counts[STATE] == vla.reads_state
    assert counts[ACTION] == len(mark) + len(words) and counts[RATIONALE] == 0
    assert (torch.stack([*roles.values()]).sum(0) == 1).all()


def test_nothing_of_a_picture_that_is_hidden_from_all_reaches_the_action(any_policy: VLAPolicy) -> None:
    first, second = (frame.image for frame in frames(2))
    assert not np.allclose(said(any_policy, first, CARROT), said(any_policy, second, CARROT))
    without = blocked(any_policy, *(Knockout(IMAGE, by) for by in (STATE, INSTRUCTION, ACTION)))
    np.testing.assert_allclose(said(without, first, CARROT), said(without, second, CARROT), atol=1e-6)


def test_a_policy_that_hears_nothing_says_the_same_to_every_sentence(any_policy: VLAPolicy) -> None:
    image = frames(1)[0].image
    assert not np.allclose(said(any_policy, image, CARROT), said(any_policy, image, SWAPPED), atol=1e-6)
    if any_policy.vla.marks.action is None:
        pytest.skip("its first word is said by the sentence's last token, which always sees itself")
    np.testing.assert_allclose(
        said(deaf(any_policy), image, CARROT), said(deaf(any_policy), image, SWAPPED), atol=1e-6
    )


def test_acting_under_a_knock_out_is_the_forward_pass_under_it(any_policy: VLAPolicy) -> None:
    frame = frames(1)[0]
    policy = blocked(any_policy, Knockout(IMAGE, ACTION, (1,)))
    vla, state = policy.vla, frame.proprioception
    assert state is not None
    action = policy.decide(frame.image[None], [CARROT], state[None])[0]
    sequence = token_sequence(policy, CARROT, action.tokens.tolist())
    with torch.inference_mode():
        words = vla.see(vla.pixel_values(frame.image[None]), vla.states(state[None]))
        passes = [forward_pass(each, words, [sequence]) for each in (policy, any_policy)]
        scores, plain = (
            [float(query_score(policy, hidden, query)) for query in sequence.queries] for hidden in passes
        )
    np.testing.assert_allclose(scores, action.log_probability, atol=1e-4)
    assert not np.allclose(scores, plain, atol=1e-6)


def test_rows_of_several_lengths_are_blocked_alike(any_policy: VLAPolicy) -> None:
    policy = blocked(any_policy, Knockout(INSTRUCTION, ACTION))
    images = np.stack([frame.image for frame in frames(2)])
    states = np.stack([frame.proprioception for frame in frames(2) if frame.proprioception is not None])
    together = policy.decide(images, [CARROT, "put the carrot on the plate and stop"], states)
    alone = policy.decide(images[:1], [CARROT], states[:1])
    np.testing.assert_allclose(together[0].log_probability, alone[0].log_probability, atol=1e-5)


@pytest.mark.parametrize("by", [IMAGE, INSTRUCTION])
def test_the_control_of_a_row_is_the_same_beside_others(by: str, any_policy: VLAPolicy) -> None:
    """A batch fills shorter sentences up; what fills them is never what the control hides."""
    policy = blocked(any_policy, Knockout(INSTRUCTION, by, (), 0))
    images = np.stack([frame.image for frame in frames(2)])
    states = np.stack([frame.proprioception for frame in frames(2) if frame.proprioception is not None])
    together = policy.decide(images, [CARROT, "put the carrot on the plate and stop there"], states)
    alone = policy.decide(images[:1], [CARROT], states[:1])
    np.testing.assert_allclose(together[0].log_probability, alone[0].log_probability, atol=1e-5)
    plain = any_policy.decide(images[:1], [CARROT], states[:1])
    hides_some = by == INSTRUCTION  # for the picture's readers there is nothing but the sentence to hide
    if hides_some:
        assert not np.allclose(alone[0].log_probability, plain[0].log_probability, atol=1e-6)


def test_a_first_word_that_cannot_be_told_from_the_text_is_not_blocked() -> None:
    """SpatialVLA has no token before its action: behind a rationale its first word follows like any other."""
    writer = VLAPolicy(small("spatialvla").vla, "writer", "abc", "rationale_first")
    with pytest.raises(KitError, match=r"no token that says where its action begins.*order='action_first'"):
        knock_out(writer, frames(1))
    assert blocked(writer, Knockout(IMAGE, RATIONALE)).changes


def test_records_say_what_was_blocked(policy: VLAPolicy) -> None:
    changed = blocked(policy, Knockout(IMAGE, ACTION, (0, 1)))
    assert changed.name == "small without image from action in 0,1"
    assert changed.checkpoint_hash == "hash-0+decoding=greedy+change=image from action in 0,1"
    assert blocked(policy).checkpoint_hash == policy.checkpoint_hash


def test_the_effect_is_in_nats_and_has_a_control(any_policy: VLAPolicy) -> None:
    table = knock_out(any_policy, frames(2), (IMAGE, INSTRUCTION, RATIONALE))
    assert set(table.read) == {IMAGE, INSTRUCTION}, "no rationale was written"
    assert set(table.layers) == {"0", "1", "2", "0-2"} and set(table.control) == {False, True}
    assert len(table) == 2 * 2 * 4 * 2 and (table.divergence >= 0).all()
    assert table[~table.control].divergence.max() > 0
    found = over_episodes(table, "divergence", ["read", "layers", "control"])
    assert (found.low <= found.divergence).all() and (found.episodes == 2).all()


def test_no_effect_of_a_sentence_that_is_not_heard(policy: VLAPolicy) -> None:
    table = knock_out(deaf(policy), frames(2), (INSTRUCTION,))
    np.testing.assert_allclose(table[~table.control].divergence, 0, atol=1e-6)
    np.testing.assert_allclose(patch(deaf(policy), frames(2), [SWAPPED] * 2).apart, 0, atol=1e-6)


def test_a_rationale_is_used_by_who_writes_first(image: Array) -> None:
    policy = small_policy(order="rationale_first")
    table = knock_out(policy, frames(1), (RATIONALE,), layers=[(0, 1, 2)])
    assert list(table.control) == [False, True] and table.divergence[0] > 0


def test_the_whole_sentence_given_at_the_start_says_all(any_policy: VLAPolicy) -> None:
    longer = "put the carrot on the plate"
    for given, other in ((CARROT, SPOON), (longer, SPOON)):
        table = patch(any_policy, frames(2, given), [other] * 2)
        assert set(table.place) <= {IMAGE, STATE, INSTRUCTION, ACTION}
        start = table[(table.layer == 0) & ~table.control].groupby("place").recovered.mean()
        assert start[IMAGE] == pytest.approx(0, abs=1e-4), "the picture is the same in both runs"
        lengths = {len(any_policy.vla.prefix_ids(text)) for text in (given, other)}
        if len(lengths) == 1:
            assert start[INSTRUCTION] == pytest.approx(1, abs=1e-4)
        assert not table.control.any(), "there is no third sentence"


def test_a_third_sentence_is_the_control(policy: VLAPolicy) -> None:
    table = patch(policy, [*frames(2), *frames(1, SPOON)], [SWAPPED] * 3, (INSTRUCTION,), [0])
    assert list(table.control) == [False, True] * 3
    own, third = (table[table.control == control].recovered.mean() for control in (False, True))
    assert own > third


def test_probes_read_what_is_there_and_nothing_from_shuffled_labels(policy: VLAPolicy) -> None:
    rng = np.random.default_rng(0)
    labels = np.array(["carrot", "spoon"])[rng.integers(0, 2, 200)]
    states = rng.normal(size=(200, 2, 12)).astype(np.float32)
    states[:, 1, 3] += 4 * (labels == "spoon")  # told by layer 1 alone
    table = probe(states, labels, np.arange(200) // 10).set_index(["layer", "control"])
    assert table.accuracy[1, False] > 0.9 and table.high[0, False] < 0.75
    assert table.high[1, True] < 0.75 and (table.episodes == 20).all()
    found = layer_states(policy, frames(2))
    assert found.shape == (2, 3, 32) and np.isfinite(found).all()


TEXT = "Observation: The carrot is left of the plate.\nPlan: Reach over the carrot, going down."


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        ("object", "Observation: The spoon is left of the plate.\nPlan: Reach over the spoon, going down."),
        (
            "direction",
            "Observation: The carrot is right of the plate.\nPlan: Reach over the carrot, going up.",
        ),
        ("order", "Plan: Reach over the carrot, going down.\nObservation: The carrot is left of the plate."),
        ("empty", ""),
    ],
)
def test_an_edit_changes_what_its_name_says(edit: str, expected: str) -> None:
    own, other = "put the carrot on the plate", "put the spoon on the plate"
    assert edited(TEXT, edit, own, other, np.random.default_rng(0)) == expected


def test_an_edit_takes_capitals_and_any_other_sentence() -> None:
    rng = np.random.default_rng(0)
    assert edited("Left of it. Go up.", "direction", "", "", rng) == "Right of it. Go down."
    assert edited("the can", "object", "take the can", r"take the \d", rng) == r"the \d"


def test_noise_has_the_same_words_in_other_places() -> None:
    noisy = edited(TEXT, "noise", "", "", np.random.default_rng(0))
    assert sorted(noisy.split()) == sorted(TEXT.split()) and noisy.split() != TEXT.split()
    assert noisy == edited(TEXT, "noise", "", "", np.random.default_rng(0))


def test_an_edited_rationale_moves_who_acts_on_it_and_nobody_who_does_not_read_it() -> None:
    """The shipped base, which can write and was taught to act on what it wrote."""
    policy = load_policy(COMPACT_BASE, order="rationale_first")
    shown = recorded(2)
    others = ["put the spoon on the plate"] * 2
    table = edit_rationales(policy, shown, others, ("direction", "empty"))
    assert list(table.edit) == ["direction"] * 2 + ["empty"] + ["direction"] * 2 + ["empty"]
    assert (table.divergence > 0).all() and (table.words > 0).all()
    unread = edit_rationales(blocked(policy, Knockout(RATIONALE)), shown, others, ("direction",))
    np.testing.assert_allclose(unread[~unread.control].divergence, 0, atol=1e-5)
    same = [frame.instruction for frame in shown]
    assert edit_rationales(policy, shown, same, ("object",)).empty, "no text has anything to exchange"


def test_the_control_scrambles_as_many_words_as_an_edit_changes() -> None:
    """Behind a name of two words for one of one, every word of the text stands in another place."""
    policy = load_policy(COMPACT_BASE, order="rationale_first")
    frame = next(frame for frame in recorded(12) if "carrot" in frame.instruction)
    (action,) = policy.decide(frame.image[None], [frame.instruction], frame.proprioception[None])
    names = action.rationale.count("carrot")
    for other, each in (("spoon", 1), ("green block", 2)):
        table = edit_rationales(policy, [frame], [frame.instruction.replace("carrot", other)], ("object",))
        assert table.words.tolist() == [each * names] * 2 and names > 2


def test_a_text_left_out_is_what_a_policy_acts_on_that_is_told_none() -> None:
    policy = load_policy(COMPACT_BASE, order="rationale_first")
    (frame,) = recorded(1)
    given = frame.image[None], [frame.instruction], frame.proprioception[None]
    (own,) = policy.decide(*given)
    (silent,) = policy.decide(*given, rationales=[""])
    laid = [token_sequence(policy, frame.instruction, silent.tokens.tolist(), said) for said in (None, "")]
    ids, _ = answer_ids(policy.vla, silent.tokens.tolist(), "", policy.order)
    assert list(laid[0].ids) == [*policy.vla.prefix_ids(frame.instruction), *ids][: len(laid[0].ids)]
    assert len(laid[1].ids) == len(laid[0].ids) + 1, "a policy that wrote nothing had the mark before it"
    scores = []
    for one in laid:
        words = policy.vla.see(policy.vla.pixel_values(given[0]), policy.vla.states(given[2]))
        with torch.no_grad():
            hidden = forward_pass(policy, words, [one])
            scores.append(float(query_score(policy, hidden, one.queries[0])[0]))
    assert scores[0] == pytest.approx(float(silent.log_probability[0]), abs=1e-4)
    assert own.rationale and abs(scores[1] - scores[0]) > 1e-3


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda policy: Knockout("picture"), "unknown role 'picture' -> choose one of image, state"),
        (lambda policy: blocked(policy, Knockout(IMAGE, layers=(7,))), "layer of small .* 7"),
        (lambda policy: bands(policy, 9), "bands .* 9"),
        (lambda policy: knock_out(policy, frames(1), layers=[(99,)]), "layer of small .* 99"),
        (lambda policy: knock_out(policy, frames(1), read="image"), "unknown role 'i'"),
        (lambda policy: patch(policy, frames(1), [SPOON], layers=[-1]), "layer .* -1"),
        (lambda policy: patch(policy, frames(1), [SPOON], ["hand"]), "unknown role 'hand'"),
        (lambda policy: layer_states(policy, frames(1), "hand"), "unknown role 'hand'"),
        (lambda policy: probe(np.zeros((4, 1, 2)), ["a", "b"] * 2, range(4), 1), "folds is 1"),
        (lambda policy: probe(np.zeros((0, 1, 2)), [], []), "0 episodes with 0 labels"),
        (lambda policy: patch(policy, frames(2), [SPOON]), "1 other instructions for 2 frames"),
        (lambda policy: probe(np.zeros((4, 1, 2)), ["a"] * 4, range(4)), "4 episodes with 1 labels"),
        (lambda policy: layer_states(policy, frames(1), STATE), "small has no token of the state"),
        (lambda policy: knock_out(object(), frames(1)), "has no attention"),
        (lambda policy: edit_rationales(policy, frames(1), [SPOON]), "small acts before its rationale"),
        (
            lambda policy: edit_rationales(
                VLAPolicy(policy.vla, "writer", "abc", "rationale_first"), frames(2), [SPOON]
            ),
            "1 other instructions for 2 frames",
        ),
        (lambda _: edited("a", "verb", "", "", np.random.default_rng(0)), "unknown edit 'verb' -> choose"),
    ],
)
def test_what_cannot_be_is_said(policy: VLAPolicy, what: object, message: str) -> None:
    assert callable(what)
    with pytest.raises(KitError, match=message):
        what(policy)


def test_bands_cover_all_layers(policy: VLAPolicy) -> None:
    found: Sequence[tuple[int, ...]] = bands(policy, 2)
    assert found == [(0, 1), (2,), (0, 1, 2)] and bands(policy, 1) == [(0, 1, 2)]
