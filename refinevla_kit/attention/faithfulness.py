"""Does what a map shows matter to the policy? Pictures with parts taken away, and maps of a policy whose
weights were shuffled.

Three checks. Deletion and insertion: taking away the patches a map ranks first should cost the policy's own
action more probability than taking away random ones. The occlusion control: an action that does not move when
the object, or the whole picture, is covered was not taken from the picture, wherever the attention lies. The
sanity check (Adebayo et al. 2018): a map that stays the same when the weights are shuffled shows the picture,
or the architecture, and not the policy.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from scipy.integrate import trapezoid
from torch import Tensor

from refinevla_kit.attention.attribution import (
    FILLS,
    MEAN,
    Attribution,
    Fill,
    Moment,
    ask,
    attribute,
    filling,
    masked,
    state_batch,
)
from refinevla_kit.attention.captured import STAGES, Frame
from refinevla_kit.attention.flows import Question
from refinevla_kit.attention.forward import check_policy, log_probabilities, query_score
from refinevla_kit.attention.grounding import REST, over_episodes
from refinevla_kit.errors import KitError, check_choice
from refinevla_kit.policies.contract import Action, Array
from refinevla_kit.policies.vla_policy import VLAPolicy

WHOLE = "image"
COVERED = ("source", "target", "gripper", REST, WHOLE)
COVER_COLUMNS = (
    *("policy", "checkpoint_hash", "task", "episode", "step"),
    *("stage", "covered", "area", "fill", "dimension", "total_variation", "action_change"),
)
AT_A_TIME = 32  # pictures a forward pass


@dataclass(frozen=True)
class Curves:
    """Log-probability (nats) of the policy's own action as patches go or come, float64 (K,) each.

    Attributes:
        fractions: of the patches that are gone (deletion, random) or there (insertion), from 0 to 1.
        deletion, insertion: in the order of the map, its highest patch first.
        random: deletion, mean of random orders; read backwards, insertion.
    """

    fractions: Array
    deletion: Array
    insertion: Array
    random: Array

    @property
    def deletion_gain(self) -> float:
        """Area between random deletion and the map's, nats: how much more the map's patches matter than any;
        0 for a map that knows nothing.
        """
        return float(trapezoid(self.random - self.deletion, self.fractions))

    @property
    def insertion_gain(self) -> float:
        """The same of insertion: how much sooner the map's patches bring the action back than any."""
        return float(trapezoid(self.insertion - self.random[::-1], self.fractions))


@torch.inference_mode()
def curves(
    policy: VLAPolicy,
    frame: Moment,
    patch_map: Array | Attribution,
    fill: Fill = MEAN,
    steps: int = 12,
    orders: int = 4,
    seed: int = 0,
    action: Action | None = None,
    rationale: str | None = None,
) -> Curves:
    """Deletion and insertion (Petsiuk et al. 2018) with the patches of one picture.

    Args:
        policy: a VLA's.
        frame: the moment.
        patch_map: float (rows, columns), any unit, ties in random order; or an `Attribution`, whose map it
            takes.
        fill: what stands in for a deleted patch.
        steps: of equally many patches.
        orders: random ones to compare with.
        seed: of the random orders.
        action: the answer whose probability is followed; None is the policy's own on the whole picture.
        rationale: likewise.

    Raises:
        KitError: a map of another grid, or fewer than one step or order.
    """
    check_policy(policy)
    question = ask(policy, frame, policy.vla.word_names[0], action, rationale)
    grid, patches = policy.vla.grid, policy.vla.patches
    patch_map = np.asarray(getattr(patch_map, "patch_map", patch_map), np.float64)
    if patch_map.shape != grid or not np.isfinite(patch_map).all():
        unfit = "of another grid" if patch_map.shape != grid else "with values that are no numbers"
        raise KitError(f"a map of {patch_map.shape} patches {unfit}", f"give a map of this policy: {grid}")
    if not 1 <= steps <= patches or orders < 1:
        raise KitError(
            f"{steps} steps and {orders} random orders",
            f"ask for 1 to {patches} steps and at least one order",
        )
    random = np.random.default_rng(seed)
    shuffled = [random.permutation(patches) for _ in range(orders)]
    ranked = np.lexsort((random.random(patches), -patch_map.ravel()))
    counts = np.linspace(0, patches, steps + 1).round().astype(int)
    # when a patch goes: deletion, insertion backwards, random deletions
    gone = np.argsort([ranked, ranked[::-1], *shuffled], axis=1)
    kept = torch.from_numpy(gone[:, None] >= counts[:, None])  # orders, steps, patches
    scores = _scores_of(question, kept.reshape(-1, 1, *grid), fill).reshape(len(gone), -1)
    deletion, insertion, *others = scores
    return Curves(counts / patches, deletion, insertion[::-1].copy(), np.mean(others, axis=0))


def _scores_of(question: Question, kept: Tensor, fill: Fill) -> Array:
    """Log-probability of the action, float64 (B,), where only the patches of bool (B, 1, rows, columns) are
    there.
    """
    whole, filled = question.pixels(), question.pixels(filling(question.image, fill))  # 1, 3, height, width
    scores = []
    for part in kept.to(whole.device).split(AT_A_TIME):
        for axis in (2, 3):
            part = part.repeat_interleave(whole.shape[axis] // part.shape[axis], axis)
        hidden = question.hidden(question.words(torch.where(part, whole, filled)))
        total = torch.zeros(len(part), device=whole.device)
        for query in question.sequence.queries:
            total = total + query_score(question.policy, hidden, query)
        scores.append(total)
    return torch.cat(scores).double().cpu().numpy()


def by_episode(frames: Sequence[Frame], each: Sequence[Curves]) -> list[Curves]:
    """One mean of the frames' curves an episode, so that an interval over them is one over episodes."""
    groups: dict[tuple[str, int], list[Curves]] = {}
    for frame, frames_curves in zip(frames, each, strict=True):
        groups.setdefault((frame.task, frame.episode), []).append(frames_curves)
    return [
        Curves(*(np.mean([getattr(one, field.name) for one in group], axis=0) for field in fields(Curves)))
        for group in groups.values()
    ]


@torch.inference_mode()
def cover(
    policy: VLAPolicy,
    frames: Sequence[Frame] | Frame,
    covered: Sequence[str] = COVERED,
    fills: Sequence[Fill] = FILLS,
) -> pd.DataFrame:
    """Cover each thing in turn and see how far the action moves: a row a frame, thing, fill and token
    (columns `COVER_COLUMNS`).

    `total_variation`, 0 to 1, is between the distributions of an action token on the covered and on the whole
    picture, both after the policy's own tokens on the whole one. `action_change` is the mean absolute change
    of the greedy action, decoded anew, in the policy's range [-1, 1]; it is the same for all tokens. Both
    grow with the area that is covered, which is `area`. Things not visible have no row.

    Args:
        policy: a VLA's.
        frames: with masks.
        covered: names of masks, "rest" for the pixels in none, "image" for all.
        fills: what to cover with.
    """
    check_policy(policy)
    rows: list[tuple[Any, ...]] = []
    for frame in [frames] if isinstance(frames, Frame) else frames:
        rows += _covered(policy, frame, covered, fills)
    return pd.DataFrame(rows, columns=list(COVER_COLUMNS))


def _covered(
    policy: VLAPolicy, frame: Frame, covered: Sequence[str], fills: Sequence[Fill]
) -> Iterator[tuple[Any, ...]]:
    """Rows of `cover` of one frame."""
    if not isinstance(frame, Frame):
        raise KitError(
            f"{type(frame).__name__} has no masks to cover by",
            "give attention.captured.Frame, with a mask of each thing",
        )
    everything = np.ones(frame.image.shape[:2], bool)
    masks = frame.masks | {REST: ~np.any([*frame.masks.values()], axis=0), WHOLE: everything}
    for name in covered:
        check_choice("thing to cover", name, masks)
    changes = [(name, fill) for name in covered if masks[name].any() for fill in fills]
    images = np.stack([frame.image, *(masked(frame.image, masks[name], fill) for name, fill in changes)])
    state = state_batch(frame)
    states = None if state is None else state.repeat(len(images), 0)
    actions = policy.decide(images, [frame.instruction] * len(images), states)
    question = ask(policy, frame, policy.vla.word_names[0], actions[0])
    hidden = question.hidden(question.words(policy.vla.pixel_values(images)))
    whose = (policy.name, policy.checkpoint_hash, frame.task, frame.episode, frame.step)
    queries = question.sequence.queries
    chances = [log_probabilities(policy, hidden, query)[0].exp() for query in queries]  # pictures, words
    for number, (name, fill) in enumerate(changes, 1):
        change = np.abs(actions[number].normalised - actions[0].normalised).mean()
        what = (STAGES.get(frame.phase, frame.phase), name, float(masks[name].mean()), str(fill))
        for query, chance in zip(queries, chances, strict=True):
            variation = (chance[number] - chance[0]).abs().sum() / 2
            yield (*whose, *what, query.label, float(variation), float(change))


def summarise_cover(table: pd.DataFrame, measure: str = "total_variation") -> pd.DataFrame:
    """Mean of "total_variation" or "action_change" over frames and tokens, with Student's interval over
    episodes.

    Returns:
        Columns policy, covered, fill, the measure under its own name, low, high (NaN with one episode), area,
        episodes.
    """
    keys = ["covered", "fill"]
    summary = over_episodes(table, measure, keys)
    summary.insert(summary.columns.get_loc("episodes"), "area", over_episodes(table, "area", keys)["area"])
    return summary


def sanity(
    policy: VLAPolicy,
    frames: Sequence[Moment],
    target: str,
    method: str = "rollout",
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """Shuffle the weights from the top layer down and compare each map with the trained policy's, by
    Spearman's rank correlation of the patches.

    The answer in the sequence stays the trained policy's. A layer's own attention cannot change before that
    layer is reached.

    Returns:
        Columns frame (number), shuffled (layers and what else, from the top: "layer 5", ..., "layer 1",
        "tower"), correlation.
    """
    actions = [
        policy.decide(np.asarray(frame.image)[None], [frame.instruction], state_batch(frame))[0]
        for frame in frames
    ]

    def maps(judged: VLAPolicy) -> list[Array]:
        pairs = zip(frames, actions, strict=True)
        return [
            attribute(judged, frame, target, method, action, **options).patch_map for frame, action in pairs
        ]

    trained, rows = maps(policy), []
    for name, shuffled in _shuffled(policy, seed):
        for number, (before, after) in enumerate(zip(trained, maps(shuffled), strict=True)):
            correlation = 0.0  # a map without any order has nothing in common with another
            if np.ptp(after) and np.ptp(before):
                correlation = float(stats.spearmanr(before.ravel(), after.ravel()).statistic)
            rows.append((number, name, correlation))
    return pd.DataFrame(rows, columns=["frame", "shuffled", "correlation"])


def _shuffled(policy: VLAPolicy, seed: int) -> Iterator[tuple[str, VLAPolicy]]:
    """One copy with ever more of its weights in random places, from the top down; each tensor keeps its own
    values, so scales stay plausible.
    """
    random = torch.Generator().manual_seed(seed)
    vla = replace(policy.vla, model=copy.deepcopy(policy.vla.model))
    other = VLAPolicy(vla, policy.name, "", policy.order)
    layers = [(f"layer {number}", layer) for number, layer in enumerate(vla.layers, 1)]
    for name, part in [*reversed(layers), *(("tower", part) for part in vla.tower)]:
        for parameter in part.parameters():
            order = torch.randperm(parameter.numel(), generator=random).to(parameter.device)
            parameter.data = parameter.data.flatten()[order].reshape(parameter.shape)
        yield name, other
