"""Rationales for robot episodes: what a teacher is asked and answers, the teachers, and the run that annotates a dataset."""

from refinevla_kit.errors import KitError
from refinevla_kit.teacher.annotation import StoredRationale, annotate_dataset, load_rationales, lookup
from refinevla_kit.teacher.oracle import OracleTeacher
from refinevla_kit.teacher.schema import PARTS, CallFailed, Rationale, Refusal, Reply, Request, Teacher, Usage

TEACHERS = {"oracle": OracleTeacher}

__all__ = [
    "PARTS", "TEACHERS", "CallFailed", "OracleTeacher", "Rationale", "Refusal", "Reply", "Request", "StoredRationale", "Teacher", "Usage",
    "annotate_dataset", "load_rationales", "lookup", "make_teacher",
]  # fmt: skip


def make_teacher(name: str, seed: int = 0) -> Teacher:
    """The teacher called `name`; raises `KitError` naming the known ones."""
    if name not in TEACHERS:
        raise KitError(f"unknown teacher {name!r}", f"choose one of {', '.join(TEACHERS)}")
    return TEACHERS[name](seed)
