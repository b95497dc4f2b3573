"""Reads LeRobot datasets of all three layouts in use (v2.0, v2.1, v3.0), whoever made them.

v2.x keeps one parquet and one mp4 an episode and the listing in JSON lines; v3.0 keeps many episodes a file
and the listing in parquet, with the time at which an episode starts in its mp4. Pictures may also lie in the
tables, as PNG or JPEG; all are decoded when asked for. An episode that cannot be read is left out and
counted.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from refinevla_kit.episodes import columns as meaning
from refinevla_kit.episodes import meta, sidecar, video
from refinevla_kit.episodes.contract import EpisodeInfo
from refinevla_kit.episodes.damage import AGAIN, unreadable
from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import Array, SceneState

if TYPE_CHECKING:
    from refinevla_kit.episodes.segments import Segment

CHECK_UP_TO = 100  # episodes; larger datasets are not opened file by file in advance


def open_dataset(
    path: str | Path,
    deltas: bool | None = None,
    *,
    camera: str | None = None,
    episodes: int | str | Iterable[int] | None = None,
    columns: Mapping[str, str] | None = None,
    gripper: float | None = None,
    strict: bool = False,
) -> EpisodeDataset:
    """Open the LeRobot dataset in folder `path`; print it to see what was taken for what.

    Args:
        path: the folder that holds meta/, data/ and videos/.
        deltas: whether actions are displacements (of seven numbers: in metres and radians); None infers it
            where that is safe.
        camera: the camera to show, or a part of its name; None takes the first by name that is no depth map.
        episodes: which to read, [3, 5], range(10) or "0-9,12"; a number for as many from the first on; None
            reads all.
        columns: features by what they are, where their names do not tell:
            {"action": "command", "state": "sensed", "instruction": "prompt"}.
        gripper: the gripper command's value that means open, 1, 0 or -1; None infers it where that is safe.
        strict: refuse a dataset with an episode that cannot be read, instead of leaving it out.

    Raises:
        KitError: no dataset there, an unknown version, meta missing or damaged, or no episode that can be
            read. Of a dataset with more than 100 episodes files are checked when read (or by `check`).
    """
    dataset = EpisodeDataset(
        Path(path), deltas, camera=camera, episodes=episodes, columns=columns, gripper=gripper, strict=strict
    )
    if len(dataset.episodes) <= CHECK_UP_TO:
        dataset.check()
    dataset.warn()
    return dataset


class EpisodeDataset:
    """A LeRobot dataset; make it with `open_dataset`. Episodes are named by their `EpisodeInfo.index`.

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
        episodes: the meta.listing, one `EpisodeInfo` each.
        left_out: index of each episode that cannot be read -> why.
        overrides: what `open_dataset` was told of the numbers' meaning and the camera, as it was told.
    """

    def __init__(
        self,
        path: Path,
        deltas: bool | None = None,
        *,
        camera: str | None = None,
        episodes: int | str | Iterable[int] | None = None,
        columns: Mapping[str, str] | None = None,
        gripper: float | None = None,
        strict: bool = False,
    ) -> None:
        self.path, self.name, self.strict = path, path.resolve().name, strict
        if not path.is_dir():
            raise KitError(
                f"{path} is not a folder",
                "give the path of a LeRobot dataset (the folder that holds meta/, data/ and videos/)",
            )
        if not (path / "meta/info.json").is_file():
            raise KitError(
                f"{path} is not a LeRobot dataset (no meta/info.json)",
                "give the folder that holds meta/, data/ and videos/",
            )
        self._info = info = meta.read_json(path / "meta/info.json")
        self.version = str(info.get("codebase_version"))
        if self.version not in meta.VERSIONS:
            raise KitError(
                f"{path} has LeRobot version {self.version}",
                f"convert it to one of {', '.join(meta.VERSIONS)} with LeRobot's own scripts",
            )
        self.fps, self.robot_type = (
            meta.rate_of(info.get("fps"), path),
            str(info.get("robot_type") or "unknown"),
        )
        self.columns = meaning.find_columns(info.get("features"), columns, camera, str(path))
        self.cameras, self.camera = self.columns.cameras, self.columns.camera
        usual = meta.PATHS[self.version[:2]]
        named = info.get("data_path"), info.get("video_path")
        self._data_path, self._video_path = (
            given if isinstance(given, str) else own for given, own in zip(named, usual, strict=True)
        )
        self._chunk = max(0, meta.whole(info.get("chunks_size")) or 0) or 1000
        if deltas is not None and not (isinstance(deltas, bool | int | np.bool_) and deltas in (0, 1)):
            raise KitError(f"deltas={deltas!r}", "give True (displacements), False (positions) or None")
        self.overrides = {"deltas": deltas, "gripper": gripper, "camera": camera, "columns": columns}
        self.overrides = {name: value for name, value in self.overrides.items() if value is not None}
        self.left_out: dict[int, str] = {}
        self._left: dict[int, KitError] = {}
        self._warned = 0
        self._table = lru_cache(maxsize=8)(
            self._read_table
        )  # v3.0: the whole dataset is a few files; v2.x: neighbours are cheap to re-read
        self._pictures = lru_cache(maxsize=1)(meta.read_parquet)
        self._column = lru_cache(maxsize=8)(
            self._read_column
        )  # each is asked for again: for cutting, the digest, the question
        self._rows = meta.listing(path, self.version, info)
        self._sentences = meta.sentences(path, self.version)
        if isinstance(episodes, bool):
            raise KitError(
                f"episodes={episodes}", "give a number, a list ([3, 5]), a range or text ('0-9,12')"
            )
        if episodes is None or isinstance(episodes, int | np.integer):
            wanted = list(self._rows)[: None if episodes is None else max(0, int(episodes))]
        else:
            wanted = meaning.episode_numbers(episodes)
        self.episodes: tuple[EpisodeInfo, ...] = ()
        self._choose(wanted)
        self._widths: dict[str, int] = {}
        sample = self._sample()
        self._infer(sample, deltas, gripper)

    def actions(self, episode: int) -> Array:
        """float32 (T, A), as recorded: a missing number is NaN."""
        return self._vectors(episode, self.columns.action)

    def proprioception(self, episode: int) -> Array:
        """float32 (T, P): the robot's own state; (T, 0) where there is none."""
        return self._vectors(episode, self.columns.state)

    def instructions(self, episode: int) -> list[str]:
        """The sentence that holds in each of the T frames."""
        info = self.info(episode)
        column = self._column(episode, self.columns.instruction)
        if column is None:
            return [info.instruction] * info.length
        try:
            cells = column.to_pylist()
        except (ValueError, OverflowError, pa.ArrowException) as error:
            raise unreadable(self._table_file(episode), error) from error
        named: dict[Any, str] = {**self._sentences, None: info.instruction}
        return [
            cell if isinstance(cell, str) else named.get(meta.whole(cell), info.instruction) for cell in cells
        ]

    def segments(self, episode: int) -> list[Segment]:
        """Where a teacher is asked anew: at gripper events, at changes of motion and of instruction."""
        from refinevla_kit.episodes.segments import split_segments

        gripper = None if self.deltas is False else self.gripper_dimension
        return split_segments(
            self.actions(episode), self.deltas, gripper, instructions=self.instructions(episode)
        )

    def images(self, episode: int, frames: Sequence[int] | None = None, camera: str | None = None) -> Array:
        """Decode frames.

        Args:
            episode: index of the episode.
            frames: frame numbers within the episode, in any order; None means all.
            camera: one of `cameras`; None means `camera`.

        Returns:
            uint8 (len(frames), H, W, 3) RGB.
        """
        length = len(self.actions(episode)) if frames is None else self.info(episode).length
        wanted = list(range(length) if frames is None else frames)
        if bad := [frame for frame in wanted if not 0 <= frame < length]:
            raise KitError(
                f"episode {episode} of {self.name} has no frame {bad[0]}",
                f"choose frames from 0 to {length - 1}",
            )
        name = self._camera(camera)
        if name in self.columns.kept:
            return self._stills(episode, name, wanted)
        path, offset = self._video_file(episode, name)
        return video.read_frames(path, [offset + frame for frame in wanted], self.fps)

    def states(self, episode: int) -> list[SceneState] | None:
        """The simulator's privileged state of each frame; None for a real robot's dataset."""
        self.info(episode)
        states = sidecar.read_states(self.path, episode)
        if states is not None and len(states) != self.info(episode).length:
            raise KitError(
                f"{self.path}: {len(states)} states for the {self.info(episode).length} frames of "
                f"episode {episode}",
                AGAIN,
            )
        return states

    def masks(self, episode: int) -> dict[str, Array] | None:
        """name -> bool (T, H, W), visible pixels of each thing; None for a real robot's dataset."""
        length, masks = self.info(episode).length, sidecar.read_masks(self.path, episode)
        if any(len(mask) != length for mask in (masks or {}).values()):
            raise KitError(
                f"{self.path}: masks for other than the {length} frames of episode {episode}", AGAIN
            )
        return masks

    def info(self, episode: int) -> EpisodeInfo:
        """The listing's entry; raises `KitError` for an unknown episode, or one that is left out."""
        if episode in self._left:
            raise self._left[episode]
        if episode not in self._rows:
            raise KitError(
                f"{self.name} has no episode {episode}",
                f"choose one of {len(self._rows)}, 0 to {max(self._rows, default=0)}",
            )
        return meta.episode_info(self._rows[episode])

    def check(self) -> None:
        """Leave out the episodes that cannot be read: tables are read, videos counted, not decoded."""
        frames = lru_cache(maxsize=None)(lambda path: video.count_frames(path, self.fps))
        for episode in self.episodes:
            try:
                self.actions(episode.index)
                self.proprioception(episode.index)
                if self.camera in self.columns.kept:
                    path = self._table_file(episode.index)
                    self._kept_in(meta.read_schema(path).names, path, self.camera)
                elif self.camera:
                    path, offset = self._video_file(episode.index, self.camera)
                    if frames(path) < offset + episode.length:
                        raise KitError(
                            f"{path} holds {frames(path)} of {offset + episode.length} frames", AGAIN
                        )
            except KitError as error:
                self.leave_out(episode.index, error)

    def leave_out(self, episode: int, error: KitError) -> None:
        """Count an episode as unreadable; raises `error` where the dataset is strict, or no other is left."""
        if self.strict:
            raise error
        self._left[episode], self.left_out[episode] = error, error.what
        if not (others := tuple(other for other in self.episodes if other.index != episode)):
            number, first = next(iter(self._left.items()))
            raise KitError(
                f"no episode of {self.path} can be read; episode {number}: {first.what}", first.remedy
            ) from error
        self.episodes = others

    def warn(self) -> None:
        """Say how many episodes are left out, where that has grown since it was said."""
        if len(self.left_out) > self._warned:
            warnings.warn(self._losses(), stacklevel=2)
            self._warned = len(self.left_out)

    def __str__(self) -> str:
        """What was taken for what, a line each: for a person to see before anything is paid for."""
        kinds = {
            True: "displacements",
            False: "absolute positions",
            None: "positions or displacements: not known, not told",
        }
        unit = " in metres and radians" if self.metric else ""
        sense = "open is not known, not told" if self.gripper is None else f"open is {self.gripper:g}"
        place = "" if self.gripper_dimension is None else f"number {self.gripper_dimension} of the action, "
        told = {info.instruction for info in self.episodes} - {""}
        frames = sum(info.length for info in self.episodes)
        lines = {
            "episodes": f"{len(self.episodes)} of {frames} frames, {self.fps:g} a second",
            "left out": self._losses() if self.left_out else "",
            "pictures": f"{self.camera or 'none'} (of {', '.join(self.cameras) or 'none'})",
            "action": f"{self.columns.action}, {self._widths[self.columns.action]} numbers: "
            f"{' '.join(self.action_names) or 'no names'}",
            "meaning": f"{kinds[self.deltas]}{unit} ({self._why['deltas']})",
            "gripper": f"{place}{sense} ({self._why['gripper']})",
            "state": f"{self.columns.state}: {' '.join(self.state_names) or 'no names'}"
            if self._widths[self.columns.state]
            else "none",
            "instruction": f"{len(told)} different, by {self.columns.instruction}" if told else "none",
        }
        head = f"{self.name}: LeRobot {self.version}, {self.robot_type}"
        return "\n".join([head, *(f"  {name:<12}{line}" for name, line in lines.items() if line)])

    def _losses(self) -> str:
        first = next(iter(self.left_out))
        count = f"{len(self.left_out)} of {len(self.left_out) + len(self.episodes)} episodes of {self.name}"
        return (
            f"{count} cannot be read and are left out; episode {first}: {self.left_out[first]} (strict "
            "refuses)"
        )

    def _choose(self, wanted: Sequence[int]) -> None:
        """Set `episodes` to those of `wanted` whose rows say enough."""
        if strange := [number for number in wanted if number not in self._rows]:
            self.info(strange[0])
        if not wanted:
            raise KitError(f"no episode of {self.path} is chosen", "leave `episodes` away for all")
        chosen = {number: meta.episode_info(self._rows[number]) for number in wanted}
        self.episodes = tuple(chosen.values())
        for number, info in chosen.items():
            if info.length < 1:
                said = self._rows[number].get("length", "no length")
                self.leave_out(
                    number,
                    KitError(
                        f"the list of episodes in {self.path}/meta gives episode {number} the length "
                        f"{said!r}",
                        AGAIN,
                    ),
                )

    def _sample(self) -> int:
        """The first episode that can be read; sets the widths, and fills in sentences that the listing
        lacks.
        """
        for info in self.episodes:
            try:
                actions, state = self.actions(info.index), self.proprioception(info.index)
                self._widths = {self.columns.state: state.shape[1], self.columns.action: actions.shape[1]}
                break
            except KitError as error:
                self.leave_out(info.index, error)
        lacking = [info.index for info in self.episodes if not info.instruction]
        for number in lacking if self._sentences or self.columns.instruction != "task_index" else ():
            try:
                self._rows[number]["tasks"] = self.instructions(number)[:1]
            except KitError as error:
                self.leave_out(number, error)
        self.episodes = tuple(self.info(info.index) for info in self.episodes)
        return self.episodes[0].index

    def _infer(self, sample: int, deltas: bool | None, gripper: float | None) -> None:
        """Set what the numbers of action and state mean."""
        actions, state, features = self.actions(sample), self.proprioception(sample), self._info["features"]
        width = actions.shape[1]
        self.action_names = meaning.flat_names(features.get(self.columns.action, {}).get("names"), width)
        self.state_names = meaning.flat_names(
            features.get(self.columns.state, {}).get("names"), state.shape[1]
        )
        own = self._info.get("refinevla")
        recorded = own.get("deltas") if isinstance(own, dict) else None
        self.deltas, why = meaning.displacements(actions, state, self.action_names)
        if isinstance(recorded, bool):
            self.deltas, why = recorded, "info.json says so"
        if deltas is not None:
            self.deltas, why = bool(deltas), "as told"
        tool = width == 7 and meaning.is_tool_motion(self.action_names)
        self.metric = bool(
            self.deltas and tool and (isinstance(recorded, bool) or meaning.is_plausible(actions))
        )
        self.gripper_dimension = meaning.gripper_dimension(self.action_names, width, bool(self.deltas))
        command = (
            actions[:, self.gripper_dimension]
            if self.gripper_dimension is not None
            else np.zeros(0, np.float32)
        )
        self.gripper, sense = (
            meaning.opens_at(command, self.robot_type) if len(command) else (None, "no gripper is named")
        )
        if isinstance(recorded, bool):
            self.gripper, sense = 1.0, "this kit's own: 1 open, -1 closed"
        if gripper is not None:
            self.gripper, sense = meta.number_of(gripper, "gripper"), "as told"
            meaning.check_open(command, self.gripper)
        self._why = {"deltas": why, "gripper": sense}

    def _vectors(self, episode: int, name: str) -> Array:
        length = self.info(episode).length
        column = self._column(episode, name) if name else None
        if column is None and name == self.columns.action:
            what = f"{self._table_file(episode)} has no column {name!r}"
            raise KitError(what, "name the column that holds the action: columns={'action': ...}")
        try:
            values = np.zeros((length, 0), np.float32) if column is None else meta.matrix(column)
        except (ValueError, TypeError, OverflowError, pa.ArrowException) as error:
            what = f"{self._table_file(episode)}: {name!r} of episode {episode} {error}"
            raise KitError(what, "mend or leave out this episode: each row takes as many numbers") from error
        if name == self.columns.action and not values.shape[1]:
            what = f"{self._table_file(episode)}: {name!r} of episode {episode} has rows of no numbers"
            raise KitError(what, "name the column that holds the action: columns={'action': ...}")
        if (width := self._widths.get(name, values.shape[1])) != values.shape[1]:
            what = (
                f"episode {episode} of {self.path} has rows of {values.shape[1]} numbers in {name!r}, "
                f"others {width}"
            )
            raise KitError(what, "leave it out, or split the dataset by robot")
        return values

    def _read_column(self, episode: int, name: str) -> pa.ChunkedArray | None:
        """A column of an episode's frames in their order; None where the table lacks it."""
        table = self._table(self._table_file(episode))["table"]
        return table[name].take(self._places(episode)) if name in table.column_names else None

    def _places(self, episode: int) -> Array:
        """Row numbers of an episode's frames in its table, by frame."""
        path, length = self._table_file(episode), self.info(episode).length
        table = self._table(path)
        numbers, order = table.get("episode_index"), table.get("frame_index")
        if numbers is None:
            if self.version == "v3.0":
                raise KitError(
                    f"{path} has no column 'episode_index'", "write the number of its episode into each row"
                )
            rows = np.arange(table["table"].num_rows)  # one file is one episode
        else:
            rows = np.flatnonzero(numbers == episode)
        if len(rows) != length:
            raise KitError(f"{path} holds {len(rows)} of the {length} frames of episode {episode}", AGAIN)
        if order is None:
            return rows
        known = np.isfinite(order[rows])
        if (np.diff(order[rows][known]) > 0).all():
            return rows
        if not known.all():
            what = (
                f"{path} does not tell the order of the frames of episode {episode}: 'frame_index' has gaps"
            )
            raise KitError(what, "write the number of its frame into each row")
        return rows[np.argsort(order[rows], kind="stable")]

    def _read_table(self, path: Path) -> dict[str, Any]:
        """The columns that are read of a table, and by itself what says where an episode's frames are."""
        names = {
            "episode_index",
            "frame_index",
            self.columns.action,
            self.columns.state,
            self.columns.instruction,
        }
        table = meta.read_parquet(path, sorted(names))
        found: dict[str, Any] = {"table": table}
        for name in {"episode_index", "frame_index"} & set(table.column_names):
            try:
                found[name] = table[name].to_numpy().astype(np.float64)
            except (ValueError, TypeError, pa.ArrowException) as error:
                raise KitError(f"{path}: column {name!r} holds no numbers ({error})", AGAIN) from error
        return found

    def _camera(self, camera: str | None) -> str:
        name = camera or self.camera
        if not name:
            what = (
                f"{self.name} has no pictures"
                if not self.cameras
                else f"{self.name} has depth maps only ({', '.join(self.cameras)})"
            )
            raise KitError(what, "choose a dataset with a camera, or one of these with camera=...")
        if name not in self.cameras:
            raise KitError(f"{self.name} has no camera {name!r}", f"choose one of {', '.join(self.cameras)}")
        return name

    def _kept_in(self, names: Sequence[str], path: Path, camera: str) -> None:
        """Raise `KitError` unless a table with columns of these names has the camera's pictures."""
        if camera not in names:
            raise KitError(
                f"{path} has no column {camera!r}",
                "choose another camera, or copy the dataset again, pictures included",
            )

    def _stills(self, episode: int, camera: str, frames: Sequence[int]) -> Array:
        from PIL import Image, UnidentifiedImageError

        path, rows = self._table_file(episode), self._places(episode)
        table = self._pictures(path, (camera,))
        self._kept_in(table.column_names, path, camera)
        column = table[camera]
        images: list[Array] = []
        for frame in frames or [0]:
            cell = column[int(rows[frame])].as_py()
            if isinstance(cell, bytes | str):
                cell = {"bytes" if isinstance(cell, bytes) else "path": cell}
            content, name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (None, None)
            try:
                if content is None and not name:
                    raise ValueError("the cell holds no picture")
                source = (
                    self._still_file(episode, camera, str(name)) if content is None else io.BytesIO(content)
                )
                with Image.open(source) as image:
                    images.append(np.asarray(image.convert("RGB")))
            except Exception as error:  # Pillow's decoders raise anything
                why = "it is no picture" if isinstance(error, UnidentifiedImageError) else error
                what = f"{path}: picture {frame} of episode {episode} in {camera!r} cannot be read ({why})"
                raise KitError(what, AGAIN) from error
        if len({image.shape for image in images}) > 1:
            raise KitError(
                f"episode {episode} of {self.path} has pictures of different sizes in {camera!r}",
                "bring them to one size",
            )
        return np.stack(images)[: len(frames)]

    def _still_file(self, episode: int, camera: str, name: str) -> Path:
        """A picture beside the tables: where its cell says, or where LeRobot puts one of this name."""
        usual = self.path / f"images/{camera}/episode_{episode:06d}" / Path(name).name
        return usual if usual.is_file() and not (self.path / name).is_file() else self.path / name

    def _video_file(self, episode: int, camera: str) -> tuple[Path, int]:
        """The mp4 of an episode and the number of its first frame in it."""
        row = self._rows[self.info(episode).index]
        start = row.get(f"videos/{camera}/from_timestamp", 0.0)
        if not isinstance(start, int | float) or not 0 <= start < 1e9:
            what = (
                f"meta/episodes of {self.path} gives episode {episode} the from_timestamp {start!r} in "
                f"{camera!r}"
            )
            raise KitError(what, "write there the second at which the episode starts in its video")
        return self._format(self._video_path, episode, f"videos/{camera}", video_key=camera), round(
            start * self.fps
        )

    def _table_file(self, episode: int) -> Path:
        return self._format(self._data_path, self.info(episode).index, "data")

    def _format(self, template: str, episode: int, kind: str, **values: Any) -> Path:
        row, chunk = self._rows[episode], episode // self._chunk
        place = {"chunk_index": chunk} if self.version != "v3.0" else {}
        for name in ("chunk_index", "file_index"):
            if (given := row.get(f"{kind}/{name}")) is not None:
                if (number := meta.whole(given)) is None:
                    raise KitError(
                        f"meta/episodes of {self.path} gives episode {episode} the {kind}/{name} {given!r}",
                        "write there a number",
                    )
                place[name] = number
        try:
            return self.path / template.format(episode_index=episode, episode_chunk=chunk, **place, **values)
        except (
            KeyError,
            IndexError,
            ValueError,
            AttributeError,
            TypeError,
            OverflowError,
            MemoryError,
        ) as error:
            what = (
                f"{self.path}: the path {template!r} in info.json needs {error}, which meta does not "
                f"give for episode {episode}"
            )
            raise KitError(what, "correct data_path and video_path in meta/info.json") from error
