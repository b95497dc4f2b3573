"""Records as the tests need them."""

from __future__ import annotations

from refinevla_kit.evaluation.records import EpisodeRecord, versions
from refinevla_kit.tasks import PROTOCOL_VERSION


def row(
    policy: str,
    episode: int,
    success: bool,
    success_any: bool | None = None,
    task: str = "widowx_carrot_on_plate",
    variant: str = "base",
) -> EpisodeRecord:
    """One record; `success_any` follows `success` unless given."""
    setting = "visual_matching" if variant == "base" else "variant_aggregation"
    return EpisodeRecord(
        policy=policy,
        checkpoint_hash="0" * 16,
        protocol=PROTOCOL_VERSION,
        backend="maniskill",
        task=task,
        setting=setting,
        variant=variant,
        assets="embedded",
        start="grid",
        episode_id=episode,
        seed=0,
        width=160,
        height=120,
        success_any=success if success_any is None else success_any,
        success_last=success,
        grasped=success,
        steps=60,
        reason="budget",
        wall_time=1.0,
        **versions(),
    )
