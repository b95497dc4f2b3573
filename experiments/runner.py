"""Carries out a plan: trains each run once, plays its episodes, and keeps the records of all finished stages
together.

    runs/<arm>-seed<n>-<key>/    run.json, the checkpoint, its training history, its records
    records/                     study.json and records.parquet: what analysis reads, whole after every stage

Whatever a run's outcome depends on is in its key, so another base or other data never meet old records. A
kill at any point costs at most the episodes in play and the training steps since the last saved state.
Records and demonstrations are enough to go on elsewhere (`start_from`).
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from experiments.controls import drop_actions
from experiments.data import content_hash, demonstrations, given_to, layouts
from experiments.design import Arm, Block, Profile, Stage, run_key
from refinevla_kit.errors import KitError
from refinevla_kit.evaluation import evaluate, load_records
from refinevla_kit.evaluation.records import EpisodeRecord, journal_path, save_parquet
from refinevla_kit.files import read_json, replacing, write_json
from refinevla_kit.journal import Journal
from refinevla_kit.policies.vla_policy import load_policy
from refinevla_kit.tasks import VARIANT_AGGREGATION
from refinevla_kit.training.examples import Examples
from refinevla_kit.training.policy_run import train_policy
from refinevla_kit.vlas.checkpoint import checkpoint_hash, files_hash
from refinevla_kit.vlas.compact import load

RUN, STUDY, RECORDS, TEXT_USE, DEMONSTRATIONS = (
    "run.json",
    "study.json",
    "records.parquet",
    "text_use.json",
    "dataset",
)
REASONED = "reasoned"  # of a run in two halves, the first one's


@dataclass(frozen=True)
class Study:
    """Where and with what a profile is run.

    Attributes:
        base: checkpoint to start from.
        output: folder of everything.
        others: further ones, by the name arms call them; arms whose base is not there are left out, with
            that as the reason.
        assets: as in `simulator.make`.
        workers: simulator processes; None for one a core, 0 for none.
        threads: of torch, in training.
    """

    profile: Profile
    base: Path
    output: Path
    others: Mapping[str, Path] = field(default_factory=dict)
    assets: str = "embedded"
    workers: int | None = None
    threads: int | None = None
    progress: bool = True

    @property
    def bases(self) -> dict[str, Path]:
        """Checkpoints by the name arms call them."""
        return {"main": self.base, **self.others}

    def base_of(self, arm: Arm) -> Path | None:
        """The checkpoint an arm starts from."""
        return self.bases.get(arm.base)


def start_from(finished: Path, output: Path) -> None:
    """Give `output` the records and the demonstrations that `report.publish` left in `finished`; one that has
    records already stays as it is.

    Raises:
        KitError: nothing was published there.
    """
    if (output / "records").exists():
        return
    if missing := [name for name in (STUDY, RECORDS, DEMONSTRATIONS) if not (finished / name).exists()]:
        raise KitError(
            f"{finished} has no {missing[0]}",
            "start without --published, or publish records first (python -m experiments.report)",
        )
    with replacing(output / DEMONSTRATIONS) as part:
        shutil.copytree(finished / DEMONSTRATIONS, part)
    with replacing(output / "records") as part:
        part.mkdir()
        copy_records(finished, part)


def copy_records(source: Path, target: Path) -> None:
    """Copy what a folder of records holds into another that exists; nothing where both are the same."""
    if source.resolve() != target.resolve():
        for name in (STUDY, RECORDS, *([TEXT_USE] if (source / TEXT_USE).exists() else [])):
            shutil.copyfile(source / name, target / name)


def possible(study: Study, stages: Sequence[Stage]) -> tuple[list[Stage], dict[str, str]]:
    """The stages that can be carried out, and the reason by the arm's name for the others.

    Raises:
        KitError: a base that is none, or has not more layers than an arm freezes.
    """
    layers = {path: len(load(path).layers) for path in study.bases.values()}
    for arm in {stage.arm for stage in stages}:
        if (base := study.base_of(arm)) and arm.freeze_layers >= layers[base]:
            remedy = "give a deeper base, or another profile"
            raise KitError(
                f"{arm.name} freezes {arm.freeze_layers} language layers, {base} has {layers[base]}", remedy
            )
    reasons = {
        stage.arm.name: f"no {stage.arm.base} base was given"
        for stage in stages
        if study.base_of(stage.arm) is None
    }
    return [stage for stage in stages if stage.arm.name not in reasons], reasons


def carry_out(study: Study, stages: Sequence[Stage], later: Sequence[Stage] = ()) -> Path:
    """Do all `stages` that are not done yet. Returns the folder of the records.

    Args:
        later: stages of the plan that another call will do: their records, where there are any, are kept with
            the others.
    Raises:
        KitError: another process works in the same folder, or it holds records of other runs; whatever
            training and evaluation raise.
    """
    study.output.mkdir(parents=True, exist_ok=True)
    lock = Journal(study.output / "running.jsonl")
    try:
        torch.set_num_threads(study.threads or len(os.sched_getaffinity(0)))
        doable, reasons = possible(study, stages)
        examples = demonstrations(
            study.profile,
            study.output / DEMONSTRATIONS,
            study.assets,
            max(1, _workers(study)),
            study.progress,
        )
        runs = _Runs(study, examples)
        everything = [stage for stage in [*stages, *later] if study.base_of(stage.arm)]
        runs.check(everything)
        with tqdm(
            doable, desc=f"experiment, {study.profile.name}", unit="stage", disable=not study.progress
        ) as bar:
            for number, stage in enumerate(bar):
                bar.set_postfix_str(f"{stage.block.name}: {stage.arm.name}, seed {stage.seed}")
                if runs.recorded(stage):
                    continue
                runs.train(stage.arm, stage.seed)
                runs.drop_cache(stage.arm, doable[number + 1 :])
                runs.play(stage)
                collect(study, runs, everything, reasons)
        return study.output / "records"
    finally:
        lock.close()


class _Runs:
    """The runs of a study on given demonstrations."""

    def __init__(self, study: Study, examples: Examples) -> None:
        self.study, self.examples, self.data = study, examples, content_hash(examples)
        self.bases = {path: checkpoint_hash(path) for path in study.bases.values()}
        chosen = study.profile.confounded
        self.layouts = layouts(study.output / DEMONSTRATIONS) if chosen else {}
        self.kept = _kept(study.output / "records")

    def folder(self, arm: Arm, seed: int) -> Path:
        """Of one run."""
        key = run_key(arm, self.study.profile.training(arm, seed), self._base(arm)[1], self.data)
        return self.study.output / "runs" / f"{arm.name}-seed{seed}-{key}"

    def check(self, stages: Sequence[Stage]) -> None:
        """Raise `KitError` when there are records of runs that are not in the plan."""
        if strange := sorted(
            set(self.kept[0]) - {self.folder(stage.arm, stage.seed).name for stage in stages}
        ):
            raise KitError(
                f"{self.study.output / 'records'} holds a run that this plan does not make, "
                f"{strange[0]}: it is of another profile, another base or "
                "other demonstrations",
                "give another --output",
            )

    def recorded(self, stage: Stage) -> bool:
        """True when all the stage's episodes were among the records when this process began."""
        runs, records = self.kept
        played = [
            one
            for one in records
            if (one.policy, one.seed, one.setting) == (stage.arm.name, stage.seed, stage.block.setting)
            and one.task in self.study.profile.tasks_of(stage.block)
        ]
        return self.folder(stage.arm, stage.seed).name in runs and _all_played(played, stage.block)

    def train(self, arm: Arm, seed: int) -> None:
        """Train a run that is not trained yet; one that was interrupted goes on."""
        folder, config, (path, base) = (
            self.folder(arm, seed),
            self.study.profile.training(arm, seed),
            self._base(arm),
        )
        if (folder / RUN).is_file():
            return
        given, before = given_to(arm, self.examples, self.layouts), list[dict[str, Any]]()
        if arm.reasoning_first:
            half = replace(config, steps=config.steps // 2)
            first, silent = folder / REASONED, drop_actions(given, 0)
            before = train_policy(path, silent, half, first, arm.name, self.study.progress)
            path, config = first / arm.name, replace(half, lambda_reasoning=0.0)
        history = train_policy(path, given, config, folder, arm.name, self.study.progress, self._cache(arm))
        seconds = [row["seconds"] for row in (*before, *history) if row["split"] == "train"]
        content = {
            "key": folder.name.rsplit("-", 1)[1],
            "arm": asdict(arm),
            "seed": seed,
            "base": base,
            "data": self.data,
            "training": asdict(config),
            "checkpoint_hash": files_hash(folder / arm.name),
            "frames": len(given),
            "about": given.about.replace(f"{self.study.output}/", ""),
            "training_seconds": sum(seconds),
            "step_seconds": statistics.median(seconds),
            "validation": {
                key: value
                for key, value in history[-1].items()
                if key not in ("policy", "split", "step", "seconds")
            },
        }
        write_json(folder / RUN, content)
        shutil.rmtree(
            folder / "training" / arm.name / "resume"
        )  # larger than the checkpoint, and of no use to a finished run
        shutil.rmtree(folder / REASONED, ignore_errors=True)

    def play(self, stage: Stage) -> None:
        """Play the stage's episodes that are not played yet."""
        study, block, folder = self.study, stage.block, self.folder(stage.arm, stage.seed)
        path = folder / file_of(block)
        variants = study.profile.variants if block.setting == VARIANT_AGGREGATION else None
        if path.exists() and not journal_path(path).exists() and _all_played(load_records(path), block):
            return
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the simulators have the other cores
        evaluate(
            load_policy(folder / stage.arm.name),
            study.profile.tasks_of(block),
            "dense",
            block.starts,
            setting=block.setting,
            variants=variants,
            assets=study.assets,
            seed=stage.seed,
            workers=study.workers,
            output=path,
            progress=study.progress,
        )
        torch.set_num_threads(threads)

    def drop_cache(self, arm: Arm, left: Iterable[Stage]) -> None:
        """Remove activations that no run left to train reads."""
        needed = {
            self._cache(stage.arm)
            for stage in left
            if not (self.folder(stage.arm, stage.seed) / RUN).is_file()
        }
        if (cache := self._cache(arm)) not in needed:
            shutil.rmtree(cache, ignore_errors=True)

    def _base(self, arm: Arm) -> tuple[Path, str]:
        path = self.study.base_of(arm)
        assert path is not None  # `possible` left such arms out
        return path, self.bases[path]

    def _cache(self, arm: Arm) -> Path:
        """Each base and each choice of texts and frames has caches of its own."""
        given = f"{arm.rationales}-{arm.share:g}-{arm.acting:g}"
        return self.study.output / "activations" / f"{self._base(arm)[1]}-{given}"


def collect(study: Study, runs: _Runs, stages: Sequence[Stage], reasons: dict[str, str]) -> Path:
    """Write the records of all finished stages, and what their runs were, into `output/records`."""
    target, found = study.output / "records", dict(runs.kept[0])
    records: dict[tuple[Any, ...], EpisodeRecord] = {record.key: record for record in runs.kept[1]}
    for stage in stages:
        folder = runs.folder(stage.arm, stage.seed)
        path = folder / file_of(stage.block)
        if (
            path.exists() and not journal_path(path).exists()
        ):  # a journal: part of the episodes, and not the same part of each arm's
            found[folder.name] = read_json(folder / RUN) | {"arm": asdict(stage.arm)}
            records |= {record.key: replace(record, policy=stage.arm.name) for record in load_records(path)}
    save_parquet(sorted(records.values(), key=lambda record: record.key), target / RECORDS)
    content = {
        "profile": study.profile.name,
        "seeds": len(study.profile.blocks[0].seeds),
        "bases": {name: runs.bases[path] for name, path in study.bases.items()},
        "data": {
            "hash": runs.data,
            "frames": len(runs.examples),
            "episodes": len(set(runs.examples.episodes.tolist())),
        },
        "assets": Path(study.assets).name,
        "machine": {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "not_run": reasons,
        "runs": list(found.values()),
    }
    write_json(target / STUDY, content)
    return target


def file_of(block: Block) -> str:
    """Where a run's records of a block are: blocks of the same tasks and setting share theirs."""
    return f"{block.name if block.tasks else block.setting}.parquet"


def _all_played(records: Iterable[EpisodeRecord], block: Block) -> bool:
    """Whether the last of the block's starts is among the records of a run in its setting."""
    return max((one.episode_id for one in records), default=-1) >= block.starts - 1


def _kept(folder: Path) -> tuple[dict[str, dict[str, Any]], list[EpisodeRecord]]:
    """Runs by their folder's name, and their records, that `collect` wrote before."""
    if not (folder / STUDY).is_file():
        return {}, []
    runs = read_json(folder / STUDY)["runs"]
    return {f"{run['arm']['name']}-seed{run['seed']}-{run['key']}": run for run in runs}, list(
        load_records(folder / RECORDS)
    )


def _workers(study: Study) -> int:
    return len(os.sched_getaffinity(0)) if study.workers is None else study.workers
