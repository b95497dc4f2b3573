"""Live curves: they hold what training reports, while it trains, and change nothing about it."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from refinevla_kit.errors import KitError
from refinevla_kit.training.examples import Examples
from refinevla_kit.training.loop import TrainingConfig, fine_tune
from refinevla_kit.vlas.action_tokens import UniformBins
from refinevla_kit.vlas.compact import CompactConfig, CompactVLA, build
from refinevla_kit.vlas.compact_parts import train_vocabulary
from refinevla_kit.widgets.live_curves import LiveCurves

CONFIG = TrainingConfig(
    steps=4, batch_size=4, freeze_layers=1, precision="fp32", validate_every=2, base_share=0.5
)


@pytest.fixture
def examples() -> Examples:
    rng = np.random.default_rng(0)
    return Examples(
        rng.integers(0, 256, (24, 120, 160, 3), dtype=np.uint8),
        rng.uniform(-0.04, 0.04, (24, 7)).astype(np.float32),
        np.repeat(np.arange(12), 2),
        ("put carrot on plate",) * 24,
        tuple(f"the carrot is {i} cm left of the plate" for i in range(24)),
    )


def base(examples: Examples) -> CompactVLA:
    words = train_vocabulary([*examples.instructions, *examples.rationales])
    return build(
        CompactConfig(layers=2, hidden=32, heads=2, feedforward=48, channels=8),
        words,
        UniformBins.fit(examples.actions),
        seed=0,
    )


def test_what_is_drawn_is_the_history_of_both_policies(examples: Examples, tmp_path: Path) -> None:
    live, histories = LiveCurves(pause=0), []
    for name, weight in (("action_only", 0.0), ("with_reasoning", 0.3)):
        config = TrainingConfig(**{**vars(CONFIG), "lambda_reasoning": weight})
        histories += fine_tune(
            base(examples), examples, config, tmp_path / name, name, progress=False, watch=live.again()
        )
    assert live.rows == histories and {row["split"] for row in histories} == {
        "train",
        "validation",
        "averaged",
    }
    panels = {axes.get_title(loc="left"): axes for axes in live.figure().axes}
    assert set(panels) == {"loss on action tokens", "loss on rationale tokens"}
    strong = [line for line in panels["loss on rationale tokens"].lines if line.get_alpha() == 1.0]
    expected = [
        [
            row["loss_reasoning"]
            for row in histories
            if row["split"] == split and row["policy"] == "with_reasoning"
        ]
        for split in ("averaged", "validation")
    ]
    assert [list(line.get_ydata()) for line in strong] == [pytest.approx(each) for each in expected]


def test_what_is_left_at_the_end_is_always_shown(examples: Examples, tmp_path: Path) -> None:
    """Within the pause after the last evaluation, too; other evaluations wait for it."""
    live, drawn = LiveCurves(pause=3600), list[int]()
    live.draw = lambda: drawn.append(len(live.rows))  # type: ignore[method-assign]
    live._drawn = time.monotonic()
    history = fine_tune(base(examples), examples, CONFIG, tmp_path, "p", progress=False, watch=live)
    assert drawn == [len(history)]


def test_watching_changes_nothing(examples: Examples, tmp_path: Path) -> None:
    watched, alone = base(examples), base(examples)
    fine_tune(watched, examples, CONFIG, tmp_path / "watched", "p", progress=False, watch=LiveCurves(pause=0))
    fine_tune(alone, examples, CONFIG, tmp_path / "alone", "p", progress=False)
    for (name, one), other in zip(
        watched.model.state_dict().items(), alone.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


def test_before_the_first_step_there_is_nothing_to_draw() -> None:
    with pytest.raises(KitError, match="no training step to draw yet"):
        LiveCurves().figure()
