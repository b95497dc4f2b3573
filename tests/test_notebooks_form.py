"""The notebooks' form: short cells, explained, without code of their own, without outputs, every parameter
known to the profiles.
"""

from __future__ import annotations

import ast
import re

import nbformat
import pytest

from refinevla_kit.settings import COMMON, NOTEBOOKS, REPOSITORY, load_profile, parameter_names, profile_names

MOST_CELLS, MOST_LINES = 15, 10


def cells(notebook: str) -> list[nbformat.NotebookNode]:
    return nbformat.read(REPOSITORY / "notebooks" / f"{notebook}.ipynb", as_version=4).cells


def code(notebook: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in cells(notebook) if cell.cell_type == "code"]


def test_there_are_five() -> None:
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
    assert {
        cell.source: len(cell.source.splitlines())
        for cell in code(notebook)
        if len(cell.source.splitlines()) > MOST_LINES
    } == {}


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_defines_nothing(notebook: str) -> None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    for cell in code(notebook):
        assert [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, kinds)] == [], (
            cell.source
        )


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_words_before_each_cell(notebook: str) -> None:
    before = None
    for cell in cells(notebook):
        if cell.cell_type == "code":
            assert before is not None and before.cell_type == "markdown" and before.source.strip(), (
                cell.source
            )
        before = cell


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_parameters_are_those_of_the_profiles(notebook: str) -> None:
    """One tagged cell, which begins with the common ones; what it leaves None the profile holds, and what the
    profile holds the notebook uses.
    """
    tagged = [cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    namespace: dict[str, object] = {}
    exec(tagged[0].source, namespace)
    shown = {name: namespace[name] for name in parameter_names(notebook)}
    assert list(shown.items())[:3] == [("profile", "laptop"), ("output", None), ("seed", 0)]
    words = set(re.findall(r"\w+", "\n".join(cell.source for cell in code(notebook))))
    for profile in profile_names():
        held = load_profile(profile)[notebook]
        assert {name for name, value in shown.items() if value is None} <= {*COMMON, *held}, profile
        assert set(held) <= words, profile


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_parameters_keep_their_values(notebook: str) -> None:
    """Else whoever runs the first cells again gives the notebook what a later cell made of them."""
    held = {*parameter_names(notebook), *load_profile("laptop")[notebook]}
    for cell in code(notebook):
        if "parameters" not in cell.metadata.get("tags", []):
            stored = {
                node.id
                for node in ast.walk(ast.parse(cell.source))
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            }
            assert not stored & held, cell.source
