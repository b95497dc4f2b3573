"""Captured attention as plain arrays, and the file it travels in; no policy and no torch is needed to look at
it.

One safetensors file holds any number of captures. Its header says whose they are, so a file made on a GPU
opens in an explorer elsewhere, and a file of another checkpoint than the one asked for is refused instead of
shown under the wrong name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from refinevla_kit.errors import KitError
from refinevla_kit.files import replacing
from refinevla_kit.policies.contract import Action, Array

OWN_STATE = "robot state"
ACTION_QUERY, RATIONALE_QUERY, INSTRUCTION_QUERY = KINDS = ("action", "rationale", "instruction")
FORMAT = "refinevla-captures-1"
_ACTION_ARRAYS = ("processed", "normalised", "tokens", "log_probability")


@dataclass(frozen=True)
class Query:
    """What is asked about: an action dimension, a word of the rationale or a word of the instruction.

    Attributes:
        label: the dimension's name ("x", "translation", ...) or the word.
        kind: "action", "rationale" or "instruction".
        positions: where in the sequence its rows are, one a token; its attention is their mean. Of an action
            dimension or a word of the rationale the positions whose outputs *predict* its tokens, each one
            before the token itself; of a word of the instruction, which nothing predicts, the word's own.
        tokens: its vocabulary ids, one a position.
    """

    label: str
    kind: str
    positions: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Capture:
    """Attention of Q queries on one picture. `patches` and `others` of a row add up to 1.

    Attributes:
        patches: float32 (layers, heads, Q, rows * columns), attention to each image patch, row by row.
        others: float32 (layers, heads, Q, T), attention to each further token; 0 for tokens that come later.
        labels: the T tokens: those of the instruction, markers, earlier action tokens, the rationale's,
            `OWN_STATE` where the policy reads it.
        words: how many of them, counted from the first, are the instruction's.
        queries: the Q queries: action dimensions first, then words of the rationale, then words of the
            instruction, of those that were asked for.
        grid: rows and columns of patches.
        action: what the policy did (or was given).
        policy, checkpoint_hash: who acted.
        rationale: the text in the sequence, "" where there is none.
        image_hash: `image_hash` of the picture, "" when unknown.
    """

    patches: Array
    others: Array
    labels: tuple[str, ...]
    words: int
    queries: tuple[Query, ...]
    grid: tuple[int, int]
    action: Action
    policy: str
    checkpoint_hash: str
    rationale: str = ""
    image_hash: str = ""

    @property
    def layers(self) -> int:
        return int(self.patches.shape[0])

    @property
    def heads(self) -> int:
        return int(self.patches.shape[1])

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names of the captured action dimensions; the first queries are theirs."""
        return tuple(query.label for query in self.queries if query.kind == ACTION_QUERY)

    @property
    def image_share(self) -> Array:
        """float32 (layers, heads, Q): how much of each row goes to the picture; the rest goes to words, the
        own state and the answer so far.
        """
        return np.asarray(self.patches.sum(-1))

    def map(self, layer: int, token: int | None = None, head: int | None = None) -> Array:
        """float32 (rows, columns): attention to each patch.

        Args:
            layer: from 0.
            head: from 0; None is the mean over heads.
            token: number of the query; None is the mean over action dimensions, over all queries where none
                of them is one.

        Raises:
            KitError: layer, query or head out of range.
        """
        for name, value, size in (
            ("layer", layer, self.layers),
            ("query", token, len(self.queries)),
            ("head", head, self.heads),
        ):
            if value is not None and not 0 <= value < size:
                raise KitError(f"{self.policy} has no {name} {value}", f"choose 0 to {size - 1}")
        heads = self.patches[layer].mean(0) if head is None else self.patches[layer, head]  # Q, patches
        row = heads[: len(self.dimensions) or None].mean(0) if token is None else heads[token]
        return np.asarray(row.reshape(self.grid))


def upper_middle(layers: int) -> int:
    """The layer (from 0) shown when none is chosen: three fifths up, past the layers that copy positions and
    before the ones that only read out.
    """
    return 3 * layers // 5


def image_hash(image: Array) -> str:
    """Names a picture, uint8 (H, W, 3): the first 12 hex digits of the SHA-256 over its size and pixels."""
    image = np.ascontiguousarray(image)
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()[:12]


def save_captures(captures: Sequence[Capture], path: str | Path) -> Path:
    """Write captures of one policy to one safetensors file; it appears whole or not at all.

    Raises:
        KitError: no captures, or of two checkpoints.
    """
    owners = {(one.policy, one.checkpoint_hash or "") for one in captures}
    if len(owners) != 1:
        what = f"captures of {len(owners)} policies for one file"
        raise KitError(what, "write one file a policy, with at least one capture")
    tensors: dict[str, Array] = {}
    entries = []
    for number, one in enumerate(captures):
        tensors |= {
            f"{number}.{name}": np.ascontiguousarray(getattr(one, name)) for name in ("patches", "others")
        }
        tensors |= {
            f"{number}.action.{name}": np.ascontiguousarray(getattr(one.action, name))
            for name in _ACTION_ARRAYS
        }
        entry = {name: getattr(one, name) for name in ("labels", "words", "grid", "rationale", "image_hash")}
        written = {"rationale": one.action.rationale, "terminate": one.action.terminate}
        entries.append(entry | {"queries": [asdict(query) for query in one.queries], "action": written})
    policy, checkpoint_hash = owners.pop()
    header = {
        "format": FORMAT,
        "policy": policy,
        "checkpoint_hash": checkpoint_hash,
        "captures": json.dumps(entries),
    }
    with replacing(path) as part:
        save_file(tensors, part, metadata=header)
    return Path(path)


def load_captures(path: str | Path, checkpoint_hash: str | None = None) -> list[Capture]:
    """Read what `save_captures` wrote.

    Args:
        checkpoint_hash: of the checkpoint that is asked for; None takes whichever it is.

    Raises:
        KitError: no such file, another kind of file, a damaged one, or captures of another checkpoint than
            asked for.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise KitError(
                    f"{path} has format {header.get('format')!r}",
                    f"give a file of save_captures, format {FORMAT!r}",
                )
            policy, found = header["policy"], header["checkpoint_hash"]
            if checkpoint_hash is not None and found != checkpoint_hash:
                what = (
                    f"{path} holds attention of {policy} ({found or 'no hash'}), not of the checkpoint "
                    f"{checkpoint_hash}"
                )
                raise KitError(
                    what, "capture again with this checkpoint, or open the checkpoint that the file is of"
                )
            captures = []
            for number, entry in enumerate(json.loads(header["captures"])):
                arrays = {name: file.get_tensor(f"{number}.{name}") for name in ("patches", "others")}
                action = Action(
                    **{name: file.get_tensor(f"{number}.action.{name}") for name in _ACTION_ARRAYS},
                    **entry.pop("action"),
                )
                queries = tuple(
                    Query(q["label"], q["kind"], tuple(q["positions"]), tuple(q["tokens"]))
                    for q in entry.pop("queries")
                )
                entry |= {
                    "labels": tuple(entry["labels"]),
                    "grid": tuple(entry["grid"]),
                    "queries": queries,
                    "action": action,
                }
                captures.append(Capture(**arrays, **entry, policy=policy, checkpoint_hash=found))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise KitError(
            f"{path} cannot be read as captured attention ({error})",
            "give a file that save_captures wrote, or capture again",
        ) from error
    return captures
