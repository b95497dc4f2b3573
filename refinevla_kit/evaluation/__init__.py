"""From a policy to a number with its uncertainty: an evaluation writes one record an episode, statistics are
computed from records alone.
"""

from refinevla_kit.evaluation.records import EpisodeRecord, load_records
from refinevla_kit.evaluation.run import evaluate, line_up, plan
from refinevla_kit.evaluation.statistics import AVERAGE, RULES, compare_each, summarise

__all__ = [
    "AVERAGE",
    "RULES",
    "EpisodeRecord",
    "compare_each",
    "evaluate",
    "line_up",
    "load_records",
    "plan",
    "summarise",
]
