"""Makes true rationales false in known ways: facts by changing one field, the oracle's sentences by changing
their words, and a second set of sentences, in wordings of its own, by changing what it is written from.
Geometry and wording are of this file alone; nothing of the auditor is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from refinevla_kit.simulator.contract import ORDERS, SceneState
from refinevla_kit.teacher.schema import PARTS, Facts, Rationale, Request

PHASES = ORDERS["place"]  # of pick and place
HERE = Path(__file__).parent
OPPOSITE = {
    "left": "right",
    "up": "down",
    "forward": "backward",
    "top": "bottom",
    "above": "below",
    "higher": "lower",
    "open": "closed",
}
OPPOSITE |= {other: one for one, other in OPPOSITE.items()}
ABSENT = (  # what of the COCO data set's categories may lie on a table
    "bottle",
    "wine glass",
    "cup",
    "fork",
    "knife",
    "bowl",
    "banana",
    "apple",
    "sandwich",
    "orange",
    "broccoli",
    "hot dog",
    "pizza",
    "donut",
    "cake",
    "laptop",
    "mouse",
    "remote",
    "keyboard",
    "cell phone",
    "book",
    "clock",
    "vase",
    "scissors",
    "teddy bear",
    "hair drier",
    "toothbrush",
)
DO = {
    "reach": "reach over the {s}",
    "descend": "descend to the {s}",
    "grasp": "grasp the {s}",
    "lift": "lift the {s}",
    "carry": "carry the {s} to the {t}",
    "lower": "lower the {s} onto the {t}",
    "release": "release the {s}",
    "retreat": "retreat from the {t}",
}


@dataclass(frozen=True)
class Frame:
    """One request with the truth about it: names of source and target, and the sub-tasks of all its
    frames.
    """

    request: Request
    source: str
    target: str
    phases: tuple[int, ...]


def swap(text: str, words: str) -> str:
    """`text` with each of these words ("left|right") replaced by its opposite."""
    return re.sub(rf"\b(?:{words})\b", lambda match: OPPOSITE[match[0]], text)


def oracle_lies(told: Rationale, frame: Frame, rng: np.random.Generator) -> Iterator[tuple[str, Rationale]]:
    """(kind, the rationale made false in that way), for each way that its sentences allow."""
    state, source, target = frame.request.state, frame.source, frame.target
    see, say, where, plan = (getattr(told, part) for part in PARTS)

    def lie(part: int, text: str) -> Rationale:
        return replace(told, **{PARTS[part]: text[:1].upper() + text[1:]})

    if re.search("left of it|right of it", where):
        yield "left/right", lie(2, swap(where, "left|right"))
    if "in view" in where:
        yield "higher/lower in view", lie(2, swap(where, "higher|lower"))
    for clause in re.findall(
        r"[^;]*\b\d+ cm (?:above|below|straight)[^;]*|[^;]*straight above the [^;]*cm[^;]*", where
    )[:1]:
        if int(re.search(r"(?<!about )\b(\d+) cm", clause)[1]) >= 2:
            yield "above/below", lie(2, where.replace(clause, swap(clause, "above|below")))
    if numbers := list(re.finditer(r"\d+(?= cm)", where)):
        number = numbers[int(rng.integers(len(numbers)))]
        wrong = 3 * int(number[0]) + 6
        yield "distance", lie(2, where[: number.start()] + str(wrong) + where[number.end() :])
    name = rf"(?:gripper(?: with the {source})?|{source}|{target})"
    placed = list(
        re.finditer(rf"\b{name}(?: is| lies)? at the ((?:top|bottom|left|right)(?: \w+)?)", see, re.I)
    )
    if placed:
        zone = placed[int(rng.integers(len(placed)))]
        yield (
            "zone",
            lie(0, see[: zone.start(1)] + swap(zone[1], "left|right|top|bottom") + see[zone.end(1) :]),
        )
    part = int(rng.choice([0, 2, 3]))
    which = source if re.search(rf"\b{source}\b", getattr(told, PARTS[part]), re.I) else target
    absent = str(rng.choice(ABSENT))
    yield "absent", lie(part, re.sub(rf"\b{which}\b", absent, getattr(told, PARTS[part]), flags=re.I))
    if source in plan and PHASES[int(state.phase)] != "retreat":
        mark = plan.replace(source, "#").replace(target, source).replace("#", target)
        yield "names", lie(3, mark)
    if state.grasped:
        yield (
            "held",
            lie(
                1,
                re.sub(
                    rf"the gripper holds the {source}|the {source} is held",
                    f"the {source} is not held",
                    say,
                    flags=re.I,
                ),
            ),
        )
    else:
        yield "held", lie(1, re.sub(r"is not (held|gripped)", r"is \1", say))
    if grip := re.search(r"\b(half open|open|closed) gripper", see, re.I):
        other = "closed" if state.opening > 0.7 else "open"
        yield "grip", lie(0, see[: grip.start()] + f"{other} gripper" + see[grip.end() :])
    yield (
        "done",
        lie(
            1,
            re.sub(r"task is (?:done|finished)", "task is not done", say)
            if state.placed
            else re.sub(r"task is (?:not done|still open)", "task is finished", say),
        ),
    )
    wrong = int(rng.choice([phase for phase in range(len(PHASES)) if phase not in frame.phases]))
    yield "sub-task", lie(1, re.sub(r"((?:time to|now) )\w+", rf"\g<1>{PHASES[wrong]}", say, flags=re.I))
    first = re.match(
        r"(first |now )?(.+?)(, moving \w+)?(; then |, after that )(.+)", plan[0].lower() + plan[1:]
    )
    yield (
        "sub-task of the plan",
        lie(
            3,
            (first[1] or "")
            + DO[PHASES[wrong]].format(s=source, t=target)
            + (first[3] or "")
            + first[4]
            + first[5],
        ),
    )
    steps = first[5].rstrip(".").split(" and ")
    if len(steps) == 2 and "task" not in steps[1] and "nothing" not in steps[1]:
        yield "order", lie(3, plan.replace(" and ".join(steps), " and ".join(reversed(steps))))
    if first[3]:
        yield "motion", lie(3, plan.replace(first[3], swap(first[3], "left|right|up|down|forward|backward")))


@dataclass(frozen=True)
class Told:
    """What the second set of sentences is written from: words where a thing is clear, None where it is
    not.
    """

    source: str
    target: str
    source_zone: str | None
    target_zone: str | None
    side: str | None
    up: int
    goal: int
    raised: int
    grip: str
    held: bool
    done: bool
    steps: tuple[str, ...]
    motion: str | None


def told(frame: Frame) -> Told:
    """Measured from state, masks and actions."""
    state, masks = frame.request.state, frame.request.masks

    def middle(name: str) -> np.ndarray | None:
        return (
            (np.argwhere(masks[name]) + 0.5).mean(axis=0) / masks[name].shape
            if masks[name].sum() > 15
            else None
        )

    def zone(at: np.ndarray | None) -> str | None:
        if at is None:
            return None
        clear = {"top": at[0] < 0.38, "bottom": at[0] > 0.62, "left": at[1] < 0.38, "right": at[1] > 0.62}
        return " ".join(word for word, holds in clear.items() if holds) or None

    one, other = middle(frame.source), middle(frame.target)
    across = 0.0 if one is None or other is None else one[1] - other[1]
    away = 100 * (state.source[:3].astype(float) - state.target[:3])
    move = frame.request.actions[0, :3]
    axis = int(np.abs(move).argmax())
    motion = (
        (("forward", "backward"), ("left", "right"), ("up", "down"))[axis][int(move[axis] < 0)]
        if abs(move[axis]) > 0.02
        else None
    )
    return Told(
        frame.source,
        frame.target,
        zone(one),
        zone(other),
        None if abs(across) < 0.08 else "left" if across < 0 else "right",
        round(100 * float(state.tcp[2] - state.source[2])),
        round(float(np.hypot(*away[:2]))),
        round(away[2]),
        "closed" if state.grasped or state.opening < 0.3 else "open" if state.opening > 0.8 else "half open",
        bool(state.grasped),
        bool(state.placed),
        PHASES[int(state.phase) :],
        motion,
    )


def facts_of(words: Told) -> Facts:
    """The same as `Facts`, as somebody who measures by eye would give them."""
    return Facts(
        source=words.source,
        target=words.target,
        source_zone=words.source_zone,
        target_zone=words.target_zone,
        gripper=words.grip,
        held=words.source if words.held else "nothing",
        reach_height_cm=words.up,
        goal_cm=words.goal,
        goal_height_cm=words.raised,
        goal_side=words.side,
        sub_task=words.steps[0],
        next_sub_task=(*words.steps, "end")[1],
        motion=words.motion,
        done=words.done,
    )


def facts_lies(facts: Facts, frame: Frame, rng: np.random.Generator) -> Iterator[tuple[str, Facts]]:
    """(kind, the facts with one field made false in that way), for each field that says something."""
    for name, value in vars(facts).items():
        kind = name.split("_")[-1]
        if value is None:
            continue
        if kind == "side":
            kind = "left/right" if value in ("left", "right") else "higher/lower in view"
            yield kind, replace(facts, **{name: OPPOSITE[value]})
        elif kind == "zone" and value != "centre":
            yield "zone", replace(facts, **{name: swap(value, "left|right|top|bottom")})
        elif name.endswith("height_cm"):
            if abs(value) >= 2:
                yield "above/below", replace(facts, **{name: -value})
        elif kind == "cm":
            yield "distance", replace(facts, **{name: 3 * value + 6})
        elif name in ("source", "target"):
            yield "absent", replace(facts, **{name: str(rng.choice(ABSENT))})
    yield "names", replace(facts, source=facts.target, target=facts.source)
    yield "held", replace(facts, held=facts.source if facts.held == "nothing" else "nothing")
    yield "held", replace(facts, held=facts.target)
    if facts.gripper:
        shut = frame.request.state.opening > 0.6 and facts.held == "nothing"
        yield "grip", replace(facts, gripper="closed" if shut else "open")
    yield "done", replace(facts, done=not facts.done)
    wrong = int(rng.choice([phase for phase in range(len(PHASES)) if phase not in frame.phases]))
    yield "sub-task", replace(facts, sub_task=PHASES[wrong], next_sub_task=(*PHASES, "end")[wrong + 1])
    others = [phase for phase in PHASES if phase not in (facts.sub_task, facts.next_sub_task)]
    yield "order", replace(facts, next_sub_task=str(rng.choice(others)))
    if facts.motion:
        yield "motion", replace(facts, motion=OPPOSITE[facts.motion])


HOW = {
    "reach": ("move the arm above the {s}", "get the gripper over the {s}"),
    "descend": ("bring the gripper down to the {s}", "go down onto the {s}"),
    "grasp": ("close the fingers around the {s}", "grab the {s}"),
    "lift": ("pick the {s} up", "raise the {s} from the surface"),
    "carry": ("transport the {s} over to the {t}", "move the {s} to the {t}"),
    "lower": ("put the {s} down on the {t}", "bring the {s} down onto the {t}"),
    "release": ("open the gripper", "let the {s} go"),
    "retreat": ("pull the arm away", "move away from the {t}"),
}


def write(facts: Told, seed: int) -> Rationale:
    """One of several wordings; the same seed words the same way."""
    rng = np.random.default_rng(seed)
    s, t = facts.source, facts.target

    def pick(*choices: str) -> str:
        return choices[int(rng.integers(len(choices)))]

    def place(name: str, zone: str | None) -> str:
        form = pick(
            "The {n} can be found in the {z} part of the picture.",
            "I notice a {n} in the {z} area.",
            "There is a {n} at the {z} of the image.",
        )
        return form.format(n=name, z=zone) if zone else f"I notice a {name}."

    a = "an" if facts.grip == "open" else "a"
    grip = pick(
        f"The gripper is {facts.grip}.",
        f"The fingers of the gripper are {facts.grip}.",
        f"The robot has {a} {facts.grip} gripper.",
    )
    observation = " ".join([place(s, facts.source_zone), place(t, facts.target_zone), grip])
    held = (
        pick(f"The robot is holding the {s}", f"The {s} has been gripped", f"The {s} is in the gripper")
        if facts.held
        else pick(
            f"The robot is not holding the {s}", f"The {s} has not been gripped yet", "The gripper is empty"
        )
    )
    done = (
        pick("the goal has been achieved", "the task is completed")
        if facts.done
        else pick("the task has not been completed", "the goal is not achieved yet")
    )
    situation = pick("{h}, and {d}.", "{h}. So far {d}.").format(h=held, d=done)
    spatial = [
        pick(
            f"The {s} is {facts.goal} cm away from the {t}, measured along the table.",
            f"Horizontally, the {s} and the {t} are {facts.goal} cm apart.",
        )
    ]
    if facts.side:
        spatial.append(
            pick(
                f"The {s} is on the {facts.side} side of the {t}.",
                f"Seen from the camera, the {s} is {facts.side} of the {t}.",
            )
        )
    if facts.held and abs(facts.raised) > 3:
        spatial.append(
            f"The {s} is {abs(facts.raised)} cm {'higher' if facts.raised > 0 else 'lower'} than the {t}."
        )
    if not facts.held and abs(facts.up) > 3:
        spatial.append(
            pick(
                f"The gripper hovers {abs(facts.up)} cm {'above' if facts.up > 0 else 'below'} the {s}.",
                f"The gripper is {'above' if facts.up > 0 else 'below'} the {s} by {abs(facts.up)} cm.",
            )
        )
    steps = [HOW[step][int(rng.integers(2))].format(s=s, t=t) for step in facts.steps[:3]]
    moving = f", moving {facts.motion}" if facts.motion else ""
    plan = pick("Step one: {0}{m}. {r}", "{0}{m}. {r}").format(
        steps[0], m=moving, r=" ".join(f"Then {step}." for step in steps[1:])
    )
    return Rationale(observation, situation, " ".join(spatial), plan[:1].upper() + plan[1:])


def told_lies(facts: Told, frame: Frame, rng: np.random.Generator) -> Iterator[tuple[str, Told]]:
    """(kind, the facts made false in that way)."""
    if facts.side:
        yield "left/right", replace(facts, side=OPPOSITE[facts.side])
    if facts.source_zone:
        yield "zone", replace(facts, source_zone=swap(facts.source_zone, "left|right|top|bottom"))
    if not facts.held and abs(facts.up) > 3:
        yield "above/below", replace(facts, up=-facts.up)
    yield "distance", replace(facts, goal=3 * facts.goal + 9)
    yield "absent", replace(facts, target=str(rng.choice(ABSENT)))
    if facts.steps[0] not in ("retreat", "release"):
        yield "names", replace(facts, source=facts.target, target=facts.source)
    yield "held", replace(facts, held=not facts.held)
    yield "grip", replace(facts, grip="closed" if facts.grip == "open" else "open")
    yield "done", replace(facts, done=not facts.done)
    wrong = int(rng.choice([phase for phase in range(len(PHASES)) if phase not in frame.phases]))
    yield "sub-task", replace(facts, steps=PHASES[wrong:])
    if len(facts.steps) > 2:
        yield (
            "order",
            replace(facts, steps=(facts.steps[0], facts.steps[2], facts.steps[1], *facts.steps[3:])),
        )
    if facts.motion:
        yield "motion", replace(facts, motion=OPPOSITE[facts.motion])


@dataclass(frozen=True)
class FreeText:
    """A rationale written by hand about a recorded frame. `edits`: (kind, old words, new words), each makes
    it false.
    """

    round: int
    frame: Frame
    rationale: Rationale
    edits: tuple[tuple[str, str, str], ...]

    def edited(self, old: str, new: str) -> Rationale:
        """The rationale with these words replaced; they are in it once."""
        assert sum(getattr(self.rationale, part).count(old) for part in PARTS) == 1, old
        return Rationale(*(getattr(self.rationale, part).replace(old, new) for part in PARTS))


def free_texts() -> list[FreeText]:
    """free_texts.txt, with its frames from scenes.npz (cut from recorded simulator episodes: state, masks as
    labels, actions).
    """
    with np.load(HERE / "scenes.npz") as file:
        data = {name: file[name] for name in file.files}
    row = {tuple(key): index for index, key in enumerate(data["key"].tolist())}
    texts = []
    for block in (HERE / "free_texts.txt").read_text(encoding="utf-8").split("\n@ ")[1:]:
        head, *lines = block.strip().splitlines()
        group, episode, start = map(int, head.split())
        i = row[episode, start]
        names, length = data["names"][i].tolist(), int(data["length"][i])
        state = SceneState(
            *(
                data[name][i]
                for name in ("source", "target", "tcp", "tcp_target", "opening", "grasped", "placed", "phase")
            )
        )
        masks = {name: data["labels"][i] == label for label, name in enumerate(names, 1)}
        request = Request(
            "recorded",
            episode,
            start,
            start + length,
            str(data["instruction"][i]),
            np.zeros((0, 1, 1, 3), np.uint8),
            (),
            data["actions"][i][:length],
            state,
            masks,
        )
        edits = (re.fullmatch(r"- (.+?) \| (.+?) => (.+)", line).groups() for line in lines[4:])
        frame = Frame(request, names[0], names[1], tuple(data["phases"][i][:length].tolist()))
        texts.append(FreeText(group, frame, Rationale(*(line[3:] for line in lines[:4])), tuple(edits)))
    return texts
