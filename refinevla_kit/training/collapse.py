"""Two ways in which a policy is lost while its loss still looks like one: it says the same whatever it sees,
or it says no action at all.

Neither shows in the curves: the most frequent action is often right. The check is free until something is
suspicious: a policy that always acts alike starts with the same token, and only then are its actions decoded
as in an evaluation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from refinevla_kit.errors import KitError
from refinevla_kit.policies.contract import Array
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.training.batches import make_batch, predict
from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.examples import Examples
from refinevla_kit.vlas.contract import VLA
from refinevla_kit.vlas.sequence import ACTION_KIND

LOOKED_AT, FEWEST, EPISODES = 16, 8, 2  # held-out frames; at least so many, of so many episodes, to judge


@torch.no_grad()
def check_collapse(
    model: Any,
    vla: VLA,
    examples: Examples,
    held_out: Array,
    config: TrainingConfig,
    kept: Any,
    name: str,
    step: int,
) -> None:
    """Look at up to `LOOKED_AT` of the held-out frames `held_out` that have an action. `model`: see
    `predict`. `kept`: see `make_batch`.

    Raises:
        KitError: no action token is the most likely one anywhere, or all greedy actions are one.
    """
    acted = held_out[np.isfinite(examples.actions[held_out]).all(axis=1)]
    if len(acted) < FEWEST:
        return
    rows = acted[np.linspace(0, len(acted) - 1, min(LOOKED_AT, len(acted))).astype(int)]
    batch, first = make_batch(vla, examples, rows, config, kept), vla.first_action
    with torch.autocast(vla.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        logits = predict(model, vla, batch)[:, :-1].float()  # B, K-1, V
    target, kinds = (
        x[:, -logits.shape[1] :] for x in (batch.sequences.input_ids, batch.sequences.kinds)
    )  # B, K-1
    places = kinds == ACTION_KIND
    said = logits[places].argmax(-1)
    kept_where = "the state saved last is from before; start again in another folder"
    if not ((said >= first) & (said < first + vla.bins.words)).any():
        what = (
            f"{name} gives no action tokens at step {step}: in {len(rows)} held-out frames, none is the "
            "most likely at any place of the action"
        )
        raise KitError(
            what,
            f"{kept_where}, with a smaller learning_rate or lambda_reasoning, or from a base that "
            "has learned actions",
        )
    low, high = vla.bins.ranges[0]
    if _all_alike(
        _first_of_each(logits, places)[:, first + low : first + high].argmax(-1)
    ) and _should_differ(examples, rows, target, places):
        own = None if examples.proprioception is None else examples.proprioception[rows]
        policy = VLAPolicy(vla, name, order=config.order)
        actions = policy.act_batch(examples.images[rows], [examples.instructions[row] for row in rows], own)
        if all(np.array_equal(action.tokens, actions[0].tokens) for action in actions):
            episodes = len(np.unique(examples.episodes[rows]))
            what = (
                f"{name} has collapsed at step {step}: its action is the same on {len(rows)} different "
                f"held-out frames of {episodes} episodes"
            )
            raise KitError(what, f"{kept_where}, with a smaller learning_rate or fewer freeze_layers")


def _first_of_each(logits: Tensor, places: Tensor) -> Tensor:
    """(B, V): the logits of each row's first action place."""
    return logits[torch.arange(len(logits), device=logits.device), places.int().argmax(1)]


def _should_differ(examples: Examples, rows: Array, target: Tensor, places: Tensor) -> bool:
    """The frames are of several episodes and look different, and the actions to be taken on them are not
    one.
    """
    several = len(np.unique(examples.episodes[rows])) >= EPISODES
    pictures = examples.images[rows]
    return (
        several
        and bool((pictures != pictures[:1]).any())
        and not _all_alike(target[places].view(len(rows), -1))
    )


def _all_alike(values: Tensor) -> bool:
    return bool((values == values[:1]).all())
