"""Checkpoint folders as their authors lay them out: found, weighed, read with every tensor accounted for,
and written again under the same names.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as hub_logging

from refinevla_kit import hub
from refinevla_kit.episodes.meta import pointer_of
from refinevla_kit.errors import KitError, as_kit_error, listed
from refinevla_kit.files import replacing, sha256
from refinevla_kit.simulator.contract import Array
from refinevla_kit.vlas.action_tokens import STATISTICS

CONFIG, ADAPTER, ADAPTERS = "config.json", "adapter_config.json", "adapter_model.safetensors"
PROVENANCE = "refinevla.json"  # beside the authors' files, read by the kit alone
OWN = "refinevla"  # whose statistics a fitted model has
COPY = "copy or download the whole folder again"
NUMBERS = ("BF16", "F16", "F32", "F64")  # dtypes that a weight may be stored in
KEPT = (".json", ".model", ".txt", ".py")  # beside the weights; code is copied along, never run
EXACT = ("state_mean", "state_scale")  # in metres: bfloat16 would shift them by half a millimetre


@dataclass(frozen=True)
class Folder:
    """A checkpoint's folder.

    Attributes:
        path: where its files lie.
        files: name -> content of all that is not weights, so that a copy is written even when the folder has
            gone meanwhile.
        adapter: folder of low-rank adapters of these weights, in peft's form; None where there are none.
    """

    path: Path
    files: Mapping[str, bytes]
    adapter: Path | None = None

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file's object. Raises `KitError` when it is missing or no object."""
        try:
            value = json.loads(self.files[name])
        except KeyError as error:
            raise KitError(f"{self.path} has no {name}", COPY) from error
        except ValueError as error:
            raise KitError(f"the checkpoint {self.path} is damaged ({name}: {error})", COPY) from error
        if not isinstance(value, dict):
            raise KitError(f"{self.path / name} holds a {type(value).__name__}, no object", COPY)
        return value

    def weights(self) -> list[Path]:
        """Files of the weights, all that the index names.

        Raises:
            KitError: none is there, or one that the index names is not.
        """
        index = "model.safetensors.index.json"
        if index in self.files:
            names = sorted(set(self.json(index).get("weight_map", {}).values()))
        else:
            names = ["model.safetensors"]
        missing = [name for name in names if not (self.path / name).is_file()]
        if missing or not names:
            what, remedy = f"{self.path} has no {listed(missing or names)}", COPY
            parts = sorted(file.name for file in self.path.glob("model-*-of-*.safetensors"))
            if parts and index not in self.files:
                what += f", only parts of one ({listed(parts)})"
                remedy = f"copy {index} too, or save the model in one file"
            elif list(self.path.glob("*.bin")):
                remedy = "convert them to safetensors: pickled weights are never opened"
            raise KitError(what, remedy)
        return [self.path / name for name in names]


def locate(source: str | Path) -> Path:
    """Where a checkpoint lies: a folder, or a model of the Hugging Face hub by its name, downloaded once.

    Raises:
        KitError: neither is there, the hub cannot be reached, or the download was interrupted.
    """
    path = hub.download(str(source), hub.FILES["model"]) if hub.is_name(source) else Path(source)
    if not path.is_dir():
        raise KitError(f"there is no checkpoint {source}", "give a folder with config.json, or a hub name")
    return path


def open_folder(source: str | Path) -> Folder:
    """A checkpoint's folder with its files, but for the weights, in memory. Adapters are opened with their
    base, whose files they may replace. `source`: see `locate`.

    Raises:
        KitError: see `locate`; adapters whose base is not there, is none, or is not what it was.
    """
    path = locate(source)
    files = {
        file.name: file.read_bytes()
        for file in sorted(path.iterdir())
        if file.suffix in KEPT and file.is_file()
    }
    return _with_base(Folder(path, files)) if ADAPTER in files else Folder(path, files)


def load_tokenizer(folder: Folder) -> PreTrainedTokenizerFast:
    """The tokenizer beside the weights. Raises `KitError` when it is missing or damaged."""
    with as_kit_error(f"the tokenizer of {folder.path} cannot be read", COPY):
        return PreTrainedTokenizerFast.from_pretrained(str(folder.path), local_files_only=True)


def _with_base(folder: Folder) -> Folder:
    """Adapters and the base that they name."""
    path, name = folder.path, folder.json(ADAPTER).get("base_model_name_or_path")
    remedy = f"name the base as base_model_name_or_path in {path / ADAPTER}, or merge them into it"
    if Path(str(name)).resolve() == path.resolve():
        raise KitError(f"the adapters in {path} name their own folder as their base", remedy)
    try:
        base = open_folder(str(name))
    except KitError as error:
        what = f"the base of the adapters in {path} cannot be opened ({error.what})"
        raise KitError(what, remedy) from error
    if base.adapter is not None:
        raise KitError(f"the adapters in {path} stand on other adapters, {name}", remedy)
    wanted = provenance_of(folder).get("base")
    if wanted and wanted != checkpoint_hash(base.path):
        raise KitError(f"{name} is not the base that the adapters in {path} were trained on", remedy)
    files = {file: content for file, content in folder.files.items() if file != ADAPTER}
    return Folder(base.path, {**base.files, **files}, path)


def read_model(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    folder: Folder,
    dtype: torch.dtype,
    device_map: Any = None,
) -> Any:
    """The model with exactly the tensors of the folder's files; transformers alone would make up what is
    missing.

    Raises:
        KitError: an adapter, too little memory, damaged files, tensors that are not the model's, or numbers
            that are none.
    """
    needed = count_numbers(folder.weights()) * dtype.itemsize
    free = psutil.virtual_memory().available
    if device_map in (None, "cpu") and needed > free:  # else accelerate spreads over devices and disk
        sizes = f"takes {needed / 1e9:.1f} GB in {dtype}, and {free / 1e9:.1f} GB of memory are free"
        remedy = 'load it in torch.bfloat16, with device_map="auto", or on a larger machine'
        raise KitError(f"{folder.path} {sizes}", remedy)
    with (
        as_kit_error(
            f"the checkpoint {folder.path} is damaged",
            COPY,
            (SafetensorError, OSError, ValueError, RuntimeError),
        ),
        quiet(),
    ):
        source: Any = model_class  # its types do not know of the report
        model, report = source.from_pretrained(
            str(folder.path),
            config=config,
            dtype=dtype,
            device_map=device_map,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    shapes = [f"{name} {tuple(had)} for {tuple(want)}" for name, had, want in report["mismatched_keys"]]
    wrong = {
        "missing": sorted(report["missing_keys"]),
        "unknown": sorted(report["unexpected_keys"]),
        "of another shape": sorted(shapes),
    }
    if not any(wrong.values()):
        state = model.state_dict().items()
        wrong["not finite"] = [name for name, x in state if not torch.isfinite(x).all()]
    if any(wrong.values()):
        details = "; ".join(f"{len(names)} {how}: {listed(names)}" for how, names in wrong.items() if names)
        raise KitError(f"the weights in {folder.path} are not those of its config.json ({details})", COPY)
    if folder.adapter is not None:
        model = _merged(model, folder.adapter)
    return model.eval()


def _merged(model: PreTrainedModel, folder: Path) -> Any:
    """The model with the adapters of a folder merged into its weights.

    Raises:
        KitError: damaged adapters, of another model, or other ones than LoRA's.
    """
    from peft import LoraConfig, PeftConfig, get_peft_model, set_peft_model_state_dict

    with as_kit_error(
        f"the adapters in {folder} are damaged",
        COPY,
        (SafetensorError, OSError, ValueError, KeyError, TypeError),
    ):
        settings = PeftConfig.from_pretrained(str(folder))
        weights = load_file(folder / ADAPTERS)
    if not isinstance(settings, LoraConfig):
        raise KitError(f"{folder} holds {settings.peft_type} adapters", "give LoRA's, or a merged model")
    with as_kit_error(f"the adapters in {folder} do not fit their base", COPY, (RuntimeError, ValueError)):
        settings.task_type = None  # of peft's own wrappers, which want more of a model than there is
        wrapped: Any = get_peft_model(model, settings)
        report: Any = set_peft_model_state_dict(wrapped, weights)
    missing = [name for name in report.missing_keys if "lora_" in name]
    broken = [name for name, x in weights.items() if not torch.isfinite(x).all()]
    strange = {"missing": missing, "unknown": report.unexpected_keys, "not finite": broken}
    if any(strange.values()):
        details = "; ".join(f"{len(names)} {how}: {listed(names)}" for how, names in strange.items() if names)
        raise KitError(f"the adapters in {folder} do not fit their base ({details})", COPY)
    merged = wrapped.merge_and_unload()
    merged.__dict__.pop("peft_config", None)
    return merged


def chosen(key: str | None, entries: Mapping[str, Any], what: str, folder: Folder) -> str:
    """The key of one of these entries, the first for None.

    Raises:
        KitError: there is no such entry.
    """
    if not entries:
        raise KitError(f"{folder.path} has no {what}", COPY)
    if key is None:
        return next(iter(entries))
    if key not in entries:
        raise KitError(f"{folder.path} has no {what} {key!r}", f"choose one of {listed(list(entries))}")
    return key


def resized(image: Array, size: tuple[int, int]) -> Array:
    """uint8 (H, W, 3) -> uint8 (height, width, 3) as PIL's bicubic filter has it, `size` (width, height).

    Raises:
        KitError: no RGB picture.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not image.size:
        what = f"a picture is {image.dtype} {image.shape}"
        raise KitError(what, "give RGB as the camera has it: uint8 (H, W, 3), 0 to 255")
    if image.shape[1::-1] == size:
        return image
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def provenance_of(folder: Folder) -> dict[str, Any]:
    """What made a checkpoint, where the kit did; empty for others'."""
    if PROVENANCE in folder.files:
        return folder.json(PROVENANCE)
    # where the compact VLA keeps it; OpenVLA's file of this name holds datasets alone
    return dict(folder.json(STATISTICS).get("provenance") or {}) if STATISTICS in folder.files else {}


def provenance_file(
    provenance: Mapping[str, Any], dataset: str, camera: str | None = None
) -> dict[str, bytes]:
    """Name and content of the file that `provenance_of` reads."""
    about = {**provenance, "dataset": dataset} | ({"camera": camera} if camera else {})
    return {PROVENANCE: json.dumps(about, indent=2).encode()}


def checkpoint_hash(path: str | Path) -> str:
    """First 12 hex digits of the SHA-256 over a checkpoint's weights; goes into every evaluation record."""
    files = sorted(Path(path).glob("*.safetensors"))
    return sha256(files[0])[:12] if len(files) == 1 else digest_of(files)


def files_hash(path: str | Path) -> str:
    """12 hex digits over all of a checkpoint that changes what it does: weights, configuration, words, bin
    limits; not its card or its curves.
    """
    read = (".safetensors", ".json", ".model", ".txt")
    return digest_of(sorted(file for file in Path(path).iterdir() if file.suffix in read))


def digest_of(files: Sequence[Path]) -> str:
    """12 hex digits over the names and contents of files, in this order."""
    lines = "".join(f"{file.name} {sha256(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


def count_numbers(files: list[Path]) -> int:
    """How many numbers the tensors of these files hold; only headers are read.

    Raises:
        KitError: a file is no whole safetensors file, or holds integers or 8-bit floats, whose scale nothing
            here applies.
    """
    total = 0
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:
                slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
                kinds = {name: part.get_dtype() for name, part in slices.items()}
                total += sum(math.prod(part.get_shape()) for part in slices.values())
        except (SafetensorError, OSError) as error:
            damaged = KitError(f"the checkpoint {file.parent} is damaged ({file.name}: {error})", COPY)
            raise pointer_of(file) or damaged from error
        strange = [f"{name} of {kind}" for name, kind in kinds.items() if kind not in NUMBERS]
        if strange:
            remedy = f"store the weights as one of {', '.join(NUMBERS)}, not quantised"
            raise KitError(f"{file} holds {listed(strange)}", remedy)
    return total


def write_folder(
    model: PreTrainedModel,
    files: Mapping[str, bytes],
    path: str | Path,
    dtype: torch.dtype,
    adapter: Path | None = None,
) -> Path:
    """Write weights under the authors' names and their other files beside them. All appears, or nothing.

    Args: see `VLA.save`; `files` is name -> content.
    """
    config = json.loads(files[CONFIG]) | {"torch_dtype": str(dtype).removeprefix("torch.")}
    skipped = ("model.safetensors.index.json", CONFIG)
    with new_folder(model, path, dtype, adapter) as part:
        for name, content in files.items():
            if name not in skipped:
                (part / name).write_bytes(content)
        (part / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return Path(path)


@contextmanager
def new_folder(
    model: PreTrainedModel, path: str | Path, dtype: torch.dtype, adapter: Path | None
) -> Iterator[Path]:
    """A folder that takes its name when the block ends well, with the weights in it, or peft's own two files
    in their place.
    """
    with replacing(path) as part, quiet():
        part.mkdir(parents=True)
        if adapter is None:
            state = {
                name: tensor.detach() if name.endswith(EXACT) else tensor.detach().to(dtype)
                for name, tensor in model.state_dict().items()
            }
            model.save_pretrained(part, state_dict=state)
        else:
            for name in (ADAPTER, ADAPTERS):
                shutil.copy(adapter / name, part / name)
        yield part


@contextmanager
def quiet() -> Iterator[None]:
    """No bar and no report from transformers inside; the user's own settings afterwards."""
    bars, hub_bars = hub_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    level = hub_logging.get_verbosity()
    hub_logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)
        if bars:
            hub_logging.enable_progress_bar()
        if not hub_bars:  # transformers switches both with one call
            disable_progress_bars()
