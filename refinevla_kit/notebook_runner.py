"""Running the notebooks headlessly with papermill: the notebooks are the batch programs.

Everything that can be wrong with a request (profile, notebook, parameter) is checked before anything runs.
The kernel is this Python, whatever kernels the user's Jupyter knows under the same name. Executed notebooks
are saved as they go, so a failed one can be opened where it stopped.
"""

from __future__ import annotations

import ast
import errno
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refinevla_kit.errors import KitError
from refinevla_kit.files import write_json
from refinevla_kit.settings import KINDS, NOTEBOOKS, REPOSITORY, check_kind, load_profile, parameter_names

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def parse_parameter(text: str) -> tuple[str, Any]:
    """`name=value` as typed on a command line. Values are JSON or Python literals (`3`, `true`, `["a",
    "b"]`), else text.

    A parameter that is a text, such as a path, stays one: a folder may be called 2024 or 1e3.
    """
    name, separator, value = text.partition("=")
    if not separator or not name.isidentifier():
        raise KitError(f"{text!r} is not name=value", "write a parameter as -p steps=40")
    for read in (json.loads, ast.literal_eval):
        try:
            literal = read(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return name, literal if KINDS.get(name) is not str or literal is None or isinstance(
            literal, str
        ) else value
    return name, value


def select_notebooks(only: Sequence[str] = ()) -> list[str]:
    """Names of the notebooks chosen by number (`01`, `1`) or name; all five if none is chosen."""
    chosen = []
    for word in only:
        matches = [
            name
            for name in NOTEBOOKS
            if Path(word).stem == name or (word.isdigit() and int(word) == int(name[:2]))
        ]
        if not matches:
            raise KitError(f"unknown notebook {word!r}", f"choose from {', '.join(NOTEBOOKS)}")
        chosen += matches
    return [name for name in NOTEBOOKS if name in chosen] if chosen else list(NOTEBOOKS)


def check_parameters(
    notebooks: Sequence[str], profile: str, parameters: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Which notebook takes which parameter: what its parameters cell or the profile names. One that none of
    them takes raises `KitError`.
    """
    known: dict[str, list[str]] = {}
    sections = load_profile(profile)
    for notebook in notebooks:
        shown = parameter_names(notebook)
        if not shown:
            raise KitError(
                f"{REPOSITORY / 'notebooks' / notebook}.ipynb is missing or has no parameters cell",
                "run this from a checkout of the kit",
            )
        known[notebook] = [*shown, *(name for name in sections.get(notebook, {}) if name not in shown)]
    for name in parameters:
        if name in ("profile", "output"):
            raise KitError(f"{name!r} is shared by all notebooks, not a parameter of one", f"use --{name}")
        if not any(name in names for names in known.values()):
            names = [
                n
                for n in dict.fromkeys(n for names in known.values() for n in names)
                if n not in ("profile", "output")
            ]
            raise KitError(
                f"unknown parameter {name!r} of {', '.join(notebooks)}", f"choose from {', '.join(names)}"
            )
    return {
        notebook: {
            name: check_kind(name, sections.get(notebook, {}).get(name), value)
            for name, value in parameters.items()
            if name in names
        }
        for notebook, names in known.items()
    }


@contextmanager
def this_python_as_kernel(threads: int) -> Iterator[str]:
    """A kernel `python3` that is this interpreter with `threads` threads; found first because JUPYTER_PATH
    comes before every other place.
    """
    with tempfile.TemporaryDirectory(prefix="refinevla-kernel-") as folder:
        spec = {
            "argv": [
                sys.executable,
                "-m",
                "ipykernel_launcher",
                "-f",
                "{connection_file}",
                "--log-level=40",
            ],  # errors only
            "display_name": "Python 3",
            "language": "python",
            "env": {name: str(threads) for name in _THREAD_VARIABLES},
        }
        write_json(Path(folder) / "kernels" / "python3" / "kernel.json", spec)
        before = os.environ.get("JUPYTER_PATH")
        os.environ["JUPYTER_PATH"] = folder + (os.pathsep + before if before else "")
        try:
            yield "python3"
        finally:
            if before is None:
                del os.environ["JUPYTER_PATH"]
            else:
                os.environ["JUPYTER_PATH"] = before


def run_notebooks(
    only: Sequence[str] = (),
    profile: str = "laptop",
    output: str | Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Run the chosen notebooks one after another and write `<output>/summary.json`.

    Args:
        only: numbers or names; empty means all five.
        profile: smoke | laptop | gpu | paper.
        output: folder of the run, default `runs/<profile>` in the checkout.
        parameters: passed to each notebook that knows them.
        threads: compute threads of the kernel, default all cores.

    Returns:
        The summary: where each executed notebook, its summary.json and its pictures are, seconds a notebook,
            and `failed` (None or the reason).
        A failed notebook ends the run; it does not raise. Notebooks that an earlier run left in the same
        folder stay listed.
    """
    notebooks = select_notebooks(only)
    each = check_parameters(notebooks, profile, parameters or {})
    folder = (REPOSITORY / "runs" / profile if output is None else Path(output).expanduser()).resolve()
    result: dict[str, Any] = {
        "profile": profile,
        "output": str(folder),
        "parameters": dict(parameters or {}),
        "notebooks": {},
        "failed": None,
    }
    try:
        (folder / "executed").mkdir(parents=True, exist_ok=True)
        result["notebooks"] = _earlier(folder)
        with this_python_as_kernel(threads or os.cpu_count() or 1) as kernel:
            for position, notebook in enumerate(notebooks, 1):
                values = {**each[notebook], "profile": profile, "output": str(folder)}
                start = time.perf_counter()
                bar = (
                    {"desc": f"{position}/{len(notebooks)} {notebook}", "leave": True} if progress else False
                )
                result["failed"] = _execute(notebook, folder, values, kernel, bar)
                result["notebooks"][notebook] = _outcome(
                    notebook, folder, time.perf_counter() - start, result["failed"]
                )
                if result["failed"]:
                    break
        write_json(folder / "summary.json", result)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise KitError(
                f"no space left on the disk while writing to {folder}",
                "free space or choose another --output",
            ) from error
        raise KitError(
            f"cannot write to {folder}: {error.strerror or error}", "choose another --output"
        ) from error
    return result


def _execute(
    notebook: str, folder: Path, values: dict[str, Any], kernel: str, bar: dict[str, Any] | bool
) -> dict[str, str] | None:
    """Run one notebook; None, or what failed where. `cell` is the number that Jupyter shows in front of the
    cell, as in `In [7]`.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    executed = folder / "executed" / f"{notebook}.ipynb"
    try:
        papermill.execute_notebook(
            REPOSITORY / "notebooks" / f"{notebook}.ipynb",
            executed,
            parameters=values,
            kernel_name=kernel,
            progress_bar=bar,
            start_timeout=180,
        )
    except PapermillExecutionError as error:
        message = (str(error.evalue).strip().splitlines() or [""])[0]
        return {
            "notebook": notebook,
            "cell": f"In [{error.exec_count}]",
            "message": f"{error.ename}: {message}",
            "executed": str(executed),
        }
    except (DeadKernelError, CellTimeoutError) as error:
        message = f"the kernel died ({str(error).splitlines()[0]}): usually not enough memory"
        return {"notebook": notebook, "cell": "unknown", "message": message, "executed": str(executed)}
    return None


def _earlier(folder: Path) -> dict[str, Any]:
    """What the summary of an earlier run in this folder says of its notebooks; {} when there is none that can
    be read.
    """
    try:
        found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["notebooks"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {name: found[name] for name in NOTEBOOKS if name in found}


def _outcome(notebook: str, folder: Path, seconds: float, failed: Mapping[str, str] | None) -> dict[str, Any]:
    """Where what a notebook left is, relative to the run's folder, and how it failed. Then it has no summary,
    whatever an earlier run left.
    """
    own = folder / notebook
    summary = own / "summary.json"
    pictures = (
        sorted(path.relative_to(folder).as_posix() for path in own.rglob("*.png")) if own.is_dir() else []
    )
    return {
        "executed": f"executed/{notebook}.ipynb",
        "seconds": round(seconds, 1),
        "pictures": pictures,
        "failed": failed,
        "summary": summary.relative_to(folder).as_posix() if summary.is_file() and not failed else None,
    }


def failure_line(failed: Mapping[str, str]) -> str:
    """A failure as one line for the terminal."""
    left = ",".join(name[:2] for name in NOTEBOOKS[NOTEBOOKS.index(failed["notebook"]) :])
    stopped = (
        f"notebook {failed['notebook']}, cell {failed['cell']}: {failed['message']} (stopped at "
        f"{failed['executed']})"
    )
    return f"{stopped} -> once that is mended, go on with --only {left} and the same profile and output"
