"""Records as the tests need them."""

from __future__ import annotations

from refinevla_kit.evaluation.records import EpisodeRecord, versions


def row(policy: str, episode: int, success: bool, success_any: bool | None = None, task: str = "widowx_carrot_on_plate") -> EpisodeRecord:
    """One record; `success_any` follows `success` unless given."""
    return EpisodeRecord(
        policy=policy, checkpoint_hash="0" * 16, task=task, setting="visual_matching", assets="embedded", episode_id=episode, seed=0,
        width=160, height=120, success_any=success if success_any is None else success_any, success_last=success, grasped=success, steps=60,
        reason="budget", wall_time=1.0, **versions(),
    )  # fmt: skip
