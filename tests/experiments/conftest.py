"""A base that is made on the spot: small, of as many layers as the shipped one, with words for what the
demonstrations say.
"""

from pathlib import Path

import pytest

from refinevla_kit.settings import REPOSITORY
from refinevla_kit.training.examples import find_rationales, load_examples
from refinevla_kit.vlas.action_tokens import UniformBins
from refinevla_kit.vlas.compact import CompactConfig, build
from refinevla_kit.vlas.compact_parts import train_vocabulary

TINY = CompactConfig(layers=5, hidden=32, heads=2, feedforward=48, channels=8, proprioception=True)


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three tiny checkpoints, "main", "grounded" and "ungrounded" by name alone: they differ in their first
    weights.
    """
    folder, demo = tmp_path_factory.mktemp("bases"), REPOSITORY / "data" / "demo"
    examples = load_examples(demo, find_rationales(demo))
    tokenizer, bins = (
        train_vocabulary([*examples.instructions, *examples.rationales]),
        UniformBins.fit(examples.actions),
    )
    return {
        name: build(TINY, tokenizer, bins, seed).save(folder / name)
        for seed, name in enumerate(("main", "grounded", "ungrounded"))
    }
