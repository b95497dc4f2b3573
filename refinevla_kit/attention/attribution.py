"""What in the picture an answer comes from, by any of several methods behind one signature.

    attribute(policy, frame, "yaw", "relevance").patch_map

Methods disagree, and none is the truth: faithfulness.py measures how far each map tells which patches matter
to this policy.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from refinevla_kit.attention.capture import teacher_forced
from refinevla_kit.attention.captured import ACTION_QUERY, INSTRUCTION_QUERY, Query, image_hash
from refinevla_kit.attention.flows import head_mean, raw, relevance, rollout, top_k
from refinevla_kit.attention.forward import Asked, Found
from refinevla_kit.attention.patches import resample, to_pixels
from refinevla_kit.attention.pixel_methods import grad_cam, integrated_gradients, occlusion
from refinevla_kit.attention.queries import check_policy
from refinevla_kit.errors import KitError
from refinevla_kit.policies.contract import Action, Array
from refinevla_kit.policies.vla_policy import VLAPolicy

METHODS: dict[str, Callable[..., Found]] = {
    "raw": raw,
    "head_mean": head_mean,
    "top_k": top_k,
    "rollout": rollout,
    "relevance": relevance,
    "integrated_gradients": integrated_gradients,
    "grad_cam": grad_cam,
    "occlusion": occlusion,
}
PARTS: dict[str, Callable[[Array], Array]] = {
    "positive": lambda x: np.clip(x, 0, None),
    "absolute": np.abs,
    "signed": np.asarray,
}


class Seen(Protocol):
    """A moment: a `Frame`, a simulator's `Observation`, or anything else with these."""

    @property
    def image(self) -> Array: ...
    @property
    def instruction(self) -> str: ...
    @property
    def proprioception(self) -> Array | None: ...


@dataclass(frozen=True)
class Attribution:
    """A map of one answer.

    Attributes:
        patch_map: float64 (rows, columns), in the method's own unit.
        pixel_map: float64 (H, W) over the picture the policy was given.
        provenance: method, its settings and source, target, score (log-probability of the target's tokens,
            nats; None for a word of the instruction), policy, checkpoint and picture; of the attention
            methods also how much of the row went to the picture and to sinks.
    """

    patch_map: Array
    pixel_map: Array
    provenance: dict[str, Any]


def attribute(
    policy: VLAPolicy,
    frame: Seen,
    target: Query | str,
    method: str = "rollout",
    action: Action | None = None,
    rationale: str | None = None,
    part: str = "positive",
    **options: Any,
) -> Attribution:
    """Where in the picture `target` comes from.

    Args:
        target: name of an action dimension, or a query of this very sequence (`Capture.queries`).
        method: one of `METHODS`; `options` are that function's own.
        action, rationale: the answer in the sequence, as in `capture`; None is the policy's own.
        part: of a map with negative values (the score would be higher without that patch) "positive",
            "absolute" or "signed".

    Raises:
        KitError: unknown method, option or target, or a policy that the method does not fit.
    """
    if method not in METHODS or part not in PARTS:
        name, known = (method, METHODS) if method not in METHODS else (part, PARTS)
        raise KitError(
            f"there is no {'method' if known is METHODS else 'part'} {name!r}",
            f"choose one of {', '.join(known)}",
        )
    takes = [*inspect.signature(METHODS[method]).parameters][1:]
    if unknown := [name for name in options if name not in takes]:
        raise KitError(
            f"{method} has no option {unknown[0]!r}",
            f"it has {', '.join(takes)}" if takes else "leave it out",
        )
    asked = ask(policy, frame, target, action, rationale)
    found = METHODS[method](asked, **options)
    patches = PARTS[part](found.patches)
    pixels = (
        to_pixels(patches, asked.image.shape)
        if found.pixels is None
        else resample(PARTS[part](found.pixels), asked.image.shape)
    )
    return Attribution(patches, pixels, {"method": method, "part": part, **_about(asked), **found.details})


def ask(
    policy: VLAPolicy,
    frame: Seen,
    target: Query | str,
    action: Action | None = None,
    rationale: str | None = None,
) -> Asked:
    """The question behind `attribute`: one sequence with the target in it."""
    check_policy(policy)
    if not hasattr(frame, "image") or not hasattr(frame, "instruction"):
        remedy = (
            "give a frame or an observation: something with image, instruction and proprioception, such "
            "as attention.frames.Frame"
        )
        raise KitError(f"{type(frame).__name__} is no moment to ask about", remedy)
    kind = ACTION_QUERY if isinstance(target, str) else target.kind
    own = own_state(frame)
    actions, texts = None if action is None else [action], None if rationale is None else [rationale]
    with torch.no_grad():
        (sequence,), _ = teacher_forced(
            policy,
            np.asarray(frame.image)[None],
            [frame.instruction],
            actions,
            texts,
            own,
            (ACTION_QUERY, kind),
        )
    matching = [
        query
        for query in sequence.queries
        if target in (query, query.label if query.kind == ACTION_QUERY else None)
    ]
    if not matching:
        wanted = (
            target if isinstance(target, str) else f"{target.kind} {target.label!r} at {target.positions}"
        )
        dimensions = ", ".join(policy.vla.bins.names)
        raise KitError(
            f"the answer of {policy.name} has no {wanted}",
            f"choose an action dimension ({dimensions}) or a query of the same capture",
        )
    return Asked(policy, np.asarray(frame.image), policy.vla.states(own), sequence, matching[0])


def own_state(frame: Seen) -> Array | None:
    """Its proprioception as a batch of one, (1, 15), where there is any."""
    own = getattr(frame, "proprioception", None)
    return None if own is None else np.asarray(own)[None]


@torch.no_grad()
def _about(asked: Asked) -> dict[str, Any]:
    policy, query = asked.policy, asked.query
    scored = None if query.kind == INSTRUCTION_QUERY else float(asked.score(asked.pixels())[0])
    return {
        "target": query.label,
        "kind": query.kind,
        "score": scored,
        "policy": policy.name,
        "checkpoint_hash": policy.checkpoint_hash,
        "image_hash": image_hash(asked.image),
    }
