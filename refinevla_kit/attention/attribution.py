"""What in the picture an answer comes from, by any of several methods behind one signature.

    attribute(policy, frame, "yaw", "relevance").patch_map

Attention (`flows`) says what was read. The methods here say what the answer *depends* on, through captum:
gradients along a path, gradients at the tower, patches taken away. They work on the picture as the tower
takes it. Methods disagree, and none is the truth: `faithfulness` measures how far each map tells which
patches matter to this policy.

What stands in for a part that is taken away is a fill: the picture's mean colour, the picture blurred, or a
colour of one's choice. No fill is neutral: a flat patch is itself an edge that a policy never saw, a blur
leaves large shapes in place. So effects are reported with both.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from captum.attr import IntegratedGradients, LayerGradCam, Occlusion
from scipy import ndimage
from torch import Tensor

from refinevla_kit.attention.captured import ACTION_QUERY, INSTRUCTION_QUERY, Frame, Query, image_hash
from refinevla_kit.attention.flows import Answer, Question, head_mean, raw, relevance, rollout, top_k
from refinevla_kit.attention.forward import check_policy, token_sequences
from refinevla_kit.attention.grounding import resample, to_pixels
from refinevla_kit.errors import KitError, check_choice, checked_integer
from refinevla_kit.policies.contract import Action, Array
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.simulator.contract import Observation

MEAN, BLUR = FILLS = ("mean", "blur")
Fill = str | tuple[int, int, int]
# Standard deviation of the blur in picture heights: half an object's size and more at the WidowX's camera
BLUR_SHARE = 1 / 12
AT_A_TIME = 16  # pictures a forward pass
Moment = Frame | Observation  # or anything else with image, instruction and proprioception


@dataclass(frozen=True)
class Attribution:
    """A map of one answer.

    Attributes:
        patch_map: float64 (rows, columns), in the method's own unit.
        pixel_map: float64 (H, W) over the picture the policy was given.
        provenance: method and its settings, target, policy, checkpoint and picture. The score is the
            log-probability of the target's tokens, nats; None for a word of the instruction. The attention
            methods also say how much of the row went to the picture and to sinks.
    """

    patch_map: Array
    pixel_map: Array
    provenance: dict[str, Any]


def attribute(
    policy: VLAPolicy,
    frame: Moment,
    target: Query | str,
    method: str = "rollout",
    action: Action | None = None,
    rationale: str | None = None,
    part: str = "positive",
    **options: Any,
) -> Attribution:
    """Where in the picture `target` comes from.

    Args:
        policy: a VLA's.
        frame: the moment: a `Frame` or an `Observation`.
        target: name of an action dimension, or a query of this very sequence (`Capture.queries`).
        method: one of `METHODS`.
        action: the answer in the sequence, as in `capture`; None is the policy's own.
        rationale: likewise.
        part: of a map with negative values (the score would be higher without that patch) "positive",
            "absolute" or "signed".
        options: the method's own.

    Raises:
        KitError: unknown method, option or target, or a policy that the method does not fit.
    """
    check_choice("method", method, METHODS)
    check_choice("part", part, PARTS)
    takes = [*inspect.signature(METHODS[method]).parameters][1:]
    for option in options:
        check_choice(f"{method} option", option, takes)
    question = ask(policy, frame, target, action, rationale)
    answer = METHODS[method](question, **options)
    patches, shape, query = PARTS[part](answer.patches), question.image.shape, question.query
    if answer.pixels is None:
        pixels = to_pixels(patches, shape)
    else:
        pixels = resample(PARTS[part](answer.pixels), shape)
    score = None
    if query.kind != INSTRUCTION_QUERY:
        with torch.no_grad():
            score = float(question.score(question.pixels())[0])
    provenance = {
        "method": method,
        "part": part,
        "target": query.label,
        "kind": query.kind,
        "score": score,
        "policy": policy.name,
        "checkpoint_hash": policy.checkpoint_hash,
        "image_hash": image_hash(question.image),
    }
    return Attribution(patches, pixels, provenance | answer.details)


def ask(
    policy: VLAPolicy,
    frame: Moment,
    target: Query | str,
    action: Action | None = None,
    rationale: str | None = None,
) -> Question:
    """The question behind `attribute`: one sequence with the target in it."""
    check_policy(policy)
    if not hasattr(frame, "image") or not hasattr(frame, "instruction"):
        what = f"{type(frame).__name__} is no moment to ask about"
        raise KitError(what, "give an attention.captured.Frame or a simulator's Observation")
    kind = ACTION_QUERY if isinstance(target, str) else target.kind
    image, states = np.asarray(frame.image), state_batch(frame)
    with torch.no_grad():
        (sequence,), _ = token_sequences(
            policy,
            image[None],
            [frame.instruction],
            None if action is None else [action],
            None if rationale is None else [rationale],
            states,
            (ACTION_QUERY, kind),
        )
    for query in sequence.queries:
        if query == target or (query.kind == ACTION_QUERY and query.label == target):
            return Question(policy, image, policy.vla.states(states), sequence, query)
    wanted = target if isinstance(target, str) else f"{target.kind} {target.label!r} at {target.positions}"
    raise KitError(
        f"the answer of {policy.name} has no {wanted}",
        f"choose an action dimension ({', '.join(policy.vla.word_names)}) or a query of the same capture",
    )


def state_batch(frame: Moment) -> Array | None:
    """Its proprioception as a batch of one, (1, 15), where there is any."""
    state = getattr(frame, "proprioception", None)
    return None if state is None else np.asarray(state)[None]


def filling(image: Array, fill: Fill = MEAN) -> Array:
    """The picture to paste from: uint8 (H, W, 3) -> uint8 (H, W, 3).

    Args:
        image: uint8 (H, W, 3).
        fill: "mean", "blur", or a colour (r, g, b).

    Raises:
        KitError: another name.
    """
    image = np.asarray(image)
    if fill == BLUR:
        sigma = BLUR_SHARE * image.shape[0]
        blurred = ndimage.gaussian_filter(image.astype(np.float32), (sigma, sigma, 0), mode="nearest")
        return blurred.round().astype(np.uint8)
    if isinstance(fill, str) and fill != MEAN:
        raise KitError(f"unknown fill {fill!r}", f"choose {MEAN!r}, {BLUR!r} or a colour (r, g, b)")
    colour = image.reshape(-1, 3).mean(0).round() if fill == MEAN else np.asarray(fill)
    return np.broadcast_to(colour.astype(np.uint8), image.shape).copy()


def masked(image: Array, mask: Array, fill: Fill = MEAN) -> Array:
    """The picture with the pixels of a mask (bool (H, W)) taken away."""
    return np.where(np.asarray(mask, bool)[..., None], filling(image, fill), image)


@torch.enable_grad()
def integrated_gradients(question: Question, fill: Fill = BLUR, steps: int = 32) -> Answer:
    """Integrated gradients (Sundararajan et al. 2017) from the filled picture to this one, `steps` along the
    way.

    Summed over a patch's pixels and colours; all patches together are the score's difference between the two
    pictures, up to `residual`. A flat start makes it large: the tower's group norms divide by how much a
    picture varies, which near a flat one changes within the first step.
    """
    steps = checked_integer(steps, "steps", 1)
    start = question.pixels(filling(question.image, fill))
    gradients, residual = IntegratedGradients(question.score).attribute(
        question.pixels(),
        start,
        n_steps=steps,
        internal_batch_size=AT_A_TIME,
        return_convergence_delta=True,
    )
    fine = gradients[0].sum(0).detach().double().cpu().numpy()  # height, width
    rows, columns = question.policy.vla.grid
    patches = fine.reshape(rows, fine.shape[0] // rows, columns, fine.shape[1] // columns).sum((1, 3))
    return Answer(patches, fine, {"fill": fill, "steps": steps, "residual": float(residual[0])})


@torch.enable_grad()
def grad_cam(question: Question) -> Answer:
    """Grad-CAM (Selvaraju et al. 2017) at the last convolution of the tower: its channels weighted by the
    score's mean gradient. A tower without convolutions has its last map in the words of the picture.
    """
    vla, stages = question.policy.vla, question.policy.vla.convolutions
    if stages is None:
        words = question.words(question.pixels()).detach().requires_grad_()  # 1, image_tokens, d
        (gradient,) = torch.autograd.grad(question.score_words(words)[0], words)
        weights = gradient[:, : vla.patches].mean(1, keepdim=True)  # 1, 1, d
        found = (weights * words[:, : vla.patches]).sum(-1).view(vla.grid)
        return Answer(found.detach().double().cpu().numpy(), None, {"at": "words of the picture"})
    pixels = question.pixels().requires_grad_()  # the tower may be frozen
    channels = LayerGradCam(question.score, stages).attribute(pixels)
    assert isinstance(channels, Tensor)
    return Answer(channels[0, 0].detach().double().cpu().numpy(), None, {"at": "vision tower, last stage"})


@torch.no_grad()
def occlusion(question: Question, fill: Fill = MEAN) -> Answer:
    """How much the score falls when one patch of the picture is filled (Zeiler and Fergus 2014), patch by
    patch.
    """
    pixels, (rows, columns) = question.pixels(), question.policy.vla.grid
    height, width = pixels.shape[2] // rows, pixels.shape[3] // columns
    window = (pixels.shape[1], height, width)  # OpenVLA's two towers see the picture in channels of their own
    start = question.pixels(filling(question.image, fill))
    falls = Occlusion(question.score).attribute(
        pixels, window, window, start, perturbations_per_eval=AT_A_TIME
    )
    # one value a patch, repeated over its pixels
    return Answer(falls[0, 0, ::height, ::width].double().cpu().numpy(), None, {"fill": fill})


METHODS: dict[str, Callable[..., Answer]] = {
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
    "positive": lambda patch_map: np.clip(patch_map, 0, None),
    "absolute": np.abs,
    "signed": np.asarray,
}
