"""The design table: arms differ in what their name says and in nothing else, and a plan stopped anywhere
holds whole pairs.
"""

import json
from dataclasses import asdict, replace

import pytest

from experiments.analysis import Results, conclusion, contrasts
from experiments.design import PROFILES, Arm, Profile, plan, run_key
from experiments.estimate import describe, detectable, episodes, power_table
from experiments.report import SHIPPED
from refinevla_kit.errors import KitError
from refinevla_kit.tasks import VARIANT_AGGREGATION
from tests.evaluation.rows import row

ALL = pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)


def differing(a: Arm, b: Arm) -> set[str]:
    return {field for field, value in asdict(a).items() if field != "name" and value != asdict(b)[field]}


@ALL
def test_arms_of_a_contrast_differ_in_one_thing(profile: Profile) -> None:
    arms = profile.arms()
    for block in profile.blocks:
        for a, b in block.contrasts:
            changed = differing(arms[a], arms[b])
            shuffled = {
                "lambda_reasoning",
                "rationales",
            }  # against the control: without rationales it does not matter whose they would be
            thinking = {"lambda_reasoning", "order"}
            assert len(changed) == 1 or changed in (shuffled, thinking), f"{a} and {b} differ in {changed}"


@ALL
def test_every_factor_that_is_asked_for_has_its_values(profile: Profile) -> None:
    arms = profile.arms().values()
    assert {arm.order for arm in arms} == {"action_first", "rationale_first"}
    assert {arm.base for arm in arms} == {"main", "grounded", "ungrounded"}
    assert {arm.rationales for arm in arms} == {"own", "shuffled"}
    if profile.name != "smoke":
        assert {arm.lambda_reasoning for arm in arms} == {0, 0.1, 0.3, 0.5, 1.0}
        assert len({arm.freeze_layers for arm in arms}) >= 4 and len({arm.share for arm in arms}) == 3


@ALL
def test_all_of_a_profile_but_the_factors_is_the_same_for_every_run(profile: Profile) -> None:
    factors = {"lambda_reasoning", "freeze_layers", "order", "seed"}
    settings = [asdict(profile.training(arm, seed)) for arm in profile.arms().values() for seed in (0, 1)]
    assert (
        len({tuple((key, value) for key, value in one.items() if key not in factors) for one in settings})
        == 1
    )


def test_the_main_comparison_has_200_episodes_a_task_and_arm_over_at_least_three_seeds() -> None:
    for profile in (PROFILES["laptop"], PROFILES["full"]):
        for block in (one for one in profile.blocks if not one.exploratory):
            scenes = 9 if block.setting == VARIANT_AGGREGATION else 1
            assert len(block.seeds) >= 3 and len(block.seeds) * block.starts * scenes >= 200
        stage = plan(profile, ["variants"])[0]
        assert episodes(profile, stage) == stage.block.starts * 9 * 4


@ALL
def test_wherever_a_plan_stops_finished_seeds_have_all_their_arms(profile: Profile) -> None:
    stages = plan(profile)
    assert [stage.block.exploratory for stage in stages] == sorted(
        stage.block.exploratory for stage in stages
    ), "what conclusions need comes first"
    for block in profile.blocks:
        seeds = [stage.seed for stage in stages if stage.block is block]
        assert seeds == sorted(seeds) and len(seeds) == len(block.arms) * len(block.seeds)


@ALL
def test_every_contrast_has_starts_that_both_arms_play(profile: Profile) -> None:
    played: dict[tuple[str, str], dict[int, int]] = {}
    for stage in plan(profile):
        starts = played.setdefault((stage.arm.name, stage.block.setting), {})
        starts[stage.seed] = max(starts.get(stage.seed, 0), stage.block.starts)
    for block in profile.blocks:
        for pair in block.contrasts:
            a, b = (played[name, block.setting] for name in pair)
            assert all(min(a[seed], b[seed]) >= block.starts for seed in block.seeds)


def test_only_names_blocks() -> None:
    assert {stage.block.name for stage in plan(PROFILES["laptop"], ["depth", "order"])} == {"depth", "order"}
    with pytest.raises(KitError, match="unknown block 'depths' -> choose from main"):
        plan(PROFILES["laptop"], ["depths"])


def test_the_key_of_a_run_knows_all_that_its_outcome_depends_on() -> None:
    profile, arm = PROFILES["laptop"], Arm("a", 0.3)

    def key(
        arm: Arm = arm, seed: int = 0, base: str = "b", data: str = "d", profile: Profile = profile
    ) -> str:
        return run_key(arm, profile.training(arm, seed), base, data)

    others = [
        key(seed=1),
        key(base="c"),
        key(data="e"),
        key(replace(arm, lambda_reasoning=0.1)),
        key(replace(arm, rationales="shuffled")),
        key(replace(arm, share=0.5)),
        key(profile=replace(profile, steps=401)),
        key(profile=replace(profile, learning_rate=1e-4)),
    ]
    assert len({key(), *others}) == 1 + len(others)
    assert key(replace(arm, name="another")) == key(), "a name changes nothing about a run"


def test_a_setting_that_came_later_leaves_the_keys_of_published_runs_as_they_are() -> None:
    published = json.loads((SHIPPED / "study.json").read_text())
    for run in published["runs"]:
        arm = Arm(**run["arm"])
        config = PROFILES[published["profile"]].training(arm, run["seed"])
        assert run_key(arm, config, run["base"], run["data"]) == run["key"]


def test_the_plan_as_text_counts_runs_and_episodes_once() -> None:
    profile = PROFILES["laptop"]
    stages = plan(profile, ["main", "variants"])
    text = describe(profile, stages, {"x": "no base"})
    total = sum(episodes(profile, stage) for stage in stages)
    assert f"18 training runs of 400 steps, {total:,} episodes" in text and "left out: x: no base" in text
    assert sum(line.startswith("main") for line in text.splitlines()) == 3


def test_the_power_table_is_that_of_the_functions_behind_it() -> None:
    table = power_table(6, 36, 4, discordant=(0.35,), between=(0.03,))
    assert table.splitlines()[-1].endswith(f"| {100 * detectable(6, 144, 0.35, 0.03):.1f} |")
    assert detectable(3, 288, 0.35, 0.03) > 1.5 * detectable(6, 144, 0.35, 0.03), (
        "as many episodes on half the runs find much less"
    )


def test_a_control_that_leaves_no_room_for_the_claimed_gain_is_said() -> None:
    def results(lost: int) -> Results:
        records = [
            replace(
                row(policy, number, number >= (lost if policy == "action_only" else 0)),
                seed=seed,
                start="dense",
            )
            for policy in ("action_only", "with_reasoning")
            for seed in range(6)
            for number in range(36)
        ]
        return Results(PROFILES["laptop"], {}, tuple(records))

    for lost, words in (
        (1, "no room for the claimed gain, the control succeeds in 97%: "),
        (9, "a gain, as large as"),
    ):
        found = contrasts(results(lost), PROFILES["laptop"].blocks[0])
        assert len(found) == 1 and conclusion(results(lost), found[0]).startswith(words)
