"""Recording on the real simulator: demonstrations that succeed, reproducible whatever the number of processes."""

from __future__ import annotations

import numpy as np
import pytest

from refinevla_kit.episodes import open_dataset
from refinevla_kit.episodes.recording import episode_seed, record
from refinevla_kit.errors import KitError
from refinevla_kit.files import sha256
from refinevla_kit.simulator.contract import PHASES

CARROT, STACK = "widowx_carrot_on_plate", "widowx_stack_cube"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """(dataset, summary) of two carrot episodes from random starts on the embedded assets."""
    path = tmp_path_factory.mktemp("recorded") / "carrot"
    summary = record(path, [CARROT], 2, seed=7, width=64, height=48, progress=False)
    return open_dataset(path), summary


def test_the_summary_counts_what_is_on_disk(recorded):
    dataset, summary = recorded
    assert (summary["episodes"], summary["successes"]) == (2, 2)
    assert summary["frames"] == sum(info.length for info in dataset.episodes)
    assert summary["bytes"] == sum(file.stat().st_size for file in dataset.path.rglob("*") if file.is_file())


def test_a_recorded_episode_is_a_whole_demonstration(recorded):
    dataset, _ = recorded
    for info in dataset.episodes:
        assert (info.task, info.instruction, info.success, info.start) == (CARROT, "put carrot on plate", True, "random")
        states, actions, masks = dataset.states(info.index), dataset.actions(info.index), dataset.masks(info.index)
        assert not states[0].placed and not states[0].grasped
        assert states[-1].placed and any(state.grasped for state in states)
        assert [PHASES[int(states[0].phase)], PHASES[int(states[-1].phase)]] == ["reach", "retreat"]
        assert set(actions[:, 6]) == {-1.0, 1.0}
        assert set(masks) == {"carrot", "plate", "gripper", "arm"} and all(mask.any() for mask in masks.values())
        assert dataset.images(info.index).shape == (info.length, 48, 64, 3)


def test_proprioception_is_the_tool_seen_from_the_robots_base(recorded):
    """World and base frame differ by a half turn about z and a shift: the paths they describe are the same."""
    dataset, _ = recorded
    tool = np.stack([state.tcp for state in dataset.states(0)])
    in_base = dataset.proprioception(0)
    np.testing.assert_allclose(np.diff(in_base[:, :3], axis=0), np.diff(tool[:, :3], axis=0) * [-1, -1, 1], atol=1e-4)


def test_pictures_and_masks_belong_together(recorded):
    """The carrot's own pixels are more orange than the rest of the picture."""
    dataset, _ = recorded
    images, carrot = dataset.images(0).astype(int), dataset.masks(0)["carrot"]
    redness = images[..., 0] - images[..., 2]
    assert redness[carrot].mean() > redness[~carrot].mean() + 30


@pytest.mark.slow
def test_same_seed_same_bytes_however_many_processes(tmp_path):
    """Two tasks, two processes that take turns, against one process."""
    for name, workers in (("one", 1), ("two", 2)):
        record(tmp_path / name, [CARROT, STACK], 1, seed=3, workers=workers, width=64, height=48, progress=False, random_moves=2)
    assert sha256(tmp_path / "one") == sha256(tmp_path / "two")
    assert [info.task for info in open_dataset(tmp_path / "two").episodes] == [CARROT, STACK]


def test_grid_starts_and_random_moves(tmp_path):
    """The grid fixes the start, random moves change what the arm does before the recording begins."""
    for name, moves in (("still", 0), ("moved", 3)):
        record(tmp_path / name, [CARROT], 1, start="grid", width=64, height=48, progress=False, random_moves=moves)
    still, moved = (open_dataset(tmp_path / name) for name in ("still", "moved"))
    assert still.episodes[0].start == moved.episodes[0].start == "grid:0"
    np.testing.assert_allclose(still.states(0)[0].source, moved.states(0)[0].source, atol=2e-3)
    assert np.linalg.norm(still.states(0)[0].tcp[:3] - moved.states(0)[0].tcp[:3]) > 0.005


def test_seeds_depend_on_seed_task_number_and_attempt_alone():
    seeds = {episode_seed(seed, task, number, attempt) for seed in (0, 1) for task in (CARROT, STACK) for number in (0, 1) for attempt in (0, 1)}
    assert len(seeds) == 16
    assert episode_seed(0, CARROT, 5, 0) == episode_seed(0, CARROT, 5, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ["juggle"]}, "unknown task 'juggle'"),
        ({"tasks": []}, "nothing to record"),
        ({"episodes_per_task": 0}, "nothing to record"),
        ({"workers": 0}, "nothing to record"),
        ({"start": "anywhere"}, "unknown start 'anywhere'"),
        ({"start": "grid", "episodes_per_task": 25}, "fewer than 25 grid configurations"),
        ({"assets": "/nowhere"}, "/nowhere"),
    ],
)
def test_what_cannot_be_recorded_is_said_before_anything_is_made(tmp_path, change, message):
    wanted = {"tasks": [CARROT], "episodes_per_task": 1, "progress": False} | change
    with pytest.raises(KitError, match=message):
        record(tmp_path / "dataset", **wanted)
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_a_worker_comes_through_in_one_line(tmp_path, official_assets):
    """A mesh that is no mesh: found by the simulator, in the other process."""
    assets = tmp_path / "assets"
    for file in official_assets.rglob("*"):
        if file.is_file():
            (assets / file.relative_to(official_assets)).parent.mkdir(parents=True, exist_ok=True)
            (assets / file.relative_to(official_assets)).symlink_to(file)
    broken = assets / "data/tasks/bridge_v2_real2sim_dataset/custom/info_bridge_custom_v0.json"
    broken.unlink()
    broken.write_text("{}")
    with pytest.raises(KitError):
        record(tmp_path / "dataset", [CARROT], 2, assets=assets, workers=2, progress=False)
    assert not (tmp_path / "dataset").exists()
