"""Nothing half-written: a file or folder appears under its name whole, or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinevla_kit.errors import KitError
from refinevla_kit.files import file_name, paid_files, replacing, sha256, write_json
from tests.conftest import REPOSITORY

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def test_file_replaces_old_one_only_when_whole(tmp_path: Path) -> None:
    target = tmp_path / "result.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="cut off"), replacing(target) as part:
        part.write_text("half of the n")
        raise RuntimeError("cut off")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["result.txt"]
    with replacing(target) as part:
        part.write_text("new")
    assert target.read_text() == "new"


def test_folder_replaces_old_one_only_when_whole(tmp_path: Path) -> None:
    target = tmp_path / "dataset"
    for content in ("first", "second"):
        with replacing(target) as part:
            part.mkdir()
            (part / content).write_text(content)
    assert [path.name for path in target.iterdir()] == ["second"]
    with pytest.raises(KeyboardInterrupt), replacing(target) as part:
        part.mkdir()
        (part / "third").write_text("third")
        raise KeyboardInterrupt
    assert [path.name for path in target.iterdir()] == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


@given(json_values)
def test_json_is_read_back_as_written(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = write_json(tmp_path_factory.mktemp("json") / "value.json", value)
    assert json.loads(path.read_text(encoding="utf-8")) == value


def test_not_a_number_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "value.json", {"success": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_hash_of_a_folder_depends_on_names_and_contents(tmp_path: Path) -> None:
    hashes = set()
    for number, (name, content) in enumerate([("a", "x"), ("b", "x"), ("a", "y")]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / name).write_text(content)
        hashes.add(sha256(folder))
    assert len(hashes) == 3


def dead_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_what_killed_processes_left_is_removed_and_what_living_ones_write_is_not(tmp_path: Path) -> None:
    dead, living = dead_process(), subprocess.Popen(["sleep", "60"])
    try:
        for process in (dead, living.pid):
            (tmp_path / f".one.part-{process}").mkdir()
            (tmp_path / f".one.part-{process}" / "half").write_text("half")
        for other in (f".two.part-{dead}", f".one.more.part-{dead}", ".one.part-x", f"one.part-{dead}"):
            (tmp_path / other).write_text("another's")
        with replacing(tmp_path / "one") as part:
            part.mkdir()
        names = {
            ".one.more.part-" + str(dead),
            ".one.part-x",
            f".one.part-{living.pid}",
            f".two.part-{dead}",
            "one",
            f"one.part-{dead}",
        }
        assert {path.name for path in tmp_path.iterdir()} == names
    finally:
        living.kill()
        living.wait()


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    dead = dead_process()
    (tmp_path / f".data.old-{dead}").mkdir()
    (tmp_path / f".data.old-{dead}" / "first").write_text("first")
    (tmp_path / f".data.part-{dead}").mkdir()
    with pytest.raises(RuntimeError), replacing(tmp_path / "data"):
        raise RuntimeError
    assert (tmp_path / "data/first").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_killed_writer_leaves_nothing_once_another_has_written(tmp_path: Path) -> None:
    """A real process, killed while it writes."""
    code = (
        f"from refinevla_kit.files import replacing\nwith replacing({str(tmp_path / 'one')!r}) as "
        "part:\n part.mkdir(); input()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdin=subprocess.PIPE)
    while not list(tmp_path.glob(".one.part-*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    write_json(tmp_path / "one", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for target in (tmp_path / "file/in/it", Path("/proc/none/one"), Path("/sys/one")):
        with pytest.raises(KitError, match=r"cannot be made or written .* -> choose another output folder"):
            write_json(target, 1)


def table(path: Path, **about: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"refinevla": json.dumps(about)} if about else None
    pq.write_table(pa.table({"refusal_kind": ["x"]}).replace_schema_metadata(metadata), path)
    return path


def test_a_folder_with_what_was_paid_for_is_never_replaced(tmp_path: Path) -> None:
    made = tmp_path / "dataset"
    table(made / "rationales/oracle-segment.parquet", spent=[3, 0, 0, 0])
    (made / "rationales/oracle-step.parquet.part").write_text(
        '{"identity": {}, "spent": [0, 0, 0, 0]}\n{"spent": [1, 0'
    )
    (made / "meta").mkdir()
    (made / "meta/info.json").write_text("{}")
    pq.write_table(pa.table({"action": [1]}), made / "meta/episodes.parquet")
    assert paid_files(made) == []  # free of charge, and made again by the same command
    paid = [
        table(made / "rationales/gemini-segment.parquet", spent=[3, 900, 20, 0]),
        table(made / "elsewhere/of_an_older_version.parquet"),
        table(made / "elsewhere/named_otherwise", spent=[3, 900, 20, 0]),
        made / "elsewhere/named_otherwise.part",
    ]
    journal, reviews = (
        made / "rationales/gemini-step.parquet.part",
        made / "rationales/oracle-segment.reviews.jsonl",
    )
    journal.write_text('{"spent": [1, 900, 20, 0]}\n')
    reviews.write_text("{}\n")
    paid += [journal, reviews]
    paid[3].write_text('{"identity": {}, "spent": [1, 900, 20, 0]}\n')
    assert paid_files(made) == sorted(paid)
    before = sorted(made.rglob("*"))
    for each in paid:
        with (
            pytest.raises(KitError, match="would be replaced and holds what was paid for") as failed,
            replacing(made),
        ):
            pytest.fail("the block must not run: what it makes could take hours")
        assert str(min(path for path in paid if path.exists())) in str(failed.value)
        assert sorted(made.rglob("*")) == before
        each.unlink()
        before.remove(each)
    with replacing(made) as part:
        part.mkdir()
    assert list(made.iterdir()) == []


def test_what_was_paid_for_meanwhile_is_not_replaced_either(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with pytest.raises(KitError, match="would be replaced"), replacing(tmp_path / "made") as part:
        part.mkdir()
        late = table(tmp_path / "made/rationales/gemini-step.parquet", spent=[1, 9, 9, 0])
    assert late.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_full_disk_is_one_line_and_leaves_nothing(small_disk: Path) -> None:
    target = write_json(small_disk / "records.json", ["kept"])
    with pytest.raises(KitError, match="no space left on the disk while writing") as caught:
        write_json(target, ["x" * 1000] * 1000)
    assert "\n" not in str(caught.value)
    assert json.loads(target.read_text()) == ["kept"]
    assert [path.name for path in small_disk.iterdir()] == ["records.json"]


@given(st.text(), st.text())
def test_any_name_is_a_files_and_two_names_are_two_files(
    tmp_path_factory: pytest.TempPathFactory, one: str, other: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"{file_name(one)}.txt"
    path.write_text("")
    assert path.parent == tmp_path_factory.getbasetemp() and path.with_suffix("").name == file_name(one)
    assert (file_name(one) == file_name(other)) == (one == other)


def test_a_plain_name_stays_as_it_is() -> None:
    assert file_name("with_reasoning-2") == "with_reasoning-2"
    assert file_name("openvla/7b v1.5").startswith("openvla_7b_v1_5-")
