"""A dataset of one's own: written, looked at, annotated, checked for truth, made into training examples.

    python examples/own_dataset.py [FOLDER [DATASET]]

DATASET is a LeRobot dataset that you have; without one, a tiny one is written as a recorder would.
"""

import sys
from pathlib import Path

import numpy as np
from own_teacher import MotionTeacher  # beside this file

from refinevla_kit.episodes import DatasetWriter, Episode, open_dataset
from refinevla_kit.teacher import annotate_dataset, summarise
from refinevla_kit.teacher.audit import audit_dataset
from refinevla_kit.training.examples import load_examples, trainable

# steps, then metres forward, left and up in each, and the gripper: 1 open, -1 closed
GRASP = ((5, 0.03, 0.01, 0, 1), (3, 0, 0, -0.03, 1), (2, 0, 0, 0, -1), (3, 0, 0, 0.03, -1))
PLACE = ((5, 0, -0.03, 0, -1), (3, 0, 0, -0.03, -1), (2, 0, 0, 0, 1), (2, 0, 0, 0.03, 1))
STATE_NAMES = ("x", "y", "z", "gripper")


def recorded(number: int) -> Episode:
    """An episode as a robot's recorder may have it: no simulator knows more."""
    told = np.array([move for steps, *move in (*GRASP, *PLACE) for _ in range(steps)], np.float32)
    turns = np.zeros((len(told), 3), np.float32)  # roll, pitch, yaw
    actions = np.concatenate([told[:, :3], turns, told[:, 3:]], axis=1)
    start = [0.3, 0.05 * number, 0.2]  # m
    place = start + np.cumsum(told[:, :3], axis=0) - told[:, :3]  # where the tool is before each action
    opening = (told[:, 3:] + 1) / 2
    images = np.full((len(actions), 120, 160, 3), 90, np.uint8)
    for image, (forward, left, _) in zip(images, place):
        row, column = int(100 - 150 * forward), int(80 - 150 * left)
        image[row : row + 16, column : column + 16] = (230, 120, 30)  # the tool, seen from above
    state = np.concatenate([place, opening], axis=1).astype(np.float32)
    return Episode(images, actions, state, "put the carrot on the plate", success=True)


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own_dataset")
    path = Path(sys.argv[2]) if len(sys.argv) > 2 else folder / "dataset"
    if len(sys.argv) <= 2:
        with DatasetWriter(path, 5, "my_arm", state_names=STATE_NAMES, overwrite=True) as writer:
            for number in range(2):
                writer.add(recorded(number))
    dataset = open_dataset(path)
    print(dataset)  # what is wrong here is said with arguments of `open_dataset`
    print("trainable:", trainable(dataset) or "yes")
    output = annotate_dataset(dataset, MotionTeacher(), output=folder / "rationales.parquet", progress=False)
    print(summarise(output))
    found = audit_dataset(dataset, output)
    true, false, undecided = (found[f"facts_{each}"].sum() for each in ("true", "false", "undecided"))
    print(f"facts: {true} true, {false} false, {undecided} that only a simulator, or a person, can decide")
    examples = load_examples(dataset, output)
    print(examples.about)
    print(f"{len(examples)} examples, {sum(map(bool, examples.rationales))} of them with a rationale")
