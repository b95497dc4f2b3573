"""SpatialVLA and OpenVLA through the kit's own training and acting, on tiny checkpoints in their layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from refinevla_kit.attention import capture
from refinevla_kit.attention.attribution import METHODS, attribute
from refinevla_kit.attention.captured import Frame
from refinevla_kit.attention.forward import forward_pass, token_sequence, watching
from refinevla_kit.conventions import ROBOT_CONVENTIONS
from refinevla_kit.errors import KitError
from refinevla_kit.evaluation import evaluate, load_records
from refinevla_kit.policies import load_policy
from refinevla_kit.policies.conversion import ActionConversion
from refinevla_kit.policies.vla_policy import VLAPolicy, averaged
from refinevla_kit.training.examples import Examples
from refinevla_kit.training.loop import TrainingConfig, fine_tune
from refinevla_kit.training.objective import WholeModel, forward, make_batch
from refinevla_kit.training.policy_run import train_policy
from refinevla_kit.vlas import load_vla
from refinevla_kit.vlas.contract import VLA
from refinevla_kit.vlas.sequence import ACTION_KIND, ORDERS, RATIONALE_KIND, answer_ids
from tests.vlas.reference import FOLDER, arrays, difference, facts

MODELS = ("spatialvla", "openvla")
CONFIG = TrainingConfig(
    steps=4,
    batch_size=4,
    learning_rate=3e-3,
    freeze_layers=2,
    validate_every=2,
    precision="fp32",
    collapse_grace=100,
)
PLAIN = replace(CONFIG, cache="off")
TEXTS = ("Observation: a spoon lies left of the towel.", "Task planning: 1. reach 2. grasp")


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def load(model: str) -> VLA:
    return load_vla(FOLDER / model)


@pytest.fixture(scope="module")
def examples() -> Examples:
    random = np.random.default_rng(0)
    frames = 24
    actions = random.uniform(-0.02, 0.02, (frames, 7)).astype(np.float32)
    actions[:, 6] = np.sign(actions[:, 6])
    return Examples(
        random.integers(0, 256, (frames, 48, 64, 3), np.uint8),
        actions,
        np.repeat(np.arange(6), 4),
        tuple(("put the spoon on the towel", "stack the blocks")[i % 2] for i in range(frames)),
        tuple(TEXTS[i // 4 % 2] for i in range(frames)),
    )


@pytest.mark.parametrize(
    ("model", "part", "order", "spoken"),
    [
        ("spatialvla", "act", "action_first", False),
        ("spatialvla", "acttext", "action_first", True),
        ("spatialvla", "textact", "rationale_first", True),
        ("openvla", "act", "action_first", False),
        ("openvla", "textact", "rationale_first", True),
    ],
)
def test_sequences_are_the_authors(model: str, part: str, order: str, spoken: bool) -> None:
    """Their prompt, their words, their labels; of the words each belongs to one of the two losses."""
    vla, golden, about = load(model), arrays(model), facts(model)
    tasks = about["instructions"] if model == "spatialvla" else about["tasks"]
    prefix = vla.prefix_ids(tasks[0])
    theirs = golden[f"s0/{part}/input_ids"][0].tolist()
    if model == "openvla":
        theirs = [theirs[0], *[vla.image_id] * vla.image_tokens, *theirs[1:]]
    words = [i for i in theirs if bool(vla.is_action(torch.tensor(i)))]
    ids, kinds = answer_ids(vla, words, about["rationales"][0] if spoken else "", order)
    assert prefix + ids == theirs
    labels = golden[f"s0/{part}/labels"][0]
    assert sum(kind != 0 for kind in kinds) == int((labels != -100).sum())
    assert {kind for i, kind in zip(ids, kinds, strict=True) if i in words} == {ACTION_KIND}
    assert (RATIONALE_KIND in kinds) == spoken


@pytest.mark.parametrize("mode", ["upper", "lora", "full"])
def test_each_trains_in_every_mode_and_keeps_what_is_frozen(
    model: str, examples: Examples, tmp_path: Path, mode: str
) -> None:
    vla = load(model)
    before = {name: value.clone() for name, value in vla.model.state_dict().items()}
    config = replace(PLAIN, mode=mode, freeze_tower=mode != "full")
    history = fine_tune(vla, examples, config, tmp_path, "p", progress=False)
    changed = {name for name, value in vla.model.state_dict().items() if not torch.equal(value, before[name])}
    assert before.keys() == vla.model.state_dict().keys(), "adapters are merged"
    assert any(name.startswith("language_model.model.layers.2") for name in changed)
    below = ("vision", "multi_modal", "position", "spatial", "projector", "language_model.model.embed")
    assert any(name.startswith(below) for name in changed) == (mode == "full")
    assert not any(name.startswith("vision_zoe_model") for name in changed), "depth is never trained"
    assert {"loss_action", "loss_reasoning", "action_accuracy", "action_l1"} <= history[0].keys()


def test_cached_training_equals_plain_training(model: str, examples: Examples, tmp_path: Path) -> None:
    on, off = (
        fine_tune(load(model), examples, replace(CONFIG, cache=cache), tmp_path / cache, "p", progress=False)
        for cache in ("on", "off")
    )
    for cached, plain in zip(on, off, strict=True):
        for key in ("loss", "loss_action", "loss_reasoning"):
            assert cached[key] == pytest.approx(plain[key], rel=1e-4), (cached["step"], key)


def test_states_of_other_embeddings_are_made_anew(
    model: str, examples: Examples, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SpatialVLA's action words have a table of their own, which the states depend on as well."""
    config = replace(CONFIG, cache="on", steps=1, validate_every=0)
    fine_tune(load(model), examples, config, tmp_path, "p", progress=False)
    other = load(model)
    with torch.no_grad():
        other.embeddings[-1].weight[:, 0] += 1.0  # type: ignore[index,operator]
    fine_tune(other, examples, config, tmp_path / "other", "p", True, tmp_path / "activations")
    assert "was made with other frozen weights: it is made anew" in capsys.readouterr().out


def test_a_killed_run_goes_on_bit_for_bit(model: str, examples: Examples, tmp_path: Path) -> None:
    config = replace(PLAIN, save_every=2)
    whole, resumed = load(model), load(model)
    fine_tune(whole, examples, config, tmp_path / "whole", "p", progress=False)

    def kill(row: dict[str, object]) -> None:
        if row["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(load(model), examples, config, tmp_path / "cut", "p", progress=False, watch=kill)
    fine_tune(resumed, examples, config, tmp_path / "cut", "p", progress=False)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("model", "order", "window"),
    [
        *[(name, order, None) for name in MODELS for order in ORDERS],
        pytest.param("spatialvla", "action_first", 8, id="spatialvla-window"),
    ],
)
def test_actions_decoded_with_a_cache_in_a_padded_batch_are_those_of_whole_sequences(
    model: str, examples: Examples, order: str, window: int | None
) -> None:
    vla = load(model)
    if window:
        vla.decoder.config.sliding_window = window  # shorter than a prompt: some layers do not see its start
    policy = VLAPolicy(vla, "p", order=order)
    images, instructions = examples.images[:2], examples.instructions[:2]
    given = None if order == "action_first" else TEXTS
    actions = policy.decide(images, instructions, rationales=given)
    lengths = {len(vla.prefix_ids(text)) for text in instructions}
    assert len(lengths) == 2, "the shorter one is padded"
    for image, instruction, action in zip(images, instructions, actions, strict=True):
        answer, kinds = answer_ids(vla, action.tokens.tolist(), action.rationale, order)
        prefix = vla.prefix_ids(instruction)
        example = replace(
            examples,
            images=image[None],
            actions=examples.actions[:1],
            episodes=np.zeros(1, np.int64),
            instructions=(instruction,),
            rationales=(action.rationale,),
        )
        batch = make_batch(vla, example, np.zeros(1, np.int64), replace(PLAIN, order=order))
        sequences = replace(
            batch.sequences,
            input_ids=torch.tensor([prefix + answer]),
            attention_mask=torch.ones(1, len(prefix + answer), dtype=torch.int64),
            token_type_ids=torch.tensor([[0] * len(prefix) + [1] * len(answer)]),
            kinds=torch.tensor([[0] * len(prefix) + kinds]),
        )
        with torch.no_grad():
            logits = WholeModel(vla)(replace(batch, sequences=sequences))[0]
        whole = torch.tensor(prefix + answer)[-len(logits) :]
        places = torch.nonzero(vla.is_action(whole))[:, 0]
        assert len(places) == len(vla.ranges)
        for place, (low, high), token, score in zip(
            places, vla.ranges, action.tokens, action.log_probability, strict=True
        ):
            allowed = logits[place - 1, vla.first_action + low : vla.first_action + high].log_softmax(-1)
            assert int(allowed.argmax()) + low + vla.first_action == token
            assert float(allowed.max()) == pytest.approx(float(score), abs=1e-4)


def test_the_objective_is_theirs_when_both_parts_count_by_their_words(examples: Examples) -> None:
    """Their loss is the mean over all words; the kit's parts, weighted by their words, add up to it."""
    vla, golden = load_vla(FOLDER / "spatialvla", camera="bridge_orig/1.0.0"), arrays("spatialvla")
    plan = golden["actions_norm"][0].numpy()
    quantiles = vla.bins.quantiles  # type: ignore[attr-defined]
    actions = vla.kit_actions(quantiles.restore(plan)).astype(np.float32)
    example = Examples(
        np.stack([golden["s0/image"].numpy()] * len(actions)),
        actions,
        np.zeros(len(actions), np.int64),
        (facts("spatialvla")["instructions"][0],) * len(actions),
        (facts("spatialvla")["rationales"][0],) * len(actions),
    )
    config = replace(PLAIN, lambda_reasoning=1.0)
    batch = make_batch(vla, example, np.zeros(1, np.int64), config)
    assert batch.sequences.input_ids.tolist() == golden["s0/acttext/input_ids"].tolist()
    with torch.no_grad():
        losses = forward(WholeModel(vla), vla, batch, config)
    total = losses.action * losses.action_tokens + losses.reasoning * losses.rationale_tokens
    mean = total / (losses.action_tokens + losses.rationale_tokens)
    assert difference(mean[None], golden["s0/acttext/loss"]) < 1e-5


@pytest.mark.parametrize(("model", "robot"), [(m, r) for m in MODELS for r in ("widowx", "google_robot")])
def test_episodes_are_played_as_their_evaluation_does(model: str, robot: str) -> None:
    """Averaged plans, all-or-nothing grippers, and the Google Robot's repeated gripper motion."""
    golden = arrays(model)
    keys = facts(model)["statistics_keys"]
    vla = load_vla(FOLDER / model, dataset=keys[0] if robot == "widowx" else keys[1])
    conversion = ActionConversion(vla.conventions, ROBOT_CONVENTIONS[robot])
    theirs = golden[f"wrap/{'widowx_bridge' if robot == 'widowx' else robot}/action"].numpy()
    if model == "spatialvla":
        chunks = golden["wrap/chunks"].numpy()
        raw = [averaged(list(chunks[max(0, t + 1 - vla.chunk) : t + 1])) for t in range(len(chunks))]
        np.testing.assert_allclose(raw, golden[f"wrap/{robot_name(robot)}/raw"].numpy(), atol=1e-12)
    else:
        raw = list(golden["wrap/raw_actions"].numpy())
    ours = np.stack([conversion.convert(row) for row in raw])
    np.testing.assert_allclose(ours[:, :3], theirs[:, :3], atol=1e-6)
    np.testing.assert_allclose(ours[:, 6], theirs[:, 6], atol=1e-6)


def robot_name(robot: str) -> str:
    return "widowx_bridge" if robot == "widowx" else robot


@torch.no_grad()
def test_captured_attention_is_the_models_own(model: str, examples: Examples) -> None:
    """SpatialVLA's authors keep theirs of a whole prompt, which a capture of its instruction has to equal."""
    vla = load(model)
    policy = VLAPolicy(vla, "p", "abc")
    kinds = ("action", "rationale", "instruction")
    found = capture(policy, examples.images[0], examples.instructions[0], rationale=TEXTS[0], queries=kinds)
    labels = [query.label for query in found.queries]
    assert labels[: len(vla.ranges)] == list(vla.word_names)
    assert found.patches.shape[-1] == vla.patches
    shares = found.patches.sum(-1) + found.others.sum(-1)
    np.testing.assert_allclose(shares, 1, atol=1e-5)

    sequence = token_sequence(policy, examples.instructions[0], found.action.tokens.tolist(), TEXTS[0], kinds)
    words = vla.see(vla.pixel_values(examples.images[:1]), None)
    squares: list[torch.Tensor] = []
    with watching(policy, squares.append):
        forward_pass(policy, words, [sequence])
    whole = torch.stack(squares, 1)[0].numpy()  # layers, heads, N, N
    for number, query in enumerate(sequence.queries):
        rows = whole[:, :, list(query.positions)].mean(2)
        np.testing.assert_allclose(found.patches[:, :, number], rows[..., vla.on_patches], atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_map_of_its_patches(model: str, examples: Examples, method: str) -> None:
    policy = VLAPolicy(load(model), "p", "abc")
    frame = Frame(examples.images[0], {}, examples.instructions[0], "widowx_spoon_on_towel", 0, 0, "reach")
    found = attribute(policy, frame, policy.vla.word_names[0], method)
    assert found.patch_map.shape == policy.vla.grid
    assert np.isfinite(found.patch_map).all()
    assert found.pixel_map.shape == examples.images[0].shape[:2]


@pytest.mark.slow
def test_episodes_of_the_benchmark_are_played_and_recorded(model: str, tmp_path: Path) -> None:
    policy = load_policy(FOLDER / model)
    path = evaluate(
        policy, "widowx_carrot_on_plate", 1, workers=0, output=tmp_path, width=160, height=120, progress=False
    )
    assert len(load_records(path)) == 1
    assert hasattr(policy, "act_batch") == (policy.vla.chunk == 1), "averaged plans need an episode's past"


def test_the_wrong_robots_statistics_stop_a_run_before_its_first_episode(model: str, tmp_path: Path) -> None:
    keys = facts(model)["statistics_keys"]
    policy = load_policy(FOLDER / model, dataset=keys[1])
    with pytest.raises(KitError, match="google_robot"):
        evaluate(policy, "widowx_carrot_on_plate", 1, workers=0, output=tmp_path, progress=False)
    assert policy.checkpoint_hash != load_policy(FOLDER / model).checkpoint_hash


@pytest.mark.parametrize("words", ["refitted", "adapted"])
def test_a_policy_for_other_data_remembers_its_own_statistics(
    model: str, words: str, examples: Examples, tmp_path: Path
) -> None:
    config = replace(PLAIN, action_words=words, steps=1, validate_every=0)
    if model == "openvla" and words == "adapted":
        with pytest.raises(KitError, match="no grid to adapt"):
            train_policy(FOLDER / model, examples, config, tmp_path, "p", progress=False)
        return
    train_policy(FOLDER / model, examples, config, tmp_path, "p", progress=False)
    policy = load_policy(tmp_path / "p")
    assert policy.vla.provenance["order"] == "action_first"
    assert policy.conventions.normalisation == "refinevla"
    spread = np.abs(policy.round_trip(examples.actions) - examples.actions)[:, :6].mean(0)
    assert (spread < 0.02).all()
    assert (policy.round_trip(examples.actions)[:, 6] == examples.actions[:, 6]).all()
    theirs = load_vla(tmp_path / "p", dataset=facts(model)["statistics_keys"][0])
    assert theirs.bins.limits == load(model).bins.limits, "the base's statistics are still there"
