"""A task of one's own: a sentence of two goals that the language suite does not have, played twice.

    python examples/own_task.py [FOLDER]

Scenes are made of the things in `tasks.SOURCES` and `tasks.TARGETS`; CONTRIBUTING.md says what a thing, or a
scene, of your own needs.
"""

import sys
from dataclasses import replace
from pathlib import Path

from refinevla_kit.evaluation import evaluate, load_records
from refinevla_kit.rollouts.players import DemonstratorPolicy
from refinevla_kit.simulator import make
from refinevla_kit.tasks import find_task, put, register_task

GOALS = (("green block", "plate"), ("carrot", "towel"))  # what goes on what, in this order
NAME = "widowx_language_block_then_carrot"
PAIR = find_task("widowx_language_green_block_on_plate")
TASK = replace(
    PAIR,
    name=NAME,
    env_id=NAME,
    instruction=", then ".join(put(*goal) for goal in GOALS),
    source=GOALS[0][0],
    target=GOALS[0][1],
    goals=GOALS,
    max_steps=PAIR.max_steps * len(GOALS),
    held_out=True,  # one of its pairs is
)
# `evaluate` finds a task by its name and refuses a changed one under a known name, so it needs its own. Said
# here at the top, it is known in simulator processes too, which import this file.
register_task(TASK)

if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own_task")
    simulator = make(TASK)
    print(f"it begins with: {simulator.reset(0).instruction}; things: {', '.join(simulator.masks())}")
    simulator.close()
    path = evaluate(DemonstratorPolicy(), [TASK], 2, workers=0, width=160, output=folder, progress=False)
    records = [record for record in load_records(path) if record.task == NAME]
    for record in records:
        print(
            f"start {record.episode_id}: {record.lifted_first} first, {record.steps} steps, {record.reason}"
        )
    done = sum(record.success_last for record in records)
    print(f"demonstrator: {done}/{len(records)} did: {TASK.instruction}")
