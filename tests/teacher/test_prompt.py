"""What a vision-language model is shown: versioned files, the actions in true words and numbers, pictures
with their frame numbers.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from refinevla_kit.episodes import open_dataset
from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import PHASES
from refinevla_kit.teacher import prompt as prompt_module
from refinevla_kit.teacher.annotation import requests
from refinevla_kit.teacher.answers import Answer
from refinevla_kit.teacher.prompt import (
    COLUMNS,
    ROWS,
    action_table,
    action_words,
    jpeg,
    load_prompt,
    render,
    state_words,
)
from refinevla_kit.teacher.schema import PARTS, WORDS, Facts, Refusal, Reply, Request

REPOSITORY = Path(__file__).resolve().parents[2]
NEWER = PHASES[8:]  # sub-tasks of drawers, which this prompt does not know


def request(actions: np.ndarray, **changes) -> Request:
    """A question about black pictures, from frame 10 on."""
    blank = Request(
        "d",
        0,
        10,
        10 + len(actions),
        "put carrot on plate",
        np.zeros((2, 60, 80, 3), np.uint8),
        [10, 9 + len(actions)],
        actions,
    )
    return replace(blank, **changes)


def moves(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float32)


def texts(parts: list) -> str:
    return "\n".join(part for part in parts if isinstance(part, str))


def test_the_hash_is_of_the_three_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = load_prompt()
    shutil.copytree(prompt_module.FOLDER, tmp_path / "prompts")
    monkeypatch.setattr(prompt_module, "FOLDER", tmp_path / "prompts")
    assert load_prompt() == shipped
    (tmp_path / "prompts/README.txt").write_text("not used")
    assert load_prompt().hash == shipped.hash
    for name in ("rationale_v2.txt", "repair_v2.txt", "schema_v2.json"):
        file = tmp_path / "prompts" / name
        original = file.read_text()
        file.write_text(original + "\n")
        assert load_prompt().hash != shipped.hash
        file.write_text(original)
    own = tmp_path / "mine.txt"
    own.write_text("What happens? $frames $actions")
    assert load_prompt(str(own)).name == "mine"
    assert load_prompt(str(own)).hash != shipped.hash
    own.write_text("What happens?")
    with pytest.raises(KitError, match=r"has no \$frames"):
        load_prompt(str(own))
    for missing in ("rationale_v9", str(tmp_path / "none.txt"), ""):
        with pytest.raises(KitError, match=r"choose one of rationale_v1"):
            load_prompt(missing)


def test_the_shape_asked_for_is_the_shape_read() -> None:
    asked = load_prompt().schema
    facts = asked["properties"]["facts"]
    assert list(asked["properties"]) == asked["required"] == list(Answer.model_fields)
    assert list(asked["properties"])[:4] == list(PARTS)
    kinds = {"STRING": "str", "BOOLEAN": "bool", "NUMBER": "float", "OBJECT": "Facts"}
    for name, field in Answer.model_fields.items():
        assert kinds[asked["properties"][name]["type"]] in str(field.annotation)
    assert list(facts["properties"]) == facts["required"] == [field.name for field in fields(Facts)]
    for field in fields(Facts):
        shape = facts["properties"][field.name]
        assert field.type == f"{kinds[shape['type']]} | None"
        assert shape.get("enum", [])[:-1] == [word for word in WORDS.get(field.name, ()) if word not in NEWER]
        assert shape.get("nullable", False) == (shape["type"] != "STRING")
    question = load_prompt().question
    example = json.loads(re.search(r"^\{.*\}$", question, re.MULTILINE)[0])
    assert list(example) == asked["required"] and list(example["facts"]) == facts["required"]
    for words in WORDS.values():
        assert all(re.search(rf"\b{word}\b", question) for word in words if word not in NEWER)


def test_a_prompt_of_version_1_stays_as_it_was(tmp_path: Path) -> None:
    first = load_prompt("rationale_v1")
    assert first.hash == "05d6c4cc353a6082"
    assert list(first.schema["properties"])[:4] == list(PARTS) and "facts" not in first.schema["properties"]
    for name, facts in {
        "mine.txt": False,
        "mine_v1.txt": False,
        "mine_v2.txt": True,
        "mine_v9.txt": False,
    }.items():
        (tmp_path / name).write_text("What happens? $frames")
        assert ("facts" in load_prompt(str(tmp_path / name)).schema["properties"]) == facts


def test_displacements_are_told_in_centimetres_degrees_and_gripper_events() -> None:
    actions = moves(
        (0.04, -0.01, 0, 0, 0, 0.1, 1),
        (0.04, -0.01, -0.02, 0, 0, 0.1, 1),
        (0, 0, -0.02, 0, 0, 0, -1),
        (0, 0, 0, 0, 0, 0, -1),
    )
    assert action_words(request(actions)) == (
        "In these 4 actions the tool moves 8.0 cm forward, 2.0 cm right, 4.0 cm down, and turns by "
        "yaw +11 degrees. "
        "The gripper is commanded open at first; it closes at frame 12."
    )
    still = moves((0, 0, 0, 0, 0, 0, -1))
    assert (
        action_words(request(still))
        == "In these 1 actions the tool moves hardly at all. The gripper is commanded closed throughout."
    )
    bridge = moves(
        *[(0, 0, 0, 0, 0, 0, grip) for grip in (0.0, 0.02, 0.99, 1.0)]
    )  # Open X-Embodiment: 1 open, 0 closed
    assert action_words(request(bridge)).endswith(
        "The gripper is commanded closed at first; it opens at frame 12."
    )


def test_other_robots_are_told_by_what_changes_most() -> None:
    joints = np.tile(np.linspace(0, 1, 50, dtype=np.float32)[:, None], (1, 26)) * np.linspace(
        -1, 0.5, 26, dtype=np.float32
    )
    names = tuple(f"joint{i}" for i in range(26))
    words = action_words(request(joints, deltas=False, action_names=names))
    assert words.startswith("The 50 actions are position targets in the robot's own units.")
    assert "Largest changes from first to last: joint0 -1, joint1 -0.94," in words
    head, *rows = action_table(request(joints, deltas=False, action_names=names)).splitlines()
    assert head == "Actions by frame: joint0 joint1 joint2 joint3 joint4 joint5 joint6 joint7"
    assert len(rows) == ROWS
    assert [row.split(":")[0] for row in (rows[0], rows[-1])] == ["10", "59"]
    assert len(rows[0].split()) == 1 + COLUMNS
    assert "changes from first to last: none." in action_words(request(joints * 0, deltas=False))


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(1, 30)), elements=st.floats(width=32)),
    st.booleans(),
)
def test_any_actions_can_be_told(actions: np.ndarray, deltas: bool) -> None:
    with np.errstate(all="ignore"):
        parts = render(
            load_prompt(),
            request(actions, deltas=deltas, proprioception=actions),
            state=True,
        )
    rows = re.findall(r"^(\d+):", texts(parts), re.MULTILINE)
    assert [int(row) for row in (rows[0], rows[-1])] == [10, 9 + len(actions)]
    assert len(rows) == min(ROWS, len(actions))


def test_an_instruction_is_shown_as_it_is() -> None:
    for instruction in ('say "$frames" and {0} for $5', "bring\nthe $$", "把胡萝卜放在盘子上"):
        parts = render(load_prompt(), request(moves((0,) * 7), instruction=instruction))
        assert f'The instruction: "{instruction}"' in texts(parts)
        assert sum(isinstance(part, Image.Image) for part in parts) == 2


def test_shipped_episodes_are_told_truly_and_the_same_each_time() -> None:
    dataset = open_dataset(REPOSITORY / "data/demo")
    for one in list(requests(dataset))[:12]:
        parts = render(load_prompt(), one, state=True)
        shown = texts(parts)
        assert f"a segment, frames {one.start} to {one.end - 1} of an episode" in shown
        for axis, (plus, minus) in enumerate((("forward", "backward"), ("left", "right"), ("up", "down"))):
            net = 100 * float(one.actions[:, axis].sum())
            told = re.search(rf"moves.*?(\d+\.\d) cm ({plus}|{minus})", action_words(one).split(". ")[0])
            if told is None:
                assert abs(net) < 0.1
            else:
                assert abs(float(told[1]) - abs(net)) < 0.06
                assert (told[2] == plus) == (net > 0)
        held = "The object is held" in shown
        assert held == bool(one.state.grasped)
        to_object = (one.state.source[:3] - one.state.tcp[:3]) * (-1, -1, 1)
        assert (
            f"{100 * abs(to_object[2]):.1f} cm {'up' if to_object[2] > 0 else 'down'}" in state_words(one)
            or abs(to_object[2]) < 1e-3
        )
        again = render(load_prompt(), one, state=True)
        assert [part if isinstance(part, str) else jpeg(part) for part in parts] == [
            part if isinstance(part, str) else jpeg(part) for part in again
        ]


def test_a_real_humanoid_is_told_by_its_joints(real_dataset: Path) -> None:
    dataset = open_dataset(real_dataset)
    one = next(requests(dataset, keyframes=2))
    parts = render(load_prompt(), one, state=True)
    shown = texts(parts)
    assert "position targets" in shown and "kRightElbow" in shown
    for frame in (one.start, one.end - 1):
        first = dataset.proprioception(one.episode)[frame, 0]
        assert f"Robot readings at frame {frame}: kLeftShoulderPitch {round(float(first), 3):g}, " in shown
    assert [part.size for part in parts if isinstance(part, Image.Image)] == [(640, 480)] * 2
    assert len(shown) < 8000


def test_pictures_come_one_by_one_after_their_numbers() -> None:
    keyframes = np.stack([np.full((480, 960, 3), shade, np.uint8) for shade in (20, 120, 220)])
    asked = request(moves(*[(0,) * 7] * 5), keyframes=keyframes, keyframe_indices=[10, 12, 14])
    parts = render(load_prompt(), asked)
    labels = [parts[i - 1] for i, part in enumerate(parts) if isinstance(part, Image.Image)]
    assert labels == [
        "Frame 10 (picture 1 of 3):",
        "Frame 12 (picture 2 of 3):",
        "Frame 14 (picture 3 of 3):",
    ]
    assert [part.size for part in parts if isinstance(part, Image.Image)] == [(640, 320)] * 3
    picture = next(part for part in parts if isinstance(part, Image.Image))
    sent = np.asarray(Image.open(io.BytesIO(jpeg(picture)))).astype(int)
    assert np.abs(sent - np.asarray(picture)).mean() < 1


def test_a_follow_up_adds_to_the_question() -> None:
    asked = request(moves((0,) * 7))
    first = render(load_prompt(), asked)
    follow_up = render(
        load_prompt(), asked, Reply(Refusal("not_json", "the answer is not JSON ($5)"), "Sure! $problem")
    )
    assert [part for part in follow_up[:-1] if isinstance(part, str)] == [
        part for part in first if isinstance(part, str)
    ]
    assert "could not be used: the answer is not JSON ($5)." in follow_up[-1]
    assert "<<<\nSure! $problem\n>>>" in follow_up[-1]


def test_what_is_not_known_of_the_numbers_is_not_said() -> None:
    actions = moves((0.3, 0.1, 0.2, 3.1, 0, 1.5, 1), (0.31, 0.1, 0.2, 3.1, 0, 1.5, -1))
    unknown = action_words(request(actions, deltas=None, gripper=None))
    assert (
        unknown
        == "The 2 actions are in the robot's own units. Largest changes from first to last: a6 -2, a0 +0.01."
    )
    assert "cm" not in action_words(request(actions, metric=False, gripper=None))
    assert "gripper" not in action_words(request(actions, gripper=None))
    assert action_words(request(actions, gripper=-1.0)).endswith(
        "commanded closed at first; it opens at frame 11."
    )
    assert "metres" not in action_table(request(actions, deltas=None))


def test_a_missing_number_is_told_as_missing() -> None:
    actions = moves((0.01, 0, 0, 0, 0, 0, 1), (np.nan, 0, 0, 0, 0, 0, 1), (0.01, 0, 0, 0, np.inf, 0, np.nan))
    assert action_words(request(actions)).startswith(
        "In these 3 actions the tool moves 2.0 cm forward. The gripper is commanded open"
    )
    table = action_table(request(actions, action_names=("one label",))).splitlines()
    assert table[0].endswith("x y z roll pitch yaw gripper") or table[0].endswith("a0 a1 a2 a3 a4 a5 a6")
    assert (table[2], table[3]) == ("11: missing 0 0 0 0 0 1", "12: 0.01 0 0 0 missing 0 missing")
    assert "s0 0.01" in state_words(request(actions, proprioception=actions, proprioception_names=("state",)))
