"""Running the notebooks headlessly with papermill: the notebooks are the batch programs.

Everything that can be wrong with a request (profile, notebook, parameter) is checked before anything runs.
The kernel is this Python, whatever kernels the user's Jupyter knows under the same name. Executed notebooks
are saved as they go, so a failed one can be opened where it stopped.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refinevla_kit.errors import KitError, as_kit_error, check_choice
from refinevla_kit.files import read_json, replacing, write_json
from refinevla_kit.journal import Journal
from refinevla_kit.settings import LOOP, NOTEBOOKS, REPOSITORY, check_parameter, home, is_text, read_settings

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def parse_parameter(text: str, literal: bool = True) -> tuple[str, Any]:
    """`name=value` as typed on a command line.

    Values are JSON or Python literals (`3`, `true`, `["a", "b"]`), else text; always text without `literal`.
    A parameter that is a text stays one: a folder may be called 2024 or 1e3.
    """
    name, separator, value = text.partition("=")
    if not separator or not name.isidentifier():
        raise KitError(f"{text!r} is not name=value", "write a name, = and a value: steps=40")
    for read in (json.loads, ast.literal_eval) if literal else ():
        try:
            found = read(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        keeps = found is None or isinstance(found, str) or not is_text(name)
        return name, found if keeps else value
    return name, value


def select_notebooks(only: Sequence[str] = ()) -> list[str]:
    """Names of the notebooks chosen by number (`01`, `1`) or name; 1 to 6 if none is chosen."""
    chosen = set()
    for word in only:
        stem = Path(word).stem
        matches = [name for name in NOTEBOOKS if stem == name or stem.zfill(2) == name[:2]]
        if not matches:
            check_choice("notebook", word, NOTEBOOKS)
        chosen.update(matches)
    return [name for name in NOTEBOOKS if name in (chosen or LOOP)]


def notebook_path(notebook: str) -> Path:
    """The file of a notebook (see `settings.home`)."""
    return home() / "notebooks" / f"{notebook}.ipynb"


def copy_notebooks(folder: Path) -> list[str]:
    """Write the notebooks, their profiles and what they show and link to into `folder`.

    Returns:
        Their paths in it.

    Raises:
        KitError: another file lies at one of these paths. Nothing is written then.
    """
    files = [*REPOSITORY.glob("notebooks/*.ipynb"), *REPOSITORY.glob("notebooks/profiles/*.yaml")]
    contents = {file.relative_to(REPOSITORY).as_posix(): file.read_bytes() for file in sorted(files)}
    shown = re.findall(rb"\.\./(figures/\w+\.png)", b"".join(contents.values()))
    contents |= {name.decode(): (REPOSITORY / name.decode()).read_bytes() for name in shown}
    for card in REPOSITORY.glob("data/checkpoints/*/README.md"):
        # in a folder of its own: at its old place it would make that a checkpoint without weights
        link, place = f"../{card.relative_to(REPOSITORY).as_posix()}", f"cards/{card.parent.name}.md"
        for name, content in [*contents.items()]:
            if link.encode() in content:
                contents[name] = content.replace(link.encode(), f"../{place}".encode())
                contents[place] = card.read_bytes()
    for name, content in contents.items():
        there = folder / name
        if there.exists() and not (there.is_file() and there.read_bytes() == content):
            raise KitError(f"{there} is there already and differs from the kit's", "choose another folder")
    for name, content in contents.items():
        with replacing(folder / name) as part:
            part.write_bytes(content)
    return [*contents]


def plan_parameters(
    notebooks: Sequence[str], profile: str, output: Path, parameters: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """What papermill gives to each notebook.

    Every notebook gets the parameters that it has: by name where its parameters cell shows them, else in
    `more`.

    Raises:
        KitError: a parameter that none of the notebooks has, a value of the wrong kind, or no such notebook.
    """
    import papermill

    for name in parameters:
        if name in ("profile", "output"):
            raise KitError(f"{name!r} is shared by all notebooks, not a parameter of one", f"use --{name}")
        check_parameter(name, notebooks)
    shared = [name for name in notebooks if "episodes" in NOTEBOOKS[name].model_fields]
    if {"episodes", "dataset"} <= parameters.keys() and LOOP[0] in shared and len(shared) > 1:
        what = "episodes would be those of the dataset in notebook 1, and numbers of starts in others"
        raise KitError(what, "run notebook 1 by itself: --only 01")
    planned = {}
    for notebook in notebooks:
        taken = {
            name: value for name, value in parameters.items() if name in NOTEBOOKS[notebook].model_fields
        }
        read_settings(notebook, profile, output, **taken).check_inputs()
        path = notebook_path(notebook)
        with as_kit_error(f"{path} cannot be read", "write it anew: refinevla init FOLDER"):
            shown = papermill.inspect_notebook(path) if path.is_file() else {}
        if not shown:
            what = f"{path} is missing or has no parameters cell"
            raise KitError(what, "write it anew: refinevla init FOLDER")
        values = {"profile": profile, "output": str(output)}
        values |= {name: value for name, value in taken.items() if name in shown}
        more = {name: value for name, value in taken.items() if name not in shown}
        planned[notebook] = values | ({"more": more} if more else {})
    return planned


def this_python(threads: int) -> type:
    """A kernel that is this interpreter with `threads` threads, for papermill to start."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    errors_only = "--log-level=40"
    environment = dict.fromkeys(THREAD_VARIABLES, str(threads))
    spec = KernelSpec(argv=[*command, errors_only], env=environment, language="python")
    return type("ThisPython", (AsyncKernelManager,), {"kernel_spec": spec})


def run_notebooks(
    only: Sequence[str] = (),
    profile: str = "laptop",
    output: str | Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Run the chosen notebooks one after another and write `<output>/summary.json`.

    A failed notebook ends the run; it does not raise. Notebooks that an earlier run left in the same folder
    stay listed.

    Args:
        only: numbers or names; empty means 1 to 6.
        profile: smoke | laptop | gpu | paper.
        output: folder of the run, default as for `read_settings`.
        parameters: passed to each notebook that knows them.
        threads: compute threads of the kernel, default all cores.
        progress: show a bar a notebook.

    Returns:
        The summary: where each executed notebook, its summary.json and its pictures are, seconds a notebook,
            and `failed` (None or the reason).
    """
    notebooks = select_notebooks(only)
    folder = read_settings(notebooks[0], profile, output).output
    planned = plan_parameters(notebooks, profile, folder, parameters or {})
    result: dict[str, Any] = {
        "profile": profile,
        "output": str(folder),
        "parameters": dict(parameters or {}),
        "notebooks": {},
        "failed": None,
    }
    writing = as_kit_error(f"cannot write to {folder}", "free space or choose another --output", (OSError,))
    with writing, Journal(folder / ".running"):  # another run in this folder would mix its data with these
        (folder / "executed").mkdir(parents=True, exist_ok=True)
        result["notebooks"] = _earlier(folder)
        kernel = this_python(threads or os.cpu_count() or 1)
        for number, (notebook, values) in enumerate(planned.items(), 1):
            bar = {"desc": f"{number}/{len(planned)} {notebook}", "leave": True} if progress else False
            start = time.perf_counter()
            failed = _execute(notebook, folder, values, kernel, bar)
            seconds = round(time.perf_counter() - start, 1)
            result["notebooks"][notebook] = {"seconds": seconds} | _outcome(notebook, folder, failed)
            result["failed"] = failed
            if failed:
                break
        write_json(folder / "summary.json", result)
    return result


def _execute(
    notebook: str, folder: Path, values: dict[str, Any], kernel: type, bar: dict[str, Any] | bool
) -> dict[str, str] | None:
    """Run one notebook. Returns None, or what failed where.

    `cell` is the number that Jupyter shows in front of the cell, as in `In [7]`.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError
    from papermill.exceptions import PapermillExecutionError

    executed = folder / "executed" / f"{notebook}.ipynb"
    try:
        papermill.execute_notebook(
            _linked(notebook_path(notebook), executed.parent),
            executed,
            parameters=values,
            kernel_name="python3",
            kernel_manager_class=kernel,
            progress_bar=bar,
            start_timeout=180,
        )
    except PapermillExecutionError as error:
        cell = f"In [{error.exec_count}]"
        message = f"{error.ename}: {str(error.evalue).strip().partition(os.linesep)[0]}"
    except (RuntimeError, CellTimeoutError) as error:  # a kernel that dies, or never begins
        cell = "unknown"
        message = f"the kernel died ({str(error).partition(os.linesep)[0]}): usually not enough memory"
    else:
        return None
    return {"notebook": notebook, "cell": cell, "message": message, "executed": str(executed)}


def _linked(path: Path, folder: Path) -> Any:
    """The notebook, with its links to files as they are from another folder."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    beside = Path(os.path.relpath(path.parent.parent, folder)).as_posix()
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace("](../", f"]({beside}/")
    return notebook


def _earlier(folder: Path) -> dict[str, Any]:
    """What the summary of an earlier run in this folder says of its notebooks; {} when none can be read."""
    try:
        notebooks = read_json(folder / "summary.json")["notebooks"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {name: notebooks[name] for name in NOTEBOOKS if name in notebooks}


def _outcome(notebook: str, folder: Path, failed: Mapping[str, str] | None) -> dict[str, Any]:
    """Where what a notebook left is, relative to the run's folder, and how it failed.

    A notebook that failed has no summary, whatever an earlier run left.
    """
    summary = folder / notebook / "summary.json"
    pictures = sorted(path.relative_to(folder).as_posix() for path in (folder / notebook).rglob("*.png"))
    return {
        "executed": f"executed/{notebook}.ipynb",
        "pictures": pictures,
        "failed": failed,
        "summary": f"{notebook}/summary.json" if summary.is_file() and not failed else None,
    }


def failure_line(failed: Mapping[str, str], alone: bool = False) -> str:
    """A failure as one line for the terminal, with the command that goes on from there.

    Args:
        alone: no other notebook was asked for.
    """
    at = failed["notebook"]
    left = ",".join(name[:2] for name in NOTEBOOKS if name == at or LOOP[0] <= at < name)
    stopped = f"notebook {failed['notebook']}, cell {failed['cell']}: {failed['message']}"
    again = f"`refinevla run {at[:2]}`" if alone else f"`refinevla reproduce --only {left}`"
    remedy = f"once that is mended, go on with {again} and the same options"
    return f"{stopped} (stopped at {failed['executed']}) -> {remedy}"
