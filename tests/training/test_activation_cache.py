"""Training from stored states is the same training, and states of anything else are refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from refinevla_kit.errors import KitError
from refinevla_kit.training import activation_cache
from refinevla_kit.training.activation_cache import (
    STATES,
    cache_bytes,
    cache_key,
    cache_path,
    open_cache,
    open_or_write,
)
from refinevla_kit.training.examples import Examples, join
from refinevla_kit.training.freezing import UpperLayers, freeze_lower
from refinevla_kit.training.loop import TrainingConfig, fine_tune, validate
from refinevla_kit.training.objective import Losses, WholeModel, forward, make_batch, tower_tokens
from refinevla_kit.training.resume import identity_of
from refinevla_kit.vlas import load_vla
from refinevla_kit.vlas.action_tokens import UniformBins
from refinevla_kit.vlas.compact import CompactConfig, CompactVLA, build
from refinevla_kit.vlas.compact_parts import train_vocabulary
from tests.vlas.reference import FOLDER

SMALL = CompactConfig(layers=3, hidden=64, heads=2, feedforward=96, channels=16)
CONFIG = TrainingConfig(
    steps=6,
    batch_size=4,
    freeze_layers=2,
    precision="fp32",
    save_every=3,
    validate_every=3,
    learning_rate=1e-3,
)


def some(n: int = 24) -> Examples:
    rng = np.random.default_rng(0)
    own = rng.normal(0, 0.1, (n, 15))
    own[:, [3, 11]] = 1.0
    return Examples(
        images=rng.integers(0, 256, (n, 120, 160, 3), dtype=np.uint8),
        actions=rng.uniform(-0.04, 0.04, (n, 7)).astype(np.float32),
        episodes=np.repeat(np.arange(n // 2), 2),
        instructions=("put carrot on plate", "stack the green block on the yellow block") * (n // 2),
        rationales=tuple(f"the carrot is {i} cm left of the plate" if i % 3 else "" for i in range(n)),
        proprioception=own.astype(np.float32),
    )


def made(examples: Examples, proprioception: bool = False, seed: int = 0) -> CompactVLA:
    words = train_vocabulary([*examples.instructions, *examples.rationales])
    return build(
        replace(SMALL, proprioception=proprioception), words, UniformBins.fit(examples.actions), seed=seed
    )


def gradients(vla: CompactVLA, take: Callable[[], Losses]) -> tuple[float, dict[str, torch.Tensor]]:
    vla.model.zero_grad(set_to_none=True)
    losses = take()
    losses.total.backward()
    return float(losses.total.detach()), {
        name: p.grad.clone() for name, p in vla.model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(
    ("order", "lambda_reasoning"), [("action_first", 0.3), ("rationale_first", 0.3), ("action_first", 0.0)]
)
@pytest.mark.parametrize("proprioception", [False, True])
def test_loss_and_gradients_from_the_cache_are_those_of_the_plain_run(
    depth: int, order: str, lambda_reasoning: float, proprioception: bool, tmp_path: Path
) -> None:
    examples = some()
    vla = made(examples, proprioception)
    config = replace(CONFIG, freeze_layers=depth, order=order, lambda_reasoning=lambda_reasoning)
    freeze_lower(vla, depth)
    cache = open_or_write(vla, examples, config, tmp_path, progress=False)
    tokens, rows = (
        tower_tokens(vla, examples.images),
        np.array([0, 1, 5, 8, 11]),
    )  # with and without a rationale, unequal instructions
    plain_batch, batch = (
        make_batch(vla, examples, rows, config, tokens),
        make_batch(vla, examples, rows, config, cache),
    )
    assert len(set(plain_batch.sequences.attention_mask.sum(1).tolist())) > 1
    for field in ("input_ids", "attention_mask", "token_type_ids", "kinds"):
        assert torch.equal(getattr(batch.sequences, field), getattr(plain_batch.sequences, field))
    loss, grads = gradients(vla, lambda: forward(WholeModel(vla), vla, plain_batch, config))
    cached_loss, cached_grads = gradients(vla, lambda: forward(UpperLayers(vla, depth), vla, batch, config))
    assert cached_loss == pytest.approx(loss, abs=1e-5)
    assert grads.keys() == cached_grads.keys() and "lm_head.weight" in grads
    for name, grad in grads.items():
        assert torch.allclose(cached_grads[name], grad, atol=1e-5, rtol=1e-4), name


@pytest.mark.parametrize("mode", ["upper", "lora"])
def test_a_run_from_the_cache_ends_where_the_plain_run_ends(mode: str, tmp_path: Path) -> None:
    examples, ends = some(), {}
    for cache in ("on", "off"):
        vla = made(examples)
        history = fine_tune(
            vla, examples, replace(CONFIG, cache=cache, mode=mode), tmp_path / cache, "p", progress=False
        )
        ends[cache] = (vla.model.state_dict(), history)
    assert (tmp_path / "on" / "activations").is_dir() and not (tmp_path / "off" / "activations").exists()
    for name, value in ends["off"][0].items():
        assert torch.allclose(ends["on"][0][name], value, atol=1e-3), name
    for one, other in zip(ends["on"][1], ends["off"][1], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-3)


@pytest.mark.parametrize(("cache", "freeze_tower"), [("on", True), ("off", True), ("off", False)])
def test_frames_that_share_a_picture_train_as_if_each_had_its_own(
    cache: str, freeze_tower: bool, tmp_path: Path
) -> None:
    own = some()
    spoken = replace(own, instructions=("where is the carrot?",) * 24, rationales=("at the left.",) * 24)
    shared = join([own, replace(spoken, picture=np.arange(24)[::-1])])
    apart = join([own, replace(spoken, images=own.images[::-1].copy())])
    assert shared.images is own.images and len(apart.images) == 48 and apart.picture is None
    assert np.array_equal(shared.shown(np.arange(48)), apart.shown(np.arange(48)))
    ends = []
    for examples in (shared, apart):
        vla = made(examples)
        config = replace(CONFIG, cache=cache, freeze_tower=freeze_tower)
        fine_tune(vla, examples, config, tmp_path / str(len(examples.images)), "p", progress=False)
        ends.append(vla.model.state_dict())
    for name, value in ends[0].items():
        assert torch.allclose(ends[1][name], value, atol=1e-4), name
    assert own.digest() != shared.digest() != apart.digest()


def test_held_out_frames_are_judged_alike(tmp_path: Path) -> None:
    examples = some()
    vla = made(examples)
    cache = open_or_write(vla, examples, CONFIG, tmp_path, progress=False)
    plain = validate(vla, examples, np.arange(9), CONFIG, tower_tokens(vla, examples.images))
    assert validate(vla, examples, np.arange(9), CONFIG, cache) == pytest.approx(plain, abs=1e-4)


def test_half_precision_takes_half_the_space_and_stays_close(tmp_path: Path) -> None:
    examples = some()
    vla = made(examples)
    whole = open_or_write(vla, examples, CONFIG, tmp_path, progress=False)
    config = replace(CONFIG, cache_precision="bf16")
    half = open_or_write(vla, examples, config, tmp_path, progress=False)  # beside it, in a folder of its own
    assert (
        half.states.nbytes * 2
        == whole.states.nbytes
        == (cache_path(tmp_path, CONFIG) / STATES).stat().st_size
    )
    _, exact = whole.read(np.arange(4))
    _, rounded = half.read(np.arange(4))
    assert torch.allclose(rounded, exact, rtol=2**-8, atol=1e-6)


def test_seeds_and_weights_of_the_reasoning_loss_share_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = some()
    shared = tmp_path / "shared"
    fine_tune(made(examples), examples, CONFIG, tmp_path / "a", "a", progress=False, cache_folder=shared)
    monkeypatch.setattr(activation_cache, "boundary_states", None)  # computing anything would fail now
    fine_tune(
        made(examples),
        examples,
        replace(CONFIG, seed=1, lambda_reasoning=1.0),
        tmp_path / "b",
        "b",
        progress=False,
        cache_folder=shared,
    )
    assert [path.name for path in shared.iterdir()] == ["below_layer_2-action_first-rationales-fp32"]


def test_a_cache_of_something_else_is_made_anew_and_says_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = some()
    vla = made(examples, proprioception=True)
    open_or_write(vla, examples, CONFIG, tmp_path, progress=False)
    assert examples.proprioception is not None
    brighter, moved = np.where(examples.images < 9, 9, examples.images), examples.proprioception + 0.1
    for other, what in (
        (replace(examples, images=brighter), "pictures"),
        (replace(examples, rationales=examples.rationales[::-1]), "rationales"),
        (replace(examples, instructions=examples.instructions[::-1]), "instructions"),
        (replace(examples, actions=-examples.actions), "actions"),
        (replace(examples, proprioception=moved), "proprioception"),
    ):
        found = open_or_write(vla, other, CONFIG, tmp_path)
        assert f"was made with other {what}: it is made anew" in capsys.readouterr().out
        fresh = open_or_write(vla, other, CONFIG, tmp_path / "fresh" / what, progress=False)
        assert np.array_equal(found.states, fresh.states)
        open_or_write(vla, examples, CONFIG, tmp_path, progress=False)
    open_or_write(made(examples, proprioception=True, seed=1), examples, CONFIG, tmp_path)
    assert "other frozen weights" in capsys.readouterr().out
    open_or_write(vla, examples, CONFIG, tmp_path, progress=False)
    with torch.no_grad():
        vla.model.lm_head.weight += 1  # above the boundary: no matter
    open_or_write(vla, examples, CONFIG, tmp_path)
    assert not capsys.readouterr().out
    assert cache_key(vla, examples, CONFIG) == cache_key(
        vla, replace(examples, episodes=examples.episodes[::-1]), CONFIG
    ), "a plan of one step does not ask where an episode ends"
    cache_path(tmp_path, CONFIG).rename(cache_path(tmp_path, replace(CONFIG, freeze_layers=1)))
    with pytest.raises(KitError, match=r"was made with other .*freeze depth.* -> delete that folder"):
        wanted = replace(CONFIG, freeze_layers=1)
        open_cache(cache_path(tmp_path, wanted), cache_key(vla, examples, wanted))


@pytest.mark.parametrize("model", ["spatialvla", "openvla"])
def test_what_a_released_model_does_with_pictures_and_plans_is_part_of_the_key(
    model: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(FOLDER / model, tmp_path / model))
    file = folder / ("processor_config.json" if model == "spatialvla" else "preprocessor_config.json")
    examples = some(6)
    before, begun = load_vla(folder), load_vla(folder)
    key = cache_key(before, examples, CONFIG)
    assert cache_key(begun, examples, CONFIG) == key
    changed = json.loads(file.read_text())
    for name in ("intrinsic_config", "means"):
        if name in changed:
            changed[name] = json.loads(json.dumps(changed[name]).replace("0.", "0.1"))
    file.write_text(json.dumps(changed))
    other = load_vla(folder)
    assert [name for name in key if cache_key(other, examples, CONFIG)[name] != key[name]] == ["settings"]
    counts = {"training": 6}
    assert identity_of(before, examples, CONFIG, counts) != identity_of(other, examples, CONFIG, counts)
    moved = replace(examples, episodes=examples.episodes[::-1])
    found = [name for name in key if cache_key(before, moved, CONFIG)[name] != key[name]]
    assert found == (["episodes"] if before.chunk > 1 else [])


def test_a_cache_above_the_limit_names_both_sizes_and_writes_nothing(tmp_path: Path) -> None:
    examples = some()
    vla = made(examples)
    size = open_or_write(vla, examples, CONFIG, tmp_path / "first", progress=False).states.nbytes
    config = replace(CONFIG, cache_limit_gb=1e-6)
    with pytest.raises(
        KitError, match=rf"would take {size:,} bytes .* the limit is 1e-06 GB -> raise `cache_limit_gb`"
    ):
        open_or_write(vla, examples, config, tmp_path / "second", progress=False)
    assert not (tmp_path / "second").exists()
    assert cache_bytes(29_900 * 93, 192, "bf16") == 1_067_788_800


def test_the_size_is_said_before_it_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = some()
    monkeypatch.setattr(activation_cache, "boundary_states", None)
    with pytest.raises(TypeError):
        open_or_write(made(examples), examples, CONFIG, tmp_path)
    assert "bytes" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())  # no half of a cache is left


def test_a_damaged_cache_says_how_it_is_mended(tmp_path: Path) -> None:
    examples = some()
    vla = made(examples)
    open_or_write(vla, examples, CONFIG, tmp_path, progress=False)
    states = cache_path(tmp_path, CONFIG) / STATES
    states.write_bytes(states.read_bytes()[: -64 * 4])
    with pytest.raises(KitError, match=r"is damaged .* delete that folder"):
        open_or_write(vla, examples, CONFIG, tmp_path, progress=False)


def test_a_cache_is_made_where_it_pays_and_what_changes_is_never_cached() -> None:
    assert CONFIG.caches(24) and not CONFIG.caches(25)  # 24 frames are drawn
    assert replace(CONFIG, cache="on").caches(25) and not replace(CONFIG, cache="off").caches(24)
    for changing in (
        replace(CONFIG, freeze_layers=0),
        replace(CONFIG, freeze_tower=False),
        replace(CONFIG, mode="full"),
    ):
        assert not changing.caches(24)
    assert replace(CONFIG, freeze_tower=False, mode="lora").caches(24)  # adapters alone train
