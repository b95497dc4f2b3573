"""Records survive a kill: what was finished is read back, what was cut in half is dropped, what is foreign is
refused.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.records import (
    COLUMNS,
    LATER,
    EpisodeRecord,
    add_record,
    journal_path,
    load_records,
    parse_record,
    save_parquet,
)
from refinevla_kit.journal import Journal
from refinevla_kit.tasks import PROTOCOL_VERSION
from tests.evaluation.rows import row

KINDS = {
    str: st.text(st.characters(exclude_categories=["Cs"])),
    int: st.integers(-(2**63), 2**63 - 1),
    bool: st.booleans(),
}
KINDS[float] = st.floats(allow_nan=False, allow_infinity=False)
RECORDS = st.builds(
    EpisodeRecord,
    **{name: KINDS[kind] for name, kind in COLUMNS.items()} | {"protocol": st.just(PROTOCOL_VERSION)},
)
fast = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fast
@given(st.lists(RECORDS, min_size=1, max_size=4, unique_by=lambda record: record.key))
def test_parquet_and_journal_give_back_what_was_written(tmp_path: Path, records: list[EpisodeRecord]) -> None:
    assert load_records(save_parquet(records, tmp_path / "records.parquet")) == records
    (tmp_path / "other.jsonl").unlink(missing_ok=True)
    with Journal(tmp_path / "other.jsonl") as journal:
        for record in records:
            add_record(journal, record)
    assert load_records(tmp_path / "other.jsonl") == records
    assert load_records(tmp_path / "other.parquet") == records


@fast
@given(st.data())
def test_a_journal_cut_anywhere_keeps_every_whole_line(tmp_path: Path, data: st.DataObject) -> None:
    lines = [json.dumps(asdict(row("p", episode, success=True))).encode() + b"\n" for episode in range(3)]
    cut = data.draw(st.integers(0, sum(map(len, lines))))
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"".join(lines)[:cut])
    whole = sum(cut >= sum(map(len, lines[: count + 1])) for count in range(3))
    assert len(load_records(path)) == whole
    with Journal(path) as journal:
        assert [record.episode_id for record in load_records(path)] == list(range(whole))
        add_record(journal, row("p", 9, success=False))
    assert [record.episode_id for record in load_records(path)] == [*range(whole), 9]


def test_damage_in_the_middle_is_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    good = json.dumps(asdict(row("p", 0, success=True)))
    path.write_text(f"{good}\n{good[:40]}\n{good}\n")
    with Journal(path), pytest.raises(KitError, match="line 2 is damaged"):
        load_records(path)


@pytest.mark.parametrize("change", [{"steps": "60"}, {"steps": None}, {"success_last": 1}, {"unknown": 1}])
def test_rows_of_another_make_are_refused_by_column(change: dict[str, object]) -> None:
    with pytest.raises(KitError, match=next(iter(change))):
        parse_record(asdict(row("p", 0, success=True)) | change, "row 0")


@pytest.mark.parametrize("protocol", [{}, {"protocol": PROTOCOL_VERSION + 1}])
def test_records_of_another_protocol_version_are_refused_by_number(protocol: dict[str, int]) -> None:
    old = {
        name: value for name, value in asdict(row("p", 0, success=True)).items() if name != "protocol"
    } | protocol
    with pytest.raises(
        KitError,
        match=f"under protocol version {protocol.get('protocol', 1)}, this is version {PROTOCOL_VERSION}",
    ):
        parse_record(old, "row 0")


def test_what_pandas_has_sorted_out_or_merged_is_read(tmp_path: Path) -> None:
    """It adds a column for the rows' numbers, and makes whole numbers others where cells are empty."""
    records = [row("p", episode, success=episode > 0) for episode in range(3)]
    path = save_parquet(records, tmp_path / "records.parquet")
    table = pd.read_parquet(path)
    table[table.success_last].to_parquet(tmp_path / "some.parquet")
    assert load_records(tmp_path / "some.parquet") == records[1:]
    older = table.drop(columns=[*LATER]).head(1)
    pd.concat([older, table.tail(2)]).to_parquet(tmp_path / "both.parquet")
    assert load_records(tmp_path / "both.parquet") == records
    table.assign(note="x").to_parquet(tmp_path / "more.parquet")
    with pytest.raises(KitError, match=r"columns that differ: note\) -> take out what is no column"):
        load_records(tmp_path / "more.parquet")


def test_a_journal_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("no folder")
    for path in (tmp_path / "taken/records.jsonl", tmp_path):
        with pytest.raises(KitError, match=r"cannot write .* -> give an output"):
            Journal(path)


def test_a_run_that_ends_before_its_first_episode_leaves_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path / "records.jsonl"):
        pass
    with pytest.raises(KitError, match="no evaluation records at"):
        load_records(tmp_path / "records.parquet")


def test_two_runs_cannot_write_one_file(tmp_path: Path) -> None:
    with Journal(tmp_path / "records.jsonl"), pytest.raises(KitError, match="another run"):
        Journal(tmp_path / "records.jsonl")


def test_the_journal_adds_to_the_finished_file(tmp_path: Path) -> None:
    """The state between the rename of the parquet file and the removal of its journal, and that of a run
    continued later.
    """
    first, second = row("p", 0, success=True), row("p", 1, success=False)
    path = save_parquet([first], tmp_path / "records.parquet")
    with Journal(journal_path(path)) as journal:
        add_record(journal, replace(first, wall_time=2.0))
        add_record(journal, second)
    assert [record.episode_id for record in load_records(path)] == [0, 1]
    with Journal(journal_path(path)) as journal:
        add_record(journal, replace(first, success_last=False))
    with pytest.raises(
        KitError, match=r"'p' has two records of .* episode 0: success_last True and success_last False"
    ):
        load_records(path)


def test_what_is_not_there_or_not_parquet_is_said(tmp_path: Path) -> None:
    with pytest.raises(KitError, match="no evaluation records"):
        load_records(tmp_path / "records.parquet")
    (tmp_path / "records.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(KitError, match="not a readable parquet"):
        load_records(tmp_path / "records.parquet")
