"""One dial and its overrides: the profile's values, what overrides them, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from refinevla_kit.errors import KitError
from refinevla_kit.settings import (
    NOTEBOOKS,
    PROFILES,
    REPOSITORY,
    Settings,
    load_profile,
    profile_names,
    read_settings,
)
from refinevla_kit.tasks import find_tasks

NOTEBOOK = "02_fine_tuning"
COMMON = tuple(Settings.model_fields)


def test_none_keeps_the_profile_and_a_value_overrides_it(tmp_path: Path) -> None:
    settings = read_settings(NOTEBOOK, "smoke", tmp_path, seed=3, steps=None, batch_size=5)
    assert (settings.steps, settings.batch_size, settings.seed) == (
        load_profile("smoke")[NOTEBOOK]["steps"],
        5,
        3,
    )
    assert settings.output == tmp_path
    assert settings.folder == tmp_path / NOTEBOOK and settings.folder.is_dir()
    assert settings.as_dict()["output"] == str(tmp_path)


def test_default_output_is_in_the_checkout_wherever_the_notebook_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_settings(NOTEBOOK, profile="smoke").output == REPOSITORY / "runs" / "smoke"


def test_false_and_zero_are_values_too() -> None:
    assert read_settings(NOTEBOOK, profile="smoke", lambda_reasoning=0).lambda_reasoning == 0
    assert (
        read_settings(
            "03_simpler_evaluation", profile="smoke", include_demonstrator=False
        ).include_demonstrator
        is False
    )


def test_a_robot_brings_its_tasks_unless_others_are_named() -> None:
    notebook = "03_simpler_evaluation"
    settings = read_settings(notebook, "laptop", robot="google_robot")
    assert (settings.tasks, settings.starts) == (["google_robot"], "spread")
    assert settings.records_name == "google_robot.parquet"
    instead = {"tasks": ["move_near"], "starts": "spread"}
    assert read_settings(notebook, "laptop", robot="google_robot", google_robot=instead).tasks == [
        "move_near"
    ]
    with pytest.raises(KitError, match="foo"):
        read_settings(notebook, "laptop", robot="google_robot", google_robot={"foo": 3})
    assert read_settings(notebook, "laptop", robot="google_robot", tasks=["move_near"]).tasks == ["move_near"]
    assert read_settings(notebook, "laptop").starts == "grid"
    with pytest.raises(KitError, match="unknown robot 'widowy'"):
        read_settings(notebook, "laptop", robot="widowy")


def test_misspelt_parameter_is_an_error_with_the_right_name() -> None:
    with pytest.raises(KitError, match=r"unknown parameter 'stepps' \(did you mean 'steps'\?\)"):
        read_settings(NOTEBOOK, profile="smoke", stepps=3)


def test_a_list_given_as_text_is_an_error_and_not_read_letter_by_letter() -> None:
    with pytest.raises(KitError, match="tasks is a list"):
        read_settings("03_simpler_evaluation", profile="smoke", tasks='["widowx_stack_cube"]')


def test_a_misspelt_parameter_is_an_error_at_every_run_of_the_cell() -> None:
    """What the parameters cell shows and what it has in `more` is given by name, each time anew."""
    for _ in range(2):
        with pytest.raises(KitError, match=r"unknown parameter 'stepps'.*did you mean 'steps'"):
            read_settings(NOTEBOOK, "smoke", None, 0, steps=None, stepps=9)
        with pytest.raises(KitError, match="unknown parameter 'lamda_reasoning'"):
            read_settings(NOTEBOOK, "smoke", None, 0, steps=None, lamda_reasoning=0.1)
    assert read_settings(NOTEBOOK, "smoke", None, 0, steps=9).steps == 9, "mended, it runs"
    assert read_settings(NOTEBOOK, "smoke", None, 0, steps=None).steps == 4, "and nothing is kept of it"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("base", 0.5, "base is a text"),
        ("threads", "two", "threads is a whole number, such as 2"),
        ("steps", 2.5, "steps is a whole number"),
        ("steps", True, "steps is a whole number"),
        ("seed", -1, "seed is -1"),
        ("seed", "x", "seed is a whole number"),
        ("rationales", ["a"], "a text"),
        ("output", "", "output is an empty text"),
        ("seed", 2**32, "seed is 4294967296"),
        ("steps", 0, "steps is 0"),
        ("order", "rationale", r"did you mean 'rationale_first'"),
        ("lambda_reasoning", float("nan"), "lambda_reasoning is nan"),
        ("learning_rate", -1.0, "learning_rate is -1"),
        ("learning_rate", 1e39, "learning_rate is 1e"),
        ("threads", -1, "threads is -1"),
    ],
)
def test_a_value_of_another_kind_is_refused(name: str, value: object, message: str) -> None:
    with pytest.raises(KitError, match=message):
        read_settings(NOTEBOOK, **{"profile": "smoke", name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("granularity", "segments", "did you mean 'segment'"),
        ("concurrency", 0, "concurrency is 0"),
        ("tasks", [], "tasks is an empty list"),
        ("episodes_per_task", -1, "episodes_per_task is -1"),
        ("tasks", [1], "unknown task, group or robot '1'"),
        ("start", "dense", "unknown start"),
    ],
)
def test_what_would_stop_a_run_after_its_recording_is_said_before(
    name: str, value: object, message: str
) -> None:
    with pytest.raises(KitError, match=message):
        read_settings("01_teacher_annotation", "smoke", **{name: value})


def test_a_folder_may_be_called_by_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = read_settings(NOTEBOOK, profile="smoke", dataset=2024, output=7)
    assert settings.output == tmp_path / "7"
    with pytest.raises(KitError, match="2024 does not exist: there is no such file or folder"):
        settings.find(settings.dataset, "x", "y")
    (tmp_path / "2024").mkdir()
    assert settings.find(settings.dataset, "x", "y") == tmp_path / "2024"


def test_the_same_settings_go_on_and_others_get_a_place_of_their_own(tmp_path: Path) -> None:
    settings = read_settings(NOTEBOOK, profile="smoke", output=str(tmp_path))
    first = settings.place("model", {"steps": 4})
    first.mkdir()
    assert settings.place("model", {"steps": 4}) == first == settings.folder / "model"
    second = settings.place("model", {"steps": 8})
    assert second == settings.folder / "model-2" and second == settings.place("model", {"steps": 8}), (
        "before it is made, too"
    )
    second.mkdir()
    later = read_settings("03_simpler_evaluation", profile="smoke", output=str(tmp_path))
    assert later.find(None, "02_fine_tuning/model", "demo") == second
    settings.place("model", {"steps": 4})
    assert later.find(None, "02_fine_tuning/model", "demo") == first, "the one that was used last"


def test_a_run_that_was_moved_or_copied_finds_what_it_remembered_in_its_own_folder(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    settings = read_settings("01_teacher_annotation", profile="smoke", output=str(old))
    made = settings.place("dataset", {})
    made.mkdir()
    (outside := tmp_path / "theirs").mkdir()
    settings.remember("dataset", made)
    settings.remember("base", outside)
    settings.remember(f"reading of {made}", {"camera": "wrist"})
    shutil.copytree(old, new)
    later = read_settings("02_fine_tuning", profile="smoke", output=str(new))
    data = later.find(None, "01_teacher_annotation/dataset", "demo")
    assert data == new / "01_teacher_annotation/dataset"
    assert later.recall(f"01_teacher_annotation/reading of {data}") == {"camera": "wrist"}
    assert later.find(None, "01_teacher_annotation/base", "demo") == outside


def test_what_nobody_knows_the_making_of_is_never_taken_over(tmp_path: Path) -> None:
    settings = read_settings(NOTEBOOK, profile="smoke", output=str(tmp_path))
    (settings.folder / "table.parquet").touch()
    assert settings.place("table.parquet", {}).name == "table-2.parquet"


def test_a_result_that_the_run_should_have_is_not_replaced_by_a_shipped_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = read_settings(NOTEBOOK, profile="smoke", output=str(tmp_path))
    later = read_settings("03_simpler_evaluation", profile="smoke", output=str(tmp_path))
    names = ("action_only", "with_reasoning")
    assert later.find_policies(names)["action_only"] == REPOSITORY / "data" / "checkpoints" / "action_only"
    assert "which the kit ships, is used" in capsys.readouterr().out
    settings.place("action_only", {}).mkdir()
    with pytest.raises(
        KitError, match=r"left action_only in .* but not with_reasoning -> run notebook 2 to its end"
    ):
        later.find_policies(names)
    settings.place("with_reasoning", {})
    with pytest.raises(KitError, match="is not there -> run notebook 02_fine_tuning to its end"):
        later.find_policies(names)


def test_settings_are_frozen() -> None:
    settings = read_settings(NOTEBOOK, profile="smoke")
    with pytest.raises(ValidationError, match="frozen"):
        settings.steps = 1
    with pytest.raises(AttributeError, match="no attribute 'step'"):
        _ = settings.step


@given(st.text(min_size=1).filter(lambda name: name not in profile_names()))
def test_unknown_profile_names_the_known_ones(profile: str) -> None:
    with pytest.raises(KitError, match="choose one of gpu, laptop, paper, smoke") as caught:
        read_settings(NOTEBOOK, profile=profile)
    assert len(str(caught.value).splitlines()) == 1


def test_input_is_what_is_given_else_the_run_else_what_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = read_settings(NOTEBOOK, profile="smoke", output=str(tmp_path))
    with pytest.raises(KitError, match="run notebook 01_teacher_annotation first"):
        settings.find(None, "01_teacher_annotation/dataset", "no-such-thing")
    left = tmp_path / "01_teacher_annotation" / "dataset"
    left.mkdir(parents=True)
    assert settings.find(None, "01_teacher_annotation/dataset", "demo") == left
    monkeypatch.chdir(tmp_path)
    assert (
        settings.find("01_teacher_annotation", "x", "y") == left.parent
    )  # relative to where the command was given
    assert (
        settings.find("notebooks/profiles", "x", "y") == REPOSITORY / "notebooks" / "profiles"
    )  # or to the checkout
    with pytest.raises(KitError, match="/nowhere does not exist"):
        settings.find("/nowhere", "x", "y")


def test_records_are_those_given_else_the_run_s_else_shipped(tmp_path: Path) -> None:
    shipped = REPOSITORY / "data" / "records"
    settings = read_settings("05_paper_figures", "smoke", str(tmp_path), records=str(shipped / "README.md"))
    assert settings.find_records("records") == shipped / "README.md"
    assert settings.find_records("google_robot") == shipped / "google_robot.parquet"
    left = tmp_path / "03_simpler_evaluation" / "google_robot.parquet"
    left.parent.mkdir()
    left.touch()
    assert settings.find_records("google_robot") == left


def test_output_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KitError, match="cannot be made"):
        _ = read_settings(NOTEBOOK, profile="smoke", output=str(tmp_path / "file")).folder


def test_profiles_differ_in_values_only() -> None:
    """Each profile has every notebook and the same names, so a notebook runs under all of them."""
    assert profile_names() == ["gpu", "laptop", "paper", "smoke"]
    profiles = {name: load_profile(name) for name in profile_names()}
    for notebook in NOTEBOOKS:
        names = {name: list(sections[notebook]) for name, sections in profiles.items()}
        assert len({tuple(each) for each in names.values()}) == 1, (notebook, names)
        assert {*names["smoke"], *COMMON} == set(NOTEBOOKS[notebook].model_fields)
        assert not set(COMMON) & set(names["smoke"])
    for sections in profiles.values():
        assert tuple(sections) == tuple(NOTEBOOKS)
        for notebook in ("01_teacher_annotation", "03_simpler_evaluation"):
            assert find_tasks(*sections[notebook]["tasks"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "02_fine_tuning:\n\tsteps: 3\n",
            r"the profile .*own.yaml cannot be read \(.*\) -> mend it",
        ),
        ("", "own.yaml cannot be read"),
        ("- 1\n", "own.yaml cannot be read"),
        ("02_fine_tuning: 3\n", "own.yaml cannot be read"),
        ("01_teacher_annotation: {}\n", "unknown section of the profile '02_fine_tuning'"),
        ("02_fine_tuning:\n  dataset: null\n", "the profile has no .* for 02_fine_tuning -> add it"),
    ],
)
def test_a_profile_of_ones_own_that_does_not_hold_is_one_line(
    text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / PROFILES).mkdir(parents=True)
    (tmp_path / PROFILES / "own.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KitError, match=says) as error:
        read_settings("02_fine_tuning", "own")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("notebook", "given", "says"),
    [
        ("04_attention_maps", {"layer": 0}, "layer is 0"),
        ("04_attention_maps", {"probes": 0}, "probes is 0"),
        ("04_attention_maps", {"task": "nonsense"}, "unknown task 'nonsense'"),
        ("00_quickstart", {"task": "widowx"}, "unknown task 'widowx'"),
        ("03_simpler_evaluation", {"tasks": ["widowx", "google_robot"]}, "tasks are of two robots"),
        ("06_interventions", {"language_tasks": ["widowx_language"]}, "which has several goals"),
        ("06_interventions", {"language_tasks": ["widowx_language_carrot_on_towel"]}, "one thing alone"),
    ],
)
def test_what_would_stop_a_notebook_late_is_said_at_once(
    notebook: str, given: dict[str, object], says: str
) -> None:
    with pytest.raises(KitError, match=says):
        read_settings(notebook, "smoke", **given)  # type: ignore[arg-type]


def test_what_yaml_takes_for_something_else_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / PROFILES).mkdir(parents=True)
    text = (REPOSITORY / PROFILES / "smoke.yaml").read_text()
    own = text.replace("cache: auto", "cache: off").replace("learning_rate: 3.0e-4", "learning_rate: 5e-5")
    (tmp_path / PROFILES / "own.yaml").write_text(own.replace("robot: widowx", "robot: google_robot"))
    monkeypatch.chdir(tmp_path)
    settings = read_settings(NOTEBOOK, "own")
    assert (settings.cache, settings.learning_rate) == ("off", 5e-5)
    assert settings.shipped_base == "checkpoints/google_base"
    assert read_settings("03_simpler_evaluation", "own").tasks == ["google_robot_pick_horizontal_coke_can"]


def test_a_dataset_is_read_as_notebook_1_was_told_unless_this_one_is_told_otherwise(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    told = {"columns": {"action": "command"}, "gripper": 1, "episodes": "0-2", "dataset": data}
    first = read_settings("01_teacher_annotation", "smoke", tmp_path / "run", **told)
    reading = first.remember(f"reading of {data}", first.reading_of(Path(data)))
    assert reading == {"columns": {"action": "command"}, "gripper": 1.0, "episodes": "0-2"}
    second = read_settings(NOTEBOOK, "smoke", tmp_path / "run", gripper=0.0)
    assert second.reading_of(Path(data)) == reading | {"gripper": 0.0}
    assert read_settings("05_paper_figures", "smoke", tmp_path / "run").reading_of(Path(data)) == reading
