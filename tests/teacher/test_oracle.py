"""The oracle says only what is true of the frame, in few words, and the same words again for the same
seed.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refinevla_kit.simulator.contract import SceneState
from refinevla_kit.tasks import WIDOWX_TASKS
from refinevla_kit.teacher.oracle import OracleTeacher, word_count
from refinevla_kit.teacher.schema import PARTS, Rationale, Refusal, Request

from .truth import claims_checked


def ask(frames, start: int, end: int, dataset: str = "played") -> Request:
    return Request(
        dataset,
        0,
        start,
        end,
        frames.task.instruction,
        frames.images[start : start + 1],
        [start],
        frames.actions[start:end],
        frames.states[start],
        {name: mask[start] for name, mask in frames.masks.items()},
    )


def test_every_claim_about_real_frames_is_true(frames) -> None:
    claims = phases = 0
    for one in frames:
        seen = set()
        for start in range(len(one.actions)):
            request = ask(one, start, min(start + 1 + start % 4, len(one.actions)))
            result = OracleTeacher(seed=start).annotate(request).result
            assert isinstance(result, Rationale)
            claims += claims_checked(
                result, request.state, request.masks, request.actions, one.task.source, one.task.target
            )
            seen.add(int(request.state.phase))
        phases = max(phases, len(seen))
    assert claims > 8 * sum(len(one.actions) for one in frames)  # it does say things
    assert phases >= 6  # and the episodes hold most sub-tasks


def test_the_checker_finds_a_lie(frames) -> None:
    """The same sentences about another frame do not hold: the parser above can fail."""
    one = frames[0]
    first, last = ask(one, 0, 2), ask(one, 16, 18)
    result = OracleTeacher().annotate(first).result
    with pytest.raises(AssertionError):
        claims_checked(result, last.state, last.masks, last.actions, one.task.source, one.task.target)


def test_same_seed_same_words_other_seed_other_words(frames) -> None:
    request = ask(frames[0], 0, 3)
    texts = [OracleTeacher(seed).annotate(request).result.text() for seed in range(10)]
    assert texts == [OracleTeacher(seed).annotate(request).result.text() for seed in range(10)]
    assert len(set(texts)) >= 8
    assert OracleTeacher(0).prompt_hash != OracleTeacher(1).prompt_hash


def test_words_are_few_and_known(frames) -> None:
    """The compact policy's tokenizer learns this vocabulary: it must stay small."""
    vocabulary: set[str] = set()
    for one in frames:
        for start in range(len(one.actions)):
            result = OracleTeacher(seed=1).annotate(ask(one, start, start + 1)).result
            assert 45 <= word_count(result) <= 75
            vocabulary |= set(
                result.text()
                .lower()
                .replace(",", " ")
                .replace(";", " ")
                .replace(".", " ")
                .replace(":", " ")
                .split()
            )
    assert len(vocabulary) < 130


def test_data_without_state_is_refused(frames) -> None:
    request = ask(frames[0], 0, 2)
    without = Request("real", 0, 0, 2, request.instruction, request.keyframes, [0], request.actions)
    reply = OracleTeacher().annotate(without)
    assert isinstance(reply.result, Refusal)
    assert reply.result.kind == "no_state"


def test_an_instruction_about_other_objects_is_refused(frames) -> None:
    request = ask(frames[0], 0, 2)
    other = Request(
        "d", 0, 0, 2, "open the drawer", request.keyframes, [0], request.actions, request.state, request.masks
    )
    assert OracleTeacher().annotate(other).result.kind == "unknown_objects"


position = st.lists(st.floats(-0.5, 0.5, width=32), min_size=3, max_size=3)


@st.composite
def scenes(draw: st.DrawFn) -> Request:
    """Any state of any task: objects anywhere, masks of any size or none, any opening, every combination of
    held, done and sub-task.
    """
    task = draw(st.sampled_from(WIDOWX_TASKS))
    poses = [np.array([*draw(position), 1, 0, 0, 0], np.float32) for _ in range(4)]
    masks = {}
    for name in (task.source, task.target, "gripper", "arm"):
        masks[name] = np.zeros((60, 80), bool)
        row, column, size = draw(st.integers(0, 59)), draw(st.integers(0, 79)), draw(st.integers(0, 20))
        masks[name][row : row + size, column : column + size] = True
    state = SceneState(
        *poses,
        np.float32(draw(st.floats(0, 1))),
        np.bool_(draw(st.booleans())),
        np.bool_(draw(st.booleans())),
        np.int8(draw(st.integers(0, 7))),
    )
    rows = draw(
        st.lists(st.lists(st.floats(-1, 1, width=32), min_size=7, max_size=7), min_size=1, max_size=4)
    )
    actions, keyframes = np.array(rows, np.float32), np.zeros((1, 60, 80, 3), np.uint8)
    return Request(
        "any", draw(st.integers(0, 9)), 0, len(rows), task.instruction, keyframes, [0], actions, state, masks
    )


@settings(max_examples=300, deadline=None)
@given(scenes(), st.integers(0, 1000))
def test_any_state_gives_four_true_parts_within_the_budget(request: Request, seed: int) -> None:
    result = OracleTeacher(seed).annotate(request).result
    assert isinstance(result, Rationale)
    assert all(getattr(result, part).strip() for part in PARTS)
    assert 45 <= word_count(result) <= 75
    source, target = list(request.masks)[:2]
    claims_checked(result, request.state, request.masks, request.actions, source, target)
