"""The local teacher with real models of transformers, small enough to be built here: one was taught an answer, the others' weights are random."""

from __future__ import annotations

import json
import pickle
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Gemma2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from refinevla_kit.episodes import DatasetWriter, Episode, open_dataset
from refinevla_kit.errors import KitError
from refinevla_kit.teacher import RunFailed, annotate_dataset, load_rationales
from refinevla_kit.teacher.json_form import MATCHES, OPENINGS, JsonForm, Words
from refinevla_kit.teacher.local import LocalTeacher
from refinevla_kit.teacher.schema import PARTS, CallFailed, Rationale, Refusal, Reply, Request

ANSWER = {
    "observation": "The carrot lies at the left, the plate is at the right and the open gripper is above them.",
    "situation_analysis": "The carrot is not held yet and the task is not done.",
    "spatial_reasoning": "The gripper is about 12 cm above the carrot; the plate is 20 cm to the right of it.",
    "task_planning": "Go down to the carrot, then grasp it and lift it.",
    "instruction_matches": True,
    "mismatch": "",
}
QUESTION = "What does the robot do? $instruction\n$frames"
TEMPLATE = ("{% for message in messages %}{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}\n"
            "{% endfor %}{% endfor %}Answer:")  # fmt: skip


def request(start: int = 0) -> Request:
    images = np.random.default_rng(start).integers(0, 255, (2, 30, 40, 3), dtype=np.uint8)
    return Request("shelf", 0, start, start + 4, "put carrot on plate", images, [start, start + 3], np.zeros((4, 7), np.float32))


def tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special, letters = ["<pad>", "<s>", "</s>", "<image>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False, initial_alphabet=letters)
    raw.train_from_iterator([json.dumps(ANSWER), QUESTION], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
                                   extra_special_tokens={"image_token": "<image>"})


TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "max_position_embeddings": 4096}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("prompt") / "short.txt"
    path.write_text(QUESTION)
    return str(path)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, question: str) -> Path:
    """A LLaVA with a chat template that has learned `ANSWER` by heart, as the answer to request(0)."""
    folder, words = tmp_path_factory.mktemp("taught") / "tiny-llava", tokenizer()
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    LlavaProcessor(pictures, words, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
                   chat_template=TEMPLATE).save_pretrained(folder)
    config = LlavaConfig(vision_config=CLIPVisionConfig(**VISION, projection_dim=32), text_config=LlamaConfig(**TEXT, vocab_size=len(words) + 5),
                         image_token_index=words.convert_tokens_to_ids("<image>"))
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.save_pretrained(folder)
    inputs = LocalTeacher(str(folder), prompt=question)._encode(_parts(question))
    answer = torch.tensor([[*words.encode(json.dumps(ANSWER)), 2]])
    asked, ids = inputs["input_ids"].shape[1], torch.cat([inputs["input_ids"], answer], 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=inputs["pixel_values"]).logits[:, asked - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), answer.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    return folder


def _parts(question: str) -> list:
    from refinevla_kit.teacher.prompt import load_prompt, render

    return render(load_prompt(question), request())


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PaliGemma, whose processor has no chat template, with random weights."""
    folder, words = tmp_path_factory.mktemp("random") / "tiny-paligemma", tokenizer()
    pictures = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    pictures.image_seq_length = 4
    PaliGemmaProcessor(pictures, words).save_pretrained(folder)
    text = Gemma2Config(**TEXT, vocab_size=len(words), num_key_value_heads=2, head_dim=32)
    config = PaliGemmaConfig(vision_config=SiglipVisionConfig(**VISION, projection_dim=64, vision_use_head=False), text_config=text,
                             image_token_index=words.convert_tokens_to_ids("<image>"), projection_dim=64, hidden_size=64)
    torch.manual_seed(0)
    PaliGemmaForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("constrained", [True, False])
def test_a_model_that_knows_the_answer_gives_a_rationale(taught: Path, question: str, constrained: bool) -> None:
    teacher = pickle.loads(pickle.dumps(LocalTeacher(str(taught), prompt=question, constrained=constrained)))  # noqa: S301 - as a worker gets it
    reply = teacher.annotate(request())
    assert reply.result == Rationale(*(ANSWER[part] for part in PARTS))
    assert json.loads(reply.raw) == ANSWER
    assert 40 < reply.input_tokens < 120 and 100 < reply.output_tokens < 300
    assert (teacher.name, teacher.prompt_hash) == ("local", LocalTeacher(str(taught), prompt=question).prompt_hash)


@pytest.mark.parametrize("model", ["taught", "random_model"])
def test_constrained_output_is_json_of_the_right_shape_whatever_the_model_says(model: str, question: str, request: pytest.FixtureRequest) -> None:
    folder = str(request.getfixturevalue(model))
    for seed in range(2):
        teacher = LocalTeacher(folder, prompt=question, temperature=1.5, seed=seed, max_new_tokens=240)
        reply = teacher.annotate(globals()["request"]())
        answer = json.loads(reply.raw)
        assert list(answer) == list(ANSWER) and reply.output_tokens <= 240
        assert all(answer[part].strip() for part in PARTS) and isinstance(answer["instruction_matches"], bool)
        assert bool(answer["mismatch"]) != answer["instruction_matches"]
        assert all(text.isprintable() for text in answer.values() if isinstance(text, str))


def test_a_text_closed_for_the_model_is_a_truncation_and_not_a_rationale(taught: Path, question: str) -> None:
    tokens = Words(tokenizer(), None).frame + 70  # 69 for the texts, of which the first of five gets 13
    reply = LocalTeacher(str(taught), prompt=question, max_new_tokens=tokens).annotate(request())
    assert reply.result == Refusal("truncated", f"observation did not end within its share of the {tokens} tokens")
    assert ANSWER["observation"].startswith(json.loads(reply.raw)["observation"])


def test_unconstrained_noise_is_a_typed_refusal(random_model: Path, question: str) -> None:
    kinds = {LocalTeacher(str(random_model), prompt=question, constrained=False, temperature=1.0, seed=seed, max_new_tokens=30).annotate(request())
             .result.kind for seed in range(3)}  # fmt: skip
    assert kinds <= {"truncated", "not_json", "empty"}


def test_the_same_seed_gives_the_same_text_in_any_order(random_model: Path, question: str) -> None:
    options = {"prompt": question, "constrained": False, "temperature": 1.0, "max_new_tokens": 30}
    first, again, other = (LocalTeacher(str(random_model), seed=seed, **options) for seed in (3, 3, 4))
    replies = {start: first.annotate(request(start)) for start in (0, 5)}
    torch.rand(7)
    assert {start: again.annotate(request(start)) for start in (5, 0)} == replies
    assert replies[0].raw != replies[5].raw and other.annotate(request(0)).raw != replies[0].raw
    assert first.version == again.version != other.version


def test_a_budget_reserves_at_least_what_a_call_can_take(taught: Path, question: str) -> None:
    teacher = LocalTeacher(str(taught), prompt=question, max_new_tokens=250)
    worst = teacher.worst_case(request())
    first = Reply(Refusal("wrong_shape", "x" * 200), "%&\n" * 2000)
    follow_up = teacher.annotate(request(), first)
    assert teacher.annotate(request()).input_tokens < follow_up.input_tokens <= worst.input_tokens
    assert follow_up.output_tokens <= worst.output_tokens == 250
    with pytest.raises(CallFailed, match="more than the model's 4096: show fewer keyframes"):
        LocalTeacher(str(taught), prompt=question, max_new_tokens=4096).annotate(request())


def test_its_refusals_are_counted_like_any_other(random_model: Path, question: str, tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "two", fps=5, robot_type="widowx") as writer:
        for length in (4, 3):
            images = np.zeros((length, 32, 48, 3), np.uint8)
            writer.add(Episode(images, np.zeros((length, 7), np.float32), np.zeros((length, 15), np.float32), "put carrot on plate"))
    dataset = open_dataset(tmp_path / "two")
    teacher = LocalTeacher(str(random_model), prompt=question, max_new_tokens=250)
    with pytest.raises(RunFailed, match=r"no rationale was written: .* 2 refused requests in a row") as failed:
        annotate_dataset(dataset, teacher, "trajectory", 2, progress=False, confirm=True)
    stored = load_rationales(failed.value.path)
    assert Counter(one.refusal.kind if one.refusal else "rationale" for one in stored).total() == 2
    assert all(one.refusal and one.raw and one.output_tokens and one.version == teacher.version for one in stored)


def test_the_version_is_of_the_weights(taught: Path, tmp_path: Path) -> None:
    shutil.copytree(taught, tmp_path / taught.name)
    same = LocalTeacher(str(tmp_path / taught.name))
    assert same.version == LocalTeacher(str(taught)).version
    weights = tmp_path / taught.name / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert LocalTeacher(str(tmp_path / taught.name)).version != same.version


def test_a_hub_name_is_read_from_the_cache_with_its_commit(taught: Path, question: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, cache = "0123456789abcdef0123456789abcdef01234567", tmp_path / "models--lab--tiny"
    shutil.copytree(taught, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    teacher = LocalTeacher("lab/tiny", prompt=question)
    assert teacher.version.startswith(f"tiny@{commit[:12]}")
    assert isinstance(teacher.annotate(request()).result, Rationale)
    with pytest.raises(KitError, match="the hub gives no such model"):
        LocalTeacher("lab/absent")


def test_code_that_a_model_brings_runs_only_when_the_user_says_so(taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    shutil.copytree(taught, tmp_path / "model")
    brings = {"model_type": "mine", "processor_class": None, "auto_map": {"AutoConfig": "code.Mine", "AutoProcessor": "code.Mine"}}
    for name in ("config.json", "processor_config.json"):
        (tmp_path / "model" / name).write_text(json.dumps(json.loads((tmp_path / "model" / name).read_text()) | brings))
    (tmp_path / "model/code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise ValueError('it ran')\n")
    with pytest.raises(KitError, match="trust_remote_code=True, if you trust"):
        LocalTeacher(str(tmp_path / "model")).annotate(request())
    assert not (tmp_path / "ran").exists()
    with pytest.raises(KitError, match="it ran"):
        LocalTeacher(str(tmp_path / "model"), trust_remote_code=True).annotate(request())
    assert (tmp_path / "ran").exists()


def test_what_is_no_model_is_refused(tmp_path: Path, question: str) -> None:
    with pytest.raises(KitError, match="needs a model"):
        LocalTeacher()
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(KitError, match="holds no safetensors"):
        LocalTeacher(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(KitError, match="cannot be loaded by transformers"):
        LocalTeacher(str(tmp_path)).annotate(request())


def test_a_form_reads_tokens_of_any_cut() -> None:
    """Every walk through the form that its masks allow ends in the right JSON, with tokens that run over the end of a text too."""
    words = Words(tokenizer(), None)
    assert any('",' in text for text in words.texts) or any('."' in text for text in words.texts)
    rng = np.random.default_rng(0)
    for _ in range(20):
        form, ids, written = JsonForm(words, 230), [0], ""
        while True:
            scores = form(torch.tensor([ids]), torch.zeros(1, len(words.texts) + 3))
            token = int(rng.choice(torch.isfinite(scores[0]).nonzero().flatten().numpy()))
            if token == words.end:
                break
            ids.append(token)
            written += words.texts[token]
        answer = json.loads(written)
        assert written.startswith(OPENINGS[0]) and list(answer) == list(ANSWER) and len(ids) <= 230
        assert written.endswith(MATCHES) == answer["instruction_matches"]
    with pytest.raises(KitError, match="max_new_tokens is 40"):
        JsonForm(words, 40)
