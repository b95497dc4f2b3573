"""Rationales for robot episodes: what a teacher is asked and answers, the teachers, and the run that annotates a dataset."""

import inspect
from importlib import import_module
from typing import Any

from refinevla_kit.errors import KitError
from refinevla_kit.teacher.annotation import annotate_dataset, estimate, written_by
from refinevla_kit.teacher.answers import StoredRationale, Summary, load_rationales, lookup, summarise
from refinevla_kit.teacher.estimate import Estimate, confirm
from refinevla_kit.teacher.limits import Limits, Prices, parse_prices
from refinevla_kit.teacher.oracle import OracleTeacher
from refinevla_kit.teacher.schema import PARTS, CallFailed, Rationale, Refusal, Reply, Request, Teacher, Usage

TEACHERS = {
    "oracle": "oracle.OracleTeacher",
    "gemini": "gemini.GeminiTeacher",
    "gemini-legacy": "gemini.GeminiLegacyTeacher",
    "local": "local.LocalTeacher",
}

__all__ = [
    "PARTS", "TEACHERS", "CallFailed", "Estimate", "Limits", "OracleTeacher", "Prices", "Rationale", "Refusal", "Reply", "Request", "StoredRationale",
    "Summary", "Teacher", "Usage", "annotate_dataset", "confirm", "estimate", "load_rationales", "lookup", "make_teacher", "parse_prices",
    "summarise", "written_by",
]  # fmt: skip


def make_teacher(name: str, seed: int = 0, **options: Any) -> Teacher:
    """The teacher called `name`; its packages are imported now.

    Args:
        seed: for the teachers that draw. options: of the teacher, e.g. model="..." for gemini; see its class.
    Raises: `KitError` for an unknown name (naming the known ones), an unknown option, or a package that is not installed.
    """
    if name not in TEACHERS:
        raise KitError(f"unknown teacher {name!r}", f"choose one of {', '.join(TEACHERS)}")
    module, kind = TEACHERS[name].split(".")
    try:
        make: Any = getattr(import_module(f"{__name__}.{module}"), kind)
    except ImportError as error:
        raise KitError(f"the teacher {name} needs a package that is not here ({error})", "install it: pip install 'refinevla-kit[gemini]'") from error
    known = inspect.signature(make).parameters
    if unknown := sorted(options.keys() - known.keys()):
        raise KitError(f"the teacher {name} has no option {unknown[0]!r}", f"choose from {', '.join(known) or 'none'}")
    return make(**({"seed": seed} if "seed" in known else {}) | options)
