"""Constrained decoding of a rationale as a form: the model fills in four texts and a verdict, everything between them is already written.

transformers has no grammars, only the hook (`LogitsProcessor`) that grammar libraries hang theirs on. The answer's shape is fixed, so no grammar is
needed: keys and braces are forced, and within a text every token is allowed that stays in the text or closes it. It works with any tokenizer, by
the text of its tokens. The form always ends in time: a text that uses up its share of the tokens is closed for the model, and `cut` says so.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from refinevla_kit.errors import KitError
from refinevla_kit.teacher.schema import PARTS

BEFORE = ('{"', *('", "',) * (len(PARTS) - 1))
OPENINGS = tuple(f'{before}{part}": "' for before, part in zip(BEFORE, PARTS, strict=True))  # what leads to each part's text
VERDICT, MATCHES, DIFFERS, END = '", "instruction_matches":', ' true, "mismatch": ""}', ' false, "mismatch": "', '"}'
LEAST = 64  # tokens for the texts: with fewer nothing is said

Allowed = Generator[list[int] | Tensor, int, None]


class Words:
    """A tokenizer's tokens as text; made once for a model.

    Attributes:
        texts: of each token, as it reads behind another; "" for added and special ones. ids: text -> token. end: the token that ends an answer.
        plain: bool (V,), tokens that may stand within a JSON string. telling: those of them with a letter or digit, with which a text begins.
        closing: literal -> bool (V,), tokens that end a text and may run on into the literal behind it.
        frame: tokens that the literals take, wherever they are begun.
    """

    def __init__(self, tokenizer: Any, end: int | list[int] | None) -> None:
        anchor = tokenizer.encode("a", add_special_tokens=False)[-1:]
        before = tokenizer.decode(anchor, clean_up_tokenization_spaces=False)
        pairs = [[*anchor, i] for i in range(len(tokenizer))]
        added = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        read = tokenizer.batch_decode(pairs, clean_up_tokenization_spaces=False)
        self.texts = ["" if i in added or not text.startswith(before) else text[len(before):] for i, text in enumerate(read)]
        self.ids = {text: i for i, text in enumerate(self.texts) if text}  # of several with one text the last: bytes come before words
        self.end = end[0] if isinstance(end, list) else tokenizer.eos_token_id if end is None else end
        self.plain = self.mask([i for i, text in enumerate(self.texts) if _plain(text)])
        self.telling = self.mask([i for i, text in enumerate(self.texts) if _plain(text) and any(map(str.isalnum, text))])
        self.frame = sum(max(self.count(literal[start:]) for start in range(len(literal))) for literal in (*OPENINGS, VERDICT, DIFFERS, END))
        self.closing = {literal: self._closing(literal) for literal in (*OPENINGS[1:], VERDICT, END)}

    def mask(self, ids: list[int]) -> Tensor:
        """bool (V,), True at `ids`."""
        return torch.zeros(len(self.texts), dtype=torch.bool).index_fill_(0, torch.tensor(ids, dtype=torch.long), True)

    def _closing(self, literal: str) -> Tensor:
        ends = ((i, *text.partition('"')) for i, text in enumerate(self.texts) if '"' in text)
        return self.mask([i for i, head, mark, tail in ends if (not head or _plain(head)) and literal.startswith(mark + tail)])

    def prefixes(self, literal: str) -> list[int]:
        """Tokens that `literal` begins with, the longest first. Raises `KitError` when there is none."""
        found = [self.ids[literal[:size]] for size in range(len(literal), 0, -1) if literal[:size] in self.ids]
        if not found:
            raise KitError(f"this model's tokenizer has no token for {literal[:1]!r}", "give constrained=False")
        return found

    def count(self, literal: str) -> int:
        """Tokens that it takes to write `literal` with the longest ones."""
        return 1 + self.count(literal[len(self.texts[self.prefixes(literal)[0]]):]) if literal else 0


class JsonForm(LogitsProcessor):
    """For one `generate` call with one sequence and at most `budget` new tokens. `cut`: the part whose text was closed for the model, else ""."""

    def __init__(self, words: Words, budget: int) -> None:
        self.words, self.cut = words, ""
        self.spare = budget - 1 - words.frame  # tokens left for the texts, and for literals written in more pieces than need be; 1 ends the answer
        if self.spare < LEAST:
            raise KitError(f"max_new_tokens is {budget}, the answer's frame takes {words.frame}", f"give {words.frame + LEAST + 1} or more")
        self._steps: Allowed | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        if self._steps is None:
            self._steps = self._form()
            allowed = next(self._steps)
        else:
            allowed = self._steps.send(int(input_ids[0, -1]))
        keep = self.words.mask(allowed) if isinstance(allowed, list) else allowed
        keep = torch.nn.functional.pad(keep, (0, scores.shape[1] - len(keep)))  # models have more outputs than tokens
        return scores.masked_fill(~keep.to(scores.device), -torch.inf)

    def _form(self) -> Allowed:
        """Yields what may come next and is sent what came."""
        left = OPENINGS[0]
        for i, (part, after) in enumerate(zip(PARTS, (*OPENINGS[1:], VERDICT), strict=True)):
            yield from self._literal(left)
            left = yield from self._text(part, after, self.spare // (len(PARTS) + 1 - i))
        yield from self._literal(left)
        if (yield from self._literal(MATCHES, DIFFERS)) == DIFFERS:
            yield from self._literal((yield from self._text("mismatch", END, self.spare)))
        while True:
            yield [self.words.end]

    def _literal(self, *options: str) -> Generator[list[int] | Tensor, int, str]:
        """One of the options, in the model's own tokens while there is room; returns which."""
        left = {option: option for option in options}
        while all(left.values()):
            ways = [self.words.prefixes(rest) for rest in left.values()]
            token = yield [way for found in ways for way in found[:None if self.spare >= LEAST else 1]]
            said = self.words.texts[token]
            left, before = {option: rest[len(said):] for option, rest in left.items() if rest.startswith(said)}, left
            self.spare -= max(1 + self.words.count(rest) - self.words.count(before[option]) for option, rest in left.items())
        return next(iter(left))

    def _text(self, name: str, after: str, share: int) -> Generator[list[int] | Tensor, int, str]:
        """A text of at most `share` tokens; returns what is left of the literal `after`."""
        allowed = self.words.telling
        for _ in range(share):
            token = yield allowed
            self.spare -= 1
            _, mark, tail = self.words.texts[token].partition('"')
            if mark:
                return after[1 + len(tail):]
            allowed = self.words.plain | self.words.closing[after]
        self.cut = self.cut or name
        return after


def _plain(text: str) -> bool:
    return bool(text) and text.isprintable() and not set(text) & set('"\\\ufffd')
