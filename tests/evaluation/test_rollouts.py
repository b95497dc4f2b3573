"""Evaluation on the real simulator: what a run records, that it repeats itself, and that no kill, crash or bad policy costs a finished episode."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from refinevla_kit import __version__
from refinevla_kit.errors import KitError
from refinevla_kit.evaluation import EpisodeRecord, evaluate, load_records
from refinevla_kit.evaluation.demonstrator_policy import DemonstratorPolicy
from refinevla_kit.simulator.contract import Array

CARROT, STACK = "widowx_carrot_on_plate", "widowx_stack_cube"
SMALL = {"width": 48, "height": 36, "progress": False}


class RandomPolicy:
    """Small seeded moves: the least a policy is."""

    name, checkpoint_hash = "random", "seed-0"

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def act_batch(self, images: Array, instructions: Sequence[str]) -> list[Array]:
        assert images.dtype == np.uint8 and images.shape == (len(instructions), 36, 48, 3)
        return list(self.generator.uniform(-0.02, 0.02, (len(images), 7)).astype(np.float32))


def without_time(records: list[EpisodeRecord]) -> list[dict[str, object]]:
    """Records as dictionaries, less the one column that no two runs share."""
    return [{name: value for name, value in asdict(record).items() if name != "wall_time"} for record in records]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, two episodes each, played in this process by the demonstrator."""
    return evaluate(DemonstratorPolicy(), [CARROT, STACK], episodes=2, workers=0, output=tmp_path_factory.mktemp("played"), **SMALL)


@pytest.mark.slow
def test_every_episode_is_one_complete_row(played: Path) -> None:
    records = load_records(played)
    assert [(record.task, record.episode_id) for record in records] == [(CARROT, 0), (CARROT, 1), (STACK, 0), (STACK, 1)]
    for record in records:
        assert (record.policy, record.assets, record.setting, record.seed, record.width) == ("demonstrator", "embedded", "visual_matching", 0, 48)
        assert record.success_last and record.success_any and record.grasped
        assert (record.steps, record.reason) == (60, "budget")
        assert record.wall_time > 0 and record.checkpoint_hash
        assert record.refinevla_kit == __version__ and record.numpy == np.__version__ and record.mani_skill and record.sapien
    assert not played.with_suffix(".jsonl").exists(), "the journal is merged into the parquet file"


@pytest.mark.slow
def test_two_workers_record_what_one_process_records(played: Path, tmp_path: Path) -> None:
    again = evaluate(DemonstratorPolicy(), [CARROT, STACK], episodes=2, workers=2, batch=3, output=tmp_path / "records.parquet", **SMALL)
    assert without_time(load_records(again)) == without_time(load_records(played))


@pytest.mark.slow
def test_a_killed_run_continues_without_repeating_or_losing_an_episode(tmp_path: Path) -> None:
    program = f"""
        from refinevla_kit.evaluation import evaluate
        from refinevla_kit.evaluation.demonstrator_policy import DemonstratorPolicy
        evaluate(DemonstratorPolicy(), ["{CARROT}"], episodes=3, workers=0, batch=1, output=r"{tmp_path}", width=48, height=36, progress=False)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    journal = tmp_path / "records.jsonl"
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= 1):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    before = load_records(tmp_path / "records.parquet")
    assert 1 <= len(before) < 3
    after = load_records(evaluate(DemonstratorPolicy(), [CARROT], episodes=3, workers=0, output=tmp_path, **SMALL))
    assert [record.episode_id for record in after] == [0, 1, 2]
    assert after[: len(before)] == before, "finished episodes keep even their wall time: they were not played again"


@pytest.mark.slow
def test_a_dead_worker_is_said_with_its_episode_and_costs_no_other(tmp_path: Path) -> None:
    class Killer(RandomPolicy):
        calls = 0

        def act_batch(self, images: Array, instructions: Sequence[str]) -> list[Array]:
            self.calls += 1
            if self.calls == 70:  # the second episode's tenth step
                multiprocessing.active_children()[0].kill()
            return super().act_batch(images, instructions)

    with pytest.raises(KitError, match=f"{CARROT}, episode 1, step .*process died"):
        evaluate(Killer(), [CARROT], episodes=2, workers=1, batch=1, output=tmp_path, **SMALL)
    assert [record.episode_id for record in load_records(tmp_path / "records.parquet")] == [0]
    assert not multiprocessing.active_children()


def test_a_policy_that_returns_nonsense_is_named_with_its_episode_and_step(tmp_path: Path) -> None:
    class Nonsense(RandomPolicy):
        answer: Array = np.full(7, np.nan)

        def act_batch(self, images: Array, instructions: Sequence[str]) -> list[Array]:
            return [self.answer for _ in images]

    with pytest.raises(KitError, match=rf"'random' in {CARROT}, episode 3, step 0 returned \[nan"):
        evaluate(Nonsense(), [CARROT], episodes=[3], workers=0, output=tmp_path, **SMALL)
    Nonsense.answer = np.zeros((2, 7))
    with pytest.raises(KitError, match=r"step 0 returned an action of shape \(2, 7\)"):
        evaluate(Nonsense(), [CARROT], episodes=[3], workers=0, output=tmp_path, **SMALL)


@pytest.mark.slow
def test_a_plain_policy_of_reset_and_act_drops_in_and_leaves_a_video(tmp_path: Path) -> None:
    import av

    class Plain:
        name, checkpoint_hash = "plain", ""

        def __init__(self) -> None:
            self.told: list[str] = []

        def reset(self, instruction: str) -> None:
            self.told.append(instruction)

        def act(self, image: Array) -> Array:
            assert self.told and image.shape == (36, 48, 3)
            return np.array([0, 0, 0, 0, 0, 0, 1], np.float32)

    policy = Plain()
    (record,) = load_records(evaluate(policy, [CARROT], episodes=[5], workers=0, output=tmp_path, videos=tmp_path / "videos", **SMALL))
    assert policy.told == ["put carrot on plate"]
    assert not record.success_any and not record.grasped
    with av.open(str(tmp_path / "videos/plain" / f"{CARROT}-005.mp4")) as video:
        assert len(list(video.decode(video=0))) == record.steps + 1


@pytest.mark.parametrize(
    ("tasks", "episodes", "message"),
    [(["widowx_tea"], None, "unknown task"), ([CARROT], [24], "episode 24 is outside"), ([CARROT], 0, "no episodes")],
)
def test_what_cannot_be_played_is_refused_before_anything_is_written(
    tmp_path: Path, tasks: list[str], episodes: int | list[int] | None, message: str
) -> None:
    with pytest.raises(KitError, match=message):
        evaluate(RandomPolicy(), tasks, episodes=episodes, output=tmp_path / "new", **SMALL)
    assert not (tmp_path / "new").exists()


def test_importing_evaluation_loads_neither_torch_nor_a_simulator() -> None:
    program = (
        "import sys, refinevla_kit.evaluation.statistics, refinevla_kit.evaluation.published, refinevla_kit.figures.success;"
        "print([name for name in ('torch', 'sapien', 'mani_skill', 'gymnasium') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"
