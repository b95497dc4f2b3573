"""One exception for everything a user can mend: it says what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
import operator
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

LARGEST = 2**63 - 1
SHIPPED = Path(__file__).resolve().parent / "shipped"  # of an installed wheel; a checkout has none


def install(extra: str) -> str:
    """The remedy for a package that is not there: the kit is on no index, its extras are installed from its
    checkout or wheel.
    """
    if SHIPPED.is_dir():
        return f"{sys.executable} -m pip install 'PATH[{extra}]', PATH being the kit's wheel or folder"
    return f"in the kit's folder: {sys.executable} -m pip install -e '.[{extra}]'"


def set_up() -> str:
    """The remedy where the simulator, or what every part of the kit needs, is not there."""
    if SHIPPED.is_dir():
        return f"{install('maniskill')}; on Python 3.13 also mani_skill, with --no-deps"
    return "run `make setup`"


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first few of many names."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class KitError(Exception):
    """A mistake the user can mend. Shown as a single line, in a terminal and in a notebook alike.

    Args:
        what: what is wrong and where, with the offending value.
        remedy: what to do about it, as an instruction.
    """

    def __init__(self, what: str, remedy: str) -> None:
        self.what = " ".join(what.split())
        self.remedy = " ".join(remedy.split())
        super().__init__(f"{self.what} -> {self.remedy}")

    def __reduce__(self) -> tuple[type[KitError], tuple[str, str]]:
        """Pickled by its two parts, so that it comes through whole from another process."""
        return type(self), (self.what, self.remedy)

    def _render_traceback_(self) -> list[str]:
        """IPython calls this instead of printing ten levels of traceback."""
        return [f"{type(self).__name__}: {self}"]


def check_choice(what: str, value: object, known: Collection[Any]) -> None:
    """Raise a `KitError` unless `value` is one of `known`, with the one that it comes near to.

    Args:
        what: its kind, such as "teacher" or "layer".
        value: what is to be checked.
        known: what may be chosen; of a `range` only the ends are told.
    """
    if value in known:
        return
    choices = [*map(str, known)]
    if isinstance(known, range) and choices:
        raise KitError(f"unknown {what} {value!r}", f"choose {choices[0]} to {choices[-1]}")
    close = difflib.get_close_matches(str(value), choices, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    remedy = f"choose one of {', '.join(choices)}" if choices else "leave it out: there are none"
    raise KitError(f"unknown {what} {value!r}{hint}", remedy)


@contextmanager
def as_kit_error(what: str, remedy: str, kinds: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """What is raised inside becomes a `KitError` that quotes it in brackets, with the file it is about.

    Args:
        what: what is wrong and where.
        remedy: what to do about it.
        kinds: the exceptions that are meant.
    """
    try:
        yield
    except KitError:
        raise
    except kinds as error:
        said = getattr(error, "strerror", None) or str(error)
        file = str(getattr(error, "filename", None) or "")
        if isinstance(error, KeyError) or not said:  # a name alone, or nothing
            said = repr(error)
        if file not in what + said:
            said += f": {file}"
        raise KitError(f"{what} ({said})", remedy) from error


def checked_integer(value: Any, name: str, least: int, most: int = LARGEST) -> int:
    """`value` as an int, also of NumPy.

    Raises:
        KitError: no whole number, a bool, or out of bounds.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if type(value).__name__.startswith("bool") or not least <= number <= most:
        limits = f"from {least} to {most}" if most < LARGEST else f"of at least {least}"
        raise KitError(f"{name} is {value!r}", f"give a whole number {limits}")
    return number


def _one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A `KitError` that ends a script is one line too."""
    if isinstance(error, KitError):
        print(f"{kind.__name__}: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


if sys.excepthook is sys.__excepthook__:  # a debugger's or a notebook's own stands
    sys.excepthook = _one_line
