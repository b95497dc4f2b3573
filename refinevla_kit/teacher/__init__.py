"""Rationales for robot episodes: what a teacher is asked and answers, the teachers, and the run that annotates a dataset."""

from refinevla_kit.teacher.annotation import StoredRationale, annotate_dataset, load_rationales, lookup
from refinevla_kit.teacher.oracle import OracleTeacher
from refinevla_kit.teacher.schema import PARTS, Rationale, Refusal, Reply, Request, Teacher

__all__ = ["PARTS", "OracleTeacher", "Rationale", "Refusal", "Reply", "Request", "StoredRationale", "Teacher", "annotate_dataset", "load_rationales",
           "lookup"]
