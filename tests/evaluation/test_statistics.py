"""Statistics against worked examples that others have published, and against brute force where none is at
hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

import numpy as np
import pytest
from scipy import stats

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation import intervals, statistics
from refinevla_kit.evaluation.records import EpisodeRecord
from refinevla_kit.evaluation.statistics import AVERAGE, PUBLISHED_AVERAGE, RULES, start_values, task_weights
from refinevla_kit.tasks import ALL_TASKS, GROUPS, find_task, find_tasks
from tests.evaluation.rows import row


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_intervals_of_newcombe_1998(
    successes: int, episodes: int, low: float, high: float
) -> None:
    """Statistics in Medicine 17, 857-872, table I, method 3; also for the mean of one task played in one
    variant.
    """
    assert intervals.wilson(successes, episodes) == pytest.approx((low, high), abs=5e-5)
    mean = intervals.mean_rate(
        [np.repeat([1.0, 0.0], [successes, episodes - successes])], None, successes, episodes
    )
    assert (mean.low, mean.high) == pytest.approx((low, high), abs=5e-5)


def test_difference_of_two_rates_gives_newcombe_1998_method_10() -> None:
    """Statistics in Medicine 17, 873-890, table II, contrast (a): 56/70 against 48/80."""
    low, high = intervals.unpaired_difference(intervals.rate(56, 70), intervals.rate(48, 80))
    assert (low, high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p_value"), [(12, 2, 0.0129), (1, 7, 0.0703), (5, 5, 1.0), (0, 0, 1.0)]
)
def test_exact_mcnemar(only_a: int, only_b: int, p_value: float) -> None:
    """12 / 2: Armitage and Berry (1994), sputum media. 1 / 7: Bentur et al. (2009), as worked through by
    Fagerland et al. (2013).
    """
    found = intervals.sign_flip([1] * only_a + [0] * 5 + [-1] * only_b)
    assert found == pytest.approx(p_value, abs=5e-5)
    assert p_value == 1.0 or found == pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue)


def test_paired_intervals_give_the_approval_ratings_of_agresti() -> None:
    """Categorical Data Analysis (2nd ed., section 10.1): 150 and 86 of 1600 changed their mind; the
    difference is 0.04, 95 % interval 0.02 to 0.06. The adjusted interval of Bentur et al.'s 1 / 7 of 21
    children is that of Fagerland et al. (2014), -0.508 to -0.013.
    """
    ratings = np.repeat([1.0, -1.0, 0.0], [150, 86, 1364])
    for low, high in (intervals.paired_bootstrap([ratings]), intervals.paired_adjusted([ratings])):
        assert (low, high) == pytest.approx((0.0213, 0.0587), abs=0.001)
    assert intervals.paired_adjusted([np.repeat([1.0, -1.0, 0.0], [1, 7, 13])]) == pytest.approx(
        (-0.508, -0.013), abs=5e-4
    )


def test_weights_move_the_interval() -> None:
    differences = [np.full(24, value) for value in (0.0, 0.2, 0.4, 1.0)]
    assert intervals.paired_bootstrap(differences) == pytest.approx((0.4, 0.4))
    assert intervals.paired_bootstrap(differences, weights=[1, 0, 0, 3]) == pytest.approx((0.75, 0.75))


def test_episodes_needed_give_published_worked_examples() -> None:
    """Paired: discordant 0.45 / 0.05 needs 23 pairs (Connor 1987, as worked through at
    powerandsamplesize.com). Unpaired: 0.50 against 0.75 needs 76.7 a group for 90 % power, and 50 a group
    find 0.50 against 0.8026 (examples of R's power.prop.test).
    """
    assert ceil(intervals.paired_size(0.50, 0.40)) == 23
    assert intervals.episodes_needed_unpaired(0.75, 0.5, power=0.9) == 77
    assert intervals.resolvable_gain(0.5, 50, power=0.9) == pytest.approx(0.3026, abs=5e-5)


def test_the_resolvable_gain_is_the_one_that_needs_so_many_episodes() -> None:
    unpaired, paired = (
        intervals.resolvable_gain(0.427, 1555),
        intervals.resolvable_gain(0.427, 400, discordant=0.15),
    )
    assert unpaired is not None and intervals.episodes_needed_unpaired(0.427 + unpaired, 0.427) == 1555
    assert paired is not None and ceil(intervals.paired_size(0.15, paired)) == 400
    assert intervals.resolvable_gain(0.45, 24, discordant=0.2) is None, (
        "24 episodes of which a fifth differ cannot tell"
    )


def test_unpaired_episodes_needed_resolve_with_the_power_asked_for() -> None:
    """The 5 points between 42.7 and 47.7 % need about 1,550 episodes a policy; drawing that many finds them
    four times in five.
    """
    needed = intervals.episodes_needed_unpaired(0.477, 0.427)
    assert 1500 < needed < 1600
    a, b = np.random.default_rng(0).binomial(needed, [[0.427], [0.477]], (2, 20_000)) / needed
    z = (b - a) / np.sqrt((a + b) * (1 - (a + b) / 2) / needed)
    assert np.mean(np.abs(z) > stats.norm.ppf(0.975)) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(
    ("offset", "spread", "counting_episodes"),
    [
        (0.0, 3.0, (0.6, 0.8)),
        (-3.5, 3.0, (0.6, 0.8)),
        (-3.5, 0.0, (0.92, 1.0)),
        ([-4, -1, 0.5, 3], 1.0, (0.8, 0.95)),
    ],
)
def test_intervals_over_starts_cover_and_intervals_over_episodes_do_not(
    offset: float | list[float], spread: float, counting_episodes: tuple[float, float]
) -> None:
    """Four tasks, 24 starts, 6 variants; log-odds of success = task's offset + start's difficulty (normal,
    `spread`).
    """
    rng, shape = np.random.default_rng(0), (500, 4, 24, 6)
    centre = np.broadcast_to(offset, 4)[:, None]
    truth = float(np.mean(1 / (1 + np.exp(-centre - spread * rng.normal(size=(1, 200_000))))))
    chance = 1 / (1 + np.exp(-centre[None, :, :, None] - spread * rng.normal(size=(*shape[:3], 1))))
    runs = rng.random(shape) < chance
    by_start = [mean_of(run.mean(axis=2)) for run in runs]
    by_episode = [mean_of(run.reshape(4, -1)) for run in runs]
    covered, claimed = (
        np.mean([one.low <= truth <= one.high for one in rates]) for rates in (by_start, by_episode)
    )
    assert covered >= 0.93
    assert counting_episodes[0] <= claimed <= counting_episodes[1]


def mean_of(tasks: Sequence[Sequence[float]]) -> intervals.Rate:
    """Their mean; what was counted does not matter."""
    return intervals.mean_rate([np.asarray(task, float) for task in tasks], None, 0, 0)


def test_average_weighs_tasks_equally_and_pools_equal_counts() -> None:
    half = [0.0, 1.0] * 12
    average = mean_of([half, half])
    assert (average.rate, average.low, average.high) == pytest.approx(
        (0.5, *intervals.wilson(24, 48)), abs=0.005
    )
    assert mean_of([[1, 0], [0] * 200]).rate == 0.25
    assert mean_of([[0] * 24] * 4).high == pytest.approx(intervals.wilson(0, 96)[1], abs=0.005), (
        "four tasks that never succeed: 96 failures"
    )
    split = mean_of([[0] * 24, [1] * 24])
    assert 0.05 < split.high - split.low < 0.15, (
        "two tasks that leave no doubt: half, and not anything from 36 to 64 %"
    )


def test_a_variant_counts_once_however_many_episodes_it_has() -> None:
    """SIMPLER: the mean of each variant, then the mean of these."""
    values = start_values(
        [
            (start, variant, float(wins))
            for variant, starts, wins in (("base", 4, 1), ("dark", 2, 0))
            for start in range(starts)
        ]
    )
    assert len(values) == 4 and values.mean() == pytest.approx(0.5)
    complete = start_values(
        [(start, variant, float(start < 3)) for variant in ("base", "dark") for start in range(4)]
    )
    assert complete == pytest.approx([1, 1, 1, 0])


def test_published_weights_are_those_of_simplers_rows_and_parts() -> None:
    tasks = [
        task for group in ("pick_coke_can", "move_near", "open_close_drawer") for task in GROUPS[group].tasks
    ]
    plain, published = task_weights(tasks), task_weights(tasks, published=True)
    assert plain["google_robot_move_near"] == pytest.approx(1 / 3) and published[
        "google_robot_move_near"
    ] == pytest.approx(1 / 6)
    assert published["google_robot_pick_standing_coke_can"] == pytest.approx(1 / 6)
    assert published["google_robot_open_top_drawer"] == pytest.approx(1 / 3 / 2 / 3)
    assert (
        task_weights([*tasks, "google_robot_place_apple_in_closed_top_drawer"], published=True) == published
    )


def test_scores_have_rows_and_both_averages_and_leave_cameras_out() -> None:
    wins = {"pick_coke_can": 6, "move_near": 2, "open_close_drawer": 0}
    tasks = {task: wins[group] for group in wins for task in GROUPS[group].tasks}
    records = [
        row("a", episode, episode < won, task=task, variant=variant)
        for task, won in tasks.items()
        for variant in ("background_1", "table_1")
        for episode in range(8)
    ]
    records += [
        row("a", episode, False, task="google_robot_move_near", variant="camera_1") for episode in range(8)
    ]
    scores = {score.task: score.rate for score in statistics.summarise(records)}
    assert (scores["pick_coke_can"].rate, scores["pick_coke_can"].episodes) == (0.75, 48)
    assert scores["move_near"].rate == scores["google_robot_move_near"].rate == 0.25
    assert scores[AVERAGE].rate == pytest.approx((0.75 + 0.25 + 0) / 3)
    assert scores[PUBLISHED_AVERAGE].rate == pytest.approx((3 * 0.75 + 0.25 + 2 * 0) / 6)
    cameras = [
        score
        for score in statistics.summarise_variants(records)
        if score.variant == "camera_1" and score.task == AVERAGE
    ]
    assert [score.rate.rate for score in cameras] == [0.0]


def test_variants_of_a_start_stand_or_fall_together() -> None:
    """Six starts in four variants, all for a: six coins, not twenty-four."""
    variants = ("background_1", "background_2", "lighting_darker", "table_1")
    records = [
        row(policy, episode, policy == "a", variant=variant)
        for policy in "ab"
        for variant in variants
        for episode in range(6)
    ]
    comparison = statistics.compare(records, "a", "b")
    assert comparison.only_a == 24
    assert comparison.p_value == pytest.approx(2 * 0.5**6)
    assert statistics.compare(records[:6] + records[24:30], "a", "b").low == pytest.approx(comparison.low), (
        "the same six starts"
    )


def test_what_a_variant_costs_is_counted_from_the_same_starts() -> None:
    records = [
        replace(row("a", episode, episode < wins, variant=variant), setting="variant_aggregation")
        for variant, wins in (("base", 9), ("dark", 5), ("camera", 9))
        for episode in range(12)
    ]
    changes = {one.a: one for one in statistics.against_base(records, "a")}
    assert {name: one.difference for name, one in changes.items()} == pytest.approx(
        {"dark": -4 / 12, "camera": 0.0}
    )
    assert changes["dark"].only_b == 4 and changes["camera"].low < 0 < changes["camera"].high


def test_compare_pairs_the_same_episodes_and_leaves_the_rest_out() -> None:
    records = [row("a", episode, success=episode < 10) for episode in range(12)] + [
        row("b", episode, success=2 <= episode < 4) for episode in range(24)
    ]
    comparison = statistics.compare(records, "a", "b")
    assert (comparison.both, comparison.only_a, comparison.only_b, comparison.neither) == (2, 8, 0, 2)
    assert comparison.episodes == 12
    assert comparison.difference == pytest.approx(8 / 12)
    assert comparison.p_value == pytest.approx(2 * 0.5**8)
    assert comparison.low > 0 and comparison.needed == ceil(intervals.paired_size(8 / 12, 8 / 12))


def test_policies_that_never_differ_are_not_said_to_be_equal() -> None:
    """Four episodes that both failed leave room for a difference of tens of points; a thousand do not."""
    few, many = (
        [row(policy, episode, success=False) for policy in "ab" for episode in range(n)] for n in (4, 1000)
    )
    comparison = statistics.compare(few, "a", "b")
    assert comparison.low < -0.3 and comparison.high > 0.3
    assert statistics.compare(many, "a", "b").high < 0.01


def test_both_success_rules_are_kept_apart() -> None:
    records: list[EpisodeRecord] = [row("a", 0, success=False, success_any=True), row("a", 1, success=True)]
    last, any_step = (statistics.summarise(records, rule)[0].rate for rule in RULES)
    assert (last.successes, any_step.successes) == (1, 2)


def test_what_does_not_belong_together_is_refused() -> None:
    a, b = row("a", 0, success=True), row("b", 1, success=True)
    with pytest.raises(KitError, match="share no episode"):
        statistics.compare([a, b], "a", "b")
    with pytest.raises(KitError, match="visual_matching and variant_aggregation"):
        statistics.compare(
            [a, row("b", 0, True, variant="base"), row("a", 0, True, variant="dark")], "a", "b"
        )
    for other in (
        replace(a, episode_id=2, start="dense"),
        replace(a, width=640),
        replace(a, checkpoint_hash="1" * 16),
    ):
        with pytest.raises(KitError, match="the records of 'a' mix"):
            statistics.summarise([a, other])


def test_records_of_two_machines_count_an_episode_once_and_contradictions_are_named() -> None:
    records = [row(policy, episode, success=episode < 9) for policy in "ab" for episode in range(24)]
    again = [replace(record, wall_time=9.0, numpy="2.0") for record in reversed(records)]
    assert statistics.summarise(records + again) == statistics.summarise(records)
    assert statistics.summarise_variants(records + again) == statistics.summarise_variants(records)
    assert statistics.compare(records + again, "a", "b") == statistics.compare(records, "a", "b")
    for change in ({"success_last": False}, {"success_any": False}, {"steps": 7}):
        other = replace(records[3], **change)  # type: ignore[arg-type]
        (name, value), before = next(iter(change.items())), getattr(records[3], next(iter(change)))
        said = (
            rf"'a' has two records of widowx_carrot_on_plate \(base\), grid episode 3: {name} {before} "
            rf"and {name} {value}"
        )
        for call in (statistics.summarise, lambda rows: statistics.compare(rows, "a", "b")):
            with pytest.raises(KitError, match=said):
                call([*records, other])


def test_a_rule_that_does_not_exist_is_refused() -> None:
    with pytest.raises(KitError, match="unknown rule 'best'"):
        statistics.summarise([row("p", 0, True)], "best")  # type: ignore[arg-type]


def test_without_the_unchanged_scene_or_a_task_of_both_there_is_nothing_to_compare() -> None:
    dark = [replace(row("a", 0, True, variant=name), setting="variant_aggregation") for name in ("x", "y")]
    assert statistics.against_base(dark, "a") == []
    other = "widowx_spoon_on_towel"
    records = [row("a", 0, True), row("a", 0, True, task=other), row("b", 0, False)]
    assert {each.task for each in statistics.compare_each(records, "a", "b")} == {records[0].task}


CANS = tuple(GROUPS["pick_coke_can"].tasks)
APPLE = "google_robot_place_apple_in_closed_top_drawer"


def won(policy: str, wins: int, episodes: int, *tasks: str) -> list[EpisodeRecord]:
    """The first `wins` of all starts of the tasks, one task after the other."""
    starts = [(task, number) for task in tasks for number in range(episodes)]
    return [row(policy, number, place < wins, task=task) for place, (task, number) in enumerate(starts)]


def test_the_test_weighs_episodes_as_the_difference_does() -> None:
    """75 starts of one row and 27 of another, each half of the average: 20 gains of the first are less than
    15 losses of the second.
    """
    a = [*won("a", 20, 25, *CANS), *won("a", 0, 27, APPLE)]
    b = [*won("b", 0, 25, *CANS), *won("b", 15, 27, APPLE)]
    comparison = statistics.compare([*a, *b], "a", "b")
    assert comparison.difference == pytest.approx((20 / 75 - 15 / 27) / 2)
    assert comparison.high < 0 and comparison.p_value < 0.1  # it was 0.5 when each start weighed the same
    flips = np.random.default_rng(0).choice([-1, 1], (200_000, 35)) @ np.repeat([1 / 75, 1 / 27], [20, 15])
    drawn = (np.abs(flips) >= 15 / 27 - 20 / 75 - 1e-9).mean()
    assert comparison.p_value == pytest.approx(drawn, abs=0.002)


def test_what_an_average_leaves_out_is_in_none_of_its_numbers() -> None:
    tasks = [
        task for group in ("pick_coke_can", "move_near", "open_close_drawer") for task in GROUPS[group].tasks
    ]
    records = [*won("a", 5, 9, *tasks), *won("b", 5, 9, *tasks)]
    apple = [*won("a", 9, 9, APPLE), *won("b", 0, 9, APPLE)]
    published = statistics.compare([*records, *apple], "a", "b", task=PUBLISHED_AVERAGE)
    assert published == statistics.compare(records, "a", "b", task=PUBLISHED_AVERAGE)
    assert published.p_value == 1.0
    with pytest.raises(KitError, match="share no episode"):
        statistics.compare(apple, "a", "b", task=PUBLISHED_AVERAGE)


def test_a_comparison_does_not_look_at_other_policies() -> None:
    said = [
        row(policy, number, True, task="widowx_language_carrot_on_plate")
        for policy in "ab"
        for number in (0, 1)
    ]
    alone = statistics.compare_each(said, "a", "b")
    assert statistics.compare_each([*said, row("c", 0, True)], "a", "b") == alone
    assert statistics.compare([*said, row("a", 0, True)], "a", "b") == statistics.compare(said, "a", "b")


def test_a_row_of_which_not_all_tasks_are_shared_is_no_row() -> None:
    records = [*won("a", 9, 9, CANS[0]), *won("b", 0, 9, CANS[0])]
    with pytest.raises(KitError, match=f"share only some tasks of pick_coke_can.* {CANS[1]} "):
        statistics.compare(records, "a", "b", task="pick_coke_can")


def test_what_the_sentence_does_not_decide_has_no_named_thing() -> None:
    with pytest.raises(KitError, match="'named' is for tasks that the sentence decides"):
        statistics.summarise([row("a", 0, True)], "named")
    picked = replace(row("a", 0, True, task="google_robot_language_pick_apple"), lifted_first="apple")
    assert statistics.succeeded(picked, "named")


def test_two_settings_are_each_held_against_their_own_base() -> None:
    plain = [row("a", number, number < 3) for number in range(6)]
    varied = [
        replace(row("a", number, number < 2, variant=variant), setting="variant_aggregation")
        for variant in ("base", "table_1")
        for number in range(6)
    ]
    (change,) = statistics.against_base([*plain, *varied], "a")
    assert (change.a, change.difference) == ("table_1", 0.0)


def test_a_task_of_ones_own_is_in_no_average_of_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    own = replace(find_task("widowx_carrot_on_plate"), name="my_carrot")
    monkeypatch.setitem(ALL_TASKS, own.name, own)
    assert own not in find_tasks("widowx") and find_tasks("my_carrot") == (own,)
    assert find_tasks("widowx_carrot_on_plate") == (find_task("widowx_carrot_on_plate"),)
    records = [row("a", 0, False), row("a", 0, True, task=own.name)]
    scores = {score.task: score.rate.rate for score in statistics.summarise(records)}
    assert scores == {"widowx_carrot_on_plate": 0.0, "my_carrot": 1.0, AVERAGE: 0.0}
