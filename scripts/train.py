"""Fine-tune one policy in as many processes as are launched: notebook 2 without its pictures.

    accelerate launch --config_file scripts/accelerate/one_gpu.yaml -m scripts.train BASE DATASET OUTPUT \\
        [--name with_reasoning] [-p steps=20000 -p batch_size=256 -p mode=full ...]

    scripts/accelerate/one_gpu.yaml         one GPU
    scripts/accelerate/several_gpus.yaml    each has the whole model and a share of each step (DDP)
    scripts/accelerate/fsdp.yaml            each has a share of the model too: what one GPU cannot hold

`refinevla plan` says which of them fits. BASE and DATASET are folders or names on the Hugging Face hub; -p
sets a field of `refinevla_kit.training.config.TrainingConfig`; --column, --camera, --deltas and --gripper say
what `refinevla annotate` was told of the dataset. Run again, it goes on where it was stopped, in
another number of processes too. The policy is OUTPUT/NAME, for notebooks 3 and 4.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from accelerate import PartialState

from refinevla_kit.episodes import open_dataset
from refinevla_kit.errors import KitError
from refinevla_kit.notebook_runner import parse_parameter
from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.examples import find_rationales, load_examples
from refinevla_kit.training.policy_run import train_policy


def main() -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("base", help="what training starts from")
    parser.add_argument("dataset", help="demonstrations")
    parser.add_argument("output", type=Path, help="folder of policies")
    parser.add_argument("--name", default="with_reasoning", help="the policy's, and its folder's")
    parser.add_argument("--rationales", help='a table of them, or "reviewed"; default the dataset\'s')
    parser.add_argument("--without-rationales", action="store_true", help="train on actions alone")
    parser.add_argument("-p", "--parameter", action="append", default=[], help="NAME=VALUE; repeatable")
    parser.add_argument("--column", action="append", default=[], help="action=NAME and the like; repeatable")
    parser.add_argument("--camera", help="the camera to look through, or a part of its name")
    parser.add_argument("--deltas", action="store_true", default=None, help="the actions are displacements")
    parser.add_argument("--gripper", type=float, help="the gripper command's value that means open")
    given = parser.parse_args()
    try:
        settings = dict(map(parse_parameter, given.parameter))
        if strange := sorted(settings.keys() - TrainingConfig.__dataclass_fields__.keys()):
            known = ", ".join(TrainingConfig.__dataclass_fields__)
            raise KitError(f"{strange[0]} is no setting of training", f"give one of {known}")
        if given.without_rationales:
            settings["lambda_reasoning"] = 0
        config = TrainingConfig(**{"steps": 20_000, **settings})
        told = {"camera": given.camera, "deltas": given.deltas, "gripper": given.gripper}
        columns = dict(parse_parameter(each, literal=False) for each in given.column) or None
        dataset = open_dataset(given.dataset, columns=columns, **told)
        texts = None
        if config.lambda_reasoning:
            texts = given.rationales or find_rationales(given.dataset)
        examples = load_examples(dataset, texts)
        if PartialState().is_main_process:
            print(f"{len(examples)} frames; {examples.about}", flush=True)
        train_policy(given.base, examples, config, given.output, given.name)
    except KitError as error:
        raise SystemExit(f"train: {error}") from None


if __name__ == "__main__":
    main()
