"""The one place where a policy is asked and its answer is read, whoever wrote the policy.

Asked: `act_states`, `act_batch`, `act`, or `step(image, instruction)` as SimplerEnv's own wrappers have it,
whichever a policy has, in this order. Read: an `Action` or anything with `processed`; seven numbers in a
list, an array or a tensor of any type on any device; a chunk of them, (T, 7); a map with "actions" or
"action"; SimplerEnv's map of `world_vector`, `rot_axangle` (or `rotation_delta`), `gripper` and
`terminate_episode`; and its pair (raw, processed). Errors begin with a verb: the caller puts policy, episode
and step before it (`naming`). Needs numpy alone; scipy where a rotation vector is turned into angles.
"""

from __future__ import annotations

import reprlib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from refinevla_kit.errors import KitError
from refinevla_kit.policies.contract import Action, Array

ACTIONS = ("actions", "action", "processed")  # names of the numbers in a map, the first one found
TURNS = (
    "rot_axangle",
    "rotation_delta",
)  # SimplerEnv's: a rotation vector; roll, pitch and yaw about the fixed axes
EXTRAS = ("normalised", "tokens", "log_probability", "rationale", "terminate")  # of an `Action`
SHAPE = "an action is 7 numbers (see Simulator.step), a chunk of T actions has the shape (T, 7)"


def name_of(policy: Any) -> str:
    """What records call a policy: its `name`, else its class's."""
    return str(getattr(policy, "name", None) or type(policy).__name__).encode(errors="replace").decode()


def identity_of(policy: Any) -> str:
    """Its `checkpoint_hash`, "" where it has none."""
    return str(getattr(policy, "checkpoint_hash", None) or "")


def has(policy: Any, verb: str) -> bool:
    """Whether a policy has this method."""
    return callable(getattr(policy, verb, None))


@contextmanager
def naming(who: str) -> Iterator[None]:
    """Put `who` before the errors of this module; the `__cause__` stays what the policy raised."""
    try:
        yield
    except KitError as error:
        raise KitError(f"{who} {error.what}", error.remedy) from (error.__cause__ or error)


def begin(policy: Any, instruction: str) -> None:
    """Tell a policy that an episode begins, if it listens.

    Raises:
        KitError: it failed; the original is the error's `__cause__`.
    """
    if has(policy, "reset"):
        with _blamed():
            policy.reset(instruction)


def ask(
    policy: Any,
    images: Sequence[Array],
    instructions: Sequence[str],
    proprioception: Sequence[Array] | None = None,
    states: Sequence[Any] | None = None,
    tasks: Sequence[str] = (),
) -> list[Any]:
    """One answer an image, for `read_answer`.

    Args:
        policy: see above; one without `act_batch` is asked for one image after another.
        images: uint8 (H, W, 3) each. They may differ in size: a batch is made of each.
        instructions: one an image.
        proprioception: float32 (15,) each, used where the policy `needs_proprioception`.
        states: simulator states, used where it `needs_state`.
        tasks: their names, as many.

    Raises:
        KitError: it cannot be asked, failed (the original is the error's `__cause__`), or gave another number
            of answers.
    """
    own = proprioception if getattr(policy, "needs_proprioception", False) else None
    if getattr(policy, "needs_state", False):
        with _blamed():
            return _split(policy.act_states(states, tasks), len(images))
    if not has(policy, "act_batch"):
        return [
            _ask_one(policy, images[row], instructions[row], [] if own is None else [own[row]])
            for row in range(len(images))
        ]
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, image in enumerate(images):  # robots differ in their cameras
        groups.setdefault(np.shape(image), []).append(row)
    answers: dict[int, Any] = {}
    for rows in groups.values():
        further = [] if own is None else [np.stack([own[row] for row in rows])]
        with _blamed():
            found = policy.act_batch(
                np.stack([images[row] for row in rows]), [instructions[row] for row in rows], *further
            )
            answers |= zip(rows, _split(found, len(rows)), strict=True)
    return [answers[row] for row in range(len(images))]


def read_answer(answer: Any, axis_angle: bool = False) -> list[Action]:
    """The actions in an answer, one or the rows of a chunk; `processed` is float32 (7,).

    Args:
        answer: see above. Where it says that the policy has finished, the last row does.
        axis_angle: leave a `rot_axangle` as it is, for a caller who converts it; else it becomes the Euler
            angles that the robots take.

    Raises:
        KitError: it is something else, or has not seven numbers.
    """
    if isinstance(answer, tuple) and len(answer) == 2:
        answer = _of_pair(*answer)
    if isinstance(answer, Mapping):
        said = {name.decode() if isinstance(name, bytes) else name: value for name, value in answer.items()}
    elif hasattr(answer, "processed"):
        said = {name: getattr(answer, name, None) for name in ("processed", *EXTRAS)}
    else:
        said = {"actions": answer}
    name = next((name for name in ACTIONS if name in said), None)
    if name and isinstance(said[name], Mapping):
        return read_answer(
            {**{other: extra for other, extra in said.items() if other not in ACTIONS}, **said[name]},
            axis_angle,
        )
    numbers = numeric(said[name]) if name else _from_parts(said, axis_angle)
    if numbers.ndim == 3 and len(numbers) == 1:
        numbers = numbers[0]
    rows = numbers[None] if numbers.ndim == 1 else numbers
    if rows.ndim != 2 or rows.shape[1] != 7 or not len(rows):
        raise KitError(f"returned an action of shape {numbers.shape}", SHAPE)
    over = said.get("terminate", said.get("terminate_episode"))
    finished = over is not None and bool(numeric(over).reshape(-1)[:1].any())
    if isinstance(answer, Action) and len(rows) == 1:
        return [replace(answer, processed=rows[0])]
    normalised = _column(said, "normalised", rows, rows).astype(np.float32)
    tokens = _column(said, "tokens", rows, np.zeros((len(rows), 0))).astype(np.int64)
    chances = _column(said, "log_probability", rows, np.zeros((len(rows), 0))).astype(np.float32)
    text = said.get("rationale") or ""
    last = len(rows) - 1
    return [
        Action(row, normalised[i], tokens[i], chances[i], str(text), finished and i == last)
        for i, row in enumerate(rows)
    ]


def numeric(value: Any) -> Array:
    """float32, from numbers in lists, arrays of any library, or tensors with or without gradient.

    Raises:
        KitError: there is something else than real numbers among them.
    """
    try:
        array = np.asarray(
            [numeric(each) for each in value] if isinstance(value, (list, tuple)) else _on_cpu(value)
        )
        if value is None or array.dtype.kind in "USMmc":
            raise TypeError(f"a {type(value).__name__}")
        with np.errstate(over="ignore"):  # what becomes infinite is told by the caller
            return array.astype(np.float32)
    except KitError:
        raise
    except Exception as error:  # whatever the library of an array has to say
        raise KitError(f"returned {reprlib.repr(value)} where numbers belong ({error})", SHAPE) from error


def _ask_one(policy: Any, image: Array, instruction: str, further: list[Array]) -> Any:
    if has(policy, "act"):
        with _blamed():
            return policy.act(image, *further)
    if has(policy, "step"):
        with _blamed():
            return policy.step(image, instruction)
    raise KitError(
        "cannot act", "give it `act(image)`, `act_batch(images, instructions)` or `step(image, instruction)`"
    )


def _of_pair(first: Any, second: Any) -> Any:
    """The processed of (raw, processed); the action of (action, something else), as other libraries have
    it.
    """
    if isinstance(second, Mapping) and any(name in second for name in (*ACTIONS, "world_vector")):
        return second
    if second is None or isinstance(second, Mapping):
        return first
    if isinstance(first, Mapping):
        return second
    raise KitError(
        "returned a pair, and both may be its action",
        "return the action alone, or a chunk as an array (T, 7)",
    )


def _from_parts(said: Mapping[str, Any], axis_angle: bool) -> Array:
    """float32 (7,) or (T, 7) of SimplerEnv's parts."""
    turn = next((name for name in TURNS if name in said), "")
    if missing := [name for name in ("world_vector", turn or TURNS[0], "gripper") if name not in said]:
        raise KitError(
            f"returned no {missing[0]!r} or 'action', but {', '.join(map(repr, said)) or 'an empty map'}",
            SHAPE,
        )
    moved, turned, gripper = (numeric(said[name]) for name in ("world_vector", turn, "gripper"))
    if turn == "rot_axangle" and not axis_angle and turned.shape[-1:] == (3,):
        from scipy.spatial.transform import Rotation

        turned = Rotation.from_rotvec(turned.astype(np.float64)).as_euler("xyz").astype(np.float32)
    gripper = gripper.reshape(*moved.shape[:-1], -1)
    try:
        return np.concatenate([moved, turned, gripper], axis=-1)
    except ValueError as error:
        shapes = f"world_vector {moved.shape}, {turn} {turned.shape}, gripper {gripper.shape}"
        raise KitError(f"returned parts that make no action: {shapes}", SHAPE) from error


def _column(said: Mapping[str, Any], name: str, rows: Array, default: Array) -> Array:
    """What an answer says beside its actions, a row each; the default where it is not there or does not
    fit.
    """
    if said.get(name) is None:
        return default
    try:
        found = np.atleast_2d(np.asarray(_on_cpu(said[name])))
    except ValueError:  # ragged
        return default
    return found if len(found) == len(rows) and found.dtype.kind in "iuf" else default


def _on_cpu(value: Any) -> Any:
    if not hasattr(value, "detach"):
        return value
    tensor = value.detach().cpu()
    tensor = tensor.to_dense() if tensor.is_sparse else tensor
    return (tensor if tensor.is_complex() else tensor.float()).numpy()  # numpy has no bfloat16


def _listed(value: Any) -> list[Any] | None:
    """What there is one after another in a value; None for what is no row of things."""
    if isinstance(value, (str, bytes, Mapping)):
        return None
    try:
        return list(value)
    except TypeError:
        return None


def _split(found: Any, count: int) -> list[Any]:
    """The answers to a batch, one each."""
    if isinstance(found, tuple) and len(found) == 2:
        beside = found[1] is None or isinstance(found[1], Mapping)
        if count != 2 or (beside and not isinstance(found[0], Mapping)):
            found = _of_pair(*found)
        elif all(
            getattr(each, "shape", ()) == (2, 7) for each in found
        ):  # two chunks, or raw and processed actions
            _of_pair(*found)
    if isinstance(found, Mapping):
        columns = {name: column for name, value in found.items() if (column := _listed(value)) is not None}
        answers = next((columns[name] for name in (*ACTIONS, "world_vector") if name in columns), None)
    else:
        columns, answers = {}, _listed(found)
    if answers is None or len(answers) != count:
        said = reprlib.repr(found) if answers is None else f"{len(answers)} answers"
        raise KitError(f"returned {said} for {count} images", "act_batch returns one answer an image")
    return (
        [
            {name: column[row] for name, column in columns.items() if len(column) == count}
            for row in range(count)
        ]
        if columns
        else answers
    )


def _line(error: Exception) -> str:
    """What an error says, in a line that every terminal shows."""
    try:
        said = str(error)
    except Exception as other:  # even that is anyone's code
        said = f"its message cannot be read ({type(other).__name__})"
    shown = "".join(letter if letter.isprintable() else " " for letter in said)
    return " ".join(shown.split())[:500]


@contextmanager
def _blamed() -> Iterator[None]:
    """What a policy raises becomes one line."""
    try:
        yield
    except KitError as error:
        if error.what.startswith(("returned ", "failed: ")):  # told by this module already
            raise
        raise KitError(f"failed: {error.what}", error.remedy) from error
    except Exception as error:  # it may raise anything
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = (
            f"failed: {type(error).__name__}: {_line(error)} ({Path(place.filename).name}, line "
            f"{place.lineno})"
        )
        raise KitError(
            what,
            "mend the policy and run again: finished episodes are kept; the error's __cause__ has "
            "the traceback",
        ) from error
