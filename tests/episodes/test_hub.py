"""A dataset by its name on the hub, from a cache as huggingface_hub keeps it: what was asked for is there,
and what is not is said in one line. Nothing here reaches the network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from refinevla_kit import hub
from refinevla_kit.episodes import columns, open_dataset
from refinevla_kit.errors import KitError
from refinevla_kit.teacher import annotate_dataset
from refinevla_kit.teacher.oracle import OracleTeacher
from refinevla_kit.training.examples import find_rationales, load_examples
from refinevla_kit.training.mixture import with_others
from tests.episodes.strangers import CAMERA, POSE, write_stranger

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BRIDGE = "IPEC-COMMUNITY/bridge_orig_lerobot"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of somebody/things in an otherwise empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return keep(tmp_path, "somebody/things")


def keep(tmp_path: Path, name: str, **options: Any) -> Path:
    folder = tmp_path / "hub" / f"datasets--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    return write_stranger(folder / "snapshots" / COMMIT, **options)


def test_a_dataset_of_the_hub_is_one_like_any_other(cached: Path) -> None:
    dataset = open_dataset("somebody/things")
    assert dataset.name == "things" and dataset.path == cached
    assert len(load_examples(dataset)) == 11
    assert open_dataset("somebody/things", episodes=[1], revision=COMMIT).episodes[0].index == 1


def test_only_what_is_wanted_is_asked_for(
    cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(name: str, files: Any, kind: str = "model", revision: str | None = None) -> Path:
        asked.append((name, tuple(files), kind, revision))
        return cached

    monkeypatch.setattr(hub, "download", download)
    for there in (cached / "data", cached / "videos"):
        there.rename(tmp_path / there.name)
    with pytest.raises(KitError, match="can be read"):  # nothing comes
        open_dataset("somebody/things", episodes=[1], revision="v1")
    listing, files = asked
    assert listing == ("somebody/things", ("meta/**",), "dataset", "v1")
    names = ("data/chunk-000/episode_000001.parquet", f"videos/chunk-000/{CAMERA}/episode_000001.mp4")
    assert files == ("somebody/things", names, "dataset", COMMIT), "of the same revision as the listing"


def test_what_is_there_is_not_asked_for_again(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is the hub, where the folder in its cache is given."""
    monkeypatch.setattr(hub, "download", lambda *_: pytest.fail("asked"))
    dataset = open_dataset(cached)
    assert dataset.name == "things" and len(dataset.episodes) == 2


def test_a_folder_of_the_cache_is_known_by_its_name(cached: Path, tmp_path: Path) -> None:
    assert hub.name_in_cache(cached) == "somebody/things"
    assert hub.name_in_cache("/x/datasets--a--b--c/snapshots/1") == "a/b--c"
    model = tmp_path / "hub" / "models--a--b" / "snapshots" / COMMIT
    assert hub.name_in_cache(model) == hub.name_in_cache(tmp_path) == ""


def test_a_disk_too_small_is_said_before_anything_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is still to come is asked for first."""
    began = []

    def snapshot(name: str, dry_run: bool = False, **_: Any) -> Any:
        began.append(dry_run)
        return [SimpleNamespace(file_size=10**18, will_download=True)] * 2

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(KitError, match=r"a/b takes 2000000000.0 GB more, and .* free in .* -> choose fewer"):
        hub.download("a/b", ("data/**",), "dataset")
    assert began == [True]


def test_of_very_many_files_whole_folders_are_asked_for() -> None:
    files = [f"data/chunk-{number // 1000:03d}/episode_{number:06d}.parquet" for number in range(1500)]
    assert hub.patterns_of(files) == ["data/chunk-000/*", "data/chunk-001/*"]
    assert hub.patterns_of(files[:3]) == files[:3]


def test_what_is_not_there_is_said_in_one_line(cached: Path) -> None:
    with pytest.raises(
        KitError, match=r"somebody/else is no folder here, .* cannot be reached -> connect, or"
    ):
        open_dataset("somebody/else")
    with pytest.raises(KitError, match=r"nowhere is not a folder -> give the path of a LeRobot dataset"):
        open_dataset("./nowhere")


def test_a_download_that_was_cut_off_leaves_out_what_did_not_come(cached: Path) -> None:
    (cached / f"videos/chunk-000/{CAMERA}/episode_000001.mp4").unlink()
    with pytest.warns(UserWarning, match=r"1 of 2 episodes of things .*episode_000001.mp4 is missing"):
        dataset = open_dataset("somebody/things")
    assert [info.index for info in dataset.episodes] == [0]
    shutil.rmtree(cached / "data")
    with pytest.raises(KitError, match=r"no episode of .* can be read"):
        open_dataset("somebody/things")


def test_what_the_numbers_of_bridge_mean_is_known_and_can_be_told_otherwise(
    cached: Path, tmp_path: Path
) -> None:
    cameras = ("observation.images.image_0", "observation.images.image_1")
    keep(tmp_path, BRIDGE, cameras=cameras, names={"motors": POSE})
    dataset = open_dataset(BRIDGE)
    assert (dataset.deltas, dataset.gripper, dataset.camera) == (True, 1.0, cameras[0])
    told = open_dataset(BRIDGE, deltas=False, camera="image_1", gripper=0)
    assert (told.deltas, told.gripper, told.camera) == (False, 0.0, cameras[1])
    assert set(columns.known_dataset(BRIDGE)) == {"camera", "deltas", "gripper", "source"}
    assert columns.known_dataset("somebody/things") == {}


def test_without_a_connection_what_is_in_the_cache_will_do(cached: Path, tmp_path: Path) -> None:
    """As on a node of a cluster, where nobody has set HF_HUB_OFFLINE."""
    program = (
        "import sys; from refinevla_kit.episodes import open_dataset;"
        "print(len(open_dataset(sys.argv[1]).episodes))"
    )
    there = {
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
    }
    found, missing = (
        subprocess.run(
            [sys.executable, "-c", program, name],
            env=os.environ | there,
            capture_output=True,
            text=True,
            check=False,
        )
        for name in ("somebody/things", "somebody/else")
    )
    assert found.stdout == "2\n", found.stderr
    assert "somebody/else is no folder here, not in the hub's cache, and the hub cannot" in missing.stderr
    with pytest.raises(KitError, match=r"~/nowhere is not a folder"):
        open_dataset("~/nowhere")


def test_what_a_teacher_writes_about_it_outlives_the_cache(
    cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = annotate_dataset(open_dataset("somebody/things"), OracleTeacher(), confirm=True)
    assert path == Path("rationales/somebody--things/oracle-segment.parquet") and path.is_file()
    assert find_rationales("somebody/things") == find_rationales(cached) == path


def test_a_dataset_of_a_mixture_without_rationales_is_said(cached: Path) -> None:
    examples = load_examples(cached)
    with pytest.warns(UserWarning, match=r"no rationales beside it: its actions alone are learned from"):
        assert len(with_others(examples, {"somebody/things": 0.5})) == 22


@pytest.mark.parametrize("said", ["", "broken off\nin the middle"])
def test_a_download_that_breaks_off_is_one_line(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    class ReadError(Exception):  # a transport's own, of no kind that the hub's library knows
        pass

    def snapshot(*_: Any, **__: Any) -> Any:
        raise ReadError(said)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    what = rf"a/b could not be downloaded \(ReadError: {said.partition(chr(10))[0]}\) -> .*continued"
    with pytest.raises(KitError, match=what):
        hub.download("a/b", ("data/**",), "dataset")
