"""Making a base: the whole recipe on a handful of real episodes, from recording to an improved checkpoint
that drives.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.driving import PolicyDrive
from experiments.grounding import THINGS, load_places
from experiments.pretraining import (
    PretrainingConfig,
    acted_and_asked,
    blend,
    carry_over,
    improve,
    main,
    pointing,
    pretrain,
    question,
    save_base,
    write_card,
)
from experiments.questions import STEPS, answers, ask
from refinevla_kit.episodes import open_dataset
from refinevla_kit.policies.vla_policy import VLAPolicy, load_policy
from refinevla_kit.rollouts.recording import record
from refinevla_kit.tasks import VARIANT_AGGREGATION
from refinevla_kit.teacher import OracleTeacher, annotate_dataset
from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.examples import SHIPPED_BASE, held_out, load_examples
from refinevla_kit.training.objective import lay_out
from refinevla_kit.vlas.action_tokens import UniformBins
from refinevla_kit.vlas.compact import CompactConfig, build, load
from refinevla_kit.vlas.compact_parts import train_vocabulary
from refinevla_kit.vlas.sequence import ACTION_KIND
from tests.conftest import REPOSITORY

CARROT = "widowx_carrot_on_plate"
SMALL = CompactConfig(layers=2, hidden=64, heads=2, feedforward=64, channels=16, proprioception=True)
CONFIG = PretrainingConfig(grounding_steps=2, steps=3, batch_size=4)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pretraining") / "demonstrations"
    record(path, [CARROT], 1, seed=3, progress=False, random_moves=1)
    annotate_dataset(path, OracleTeacher(), progress=False)
    return path


@pytest.mark.slow
def test_a_frame_that_asks_for_a_place_is_answered_with_it(dataset: Path) -> None:
    examples, places = load_examples(dataset), load_places(dataset)
    asked = pointing(examples, places, 0.5, seed=0)
    assert len(asked) == round(len(examples) / 2) and np.isnan(asked.actions).all()
    place = {question(name): where for name, where in zip(THINGS, places.pixels[0], strict=True)}[
        "point to the plate"
    ]
    for instruction, answer in zip(asked.instructions, asked.rationales, strict=True):
        if instruction == "point to the plate":  # which does not move
            row, column = (int(number[:4]) / 1024 for number in answer.split("<loc")[1:])
            np.testing.assert_allclose([column, row], place, atol=0.6 / STEPS)


@pytest.mark.slow
def test_a_base_is_made_drives_and_goes_on_with_what_it_drove(dataset: Path, tmp_path: Path) -> None:
    scenery = tmp_path / "scenery"
    record(scenery, [CARROT], 1, seed=4, progress=False, setting=VARIANT_AGGREGATION, variants=["table_1"])
    torch.set_num_threads(1)
    vla = pretrain([dataset], tmp_path / "work", CONFIG, [scenery], SMALL)
    assert [row["episodes"] for row in vla.provenance["demonstrations"] + vla.provenance["scenery"]] == [1, 1]
    tower = vla.model.model.vision_tower
    assert (tower.state_scale > 0).all() and not (tower.state_mean == 0).all()
    base = save_base(vla, tmp_path / "base")
    driven = tmp_path / "driven"
    summary = record(driven, [CARROT], 1, seed=5, progress=False, drive=PolicyDrive(base))
    assert summary["failures"] <= 1 and open_dataset(driven).episodes[0].length == 60, (
        "a policy of three steps of training does not succeed"
    )
    before = {name: tensor.clone() for name, tensor in load(base).model.state_dict().items()}
    better = improve(base, [dataset], [driven], tmp_path / "more", replace(CONFIG, learning_rate=1e-4))
    assert better.provenance["improved"][0]["driven"][0]["frames"] == 60
    moved = {
        name for name, tensor in better.model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert any("language_model.layers.0" in name for name in moved) and not any(
        "vision_tower.stages" in name for name in moved
    )
    policy = load_policy(save_base(better, tmp_path / "better"))
    frame = load_examples(driven)
    assert policy.act_batch(frame.images[:1], frame.instructions[:1], frame.proprioception[:1])[
        0
    ].processed.shape == (7,)
    row = {
        "assets": "embedded",
        "setting": "visual matching",
        "task": CARROT,
        "last": 0,
        "any": 1,
        "episodes": 24,
    }
    write_card(tmp_path / "better", better.provenance, [row], "Made in seconds.")
    card = (tmp_path / "better/README.md").read_text()
    assert (
        "| 0/24 | 1/24 |" in card
        and "- scenery: scenery, 1 episodes" in card
        and "- round 1, driven by the policy" in card
        and "It has never been trained on a rationale." in card
    )
    write_card(tmp_path, better.provenance | {"pretraining": {"questions": 1.0}}, [])
    assert "learned to answer questions" in (tmp_path / "README.md").read_text()


@pytest.mark.slow
def test_a_base_that_reads_learns_questions_and_rationales_beside_actions(
    dataset: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    config = replace(CONFIG, grounding_steps=0, questions=1.0, rationales=1.0)
    vla = pretrain([dataset], tmp_path / "work", config, model=replace(SMALL, patch=10))
    assert vla.grid == (12, 16)
    history = (tmp_path / "work" / "history.jsonl").read_text().splitlines()
    assert json.loads(history[-1])["loss_reasoning"] > 0 and json.loads(history[-1])["loss_action"] > 0
    for one in ask(dataset, 1.0, seed=0)[:20]:
        pieces = vla.tokenizer.encode(one.answer, add_special_tokens=False)
        assert len(pieces) <= 2 * len(one.answer.replace(";", " ;").split()) + 1, (
            "its words are in the vocabulary"
        )
    policy = VLAPolicy(vla, "base", order="rationale_first")
    frames = load_examples(dataset)
    asked = ask(dataset, 0.2, seed=1)
    assert len(answers(policy, frames, asked)) == len(asked)


def test_a_frame_that_is_asked_about_is_taught_no_action() -> None:
    demonstrated = load_examples(REPOSITORY / "data" / "demo")
    asked = ask(REPOSITORY / "data" / "demo", 0.5, seed=0)
    together = acted_and_asked(demonstrated, [], asked)
    assert len(np.unique(demonstrated.episodes)) > 1
    vla, rows = load(SHIPPED_BASE), np.arange(len(together))
    kinds = lay_out(vla, together, rows, TrainingConfig(1, lambda_reasoning=1)).kinds
    taught = (kinds == ACTION_KIND).sum(1).numpy()
    of_actions = vla.chunk * demonstrated.actions.shape[1]
    assert set(taught[: len(demonstrated)]) == {of_actions}
    assert set(taught[len(demonstrated) :]) == {0}
    kept_back = held_out(together.episodes)
    about = np.array([one.row for one in asked])
    np.testing.assert_array_equal(kept_back[len(demonstrated) :], kept_back[: len(demonstrated)][about])


@pytest.mark.slow
def test_places_are_asked_for_with_nothing_beside(dataset: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    alone = replace(CONFIG, grounding_steps=0, pointing=0, questions=1, asked=("point",), acting=False)
    vla = pretrain([dataset], tmp_path / "work", alone, model=SMALL)
    rows = [json.loads(row) for row in (tmp_path / "work" / "history.jsonl").read_text().splitlines()]
    assert all(row["loss_reasoning"] > 0 and "loss_action" not in row for row in rows)
    assert vla.provenance["pretraining"]["asked"] == ("point",)


def test_the_average_of_a_base_and_what_became_of_it(tmp_path: Path) -> None:
    words, bins = train_vocabulary(["put the carrot on the plate"]), UniformBins((0.1,) * 7)
    before, vla = (build(SMALL, words, bins, seed) for seed in (0, 1))
    save_base(before, tmp_path / "before")
    first, second = (dict(one.model.named_parameters())["lm_head.weight"] for one in (before, vla))
    wanted = 0.7 * first.detach().clone() + 0.3 * second.detach().clone()
    vla.provenance["improved"] = [{}]
    blend(vla, tmp_path / "before", 0.7)
    torch.testing.assert_close(second.detach(), wanted, rtol=0.02, atol=1e-3)  # in bfloat16
    assert vla.provenance["improved"] == [{"kept": 0.7}]


def test_weights_carry_over_to_another_vocabulary_and_a_finer_grid() -> None:
    bins = UniformBins((0.04,) * 7)
    start = build(SMALL, train_vocabulary(["the plate is left"]), bins, seed=1)
    finer = replace(SMALL, patch=10)
    vla, other = (build(finer, train_vocabulary(["the spoon is left", "far"]), bins, 2) for _ in range(2))
    carry_over(start, vla)
    given, new = start.model.state_dict(), vla.model.state_dict()
    for name in ("model.language_model.layers.1.mlp.up_proj.weight", "model.vision_tower.stages.3.0.weight"):
        assert torch.equal(new[name], given[name]), name
    ids = [one.tokenizer.get_vocab() for one in (start, vla)]
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        for word in ("<action>", "<loc0007>", "\u0120left"):
            assert torch.equal(new[name][ids[1][word]], given[name][ids[0][word]]), word
        unknown = ids[1]["\u0120spoon"]
        assert torch.equal(new[name][unknown], other.model.state_dict()[name][unknown])
    place = "model.vision_tower.position"
    middle = new[place].unflatten(0, (12, 16))[1:3, 1:3].mean((0, 1))  # of four fine ones, between four old
    torch.testing.assert_close(middle, given[place].unflatten(0, (6, 8))[:2, :2].mean((0, 1)))


def test_the_command_goes_on_with_a_base_and_says_what_is_wrong(
    dataset: Path, bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        str(tmp_path / "better"),
        "--dataset",
        str(dataset),
        "--base",
        str(bases["main"]),
        "--work",
        str(tmp_path / "work"),
    ]
    given += ["--steps", "2", "--batch-size", "4", "--threads", "1"]
    with pytest.raises(SystemExit, match=r"^pretraining: pointing is 2 -> "):
        main([*given, "--pointing", "2"])
    assert not list(tmp_path.iterdir())
    main([*given, "--pointing", "0", "--dataset", str(dataset)])
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert made["checkpoint"] == str(tmp_path / "better") and made["improved"][0]["grounding_steps"] == 0
    assert [row["name"] for row in load(tmp_path / "better").provenance["improved"][0]["demonstrations"]] == [
        "demonstrations"
    ] * 2
