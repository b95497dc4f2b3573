"""One dial and its overrides: the profile's values, what overrides them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinevla_kit.errors import KitError
from refinevla_kit.settings import COMMON, NOTEBOOKS, REPOSITORY, load_profile, profile_names, read_settings
from refinevla_kit.tasks import TASKS

NOTEBOOK = "02_fine_tuning"


def test_none_keeps_the_profile_and_a_value_overrides_it(tmp_path: Path) -> None:
    namespace = {"profile": "smoke", "output": str(tmp_path), "seed": 3, "steps": None, "batch_size": 5}
    settings = read_settings(NOTEBOOK, namespace)
    assert (settings.steps, settings.batch_size, settings.seed) == (load_profile("smoke")[NOTEBOOK]["steps"], 5, 3)
    assert settings.output == tmp_path
    assert settings.folder == tmp_path / NOTEBOOK and settings.folder.is_dir()
    assert settings.as_dict()["output"] == str(tmp_path)


def test_default_output_is_in_the_checkout_wherever_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_settings(NOTEBOOK, {"profile": "smoke"}).output == REPOSITORY / "runs" / "smoke"


def test_false_and_zero_are_values_too() -> None:
    assert read_settings(NOTEBOOK, {"profile": "smoke", "lambda_reasoning": 0}).lambda_reasoning == 0
    assert read_settings("03_simpler_evaluation", {"profile": "smoke", "include_demonstrator": False}).include_demonstrator is False


def test_misspelt_parameter_is_an_error_with_the_right_name() -> None:
    with pytest.raises(KitError, match=r"unknown parameter 'stepps' of 02_fine_tuning \(did you mean 'steps'\?\)"):
        read_settings(NOTEBOOK, {"profile": "smoke", "stepps": 3})


def test_a_list_given_as_text_is_an_error_and_not_read_letter_by_letter() -> None:
    with pytest.raises(KitError, match="tasks is a list"):
        read_settings("03_simpler_evaluation", {"profile": "smoke", "tasks": '["widowx_stack_cube"]'})


def test_variables_of_later_cells_are_no_parameters() -> None:
    """Re-running the settings cell in JupyterLab, with everything that later cells have made, must work."""
    namespace: dict[str, object] = {"profile": "smoke", "In": [], "Out": {}, "_i1": "", "Path": Path}
    read_settings(NOTEBOOK, namespace)
    namespace |= {"losses": [1.0], "steps": 7}
    assert read_settings(NOTEBOOK, namespace).steps == 7


def test_settings_are_frozen() -> None:
    settings = read_settings(NOTEBOOK, {"profile": "smoke"})
    with pytest.raises(AttributeError, match="frozen"):
        settings.steps = 1
    with pytest.raises(AttributeError, match="no setting 'step'"):
        _ = settings.step


@given(st.text(min_size=1).filter(lambda name: name not in profile_names()))
def test_unknown_profile_names_the_known_ones(profile: str) -> None:
    with pytest.raises(KitError, match="choose one of gpu, laptop, paper, smoke") as caught:
        read_settings(NOTEBOOK, {"profile": profile})
    assert len(str(caught.value).splitlines()) == 1


def test_input_is_what_is_given_else_the_run_else_what_is_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read_settings(NOTEBOOK, {"profile": "smoke", "output": str(tmp_path)})
    with pytest.raises(KitError, match="run notebook 01_teacher_annotation first"):
        settings.find(None, "01_teacher_annotation/dataset", "no-such-thing")
    left = tmp_path / "01_teacher_annotation" / "dataset"
    left.mkdir(parents=True)
    assert settings.find(None, "01_teacher_annotation/dataset", "demo") == left
    monkeypatch.chdir(tmp_path)
    assert settings.find("01_teacher_annotation", "x", "y") == left.parent  # relative to where the command was given
    assert settings.find("notebooks/profiles", "x", "y") == REPOSITORY / "notebooks" / "profiles"  # or to the checkout
    with pytest.raises(KitError, match="/nowhere does not exist"):
        settings.find("/nowhere", "x", "y")


def test_output_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KitError, match="cannot be made"):
        _ = read_settings(NOTEBOOK, {"profile": "smoke", "output": str(tmp_path / "file")}).folder


def test_profiles_differ_in_values_only() -> None:
    """Each profile has every notebook and the same names, so a notebook runs under all of them."""
    assert profile_names() == ["gpu", "laptop", "paper", "smoke"]
    profiles = {name: load_profile(name) for name in profile_names()}
    for notebook in NOTEBOOKS:
        names = {name: list(sections[notebook]) for name, sections in profiles.items()}
        assert len({tuple(each) for each in names.values()}) == 1, (notebook, names)
        assert not set(COMMON) & set(names["smoke"])
    for sections in profiles.values():
        assert tuple(sections) == NOTEBOOKS
        used = set(sections["01_teacher_annotation"]["tasks"]) | set(sections["03_simpler_evaluation"]["tasks"])
        assert used <= set(TASKS)
