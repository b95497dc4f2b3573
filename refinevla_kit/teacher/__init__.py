"""Rationales for robot episodes: what a teacher is asked and answers, the teachers, and the run that
annotates a dataset.
"""

import inspect
from importlib import import_module
from typing import Any

import numpy as np

from refinevla_kit.errors import KitError, as_kit_error, check_choice, install
from refinevla_kit.teacher.annotation import (
    Estimate,
    annotate_dataset,
    attended,
    costs,
    estimate,
    written_by,
)
from refinevla_kit.teacher.answers import StoredRationale, Summary, load_rationales, lookup, run_of, summarise
from refinevla_kit.teacher.limits import Limits, Prices, parse_prices
from refinevla_kit.teacher.oracle import OracleTeacher
from refinevla_kit.teacher.schema import (
    PARTS,
    CallFailed,
    Facts,
    Rationale,
    Refusal,
    Reply,
    Request,
    RunFailed,
    Teacher,
    Usage,
)

TEACHERS = {
    "oracle": "oracle.OracleTeacher",
    "gemini": "gemini.GeminiTeacher",
    "gemini-legacy": "gemini.GeminiLegacyTeacher",
    "openai": "openai.OpenAITeacher",
}

__all__ = [
    "PARTS",
    "TEACHERS",
    "CallFailed",
    "Estimate",
    "Facts",
    "Limits",
    "OracleTeacher",
    "Prices",
    "Rationale",
    "Refusal",
    "Reply",
    "Request",
    "RunFailed",
    "StoredRationale",
    "Summary",
    "Teacher",
    "Usage",
    "annotate_dataset",
    "check_teacher",
    "estimate",
    "load_rationales",
    "lookup",
    "make_teacher",
    "parse_prices",
    "run_of",
    "summarise",
    "written_by",
]


def make_teacher(name: str, seed: int = 0, **options: Any) -> Teacher:
    """The teacher called `name`; its packages are imported now.

    Args:
        name: a key of `TEACHERS`.
        seed: for the teachers that draw.
        options: of the teacher, e.g. model="..." for gemini; see its class.

    Raises:
        KitError: an unknown name or option, naming the known ones; a package that is not installed.
    """
    check_choice("teacher", name, TEACHERS)
    module, kind = TEACHERS[name].split(".")
    with as_kit_error(
        f"the teacher {name} needs a package that is not here", install("gemini"), (ImportError,)
    ):
        make: Any = getattr(import_module(f"{__name__}.{module}"), kind)
    known = inspect.signature(make).parameters
    for option in options:
        check_choice(f"{name} option", option, known)
    seeds = {"seed": seed} if "seed" in known else {}
    return make(**seeds | options)


def check_teacher(
    name: str,
    seed: int = 0,
    prices: Prices | str | None = None,
    budget_money: float | None = None,
    confirm: bool | None = True,
    **options: Any,
) -> Teacher:
    """Make a teacher and find out, before anything long or paid, what would stop its run.

    Makes no call and asks nobody.

    Args:
        name: as for `make_teacher`.
        seed: as for `make_teacher`.
        prices: of a million tokens, or as `parse_prices` reads them.
        budget_money: as for `Limits`.
        confirm: what `annotate_dataset` will be told; anything but True is an error where calls cost
            something and nobody can be asked about them.
        options: as for `make_teacher`; an option that is None is left to the teacher.

    Returns:
        The teacher, ready for `annotate_dataset`.

    Raises:
        KitError: a missing model, option, package or key (where nobody can be asked for it), wrong prices, or
            a run that nobody would confirm.
    """
    paid = prices if isinstance(prices, Prices) else parse_prices(prices) if prices else None
    Limits(budget_money=budget_money, prices=paid)
    given = {option: value for option, value in options.items() if value is not None}
    teacher = make_teacher(name, seed, **given)
    getattr(teacher, "check", lambda: None)()
    if confirm is False or (confirm is None and not attended()):
        frame, action = np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 7), np.float32)
        if costs(teacher, Request("", 0, 0, 1, "", frame, (0,), action), paid):
            what = f"the teacher {name} costs something, and nobody is here to confirm it"
            raise KitError(what, "pass confirm=True")
    return teacher
