"""Make pages of the notebooks that a run has executed: what they look like, for readers who do not run them.

    refinevla run 04 --output runs/few -p episodes=2 -p every=8     # an explorer of few frames: 2 MB, not 17
    python -m scripts.notebook_pages [runs/laptop] [--explorer runs/few] [--output docs/executed]

Writes one HTML page a notebook, with its pictures made small enough for a repository and without what needs a
kernel, and the explorer's page beside them. The folder is replaced as a whole.
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import HTMLExporter
from PIL import Image

from refinevla_kit.errors import KitError
from refinevla_kit.files import replacing
from refinevla_kit.settings import REPOSITORY

WIDTH = 1100  # pixels of a picture at most
COLOURS = 128
LONGEST = 4000  # characters of a printed text that are kept
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{style}</style></head>
<body>{body}</body></html>
"""
STYLE = """
:root { color-scheme: light dark; --code: #f4f4f4; --line: #e3e3e3; }
@media (prefers-color-scheme: dark) { :root { --code: #2b2b2b; --line: #4a4a4a; } }
body { max-width: 1100px; margin: 2em auto; padding: 0 1em; font: 15px/1.5 sans-serif; }
pre { overflow-x: auto; padding: 0.6em; font-size: 13px; line-height: 1.35; }
.highlight pre { background: var(--code); border-left: 3px solid #0072b2; }
.jp-InputPrompt, .jp-OutputPrompt, .prompt, .anchor-link { display: none; }
img { max-width: 100%; }
table { border: 0; border-collapse: collapse; display: block; overflow-x: auto; }
table { margin-bottom: 1em; font-size: 13px; }
td, th { border: 0; border-bottom: 1px solid var(--line); padding: 0.2em 0.6em; text-align: right; }
"""
LARGEST = 1_000_000  # characters of a film or a table
EXPLORER = "04_attention_maps/explorer.html"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", default=REPOSITORY / "runs" / "laptop")
    parser.add_argument("--explorer", type=Path, help="the run whose explorer is taken; default the same")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "executed")
    given = parser.parse_args()
    try:
        pages = write_pages(given.run, given.output, given.explorer or given.run)
    except KitError as error:
        raise SystemExit(f"notebook_pages: {error}") from None
    for page in pages:
        print(f"{page.stat().st_size / 1e6:6.2f} MB  {page}")


def write_pages(run: Path, output: Path, explorer: Path) -> list[Path]:
    """The pages that were written.

    Raises:
        KitError: nothing was executed there, or a notebook has failed.
    """
    notebooks = sorted((run / "executed").glob("0*.ipynb"))
    if not notebooks:
        raise KitError(f"no executed notebooks in {run}", "run `make reproduce` first, or name another run")
    exporter = HTMLExporter(template_name="basic")  # without scripts and JupyterLab's theme
    with replacing(output) as part:
        part.mkdir(parents=True)
        for path in notebooks:
            notebook = nbformat.read(path, as_version=4)
            notebook.metadata.pop("widgets", None)  # their state, which only a kernel shows
            for cell in notebook.cells:
                if cell.cell_type == "markdown":
                    cell.source = from_docs(cell.source)
                if cell.cell_type == "code":
                    cell.outputs = [shown for each in cell.outputs if (shown := lightened(each, path))]
            page, _ = exporter.from_notebook_node(notebook)
            page = PAGE.format(title=path.stem, style=STYLE, body=page)
            (part / f"{path.stem}.html").write_text(without_places(page, run))
        if (explorer / EXPLORER).exists():
            shutil.copyfile(explorer / EXPLORER, part / "explorer.html")
    return sorted(output.glob("*.html"))


def from_docs(text: str) -> str:
    """A notebook's text with its links as they are from a folder of docs/; the picture at its head goes, for
    the cells show it again.
    """
    text = re.sub(r"!\[[^]]*\]\((\.\./)+figures/[^)]*\)\n*", "", text)
    return re.sub(r"\]\((?:\.\./)+(docs/)?", lambda link: "](../" if link[1] else "](../../", text)


def lightened(output: Any, path: Path) -> Any:
    """The output with its pictures made smaller and long texts cut; None where nothing of it can be shown.

    Raises:
        KitError: it is an error's.
    """
    if output.output_type == "error":
        raise KitError(f"{path} has failed: {output.ename}", "run it again, then make the pages")
    if output.output_type == "stream":
        output.text = output.text[-LONGEST:]
        return None if output.name == "stderr" else output
    data = output.data
    if "image/png" in data:
        data["image/png"] = small_picture(data["image/png"])
    if len(data.get("text/html", "")) > LARGEST:
        data["text/html"] = "<p><em>A film, which the notebook shows where it is run.</em></p>"
    data.pop("application/vnd.jupyter.widget-view+json", None)  # needs a kernel; the explorer has a page
    return output if data else None


def small_picture(encoded: str) -> str:
    """The PNG (base64), no wider than `WIDTH` and with few colours."""
    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.LANCZOS)
    written = io.BytesIO()
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(written, "PNG", optimize=True)
    return base64.b64encode(written.getvalue()).decode()


def without_places(page: str, run: Path) -> str:
    """The page without the folders of the machine that it was made on."""
    for folder in (run.resolve(), REPOSITORY, Path.home()):
        page = page.replace(f"{folder}/", "").replace(str(folder), folder.name)
    return page


if __name__ == "__main__":
    main()
