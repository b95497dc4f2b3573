"""Acting with a VLA: key-value cached, batched, restricted at each place to the action words allowed there.

Uniform bins lie in order, so of what the policy holds likely the *median* bin can be said instead of the
likeliest. In many frames of a demonstration the command is exactly zero. That one bin outweighs each of the
twenty that a correction is spread over, so the likeliest word stands still beside the object (docs/log.md has
the figures). The median loses the least distance, and of two minds takes the larger
side.

A VLA that plans several steps in one answer acts on the mean of all plans for a step, the newest counting
most, as SpatialVLA's authors evaluate it. Such a policy, and one whose gripper's motion has to be repeated,
needs an episode's past: it has `act` alone, `decide` is its answer without a past.

The first step runs the whole sequence, picture and prefix. A later step is one token over the cache: it
attends to everything before it, so there is no mask to make. Of the output head only the rows that may be
said are multiplied. Rows whose instructions differ in length are decoded together: the shorter ones are
padded on the left, and masked there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from refinevla_kit.conventions import ROBOT_CONVENTIONS, Conventions
from refinevla_kit.errors import KitError, check_choice
from refinevla_kit.policies.contract import Action, Array
from refinevla_kit.policies.conversion import ActionConversion
from refinevla_kit.vlas import load_vla
from refinevla_kit.vlas.action_tokens import UniformBins
from refinevla_kit.vlas.checkpoint import files_hash, locate
from refinevla_kit.vlas.contract import VLA
from refinevla_kit.vlas.decoder import Edit, embed, in_turn, kinds_of, logits_of, masks_of, run_layers
from refinevla_kit.vlas.released import QuantileWords
from refinevla_kit.vlas.sequence import ORDERS, answer_ids

LONGEST_RATIONALE = 160  # tokens
ABSENT = -1  # where a shorter text has no more words
DECODINGS = ("median", "greedy")
NEWER = 0.8  # SpatialVLA's evaluation: a plan made k steps later counts exp(0.8 k) times as much


class Change(Protocol):
    """What is changed in the decoder's layers while a policy acts; its `str` stands in the records."""

    def edit(self, vla: VLA, ids: Tensor, prefix: int, new: int) -> Edit:
        """The change for the last `new` of the tokens `ids` (B, N), of which `prefix` are no answer."""


class VLAPolicy:
    """`Policy` over a `VLA`.

    Args:
        vla: the model and its tokenizer.
        name: what records call it.
        checkpoint_hash: of the files it was read from (`files_hash`), "" when it never was on disk.
        order: "action_first" acts at once; "rationale_first" writes its rationale before every action.
        decoding: of action words: "median" (uniform bins only) or "greedy", the likeliest; None is the median
            where there is one.
        changes: what is changed in the decoder's layers while it acts (`attention.interventions.blocked`).

    Attributes:
        act_batch: see `Policy`; not there for one that needs an episode's past.
    """

    act_batch: Callable[..., list[Action]]

    def __init__(
        self,
        vla: VLA,
        name: str,
        checkpoint_hash: str = "",
        order: str = "action_first",
        decoding: str | None = None,
        changes: Sequence[Change] = (),
    ) -> None:
        check_choice("order", order, ORDERS)
        decoding = decoding or _usual_decoding(vla)
        if decoding not in DECODINGS or (decoding == "median" and not isinstance(vla.bins, UniformBins)):
            raise KitError(
                f"{name} cannot decode by {decoding!r}", "choose 'greedy', or for uniform bins 'median'"
            )
        self.vla, self.name, self.order, self.decoding = vla, name, order, decoding
        self.changes = tuple(changes)
        self._files, self._first, self._instruction = checkpoint_hash or "", vla.first_action, ""
        self._robot = ROBOT_CONVENTIONS[vla.conventions.robot or "widowx"]
        self._conversion = ActionConversion(vla.conventions, self._robot)
        self._plans: list[Array] = []  # of the last steps, the newest last
        needs_past = vla.chunk > 1 or self._conversion.remembers
        if not needs_past and not hasattr(type(self), "act_batch"):
            self.act_batch = self.decide

    @property
    def checkpoint_hash(self) -> str:
        """See `Policy`. The checkpoint's own order and decoding are not said: the hash of its files covers
        them.
        """
        identity = self._files
        if self.order != _trained_order(self.vla):
            identity += f"+order={self.order}"
        if self.decoding != _usual_decoding(self.vla):
            identity += f"+decoding={self.decoding}"
        return identity + "".join(f"+change={change}" for change in self.changes)

    def changed(self, name: str, changes: Sequence[Change]) -> VLAPolicy:
        """The same policy under other changes; the weights are shared."""
        return VLAPolicy(self.vla, name, self._files, self.order, self.decoding, changes)

    def on(self, robot: str) -> VLAPolicy:
        """The same policy with the action statistics of this robot's data; the weights are shared.

        Raises:
            KitError: its model has none.
        """
        vla = self.vla.on(robot)
        dataset = getattr(vla, "dataset", None)
        if dataset == getattr(self.vla, "dataset", None):
            return self
        files = f"{self._files}+dataset={dataset}"
        return VLAPolicy(vla, self.name, files, self.order, self.decoding, self.changes)

    @property
    def conventions(self) -> Conventions:
        """See `Policy`. What the kit can convert is converted already, so these are the robot's."""
        own, robot = self.vla.conventions, self._robot
        return replace(
            own, gripper=robot.gripper, sticky_gripper=robot.sticky_gripper, gripper_reference=None
        )

    @property
    def needs_proprioception(self) -> bool:
        """See `Policy`."""
        return self.vla.reads_state

    @property
    def action_range(self) -> tuple[Array, Array]:
        """See `Policy`."""
        # of a spherical grid: what it says without loss of direction or distance
        limits = np.asarray(self.vla.bins.limits)
        if isinstance(self.vla.bins, QuantileWords):
            low, high = map(self.vla.kit_actions, self.vla.bins.quantiles.bounds)
            return low, high
        return -limits, limits

    def round_trip(self, actions: Array) -> Array:
        """See `Policy`."""
        vla = self.vla
        return vla.kit_actions(vla.bins.decode(vla.bins.encode(vla.own_actions(actions))))

    def reset(self, instruction: str) -> None:
        """See `Policy.reset`."""
        self._instruction = instruction
        self._conversion.forget()
        self._plans.clear()

    def act(self, image: Array, proprioception: Array | None = None) -> Action:
        """See `Policy.act`."""
        own = None if proprioception is None else proprioception[None]
        (answer,) = self._answers(np.asarray(image)[None], [self._instruction], own)
        self._plans = [*self._plans, answer.processed][-self.vla.chunk :]
        return _first_step(answer, self._conversion.convert(averaged(self._plans)))

    def decide(
        self,
        images: Array | Sequence[Array],
        instructions: Sequence[str],
        proprioception: Array | None = None,
        rationales: Sequence[str] | None = None,
    ) -> list[Action]:
        """What the policy does first in each of these situations, as if an episode began there; it is
        `act_batch` where no past is needed. All rows are decoded together.

        Args:
            images: see `Policy.act_batch`.
            instructions: one an image.
            proprioception: float (B, 15), for a policy that reads it.
            rationales: one a row, to act on as if the policy had written it. None: it writes its own.

        Raises:
            KitError: rationales for a policy that acts first.
        """
        answers = self._answers(images, instructions, proprioception, rationales)
        own = self.vla.conventions
        return [
            _first_step(answer, ActionConversion(own, self._robot).convert(answer.processed[0]))
            for answer in answers
        ]

    @torch.inference_mode()
    def explain(self, image: Array, instruction: str, proprioception: Array | None = None) -> str:
        """The rationale the policy writes for one image (uint8 (H, W, 3)) and state (float (15,)),
        greedily.
        """
        own = None if proprioception is None else proprioception[None]
        decoder = self._decoder(np.asarray(image)[None], [instruction], own)
        if self.order == "action_first":
            tokens, _ = self._action_tokens(decoder)
            decoder.feed(tokens[:, -1:])
        return self._texts(decoder)[0]

    @torch.inference_mode()
    def _answers(
        self,
        images: Array | Sequence[Array],
        instructions: Sequence[str],
        proprioception: Array | None = None,
        rationales: Sequence[str] | None = None,
    ) -> list[Action]:
        """One answer a row; `processed` and `normalised` are of all steps (C, 7), in the VLA's own form."""
        if rationales is not None and self.order == "action_first":
            what = f"{self.name} acts before its rationale: no text changes what it does"
            raise KitError(what, "give a policy of the order 'rationale_first'")
        decoder = self._decoder(images, instructions, proprioception)
        texts = [""] * decoder.batch
        if self.order != "action_first":
            texts = self._texts(decoder) if rationales is None else self._take(decoder, rationales)
        tokens, log_probability = (x.cpu().numpy() for x in self._action_tokens(decoder))
        words = (tokens - self._first).reshape(decoder.batch, self.vla.chunk, -1)  # B, C, T
        normalised, processed = self.vla.bins.decode_normalised(words), self.vla.bins.decode(words)
        rows = zip(processed, normalised, tokens, log_probability, texts, strict=True)
        return [Action(*row) for row in rows]

    def _decoder(
        self, images: Array | Sequence[Array], instructions: Sequence[str], proprioception: Array | None
    ) -> _Decoder:
        vla = self.vla
        prefixes = [vla.prefix_ids(text) for text in instructions]
        return _Decoder(vla, vla.pixel_values(images), vla.states(proprioception), prefixes, self.changes)

    def _action_tokens(self, decoder: _Decoder) -> tuple[Tensor, Tensor]:
        """Action tokens (B, T) of all steps and their log-probabilities among the words allowed at their
        places (B, T).
        """
        decoder.begin(self.vla.marks.action)
        tokens: list[Tensor] = []
        scores: list[Tensor] = []
        for low, high in self.vla.ranges:
            if tokens:
                decoder.feed(tokens[-1][:, None])
            allowed = slice(self._first + low, self._first + high)
            logits = decoder.logits(allowed).float().log_softmax(-1)  # B, high - low
            if self.decoding == "median":
                chosen = (logits.exp().cumsum(-1) < 0.5).sum(-1).clamp(max=high - low - 1)  # B
            else:
                chosen = logits.argmax(-1)
            tokens.append(chosen + self._first + low)
            scores.append(logits.gather(-1, chosen[:, None])[:, 0])
        return torch.stack(tokens, 1), torch.stack(scores, 1)

    def _texts(self, decoder: _Decoder) -> list[str]:
        """Greedy text of each row after the rationale marker, up to the end or to the action."""
        marks, written = self.vla.marks, [list[int]() for _ in range(decoder.batch)]
        decoder.begin(marks.rationale)
        going = torch.ones(decoder.batch, dtype=torch.bool, device=self.vla.device)
        for _ in range(LONGEST_RATIONALE):
            token = decoder.logits().argmax(-1)  # B
            going &= (token != marks.end) & (token != marks.action) & ~self.vla.is_action(token)
            if not going.any():
                break
            for row, word, goes_on in zip(written, token.tolist(), going.tolist(), strict=True):
                if goes_on:
                    row.append(word)
            decoder.feed(token[:, None], going[:, None])
        return [text.strip() for text in self.vla.tokenizer.batch_decode(written)]

    def _take(self, decoder: _Decoder, texts: Sequence[str]) -> list[str]:
        """Read `texts` after the rationale marker, as if they had been written; an empty one leaves out the
        marker, as in training.
        """
        ids = [answer_ids(self.vla, [], text, self.order)[0][:-1] for text in texts]  # without the end
        rows = [torch.tensor(row, device=self.vla.device) for row in ids]
        decoder.begin(None)
        for token in pad_sequence(rows, True, ABSENT).long().T[..., None]:  # B, 1
            decoder.feed(token.clamp(min=0), token != ABSENT)
        return list(texts)


def averaged(plans: Sequence[Array]) -> Array:
    """The mean of what several plans say of the same step, float64 (7,).

    Args:
        plans: float (C, 7), one a step, the newest last; row i of a plan is for the i-th step after it was
            made. At most C.
    """
    rows = np.stack([plan[age] for age, plan in enumerate(reversed(plans))])[::-1]  # oldest first
    weights = np.exp(NEWER * np.arange(len(rows)))
    return (rows * (weights / weights.sum())[:, None]).sum(0)


def _first_step(answer: Action, processed: Array) -> Action:
    return replace(answer, processed=processed, normalised=answer.normalised[0].astype(np.float32))


class _Decoder:
    """One growing sequence a row: the first `feed` runs image and prefix too, later ones a token over the
    cache.
    """

    def __init__(
        self,
        vla: VLA,
        pixels: Tensor,
        states: Tensor | None,
        prefixes: Sequence[Sequence[int]],
        changes: Sequence[Change] = (),
    ) -> None:
        self._vla, self._words, self._changes = vla, vla.see(pixels, states), changes
        rows = [torch.tensor(prefix, device=vla.device) for prefix in prefixes]
        self._prefix = pad_sequence(rows, True, vla.marks.pad, "left")  # B, N
        self._ids = self._prefix  # B, tokens so far
        self._seen = self._prefix != vla.marks.pad  # B, tokens so far
        self._padded = not self._seen.all()
        self._cache = DynamicCache(config=vla.decoder.config)
        self._newest = torch.empty(0)  # B, d: what the next token is said from
        self.batch = len(prefixes)

    def begin(self, mark: int | None) -> None:
        """Go on with a mark in every row; None only makes sure that the prefix was run."""
        if mark is not None:
            self.feed(torch.full((self.batch, 1), mark, device=self._vla.device))
        elif self._cache.get_seq_length() == 0:
            self.feed(self._prefix[:, :0])

    def logits(self, words: slice = slice(None)) -> Tensor:
        """Logits (B, V) of what follows, of the vocabulary's slice `words`."""
        return logits_of(self._vla, self._newest, words)

    def feed(self, token: Tensor, live: Tensor | None = None) -> None:
        """Append `token` (B, 1), in the rows that are `live` (bool, B, 1); None: in all."""
        vla, length = self._vla, self._cache.get_seq_length()
        self._ids = torch.cat([self._ids, token], 1)
        ids = self._ids[:, length:]  # B, N + 1 or B, 1
        there = torch.ones_like(token) if live is None else live
        seen = self._seen = torch.cat([self._seen, there.bool()], 1)
        if live is not None:
            self._padded = not seen.all()
        place = (seen.cumsum(1)[:, length:] - 1).clamp(min=0) + vla.first_position  # B, N + 1 or B, 1
        x = embed(vla, ids, self._words if length == 0 else None)
        if length == 0:
            # the prefix, then the answer
            types = torch.cat([torch.zeros_like(self._prefix), torch.ones_like(token)], 1)
            masks = masks_of(vla, x, seen.long() if self._padded else None, types, place, self._cache)
        else:
            hidden = None  # all is seen
            if self._padded or self._changes:
                hidden = (~seen[:, None, None]).to(x.dtype) * torch.finfo(x.dtype).min  # B, 1, 1, tokens
            masks = dict.fromkeys(kinds_of(vla), hidden)
            if hidden is not None and "sliding_attention" in masks:  # such a layer's cache holds a window
                masks["sliding_attention"] = hidden[..., -vla.decoder.config.sliding_window :]
        edits = [change.edit(vla, self._ids, self._prefix.shape[1], ids.shape[1]) for change in self._changes]
        x = run_layers(vla, x, masks, place, cache=self._cache, edit=in_turn(edits))
        newest = vla.decoder.norm(x)[:, -1]  # B, d
        self._newest = newest if live is None else torch.where(live, newest, self._newest)


def load_policy(
    path: str | Path,
    name: str | None = None,
    order: str | None = None,
    decoding: str | None = None,
    **how: Any,
) -> VLAPolicy:
    """Read a checkpoint as a policy; it acts on the GPU where there is one.

    Args:
        path: folder, or a model of the Hugging Face hub by its name.
        name: what records call it; None is the folder's name.
        order: see `VLAPolicy`; None is the one that it was trained with.
        decoding: see `VLAPolicy`.
        how: `dtype`, `device_map`, `dataset` and `camera`, see `load_vla`.
    """
    folder = locate(path)
    vla = load_vla(folder, **how)
    if how.get("device_map") is None and torch.cuda.is_available():
        vla.model.to(torch.device("cuda"))  # type: ignore[arg-type]  # transformers wraps it
    identity = files_hash(folder) + "".join(
        f"+{word}={how[word]}" for word in ("dataset", "camera", "dtype") if how.get(word)
    )
    name = name or Path(path).absolute().name  # also of "."
    return VLAPolicy(vla, name, identity, order or _trained_order(vla), decoding)


def load_policies(
    paths: Mapping[str, str | Path], weights: str = "fp32", robot: str | None = None, order: str | None = None
) -> list[VLAPolicy]:
    """`load_policy` of several checkpoints.

    Args:
        paths: what records call each -> folder or hub name.
        weights: "bf16" halves the memory of a released model.
        robot: whose action statistics they take; None keeps their own.
        order: as for `load_policy`.
    """
    dtype = torch.bfloat16 if weights == "bf16" else None
    policies = [load_policy(path, name, order, dtype=dtype) for name, path in paths.items()]
    return [policy.on(robot) for policy in policies] if robot else policies


def _trained_order(vla: VLA) -> str:
    return str(vla.provenance.get("order", "action_first"))


def _usual_decoding(vla: VLA) -> str:
    return "median" if isinstance(vla.bins, UniformBins) else "greedy"
