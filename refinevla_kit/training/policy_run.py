"""From a base to a fine-tuned policy on disk, as one step that can be called again: what is finished is not
done twice.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from refinevla_kit.errors import KitError
from refinevla_kit.files import sha256
from refinevla_kit.training.examples import Examples
from refinevla_kit.training.loop import ADAPTER_FOLDER, TrainingConfig, Watch, fine_tune
from refinevla_kit.training.resume import effective
from refinevla_kit.vlas import load_vla
from refinevla_kit.vlas.action_tokens import STATISTICS
from refinevla_kit.vlas.checkpoint import ADAPTER, CONFIG, checkpoint_hash, files_hash, locate
from refinevla_kit.vlas.contract import VLA

WORK = "training"  # folder of histories and states, beside the policies


def made_from(base: str | Path, examples: Examples, config: TrainingConfig) -> dict[str, Any]:
    """All that the policy of `train_policy` with these arguments depends on."""
    return effective(config) | {"base": files_hash(locate(base)), "examples": examples.digest()}


def open_base(base: str | Path, examples: Examples, config: TrainingConfig) -> VLA:
    """The checkpoint that `train_policy` with these arguments starts from, as it does."""
    vla = load_vla(base, torch.bfloat16 if config.frozen_weights == "bf16" else None).on(config.robot)
    if config.action_words == "base":
        return vla
    return vla.fitted(examples.actions, config.action_words == "adapted", config.robot)


def _reference(folder: Path) -> str:
    """What adapters call their base: a model of the hub by its name, wherever its files are kept."""
    kept = re.search(r"/models--([^/]+?)--([^/]+)/snapshots/[^/]+$", str(folder))
    return "/".join(kept.groups()) if kept else str(folder)


def train_policy(
    base: str | Path,
    examples: Examples,
    config: TrainingConfig,
    output: str | Path,
    name: str,
    progress: bool = True,
    cache_folder: str | Path | None = None,
    watch: Watch | None = None,
) -> list[dict[str, Any]]:
    """Fine-tune a copy of the checkpoint `base` and save it as `output/name`; its history and resumable state
    lie in `output/training/name`.

    Args:
        base: the checkpoint to start from: a folder, or a model of the Hugging Face hub by its name.
        examples, config, progress, watch: see `fine_tune`.
        output: folder of the policies.
        name: the policy's, and its folder's.
        cache_folder: see `fine_tune`; None is `output/training/activations`, shared by the policies trained
            there.

    Returns:
        The history, see `fine_tune`.

    Raises:
        KitError: a name that is no folder's, or the base's own; what `load` and `fine_tune` raise.
    """
    target, work = Path(output) / name, Path(output) / WORK
    if name in ("", ".", "..", WORK) or "/" in name:
        raise KitError(
            f"the policy's name {name!r} cannot be its folder's name", "choose another, without a slash"
        )
    if target.resolve() == Path(base).resolve():
        raise KitError(f"{target} is the base itself and would be replaced", "give another name or output")
    if target.exists() and not (target / CONFIG).is_file():
        raise KitError(f"{target} is no checkpoint and would be replaced", "give another name or output")
    folder = locate(base).resolve()
    if config.adapter_form == "peft" and (folder / ADAPTER).exists():
        what = f"{base} is adapters already, and adapters on adapters are not read"
        raise KitError(what, 'set adapter_form to "merged"')
    vla = open_base(folder, examples, config)
    vla.model.name_or_path = _reference(folder)
    history = fine_tune(
        vla, examples, config, work / name, name, progress, cache_folder or work / "activations", watch
    )
    state = PartialState()
    if not state.is_main_process:
        # under `accelerate launch` one process writes, the others wait until all is there
        state.wait_for_everyone()
        return history
    statistics = folder / STATISTICS
    robot = vla.conventions.robot
    vla.provenance.clear()
    vla.provenance.update(
        made_by="refinevla_kit.training.policy_run",
        name=name,
        robot=robot,
        order=config.orders[0],
        training=asdict(config),
        frames=len(examples),
        base=checkpoint_hash(folder),
        base_statistics=sha256(statistics)[:12] if statistics.exists() else None,
        validation=next((row for row in reversed(history) if row["split"] != "train"), None),
        reads_state=vla.reads_state,
    )
    adapter = work / name / ADAPTER_FOLDER if config.adapter_form == "peft" else None
    vla.save(target, torch.bfloat16, adapter)  # as the base is; half the size
    state.wait_for_everyone()
    return history
