"""What a stranger's dataset lacks is known before anything is paid, and what can be done without is done
without.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refinevla_kit.episodes import DatasetWriter, Episode, open_dataset
from refinevla_kit.episodes.contract import ACTION_NAMES, STATE_NAMES
from refinevla_kit.errors import KitError
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.teacher.audit import audit_dataset
from refinevla_kit.training import loop
from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.examples import Examples, find_rationales, load_examples, trainable
from refinevla_kit.vlas.compact import CompactConfig, build
from refinevla_kit.vlas.compact_parts import train_vocabulary
from refinevla_kit.vlas.contract import VLA
from refinevla_kit.vlas.random_start import random_openvla, small_openvla
from refinevla_kit.vlas.spherical_grid import SphericalGrid
from tests.episodes.strangers import write_stranger


def written(
    path: Path, actions: int = 7, state: int = 15, scale: float = 0.02, names: tuple[str, ...] | None = None
) -> Path:
    """Two short episodes of so many numbers."""
    rng = np.random.default_rng(0)
    state_names = names or (STATE_NAMES if state == 15 else tuple(f"joint{i}" for i in range(state)))
    action_names = ACTION_NAMES if actions == 7 else tuple(f"a{i}" for i in range(actions))
    with DatasetWriter(path, 5, "somebody's", action_names=action_names, state_names=state_names) as writer:
        for _ in range(2):
            acted = rng.uniform(-scale, scale, (4, actions)).astype(np.float32)
            acted[:, 3:5] = 0
            own = rng.normal(size=(4, state)).astype(np.float32)
            writer.add(
                Episode(
                    rng.integers(0, 256, (4, 48, 64, 3), dtype=np.uint8), acted, own, "put carrot on plate"
                )
            )
    return path


@pytest.mark.parametrize(
    ("state", "names", "says"),
    [
        (7, None, "the robot's own state is not read: 7 numbers, the kit's own has 15"),
        (
            15,
            tuple(f"motor{i}" for i in range(15)),
            "is not read: its columns are motor0, motor1, motor2 ..., the kit's own x, y, z ...",
        ),
        (15, None, ""),
    ],
)
def test_only_the_kits_own_state_is_read(
    tmp_path: Path, state: int, names: tuple[str, ...] | None, says: str
) -> None:
    dataset = written(tmp_path / "data", state=state, names=names)
    examples = load_examples(dataset)
    assert examples.stateful == (not says) and says in examples.about
    assert examples.proprioception is not None and len(examples.proprioception) == len(examples) == 8
    assert trainable(dataset) is None


def test_what_cannot_be_trained_is_said_without_looking_at_a_picture(tmp_path: Path) -> None:
    opened = open_dataset(written(tmp_path / "arms", actions=14))
    absolute = open_dataset(opened.path, deltas=False)
    for video in opened.path.rglob("*.mp4"):
        video.unlink()
    assert "has 14-dimensional actions -> the compact VLA has 7" in str(trainable(opened))
    assert "has 14-dimensional" in str(trainable(absolute)), "no word of displacements: they would not help"
    assert "mp4" in str(trainable(opened.path)), "what does not open any more is a reason too"


def test_actions_that_no_base_can_say_are_found_out(tmp_path: Path) -> None:
    assert "do not fit the checkpoint's action tokens (x: " in str(
        trainable(written(tmp_path / "data", scale=1.0))
    )


def test_another_base_is_asked_for_its_words(tmp_path: Path) -> None:
    dataset = written(tmp_path / "data")
    grid = SphericalGrid.fit(load_examples(dataset).actions)
    words = train_vocabulary(["put carrot on plate"], action_words=grid.words)
    base = build(
        CompactConfig(layers=1, hidden=32, heads=1, feedforward=32, channels=8), words, grid, 0
    ).save(tmp_path / "base")
    assert trainable(dataset, base) is None
    train_vocabulary(["put carrot on plate"]).save_pretrained(base)
    assert "the tokenizer has no <act" in str(trainable(dataset, base))
    (base / "dataset_statistics.json").write_text("{}")
    assert "is no base to train from" in str(trainable(dataset, base))


def test_the_demonstrations_that_are_shipped_can_be_trained_on() -> None:
    demo = open_dataset(REPOSITORY / "data" / "demo")
    assert trainable(demo.path) is None
    demo.cameras = ()
    assert trainable(demo) == "demo has no pictures -> record at least one episode, with a camera"


def test_frames_whose_action_is_no_number_are_counted(tmp_path: Path) -> None:
    path = write_stranger(
        tmp_path / "d", column=lambda columns, _: columns | {"action": pa.array(gaps(columns["action"]))}
    )
    assert "4 frames have no action (what is no number) and teach none" in load_examples(path).about


def gaps(actions: pa.Array) -> list[list[float]]:
    rows = actions.to_pylist()
    return [[float("nan"), *row[1:]] if number < 2 else row for number, row in enumerate(rows)]


def test_a_plan_stays_in_its_episode_whatever_order_episodes_are_in(tmp_path: Path) -> None:
    examples = load_examples(written(tmp_path / "data"))
    rows = np.arange(len(examples))
    plans = examples.plans(rows, 3)
    for first in (0, 4):  # two episodes of four frames
        for row in range(first, first + 4):
            ahead = [min(row + step, first + 3) for step in range(3)]
            np.testing.assert_array_equal(plans[row], examples.actions[ahead])
    turned = replace(examples, episodes=1 - examples.episodes)
    np.testing.assert_array_equal(turned.plans(rows, 3), plans)


def test_a_gripper_that_stays_holds_what_it_was_told_last(tmp_path: Path) -> None:
    examples = load_examples(written(tmp_path / "data"))
    motion = np.array([0, -1, 0.1, 0, 0, 0.2, 0.9, 0], np.float32)  # two episodes of four frames
    moved = replace(examples, actions=np.column_stack([examples.actions[:, :6], motion]))
    np.testing.assert_array_equal(moved.holding().actions[:, 6], [1, -1, -1, -1, 1, 1, 1, 1])
    np.testing.assert_array_equal(moved.holding().actions[:, :6], moved.actions[:, :6])


@pytest.mark.parametrize(("robot", "words"), [("google_robot", {0, 1}), ("widowx", {0, 0.5, 1})])
def test_a_released_model_is_taught_open_or_closed_where_the_data_have_motions(
    robot: str, words: set[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: list[Examples] = []

    def stop(vla: VLA, examples: Examples, *_: Any) -> None:
        taught.append(examples)
        raise KitError("enough", "")

    examples = load_examples(written(tmp_path / "data"))
    motion = np.array([0, -1, 0, 0, 0, 1, 0, 0], np.float32)
    moved = replace(examples, actions=np.column_stack([examples.actions[:, :6], motion]))
    vla = random_openvla(small_openvla(32, 2, 56, 32), moved.instructions, moved.actions)
    monkeypatch.setattr(loop, "identity_of", stop)
    config = TrainingConfig(1, lambda_reasoning=0)
    with pytest.raises(KitError, match="enough"):
        loop.fine_tune(vla.fitted(moved.actions, False, robot), moved, config, tmp_path, "one", False)
    assert set(vla.own_actions(taught[0].actions)[:, 6]) == words


DEMO = REPOSITORY / "data" / "demo"


def test_rationales_of_another_recording_are_said_to_be(tmp_path: Path) -> None:
    table = pq.read_table(find_rationales(DEMO))
    rows, path = table.to_pylist(), tmp_path / "rationales.parquet"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert any(load_examples(DEMO, find_rationales(DEMO)).rationales)
    digests = {row["episode"]: row["dataset_hash"] for row in rows}
    for row in rows:  # as if the episodes had been put into another order since
        row["dataset_hash"] = digests[(row["episode"] + 1) % len(digests)]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    with pytest.warns(UserWarning, match="was written about another recording than"):
        load_examples(DEMO, path)
    rows[0]["end"] = 10_000
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    with pytest.raises(KitError, match="has no frames for -> annotate this dataset anew"):
        load_examples(DEMO, path)
    with pytest.raises(KitError, match=r"are not in demo -> these answers are about another recording"):
        audit_dataset(DEMO, path)
