"""The robot's own state as numbers a network can use: `Observation.proprioception` without the quaternions'
double meaning.

A quaternion and its negative are one rotation, and a network that sees both learns the same thing twice; two
columns of the rotation matrix say it once. The distance from the measured to the commanded position comes
ready made: it is what a picture cannot show, how far the arm will still go.
"""

from __future__ import annotations

import numpy as np

from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import Array

PROPRIOCEPTION = 15  # numbers of `Observation.proprioception`
FEATURES = 22


def state_features(proprioception: Array) -> Array:
    """float (N, 15), see `Observation.proprioception` -> float32 (N, 22): measured position (3), rotation
    (6), finger opening (1), commanded position (3), rotation (6), commanded less measured position (3).
    Metres.

    Raises:
        KitError: another number of columns.
    """
    state = np.asarray(proprioception, np.float64)
    if state.ndim != 2 or state.shape[1] != PROPRIOCEPTION:
        what = (
            f"proprioception of shape {state.shape} was given to a policy that reads {PROPRIOCEPTION} "
            "numbers a frame"
        )
        raise KitError(
            what,
            "record with this version of the kit: measured tool pose, finger opening, commanded tool pose",
        )
    measured, opening, commanded = state[:, :3], state[:, 7:8], state[:, 8:11]
    parts = (
        measured,
        _columns(state[:, 3:7]),
        opening,
        commanded,
        _columns(state[:, 11:15]),
        commanded - measured,
    )
    return np.concatenate(parts, axis=1).astype(np.float32)


def _columns(quaternions: Array) -> Array:
    """The first two columns (N, 6) of the rotations of unit quaternions (N, 4) (w, x, y, z)."""
    w, x, y, z = (quaternions / np.maximum(np.linalg.norm(quaternions, axis=1, keepdims=True), 1e-9)).T
    first = [1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)]
    second = [2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)]
    return np.stack([*first, *second], axis=1)
