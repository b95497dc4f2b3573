"""Reads LeRobot datasets of all three layouts in use (v2.0, v2.1, v3.0), whoever made them.

v2.x keeps one parquet and one mp4 an episode and the listing in JSON lines. v3.0 keeps many episodes a file
and the listing in parquet, with the time at which an episode starts in its mp4. Pictures may also lie in the
tables, as PNG or JPEG; all are decoded when asked for. An episode that cannot be read is left out and
counted.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from refinevla_kit import hub
from refinevla_kit.episodes import columns as meaning
from refinevla_kit.episodes import meta, video
from refinevla_kit.episodes.contract import EpisodeInfo, sidecar_path
from refinevla_kit.episodes.meta import AGAIN
from refinevla_kit.episodes.segments import Segment, split_segments
from refinevla_kit.errors import KitError, as_kit_error, check_choice
from refinevla_kit.simulator.contract import STATE, Array, SceneState

CHECK_UP_TO = 100  # episodes; larger datasets are not opened file by file in advance


class EpisodeDataset:
    """A LeRobot dataset; `open_dataset` is its other name. Print it to see what was taken for what.

    Episodes are named by their `EpisodeInfo.index`. Of a dataset with more than 100 episodes files are
    checked when read (or by `check`).

    Args:
        path: the folder that holds meta/, data/ and videos/; or a dataset of the Hugging Face hub by its
            name, of which only the chosen episodes and camera are downloaded. What the numbers of the public
            conversions of Bridge and Fractal mean is known (`known_datasets.json`).
        deltas: whether actions are displacements (of seven numbers: in metres and radians); None infers it
            where that is safe.
        camera: the camera to show, or a part of its name; None takes the first by name that is no depth map.
        episodes: which to read, [3, 5], range(10) or "0-9,12"; a number for as many from the first on; None
            reads all.
        columns: features by what they are, where their names do not tell:
            {"action": "command", "state": "sensed", "instruction": "prompt"}.
        gripper: the gripper command's value that means open, 1, 0 or -1; None infers it where that is safe.
        strict: refuse a dataset with an episode that cannot be read, instead of leaving it out.
        revision: of the hub's dataset: a branch, tag or commit; None takes the newest.

    Raises:
        KitError: no dataset there, an unknown version, meta missing or damaged, or no episode that can be
            read.

    Attributes:
        path, name: the folder and its last part.
        version: "v2.0", "v2.1" or "v3.0".
        fps: frames a second.
        robot_type: as recorded.
        columns: which feature is what.
        cameras, camera: features with pictures, depth maps last, and the one that is shown ("" for none).
        action_names, state_names: name of each dimension, () where the dataset does not give as many.
        deltas: actions are displacements (True), absolute positions (False), or it is not known (None).
        metric: they are displacements of a tool in metres and radians, and a gripper's command.
        gripper: the value of the gripper's command that means open, None where that is not known.
        gripper_dimension: which number of the action commands the gripper, None for none.
        episodes: the listing, one `EpisodeInfo` each.
        left_out: index of each episode that cannot be read -> why.
        overrides: what was told of the numbers' meaning and the camera, as it was told.
    """

    def __init__(
        self,
        path: str | Path,
        deltas: bool | None = None,
        *,
        camera: str | None = None,
        episodes: int | str | Iterable[int] | None = None,
        columns: Mapping[str, str] | None = None,
        gripper: float | None = None,
        strict: bool = False,
        revision: str | None = None,
    ) -> None:
        from_hub = str(path) if hub.is_name(path) else hub.name_in_cache(path)
        if hub.is_name(path):
            path = hub.download(from_hub, hub.FILES["dataset"], "dataset", revision)
        if from_hub:
            known = meaning.known_dataset(from_hub)
            deltas = known.get("deltas") if deltas is None else deltas
            gripper = known.get("gripper") if gripper is None else gripper
            camera = camera or known.get("camera")
        self.path, self.strict = Path(path), strict
        self.name = from_hub.rpartition("/")[2] or self.path.resolve().name
        self._info = info = meta.read_info(self.path)
        self.version, self.robot_type = info["codebase_version"], str(info.get("robot_type") or "unknown")
        self.fps = meta.rate_of(info.get("fps"), self.path)
        self.columns = meaning.Columns(info.get("features"), columns, camera, str(path))
        self.cameras, self.camera = self.columns.cameras, self.columns.camera
        if deltas is not None and not (isinstance(deltas, bool | int | np.bool_) and deltas in (0, 1)):
            raise KitError(f"deltas={deltas!r}", "give True (displacements), False (positions) or None")
        told = {
            "deltas": None if deltas is None else bool(deltas),
            "gripper": None if gripper is None else meta.as_number(gripper),
            "camera": camera,
            "columns": columns,
        }  # 1 and 1.0 alike: answers that were paid for depend on it
        self.overrides = {name: value for name, value in told.items() if value is not None}
        self._errors: dict[int, KitError] = {}
        self._warned = 0
        # v3.0: the whole dataset is a few files; v2.x: neighbours are cheap to read again.
        self._table = lru_cache(maxsize=8)(self._read_table)
        self._pictures = lru_cache(maxsize=1)(meta.read_parquet)
        # Each is asked for again: for cutting, the digest, the question.
        self._column = lru_cache(maxsize=8)(self._read_column)
        self._places = lru_cache(maxsize=8)(self._read_places)
        self._rows = meta.listing(self.path, self.version, info)
        self._infos = {number: meta.episode_info(row) for number, row in self._rows.items()}
        self._sentences = meta.sentences(self.path)
        wanted = meaning.episode_numbers(episodes, list(self._rows))
        if not wanted:
            raise KitError(f"no episode of {path} is chosen", "leave `episodes` away for all")
        self.episodes = tuple(self.info(number) for number in wanted)
        for episode in self.episodes:
            if episode.length < 1:
                what = f"{path}/meta gives episode {episode.index} no length"
                self.leave_out(episode.index, KitError(what, AGAIN))
        if from_hub:
            self._fetch(from_hub)
        self._widths: dict[str, int] = {}
        self._look()
        self._infer(deltas, gripper)
        if len(self.episodes) <= CHECK_UP_TO:
            self.check()
        self.warn()

    @property
    def left_out(self) -> dict[int, str]:
        return {number: error.what for number, error in self._errors.items()}

    def actions(self, episode: int) -> Array:
        """float32 (T, A), as recorded: a missing number is NaN."""
        return self._vectors(episode, self.columns.action)

    def proprioception(self, episode: int) -> Array:
        """float32 (T, P): the robot's own state; (T, 0) where there is none."""
        return self._vectors(episode, self.columns.state)

    @property
    def successes(self) -> int | None:
        """How many episodes succeeded; None where that is said of none."""
        known = [info.success for info in self.episodes if info.success is not None]
        return sum(known) if known else None

    def instructions(self, episode: int) -> list[str]:
        """The sentence that holds in each of the T frames."""
        info = self.info(episode)
        column = self._column(episode, self.columns.instruction)
        if column is None:
            return [info.instruction] * info.length
        with meta.reading(self.table_file(episode)):
            cells = column.to_pylist()
        said = (self.sentence(cell) for cell in cells)
        return [info.instruction if text is None else text for text in said]

    def sentence(self, cell: Any) -> str | None:
        """What a cell of the instruction's column says: a sentence, or the number of one; else None."""
        if isinstance(cell, list) and len(cell) == 1:
            (cell,) = cell
        if isinstance(cell, bytes):
            cell = cell.decode("utf-8", "replace")
        return (cell or None) if isinstance(cell, str) else self._sentences.get(meta.whole(cell))

    def segments(self, episode: int) -> list[Segment]:
        """Where a teacher is asked anew: at gripper events, at changes of motion and of instruction."""
        gripper = None if self.deltas is False else self.gripper_dimension
        sentences = self.instructions(episode)
        return split_segments(self.actions(episode), self.deltas, gripper, instructions=sentences)

    def images(self, episode: int, frames: Sequence[int] | None = None, camera: str | None = None) -> Array:
        """Decode frames.

        Args:
            episode: index of the episode.
            frames: frame numbers within the episode, in any order; None means all.
            camera: one of `cameras`; None means `camera`.

        Returns:
            uint8 (len(frames), H, W, 3) RGB.
        """
        length = self.info(episode).length
        wanted = list(range(length) if frames is None else frames)
        for frame in wanted:
            check_choice("frame", frame, range(length))
        name = camera or self.camera
        if not name:
            what = f"depth maps only ({', '.join(self.cameras)})" if self.cameras else "no pictures"
            remedy = "choose a dataset with a camera, or one of these with camera=..."
            raise KitError(f"{self.name} has {what}", remedy)
        check_choice("camera", name, self.cameras)
        if name in self.columns.kept:
            return self._stills(episode, name, wanted)
        path, offset = self._video_file(episode, name)
        return video.read_frames(path, [offset + frame for frame in wanted], self.fps)

    def states(self, episode: int) -> list[SceneState] | None:
        """The simulator's privileged state of each frame; None for a real robot's dataset."""
        known = [f"state.{field.name}" for field in fields(SceneState)]
        arrays = self._beside(episode, "state.", known[: len(STATE)], known[len(STATE) :])
        if not arrays:
            return None
        names = {name.removeprefix("state."): values for name, values in arrays.items()}
        return [
            SceneState(**{name: np.asarray(values[frame]) for name, values in names.items()})
            for frame in range(self.info(episode).length)
        ]

    def masks(self, episode: int) -> dict[str, Array] | None:
        """name -> bool (T, H, W), visible pixels of each thing; None for a real robot's dataset."""
        arrays = self._beside(episode, "mask_", ["mask_labels", "mask_names"])
        if not arrays:
            return None
        labels, names = arrays["mask_labels"], arrays["mask_names"]
        return {str(name): labels == label for label, name in enumerate(names, start=1)}

    def info(self, episode: int) -> EpisodeInfo:
        """The listing's entry; raises `KitError` for an unknown episode, or one that is left out."""
        if episode in self._errors:
            raise self._errors[episode]
        if episode not in self._infos:
            remedy = f"choose one of {len(self._rows)}, 0 to {max(self._rows, default=0)}"
            raise KitError(f"{self.name} has no episode {episode}", remedy)
        return self._infos[episode]

    def check(self) -> None:
        """Leave out the episodes that cannot be read: tables are read, videos counted, not decoded."""
        count_frames = lru_cache(maxsize=None)(video.count_frames)
        for episode in self.episodes:
            with self._or_left_out(episode.index):
                self.actions(episode.index)
                self.proprioception(episode.index)
                if self.camera in self.columns.kept:
                    _has_pictures(self.table_file(episode.index), self.camera)
                elif self.camera:
                    path, offset = self._video_file(episode.index, self.camera)
                    frames, needed = count_frames(path, self.fps), offset + episode.length
                    if frames < needed:
                        raise KitError(f"{path} holds {frames} of {needed} frames", AGAIN)

    def leave_out(self, episode: int, error: KitError) -> None:
        """Count an episode as unreadable; raises `error` where the dataset is strict, or no other is left."""
        if self.strict:
            raise error
        self._errors[episode] = error
        others = tuple(other for other in self.episodes if other.index != episode)
        if not others:
            number, first = next(iter(self._errors.items()))
            what = f"no episode of {self.path} can be read; episode {number}: {first.what}"
            raise KitError(what, first.remedy) from error
        self.episodes = others

    @contextmanager
    def _or_left_out(self, episode: int) -> Iterator[None]:
        """An episode about which a `KitError` is raised inside is left out."""
        try:
            yield
        except KitError as error:
            self.leave_out(episode, error)

    def warn(self) -> None:
        """Say how many episodes are left out, where that has grown since it was said."""
        if len(self._errors) > self._warned:
            warnings.warn(self._losses(), stacklevel=3)
            self._warned = len(self._errors)

    def __str__(self) -> str:
        """What was taken for what, a line each: for a person to see before anything is paid for."""
        kinds = {
            True: "displacements",
            False: "absolute positions",
            None: "positions or displacements: not told",
        }
        unit = " in metres and radians" if self.metric else ""
        sense = "open is not told" if self.gripper is None else f"open is {self.gripper:g}"
        place = "none is named, "
        if self.gripper_dimension is not None:
            place = f"number {self.gripper_dimension} of the action, "
        told = {info.instruction for info in self.episodes} - {""}
        frames, width = sum(info.length for info in self.episodes), self._widths[self.columns.action]
        action_names = " ".join(self.action_names) or "no names"
        state = f"{self.columns.state}: {' '.join(self.state_names) or 'no names'}"
        lines = {
            "episodes": f"{len(self.episodes)} of {frames} frames, {self.fps:g} a second",
            "left out": self._losses() if self._errors else "",
            "pictures": f"{self.camera or 'none'} (of {', '.join(self.cameras) or 'none'})",
            "action": f"{self.columns.action}, {width} numbers: {action_names}",
            "meaning": f"{kinds[self.deltas]}{unit} ({self._why['deltas']})",
            "gripper": f"{place}{sense} ({self._why['gripper']})",
            "state": state if self._widths[self.columns.state] else "none",
            "instruction": f"{len(told)} different, by {self.columns.instruction}" if told else "none",
        }
        head = f"{self.name}: LeRobot {self.version}, {self.robot_type}"
        return "\n".join([head, *(f"  {name:<12}{line}" for name, line in lines.items() if line)])

    def _fetch(self, name: str) -> None:
        """Download the chosen episodes; their pictures from the shown camera alone."""
        numbers = [info.index for info in self.episodes]
        files = [self.table_file(number) for number in numbers]
        if self.camera and self.camera not in self.columns.kept:
            files += [self._video_file(number, self.camera)[0] for number in numbers]
        wanted = [
            file.relative_to(self.path).as_posix() for file in dict.fromkeys(files) if not file.exists()
        ]
        if wanted:
            hub.download(name, hub.patterns_of(wanted), "dataset", self.path.name)  # the listing's revision

    def _losses(self) -> str:
        number, error = next(iter(self._errors.items()))
        count = f"{len(self._errors)} of {len(self._errors) + len(self.episodes)} episodes of {self.name}"
        first = f"episode {number}: {error.what}"
        return f"{count} cannot be read and are left out; {first} (strict refuses)"

    def _look(self) -> None:
        """Set the widths by the first episode that can be read; fill in sentences that the listing lacks."""
        for info in self.episodes:
            with self._or_left_out(info.index):
                actions, state = self.actions(info.index), self.proprioception(info.index)
                self._widths = {self.columns.state: state.shape[1], self.columns.action: actions.shape[1]}
                break
        if self._sentences or self.columns.instruction != "task_index":
            for info in self.episodes:
                if not info.instruction:
                    with self._or_left_out(info.index):
                        first = self.instructions(info.index)[0]
                        self._infos[info.index] = replace(info, instruction=first)
        self.episodes = tuple(self.info(info.index) for info in self.episodes)

    def _infer(self, deltas: bool | None, gripper: float | None) -> None:
        """Set what the numbers of action and state mean, by the first episode."""
        sample, features = self.episodes[0].index, self._info["features"]
        actions, state = self.actions(sample), self.proprioception(sample)
        width = actions.shape[1]
        names = [features.get(name, {}).get("names") for name in (self.columns.action, self.columns.state)]
        self.action_names = meaning.flat_names(names[0], width)
        self.state_names = meaning.flat_names(names[1], state.shape[1])
        own = self._info.get("refinevla")
        recorded = own.get("deltas") if isinstance(own, dict) else None
        by_kit = isinstance(recorded, bool)
        self.deltas, why = meaning.displacements(actions, state, self.action_names)
        if by_kit:
            self.deltas, why = recorded, "info.json says so"
        if deltas is not None:
            self.deltas, why = bool(deltas), "as told"
        tool = width == 7 and meaning.is_tool_motion(self.action_names)
        self.metric = bool(self.deltas and tool and (by_kit or meaning.is_plausible(actions)))
        dimension = meaning.gripper_dimension(self.action_names, width, bool(self.deltas))
        command = np.zeros(0, np.float32) if dimension is None else actions[:, dimension]
        self.gripper_dimension, self.gripper, sense = dimension, None, "not known"
        if gripper is not None:
            self.gripper, sense = meaning.told_open(command, gripper), "as told"
        elif by_kit:
            self.gripper, sense = 1.0, "this kit's own: 1 open, -1 closed"
            if self.robot_type == "google_robot":  # relative: `conventions.GOOGLE_ROBOT`
                self.gripper, sense = -1.0, "this kit's own: 1 closes, -1 opens"
        elif len(command):
            self.gripper, sense = meaning.opens_at(command, self.robot_type)
        self._why = {"deltas": why, "gripper": sense}

    def _vectors(self, episode: int, name: str) -> Array:
        """float32 (T, D) of a feature; D is 0 where the table has no state."""
        info, file = self.info(episode), self.table_file(episode)
        column = self._column(episode, name) if name else None
        values = np.zeros((info.length, 0), np.float32)
        if column is not None:
            remedy = "mend or leave out this episode: each row takes as many numbers"
            with as_kit_error(f"{file}: {name!r} of episode {episode}", remedy):
                values = meta.matrix(column)
        if name == self.columns.action and not values.shape[1]:
            what = f"has no column {name!r}" if column is None else f"has rows of no numbers in {name!r}"
            remedy = "name the column that holds the action: columns={'action': ...}"
            raise KitError(f"{file} {what}", remedy)
        count = values.shape[1]
        others = self._widths.get(name, count)
        if count != others:
            what = (
                f"episode {episode} of {self.path} has rows of {count} numbers in {name!r}, others {others}"
            )
            raise KitError(what, "leave it out, or split the dataset by robot")
        return values

    def _read_column(self, episode: int, name: str) -> pa.ChunkedArray | None:
        """A column of an episode's frames in their order; None where the table lacks it."""
        table, _ = self._table(self.table_file(episode))
        return table[name].take(self._places(episode)) if name in table.column_names else None

    def _read_places(self, episode: int) -> Array:
        """Row numbers of an episode's frames in its table, by frame."""
        path, length = self.table_file(episode), self.info(episode).length
        table, numbered = self._table(path)
        rows = np.arange(table.num_rows)  # in v2.x one file is one episode, and may call itself the first
        numbers = numbered.get("episode_index")
        if numbers is not None and (self.version == "v3.0" or len(set(numbers)) > 1):
            rows = np.flatnonzero(numbers == episode)
        elif numbers is None and self.version == "v3.0":
            what = f"{path} has no column 'episode_index'"
            raise KitError(what, "write the number of its episode into each row")
        if len(rows) != length:
            raise KitError(f"{path} holds {len(rows)} of the {length} frames of episode {episode}", AGAIN)
        frames = numbered.get("frame_index", np.arange(table.num_rows))[rows]
        known = np.isfinite(frames)
        if (np.diff(frames[known]) > 0).all():
            return rows
        if known.all():
            return rows[np.argsort(frames, kind="stable")]
        what = f"{path} does not tell the order of the frames of episode {episode}: 'frame_index' has gaps"
        raise KitError(what, "write the number of its frame into each row")

    def _read_table(self, path: Path) -> tuple[pa.Table, dict[str, Array]]:
        """The columns that are read of a table, and of those what says where an episode's frames are."""
        columns, numbers = self.columns, ("episode_index", "frame_index")
        wanted = {*numbers, columns.action, columns.state, columns.instruction}
        table = meta.read_parquet(path, sorted(wanted))
        with meta.reading(path):
            present = [name for name in numbers if name in table.column_names]
            return table, {name: table[name].to_numpy().astype(np.float64) for name in present}

    def _beside(
        self, episode: int, prefix: str, needed: Sequence[str], wanted: Sequence[str] = ()
    ) -> dict[str, Array]:
        """What the simulator knew, as `DatasetWriter` keeps it: arrays of this prefix, those `wanted` where
        they are there; {} where there are none.
        """
        path, length = sidecar_path(self.path, episode), self.info(episode).length
        if not path.is_file():
            return {}
        remedy = "the file is damaged or of an earlier kit: copy or record the dataset again"
        with meta.reading(path, remedy), np.load(path, allow_pickle=False) as archive:
            if not any(name.startswith(prefix) for name in archive.files):
                return {}
            present = [name for name in wanted if name in archive.files]
            arrays = {name: archive[name] for name in [*needed, *present]}
            for name, array in arrays.items():
                if name != "mask_names" and len(array) != length:
                    raise ValueError(f"{len(array)} of {name} for the {length} frames of episode {episode}")
            return arrays

    def _stills(self, episode: int, camera: str, frames: Sequence[int]) -> Array:
        """Pictures that lie in the table, or beside it."""
        path, rows = self.table_file(episode), self._places(episode)
        _has_pictures(path, camera)
        cells = self._pictures(path, (camera,))[camera]
        images: list[Array] = []
        for frame in frames or [0]:
            what = f"{path}: picture {frame} of episode {episode} in {camera!r} cannot be read"
            with as_kit_error(what, AGAIN):
                source = self._picture_source(episode, camera, cells[int(rows[frame])].as_py())
                with Image.open(source) as image:
                    images.append(np.asarray(image.convert("RGB")))
        if len({image.shape for image in images}) > 1:
            what = f"episode {episode} of {self.path} has pictures of different sizes in {camera!r}"
            raise KitError(what, "bring them to one size")
        return np.stack(images)[: len(frames)]

    def _picture_source(self, episode: int, camera: str, cell: Any) -> io.BytesIO | Path:
        """Where the picture of a table's cell lies: in it, where it says, or where LeRobot puts it."""
        if not isinstance(cell, dict):
            cell = {"bytes" if isinstance(cell, bytes) else "path": cell}
        if cell.get("bytes") is not None:
            return io.BytesIO(cell["bytes"])
        if not isinstance(cell.get("path"), str):
            raise ValueError("the cell holds neither a picture nor the path of one")
        named = self.path / cell["path"]
        usual = self.path / f"images/{camera}/episode_{episode:06d}" / named.name
        return usual if usual.is_file() and not named.is_file() else named

    def _video_file(self, episode: int, camera: str) -> tuple[Path, int]:
        """The mp4 of an episode and the number of its first frame in it."""
        start = self._rows[self.info(episode).index].get(f"videos/{camera}/from_timestamp")
        if start is None and self.version != "v3.0":
            start = 0.0  # one file is one episode
        if not isinstance(start, int | float) or not 0 <= start < 1e9:
            what = f"meta/episodes of {self.path} gives episode {episode} the from_timestamp {start!r}"
            remedy = "write there the second at which the episode starts in its video"
            raise KitError(f"{what} in {camera!r}", remedy)
        path = self._file("video_path", episode, f"videos/{camera}", video_key=camera)
        return path, round(start * self.fps)

    def table_file(self, episode: int) -> Path:
        """Where the numbers of an episode's frames are."""
        return self._file("data_path", self.info(episode).index, "data")

    def _file(self, template: str, episode: int, kind: str, **values: Any) -> Path:
        """A file of an episode, by one of info.json's templates."""
        row, size = self._rows[episode], meta.whole(self._info.get("chunks_size")) or 0
        chunk = episode // (size if size > 0 else 1000)
        places = {"chunk_index": chunk} if self.version != "v3.0" else {}
        for name in ("chunk_index", "file_index"):
            number = meta.whole(row.get(f"{kind}/{name}"))
            if number is not None:
                places[name] = number
        text = self._info.get(template)
        if not isinstance(text, str):
            text = meta.PATHS[self.version[:2]][template]
        what = f"{self.path}/meta does not tell what {text!r} needs for episode {episode}"
        remedy = "write the numbers into meta/episodes, or correct data_path and video_path in meta/info.json"
        with as_kit_error(what, remedy):  # a stranger's template may ask for anything
            return self.path / text.format(episode_index=episode, episode_chunk=chunk, **places, **values)


open_dataset = EpisodeDataset


def _has_pictures(file: Path, camera: str) -> None:
    """Raise `KitError` unless a table has the camera's pictures."""
    if camera not in meta.column_names(file):
        remedy = "choose another camera, or copy the dataset again, pictures included"
        raise KitError(f"{file} has no column {camera!r}", remedy)
