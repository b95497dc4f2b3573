"""The experiment as data: what is trained, what is compared with what, on how many starts, in which order.

An arm is a way of training; with a seed it is a run. A block asks one question: its arms, seeds, setting,
number of starts, and the contrasts that answer it. Blocks from which conclusions are drawn come first, and
all arms of a seed before the next seed, so that an experiment stopped anywhere has whole pairs of what
matters most. Runs that two blocks share are made once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.statistics import Rule
from refinevla_kit.tasks import VARIANT_AGGREGATION, VISUAL_MATCHING, WIDOWX_TASKS, find_task
from refinevla_kit.training.config import TrainingConfig
from refinevla_kit.training.resume import ADDED, without_unchanged

CLAIMED_GAIN = 0.05
"""ReFineVLA on the WidowX, average of four tasks: +5.0 points (both versions of the paper; primary)."""
# One exchange of texts for all training seeds: the control is about wrong texts, not about which wrong ones
SHUFFLE_SEED = 0


@dataclass(frozen=True)
class Arm:
    """A way of training. Everything that is no field of it is the same for all arms.

    Attributes:
        name: what records call it.
        lambda_reasoning, order, freeze_layers, freeze_tower: as in `TrainingConfig`.
        rationales: "own", or one of `controls.TEXTS`.
        share: of the demonstrations, the first ones of each task.
        base: it starts from: "main"; of two bases made alike, "grounded", whose tower first learned where
            things are, or "ungrounded"; or "wordless", which has never read or written a sentence.
        acting: share of the frames whose actions are learned; the others are only spoken about.
        reasoning_first: half of the steps on rationales alone, then the other half on actions alone.
    """

    name: str
    lambda_reasoning: float = 0.0
    freeze_layers: int = 3
    order: str = "action_first"
    rationales: str = "own"
    share: float = 1.0
    base: str = "main"
    acting: float = 1.0
    reasoning_first: bool = False
    freeze_tower: bool = True


@dataclass(frozen=True)
class Block:
    """One question.

    Attributes:
        name: for `--only`.
        question: in a sentence.
        arms, seeds, setting, starts: each arm is trained with each seed and plays `starts` dense starts a
            task (and variant) in `setting`.
        contrasts: pairs of arms' names; the difference is the first's success minus the second's. They may
            name arms of earlier blocks, of which the starts that both have played are used.
        exploratory: no conclusion is drawn from it, whatever it shows.
        tasks: that are played; none for those of the demonstrations.
        rule: what counts as success, see `evaluation.statistics`.
    """

    name: str
    question: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    setting: str
    starts: int
    contrasts: tuple[tuple[str, str], ...]
    exploratory: bool = True
    tasks: tuple[str, ...] = ()
    rule: Rule = "last"


@dataclass(frozen=True)
class Profile:
    """An experiment of one size.

    Attributes:
        tasks, variants: of the protocol; variants None are those that are scored.
        episodes_per_task, disturb, noise, settle, data_seed: of the demonstrations (`record`).
        steps, batch_size, learning_rate: of every run.
        confounded: share of the demonstrations that are chosen such that the named thing and its target are
            the left ones of two each (`data.choose`); 0 takes all as they are.
        per_frame: a rationale for each frame, instead of one for each segment.
        experiment: its records lie in data/EXPERIMENT, its page is docs/EXPERIMENT.md.
        claimed: the gain that the primary contrast is held against, and `claim`, whose it is.
    """

    name: str
    tasks: tuple[str, ...]
    variants: tuple[str, ...] | None
    episodes_per_task: int
    steps: int
    batch_size: int
    blocks: tuple[Block, ...]
    learning_rate: float = 5e-4
    disturb: float = 0.1
    noise: float = 1.0
    settle: int = 8
    data_seed: int = 1000  # no base of the kit was made from demonstrations of this seed
    confounded: float = 0.0
    per_frame: bool = False
    experiment: str = "experiment"
    claimed: float = CLAIMED_GAIN
    claim: str = "the paper's"

    def training(self, arm: Arm, seed: int) -> TrainingConfig:
        """How a run is trained. A policy that has collapsed is a result here, so nothing is stopped for
        it.
        """
        every = max(1, self.steps // 4)
        return TrainingConfig(
            self.steps,
            self.batch_size,
            self.learning_rate,
            lambda_reasoning=arm.lambda_reasoning,
            freeze_layers=arm.freeze_layers,
            freeze_tower=arm.freeze_tower,
            order=arm.order,
            seed=seed,
            validate_every=every,
            save_every=every,
            collapse_grace=self.steps,
            robot=find_task(self.tasks[0]).robot,
        )

    def arms(self) -> dict[str, Arm]:
        """All arms by name."""
        return {arm.name: arm for block in self.blocks for arm in block.arms}

    def tasks_of(self, block: Block) -> tuple[str, ...]:
        """What a block plays."""
        return block.tasks or self.tasks


@dataclass(frozen=True)
class Stage:
    """One step of the plan: train a run, if it is not trained yet, and play it."""

    block: Block
    arm: Arm
    seed: int


def plan(profile: Profile, only: Sequence[str] = ()) -> list[Stage]:
    """What is to be done, in order: the confirmatory blocks seed by seed, then so the exploratory ones.

    Args:
        only: names of blocks; none means all.
    Raises:
        KitError: an unknown name.
    """
    known = [block.name for block in profile.blocks]
    if unknown := [name for name in only if name not in known]:
        raise KitError(f"unknown block {unknown[0]!r}", f"choose from {', '.join(known)}")
    chosen = [block for block in profile.blocks if not only or block.name in only]
    groups = [
        [block for block in chosen if block.exploratory == exploratory] for exploratory in (False, True)
    ]
    return [
        Stage(block, arm, seed)
        for group in groups
        for seed in sorted({seed for block in group for seed in block.seeds})
        for block in group
        if seed in block.seeds
        for arm in block.arms
    ]


LATER = (*ADDED, "action_words", "gradient_checkpointing")
"""Settings that came after the first runs were published: in a key only where an arm changes them."""
LATER_OF_ARMS = ("acting", "reasoning_first", "freeze_tower")


def run_key(arm: Arm, config: TrainingConfig, base: str, data: str) -> str:
    """12 hex digits that change with whatever a run's outcome depends on: base and data (their hashes), the
    arm whatever its name, the training. Not with the precision, which is the machine's own: what was played
    in bfloat16 may be gone on with in float32.
    """
    training = without_unchanged(config, LATER) | {"precision": "bf16"}
    plain = asdict(Arm(""))
    known = {
        name: value
        for name, value in asdict(arm).items()
        if name not in LATER_OF_ARMS or value != plain[name]
    }
    content = {
        **known,
        "name": "",
        "base": base,
        "data": data,
        "shuffle": SHUFFLE_SEED,
        "training": training,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def design(
    main_seeds: tuple[int, ...],
    main_starts: int,
    variant_starts: int,
    sweep_seeds: tuple[int, ...],
    sweep_starts: int,
    thinking_starts: int,
    variant_seeds: tuple[int, ...] = (),
    depth: int = 3,
    depths: tuple[int, ...] = (1, 2, 4),
    lambdas: tuple[float, ...] = (0.1, 0.5, 1.0),
    shares: tuple[float, ...] = (0.25, 0.5),
) -> tuple[Block, ...]:
    """The blocks of an experiment.

    Args:
        main_seeds, main_starts, variant_starts: of the main comparison, in visual matching and (a variant) in
            variant aggregation.
        variant_seeds: where not all main ones play in variant aggregation.
        sweep_seeds, sweep_starts: of the exploratory blocks, among the main ones.
        thinking_starts: of the arm that writes its rationale before
            every action, which takes some ten times as long to play.
        depth: frozen layers of the main comparison;
        depths, lambdas, shares: further values.
    """
    control = Arm("action_only", freeze_layers=depth)
    reasoning = Arm("with_reasoning", 0.3, depth)
    shuffled = replace(reasoning, name="shuffled_rationales", rationales="shuffled")
    main = (control, reasoning, shuffled)
    contrasts = tuple(
        (a.name, b.name) for a, b in ((reasoning, control), (reasoning, shuffled), (shuffled, control))
    )

    def pairs(suffix: str, **changes: object) -> tuple[Arm, Arm]:
        return tuple(replace(arm, name=f"{arm.name}_{suffix}", **changes) for arm in (control, reasoning))  # type: ignore[return-value, arg-type]

    def sweep(
        name: str,
        question: str,
        arms: Sequence[Arm],
        contrasts: Sequence[tuple[str, str]],
        starts: int = sweep_starts,
    ) -> Block:
        return Block(name, question, tuple(arms), sweep_seeds, VISUAL_MATCHING, starts, tuple(contrasts))

    weights = [replace(reasoning, name=f"lambda_{value:g}", lambda_reasoning=value) for value in lambdas]
    deep = [pairs(f"depth_{value}", freeze_layers=value) for value in depths]
    fewer = [pairs(f"data_{value:.0%}".rstrip("%"), share=value) for value in shares]
    twins = [pairs(name, base=name) for name in ("grounded", "ungrounded")]
    thinking = replace(reasoning, name="rationale_first", order="rationale_first")
    gains = lambda found: [(b.name, a.name) for a, b in found]  # noqa: E731
    return (
        Block(
            "main",
            "Does the reasoning loss raise success, and is it what the rationales say?",
            main,
            main_seeds,
            VISUAL_MATCHING,
            main_starts,
            contrasts,
            exploratory=False,
        ),
        Block(
            "variants",
            "The same under changed scenes.",
            main,
            variant_seeds or main_seeds,
            VARIANT_AGGREGATION,
            variant_starts,
            contrasts,
            exploratory=False,
        ),
        sweep(
            "lambda",
            "How does the gain change with the weight of the reasoning loss?",
            weights,
            [(one.name, control.name) for one in weights],
        ),
        sweep(
            "depth",
            "How does it change with the number of frozen layers?",
            [arm for pair in deep for arm in pair],
            gains(deep),
        ),
        sweep(
            "data",
            "How does it change with the amount of demonstrations?",
            [arm for pair in fewer for arm in pair],
            gains(fewer),
        ),
        sweep(
            "grounding",
            "How does it change with a base that was never taught where things are?",
            [arm for pair in twins for arm in pair],
            [*gains(twins), (twins[0][0].name, twins[1][0].name)],
        ),
        sweep(
            "order",
            "What does writing the rationale before the action do?",
            [thinking],
            [(thinking.name, reasoning.name), (thinking.name, control.name)],
            thinking_starts,
        ),
    )


WIDOWX = tuple(task.name for task in WIDOWX_TASKS)
PROFILES = {
    # every stage runs, nothing is learned
    "smoke": Profile(
        "smoke",
        ("widowx_carrot_on_plate",),
        ("lighting_darker",),
        4,
        3,
        2,
        design((0, 1), 1, 1, (0,), 1, 1, variant_seeds=(0,), depths=(4,), lambdas=(1.0,), shares=(0.5,)),
        disturb=0.0,
        noise=0.0,
        settle=3,
    ),
    # hours on two cores: 216 distinct starts a task and arm in visual matching, 24 x 9 variants = 216
    # episodes in variant aggregation
    "laptop": Profile("laptop", WIDOWX, None, 24, 400, 32, design(tuple(range(6)), 36, 4, (0, 1), 18, 6)),
    # days on two cores, a night on a machine with many
    "full": Profile(
        "full",
        WIDOWX,
        None,
        96,
        1600,
        32,
        design(tuple(range(12)), 72, 12, tuple(range(4)), 72, 24, depths=(0, 1, 2, 4)),
    ),
}
