"""What a policy writes is held against the frames it wrote about."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refinevla_kit.episodes import open_dataset
from refinevla_kit.evaluation.written import (
    LEAST,
    by_kind,
    draw_frames,
    judged,
    read_again,
    truth,
    write_about,
)
from refinevla_kit.policies import load_policy
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.teacher import OracleTeacher, load_rationales
from refinevla_kit.teacher.reviews import decide, reviews_path
from refinevla_kit.training.examples import find_rationales, load_examples

DEMO = REPOSITORY / "data" / "demo"
SHIPPED = REPOSITORY / "data" / "checkpoints" / "with_reasoning"


def test_the_truth_of_what_is_written_is_counted() -> None:
    policy, dataset = load_policy(SHIPPED), open_dataset(DEMO)
    frames = draw_frames(dataset, 2, seed=0)
    assert frames == draw_frames(dataset, 2, seed=0) and len(set(frames)) == 2
    written = write_about(policy, dataset, frames)
    assert [(one.request.episode, one.request.start) for one in written] == frames
    for one in written:
        (image,) = dataset.images(one.request.episode, [one.request.start])
        assert one.text == policy.explain(image, one.request.instruction, one.request.proprioception[0])
    taught = [
        judged(one.request, OracleTeacher().annotate(one.request).result.text(), policy) for one in written
    ]
    assert truth(taught).rate == 1 and truth(taught).episodes > 2 * LEAST
    assert all(one.ended for one in taught) and {"held", "sub_task"} <= set(by_kind(taught))
    moved = written[0].request
    otherwise = replace(moved.state, grasped=np.bool_(not moved.state.grasped))
    lies = judged(replace(moved, state=otherwise), taught[0].text, policy)
    assert by_kind([lies])["held"].rate == 0 and truth([lies]).rate < 1
    silent = judged(moved, "The gripper is at the carrot at the carrot.", policy)
    assert truth([silent]).successes == 0 and truth([silent]).episodes == LEAST
    assert not judged(moved, "so it goes " * 100, policy).ended


def test_a_base_that_has_learned_to_write_writes_what_is_true() -> None:
    policy = load_policy(SHIPPED.parent / "compact_base")
    dataset = open_dataset(DEMO)
    written = write_about(policy, dataset, draw_frames(dataset, 6, seed=1))
    assert all(one.ended for one in written)
    assert truth(written).rate > 0.8 and truth(written).episodes > 6 * LEAST


def test_who_writes_first_writes_in_a_batch_what_it_writes_alone() -> None:
    policy = load_policy(SHIPPED.parent / "compact_base", order="rationale_first")
    examples = load_examples(DEMO)
    rows = np.arange(0, len(examples), 60)
    given = examples.images[rows], [examples.instructions[row] for row in rows], examples.proprioception[rows]
    together = policy.act_batch(*given)
    assert len({len(policy.vla.tokenizer.encode(action.rationale)) for action in together}) > 1
    for number, action in enumerate(together):
        (alone,) = policy.decide(*(each[number : number + 1] for each in given))
        assert action.rationale == alone.rationale == policy.explain(*(each[number] for each in given))
        assert np.array_equal(action.tokens, alone.tokens)
        assert action.log_probability == pytest.approx(alone.log_probability, abs=1e-4)


def test_what_the_teacher_wrote_is_read_where_it_holds() -> None:
    policy, dataset = load_policy(SHIPPED), open_dataset(DEMO)
    table = find_rationales(DEMO)
    assert table is not None
    first = load_rationales(table)[0]
    taught = read_again(policy, dataset, [(first.episode, first.start)], table)
    assert taught[0].text == first.rationale.text() and truth(taught).rate == 1
    assert read_again(policy, dataset, [(0, 0)], None)[0].text == ""


def test_without_a_simulator_nothing_is_judged() -> None:
    policy, dataset = load_policy(SHIPPED), open_dataset(DEMO)
    (one,) = write_about(policy, dataset, [(0, 0)])
    blind = judged(replace(one.request, state=None, masks=None), "The carrot is held.", policy)
    assert blind.findings == () and truth([blind]).episodes == 0
    assert truth([blind]).bounded[1:] == (0, 1)


def test_what_a_person_has_let_pass_is_read_too(tmp_path: Path) -> None:
    """Notebook 2 with `rationales="reviewed"`."""
    policy, dataset = load_policy(SHIPPED), open_dataset(DEMO)
    table = Path(shutil.copy(find_rationales(DEMO), tmp_path / "r.parquet"))
    first, second = load_rationales(table)[:2]
    decide(reviews_path(table), first, "accept")
    frames = [(one.episode, one.start) for one in (first, second)]
    again = read_again(policy, dataset, frames, reviews_path(table))
    assert [one.text for one in again] == [first.rationale.text(), ""]
