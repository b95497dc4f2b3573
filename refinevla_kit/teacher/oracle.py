"""The oracle teacher: writes the four parts of a rationale from simulator state, offline and for nothing.
Sentences come from a small seeded grammar: several wordings a slot, a small vocabulary, 45 to 75 words in
all, because a policy with a few million parameters learns to write them. What is said is decided in
`audit.Scene.facts`, and given beside the prose; how it is said is decided here. For data without simulator
state it refuses.
"""

from __future__ import annotations

import hashlib
import json
import zlib

import numpy as np

from refinevla_kit.simulator.contract import PHASES
from refinevla_kit.teacher.audit import Scene, named_masks, roles
from refinevla_kit.teacher.schema import PARTS, Facts, Rationale, Refusal, Reply, Request, Usage

GRAMMAR: dict[str, tuple[str, ...]] = {
    "seen": ("the {name} is at the {zone}", "the {name} lies at the {zone}", "{name} at the {zone}"),
    "hidden": ("the {name} is out of view", "{name} not in view"),
    "gripper": ("the {name} is at the {zone}", "{name} at the {zone}"),
    "observation": (
        "{source}, {target}, {gripper}.",
        "{target}, {source}, {gripper}.",
        "{gripper}, {source}, {target}.",
    ),
    "held": ("the {source} is held", "the gripper holds the {source}"),
    "not held": ("the {source} is not held", "the {source} is not gripped"),
    "done": ("the task is done", "the task is finished"),
    "not done": ("the task is not done", "the task is still open"),
    "situation": (
        "time to {phase}: {held} and {done}.",
        "{held}, {done}; it is time to {phase}.",
        "now {phase}; {held} and {done}.",
    ),
    "beside": ("{about} beside the {name}", "{about} away beside the {name}"),
    "beside above": (
        "{about} beside and {height} cm above the {name}",
        "{height} cm above and {about} beside the {name}",
    ),
    "beside below": (
        "{about} beside and {height} cm below the {name}",
        "{height} cm below and {about} beside the {name}",
    ),
    "above": ("{height} cm straight above the {name}", "straight above the {name} by {height} cm"),
    "below": ("{height} cm straight below the {name}", "straight below the {name} by {height} cm"),
    "at": ("right at the {name}", "exactly at the {name}"),
    "far": ("far away from the {name}", "very far from the {name}"),
    "spatial": ("the {a} is {relation}{side}", "{a} {relation}{side}"),
    "plan": (
        "{do}{motion}; then {next}.",
        "first {do}{motion}; then {next}.",
        "now {do}{motion}, after that {next}.",
    ),
    "do reach": ("move over the {source}", "reach over the {source}"),
    "do descend": ("descend to the {source}", "go down to the {source}"),
    "do grasp": ("close the gripper on the {source}", "grasp the {source}"),
    "do lift": ("lift the {source}", "raise the {source}"),
    "do carry": ("carry the {source} to the {target}", "bring the {source} over to the {target}"),
    "do lower": ("lower the {source} {onto} the {target}", "set the {source} down {onto} the {target}"),
    "do release": ("release the {source}", "let go of the {source}"),
    "do retreat": ("retreat from the {target}", "back away from the {target}"),
    "then descend": ("descend",),
    "then grasp": ("grasp it",),
    "then lift": ("lift it", "raise it"),
    "then carry": ("carry it over", "bring it over"),
    "then lower": ("lower it", "set it down"),
    "then release": ("release it", "let go of it"),
    "then retreat": ("retreat", "back away"),
    "then end": ("the task ends", "nothing is left"),
}
"""Slot -> wordings. "at the left", "left of" and "in view" speak of the picture; "beside" is a horizontal
distance, "above" and "below" are heights; motion is in the robot's frame. `do <phase>` phrases are unique to
their phase, so that a reader can tell the sub-task from the words.
"""

DRAWERS: dict[str, tuple[str, ...]] = {
    "alone": ("{source}, {gripper}.", "{gripper}, {source}."),
    "do approach": ("approach the {source}", "move up to the {source}"),
    "do hook": ("hook the {source}", "hook the edge of the {source}"),
    "do pull": ("pull the {source}", "pull at the {source}"),
    "do push": ("push the {source}", "push against the {source}"),
    "then hook": ("hook its edge", "hook it"),
    "then pull": ("pull it", "pull at it"),
    "then push": ("push it", "push against it"),
}
"""Likewise, of drawers and of tasks about one thing. Older rationales know nothing of it: it is not in their
`prompt_hash`.
"""
START = "start"  # what a thing that goes nowhere is said to be away from: where it was

WORD_BUDGET = (45, 75)
NEXT_STEPS = 2


class OracleTeacher:
    """Writes true rationales from `Request.state` and `Request.masks`.

    The same seed, dataset name, episode and start give the same words; another seed gives another wording of
    the same facts.

    Attributes:
        name, version: stored with each rationale.
        prompt_hash: first 16 hex digits of the SHA-256 of grammar and seed.
    """

    name = "oracle"
    version = "1"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.prompt_hash = hashlib.sha256(
            json.dumps([GRAMMAR, WORD_BUDGET, NEXT_STEPS, seed]).encode()
        ).hexdigest()[:16]

    def worst_case(self, request: Request) -> Usage:
        """See `Teacher.worst_case`: nothing is paid for."""
        return Usage()

    def annotate(self, request: Request, previous: Reply | None = None) -> Reply:
        """A `Rationale`, or a `Refusal`: "no_state" (not recorded in the simulator), "unknown_objects",
        "invalid_state".
        """
        state, masks = request.state, request.masks
        if state is None or not masks:
            return _refuse(
                "no_state",
                "the frame has no simulator state and masks: this teacher only describes what the "
                "simulator knows",
            )
        names = roles(request.instruction, named_masks(request.instruction, masks))
        if len(names) not in (1, 2):
            return _refuse(
                "unknown_objects",
                f"the instruction {request.instruction!r} names {len(names)} of the masked objects, "
                "one or two are needed",
            )
        scene = Scene(request)
        if PHASES[int(state.phase)] not in scene.order:
            what = f"{request.instruction!r} does not go with the sub-task of the state"
            return _refuse("unknown_objects", what)
        if (
            not all(np.isfinite(values).all() for values in state.to_arrays().values())
            or not np.isfinite(request.actions).all()
        ):
            return _refuse("invalid_state", "state or actions hold values that are not finite")
        facts = scene.facts()
        rng = np.random.default_rng(
            [self.seed, zlib.crc32(request.dataset.encode()), request.episode, request.start]
        )
        words = request.instruction.split()
        onto = next((word for word in ("into", "near") if word in words), "onto")
        rationale = _write(facts, scene.order, onto, rng)
        return Reply(rationale, rationale.text())


def word_count(rationale: Rationale) -> int:
    """Words of the four parts, labels not counted."""
    return sum(len(getattr(rationale, part).split()) for part in PARTS)


def _refuse(kind: str, reason: str) -> Reply:
    return Reply(Refusal(kind, reason), "")


def _write(facts: Facts, order: tuple[str, ...], onto: str, rng: np.random.Generator) -> Rationale:
    """Draw wordings until the whole is within the budget; long names and full facts may need the brief
    form.
    """
    for attempt in range(100):
        brief = attempt >= 5
        rationale = Rationale(
            _observation(facts, rng),
            _situation(facts, rng),
            _spatial(facts, rng, brief),
            _plan(facts, order, onto, rng, brief),
            facts=facts,
        )
        if WORD_BUDGET[0] <= word_count(rationale) <= WORD_BUDGET[1]:
            break
    return rationale


def _pick(rng: np.random.Generator, slot: str, **words: str) -> str:
    choices = GRAMMAR.get(slot) or DRAWERS[slot]
    return choices[int(rng.integers(len(choices)))].format(**words)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _observation(facts: Facts, rng: np.random.Generator) -> str:
    def place(slot: str, name: str, zone: str | None) -> str:
        return _pick(rng, slot, name=name, zone=zone) if zone else _pick(rng, "hidden", name=name)

    gripper = f"{facts.gripper} gripper" if facts.gripper else "gripper"
    if _holds(facts):
        gripper = f"gripper with the {facts.source}"
    source = place("seen", str(facts.source), facts.source_zone)
    if facts.target is None:
        hand = place("gripper", gripper, facts.gripper_zone)
        return _sentence(_pick(rng, "alone", source=source, gripper=hand))
    target = place("seen", str(facts.target), facts.target_zone)
    hand = place("gripper", gripper, facts.gripper_zone)
    return _sentence(_pick(rng, "observation", source=source, target=target, gripper=hand))


def _situation(facts: Facts, rng: np.random.Generator) -> str:
    held = _pick(rng, "held" if _holds(facts) else "not held", source=str(facts.source))
    done = _pick(rng, "done" if facts.done else "not done")
    return _sentence(_pick(rng, "situation", held=held, done=done, phase=str(facts.sub_task)))


def _holds(facts: Facts) -> bool:
    return facts.held == facts.source


def _relation(rng: np.random.Generator, beside: float | None, height: float | None, name: str | None) -> str:
    """Where something is, relative to `name`: horizontal distance and height in cm, None for a metre and
    more.
    """
    if beside is None or height is None:
        return _pick(rng, "far", name=str(name))
    vertical = "above" if height > 0 else "below" if height < 0 else ""
    slot = f"{'beside' if beside else ''} {vertical}".strip() or "at"
    return _pick(rng, slot, name=str(name), about=f"about {beside} cm", height=str(abs(height)))


def _spatial(facts: Facts, rng: np.random.Generator, brief: bool) -> str:
    """Source to target; before that, while the source is not held, gripper to source (then the height of the
    source over the target is left out).
    """
    held, height = _holds(facts), facts.goal_height_cm
    if not held and facts.goal_cm and height is not None:
        height = 0
    relation = _relation(rng, facts.goal_cm, height, facts.target or START)
    unsaid = (brief and not held) or (facts.goal_cm, height) == (0, 0)
    goal = _pick(
        rng, "spatial", a=str(facts.source), relation=relation, side="" if unsaid else _side(facts.goal_side)
    )
    if held:
        return _sentence(f"{goal}.")
    relation = _relation(rng, facts.reach_cm, facts.reach_height_cm, facts.source)
    unsaid = (facts.reach_cm, facts.reach_height_cm) == (0, 0)
    reach = _pick(
        rng, "spatial", a="gripper", relation=relation, side="" if unsaid else _side(facts.reach_side)
    )
    return _sentence(f"{reach}; {goal}.")


def _side(word: str | None) -> str:
    if word is None:
        return ""
    return f", {word} of it" if word in ("left", "right") else f", {word} in view"


def _plan(facts: Facts, order: tuple[str, ...], onto: str, rng: np.random.Generator, brief: bool) -> str:
    words = {"source": str(facts.source), "target": facts.target or str(facts.source), "onto": onto}
    do = _pick(rng, f"do {facts.sub_task}", **words)
    following = (*order, "end")[order.index(str(facts.sub_task)) + 1 :]
    later = [_pick(rng, f"then {phase}", **words) for phase in following[: 1 if brief else NEXT_STEPS]]
    motion = f", moving {facts.motion}" if facts.motion else ""
    return _sentence(_pick(rng, "plan", do=do, motion=motion, next=" and ".join(later)))
