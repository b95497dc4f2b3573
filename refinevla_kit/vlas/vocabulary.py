"""The compact VLA's local tokenizer: byte-level BPE trained on the texts at hand, plus PaliGemma's `<loc>`
tokens and one token an action word.

No download: the words come from the datasets the policy is trained on. Any other text still tokenizes
(bytes), only into more pieces.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from refinevla_kit.errors import KitError
from refinevla_kit.vlas.action_tokens import BINS

PAD, EOS, IMAGE, ACTION, RATIONALE = "<pad>", "<eos>", "<image>", "<action>", "<rationale>"
LOCATIONS = 1024  # PaliGemma's: <locY><locX>, each the picture divided into 1024
LOCATION_TOKENS = tuple(f"<loc{i:04d}>" for i in range(LOCATIONS))


def action_tokens(words: int) -> tuple[str, ...]:
    """`<act000>`, `<act001>`, ...: the tokens of so many action words, in order."""
    return tuple(f"<act{i:03d}>" for i in range(words))


ACTION_TOKENS = action_tokens(BINS)  # those of uniform bins; every vocabulary has at least these


def train_vocabulary(
    texts: Iterable[str], words: int = 1024, action_words: int = BINS
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of at most `words` pieces on `texts`; add special, location and `action_words`
    (`ActionTokens.words`) tokens.
    """
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=words,
        special_tokens=[PAD, EOS, IMAGE, ACTION, RATIONALE],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator(
        sorted(set(texts)), trainer
    )  # sorted: the merges must not depend on the order of the data
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token=PAD, eos_token=EOS, extra_special_tokens=[IMAGE, ACTION, RATIONALE]
    )
    tokenizer.add_tokens(list(LOCATION_TOKENS + action_tokens(max(action_words, BINS))), special_tokens=True)
    return tokenizer


def load_vocabulary(path: str | Path) -> PreTrainedTokenizerFast:
    """Read the tokenizer of a checkpoint. Raises `KitError` when it lacks the kit's tokens."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(path))
    unknown = [
        token
        for token in (IMAGE, ACTION, RATIONALE, LOCATION_TOKENS[-1], ACTION_TOKENS[-1])
        if token not in tokenizer.get_vocab()
    ]
    if unknown:
        raise KitError(
            f"the tokenizer in {path} has no {unknown[0]} token", "give a checkpoint of the compact VLA"
        )
    return tokenizer


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Vocabulary id of one token."""
    number = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(number, int)
    return number


def first_action_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """Vocabulary id of action word 0; word i has this id + i."""
    return token_id(tokenizer, ACTION_TOKENS[0])


def check_action_words(tokenizer: PreTrainedTokenizerFast, words: int) -> None:
    """Raise `KitError` unless the vocabulary has tokens for so many action words."""
    if (last := action_tokens(words)[-1]) not in tokenizer.get_vocab():
        what = f"the tokenizer has no {last}, and the action tokens have {words} words"
        raise KitError(
            what, "train the vocabulary with action_words=tokens.words, or copy the whole checkpoint again"
        )
