"""Training examples: one frame, the action taken on it, and the rationale of the segment it lies in. Pictures
of a dataset that is too large for memory stay in its files.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import pandas as pd

from refinevla_kit.episodes import EpisodeDataset, open_dataset
from refinevla_kit.episodes.columns import filled, is_open
from refinevla_kit.episodes.contract import STATE_NAMES, rationales_folder
from refinevla_kit.episodes.frame_table import FrameTable, frame_table
from refinevla_kit.errors import KitError
from refinevla_kit.files import read_json
from refinevla_kit.policies.conversion import STICKS
from refinevla_kit.settings import REPOSITORY, Settings
from refinevla_kit.simulator.contract import Array
from refinevla_kit.teacher.answers import StoredRationale, load_rationales, lookup, summarise
from refinevla_kit.teacher.requests import digest
from refinevla_kit.teacher.reviews import SUFFIX, load_decisions, reviewed
from refinevla_kit.training.pictures import StreamedPictures, bytes_of, check_sizes
from refinevla_kit.vlas.action_tokens import STATISTICS, check_actions

REVIEWED = "reviewed"
SHIPPED_BASE = REPOSITORY / "data" / "checkpoints" / "compact_base"
PROPRIOCEPTION = len(STATE_NAMES)  # numbers of the kit's own state, as policies read it
EVERY = 10  # so many episodes, one of them is held out
LOOKED_AT = 200  # episodes whose actions are compared with a base before anything is paid
STREAM_ABOVE = 4e9  # bytes of pictures
COMPARED = 3  # episodes whose recording is held against what was written about it
TEXTS = 2**17  # frames whose texts are in one piece of a digest


@dataclass(frozen=True)
class Examples:
    """N frames.

    Attributes:
        images: uint8 (P, H, W, 3), a picture a frame unless `picture` says otherwise; in memory, or
            decoded when they are asked for.
        actions: float32 (N, 7), as recorded (units of `Simulator.step`); NaN where a frame is only spoken
            about. episodes: int64 (N,).
        instructions, rationales: one text a frame; a rationale is "" where none was written, or none that is
            trained on.
        proprioception: float32 (N, 15), the kit's own state (`Observation.proprioception`); (N, 0) or None
            where the data have none or another.
        about: which rationales these are and how many were left out, one line.
        picture: int64 (N,), which of the pictures each frame shows, where several show the same one.
        origin: int64 (N,), which dataset of a mixture each frame is of; None where there is no mixture.
        shares: of each step, one a dataset of the mixture.
    """

    images: Array | StreamedPictures
    actions: Array
    episodes: Array
    instructions: tuple[str, ...]
    rationales: tuple[str, ...]
    about: str = ""
    proprioception: Array | None = None
    picture: Array | None = None
    origin: Array | None = None
    shares: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.actions)

    def digest(self, state: bool = True) -> str:
        """SHA-256 of everything that training reads; without the robot's own state for a policy that reads
        none.
        """
        found, own = hashlib.sha256(), self.proprioception if state else None
        for first in range(0, len(self), TEXTS):
            texts = (each[first : first + TEXTS] for each in (self.instructions, self.rationales))
            found.update(json.dumps(list(texts)).encode())
        found.update(bytes_of(self.images))
        shares = np.array(self.shares) if self.shares else None
        for array in (self.actions, self.episodes, own, self.picture, self.origin, shares):
            if array is not None:
                found.update(bytes_of(array))
        return found.hexdigest()

    def pictures(self, rows: Array) -> Array:
        """Which of `images` these frames show, int64 (B,)."""
        return rows if self.picture is None else self.picture[rows]

    def shown(self, rows: Array) -> Array:
        """The pictures of these frames, uint8 (B, H, W, 3)."""
        return self.images[self.pictures(rows)]

    def look(self, rows: Array) -> tuple[Array, Array]:
        """These frames, int64 (B,), and their pictures. A frame whose picture cannot be read is replaced by
        the first frame of the next episode that can be read: the same one in every run.

        Raises:
            KitError: no picture of the data can be read.
        """
        while True:
            try:
                return rows, self.shown(rows)
            except KitError:
                if not isinstance(self.images, StreamedPictures) or not self.images.unreadable:
                    raise
                rows = np.array([self._stand_in(row) for row in rows.tolist()])

    def _stand_in(self, row: int) -> int:
        """The frame itself, or the first of the next readable episode that is trained on or held out as it
        is.
        """
        assert isinstance(self.images, StreamedPictures)
        wanted = held_out(self.episodes[row])
        for _ in range(len(self)):  # each episode once, at most
            readable = self.images.readable(row if self.picture is None else int(self.picture[row]))
            if readable and held_out(self.episodes[row]) == wanted:
                return row
            row = int(np.searchsorted(self.episodes, self.episodes[row], side="right")) % len(self)
        raise next(iter(self.images.unreadable.values()))

    def ahead(self, parts: Sequence[Array]) -> None:
        """Say which frames are asked for next, part by part."""
        if isinstance(self.images, StreamedPictures):
            self.images.ahead([self.pictures(rows) for rows in parts])

    def plans(self, rows: Array | Sequence[int], steps: int) -> Array:
        """Actions of these frames and those after them, float32 (B, steps, 7); the last of an episode is
        repeated.
        """
        rows = np.asarray(rows)
        ends = self._ends[np.searchsorted(self._ends, rows)]  # B
        frames = np.minimum(rows[:, None] + np.arange(steps), ends[:, None])  # B, steps
        return self.actions[frames]

    @cached_property
    def _ends(self) -> Array:
        """The last frame of each episode, in whatever order they are; looked for once, not in every step."""
        return np.flatnonzero(np.diff(self.episodes, append=-1))

    def holding(self) -> Examples:
        """The same, but a gripper that is told to stay is told once more what it was told last (open at
        first): the Google Robot's is a motion, released models say open or closed.
        """
        motion = self.actions[:, 6]
        if not (motion <= -STICKS).any():  # no motions, or never one to close
            return self
        told = np.where(np.abs(motion) >= STICKS, np.sign(motion), np.nan)
        held = pd.Series(told).groupby(self.episodes).ffill().fillna(1)
        return replace(self, actions=np.column_stack([self.actions[:, :6], held]).astype(np.float32))

    @property
    def stateful(self) -> bool:
        """The robot's own state is there, in the form that policies read."""
        return self.proprioception is not None and self.proprioception.shape[1] == PROPRIOCEPTION

    def split(self) -> tuple[Array, Array]:
        """(training, validation) frame numbers, int64.

        One episode of `EVERY` is held out when there are that many; none where nothing would be left to
        train on.
        """
        kept_back = held_out(self.episodes)
        if kept_back.all():
            kept_back = np.zeros(len(self), bool)
        return np.flatnonzero(~kept_back), np.flatnonzero(kept_back)


def held_out(episodes: Array) -> Array:
    """Which of these episodes, by their numbers, are not trained on: bool (N,)."""
    return episodes % EVERY == EVERY - 1


def join(parts: Sequence[Examples]) -> Examples:
    """All frames of several; without the robot's own state where one of them has none.

    Episodes are numbered on from the next multiple of `EVERY`, so that those are held out that would be
    without the others.
    """
    stateful = all(part.stateful for part in parts)
    numbered, start = [], 0
    for part in parts:
        own = part.proprioception if stateful else None
        numbered.append(replace(part, episodes=part.episodes + start, proprioception=own))
        start += (int(part.episodes.max()) // EVERY + 1) * EVERY
    return _stacked(numbered)


def _stacked(parts: Sequence[Examples]) -> Examples:
    """All frames of several, as they are; an array of pictures that several have is there once."""
    arrays = {id(part.images): part.images for part in parts}
    streamed = [images for images in arrays.values() if isinstance(images, StreamedPictures)]
    if streamed and len(streamed) < len(arrays):
        raise KitError("some of the examples are in memory, others are not", "give all the same `stream`")
    if not streamed:
        check_sizes(arrays.values())
    images = parts[0].images
    if len(arrays) > 1:
        images = StreamedPictures.joined(streamed) if streamed else np.concatenate(list(arrays.values()))
    starts = dict(zip(arrays, np.cumsum([0, *map(len, arrays.values())])))
    pictures = [part.pictures(np.arange(len(part))) + starts[id(part.images)] for part in parts]
    shared = any(part.picture is not None for part in parts) or len(arrays) < len(parts)
    states = [part.proprioception for part in parts if part.proprioception is not None]
    return Examples(
        images,
        np.concatenate([part.actions for part in parts]),
        np.concatenate([part.episodes for part in parts]),
        tuple(text for part in parts for text in part.instructions),
        tuple(text for part in parts for text in part.rationales),
        "; ".join(part.about for part in parts if part.about),
        np.concatenate(states) if len(states) == len(parts) else None,
        np.concatenate(pictures) if shared else None,
    )


def load_examples(
    dataset: EpisodeDataset | str | Path,
    rationales: str | Path | None = None,
    strict: bool = False,
    stream: bool | None = None,
) -> Examples:
    """Read a LeRobot dataset and, when given, the rationales written about it.

    Args:
        dataset: its folder, or opened. A gripper whose sense is known becomes the kit's: 1 open, -1 closed.
        rationales: a table, to train on the teacher's text as it is; "reviewed", for the dataset's table
            (`find_rationales` says which) with the decisions beside it; or such a file of decisions. Reviewed
            means accepted or edited by a person, nothing else. Rationales whose teacher finds that the
            instruction does not match are never trained on.
        strict: refuse rationales that leave an episode without any. Otherwise such episodes train the action
            only, and `about` counts them.
        stream: leave the pictures in their files until a step needs them; None where they would take more
            than `STREAM_ABOVE` in memory.

    Raises:
        KitError: the dataset's actions are not the seven the policies have, the rationales are of other
            episodes, or none is reviewed.
    """
    source = open_dataset(dataset) if isinstance(dataset, str | Path) else dataset
    table = frame_table(source)
    _seven(source, table.actions)
    if rationales == REVIEWED:
        rationales = find_rationales(source.path, reviews=True)
    stored, notes = read_rationales(Path(rationales)) if rationales else ([], [])
    known = {item.index: item.length for item in source.episodes}
    strange = {row.episode for row in stored if row.end > known.get(row.episode, 0)} - source.left_out.keys()
    if strange:
        what = f"{rationales} has rationales of episode {min(strange)} that {source.path} has no frames for"
        raise KitError(what, "annotate this dataset anew (notebook 01)")
    if _of_another(source, stored, known):
        what = f"{rationales} was written about another recording than {source.path}"
        otherwise = "or one that was read otherwise (camera, columns, deltas, gripper)"
        warnings.warn(f"{what}, {otherwise}", stacklevel=2)
    images = _images(source, table, stream)
    table = table.only(np.array([item.index for item in source.episodes]))
    texts: tuple[str, ...] = ("",) * len(table)
    if rationales:
        rows = (lookup(stored, *place) for place in zip(table.episodes.tolist(), table.frames.tolist()))
        texts = tuple(row.rationale.text() if row and row.rationale else "" for row in rows)
        spoken = set(table.episodes[[bool(text) for text in texts]].tolist())
        if silent := [item.index for item in source.episodes if item.index not in spoken]:
            what = f"{len(silent)} of {len(known)} episodes without any"
            if strict:
                remedy = "annotate the dataset again (it goes on where it stopped)"
                more = "or leave `strict` off to train these on actions alone"
                first = f"the first is episode {silent[0]}"
                raise KitError(f"{'; '.join(notes)}: {what}, {first}", f"{remedy}, {more}")
            notes.append(what)
    states = table.states
    if other := _other_state(states.shape[1], source.state_names):
        states = np.zeros((len(states), 0), np.float32)
        notes.append(f"the robot's own state is not read: {other}")
    if missing := int((~np.isfinite(table.actions).all(axis=1)).sum()):
        notes.append(f"{missing} frames have no action (what is no number) and teach none")
    if source.left_out:
        notes.append(f"{len(source.left_out)} episodes cannot be read")
    if source.gripper is None:
        notes.append("whether 1 or -1 opens the gripper is not known: trained as recorded")
    sentences = tuple(table.sentences[number] for number in table.said.tolist())
    moves = _kit_gripper(source, table.actions)
    return Examples(images, moves, table.episodes, sentences, texts, "; ".join(notes), states)


def _of_another(
    source: EpisodeDataset, stored: Sequence[StoredRationale], lengths: Mapping[int, int]
) -> bool:
    """Whether what the first few episodes, of these lengths, were written about is not what they are now."""
    for episode, group in islice(groupby(stored, key=lambda row: row.episode), COMPARED):
        rows = list(group)
        spans = [row.span for row in rows]
        starts, ends = [start for _, start, _ in spans], [end for _, _, end in spans]
        whole = [0, *ends] == [*starts, lengths.get(episode)]
        written = rows[0].dataset_hash
        if whole and written and digest(source, episode, spans) != written:
            return True
    return False


def _images(source: EpisodeDataset, table: FrameTable, stream: bool | None) -> Array | StreamedPictures:
    """The pictures of the frames of `table`, but those of episodes that are left out because of theirs."""
    if stream or (stream is None and _picture_bytes(source) * len(table) > STREAM_ABOVE):
        table = table.only(np.array([item.index for item in source.episodes]))
        return StreamedPictures([source], np.zeros(len(table)), table.episodes, table.frames)
    decoded = []
    for item in source.episodes:
        try:
            decoded.append(source.images(item.index))
        except KitError as error:
            source.leave_out(item.index, error)
    check_sizes(decoded)
    return np.concatenate(decoded)


def _picture_bytes(source: EpisodeDataset) -> int:
    """Size of a picture, by the first that can be read."""
    for item in source.episodes:
        try:
            return source.images(item.index, [0]).nbytes
        except KitError as error:
            source.leave_out(item.index, error)  # raises where no other is left
    return 0


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
            what = f"{source.name} has no {'pictures' if source.episodes else 'episodes'}"
            raise KitError(what, "record at least one episode, with a camera")
        chosen = source.episodes[:: max(1, len(source.episodes) // LOOKED_AT)]
        actions = np.concatenate([_seven(source, source.actions(item.index)) for item in chosen])
        file = Path(base or SHIPPED_BASE) / STATISTICS
        tokens = read_json(file)["action_tokens"]
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


def _seven(source: EpisodeDataset, actions: Array) -> Array:
    """The actions, float32 (T, 7). Raises `KitError` where they are nothing that a policy of the kit can
    say.
    """
    if actions.shape[1] != 7:
        remedy = "the compact VLA has 7 (displacement, rotation, gripper): train on a WidowX dataset"
        raise KitError(f"{source.path} has {actions.shape[1]}-dimensional actions", remedy)
    if source.deltas is False:
        what = f"the actions of {source.path} are absolute positions"
        raise KitError(what, "train on displacements, or say deltas=True where they are some")
    return actions


def _kit_gripper(source: EpisodeDataset, actions: Array) -> Array:
    """float32 (T, 7) with the gripper as the kit's policies command it, 1 open and -1 closed, where the
    data's own sense is known.
    """
    if source.gripper is None or (source.gripper == 1 and np.isin(actions[:, 6], (-1, 1)).all()):
        return actions
    if source.gripper == -1:  # the Google Robot's is a motion, of any size, and 0 stays
        command = -filled(actions[:, 6:], False)[:, 0]
    else:
        command = np.where(is_open(actions[:, 6], source.gripper), 1, -1)
    return np.column_stack([actions[:, :6], command]).astype(np.float32)


def _other_state(width: int, names: tuple[str, ...]) -> str:
    """What keeps recorded states of so many numbers from being read; "" when nothing does."""
    if not width:
        return "the data have none"
    if width != PROPRIOCEPTION:
        return f"{width} numbers, the kit's own has {PROPRIOCEPTION}"
    if names in ((), STATE_NAMES):
        return ""
    return f"its columns are {', '.join(names[:3])} ..., the kit's own {', '.join(STATE_NAMES[:3])} ..."


def find_rationales(
    dataset: str | Path,
    elsewhere: str | Path | None = None,
    reviews: bool = False,
    last: str | Path | None = None,
) -> Path:
    """The rationale table of a dataset. Of several that hold any, the newest is taken, and a warning names it
    and the others.

    Args:
        elsewhere: folder of tables named after their dataset; one there comes before those beside the
            dataset.
        reviews: instead of the table, the decisions about it; tables that nobody reviewed do not count.
        last: the table that the run at hand wrote about this dataset last; it comes before all others.
    Raises:
        KitError: there is none.
    """
    suffix, dataset = SUFFIX if reviews else ".parquet", Path(dataset)
    if last is not None:
        written = Path(last).with_name(Path(last).name.removesuffix(".parquet") + suffix)
        if written.is_file():
            return written
    # and not "demo-2-...", of another dataset
    named = re.compile(re.escape(dataset.resolve().name) + r"-\D.*")
    files = Path(elsewhere).glob(f"*{suffix}") if elsewhere else iter(())
    tables = [file for file in files if named.fullmatch(file.name)]
    tables = tables or list(rationales_folder(dataset).glob(f"*{suffix}"))
    if not tables:
        what = "reviewed rationales" if reviews else "rationales"
        remedy = "review some in notebook 01" if reviews else "annotate it with notebook 01"
        raise KitError(f"{dataset} has no {what} beside it", f"{remedy}, or give `rationales` a parquet file")
    if len(tables) > 1 and not reviews:
        tables = [file for file in tables if _holds_any(file)] or tables
    newest, *others = sorted(tables, key=lambda file: (-file.stat().st_mtime_ns, file.name))
    if others:
        chosen = f"{newest.name} of {newest.parent} is taken, the newest"
        also = ", ".join(file.name for file in others)
        what = f"{chosen}; there are also {also} -> give `rationales` the file to take another"
        warnings.warn(what, stacklevel=2)
    return newest


def _holds_any(table: Path) -> bool:
    """Whether a table holds more than refusals; one that cannot be read says so when it is taken."""
    try:
        return summarise(table).rationales > 0
    except KitError:
        return True


def rationales_of(settings: Settings, dataset: Path, given: str | None = None) -> Path:
    """The rationale table that a notebook takes about a dataset: what is given, else what notebook 1 wrote
    last in this run, else what `find_rationales` finds.

    Args:
        given: a table, or "reviewed" for the decisions about the one that would be taken.
    """
    if given and given != REVIEWED:
        return settings.find(given, "", "")
    tables = "01_teacher_annotation/rationales"
    last = settings.left(f"{tables} of {dataset}")
    return find_rationales(dataset, settings.output / tables, given == REVIEWED, last)


def read_rationales(path: Path) -> tuple[list[StoredRationale], list[str]]:
    """The rationales to train on, from a table or from the decisions about one, and what to say of them."""
    decided = path.name.endswith(SUFFIX)
    table = path.with_name(path.name.removesuffix(SUFFIX) + ".parquet") if decided else path
    rows, counts = load_rationales(table), dict[str, int]()
    if decided:
        rows, counts = reviewed(rows, load_decisions(path))
        if not rows:
            remedy = "review some in notebook 01, or give `rationales` the table"
            raise KitError(f"no rationale of {table} was accepted", remedy)
    written = [row for row in rows if row.rationale]
    trained = [row for row in written if row.rationale and row.rationale.instruction_matches]
    counts["left out because the instruction does not match"] = len(written) - len(trained)
    said = [f"{count} {what}" for what, count in counts.items() if count]
    return trained, [f"{len(trained)} rationales of {table}", *said]
