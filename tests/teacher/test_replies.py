"""Raw text to a rationale or a typed refusal: true rationales pass word for word, everything else gets its
kind, nothing raises.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refinevla_kit.episodes import open_dataset
from refinevla_kit.teacher import load_rationales
from refinevla_kit.teacher.answers import IDENTITY, SCHEMA, parse, reply_row
from refinevla_kit.teacher.limits import Spent
from refinevla_kit.teacher.schema import (
    PARTS,
    REPAIRABLE,
    WORDS,
    Facts,
    Rationale,
    Refusal,
    Reply,
    Request,
    read_facts,
)

DEMO = Path(__file__).resolve().parents[2] / "data/demo"
ASKED = Request(
    "d",
    0,
    0,
    1,
    "put the carrot on the plate",
    np.zeros((1, 4, 4, 3), np.uint8),
    [0],
    np.zeros((1, 7), np.float32),
)
GOOD = Rationale(
    "The carrot is at the left, the plate at the right; the gripper is open above the carrot.",
    "The carrot is not held, so the task has just begun.",
    "The gripper is 10 cm above the carrot; the plate is 20 cm to its right.",
    "Move down to the carrot, then close the gripper and lift it.",
)


def said(rationale: Rationale = GOOD, **changes: object) -> str:
    return json.dumps(asdict(rationale) | changes, ensure_ascii=False)


def kind(text: str, cut: bool = False) -> str:
    result = parse(text, ASKED, cut)
    return result.kind if isinstance(result, Refusal) else "rationale"


def test_every_shipped_rationale_passes_as_it_is() -> None:
    dataset = open_dataset(DEMO)
    rows = load_rationales(DEMO / "rationales/oracle-segment.parquet")
    assert len(rows) == 72
    for row in rows:
        asked = Request(
            "d",
            row.episode,
            row.start,
            row.end,
            dataset.info(row.episode).instruction,
            ASKED.keyframes,
            [0],
            ASKED.actions,
        )
        assert parse(said(row.rationale), asked) == row.rationale


@pytest.mark.parametrize(
    "wrapped",
    [
        "JSON",
        "  JSON\n",
        "```json\nJSON\n```",
        "```\nJSON\n```",
        "Here is what you asked for:\n\nJSON\n\nI hope it helps!",
        "{Braces} first: JSON",
        "[JSON]",
        '{"answer": JSON}',
    ],
)
def test_wrapping_around_the_json_is_forgiven(wrapped: str) -> None:
    assert parse(wrapped.replace("JSON", said()), ASKED) == GOOD


def test_a_wrong_instruction_is_rejected_with_a_reason() -> None:
    rejected = parse(said(instruction_matches=False, mismatch=" It is a can, not a bottle. "), ASKED)
    assert isinstance(rejected, Rationale)
    assert (rejected.instruction_matches, rejected.mismatch) == (False, "It is a can, not a bottle.")
    silent = parse(said(instruction_matches=False, mismatch=" "), ASKED)
    assert isinstance(silent, Refusal)
    assert (silent.kind, silent.reason) == (
        "wrong_shape",
        "instruction_matches is false but mismatch does not say why",
    )
    assert parse(said(instruction_matches=True, mismatch="none"), ASKED) == GOOD


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("The gripper is open.", "not_json"),
        ("<!DOCTYPE html><html>{</html>", "not_json"),
        ("null", "not_json"),
        ('{"observation": oops}', "not_json"),
        ('{"a":' * 10_000, "not_json"),
        ('{"observation": ' + "9" * 5_000 + "}", "not_json"),
        ("{}", "wrong_shape"),
        ("[1, 2]", "wrong_shape"),
        (said(task_planning=None), "wrong_shape"),
        (said(task_planning=["reach"]), "wrong_shape"),
        (said(observation="  "), "wrong_shape"),
        (said(instruction_matches="maybe"), "wrong_shape"),
        (said().replace("open", "\\ud83d"), "wrong_shape"),  # half a surrogate pair, which no file can hold
        (said(task_planning="Put the carrot on the plate!"), "echo"),
        (said(observation="Task: put the carrot on the plate."), "echo"),
        (said(observation="As an AI, I see a carrot and a plate."), "boilerplate"),
        (said(observation="I\u2019m sorry, I can\u2019t see it."), "boilerplate"),
        (said(situation_analysis="The robot is performing the task."), "boilerplate"),
        (said(situation_analysis=GOOD.observation), "boilerplate"),
        (said(situation_analysis="unknown"), "boilerplate"),
        (said(Rationale("a carrot", "not held", "it is", "go down")), "boilerplate"),
        (
            said(
                task_planning="The robot is performing the task of lifting: it moves up with the carrot, "
                "away from "
                "the table."
            ),
            "rationale",
        ),
    ],
)
def test_each_kind_of_answer(text: str, expected: str) -> None:
    assert kind(text) == expected


def test_the_limit_of_tokens_explains_what_is_missing() -> None:
    assert kind("", cut=True) == "truncated"
    assert kind("Let me think about", cut=True) == "truncated"
    assert kind(said(), cut=True) == "rationale"  # it was just enough
    whole = said()
    for length in range(1, len(whole)):
        assert kind(whole[:length], cut=True) == "truncated"
        assert kind(whole[:length]) in ("truncated", "not_json")


FACTS = Facts(
    source="carrot",
    target="plate",
    source_zone="top left",
    gripper="half open",
    held="nothing",
    reach_cm=12.0,
)
FACTS = replace(FACTS, goal_height_cm=-3.5, goal_side="left", sub_task="reach", motion="down", done=False)


def test_facts_are_read_field_by_field_and_cost_no_answer() -> None:
    assert parse(said(facts=asdict(FACTS)), ASKED) == replace(GOOD, facts=FACTS)
    loud = asdict(FACTS) | {"source": " CARROT\n", "source_zone": "Top-Left", "more": 1}
    assert parse(said(facts=loud), ASKED) == replace(GOOD, facts=FACTS)
    odd = {"gripper": "ajar", "reach_cm": -1, "done": "yes", "sub_task": 3, "held": None, "motion": ["down"]}
    odd |= {
        "source_zone": "unknown",
        "goal_height_cm": True,
        "goal_side": {},
        "target": " ",
        "source": "x" * 999,
    }
    assert parse(said(facts=asdict(FACTS) | odd), ASKED) == GOOD
    without = ["NaN", "Infinity", "-Infinity", "1e999", "1e9", "null", "[]"]
    for number in without:
        text = said(facts={"reach_cm": 0, "held": "cup"}).replace('"reach_cm": 0', f'"reach_cm": {number}')
        assert parse(text, ASKED) == replace(GOOD, facts=Facts(held="cup"))


@pytest.mark.parametrize("facts", [None, {}, [], "none", 3, True, [asdict(FACTS)], {"facts": asdict(FACTS)}])
def test_what_is_no_facts_leaves_the_prose(facts: object) -> None:
    assert parse(said(facts=facts), ASKED) == GOOD
    assert parse(said().replace('"facts"', '"other"'), ASKED) == GOOD


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text(), max_size=2)
words = st.sampled_from([word for each in WORDS.values() for word in each])


@given(st.dictionaries(st.sampled_from(list(asdict(FACTS))), values | words))
def test_any_facts_end_as_facts_that_are_stored_and_read_back(given_facts: dict) -> None:
    result = parse(said(facts=given_facts), ASKED)
    assert replace(result, facts=None) == GOOD
    row = reply_row((0, 0, 1), Reply(result, ""), Spent(), None, 1)
    identity = dict.fromkeys(IDENTITY, "") | {"keyframes": 1, "dataset_hash": "0"}
    table = pa.Table.from_pylist([json.loads(json.dumps(row)) | identity], SCHEMA)
    assert read_facts(table.to_pylist()[0]["facts"]) == result.facts


LANGUAGES = {
    "German": "Die Karotte liegt links und der Teller rechts. Der Greifer ist offen und noch nicht über der "
    "Karotte.",
    "French": "La carotte est à gauche et l'assiette est à droite. La pince est ouverte au-dessus de la "
    "carotte, elle va vers le bas.",
    "Spanish": "La zanahoria está a la izquierda y el plato a la derecha. La pinza está abierta y se mueve "
    "hacia la zanahoria.",
    "Italian": "La carota è a sinistra e il piatto è a destra. La pinza è aperta e poi scende verso la "
    "carota.",
    "Portuguese": "A cenoura está à esquerda e o prato à direita. A garra está aberta e depois desce para a "
    "cenoura.",
    "Dutch": "De wortel ligt links en het bord ligt rechts. De grijper is open en nog niet boven de wortel.",
    "Polish": "Marchewka leży po lewej stronie, talerz po prawej. Chwytak jest otwarty i znajduje się nad "
    "marchewką, potem schodzi niżej.",
    "Finnish": "Porkkana on vasemmalla ja lautanen oikealla. Tarttuja avautuu porkkanan yllä ja laskeutuu "
    "siihen.",
    "Russian": "Морковь лежит слева, тарелка справа, захват открыт.",
    "Chinese": "胡萝卜在桌子左边，盘子在右边，机械手张开着。",
    "Japanese": "にんじんは左に、皿は右にあります。グリッパーは開いています。",
    "Arabic": "الجزرة على اليسار والطبق على اليمين والملقط مفتوح.",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_another_language_is_noticed(language: str) -> None:
    parts = {part: f"{LANGUAGES[language]} {i}" for i, part in enumerate(PARTS)}
    assert kind(said(**parts)) == "other_language"


def test_names_of_another_language_are_no_other_language() -> None:
    assert (
        kind(
            said(
                observation="The crème brûlée cup (胡萝卜) lies at the left of the jalapeño tin, and the "
                "gripper is "
                "open."
            )
        )
        == "rationale"
    )
    terse = Rationale(
        "Carrot left, plate right, gripper open.",
        "Carrot not held.",
        "Gripper above carrot.",
        "Lower gripper, grasp carrot.",
    )
    assert parse(said(terse), ASKED) == terse


WORDS = (
    "the carrot is left of a plate and gripper moves down 10 cm then closes on it above towel while arm "
    "waits near sink"
)
sentences = st.lists(st.sampled_from(WORDS.split()), min_size=6, max_size=20).map(
    lambda words: " ".join(["the", *words])
)
rationales = st.lists(sentences, min_size=4, max_size=4, unique=True).flatmap(
    lambda parts: st.one_of(
        st.just(Rationale(*parts)), sentences.map(lambda why: Rationale(*parts, False, why))
    )
)


@given(
    rationales,
    st.sampled_from(["{}", "```json\n{}\n```", "Sure, here it is: {}"]),
    st.sampled_from([None, 2]),
    st.booleans(),
)
def test_any_rationale_survives_the_way_there_and_back(
    rationale: Rationale, wrapped: str, indent: int | None, ascii_only: bool
) -> None:
    text = wrapped.replace("{}", json.dumps(asdict(rationale), indent=indent, ensure_ascii=ascii_only))
    assert parse(text, ASKED) == rationale


badly_decoded = st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape"))
anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from([*PARTS, "instruction_matches", "mismatch", "facts"]) | st.text(),
            inner,
            max_size=8,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=200)
@given(
    st.one_of(st.text(), st.text('{}[]":,\\ \n`aé'), anything.map(json.dumps), badly_decoded),
    st.text(max_size=30),
    st.booleans(),
)
def test_no_text_raises_and_every_refusal_is_one_repairable_line(
    text: str, instruction: str, cut: bool
) -> None:
    asked = Request("d", 0, 0, 1, instruction, ASKED.keyframes, [0], ASKED.actions)
    result = parse(text, asked, cut)
    if isinstance(result, Refusal):
        assert result.kind in (*REPAIRABLE, "empty")
        assert result.reason and "\n" not in result.reason
        result.reason.encode()
