"""The notebooks' form: short cells, explained, without code of their own, without outputs, every parameter
known to the profiles.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pandas as pd
import papermill
import pytest

from refinevla_kit.attention import grounding
from refinevla_kit.attention.interventions import OWNER
from refinevla_kit.evaluation import intervals, summarise
from refinevla_kit.settings import NOTEBOOKS, REPOSITORY, Reading, Settings
from tests.evaluation.rows import row

MOST_CELLS, MOST_LINES, MOST_PARAMETERS = 12, 8, 12
MOST_IMPORTS, WIDEST = 8, 110  # lines that import from the kit; columns


def cells(notebook: str) -> list[nbformat.NotebookNode]:
    return nbformat.read(REPOSITORY / "notebooks" / f"{notebook}.ipynb", as_version=4).cells


def code(notebook: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in cells(notebook) if cell.cell_type == "code"]


def test_there_are_seven() -> None:
    assert sorted(path.stem for path in (REPOSITORY / "notebooks").glob("*.ipynb")) == list(NOTEBOOKS)


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_valid_with_kernel_and_without_outputs(notebook: str) -> None:
    node = nbformat.read(REPOSITORY / "notebooks" / f"{notebook}.ipynb", as_version=4)
    nbformat.validate(node)
    assert node.metadata.kernelspec == {"name": "python3", "display_name": "Python 3", "language": "python"}
    assert [cell for cell in code(notebook) if cell.outputs or cell.execution_count] == []


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_short(notebook: str) -> None:
    assert len(code(notebook)) <= MOST_CELLS
    lines = {cell.source: len(re.findall(r"(?m)^.*\S", cell.source)) for cell in code(notebook)[1:]}
    assert {source: number for source, number in lines.items() if number > MOST_LINES} == {}
    assert len(code(notebook)[0].source.splitlines()) <= MOST_PARAMETERS
    source = "\n".join(cell.source for cell in code(notebook))
    assert len(re.findall(r"(?m)^\s*(?:from|import) refinevla_kit", source)) <= MOST_IMPORTS
    assert [line for line in source.splitlines() if len(line) > WIDEST] == []


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_defines_nothing(notebook: str) -> None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    for cell in code(notebook):
        assert [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, kinds)] == [], (
            cell.source
        )


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_begins_with_a_picture_of_what_it_gives(notebook: str) -> None:
    title, picture = cells(notebook)[0].source.split("\n\n")[:2]
    place = re.fullmatch(r"!\[.+\]\((.+)\)", picture)
    assert title.startswith("# ") and place is not None
    assert (REPOSITORY / "notebooks" / place[1]).is_file()


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_words_before_each_cell(notebook: str) -> None:
    before = None
    for cell in cells(notebook):
        if cell.cell_type == "code":
            assert before is not None and before.cell_type == "markdown" and before.source.strip(), (
                cell.source
            )
        before = cell


def test_the_quickstart_sets_up_where_the_kit_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the address that the links to Colab name; elsewhere the cell starts no program."""
    commands: list[str] = []
    monkeypatch.setattr("subprocess.run", lambda command, shell, check: commands.append(command))
    cell = code("00_quickstart")[0].source
    exec(cell, {})
    assert commands == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(cell, {})
    pages = [REPOSITORY / "README.md", REPOSITORY / "notebooks" / "00_quickstart.ipynb"]
    link = r"colab\.research\.google\.com/github/([\w-]+/[\w-]+)/blob/main/notebooks/00_quickstart\.ipynb"
    [address] = {name for page in pages for name in re.findall(link, page.read_text(encoding="utf-8"))}
    script = f"bash kit/scripts/colab.sh {sys.executable}"
    assert commands == [f"git clone -q --depth 1 https://github.com/{address} kit && {script}"]
    assert (REPOSITORY / "scripts" / "colab.sh").is_file()


def parameters(notebook: str) -> dict[str, object]:
    """What the cell tagged `parameters` assigns, in order."""
    tagged = [cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    namespace: dict[str, object] = {}
    exec(tagged[0].source, {}, namespace)
    return namespace


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_parameters_are_those_of_the_settings(notebook: str) -> None:
    """One tagged cell, which begins with the common ones; each is None, or in `more`, and is given to
    `read_settings` by its name; what the settings hold the notebook uses.
    """
    shown = parameters(notebook)
    assert list(shown.items())[:3] == [("profile", "laptop"), ("output", None), ("seed", 0)]
    assert set(papermill.inspect_notebook(REPOSITORY / "notebooks" / f"{notebook}.ipynb")) == set(shown)
    fields = NOTEBOOKS[notebook].model_fields
    more = shown.pop("more", {})
    assert more == {} and set(shown) <= set(fields)
    assert [
        value for name, value in shown.items() if name not in Settings.model_fields and value is not None
    ] == []
    calls = [
        node
        for cell in code(notebook)
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Call)
    ]
    [call] = [node for node in calls if ast.unparse(node.func) == "read_settings"]
    assert [ast.unparse(value) for value in call.args] == [repr(notebook), *Settings.model_fields]
    given = [(word.arg, ast.unparse(word.value)) for word in call.keywords]
    hidden = set(fields) - set(shown)
    assert given == [(name, name) for name in list(shown)[3:]] + [(None, "more")] * bool(hidden)
    words = set(re.findall(r"\w+", "\n".join(cell.source for cell in code(notebook))))
    assert set(fields) <= words | ({*Reading.model_fields, "episodes"} if "reading_of" in words else set())


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_parameters_keep_their_values(notebook: str) -> None:
    """Else whoever runs the first cells again gives the notebook what a later cell made of them."""
    held = {*parameters(notebook), *NOTEBOOKS[notebook].model_fields}
    for cell in code(notebook):
        if "parameters" not in cell.metadata.get("tags", []):
            names = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name)]
            stored = {node.id for node in names if isinstance(node.ctx, ast.Store)}
            assert not stored & held, cell.source


def run_cell(notebook: str, word: str, **known: Any) -> dict[str, Any]:
    """What is known after the cell that holds `word`."""
    [source] = [cell.source for cell in code(notebook) if word in cell.source]
    exec(source, known)
    return known


@pytest.mark.parametrize(
    ("robot", "setting", "tables"),
    [("widowx", "visual_matching", 1), ("widowx", "variant_aggregation", 0)],
)
def test_results_stand_beside_published_ones_of_their_setting(
    robot: str, setting: str, tables: int, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[pd.DataFrame] = []
    settings = SimpleNamespace(robot=robot, setting=setting)
    scores = summarise([row("action_only", 0, True, variant="base" if tables else "dark")])
    run_cell(
        "03_simpler_evaluation", "published_scores", settings=settings, scores=scores, display=shown.append
    )
    said = "" if tables else f"nothing is published for {robot} in {setting}\n"
    assert (len(shown), capsys.readouterr().out) == (tables, said)


def test_what_was_played_under_another_sentence_is_kept(tmp_path: Path) -> None:
    played = {"a": pd.DataFrame({"task": ["t"] * 2, "told": [False, True], "obeyed": [True, False]})}
    settings = SimpleNamespace(folder=tmp_path)
    run_cell("06_interventions", "obeyed =", pd=pd, played=played, settings=settings, intervals=intervals)
    assert pd.read_csv(tmp_path / "obeyed.csv")["obeyed"].tolist() == [True, False]


def test_where_no_policy_writes_a_text_the_interventions_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = pd.DataFrame([], columns=[*OWNER, "edit", "control", "words", "divergence"])
    names = dict.fromkeys(("paths", "made_from", "style", "by_layer"))
    known = run_cell(
        "06_interventions",
        "edit_rationales",
        **names,
        load_policies=lambda *_: [None, None],
        interventions=SimpleNamespace(edit_rationales=lambda *_: nothing),
        settings=SimpleNamespace(weights=None),
        chosen=[SimpleNamespace(robot="widowx")],
        shown=[],
        others=[],
        few=slice(None),
        tqdm=iter,
        pd=pd,
        grounding=grounding,
    )
    assert capsys.readouterr().out == "no policy wrote a text that an edit changes\n"
    assert known["texts"].to_json(orient="records") == "[]"  # in the summary
