"""The annotation run: every segment once, stored as parquet beside the dataset, continued where it stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from refinevla_kit.errors import KitError
from refinevla_kit.teacher import OracleTeacher, Rationale, Reply, Request, annotate_dataset, load_rationales, lookup
from refinevla_kit.teacher.annotation import keyframe_indices, requests


class Counting:
    """The oracle, remembering what it was asked; stops with an error after `stop_after` answers."""

    name, version = OracleTeacher.name, OracleTeacher.version

    def __init__(self, stop_after: int | None = None, seed: int = 0) -> None:
        self.oracle, self.stop_after, self.asked = OracleTeacher(seed), stop_after, []
        self.prompt_hash = self.oracle.prompt_hash

    def annotate(self, request: Request) -> Reply:
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked.append((request.episode, request.start))
        return self.oracle.annotate(request)


@pytest.mark.parametrize("granularity", ["step", "segment", "trajectory"])
def test_ranges_cover_every_frame_once(dataset, granularity: str) -> None:
    path = annotate_dataset(dataset, OracleTeacher(), granularity, progress=False)
    assert path == dataset.path / "rationales" / f"oracle-{granularity}.parquet"
    stored = load_rationales(path)
    for info in dataset.episodes:
        covered = [frame for one in stored if one.episode == info.index for frame in range(one.start, one.end)]
        assert covered == list(range(info.length))
        for frame in range(info.length):
            found = lookup(stored, info.index, frame)
            assert found.episode == info.index
            assert found.start <= frame < found.end
    assert lookup(stored, 0, dataset.episodes[0].length) is None
    assert lookup(stored, 99, 0) is None
    counts = {"step": sum(info.length for info in dataset.episodes), "trajectory": len(dataset.episodes)}
    assert len(stored) == counts.get(granularity, len(stored))
    assert granularity != "segment" or 3 * len(dataset.episodes) <= len(stored) <= counts["step"] / 2


def test_what_is_stored_is_what_the_teacher_said(dataset) -> None:
    stored = load_rationales(annotate_dataset(dataset, OracleTeacher(3), progress=False))
    asked = list(requests(dataset))
    assert [(one.episode, one.start, one.end) for one in stored] == [(one.episode, one.start, one.end) for one in asked]
    for one, request in zip(stored, asked, strict=True):
        assert one.rationale == OracleTeacher(3).annotate(request).result
        assert one.raw == one.rationale.text()
        assert (one.teacher, one.version, one.prompt_hash, one.cost) == ("oracle", "1", OracleTeacher(3).prompt_hash, 0.0)


def test_a_request_shows_the_frames_it_speaks_of(dataset, frames) -> None:
    request = list(requests(dataset, keyframes=3))[1]
    assert request.keyframe_indices[0] == request.start
    assert request.keyframe_indices[-1] == request.end - 1 or request.end - request.start == 1
    assert len(request.keyframes) == len(request.keyframe_indices) <= 3
    assert np.abs(request.keyframes[0].astype(int) - frames[0].images[request.start]).mean() < 6  # video compression
    assert np.array_equal(request.actions, frames[0].actions[request.start: request.end])
    assert np.array_equal(request.masks["carrot"], frames[0].masks["carrot"][request.start])
    assert np.array_equal(request.state.source, frames[0].states[request.start].source)


def test_an_interrupted_run_continues_without_repeating_or_losing(dataset) -> None:
    everything = [(one.episode, one.start) for one in requests(dataset)]
    first = Counting(stop_after=4)
    with pytest.raises(KeyboardInterrupt):
        annotate_dataset(dataset, first, progress=False)
    output = dataset.path / "rationales" / "oracle-segment.parquet"
    part = output.with_name(output.name + ".part")
    assert not output.exists()
    with part.open("a") as torn:
        torn.write('{"episode": 1, "start": 3, "obs')  # the power went while a line was written
    second = Counting()
    annotate_dataset(dataset, second, progress=False)
    assert first.asked + second.asked == everything
    assert [(one.episode, one.start) for one in load_rationales(output)] == everything
    assert not part.exists()
    third = Counting()
    annotate_dataset(dataset, third, progress=False)
    assert third.asked == []  # a finished run asks nothing


def test_runs_of_two_seeds_are_not_mixed(dataset) -> None:
    with pytest.raises(KeyboardInterrupt):
        annotate_dataset(dataset, Counting(stop_after=2, seed=0), progress=False)
    with pytest.raises(KitError, match="another teacher version or seed"):
        annotate_dataset(dataset, Counting(seed=1), progress=False)


def test_a_finished_file_of_another_seed_is_written_anew(dataset) -> None:
    annotate_dataset(dataset, OracleTeacher(0), progress=False)
    stored = load_rationales(annotate_dataset(dataset, OracleTeacher(1), progress=False))
    assert {one.prompt_hash for one in stored} == {OracleTeacher(1).prompt_hash}


def test_the_same_seed_gives_the_same_bytes(dataset, tmp_path) -> None:
    one, two = (annotate_dataset(dataset, OracleTeacher(5), progress=False, output=tmp_path / name) for name in ("a.parquet", "b.parquet"))
    assert one.read_bytes() == two.read_bytes()


def test_real_robot_data_is_refused_and_counted(real_dataset, tmp_path) -> None:
    stored = load_rationales(annotate_dataset(real_dataset, OracleTeacher(), progress=False, output=tmp_path / "real.parquet"))
    assert len(stored) >= 3
    assert {one.refusal.kind for one in stored} == {"no_state"}
    assert all(one.rationale is None for one in stored)


def test_other_files_are_no_rationales(tmp_path) -> None:
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(KitError, match="no rationales can be read"):
        load_rationales(tmp_path / "text.parquet")
    with pytest.raises(KitError, match="no rationales can be read"):
        load_rationales(tmp_path / "missing.parquet")


def test_a_damaged_parquet_column_is_said(dataset, tmp_path) -> None:
    table = pq.read_table(annotate_dataset(dataset, OracleTeacher(), progress=False)).drop_columns(["raw"])
    pq.write_table(table, tmp_path / "less.parquet")
    with pytest.raises(KitError, match="no rationales can be read"):
        load_rationales(tmp_path / "less.parquet")


def test_unknown_granularity_is_one_line(dataset) -> None:
    with pytest.raises(KitError, match="choose one of step, segment, trajectory"):
        annotate_dataset(dataset, OracleTeacher(), "sentence", progress=False)


@pytest.mark.parametrize(("start", "end", "count", "expected"), [(0, 1, 3, [0]), (4, 9, 3, [4, 6, 8]), (2, 4, 3, [2, 3]), (5, 9, 1, [5])])
def test_keyframes_start_with_the_first_frame(start: int, end: int, count: int, expected: list[int]) -> None:
    assert keyframe_indices(start, end, count) == expected


def test_rationale_text_has_one_labelled_line_a_part() -> None:
    assert Rationale("a", "b", "c", "d").text() == "Observation: a\nSituation: b\nSpatial: c\nPlan: d"


def test_answers_about_another_dataset_of_the_same_name_are_not_reused(tmp_path: Path) -> None:
    from refinevla_kit.episodes.recording import record

    folders = [tmp_path / name / "dataset" for name in ("one", "other")]
    for seed, folder in enumerate(folders):
        record(folder, ["widowx_carrot_on_plate"], 1, seed=seed, progress=False)
    output = tmp_path / "rationales.parquet"
    annotate_dataset(folders[0], OracleTeacher(0), progress=False, output=output)
    annotate_dataset(folders[1], OracleTeacher(0), progress=False, output=output)
    alone = annotate_dataset(folders[1], OracleTeacher(0), progress=False, output=tmp_path / "alone.parquet")
    assert load_rationales(output) == load_rationales(alone)
