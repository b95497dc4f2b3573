"""What fine-tuning takes on large models: less memory with the same numbers, adapters as the authors train
them, and adapters kept beside a base that is only named.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers.modeling_layers import GradientCheckpointingLayer

from refinevla_kit.errors import KitError
from refinevla_kit.policies import load_policy
from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.examples import Examples
from refinevla_kit.training.freezing import UpperLayers, adapters, freeze_lower, preset_of, recomputing
from refinevla_kit.training.loop import fine_tune
from refinevla_kit.training.objective import Batch, WholeModel, forward, make_batch
from refinevla_kit.training.policy_run import _reference, train_policy
from refinevla_kit.vlas import load_vla
from refinevla_kit.vlas.action_tokens import UniformBins
from refinevla_kit.vlas.compact import CompactConfig, build
from refinevla_kit.vlas.compact_parts import train_vocabulary
from refinevla_kit.vlas.contract import VLA
from tests.training.launched import noise
from tests.vlas.reference import FOLDER, facts

MODELS = ("compact", "spatialvla", "openvla")
CONFIG = TrainingConfig(
    steps=2,
    batch_size=4,
    learning_rate=3e-3,
    freeze_layers=2,
    validate_every=2,
    precision="fp32",
    cache="off",
    collapse_grace=100,
)
LORA = replace(CONFIG, mode="lora")
ROWS = np.arange(3)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small checkpoint of each model."""
    examples = noise()
    texts = train_vocabulary([*examples.instructions, *examples.rationales])
    small = CompactConfig(layers=3, hidden=32, heads=2, feedforward=48, channels=8)
    compact = build(small, texts, UniformBins.fit(_fitting(examples).actions), seed=0)
    folder = compact.save(tmp_path_factory.mktemp("bases") / "compact")
    return {"compact": folder, **{model: FOLDER / model for model in MODELS[1:]}}


@pytest.fixture(params=MODELS)
def base(request: pytest.FixtureRequest, bases: dict[str, Path]) -> Path:
    return bases[request.param]


@pytest.fixture(scope="module")
def examples() -> Examples:
    return _fitting(noise(12))


def _fitting(examples: Examples) -> Examples:
    """With actions within the statistics of every base."""
    actions = examples.actions / 2
    actions[:, 6] = np.sign(actions[:, 6])
    return replace(examples, actions=actions)


def measured(vla: VLA, model: Any, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of a batch and the gradients of all that trains."""
    vla.model.train()
    vla.model.zero_grad(set_to_none=True)
    loss = forward(model, vla, batch, CONFIG).total
    loss.backward()
    named = vla.model.named_parameters()
    return loss.detach(), {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.parametrize("part", ["everything", "upper layers from pictures", "upper layers from states"])
def test_gradient_checkpointing_changes_no_loss_and_no_gradient(
    base: Path, part: str, examples: Examples
) -> None:
    vla = load_vla(base)
    depth = 0 if part == "everything" else 1
    freeze_lower(vla, depth, tower=depth > 0)
    batch = make_batch(vla, examples, ROWS, CONFIG)
    model: Any = WholeModel(vla)
    if part == "upper layers from states":
        states = torch.randn(*batch.sequences.input_ids.shape, vla.decoder.config.hidden_size)
        model, batch = UpperLayers(vla, depth), Batch(batch.sequences, boundary=states)
    loss, gradients = measured(vla, model, batch)
    runs: list[int] = []
    vla.layers[-1].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    with recomputing(vla):
        again, same = measured(vla, model, batch)
    assert len(runs) == 2, "the layer ran again for its gradients"
    assert torch.equal(again, loss) and same.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.equal(same[name], gradient), name
    runs.clear()
    measured(vla, model, batch)
    assert len(runs) == 1, "behind the block it is as it was"


def test_both_towers_of_openvla_are_checkpointed_too(examples: Examples) -> None:
    vla = load_vla(FOLDER / "openvla")
    towers: Any = vla.tower[0]
    assert all(isinstance(block, GradientCheckpointingLayer) for block in towers.featurizer.blocks)
    assert all(isinstance(block, GradientCheckpointingLayer) for block in towers.fused_featurizer.blocks)


def test_a_run_with_gradient_checkpointing_is_the_same_run(
    base: Path, examples: Examples, tmp_path: Path
) -> None:
    """Its state is the other's, too: a run may go on with or without it."""
    saved, plain = load_vla(base), load_vla(base)
    fine_tune(saved, examples, replace(CONFIG, gradient_checkpointing=True), tmp_path, "p", progress=False)
    before = (tmp_path / "resume" / "state.json").stat().st_mtime_ns
    fine_tune(plain, examples, CONFIG, tmp_path, "p", progress=False)
    assert (tmp_path / "resume" / "state.json").stat().st_mtime_ns == before, "it had ended"
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, saved.model.state_dict()[name]), name


@pytest.mark.parametrize("mode", ["upper", "lora", "full"])
def test_what_is_frozen_may_be_kept_in_half_the_memory(
    base: Path, mode: str, examples: Examples, tmp_path: Path
) -> None:
    """What trains stays float32, and the run goes where the one in float32 goes."""
    config = replace(CONFIG, mode=mode, precision="bf16", steps=6, collapse_grace=2, validate_every=3)
    light = replace(config, frozen_weights="bf16")
    kinds: dict[str, set[torch.dtype]] = {}
    vla = load_vla(base, torch.bfloat16)

    def watch(_: dict[str, Any]) -> None:
        for parameter in vla.model.parameters():
            kinds.setdefault(f"{parameter.requires_grad}", set()).add(parameter.dtype)

    found = fine_tune(vla, examples, light, tmp_path / "light", "p", progress=False, watch=watch)
    assert kinds["True"] == {torch.float32} and kinds["False"] == {torch.bfloat16}
    wanted = fine_tune(load_vla(base), examples, config, tmp_path / "plain", "p", progress=False)
    for one, other in zip(found, wanted, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.03)


def test_a_cache_serves_what_is_frozen_in_half_memory(base: Path, examples: Examples, tmp_path: Path) -> None:
    config = replace(CONFIG, precision="bf16", frozen_weights="bf16", cache="on", steps=3)
    rows = [
        fine_tune(load_vla(base, torch.bfloat16), examples, each, tmp_path / each.cache, "p", progress=False)
        for each in (config, replace(config, cache="off"))
    ]
    for cached, plain in zip(*rows, strict=True):
        assert cached["loss"] == pytest.approx(plain["loss"], rel=0.02)


def test_half_the_memory_needs_half_precision() -> None:
    with pytest.raises(KitError, match='set precision to "bf16"'):
        replace(CONFIG, frozen_weights="bf16")


# --- adapters ---


@pytest.mark.parametrize(("model", "rank", "alpha"), [("spatialvla", 32, 32.0), ("openvla", 32, 16.0)])
def test_adapters_as_the_authors_train_them(model: str, rank: int, alpha: float, examples: Examples) -> None:
    vla = load_vla(FOLDER / model)
    adapted = set()
    with adapters(vla, preset_of(vla, replace(LORA, adapter_preset="authors")), seed=0):
        for name, parameter in vla.model.named_parameters():
            assert parameter.requires_grad == (".lora_" in name)
            if ".lora_A" in name:
                assert parameter.shape[0] == rank
                adapted.add(name.partition(".lora_")[0])
        module: Any = vla.model.get_submodule(min(adapted))
        assert module.scaling["default"] == alpha / rank
    linear = {name for name, module in vla.model.named_modules() if type(module) is torch.nn.Linear}
    unused = {id(module) for part in vla.constant for module in part.modules()}
    never = {name for name, module in vla.model.named_modules() if id(module) in unused}
    assert adapted == linear - never - {"language_model.lm_head"}


def test_adapters_as_the_authors_train_them_learn_in_every_part(
    bases: dict[str, Path], examples: Examples, tmp_path: Path
) -> None:
    config = replace(LORA, adapter_preset="authors", steps=3)
    for model, parts in {
        "spatialvla": ("vision_tower", "multi_modal_projector", "position_embedding_3d", "language_model"),
        "openvla": ("featurizer", "fused_featurizer", "projector", "language_model"),
    }.items():
        vla = load_vla(bases[model])
        before = {name: value.clone() for name, value in vla.model.state_dict().items()}
        fine_tune(vla, examples, config, tmp_path / model, "p", progress=False)
        state = vla.model.state_dict().items()
        moved = {name for name, value in state if not torch.equal(value, before[name])}
        assert all(any(part in name for name in moved) for part in parts), model
        assert not any("zoe" in name or "lm_head" in name for name in moved)
    with pytest.raises(KitError, match="published no way to train adapters"):
        fine_tune(load_vla(bases["compact"]), examples, config, tmp_path / "compact", "p", progress=False)


def logits(vla: VLA, examples: Examples) -> torch.Tensor:
    with torch.no_grad():
        return WholeModel(vla)(make_batch(vla, examples, ROWS, CONFIG))


def test_adapters_are_kept_beside_a_base_that_is_only_named(
    base: Path, examples: Examples, tmp_path: Path
) -> None:
    """In peft's own form: peft reads them, the kit too, and both say what training ended with."""
    config = replace(LORA, adapter_form="peft", action_words="base" if base.name == "compact" else "refitted")
    train_policy(base, examples, config, tmp_path, "p", progress=False)
    folder = tmp_path / "p"
    assert not list(folder.glob("model*"))
    weights = load_file(folder / "adapter_model.safetensors")
    assert weights and all(".lora_" in name for name in weights)
    assert PeftConfig.from_pretrained(str(folder)).base_model_name_or_path == str(base)

    trained, plain, by_peft = load_vla(folder), load_vla(base), load_vla(base)
    peft: Any = PeftModel.from_pretrained(by_peft.model, str(folder))
    own = replace(by_peft, bins=trained.bins)
    assert (logits(own, examples) - logits(trained, examples)).abs().max() < 1e-4
    peft.merge_and_unload()
    assert torch.equal(logits(own, examples), logits(trained, examples))
    assert (logits(plain, examples) - logits(trained, examples)).abs().max() > 1e-3

    merged = replace(config, adapter_form="merged")
    train_policy(base, examples, merged, tmp_path / "merged", "p", progress=False)
    for name, value in load_vla(tmp_path / "merged" / "p").model.state_dict().items():
        assert torch.equal(value, trained.model.state_dict()[name].bfloat16().float()), name
    policy = load_policy(folder)
    assert policy.vla.bins.to_dict() == load_vla(tmp_path / "merged" / "p").bins.to_dict()
    assert np.isfinite(policy.decide(examples.images[:1], examples.instructions[:1])[0].processed).all()


@pytest.mark.parametrize("change", ["base", "gone", "weights", "missing", "numbers", "kind", "nested"])
def test_adapters_that_do_not_fit_are_one_line(change: str, examples: Examples, tmp_path: Path) -> None:
    base = Path(shutil.copytree(FOLDER / "openvla", tmp_path / "base"))
    train_policy(base, examples, replace(LORA, adapter_form="peft"), tmp_path, "p", progress=False)
    folder = tmp_path / "p"
    file, about = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    weights, settings = load_file(file), json.loads(about.read_text())
    name = min(weights)
    says = "do not fit their base"
    if change == "base":
        shard = base / "model-00001-of-00002.safetensors"
        tensors = load_file(shard)
        save_file({key: value + 1 for key, value in tensors.items()}, shard, metadata={"format": "pt"})
        says = "is not the base that the adapters in"
    elif change == "gone":
        shutil.rmtree(base)
        says = "the base of the adapters in .* cannot be opened"
    elif change == "weights":
        save_file({**weights, name: weights[name][:, :-1].contiguous()}, file)
    elif change == "missing":
        weights.pop(name)
        save_file(weights, file)
        says = f"1 missing: {re.escape(name.removesuffix('.weight'))}"
    elif change == "numbers":
        save_file({**weights, name: weights[name] * torch.nan}, file)
        says = "1 not finite"
    elif change == "kind":
        about.write_text(json.dumps({**settings, "peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}))
        says = "holds .*PROMPT_TUNING adapters|are damaged"
    else:
        again = replace(LORA, adapter_form="peft")
        with pytest.raises(KitError, match=r'adapters already.* -> set adapter_form to "merged"'):
            train_policy(folder, examples, again, tmp_path, "q", progress=False)
        assert not (tmp_path / "q").exists()
        return
    with pytest.raises(KitError, match=says) as caught:
        load_vla(folder)
    assert "\n" not in str(caught.value)


def test_adapters_call_a_model_of_the_hub_by_its_name(tmp_path: Path) -> None:
    kept = tmp_path / "models--openvla--openvla-7b" / "snapshots" / "0a1b"
    assert _reference(kept) == "openvla/openvla-7b"
    assert _reference(tmp_path / "mine") == str(tmp_path / "mine")


def test_settings_of_adapters_are_refused_where_they_say_nothing() -> None:
    with pytest.raises(KitError, match='set mode to "lora"'):
        replace(CONFIG, adapter_form="peft")
    with pytest.raises(KitError, match='set adapter_form to "merged"'):
        replace(LORA, adapter_form="peft", action_words="adapted")


# --- which robot ---


@pytest.mark.parametrize("model", MODELS[1:])
def test_a_base_takes_the_statistics_of_the_robot_that_is_named(model: str, tmp_path: Path) -> None:
    bridge, fractal = facts(model)["statistics_keys"]
    vla = load_vla(FOLDER / model)
    assert vla.on("widowx").conventions.normalisation == bridge
    google = vla.on("google_robot")
    assert google.conventions.normalisation == fractal and google.conventions.robot == "google_robot"
    assert google.model is vla.model
    assert google.bins.to_dict() == load_vla(FOLDER / model, dataset=fractal).bins.to_dict()
    assert google.on("widowx").bins.to_dict() == vla.bins.to_dict()


@pytest.mark.parametrize("model", MODELS[1:])
@pytest.mark.parametrize("robot", ["widowx", "google_robot"])
def test_a_fitted_model_keeps_whose_data_they_were(
    model: str, robot: str, examples: Examples, tmp_path: Path
) -> None:
    config = replace(CONFIG, steps=1, validate_every=0, action_words="refitted", robot=robot)
    train_policy(FOLDER / model, examples, config, tmp_path, "p", progress=False)
    vla = load_vla(tmp_path / "p")
    assert vla.conventions.robot == robot
    assert vla.on(robot).bins.to_dict() == vla.bins.to_dict(), "its own come first"
    other = {"widowx": "google_robot", "google_robot": "widowx"}[robot]
    assert vla.on(other).bins.to_dict() == load_vla(FOLDER / model).on(other).bins.to_dict()


def test_a_robot_that_a_base_has_no_statistics_of_is_one_line(
    bases: dict[str, Path], examples: Examples, tmp_path: Path
) -> None:
    with pytest.raises(KitError, match="acts for the widowx alone, not for the google_robot"):
        train_policy(bases["compact"], examples, replace(CONFIG, robot="google_robot"), tmp_path, "p")
    folder = Path(shutil.copytree(FOLDER / "openvla", tmp_path / "one"))
    file = folder / "dataset_statistics.json"
    statistics = json.loads(file.read_text())
    file.write_text(json.dumps({"fractal20220817_data": statistics["fractal20220817_data"]}))
    with pytest.raises(KitError, match="no action statistics of the widowx, only fractal20220817_data"):
        train_policy(folder, examples, CONFIG, tmp_path, "p")
