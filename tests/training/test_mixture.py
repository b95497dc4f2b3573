"""Each dataset of a mixture has its share of every step, and a killed run goes on with the same frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from refinevla_kit.episodes import DatasetWriter, Episode
from refinevla_kit.episodes.contract import ACTION_NAMES, STATE_NAMES
from refinevla_kit.errors import KitError
from refinevla_kit.training.examples import Examples, load_examples
from refinevla_kit.training.loop import fine_tune
from refinevla_kit.training.mixture import mix, rows_of_step, with_others
from tests.training.test_pictures import CONFIG, vla, weights, written


def frames(count: int, first: int = 0) -> Examples:
    return Examples(
        np.zeros((count, 2, 2, 3), np.uint8),
        np.full((count, 7), first, np.float32),
        np.arange(count) // 2,
        ("go",) * count,
        ("",) * count,
    )


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.1, 9), min_size=4, max_size=4),
    batch=st.integers(1, 40),
    seed=st.integers(0, 9),
)
@example(sizes=[1, 1, 1, 1], weights=[0.1, 0.1, 0.1, 9.0], batch=14, seed=0)  # the last one gets 2.7 more
def test_shares_hold_at_every_step_and_every_frame_has_its_turn(
    sizes: list[int], weights: list[float], batch: int, seed: int
) -> None:
    mixed = mix([frames(size) for size in sizes], weights[: len(sizes)])
    everything = np.arange(len(mixed))
    steps = [rows_of_step(mixed, everything, seed, step, batch) for step in range(6)]
    assert all(len(rows) == batch for rows in steps)
    assert mixed.origin is not None
    drawn = np.concatenate(steps)
    for number, share in enumerate(mixed.shares):
        own = drawn[mixed.origin[drawn] == number]
        assert abs(len(own) - share * len(drawn)) < max(1, len(sizes) - 1)
        seen = np.unique(own, return_counts=True)[1]
        assert len(own) == 0 or seen.max() - (seen.min() if len(seen) == sizes[number] else 0) <= 1


def test_without_a_mixture_a_step_is_a_slice_of_one_permutation() -> None:
    """As it always was: runs that were begun earlier go on."""
    examples, training = frames(20), np.arange(3, 20)
    order = np.random.default_rng([5, 1]).permutation(17)
    found = rows_of_step(examples, training, seed=5, step=5, batch=4)  # the second of the second epoch
    np.testing.assert_array_equal(found, training[order[4:8]])


def test_a_dataset_that_is_wholly_held_out_is_told_of() -> None:
    mixed = mix([frames(4), frames(4)], [1, 1])
    with pytest.raises(KitError, match="dataset 1 of the mixture has no frame to train on"):
        rows_of_step(mixed, np.arange(4), 0, 0, 4)


@pytest.mark.parametrize("shares", [(1,), (1, 0), (1, -1), (1, float("nan")), (1, 1, 1)])
def test_shares_are_one_a_dataset_and_above_zero(shares: tuple[float, ...]) -> None:
    with pytest.raises(
        KitError, match=r"2 datasets are mixed by the shares .* -> give each a number above 0"
    ):
        mix([frames(2), frames(2)], shares)


def test_shares_are_part_of_what_a_run_is() -> None:
    parts = [frames(4), frames(4)]
    one, other = mix(parts, [1, 1]), mix(parts, [1, 3])
    assert one.digest() != other.digest()
    assert one.digest() == mix(parts, [2, 2]).digest()


def wide(path: Path) -> Path:
    """Episodes whose pictures have another size."""
    rng = np.random.default_rng(1)
    with DatasetWriter(path, 5, "widowx", action_names=ACTION_NAMES, state_names=STATE_NAMES) as writer:
        for _ in range(3):
            images = rng.integers(0, 256, (3, 32, 96, 3), dtype=np.uint8)
            moves = rng.uniform(-0.02, 0.02, (3, 7)).astype(np.float32)
            writer.add(
                Episode(images, moves, rng.normal(size=(3, 15)).astype(np.float32), "put thing 1 away")
            )
    return path


def test_a_run_on_two_cameras_is_the_same_after_a_stop(tmp_path: Path) -> None:
    """Streamed pictures may have several sizes; in memory they may not."""
    first = load_examples(written(tmp_path / "first"), stream=True)
    mixed = mix([first, load_examples(wide(tmp_path / "wide"), stream=True)], [0.7, 0.3])
    whole, stopped, again = vla(), vla(), vla()
    fine_tune(whole, mixed, CONFIG, tmp_path / "whole", "whole", progress=False)

    def stop(row: dict[str, object]) -> None:
        if row["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(stopped, mixed, CONFIG, tmp_path / "parts", "parts", progress=False, watch=stop)
    fine_tune(again, mixed, CONFIG, tmp_path / "parts", "parts", progress=False)
    assert weights(again) == weights(whole)
    looked = replace(CONFIG, steps=6, collapse_grace=1, validate_every=2, save_every=0)
    fine_tune(vla(), mixed, looked, tmp_path / "looked", "looked", progress=False)  # a collapse is looked for
    with pytest.raises(KitError, match="pictures of 2 sizes"):
        mix([load_examples(tmp_path / "first"), load_examples(tmp_path / "wide")], [1, 1])


def test_others_take_their_share_of_the_first(tmp_path: Path) -> None:
    first = load_examples(written(tmp_path / "first"))
    other = written(tmp_path / "other", seed=1)
    mixed = with_others(first, {str(other): 0.25})
    assert mixed.shares == (0.75, 0.25) and len(mixed) == 2 * len(first)
    assert with_others(first, {}) is first
    streamed = load_examples(tmp_path / "first", stream=True)
    assert with_others(streamed, {str(other): 0.25}).shares == mixed.shares
    with pytest.raises(KitError, match=r"take 1 of each step -> leave something for the first dataset"):
        with_others(first, {str(other): 1.0})
    with pytest.raises(KitError, match="is not a folder"):
        with_others(first, {str(tmp_path / "missing"): 0.5})
    assert replace(mixed, origin=None, shares=()).digest() != mixed.digest()
