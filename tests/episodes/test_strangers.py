"""A stranger's dataset opens with the right values, or says in one line what is wrong with it."""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.axes import Axes
from typer.testing import CliRunner

from examples.language_columns.export import export_language
from refinevla_kit.cli import app
from refinevla_kit.episodes import open_dataset
from refinevla_kit.episodes.video import VideoWriter, read_frames
from refinevla_kit.errors import KitError
from refinevla_kit.figures.episodes import action_curves
from refinevla_kit.figures.reviews import review_card
from refinevla_kit.teacher import OracleTeacher, Rationale, annotate_dataset, load_rationales
from refinevla_kit.teacher.audit import audit
from refinevla_kit.teacher.prompt import action_table, action_words, state_words
from refinevla_kit.teacher.requests import count_requests, requests
from refinevla_kit.training.examples import load_examples

from .strangers import CAMERA, POSE, TASKS, png, rewritten, write_stranger

both = pytest.mark.parametrize("version", ["v2.1", "v3.0"])


def words(root: Path, **options) -> str:
    return action_words(next(requests(open_dataset(root, **options))))


def absolute(columns: dict, _: int) -> dict:
    places = np.arange(len(columns["frame_index"])) * 0.001
    return columns | {"action": rewritten([[0.3 + place, 0.1, 0.2, 3.1, 0, 1.5, 1] for place in places])}


@both
@pytest.mark.parametrize(
    ("action", "state", "camera"),
    [
        ("actions", "state", "image"),
        ("actions", "observation/state", "observation/image"),
        ("action", "proprio", "wrist_image"),
    ],
)
def test_other_names_of_columns_are_found(tmp_path, version, action, state, camera):
    dataset = open_dataset(
        write_stranger(tmp_path / "d", version, action=action, state=state, cameras=(camera,))
    )
    assert (dataset.columns.action, dataset.columns.state, dataset.camera) == (action, state, camera)
    assert dataset.actions(1).shape == dataset.proprioception(1).shape == (5, 7)
    assert dataset.images(1, [2]).mean() == pytest.approx(40, abs=3)
    assert f"{action}, 7 numbers" in str(dataset)


def test_a_column_that_no_name_tells_is_asked_for_and_can_be_said(tmp_path):
    root = write_stranger(tmp_path / "d", action="command", state="sensed")
    with pytest.raises(
        KitError, match=r"no action: its features are command, .* -> name the feature: columns="
    ) as error:
        open_dataset(root)
    assert "damaged" not in str(error.value)
    dataset = open_dataset(root, columns={"action": "command", "state": "sensed"})
    assert dataset.actions(0).shape == dataset.proprioception(0).shape == (6, 7)
    with pytest.raises(KitError, match="unknown feature 'nothing'"):
        open_dataset(root, columns={"action": "nothing"})
    with pytest.raises(KitError, match="unknown role of a column 'motion'"):
        open_dataset(root, columns={"motion": "command"})


def test_a_depth_map_is_never_chosen_unasked(tmp_path):
    root = write_stranger(
        tmp_path / "d",
        cameras=("observation.images.a_depth", "observation.images.front", "observation.images.wrist"),
    )
    dataset = open_dataset(root)
    assert (dataset.camera, dataset.cameras[-1]) == ("observation.images.front", "observation.images.a_depth")
    assert open_dataset(root, camera="wrist").camera == "observation.images.wrist"
    with pytest.raises(KitError, match="several cameras called 'observation'"):
        open_dataset(root, camera="observation")
    marked = {"dtype": "video", "shape": [16, 16, 1], "info": {"video.is_depth_map": True}}
    only = write_stranger(
        tmp_path / "only", info=lambda about: about | {"features": about["features"] | {CAMERA: marked}}
    )
    with pytest.raises(KitError, match="has depth maps only"):
        open_dataset(only).images(0, [0])


@both
def test_pictures_in_the_tables_are_read(tmp_path, version):
    """openpi's LIBERO form; PNG is exact."""
    dataset = open_dataset(
        write_stranger(
            tmp_path / "d",
            version,
            action="actions",
            state="state",
            cameras=("image", "wrist_image"),
            stills=True,
        )
    )
    assert dataset.camera == "image"
    assert dataset.images(1, [4, 0]).shape == (2, 16, 16, 3)
    assert dataset.images(1, [4, 0]).mean((1, 2, 3)).tolist() == [60, 20]
    assert dataset.images(0).mean((1, 2, 3)).tolist() == [0, 10, 20, 30, 40, 50]
    assert dataset.images(0, []).shape == (0, 16, 16, 3)
    assert next(requests(dataset)).keyframes.shape[1:] == (16, 16, 3)


def test_a_broken_picture_leaves_its_episode_out(tmp_path):
    def broken(columns: dict, episode: int) -> dict:
        cells = [
            {"bytes": b"no picture" if episode and t == 2 else png(t), "path": None}
            for t in range(len(columns["index"]))
        ]
        return columns | {CAMERA: pa.array(cells)}

    dataset = open_dataset(write_stranger(tmp_path / "d", stills=True, column=broken))
    with pytest.warns(UserWarning, match="1 of 2 episodes of d cannot be read"):
        assert {request.episode for request in requests(dataset, "step")} == {0}
    assert "picture 2 of episode 1" in dataset.left_out[1]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["action"], ()),
        (POSE[:6], ()),
        (None, ()),
        ({"motors": POSE}, tuple(POSE)),
        ([POSE], tuple(POSE)),
        (
            {"left": ["a", "b", "c"], "right": ["a", "b", "c", "d"]},
            ("left a", "left b", "left c", "right a", "right b", "right c", "right d"),
        ),
        ({name: place for place, name in enumerate(POSE)}, tuple(POSE)),
    ],
)
def test_there_are_as_many_names_as_numbers_or_none(tmp_path, names, told):
    dataset = open_dataset(write_stranger(tmp_path / "d", names=names))
    assert dataset.action_names == dataset.state_names == told
    request = next(requests(dataset))
    assert action_table(request).splitlines()[0].endswith(" ".join(told or [f"a{i}" for i in range(7)]))
    assert ("left a" if told and "left" in told[0] else told[0] if told else "s0") in state_words(request)


def test_seven_names_for_six_numbers(tmp_path):
    dataset = open_dataset(write_stranger(tmp_path / "d", names=POSE, width=6))
    assert (dataset.action_names, dataset.deltas, dataset.metric, dataset.gripper_dimension) == (
        (),
        None,
        False,
        None,
    )
    assert "a0" in action_table(next(requests(dataset)))


def test_displacements_are_told_in_centimetres_and_poses_are_not(tmp_path):
    small = write_stranger(tmp_path / "small", names=POSE)
    assert open_dataset(small).deltas is True
    assert "the tool moves" in words(small)
    assert open_dataset(small, deltas=False).deltas is False
    assert "position targets" in words(small, deltas=False)
    large = write_stranger(tmp_path / "large", names=POSE, lengths=(24, 20), column=absolute)
    assert open_dataset(large).deltas is None
    told = words(large)
    assert "cm" not in told and "displacement" not in told and "position" not in told
    assert "displacements: not told" in str(open_dataset(large))
    assert "position targets" in words(large, deltas=False)


def test_actions_that_the_state_follows_are_positions(tmp_path):
    def followed(columns: dict, _: int) -> dict:
        state = np.array(columns["observation.state"].to_pylist())
        return columns | {"action": rewritten(np.concatenate([state[1:], state[-1:]]).tolist())}

    assert (
        open_dataset(write_stranger(tmp_path / "d", names=POSE, lengths=(24, 20), column=followed)).deltas
        is False
    )


def test_a_gripper_of_unknown_sense_is_not_told(tmp_path):
    def libero(columns: dict, _: int) -> dict:
        actions = np.array(columns["action"].to_pylist())
        actions[:, 6] = np.where(actions[:, 6] > 0, -1, 1)  # -1 opens
        return columns | {"action": rewritten(actions.tolist())}

    root = write_stranger(tmp_path / "d", names={"motors": POSE}, column=libero)
    assert "commanded" not in words(root)
    assert open_dataset(root).gripper is None
    assert "commanded open" in words(root, gripper=-1)
    assert "commanded closed" in words(root, gripper=1)
    with pytest.raises(KitError, match="gripper='wide' is no number"):
        open_dataset(root, gripper="wide")
    bridge = write_stranger(
        tmp_path / "bridge", names=POSE, info=lambda about: about | {"robot_type": "widowx"}
    )
    assert "commanded open" in words(bridge)


def test_what_is_told_of_a_gripper_that_no_name_tells_is_not_taken_for_one(tmp_path):
    numbers = write_stranger(tmp_path / "numbers", names=[f"motor_{i}" for i in range(7)])
    assert "  gripper     none is named, open is 1 (as told)" in str(open_dataset(numbers, gripper=1))
    assert "  gripper     none is named, open is not told" in str(open_dataset(numbers))
    named = write_stranger(tmp_path / "named", names=POSE)
    assert "  gripper     number 6 of the action, open is 1 (as told)" in str(open_dataset(named, gripper=1))


def test_episodes_are_chosen(tmp_path):
    root = write_stranger(tmp_path / "d", lengths=(5, 5, 5, 5))
    assert len(open_dataset(root, episodes=3).episodes) == 3
    for wanted, chosen in (([2], [2]), (range(1, 3), [1, 2]), ("0-1,3", [0, 1, 3]), (np.array([3]), [3])):
        assert [info.index for info in open_dataset(root, episodes=wanted).episodes] == chosen
    for wrong, why in (
        ([7], "has no episode 7"),
        ("many", "no numbers"),
        (1.5, "no numbers"),
        ([], "is chosen"),
    ):
        with pytest.raises(KitError, match=why):
            open_dataset(root, episodes=wrong)


@both
def test_the_instruction_follows_the_frame(tmp_path, version):
    def two(columns: dict, episode: int) -> dict:
        return columns | {
            "task_index": np.arange(len(columns["index"])) // 3 if episode == 0 else columns["task_index"]
        }

    dataset = open_dataset(write_stranger(tmp_path / "d", version, column=two))
    assert dataset.instructions(0) == [TASKS[0]] * 3 + [TASKS[1]] * 3
    asked = [
        (request.start, request.end, request.instruction)
        for request in requests(dataset, "segment")
        if request.episode == 0
    ]
    assert all(end <= 3 or start >= 3 for start, end, _ in asked)
    assert all(instruction == TASKS[start >= 3] for start, _, instruction in asked)
    assert [request.instruction for request in requests(dataset, "trajectory")] == [
        TASKS[0],
        TASKS[1],
        TASKS[1],
    ]
    assert count_requests(dataset, "trajectory") == 3
    assert load_examples(dataset.path).instructions == (*[TASKS[0]] * 3, *[TASKS[1]] * 3, *[TASKS[1]] * 5)


@both
@pytest.mark.parametrize("tasks", [None, "text", []])
def test_the_instruction_without_a_list_of_tasks(tmp_path, version, tasks):
    def row(line: dict, _: int) -> dict:
        rest = {name: value for name, value in line.items() if name != "tasks"}
        return rest if tasks is None else rest | {"tasks": line["tasks"][0] if tasks else None}

    dataset = open_dataset(write_stranger(tmp_path / "d", version, row=row))
    assert [info.instruction for info in dataset.episodes] == list(TASKS)


def test_the_instruction_from_a_column_of_text(tmp_path):
    def prompted(columns: dict, _: int) -> dict:
        return columns | {"prompt": ["wave"] * len(columns["index"])}

    text = {"dtype": "string", "shape": [1]}
    root = write_stranger(
        tmp_path / "d",
        column=prompted,
        info=lambda about: about | {"features": about["features"] | {"prompt": text}},
    )
    assert open_dataset(root, columns={"instruction": "prompt"}).instructions(0) == ["wave"] * 6


def test_templates_of_other_versions_and_byte_order_marks(tmp_path):
    renamed = {
        name: value.replace("episode_chunk", "chunk_index")
        for name, value in zip(
            ("data_path", "video_path"),
            (
                "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
                "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
            ),
            strict=True,
        )
    }
    root = write_stranger(tmp_path / "d", info=lambda about: about | renamed)
    for file in ("info.json", "episodes.jsonl", "tasks.jsonl"):
        (root / "meta" / file).write_bytes(b"\xef\xbb\xbf" + (root / "meta" / file).read_bytes())
    assert open_dataset(root).images(1, [0]).mean() == pytest.approx(20, abs=3)


@pytest.mark.parametrize(
    "missing", ["data_path", "video_path", "chunks_size", "total_episodes", "total_frames", "robot_type"]
)
@both
def test_what_info_need_not_say(tmp_path, version, missing):
    root = write_stranger(
        tmp_path / "d",
        version,
        info=lambda about: {name: value for name, value in about.items() if name != missing},
    )
    assert open_dataset(root).images(1, [0]).mean() == pytest.approx(20, abs=3)


def test_frames_a_second_as_text_read_and_as_nothing_refused(tmp_path):
    assert open_dataset(write_stranger(tmp_path / "text", fps="10")).fps == 10
    for number, fps in enumerate((0, None, "fast", -1)):
        with pytest.raises(KitError, match=r"gives fps as .* -> write there the frames a second"):
            open_dataset(write_stranger(tmp_path / str(number), fps=fps))


def test_file_numbers_as_floats_read_and_as_nothing_left_out(tmp_path):
    floats = write_stranger(
        tmp_path / "floats",
        "v3.0",
        row=lambda line, _: line | {"data/file_index": 0.0, f"videos/{CAMERA}/chunk_index": 0.0},
    )
    assert len(open_dataset(floats).episodes) == 2
    null = write_stranger(
        tmp_path / "null",
        "v3.0",
        row=lambda line, episode: line | {"data/file_index": None if episode else 0},
    )
    with pytest.warns(UserWarning, match="episode 1: .*file_index"):
        assert [info.index for info in open_dataset(null).episodes] == [0]


def test_a_time_stamp_that_is_none_leaves_its_episode_out(tmp_path):
    root = write_stranger(
        tmp_path / "d",
        "v3.0",
        row=lambda line, episode: line | {f"videos/{CAMERA}/from_timestamp": np.nan if episode else 0.0},
    )
    with pytest.warns(UserWarning, match="episode 1: .*from_timestamp nan"):
        assert list(open_dataset(root).left_out) == [1]
    with pytest.raises(KitError, match="from_timestamp nan"):
        open_dataset(root, strict=True)


@both
def test_rows_are_put_in_order_and_need_no_numbers_but_the_episodes(tmp_path, version):
    def shuffled(columns: dict, episode: int) -> dict:
        table = pa.table(columns).take(np.random.default_rng(episode).permutation(len(columns["index"])))
        return dict(zip(table.column_names, table.columns, strict=True))

    def bare(columns: dict, _: int) -> dict:
        return {
            name: values
            for name, values in columns.items()
            if name not in ("frame_index", "index", "task_index", "timestamp")
        }

    plain = open_dataset(write_stranger(tmp_path / "plain", version))
    mixed, few = (
        open_dataset(write_stranger(tmp_path / name, version, column=change))
        for name, change in (("mixed", shuffled), ("few", bare))
    )
    for episode in (0, 1):
        np.testing.assert_array_equal(mixed.actions(episode), plain.actions(episode))
        np.testing.assert_array_equal(few.actions(episode), plain.actions(episode))
        assert few.instructions(episode) == [TASKS[episode]] * [6, 5][episode]


def test_ragged_rows_are_said(tmp_path):
    def ragged(columns: dict, episode: int) -> dict:
        return columns | {
            "action": rewritten(
                [[0.01] * (6 if episode and t % 2 else 7) for t in range(len(columns["index"]))]
            )
        }

    with pytest.warns(UserWarning, match="has 6 numbers in row 1, but 7 in row 0"):
        dataset = open_dataset(write_stranger(tmp_path / "d", "v3.0", column=ragged))
    assert dataset.actions(0).shape == (6, 7)
    with pytest.raises(KitError, match="has 6 numbers in row 1"):
        dataset.actions(1)


def test_a_missing_number_is_told_as_missing_and_drawn_as_a_gap(tmp_path):
    def holed(columns: dict, _: int) -> dict:
        actions = np.array(columns["action"].to_pylist())
        actions[1, 0] = np.nan
        return columns | {"action": rewritten(actions.tolist())}

    dataset = open_dataset(write_stranger(tmp_path / "d", names=POSE, column=holed))
    assert dataset.metric and np.isnan(dataset.actions(0)[1, 0])
    request = next(requests(dataset, "trajectory"))
    rest = 100 * abs(np.nansum(request.actions[:, 0], dtype=np.float64))
    assert f"{rest:.1f} cm" in action_words(request) or rest < 0.1
    assert "nan" not in action_words(request) + action_table(request) and "1: missing" in action_table(
        request
    )
    action_curves(dataset.actions(0), dataset.segments(0), dataset.action_names, dataset.fps, dataset.metric)


@pytest.mark.parametrize("deltas", [None, True, False])
def test_a_reviewer_sees_actions_of_any_meaning(tmp_path, deltas):
    def holed(columns: dict, _: int) -> dict:
        actions = np.array(columns["action"].to_pylist())
        actions[3:, [0, 4]] = (np.nan, np.inf)
        return columns | {"action": rewritten(actions.tolist())}

    dataset = open_dataset(write_stranger(tmp_path / "d", names=POSE, column=holed), deltas)
    table = annotate_dataset(
        dataset, OracleTeacher(0), "trajectory", progress=False, output=tmp_path / "o.parquet"
    )
    request, answer = next(requests(dataset, "trajectory")), load_rationales(table)[0]
    figure = review_card(request, answer)
    figure.draw_without_rendering()
    drawn = [text.get_text() for axes in figure.findobj(Axes) for text in axes.texts]
    assert any("cm" in text for text in drawn) == (deltas is not False)
    assert not any("nan" in text or "gripper open" in text for text in drawn)


def test_videos_without_an_index_and_of_another_form(tmp_path):
    fragmented = open_dataset(write_stranger(tmp_path / "f", movflags="frag_keyframe+empty_moov"))
    assert fragmented.images(1, [4, 0]).mean((1, 2, 3)) == pytest.approx([60, 20], abs=3)
    webm = open_dataset(write_stranger(tmp_path / "w", codec="libvpx", form="webm", lengths=(50, 5)))
    assert webm.images(0, [20, 2]).mean((1, 2, 3)) == pytest.approx([200, 20], abs=4)


def test_a_video_of_another_rate_is_called_that(tmp_path):
    with pytest.raises(KitError, match=r"runs at 30 frames a second, info\.json says 10 -> correct fps"):
        open_dataset(write_stranger(tmp_path / "d", rate=30))


def test_a_video_of_nearly_the_same_rate_is_read_as_far_as_its_frames_keep_their_numbers(tmp_path):
    dataset = open_dataset(write_stranger(tmp_path / "d", lengths=(80, 5), rate=Fraction(1000, 99)))
    assert dataset.images(0, [20]).mean() == pytest.approx(200, abs=3)
    with pytest.raises(
        KitError, match=r"has no frame \d+ .* it runs at 10\.101 frames a second, info\.json says 10"
    ):
        dataset.images(0)


@pytest.mark.parametrize("what", ["*.mp4", "data/*/*.parquet", "meta/episodes/*/*.parquet", "info.json"])
def test_a_pointer_of_git_lfs_is_called_one(tmp_path, what):
    root = write_stranger(tmp_path / "d", "v3.0")
    for file in root.rglob(what):
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
    with pytest.raises(KitError, match=r"pointer of Git LFS.* -> fetch the files: run `git lfs pull`"):
        open_dataset(root)


@both
def test_no_episodes_yet(tmp_path, version):
    with pytest.raises(KitError, match="holds no episode yet"):
        open_dataset(write_stranger(tmp_path / "d", version, lengths=()))


@pytest.mark.parametrize("count", [4, 102])
def test_one_bad_episode_never_stops_the_rest(tmp_path, count):
    """Below and above the number up to which files are looked at on opening."""
    root = write_stranger(tmp_path / "d", lengths=(5,) * count)
    next(root.rglob("episode_000002.mp4")).unlink()
    dataset = open_dataset(root, episodes=None)
    table = annotate_dataset(dataset, OracleTeacher(0), progress=False, output=tmp_path / "o.parquet")
    assert {row["episode"] for row in pq.read_table(table, columns=["episode"]).to_pylist()} == set(
        range(count)
    ) - {2}
    assert list(dataset.left_out) == [2] and "is missing" in dataset.left_out[2]
    assert f"1 of {count} episodes" in str(dataset)
    examples = load_examples(root)
    assert sorted(set(examples.episodes.tolist())) == sorted(set(range(count)) - {2})
    assert "1 episodes cannot be read" in examples.about
    with pytest.raises(KitError, match="is missing"):
        list(requests(open_dataset(root, strict=True)))


@pytest.mark.parametrize("linked", [True, False])
def test_a_hub_cache_of_links_is_exported_whole(tmp_path, linked):
    """Also one copied to where there are no links: their targets are left as text."""
    plain, hub = write_stranger(tmp_path / "plain", "v3.0"), tmp_path / "hub"
    (hub / "blobs").mkdir(parents=True)
    for number, file in enumerate(sorted(file for file in plain.rglob("*") if file.is_file())):
        link = hub / "snapshots/abc" / file.relative_to(plain)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = hub / f"blobs/{number:040x}"
        shutil.copy(file, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
        if not linked:
            target = os.fspath(link.readlink())
            link.unlink()
            link.write_text(target)
    exported = open_dataset(export_language(hub / "snapshots/abc", [], tmp_path / "out"))
    assert exported.images(1, [2]).mean() == pytest.approx(40, abs=3)
    assert not any(file.is_symlink() for file in exported.path.rglob("*"))


def test_an_export_numbers_frames_where_the_table_does_not(tmp_path):
    def bare(columns: dict, _: int) -> dict:
        return {name: values for name, values in columns.items() if name not in ("frame_index", "timestamp")}

    result = CliRunner().invoke(
        app,
        [
            "annotate",
            str(write_stranger(tmp_path / "d", "v3.0", column=bare)),
            "--output",
            str(tmp_path / "o.parquet"),
            "--gripper",
            "1",
            "--episodes",
            "0",
            "--camera",
            "front",
        ],
    )
    assert result.exit_code == 0, result.output
    assert "no rationale was written (3 no_state)" in result.output
    export_language(tmp_path / "d", load_rationales(tmp_path / "o.parquet"), tmp_path / "out")
    assert "1 of 6 frames" in result.output and "open is 1 (as told)" in result.output
    table = pq.read_table(tmp_path / "out/data/chunk-000/file-000.parquet")
    assert table["episode_index"].to_pylist() == [0] * 6 + [1] * 5
    assert "language_events" in json.loads((tmp_path / "out/meta/info.json").read_text())["features"]


def test_a_video_of_odd_size_is_padded(tmp_path):
    writer = VideoWriter(tmp_path / "odd.mp4", 5, 49, 65)
    writer.write(np.full((3, 49, 65, 3), 90, np.uint8))
    writer.close()
    images = read_frames(tmp_path / "odd.mp4", [0, 2], 5)
    assert images.shape == (2, 50, 66, 3)
    assert np.abs(images.astype(int) - 90).max() < 3


def test_a_video_that_cannot_be_written_is_one_line(tmp_path, small_disk):
    (tmp_path / "file").write_text("")
    with pytest.raises(KitError, match="cannot be written"):
        VideoWriter(tmp_path / "file/inside.mp4", 5, 32, 32)
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    writer = VideoWriter(small_disk / "v.mp4", 5, 64, 64)
    with pytest.raises(KitError, match="no space left"):
        writer.write(noise)
        writer.close()
    with suppress(KitError):
        writer.close()


def test_a_gripper_of_unknown_sense_decides_no_claim(tmp_path):
    root = write_stranger(tmp_path / "d", names=POSE)
    said = Rationale(
        "The gripper is open.", "Nothing is held.", "The block is ahead.", "Release the block, then retreat."
    )
    verdicts = []
    for gripper in (None, 1, -1):
        request = next(requests(open_dataset(root, gripper=gripper), "trajectory"))
        found = audit(replace(request, actions=np.full((6, 7), 1, np.float32)), said).findings
        verdicts.append({finding.verdict for finding in found if finding.kind == "sub-task"})
    assert verdicts == [{"undecided"}, {"true"}, {"false"}]


@pytest.mark.parametrize("name", ["images/observation.images.front/episode_000000/{}.png", "{}.png"])
@pytest.mark.parametrize("text", [True, False])
def test_pictures_beside_the_tables_are_found_where_lerobot_puts_them(tmp_path, name, text):
    def beside(columns: dict, episode: int) -> dict:
        names = [name.format(frame).replace("000000", f"{episode:06d}") for frame in columns["frame_index"]]
        cells = pa.array(names) if text else pa.array([{"bytes": None, "path": each} for each in names])
        return columns | {CAMERA: cells}

    root = write_stranger(tmp_path / "d", lengths=(3, 3), stills=True, column=beside)
    for episode in range(2):
        folder = root / f"images/{CAMERA}/episode_{episode:06d}"
        folder.mkdir(parents=True)
        for frame in range(3):
            (folder / f"{frame}.png").write_bytes(png(10 * frame + episode))
    assert open_dataset(root).images(1)[:, 0, 0, 0].tolist() == [1, 11, 21]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"columns": "action"}, "is no mapping"),
        ({"columns": {"action": CAMERA}}, "is video, which is no action"),
        ({"columns": {"instruction": "action"}}, "which is no instruction"),
        ({"camera": 3}, "has no camera 3"),
        ({"camera": "observation"}, "several cameras called 'observation'"),
        ({"deltas": "no"}, "deltas='no'"),
        ({"episodes": True}, "episodes=True"),
        ({"episodes": [True]}, "no numbers of episodes"),
        ({"episodes": [1.7]}, "no numbers of episodes"),
        ({"gripper": 5}, "the gripper's command goes from 0 to 1"),
        ({"gripper": 0.5}, "the gripper's command goes from 0 to 1"),
    ],
)
def test_an_argument_that_makes_no_sense_is_one_line(tmp_path, options, why):
    root = write_stranger(tmp_path / "d", names=POSE, cameras=(CAMERA, f"{CAMERA}_depth"))
    with pytest.raises(KitError, match=why):
        open_dataset(root, **options)


def test_a_camera_is_called_by_the_last_part_of_its_name(tmp_path):
    root = write_stranger(tmp_path / "d", cameras=(f"{CAMERA}_2", CAMERA))
    assert open_dataset(root, camera="front").camera == CAMERA
    assert len(open_dataset(root, episodes=np.int64(1)).episodes) == 1


@both
@pytest.mark.parametrize(
    ("cells", "why"),
    [
        (lambda rows: pa.array([[row] * 4 for row in rows]), "4 lists in each row"),
        (lambda rows: pa.array([str(row) for row in rows]), "holds string, not numbers"),
        (lambda rows: pa.array([{"x": row[0]} for row in rows]), "holds struct, not lists of numbers"),
        (lambda rows: pa.array([[] for _ in rows], pa.list_(pa.float32())), "rows of no numbers"),
    ],
)
def test_actions_that_are_no_lists_of_numbers_are_called_that(tmp_path, version, cells, why):
    def other(columns: dict, _: int) -> dict:
        return columns | {"action": cells(columns["action"].to_pylist())}

    with pytest.raises(KitError, match=why):
        open_dataset(write_stranger(tmp_path / "d", version, column=other))


def test_a_list_in_a_list_and_an_infinite_number_are_read(tmp_path):
    def nested(columns: dict, _: int) -> dict:
        rows = [[row] for row in columns["action"].to_pylist()]
        rows[0][0][0] = 1e300
        return columns | {"action": pa.array(rows, pa.list_(pa.list_(pa.float64())))}

    actions = open_dataset(write_stranger(tmp_path / "d", column=nested)).actions(0)
    assert actions.shape[1] == 7 and np.isinf(actions[0, 0]) and np.isfinite(actions[1:]).all()


@both
def test_rows_whose_numbers_have_gaps_keep_their_order_or_are_refused(tmp_path, version):
    def gaps(numbers: list) -> object:
        return lambda columns, _: columns | {"frame_index": pa.array(numbers, pa.int64())}

    plain = open_dataset(write_stranger(tmp_path / "a", version, lengths=(4, 4))).actions(1)
    kept = write_stranger(tmp_path / "b", version, lengths=(4, 4), column=gaps([None, 1, 2, 3]))
    np.testing.assert_array_equal(open_dataset(kept).actions(1), plain)
    mixed = write_stranger(tmp_path / "c", version, lengths=(4, 4), column=gaps([3, None, 2, 1]))
    with pytest.raises(KitError, match="'frame_index' has gaps"):
        open_dataset(mixed)


@both
def test_an_episode_of_no_length_is_left_out(tmp_path, version):
    def short(line: dict, episode: int) -> dict:
        return line | ({"length": 0} if episode else {})

    with pytest.warns(UserWarning, match="1 of 2 episodes"):
        dataset = open_dataset(write_stranger(tmp_path / "d", version, row=short))
    assert [info.index for info in dataset.episodes] == [0]


def test_several_episodes_of_a_file_need_the_times_at_which_they_start(tmp_path):
    """Else each would show the first one's pictures."""

    def untimed(row: dict, _: int) -> dict:
        return {name: value for name, value in row.items() if "timestamp" not in name}

    with pytest.raises(KitError, match=r"episode 0 the from_timestamp None in .* -> write there the second"):
        open_dataset(write_stranger(tmp_path / "d", "v3.0", row=untimed))


def test_files_that_each_number_their_episode_zero_are_read(tmp_path):
    """Recorded apart and put together."""

    def apart(columns: dict, _: int) -> dict:
        return columns | {"episode_index": np.zeros(len(columns["index"]), int)}

    found, usual = (
        open_dataset(write_stranger(tmp_path / name, **more))
        for name, more in (("apart", {"column": apart}), ("usual", {}))
    )
    assert not found.left_out and (found.actions(1) == usual.actions(1)).all()
    assert found.images(1).mean() == usual.images(1).mean()


@pytest.mark.parametrize(
    "wrapped", [lambda text: text.encode(), lambda text: [text], lambda text: [text.encode()]]
)
def test_a_sentence_in_bytes_or_in_a_list_is_read(tmp_path, wrapped):
    """As conversions from RLDS leave it. A cell without any takes the listing's."""

    def told(columns: dict, episode: int) -> dict:
        cells = [wrapped(f"open drawer {episode}")] * len(columns["index"])
        return columns | {"language_instruction": pa.array([*cells[:-1], wrapped("")])}

    about = {"language_instruction": {"dtype": "string", "shape": [1]}}
    root = write_stranger(
        tmp_path / "d", column=told, info=lambda info: info | {"features": info["features"] | about}
    )
    dataset = open_dataset(root, columns={"instruction": "language_instruction"})
    assert dataset.instructions(1) == ["open drawer 1"] * 4 + [TASKS[1]]


def test_what_is_told_is_alike_however_it_is_given(tmp_path):
    """Paid answers depend on it: on a command line all numbers have a point."""
    root = write_stranger(tmp_path / "d")
    by_hand, by_command = open_dataset(root, 1, gripper=1), open_dataset(root, True, gripper=1.0)
    assert repr(by_hand.overrides) == repr(by_command.overrides)


@pytest.mark.parametrize("cell", [None, {"bytes": None, "path": None}])
def test_a_picture_that_is_none_is_said(tmp_path, cell):
    def empty(columns: dict, episode: int) -> dict:
        cells = [{"bytes": png(1), "path": None}] * (len(columns["index"]) - 1)
        return columns | {CAMERA: pa.array([*cells, cell])}

    dataset = open_dataset(write_stranger(tmp_path / "d", stills=True, column=empty))
    with pytest.raises(KitError, match=r"picture 5 of episode 0 in .* \(the cell holds neither"):
        dataset.images(0)


def test_what_is_of_another_form_is_told_what_to_do(tmp_path):
    for there in (
        "own/one/meta/info.json",
        "bridge/1.0.0/bridge-train.tfrecord-00000-of-00002",
        "hand/demo.hdf5",
    ):
        (tmp_path / there).parent.mkdir(parents=True)
        (tmp_path / there).touch()
    for name, remedy in {
        "own": f"give one of those in it, such as {tmp_path}/own/one",
        "bridge": "convert it to LeRobot's layout first",
        "bridge/1.0.0": "convert it to LeRobot's layout first",
        "hand": "convert it to LeRobot's layout first",
        "hand/demo.hdf5": "convert it to LeRobot's layout first",
    }.items():
        with pytest.raises(KitError, match=re.escape(f"-> {remedy}")):
            open_dataset(tmp_path / name)
    with pytest.raises(KitError, match="give its name on the hub alone, OWNER/NAME"):
        open_dataset("https://huggingface.co/datasets/somebody/things")
