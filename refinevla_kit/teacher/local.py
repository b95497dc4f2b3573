"""A teacher on this machine: any image-text-to-text model of transformers, from a folder or by its name on the hub.

Weights are read from safetensors only, and code that comes with a model runs only when the user says so.
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL.Image import Image

from refinevla_kit.errors import KitError
from refinevla_kit.teacher.prompt import QUOTED, Part, load_prompt, render
from refinevla_kit.teacher.replies import parse
from refinevla_kit.teacher.schema import CallFailed, Rationale, Refusal, Reply, Request, Usage

SMALL = ("*.json", "*.jinja", "*.txt", "*.model", "*.py")  # everything of a model but its weights
_ONE_AT_A_TIME = threading.Lock()  # torch's random numbers belong to the process, and one model fills the device


@dataclass
class LocalTeacher:
    """Loads its model at the first call. Its replies are read by `replies` like anyone's, so what it refuses or garbles is typed and counted alike.

    Args:
        model: a folder written by `save_pretrained`, or a name on the hub. revision: branch, tag or commit of the latter.
        prompt, contact_sheet, state: as for the other teachers; models trained on single pictures want contact_sheet=True.
        constrained: force the answer's JSON shape (`json_form`); False lets the model write freely.
        max_new_tokens: of one answer. temperature: 0 decodes greedily; above, sampling, seeded by `seed` and the question.
        device: "" takes the GPU where there is one. trust_remote_code: run Python code that the model brings.
    Attributes: name, version, prompt_hash: see `Teacher`; the version holds a hash of the folder's files, or the hub's commit, and the decoding.
    Raises: `KitError` where there is no such model, it has no safetensors, or its own code would have to run.
    """

    model: str = ""
    revision: str | None = None
    prompt: str = "rationale_v1"
    contact_sheet: bool = False
    state: bool = False
    constrained: bool = True
    max_new_tokens: int = 768
    temperature: float = 0.0
    seed: int = 0
    device: str = ""
    trust_remote_code: bool = False

    name: ClassVar[str] = "local"

    def __post_init__(self) -> None:
        if not self.model:
            raise KitError("the teacher local needs a model", "give model=..., the folder of an image-text-to-text model or its name on the hub")
        self._prompt = load_prompt(self.prompt)
        self.prompt_hash = self._prompt.hash
        self._place, which = _find(self.model, self.revision)
        decoding = f"temperature {self.temperature:g}, seed {self.seed}" if self.temperature else "greedy"
        extras = (word.replace("_", " ") for word in ("contact_sheet", "state", "constrained") if getattr(self, word))
        self.version = ", ".join([f"{Path(self.model).name}@{which}", decoding, f"{self.max_new_tokens} tokens", *extras])
        self._model: Any = None
        self._processor: Any = None
        self._words: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the model: another process loads its own."""
        return self.__dict__ | dict.fromkeys(("_model", "_processor", "_words"))

    def annotate(self, request: Request, previous: Reply | None = None) -> Reply:
        """See `Teacher.annotate`. A text that had to be closed for the model makes the refusal "truncated", though the JSON is whole."""
        with _ONE_AT_A_TIME:
            inputs = self._encode(render(self._prompt, request, previous, contact_sheet=self.contact_sheet, state=self.state))
            tokens, cut = self._generate(inputs, zlib.crc32(repr((self.seed, request.dataset, request.span, previous)).encode()))
        raw = self._processor.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        result: Rationale | Refusal = parse(raw, request, cut=len(tokens) == self.max_new_tokens)
        if cut:
            result = Refusal("truncated", f"{cut} did not end within its share of the {self.max_new_tokens} tokens")
        return Reply(result, raw, inputs["input_ids"].shape[1], len(tokens))

    def worst_case(self, request: Request) -> Usage:
        """See `Teacher.worst_case`: the question as the processor counts it, and the follow-up's words at a token a byte."""
        with _ONE_AT_A_TIME:
            asked = self._encode(render(self._prompt, request, contact_sheet=self.contact_sheet, state=self.state))["input_ids"].shape[1]
        return Usage(asked + len(self._prompt.repair.encode()) + QUOTED + 400, self.max_new_tokens)

    def _encode(self, parts: list[Part]) -> Any:
        """What the model takes (input_ids (1, T), pictures, ...): a chat turn where the processor has a template, else text with pictures in it."""
        from transformers import AutoProcessor

        processor = self._processor = self._processor or self._read(AutoProcessor)
        try:
            if getattr(processor, "chat_template", None):
                content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part} for part in parts]
                inputs = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True,
                                                       return_dict=True, return_tensors="pt")
            else:
                text = "\n".join(part if isinstance(part, str) else getattr(processor, "image_token", "") for part in parts)
                inputs = processor(text=[text], images=[[part for part in parts if isinstance(part, Image)]], return_tensors="pt")
        except (ValueError, TypeError, RuntimeError) as error:
            raise KitError(f"the processor of {self.model} does not take the question ({_line(error)})", "try contact_sheet=True") from error
        inputs.pop("labels", None)  # PaliGemma's processor makes them, and a model given labels computes a loss
        return inputs

    def _generate(self, inputs: Any, seed: int) -> tuple[list[int], str]:
        """The new tokens, and the name of the text that had to be closed for the model."""
        import torch
        from transformers import AutoModelForImageTextToText, LogitsProcessorList

        from refinevla_kit.teacher.json_form import JsonForm, Words

        if self._model is None:
            loaded = self._read(AutoModelForImageTextToText, dtype="auto", use_safetensors=True)
            self._words = Words(self._processor.tokenizer, loaded.generation_config.eos_token_id) if self.constrained else None
            self._model = loaded.eval().to(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model, asked = self._model, inputs["input_ids"].shape[1]
        room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if room and asked + self.max_new_tokens > room:
            what = f"the question takes {asked} tokens and the answer {self.max_new_tokens}, more than the model's {room}: show fewer keyframes"
            raise CallFailed("bad_request", what)
        form = JsonForm(self._words, self.max_new_tokens) if self._words else None
        sampling = {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        try:
            with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []), torch.inference_mode():
                torch.manual_seed(seed)
                output = model.generate(**inputs.to(model.device, dtype=model.dtype), **sampling, max_new_tokens=self.max_new_tokens, num_beams=1,
                                        pad_token_id=0, logits_processor=LogitsProcessorList([form] if form else []))
        except torch.OutOfMemoryError as error:
            raise KitError(f"{self.model} does not fit on {model.device}", "show fewer keyframes, or take a smaller model") from error
        return output[0, asked:].tolist(), form.cut if form else ""

    def _read(self, kind: Any, **options: Any) -> Any:
        try:
            return kind.from_pretrained(**self._place, trust_remote_code=self.trust_remote_code, **options)
        except (ImportError, OSError, ValueError, KeyError) as error:  # ImportError: the processors of some families need torchvision
            remedy = "install what it names; give an image-text-to-text model; or trust_remote_code=True, if you trust the code it brings"
            raise KitError(f"{self.model} cannot be loaded by transformers ({_line(error)})", remedy) from error


def _find(model: str, revision: str | None) -> tuple[dict[str, Any], str]:
    """Where transformers finds the model, and which version it is. Of a model on the hub everything but the weights is fetched."""
    folder = Path(model).expanduser().resolve()
    if folder.is_dir():
        if not any(folder.glob("*.safetensors")):
            raise KitError(f"{folder} holds no safetensors", "give a folder written by save_pretrained; other formats can run code")
        digest = hashlib.sha256()
        for file in sorted(found for pattern in (*SMALL, "*.safetensors") for found in folder.glob(pattern)):
            with file.open("rb") as content:
                digest.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
        return {"pretrained_model_name_or_path": str(folder)}, digest.hexdigest()[:12]
    from huggingface_hub import snapshot_download

    try:
        commit = Path(snapshot_download(model, revision=revision, allow_patterns=list(SMALL))).name
    except (OSError, ValueError) as error:
        raise KitError(f"there is no folder {model}, and the hub gives no such model ({_line(error)})", "check the name and the network") from error
    return {"pretrained_model_name_or_path": model, "revision": commit}, commit[:12]


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200]
