"""The fine-tuning loop: batches drawn from (seed, step) alone, so a run killed at any point continues exactly
where its last checkpoint stood.

Runs on accelerate: one CPU process in a notebook, several processes or GPUs under `accelerate launch`, the
same code (on CPUs `accelerate launch --multi_gpu` or torchrun: with --cpu it starts one process). With an
activation cache only the upper layers run, on stored states; the rest of the loop does not know.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from tqdm.auto import tqdm

from refinevla_kit.errors import KitError, as_kit_error
from refinevla_kit.policies.vla_policy import VLAPolicy
from refinevla_kit.simulator.contract import Array
from refinevla_kit.training import sharding
from refinevla_kit.training.activation_cache import ActivationCache, open_or_write
from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.examples import Examples
from refinevla_kit.training.freezing import (
    UpperLayers,
    adapters,
    freeze_lower,
    lighten,
    preset_of,
    recomputing,
)
from refinevla_kit.training.memory import check_training_memory
from refinevla_kit.training.mixture import rows_of_step
from refinevla_kit.training.objective import Batch, WholeModel, forward, make_batch, tower_tokens
from refinevla_kit.training.pictures import StreamedPictures
from refinevla_kit.training.resume import (
    HISTORY,
    identity_of,
    resume,
    save_state,
    state_tensors,
    write_history,
)
from refinevla_kit.vlas.action_tokens import check_actions
from refinevla_kit.vlas.contract import VLA
from refinevla_kit.vlas.sequence import ACTION_KIND, RATIONALE_KIND

Kept = ActivationCache | Tensor | None  # see `make_batch`
Watch = Callable[[dict[str, Any]], None]
BOARD, ADAPTER_FOLDER = "tensorboard", "adapter"  # folders in a run's
ACTION_NUMBERS = ("loss_action", "action_accuracy", "action_l1")
# Of a collapse: held-out frames that are looked at; it takes at least so many, of so many episodes, to judge.
LOOKED_AT, FEWEST, EPISODES = 16, 8, 2
SMALLER = "raise accumulate, set gradient_checkpointing, or see what fits: refinevla plan"


def fine_tune(
    vla: VLA,
    examples: Examples,
    config: TrainingConfig,
    output: str | Path,
    name: str,
    progress: bool = True,
    cache_folder: str | Path | None = None,
    watch: Watch | None = None,
) -> list[dict[str, Any]]:
    """Fine-tune `vla` in place; keep a history and a resumable state in `output`.

    A second call with the same configuration and data continues an interrupted run, and returns at once when
    it had ended. Where the examples have no state that the policy could read (`Examples.stateful`), it
    becomes one that reads none.

    Args:
        vla: the model.
        examples: what it learns from.
        config: how.
        output: folder for `history.jsonl` and `resume/`.
        name: the policy's name in the history and on the bar.
        progress: show a bar.
        cache_folder: of activation caches (see `TrainingConfig.cache`), shared by runs that differ in seed or
            learning rate; None: in `output`.
        watch: called with each new row of the history as it comes, in the main process; what it does changes
            nothing about the run.

    Returns:
        The history: one row a step ({"step", "split": "train", "policy", losses, "seconds"}), one an
            evaluation ("validation") and one of what is left after `TrainingConfig.base_share` ("averaged").

    Raises:
        KitError: no examples, actions outside the checkpoint's tokens, rationales missing though the
            reasoning loss is asked for, a state or a cache of something else, a cache above its limit, a loss
            that is no number, a policy that has collapsed.
    """
    _check(examples, config)
    if vla.conventions.robot == "google_robot" and vla.conventions.gripper == "open1_closed0":
        examples = examples.holding()
    check_actions(vla.bins.limits, vla.own_actions(examples.actions))
    if vla.reads_state and not examples.stateful:
        vla.forget_state()
        if progress:
            why = "the data have none in the form of the kit's recordings"
            tqdm.write(f"{name} will not read the robot's own state: {why}")
    counts = freeze_lower(vla, config.depth, config.tower_frozen)
    identity = identity_of(vla, examples, config, counts)
    folder = Path(output)
    watchers = [watch] if watch else []
    with ExitStack() as stack:
        if config.mode == "lora":
            keep = folder / ADAPTER_FOLDER if config.adapter_form == "peft" else None
            stack.enter_context(adapters(vla, preset_of(vla, config), config.seed, keep))
        if config.frozen_weights == "bf16":
            lighten(vla)
        if config.gradient_checkpointing:
            stack.enter_context(recomputing(vla))
        if config.tensorboard:
            watchers.append(stack.enter_context(_board(folder / BOARD)))
        run = _Run(vla, examples, config, folder, name, identity)
        with as_kit_error(f"a step of {name} does not fit", SMALLER, (torch.OutOfMemoryError,)):
            run.train(Path(cache_folder or folder / "activations"), watchers, progress)
    vla.model.eval()
    return run.history


class _Run:
    """A model in training, its optimiser, and the history so far."""

    def __init__(
        self,
        vla: VLA,
        examples: Examples,
        config: TrainingConfig,
        folder: Path,
        name: str,
        identity: dict[str, Any],
    ) -> None:
        self.vla, self.examples, self.config, self.name = vla, examples, config, name
        self.folder, self.identity = folder, identity
        # Autocast is entered in `backward`, not by accelerate: it keeps the first precision it was given for
        # as long as the process lives.
        self.accelerator = Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available())
        check_training_memory(vla, self.accelerator.device, config.base_share > 0)
        vla.model.to(self.accelerator.device)
        # What adapters add is a product of two, one of which is 0 at first: with it the product gets smaller.
        # The other, by its name in peft, stays.
        self.before = {
            name: parameter.detach().clone()
            for name, parameter in vla.model.named_parameters()
            if config.base_share
            and parameter.requires_grad
            and "lora_A" not in name
            and "lora_embedding_B" not in name
        }
        self.trained = [parameter for parameter in vla.model.parameters() if parameter.requires_grad]
        self.optimizer: Any = torch.optim.AdamW(
            self.trained, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.95)
        )
        self.step, self.history = resume(folder, vla, self.optimizer, identity)
        self.training, self.held_out = examples.split()

    @property
    def ended(self) -> bool:
        return self.step >= self.config.steps or self.stalled

    @property
    def stalled(self) -> bool:
        """The last `early_stop` evaluations brought no better action loss than there had been."""
        patience = self.config.early_stop
        if not patience:
            return False  # asked in every step, and a long history takes long to look through
        losses = [
            row["loss_action"]
            for row in self.history
            if row["split"] == "validation" and "loss_action" in row
        ]
        return patience < len(losses) and min(losses[-patience:]) >= min(losses[:-patience])

    def train(self, cache_folder: Path, watchers: Sequence[Watch], progress: bool) -> None:
        """Go on until the run has ended."""
        if self.ended:
            return
        config, accelerator = self.config, self.accelerator
        kept = self._keep(cache_folder, progress)
        model = self._prepare(runner(self.vla, config, kept))
        most = min(config.batch_size, len(self.training))
        if accelerator.num_processes > most:
            what = f"{accelerator.num_processes} processes share steps of {most} frames"
            raise KitError(what, "launch fewer processes, or raise batch_size")
        model.train()
        bar = tqdm(
            total=config.steps,
            initial=self.step,
            desc=f"fine-tuning {self.name}",
            unit="step",
            disable=not (progress and accelerator.is_main_process),
        )
        with bar:
            while not self.ended:
                shown = len(self.history)
                self._step(model, kept)
                validates, saves = self._due(config.validate_every), self._due(config.save_every)
                if validates and len(self.held_out):
                    scores = self._validate("validation", model, kept)
                    names = [name for name in ("action_accuracy", "loss") if name in scores]
                    bar.set_postfix({name: f"{scores[name]:.2f}" for name in names}, refresh=False)
                if config.base_share and self.ended:
                    self._average()
                    if validates and len(self.held_out):
                        self._validate("averaged", model, kept)
                if accelerator.is_main_process:
                    for row in self.history[shown:]:
                        for watcher in watchers:
                            watcher(row)
                # Before a state is saved, so that the one on disk has passed.
                if (validates or saves or self.ended) and self.step > config.grace:
                    self.vla.model.eval()
                    held_out, name = self.held_out, self.name
                    with sharding.at_hand(model):
                        check_collapse(self.vla, self.examples, held_out, config, kept, name, self.step)
                    model.train()
                if saves or (self.stalled and config.save_every):
                    tensors = state_tensors(self.vla, self.optimizer)
                    if accelerator.is_main_process:
                        save_state(self.folder, tensors, self.step, self.history, self.identity)
                bar.update()
        sharding.gather(self.vla.model)
        if accelerator.is_main_process and not config.save_every:
            write_history(self.folder / HISTORY, self.history)

    def _prepare(self, model: nn.Module) -> nn.Module:
        """The model as the processes of the run share it."""
        accelerator = self.accelerator
        if accelerator.num_processes > 1 and sharding.asked_for():
            device, processes = accelerator.device, accelerator.num_processes
            sharding.shard(model, self.optimizer, device, processes)
            self.trained = self.optimizer.param_groups[0]["params"]
            parts = dict(self.vla.model.named_parameters())
            self.before = {name: sharding.divided(was, parts[name]) for name, was in self.before.items()}
            return model
        model, self.optimizer = accelerator.prepare(model, self.optimizer)
        return model

    def _keep(self, cache_folder: Path, progress: bool) -> Kept:
        """What is computed once, see `make_batch`."""
        images = self.examples.images
        if isinstance(images, StreamedPictures) and self.config.cache != "on":
            return None
        if not self.config.caches(len(self.examples)):
            return tower_tokens(self.vla, images) if self.config.tower_frozen else None
        progress = progress and self.accelerator.is_local_main_process
        with self.accelerator.local_main_process_first():  # it writes the cache, the others open it
            return open_or_write(self.vla, self.examples, self.config, cache_folder, progress)

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step == self.config.steps or self.step % every == 0)

    def _note(self, split: str, values: dict[str, float]) -> None:
        self.history.append({"step": self.step, "split": split, "policy": self.name, **values})

    def _validate(self, split: str, model: nn.Module, kept: Kept) -> dict[str, float]:
        """Scores on what is held out, noted in the history."""
        with sharding.at_hand(model):
            scores = validate(self.vla, self.examples, self.held_out, self.config, kept)
        self._note(split, scores)
        return scores

    @torch.no_grad()
    def _average(self) -> None:
        """Make what was trained the average of itself and of what it was, in place."""
        parameters = dict(self.vla.model.named_parameters())
        for name, was in self.before.items():
            parameters[name].lerp_(was, self.config.base_share)

    def _step(self, model: nn.Module, kept: Kept) -> None:
        """One step of the optimiser, noted in the history."""
        config, began = self.config, time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(self.step, config)
        batches = [make_batch(self.vla, self.examples, part, config, kept) for part in self._parts(self.step)]
        if kept is None:
            self.examples.ahead(self._parts(self.step + 1))
        losses = self._backward(model, batches)
        if config.clip:
            nn.utils.clip_grad_norm_(self.trained, config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._note("train", losses | {"seconds": time.perf_counter() - began})

    def _parts(self, step: int) -> list[Array]:
        """This process's frames of a step, part by part."""
        processes, number = self.accelerator.num_processes, self.accelerator.process_index
        config = self.config
        drawn = rows_of_step(self.examples, self.training, config.seed, step, config.batch_size)
        # As many in each process: dividing a model, they wait for one another at every part.
        parts = min(config.accumulate, len(drawn) // processes)
        return _parts(np.sort(np.array_split(drawn, processes)[number]), self.examples, parts)

    def _backward(self, model: nn.Module, batches: list[Batch]) -> dict[str, float]:
        """Gradients of one step. Each part weighs its share of the step's tokens (or texts), so dividing a
        step into parts and over processes changes nothing.

        Returns the history's numbers, of the frames of all processes.
        """
        accelerator, config = self.accelerator, self.config
        processes, parts = accelerator.num_processes, len(batches)
        kinds = [batch.sequences.kinds for batch in batches]
        spoken = [each == RATIONALE_KIND for each in kinds]
        if config.texts_alike:
            spoken = [tokens.any(1) for tokens in spoken]
        acts = [int((each == ACTION_KIND).sum()) for each in kinds]
        thinks = [int(each.sum()) for each in spoken]
        own = torch.tensor([sum(acts), sum(thinks)], device=accelerator.device)
        actions, rationales = accelerator.reduce(own, "sum").tolist()
        names = ["loss", *(ACTION_NUMBERS if actions else ()), *(("loss_reasoning",) if rationales else ())]
        row = dict.fromkeys(names, 0.0)
        for number, batch in enumerate(batches):
            # Gradients are averaged over processes, hence their number.
            act = processes * acts[number] / max(1, actions)
            think = processes * thinks[number] / max(1, rationales)
            if isinstance(model, FSDPModule):
                model.set_requires_gradient_sync(number == parts - 1)
            with accelerator.no_sync(model) if number < parts - 1 else nullcontext():
                with config.autocast(self.vla.device):
                    losses = forward(model, self.vla, batch, config)
                total = act * losses.action + config.lambda_reasoning * think * losses.reasoning
                if not torch.isfinite(total):
                    what = f"the loss of {self.name} is {float(total)} at step {self.step}"
                    raise KitError(what, "lower the learning rate")
                accelerator.backward(total)
            for key, value in {**losses.to_floats(), "loss": float(total.detach())}.items():
                share = {"loss": 1.0, "loss_reasoning": think}.get(key, act)
                row[key] += share * value if share else 0.0
        values = torch.tensor(list(row.values()), dtype=torch.float64, device=accelerator.device)
        return dict(zip(row, accelerator.reduce(values, "mean").tolist(), strict=True))


def _check(examples: Examples, config: TrainingConfig) -> None:
    """Raises `KitError` for examples that cannot be trained with in this way."""
    if len(examples) == 0:
        raise KitError("no training examples", "record at least one episode")
    if config.lambda_reasoning > 0 and not any(examples.rationales):
        what = "the reasoning loss is on, but no frame has a rationale"
        raise KitError(what, "annotate the dataset (notebook 01) or set lambda_reasoning to 0")
    if not (config.lambda_reasoning or np.isfinite(examples.actions).all(axis=1).any()):
        what = "no frame has an action of seven numbers"
        raise KitError(what, "mend the action's column, or name another: columns={'action': ...}")
    if examples.proprioception is None:
        return
    unknown = ~np.isfinite(examples.proprioception).all(axis=1)
    if unknown.any():
        episode = int(examples.episodes[unknown][0])
        what = f"the robot's state holds what is no number, first in episode {episode}"
        raise KitError(what, "leave that episode out, or mend its observation.state")


def runner(vla: VLA, config: TrainingConfig, kept: Kept) -> nn.Module:
    """What is run on a batch: the whole model, or its upper layers on cached states."""
    return UpperLayers(vla, config.depth) if isinstance(kept, ActivationCache) else WholeModel(vla)


@torch.no_grad()
def validate(
    vla: VLA, examples: Examples, rows: Array, config: TrainingConfig, kept: Kept = None
) -> dict[str, float]:
    """The objective's parts on at most 128 of the held-out frames `rows` (at least one), evenly spaced.

    `kept`: see `make_batch`.
    """
    chosen = rows[np.linspace(0, len(rows) - 1, min(128, len(rows))).astype(int)]
    was_training = vla.model.training
    vla.model.eval()
    model = runner(vla, config, kept)
    sums: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for part in np.array_split(chosen, math.ceil(len(chosen) / _at_once(config))):
        batch = make_batch(vla, examples, part, config, kept)
        with config.autocast(vla.device):
            losses = forward(model, vla, batch, config)
        spoken = int((batch.sequences.kinds == RATIONALE_KIND).any(1).sum())
        texts = spoken if config.texts_alike else losses.rationale_tokens
        for key, value in losses.to_floats().items():
            count = texts if key == "loss_reasoning" else losses.action_tokens
            sums[key] = sums.get(key, 0) + count * value
            sizes[key] = sizes.get(key, 0) + count
    vla.model.train(was_training)
    means = {key: sums[key] / sizes[key] for key in sums if key != "loss"}
    whole = means.get("loss_action", 0.0) + config.lambda_reasoning * means.get("loss_reasoning", 0.0)
    return {"loss": whole} | means


@torch.no_grad()
def check_collapse(
    vla: VLA, examples: Examples, held_out: Array, config: TrainingConfig, kept: Kept, name: str, step: int
) -> None:
    """Stop a policy that is lost: it acts the same whatever it sees, or says no action at all.

    Neither shows in the curves: the most frequent action is often right. Up to `LOOKED_AT` of the held-out
    frames that have an action are looked at. That is free until something is suspicious: a policy that always
    acts alike starts with the same token, and only then are its actions decoded as in an evaluation.

    Args:
        vla, examples, config, kept: see `make_batch`.
        held_out: int (n,), the frames held out.
        name, step: of the policy and the run, for the error.

    Raises:
        KitError: no action token is the most likely one anywhere, or all greedy actions are one.
    """
    acted = held_out[np.isfinite(examples.actions[held_out]).all(axis=1)]
    if len(acted) < FEWEST:
        return
    most = LOOKED_AT if config.accumulate == 1 else max(FEWEST, _at_once(config))
    count = min(most, len(acted))
    rows, pictures = examples.look(acted[np.linspace(0, len(acted) - 1, count).astype(int)])
    batch, first = make_batch(vla, examples, rows, config, kept), vla.first_action
    with config.autocast(vla.device):
        logits = runner(vla, config, kept)(batch)[:, :-1].float()  # B, K-1, V
    target = batch.sequences.input_ids[:, -logits.shape[1] :]  # B, K-1
    places = batch.sequences.kinds[:, -logits.shape[1] :] == ACTION_KIND
    likeliest = logits[places].argmax(-1)
    kept_where = "the state saved last is from before; start again in another folder"
    if not vla.is_action(likeliest).any():
        what = (
            f"{name} gives no action tokens at step {step}: in {len(rows)} held-out frames, none is the "
            "most likely at any place of the action"
        )
        smaller = "a smaller learning_rate, lambda_reasoning or base_share"
        remedy = f"with {smaller}, or from a base that has learned actions"
        raise KitError(what, f"{kept_where}, {remedy}")
    low, high = vla.bins.ranges[0]
    starts = logits[torch.arange(len(logits), device=logits.device), places.int().argmax(1)]  # B, V
    episodes = len(np.unique(examples.episodes[rows]))
    should_differ = (
        episodes >= EPISODES
        and not all(np.array_equal(pictures[0], picture) for picture in pictures)
        and not _all_alike(target[places].view(len(rows), -1))
    )
    if not (should_differ and _all_alike(starts[:, first + low : first + high].argmax(-1))):
        return
    own = None if examples.proprioception is None else examples.proprioception[rows]
    policy = VLAPolicy(vla, name, order=config.orders[0])
    actions = policy.decide(pictures, [examples.instructions[row] for row in rows], own)
    if _all_alike(np.stack([action.tokens for action in actions])):
        what = (
            f"{name} has collapsed at step {step}: its action is the same on {len(rows)} different "
            f"held-out frames of {episodes} episodes"
        )
        raise KitError(
            what, f"{kept_where}, with a smaller learning_rate or base_share, or fewer freeze_layers"
        )


def _at_once(config: TrainingConfig) -> int:
    """How many frames a training step computes at once in this process, which therefore fit."""
    return max(1, config.batch_size // (config.accumulate * PartialState().num_processes))


def _all_alike(values: Array | Tensor) -> bool:
    alike: Any = values == values[:1]
    return bool(alike.all())


def _parts(rows: Array, examples: Examples, parts: int) -> list[Array]:
    """The frames of a step in so many parts, those with texts of like lengths together."""
    by_length = rows[np.argsort([len(examples.rationales[row]) for row in rows], kind="stable")]
    return [np.sort(part) for part in np.array_split(by_length, parts)]


def _schedule(step: int, config: TrainingConfig) -> float:
    """Share of the peak learning rate: linear warm-up, cosine to a tenth."""
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(1, config.steps - warm)))


@contextmanager
def _board(folder: Path) -> Iterator[Watch]:
    """A function that shows a row of the history in TensorBoard.

    Raises:
        KitError: TensorBoard is not installed.
    """
    with as_kit_error(
        "TensorBoard cannot be imported",
        "install it (pip install tensorboard), or set tensorboard to False",
        (ImportError,),
    ):
        from torch.utils.tensorboard import SummaryWriter
    with SummaryWriter(str(folder)) as writer:

        def show(row: dict[str, Any]) -> None:
            for key in row.keys() - {"step", "split", "policy"}:
                writer.add_scalar(f"{row['split']}/{key}", row[key], row["step"])

        yield show
