"""How the shipped base was made: see first, then act. A documented recipe with a seed, so that anyone can
make it again.

1. The vision tower learns where things are (grounding.py), from the simulator's own state, in pictures of
  every look: both asset packs, all variants.
2. Tower frozen, the language model learns the demonstrator's actions, to point at a named thing with
  PaliGemma's `<loc>` tokens, and, where that is asked for, to answer questions (questions.py) and to write
  rationales.
3. The policy drives, the demonstrator says what it would have done (driving.py), and the language model goes
  on with both.

Without `--questions` and `--rationales` no sentence is learned, except that the rationales' words are in the
vocabulary: such bases, of the first experiment, had read nothing before the comparison they were made for.

    python -m experiments.pretraining OUTPUT --dataset DEMONSTRATIONS [--scenery DATASET ...]      stages 1
                                                                                                   and 2
    python -m experiments.pretraining OUTPUT --dataset DEMONSTRATIONS --base BASE --driven DATASET   stage 3

Under `accelerate launch` each process takes its share of every batch; on two cores two processes of one
thread are faster than two threads.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import PartialState
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from experiments.grounding import THINGS, Places, ground_tower, load_places, things_of
from experiments.questions import WORDINGS, Question, as_examples, ask, in_groups, location
from refinevla_kit.episodes import open_dataset
from refinevla_kit.errors import KitError
from refinevla_kit.files import replacing, sha256
from refinevla_kit.simulator.contract import Array
from refinevla_kit.tasks import WIDOWX_TASKS, find_task
from refinevla_kit.training.examples import Examples, find_rationales, held_out, join, load_examples
from refinevla_kit.training.loop import TrainingConfig, fine_tune
from refinevla_kit.vlas.action_tokens import UniformBins
from refinevla_kit.vlas.compact import CompactConfig, CompactVLA, build, load
from refinevla_kit.vlas.compact_parts import state_features, train_vocabulary
from scripts import cards

TOGETHER = 3  # questions about a frame that are asked at once, at most
STILL = 1e-3  # least scale of a state feature: roll and pitch hardly move, and noise must not be blown up


@dataclass(frozen=True)
class PretrainingConfig:
    """How a base is made.

    Attributes:
        grounding_steps: of 64 frames, tower alone; 0 leaves the tower as it was initialised (a control).
        steps, batch_size, learning_rate: of the language model.
        pointing: frames that are also asked for a thing's place, as a share of all.
        questions: frames that are also asked a question of any kind, likewise; more than 1 for several each.
        rationales: episodes whose rationales are learned with the actions, as a share of those that have any.
        train_tower: the tower learns on with the language model, instead of staying as grounding left it.
        seed: of everything.
        grounding_rate: the tower's learning rate in grounding, lower for one that sees already.
        order, accumulate, texts_alike: see `TrainingConfig`.
        asked: kinds of questions; none for all.
        acting: actions are learned, too; without, the questions alone.
    """

    grounding_steps: int = 3000
    steps: int = 5000
    batch_size: int = 64
    learning_rate: float = 1e-3
    pointing: float = 0.25
    questions: float = 0.0
    rationales: float = 0.0
    train_tower: bool = False
    seed: int = 0
    grounding_rate: float = 1e-3
    order: str = "action_first"
    accumulate: int = 1
    asked: tuple[str, ...] = ()
    acting: bool = True
    texts_alike: bool = False

    def __post_init__(self) -> None:
        for name, most in (("pointing", 1), ("questions", len(WORDINGS)), ("rationales", 1)):
            if not 0 <= getattr(self, name) <= most:
                what = f"{name} is {getattr(self, name):g}"
                raise KitError(what, f"give a share of the frames or episodes, 0 to {most}")


def pretrain(
    demonstrations: Sequence[str | Path],
    work: str | Path,
    config: PretrainingConfig,
    scenery: Sequence[str | Path] = (),
    model: CompactConfig | None = None,
    start: str | Path | None = None,
) -> CompactVLA:
    """Make a base (stages 1 and 2) from demonstrations with a simulator sidecar.

    Args:
        demonstrations: datasets to act like; rationales beside the first give words to the vocabulary,
            nothing else.
        work: folder of the resumable state of the second stage.
        scenery: further datasets, that only the tower sees.
        model: its size.
        start: a checkpoint of the same widths to begin with instead of random weights, see `carry_over`.
    """
    model = model or CompactConfig(layers=5, proprioception=True)
    things = _things([*demonstrations, *scenery], config)
    first = load_examples(demonstrations[0], find_rationales(demonstrations[0]))
    words = {*first.rationales, *(task.instruction for task in WIDOWX_TASKS), *map(question, things)}
    examples = _frames(demonstrations, config, {demonstrations[0]: first})
    del first  # gigabytes, twice
    asked = _asked(demonstrations, config)
    words |= {*examples.instructions, *examples.rationales}
    tokenizer = train_vocabulary([*words, *(text for one in asked for text in (one.text, one.answer))])
    model = model if examples.stateful else replace(model, proprioception=False)
    robot, given = robot_in(demonstrations[0]), load(start) if start else None
    goes_on = given is not None and given.conventions.robot == robot
    bins = given.bins if given is not None and goes_on else UniformBins.fit(examples.actions)
    vla = build(model, tokenizer, bins, config.seed)
    if given is not None:
        carry_over(given, vla)
    if vla.reads_state and examples.proprioception is not None and not goes_on:
        features, tower = state_features(examples.proprioception), vla.model.model.vision_tower
        tower.state_mean.copy_(torch.from_numpy(features.mean(0)))
        tower.state_scale.copy_(torch.from_numpy(np.maximum(features.std(0), STILL)))
    places = cache(partial(_places, demonstrations, things))  # minutes, and not always needed
    grounding = _grounded(vla, examples, places, demonstrations, scenery, things, work, config)
    points = [pointing(examples, places(), config.pointing, config.seed, things)] if config.pointing else []
    history = _act_and_answer(vla, examples, points, asked, config, work)
    vla.provenance.update(
        made_by="experiments.pretraining",
        robot=robot,
        start=sha256(Path(start) / "model.safetensors") if start else None,
        model=asdict(model),
        pretraining=asdict(config),
        torch=torch.__version__,
        demonstrations=_about(demonstrations),
        scenery=_about(scenery),
        grounding=grounding,
        validation=history[-1],
    )
    return vla


def robot_in(dataset: str | Path) -> str:
    """Whose demonstrations a dataset of the kit holds."""
    return find_task(open_dataset(dataset).episodes[0].task).robot


def _grounded(
    vla: CompactVLA,
    examples: Examples,
    places: Callable[[], Places],
    demonstrations: Sequence[str | Path],
    scenery: Sequence[str | Path],
    things: Sequence[str],
    work: str | Path,
    config: PretrainingConfig,
) -> dict[str, float] | None:
    """Ground the tower on what is not held out, or read it from `work` where that was done; returns the last
    row of the history.
    """
    if not config.grounding_steps:
        return None
    file, tower = Path(work) / "tower.safetensors", vla.model.model.vision_tower
    settings = {name: value for name, value in asdict(config).items() if name.startswith("grounding")}
    about = [settings, config.seed, _about(demonstrations), _about(scenery), things, list(vla.grid)]
    made = hashlib.sha256(json.dumps(about).encode()).hexdigest()
    if file.is_file():
        with safe_open(file, "pt") as held:
            said = held.metadata()
        if said["made"] == made:
            tower.load_state_dict(load_file(file))
            return dict(json.loads(said["last"]))
    seen = [(load_examples(path).images, load_places(path, things)) for path in scenery]
    images = [cast(Array, pictures) for pictures in (examples.images, *(images for images, _ in seen))]
    taught = np.ones(sum(map(len, images)), bool)
    taught[examples.pictures(np.arange(len(examples)))] = ~held_out(examples.episodes)
    history = ground_tower(
        vla,
        np.concatenate(images) if seen else images[0],
        _joined([places(), *(place for _, place in seen)]),
        config.grounding_steps,
        learning_rate=config.grounding_rate,
        seed=config.seed,
        rows=np.flatnonzero(taught),
    )
    if PartialState(cpu=not torch.cuda.is_available()).is_main_process:
        with replacing(file) as part:
            save_file(tower.state_dict(), part, {"made": made, "last": json.dumps(history[-1])})
    return history[-1]


def improve(
    base: str | Path,
    demonstrations: Sequence[str | Path],
    driven: Sequence[str | Path],
    work: str | Path,
    config: PretrainingConfig,
) -> CompactVLA:
    """Go on with a base (stage 3): demonstrations and episodes that the base drove, labelled by the
    demonstrator.
    """
    vla, paths = load(base), [*demonstrations, *driven]
    examples = _frames(paths, config)
    points = []
    if config.pointing:
        things = _things(paths, config)
        points = [pointing(examples, _places(paths, things), config.pointing, config.seed, things)]
    history = _act_and_answer(vla, examples, points, _asked(paths, config), config, work)
    stage = {**asdict(config), "demonstrations": _about(demonstrations), "driven": _about(driven)}
    vla.provenance.update(improved=[*vla.provenance.get("improved", []), stage], validation=history[-1])
    return vla


@torch.no_grad()
def blend(vla: CompactVLA, base: str | Path, kept: float) -> None:
    """Make the weights of `vla` the average of its own and those of the base that it went on from, in place
    and in the precision that bases are kept in.

    Args:
        kept: share of the base, 0 to 1.
    """
    before = dict(load(base).model.named_parameters())
    for name, tensor in vla.model.named_parameters():
        tensor.copy_(before[name].bfloat16() * kept + tensor.bfloat16() * (1 - kept))
    vla.provenance["improved"][-1].update(kept=kept)


@torch.no_grad()
def carry_over(start: CompactVLA, vla: CompactVLA) -> None:
    """Give `vla` the weights of another compact VLA of its widths; words keep theirs by what they spell, and
    a finer or coarser grid takes the places between. What `start` does not have stays random.
    """
    known, words = start.tokenizer.get_vocab(), vla.tokenizer.get_vocab()
    shared = sorted(known.keys() & words.keys())
    of_start, of_vla = ([table[word] for word in shared] for table in (known, words))
    given = start.model.state_dict()
    for name, tensor in vla.model.state_dict().items():
        if name not in given:
            continue
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            tensor[of_vla] = given[name][of_start]
        elif name.endswith("tower.position"):
            old = given[name].T.unflatten(1, start.grid)[None]  # 1, d, rows, columns
            tensor.copy_(nn.functional.interpolate(old, vla.grid, mode="bilinear")[0].flatten(1).T)
        else:
            tensor.copy_(given[name])


def question(thing: str) -> str:
    """How the place of a thing is asked for."""
    return f"point to the {thing}"


def pointing(
    examples: Examples, places: Places, share: float, seed: int, things: Sequence[str] = THINGS
) -> Examples:
    """Frames that ask for the place of one thing in view, answered as PaliGemma does: `<locY><locX>`, the
    picture divided into 1024.

    Args:
        places: of the things in each of the examples' pictures.
    """
    rng = np.random.default_rng(seed)
    picture = examples.pictures(np.arange(len(examples)))
    seen = np.flatnonzero(places.present[picture].any(1))
    rows = np.sort(rng.permutation(seen)[: round(share * len(examples))])
    chosen = [int(rng.choice(np.flatnonzero(places.present[picture[row]]))) for row in rows]
    return replace(
        examples,
        picture=examples.pictures(rows),
        actions=np.full((len(rows), 7), np.nan, np.float32),
        episodes=examples.episodes[rows],
        instructions=tuple(question(things[thing]) for thing in chosen),
        rationales=tuple(location(*place) for place in places.pixels[picture[rows], chosen]),
        proprioception=None if examples.proprioception is None else examples.proprioception[rows],
    )


def _things(paths: Sequence[str | Path], config: PretrainingConfig) -> Sequence[str]:
    """What is pointed to and grounded: all that is shown, where it is asked about."""
    return things_of(paths) if config.questions else THINGS


def _frames(
    paths: Sequence[str | Path],
    config: PretrainingConfig,
    known: Mapping[str | Path, Examples] | None = None,
) -> Examples:
    """The frames of all datasets, those that are not `known` read once however often they count."""
    read = dict(known or {})
    for path in paths:
        if path not in read:
            read[path] = _read(path, config)
    return join(_spoken([read[path] for path in paths], config))


def _read(path: str | Path, config: PretrainingConfig) -> Examples:
    """The frames of a dataset, with its rationales where they are learned."""
    dataset = open_dataset(path)
    every = sum(item.length for item in dataset.episodes)
    found = load_examples(dataset, find_rationales(path) if config.rationales else None, stream=False)
    if len(found) != every:  # questions are asked by the number of a frame
        raise KitError(f"{every - len(found)} frames of {path} cannot be read", "record it anew")
    return found


def _spoken(read: Sequence[Examples], config: PretrainingConfig) -> list[Examples]:
    """The same frames, with the rationales of the episodes that are drawn for it."""
    found, rng = [], np.random.default_rng(config.seed)
    for examples in read:
        kept = rng.random(int(examples.episodes.max()) + 1) < config.rationales
        texts = zip(examples.rationales, kept[examples.episodes], strict=True)
        spoken = tuple(text if keep else "" for text, keep in texts)
        found.append(replace(examples, rationales=spoken, about=""))
    return found


def _asked(paths: Sequence[str | Path], config: PretrainingConfig) -> list[Question]:
    """Questions about the frames of all datasets, counted through; with several a frame up to three at
    once.
    """
    asked: list[Question] = []
    frames = 0
    for number, path in enumerate(paths if config.questions else ()):
        asked += [
            replace(one, row=one.row + frames)
            for one in ask(path, config.questions, config.seed + number, config.asked)
        ]
        frames += sum(item.length for item in open_dataset(path).episodes)
    return in_groups(asked, TOGETHER, config.seed)


def acted_and_asked(
    examples: Examples, points: Sequence[Examples], asked: Sequence[Question], acting: bool = True
) -> Examples:
    """Frames to act in (where wanted), then those that ask for a place, then those that are asked about; an
    episode's frames all on one side of the split to held-out ones.
    """
    acted = [examples] if acting else []
    return join([*acted, *points, *([as_examples(examples, asked)] if asked else [])])


def _act_and_answer(
    vla: CompactVLA,
    examples: Examples,
    points: Sequence[Examples],
    asked: Sequence[Question],
    config: PretrainingConfig,
    work: str | Path,
) -> list[dict[str, Any]]:
    """Train the language model on all."""
    together = acted_and_asked(examples, points, asked, config.acting)
    del examples, points  # gigabytes, twice
    training = TrainingConfig(
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lambda_reasoning=1.0 if any(together.rationales) else 0.0,
        order=config.order,
        accumulate=config.accumulate,
        texts_alike=config.texts_alike,
        freeze_layers=0,
        freeze_tower=not config.train_tower,
        validate_every=100,
        save_every=500,
        seed=config.seed,
    )
    return fine_tune(vla, together, training, work, "compact_base")


def _places(paths: Sequence[str | Path], things: Sequence[str]) -> Places:
    """Of the pictures of all datasets, each once, as `join` has them."""
    return _joined([load_places(path, things) for path in dict.fromkeys(paths)])


def _joined(places: Sequence[Places]) -> Places:
    return Places(
        *(np.concatenate([getattr(each, field) for each in places]) for field in Places.__dataclass_fields__)
    )


def _about(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """What model cards say of datasets."""
    found = []
    for path in paths:
        lengths = [item.length for item in open_dataset(path).episodes]
        found.append(
            {
                "name": Path(path).name,
                "episodes": len(lengths),
                "frames": sum(lengths),
                "sha256": sha256(Path(path) / "data"),
            }
        )
    return found


def write_card(
    path: str | Path, provenance: Mapping[str, Any], records: Sequence[Mapping[str, Any]], notes: str = ""
) -> None:
    """README.md beside a saved checkpoint: what it was made of, and how often it succeeds.

    Args:
        records: rows of assets, setting, task, successes at the last step and at any step, episodes.
        notes: time, machine, what was tried.
    """
    data = "".join(
        f"- {name}: {d['name']}, {d['episodes']} episodes, {d['frames']} frames\n"
        for name, d in _datasets(provenance)
    )
    stages = [provenance["pretraining"], *provenance.get("improved", [])]
    read = any(stage.get("questions") or stage.get("rationales") for stage in stages)
    language = (
        "It has learned to answer questions and to write the oracle's rationales."
        if read
        else "It has never been trained on a rationale."
    )
    cards.write(
        path,
        f"# Compact VLA, base\n\nMade by `{provenance['made_by']}`: "
        f"{provenance['pretraining']}.\n\n{data}\n{notes}\n\n"
        f"{language} Episodes of SimplerEnv's grid:\n\n{cards.rate_table(records)}",
    )


def _datasets(provenance: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    what = {
        "demonstrations": "demonstrations",
        "driven": "driven by the policy or disturbed, labelled by the demonstrator",
    }
    rounds = [
        (f"round {number}, {of}", each)
        for number, one in enumerate(provenance.get("improved", []), 1)
        for key, of in what.items()
        for each in one.get(key, [])
    ]
    named = [(kind, each) for kind in ("demonstrations", "scenery") for each in provenance.get(kind, [])]
    return named + rounds


def save_base(vla: CompactVLA, path: str | Path) -> Path:
    """Write the base for shipping, in bfloat16 (half the size)."""
    return vla.save(path, torch.bfloat16)


def main(arguments: list[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.pretraining",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    usual, add = PretrainingConfig(), parser.add_argument
    several: dict[str, Any] = {"type": Path, "nargs": "+", "action": "extend"}
    add("output", type=Path, help="folder of the checkpoint to write")
    add("--dataset", **several, required=True, help="demonstrations; the rationales of the first give words")
    add("--scenery", **several, default=[], help="further datasets that only the vision tower sees")
    add("--base", type=Path, help="go on with this checkpoint instead of beginning anew")
    add("--driven", **several, default=[], help="with a base: what `python -m experiments.driving` recorded")
    add("--work", type=Path, default=Path("runs/pretraining"), help="folder of the resumable state")
    add("--grounding-steps", type=int, default=usual.grounding_steps)
    add("--steps", type=int, default=usual.steps)
    add("--batch-size", type=int, default=usual.batch_size)
    add("--learning-rate", type=float, default=usual.learning_rate)
    add(
        "--pointing",
        type=float,
        default=usual.pointing,
        help="share of the frames also asked for a thing's place",
    )
    add("--questions", type=float, default=usual.questions, help="questions a frame")
    add(
        "--rationales",
        type=float,
        default=usual.rationales,
        help="share of the episodes that are reasoned about",
    )
    add("--patch", type=int, default=20, help="pixels a side of what a picture token stands for, 10 or 20")
    add("--train-tower", action="store_true", help="the vision tower learns on with the language model")
    add("--seed", type=int, default=usual.seed)
    add("--threads", type=int, help="compute threads; default all cores")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads or torch.get_num_threads())
    first = 0 if given.base else given.grounding_steps
    try:
        config = PretrainingConfig(
            first,
            given.steps,
            given.batch_size,
            given.learning_rate,
            given.pointing,
            given.questions,
            given.rationales,
            given.train_tower,
            given.seed,
        )
        if given.base:
            vla = improve(given.base, given.dataset, given.driven, given.work, config)
        else:
            model = CompactConfig(layers=5, proprioception=True, patch=given.patch)
            vla = pretrain(given.dataset, given.work, config, given.scenery, model)
        if PartialState().is_main_process:
            made = {"checkpoint": str(save_base(vla, given.output)), **vla.provenance}
            print(json.dumps(made, ensure_ascii=False, default=str))
    except KitError as error:
        raise SystemExit(f"pretraining: {error}") from None


if __name__ == "__main__":
    main()
