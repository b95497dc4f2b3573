"""The package's modules stand on each other one way, and on nothing of the experiments."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from refinevla_kit.settings import REPOSITORY

PACKAGE = "refinevla_kit"
FILES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (REPOSITORY / PACKAGE).rglob("*.py")
}


def imported(path: Path) -> Iterator[str]:
    """Modules that a file imports, wherever it does, but not what is for type checkers alone."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                module = f"{node.module}.{name.name}"
                yield module if module in FILES else node.module
        waiting += ast.iter_child_nodes(node)


def test_no_module_imports_itself_through_others() -> None:
    graph = {name: {module for module in imported(path) if module in FILES} for name, path in FILES.items()}
    assert {"refinevla_kit.vlas.action_tokens"} <= graph["refinevla_kit.vlas.compact"]
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_the_package_does_not_stand_on_what_stands_on_it() -> None:
    above = ("experiments", "scripts", "tests", "benchmarks")
    found = {
        name: module
        for name, path in FILES.items()
        for module in imported(path)
        if module.split(".")[0] in above
    }
    assert found == {}
