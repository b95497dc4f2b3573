"""The documentation builds as a site: a broken link, picture or anchor fails, and so does a docstring that
cannot be read. What the pages name is there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from refinevla_kit.settings import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
LOG = {"log.md", "experiment.md", "experiment_2.md"}  # speak of what was
WORDS = 1200  # of the README


@pytest.mark.slow
def test_the_site_builds_without_a_broken_link(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr[-3000:]
    assert (tmp_path / "site" / "reference.html").stat().st_size > 100_000, "docstrings are in it"


def test_the_readme_is_short() -> None:
    assert len(PAGES[0].read_text(encoding="utf-8").split()) <= WORDS


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in LOG], ids=lambda page: page.name)
def test_files_and_commands_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(
        re.findall(r"`((?:notebooks|scripts|examples|data|tests|experiments|benchmarks)/[\w./-]+)`", text)
    )
    missing = sorted(name for name in named if not (REPOSITORY / name).exists())
    assert missing == []
    helped = (REPOSITORY / "refinevla_kit" / "cli.py").read_text(encoding="utf-8")
    verbs = set(re.findall(r"(?:bin/|`)refinevla ([a-z]+)", text))
    assert sorted(verb for verb in verbs if f"def {verb}(" not in helped) == []
    targets = set(re.findall(r"\bmake ([a-z-]+)(?= |`|$)", "\n".join(re.findall(r"`(make [^`]+)`", text))))
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert sorted(target for target in targets if f"\n{target}:" not in makefile) == []


def test_what_a_snippet_summarises_has_no_records_of_another() -> None:
    """A mean over two kinds of start is refused."""
    page = (REPOSITORY / "docs" / "your_policy.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    outputs = [set(re.findall(r'output="(.+?)"', snippet)) for snippet in snippets]
    for number, snippet in enumerate(snippets):
        if "summarise(" in snippet:
            assert not outputs[number] & set().union(*outputs[:number], *outputs[number + 1 :])
