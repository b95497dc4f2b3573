"""One teacher-forced pass of a policy: the sequence it is fed, which rows of attention belong to what, and
what it would say there.

A token's attention is read at the position just before it, whose output *predicts* it: the action marker for
the first dimension, then each token for the next one; likewise for the words of a rationale. (The ReFineVLA
paper does not say which position it shows; this is the one where the decision is made.) A word that the
tokenizer splits is one query: the mean of its tokens' rows. Punctuation and line ends are in the sequence,
but no queries.

The sequence is fed in one piece with the policy's own greedy tokens, which gives the rows that cached
decoding used. Token types are passed, so the prefix is read in both directions; without them the model would
silently use a causal mask. Gemma 2 caps its attention logits, which fused attention (SDPA) cannot do. So its
plain forward is "eager" and has the weights of one layer at a time anyway: reading rows of them costs next to
nothing (benchmarks/attention.py). Any other implementation is an error, never a missing answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from refinevla_kit.attention.captured import (
    ACTION_QUERY,
    INSTRUCTION_QUERY,
    KINDS,
    OWN_STATE,
    RATIONALE_QUERY,
    Capture,
    Frame,
    Query,
    image_hash,
)
from refinevla_kit.errors import KitError
from refinevla_kit.policies.contract import Action, Array
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.vlas import decoder

SPACES = ("Ġ", "▁")  # how byte-level BPE and SentencePiece write the space that begins a word


@dataclass(frozen=True)
class TokenSequence:
    """One sequence and the queries in it.

    Attributes:
        ids: vocabulary ids, image placeholders first. The last token of the answer, which predicts nothing of
            it, is left out.
        prefix: how many of them are read in both directions (token type 0); the answer follows.
        queries: action dimensions, then words of the rationale, then words of the instruction, of the kinds
            asked for.
        rationale: the text in it, "" where there is none.
    """

    ids: tuple[int, ...]
    prefix: int
    queries: tuple[Query, ...]
    rationale: str


def check_policy(policy: object) -> None:
    """Raise `KitError` unless this is a policy whose tokens can be looked from."""
    if not isinstance(policy, VLAPolicy):
        raise KitError(
            f"{getattr(policy, 'name', policy)!r} has no attention that this can read",
            "give a policy of `load_policy`",
        )


def capture(
    policy: VLAPolicy,
    image: Array,
    instruction: str,
    action: Action | None = None,
    rationale: str | None = None,
    proprioception: Array | None = None,
    queries: Sequence[str] = (ACTION_QUERY,),
) -> Capture:
    """Attention of each query on one picture.

    Args:
        policy: a VLA's.
        image: uint8 (H, W, 3).
        instruction: the task in words.
        action: what to feed as the answer; None is the policy's own greedy action.
        rationale: the text to feed, tokenized anew. None is the policy's own greedy one where the sequence
            has one: a policy that writes before it acts takes the action's own. Any other writes one only if
            "rationale" is asked about.
        proprioception: float (15,), for a policy that reads it.
        queries: kinds of what to look from, of "action" (each action dimension), "rationale" and
            "instruction" (each word).

    Raises:
        KitError: the policy has no tokens to look from, or wrote no rationale where one is asked about; an
            attention implementation that does not return weights; unknown queries.
    """
    actions = None if action is None else [action]
    rationales = None if rationale is None else [rationale]
    states = None if proprioception is None else [proprioception]
    return capture_batch(policy, [image], [instruction], actions, rationales, states, queries)[0]


@torch.inference_mode()
def capture_batch(
    policy: VLAPolicy,
    images: Array | Sequence[Array],
    instructions: Sequence[str],
    actions: Sequence[Action] | None = None,
    rationales: Sequence[str] | None = None,
    proprioception: Array | Sequence[Array] | None = None,
    queries: Sequence[str] = (ACTION_QUERY,),
    batch_size: int = 16,
) -> list[Capture]:
    """`capture` of B pictures, those with equally long sequences together; the same arguments in the plural.

    Args:
        images: uint8 (B, H, W, 3), or a sequence of B pictures of any sizes.
        proprioception: float (B, 15).
        batch_size: most pictures of one forward pass; one layer's attention of so many is in memory at a
            time.
    """
    if not len(images):
        return []
    if proprioception is not None:
        proprioception = np.asarray(proprioception)
    sequences, answers = token_sequences(
        policy, images, instructions, actions, rationales, proprioception, queries
    )
    vla = policy.vla
    pixels, states = vla.pixel_values(images), vla.states(proprioception)
    groups: dict[tuple[int, int], list[int]] = {}
    for number, sequence in enumerate(sequences):
        groups.setdefault((len(sequence.ids), sequence.prefix), []).append(number)
    captures: dict[int, Capture] = {}
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            chosen = group[start : start + batch_size]
            words = vla.see(pixels[chosen], None if states is None else states[chosen])
            rows = query_rows(policy, words, [sequences[number] for number in chosen])
            for number, weights in zip(chosen, rows, strict=True):
                captures[number] = _capture(
                    policy, sequences[number], answers[number], images[number], weights
                )
    return [captures[number] for number in range(len(sequences))]


def capture_frames(policy: VLAPolicy, frames: Sequence[Frame]) -> list[Capture]:
    """`capture_batch` of frames of demonstrations, from the action."""
    images = [frame.image for frame in frames]
    states = [frame.proprioception for frame in frames if frame.proprioception is not None]
    sentences = [frame.instruction for frame in frames]
    return capture_batch(policy, images, sentences, proprioception=states or None)


def token_sequences(
    policy: VLAPolicy,
    images: Array | Sequence[Array],
    instructions: Sequence[str],
    actions: Sequence[Action] | None,
    rationales: Sequence[str] | None,
    proprioception: Array | None,
    queries: Sequence[str],
) -> tuple[list[TokenSequence], list[Action]]:
    """The sequences to feed, one a picture, and the actions in them: given ones, else the policy's own.
    Arguments as in `capture_batch`.
    """
    check_policy(policy)
    _check_kinds(queries)
    lists = {
        "instructions": instructions,
        "actions": actions,
        "rationales": rationales,
        "proprioception": proprioception,
    }
    for name, given in lists.items():
        if isinstance(given, str) or (given is not None and len(given) != len(images)):
            count = "one text" if isinstance(given, str) else f"{len(given)}"
            raise KitError(f"{name}: {count} for {len(images)} pictures", "give one a picture, in a list")
    if actions is None:
        actions = policy.decide(images, instructions, proprioception)
    sequences = []
    for number, (instruction, action) in enumerate(zip(instructions, actions, strict=True)):
        text = action.rationale if rationales is None else rationales[number]
        if rationales is None and not text and RATIONALE_QUERY in queries:
            state = None if proprioception is None else proprioception[number]
            text = policy.explain(images[number], instruction, state)
        sequences.append(token_sequence(policy, instruction, action.tokens.tolist(), text, queries))
    return sequences, list(actions)


def token_sequence(
    policy: VLAPolicy,
    instruction: str,
    action_tokens: Sequence[int],
    rationale: str | None = "",
    kinds: Sequence[str] = (ACTION_QUERY,),
) -> TokenSequence:
    """The policy's sequence with this answer, as far as the queries need it.

    Args:
        policy: whose.
        instruction: the task in words.
        action_tokens: vocabulary ids, one a word of the answer.
        rationale: the text; tokenized here. A policy that writes before it acts has it in front of its action
            whether or not it is asked about: its mark alone where it wrote nothing; for None no mark either,
            as where it is told an empty text.
        kinds: of queries.

    Raises:
        KitError: unknown kinds, another number of action tokens, or words asked for of a text that has none.
    """
    _check_kinds(kinds)
    vla = policy.vla
    if len(action_tokens) != len(vla.ranges):
        raise KitError(
            f"the action has {len(action_tokens)} tokens, the policy {len(vla.ranges)}",
            "give an action of this policy, or None",
        )
    prefix = vla.prefix_ids(instruction)
    text = vla.tokenizer.encode(rationale, add_special_tokens=False) if rationale else []
    tokens = [int(token) for token in action_tokens]
    act = [mark for mark in (vla.marks.action,) if mark is not None] + tokens
    think = [mark for mark in (vla.marks.rationale,) if mark is not None and rationale is not None] + text
    if policy.order == "rationale_first":
        ids = [*prefix, *think, *act]
        act_end, thought_end = len(ids), len(prefix) + len(think)
    else:
        ids = [*prefix, *act, *(think if RATIONALE_QUERY in kinds else [])]
        act_end, thought_end = len(prefix) + len(act), len(ids)
    # the output before a token predicts it, so that is its row
    act_at, thought_at = act_end - len(tokens) - 1, thought_end - len(text) - 1
    queries: list[Query] = []
    if ACTION_QUERY in kinds:
        for place, (name, token) in enumerate(zip(vla.word_names, tokens, strict=True)):
            queries.append(Query(name, ACTION_QUERY, (act_at + place,), (token,)))
    if RATIONALE_QUERY in kinds:
        queries += _words(vla.tokenizer, text, RATIONALE_QUERY, thought_at)
    if INSTRUCTION_QUERY in kinds:
        queries += _words(vla.tokenizer, prefix[vla.image_end :], INSTRUCTION_QUERY, vla.image_end)
    return TokenSequence(
        tuple(ids[:-1]), len(prefix), tuple(queries), rationale if rationale and text else ""
    )


def query_rows(policy: VLAPolicy, words: Tensor, sequences: Sequence[TokenSequence]) -> list[Array]:
    """The queries' attention in one forward pass over B sequences of N tokens, each with Q queries or fewer.

    Args:
        policy: whose.
        words: of the pictures, (B, image_tokens, d).
        sequences: B, of one length and one prefix.

    Returns:
        B arrays, float32 (layers, heads, Q, N): the mean of a query's tokens' rows, as the model computed
        them.

    Raises:
        KitError: the model's attention implementation returns no weights.
    """
    positions = sorted({at for sequence in sequences for query in sequence.queries for at in query.positions})
    wanted = torch.tensor(positions, device=words.device)
    kept: list[Tensor] = []
    # index_select copies: a view would keep the whole square alive
    with watching(policy, lambda weights: kept.append(weights.index_select(2, wanted))):
        forward_pass(policy, words, sequences)
    if len(kept) != len(policy.vla.layers):
        raise KitError(f"only {len(kept)} layers of {policy.name} were run", "load the policy again")
    rows = torch.stack(kept, dim=1).float().cpu().numpy()  # B, layers, heads, positions, N
    place_of = {position: place for place, position in enumerate(positions)}
    found = []
    for sequence, own in zip(sequences, rows, strict=True):
        places = [[place_of[position] for position in query.positions] for query in sequence.queries]
        found.append(np.stack([own[:, :, place].mean(2) for place in places], axis=2))  # layers, heads, Q, N
    return found


def forward_pass(
    policy: VLAPolicy, words: Tensor, sequences: Sequence[TokenSequence], edit: decoder.Edit | None = None
) -> Tensor:
    """The decoder's output at every position, (B, N, d), for B pictures under B sequences of one length and
    prefix; `words` (B, image_tokens, d) of `VLA.see`. `edit` as in `decoder.run_layers`, after the policy's
    own changes.
    """
    ids = torch.tensor([sequence.ids for sequence in sequences], device=words.device)  # B, N
    types = (torch.arange(ids.shape[1], device=ids.device) >= sequences[0].prefix).long().expand_as(ids)
    edits = [change.edit(policy.vla, ids, sequences[0].prefix, ids.shape[1]) for change in policy.changes]
    edits += [edit] if edit else []
    return decoder.hidden_states(policy.vla, words, ids, types, edit=decoder.in_turn(edits))


@contextmanager
def watching(policy: VLAPolicy, keep: Callable[[Tensor], None]) -> Iterator[None]:
    """While open, call `keep` with each attention layer's weights (B, heads, N, N), from the lowest layer up.

    Raises:
        KitError: from the forward pass, when the attention implementation returns no weights.
    """

    def look(layer: nn.Module, _: object, output: tuple[Tensor, Tensor | None]) -> None:
        if output[1] is None:
            implementation = layer.config._attn_implementation  # type: ignore[union-attr]
            remedy = "call policy.vla.model.set_attn_implementation('eager')"
            raise KitError(f"the attention implementation {implementation!r} gives no weights", remedy)
        keep(output[1])

    handles = [layer.self_attn.register_forward_hook(look) for layer in policy.vla.decoder.layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def log_probabilities(policy: VLAPolicy, hidden: Tensor, query: Query) -> list[Tensor]:
    """For each of a query's tokens the log-probability of every word that may be said there, (B, words).

    An action token is compared with the words allowed at its place, as decoding does it; a rationale's token
    with the whole vocabulary.

    Args:
        policy: who speaks.
        hidden: its states (B, N, d) from `forward_pass`.
        query: where.
    """
    words = _allowed(policy, query)
    logits = [decoder.logits_of(policy.vla, hidden[:, position], words) for position in query.positions]
    return [one.float().log_softmax(-1) for one in logits]


def query_score(policy: VLAPolicy, hidden: Tensor, query: Query) -> Tensor:
    """Log-probability of a query's tokens together, given everything before them: (B,), in nats.

    Of a policy's own action it is `Action.log_probability`. Arguments as in `log_probabilities`.
    """
    first = _allowed(policy, query).start or 0
    chances = zip(log_probabilities(policy, hidden, query), query.tokens, strict=True)
    return torch.stack([chance[:, token - first] for chance, token in chances]).sum(0)


def _allowed(policy: VLAPolicy, query: Query) -> slice:
    """The part of the vocabulary that may be said at a query."""
    if query.kind != ACTION_QUERY:
        return slice(None)
    vla = policy.vla
    low, high = vla.ranges[vla.word_names.index(query.label)]
    return slice(vla.first_action + low, vla.first_action + high)


def _check_kinds(kinds: Sequence[str]) -> None:
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds or isinstance(kinds, str):
        what = f"unknown queries {unknown[0] if unknown else kinds!r}" if kinds else "no queries"
        raise KitError(what, f"give a sequence of {', '.join(map(repr, KINDS))}")


def _words(tokenizer: PreTrainedTokenizerFast, pieces: Sequence[int], kind: str, start: int) -> list[Query]:
    """Consecutive tokens of one word joined; piece i has its row at `start` + i."""
    names = tokenizer.convert_ids_to_tokens(list(pieces))
    words: list[Query] = []
    before = ""
    for position, (name, token) in enumerate(zip(names, pieces, strict=True), start):
        text = str(tokenizer.decode([token])).strip()
        goes_on = bool(words) and _spells(before[-1:]) and _spells(text[:1]) and name[:1] not in SPACES
        if goes_on:
            last = words.pop()
            tokens = (*last.tokens, token)
            label = str(tokenizer.decode(list(tokens))).strip()
            words.append(Query(label, kind, (*last.positions, position), tokens))
        elif any(map(_spells, text)):
            words.append(Query(text, kind, (position,), (token,)))
        before = text
    words = [word for word in words if any(map(str.isalnum, word.label))]
    if not words:
        raise KitError(f"the {kind} has no words", f"give one that has, or leave {kind!r} out of the queries")
    return words


def _spells(letter: str) -> bool:
    """Whether a token's letter is part of a word; of one in several tokens each has the sign for "none"."""
    return letter.isalnum() or letter == "\ufffd"


def _capture(
    policy: VLAPolicy, sequence: TokenSequence, action: Action, image: Array, rows: Array
) -> Capture:
    """Rows (layers, heads, Q, N) of one picture as a `Capture`."""
    vla = policy.vla
    patches, end = vla.on_patches, vla.image_end
    # the words behind the picture, those before it, and the robot's own state
    others = [rows[..., end:], rows[..., : patches.start], rows[..., patches.stop : end]]
    spoken = [*sequence.ids[end:], *sequence.ids[: patches.start]]
    labels = [str(vla.tokenizer.decode([token])).strip() or " " for token in spoken]
    return Capture(
        patches=rows[..., patches].copy(),
        others=np.concatenate(others, axis=-1),
        labels=(*labels, *[OWN_STATE] * vla.reads_state),
        words=sequence.prefix - end,
        queries=sequence.queries,
        grid=vla.grid,
        action=action,
        policy=policy.name,
        checkpoint_hash=policy.checkpoint_hash or "",
        rationale=sequence.rationale,
        image_hash=image_hash(image),
    )
