"""Training examples: one frame, the action taken on it, and the rationale of the segment it lies in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refinevla_kit.episodes import open_dataset
from refinevla_kit.errors import KitError
from refinevla_kit.policies.contract import Array
from refinevla_kit.teacher.annotation import load_rationales, lookup


@dataclass(frozen=True)
class Examples:
    """N frames in memory.

    Attributes:
        images: uint8 (N, H, W, 3). actions: float32 (N, 7), as recorded (units of `Simulator.step`). episodes: int64 (N,).
        instructions, rationales: one text a frame; a rationale is "" where none was written.
    """

    images: Array
    actions: Array
    episodes: Array
    instructions: tuple[str, ...]
    rationales: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.actions)

    def split(self, every: int = 10) -> tuple[Array, Array]:
        """(training, validation) frame numbers, int64; every `every`-th episode is held out when there are that many."""
        held_out = self.episodes % every == every - 1
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def load_examples(dataset: str | Path, rationales: str | Path | None = None) -> Examples:
    """Read a LeRobot dataset and, when given, a rationale table made of it.

    Raises:
        KitError: the dataset's actions are not the seven the policies have, or the rationales are of other episodes.
    """
    source = open_dataset(dataset)
    stored = load_rationales(rationales) if rationales else []
    known = {item.index for item in source.episodes}
    if strange := {r.episode for r in stored} - known:
        raise KitError(f"{rationales} has rationales of episode {min(strange)}, {dataset} has none such", "annotate this dataset anew (notebook 01)")
    images, actions, episodes, instructions, texts = [], [], [], [], []
    for item in source.episodes:
        action = source.actions(item.index)
        if action.shape[1] != 7:
            remedy = "the compact VLA has 7 (displacement, rotation, gripper): train on a WidowX dataset"
            raise KitError(f"{dataset} has {action.shape[1]}-dimensional actions", remedy)
        images.append(source.images(item.index))
        actions.append(action)
        episodes.append(np.full(len(action), item.index))
        instructions += [item.instruction] * len(action)
        found = [lookup(stored, item.index, frame) for frame in range(len(action))]
        texts += [stored_one.rationale.text() if stored_one and stored_one.rationale else "" for stored_one in found]
    return Examples(np.concatenate(images), np.concatenate(actions), np.concatenate(episodes), tuple(instructions), tuple(texts))


def find_rationales(dataset: str | Path, elsewhere: str | Path | None = None) -> Path:
    """The rationale table of a dataset: one named after it in the folder `elsewhere`, else the one beside it; the first by name of several.

    Raises:
        KitError: there is none.
    """
    tables = sorted(Path(elsewhere).glob(f"{Path(dataset).resolve().name}-*.parquet")) if elsewhere else []
    tables = tables or sorted((Path(dataset) / "rationales").glob("*.parquet"))
    if not tables:
        raise KitError(f"{dataset} has no rationales beside it", "annotate it with notebook 01, or give `rationales` a parquet file")
    return tables[0]
