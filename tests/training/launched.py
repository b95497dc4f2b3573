"""Fine-tuning runs on noise, for `accelerate launch`: python -m tests.training.launched BASE OUTPUT CONFIGS

Each of CONFIGS is the JSON of a `TrainingConfig`; its run is in the folder of OUTPUT that its `cache` names.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.examples import Examples
from refinevla_kit.training.policy_run import train_policy


def noise(frames: int = 24) -> Examples:
    """Frames of noise with texts of different lengths, some without: shares of a batch then differ in their
    tokens.
    """
    rng = np.random.default_rng(0)
    return Examples(
        rng.integers(0, 256, (frames, 120, 160, 3), dtype=np.uint8),
        rng.uniform(-0.04, 0.04, (frames, 7)).astype(np.float32),
        np.repeat(np.arange(frames // 2), 2),
        ("put carrot on plate", "stack the green block on the yellow block") * (frames // 2),
        tuple("the carrot is left of the plate " * (i % 4) for i in range(frames)),
    )


def stop(row: dict[str, Any]) -> None:
    """End the run in its third step, where the environment asks for it."""
    if row["step"] == 3 and "STOP_IN_THE_THIRD_STEP" in os.environ:
        os._exit(1)


if __name__ == "__main__":
    base, output, *configs = sys.argv[1:]
    state = PartialState(cpu=True)
    os.write(
        1, f"process {state.process_index} of {state.num_processes}\n".encode()
    )  # in one piece: the processes share it
    for text in configs:
        config = TrainingConfig(**json.loads(text))
        folder = Path(output) / config.cache
        train_policy(Path(base), noise(), config, folder, "policy", progress=False, watch=stop)
