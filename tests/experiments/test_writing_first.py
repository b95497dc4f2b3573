"""What a policy writes about every frame of its demonstrations, before a second one learns to act on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments import writing_first
from refinevla_kit.policies import load_policy
from refinevla_kit.teacher.wording import read_wording
from refinevla_kit.training.examples import load_examples
from tests.conftest import REPOSITORY


@pytest.mark.slow
def test_every_frame_is_written_about_once_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing_first, "AT_ONCE", 3)
    monkeypatch.setattr(writing_first, "load_policy", lambda path: load_policy(path, order="rationale_first"))
    whole = load_examples(REPOSITORY / "data" / "demo")
    rows = np.array([0, 30, 60, 90])
    assert whole.proprioception is not None
    few = replace(
        whole,
        images=whole.shown(rows),
        actions=whole.actions[rows],
        episodes=whole.episodes[rows],
        instructions=tuple(whole.instructions[row] for row in rows),
        proprioception=whole.proprioception[rows],
    )
    checkpoint, kept = REPOSITORY / "data" / "checkpoints" / "with_reasoning", tmp_path / "texts.json"
    texts = writing_first.written_by(checkpoint, few, kept)
    policy = load_policy(checkpoint, order="rationale_first")
    acted = [
        action
        for rows in ([0, 1, 2], [3])  # rounding may differ between other batches
        for action in policy.decide(
            few.images[rows], [few.instructions[row] for row in rows], few.proprioception[rows]
        )
    ]
    assert list(texts) == [action.rationale for action in acted]
    assert len(set(texts)) == 4 and all(read_wording(text).facts for text in texts)
    written = kept.read_bytes()
    assert writing_first.written_by(checkpoint, few, kept) == texts
    assert kept.read_bytes() == written, "nothing is written twice"
    kept.write_text(written.decode().replace(policy.checkpoint_hash, "another"))
    assert writing_first.written_by(checkpoint, few, kept) == texts, "another policy's texts are not taken"
