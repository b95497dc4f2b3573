"""Reads the attention of a policy's action tokens while it acts: only the wanted rows of each layer, never the whole square.

An action dimension's row is that of the position whose output *predicts* its token: the action marker for the first dimension, then each token for
the next one. (The ReFineVLA paper does not say which position it shows; this is the one where the decision is made.) The sequence is fed in one piece
with the policy's own greedy tokens, which gives the rows that cached decoding used. Token types are passed, so the prefix is read in both directions;
without them the model would silently use a causal mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from refinevla_kit.errors import KitError
from refinevla_kit.policies.compact_policy import CompactPolicy
from refinevla_kit.policies.contract import Action, Array
from refinevla_kit.policies.sequence import prefix_ids
from refinevla_kit.policies.vocabulary import ACTION, RATIONALE

OWN_STATE = "robot state"


@dataclass(frozen=True)
class Capture:
    """Attention of the A action tokens on one picture. `patches` and `others` of a row add up to 1.

    Attributes:
        patches: float32 (layers, heads, A, rows * columns), attention to each image patch, row by row.
        others: float32 (layers, heads, A, T), attention to each further token; 0 for tokens that come later.
        labels: the T tokens: words of the instruction, the action marker, earlier action tokens, `OWN_STATE` where the policy reads proprioception.
        words: how many of them, counted from the first, are the instruction's.
        dimensions: name of what each of the A action tokens says: a dimension, or "translation", "rotation", "gripper".
        grid: rows and columns of patches.
        action: what the policy did (or was given).
        policy, checkpoint_hash: who acted.
    """

    patches: Array
    others: Array
    labels: tuple[str, ...]
    words: int
    dimensions: tuple[str, ...]
    grid: tuple[int, int]
    action: Action
    policy: str
    checkpoint_hash: str

    @property
    def layers(self) -> int:
        return int(self.patches.shape[0])

    @property
    def heads(self) -> int:
        return int(self.patches.shape[1])

    @property
    def image_share(self) -> Array:
        """float32 (layers, heads, A): how much of each row goes to the picture; the rest goes to words and to the answer so far."""
        return np.asarray(self.patches.sum(-1))

    def map(self, layer: int, token: int | None = None, head: int | None = None) -> Array:
        """float32 (rows, columns): attention to each patch; `head` None is the mean over heads, `token` None the mean over action dimensions.

        Raises:
            KitError: layer, token or head out of range (all counted from 0).
        """
        for name, value, size in (("layer", layer, self.layers), ("action dimension", token, len(self.dimensions)), ("head", head, self.heads)):
            if value is not None and not 0 <= value < size:
                raise KitError(f"{self.policy} has no {name} {value}", f"choose 0 to {size - 1}")
        heads = self.patches[layer].mean(0) if head is None else self.patches[layer, head]  # A, patches
        row = heads.mean(0) if token is None else heads[token]
        return np.asarray(row.reshape(self.grid))


def upper_middle(layers: int) -> int:
    """The layer (from 0) shown when none is chosen: three fifths up, past the layers that copy positions and before the ones that only read out."""
    return 3 * layers // 5


@torch.inference_mode()
def capture(
    policy: CompactPolicy, image: Array, instruction: str, action: Action | None = None, rationale: str | None = None,
    proprioception: Array | None = None,
) -> Capture:  # fmt: skip
    """Attention of each action token on one picture.

    Args:
        policy: of the compact VLA.
        image: uint8 (H, W, 3).
        action: what to feed as the answer; None is the policy's own greedy action.
        rationale: for a policy that writes before it acts, the text it acts on; None is the action's own. It is tokenized anew.
        proprioception: float (15,), for a policy that reads it.

    Raises:
        KitError: the policy has no tokens to look from, or its attention implementation does not return weights.
    """
    if not isinstance(policy, CompactPolicy):
        raise KitError(f"{getattr(policy, 'name', policy)!r} has no attention that this can read", "give a checkpoint of the compact VLA")
    vla = policy.vla
    own = None if proprioception is None else np.asarray(proprioception)[None]
    action = policy.act_batch(np.asarray(image)[None], [instruction], own)[0] if action is None else action
    if len(action.tokens) != len(vla.bins.ranges):
        raise KitError(f"the action has {len(action.tokens)} tokens, the policy {len(vla.bins.ranges)}", "give an action of this policy, or None")
    prefix = prefix_ids(vla.tokenizer, vla.image_tokens, instruction)
    text = rationale if rationale is not None else action.rationale
    thought = vla.tokenizer.encode(text, add_special_tokens=False) if text else []
    mark, think = (int(vla.tokenizer.convert_tokens_to_ids(token)) for token in (ACTION, RATIONALE))  # type: ignore[arg-type]
    before = [think, *thought] if policy.order == "rationale_first" else []
    ids = [*prefix, *before, mark, *(int(token) for token in action.tokens[:-1])]  # the last token predicts nothing of this action
    first = len(prefix) + len(before)
    types = [0] * len(prefix) + [1] * (len(ids) - len(prefix))
    features = vla.encode(vla.pixel_values(np.asarray(image)[None]), vla.states(own))
    rows = attention_rows(policy, features, ids, types, range(first, len(ids)))
    image_tokens, patches = vla.image_tokens, vla.patches
    labels = tuple(str(vla.tokenizer.decode([token])).strip() or " " for token in ids[image_tokens:])
    words_said = len(prefix) - image_tokens
    to_patches, to_others = rows[..., :patches], np.concatenate([rows[..., image_tokens:], rows[..., patches:image_tokens]], axis=-1)
    labels += (OWN_STATE,) * vla.reads_state
    return Capture(to_patches, to_others, labels, words_said, vla.bins.names, vla.grid, action, policy.name, policy.checkpoint_hash)


def attention_rows(policy: CompactPolicy, features: dict[str, Any], ids: list[int], types: list[int], queries: range) -> Array:
    """One forward pass over a sequence of N tokens, `features` from `CompactVLA.encode`; float32 (layers, heads, len(queries), N)."""
    model = policy.vla.model
    kept: list[Tensor] = []
    with _watching(model.model.language_model, kept, slice(queries.start, queries.stop)):
        model(
            input_ids=torch.tensor([ids], device=model.device), mm_encoder_outputs=features,
            token_type_ids=torch.tensor([types], device=model.device), use_cache=False, logits_to_keep=1,
        )  # fmt: skip
    if len(kept) != len(model.model.language_model.layers):
        raise KitError(f"only {len(kept)} layers of {policy.name} were run", "load the policy again")
    return torch.stack(kept).float().cpu().numpy()


@contextmanager
def _watching(language_model: nn.Module, kept: list[Tensor], queries: slice) -> Iterator[None]:
    """While open, append the rows `queries` (heads, Q, N) of each attention layer to `kept`."""

    def keep(layer: nn.Module, _: object, output: tuple[Tensor, Tensor | None]) -> None:
        if output[1] is None:
            implementation = layer.config._attn_implementation  # type: ignore[union-attr]
            raise KitError(f"the attention implementation {implementation!r} gives no weights", "load the policy with attn_implementation='eager'")
        kept.append(output[1][0, :, queries].clone())  # a view would keep the whole square alive

    handles = [layer.self_attn.register_forward_hook(keep) for layer in language_model.layers]  # type: ignore[union-attr, operator]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
