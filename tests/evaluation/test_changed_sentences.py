"""Told to move the other thing, one that listens moves it, and one that does not moves the same as before."""

from __future__ import annotations

import os

import pytest

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation import changed_sentences
from refinevla_kit.evaluation.changed_sentences import tell_otherwise
from refinevla_kit.policies.vla_policy import load_policy
from refinevla_kit.rollouts.players import DemonstratorPolicy
from refinevla_kit.settings import REPOSITORY

PAIR = "widowx_language_spoon_on_towel"


def test_one_that_does_not_hear_the_sentence_does_what_it_did() -> None:
    """The demonstrator sees which task it is, and no sentence."""
    table = tell_otherwise(DemonstratorPolicy(), PAIR, 1, progress=False)
    assert table.told.tolist() == [False, True] and set(table.named) == {"spoon"}
    assert not table.other.eq("spoon").any()
    assert table.touched_first.eq("spoon").all()
    assert table.obeyed.tolist() == (~table.told).tolist()
    assert table.reason.tolist() == ["budget", "budget"]


@pytest.mark.parametrize("workers", [None, 3])
def test_without_a_number_of_workers_there_is_one_a_core(
    workers: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Made(Exception):
        pass

    def engine(workers: int, lanes: int) -> None:
        raise Made(workers)

    monkeypatch.setattr(changed_sentences, "Engine", engine)
    with pytest.raises(Made) as made:
        tell_otherwise(DemonstratorPolicy(), PAIR, 1, workers=workers, progress=False)
    assert made.value.args == (workers or len(os.sched_getaffinity(0)),)
    with pytest.raises(KitError, match="workers is -1"):
        tell_otherwise(DemonstratorPolicy(), PAIR, 1, workers=-1, progress=False)


@pytest.mark.slow
def test_one_that_listens_touches_what_it_is_told_and_changes_its_mind_half_way() -> None:
    policy = load_policy(REPOSITORY / "data" / "checkpoints" / "compact_base")
    table = tell_otherwise(policy, PAIR, 2, progress=False)
    assert table.obeyed.all(), "the other thing when it is told so, the named one when not"
    late = tell_otherwise(policy, PAIR, 2, at=3, progress=False)
    assert late.obeyed.all(), "after three steps nothing is in the hand yet"
    own = [
        frame[~frame.told].drop(columns=["at", "obeyed"]).reset_index(drop=True) for frame in (table, late)
    ]
    assert own[0].equals(own[1]), "under its own sentence an episode is the same"


def test_a_task_of_another_kind_is_refused() -> None:
    long = "widowx_language_carrot_on_plate_then_spoon_on_towel"
    for task in (long, "widowx_carrot_on_plate", "google_robot_language_pick_apple"):
        with pytest.raises(KitError, match=f"in {task} the sentence names no single one of two things"):
            tell_otherwise(DemonstratorPolicy(), task, 1)
