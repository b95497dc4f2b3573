"""What transformers' own PaliGemma forward takes in the place of pixels: the independent way to the same
numbers.
"""

from __future__ import annotations

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling


def features(words: Tensor) -> dict[str, BaseModelOutputWithPooling]:
    """Of words of the picture (B, image_tokens, d)."""
    return {"image": BaseModelOutputWithPooling(last_hidden_state=words, pooler_output=words)}
