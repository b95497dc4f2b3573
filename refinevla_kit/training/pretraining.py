"""How the shipped base was made: see first, then act. A documented recipe with a seed, so that anyone can make it again.

1. The vision tower learns where things are (grounding.py), from the simulator's own state.
2. Tower frozen, the language model learns the demonstrator's actions (loop.py with the reasoning loss off). Rationales take no part, except that
   their words are in the vocabulary: a base that had read them already would spoil the comparison it is made for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from refinevla_kit.files import replacing, sha256
from refinevla_kit.policies.action_tokens import UniformBins
from refinevla_kit.policies.compact_vla import CompactConfig, CompactVLA, build, save
from refinevla_kit.policies.vocabulary import train_vocabulary
from refinevla_kit.tasks import WIDOWX_TASKS
from refinevla_kit.training.examples import load_examples
from refinevla_kit.training.grounding import ground_tower, load_places
from refinevla_kit.training.loop import TrainingConfig, fine_tune


@dataclass(frozen=True)
class PretrainingConfig:
    """grounding_steps: of 64 frames, tower alone. steps, batch_size, learning_rate: of the language model on actions. seed: of everything."""

    grounding_steps: int = 2000
    steps: int = 2500
    batch_size: int = 64
    learning_rate: float = 1e-3
    seed: int = 0


def pretrain(
    dataset: str | Path, rationales: str | Path, work: str | Path, config: PretrainingConfig, model: CompactConfig | None = None
) -> CompactVLA:
    """Make a base from demonstrations with a simulator sidecar.

    `rationales` give words to the vocabulary, nothing else. `work` keeps the resumable state of the second stage.
    """
    model = model or CompactConfig()
    examples = load_examples(dataset, rationales)
    tokenizer = train_vocabulary([*examples.instructions, *examples.rationales, *(task.instruction for task in WIDOWX_TASKS)])
    vla = build(model, tokenizer, UniformBins.fit(examples.actions), config.seed)
    grounding = ground_tower(vla, examples.images, load_places(dataset), config.grounding_steps, seed=config.seed)
    training = TrainingConfig(
        steps=config.steps, batch_size=config.batch_size, learning_rate=config.learning_rate, lambda_reasoning=0.0, freeze_layers=0,
        validate_every=100, seed=config.seed,
    )  # fmt: skip
    history = fine_tune(vla, examples, training, work, "compact_base")
    vla.provenance.update(
        made_by="refinevla_kit.training.pretraining", frames=len(examples), episodes=len(set(examples.episodes.tolist())), model=asdict(model),
        pretraining=asdict(config), data_sha256=sha256(Path(dataset) / "data"), grounding=grounding[-1], validation=history[-1],
        torch=torch.__version__,
    )  # fmt: skip
    return vla


def write_card(path: str | Path, vla: CompactVLA, records: Sequence[dict[str, Any]]) -> None:
    """README.md beside a saved checkpoint: what it was made of, and how often it succeeds (rows: task, successes last and any, episodes)."""
    origin = vla.provenance
    rows = "".join(f"| {r['task']} | {r['last']}/{r['episodes']} | {r['any']}/{r['episodes']} |\n" for r in records)
    with replacing(Path(path) / "README.md") as part:
        part.write_text(
            f"# Compact VLA, base\n\nMade by `{origin['made_by']}` from {origin['episodes']} demonstrations ({origin['frames']} frames) of the\n"
            f"scripted demonstrator on the embedded assets; {origin['pretraining']}.\n\n"
            "It has never been trained on a rationale. Official grid, embedded assets:\n\n"
            f"| task | success at the last step | success at any step |\n| --- | --- | --- |\n{rows}",
            encoding="utf-8",
        )


def save_base(vla: CompactVLA, path: str | Path) -> Path:
    """Write the base for shipping, in bfloat16 (half the size)."""
    return save(vla, path, torch.bfloat16)
