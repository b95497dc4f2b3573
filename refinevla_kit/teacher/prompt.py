"""Turns a request into what a vision-language model is shown: text, and pictures labelled with their frame
numbers.

The words are in prompts/, in plain files with a version in their name. rationale_v2.txt is the question,
repair_v2.txt the follow-up to an answer that could not be used, schema_v2.json the answer's shape. Their
hash is stored with each rationale: never edit a file that was used, add one. Version 1 asks for no facts.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from refinevla_kit.episodes.columns import filled
from refinevla_kit.episodes.contract import ACTION_NAMES
from refinevla_kit.errors import KitError, as_kit_error
from refinevla_kit.teacher.requests import keyframe_indices
from refinevla_kit.teacher.schema import Array, Refusal, Reply, Request

FOLDER = Path(__file__).parent / "prompts"
LONGEST_SIDE = 640  # pixels; larger frames are scaled down
ROWS, COLUMNS = 16, 8  # of the table of actions
QUOTED = 2000  # UTF-8 bytes of an unusable answer that the follow-up quotes; bounds what a follow-up can cost
AXES = (("forward", "backward"), ("left", "right"), ("up", "down"))  # the robot's frame: x, y, z

Part = str | Image.Image


@dataclass(frozen=True)
class Prompt:
    """A versioned prompt.

    Attributes:
        name: of the question's file.
        question, repair: templates.
        schema: the answer's shape in the form that Gemini's API takes.
        hash: the first 16 hex digits of the SHA-256 of the three files.
    """

    name: str
    question: str
    repair: str
    schema: dict[str, Any]
    hash: str


def load_prompt(name: str = "rationale_v2") -> Prompt:
    """The prompt `name` of prompts/, or your own question in a .txt file.

    The follow-up and the answer's shape are of the version that the name ends with. A file of yours whose
    name says none has those of version 1. Raises `KitError` when there is none.
    """
    question = Path(name) if name.endswith(".txt") else FOLDER / f"{name}.txt"
    version = question.stem.rpartition("_")[2]
    if question.parent != FOLDER and not (FOLDER / f"schema_{version}.json").is_file():
        version = "v1"
    files = (question, FOLDER / f"repair_{version}.txt", FOLDER / f"schema_{version}.json")
    known = ", ".join(sorted(file.stem for file in FOLDER.glob("rationale_*.txt")))
    remedy = f"choose one of {known}, or give the path of a .txt file in UTF-8"
    with as_kit_error(f"no prompt {name!r}", remedy, (OSError, ValueError)):
        contents = [file.read_bytes() for file in files]
        asked, repair, schema = (content.decode() for content in contents)
    if "$frames" not in asked:
        remedy = "put $frames where the pictures belong ($instruction, $actions and $state likewise)"
        raise KitError(f"the prompt {question} has no $frames", remedy)
    digest = hashlib.sha256(b"\0".join(contents)).hexdigest()[:16]
    return Prompt(question.stem, asked, repair, json.loads(schema), digest)


def render(
    prompt: Prompt, request: Request, previous: Reply | None = None, state: bool = False
) -> list[Part]:
    """What to show the model, in order; the same request gives the same parts.

    Args:
        previous: an unusable reply to the same request; makes this the follow-up.
        state: tell it the robot's own readings and, of simulated data, where the objects are.
    """
    words = {
        "instruction": request.instruction,
        "granularity": request.granularity,
        "start": request.start,
        "last": request.end - 1,
        "fps": f"{request.fps:g}",
        "actions": f"{action_words(request)}\n{action_table(request)}",
        "state": state_words(request) if state else "",
    }
    before, after = prompt.question.split("$frames", 1)
    parts: list[Part] = [Template(before).safe_substitute(words).strip()]
    for number, (frame, image) in enumerate(zip(request.keyframe_indices, request.keyframes, strict=True), 1):
        picture = Image.fromarray(np.asarray(image, np.uint8))
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        parts += [f"Frame {frame} (picture {number} of {len(request.keyframes)}):", picture]
    parts.append(Template(after).safe_substitute(words).strip())
    if previous is not None and isinstance(previous.result, Refusal):
        quoted = previous.raw.encode("utf-8", "replace")[:QUOTED].decode("utf-8", "ignore")
        repair = Template(prompt.repair).safe_substitute(problem=previous.result.reason, previous=quoted)
        parts.append(repair.strip())
    return parts


def jpeg(image: Image.Image) -> bytes:
    """The picture as JPEG, quality 95 without chroma subsampling: small objects keep their colours, at about
    a fifth of PNG's size.
    """
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def action_words(request: Request) -> str:
    """The actions in words: net displacement in the robot's frame, turn and gripper; of other robots, the
    dimensions that change most.

    What is not known of the numbers (see `Request`) is not said.
    """
    actions = filled(request.actions, request.deltas)
    if request.tool:
        moved = _directions(actions[:, :3].sum(0)) or "hardly at all"
        angles = zip(ACTION_NAMES[3:6], np.degrees(actions[:, 3:6].sum(0)))
        turned = [f"{name} {angle:+.0f}" for name, angle in angles if abs(angle) >= 1]
        turn = f", and turns by {', '.join(turned)} degrees" if turned else ""
        return f"In these {len(actions)} actions the tool moves {moved}{turn}.{_gripper(request)}"
    change = actions.sum(0) if request.deltas else actions[-1] - actions[0]
    names = _names(request)
    largest = sorted(range(len(change)), key=lambda i: -abs(change[i]))[:6]
    changes = ", ".join(f"{names[i]} {change[i]:+.3g}" for i in largest if abs(change[i]) > 1e-4) or "none"
    kind = {True: "displacements ", False: "position targets ", None: ""}[request.deltas]
    words = f"The {len(actions)} actions are {kind}in the robot's own units."
    words += f" Largest changes from first to last: {changes}."
    return words + (_gripper(request) if request.deltas is not False else "")


def action_table(request: Request) -> str:
    """At most `ROWS` of the actions as numbers, the `COLUMNS` dimensions that vary most where there are
    more.
    """
    actions = np.asarray(request.actions, np.float64)
    spread = np.ptp(filled(actions, request.deltas), axis=0)
    columns = sorted(sorted(range(actions.shape[1]), key=lambda i: -spread[i])[:COLUMNS])
    units = " (metres, radians and gripper, robot frame: x forward, y left, z up)" if request.tool else ""
    names = _names(request)
    lines = [f"Actions by frame{units}: {' '.join(names[i] for i in columns)}"]
    for row in keyframe_indices(0, len(actions), ROWS):
        lines.append(f"{request.start + row}: {' '.join(_number(actions[row, i]) for i in columns)}")
    return "\n".join(lines)


def state_words(request: Request) -> str:
    """The robot's readings at the first and the last frame; of simulated data also where things are at the
    first frame, relative to the tool.
    """
    lines = []
    readings, scene = request.proprioception, request.state
    if readings is not None and readings.size:
        names = _named(request.proprioception_names, "s", readings.shape[1])
        for frame, row in {request.start: readings[0], request.end - 1: readings[-1]}.items():
            values = ", ".join(f"{name} {_number(value)}" for name, value in zip(names, row))
            lines.append(f"Robot readings at frame {frame}: {values}")
    if scene is not None:
        places = [np.asarray(pose[:3], np.float64) for pose in (scene.tcp, scene.source, scene.target)]
        tool, source, target = (place * (-1, -1, 1) for place in places)  # robot's frame
        reach = _directions(source - tool) or "nothing"
        carry = _directions(target - source) or "nothing"
        lines.append(
            f"From the tool to the object to move: {reach}; from there to its goal: {carry}. "
            f"The object is {'held' if scene.grasped else 'not held'}; the gripper is "
            f"{100 * float(scene.opening):.0f} % open."
        )
    return "\n".join(lines)


def _gripper(request: Request) -> str:
    """What the gripper is commanded to do; "" where the sense of the command is not known."""
    if request.open is None:
        return ""
    state = "open" if request.open[0] else "closed"
    events = []
    for change in np.flatnonzero(np.diff(request.open.astype(int))) + 1:
        events.append(f"it {'opens' if request.open[change] else 'closes'} at frame {request.start + change}")
    return (
        f" The gripper is commanded {state} {'at first; ' + ', '.join(events) if events else 'throughout'}."
    )


def _directions(metres: Array) -> str:
    """A displacement (3,) in the robot's frame as words; "" below a millimetre."""
    along = [(abs(value), words[int(value < 0)]) for value, words in zip(metres, AXES)]
    return ", ".join(f"{100 * length:.1f} cm {word}" for length, word in along if length >= 1e-3)


def _names(request: Request) -> tuple[str, ...]:
    names = request.action_names or (ACTION_NAMES if request.tool else ())
    return _named(names, "a", request.actions.shape[1])


def _named(names: tuple[str, ...], letter: str, count: int) -> tuple[str, ...]:
    """`names`, or made-up ones where there are not as many as numbers."""
    return names if len(names) == count else tuple(f"{letter}{i}" for i in range(count))


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "missing"
    return f"{round(float(value), 3) + 0.0:g}"  # + 0.0: no minus before a zero
