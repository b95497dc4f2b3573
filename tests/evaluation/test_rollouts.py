"""Evaluation on the real simulator: what a run records, that it repeats itself, and that no kill, crash or
bad policy costs a finished episode.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refinevla_kit import __version__
from refinevla_kit.conventions import ROBOT_CONVENTIONS, WIDOWX
from refinevla_kit.errors import KitError
from refinevla_kit.evaluation import EpisodeRecord, evaluate, load_records
from refinevla_kit.evaluation.run import plan
from refinevla_kit.policies.contract import Action, ask, read_answer
from refinevla_kit.policies.conversion import converted
from refinevla_kit.rollouts.engine import ProcessStation, Scene
from refinevla_kit.rollouts.players import DemonstratorPolicy
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.simulator.contract import Array, Observation, StepResult
from refinevla_kit.tasks import PROTOCOL_VERSION, VARIANT_AGGREGATION, find_task

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
    return [
        {name: value for name, value in asdict(record).items() if name != "wall_time"} for record in records
    ]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, two episodes each, played in this process by the demonstrator."""
    return evaluate(
        DemonstratorPolicy(),
        [CARROT, STACK],
        episodes=2,
        workers=0,
        output=tmp_path_factory.mktemp("played"),
        **SMALL,
    )


@pytest.mark.slow
def test_every_episode_is_one_complete_row(played: Path) -> None:
    records = load_records(played)
    assert [(record.task, record.episode_id) for record in records] == [
        (CARROT, 0),
        (CARROT, 1),
        (STACK, 0),
        (STACK, 1),
    ]
    for record in records:
        assert (record.policy, record.assets, record.setting, record.seed, record.width) == (
            "demonstrator",
            "embedded",
            "visual_matching",
            0,
            48,
        )
        assert (record.protocol, record.backend, record.variant, record.start) == (
            PROTOCOL_VERSION,
            "maniskill",
            "base",
            "grid",
        )
        assert record.success_last and record.success_any and record.grasped
        assert (record.steps, record.reason) == (60, "budget")
        assert record.wall_time > 0 and record.checkpoint_hash
        assert (
            record.refinevla_kit == __version__
            and record.numpy == np.__version__
            and record.mani_skill
            and record.sapien
        )
    assert not played.with_suffix(".jsonl").exists(), "the journal is merged into the parquet file"


@pytest.mark.slow
def test_two_workers_record_what_one_process_records(played: Path, tmp_path: Path) -> None:
    again = evaluate(
        DemonstratorPolicy(),
        [CARROT, STACK],
        episodes=2,
        workers=2,
        batch=3,
        output=tmp_path / "records.parquet",
        **SMALL,
    )
    assert without_time(load_records(again)) == without_time(load_records(played))


@pytest.mark.slow
def test_a_killed_run_continues_without_repeating_or_losing_an_episode(tmp_path: Path) -> None:
    program = f"""
        from refinevla_kit.evaluation import evaluate
        from refinevla_kit.rollouts.players import DemonstratorPolicy
        evaluate(
            DemonstratorPolicy(), ["{CARROT}"], episodes=3, workers=0, batch=1, output=r"{tmp_path}",
            width=48, height=36, progress=False,
        )
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    journal = tmp_path / "records.jsonl"
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= 1):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    before = load_records(tmp_path / "records.parquet")
    assert 1 <= len(before) < 3
    after = load_records(
        evaluate(DemonstratorPolicy(), [CARROT], episodes=3, workers=0, output=tmp_path, **SMALL)
    )
    assert [record.episode_id for record in after] == [0, 1, 2]
    assert after[: len(before)] == before, (
        "finished episodes keep even their wall time: they were not played again"
    )


def kill_a_worker(policy: RandomPolicy, at: Sequence[int]) -> RandomPolicy:
    """Let `policy` kill the simulator process that was started first, at some of its calls."""
    calls, act = iter(range(10_000)), policy.act_batch

    def act_and_kill(images: Array, instructions: Sequence[str]) -> list[Array]:
        if next(calls) in at:
            min(
                multiprocessing.active_children(), key=lambda child: int(child.name.rpartition("-")[2])
            ).kill()
        return act(images, instructions)

    policy.act_batch = act_and_kill  # type: ignore[method-assign]
    return policy


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*the process was started again:RuntimeWarning")
def test_a_dead_worker_is_started_again_and_its_episode_repeated(tmp_path: Path) -> None:
    killer = kill_a_worker(RestPolicy(), at=[70])  # the second episode's tenth step
    records = load_records(
        evaluate(killer, [CARROT], episodes=3, workers=1, batch=1, output=tmp_path / "killed", **SMALL)
    )
    calm = load_records(
        evaluate(RestPolicy(), [CARROT], episodes=3, workers=0, batch=1, output=tmp_path / "calm", **SMALL)
    )
    assert without_time(records) == without_time(calm)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_an_episode_that_kills_its_worker_twice_is_recorded_as_a_crash_and_the_rest_goes_on(
    tmp_path: Path,
) -> None:
    killer = kill_a_worker(
        RestPolicy(), at=[70, 75]
    )  # the second episode's tenth step, and its fifth when it is repeated
    with pytest.warns(
        RuntimeWarning,
        match=rf"{CARROT}, episode 1, step \d+: its process died \(exit code -9\); the process was started "
        r"again",
    ):
        records = load_records(
            evaluate(killer, [CARROT], episodes=3, workers=1, batch=1, output=tmp_path, **SMALL)
        )
    assert [(record.episode_id, record.reason) for record in records] == [
        (0, "budget"),
        (1, "crash"),
        (2, "budget"),
    ]
    assert not records[1].success_any and not records[1].success_last


@pytest.mark.slow
def test_a_kill_that_takes_several_lanes_repeats_all_and_blames_none_twice(tmp_path: Path) -> None:
    killer = kill_a_worker(
        RestPolicy(), at=[20, 90]
    )  # one process, then the other, so no episode can be the first of both
    with pytest.warns(RuntimeWarning, match="started again"):
        records = load_records(
            evaluate(killer, [CARROT, STACK], episodes=3, workers=2, batch=4, output=tmp_path, **SMALL)
        )
    assert [(record.task, record.episode_id, record.reason) for record in records] == [
        (task, episode, "budget") for task in (CARROT, STACK) for episode in range(3)
    ]


def test_a_worker_that_cannot_even_begin_ends_the_run_with_the_way_to_see_why(tmp_path: Path) -> None:
    script = tmp_path / "no_guard.py"
    script.write_text(
        "from refinevla_kit.evaluation import evaluate\n"
        "class Rest:\n    def act_batch(self, images, instructions): return [[0, 0, 0, 0, 0, 0, 1]] "
        "* len(images)\n"
        f"evaluate(Rest(), '{CARROT}', episodes=1, workers=1, output=r'{tmp_path}', width=48, height=36)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert (
        done.returncode
        and "failed before its first step" in done.stderr
        and "__name__ == '__main__'" in done.stderr
    )


@pytest.mark.slow
def test_a_policy_that_asks_for_the_robots_own_state_gets_it(tmp_path: Path) -> None:
    class Descender(RandomPolicy):
        name, needs_proprioception = "descender", True

        def act_batch(
            self, images: Array, instructions: Sequence[str], proprioception: Array | None = None
        ) -> list[Array]:
            assert proprioception is not None and proprioception.shape == (len(images), 15)
            down = np.clip(
                0.10 - proprioception[:, 10], -0.03, 0.03
            )  # to a commanded height of 10 cm above the robot's base
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


def test_a_policy_that_returns_nonsense_is_named_with_its_episode_and_step(
    tmp_path: Path, rooms: None
) -> None:
    class Nonsense(RandomPolicy):
        answer: Array = np.full(7, np.nan)

        def act_batch(self, images: Array, instructions: Sequence[str]) -> list[Array]:
            return [self.answer for _ in images]

    with pytest.raises(KitError, match=rf"'random' in {CARROT}, episode 3, step 0 returned \[nan"):
        evaluate(Nonsense(), [CARROT], episodes=[3], workers=0, output=tmp_path, **SMALL)
    Nonsense.answer = np.zeros((2, 6))
    with pytest.raises(KitError, match=r"step 0 returned an action of shape \(2, 6\)"):
        evaluate(Nonsense(), [CARROT], episodes=[3], workers=0, output=tmp_path, **SMALL)
    Nonsense.answer = np.array([0, 0, 20.0, 0, 0, 0, 1])  # centimetres, perhaps
    with pytest.raises(KitError, match=rf"{CARROT}, episode 3, step 0 returned .*20.0.* beyond 1 m"):
        evaluate(Nonsense(), [CARROT], episodes=[3], workers=0, output=tmp_path, **SMALL)


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
    (record,) = load_records(
        evaluate(
            policy, [CARROT], episodes=[5], workers=0, output=tmp_path, videos=tmp_path / "videos", **SMALL
        )
    )
    assert policy.told == ["put carrot on plate"]
    assert not record.success_any and not record.grasped
    (path,) = (tmp_path / "videos/plain").iterdir()
    assert path.name.startswith(f"{CARROT}-base-grid-005-")
    with pytest.warns(
        UserWarning, match=r"1 of 1 episodes are taken from .*'plain' has no `checkpoint_hash`"
    ):
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

        path = evaluate(
            Looks(),
            [CARROT],
            "dense",
            n,
            seed=seed,
            workers=0,
            batch=1,
            output=tmp_path / f"{n}-{seed}",
            **SMALL,
        )
        assert [(record.start, record.episode_id) for record in load_records(path)] == [
            ("dense", episode) for episode in range(n)
        ]
        return [seen[60 * episode] for episode in range(n)]

    two, one, other = first_images(2, 3), first_images(1, 3), first_images(1, 4)
    assert two[0] == one[0] and one[0] != other[0] and two[0] != two[1]


@pytest.mark.slow
def test_variants_are_played_by_name_and_recorded_under_it(tmp_path: Path) -> None:
    names = ["base", "lighting_darker"]
    path = evaluate(
        RestPolicy(),
        [CARROT],
        1,
        setting=VARIANT_AGGREGATION,
        variants=names,
        workers=0,
        output=tmp_path,
        **SMALL,
    )
    assert [(record.setting, record.variant) for record in load_records(path)] == [
        (VARIANT_AGGREGATION, name) for name in names
    ]


def test_a_policy_that_says_it_has_finished_ends_its_episode(tmp_path: Path) -> None:
    class Done(RestPolicy):
        def act_batch(self, images: Array, instructions: Sequence[str]) -> list[Any]:
            return [
                Action(action, action, np.empty(0), np.empty(0), terminate=True)
                for action in super().act_batch(images, instructions)
            ]

    (record,) = load_records(evaluate(Done(), [CARROT], 1, workers=0, output=tmp_path, **SMALL))
    assert (record.steps, record.reason) == (1, "terminated")


def test_the_resolution_is_the_protocols_unless_the_policy_or_the_caller_asks_for_another(
    tmp_path: Path,
) -> None:
    class Shape(RestPolicy):
        def act_batch(self, images: Array, instructions: Sequence[str]) -> list[Any]:
            self.shape = images.shape[1:3]
            return [
                Action(action, action, np.empty(0), np.empty(0), terminate=True)
                for action in super().act_batch(images, instructions)
            ]

    policy = Shape()
    evaluate(policy, [CARROT], 1, workers=0, output=tmp_path, progress=False)
    assert policy.shape == (480, 640)
    policy.conventions = replace(ROBOT_CONVENTIONS["widowx"], image_size=(64, 48))  # type: ignore[attr-defined]
    evaluate(policy, [CARROT], 1, workers=0, output=tmp_path, progress=False)
    assert policy.shape == (48, 64)
    assert [(record.width, record.height) for record in load_records(tmp_path)] == [(64, 48), (640, 480)]


class Room:
    """A simulator in which nothing happens, for what is not about simulation: making a real one takes
    seconds.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene, self.task = scene, find_task(scene.task)

    def observe(self) -> Observation:
        image = np.full((self.scene.height, self.scene.width, 3), self.steps, np.uint8)
        return Observation(image, np.zeros(15, np.float32), self.task.instruction)

    def reset(self, episode: Any, seed: int = 0) -> Observation:
        self.steps = 0
        return self.observe()

    def step(self, action: Array) -> StepResult:
        self.steps += 1
        done = self.steps == self.task.max_steps
        return StepResult(self.observe(), False, False, done, "budget" if done else "")

    def advance(self) -> bool:
        return False

    def close(self) -> None:
        pass


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scene, "make", lambda scene: Room(scene))


class Ends(RestPolicy):
    """Ends each episode with its first step, and counts them."""

    conventions = WIDOWX

    def __init__(self, name: Any = "ends", identity: Any = "1") -> None:
        self.name, self.checkpoint_hash, self.asked = name, identity, 0

    def act_batch(self, images: Array, instructions: Sequence[str]) -> list[Any]:
        self.asked += len(images)
        return [
            SimpleNamespace(processed=action, terminate=True)
            for action in super().act_batch(images, instructions)
        ]


def test_whatever_acts_otherwise_is_another_policy_in_the_records(tmp_path: Path) -> None:
    """The checkpoint's own settings are its files' hash alone; each other setting, and each file that changes
    what it does, is another identity.
    """
    # With torch, which the programs that import this file do without.
    from refinevla_kit.policies import load_policy

    source, changed = REPOSITORY / "data/checkpoints/action_only", tmp_path / "action_only"
    usual = load_policy(source)
    shipped = {
        record.checkpoint_hash
        for record in load_records(REPOSITORY / "data/records")
        if record.policy == "action_only"
    }
    assert shipped == {usual.checkpoint_hash}, "the shipped records are those of the shipped checkpoint"
    assert (
        load_policy(source, decoding="median", order="action_first").checkpoint_hash == usual.checkpoint_hash
    )
    shutil.copytree(source, changed)
    (changed / "README.md").write_text("a card acts on nothing")
    assert load_policy(changed).checkpoint_hash == usual.checkpoint_hash
    statistics = json.loads((changed / "dataset_statistics.json").read_text())
    statistics["action_tokens"]["limits"][0] *= 2
    (changed / "dataset_statistics.json").write_text(json.dumps(statistics))
    centimetres = replace(WIDOWX, unit="cm")
    others = [
        load_policy(changed),
        load_policy(source, decoding="greedy"),
        load_policy(source, order="rationale_first"),
    ]
    wrapped = [SimpleNamespace(name="a", checkpoint_hash="1", conventions=centimetres, act=None), Ends()]
    hashes = [
        policy.checkpoint_hash
        for policy in [usual, *others, *(converted(policy, CARROT) for policy in wrapped)]
    ]
    assert len(set(hashes)) == 6 and hashes[-2:] == ["1+unit=cm", "1"], hashes
    assert hashes[2] == f"{usual.checkpoint_hash}+decoding=greedy"
    usual.decoding = "greedy"
    assert usual.checkpoint_hash == hashes[2], "also where it is set later"


def test_another_identity_is_played_and_no_video_takes_the_place_of_another(
    tmp_path: Path, rooms: None
) -> None:
    options: Any = {"workers": 0, "output": tmp_path, "videos": tmp_path / "videos", "progress": False}
    first, second, rude = Ends(identity="1"), Ends(identity="1+decoding=greedy"), Ends("../a/b", None)
    for policy in (first, second, rude, first):
        evaluate(policy, [CARROT], 1, width=48, height=36, **options)
    evaluate(first, [CARROT], 1, width=64, height=48, **options)
    evaluate(first, [CARROT], 1, width=48, height=36, seed=1, **options)
    assert (first.asked, second.asked, rude.asked) == (3, 1, 1)
    assert len(load_records(tmp_path)) == 5
    assert (
        sorted(path.parent.name for path in (tmp_path / "videos").rglob("*.mp4")) == ["_a_b"] + ["ends"] * 4
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["records.parquet", "videos"]


def test_what_is_named_twice_is_played_once(tmp_path: Path, rooms: None) -> None:
    policy, tasks = Ends(), ("widowx", CARROT, find_task(CARROT))
    ids = (id for id in np.array([3, 3, 5]))
    records = load_records(
        evaluate(policy, (task for task in tasks), ids, workers=0, output=tmp_path, **SMALL)
    )  # generators are read once
    assert policy.asked == len(records) == 8 and {
        (record.episode_id, type(record.episode_id)) for record in records
    } == {(3, int), (5, int)}


A = [0.01, 0, 0, 0, 0, 0, 1.0]
TURNED = [0.3, 0.4, 0.2]  # a rotation vector


def answers() -> dict[str, tuple[Any, Array]]:
    """What others' policies return -> the first action that reaches the robot."""
    import torch
    from scipy.spatial.transform import Rotation

    parts: dict[str, Any] = {"world_vector": A[:3], "gripper": A[6:], "terminate_episode": [0.0]}
    euler = Rotation.from_rotvec(TURNED).as_euler("xyz")
    return {
        "list": (A, np.array(A)),
        "one row": (np.array([A]), np.array(A)),
        "float64": (np.array(A, np.float64), np.array(A)),
        "tensor with gradient": (torch.tensor(A, requires_grad=True) * 1.0, np.array(A)),
        "bfloat16": (
            torch.tensor([A], dtype=torch.bfloat16),
            torch.tensor(A, dtype=torch.bfloat16).float().numpy(),
        ),
        "sparse": (torch.tensor(A).to_sparse(), np.array(A)),
        "list of tensors": ([torch.tensor(each, dtype=torch.float64) for each in A], np.array(A)),
        "map": ({"action": torch.tensor(A)}, np.array(A)),
        "chunk in a map": ({"actions": np.array([A, A])}, np.array(A)),
        "processed by SimplerEnv": ({**parts, "rot_axangle": TURNED}, np.array([*A[:3], *euler, 1])),
        "turned by roll, pitch, yaw": ({**parts, "rotation_delta": TURNED}, np.array([*A[:3], *TURNED, 1])),
        "pair": (({"world_vector": [9, 9, 9]}, {**parts, "rot_axangle": [0, 0, 0]}), np.array(A)),
        "action and something": ((np.array(A), {"value": 0.5}), np.array(A)),
    }


# Spelt out, as making them needs torch, which the programs that import this file do without.
ANSWERS = [
    *("list", "one row", "float64", "tensor with gradient", "bfloat16", "sparse", "list of tensors", "map"),
    *("chunk in a map", "processed by SimplerEnv", "turned by roll, pitch, yaw", "pair"),
    "action and something",
]


@pytest.mark.parametrize("name", ANSWERS)
def test_what_others_policies_return_is_read(name: str) -> None:
    assert list(answers()) == ANSWERS
    answer, expected = answers()[name]
    for verb, returned in {
        "act": lambda *_: answer,
        "step": lambda image, instruction: answer,
        "act_batch": lambda *_: [answer],
    }.items():
        (found,) = ask(SimpleNamespace(**{verb: returned}), [np.zeros((36, 48, 3), np.uint8)], ["go"])
        actions = read_answer(found)
        assert (
            actions[0].processed == pytest.approx(expected, abs=1e-6)
            and actions[0].processed.dtype == np.float32
        )
        assert not actions[0].terminate


def test_a_batch_comes_as_a_map_a_tensor_or_a_generator() -> None:
    import torch

    images, rows = [np.zeros((36, 48, 3), np.uint8)] * 3, np.arange(21).reshape(3, 7)
    found_in_many = [
        {"actions": rows},
        torch.tensor(rows),
        (row for row in rows),
        {"actions": rows[:, None], "server": {"ms": 1.0}},
    ]
    for found in (*found_in_many, (rows, {"value": 1}), (rows, None), ({"raw": 1}, rows)):
        policy = SimpleNamespace(act_batch=lambda images, instructions, found=found: found)
        assert [
            read_answer(answer)[0].processed.tolist() for answer in ask(policy, images, ["go"] * 3)
        ] == rows.tolist()


def test_two_answers_in_a_tuple_are_told_from_an_answer_and_something_else() -> None:
    images, rows = [np.zeros((36, 48, 3), np.uint8)] * 2, np.arange(14).reshape(2, 7)
    for found in (
        (rows, None),
        (rows, {"value": 1}),
        tuple(rows),
        ({"action": rows[0]}, {"action": rows[1]}),
    ):
        answers = ask(
            SimpleNamespace(act_batch=lambda images, instructions, found=found: found), images, ["go"] * 2
        )
        assert [read_answer(answer)[0].processed.tolist() for answer in answers] == rows.tolist()
    for raw in (rows, rows.tolist()):
        with pytest.raises(KitError, match="both may be its action"):
            ask(
                SimpleNamespace(act_batch=lambda images, instructions, raw=raw: (raw, raw)),
                images,
                ["go"] * 2,
            )


def test_the_end_is_said_for_the_answer_or_for_each_row() -> None:
    for said, ends in ((True, True), ([0, 0, 1], True), ([1, 0, 0], False), ([[0], [0], [1]], True)):
        actions = read_answer({"actions": np.zeros((3, 7)), "terminate_episode": said})
        assert [action.terminate for action in actions] == [False, False, ends]
    for said, ends in (([1, 0, 0], True), ([0, 1, 0], False)):  # RT-1's: over, going on, neither
        (action,) = read_answer({"action": np.zeros(7), "terminate_episode": said})
        assert action.terminate == ends


def test_a_step_that_is_not_given_the_state_it_needs_is_not_asked() -> None:
    numb = SimpleNamespace(step=lambda image, instruction: A, needs_proprioception=True)
    with pytest.raises(KitError, match=r"^needs_proprioception, which `step` is not given"):
        ask(numb, [np.zeros((36, 48, 3), np.uint8)], ["go"], [np.zeros(15, np.float32)])


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Unspeakable(), r"failed: .*Unspeakable: <exception str\(\) failed> \(test_rollouts"),
        (ValueError("a\nb\x1b[31m\udcff"), r"failed: ValueError: a b \[31m \(test_rollouts"),
        (ValueError("z" * 9999), r"failed: ValueError: z{500} \("),
    ],
    ids=["unspeakable", "control letters", "long"],
)
def test_what_a_policy_raises_is_one_line_that_a_terminal_can_show(error: Exception, said: str) -> None:
    def act(image: Array) -> Any:
        raise error

    with pytest.raises(KitError, match=said):
        ask(SimpleNamespace(act=act), [np.zeros((36, 48, 3), np.uint8)], ["go"])


def test_the_rows_of_a_chunk_are_executed_before_the_policy_is_asked_again(
    tmp_path: Path, rooms: None
) -> None:
    class Chunks:
        name, checkpoint_hash, conventions = "chunks", "1", WIDOWX
        asked = 0

        def reset(self, task_description: str) -> None:
            self.asked = 0

        def step(self, image: Array, task_description: str) -> Any:
            self.asked += 1
            return {"action": [[0, 0, 0, 0, 0, 0, 1]] * 4, "terminate": self.asked == 3}

    policy = Chunks()
    (record,) = load_records(evaluate(policy, [CARROT], 1, workers=0, output=tmp_path, **SMALL))
    assert (record.steps, record.reason, policy.asked) == (12, "terminated", 3)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (
            {"act": lambda image: 1 / 0},
            r"step 0 failed: ZeroDivisionError: division by zero \(test_rollouts.py, line \d+\)",
        ),
        ({"act": lambda image: ["left", "down", *A[2:]]}, "step 0 returned 'left' where numbers belong"),
        ({"act": lambda image: None}, "step 0 returned None where numbers belong"),
        ({"act": lambda image: __import__("torch").tensor(A) + 1j}, "step 0 returned tensor"),
        ({"act": lambda image: {"wrist": 1}}, "step 0 returned no 'world_vector' or 'action', but 'wrist'"),
        ({"act": lambda image: (A, A)}, "step 0 returned a pair, and both may be its action"),
        ({"step": lambda image: A}, "step 0 failed: TypeError"),
        (
            {"act_batch": lambda images, instructions: {"actions": np.zeros((5, 7))}},
            "step 0 returned 5 answers for 1 images",
        ),
        ({"act_batch": lambda images, instructions: None}, "step 0 returned None for 1 images"),
        ({"reset": lambda: None, "act": lambda image: A}, "step 0 failed: TypeError"),
    ],
)
def test_a_policy_that_fails_is_told_in_one_line_with_its_episode_and_step(
    tmp_path: Path, rooms: None, policy: Any, said: str
) -> None:
    with pytest.raises(KitError, match=rf"^policy 'mine' in {CARROT}, episode 3, {said}") as caught:
        evaluate(
            SimpleNamespace(name="mine", conventions=WIDOWX, **policy),
            CARROT,
            [3],
            workers=0,
            output=tmp_path,
            **SMALL,
        )
    if "failed" in said:
        assert isinstance(caught.value.__cause__, (ZeroDivisionError, TypeError)), (
            "what the policy raised is kept"
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"batch": True}, "batch is True"),
        ({"workers": -1}, "workers is -1"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"width": 0, "height": 36}, "width is 0"),
        ({"height": -3}, "height is -3"),
        ({"width": 10**6}, "width is 1000000"),
        ({"episodes": True}, "episodes is True"),
        ({"episodes": np.array([True, False])}, "an episode's id is"),
        ({"episodes": [1.5]}, "id is 1.5"),
        ({"episodes": "dense", "n": -2}, "n is -2"),
        ({"tasks": []}, "no tasks"),
        ({"variants": []}, "no episodes"),
        ({"policy": SimpleNamespace(name="mute")}, "'mute' has nothing"),
        (
            {"policy": SimpleNamespace(name="numb", step=len, needs_proprioception=True)},
            "'numb' needs_proprioception, which `step` is not given",
        ),
        (
            {"policy": SimpleNamespace(name="own", act=len, conventions={"image_size": 4})},
            "'own' has conventions that are a dict",
        ),
        ({"output": "taken/records.parquet"}, "cannot write .*taken"),
        ({"videos": "taken"}, "videos cannot be written to .*taken"),
        ({"videos": "taken/deeper"}, "videos cannot be written to .*taken"),
    ],
    ids=str,
)
def test_arguments_that_mean_nothing_are_refused_before_anything_is_played(
    tmp_path: Path, options: Any, said: str
) -> None:
    (tmp_path / "taken").write_text("a file, where a folder is wanted")
    given: Any = {
        "policy": Ends(),
        "tasks": CARROT,
        "episodes": 1,
        "output": "new",
        "progress": False,
    } | options
    given |= {name: tmp_path / given[name] for name in ("output", "videos") if name in given}
    with pytest.raises(KitError, match=said):
        evaluate(**given)
    assert not (tmp_path / "new").exists()


def test_one_side_of_the_picture_gives_the_other_and_an_output_may_be_a_folder_of_any_name(
    tmp_path: Path, rooms: None
) -> None:
    (tmp_path / "odd.parquet").mkdir()
    for options in ({"width": np.int64(64)}, {"height": 33}):
        path = evaluate(
            Ends(None, None),
            CARROT,
            np.int64(1),
            workers=0,
            output=tmp_path / "odd.parquet",
            progress=False,
            **options,
        )
    assert [(record.policy, record.width, record.height) for record in load_records(path)] == [
        ("Ends", 44, 33),
        ("Ends", 64, 48),
    ]


@pytest.mark.parametrize("videos", [False, True])
def test_a_full_disk_ends_the_run_in_one_line_and_leaves_no_parts(tmp_path: Path, videos: bool) -> None:
    """A limit on the size of files stands for the disk."""
    program = f"""
        import resource, signal, sys
        from tests.evaluation.test_rollouts import CARROT, Ends, KitError, Room, SMALL, Scene, evaluate
        Scene.make = lambda scene: Room(scene)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        import numpy as np
        draw = np.random.default_rng
        noise = lambda observation, answer: draw(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({20_000 if videos else 100}, resource.RLIM_INFINITY))
        try:
            videos = {str(tmp_path / "v")!r} if {videos} else None
            evaluate(
                Ends(), CARROT, 2, workers=0, output=r"{tmp_path}", videos=videos, overlay=noise, **SMALL
            )
        except KitError as error:
            print("told:", error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
    )
    assert re.search(
        r"told: cannot write .*(mp4|jsonl) \(File too large\) -> free space and run again", done.stdout
    ), done.stdout + done.stderr
    assert (
        not list(tmp_path.rglob("records*"))
        and not list(tmp_path.rglob("*.part*"))
        and not list(tmp_path.rglob("*.mp4"))
    )


def test_parts_of_videos_that_a_killed_run_left_are_gone_after_the_next(tmp_path: Path, rooms: None) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    folder = tmp_path / "videos/ends"
    folder.mkdir(parents=True)
    for pid in (dead.pid, os.getpid()):
        (folder / f".{CARROT}-base-grid-009-00000000.mp4.part-{pid}").write_bytes(b"half")
    evaluate(Ends(), CARROT, 1, workers=0, output=tmp_path, videos=tmp_path / "videos", **SMALL)
    assert [path.name.rpartition("-")[2] for path in folder.iterdir() if path.name.startswith(".")] == [
        str(os.getpid())
    ]


@pytest.mark.slow
def test_a_run_in_this_process_leaves_its_garbage_collector_as_it_was(tmp_path: Path) -> None:
    program = f"""
        import gc
        from tests.evaluation.test_rollouts import CARROT, Ends, SMALL, evaluate
        before = gc.get_freeze_count(), gc.isenabled(), gc.get_threshold()
        evaluate(Ends(), CARROT, 1, workers=0, output=r"{tmp_path}", **SMALL)
        print(before == (gc.get_freeze_count(), gc.isenabled(), gc.get_threshold()))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    assert done.stdout.strip() == "True"


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
        "import sys, refinevla_kit.evaluation.statistics, refinevla_kit.evaluation.published, "
        "refinevla_kit.figures.success;"
        "print([name for name in ('torch', 'sapien', 'mani_skill', 'gymnasium') if name in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_what_is_no_journal_is_never_cut_or_removed(tmp_path: Path, rooms: None) -> None:
    for content in ('{"a": 1}', '{"a": 1}\n', "notes\n"):
        mine = tmp_path / "records.jsonl"
        mine.write_text(content)
        with pytest.raises(KitError, match=r"records.jsonl.* is no(t an evaluation record| journal)"):
            evaluate(Ends(), CARROT, 1, workers=0, output=tmp_path, **SMALL)
        assert mine.read_text() == content


def test_episodes_that_are_there_are_not_filmed_and_that_is_said(tmp_path: Path, rooms: None) -> None:
    evaluate(Ends(), CARROT, 2, workers=0, output=tmp_path, **SMALL)
    with pytest.warns(UserWarning, match="2 of 2 episodes are recorded in .* and not filmed again"):
        evaluate(Ends(), CARROT, 2, workers=0, output=tmp_path, videos=tmp_path / "v", **SMALL)


def test_a_folder_of_assets_is_the_same_however_it_is_written() -> None:
    assert len(plan(Ends(), CARROT, 5, 5)) == 5  # said twice
    with pytest.raises(KitError, match=r"n=5 with episodes=None -> say episodes=5"):
        plan(Ends(), CARROT, n=5)
    with pytest.raises(KitError, match="photograph"):
        plan(DemonstratorPolicy("google_robot"), ["google_robot_move_near", "open_drawer"], "dense", 2)
    keys = [plan(Ends(), CARROT, 1, assets=name).keys() for name in ("pack", "pack/", "./pack")]
    assert keys[0] == keys[1] == keys[2]


@pytest.mark.slow
def test_a_process_that_is_started_again_has_answered_before() -> None:
    """So an episode that kills each new one at its reset is a crash, and no fault of the machine."""
    station = ProcessStation()
    try:
        assert not station.answered
        station.answered = True
        station.restart()
        assert station.answered
    finally:
        station.close()
