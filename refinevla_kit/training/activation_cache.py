"""What is frozen is computed once: the hidden states at the boundary, of every frame's whole sequence, in one
memory-mapped file.

    states.bin              one row of d numbers a token, frames one after the other, no padding; bfloat16 or
                            float32
    sequences.safetensors   offsets (N + 1): frame i has the rows offsets[i] to offsets[i + 1]; and each row's
                            token id, type and kind
    cache.json              the key: everything the states depend on

The key is compared whenever a cache is opened, so states of other weights, pictures or words are refused
instead of trained on. The learning rate, the seed and lambda (above zero) are no part of it: runs that differ
in nothing else share one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from refinevla_kit.errors import KitError, as_kit_error
from refinevla_kit.files import read_json, replacing, write_json
from refinevla_kit.simulator.contract import Array
from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.examples import Examples
from refinevla_kit.training.freezing import boundary_states
from refinevla_kit.training.objective import Batch, lay_out, tower_tokens
from refinevla_kit.training.pictures import bytes_of
from refinevla_kit.vlas.contract import VLA
from refinevla_kit.vlas.sequence import Sequences, padded_sequences

STATES, SEQUENCES, KEY = "states.bin", "sequences.safetensors", "cache.json"
FORMAT, CHUNK = "refinevla-activations-2", 64
# numpy has no bfloat16: its bits are kept as integers
STORED = {"bf16": (np.int16, torch.bfloat16), "fp32": (np.float32, torch.float32)}
GEOMETRY = (
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "rms_norm_eps",
    "rope_parameters",
    "sliding_window",
    "layer_types",
)


@dataclass(frozen=True)
class ActivationCache:
    """An open cache of N frames with T tokens in all.

    Attributes:
        states: (T, d), memory-mapped; bfloat16 as int16.
        ids, types, kinds: (T,), see `Sequences`.
        offsets: int64 (N + 1).
        precision: "bf16" or "fp32".
        pad: the token id that fills shorter sequences.
    """

    states: Array
    ids: Tensor
    types: Tensor
    kinds: Tensor
    offsets: Array
    precision: str
    pad: int

    def read(self, rows: Array) -> tuple[Sequences, Tensor]:
        """Sequences (B, N) of the frames `rows` (int (B,)), padded on the right, and their states float32 (B,
        N, d), 0 on padding.
        """
        spans = [slice(self.offsets[row], self.offsets[row + 1]) for row in rows.tolist()]
        parts = ([part[span].long() for span in spans] for part in (self.ids, self.types, self.kinds))
        stored = [torch.from_numpy(np.array(self.states[span])) for span in spans]
        states = [part.view(STORED[self.precision][1]) for part in stored]
        return padded_sequences(self.pad, *parts), pad_sequence(states, batch_first=True).float()


def open_or_write(
    vla: VLA, examples: Examples, config: TrainingConfig, folder: str | Path, progress: bool = True
) -> ActivationCache:
    """The cache of this model and data in `folder`, written first where there is none, or one of something
    else.

    Args:
        folder: of all caches of a project; each depth, layout and precision has its own folder in it
            (`cache_path`).

    Raises:
        KitError: the cache there is damaged, or would be too large; nothing is written then.
    """
    path, key = cache_path(folder, config), cache_key(vla, examples, config)
    there = (path / KEY).is_file()
    other = _other(_stored(path)["key"], key) if there else []
    if other and progress:
        tqdm.write(f"the activation cache {path} was made with other {', '.join(other)}: it is made anew")
    if other or not there:
        _write(path, vla, examples, config, key, progress)
    return open_cache(path, key)


def cache_path(folder: str | Path, config: TrainingConfig) -> Path:
    """Where in `folder` runs with this configuration keep their states: lambda 0 has shorter sequences than
    lambda above it, seeds share them.
    """
    parts = (
        f"below_layer_{config.depth}",
        config.order,
        "rationales" if config.lambda_reasoning > 0 else "actions",
        config.stored_precision,
    )
    return Path(folder) / "-".join(parts)


def cache_bytes(tokens: int, width: int, precision: str) -> int:
    """Size of the states of `tokens` tokens."""
    return tokens * width * int(np.dtype(STORED[precision][0]).itemsize)


def cache_key(vla: VLA, examples: Examples, config: TrainingConfig) -> dict[str, Any]:
    """Everything the states depend on, by the name an error gives it."""
    own = examples.proprioception if vla.reads_state else None
    reads_rationales = config.lambda_reasoning > 0
    return {
        "format": FORMAT,
        "frozen weights": _frozen_weights(vla, config.depth),
        "pictures": _hash(bytes_of(examples.images))
        + ("" if examples.picture is None else _hash(examples.picture)),
        "proprioception": None if own is None else _hash(np.ascontiguousarray(own)),
        "frames": len(examples),
        # where plans of several steps end
        "episodes": _hash(bytes_of(examples.episodes)) if vla.chunk > 1 else None,
        "settings": _hash(vla.settings.encode()),
        "instructions": _hash(json.dumps(examples.instructions).encode()),
        "actions": _hash(np.ascontiguousarray(examples.actions)),
        "rationales": _hash(json.dumps(examples.rationales).encode()) if reads_rationales else None,
        "action tokens": vla.bins.to_dict(),
        "freeze depth": config.depth,
        "order": config.order,
        "image tokens": vla.image_tokens,
        "vocabulary": _hash(json.dumps(sorted(vla.tokenizer.get_vocab().items())).encode()),
        "stored precision": config.stored_precision,
        "computed precision": config.precision,
    }


def _frozen_weights(vla: VLA, depth: int) -> str:
    """A hash of all that makes the states: the frozen modules, and how the decoder runs them."""
    decoder = vla.decoder
    geometry = [str(getattr(decoder.config, name, None)) for name in GEOMETRY]
    digest = hashlib.sha256(json.dumps(geometry).encode())
    frozen = (*vla.tower, *vla.projector, *vla.embeddings, *vla.layers[:depth])
    for number, module in enumerate(frozen):
        for name, tensor in module.state_dict().items():
            digest.update(f"{number} {name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def open_cache(path: str | Path, key: dict[str, Any]) -> ActivationCache:
    """Open the cache `path`.

    Raises:
        KitError: its key is not `key` (which says what differs), or it cannot be read.
    """
    path, again = Path(path), "delete that folder, it is made again"
    stored = _stored(path)
    pad, width = stored["pad"], stored["width"]
    if other := _other(stored["key"], key):
        what = f"the activation cache {path} was made with other {', '.join(other)} than this run has"
        raise KitError(what, "delete that folder, or give another `cache_folder`")
    precision = key["stored precision"]
    with as_kit_error(
        f"the activation cache {path} is damaged", again, (SafetensorError, OSError, ValueError, KeyError)
    ):
        parts = load_file(path / SEQUENCES)
        offsets = parts["offsets"].numpy()
        states = np.memmap(path / STATES, STORED[precision][0], mode="r").reshape(-1, width)
    if len(offsets) != key["frames"] + 1 or len(states) != offsets[-1]:
        raise KitError(
            f"the activation cache {path} is damaged ({len(states)} states of {offsets[-1]} tokens)", again
        )
    return ActivationCache(states, parts["ids"], parts["types"], parts["kinds"], offsets, precision, pad)


def _stored(path: Path) -> dict[str, Any]:
    """What is kept of how a cache was made."""
    with as_kit_error(f"the activation cache {path} cannot be read", "delete that folder, it is made again"):
        stored = read_json(path / KEY)
        return {"key": dict(stored["key"]), "pad": int(stored["pad"]), "width": int(stored["width"])}


def _other(found: Mapping[str, Any], key: Mapping[str, Any]) -> list[str]:
    """What two keys differ in."""
    return [name for name in {**key, **found} if found.get(name) != key.get(name)]


def _write(
    path: Path,
    vla: VLA,
    examples: Examples,
    config: TrainingConfig,
    key: dict[str, Any],
    progress: bool,
) -> None:
    laid = [lay_out(vla, examples, rows, config) for rows in _chunks(len(examples))]
    real = [s.attention_mask == 1 for s in laid]  # places that are no padding
    lengths = np.concatenate([mask.sum(1).numpy() for mask in real])
    width = int(vla.decoder.config.hidden_size)
    size = cache_bytes(int(lengths.sum()), width, config.stored_precision)
    _check_room(path, size, config)
    if progress:
        tqdm.write(f"activation cache: {_gigabytes(size)} for {len(examples)} frames, in {path}")
    layout = {
        "ids": torch.cat([s.input_ids[mask] for s, mask in zip(laid, real)]).int(),
        "types": torch.cat([s.token_type_ids[mask] for s, mask in zip(laid, real)]).to(torch.uint8),
        "kinds": torch.cat([s.kinds[mask] for s, mask in zip(laid, real)]).to(torch.uint8),
        "offsets": torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int64)),
    }
    bar = tqdm(total=len(examples), desc="activation cache", unit="frame", disable=not progress)
    with replacing(path) as part, bar:
        part.mkdir(parents=True)
        # Written in order, not through the map: a full disk is then an error, not a crash.
        with (part / STATES).open("wb") as file:
            for rows, sequences, mask in zip(_chunks(len(examples)), laid, real, strict=True):
                states = _states(vla, examples, config, rows, sequences)[mask]  # tokens, d: no padding
                file.write(states.contiguous().view(torch.uint8).numpy().tobytes())
                bar.update(len(rows))
        save_file(layout, part / SEQUENCES)
        write_json(part / KEY, {"key": key, "pad": vla.marks.pad, "width": width, "bytes": size})


def _states(
    vla: VLA, examples: Examples, config: TrainingConfig, rows: Array, sequences: Sequences
) -> Tensor:
    """The states (B, N, d) of the frames `rows` in the number format they are stored in."""
    device = vla.device
    own = None if examples.proprioception is None else examples.proprioception[rows]
    tokens = tower_tokens(vla, examples.shown(rows)).to(device).float()
    batch = Batch(sequences.to(device), tokens=tokens, states=vla.states(own))
    with config.autocast(device):
        states = boundary_states(vla, batch, config.depth)
    return states.cpu().to(STORED[config.stored_precision][1])


def _check_room(path: Path, size: int, config: TrainingConfig) -> None:
    """Raises `KitError` before anything is written."""
    what = f"the activation cache {path} would take {_gigabytes(size)}"
    if size > config.cache_limit_gb * 1e9:
        remedy = 'raise `cache_limit_gb`, set `cache_precision` to "bf16" or `cache` to "off"'
        raise KitError(f"{what}, the limit is {config.cache_limit_gb:g} GB", remedy)
    free = shutil.disk_usage(next(folder for folder in path.absolute().parents if folder.exists())).free
    if size > free:
        remedy = 'free space, give another `cache_folder`, or set `cache` to "off"'
        raise KitError(f"{what}, the disk has {_gigabytes(free)} left", remedy)


def _gigabytes(size: int) -> str:
    return f"{size:,} bytes ({size / 1e9:.3g} GB)"


def _chunks(frames: int) -> Iterator[Array]:
    return (np.arange(start, min(start + CHUNK, frames)) for start in range(0, frames, CHUNK))


def _hash(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()
