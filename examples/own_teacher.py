"""A teacher of one's own annotates the demonstrations, within limits, and its answers are checked for truth.

    python examples/own_teacher.py [FOLDER]

Replace what `annotate` says by what your model says; waiting, limits, storage and going on are the run's.
"""

import sys
from pathlib import Path

import numpy as np

from refinevla_kit.files import sha256
from refinevla_kit.teacher import annotate_dataset, summarise
from refinevla_kit.teacher.audit import audit_dataset
from refinevla_kit.teacher.limits import Limits
from refinevla_kit.teacher.prose import objects_named
from refinevla_kit.teacher.schema import MOTIONS, Facts, Rationale, Refusal, Reply, Request, Usage

DEMO = Path(__file__).resolve().parents[1] / "data/demo"


class MotionTeacher:
    """Says what instruction and actions tell; what the fingers close on, it takes for held already."""

    name, version = "motion", "1"
    prompt_hash = sha256(__file__)[:16]  # other words are another teacher's

    def annotate(self, request: Request, previous: Reply | None = None) -> Reply:
        things, opens = objects_named(request.instruction), request.open
        if not request.tool or opens is None or len(things) != 2:
            return Reply(Refusal("no_motion", "not a tool's displacements, or not two things"), "")
        source, target = things
        moved = request.actions[:, :3].sum(0)  # m, robot base frame: x forward, y left, z up
        axis = int(np.abs(moved).argmax())
        motion = MOTIONS[2 * axis + int(moved[axis] < 0)]
        held = "nothing" if opens[0] else source
        rationale = Rationale(
            observation=f"The {source} and the {target} are named.",
            situation_analysis=f"The gripper holds {held}.",
            spatial_reasoning=f"The tool moves {motion}.",
            task_planning=f"Bring the {source} to the {target}.",
            facts=Facts(source=source, target=target, held=held, motion=motion),
        )
        return Reply(rationale, rationale.text())

    def worst_case(self, request: Request) -> Usage:
        return Usage()  # tokens of one call; none are paid for here, so nobody is asked to confirm


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own_teacher")
    output = folder / "rationales.parquet"
    for limits in (Limits(concurrency=2, budget_calls=40), Limits(concurrency=2)):  # it stops; it goes on
        annotate_dataset(DEMO, MotionTeacher(), output=output, limits=limits, progress=False)
        print(summarise(output))
    found = audit_dataset(DEMO, output)
    true, false = found.facts_true.sum(), found.facts_false.sum()
    print(f"facts: {true} true, {false} false; {found.doubt.sum()} of {len(found)} for a person to look at")
