"""The annotation run: asks a teacher about every step, segment or trajectory of a dataset and stores the answers as one parquet file beside it.

Each answer is appended to `<output>.part` as a JSON line and fsynced before the next question, so an interrupted run continues where it stopped;
at the end the lines become the parquet file by a rename. A half-written last line (power cut) is dropped at the next start.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from refinevla_kit.errors import KitError
from refinevla_kit.files import replacing, sha256
from refinevla_kit.teacher.schema import PARTS, Rationale, Refusal, Request, Teacher

if TYPE_CHECKING:
    from refinevla_kit.episodes import EpisodeDataset

GRANULARITIES = ("step", "segment", "trajectory")
GRIPPER = 6  # dimension of the gripper in this kit's own displacement actions

SCHEMA = pa.schema([
    *((name, pa.int32()) for name in ("episode", "start", "end")), *((part, pa.string()) for part in PARTS),
    *((name, pa.string()) for name in ("refusal_kind", "refusal_reason", "raw", "teacher", "version", "prompt_hash", "dataset_hash")),
    ("input_tokens", pa.int32()), ("output_tokens", pa.int32()), ("cost", pa.float64()),
])  # fmt: skip


@dataclass(frozen=True)
class StoredRationale:
    """One answer as stored: frames [start, end) of `episode`; exactly one of `rationale` and `refusal` is set. `cost` is in the user's currency."""

    episode: int
    start: int
    end: int
    rationale: Rationale | None
    refusal: Refusal | None
    raw: str
    teacher: str
    version: str
    prompt_hash: str
    input_tokens: int
    output_tokens: int
    cost: float


def ranges(actions: Any, deltas: bool, granularity: str) -> list[tuple[int, int]]:
    """Frame ranges [start, end) of one episode with `actions` (T, A) that a teacher is asked about. Raises `KitError` for an unknown granularity."""
    from refinevla_kit.episodes.segments import split_segments

    if granularity not in GRANULARITIES:
        raise KitError(f"unknown granularity {granularity!r}", f"choose one of {', '.join(GRANULARITIES)}")
    if granularity == "step":
        return [(frame, frame + 1) for frame in range(len(actions))]
    if granularity == "trajectory":
        return [(0, len(actions))]
    return [(segment.start, segment.end) for segment in split_segments(actions, deltas, GRIPPER if deltas else None)]


def keyframe_indices(start: int, end: int, keyframes: int) -> list[int]:
    """At most `keyframes` frame numbers of [start, end): the first always, the others evenly up to the last."""
    count = max(1, min(keyframes, end - start))
    return [start + round(i * (end - 1 - start) / max(1, count - 1)) for i in range(count)]


def requests(dataset: EpisodeDataset, granularity: str = "segment", keyframes: int = 3, skip: frozenset[tuple[int, int, int]] = frozenset(),
             ) -> Iterator[Request]:
    """The questions about `dataset`, in order; (episode, start, end) in `skip` are left out, and episodes without questions are not decoded."""
    for info in dataset.episodes:
        actions = dataset.actions(info.index)
        wanted = [span for span in ranges(actions, dataset.deltas, granularity) if (info.index, *span) not in skip]
        if not wanted:
            continue
        frames = sorted({frame for span in wanted for frame in keyframe_indices(*span, keyframes)})
        images = dict(zip(frames, dataset.images(info.index, frames), strict=True))
        states, masks = dataset.states(info.index), dataset.masks(info.index)
        for start, end in wanted:
            indices = keyframe_indices(start, end, keyframes)
            yield Request(
                dataset.name, info.index, start, end, info.instruction, _stack([images[i] for i in indices]), indices, actions[start:end],
                states[start] if states else None, {name: mask[start] for name, mask in masks.items()} if masks else None,
            )  # fmt: skip


def annotate_dataset(dataset: EpisodeDataset | str | Path, teacher: Teacher, granularity: str = "segment", keyframes: int = 3, progress: bool = True,
                     output: str | Path | None = None) -> Path:
    """Annotate a whole dataset; call it again to continue an interrupted run or to annotate episodes added since.

    Args:
        dataset: an opened dataset or its folder. teacher: anything with `annotate`.
        granularity: one rationale a "step", a "segment" (split at gripper events and changes of motion) or a "trajectory".
        keyframes: pictures a request. progress: show a bar.
        output: the parquet file; None: `<dataset>/rationales/<teacher>-<granularity>.parquet`.
    Returns: path of the parquet file.
    Raises: `KitError` when an unfinished run of another teacher version, prompt or dataset lies at `output`.
    """
    from refinevla_kit.episodes import open_dataset

    opened = open_dataset(dataset) if isinstance(dataset, str | Path) else dataset
    target = Path(output) if output else Path(opened.path) / "rationales" / f"{teacher.name}-{granularity}.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    identity = {"teacher": teacher.name, "version": teacher.version, "prompt_hash": teacher.prompt_hash, "dataset_hash": _fingerprint(opened)}
    asked = {(info.index, *span) for info in opened.episodes for span in ranges(opened.actions(info.index), opened.deltas, granularity)}
    rows = [row for row in _finished_rows(target, identity) + _part_rows(part, identity) if _span(row) in asked]
    done, total = frozenset(_span(row) for row in rows), len(asked)
    with part.open("a", encoding="utf-8") as lines, tqdm(total=total, initial=len(done), desc="rationales", unit="", disable=not progress) as bar:
        for request in requests(opened, granularity, keyframes, done):
            rows.append(_ask(teacher, request) | identity)
            _append(lines, rows[-1])
            bar.update()
    with replacing(target) as temporary:
        pq.write_table(pa.Table.from_pylist(sorted(rows, key=_key), SCHEMA), temporary)
    part.unlink()
    return target


def load_rationales(path: str | Path) -> list[StoredRationale]:
    """Stored answers, sorted by episode and start. Raises `KitError` for a file that is missing or of another kind."""
    try:
        rows = pq.read_table(path).to_pylist()
        return [_stored(row) for row in sorted(rows, key=_key)]
    except (OSError, pa.ArrowException, KeyError) as error:
        remedy = "give the parquet file that notebook 01 wrote, or annotate the dataset"
        raise KitError(f"no rationales can be read from {path} ({error})", remedy) from error


def lookup(rationales: Sequence[StoredRationale], episode: int, frame: int) -> StoredRationale | None:
    """The answer (as `load_rationales` sorts them) whose range holds `frame`, None where there is none."""
    place = bisect_right(rationales, (episode, frame), key=lambda stored: (stored.episode, stored.start)) - 1
    if place < 0 or rationales[place].episode != episode or frame >= rationales[place].end:
        return None
    return rationales[place]


def _stack(images: list[Any]) -> Any:
    import numpy as np

    return np.stack(images)


def _key(row: dict[str, Any]) -> tuple[int, int]:
    return row["episode"], row["start"]


def _span(row: dict[str, Any]) -> tuple[int, int, int]:
    return row["episode"], row["start"], row["end"]


def _fingerprint(dataset: EpisodeDataset) -> str:
    """Of actions and privileged state: answers about other data must not be taken for answers about these."""
    parts = [Path(dataset.path) / name for name in ("data", "simulator")]
    return hashlib.sha256("".join(sha256(part) for part in parts if part.exists()).encode()).hexdigest()[:16]


def _ask(teacher: Teacher, request: Request) -> dict[str, Any]:
    reply = teacher.annotate(request)
    row: dict[str, Any] = {"episode": request.episode, "start": request.start, "end": request.end, "raw": reply.raw,
                           "input_tokens": reply.input_tokens, "output_tokens": reply.output_tokens, "cost": 0.0}
    if isinstance(reply.result, Refusal):
        return row | {"refusal_kind": reply.result.kind, "refusal_reason": reply.result.reason}
    return row | {name: getattr(reply.result, name) for name in PARTS}


def _append(lines: IO[str], row: dict[str, Any]) -> None:
    try:
        lines.write(json.dumps(row, ensure_ascii=False) + "\n")
        lines.flush()
        os.fsync(lines.fileno())
    except OSError as error:
        raise KitError(f"cannot write {lines.name} ({error.strerror})", "free space and run again: finished answers are kept") from error


def _finished_rows(target: Path, identity: dict[str, str]) -> list[dict[str, Any]]:
    """Rows of an earlier complete run by the same teacher; another teacher version's file is annotated anew."""
    if not target.exists():
        return []
    load_rationales(target)  # says so when the file is damaged
    return [row for row in pq.read_table(target).to_pylist() if row.items() >= identity.items()]


def _part_rows(part: Path, identity: dict[str, str]) -> list[dict[str, Any]]:
    """Rows of an interrupted run; a torn last line is cut off the file."""
    if not part.exists():
        return []
    content = part.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(part, len(whole))
    rows = [json.loads(line) for line in whole.splitlines()]
    if any(not row.items() >= identity.items() for row in rows):
        what = f"{part} holds an unfinished run of another teacher version or seed, or about another dataset"
        raise KitError(what, "finish that one, or remove the file")
    return rows


def _stored(row: dict[str, Any]) -> StoredRationale:
    refused = row["refusal_kind"] is not None
    return StoredRationale(
        row["episode"], row["start"], row["end"], None if refused else Rationale(*(row[part] for part in PARTS)),
        Refusal(row["refusal_kind"], row["refusal_reason"]) if refused else None,
        *(row[name] for name in ("raw", "teacher", "version", "prompt_hash", "input_tokens", "output_tokens", "cost")))  # fmt: skip
