"""Several datasets in one run, each with its share of every step: the paper trains on two."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import Array
from refinevla_kit.training.examples import Examples, find_rationales, join, load_examples


def mix(parts: Sequence[Examples], shares: Sequence[float]) -> Examples:
    """All frames of several datasets, of which each step takes these shares.

    Args:
        parts: the datasets' examples; pictures of several sizes have to be streamed.
        shares: one each, above 0; their sum is taken as 1.

    Raises:
        KitError: another number of shares, or one that is not above 0.
    """
    if len(parts) != len(shares) or not all(np.isfinite(share) and share > 0 for share in shares):
        what = f"{len(parts)} datasets are mixed by the shares {', '.join(map(str, shares)) or 'none'}"
        raise KitError(what, "give each a number above 0")
    origin = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    whole = sum(shares)
    return replace(join(parts), origin=origin, shares=tuple(share / whole for share in shares))


def with_others(examples: Examples, others: Mapping[str, float]) -> Examples:
    """Examples and those of other datasets, with the rationales beside them where there are any.

    Args:
        examples: whose share is what the others leave.
        others: folder or hub name -> share of each step, above 0 and below 1 together.
    """
    if not others:
        return examples
    rest = 1 - sum(others.values())
    if rest <= 0:
        what = f"{', '.join(others)} take {1 - rest:g} of each step"
        raise KitError(what, "leave something for the first dataset: give shares below 1 together")
    stream = None if isinstance(examples.images, np.ndarray) else True
    loaded = [load_examples(name, _rationales(name), stream=stream) for name in others]
    return mix([examples, *loaded], [rest, *others.values()])


def _rationales(name: str) -> Path | None:
    try:
        return find_rationales(name)
    except KitError as error:
        warnings.warn(f"{error.what}: its actions alone are learned from", stacklevel=2)
        return None


def rows_of_step(examples: Examples, training: Array, seed: int, step: int, batch: int) -> Array:
    """Frames of a step, int64: known from the seed and the step alone.

    Each dataset is a succession of epochs, each a permutation of its own; a step takes the next slice. Up to
    any step each has given what its share is of all frames, to within one frame for each other dataset.

    Args:
        examples: what is trained on.
        training: int64, which of its frames are, in ascending order.
        seed: of the order.
        step: which.
        batch: frames of a step.
    """
    if not examples.shares:
        epoch, place = divmod(step, max(1, len(training) // batch))
        order = _order((seed, epoch), len(training))
        return training[order[place * batch : (place + 1) * batch]]
    assert examples.origin is not None
    given, taken = (_counts(count * batch, examples.shares) for count in (step, step + 1))
    borders = np.searchsorted(examples.origin, np.arange(len(examples.shares) + 1))
    rows = []
    for number, (first, last) in enumerate(pairwise(np.searchsorted(training, borders))):
        own = training[first:last]
        if not len(own):
            raise KitError(f"dataset {number} of the mixture has no frame to train on", "leave it out")
        for place in range(given[number], taken[number]):
            epoch, within = divmod(place, len(own))
            rows.append(own[_order((seed, epoch, number), len(own))[within]])
    return np.array(rows, np.int64)


def _counts(frames: int, shares: Sequence[float]) -> list[int]:
    """How many of the first so many frames each dataset gives; never fewer of more frames."""
    counts, rest = list[int](), 1.0
    for share in shares[:-1]:
        counts.append(math.floor((frames - sum(counts)) * min(1.0, share / rest)))
        rest -= share
    return [*counts, frames - sum(counts)]


@lru_cache(maxsize=8)
def _order(key: tuple[int, ...], frames: int) -> Array:
    """All frames in the order of an epoch: of millions, drawn once."""
    return np.random.default_rng(key).permutation(frames)
