"""Does all of the kit run on this machine's GPU, how fast, and in how much memory?

    python scripts/gpu_check.py [--model spatialvla] [--model openvla] [--batch 4]
    python scripts/gpu_check.py --small --device cpu        # the same way in little, without a GPU

The simulator draws a task of each robot, the shipped compact VLA acts and is trained, then SpatialVLA and
OpenVLA of the real size have their turn.

Weights are random and made on the device in bfloat16 (in float32 where a CPU would only emulate it), so
nothing is downloaded, and what is measured does not depend on what they hold. Each model looks, runs a
whole training sequence, decodes answers, and is trained for three steps by the kit's own loop: low-rank
adapters of every layer, then the two highest layers and the head.

Prints what it does and, as its last line, one JSON object. Seconds are medians, of a step the last one's.
Memory is the most allocated in that part; on a CPU it is the most that the process ever had.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import torch
import transformers

from refinevla_kit.doctor import render_probe
from refinevla_kit.errors import KitError
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.simulator import make
from refinevla_kit.tasks import CAMERA_SIZES, find_task
from refinevla_kit.training.config import native_precision
from refinevla_kit.training.examples import Examples
from refinevla_kit.training.loop import TrainingConfig, fine_tune
from refinevla_kit.training.objective import WholeModel, make_batch
from refinevla_kit.vlas import load_vla
from refinevla_kit.vlas.contract import VLA
from refinevla_kit.vlas.random_start import (
    REAL_OPENVLA,
    REAL_SPATIALVLA,
    random_openvla,
    random_spatialvla,
    small_openvla,
    small_spatialvla,
)

MAKERS: dict[str, Any] = {
    "spatialvla": (random_spatialvla, small_spatialvla, REAL_SPATIALVLA),
    "openvla": (random_openvla, small_openvla, REAL_OPENVLA),
}
RATIONALE = (
    "the carrot lies left of the plate and the gripper is open above it so move down and close it " * 3
)
REPEATS = 5
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


def some_examples(frames: int) -> Examples:
    """Noise of the right shape."""
    rng = np.random.default_rng(0)
    return Examples(
        rng.integers(0, 256, (frames, 480, 640, 3), dtype=np.uint8),
        rng.normal(0, 0.01, (frames, 7)).astype(np.float32),
        np.zeros(frames, np.int64),
        ("put carrot on plate",) * frames,
        (RATIONALE,) * frames,
    )


def simulator(task: str) -> dict[str, Any]:
    """How fast a task is stepped and drawn, and by what."""
    steps, size = 20, CAMERA_SIZES[find_task(task).robot]
    with closing(make(task, assets="embedded", width=size[0], height=size[1])) as world:
        world.reset(0, seed=0)
        began = time.perf_counter()
        for _ in range(steps):
            image = world.step(np.zeros(7, np.float32)).observation.image
        seconds = (time.perf_counter() - began) / steps
    return {"task": task, "picture": list(image.shape[:2]), "steps_a_second": 1 / seconds}


def compact(device: str, batch: int, examples: Examples) -> dict[str, Any]:
    """The shipped base, without the robot's state: answers a second, and a step of training."""
    vla = load_vla(REPOSITORY / "data" / "checkpoints" / "compact_base")
    vla.model.to(torch.device(device))  # type: ignore[arg-type]
    vla.forget_state()
    numbers = acting(vla, batch, examples)
    return numbers | {"upper": training(vla, batch, examples, freeze_layers=3)}


def check(model: str, small: bool, device: str, batch: int, examples: Examples) -> dict[str, Any]:
    """One model's numbers."""
    make, small_config, real_config = MAKERS[model]
    config = small_config() if small else real_config
    texts = (examples.instructions[0], RATIONALE)
    began = time.perf_counter()
    dtype = PRECISIONS[native_precision()]
    vla: VLA = make(config, texts, examples.actions, dtype=dtype, device=device)
    found: dict[str, Any] = {
        "model": model,
        "parameters": sum(parameter.numel() for parameter in vla.model.parameters()),
        "layers": len(vla.layers),
        "made_s": time.perf_counter() - began,
        "weights_gb": sum(parameter.nbytes for parameter in vla.model.parameters()) / 1e9,
    }
    show(found)
    found |= acting(vla, batch, examples)
    show(found)
    modes = {"lora": {"mode": "lora", "freeze_layers": 0}, "upper": {"freeze_layers": len(vla.layers) - 2}}
    for name, settings in modes.items():
        found[name] = training(vla, batch, examples, **settings)
        show({name: found[name]})
    return found


@torch.inference_mode()
def acting(vla: VLA, batch: int, examples: Examples) -> dict[str, Any]:
    """Seconds of a look, of a whole sequence, and of answers decoded alone and in a batch."""
    device, policy, numbers = vla.device, VLAPolicy(vla, "check"), dict[str, Any]()
    config = TrainingConfig(1, batch_size=1, freeze_layers=0)
    one = make_batch(vla, examples, np.zeros(1, np.int64), config)
    whole = WholeModel(vla)
    numbers["look_s"] = median(lambda: vla.see(vla.pixel_values(examples.images[:1]), None), device)
    numbers["sequence_tokens"] = int(one.sequences.input_ids.shape[1])
    numbers["sequence_s"] = median(lambda: whole(one), device)
    finite = bool(torch.isfinite(whole(one)).all())
    if not finite:
        raise KitError("the model's logits are no numbers", "report it with the card's name and the versions")
    for rows in sorted({1, batch}):
        images, instructions = examples.images[:rows], examples.instructions[:rows]
        seconds = median(lambda i=images, t=instructions: policy.decide(i, t), device)  # type: ignore[misc]
        numbers[f"answers_a_second_batch_{rows}"] = rows / seconds
        numbers[f"words_a_second_batch_{rows}"] = rows * len(vla.ranges) / seconds
    return numbers | {"memory_gb": memory(device, reset=True)}


def training(vla: VLA, batch: int, examples: Examples, **settings: Any) -> dict[str, Any]:
    """Three steps of the kit's loop; seconds of the last, and the most memory."""
    memory(vla.device, reset=True)
    fixed = {"cache": "off", "validate_every": 0, "save_every": 0}
    config = TrainingConfig(3, batch_size=batch, learning_rate=1e-3, **fixed, **settings)
    with tempfile.TemporaryDirectory() as folder:
        history = fine_tune(vla, examples, config, folder, "check", progress=False)
    if not np.isfinite(history[-1]["loss"]):
        raise KitError("the loss is no number", "report it with the card's name and the versions")
    return {
        "batch": batch,
        "step_s": history[-1]["seconds"],
        "loss_first": history[0]["loss"],
        "loss_last": history[-1]["loss"],
        "memory_gb": memory(vla.device),
    }


def median(call: Callable[[], object], device: torch.device) -> float:
    """Median seconds of a few calls, after one that warms up."""
    times = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def memory(device: torch.device, reset: bool = False) -> float:
    """GB at most so far; `reset` counts anew, which a CPU cannot."""
    if device.type != "cuda":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    most = torch.cuda.max_memory_allocated(device) / 1e9
    if reset:
        torch.cuda.reset_peak_memory_stats(device)
    return most


def show(values: dict[str, Any]) -> None:
    print(json.dumps(values), file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=tuple(MAKERS), action="append")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=4)
    given = parser.parse_args()
    cuda = given.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        sys.exit("gpu_check: this machine has no CUDA device -> use --small --device cpu to try the same way")
    transformers.logging.set_verbosity_error()
    examples, found = some_examples(max(given.batch, 2)), []
    _, driver = render_probe()
    worlds = [simulator(task) for task in ("widowx_carrot_on_plate", "google_robot_pick_horizontal_coke_can")]
    show({"vulkan": driver, "simulator": worlds})
    shipped = compact(given.device, given.batch, examples)
    show({"compact": shipped})
    for model in given.model or MAKERS:
        try:
            found.append(check(model, given.small, given.device, given.batch, examples))
        except torch.OutOfMemoryError as error:
            what = str(error).splitlines()[0]
            sys.exit(f"gpu_check: {model} does not fit ({what}) -> lower --batch, or take a larger card")
        except KitError as error:
            sys.exit(f"gpu_check: {error}")
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
    about = {
        "check": "gpu",
        "device": torch.cuda.get_device_name(given.device) if cuda else platform.processor() or "cpu",
        "small": given.small,
        "precision": native_precision(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    about |= {"vulkan": driver, "simulator": worlds, "compact": shipped}
    print(json.dumps(about | {"models": found}))


if __name__ == "__main__":
    main()
