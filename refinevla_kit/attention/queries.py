"""Which rows of attention belong to what: the sequence a policy is fed under teacher forcing, and where in it
each query is.

An action dimension's row is that of the position whose output *predicts* its token: the action marker for the
first dimension, then each token for the next one; likewise for the words of a rationale. (The ReFineVLA paper
does not say which position it shows; this is the one where the decision is made.) A word that the tokenizer
splits is one query: the mean of its tokens' rows. Punctuation and line ends are in the sequence, but no
queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from refinevla_kit.attention.captured import ACTION_QUERY, INSTRUCTION_QUERY, KINDS, RATIONALE_QUERY, Query
from refinevla_kit.errors import KitError
from refinevla_kit.policies.vla_policy import VLAPolicy

SPACES = ("Ġ", "▁")  # how byte-level BPE and SentencePiece write the space that begins a word


@dataclass(frozen=True)
class TokenSequence:
    """One sequence and the queries in it.

    Attributes:
        ids: vocabulary ids, image placeholders first.
        prefix: how many of them are read in both directions (token type 0); the answer follows.
        queries: action dimensions, then words of the rationale, then words of the instruction, of the kinds
            asked for.
        rationale: the text in it, "" where there is none. The last token of the answer, which predicts
            nothing of it, is left out of `ids`.
    """

    ids: tuple[int, ...]
    prefix: int
    queries: tuple[Query, ...]
    rationale: str

    @property
    def positions(self) -> tuple[int, ...]:
        """All positions that the queries need, in order."""
        return tuple(sorted({position for query in self.queries for position in query.positions}))


def check_policy(policy: object) -> None:
    """Raise `KitError` unless this is a policy whose tokens can be looked from."""
    if not isinstance(policy, VLAPolicy):
        raise KitError(
            f"{getattr(policy, 'name', policy)!r} has no attention that this can read",
            "give a policy of `load_policy`",
        )


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise `KitError` unless these are kinds of queries, at least one."""
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds or isinstance(kinds, str):
        what = f"unknown queries {unknown[0] if unknown else kinds!r}" if kinds else "no queries"
        raise KitError(what, f"give a sequence of {', '.join(map(repr, KINDS))}")


def lay_out(
    policy: VLAPolicy,
    instruction: str,
    action_tokens: Sequence[int],
    rationale: str = "",
    kinds: Sequence[str] = (ACTION_QUERY,),
) -> TokenSequence:
    """The policy's sequence with this answer, as far as the queries need it.

    Args:
        action_tokens: vocabulary ids, one an action dimension.
        rationale: the text; tokenized here. A policy that writes before it acts has it in front of its action
            whether or not it is asked about.

    Raises:
        KitError: unknown kinds, another number of action tokens, or words asked for of a text that has none.
    """
    check_kinds(kinds)
    vla = policy.vla
    if len(action_tokens) != len(vla.bins.ranges):
        raise KitError(
            f"the action has {len(action_tokens)} tokens, the policy {len(vla.bins.ranges)}",
            "give an action of this policy, or None",
        )
    prefix = vla.prefix_ids(instruction)
    text = vla.tokenizer.encode(rationale, add_special_tokens=False) if rationale else []
    act = [vla.marks.action, *(int(token) for token in action_tokens)]
    think = [vla.marks.rationale, *text]
    if policy.order == "rationale_first":
        thought_at, act_at = len(prefix), len(prefix) + len(think)
        ids = [*prefix, *think, *act]
    else:
        act_at, thought_at = len(prefix), len(prefix) + len(act)
        ids = [*prefix, *act, *(think if RATIONALE_QUERY in kinds else [])]
    queries: list[Query] = []
    if ACTION_QUERY in kinds:
        queries += [
            Query(name, ACTION_QUERY, (act_at + i,), (token,))
            for i, (name, token) in enumerate(zip(vla.bins.names, act[1:], strict=True))
        ]
    for kind, pieces, start in (
        (RATIONALE_QUERY, text, thought_at),
        (INSTRUCTION_QUERY, prefix[vla.image_end :], vla.image_end),
    ):
        if (
            kind in kinds
            # The marker's output predicts the first piece of a rationale, so its row is at the start of the
            # text
            # less one
        ):
            queries += _words(vla.tokenizer, pieces, kind, start)
    return TokenSequence(tuple(ids[:-1]), len(prefix), tuple(queries), rationale if text else "")


def _words(tokenizer: PreTrainedTokenizerFast, pieces: Sequence[int], kind: str, start: int) -> list[Query]:
    """Consecutive tokens of one word joined; piece i has its row at `start` + i."""
    names, words, before = tokenizer.convert_ids_to_tokens(list(pieces)), list[Query](), ""
    for i, (name, token) in enumerate(zip(names, pieces, strict=True)):
        said = str(tokenizer.decode([token])).strip()
        goes_on = bool(words) and before[-1:].isalnum() and said[:1].isalnum() and name[:1] not in SPACES
        if goes_on:
            last = words.pop()
            words.append(Query(last.label + said, kind, (*last.positions, start + i), (*last.tokens, token)))
        elif any(letter.isalnum() for letter in said):
            words.append(Query(said, kind, (start + i,), (token,)))
        before = said
    if not words:
        raise KitError(f"the {kind} has no words", f"give one that has, or leave {kind!r} out of the queries")
    return words
