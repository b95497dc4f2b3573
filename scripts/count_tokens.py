"""How much code the package is: tokens by room, comments and docstrings left out. Fails above a limit.

    python scripts/count_tokens.py [--limit N] [--module-limit N] [--modules]

Lines can be made long; tokens are what a reader has to take in.
"""

from __future__ import annotations

import argparse
import ast
import tokenize
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "refinevla_kit"
CODE = (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING)


@dataclass(frozen=True)
class Module:
    """What one file of the package holds: `lines` are those with a token of code."""

    path: str
    tokens: int
    lines: int

    @property
    def room(self) -> str:
        return self.path.partition("/")[0].removesuffix(".py")


def docstring_lines(source: str) -> set[int]:
    """First lines of the strings that are docstrings."""
    lines = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                lines.add(first.lineno)
    return lines


def count(file: Path) -> Module:
    """Count the tokens of a module, and the lines that hold any."""
    docstrings = docstring_lines(file.read_text(encoding="utf-8"))
    with file.open("rb") as source:
        tokens = [token for token in tokenize.tokenize(source.readline) if token.type in CODE]
    kept = [token for token in tokens if token.type != tokenize.STRING or token.start[0] not in docstrings]
    lines = {token.start[0] for token in kept}
    return Module(file.relative_to(PACKAGE).as_posix(), len(kept), len(lines))


def print_row(name: str, modules: list[Module]) -> None:
    """One line of the table: modules, lines, lines a module, tokens, tokens a line."""
    lines = sum(module.lines for module in modules)
    tokens = sum(module.tokens for module in modules)
    number = len(modules)
    print(f"{name:<32}{number:>8}{lines:>8}{lines / number:>8.0f}{tokens:>9}{tokens / max(lines, 1):>8.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=int, help="most tokens that the package may have")
    parser.add_argument("--module-limit", type=int, default=300, help="lines above which a module is named")
    parser.add_argument("--modules", action="store_true", help="a line a module, too")
    options = parser.parse_args()
    modules = [count(file) for file in sorted(PACKAGE.rglob("*.py"))]
    rooms = {module.room for module in modules}
    by_room = {room: [module for module in modules if module.room == room] for room in rooms}
    print(f"{'room':<32}{'modules':>8}{'lines':>8}{'each':>8}{'tokens':>9}{'a line':>8}")
    for room in sorted(rooms, key=lambda room: -sum(module.tokens for module in by_room[room])):
        print_row(room, by_room[room])
        if options.modules and len(by_room[room]) > 1:
            for module in by_room[room]:
                print_row(f"  {module.path}", [module])
    print_row("all", modules)
    long = [module for module in modules if module.lines > options.module_limit]
    if long:
        print(f"\n{len(long)} modules have more than {options.module_limit} lines:")
        for module in sorted(long, key=lambda module: -module.lines):
            print(f"  {module.path:<38}{module.lines:>8}{module.tokens:>9}")
    total = sum(module.tokens for module in modules)
    if options.limit is not None and total > options.limit:
        raise SystemExit(
            f"{total} tokens are over the limit of {options.limit}: take something away, or raise the limit "
            "in the Makefile and say why"
        )


if __name__ == "__main__":
    main()
