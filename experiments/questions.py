"""Questions about a frame, answered from what the simulator knows: how a base learns to read and to write.

A question stands where the instruction stands, its answer where the rationale stands, and no action goes with
it. Facts are those of the oracle teacher (`audit.Scene.facts`). Places are places in the picture. What is
borderline can be learned from as well; a question says whether it is clear (`Question.clear`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np

from refinevla_kit.episodes import open_dataset
from refinevla_kit.policies.contract import Array
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.simulator.contract import MASK_NAMES
from refinevla_kit.teacher.audit import Scene, same_length, zone
from refinevla_kit.teacher.requests import episode_spans, without_pictures
from refinevla_kit.teacher.schema import Facts
from refinevla_kit.training.examples import Examples
from refinevla_kit.vlas.compact_parts import LOCATIONS

WORDINGS: dict[str, tuple[str, ...]] = {
    "seen": ("what is in the picture?", "name the things from left to right", "what lies here?"),
    "where": ("where is the {a}?", "where in the picture is the {a}?", "find the {a}"),
    "point": ("point to the {a}",),
    "places": ("point to all things", "where is everything?"),
    "side": ("is the {a} left or right of the {b}?", "on which side of the {b} is the {a}?"),
    "height": ("is the {a} higher or lower than the {b}?", "how is the {a} to the {b}, higher or lower?"),
    "nearest": ("what is nearest to the gripper?", "which thing is closest to the gripper?"),
    "distance": ("how far is the gripper from the {a}?", "how many cm to the {a}?"),
    "held": ("what does the gripper hold?", "what is held?", "what is in the gripper?"),
    "gripper": ("is the gripper open or closed?", "how are the fingers?"),
    "next": ("{task}: what is to be done now?", "{task}: which sub-task is it?"),
    "moves": ("{task}: what should move?", "{task}: what is to be picked?"),
    "goes": ("{task}: where should it go?", "{task}: what is the target?"),
    "done": ("{task}: is it done?", "{task}: is anything left to do?"),
}
"""Kind -> wordings; {a} and {b} are things of the scene, {task} is the instruction."""
WEIGHTS = {
    "places": 4.0,
    **dict.fromkeys(("where", "point", "side", "height"), 3.0),
    **dict.fromkeys(("seen", "nearest", "distance", "held", "next"), 1.5),
    **dict.fromkeys(("gripper", "moves", "goes", "done"), 0.5),
}
"""How much likelier one kind is asked than another: grammar is learned from few, places take many."""
STEPS = 32  # places an axis that an answer tells apart: 5 pixels of a picture 160 wide
AT_ONCE = 32  # questions that are answered together
APART = (
    0.06  # shares of the picture between two things, from which one of them is left of, or above, the other
)
NEARER = 0.7  # of the distance to the next one, for the nearest thing to be called so
POINTED = 0.06  # shares of the picture that a place may be off


@dataclass(frozen=True)
class Question:
    """One question about one frame.

    Attributes:
        row: of the frame, in the order of the dataset's frames.
        kind: a key of `WORDINGS`.
        text, answer: what is asked, and what is right.
        clear: a careful reader could answer nothing else: a place is `POINTED` from where another word
            begins, the things of a list lie `APART`, a sub-task is that of the frames before and after too.
    """

    row: int
    kind: str
    text: str
    answer: str
    clear: bool = True


def ask(dataset: str | Path, share: float, seed: int, kinds: Sequence[str] = ()) -> list[Question]:
    """Draw a question about each of a share of the frames, of the kinds that it allows, by `WEIGHTS`.

    Args:
        dataset: with the simulator's sidecar.
        share: of the frames, 0 to 1, or more than 1 for several questions a frame.
        kinds: that are asked; none for all.
    """
    source, rng = open_dataset(dataset), np.random.default_rng(seed)
    questions, row = [], 0
    for info in source.episodes:
        spans = episode_spans(source, info.index, "step")
        phases = [int(state.phase) for state in source.states(info.index) or []]
        for frame, request in enumerate(without_pictures(source, info.index, spans)):
            scene = Scene(request)
            known = askable(scene) if request.state is not None else {}
            steady = len(set(phases[max(0, frame - 1) : frame + 2])) == 1
            count = int(share) + int(rng.random() < share % 1)
            for kind in _drawn(sorted(known.keys() & (kinds or known)), count, rng):
                slots, answer = known[kind][int(rng.integers(len(known[kind])))]
                wordings = WORDINGS[kind]
                text = wordings[int(rng.integers(len(wordings)))].format(task=request.instruction, **slots)
                clear = steady if kind == "next" else _clear(kind, slots, scene)
                questions.append(Question(row, kind, text, answer, clear))
            row += 1
    return questions


def _clear(kind: str, slots: dict[str, str], scene: Scene) -> bool:
    things = _things(scene)
    if kind == "seen":
        return all(right - left > APART for left, right in pairwise(sorted(at[0] for at in things.values())))
    if kind != "where":
        return True  # other kinds are asked where they are clear alone, or a place may be off
    across, down = _with_gripper(scene, things)[slots["a"]]
    shifts = product((-POINTED, 0.0, POINTED), repeat=2)
    return len({zone((across + right, down + lower)) for right, lower in shifts}) == 1


def _drawn(kinds: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    if not kinds:
        return []
    weights = np.array([WEIGHTS[kind] for kind in kinds])
    drawn = rng.choice(kinds, min(count, len(kinds)), replace=False, p=weights / weights.sum())
    return [str(kind) for kind in drawn]


def in_groups(questions: Sequence[Question], most: int, seed: int) -> list[Question]:
    """Neighbouring questions about one frame made into one of up to `most`, answered in their order: the
    picture is what a step costs most.
    """
    rng, groups = np.random.default_rng(seed), list[list[Question]]()
    room = 0
    for question in questions:
        if not room or groups[-1][0].row != question.row:
            groups.append([])
            room = int(rng.integers(1, most + 1))
        groups[-1].append(question)
        room -= 1
    return [
        group[0]
        if len(group) == 1
        else Question(
            group[0].row,
            "several",
            " ".join(one.text for one in group),
            " ".join(one.answer for one in group),
        )
        for group in groups
    ]


def askable(scene: Scene) -> dict[str, list[tuple[dict[str, str], str]]]:
    """Kind -> (words of the question, answer) of everything that can be asked about a frame."""
    facts, things = scene.facts(), _things(scene)
    placed = _with_gripper(scene, things)
    found: dict[str, list[tuple[dict[str, str], str]]] = {
        "seen": [({}, f"{listed_words(sorted(things, key=lambda name: things[name][0]))}.")],
        "where": [({"a": name}, f"at the {zone(at)}.") for name, at in placed.items()],
        "point": [({"a": name}, location(*at)) for name, at in placed.items()],
        "places": [({}, "; ".join(f"{name} {location(*placed[name])}" for name in sorted(placed)))],
        "side": list(_compared(things, 0, ("left", "right"))),
        "height": list(_compared(things, 1, ("higher", "lower"))),
        "nearest": list(_nearest(scene.centres.get("gripper"), things)),
        "held": [({}, f"{facts.held}.")] if facts.held else [],
        "gripper": [({}, f"{facts.gripper}.")] if facts.gripper else [],
        **_of_the_task(facts),
    }
    return {kind: asked for kind, asked in found.items() if asked}


def _things(scene: Scene) -> dict[str, tuple[float, float]]:
    return {name: at for name, at in scene.centres.items() if at and name not in MASK_NAMES}


def _with_gripper(scene: Scene, things: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    hand = scene.centres.get("gripper")
    return things | ({"gripper": hand} if hand else {})


def _of_the_task(facts: Facts) -> dict[str, list[tuple[dict[str, str], str]]]:
    reach = facts.reach_cm
    return {
        "distance": [({"a": str(facts.source)}, f"about {reach} cm.")] if reach is not None else [],
        "next": [({}, f"{facts.sub_task}.")] if facts.sub_task else [],
        "moves": [({}, f"the {facts.source}.")] if facts.source else [],
        "goes": [({}, f"the {facts.target}.")] if facts.target else [],
        "done": [({}, "yes." if facts.done else "no.")] if facts.done is not None else [],
    }


def _compared(
    things: dict[str, tuple[float, float]], axis: int, words: tuple[str, str]
) -> Iterator[tuple[dict[str, str], str]]:
    """Every two things that are well apart along an axis of the picture."""
    for a, first in things.items():
        for b, second in things.items():
            apart = first[axis] - second[axis]
            if a != b and abs(apart) > APART:
                yield {"a": a, "b": b}, f"{words[int(apart > 0)]}."


def _nearest(
    hand: tuple[float, float] | None, things: dict[str, tuple[float, float]]
) -> Iterator[tuple[dict[str, str], str]]:
    if hand is None or len(things) < 2:
        return
    away = {name: float(np.hypot(at[0] - hand[0], at[1] - hand[1])) for name, at in things.items()}
    first, second, *_ = sorted(away, key=lambda name: away[name])
    if away[first] < NEARER * away[second]:
        yield {}, f"the {first}."


def listed_words(names: Sequence[str]) -> str:
    """ "carrot, plate and towel"; "nothing" of none."""
    if len(names) < 2:
        return names[0] if names else "nothing"
    return f"{', '.join(names[:-1])} and {names[-1]}"


def location(across: float, down: float) -> str:
    """A place as PaliGemma writes it: `<locY><locX>`, the picture divided into 1024; only the middles of
    `STEPS` parts are used.
    """
    part = LOCATIONS // STEPS
    column, row = (min(int(share * STEPS), STEPS - 1) * part + part // 2 for share in (across, down))
    return f"<loc{row:04d}><loc{column:04d}>"


def located(answer: str) -> dict[str, Array]:
    """The places (across, down) that an answer says, by what is named before each; "" where nothing is."""
    found = {}
    for name, row, column in re.findall(r"([^;<>]*)<loc(\d{4})>\s*<loc(\d{4})>", answer):
        found[name.strip()] = (np.array([int(column), int(row)]) + 0.5) / LOCATIONS
    return found


def as_examples(examples: Examples, questions: Sequence[Question]) -> Examples:
    """Frames that are only spoken about, in the order of the questions."""
    rows = np.array([question.row for question in questions], np.int64)
    return replace(
        examples,
        picture=examples.pictures(rows),
        actions=np.full((len(rows), 7), np.nan, np.float32),
        episodes=examples.episodes[rows],
        instructions=tuple(question.text for question in questions),
        rationales=tuple(question.answer for question in questions),
        proprioception=None if examples.proprioception is None else examples.proprioception[rows],
    )


def right(question: Question, answer: str) -> bool:
    """Whether a policy's answer is the right one, word for word; places within `POINTED`, lengths as
    near to the rounded one as the truth audit asks for.
    """
    wanted = located(question.answer)
    if question.kind == "distance":
        said = re.fullmatch(r"about (\d+) cm\.", answer.strip())
        return said is not None and bool(same_length(int(said[1]), int(question.answer.split()[1])))
    if not wanted:
        return answer.strip() == question.answer
    given = located(answer)
    if given.keys() != wanted.keys():
        return False
    return all(float(np.linalg.norm(given[name] - at)) <= POINTED for name, at in wanted.items())


def answers(policy: VLAPolicy, examples: Examples, questions: Sequence[Question]) -> list[str]:
    """What a policy that writes first answers.

    Args:
        policy: its order is "rationale_first".
        examples: the frames, in the order that `Question.row` counts them.
    """
    own = examples.proprioception
    states = None if own is None or own.shape[1] == 0 else own
    given: list[str] = []
    for first in range(0, len(questions), AT_ONCE):
        few = questions[first : first + AT_ONCE]
        rows = np.array([question.row for question in few])
        situation = examples.shown(rows), [question.text for question in few]
        actions = policy.decide(*situation, None if states is None else states[rows])
        given += [action.rationale for action in actions]
    return given
