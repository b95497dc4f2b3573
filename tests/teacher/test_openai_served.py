"""The teacher `openai` against a real `transformers serve`, with a model small enough to be made here."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from refinevla_kit.episodes import DatasetWriter, Episode, open_dataset
from refinevla_kit.teacher import annotate_dataset, load_rationales
from refinevla_kit.teacher.openai import OpenAITeacher
from refinevla_kit.teacher.prompt import render
from refinevla_kit.teacher.schema import PARTS, CallFailed, Rationale, Refusal, Request

pytestmark = pytest.mark.slow

ANSWER = {
    "observation": "The carrot lies at the left, the plate is at the right and the open gripper is above "
    "them.",
    "situation_analysis": "The carrot is not held yet and the task is not done.",
    "spatial_reasoning": "The gripper is about 12 cm above the carrot; the plate is 20 cm to the right "
    "of it.",
    "task_planning": "Go down to the carrot, then grasp it and lift it.",
    "instruction_matches": True,
    "mismatch": "",
}
QUESTION = "What does the robot do? $instruction\n$frames"
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}\n"
    "{% endfor %}{% endfor %}Answer:"
)
TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 4096}
VISION = TEXT | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "image_size": 28,
    "patch_size": 14,
    "projection_dim": 32,
}


def request() -> Request:
    images = np.random.default_rng(0).integers(0, 255, (2, 30, 40, 3), dtype=np.uint8)
    return Request("shelf", 0, 0, 4, "put carrot on plate", images, [0, 3], np.zeros((4, 7), np.float32))


def tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special, letters = ["<pad>", "<s>", "</s>", "<image>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, show_progress=False, initial_alphabet=letters
    )
    raw.train_from_iterator([json.dumps(ANSWER), QUESTION], trainer)
    extra = {"image_token": "<image>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>", extra_special_tokens=extra
    )


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("prompt") / "short.txt"
    path.write_text(QUESTION)
    return str(path)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, question: str) -> Path:
    """A LLaVA of random weights that has learned `ANSWER` by heart, as the answer to `request`."""
    folder, words = tmp_path_factory.mktemp("taught") / "tiny-llava", tokenizer()
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = LlavaProcessor(
        pictures,
        words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(folder)
    image = words.convert_tokens_to_ids("<image>")
    text = LlamaConfig(**TEXT, **SPECIAL, vocab_size=len(words) + 5)
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=CLIPVisionConfig(**VISION), text_config=text, image_token_index=image)
    model = LlavaForConditionalGeneration(config)

    teacher = OpenAITeacher(str(folder), prompt=question, base_url="http://127.0.0.1")
    content = teacher._body(render(teacher._prompt, request()))["messages"][0]["content"]
    seen = [
        {"type": "image", "url": part["image_url"]["url"]} if "image_url" in part else part
        for part in content
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": seen}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    answer = torch.tensor([[*words.encode(json.dumps(ANSWER)), 2]])
    asked, ids = inputs["input_ids"].shape[1], torch.cat([inputs["input_ids"], answer], 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        output = model(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=inputs["pixel_values"]
        )
        loss = torch.nn.functional.cross_entropy(
            output.logits[:, asked - 1 : -1].flatten(0, 1), answer.flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    assert (folder / "model.safetensors").is_file()
    return folder


@pytest.fixture(scope="module")
def server(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a `transformers serve` of the taught model."""
    for package in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(package, reason=f"`transformers serve` needs {package}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [
        sys.executable,
        "-m",
        "transformers.cli.transformers",
        "serve",
        str(taught),
        "--host",
        "127.0.0.1",
        "--device",
        "cpu",
    ]
    with log.open("wb") as output:
        running = subprocess.Popen(
            [*command, "--port", str(port)],
            stdout=output,
            stderr=output,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
    try:
        answered = False
        while not answered:
            assert running.poll() is None, log.read_text()[-2000:]
            time.sleep(0.2)
            with suppress(OSError):
                answered = urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        running.terminate()
        running.wait(30)


def test_a_model_that_knows_the_answer_gives_a_rationale(server: str, taught: Path, question: str) -> None:
    teacher = OpenAITeacher(str(taught), prompt=question, base_url=server)
    reply = teacher.annotate(request())
    assert reply.result == Rationale(*(ANSWER[part] for part in PARTS))
    assert json.loads(reply.raw) == ANSWER
    worst = teacher.worst_case(request())
    assert 40 < reply.input_tokens < 120 and reply.input_tokens <= worst.input_tokens
    assert 100 < reply.output_tokens < 300


def test_its_limit_of_tokens_is_kept_and_seen(server: str, taught: Path, question: str) -> None:
    reply = OpenAITeacher(str(taught), prompt=question, base_url=server, max_output_tokens=40).annotate(
        request()
    )
    assert isinstance(reply.result, Refusal) and reply.result.kind == "truncated"
    assert reply.output_tokens == 40
    assert json.dumps(ANSWER).startswith(reply.raw)


def test_another_model_than_the_server_has_is_an_error(server: str, question: str) -> None:
    with pytest.raises(CallFailed, match=r"HTTP 400: .*pinned") as failed:
        OpenAITeacher("other", prompt=question, base_url=server).annotate(request())
    assert failed.value.kind == "bad_request"


def test_a_dataset_is_annotated(server: str, taught: Path, question: str, tmp_path: Path) -> None:
    asked = request()
    with DatasetWriter(tmp_path / "two", fps=5, robot_type="widowx") as writer:
        for _ in range(2):
            images = np.repeat(asked.keyframes, 2, axis=0)
            images = np.pad(images, ((0, 0), (1, 1), (4, 4), (0, 0)))  # video wants even sides
            writer.add(
                Episode(
                    images, np.zeros((4, 7), np.float32), np.zeros((4, 15), np.float32), asked.instruction
                )
            )
    teacher = OpenAITeacher(str(taught), prompt=question, base_url=server)
    path = annotate_dataset(
        open_dataset(tmp_path / "two"), teacher, "trajectory", 2, progress=False, confirm=True
    )
    stored = load_rationales(path)
    assert len(stored) == 2
    assert all(row.raw and row.output_tokens and row.version == teacher.version for row in stored)
