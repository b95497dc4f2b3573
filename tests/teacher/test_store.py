"""Nothing lost: half-written lines, kills while compacting, full disks, two runs at once, other people's
answers.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from refinevla_kit.errors import KitError
from refinevla_kit.journal import Journal
from refinevla_kit.teacher import load_rationales, run_of, summarise
from refinevla_kit.teacher.answers import FORMAT
from refinevla_kit.teacher.limits import Spent
from refinevla_kit.teacher.schema import PARTS, Facts
from refinevla_kit.teacher.store import Store
from tests.conftest import REPOSITORY

IDENTITY = {"teacher": "t", "version": "1", "prompt_hash": "p", "granularity": "step", "keyframes": 1}
DIGEST = "00000000000000ff"


def row(episode: int, start: int, text: str = "x", kind: str | None = None, **more) -> dict:
    parts = dict.fromkeys(PARTS, None if kind else text)
    refusal = {"refusal_kind": kind, "refusal_reason": kind and "why", "first_kind": None, "first_raw": None}
    numbers = {"input_tokens": 8, "output_tokens": 2, "cost": 0.5, "attempts": 1}
    return {
        "episode": episode,
        "start": start,
        "end": start + 1,
        "raw": text,
        "instruction_matches": None if kind else True,
        "mismatch": None,
        "currency": "EUR",
        "prices_as_of": "2026-11-24",
        **parts,
        **refusal,
        **numbers,
        **more,
    }


def write(target: Path, *rows: dict, compact: bool = True, identity: dict | None = None) -> None:
    """One run that adds `rows`, each for 8 + 2 tokens."""
    with Store(target, identity or IDENTITY) as store:
        for each in rows:
            store.wanted(each["episode"], DIGEST, [])
            store.add(each, Spent(1, 8, 2, 500_000_000))
        if compact:
            store.compact(
                store.spent.plus(Spent(len(rows), 8 * len(rows), 2 * len(rows), 500_000_000 * len(rows)))
            )


def test_a_line_cut_anywhere_costs_that_line_only(tmp_path: Path) -> None:
    lines = [{"number": number, "text": "é" * number} for number in range(4)]
    journal = Journal(tmp_path / "whole")
    ends = [*[journal.append(line) for line in lines][1:], journal.end]
    journal.close()
    whole = (tmp_path / "whole").read_bytes()
    for cut in range(len(whole) + 1):
        (tmp_path / "cut").write_bytes(whole[:cut])
        journal = Journal(tmp_path / "cut")
        kept = sum(end <= cut for end in ends)
        assert [line for _, line in journal] == lines[:kept]
        journal.append({"after": "repair"})
        assert [line for _, line in journal] == [*lines[:kept], {"after": "repair"}]
        journal.close()


def test_a_long_half_written_line_is_cut_off(tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(b'{"a": 1}\n' + b"x" * 200_000)
    assert [line for _, line in Journal(tmp_path / "journal")] == [{"a": 1}]


def test_damage_in_the_middle_is_said_and_nothing_removed(tmp_path: Path) -> None:
    content = b'{"a": 1}\n{"b"\n{"c": 3}\n'
    (tmp_path / "journal").write_bytes(content)
    with pytest.raises(KitError, match=r"line 2 is damaged .* -> remove that line"):
        list(Journal(tmp_path / "journal"))
    assert (tmp_path / "journal").read_bytes() == content


def test_two_runs_on_one_output_are_refused(tmp_path: Path) -> None:
    with Store(tmp_path / "r.parquet", IDENTITY), pytest.raises(KitError, match="another run is writing"):
        Store(tmp_path / "r.parquet", IDENTITY)
    Store(tmp_path / "r.parquet", IDENTITY).__exit__()
    assert list(tmp_path.iterdir()) == []  # a run that did nothing leaves nothing


def test_a_full_disk_keeps_whole_lines(small_disk: Path) -> None:
    journal, written = Journal(small_disk / "journal"), 0
    with pytest.raises(KitError, match="free space and run again"):
        while True:
            journal.append({"text": "x" * 1000})
            written += 1
    assert [line for _, line in journal] == [{"text": "x" * 1000}] * written
    journal.close()
    assert written > 5


def test_rows_come_out_sorted_once_each_the_last_one_wins(tmp_path: Path) -> None:
    target = tmp_path / "r.parquet"
    write(target, row(1, 5, "old"), row(0, 7), row(1, 2), row(1, 5, "new"))
    assert [(each.episode, each.start, each.raw) for each in load_rationales(target)] == [
        (0, 7, "x"),
        (1, 2, "x"),
        (1, 5, "new"),
    ]
    write(target, row(1, 5, "newer"), row(0, 1))
    table = pq.read_table(target).to_pylist()
    assert [(each["episode"], each["start"], each["raw"]) for each in table] == [
        (0, 1, "x"),
        (0, 7, "x"),
        (1, 2, "x"),
        (1, 5, "newer"),
    ]
    assert {each["dataset_hash"] for each in table} == {DIGEST}
    assert [path.name for path in tmp_path.iterdir()] == ["r.parquet"]
    assert summarise(target).spent == Spent(6, 48, 12, 3_000_000_000)


def test_a_kill_between_renaming_and_removing_counts_nothing_twice(tmp_path: Path) -> None:
    target, part = tmp_path / "r.parquet", tmp_path / "r.parquet.part"
    write(target, row(0, 0))
    write(target, row(0, 1), compact=False)
    before = part.read_bytes()
    with Store(target, IDENTITY) as store:
        spent = store.spent
        store.compact(spent)
    part.write_bytes(before)  # as if the kill had come before it was removed
    (tmp_path / ".r.parquet.part-999").write_bytes(b"half a table")  # and another one earlier
    with Store(target, IDENTITY) as store:
        assert store.spent == spent == Spent(2, 16, 4, 1_000_000_000)
        assert store.done == 2
        store.compact(store.spent)
    assert len(load_rationales(target)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["r.parquet"]


def test_calls_cut_off_by_a_kill_stay_in_the_budget(tmp_path: Path) -> None:
    with Store(tmp_path / "r.parquet", IDENTITY) as store:
        for start in range(3):
            store.journal.append({"asked": (0, start, start + 1), "spent": Spent(1, 100, 50, 7)})
        store.wanted(0, DIGEST, [])
        store.add(row(0, 0), Spent(0, -92, -48, -3))
        store.journal.append({"failed": "server", "spent": Spent(0, -100, -50, -7)})
    with Store(
        tmp_path / "r.parquet", IDENTITY
    ) as store:  # one answered, one failed for nothing, one never heard of
        assert store.spent == Spent(3, 108, 52, 11)
        assert store.wanted(0, DIGEST, [(0, 0, 1), (0, 1, 2), (0, 2, 3)]) == [(0, 1, 2), (0, 2, 3)]


def test_what_is_owed_survives_both_ways_of_stopping(tmp_path: Path) -> None:
    target, spans = tmp_path / "r.parquet", [(0, start, start + 1) for start in range(4)]
    rows = (
        row(0, 0),
        row(0, 1, "{", "truncated"),
        row(0, 2, "", "timeout"),
        row(0, 3, "{", "truncated", first_kind="empty", first_raw=""),
    )
    for compact in (False, True):
        write(target, *rows, compact=compact)
        with Store(target, IDENTITY) as store:
            assert store.wanted(0, DIGEST, spans) == spans[1:3]  # the follow-up of one, the other anew
            assert list(store.owed) == [(0, 1, 2)]
            assert (store.owed[0, 1, 2]["raw"], store.done) == ("{", 2)


def test_paid_answers_of_others_are_never_dropped(tmp_path: Path) -> None:
    target = tmp_path / "r.parquet"
    write(target, row(0, 0), compact=False)
    with pytest.raises(KitError, match="unfinished run of another teacher version or seed"):
        Store(target, IDENTITY | {"version": "2"})
    write(target)
    with pytest.raises(KitError, match="paid answers of another teacher"):
        Store(target, IDENTITY | {"version": "2"})
    with Store(target, IDENTITY) as store, pytest.raises(KitError, match="episode 0 is not the one"):
        store.wanted(0, "00000000000000fe", [(0, 0, 1)])
    assert len(load_rationales(target)) == 1


def test_a_table_that_another_program_has_saved_is_never_written_over(tmp_path: Path) -> None:
    """pandas drops what says whose answers they are."""
    target = tmp_path / "r.parquet"
    write(target, row(0, 0), row(0, 1))
    pd.read_parquet(target).iloc[:1].to_parquet(target)
    saved = target.read_bytes()
    with pytest.raises(KitError, match=r"r.parquet does not say which run wrote it, .* -> give another"):
        Store(target, IDENTITY)
    assert target.read_bytes() == saved and len(load_rationales(target)) == 1


def test_free_answers_of_others_are_replaced(tmp_path: Path) -> None:
    target = tmp_path / "r.parquet"
    with Store(target, IDENTITY) as store:
        store.wanted(0, DIGEST, [])
        store.add(row(0, 0), Spent(1))
        store.compact(Spent(1))
    with Store(target, IDENTITY) as store:  # the episode was recorded anew, and now has another cut
        assert store.wanted(0, "00000000000000fe", [(0, 3, 4)]) == [(0, 3, 4)]
        store.add(row(0, 3), Spent(1))
        store.compact(Spent(2))
    assert [each.start for each in load_rationales(target)] == [3]
    with Store(target, IDENTITY | {"prompt_hash": "q"}) as store:
        assert store.wanted(0, DIGEST, [(0, 3, 4)]) == [(0, 3, 4)]


def test_the_journal_says_what_it_is_without_the_kit(tmp_path: Path) -> None:
    write(tmp_path / "r.parquet", row(0, 0, 'a "text"\nof two lines'), compact=False)
    header, answer = (json.loads(line) for line in (tmp_path / "r.parquet.part").read_text().splitlines())
    assert header["identity"] == IDENTITY
    assert (answer["episode"], answer["raw"], answer["input_tokens"]) == (0, 'a "text"\nof two lines', 8)


def test_tables_of_older_versions_are_read(tmp_path: Path) -> None:
    write(tmp_path / "r.parquet", row(0, 0))
    added = [
        "instruction_matches",
        "mismatch",
        "first_kind",
        "first_raw",
        "granularity",
        "keyframes",
        "currency",
        "prices_as_of",
        "attempts",
        "facts",
    ]
    pq.write_table(
        pq.read_table(tmp_path / "r.parquet").drop_columns(added).replace_schema_metadata(),
        tmp_path / "older.parquet",
    )
    (old,) = load_rationales(tmp_path / "older.parquet")
    assert (old.rationale.instruction_matches, old.attempts, old.currency) == (True, 1, "")
    assert old.rationale.facts is None


def test_the_table_says_its_format_and_later_ones_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "r.parquet"
    write(target, row(0, 0))
    assert run_of(target)["format"] == FORMAT == 2
    later = {"refinevla": json.dumps(run_of(target) | {"format": 3})}
    pq.write_table(pq.read_table(target).replace_schema_metadata(later), target)
    with pytest.raises(KitError, match="has format 3, this kit reads up to 2"):
        load_rationales(target)


def test_an_unfinished_run_of_before_there_were_facts_goes_on(tmp_path: Path) -> None:
    target = tmp_path / "r.parquet"
    write(target, row(0, 0), row(0, 1))
    pq.write_table(pq.read_table(target).drop_columns(["facts"]), target)
    with Store(target, IDENTITY) as store:
        store.wanted(0, DIGEST, [(0, 2, 3)])
        store.add(row(0, 2) | {"facts": {"held": "cup"}}, Spent(1))
        store.compact(Spent(3))
    assert [answer.rationale.facts for answer in load_rationales(target)] == [None, None, Facts(held="cup")]


def test_a_summary_counts_kinds_and_cost(tmp_path: Path) -> None:
    target = tmp_path / "r.parquet"
    write(
        target,
        row(0, 0),
        row(0, 1, instruction_matches=False, mismatch="a can"),
        row(0, 2, "", "safety"),
        row(0, 3, "", "safety"),
    )
    found = summarise(target)
    assert (found.rationales, found.mismatches, found.refusals, found.money) == (2, 1, {"safety": 2}, 2.0)
    assert str(found) == (
        "2 rationales (1 find the instruction wrong); refusals: 2 safety\n"
        "4 calls, 32 tokens in, 8 out, 2.00 EUR (prices of 2026-11-24)"
    )
    shutil.copy(__file__, target)
    with pytest.raises(KitError, match="no rationales can be read"):
        summarise(target)


def test_a_table_of_before_there_were_prices_is_counted_too(tmp_path: Path) -> None:
    now = REPOSITORY / "data/demo/rationales/oracle-segment.parquet"
    table = pq.read_table(now)
    pq.write_table(table.drop_columns(["currency", "prices_as_of", "attempts"]), tmp_path / "old.parquet")
    assert summarise(tmp_path / "old.parquet") == summarise(now)
