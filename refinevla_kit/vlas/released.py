"""What SpatialVLA and OpenVLA share as their authors release them: actions scaled by quantiles of a dataset,
and the way into their modules.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from torch import nn

from refinevla_kit.conventions import GOOGLE_ROBOT, WIDOWX, Conventions, Reference, robot_of
from refinevla_kit.errors import KitError, as_kit_error, listed
from refinevla_kit.simulator.contract import Array
from refinevla_kit.vlas.checkpoint import OWN, Folder
from refinevla_kit.vlas.contract import VLA

PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class Quantiles:
    """1 % and 99 % quantiles of a dataset's actions, as OpenVLA and SpatialVLA keep them.

    Attributes:
        low: of each dimension, in the dataset's own units.
        high: likewise.
        scaled: which dimensions are scaled; the others (a gripper in 0..1) are left as they are.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    scaled: tuple[bool, ...]

    @classmethod
    def from_statistics(cls, entry: Mapping[str, Any], key: str) -> Quantiles:
        """From the `action` part of a dataset's entry in a statistics file; no `mask` scales all."""
        with as_kit_error(
            f"the action statistics of {key!r} cannot be read",
            "give q01, q99 and mask, a number each dimension",
            (KeyError, TypeError, ValueError),
        ):
            action = entry["action"]
            low, high = (tuple(float(x) for x in action[name]) for name in ("q01", "q99"))
            scaled = tuple(bool(x) for x in action.get("mask") or [True] * len(low))
        if not len(low) == len(high) == len(scaled) or not np.isfinite([low, high]).all():
            what = (
                f"the action statistics of {key!r} have {len(low)} q01, {len(high)} q99, {len(scaled)} mask"
            )
            raise KitError(what, "give as many finite numbers of each as an action has")
        return cls(low, high, scaled)

    @property
    def limits(self) -> tuple[float, ...]:
        """Largest size of each dimension between the quantiles; 1 where it is not scaled."""
        return tuple(np.abs(self.bounds).max(0).clip(1e-6).tolist())

    @property
    def bounds(self) -> tuple[Array, Array]:
        """Lowest and highest of what can be said; -1 and 1 where it is not scaled."""
        return np.where(self.scaled, self.low, -1.0), np.where(self.scaled, self.high, 1.0)

    def normalise(self, actions: Array) -> Array:
        """float (..., A) in the dataset's units -> float64 (..., A), [-1, 1] between the quantiles."""
        actions, low, high = np.asarray(actions, np.float64), np.asarray(self.low), np.asarray(self.high)
        span = np.where(high > low, high - low, 1.0)  # a dimension that never moves stays at its place
        return np.where(self.scaled, 2 * (actions - low) / span - 1, actions)

    def restore(self, actions: Array) -> Array:
        """Inverse of `normalise`."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        return np.where(self.scaled, 0.5 * (np.asarray(actions) + 1) * (high - low) + low, actions)

    def to_dict(self) -> dict[str, Any]:
        """As the authors write them."""
        return {"q01": list(self.low), "q99": list(self.high), "mask": list(self.scaled)}


class QuantileWords(ABC):
    """Action words of numbers that a dataset's quantiles scale, see `ActionTokens`."""

    quantiles: Quantiles

    @property
    def limits(self) -> tuple[float, ...]:
        return self.quantiles.limits

    @abstractmethod
    def encode_normalised(self, actions: Array) -> Array:
        """float (..., A), scaled -> int64 (..., T)."""

    @abstractmethod
    def decode_normalised(self, words: Array) -> Array:
        """int (..., T) -> float64 (..., A), scaled."""

    def encode(self, actions: Array) -> Array:
        """float (..., A) in the dataset's units -> int64 (..., T)."""
        return self.encode_normalised(self.quantiles.normalise(actions))

    def decode(self, words: Array) -> Array:
        """int (..., T) -> float64 (..., A) in the dataset's units."""
        return self.quantiles.restore(self.decode_normalised(words))


def check_picture(folder: Folder, stated: Sequence[Any], size: Any) -> None:
    """Raises `KitError` where the files of a checkpoint differ about the picture's size.

    Args:
        folder: the checkpoint.
        stated: width and height, in preprocessor_config.json; empty where it says nothing.
        size: of both, in config.json.
    """
    if any(side != size for side in stated):
        said, own = f"{stated[0]} x {stated[1]}", f"{size} x {size}"
        told = f"pictures of {said} in {PREPROCESSOR} and of {own} in config.json"
        raise KitError(f"{folder.path} has {told}", "copy both files of one checkpoint")


def statistics_of(actions: Array) -> dict[str, Any]:
    """A dataset's entry in a statistics file, as the authors write it.

    Args:
        actions: float (N, 7) with a gripper of 0 to 1, which is not scaled. Rows that are not finite are left
            out.
    """
    actions = np.asarray(actions, np.float64)
    actions = actions[np.isfinite(actions).all(axis=1)]
    if not len(actions):
        raise KitError("no actions to take statistics of", "record at least one episode")
    low, high = np.quantile(actions, [0.01, 0.99], axis=0)
    numbers = {
        "mean": actions.mean(0),
        "std": actions.std(0),
        "min": actions.min(0),
        "max": actions.max(0),
        "q01": low,
        "q99": high,
    }
    entry: dict[str, Any] = {name: values.tolist() for name, values in numbers.items()}
    entry["mask"] = [True] * (actions.shape[1] - 1) + [False]
    return {"action": entry, "num_transitions": len(actions)}


def gripper_to_share(actions: Array) -> Array:
    """float (..., 7) with the kit's gripper, +1 open and -1 closed -> with 1 open and 0 closed."""
    actions = np.array(actions, np.float64)
    actions[..., 6] = (actions[..., 6] + 1) / 2
    return actions


@dataclass(frozen=True)
class ReleasedVLA(VLA):
    """What models share that are kept as their authors release them.

    Attributes:
        folder: the checkpoint's other files; what was changed (statistics, cells) is written anew.
        statistics: dataset -> entry of the authors' statistics.
        dataset: whose statistics un-normalise the actions.
        sticky: steps for which the authors' evaluation repeats a gripper motion on the Google Robot.
        reference: what it counts such a motion from, see `Conventions.gripper_reference`.
    """

    folder: Folder
    statistics: Mapping[str, Any]
    dataset: str

    sticky: ClassVar[int]
    reference: ClassVar[Reference]

    @property
    def decoder(self) -> Any:
        return self._model.language_model.model

    @property
    def head(self) -> nn.Module:
        return self._model.language_model.lm_head

    @property
    def settings(self) -> str:
        """How it makes pictures and plans: the authors' files say it."""
        files = sorted(self.folder.files.items())
        return "\n".join(content.decode() for name, content in files if "processor" in name)

    @property
    def conventions(self) -> Conventions:
        own: dict[str, Any] = {
            "image_size": self.image_size,
            "gripper": "open1_closed0",
            "normalisation": self.dataset,
        }
        if robot_of(self.dataset) == "google_robot":
            own |= {"sticky_gripper": self.sticky, "gripper_reference": self.reference}
            return replace(GOOGLE_ROBOT, **own)
        return replace(WIDOWX, **own)

    def on(self, robot: str) -> VLA:
        """The same weights with this robot's statistics: those it was fitted to, else the first whose name
        tells the robot. A name that tells none counts as the WidowX.
        """
        known = [*self.statistics]
        usual = str(self.provenance.get("dataset") or known[0])
        unsure = (robot_of(usual) or "widowx") == robot
        named = [key for key in known if robot_of(key) == robot]
        keys = [usual] if unsure and usual.startswith(OWN) else named or [usual] * unsure
        if not keys:
            what = f"the checkpoint has no action statistics of the {robot}, only {listed(known)}"
            raise KitError(what, "choose another base, or fit the action words to your data")
        return self.with_dataset(keys[0])

    def with_dataset(self, dataset: str) -> VLA:
        """The same weights with the statistics of another dataset that the checkpoint knows."""
        quantiles = Quantiles.from_statistics(self.statistics[dataset], dataset)
        bins = replace(self.bins, quantiles=quantiles)  # type: ignore[type-var]
        return replace(self, bins=bins, dataset=dataset)

    def fitted(self, actions: Array, adapt: bool, robot: str = "widowx") -> VLA:
        """The same model with statistics of these actions."""
        dataset = OWN if robot == "widowx" else f"{OWN}_{robot}"
        statistics = {**self.statistics, dataset: statistics_of(self.own_actions(actions))}
        return replace(self, statistics=statistics).with_dataset(dataset)

    def own_actions(self, actions: Array) -> Array:
        return gripper_to_share(actions)

    def kit_actions(self, actions: Array) -> Array:
        """Inverse of `own_actions`; a gripper's all or nothing."""
        actions = np.array(actions, np.float64)
        actions[..., 6] = np.where(actions[..., 6] > 0.5, 1.0, -1.0)
        return actions

    @property
    def _model(self) -> Any:
        return self.model
