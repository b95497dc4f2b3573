"""From a policy to a number with its uncertainty: rollouts write one record an episode, statistics are
computed from records alone.
"""

from refinevla_kit.evaluation.records import EpisodeRecord, load_records
from refinevla_kit.evaluation.rollouts import evaluate, plan

__all__ = ["EpisodeRecord", "evaluate", "load_records", "plan"]
