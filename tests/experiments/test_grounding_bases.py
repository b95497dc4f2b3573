"""Two tiny bases from real demonstrations: alike but for what the block `grounding` asks about."""

import json
from pathlib import Path

import pytest

from experiments.grounding_bases import make_bases
from refinevla_kit.vlas.checkpoint import checkpoint_hash
from refinevla_kit.vlas.compact import load
from tests.experiments.conftest import TINY


@pytest.mark.slow
def test_the_bases_differ_in_grounding_alone_and_are_made_once(tmp_path: Path) -> None:
    made = make_bases(tmp_path, 1, 3, 2, 4, workers=1, model=TINY)
    assert [path.name for path in made] == ["grounded", "ungrounded"]
    grounded, ungrounded = (load(path).provenance for path in made)
    differing = {
        key
        for key in grounded["pretraining"]
        if grounded["pretraining"][key] != ungrounded["pretraining"][key]
    }
    assert differing == {"grounding_steps", "pointing"}
    assert (
        grounded["demonstrations"] == ungrounded["demonstrations"]
        and grounded["demonstrations"][0]["episodes"] == 4
    )
    assert ungrounded["grounding"] is None and grounded["grounding"]["step"] == 2
    assert (
        json.loads((made[0] / "config.json").read_text())["vision_config"]
        == json.loads((made[1] / "config.json").read_text())["vision_config"]
    )
    before = [checkpoint_hash(path) for path in made]
    assert len(set(before)) == 2
    assert [
        checkpoint_hash(path) for path in make_bases(tmp_path, 1, 3, 2, 4, workers=1, model=TINY)
    ] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demonstrations", "grounded", "ungrounded"], (
        "no work is left lying"
    )
