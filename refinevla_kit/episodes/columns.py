"""What a dataset's features mean: the action, the state, the pictures, and what their numbers say.

What is certain is inferred. What is not stays None, and then no teacher is told a word about it: a guess
would be read as a fact.
"""

import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from refinevla_kit.episodes.contract import ACTION_NAMES
from refinevla_kit.episodes.meta import as_number
from refinevla_kit.errors import KitError, check_choice
from refinevla_kit.files import read_json
from refinevla_kit.simulator.contract import Array

ROLES = ("action", "state", "instruction")
STATES = ("state", "states", "proprio", "proprioception", "robot_state", "qpos")
SENTENCES = ("language_instruction", "instruction", "prompt", "task")
# Metres; a larger step, or a longer way, is no displacement of a tool between two frames.
STEP, REACH = 0.2, 2.0
# Their public conversions keep Open X-Embodiment's gripper, 1 open and 0 closed.
OPEN_X = ("widowx", "google_robot")


class Columns:
    """Features by what the kit needs them for.

    Args:
        features: of an info.json: name -> description, as LeRobot writes them.
        given: a feature each for some of `ROLES`, which is then taken.
        camera: the camera to show, or a part of its name that no other has.
        where: the dataset, for messages.

    Raises:
        KitError: nothing is the action, several may be, or what is given is not there.

    Attributes:
        action: the feature of the action.
        state: the feature of the robot's own state; "" where there is none.
        instruction: the feature that names a frame's sentence, as text or as a number of meta/tasks.
        cameras: all features with pictures, sorted, depth maps last.
        camera: the one that is shown; "" where there is none but depth maps.
        kept: those of `cameras` whose pictures lie in the tables.
    """

    def __init__(
        self, features: Any, given: Mapping[str, str] | None, camera: str | None, where: str
    ) -> None:
        if not isinstance(features, dict) or not all(isinstance(each, dict) for each in features.values()):
            what = f"{where}/meta/info.json has no table of features"
            raise KitError(what, "write there what each column is, as LeRobot does ('features')")
        if given is not None and not isinstance(given, Mapping):
            raise KitError(
                f"columns={given!r} is no mapping", "write columns={'action': 'the name of its feature'}"
            )
        dtypes = {name: str(feature.get("dtype")) for name, feature in features.items()}
        given = dict(given or {})
        for role, name in given.items():
            check_choice("role of a column", role, ROLES)
            if name == "" and role == "state":
                continue
            check_choice("feature", name, features)
            if not _may_be(role, dtypes[name]):
                what = f"the feature {name!r} of {where} is {dtypes[name]}, which is no {role}"
                raise KitError(what, f"name another for columns={{{role!r}: ...}}")
        vectors = [name for name, dtype in dtypes.items() if re.match(r"float|int|uint", dtype)]
        texts = [name for name in SENTENCES if dtypes.get(name) in ("string", "str")]
        usual = texts[0] if texts and "task_index" not in features else "task_index"
        depths = {name for name in features if _is_depth(name, features[name])}
        pictures = [name for name, dtype in dtypes.items() if dtype in ("video", "image")]
        self.cameras = tuple(sorted(pictures, key=lambda name: (name in depths, name)))
        if camera:
            self.camera = _camera(self.cameras, camera, where)
        else:
            self.camera = next((name for name in self.cameras if name not in depths), "")
        self.kept = tuple(name for name in self.cameras if dtypes[name] == "image")
        self.action = given["action"] if "action" in given else _action(vectors, features, where)
        self.state = given["state"] if "state" in given else _state(vectors)
        self.instruction = given.get("instruction") or usual


def flat_names(names: Any, width: int) -> tuple[str, ...]:
    """One name for each of `width` dimensions, () where the dataset does not give as many.

    LeRobot datasets give a list, a list in a list, a mapping of lists ({"left": [...], "right": [...]}) or
    one to positions.
    """
    flat = tuple(_flatten(names))
    return flat if len(flat) == width else ()


def is_tool_motion(names: Sequence[str]) -> bool:
    """Whether seven dimensions are called x, y, z, three angles and a gripper, or are not called anything."""
    if tuple(names) in ((), ACTION_NAMES):
        return True
    words = [set(re.split(r"[^a-z]+", name.lower())) for name in names]
    along = all({axis, f"d{axis}"} & words[i] for i, axis in enumerate("xyz") if i < len(words))
    return len(words) == 7 and along and "gripper" in names[6].lower()


def displacements(actions: Array, state: Array, names: Sequence[str]) -> tuple[bool | None, str]:
    """Whether actions are displacements (metres, radians) or positions, and why; None where neither is sure.

    Args:
        actions: float (T, A) of one episode.
        state: float (T, P), the robot's own state in the same frames.
        names: of the A dimensions; () where there are none.
    """
    if _follows(actions, state):
        return False, "they follow the state"
    if actions.shape[1] != 7 or not names or not is_tool_motion(names):
        return None, "neither names nor numbers tell"
    if is_plausible(actions):
        return True, "by their names and sizes"
    return None, "their names are a tool's motion, their sizes are none in metres"


def is_plausible(actions: Array) -> bool:
    """Whether the first three dimensions of one episode can be metres a step."""
    moves = filled(actions[:, :3], True)
    return bool(np.abs(moves).max(initial=0) <= STEP and np.abs(moves.cumsum(0)).max(initial=0) <= REACH)


def gripper_dimension(names: Sequence[str], width: int, tool: bool) -> int | None:
    """Which of `width` dimensions commands the gripper; None where none or several are called so."""
    called = [i for i, name in enumerate(names) if "gripper" in name.lower()]
    if len(called) == 1:
        return called[0]
    return 6 if tool and width == 7 and not names else None


def opens_at(command: Array, robot: str) -> tuple[float | None, str]:
    """The gripper's value that means open, where the robot's public datasets agree on it; else None."""
    if robot in OPEN_X and command.min(initial=0) > -0.1 and command.max(initial=0) < 1.1:
        return 1.0, "Open X-Embodiment's: 1 open, 0 closed"
    return None, "not known"


def known_dataset(name: str) -> dict[str, Any]:
    """What is known of a public dataset's numbers and cameras, by its name on the hub."""
    file = Path(__file__).with_name("known_datasets.json")
    return dict(read_json(file).get(name, {}))


def told_open(command: Array, value: Any) -> float:
    """The value that a person gave for open.

    Raises:
        KitError: it is no number, or no command of a gripper that moves can mean that it is open there.
    """
    opened = as_number(value)
    if not math.isfinite(opened):
        remedy = "give the value of the gripper's command that means open: 1, 0 or -1"
        raise KitError(f"gripper={value!r} is no number", remedy)
    command = command[np.isfinite(command)]
    low, high = (float(command.min()), float(command.max())) if len(command) else (opened, opened)
    reach = high - low
    between = low + reach / 4 < opened < high - reach / 4
    if reach > 0 and (between or not low - reach <= opened <= high + reach):
        what = f"gripper={opened:g}, but the gripper's command goes from {low:g} to {high:g}"
        raise KitError(what, "give the one of these two at which it is open")
    return opened


def is_open(command: Array, value: float) -> Array:
    """bool (T,): the gripper is to be open, which is `value`; closed is 0 or -1 for 1, and 1 for 0 or -1."""
    command = filled(command[:, None], False)[:, 0]
    if value <= 0:
        return command < (value + 1) / 2
    closed = -value if command.min(initial=0) < -0.1 * value else 0.0
    return command > (value + closed) / 2


def filled(actions: Array, deltas: bool | None) -> Array:
    """float64 (T, A): what is not finite becomes no displacement, or the position before it, or the first
    after it.
    """
    values = np.array(actions, np.float64)
    known = np.isfinite(values)
    if known.all():
        return values
    table = pd.DataFrame(np.where(known, values, np.nan))
    return (table if deltas else table.ffill().bfill()).fillna(0).to_numpy()


def episode_numbers(wanted: int | str | Iterable[int] | None, known: Sequence[int]) -> list[int]:
    """The numbers of the episodes that are meant.

    Args:
        wanted: [3, 5], range(10) or text such as "0-9,12"; a number for as many from the first on; None for
            all.
        known: the episodes of the dataset.

    Raises:
        KitError: `wanted` is something else.
    """
    if wanted is None:
        return list(known)
    try:
        if isinstance(wanted, str):
            numbers = [number for part in wanted.split(",") for number in _span(part)]
        elif isinstance(wanted, Iterable):
            numbers = [_index(number) for number in wanted]
        else:
            numbers = list(known[: max(0, _index(wanted))])
    except (ValueError, TypeError, OverflowError):
        remedy = "give a number, a list ([3, 5]), a range (range(10)) or text ('0-9,12')"
        raise KitError(f"episodes={wanted!r} are no numbers of episodes", remedy) from None
    return list(dict.fromkeys(numbers))


def _index(value: Any) -> int:
    if isinstance(value, bool | np.bool_):
        raise TypeError
    return operator.index(value)


def _span(text: str) -> range:
    """Of "3" and "3-5"."""
    ends = [int(end) for end in text.split("-")]
    if len(ends) > 2 or ends[-1] - ends[0] > 10**7:
        raise ValueError
    return range(ends[0], ends[-1] + 1)


def _flatten(names: Any, group: str = "") -> Iterable[str]:
    if isinstance(names, dict) and names and all(isinstance(place, int) for place in names.values()):
        names = sorted(names, key=names.__getitem__)
    if isinstance(names, dict):
        for key, part in names.items():
            yield from _flatten(part, f"{key} " if len(names) > 1 else "")
    elif isinstance(names, list | tuple):
        for part in names:
            if isinstance(part, list | tuple | dict):
                yield from _flatten(part, group)
            elif part is not None:
                yield f"{group}{part}"


def _is_depth(name: str, feature: dict[str, Any]) -> bool:
    about = feature.get("info")
    marks = about.items() if isinstance(about, dict) else ()
    marked = any(key.endswith("is_depth_map") and mark is True for key, mark in marks)
    return marked or "depth" in name.lower()


def _last(name: str) -> str:
    return re.split(r"[./]", name.lower())[-1]


def _action(vectors: Sequence[str], features: Mapping[str, Any], where: str) -> str:
    for called in (
        [name for name in vectors if name == "action"],
        [name for name in vectors if _last(name) in ("action", "actions")],
        [name for name in vectors if re.split(r"[./]", name.lower())[0] in ("action", "actions")],
    ):
        if len(called) == 1:
            return called[0]
        if called:
            what = f"several features of {where} may be the action: {', '.join(called)}"
            raise KitError(what, f"name one: columns={{'action': {called[0]!r}}}")
    what = f"{where} has no action: its features are {', '.join(sorted(features)) or 'none'}"
    raise KitError(what, "name the feature: columns={'action': ...}, or rename it to 'action'")


def _state(vectors: Sequence[str]) -> str:
    if "observation.state" in vectors:
        return "observation.state"
    called = [name for name in vectors if _last(name) in STATES]
    return called[0] if len(called) == 1 else ""


def _camera(cameras: Sequence[str], wanted: str, where: str) -> str:
    called = (
        [name for name in cameras if name == wanted]
        or [name for name in cameras if _last(name) == str(wanted).lower()]
        or [name for name in cameras if str(wanted) in name]
    )
    if len(called) == 1:
        return called[0]
    what = "several cameras called" if called else "no camera"
    choices = ", ".join(called or cameras) or "none: it has no pictures"
    raise KitError(f"{where} has {what} {wanted!r}", f"choose one of {choices}")


def _may_be(role: str, dtype: str) -> bool:
    """Whether a feature of this type can be what it is named for."""
    if role == "instruction":
        return bool(re.match(r"str|large_str|int|uint", dtype))
    return dtype not in ("video", "image", "string", "str")


def _follows(actions: Array, state: Array) -> bool:
    """Whether the actions are where the state goes next: as wide, moving with it, and by as much."""
    if actions.shape != state.shape or len(actions) < 4:
        return False
    sent, reached = filled(actions, False)[:-1], filled(state, False)[1:]
    sent, reached = sent - sent.mean(0), reached - reached.mean(0)
    sizes = np.sqrt((sent**2).sum(0)), np.sqrt((reached**2).sum(0))
    moving = (sizes[0] > 1e-4) & (sizes[1] > 1e-4)
    if not moving.any():
        return False
    together = (sent * reached).sum(0)[moving]
    slope = together / sizes[1][moving] ** 2
    return bool(np.median(together / (sizes[0] * sizes[1])[moving]) > 0.8 and 0.5 < np.median(slope) < 2)
