"""The whole experiment on real episodes and a tiny base: every block runs, a kill costs nothing that was
finished, the report says what the statistics say about the same records.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from experiments.analysis import PRIMARY, contrasts, load_results, rates, varied
from experiments.design import PROFILES, plan
from experiments.reasoning_loss import CHECKPOINTS, main
from experiments.report import SHIPPED, arm_label, insert, write_report
from experiments.runner import Study, carry_out, possible, start_from
from experiments.seeds import compare_seeds
from refinevla_kit.errors import KitError
from refinevla_kit.evaluation import load_records
from refinevla_kit.evaluation.statistics import compare, summarise
from refinevla_kit.evaluation.training_seeds import WEIGHT, as_one_policy
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.tasks import VARIANT_AGGREGATION, VISUAL_MATCHING

SMOKE = replace(
    PROFILES["smoke"],
    blocks=tuple(block for block in PROFILES["smoke"].blocks if block.name not in ("order", "depth")),
)


@dataclass(frozen=True)
class Killed:
    """An experiment that was killed after its first stage and then done to its end; `before`: its files at
    the kill, with their times.
    """

    study: Study
    before: dict[Path, int]


def files(study: Study) -> dict[Path, int]:
    return {
        file: file.stat().st_mtime_ns
        for file in (study.output / "runs").rglob("*")
        if file.is_file() and "resume" not in file.parts
    }


@pytest.fixture(scope="module")
def killed(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Killed:
    twins = {name: bases[name] for name in ("grounded", "ungrounded")}
    study = Study(
        SMOKE,
        bases["main"],
        tmp_path_factory.mktemp("experiment"),
        twins,
        workers=0,
        threads=1,
        progress=False,
    )
    command = [
        sys.executable,
        "-m",
        "experiments.reasoning_loss",
        "--profile",
        "smoke",
        "--base",
        str(study.base),
        "--output",
        str(study.output),
    ]
    process = subprocess.Popen(
        [
            *command,
            "--grounding",
            *map(str, twins.values()),
            "--workers",
            "0",
            "--threads",
            "1",
        ],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    while not (study.output / "records" / "records.parquet").exists() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {
        run.parent
        for run in (study.output / "runs").glob("*/run.json")
        if run.with_name("visual_matching.parquet").exists()
    }
    before = {file: when for file, when in files(study).items() if done & set(file.parents)}
    carry_out(study, plan(SMOKE))
    return Killed(study, before)


@pytest.fixture(scope="module")
def study(killed: Killed) -> Study:
    """All of the smoke profile but what takes longest, done."""
    return killed.study


@pytest.mark.slow
def test_a_killed_experiment_goes_on_where_it_was(killed: Killed) -> None:
    after = files(killed.study)
    assert killed.before and all(after[file] == when for file, when in killed.before.items()), (
        "what was finished is not done again"
    )
    assert len({file.parent for file in killed.before if file.name == "run.json"}) < len(
        list((killed.study.output / "runs").iterdir())
    )


@pytest.mark.slow
def test_every_stage_leaves_its_episodes_and_every_run_its_account(study: Study) -> None:
    records, account = (
        load_records(study.output / "records"),
        json.loads((study.output / "records" / "study.json").read_text()),
    )
    played = {(one.policy, one.seed, one.setting, one.variant) for one in records}
    for stage in plan(SMOKE):
        for variant in (
            SMOKE.variants if stage.block.setting == VARIANT_AGGREGATION and SMOKE.variants else ("base",)
        ):
            assert (stage.arm.name, stage.seed, stage.block.setting, variant) in played
    runs = {(run["arm"]["name"], run["seed"]): run for run in account["runs"]}
    assert set(runs) == {(stage.arm.name, stage.seed) for stage in plan(SMOKE)} and not account["not_run"]
    for one in records:
        assert one.checkpoint_hash == runs[one.policy, one.seed]["checkpoint_hash"] and one.start == "dense"
    assert (
        len({run["data"] for run in runs.values()}) == 1 and len({run["base"] for run in runs.values()}) == 3
    )
    assert (
        runs["action_only_data_50", 0]["frames"]
        < runs["action_only", 0]["frames"]
        == runs["shuffled_rationales", 0]["frames"]
    )
    assert not any((study.output / "activations").glob("*")), "no run is left that reads them"


@pytest.mark.slow
def test_arms_of_a_seed_play_the_same_starts_and_seeds_others(study: Study) -> None:
    records = [one for one in load_records(study.output / "records") if one.setting == VISUAL_MATCHING]
    starts = {
        arm: {(one.task, one.seed, one.episode_id) for one in records if one.policy == arm}
        for arm in (*PRIMARY, "shuffled_rationales")
    }
    assert len({frozenset(found) for found in starts.values()}) == 1 and {
        seed for _, seed, _ in starts["action_only"]
    } == {0, 1}


@pytest.mark.slow
def test_what_is_done_is_not_done_again(study: Study) -> None:
    before = files(study)
    carry_out(study, plan(SMOKE))
    assert files(study) == before


@pytest.mark.slow
def test_records_and_demonstrations_are_enough_to_go_on_and_are_not_mixed_with_others(
    study: Study, bases: dict[str, Path], tmp_path: Path
) -> None:
    """As on another machine, to which nobody carries checkpoints."""
    shutil.copytree(study.output / "records", tmp_path / "published")
    carried = replace(study, output=tmp_path / "elsewhere")
    with pytest.raises(KitError, match="published has no dataset -> start without --published"):
        start_from(tmp_path / "published", carried.output)
    shutil.copytree(study.output / "dataset", tmp_path / "published/dataset")
    start_from(tmp_path / "published", carried.output)
    carry_out(carried, plan(SMOKE))
    assert not (carried.output / "runs").exists()
    assert load_records(carried.output / "records") == load_records(study.output / "records")
    with pytest.raises(
        KitError,
        match=r"records holds a run that this plan does not make, .*-seed0-.* -> give another --output",
    ):
        carry_out(replace(carried, base=bases["grounded"]), plan(SMOKE))


@pytest.mark.slow
def test_the_published_records_can_be_gone_on_with(tmp_path: Path) -> None:
    """They are of the demonstrations beside them: otherwise this would be refused."""
    twins = {name: CHECKPOINTS / f"{name}_base" for name in ("grounded", "ungrounded")}
    base = CHECKPOINTS / "earlier_base"
    study = Study(PROFILES["laptop"], base, tmp_path / "laptop", twins, progress=False)
    start_from(SHIPPED, study.output)
    first, *later = plan(study.profile)
    carry_out(study, [first], later)
    assert not (study.output / "runs").exists(), "nothing that is recorded is done again"


@pytest.mark.slow
def test_the_report_says_what_statistics_say_about_the_same_records(study: Study, tmp_path: Path) -> None:
    results = load_results(study.output / "records", SMOKE)
    text = write_report(study.output / "records", tmp_path, results).read_text()
    records = load_records(study.output / "records")
    for block in SMOKE.blocks:
        own = [one for one in records if one.setting == block.setting]
        found = contrasts(results, block)
        assert [(one.a, one.b) for one in found] == list(block.contrasts)
        for one in found:
            assert one == compare_seeds(own, one.a, one.b)
            assert one.pooled == compare([r for r in as_one_policy(own) if r.seed in one.seeds], one.a, one.b)
            assert f"**{100 * one.estimate.mean:+.1f}**" in text
    for score in summarise(as_one_policy(records)):
        assert rates(results, score.setting)[score.policy][score.task] == score.rate
    assert "preliminary" not in text and "### Exploratory, data" in text
    for name in ("experiment_main", "experiment_sensitivity"):
        made = json.loads((tmp_path / f"{name}.json").read_text())
        assert (tmp_path / f"{name}.png").is_file() and set(made["sha256"]) == {"study", "records"}
    weights = varied(results)[WEIGHT]
    assert [x for x, _ in weights["with_reasoning"]] == [0, 0.3, 1.0]


def test_a_block_that_lacks_its_base_is_left_out_with_the_reason(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    stages = plan(SMOKE, ["main", "grounding"])
    doable, reasons = possible(Study(SMOKE, bases["main"], tmp_path), stages)
    assert doable == plan(SMOKE, ["main"])
    assert reasons["action_only_ungrounded"] == "no ungrounded base was given"


def test_a_dry_run_writes_nothing(
    bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(
        ["--profile", "laptop", "--dry-run", "--base", str(bases["main"]), "--output", str(tmp_path / "out")]
    )
    said = capsys.readouterr().out
    assert (
        "with_reasoning               0,1,2,3,4,5" in said
        and "training runs of 400 steps" in said
        and not (tmp_path / "out").exists()
    )


def test_an_arm_that_freezes_all_there_is_stops_before_the_first_run(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    block = SMOKE.blocks[0]
    deep = replace(
        SMOKE, blocks=(replace(block, arms=tuple(replace(arm, freeze_layers=5) for arm in block.arms)),)
    )
    with pytest.raises(KitError, match=r"freezes 5 language layers, .* has 5"):
        carry_out(Study(deep, bases["main"], tmp_path / "out", progress=False), plan(deep))
    assert not (tmp_path / "out" / "runs").exists()


def test_arms_of_a_sweep_are_called_by_what_is_different_about_them() -> None:
    names = (
        "with_reasoning",
        "action_only_depth_1",
        "with_reasoning_data_25",
        "action_only_ungrounded",
        "lambda_0.1",
    )
    assert [arm_label(name) for name in names] == [
        "with reasoning loss",
        "actions only, 1 frozen",
        "with reasoning loss, 25 % of the data",
        "actions only, ungrounded base",
        "lambda = 0.1",
    ]


def test_generated_sections_replace_only_what_stands_between_their_markers(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text(
        "before\n<!-- results: made by python -m experiments.report, not by hand -->\nold\n<!-- end "
        "of results -->\nafter\n"
    )
    insert(document, "results", "new\n")
    assert document.read_text() == (
        "before\n<!-- results: made by python -m experiments.report, not by hand -->\n\nnew\n\n<!-- "
        "end of results -->\nafter\n"
    )
    with pytest.raises(KitError, match="has no place for power"):
        insert(document, "power", "x")
