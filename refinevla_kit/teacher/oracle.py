"""The oracle teacher: writes the four parts of a rationale from simulator state, offline and for nothing.
Sentences come from a small seeded grammar: several wordings a slot, 45 to 75 words in all. The vocabulary is
small, because a policy with a few million parameters learns to write it. What is said is decided in
`audit.Scene.facts`, and given beside the prose; how it is said is decided here. For data without simulator
state it refuses.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from typing import Any

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
            reason = (
                "the frame has no simulator state and masks: this teacher describes what a simulator knows"
            )
            return Reply(Refusal("no_state", reason), "")
        names = roles(request.instruction, named_masks(request.instruction, masks))
        if len(names) not in (1, 2):
            reason = (
                f"the instruction {request.instruction!r} names {len(names)} masked objects, not one or two"
            )
            return Reply(Refusal("unknown_objects", reason), "")
        scene = Scene(request)
        if PHASES[int(state.phase)] not in scene.order:
            reason = f"{request.instruction!r} does not go with the sub-task of the state"
            return Reply(Refusal("unknown_objects", reason), "")
        numbers = (*state.to_arrays().values(), request.actions)
        if not all(np.isfinite(values).all() for values in numbers):
            reason = "state or actions hold values that are not finite"
            return Reply(Refusal("invalid_state", reason), "")
        dataset = zlib.crc32(request.dataset.encode())
        rng = np.random.default_rng([self.seed, dataset, request.episode, request.start])
        words = request.instruction.split()
        onto = next((word for word in ("into", "near") if word in words), "onto")
        rationale = _write(scene.facts(), scene.order, onto, rng)
        return Reply(rationale, rationale.text())


def word_count(rationale: Rationale) -> int:
    """Words of the four parts, labels not counted."""
    return sum(len(getattr(rationale, part).split()) for part in PARTS)


def _write(facts: Facts, order: tuple[str, ...], onto: str, rng: np.random.Generator) -> Rationale:
    """Draw wordings until the whole is within the budget; long names and full facts may need the brief
    form.
    """
    wording = _Wording(facts, order, onto, rng)
    for attempt in range(100):
        brief = attempt >= 5
        parts = [wording.observation(), wording.situation(), wording.spatial(brief), wording.plan(brief)]
        seen, situation, space, plan = (text[:1].upper() + text[1:] for text in parts)
        rationale = Rationale(seen, situation, space, plan, facts=facts)
        if WORD_BUDGET[0] <= word_count(rationale) <= WORD_BUDGET[1]:
            break
    return rationale


class _Wording:
    """The four parts of a rationale in words that are drawn; every call draws anew."""

    def __init__(self, facts: Facts, order: tuple[str, ...], onto: str, rng: np.random.Generator) -> None:
        self.facts, self.order, self.rng = facts, order, rng
        self.held = facts.held == facts.source
        self.target = facts.target or START
        self.words = {"source": str(facts.source), "target": facts.target or str(facts.source), "onto": onto}

    def pick(self, slot: str, **words: Any) -> str:
        """One wording of a slot."""
        choices = GRAMMAR.get(slot) or DRAWERS[slot]
        return choices[int(self.rng.integers(len(choices)))].format(**self.words | words)

    def observation(self) -> str:
        facts, words = self.facts, self.words
        gripper = f"{facts.gripper} gripper" if facts.gripper else "gripper"
        if self.held:
            gripper = f"gripper with the {facts.source}"
        places = {"source": self.seen(words["source"], facts.source_zone)}
        if facts.target:
            places["target"] = self.seen(words["target"], facts.target_zone)
        places["gripper"] = self.seen(gripper, facts.gripper_zone, "gripper")
        return self.pick("observation" if facts.target else "alone", **places)

    def seen(self, name: str, zone: str | None, slot: str = "seen") -> str:
        """Where in the picture a thing is."""
        return self.pick(slot if zone else "hidden", name=name, zone=zone)

    def situation(self) -> str:
        held = self.pick("held" if self.held else "not held")
        done = self.pick("done" if self.facts.done else "not done")
        return self.pick("situation", held=held, done=done, phase=self.facts.sub_task)

    def spatial(self, brief: bool) -> str:
        """Source to target; before that, while the source is not held, gripper to source.

        The height of the source over the target is then left out.
        """
        facts, height = self.facts, self.facts.goal_height_cm
        if not self.held and facts.goal_cm and height is not None:
            height = 0
        side = None if brief and not self.held else facts.goal_side
        goal = self.way(self.words["source"], self.target, facts.goal_cm, height, side)
        if self.held:
            return f"{goal}."
        reach = facts.reach_cm, facts.reach_height_cm, facts.reach_side
        return f"{self.way('gripper', self.words['source'], *reach)}; {goal}."

    def way(self, thing: str, name: str, beside: float | None, height: float | None, side: str | None) -> str:
        """Where a thing is, relative to `name`: horizontal distance and height in cm, None for a metre."""
        if beside is None or height is None:
            relation = self.pick("far", name=name)
        else:
            vertical = "above" if height > 0 else "below" if height < 0 else ""
            slot = f"{'beside' if beside else ''} {vertical}".strip() or "at"
            relation = self.pick(slot, name=name, about=f"about {beside} cm", height=abs(height))
        seen = ""
        if side is not None and (beside, height) != (0, 0):
            seen = f", {side} of it" if side in ("left", "right") else f", {side} in view"
        return self.pick("spatial", a=thing, relation=relation, side=seen)

    def plan(self, brief: bool) -> str:
        do = self.pick(f"do {self.facts.sub_task}")
        following = (*self.order, "end")[self.order.index(str(self.facts.sub_task)) + 1 :]
        later = [self.pick(f"then {phase}") for phase in following[: 1 if brief else NEXT_STEPS]]
        motion = f", moving {self.facts.motion}" if self.facts.motion else ""
        return self.pick("plan", do=do, motion=motion, next=" and ".join(later))
