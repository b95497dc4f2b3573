"""How much code the package is: tokens by room, comments and docstrings left out. Fails above a limit.

    python scripts/count_tokens.py [--limit N]

Lines can be made long; tokens are what a reader has to take in.
"""

from __future__ import annotations

import argparse
import ast
import tokenize
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "refinevla_kit"
CODE = (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING)


def docstrings(source: str) -> set[int]:
    """First lines of the strings that are docstrings."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(ast.parse(source)) if isinstance(node, kinds) and node.body]
    first = [body[0] for body in bodies]
    return {one.lineno for one in first if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant)}


def count(file: Path) -> tuple[int, int]:
    """(tokens, lines that hold any) of a module."""
    described = docstrings(file.read_text(encoding="utf-8"))
    with file.open("rb") as source:
        kept = [token for token in tokenize.tokenize(source.readline) if token.type in CODE]
    kept = [token for token in kept if token.type != tokenize.STRING or token.start[0] not in described]
    return len(kept), len({token.start[0] for token in kept})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=int, help="most tokens that the package may have")
    limit = parser.parse_args().limit
    tokens, lines, modules = Counter[str](), Counter[str](), Counter[str]()
    for file in sorted(PACKAGE.rglob("*.py")):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        found = count(file)
        tokens[room], lines[room], modules[room] = (
            tokens[room] + found[0],
            lines[room] + found[1],
            modules[room] + 1,
        )
    print(f"{'room':<20}{'modules':>9}{'lines':>9}{'tokens':>9}{'a line':>9}")
    for room in sorted(tokens, key=lambda room: -tokens[room]):
        a_line = tokens[room] / max(lines[room], 1)
        print(f"{room:<20}{modules[room]:>9}{lines[room]:>9}{tokens[room]:>9}{a_line:>9.1f}")
    total = tokens.total()
    print(f"{'all':<20}{modules.total():>9}{lines.total():>9}{total:>9}{total / lines.total():>9.1f}")
    if limit is not None and total > limit:
        raise SystemExit(
            f"{total} tokens are over the limit of {limit}: take something away, or raise the limit "
            "in the Makefile and say why"
        )


if __name__ == "__main__":
    main()
