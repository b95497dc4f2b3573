"""Running notebooks: requests are checked first, the kernel is this Python, a failure names notebook, cell
and message.

These tests run small notebooks written here, in place of the kit's, through the real papermill and a real
kernel.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from refinevla_kit.errors import KitError
from refinevla_kit.journal import Journal
from refinevla_kit.notebook_runner import (
    copy_notebooks,
    failure_line,
    notebook_path,
    parse_parameter,
    run_notebooks,
    select_notebooks,
)
from refinevla_kit.settings import NOTEBOOKS, REPOSITORY, is_text, profile_names, read_settings

WriteNotebook = Callable[..., None]


@pytest.fixture
def write_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteNotebook:
    """A current folder with notebooks of its own, which are run in place of the kit's."""
    folder = tmp_path / "own"
    (folder / "notebooks" / "profiles").mkdir(parents=True)
    profile = REPOSITORY / "notebooks" / "profiles" / "smoke.yaml"
    shutil.copy(profile, folder / "notebooks" / "profiles" / "smoke.yaml")
    monkeypatch.chdir(folder)

    def write(name: str, *sources: str) -> None:
        node = new_notebook(
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        )
        parameters = new_code_cell(
            "profile = 'smoke'\noutput = None\nmore = {}\nworkers = None", metadata={"tags": ["parameters"]}
        )
        node.cells = [new_markdown_cell("Words, [linked](../figures/seen.png)."), parameters]
        node.cells += [new_code_cell(source) for source in sources]
        nbformat.write(node, folder / "notebooks" / f"{name}.ipynb")

    return write


def test_values_are_literals_else_text() -> None:
    texts = [
        "steps=40",
        "rate=1e-3",
        "flag=true",
        "flag=True",
        "base=None",
        'tasks=["a", "b"]',
        "dataset=/a=b/c",
        "assets=official",
    ]
    assert [parse_parameter(text)[1] for text in texts] == [
        40,
        1e-3,
        True,
        True,
        None,
        ["a", "b"],
        "/a=b/c",
        "official",
    ]
    for wrong in ("steps", "=3", "my steps=3"):
        with pytest.raises(KitError, match="is not name=value"):
            parse_parameter(wrong)


def test_a_text_stays_a_text_whatever_it_looks_like() -> None:
    texts = ["dataset=2024", "dataset=1e3", "base=007", "teacher=true", 'model="m"', "dataset=null"]
    assert [parse_parameter(text)[1] for text in texts] == ["2024", "1e3", "007", "true", "m", None]


names = (
    st.from_regex(r"[a-z_]{1,10}", fullmatch=True)
    .filter(str.isidentifier)
    .filter(lambda name: not is_text(name))
)
values = (
    st.integers()
    | st.booleans()
    | st.none()
    | st.lists(st.text())
    | st.floats(allow_nan=False, allow_infinity=False)
)


@given(names, values)
def test_any_value_survives_the_command_line(name: str, value: object) -> None:
    assert parse_parameter(f"{name}={value!r}") == (name, value)
    assert parse_parameter(f"{name}={json.dumps(value)}") == (name, value)


def test_notebooks_are_chosen_by_number_or_name_and_run_in_order() -> None:
    assert select_notebooks() == list(NOTEBOOKS)[1:], "the quickstart is run when it is asked for"
    assert select_notebooks(["0"]) == ["00_quickstart"]
    assert (
        select_notebooks(["3", "01_teacher_annotation", "notebooks/02_fine_tuning.ipynb"])
        == list(NOTEBOOKS)[1:4]
    )
    with pytest.raises(KitError, match="unknown notebook '07'"):
        select_notebooks(["07"])


def test_notebooks_are_written_into_a_folder_and_used_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new" / "folder"
    written = copy_notebooks(folder)
    assert copy_notebooks(folder) == written, "the same may be there already"
    notebooks = sorted(folder.glob("notebooks/*.ipynb"))
    assert [path.stem for path in notebooks] == list(NOTEBOOKS)
    links = {link for path in notebooks for link in re.findall(r"!\[[^]]*\]\((\S+?)\)", path.read_text())}
    assert len(links) == len(notebooks) and all((folder / "notebooks" / link).is_file() for link in links)
    linked = {link for path in notebooks for link in re.findall(r"\]\((\.\./\S+?)\)", path.read_text())}
    assert [link for link in linked if not (folder / "notebooks" / link).is_file()] == []
    assert "../cards/compact_base.md" in linked
    assert not (folder / "data").exists(), "a checkpoint's folder there would be taken for the shipped one"
    (folder / "notebooks/profiles/smoke.yaml").rename(folder / "notebooks/profiles/mine.yaml")
    for here in (folder, folder / "notebooks"):  # of a terminal, and of a kernel that JupyterLab starts
        monkeypatch.chdir(here)
        assert profile_names() == ["gpu", "laptop", "mine", "paper"]
        assert notebook_path(notebooks[0].stem) == notebooks[0]
        assert read_settings("00_quickstart", "mine").output == folder / "runs" / "mine"
    notebooks[0].write_text("changed")
    notebooks[1].unlink()
    with pytest.raises(KitError, match=r"00_quickstart\.ipynb is there already and differs"):
        copy_notebooks(folder)
    assert notebooks[0].read_text() == "changed" and not notebooks[1].exists()


def test_unknown_parameter_and_profile_stop_before_anything_runs(
    write_notebook: WriteNotebook, tmp_path: Path
) -> None:
    write_notebook("01_teacher_annotation", "raise SystemExit")
    requests = (
        ({"workerz": 3}, "smoke", r"unknown parameter 'workerz'.*did you mean 'workers'.*choose one of"),
        ({"workers": "many"}, "smoke", "workers is a whole number"),
        ({"settle": 2, "start": "gird"}, "smoke", "did you mean 'grid'"),
        ({"profile": "paper"}, "smoke", "use --profile"),
        ({}, "smoky", "unknown profile 'smoky'"),
    )
    for parameters, profile, why in requests:
        with pytest.raises(KitError, match=why):
            run_notebooks(["01"], profile, tmp_path / "run", parameters, progress=False)
    assert not (tmp_path / "run").exists()


def test_runs_in_this_python_whatever_kernel_the_user_has_under_that_name(
    write_notebook: WriteNotebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "jupyter" / "kernels" / "python3"
    other.mkdir(parents=True)
    (other / "kernel.json").write_text(
        json.dumps({"argv": ["/bin/false"], "display_name": "Another", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    write_notebook(
        "01_teacher_annotation",
        "import json, os, sys\nfrom pathlib import Path\nfolder = Path(output) / "
        "'01_teacher_annotation'\nfolder.mkdir()",
        "(folder / 'summary.json').write_text(json.dumps([sys.executable, "
        "os.environ['OMP_NUM_THREADS'], workers, more, profile]))",
    )
    parameters = {"workers": 9, "settle": 5}
    result = run_notebooks(["1"], "smoke", tmp_path / "run", parameters, threads=1, progress=False)
    assert result["failed"] is None
    assert json.loads(
        (tmp_path / "run" / result["notebooks"]["01_teacher_annotation"]["summary"]).read_text()
    ) == [sys.executable, "1", 9, {"settle": 5}, "smoke"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == result
    assert os.environ["JUPYTER_PATH"] == str(tmp_path / "jupyter")


def test_failure_names_notebook_cell_and_message_and_ends_the_run(
    write_notebook: WriteNotebook, tmp_path: Path
) -> None:
    write_notebook(
        "01_teacher_annotation",
        "answer = 42",
        "from refinevla_kit.errors import KitError\nraise KitError('bad dataset', 'record anew')",
    )
    write_notebook("02_fine_tuning", "1 / 0")
    result = run_notebooks(["1", "2"], "smoke", tmp_path / "run", progress=False)
    line = failure_line(result["failed"])
    assert line.startswith(
        "notebook 01_teacher_annotation, cell In [4]: KitError: bad dataset -> record anew (stopped at "
    )
    assert line.endswith("go on with `refinevla reproduce --only 01,02,03,04,05,06` and the same options")
    assert "`refinevla run 01` and the same options" in failure_line(result["failed"], alone=True)
    write_notebook("03_simpler_evaluation", "1")
    again = run_notebooks(["3"], "smoke", tmp_path / "run", progress=False)
    assert (
        again["failed"] is None and again["notebooks"]["01_teacher_annotation"]["failed"] == result["failed"]
    ), "what failed is not forgotten"
    executed = tmp_path / "run" / "executed" / "03_simpler_evaluation.ipynb"
    (link,) = re.findall(r"\]\(([^)]*)", nbformat.read(executed, as_version=4).cells[0].source)
    assert (executed.parent / link).resolve() == tmp_path / "own" / "figures" / "seen.png"
    assert len(line.splitlines()) == 1
    assert (
        list(result["notebooks"]) == ["01_teacher_annotation"]
        and result["notebooks"]["01_teacher_annotation"]["summary"] is None
    )
    executed = nbformat.read(tmp_path / "run" / "executed" / "01_teacher_annotation.ipynb", as_version=4)
    assert any("42" in cell.source for cell in executed.cells if cell.get("execution_count"))


def test_kernel_that_dies_is_reported(write_notebook: WriteNotebook, tmp_path: Path) -> None:
    write_notebook("01_teacher_annotation", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    result = run_notebooks(["1"], "smoke", tmp_path / "run", progress=False)
    assert "memory" in result["failed"]["message"]


def test_unwritable_output_is_one_line(write_notebook: WriteNotebook, tmp_path: Path) -> None:
    write_notebook("01_teacher_annotation", "pass")
    (tmp_path / "file").write_text("")
    with pytest.raises(KitError, match="cannot write"):
        run_notebooks(["1"], "smoke", tmp_path / "file", progress=False)


def test_full_disk_is_one_line(write_notebook: WriteNotebook, small_disk: Path) -> None:
    write_notebook("01_teacher_annotation", "print('x' * 100_000)")
    with pytest.raises(KitError, match="No space left on device"):
        run_notebooks(["1"], "smoke", small_disk / "run", progress=False)


def test_two_runs_in_one_folder_are_refused(write_notebook: WriteNotebook, tmp_path: Path) -> None:
    write_notebook("01_teacher_annotation", "pass")
    with Journal(tmp_path / "run" / ".running"), pytest.raises(KitError, match="another run is writing to"):
        run_notebooks(["1"], "smoke", tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"base": "/no/such"}, "/no/such does not exist"),
        ({"dataset": "data/demo", "episodes": 2}, "episodes would be those of the dataset in notebook 1"),
    ],
)
def test_what_an_earlier_notebook_does_not_need_is_checked_before_it_runs(
    given: dict[str, object], says: str, tmp_path: Path
) -> None:
    with pytest.raises(KitError, match=says):
        run_notebooks(["1", "2", "3"], "smoke", tmp_path / "run", given, progress=False)
    assert not (tmp_path / "run").exists()


def test_a_notebook_that_is_none_is_one_line(write_notebook: WriteNotebook, tmp_path: Path) -> None:
    write_notebook("01_teacher_annotation", "pass")
    (tmp_path / "own/notebooks/01_teacher_annotation.ipynb").write_text("<<<<<<< HEAD")
    with pytest.raises(KitError, match=r"01_teacher_annotation.ipynb cannot be read .* -> write it anew"):
        run_notebooks(["1"], "smoke", tmp_path / "run", progress=False)


def test_a_kernel_that_does_not_begin_is_reported(
    write_notebook: WriteNotebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_notebook("01_teacher_annotation", "pass")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    result = run_notebooks(["1"], "smoke", tmp_path / "run", progress=False)
    assert "died" in result["failed"]["message"].lower()
