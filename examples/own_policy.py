"""A policy of one's own, checked and then evaluated beside the scripted demonstrator.

    python examples/own_policy.py [FOLDER]

Replace `Replay` by your policy; the rest stays. A second run in FOLDER does not repeat what is recorded.
"""

import sys
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

from refinevla_kit.conventions import WIDOWX
from refinevla_kit.episodes import open_dataset
from refinevla_kit.evaluation import evaluate, load_records, summarise
from refinevla_kit.evaluation.preflight import preflight
from refinevla_kit.evaluation.statistics import compare
from refinevla_kit.files import sha256
from refinevla_kit.rollouts.players import DemonstratorPolicy
from refinevla_kit.simulator.contract import Array

DEMO = Path(__file__).resolve().parents[1] / "data/demo"
TASK, EPISODES, WIDTH = "widowx_carrot_on_plate", 4, 160


class Replay:
    """Repeats a recorded demonstration of its instruction without looking."""

    name = "replay"
    conventions = replace(WIDOWX, image_size=None)  # what its numbers mean; pictures of any size will do

    def __init__(self) -> None:
        dataset = open_dataset(DEMO)
        self.checkpoint_hash = sha256(DEMO / "data")[:12]  # other actions are another policy in the records
        self.recorded = {each.instruction: dataset.actions(each.index) for each in dataset.episodes}
        self.left: deque[Array] = deque()

    def reset(self, instruction: str) -> None:
        self.left = deque(self.recorded[instruction])

    def act(self, image: Array) -> dict[str, Any]:
        action = self.left.popleft()  # float32 (7,); returned by itself, it would do
        return {"action": action, "terminate": not self.left}


if __name__ == "__main__":  # with `workers` above 0, simulators run in processes that import this file
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own_policy")
    policy, demonstrator = Replay(), DemonstratorPolicy()
    print(preflight(policy, TASK))
    for player in (policy, demonstrator):  # the same starts and the same width: the episodes are pairs
        path = evaluate(player, TASK, EPISODES, workers=0, width=WIDTH, output=folder, progress=False)
    records = load_records(path)
    for score in [each for each in summarise(records) if each.task == TASK]:  # not the average over tasks
        found = score.rate
        print(f"{score.policy}: {found.successes}/{found.episodes} ({found.low:.0%} to {found.high:.0%})")
    pairs = compare(records, policy.name, demonstrator.name, task=TASK)
    interval = f"{pairs.low:+.0%} to {pairs.high:+.0%}"
    print(f"difference {pairs.difference:+.0%} ({interval}), {pairs.episodes} pairs, p = {pairs.p_value:.3f}")
