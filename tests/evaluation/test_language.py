"""What records of the language suite say about how a policy follows its sentence."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.language import following
from refinevla_kit.evaluation.records import COLUMNS, EpisodeRecord, load_records, parse_record
from refinevla_kit.evaluation.run import evaluate
from refinevla_kit.evaluation.statistics import compare, succeeded, summarise
from refinevla_kit.rollouts.players import DemonstratorPolicy

from .rows import row

CARROT, HELD_OUT = "widowx_language_carrot_on_plate", "widowx_language_carrot_on_towel"
PICK = "google_robot_language_pick_apple"


def ended(task: str, episode: int, lifted: str, on: str, success: bool = False) -> EpisodeRecord:
    record = row("ours", episode, success, task=task)
    return replace(record, touched_first=lifted, lifted_first=lifted, ended_on=on)


def test_right_object_and_right_target_are_those_of_the_sentence() -> None:
    ends = {
        ("carrot", "plate"): (True, True),
        ("carrot", ""): (True, False),
        ("spoon", "plate"): (False, True),
        ("spoon", "towel"): (False, False),
        ("", ""): (False, False),
    }
    for (lifted, on), expected in ends.items():
        record = ended(CARROT, 0, lifted, on)
        assert (record.right_object, record.right_target) == expected
    picked = ended(PICK, 0, "apple", "")
    assert picked.right_object and not picked.right_target


def test_rates_are_by_robot_and_by_what_was_held_out() -> None:
    records = [
        *(ended(CARROT, number, "carrot", "plate", True) for number in range(3)),
        ended(CARROT, 3, "spoon", "plate"),
        *(ended(HELD_OUT, number, "carrot", "plate") for number in range(4)),
        ended(PICK, 0, "apple", "", True),
        ended("google_robot_move_near", 0, "source object", "orange"),
        row("ours", 0, True),  # SIMPLER's own: not of the suite
    ]
    rows = {(each.robot, each.kind): each for each in following(records)}
    assert list(rows) == [
        ("widowx", "trained"),
        ("widowx", "held out"),
        ("google_robot", "trained"),
        ("google_robot", "move near"),
    ]
    trained, held_out, picked, near = rows.values()
    assert (trained.success.rate, trained.right_object.rate) == (0.75, 0.75)
    assert trained.right_target is not None and trained.right_target.rate == 1.0
    assert trained.both is not None and trained.both.rate == 0.75
    assert trained.right_object.low < 0.75 < trained.right_object.high
    assert held_out.right_object.rate == 1.0 and held_out.right_target and held_out.right_target.rate == 0.0
    assert held_out.both is not None and held_out.both.rate == 0.0
    assert picked.right_target is None and picked.both is None and picked.success.episodes == 1
    assert near.right_object.rate == 1.0 and near.right_target and near.right_target.rate == 0.0
    assert {score.task for score in summarise(records[:8])} == {CARROT, HELD_OUT, "average"}


def test_simplers_average_does_not_count_the_language_suite() -> None:
    simplers = [row(policy, number, policy == "ours") for policy in ("ours", "other") for number in range(4)]
    listened = [
        replace(ended(CARROT, number, "", ""), policy=each.policy) for number, each in enumerate(simplers)
    ]
    average = {
        score.policy: score.rate.rate for score in summarise(simplers + listened) if score.task == "average"
    }
    assert average == {"ours": 1.0, "other": 0.0}
    compared = compare(simplers + listened, "ours", "other")
    assert (compared.difference, compared.episodes) == (1.0, 4)


def test_records_of_earlier_versions_stay_readable() -> None:
    later = ("unsolved", "touched_first", "lifted_first", "ended_on")
    old = {name: value for name, value in asdict(row("ours", 0, True)).items() if name not in later}
    assert parse_record(old, "an old row") == row("ours", 0, True)
    assert set(later) < set(COLUMNS)


@pytest.mark.slow
def test_an_evaluation_says_what_the_demonstrator_moved(tmp_path: Path) -> None:
    tasks = (HELD_OUT, "widowx_language_eggplant_on_towel_then_green_block_on_yellow_block")
    path = evaluate(DemonstratorPolicy(), tasks, 1, output=tmp_path, workers=0, width=48, progress=False)
    pair, both = sorted(load_records(path), key=lambda record: record.steps)
    assert pair.success_last and both.success_last and (pair.reason, both.reason) == ("budget", "budget")
    assert (pair.touched_first, pair.lifted_first, pair.ended_on) == ("carrot", "carrot", "towel")
    assert both.right_object and both.right_target and both.ended_on == "towel"
    assert all(each.right_object.rate == 1 for each in following([pair, both]))


def test_following_counts_what_a_summary_counts() -> None:
    scored = [ended(CARROT, number, "carrot", "plate", True) for number in range(6)]
    moved = replace(scored[0], variant="camera_1", setting="variant_aggregation", lifted_first="")
    (rates,) = following([*scored, moved])
    assert rates.right_object.episodes == 6
    with pytest.raises(KitError, match="mix checkpoint_hash"):
        following([*scored, replace(scored[0], episode_id=9, checkpoint_hash="1" * 16)])


def test_what_is_not_known_is_no_rate_of_zero() -> None:
    """Neither of the original SimplerEnv nor of an earlier version, whose failures say as little."""
    near = "google_robot_move_near"
    known = [ended(CARROT, number, "carrot", "plate", True) for number in range(5)]
    idle = ended(CARROT, 5, "", "")
    old = [replace(ended(HELD_OUT, number, "", "", number < 2), grasped=True) for number in range(4)]
    original = [
        replace(ended(near, number, "", "", number < 2), backend="simpler_env") for number in range(4)
    ]
    assert [record.tells for record in (known[0], idle, old[0], original[0], original[3])] == [
        *(True, True),
        *(False, False, False),
    ]
    for records in (old, original):
        assert following(records) == []
        with pytest.raises(KitError, match=rf"a record of {records[0].task} .* does not say what was moved"):
            summarise(records, "named")
    (rates,) = following([*known, idle, *old])
    assert (rates.kind, rates.right_object.successes, rates.right_object.episodes) == ("trained", 5, 6)
    (rates,) = following([*known, idle, replace(idle, episode_id=6, grasped=True)])
    assert rates.right_object.episodes == 5, "nothing tells the idle one from an old one"
    assert rates.success.episodes == 7, "success is known of all"
    pushed = replace(idle, success_last=True, success_any=True)
    assert pushed.tells and not succeeded(pushed, "named"), "solved with the back of the hand"


@pytest.mark.parametrize("reason", ["crash", "physics"])
def test_what_broke_is_no_success_whatever_it_had_moved(reason: str) -> None:
    broken = replace(ended(CARROT, 0, "carrot", "plate"), reason=reason)
    assert not succeeded(broken, "named")
    (rates,) = following([broken], "named")
    assert rates.right_target is not None and rates.both is not None
    every = (rates.success, rates.right_object, rates.right_target, rates.both)
    assert [(rate.successes, rate.episodes) for rate in every] == [(0, 1)] * 4
