"""Evaluation on the real simulator: what a run records, that it repeats itself, and that no kill, crash or bad policy costs a finished episode."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refinevla_kit import __version__
from refinevla_kit.conventions import ROBOT_CONVENTIONS
from refinevla_kit.errors import KitError
from refinevla_kit.evaluation import EpisodeRecord, evaluate, load_records
from refinevla_kit.evaluation.demonstrator_policy import DemonstratorPolicy
from refinevla_kit.policies.contract import Action
from refinevla_kit.simulator.contract import Array
from refinevla_kit.tasks import PROTOCOL_VERSION, VARIANT_AGGREGATION

CARROT, STACK = "widowx_carrot_on_plate", "widowx_stack_cube"
SMALL: Any = {"width": 48, "height": 36, "progress": False}


class RandomPolicy:
    """Small seeded moves: the least a policy is."""

    name, checkpoint_hash = "random", "seed-0"

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def act_batch(self, images: Array, instructions: Sequence[str]) -> list[Array]:
        assert images.dtype == np.uint8 and images.shape == (len(instructions), 36, 48, 3)
        return list(self.generator.uniform(-0.02, 0.02, (len(images), 7)).astype(np.float32))


class RestPolicy(RandomPolicy):
    """Keeps still: what it does does not depend on what it has done."""

    name = "rest"

    def act_batch(self, images: Array, instructions: Sequence[str]) -> list[Array]:
        return [np.array([0, 0, 0, 0, 0, 0, 1], np.float32) for _ in images]


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
        assert (record.protocol, record.backend, record.variant, record.start) == (PROTOCOL_VERSION, "maniskill", "base", "grid")
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


def kill_a_worker(policy: RandomPolicy, at: Sequence[int]) -> RandomPolicy:
    """Let `policy` kill the simulator process that was started first, at some of its calls."""
    calls, act = iter(range(10_000)), policy.act_batch

    def act_and_kill(images: Array, instructions: Sequence[str]) -> list[Array]:
        if next(calls) in at:
            min(multiprocessing.active_children(), key=lambda child: int(child.name.rpartition("-")[2])).kill()
        return act(images, instructions)

    policy.act_batch = act_and_kill  # type: ignore[method-assign]
    return policy


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*the process was started again:RuntimeWarning")
def test_a_dead_worker_is_started_again_and_its_episode_repeated(tmp_path: Path) -> None:
    killer = kill_a_worker(RestPolicy(), at=[70])  # the second episode's tenth step
    records = load_records(evaluate(killer, [CARROT], episodes=3, workers=1, batch=1, output=tmp_path / "killed", **SMALL))
    calm = load_records(evaluate(RestPolicy(), [CARROT], episodes=3, workers=0, batch=1, output=tmp_path / "calm", **SMALL))
    assert without_time(records) == without_time(calm)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_an_episode_that_kills_its_worker_twice_is_recorded_as_a_crash_and_the_rest_goes_on(tmp_path: Path) -> None:
    killer = kill_a_worker(RestPolicy(), at=[70, 75])  # the second episode's tenth step, and its fifth when it is repeated
    with pytest.warns(RuntimeWarning, match=rf"{CARROT}, episode 1, step \d+: its process died \(exit code -9\); the process was started again"):
        records = load_records(evaluate(killer, [CARROT], episodes=3, workers=1, batch=1, output=tmp_path, **SMALL))
    assert [(record.episode_id, record.reason) for record in records] == [(0, "budget"), (1, "crash"), (2, "budget")]
    assert not records[1].success_any and not records[1].success_last


@pytest.mark.slow
def test_a_kill_that_takes_several_lanes_repeats_all_and_blames_none_twice(tmp_path: Path) -> None:
    killer = kill_a_worker(RestPolicy(), at=[20, 90])  # one process, then the other, so no episode can be the first of both
    with pytest.warns(RuntimeWarning, match="started again"):
        records = load_records(evaluate(killer, [CARROT, STACK], episodes=3, workers=2, batch=4, output=tmp_path, **SMALL))
    assert [(record.task, record.episode_id, record.reason) for record in records] == [
        (task, episode, "budget") for task in (CARROT, STACK) for episode in range(3)
    ]


def test_a_worker_that_cannot_even_begin_ends_the_run_with_the_way_to_see_why(tmp_path: Path) -> None:
    script = tmp_path / "no_guard.py"
    script.write_text(
        "from refinevla_kit.evaluation import evaluate\n"
        "class Rest:\n    def act_batch(self, images, instructions): return [[0, 0, 0, 0, 0, 0, 1]] * len(images)\n"
        f"evaluate(Rest(), '{CARROT}', episodes=1, workers=1, output=r'{tmp_path}', width=48, height=36)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode and "failed before its first step" in done.stderr and "__name__ == '__main__'" in done.stderr


@pytest.mark.slow
def test_a_policy_that_asks_for_the_robots_own_state_gets_it(tmp_path: Path) -> None:
    class Descender(RandomPolicy):
        name, needs_proprioception = "descender", True

        def act_batch(self, images: Array, instructions: Sequence[str], proprioception: Array | None = None) -> list[Array]:
            assert proprioception is not None and proprioception.shape == (len(images), 15)
            down = np.clip(0.10 - proprioception[:, 10], -0.03, 0.03)  # to a commanded height of 10 cm above the robot's base
            heights.append(float(proprioception[0, 10]))
            return [np.array([0, 0, z, 0, 0, 0, 1], np.float32) for z in down]

    heights: list[float] = []
    evaluate(Descender(), [CARROT], episodes=1, workers=0, output=tmp_path / "batched", **SMALL)
    assert heights[-1] == pytest.approx(0.10, abs=1e-3) and heights[0] > 0.11

    class Single:
        name, checkpoint_hash, needs_proprioception = "single", "", True

        def act(self, image: Array, proprioception: Array) -> Array:
            assert image.shape == (36, 48, 3) and proprioception.shape == (15,)
            return np.array([0, 0, 0, 0, 0, 0, 1], np.float32)

    evaluate(Single(), [CARROT], episodes=1, workers=0, output=tmp_path / "single", **SMALL)


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
    Nonsense.answer = np.array([0, 0, 20.0, 0, 0, 0, 1])  # centimetres, perhaps
    with pytest.raises(KitError, match=rf"{CARROT}, episode 3, step 0 returned .*20.0.* beyond 1 m"):
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
    (path,) = (tmp_path / "videos/plain").iterdir()
    assert path.name == f"{CARROT}-base-grid-005.mp4"
    with pytest.warns(UserWarning, match=r"1 of 1 episodes are taken from .*'plain' has no `checkpoint_hash`"):
        evaluate(policy, [CARROT], episodes=[5], workers=0, output=tmp_path, **SMALL)
    with av.open(str(path)) as video:
        assert len(list(video.decode(video=0))) == record.steps + 1


@pytest.mark.slow
def test_dense_starts_are_the_same_for_every_policy_and_however_many_are_asked_for(tmp_path: Path) -> None:
    def first_images(n: int, seed: int) -> list[bytes]:
        seen: dict[int, bytes] = {}

        class Looks(RestPolicy):
            def act_batch(self, images: Array, instructions: Sequence[str]) -> list[Array]:
                seen.setdefault(len(seen), images[0].tobytes())
                return super().act_batch(images, instructions)

        path = evaluate(Looks(), [CARROT], "dense", n, seed=seed, workers=0, batch=1, output=tmp_path / f"{n}-{seed}", **SMALL)
        assert [(record.start, record.episode_id) for record in load_records(path)] == [("dense", episode) for episode in range(n)]
        return [seen[60 * episode] for episode in range(n)]

    two, one, other = first_images(2, 3), first_images(1, 3), first_images(1, 4)
    assert two[0] == one[0] and one[0] != other[0] and two[0] != two[1]


@pytest.mark.slow
def test_variants_are_played_by_name_and_recorded_under_it(tmp_path: Path) -> None:
    names = ["base", "lighting_darker"]
    path = evaluate(RestPolicy(), [CARROT], 1, setting=VARIANT_AGGREGATION, variants=names, workers=0, output=tmp_path, **SMALL)
    assert [(record.setting, record.variant) for record in load_records(path)] == [(VARIANT_AGGREGATION, name) for name in names]


@pytest.mark.slow
def test_a_policy_that_says_it_has_finished_ends_its_episode(tmp_path: Path) -> None:
    class Done(RestPolicy):
        def act_batch(self, images: Array, instructions: Sequence[str]) -> list[Any]:
            return [Action(action, action, np.empty(0), np.empty(0), terminate=True) for action in super().act_batch(images, instructions)]

    (record,) = load_records(evaluate(Done(), [CARROT], 1, workers=0, output=tmp_path, **SMALL))
    assert (record.steps, record.reason) == (1, "terminated")


@pytest.mark.slow
def test_the_resolution_is_the_protocols_unless_the_policy_or_the_caller_asks_for_another(tmp_path: Path) -> None:
    class Shape(RestPolicy):
        def act_batch(self, images: Array, instructions: Sequence[str]) -> list[Any]:
            self.shape = images.shape[1:3]
            return [Action(action, action, np.empty(0), np.empty(0), terminate=True) for action in super().act_batch(images, instructions)]

    policy = Shape()
    evaluate(policy, [CARROT], 1, workers=0, output=tmp_path, progress=False)
    assert policy.shape == (480, 640)
    policy.conventions = replace(ROBOT_CONVENTIONS["widowx"], image_size=(64, 48))  # type: ignore[attr-defined]
    evaluate(policy, [CARROT], 1, workers=0, output=tmp_path, progress=False)
    assert policy.shape == (48, 64)
    assert [(record.width, record.height) for record in load_records(tmp_path)] == [(64, 48), (640, 480)]


@pytest.mark.parametrize(
    ("tasks", "episodes", "message"),
    [
        (["widowx_tea"], None, "unknown task"),
        ([CARROT], [24], "episode 24 is outside"),
        ([CARROT], 0, "no episodes"),
        ([CARROT], "dense", "with n=None"),
    ],
)
def test_what_cannot_be_played_is_refused_before_anything_is_written(
    tmp_path: Path, tasks: list[str], episodes: Any, message: str
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
