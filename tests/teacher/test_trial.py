"""A small part of a dataset is annotated and audited before the rest is paid for."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from refinevla_kit.cli import app
from refinevla_kit.episodes import open_dataset
from refinevla_kit.errors import KitError
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.teacher import OracleTeacher, Rationale, Reply, Request, annotate_dataset, load_rationales
from refinevla_kit.teacher.audit import AUDITED, COUNTS, audit_dataset
from refinevla_kit.teacher.trial import annotate_trial, judge, only, stratified


class Liar(OracleTeacher):
    """Says of each fact that can be turned round the opposite, and counts what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def annotate(self, request: Request, previous: Reply | None = None) -> Reply:
        self.asked += 1
        reply = super().annotate(request, previous)
        assert isinstance(reply.result, Rationale) and reply.result.facts
        facts = reply.result.facts
        held = facts.source if facts.held == "nothing" else "nothing"
        wrong: dict[str, Any] = {"held": held, "done": not facts.done}
        return replace(reply, result=replace(reply.result, facts=replace(facts, **wrong)))


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    path = tmp_path / "demo"
    shutil.copytree(REPOSITORY / "data" / "demo", path, ignore=shutil.ignore_patterns("rationales"))
    return path


def listing(counts: list[int]) -> Any:
    """Episodes of so many instructions."""
    sentences = [f"do {kind}" for kind, count in enumerate(counts) for _ in range(count)]
    infos = [SimpleNamespace(index=i, instruction=text, task="") for i, text in enumerate(sentences)]
    return SimpleNamespace(episodes=infos)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 99), st.integers(0, 5), st.data())
def test_a_sample_has_each_instruction_by_its_share_and_holds_the_smaller_ones(
    counts: list[int], percent: int, seed: int, data: Any
) -> None:
    dataset, total = listing(counts), sum(counts)
    count = round(percent / 100 * total)
    found = stratified(dataset, count, seed)
    assert len(found) == count and found == sorted(set(found))
    smaller = stratified(dataset, data.draw(st.integers(0, count)), seed)
    assert set(smaller) <= set(found)
    drawn = Counter(dataset.episodes[number].instruction for number in found)
    ordered = [count * n / total for n in counts]
    for kind, expected in enumerate(ordered):
        assert abs(drawn[f"do {kind}"] - expected) <= 1 + len(counts) * counts[kind] / total


def test_true_rationales_pass_and_count_for_the_rest(demo: Path) -> None:
    dataset = open_dataset(demo)
    verdict = annotate_trial(dataset, OracleTeacher(), 2, progress=False)
    share = verdict.score.share
    assert verdict.episodes == 2 and share and share > 0.95 and verdict.refusals == 0
    low, high = verdict.interval
    assert low < share <= high
    frame = audit_dataset(only(dataset, stratified(dataset, 2)), demo / "rationales/oracle-segment.parquet")
    counted = {count: frame[[f"{part}_{count}" for part in AUDITED]].to_numpy().sum() for count in COUNTS}
    assert vars(verdict.score) == counted, "the audit's own counts"
    path = annotate_dataset(dataset, OracleTeacher(), progress=False)
    answers = load_rationales(path)
    assert {answer.episode for answer in answers} == {info.index for info in dataset.episodes}
    assert judge(dataset, path).rationales == len(answers)


def test_untrue_ones_stop_before_the_rest_is_asked(demo: Path) -> None:
    dataset, liar = open_dataset(demo), Liar()
    with pytest.raises(KitError, match=r"trial: .* are true .* 95% are asked for; the rest is not annotated"):
        annotate_trial(dataset, liar, 1, least=0.95, progress=False)
    of_one = liar.asked
    (path,) = (demo / "rationales").glob("*.parquet")
    assert len(load_rationales(path)) == of_one, "what was said is kept, to be looked at"
    assert len({answer.episode for answer in load_rationales(path)}) == 1


def test_the_command_annotates_a_share_after_a_trial(demo: Path) -> None:
    arguments = ["annotate", str(demo), "--trial", "1", "--share", "0.5", "--least-true", "0.9"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0 and "statements that can be checked are true" in result.stdout
    said = json.loads(result.stdout.splitlines()[-1])
    dataset = open_dataset(demo)
    wanted = stratified(dataset, -(-len(dataset.episodes) // 2))
    answers = load_rationales(said["rationales"])
    assert {answer.episode for answer in answers} == set(wanted)
    assert len(only(dataset, wanted).episodes) == len(wanted)
