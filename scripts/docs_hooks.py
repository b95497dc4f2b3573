"""What `mkdocs build` does beside its own (mkdocs.yml): the pictures of figures/ are part of the site.

A page says `../figures/x.png`, which is right on the repository's page; in the site figures/ lies beside the
pages.
"""

from __future__ import annotations

from typing import Any

from mkdocs.structure.files import File

from refinevla_kit.settings import REPOSITORY

HERE, THERE = "](../figures/", "](figures/"


def on_files(files: Any, config: Any) -> Any:
    """Add each picture."""
    for path in sorted((REPOSITORY / "figures").glob("*.png")):
        files.append(File.generated(config, f"figures/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Say where the pictures are in the site."""
    return markdown.replace(HERE, THERE)
