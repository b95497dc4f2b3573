"""What is looked at and what was seen there, as plain arrays: frames of demonstrations with their masks, and
captured attention with the file it travels in. No policy and no torch is needed.

Policies are compared on the very same frames, the demonstrator's, so that a difference in attention is not a
difference in where each of them went. One safetensors file holds any number of captures. Its header says
whose they are: a file made on a GPU opens in an explorer elsewhere, and a file of another checkpoint than the
one asked for is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from refinevla_kit.episodes import EpisodeDataset, open_dataset
from refinevla_kit.errors import KitError, as_kit_error, check_choice, checked_integer
from refinevla_kit.files import replacing
from refinevla_kit.policies.contract import Action, Array
from refinevla_kit.simulator.contract import PHASES
from refinevla_kit.tasks import PICKED_THINGS, SOURCES, find_task, roles_of

OWN_STATE = "robot state"
ACTION_QUERY, RATIONALE_QUERY, INSTRUCTION_QUERY = KINDS = ("action", "rationale", "instruction")
FORMAT = "refinevla-captures-1"
ANEW = ("embedded", "official")  # the assets to record new demonstrations with
CAPTURE_ARRAYS = ("patches", "others")
CAPTURE_VALUES = ("labels", "words", "grid", "rationale", "image_hash")
ACTION_ARRAYS = ("processed", "normalised", "tokens", "log_probability")
# Added to the seed of demonstrations recorded here, so that they are not those of notebook 1 again
UNSEEN = 4_000_000
STAGES = {
    "reach": "approach",
    "descend": "approach",
    "grasp": "grasp",
    "lift": "carry",
    "carry": "carry",
    "lower": "place",
    "release": "place",
    "retreat": "place",
    "approach": "approach",
    "hook": "grasp",
    "pull": "carry",
    "push": "carry",
}
"""The demonstrator's sub-tasks in four: before the object is touched, while the gripper closes on it, while
it is held or moved, and putting it down.
"""


@dataclass(frozen=True)
class Frame:
    """One moment of a demonstration.

    Attributes:
        image: uint8 (H, W, 3).
        masks: {"source", "target", "gripper", "arm"} -> bool (H, W), visible pixels.
        instruction, task, episode, step: where it is from.
        phase: sub-task, one of `PHASES`.
        proprioception: float32 (15,), see `Observation`; None where there is none.
    """

    image: Array
    masks: dict[str, Array]
    instruction: str
    task: str
    episode: int
    step: int
    phase: str
    proprioception: Array | None = None


def demonstrations(
    source: str | Path,
    tasks: Sequence[str],
    episodes: int,
    folder: Path,
    seed: int = 0,
    reading: Mapping[str, Any] | None = None,
    strict: bool = False,
) -> EpisodeDataset:
    """Demonstrations of `tasks` with masks.

    Args:
        source: folder of a dataset; or "embedded" or "official", the assets to record new ones with, from
            random starts: frames that no policy was trained on. A dataset without a demonstration of each
            task with masks (other tasks', a real robot's) is left aside, and new ones are recorded with the
            embedded assets.
        tasks: by name.
        episodes: how many of each to record.
        folder: where new ones go; a recording that is there is taken as it is (`Settings.place` keeps others
            apart).
        reading: how a dataset is opened.
        strict: refuse a dataset that would be left aside.

    Raises:
        KitError: it is refused.
    """
    assets = str(source)
    if assets not in ANEW:
        dataset = open_dataset(source, **(reading or {}))
        shown = (any(i.task == task and dataset.masks(i.index) for i in dataset.episodes) for task in tasks)
        if all(shown):
            return dataset
        if strict:
            what = f"{source} lacks a demonstration of {', '.join(tasks)} with the simulator's masks"
            raise KitError(what, 'record some with the kit, or set frames to "embedded"')
        assets = "embedded"
    if not folder.exists():
        from refinevla_kit.rollouts.recording import record

        record(folder, [find_task(task) for task in tasks], episodes, assets, seed=seed + UNSEEN)
    return open_dataset(folder)


def shown_layer(asked: int | None, layers: int) -> int:
    """The layer that is shown, from 1: the one that was asked for, else the one three fifths up.

    Raises:
        KitError: there is none of that number.
    """
    check_choice("layer", asked or 1, range(1, layers + 1))
    return asked or upper_middle(layers) + 1


def frames_of(settings: Any, tasks: Sequence[str], left: str = "") -> tuple[EpisodeDataset, list[Frame]]:
    """The demonstrations that a notebook's settings ask for, and those of their frames that are looked at.

    Args:
        settings: `frames` is a dataset's folder, or the assets to record new demonstrations with; `episodes`
            of each task, `every` and `seed`.
        tasks: by name.
        left: what an earlier notebook left, as for `Settings.find`, to take where `frames` is None.
    """
    from refinevla_kit.rollouts.recording import recording_code

    source = settings.frames if settings.frames in ANEW else settings.find(settings.frames, left, "demo")
    made_from = settings.pick("episodes", "seed") | {"tasks": tasks, "source": source}
    reading = {} if source in ANEW else settings.reading_of(source)
    strict = settings.frames not in (None, *ANEW)
    place = settings.folder  # in which a refused dataset leaves no trace
    if not strict:
        place = settings.place("demonstrations", made_from | {"code": recording_code()})
    dataset = demonstrations(source, tasks, settings.episodes, place, settings.seed, reading, strict)
    how = settings.episodes, settings.every
    return dataset, [frame for task in tasks for frame in choose_frames(dataset, task, *how)]


def other_sentence(frame: Frame) -> str:
    """The frame's sentence with another thing of its scene in place of the one that is to be moved.

    Raises:
        KitError: there is none: the scene gives its task away.
    """
    source = next(iter(roles_of(find_task(frame.task), frame.instruction)))
    others = [name for name in (*SOURCES, *PICKED_THINGS) if name in frame.masks and name != source]
    if not others:
        what = f"in the scene of {frame.task} nothing else can be named than the {source}"
        raise KitError(what, "give frames of the language suite")
    return frame.instruction.replace(source, others[0])


def choose_frames(dataset: EpisodeDataset, task: str, episodes: int, every: int = 1) -> list[Frame]:
    """Every `every`-th frame of the first `episodes` demonstrations of `task`, or of all if there are fewer.

    Raises:
        KitError: no such demonstration, or frames without masks and state.
    """
    known = list(dict.fromkeys(info.task for info in dataset.episodes))
    if task not in known or not task:
        have = ", ".join(name for name in known if name) or "none of the kit's tasks"
        raise KitError(
            f"{dataset.name} has no demonstration of {task!r}",
            f"choose a task it has ({have}) or another dataset",
        )
    if episodes < 1 or every < 1:
        raise KitError(f"{episodes} episodes, every {every}th frame", "ask for at least one of each")
    asked, frames = find_task(task), []
    for info in [info for info in dataset.episodes if info.task == task][:episodes]:
        masks, states = dataset.masks(info.index), dataset.states(info.index)
        if masks is None or states is None:
            raise KitError(
                f"episode {info.index} of {dataset.name} has no object masks",
                "record it with this kit: only the simulator knows them",
            )
        steps, said = range(0, info.length, every), dataset.instructions(info.index)
        proprioception = dataset.proprioception(info.index)
        for step, image in zip(steps, dataset.images(info.index, list(steps)), strict=True):
            roles = roles_of(asked, said[step])
            named = {roles.get(name, name): mask[step] for name, mask in masks.items()}
            phase = PHASES[int(states[step].phase)]
            place = (said[step], task, info.index, step, phase)
            frames.append(Frame(image, named, *place, proprioception[step]))
    return frames


@dataclass(frozen=True)
class Query:
    """What is asked about: an action dimension, a word of the rationale or a word of the instruction.

    Attributes:
        label: the dimension's name ("x", "translation", ...) or the word.
        kind: "action", "rationale" or "instruction".
        positions: where in the sequence its rows are, one a token; its attention is their mean. Of an action
            dimension or a word of the rationale these are the positions whose outputs *predict* its tokens,
            each one before the token itself. Nothing predicts a word of the instruction: its own positions.
        tokens: its vocabulary ids, one a position.
    """

    label: str
    kind: str
    positions: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Capture:
    """Attention of Q queries on one picture. `patches` and `others` of a row add up to 1.

    Attributes:
        patches: float32 (layers, heads, Q, rows * columns), attention to each image patch, row by row.
        others: float32 (layers, heads, Q, T), attention to each further token; 0 for tokens that come later.
        labels: the T tokens: those of the instruction, markers, earlier action tokens, the rationale's,
            `OWN_STATE` where the policy reads it.
        words: how many of them, counted from the first, are the instruction's.
        queries: the Q queries: action dimensions first, then words of the rationale, then words of the
            instruction, of those that were asked for.
        grid: rows and columns of patches.
        action: what the policy did (or was given).
        policy, checkpoint_hash: who acted.
        rationale: the text in the sequence, "" where there is none.
        image_hash: `image_hash` of the picture, "" when unknown.
    """

    patches: Array
    others: Array
    labels: tuple[str, ...]
    words: int
    queries: tuple[Query, ...]
    grid: tuple[int, int]
    action: Action
    policy: str
    checkpoint_hash: str
    rationale: str = ""
    image_hash: str = ""

    @property
    def layers(self) -> int:
        return int(self.patches.shape[0])

    @property
    def heads(self) -> int:
        return int(self.patches.shape[1])

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names of the captured action dimensions; the first queries are theirs."""
        return tuple(query.label for query in self.queries if query.kind == ACTION_QUERY)

    @property
    def image_share(self) -> Array:
        """float32 (layers, heads, Q): how much of each row goes to the picture; the rest goes to words, the
        own state and the answer so far.
        """
        return self.patches.sum(-1)

    def map(self, layer: int, token: int | None = None, head: int | None = None) -> Array:
        """float32 (rows, columns): attention to each patch.

        Args:
            layer: from 0.
            head: from 0; None is the mean over heads.
            token: number of the query; None is the mean over action dimensions, over all queries where none
                of them is one.

        Raises:
            KitError: layer, query or head out of range.
        """
        sizes = {"layer": self.layers, "query": len(self.queries), "head": self.heads}
        for (name, size), value in zip(sizes.items(), (layer, token, head), strict=True):
            if value is not None:
                checked_integer(value, f"{name} of {self.policy}", 0, size - 1)
        heads = self.patches[layer].mean(0) if head is None else self.patches[layer, head]  # Q, patches
        row = heads[: len(self.dimensions) or None].mean(0) if token is None else heads[token]
        return row.reshape(self.grid)

    def maps(self, layer: int) -> list[Array]:
        """`map` of each action dimension, mean over heads."""
        return [self.map(layer, token) for token in range(len(self.dimensions))]


def upper_middle(layers: int) -> int:
    """The layer (from 0) shown when none is chosen: three fifths up, past the layers that copy positions and
    before the ones that only read out.
    """
    return 3 * layers // 5


def image_hash(image: Array) -> str:
    """Names a picture, uint8 (H, W, 3): the first 12 hex digits of the SHA-256 over its size and pixels."""
    image = np.ascontiguousarray(image)
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()[:12]


def save_captures(captures: Sequence[Capture], path: str | Path) -> Path:
    """Write captures of one policy to one safetensors file; it appears whole or not at all.

    Raises:
        KitError: no captures, or of two checkpoints.
    """
    owners = {(capture.policy, capture.checkpoint_hash or "") for capture in captures}
    if len(owners) != 1:
        what = f"captures of {len(owners)} policies for one file"
        raise KitError(what, "write one file a policy, with at least one capture")
    tensors: dict[str, Array] = {}
    entries = []
    for number, capture in enumerate(captures):
        action = capture.action
        arrays = {name: getattr(capture, name) for name in CAPTURE_ARRAYS}
        arrays |= {f"action.{name}": getattr(action, name) for name in ACTION_ARRAYS}
        tensors |= {f"{number}.{name}": np.ascontiguousarray(array) for name, array in arrays.items()}
        entry = {name: getattr(capture, name) for name in CAPTURE_VALUES}
        entry["queries"] = [asdict(query) for query in capture.queries]
        entry["action"] = {"rationale": action.rationale, "terminate": action.terminate}
        entries.append(entry)
    policy, checkpoint_hash = owners.pop()
    header = {"format": FORMAT, "policy": policy, "checkpoint_hash": checkpoint_hash}
    with replacing(path) as part:
        save_file(tensors, part, metadata=header | {"captures": json.dumps(entries)})
    return Path(path)


def load_captures(path: str | Path, checkpoint_hash: str | None = None) -> list[Capture]:
    """Read what `save_captures` wrote.

    Args:
        checkpoint_hash: of the checkpoint that is asked for; None takes whichever it is.

    Raises:
        KitError: no such file, another kind of file, a damaged one, or captures of another checkpoint than
            asked for.
    """
    with (
        as_kit_error(
            f"{path} cannot be read as captured attention",
            "give a file that save_captures wrote, or capture again",
            (OSError, SafetensorError, KeyError, TypeError, ValueError),
        ),
        safe_open(path, framework="numpy") as file,
    ):
        header = file.metadata() or {}
        if header.get("format") != FORMAT:
            raise KitError(
                f"{path} has format {header.get('format')!r}",
                f"give a file of save_captures, format {FORMAT!r}",
            )
        policy, owner = header["policy"], header["checkpoint_hash"]
        if checkpoint_hash is not None and owner != checkpoint_hash:
            raise KitError(
                f"{path} holds attention of {policy} ({owner or 'no hash'}), not of the checkpoint "
                f"{checkpoint_hash}",
                "capture again with this checkpoint, or open the checkpoint that the file is of",
            )
        captures = []
        for number, entry in enumerate(json.loads(header["captures"])):
            arrays = {name: file.get_tensor(f"{number}.{name}") for name in CAPTURE_ARRAYS}
            acted = {name: file.get_tensor(f"{number}.action.{name}") for name in ACTION_ARRAYS}
            values = {name: entry[name] for name in CAPTURE_VALUES}
            values["labels"] = tuple(entry["labels"])
            values["grid"] = tuple(entry["grid"])
            values["action"] = Action(**acted, **entry["action"])
            values["queries"] = tuple(
                Query(query["label"], query["kind"], tuple(query["positions"]), tuple(query["tokens"]))
                for query in entry["queries"]
            )
            captures.append(Capture(**arrays, **values, policy=policy, checkpoint_hash=owner))
    return captures
