"""Turns a request into what a vision-language model is shown: text, and pictures labelled with their frame
numbers.

The words are in prompts/, in plain files with a version in their name: the question (rationale_v1.txt), the
follow-up to an answer that could not be used (repair_v1.txt) and the answer's shape (schema_v1.json). Their
hash is stored with each rationale: never edit a file that was used, add one.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from refinevla_kit.episodes.columns import filled
from refinevla_kit.episodes.contract import ACTION_NAMES
from refinevla_kit.errors import KitError
from refinevla_kit.teacher.schema import Array, Refusal, Reply, Request

FOLDER = Path(__file__).parent / "prompts"
LONGEST_SIDE = 640  # pixels; larger frames are scaled down
ROWS, COLUMNS = 16, 8  # of the table of actions
QUOTED = 2000  # UTF-8 bytes of an unusable answer that the follow-up quotes; bounds what a follow-up can cost
AXES = (("forward", "backward"), ("left", "right"), ("up", "down"))  # the robot's frame: x, y, z

Part = str | Image.Image


@dataclass(frozen=True)
class Prompt:
    """A versioned prompt: `question` and `repair` are templates, `schema` is the answer's shape in the form
    that Gemini's API takes, `hash` the first 16 hex digits of the SHA-256 of the three files.
    """

    name: str
    question: str
    repair: str
    schema: dict[str, Any]
    hash: str


def load_prompt(name: str = "rationale_v1") -> Prompt:
    """The prompt `name` of prompts/, or your own question in a .txt file (with version 1 of the rest). Raises
    `KitError` when there is none.
    """
    own = name.endswith(".txt")
    version = "v1" if own else name.rpartition("_")[2]
    files = [
        Path(name) if own else FOLDER / f"{name}.txt",
        FOLDER / f"repair_{version}.txt",
        FOLDER / f"schema_{version}.json",
    ]
    try:
        contents = [file.read_bytes() for file in files]
        question, repair, schema = (content.decode() for content in contents)
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("rationale_*.txt")))
        raise KitError(
            f"no prompt {name!r} ({error})",
            f"choose one of {known}, or give the path of a .txt file in UTF-8",
        ) from error
    if "$frames" not in question:
        raise KitError(
            f"the prompt {files[0]} has no $frames",
            "put $frames where the pictures belong ($instruction, $actions and $state likewise)",
        )
    return Prompt(
        Path(name).stem,
        question,
        repair,
        json.loads(schema),
        hashlib.sha256(b"\0".join(contents)).hexdigest()[:16],
    )


def render(
    prompt: Prompt,
    request: Request,
    previous: Reply | None = None,
    *,
    contact_sheet: bool = False,
    state: bool = False,
) -> list[Part]:
    """What to show the model, in order; the same request gives the same parts.

    Args:
        previous: an unusable reply to the same request; makes this the follow-up.
        contact_sheet: all keyframes as numbered panels of one picture, instead of one picture each.
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
    before, after = (
        Template(half).safe_substitute(words).strip() for half in prompt.question.split("$frames", 1)
    )
    parts = [before, *_frames(request, contact_sheet), after]
    if previous is not None and isinstance(previous.result, Refusal):
        quoted = previous.raw.encode("utf-8", "replace")[:QUOTED].decode("utf-8", "ignore")
        parts.append(
            Template(prompt.repair).safe_substitute(problem=previous.result.reason, previous=quoted).strip()
        )
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
        turned = [
            f"{name} {angle:+.0f}"
            for name, angle in zip(ACTION_NAMES[3:6], np.degrees(actions[:, 3:6].sum(0)))
            if abs(angle) >= 1
        ]
        turn = f", and turns by {', '.join(turned)} degrees" if turned else ""
        return f"In these {len(actions)} actions the tool moves {moved}{turn}.{_gripper(request)}"
    change = actions.sum(0) if request.deltas else actions[-1] - actions[0]
    largest = sorted(range(len(change)), key=lambda i: -abs(change[i]))[:6]
    said = [
        f"{name} {change[i]:+.3g}"
        for i, name in ((i, _names(request)[i]) for i in largest)
        if abs(change[i]) > 1e-4
    ]
    kind = {True: "displacements ", False: "position targets ", None: ""}[request.deltas]
    told = (
        f"The {len(actions)} actions are {kind}in the robot's own units. Largest changes from first to "
        f"last: {', '.join(said) or 'none'}."
    )
    return told + (_gripper(request) if request.deltas is not False else "")


def action_table(request: Request) -> str:
    """At most `ROWS` of the actions as numbers, the `COLUMNS` dimensions that vary most where there are
    more.
    """
    actions = np.asarray(request.actions, np.float64)
    spread = np.ptp(filled(actions, request.deltas), axis=0)
    rows = np.unique(np.linspace(0, len(actions) - 1, min(ROWS, len(actions))).round().astype(int))
    columns = sorted(sorted(range(actions.shape[1]), key=lambda i: -spread[i])[:COLUMNS])
    units = " (metres, radians and gripper, robot frame: x forward, y left, z up)" if request.tool else ""
    head = f"Actions by frame{units}: {' '.join(_names(request)[i] for i in columns)}"
    return "\n".join(
        [
            head,
            *(
                f"{request.start + row}: {' '.join(_number(actions[row, i]) for i in columns)}"
                for row in rows
            ),
        ]
    )


def state_words(request: Request) -> str:
    """The robot's readings at the first and the last frame; of simulated data also where things are at the
    first frame, relative to the tool.
    """
    lines, readings = [], request.proprioception
    if readings is not None and readings.size:
        names = _named(request.proprioception_names, "s", readings.shape[1])
        for frame, row in {request.start: readings[0], request.end - 1: readings[-1]}.items():
            lines.append(
                f"Robot readings at frame {frame}: "
                f"{', '.join(f'{name} {_number(value)}' for name, value in zip(names, row))}"
            )
    if (scene := request.state) is not None:
        tool, source, target = (
            np.asarray(pose[:3], np.float64) * (-1, -1, 1) for pose in (scene.tcp, scene.source, scene.target)
        )  # robot's frame
        reach, carry = (_directions(way) or "nothing" for way in (source - tool, target - source))
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
    changes = enumerate(pairwise(request.open.tolist()), request.start + 1)
    events = [
        f"it {'opens' if now else 'closes'} at frame {frame}"
        for frame, (before, now) in changes
        if before != now
    ]
    state = "open" if request.open[0] else "closed"
    return (
        f" The gripper is commanded {state} {'at first; ' + ', '.join(events) if events else 'throughout'}."
    )


def _directions(metres: Array) -> str:
    """A displacement (3,) in the robot's frame as words; "" below a millimetre."""
    return ", ".join(
        f"{100 * abs(value):.1f} cm {words[int(value < 0)]}"
        for value, words in zip(metres, AXES)
        if abs(value) >= 1e-3
    )


def _names(request: Request) -> tuple[str, ...]:
    return _named(
        request.action_names or (ACTION_NAMES if request.tool else ()), "a", request.actions.shape[1]
    )


def _named(names: tuple[str, ...], letter: str, count: int) -> tuple[str, ...]:
    """`names`, or made-up ones where there are not as many as numbers."""
    return names if len(names) == count else tuple(f"{letter}{i}" for i in range(count))


def _number(value: float) -> str:
    return (
        f"{round(float(value), 3) + 0.0:g}" if math.isfinite(value) else "missing"
    )  # + 0.0: no minus before a zero


def _frames(request: Request, contact_sheet: bool) -> list[Part]:
    images = [Image.fromarray(np.asarray(image, np.uint8)) for image in request.keyframes]
    for image in images:
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    numbers = list(request.keyframe_indices)
    if not contact_sheet:
        return [
            part
            for i, image in enumerate(images)
            for part in (f"Frame {numbers[i]} (picture {i + 1} of {len(images)}):", image)
        ]
    names = ", ".join(f"panel {i + 1} is frame {number}" for i, number in enumerate(numbers))
    return [f"One picture with numbered panels in reading order: {names}.", _sheet(images, numbers)]


def _sheet(images: list[Image.Image], numbers: list[int]) -> Image.Image:
    """Panels in reading order, each with its number and its frame's in a strip above it."""
    across, strip, gap = math.ceil(math.sqrt(len(images))), 16, 4
    width, height = images[0].width + gap, images[0].height + strip + gap
    sheet = Image.new("RGB", (across * width, math.ceil(len(images) / across) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        left, top = i % across * width, i // across * height
        draw.text((left + 2, top + 1), f"{i + 1}: frame {numbers[i]}", fill="black")
        sheet.paste(image, (left, top + strip))
    return sheet
