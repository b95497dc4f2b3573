"""A checkpoint's `dataset_statistics.json`: which action tokens it speaks, fitted to which data."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from refinevla_kit.errors import KitError
from refinevla_kit.vlas.action_tokens import ActionTokens, UniformBins
from refinevla_kit.vlas.spherical_grid import SphericalGrid

STATISTICS = "dataset_statistics.json"


def read_action_tokens(value: Mapping[str, Any]) -> ActionTokens:
    """The scheme that a `to_dict` describes.

    Raises:
        KitError: a kind that this version does not know, or limits that are none.
    """
    scheme: type[SphericalGrid | UniformBins] = (
        SphericalGrid if value.get("kind") == "spherical" else UniformBins
    )
    tokens = scheme.from_dict(value)
    if not all(0 < limit < inf for limit in tokens.limits):
        what = f"action tokens with the limits {list(tokens.limits)}"
        raise KitError(what, "give numbers above 0: the dataset's statistics are damaged")
    return tokens
