"""The error of an action after texts of several origins, by a tiny policy on real frames."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments.report import text_use
from experiments.text_use import OTHER, OWN, STILL, TRUE, measure
from refinevla_kit.errors import KitError
from refinevla_kit.policies import load_policy, vla_policy
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.training.examples import find_rationales, load_examples
from refinevla_kit.vlas.compact import load


@pytest.fixture
def output(bases: dict[str, Path], tmp_path: Path) -> Path:
    """An experiment with one run of either order, neither of them trained."""
    shutil.copytree(REPOSITORY / "data/demo", tmp_path / "dataset")
    for arm, order in (("with_reasoning", "action_first"), ("rationale_first", "rationale_first")):
        vla = load(bases["main"])
        vla.provenance["order"] = order
        vla.save(tmp_path / "runs" / f"{arm}-seed0-abc" / arm)
    return tmp_path


def test_each_text_is_acted_on_and_the_report_shows_it(output: Path) -> None:
    found = json.loads(measure(output, episodes=2).read_text())
    mean = {
        one["what"]: one["mean"]
        for one in found["lines"]
        if (one["arm"], one["seed"]) == ("rationale_first", "0")
    }
    assert mean[f"{OWN} minus {TRUE}"] == pytest.approx(mean[OWN] - mean[TRUE])
    assert len({mean[OWN], mean[TRUE], mean[OTHER]}) == 3, "another text, another action"
    assert found["episodes"] == 2 and f"| rationale first | 0 | {TRUE} | {mean[TRUE]:.1f} |" in text_use(
        output / "records"
    )


@pytest.mark.slow
def test_the_error_is_that_of_the_commanded_movement(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vla_policy, "LONGEST_RATIONALE", 20)  # who has not learned to end writes up to there
    found = json.loads(measure(output).read_text())
    examples = load_examples(output / "dataset", find_rationales(output / "dataset"))
    assert found["episodes"] == len(np.unique(examples.episodes))
    still = next(one for one in found["lines"] if one["what"] == STILL)
    per_frame = 1000 * np.abs(examples.actions[:, :3]).sum(1)
    assert (
        per_frame.min() <= still["mean"] <= per_frame.max() and still["low"] < still["mean"] < still["high"]
    )
    assert load_policy(output / "runs/rationale_first-seed0-abc/rationale_first").order == "rationale_first"


def test_without_a_run_that_writes_first_it_says_what_to_run(output: Path) -> None:
    shutil.rmtree(output / "runs/rationale_first-seed0-abc")
    with pytest.raises(KitError, match=r"no run of rationale_first in .* -> run .* --only main,order` first"):
        measure(output)
    assert not (output / "records").exists()
