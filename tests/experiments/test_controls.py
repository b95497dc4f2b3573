"""Controls: shuffled rationales belong to another episode of the same task, and fewer demonstrations lie
within more; frames stay what they are.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.controls import first_episodes, shuffle_rationales
from refinevla_kit.errors import KitError
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.training.examples import Examples, find_rationales, load_examples

DEMO = REPOSITORY / "data" / "demo"


@pytest.fixture(scope="module")
def examples() -> Examples:
    return load_examples(DEMO, find_rationales(DEMO))


def test_a_shuffled_rationale_is_of_another_episode_with_the_same_instruction(examples: Examples) -> None:
    shuffled = shuffle_rationales(examples, seed=0)
    donors: dict[int, set[int]] = {}
    for row, text in enumerate(shuffled.rationales):
        writers = {
            int(examples.episodes[i])
            for i, old in enumerate(examples.rationales)
            if old == text and examples.instructions[i] == examples.instructions[row]
        }
        donors.setdefault(int(examples.episodes[row]), writers).intersection_update(writers)
    assert all(len(found - {episode}) == 1 for episode, found in donors.items()), (
        "each episode has one other's texts"
    )
    assert sorted(next(iter(found - {episode})) for episode, found in donors.items()) == sorted(donors), (
        "and each gives its own to one"
    )
    assert np.mean([old == new for old, new in zip(examples.rationales, shuffled.rationales)]) < 0.1


def test_shuffling_changes_the_texts_alone_and_keeps_where_segments_end(examples: Examples) -> None:
    shuffled = shuffle_rationales(examples, seed=0)
    assert (
        shuffled.images is examples.images
        and shuffled.actions is examples.actions
        and shuffled.instructions == examples.instructions
    )
    for row in range(1, len(examples)):
        if (
            examples.rationales[row] == examples.rationales[row - 1]
            and examples.episodes[row] == examples.episodes[row - 1]
        ):
            assert shuffled.rationales[row] == shuffled.rationales[row - 1]
    bare = replace(examples, rationales=("", *examples.rationales[1:]))
    assert shuffle_rationales(bare, seed=0).rationales[0] == "", "a frame without a text gets none"


def test_the_seed_decides_whose_texts(examples: Examples) -> None:
    once, again, other = (shuffle_rationales(examples, seed).rationales for seed in (0, 0, 1))
    assert (
        once == again
        and once != other
        and "texts of other episodes (seed 0)" in shuffle_rationales(examples, 0).about
    )


def test_an_episode_that_has_no_other_is_refused(examples: Examples) -> None:
    rows = np.flatnonzero(examples.episodes == examples.episodes[0])
    alone = Examples(
        examples.images[rows],
        examples.actions[rows],
        examples.episodes[rows],
        tuple(examples.instructions[i] for i in rows),
        tuple(examples.rationales[i] for i in rows),
    )
    with pytest.raises(
        KitError, match=r"cannot be given to another episode.*two episodes of each instruction"
    ):
        shuffle_rationales(alone)


def test_a_smaller_share_of_the_demonstrations_lies_within_a_larger_one(examples: Examples) -> None:
    third, two_thirds = (first_episodes(examples, share) for share in (1 / 3, 2 / 3))
    assert set(third.episodes) < set(two_thirds.episodes) < set(examples.episodes)
    for instruction in set(examples.instructions):
        counts = [
            len(
                {
                    episode
                    for episode, said in zip(part.episodes.tolist(), part.instructions)
                    if said == instruction
                }
            )
            for part in (third, two_thirds, examples)
        ]
        assert counts == [round(counts[2] / 3), round(2 * counts[2] / 3), counts[2]]
    row = int(np.flatnonzero(examples.episodes == third.episodes[0])[0])
    np.testing.assert_array_equal(third.images[0], examples.images[row])
    assert third.proprioception is not None and len(third.proprioception) == len(third.rationales) == len(
        third
    )
    assert first_episodes(examples, 1) is examples
    with pytest.raises(KitError, match="a share of 0 of the episodes"):
        first_episodes(examples, 0)


def test_episodes_without_rationales_are_counted_or_with_strict_refused(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(find_rationales(DEMO))
    partial = tmp_path / "partial.parquet"
    pq.write_table(table.filter([episode not in (2, 5) for episode in table["episode"].to_pylist()]), partial)
    loaded = load_examples(DEMO, partial)
    assert loaded.about.endswith("2 of 12 episodes without any")
    silent = np.isin(loaded.episodes, (2, 5))
    assert all(bool(text) != bare for text, bare in zip(loaded.rationales, silent))
    with pytest.raises(
        KitError, match="2 of 12 episodes without any, the first is episode 2 -> annotate the dataset again"
    ):
        load_examples(DEMO, partial, strict=True)
    assert "without any" not in load_examples(DEMO, find_rationales(DEMO), strict=True).about
