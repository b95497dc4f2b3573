"""The second experiment's design: arms that differ in what their name says, trained on pairs that give the
task away and scored on pairs that do not.
"""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from experiments.analysis import PRIMARY, Results, conclusion, contrasts, load_results
from experiments.controls import TEXTS, movement_texts
from experiments.data import Layout, choose, copy_episodes, given_to, layouts
from experiments.design import Arm, Profile, plan, run_key
from experiments.estimate import scenes
from experiments.following import FOLLOWING, HELD_OUT, JOINT, PAIRS
from experiments.report import write_report
from experiments.runner import Study, carry_out
from refinevla_kit.episodes import open_dataset
from refinevla_kit.errors import KitError
from refinevla_kit.rollouts.recording import record
from refinevla_kit.tasks import SOURCES, TARGETS, find_task
from refinevla_kit.teacher import OracleTeacher, annotate_dataset
from refinevla_kit.teacher.audit import Scene
from refinevla_kit.teacher.requests import episode_spans, without_pictures
from refinevla_kit.teacher.wording import read_wording
from refinevla_kit.training.examples import Examples, find_rationales, load_examples
from tests.evaluation.rows import row

ALL = pytest.mark.parametrize("profile", FOLLOWING.values(), ids=FOLLOWING)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four demonstrations of trained pairs, a rationale for each frame."""
    folder = tmp_path_factory.mktemp("pairs") / "data"
    record(folder, PAIRS[:2], 2, seed=6, progress=False)
    annotate_dataset(folder, OracleTeacher(), "step", keyframes=1, progress=False)
    return folder


@pytest.fixture(scope="module")
def examples(pairs: Path) -> Examples:
    return load_examples(pairs, find_rationales(pairs))


def first_centres(dataset: Path, episode: int) -> dict[str, tuple[float, float]]:
    """Where things are in an episode's first frame, as the audit sees them."""
    source = open_dataset(dataset)
    request = next(iter(without_pictures(source, episode, episode_spans(source, episode, "step"))))
    return {name: at for name, at in Scene(request).centres.items() if at}


@ALL
def test_nothing_that_is_scored_is_trained_on(profile: Profile) -> None:
    assert not any(find_task(name).held_out for name in profile.tasks)
    primary = next(block for block in profile.blocks if not block.exploratory)
    assert primary.rule == "named" and primary.contrasts == (PRIMARY,)
    assert all(find_task(name).held_out for name in primary.tasks)
    robots = {find_task(name).robot for name in (*profile.tasks, *primary.tasks)}
    assert robots == {profile.training(JOINT, 0).robot}
    assert len(primary.tasks) == (2 if robots == {"google_robot"} else 4)


@pytest.mark.parametrize("name", ["following_smoke", "following_laptop", "following_full"])
def test_an_arm_differs_from_the_joint_loss_in_one_thing(name: str) -> None:
    arms = FOLLOWING[name].arms()
    joint = asdict(arms["with_reasoning"])
    for arm in arms.values():
        if arm.base == "main" and arm.name != "with_reasoning":
            changed = {name for name, value in asdict(arm).items() if value != joint[name]} - {"name"}
            assert len(changed) == 1, f"{arm.name} differs in {changed}"
    assert {arm.rationales for arm in arms.values()} == {"own", *TEXTS}
    bare, speaking = (asdict(arms[f"{name}_wordless"]) for name in reversed(PRIMARY))
    assert {name for name in bare if bare[name] != speaking[name]} == {"name", "lambda_reasoning"}


def test_the_primary_contrast_has_twelve_seeds_of_108_episodes() -> None:
    profile = FOLLOWING["following_laptop"]
    stage = plan(profile, ["following"])[0]
    assert len(stage.block.seeds) == 12 and stage.block.starts * scenes(profile, stage) == 108


def test_every_arm_has_a_key_of_its_own() -> None:
    profile = FOLLOWING["following_laptop"]
    keys = {run_key(arm, profile.training(arm, 0), arm.base, "data") for arm in profile.arms().values()}
    assert len(keys) == len(profile.arms())


def test_the_layout_says_what_lies_beside_the_named_thing_and_which_is_left(pairs: Path) -> None:
    found = layouts(pairs)
    assert set(found) == {0, 1, 2, 3}
    for episode, one in found.items():
        task, centres = find_task(PAIRS[episode // 2]), first_centres(pairs, episode)
        assert one.other in SOURCES and one.other in centres and one.other != task.source
        target = next(name for name in TARGETS if name in centres and name != task.target)
        named, others = (task.source, task.target), (one.other, target)
        assert one.left == all(centres[a][0] < centres[b][0] for a, b in zip(named, others, strict=True))
    assert {one.left for one in found.values()} == {True, False}, "these four starts have both"


def test_chosen_episodes_are_a_dataset_of_their_own(pairs: Path, tmp_path: Path) -> None:
    """Its pictures have been through a video once more."""
    copy_episodes(pairs, [1, 3], tmp_path / "chosen")
    old, new = open_dataset(pairs), open_dataset(tmp_path / "chosen")
    for number, index in enumerate((1, 3)):
        assert replace(new.info(number), index=index) == old.info(index)
        np.testing.assert_array_equal(new.actions(number), old.actions(index))
        np.testing.assert_array_equal(new.proprioception(number), old.proprioception(index))
        assert [one.source.tolist() for one in new.states(number)] == [
            one.source.tolist() for one in old.states(index)
        ]
        for name, mask in old.masks(index).items():
            np.testing.assert_array_equal(new.masks(number)[name], mask)
        change = np.abs(new.images(number).astype(int) - old.images(index))
        assert 0 < change.mean() < 1.5
    assert [layouts(pairs)[index] for index in (1, 3)] == list(layouts(tmp_path / "chosen").values())


def test_as_many_episodes_are_chosen_as_the_share_allows() -> None:
    found = {episode: Layout("spoon", left=episode % 4 == 0) for episode in range(40)}
    chosen = choose(found, 0.8, seed=0)
    assert chosen == sorted(chosen) and len(chosen) == 12
    assert sum(found[episode].left for episode in chosen) == 10
    assert choose(found, 0.8, seed=0) == chosen != choose(found, 0.8, seed=1)
    whole = choose(found, 1.0, seed=0)
    assert len(whole) == 10 and all(found[episode].left for episode in whole)
    with pytest.raises(KitError, match="0 of 3 episodes have the named things left: 80% cannot be had"):
        choose(dict.fromkeys(range(3), Layout("spoon", left=False)), 0.8, 0)


@pytest.mark.parametrize("rationales", TEXTS)
def test_other_texts_change_nothing_but_the_texts(rationales: str, pairs: Path, examples: Examples) -> None:
    given = given_to(Arm("a", 0.3, rationales=rationales), examples, layouts(pairs))
    assert given.images is examples.images and given.actions is examples.actions
    assert given.instructions == examples.instructions
    assert given.rationales != examples.rationales and given.about != examples.about


def test_a_movement_text_says_where_the_gripper_goes_and_what_to(examples: Examples) -> None:
    for text, old in zip(movement_texts(examples).rationales, examples.rationales, strict=True):
        said = re.fullmatch(r"The gripper goes (forward|backward|left|right|up|down|on), to the (.+)\.", text)
        facts = read_wording(old).facts
        assert said and facts and said[2] == (facts.target if facts.held == facts.source else facts.source)
        if facts.motion:
            assert said[1] == facts.motion, "where the oracle says one, it is the same"


def test_a_text_about_the_other_object_never_names_the_right_one(pairs: Path, examples: Examples) -> None:
    found = layouts(pairs)
    given = given_to(Arm("a", 0.3, rationales="wrong_object"), examples, found)
    for episode, sentence, text in zip(
        given.episodes.tolist(), given.instructions, given.rationales, strict=True
    ):
        source = next(find_task(name).source for name in PAIRS if find_task(name).instruction == sentence)
        assert source not in text.lower() and found[episode].other in text.lower()


def test_an_empty_text_is_as_long_and_says_nothing(examples: Examples) -> None:
    given = given_to(Arm("a", 0.3, rationales="empty"), examples)
    for text, old in zip(given.rationales, examples.rationales, strict=True):
        assert len(text.split()) == len(old.split()) and set(re.findall(r"\w+", text)) == {"the"}


def test_few_actions_leave_the_others_to_be_spoken_about(examples: Examples) -> None:
    given = given_to(Arm("a", 0.3, acting=0.1), examples)
    silent = np.isnan(given.actions).all(1)
    assert (~silent).sum() == round(0.1 * len(examples)) and given.rationales == examples.rationales
    np.testing.assert_array_equal(given.actions[~silent], examples.actions[~silent])


def test_the_verdict_is_about_following_and_four_points() -> None:
    profile = FOLLOWING["following_laptop"]

    def played(policy: str, seed: int, followed: int) -> list:
        source, target = find_task(HELD_OUT[0]).source, find_task(HELD_OUT[0]).target
        return [
            replace(
                row(policy, number, True, task=HELD_OUT[0], variant="lighting_darker"),
                seed=seed,
                start="dense",
                lifted_first=source if number < followed else "spoon",
                ended_on=target if number < followed else "",
            )
            for number in range(40)
        ]

    def says(gain: int) -> str:
        arms = (("action_only", 20), ("with_reasoning", 20 + gain))
        records = [one for seed in range(12) for name, won in arms for one in played(name, seed, won)]
        results = Results(profile, {}, tuple(records))
        return conclusion(results, contrasts(results, profile.blocks[0])[0])

    assert says(0).startswith(("no gain shown", "undecided")), "all succeed, and none follows more"
    assert says(8).startswith("a gain, as large as claimed")
    assert says(-8).startswith("a loss")


@pytest.mark.slow
def test_every_arm_is_trained_played_and_reported(bases: dict[str, Path], tmp_path: Path) -> None:
    smoke = FOLLOWING["following_smoke"]
    blocks = tuple(
        replace(block, seeds=(0,), tasks=PAIRS[:1] if block.name == "trained_pairs" else HELD_OUT[:1])
        for block in smoke.blocks
        if block.name != "long"
    )
    few = replace(smoke, tasks=PAIRS[:2], data_seed=6, confounded=0.25, blocks=blocks)
    study = Study(few, bases["main"], tmp_path, {"wordless": bases["grounded"]}, workers=0, progress=False)
    records = carry_out(study, plan(few))
    results = load_results(records, few)
    runs = {(run["arm"]["name"], run["seed"]): run for run in results.study["runs"]}
    assert set(runs) == {(stage.arm.name, stage.seed) for stage in plan(few)}
    assert {one.task for one in results.records} == {HELD_OUT[0], PAIRS[0]}
    assert runs["reasoning_first", 0]["training"]["lambda_reasoning"] == 0
    assert not list(tmp_path.rglob("reasoned")), "of the first half nothing is kept"
    assert "texts that name the other object" in runs["wrong_object", 0]["about"]
    text = write_report(records, tmp_path / "report", results).read_text()
    assert "### Main comparison, average of the tasks, right object and right target" in text
    assert (tmp_path / "report" / "experiment_2_main.png").exists()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("*")}
    carry_out(study, plan(few))
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("*")} == before
