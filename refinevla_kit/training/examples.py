"""Training examples: one frame, the action taken on it, and the rationale of the segment it lies in."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refinevla_kit.episodes import EpisodeDataset, open_dataset
from refinevla_kit.episodes.columns import is_open
from refinevla_kit.episodes.contract import STATE_NAMES
from refinevla_kit.episodes.reader import CHECK_UP_TO
from refinevla_kit.errors import KitError
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.simulator.contract import Array
from refinevla_kit.teacher.answers import StoredRationale, load_rationales, lookup
from refinevla_kit.teacher.reviews import SUFFIX, load_decisions, reviewed
from refinevla_kit.vlas.action_tokens import STATISTICS, check_actions

REVIEWED = "reviewed"
SHIPPED_BASE = REPOSITORY / "data" / "checkpoints" / "compact_base"
PROPRIOCEPTION = len(STATE_NAMES)  # numbers of the kit's own state, as policies read it
LOOKED_AT = 200  # episodes whose actions are compared with a base before anything is paid


@dataclass(frozen=True)
class Examples:
    """N frames in memory.

    Attributes:
        images: uint8 (N, H, W, 3).
        actions: float32 (N, 7), as recorded (units of `Simulator.step`); NaN where a frame is only spoken
            about. episodes: int64 (N,).
        instructions, rationales: one text a frame; a rationale is "" where none was written, or none that is
            trained on.
        proprioception: float32 (N, 15), the kit's own state (`Observation.proprioception`); (N, 0) or None
            where the data have none or another.
        about: which rationales these are and how many were left out, one line.
    """

    images: Array
    actions: Array
    episodes: Array
    instructions: tuple[str, ...]
    rationales: tuple[str, ...]
    about: str = ""
    proprioception: Array | None = None

    def __len__(self) -> int:
        return len(self.actions)

    def digest(self, state: bool = True) -> str:
        """SHA-256 of everything that training reads; without the robot's own state for a policy that reads
        none.
        """
        found = hashlib.sha256(json.dumps([self.instructions, self.rationales]).encode())
        for array in (self.images, self.actions, self.episodes, self.proprioception if state else None):
            if array is not None:
                found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

    def plans(self, rows: Array, steps: int) -> Array:
        """Actions of these frames and those after them, float32 (B, steps, 7); the last of an episode is
        repeated.
        """
        ends = np.searchsorted(self.episodes, self.episodes[rows], side="right") - 1  # B
        frames = np.minimum(rows[:, None] + np.arange(steps), ends[:, None])  # B, steps
        plans: Array = self.actions[frames]
        return plans

    @property
    def stateful(self) -> bool:
        """The robot's own state is there, in the form that policies read."""
        return self.proprioception is not None and self.proprioception.shape[1] == PROPRIOCEPTION

    def split(self, every: int = 10) -> tuple[Array, Array]:
        """(training, validation) frame numbers, int64.

        Every `every`-th episode is held out when there are that many; none where nothing would be left to
        train on.
        """
        held_out = self.episodes % every == every - 1
        if held_out.all():
            held_out = np.zeros(len(self), bool)
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def join(parts: Sequence[Examples]) -> Examples:
    """All frames of several, episodes numbered on; without the robot's own state where one of them has
    none.
    """
    offsets = np.cumsum([0, *(int(part.episodes.max()) + 1 for part in parts[:-1])])
    own = [part.proprioception for part in parts if part.proprioception is not None and part.stateful]
    return Examples(
        _one_size([part.images for part in parts]),
        np.concatenate([part.actions for part in parts]),
        np.concatenate([part.episodes + offset for part, offset in zip(parts, offsets, strict=True)]),
        tuple(text for part in parts for text in part.instructions),
        tuple(text for part in parts for text in part.rationales),
        "; ".join(part.about for part in parts if part.about),
        np.concatenate(own) if len(own) == len(parts) else None,
    )


def load_examples(
    dataset: EpisodeDataset | str | Path,
    rationales: str | Path | None = None,
    elsewhere: str | Path | None = None,
    strict: bool = False,
) -> Examples:
    """Read a LeRobot dataset and, when given, the rationales written about it.

    Args:
        dataset: its folder, or opened. A gripper whose sense is known becomes the kit's: 1 open, -1 closed.
        rationales: a table, to train on the teacher's text as it is; "reviewed", for the dataset's table
            (`find_rationales` says which) with the decisions beside it; or such a file of decisions. Reviewed
            means accepted or edited by a person, nothing else. Rationales whose teacher finds that the
            instruction does not match are never trained on.
        elsewhere: see `find_rationales`.
        strict: refuse rationales that leave an episode without any. Otherwise such episodes train the action
            only, and `about` counts them.

    Raises:
        KitError: the dataset's actions are not the seven the policies have, the rationales are of other
            episodes, or none is reviewed.
    """
    source = open_dataset(dataset) if isinstance(dataset, str | Path) else dataset
    dataset = source.path
    if rationales == REVIEWED:
        rationales = find_rationales(dataset, elsewhere, reviews=True)
    stored, about = _read(Path(rationales)) if rationales else ([], "")
    if len(source.episodes) > CHECK_UP_TO:  # a smaller one was checked when it was opened
        source.check()
    known = {item.index for item in source.episodes}
    if strange := {r.episode for r in stored} - known - source.left_out.keys():
        raise KitError(
            f"{rationales} has rationales of episode {min(strange)}, {dataset} has none such",
            "annotate this dataset anew (notebook 01)",
        )
    images, actions, episodes, instructions, texts, own = [], [], [], [], [], []
    for item in source.episodes:
        action = _seven(source, item.index)
        try:
            images.append(source.images(item.index))
        except KitError as error:
            source.leave_out(item.index, error)
            continue
        actions.append(_kit_gripper(source, action))
        own.append(source.proprioception(item.index))
        episodes.append(np.full(len(action), item.index))
        instructions += source.instructions(item.index)
        found = [lookup(stored, item.index, frame) for frame in range(len(action))]
        texts += [
            stored_one.rationale.text() if stored_one and stored_one.rationale else "" for stored_one in found
        ]
    if rationales:
        told = {
            episode for episode, text in zip(np.concatenate(episodes).tolist(), texts, strict=True) if text
        }
        if silent := sorted(known - told - source.left_out.keys()):
            what = f"{len(silent)} of {len(known)} episodes without any"
            if strict:
                remedy = (
                    "annotate the dataset again (it goes on where it stopped), or leave `strict` off to "
                    "train these on actions alone"
                )
                raise KitError(f"{about}: {what}, the first is episode {silent[0]}", remedy)
            about += f"; {what}"
    notes = [about] if about else []
    if other := _other_state(own, source.state_names):
        own = [part[:, :0] for part in own]
        notes.append(f"the robot's own state is not read: {other}")
    if source.left_out:
        notes.append(f"{len(source.left_out)} episodes cannot be read")
    if source.gripper is None:
        notes.append("whether 1 or -1 opens the gripper is not known: trained as recorded")
    shown, acted, numbers = _one_size(images), np.concatenate(actions), np.concatenate(episodes)
    return Examples(
        shown, acted, numbers, tuple(instructions), tuple(texts), "; ".join(notes), np.concatenate(own)
    )


def trainable(dataset: EpisodeDataset | str | Path, base: str | Path | None = None) -> str | None:
    """Why a dataset cannot be trained on later, in one line; None when it can. Looks at numbers alone: ask it
    before a teacher is paid.

    Args:
        dataset: an open dataset, or the folder of one.
        base: the checkpoint to start from; None is the shipped one.
    """
    try:
        source = open_dataset(dataset) if isinstance(dataset, str | Path) else dataset
        if not source.episodes or not source.cameras:
            raise KitError(
                f"{source.name} has no {'pictures' if source.episodes else 'episodes'}",
                "record at least one episode, with a camera",
            )
        chosen = source.episodes[:: max(1, len(source.episodes) // LOOKED_AT)]
        actions = np.concatenate([_seven(source, item.index) for item in chosen])
        file = Path(base or SHIPPED_BASE) / STATISTICS
        tokens = json.loads(file.read_text(encoding="utf-8"))["action_tokens"]
        check_actions(tokens["limits"], actions)
        if base is not None:  # loading torch and a vocabulary takes seconds, and the shipped base is sound
            from refinevla_kit.vlas.compact import read_action_tokens
            from refinevla_kit.vlas.compact_parts import check_action_words, load_vocabulary

            check_action_words(load_vocabulary(base), read_action_tokens(tokens).words)
    except KitError as error:
        return str(error)
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{base or SHIPPED_BASE} is no base to train from ({error})"
        return f"{what} -> give a checkpoint of the compact VLA"
    return None


def _seven(source: EpisodeDataset, episode: int) -> Array:
    """float32 (T, 7), the episode's actions. Raises `KitError` where they are nothing that a policy of the
    kit can say.
    """
    actions = source.actions(episode)
    if source.deltas is False:
        what, remedy = (
            f"the actions of {source.path} are absolute positions",
            "train on displacements, or say deltas=True where they are some",
        )
        raise KitError(what, remedy)
    if actions.shape[1] != 7:
        remedy = "the compact VLA has 7 (displacement, rotation, gripper): train on a WidowX dataset"
        raise KitError(f"{source.path} has {actions.shape[1]}-dimensional actions", remedy)
    return actions


def _kit_gripper(source: EpisodeDataset, actions: Array) -> Array:
    """float32 (T, 7) with the gripper as the kit's policies command it, 1 open and -1 closed, where the
    data's own sense is known.
    """
    if source.gripper is None or (source.gripper == 1 and np.isin(actions[:, 6], (-1, 1)).all()):
        return actions
    command = np.where(is_open(actions[:, 6], source.gripper), 1, -1)
    return np.column_stack([actions[:, :6], command]).astype(np.float32)


def _other_state(own: Sequence[Array], names: tuple[str, ...]) -> str:
    """What keeps recorded states, (T, P) an episode, from being read; "" when nothing does."""
    widths = {part.shape[1] for part in own}
    if widths != {PROPRIOCEPTION}:
        return (
            "the data have none"
            if widths == {0}
            else f"{max(widths)} numbers, the kit's own has {PROPRIOCEPTION}"
        )
    return (
        ""
        if names in ((), STATE_NAMES)
        else f"its columns are {', '.join(names[:3])} ..., the kit's own {', '.join(STATE_NAMES[:3])} ..."
    )


def _one_size(images: Sequence[Array]) -> Array:
    """Pictures (n, H, W, 3) of several episodes together."""
    if len(sizes := {part.shape[1:3] for part in images}) > 1:
        said = " and ".join(f"{width} x {height}" for height, width in sorted(sizes))
        raise KitError(
            f"the episodes have pictures of {len(sizes)} sizes ({said})",
            "train on episodes of one camera and size",
        )
    return np.concatenate(images)


def find_rationales(
    dataset: str | Path,
    elsewhere: str | Path | None = None,
    reviews: bool = False,
    last: str | Path | None = None,
) -> Path:
    """The rationale table of a dataset. Of several the newest is taken, and a warning names it and the
    others.

    Args:
        elsewhere: folder of tables named after their dataset; one there comes before those beside the
            dataset.
        reviews: instead of the table, the decisions about it; tables that nobody reviewed do not count.
        last: the table that the run at hand wrote about this dataset last; it comes before all others.
    Raises:
        KitError: there is none.
    """
    suffix = SUFFIX if reviews else ".parquet"
    if last is not None:
        written = Path(last).with_name(Path(last).name.removesuffix(".parquet") + suffix)
        if written.is_file():
            return written
    named = re.compile(
        re.escape(Path(dataset).resolve().name) + r"-\D.*"
    )  # and not "demo-2-...", of another dataset
    files = (
        [file for file in Path(elsewhere).glob(f"*{suffix}") if named.fullmatch(file.name)]
        if elsewhere
        else []
    )
    files = files or list((Path(dataset) / "rationales").glob(f"*{suffix}"))
    if not files:
        what, remedy = (
            ("reviewed rationales", "review some in notebook 01")
            if reviews
            else ("rationales", "annotate it with notebook 01")
        )
        raise KitError(f"{dataset} has no {what} beside it", f"{remedy}, or give `rationales` a parquet file")
    files.sort(key=lambda file: (-file.stat().st_mtime_ns, file.name))
    if others := ", ".join(file.name for file in files[1:]):
        chosen = f"{files[0].name} of {files[0].parent} is taken, the newest; there are also {others}"
        warnings.warn(f"{chosen} -> give `rationales` the file to take another", stacklevel=2)
    return files[0]


def _read(path: Path) -> tuple[list[StoredRationale], str]:
    """The rationales to train on, from a table or from the decisions about one, and a line about them."""
    decided = path.name.endswith(SUFFIX)
    table = path.with_name(path.name.removesuffix(SUFFIX) + ".parquet") if decided else path
    rows, counts = load_rationales(table), dict[str, int]()
    if decided:
        rows, counts = reviewed(rows, load_decisions(path))
        if not rows:
            raise KitError(
                f"no rationale of {table} was accepted",
                "review some in notebook 01, or give `rationales` the table",
            )
    trained = [row for row in rows if row.rationale and row.rationale.instruction_matches]
    counts |= {
        "left out because the instruction does not match": sum(row.rationale is not None for row in rows)
        - len(trained)
    }
    return trained, "; ".join(
        [
            f"{len(trained)} rationales of {table}",
            *(f"{count} {what}" for what, count in counts.items() if count),
        ]
    )
