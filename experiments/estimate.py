"""What a plan takes, before it is begun: runs, episodes, hours; and what it can find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt

from statsmodels.stats.power import TTestPower

from experiments.design import Profile, Stage
from refinevla_kit.evaluation.intervals import resolvable_gain
from refinevla_kit.figures.style import markdown
from refinevla_kit.tasks import VARIANT_AGGREGATION, find_task

# Seconds on two cores with nothing else on them (docs/experiment.md): a training step of 32 frames below and
# in each layer that trains, for a
# sequence without and with a rationale; an episode; an environment made; an episode of a policy that writes
# its rationale before every action.
STEP, LAYER = {False: 0.05, True: 0.15}, {False: 0.035, True: 0.12}
EPISODE, ENVIRONMENT, THINKING = 2.1, 1.5, 14.0
LAYERS = 5


def episodes(profile: Profile, stage: Stage) -> int:
    """Number of episodes a stage plays."""
    return stage.block.starts * scenes(profile, stage)


def seconds(profile: Profile, stage: Stage, trained: bool = False) -> float:
    """Of a stage, training included unless it is `trained`."""
    arm, says = stage.arm, stage.arm.lambda_reasoning > 0
    training = (
        0.0
        if trained
        else profile.steps
        * profile.batch_size
        / 32
        * (STEP[says] + LAYER[says] * (LAYERS - arm.freeze_layers))
    )
    return (
        training
        + scenes(profile, stage) * ENVIRONMENT
        + episodes(profile, stage) * (THINKING if arm.order == "rationale_first" else EPISODE)
    )


def describe(profile: Profile, stages: Sequence[Stage], reasons: Mapping[str, str] | None = None) -> str:
    """The plan as text: a line a block and arm, and sums."""
    lines, seen, total = (
        [f"{'block':<14} {'arm':<28} {'seeds':<16} {'episodes':>8} {'hours':>6}"],
        set[tuple[str, int]](),
        [0, 0.0, 0],
    )
    rows: dict[tuple[str, str], list[tuple[int, int, float]]] = {}
    for stage in stages:
        run = (stage.arm.name, stage.seed)
        rows.setdefault((stage.block.name, stage.arm.name), []).append(
            (stage.seed, episodes(profile, stage), seconds(profile, stage, run in seen) / 3600)
        )
        seen.add(run)
    for (block, arm), row in rows.items():
        played, hours = sum(one[1] for one in row), sum(one[2] for one in row)
        lines.append(
            f"{block:<14} {arm:<28} {','.join(str(one[0]) for one in row):<16} {played:>8,} {hours:>6.2f}"
        )
        total = [total[0] + played, total[1] + hours, len(seen)]
    alone = "on two cores that do nothing else"
    lines.append(
        f"{total[2]} training runs of {profile.steps} steps, {total[0]:,} episodes, about "
        f"{total[1]:.1f} hours {alone}"
    )
    lines += [f"left out: {name}: {reason}" for name, reason in (reasons or {}).items()]
    return "\n".join(lines)


def power_table(
    seeds: int,
    starts: int,
    tasks: int,
    discordant: Sequence[float] = (0.2, 0.35),
    between: Sequence[float] = (0.0, 0.03, 0.06),
) -> str:
    """Markdown: the smallest difference found four times in five, as a way of training (over seeds) and for
    the checkpoints as they are.

    Args:
        starts: a seed and task.
        discordant: shares of the episodes on which two arms differ.
        between: spread over training runs.
    """
    heads = [
        "the two differ on",
        "these checkpoints",
        *(f"way of training, runs spread by {100 * one:g} points" for one in between),
    ]
    rows = []
    for share in discordant:
        fixed = resolvable_gain(0.5, seeds * starts * tasks, share)
        cells = [f"{100 * detectable(seeds, starts * tasks, share, one):.1f}" for one in between]
        rows.append([f"{share:.0%} of episodes", "none" if fixed is None else f"{100 * fixed:.1f}", *cells])
    return markdown(heads, rows)


def detectable(seeds: int, episodes: int, discordant: float, between: float, power: float = 0.8) -> float:
    """The smallest true difference that so many training seeds find with this power, two-sided at 5 %, by the
    t-test over seeds.

    Args:
        episodes: a seed and policy, over all tasks.
        discordant: share of them on which the two differ.
        between: standard deviation of the difference over training runs.
    """
    spread = sqrt(discordant / episodes + between**2)
    return float(TTestPower().solve_power(nobs=seeds, alpha=0.05, power=power)) * spread


def scenes(profile: Profile, stage: Stage) -> int:
    """Tasks and variants that a stage plays."""
    setting = stage.block.setting
    chosen = profile.variants if setting == VARIANT_AGGREGATION else None
    scored = [find_task(task).protocol(setting).scored_variants for task in profile.tasks_of(stage.block)]
    return sum(len(chosen or variants) for variants in scored)
