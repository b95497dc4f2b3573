"""Training examples: one frame, the action taken on it, and the rationale of the segment it lies in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refinevla_kit.episodes import open_dataset
from refinevla_kit.errors import KitError
from refinevla_kit.policies.contract import Array
from refinevla_kit.teacher.answers import StoredRationale, load_rationales, lookup
from refinevla_kit.teacher.reviews import SUFFIX, load_decisions, reviewed

REVIEWED = "reviewed"


@dataclass(frozen=True)
class Examples:
    """N frames in memory.

    Attributes:
        images: uint8 (N, H, W, 3). actions: float32 (N, 7), as recorded (units of `Simulator.step`); NaN where a frame is only spoken
            about. episodes: int64 (N,).
        instructions, rationales: one text a frame; a rationale is "" where none was written, or none that is trained on.
        proprioception: float32 (N, P), as recorded; None where nothing reads it.
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

    def split(self, every: int = 10) -> tuple[Array, Array]:
        """(training, validation) frame numbers, int64; every `every`-th episode is held out when there are that many."""
        held_out = self.episodes % every == every - 1
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def join(parts: Sequence[Examples]) -> Examples:
    """All frames of several, episodes numbered on."""
    offsets = np.cumsum([0, *(int(part.episodes.max()) + 1 for part in parts[:-1])])
    own = [part.proprioception for part in parts if part.proprioception is not None]
    return Examples(
        np.concatenate([part.images for part in parts]), np.concatenate([part.actions for part in parts]),
        np.concatenate([part.episodes + offset for part, offset in zip(parts, offsets, strict=True)]),
        tuple(text for part in parts for text in part.instructions), tuple(text for part in parts for text in part.rationales),
        "; ".join(part.about for part in parts if part.about), np.concatenate(own) if len(own) == len(parts) else None,
    )  # fmt: skip


def load_examples(
    dataset: str | Path, rationales: str | Path | None = None, elsewhere: str | Path | None = None, strict: bool = False
) -> Examples:
    """Read a LeRobot dataset and, when given, the rationales written about it.

    Args:
        rationales: a table, to train on the teacher's text as it is; "reviewed", for the dataset's table (`find_rationales` says which) with the
            decisions beside it; or such a file of decisions. Reviewed means accepted or edited by a person, nothing else.
            Rationales whose teacher finds that the instruction does not match are never trained on.
        elsewhere: see `find_rationales`.
        strict: refuse rationales that leave an episode without any. Otherwise such episodes train the action only, and `about` counts them.

    Raises:
        KitError: the dataset's actions are not the seven the policies have, the rationales are of other episodes, or none is reviewed.
    """
    source = open_dataset(dataset)
    if rationales == REVIEWED:
        rationales = find_rationales(dataset, elsewhere, reviews=True)
    stored, about = _read(Path(rationales)) if rationales else ([], "")
    source.check()
    known = {item.index for item in source.episodes}
    if strange := {r.episode for r in stored} - known - source.left_out.keys():
        raise KitError(f"{rationales} has rationales of episode {min(strange)}, {dataset} has none such", "annotate this dataset anew (notebook 01)")
    images, actions, episodes, instructions, texts, own = [], [], [], [], [], []
    for item in source.episodes:
        action = source.actions(item.index)
        if action.shape[1] != 7:
            remedy = "the compact VLA has 7 (displacement, rotation, gripper): train on a WidowX dataset"
            raise KitError(f"{dataset} has {action.shape[1]}-dimensional actions", remedy)
        try:
            images.append(source.images(item.index))
        except KitError as error:
            source.leave_out(item.index, error)
            continue
        actions.append(action)
        own.append(source.proprioception(item.index))
        episodes.append(np.full(len(action), item.index))
        instructions += source.instructions(item.index)
        found = [lookup(stored, item.index, frame) for frame in range(len(action))]
        texts += [stored_one.rationale.text() if stored_one and stored_one.rationale else "" for stored_one in found]
    if rationales:
        told = {episode for episode, text in zip(np.concatenate(episodes).tolist(), texts, strict=True) if text}
        if silent := sorted(known - told - source.left_out.keys()):
            what = f"{len(silent)} of {len(known)} episodes without any"
            if strict:
                remedy = "annotate the dataset again (it goes on where it stopped), or leave `strict` off to train these on actions alone"
                raise KitError(f"{about}: {what}, the first is episode {silent[0]}", remedy)
            about += f"; {what}"
    if source.left_out:
        about = "; ".join(filter(None, [about, f"{len(source.left_out)} episodes cannot be read"]))
    shown, acted, numbers = np.concatenate(images), np.concatenate(actions), np.concatenate(episodes)
    return Examples(shown, acted, numbers, tuple(instructions), tuple(texts), about, np.concatenate(own))


def find_rationales(dataset: str | Path, elsewhere: str | Path | None = None, reviews: bool = False) -> Path:
    """The rationale table of a dataset: one named after it in the folder `elsewhere`, else the one beside it; the first by name of several.

    Args:
        reviews: instead of the table, the decisions about it; tables that nobody reviewed do not count.
    Raises:
        KitError: there is none.
    """
    suffix = SUFFIX if reviews else ".parquet"
    files = sorted(Path(elsewhere).glob(f"{Path(dataset).resolve().name}-*{suffix}")) if elsewhere else []
    files = files or sorted((Path(dataset) / "rationales").glob(f"*{suffix}"))
    if not files:
        what, remedy = ("reviewed rationales", "review some in notebook 01") if reviews else ("rationales", "annotate it with notebook 01")
        raise KitError(f"{dataset} has no {what} beside it", f"{remedy}, or give `rationales` a parquet file")
    return files[0]


def _read(path: Path) -> tuple[list[StoredRationale], str]:
    """The rationales to train on, from a table or from the decisions about one, and a line about them."""
    decided = path.name.endswith(SUFFIX)
    table = path.with_name(path.name.removesuffix(SUFFIX) + ".parquet") if decided else path
    rows, counts = load_rationales(table), dict[str, int]()
    if decided:
        rows, counts = reviewed(rows, load_decisions(path))
        if not rows:
            raise KitError(f"no rationale of {table} was accepted", "review some in notebook 01, or give `rationales` the table")
    trained = [row for row in rows if row.rationale and row.rationale.instruction_matches]
    counts |= {"left out because the instruction does not match": sum(row.rationale is not None for row in rows) - len(trained)}
    return trained, "; ".join([f"{len(trained)} rationales of {table}", *(f"{count} {what}" for what, count in counts.items() if count)])
