"""What a policy uses, in place of what it looks at: attention that is blocked, states of one instruction put
into the run of another, what can be read from states, rationales that are edited before it acts on them.

Tokens are told apart by their role: the picture, the robot's own state, the instruction, the rationale, the
action. A *knock-out* hides the tokens of one role from those that say another, in some layers; *patching*
gives the tokens of one role, in one layer, the states that they had under another instruction. Both are
measured by how far the distribution of each action word moves (Kullback-Leibler, nats), after the same words
before it, and each has a control. A knock-out also acts: `blocked(policy, ...)` is a policy that can be
evaluated.

What is blocked in one layer may reach the action through another one, or by way of tokens of another role: an
effect shows that the path is used, no effect does not show that the information is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import cached_property
from operator import ne
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from refinevla_kit.attention.attribution import Moment, state_batch
from refinevla_kit.attention.captured import Frame
from refinevla_kit.attention.forward import (
    TokenSequence,
    check_policy,
    forward_pass,
    log_probabilities,
    token_sequence,
)
from refinevla_kit.attention.grounding import mean_with_interval
from refinevla_kit.errors import KitError, check_choice, checked_integer
from refinevla_kit.policies.contract import Action, Array
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.vlas.contract import VLA
from refinevla_kit.vlas.decoder import Edit
from refinevla_kit.vlas.sequence import ACTION, IMAGE, INSTRUCTION, ROLES, STATE, roles_of

PLACES = (IMAGE, STATE, INSTRUCTION, ACTION)
OWNER = ("policy", "checkpoint_hash", "task", "episode", "step")
EDITS = ("object", "direction", "order", "noise", "empty")
OPPOSITES = ("left right", "up down", "above below", "higher lower", "top bottom", "forward backward")
Layers = tuple[int, ...]


@dataclass(frozen=True)
class Knockout:
    """Tokens of one role hidden from those that say another. Making one raises `KitError` for unknown roles.

    Attributes:
        read: role of the hidden tokens.
        by: role of what is said without them.
        layers: in which, from 0; empty: in all.
        control: hide as many tokens of other roles before the answer, drawn with this seed (all of them,
            where there are fewer); None hides those of `read`.
    """

    read: str
    by: str = ACTION
    layers: Layers = ()
    control: int | None = None

    def __post_init__(self) -> None:
        for role in (self.read, self.by):
            check_choice("role", role, ROLES)

    def __str__(self) -> str:
        where = ",".join(map(str, self.layers)) or "all"
        hidden = self.read if self.control is None else f"as many as {self.read} (seed {self.control})"
        return f"{hidden} from {self.by} in {where}"

    def edit(self, vla: VLA, ids: Tensor, prefix: int, new: int) -> Edit:
        """What changes in the layers while the last `new` of the tokens are run.

        Args:
            vla: whose.
            ids: int (B, N), all tokens so far.
            prefix: how many of them are no answer.
        """
        roles = roles_of(vla, ids, prefix)
        hidden, readers = roles[self.read], roles[self.by]
        if self.by == ACTION and vla.marks.action is None:  # the prefix' last token says the first word
            readers = readers.clone()
            readers[:, prefix - 1] = True
        if self.control is not None:
            hidden = _as_many(hidden, readers, ids[:, :prefix] != vla.marks.pad, self.control)
        own = torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device)
        square = (readers[:, :, None] & hidden[:, None] & ~own)[:, None, -new:]  # B, 1, new, N

        def edit(number: int, words: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
            if self.layers and number not in self.layers:
                return words, mask
            if mask is None:
                remedy = "call policy.vla.model.set_attn_implementation('eager')"
                raise KitError("the attention implementation takes no mask to block", remedy)
            blocked = square[..., -mask.shape[-1] :]  # the cache of a layer with a window holds the last ones
            if mask.dtype == torch.bool:
                return words, mask & ~blocked
            return words, torch.where(blocked, torch.finfo(mask.dtype).min, mask)

        return edit


def blocked(policy: VLAPolicy, *knockouts: Knockout) -> VLAPolicy:
    """The same policy, which acts and writes under these knock-outs; its records say so.

    Raises:
        KitError: a layer that the policy does not have; something hidden from the action of one that writes
            first and has no token before its action, whose first word cannot be told from the text's.
    """
    _check_knockouts(policy, knockouts)
    name = f"{policy.name} without {'; '.join(map(str, knockouts))}" if knockouts else policy.name
    return policy.changed(name, (*policy.changes, *knockouts))


def _check_knockouts(policy: VLAPolicy, knockouts: Iterable[Knockout]) -> None:
    """Raises `KitError` where one cannot be; see `blocked`."""
    check_policy(policy)
    for knockout in knockouts:
        if knockout.by == ACTION and policy.vla.marks.action is None and policy.order == "rationale_first":
            what = f"{policy.name} has no token that says where its action begins behind a rationale"
            raise KitError(what, "load it with order='action_first'")
        for layer in knockout.layers:
            checked_integer(layer, f"layer of {policy.name}", 0, len(policy.vla.layers) - 1)


def bands(policy: VLAPolicy, count: int | None = None) -> list[Layers]:
    """The layers in `count` bands, None: each by itself; then all of them together."""
    layers = len(policy.vla.layers)
    count = layers if count is None else checked_integer(count, "bands", 1, layers)
    each = [tuple(map(int, part)) for part in np.array_split(np.arange(layers), count)]
    return [*each, tuple(range(layers))] if count > 1 else each


@torch.inference_mode()
def knock_out(
    policy: VLAPolicy,
    frames: Sequence[Moment],
    read: Sequence[str] = (IMAGE, INSTRUCTION),
    by: str = ACTION,
    layers: Sequence[Layers] | int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """How far the action's distribution moves when the tokens of a role are hidden from those that say it.

    Args:
        policy: a VLA's.
        frames: where.
        read: roles to hide, one after the other; one that a frame's sequence has no token of has no row.
        by: role of what is said without them.
        layers: bands of layers, or how many of `bands`; None tries each layer by itself, then all.
        seed: of the controls, which hide as many tokens of other roles.

    Returns:
        A row a frame, role, band, and whether it is the control: columns `OWNER`, read, by, layers, control,
        divergence (nats, the sum over action words).
    """
    check_policy(policy)
    rows: list[tuple[Any, ...]] = []
    tried = bands(policy, layers) if layers is None or isinstance(layers, int) else list(layers)
    _check_knockouts(policy, [Knockout(role, by, tuple(band)) for role in read for band in tried])
    for number, frame in enumerate(frames):
        run = _Run.of(policy, frame)
        plain = run.chances()
        for role in (role for role in read if len(run.at(role))):
            for band in tried:
                for drawn in (None, seed + number):
                    changed = run.without(Knockout(role, by, tuple(band), drawn))
                    distance = divergence(plain, changed)
                    shown = f"{band[0]}-{band[-1]}" if len(band) > 1 else str(band[0])
                    rows.append((*_owner(policy, frame), role, by, shown, drawn is not None, distance))
    columns = [*OWNER, "read", "by", "layers", "control", "divergence"]
    return pd.DataFrame(rows, columns=columns)


@torch.inference_mode()
def patch(
    policy: VLAPolicy,
    frames: Sequence[Moment],
    others: Sequence[str],
    places: Sequence[str] = PLACES,
    layers: Iterable[int] | None = None,
) -> pd.DataFrame:
    """How far states of the frame's own instruction turn a run of another one into the frame's own.

    Both runs see the same picture and are fed the action of the first. The states that one role's tokens have
    before a layer are put into the other run there; of instructions that differ in length the last tokens.
    The control takes the states that a third instruction of these frames gives on the same picture; there is
    none where all name the same two.

    Args:
        policy: a VLA's.
        frames: where, with the instruction whose states are given.
        others: another instruction a frame.
        places: roles whose states are put in.
        layers: before which, from 0; None: all.

    Returns:
        A row a frame, place, layer, and whether it is the control: columns `OWNER`, place, layer, control,
        apart (nats between the two runs), left (nats between the patched run and the frame's own), recovered
        ((apart - left) / mean of apart). Its mean is 1 where the patch restores the frame's own run, 0 where
        it changes nothing. All 0 for a policy that says the same to both.
    """
    check_policy(policy)
    _check_others(others, frames)
    last = len(policy.vla.layers) - 1
    chosen = range(last + 1) if layers is None else [checked_integer(n, "layer", 0, last) for n in layers]
    rows: list[tuple[Any, ...]] = []
    sentences = dict.fromkeys(frame.instruction for frame in frames)
    for frame, other in zip(frames, others, strict=True):
        run = _Run.of(policy, frame)
        receiver, plain = replace(run, instruction=other), run.chances()
        apart = divergence(plain, receiver.chances())
        thirds = [sentence for sentence in sentences if sentence not in (frame.instruction, other)]
        strangers = [(True, replace(run, instruction=sentence)) for sentence in thirds[:1]]
        for control, donor in ((False, run), *strangers):
            states = donor.states()
            for place in places:
                given, taken = donor.at(place), receiver.at(place)
                length = min(len(given), len(taken))
                for layer in chosen if length else ():
                    edit = _put(layer, taken[-length:], states[layer][:, given[-length:]])
                    left = divergence(plain, receiver.chances(edit))
                    rows.append((*_owner(policy, frame), place, layer, control, apart, left))
    columns = [*OWNER, "place", "layer", "control", "apart", "left"]
    table = pd.DataFrame(rows, columns=columns)
    gained = table["apart"] - table["left"]
    return table.assign(recovered=(gained / table["apart"].mean()).fillna(0.0))


@torch.inference_mode()
def edit_rationales(
    policy: VLAPolicy,
    frames: Sequence[Moment],
    others: Sequence[str],
    edits: Sequence[str] = EDITS,
    seed: int = 0,
) -> pd.DataFrame:
    """How far the action's distribution moves when the policy acts on another text than the one it wrote.

    Args:
        policy: a VLA's that writes first.
        frames: where.
        others: another instruction a frame; what it names in place of the frame's own is what "object" puts
            into the text.
        edits: "object"; "direction": left for right, up for down and so on; "order": its sentences in
            reverse; "noise": its words in random order; "empty".
        seed: of the noise, and of the control, which puts as many of the text's words into other places.

    Returns:
        A row a frame, edit, and whether it is the control ("empty" has none), where the edit finds something
        to change in the text: columns `OWNER`, edit, control, words (changed), divergence (nats, the sum over
        action words).

    Raises:
        KitError: a policy that acts first.
    """
    check_policy(policy)
    if policy.order == "action_first":
        what = f"{policy.name} acts before its rationale: no text changes what it does"
        raise KitError(what, "load it with order='rationale_first'")
    _check_others(others, frames)
    rng, rows = np.random.default_rng(seed), list[tuple[Any, ...]]()
    for frame, other in zip(frames, others, strict=True):
        run = _Run.of(policy, frame)
        plain, text = run.chances(), run.action.rationale
        for edit in edits:
            changed = edited(text, edit, frame.instruction, other, rng)
            if changed == text:
                continue
            words = _words_changed(text.split(), changed.split())
            texts = [(False, changed)]
            if edit != "empty":
                texts.append((True, _scrambled(text, words, rng)))
            for control, said in texts:
                told = replace(run, said=said or None)
                distance = divergence(plain, told.chances())
                rows.append((*_owner(policy, frame), edit, control, words, distance))
    return pd.DataFrame(rows, columns=[*OWNER, "edit", "control", "words", "divergence"])


def _check_others(others: Sequence[str], frames: Sequence[Moment]) -> None:
    if len(others) != len(frames):
        raise KitError(f"{len(others)} other instructions for {len(frames)} frames", "give one a frame")


def edited(text: str, edit: str, own: str, other: str, rng: np.random.Generator) -> str:
    """A text after one of `EDITS`; `own` and `other`: see `edit_rationales`."""
    if edit == "object":
        named, instead = _difference(own.split(), other.split())
        word = re.compile(rf"\b{re.escape(named)}\b", re.IGNORECASE)
        return word.sub(lambda _: instead, text) if named else text
    if edit == "direction":
        pairs = [pair.split() for pair in OPPOSITES]
        opposite = dict(pairs) | {b: a for a, b in pairs}
        return re.sub(r"\w+", lambda word: _as_before(word[0], opposite.get(word[0].lower())), text)
    if edit == "order":
        return "\n".join(reversed(text.split("\n")))
    if edit == "noise":
        return _scrambled(text, len(text.split()), rng)
    check_choice("edit", edit, EDITS)
    return ""


def _as_before(word: str, instead: str | None) -> str:
    """`instead`, with a capital where the word has one; the word itself for None."""
    return word if instead is None else instead.capitalize() if word[0].isupper() else instead


def _difference(own: list[str], other: list[str]) -> tuple[str, str]:
    """What two sentences have between the words that they begin and end with alike."""
    while own and other and own[0] == other[0]:
        own, other = own[1:], other[1:]
    while own and other and own[-1] == other[-1]:
        own, other = own[:-1], other[:-1]
    return " ".join(own), " ".join(other)


def _words_changed(before: list[str], after: list[str]) -> int:
    if len(before) == len(after):
        return sum(map(ne, before, after))
    # behind a name of more words all stand elsewhere, and are the same
    parts = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    return sum(max(b - a, d - c) for kind, a, b, c, d in parts if kind != "equal")


def _scrambled(text: str, count: int, rng: np.random.Generator) -> str:
    """The same words, `count` of them in each other's places."""
    words = np.array(text.split(), object)
    chosen = rng.permutation(len(words))[: max(count, 2)]
    words[chosen] = words[np.roll(chosen, 1)]
    return " ".join(words)


@torch.inference_mode()
def layer_states(policy: VLAPolicy, frames: Sequence[Moment], place: str = INSTRUCTION) -> Array:
    """float32 (frames, layers, d): the mean state of a role's tokens before each layer."""
    check_policy(policy)
    found = []
    for frame in frames:
        run = _Run.of(policy, frame)
        at = run.at(place)
        if not len(at):
            raise KitError(f"{policy.name} has no token of the {place}", f"choose of {', '.join(PLACES)}")
        found.append([state[0, at].float().mean(0).cpu().numpy() for state in run.states()])
    return np.asarray(found, np.float32)


def probe(
    states: Array,
    labels: Sequence[str],
    episodes: Sequence[Any],
    folds: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """How well a label is read from states by a linear map (ridge regression on one column a label), tried on
    episodes that it has not seen. The control is fitted to shuffled labels.

    Args:
        states: float (frames, layers, d) of `layer_states`.
        labels: one a frame.
        episodes: what tells the frames' episodes apart; all of one are in one part.
        folds: parts, each tried once.
        seed: of the parts and of the shuffled labels.

    Returns:
        Columns layer, control, accuracy (mean over episodes), low, high, episodes, commonest (the share of
        the commonest label: what saying nothing else gives).

    Raises:
        KitError: fewer episodes than parts, fewer than two parts, or one label only.
    """
    folds = checked_integer(folds, "folds", 2)
    names, target = np.unique(np.asarray(labels), return_inverse=True)
    _, owner = np.unique(np.asarray(episodes), return_inverse=True)
    count = len(np.unique(owner))
    if count < folds or len(names) < 2:
        what = f"{count} episodes with {len(names)} labels for {folds} parts"
        raise KitError(what, "give more episodes, of at least two labels")
    commonest = np.bincount(target).max() / len(target)
    rng = np.random.default_rng(seed)
    part = rng.permutation(count)[owner] % folds
    rows = []
    for control in (False, True):
        wanted = rng.permutation(target) if control else target
        for layer in range(states.shape[1]):
            said = np.empty_like(target)
            for fold in range(folds):
                new = part == fold
                said[new] = _read(states[~new, layer], wanted[~new], states[new, layer], len(names))
            right = pd.Series(said == wanted, dtype=float).groupby(owner).mean()
            rows.append((layer, control, *mean_with_interval(right), len(right), commonest))
    columns = ["layer", "control", "accuracy", "low", "high", "episodes", "commonest"]
    return pd.DataFrame(rows, columns=columns)


def divergence(given: Sequence[Tensor], changed: Sequence[Tensor]) -> float:
    """Kullback-Leibler divergence of changed from given log-probabilities, nats, the sum over words."""
    pairs = zip(given, changed, strict=True)
    return float(sum((one.exp() * (one - other)).sum().double() for one, other in pairs))


@dataclass(frozen=True)
class _Run:
    """One teacher-forced pass on one frame."""

    policy: VLAPolicy
    instruction: str
    words: Tensor  # 1, image_tokens, d
    action: Action
    said: str | None  # the text that is acted on; see `token_sequence`

    @classmethod
    def of(cls, policy: VLAPolicy, frame: Moment) -> _Run:
        """With the policy's own answer."""
        image, own, vla = np.asarray(frame.image)[None], state_batch(frame), policy.vla
        (action,) = policy.decide(image, [frame.instruction], own)
        words = vla.see(vla.pixel_values(image), vla.states(own))
        return cls(policy, frame.instruction, words, action, action.rationale)

    @cached_property
    def sequence(self) -> TokenSequence:
        """What is fed."""
        return token_sequence(self.policy, self.instruction, self.action.tokens.tolist(), self.said)

    @property
    def ids(self) -> Tensor:
        return torch.tensor([self.sequence.ids], device=self.words.device)

    def without(self, knockout: Knockout) -> list[Tensor]:
        """`chances` under a knock-out."""
        ids = self.ids
        return self.chances(knockout.edit(self.policy.vla, ids, self.sequence.prefix, ids.shape[1]))

    def at(self, role: str) -> Array:
        """Positions of the tokens of a role."""
        check_choice("role", role, ROLES)
        (found,) = roles_of(self.policy.vla, self.ids, self.sequence.prefix)[role]
        return np.flatnonzero(found.cpu().numpy())

    def chances(self, edit: Edit | None = None) -> list[Tensor]:
        """Log-probabilities (1, words) at each action word."""
        hidden = forward_pass(self.policy, self.words, [self.sequence], edit)
        return [log_probabilities(self.policy, hidden, query)[0] for query in self.sequence.queries]

    def states(self) -> list[Tensor]:
        """What each layer gets, (1, N, d) each."""
        kept: list[Tensor] = []

        def keep(_: int, words: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
            kept.append(words)
            return words, mask

        forward_pass(self.policy, self.words, [self.sequence], keep)
        return kept


def _put(layer: int, at: Array, states: Tensor) -> Edit:
    def edit(number: int, words: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if number == layer:
            words = words.clone()
            words[:, at] = states
        return words, mask

    return edit


def _as_many(hidden: Tensor, readers: Tensor, real: Tensor, seed: int) -> Tensor:
    """As many tokens as are hidden, drawn row by row from the others of the prefix that are no readers; the
    same ones however long the answer is and whatever other rows there are.

    Args:
        real: bool (B, prefix), what of the prefix is no padding on its left.
    """
    prefix = real.shape[1]
    random = torch.rand(prefix, generator=torch.Generator().manual_seed(seed)).to(hidden.device)
    order = random[(real.cumsum(1) - 1).clamp(min=0)]  # B, prefix
    free = real & ~(hidden | readers)[:, :prefix]
    place = (order + ~free).argsort(1).argsort(1)  # the free ones first, B, prefix
    drawn = torch.zeros_like(hidden)
    drawn[:, :prefix] = free & (place < hidden.sum(1, keepdim=True))
    return drawn


def _read(states: Array, target: Array, new: Array, labels: int) -> Array:
    """The label that a ridge regression fitted to `states` (n, d) reads from `new` (m, d), with a penalty of
    1 for states scaled to unit variance.
    """
    mean, scale = states.mean(0), states.std(0) + 1e-6
    known, asked = (states - mean) / scale, (new - mean) / scale
    columns = np.eye(labels)[target]
    prior = columns.mean(0)
    # as many equations as frames: decoders are wider than there are frames
    weights = np.linalg.solve(known @ known.T + np.eye(len(known)), columns - prior)
    scores: Array = asked @ (known.T @ weights) + prior
    return scores.argmax(1)


def _owner(policy: VLAPolicy, frame: Moment) -> Iterator[Any]:
    known = isinstance(frame, Frame)
    yield from (policy.name, policy.checkpoint_hash)
    yield from (getattr(frame, name) if known else "" for name in OWNER[2:])
