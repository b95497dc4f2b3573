"""The policy contract, and the one place where a policy is asked and its answer is read, whoever wrote it.

Asked: `act_states`, `act_batch`, `act`, or `step(image, instruction)` as SimplerEnv's own wrappers have it,
whichever a policy has, in this order. Read:

    an `Action`, or anything with `processed`
    seven numbers in a list, an array or a tensor of any type on any device; a chunk of them, (T, 7)
    a map with "actions" or "action"
    SimplerEnv's map of `world_vector`, `rot_axangle` (or `rotation_delta`), `gripper`, `terminate_episode`
    its pair (raw, processed)

Errors begin with a verb: the caller puts policy, episode and step before it (`naming`). Needs numpy alone;
scipy where a rotation vector is turned into angles.
"""

from __future__ import annotations

import reprlib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from refinevla_kit.conventions import Conventions
from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import Array as Array

ACTIONS = ("actions", "action", "processed")  # names of the numbers in a map, the first one found
# SimplerEnv's: a rotation vector; roll, pitch and yaw about the fixed axes
TURNS = ("rot_axangle", "rotation_delta")
LONGEST_MESSAGE = 512  # characters of what a policy raises
EXTRAS = ("normalised", "tokens", "log_probability", "rationale", "terminate")  # of an `Action`
SHAPE = "an action is 7 numbers (see Simulator.step), a chunk of T actions has the shape (T, 7)"


@dataclass(frozen=True)
class Action:
    """One action, raw and processed.

    Attributes:
        processed: float32 (7,), what `Simulator.step` takes (metres, radians, absolute gripper +1 open / -1
            closed; robot base frame).
        normalised: float32 (7,), the same in the policy's own range [-1, 1].
        tokens: int64 (T,), the action tokens as vocabulary ids; empty for a policy without tokens.
        log_probability: float32 (T,), log-probability of each token under the policy.
        rationale: the text the policy wrote before acting, "" when it wrote none.
        terminate: the policy says that it has finished: a long-horizon task goes on to its next sub-task, any
            other episode ends after this step.
    """

    processed: Array
    normalised: Array
    tokens: Array
    log_probability: Array
    rationale: str = ""
    terminate: bool = False


class Policy(Protocol):
    """Anything that acts. `name` and `checkpoint_hash` go into every evaluation record, and tell which
    episodes are played already.

    `checkpoint_hash` is the policy's identity: it changes with everything that changes what the policy does.
    Those of the kit begin with the hash of the checkpoint's files, and "+name=value" follows for each setting
    that is not the checkpoint's own.

    A policy may have more, which is used where it is found:
        conventions: `refinevla_kit.conventions.Conventions`, what its numbers mean; compared with the task's
            before an evaluation.
        round_trip(actions): processed actions, float (N, 7), encoded as the policy's tokens (or otherwise)
            and decoded again, float32 (N, 7). For `evaluation.preflight`: what is left of a demonstration
            when the policy repeats it without an error.
        needs_proprioception: True when `act(image, proprioception)` and `act_batch(images, instructions,
            proprioception)` have to be given the robot's own state too: `Observation.proprioception`, float32
            (15,) a picture. `step` is not given it.
        action_range: (lowest, highest) action the encoding can say, float (7,) each.
    """

    name: str
    checkpoint_hash: str

    def reset(self, instruction: str) -> None:
        """Start an episode with this instruction."""

    def act(self, image: Array) -> Action:
        """image: uint8 (H, W, 3) RGB."""

    def act_batch(self, images: Array, instructions: Sequence[str]) -> list[Action]:
        """images: uint8 (B, H, W, 3); one instruction an image. Stateless twin of `act`."""


def name_of(policy: Any) -> str:
    """What records call a policy: its `name`, else its class's."""
    return str(getattr(policy, "name", None) or type(policy).__name__).encode(errors="replace").decode()


def identity_of(policy: Any) -> str:
    """Its `checkpoint_hash`, "" where it has none."""
    return str(getattr(policy, "checkpoint_hash", None) or "")


def has(policy: Any, verb: str) -> bool:
    """Whether a policy has this method."""
    return callable(getattr(policy, verb, None))


def check_acts(policy: Any) -> None:
    """Raises `KitError` for a policy that cannot be asked, or only without the state that it needs."""
    states = ["act_states"] * bool(getattr(policy, "needs_state", False))
    verbs = [verb for verb in (*states, "act_batch", "act", "step") if has(policy, verb)]
    if not verbs or (verbs == ["step"] and getattr(policy, "needs_proprioception", False)):
        raise KitError(
            "needs_proprioception, which `step` is not given" if verbs else "has nothing to act with",
            "give it `act(image)`, `act_batch(images, instructions)` or `step(image, instruction)`",
        )


def conventions_of(policy: Any) -> Conventions:
    """What it declares, all None where it has none; raises `KitError` for something else."""
    said = getattr(policy, "conventions", None) or Conventions()
    if not isinstance(said, Conventions):
        what = f"policy {name_of(policy)!r} has conventions that are a {type(said).__name__}"
        raise KitError(what, "give it `refinevla_kit.conventions.Conventions`, or none")
    return said


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
    count = len(images)
    own = proprioception if getattr(policy, "needs_proprioception", False) else None
    if getattr(policy, "needs_state", False):
        with _blamed():
            return _split(policy.act_states(states, tasks), count)
    if not has(policy, "act_batch"):
        further = [[]] * count if own is None else [[state] for state in own]
        return [_ask_one(policy, *each) for each in zip(images, instructions, further, strict=True)]
    answers: dict[int, Any] = {}
    for size in set(map(np.shape, images)):  # robots differ in their cameras
        rows = [row for row, image in enumerate(images) if np.shape(image) == size]
        asked: list[Any] = [np.stack([images[row] for row in rows]), [instructions[row] for row in rows]]
        if own is not None:
            asked.append(np.stack([own[row] for row in rows]))
        with _blamed():
            answers |= zip(rows, _split(policy.act_batch(*asked), len(rows)), strict=True)
    return [answers[row] for row in range(count)]


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
        extras = {other: value for other, value in said.items() if other not in ACTIONS}
        return read_answer({**extras, **said[name]}, axis_angle)
    numbers = numeric(said[name]) if name else _from_parts(said, axis_angle)
    if numbers.ndim == 3 and len(numbers) == 1:
        numbers = numbers[0]
    rows = numbers[None] if numbers.ndim == 1 else numbers
    if rows.ndim != 2 or rows.shape[1] != 7 or not len(rows):
        raise KitError(f"returned an action of shape {numbers.shape}", SHAPE)
    over = said.get("terminate", said.get("terminate_episode"))
    flags = numeric(over).reshape(-1) if over is not None else np.zeros(1)
    # one a row, of which the last counts; else RT-1's three, of which the first does
    place = len(rows) - 1 if len(flags) == len(rows) else 0
    finished = bool(flags[place : place + 1].any())
    if isinstance(answer, Action) and len(rows) == 1:
        return [replace(answer, processed=rows[0])]
    none = np.zeros((len(rows), 0))
    normalised = _column(said.get("normalised"), rows).astype(np.float32)
    tokens = _column(said.get("tokens"), none).astype(np.int64)
    chances = _column(said.get("log_probability"), none).astype(np.float32)
    text = str(said.get("rationale") or "")
    parts = zip(rows, normalised, tokens, chances, strict=True)
    actions = [Action(*numbers, rationale=text) for numbers in parts]
    return [*actions[:-1], replace(actions[-1], terminate=finished)]


def numeric(value: Any) -> Array:
    """float32, from numbers in lists, arrays of any library, or tensors with or without gradient.

    Raises:
        KitError: there is something else than real numbers among them.
    """
    try:  # a value is written out only where it is wrong: this runs at every step
        listed = isinstance(value, (list, tuple))
        array = np.asarray([numeric(each) for each in value] if listed else _on_cpu(value))
        if value is None or array.dtype.kind in "USMmc":
            raise TypeError(f"a {type(value).__name__}")
        with np.errstate(over="ignore"):  # what becomes infinite is told by the caller
            return array.astype(np.float32)
    except KitError:
        raise
    except Exception as error:  # whatever the library of an array has to say
        raise KitError(f"returned {reprlib.repr(value)} where numbers belong ({error})", SHAPE) from error


def _ask_one(policy: Any, image: Array, instruction: str, further: Sequence[Array]) -> Any:
    check_acts(policy)
    with _blamed():
        return policy.act(image, *further) if has(policy, "act") else policy.step(image, instruction)


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
    what = "returned a pair, and both may be its action"
    raise KitError(what, "return the action alone, or a chunk as an array (T, 7)")


def _from_parts(said: Mapping[str, Any], axis_angle: bool) -> Array:
    """float32 (7,) or (T, 7) of SimplerEnv's parts."""
    turn = next((name for name in TURNS if name in said), TURNS[0])
    names = ("world_vector", turn, "gripper")
    for name in names:
        if name not in said:
            instead = ", ".join(map(repr, said)) or "an empty map"
            raise KitError(f"returned no {name!r} or 'action', but {instead}", SHAPE)
    moved, turned, gripper = (numeric(said[name]) for name in names)
    if turn == "rot_axangle" and not axis_angle and turned.shape[-1:] == (3,):
        from scipy.spatial.transform import Rotation

        turned = Rotation.from_rotvec(turned.astype(np.float64)).as_euler("xyz").astype(np.float32)
    gripper = gripper.reshape(*moved.shape[:-1], -1)
    try:
        return np.concatenate([moved, turned, gripper], axis=-1)
    except ValueError as error:
        shapes = f"world_vector {moved.shape}, {turn} {turned.shape}, gripper {gripper.shape}"
        raise KitError(f"returned parts that make no action: {shapes}", SHAPE) from error


def _column(value: Any, default: Array) -> Array:
    """What an answer says beside its actions, a row each; the default where it does not fit."""
    if value is None:
        return default
    try:
        rows = np.atleast_2d(np.asarray(_on_cpu(value)))
    except ValueError:  # ragged
        return default
    return rows if len(rows) == len(default) and rows.dtype.kind in "iuf" else default


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
        elif all(np.shape(each) == (2, 7) for each in found):
            _of_pair(*found)  # two chunks, or raw and processed actions
    columns: dict[Any, list[Any] | None] = {}
    if isinstance(found, Mapping):
        columns = {name: _listed(value) for name, value in found.items()}
        answers = next(filter(None, map(columns.get, (*ACTIONS, "world_vector"))), None)
    else:
        answers = _listed(found)
    if answers is None or len(answers) != count:
        said = reprlib.repr(found) if answers is None else f"{len(answers)} answers"
        raise KitError(f"returned {said} for {count} images", "act_batch returns one answer an image")
    if not columns:
        return answers
    whole = {name: column for name, column in columns.items() if column and len(column) == count}
    return [{name: column[row] for name, column in whole.items()} for row in range(count)]


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
        where = f"{Path(place.filename).name}, line {place.lineno}"
        said = "".join(traceback.format_exception_only(error))
        shown = "".join(letter if letter.isprintable() else " " for letter in said)
        what = f"failed: {' '.join(shown.split())[:LONGEST_MESSAGE]} ({where})"
        remedy = "finished episodes are kept; the error's __cause__ has the traceback"
        raise KitError(what, f"mend the policy and run again: {remedy}") from error
