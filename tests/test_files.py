"""Nothing half-written: a file or folder appears under its name whole, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinevla_kit.errors import KitError
from refinevla_kit.files import file_name, replacing, sha256, write_json

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


def test_full_disk_is_one_line_and_leaves_nothing(small_disk: Path) -> None:
    target = write_json(small_disk / "records.json", ["kept"])
    with pytest.raises(KitError, match="no space left on the disk while writing") as caught:
        write_json(target, ["x" * 1000] * 1000)
    assert "\n" not in str(caught.value)
    assert json.loads(target.read_text()) == ["kept"]
    assert [path.name for path in small_disk.iterdir()] == ["records.json"]


@given(st.text(), st.text())
def test_any_name_is_a_files_and_two_names_are_two_files(tmp_path_factory: pytest.TempPathFactory, one: str, other: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"{file_name(one)}.txt"
    path.write_text("")
    assert path.parent == tmp_path_factory.getbasetemp() and path.with_suffix("").name == file_name(one)
    assert (file_name(one) == file_name(other)) == (one == other)


def test_a_plain_name_stays_as_it_is() -> None:
    assert file_name("with_reasoning-2") == "with_reasoning-2"
    assert file_name("openvla/7b v1.5").startswith("openvla_7b_v1_5-")
