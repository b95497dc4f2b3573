"""Runs that are killed again and again lose nothing and do nothing twice.

Few kills as a rule; `KILLS=20 python -m pytest tests/test_kills.py` for many. Batch mode's are in
tests/teacher/test_batches.py.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from refinevla_kit.evaluation import load_records
from refinevla_kit.evaluation.records import journal_path
from refinevla_kit.training.policy_run import WORK
from refinevla_kit.training.resume import HISTORY, RESUME, read_history
from tests.conftest import REPOSITORY
from tests.training.test_pictures import vla, written

KILLS = int(os.environ.get("KILLS", "2"))
PATIENCE = 600  # seconds until a run must have got on, and for its end

TRAINING = """
import sys
import torch
from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.examples import load_examples
from refinevla_kit.training.policy_run import train_policy

torch.set_num_threads(1)
base, dataset, output, steps = sys.argv[1:]
config = TrainingConfig(
    int(steps), 6, lambda_reasoning=0, freeze_layers=0, freeze_tower=False, precision="fp32",
    validate_every=7, save_every=3,
)
train_policy(base, load_examples(dataset, stream=True), config, output, "policy", progress=False)
"""

EVALUATION = """
import sys
import ray
from refinevla_kit.evaluation import evaluate
from refinevla_kit.rollouts.players import DemonstratorPolicy

output, episodes, address, code = sys.argv[1:]
far = {}
if address:
    ray.init(address=address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": code}})
    far = {"executor": "ray"}
tasks = ("widowx_carrot_on_plate", "widowx_spoon_on_towel")
evaluate(DemonstratorPolicy(), tasks, int(episodes), workers=2, batch=2, output=output, progress=False, **far)
"""


def run_on(script: str, arguments: list[str], progress: Callable[[], int], kills: int) -> int:
    """Run a script to its end, killing it `kills` times at some moment after it got on.

    Args:
        script: Python code.
        arguments: of the script.
        progress: a number that grows while it gets on.
        kills: so many at most; fewer where it ends before.

    Returns:
        How often it was killed.
    """
    rng, killed = random.Random(0), 0
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    while True:
        process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments], stderr=subprocess.PIPE, text=True, env=environment
        )
        before, began = progress(), time.monotonic()
        while killed < kills and process.poll() is None and progress() <= before:
            assert time.monotonic() - began < PATIENCE, "it does not get on"
            time.sleep(0.01)
        if killed < kills:
            time.sleep(rng.uniform(0, 0.25))
            process.kill()
        _, errors = process.communicate(timeout=PATIENCE)
        if process.returncode == 0:
            return killed
        assert process.returncode == -signal.SIGKILL, errors[-2000:]
        killed += 1


def seen(path: Path, what: str) -> int:
    """A number of a file's `stat`; 0 while it is not there, as in the moment in which it is replaced."""
    try:
        return int(getattr(path.stat(), what))
    except FileNotFoundError:
        return 0


@pytest.mark.slow
@pytest.mark.timeout(60 * PATIENCE)
def test_streamed_training_that_is_killed_ends_as_one_that_is_not(tmp_path: Path) -> None:
    base, dataset = vla().save(tmp_path / "base"), written(tmp_path / "data")
    results, counts = [], []
    for name, kills in (("whole", 0), ("killed", KILLS)):
        work = tmp_path / name / WORK / "policy"
        saved = partial(seen, work / RESUME / "state.json", "st_mtime_ns")
        arguments = [str(base), str(dataset), str(tmp_path / name), str(12 * KILLS)]
        counts.append(run_on(TRAINING, arguments, saved, kills))
        weights = (tmp_path / name / "policy" / "model.safetensors").read_bytes()
        history = read_history(work / HISTORY)
        results.append((weights, [row | {"seconds": 0} for row in history]))
    assert counts == [0, KILLS]
    assert results[0] == results[1]


@pytest.mark.slow
@pytest.mark.skipif(
    "KILLS" not in os.environ, reason="takes minutes: KILLS=2 python -m pytest tests/test_kills.py"
)
@pytest.mark.timeout(60 * PATIENCE)
def test_an_evaluation_on_a_cluster_that_is_killed_plays_each_episode_once(tmp_path: Path) -> None:
    """The cluster goes on; the killed run's simulators are let go, and the next run starts its own."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 4, "object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    episodes = str(min(24, 3 * KILLS))
    try:
        far = tmp_path / "far.parquet"

        def played() -> int:
            return seen(journal_path(far), "st_size")

        killed = run_on(EVALUATION, [str(far), episodes, cluster.address, str(REPOSITORY)], played, KILLS)
    finally:
        cluster.shutdown()
    near = tmp_path / "near.parquet"
    assert run_on(EVALUATION, [str(near), episodes, "", ""], lambda: 0, 0) == 0
    assert outcomes(far) == outcomes(near)
    assert killed == KILLS


def outcomes(path: Path) -> list[dict[str, Any]]:
    records = [asdict(record) for record in load_records(path)]
    keys = [(record["task"], record["episode_id"]) for record in records]
    assert len(set(keys)) == len(keys), "an episode is there twice"
    return sorted(({**record, "wall_time": 0} for record in records), key=str)
