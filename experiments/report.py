"""The report of an experiment, from its records alone: pictures with the JSON of what made them, tables, and
the section of its page, docs/experiment.md or another one's.

    python -m experiments.report [--records DIR/records] [--publish]

Without `--publish` it writes beside the records; with it, the records go into the repository, and figures/
and the page are made anew.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.analysis import (
    PRIMARY,
    Results,
    by_variant,
    conclusion,
    contrasts,
    costs,
    interactions,
    load_results,
    of_block,
    rates,
    varied,
)
from experiments.design import PROFILES, Block, Stage
from experiments.estimate import episodes, power_table
from experiments.following import FOLLOWING
from experiments.runner import DEMONSTRATIONS, RECORDS, STUDY, TEXT_USE, copy_records
from experiments.seeds import SeedComparison
from refinevla_kit.errors import KitError
from refinevla_kit.evaluation.statistics import AVERAGE
from refinevla_kit.figures.sensitivity import sensitivity
from refinevla_kit.figures.style import (
    BLUE,
    GREY,
    INK,
    MUTED,
    VERMILION,
    beside,
    canvas,
    interval_text,
    label,
    markdown,
    p_text,
    points,
    rate_text,
    save_figure,
)
from refinevla_kit.files import read_json, replacing
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.tasks import VISUAL_MATCHING
from scripts import cards

SHIPPED, DOCUMENTS = REPOSITORY / "data" / "experiment", REPOSITORY / "docs"
RULES = {
    "last": "success at the last step",
    "any": "success at any step",
    "named": "right object and right target",
}
BEGIN, END = "<!-- {}: made by python -m experiments.report, not by hand -->", "<!-- end of {} -->"


def write_report(records: str | Path, folder: str | Path, results: Results | None = None) -> Path:
    """Write pictures and `report.md` of the records in `records` into `folder`. Returns the report's path.

    Args:
        results: already loaded, for a profile that is not among the named ones.
    """
    results, folder = results or load_results(records), Path(folder)
    made_from = {
        "study": Path(records) / STUDY,
        "records": Path(records) / RECORDS,
        "profile": results.profile.name,
    }
    if groups := main_groups(results):
        picture = seed_differences(groups, results.profile.claimed, results.profile.claim)
        save_figure(picture, folder / f"{results.profile.experiment}_main", made_from)
    if found := varied(results):
        save_figure(sensitivity(found), folder / f"{results.profile.experiment}_sensitivity", made_from)
    path = folder / "report.md"
    with replacing(path) as part:
        part.write_text(results_text(results, text_use(records)), encoding="utf-8")
    return path


def main_groups(results: Results) -> dict[str, dict[str, SeedComparison]]:
    """Lines of the main picture by heading: the contrasts in each setting, then the primary one by task and
    by variant.
    """
    blocks, primary = [one for one in results.profile.blocks if not one.exploratory], _named(*PRIMARY)
    groups = {
        label(block.setting): {_pair(one): one for one in contrasts(results, block)} for block in blocks
    }
    groups["variant aggregation minus visual matching"] = {_pair(one): one for one in interactions(results)}
    for block in blocks:
        found = {
            label(task): one
            for task in results.profile.tasks_of(block)
            for one in contrasts(results, block, task=task)
            if (one.a, one.b) == PRIMARY
        }
        groups[f"{primary}: tasks, {label(block.setting)}"] = found
    groups[f"{primary}: variants"] = {
        name.replace("_", " "): one for name, one in by_variant(results, *PRIMARY).items()
    }
    return {heading: group for heading, group in groups.items() if group}


def seed_differences(
    groups: Mapping[str, Mapping[str, SeedComparison]],
    claimed: float | None = None,
    claim: str = "the paper's",
) -> Figure:
    """One line a contrast: the mean difference with its 95 % interval over training seeds, each seed's own
    difference as a tick beneath.

    The thin line is the interval with the checkpoints taken as they are. Lines without an interval over seeds
    (one seed) have the thin one alone.

    Args:
        groups: heading -> what a line is called -> the comparison.
        claimed: a gain to compare with, drawn across; `claim`: what it is called.
    """
    rows, y = list[tuple[float, str, SeedComparison]](), 0.0
    headings = dict[str, float]()
    for heading, group in groups.items():
        headings[heading] = y - 0.13
        y -= 0.75
        for name, one in group.items():
            rows.append((y, name, one))
            y -= 1.0
    with canvas(8.8, 1.2 + 0.36 * -y) as (figure, (axes,)):
        for height, _, one in rows:
            found = one.estimate
            told = found.known and found.low * found.high > 0
            if one.pooled:
                axes.plot([one.pooled.low, one.pooled.high], [height] * 2, color=GREY, linewidth=1.0)
            if found.known:
                axes.plot(
                    [found.low, found.high],
                    [height] * 2,
                    color=VERMILION,
                    linewidth=4.5,
                    alpha=0.4,
                    solid_capstyle="butt",
                )
            axes.plot(
                one.differences,
                [height - 0.3] * len(one.differences),
                "|",
                color=MUTED,
                markersize=6,
                markeredgewidth=1.1,
            )
            axes.plot(
                found.mean,
                height,
                "o",
                color=VERMILION,
                markerfacecolor=VERMILION if told else "white",
                markersize=7,
            )
            beside(
                axes,
                height,
                f"{100 * found.mean:+.1f}",
                p_text(found.p_value) if found.known else "one seed",
                f"{len(one.seeds)}",
                width=52,
            )
        for heading, height in headings.items():
            axes.text(
                0,
                height,
                heading,
                transform=axes.get_yaxis_transform(),
                fontsize=9,
                fontweight="bold",
                va="center",
                bbox={"color": "white", "pad": 1.0},
            )
        beside(axes, 0.5, "points", "p", "seeds", width=52, color=MUTED)
        axes.axvline(0, color=INK, linewidth=0.8)
        if claimed is not None:
            axes.axvline(claimed, color=BLUE, linewidth=1.0, linestyle=(0, (4, 3)))
            text, place = f"{claim} {100 * claimed:+.1f}", ("data", "axes fraction")
            axes.annotate(text, (claimed, 1.0), (3, 1), place, "offset points", fontsize=8, color=BLUE)
        axes.set_yticks([height for height, _, _ in rows], [name for _, name, _ in rows])
        axes.set_ylim(y + 0.3, 0.8)
        points(axes)
        axes.grid(axis="y", visible=False)
        handles = [
            Line2D(
                [],
                [],
                color=VERMILION,
                marker="o",
                markerfacecolor="white",
                markersize=7,
                linestyle="",
                label="mean (filled: interval without 0)",
            ),
            Line2D([], [], color=VERMILION, linewidth=4.5, alpha=0.4, label="95 %, over training seeds"),
            Line2D([], [], color=GREY, linewidth=1.0, label="95 %, these checkpoints"),
            Line2D(
                [],
                [],
                color=MUTED,
                marker="|",
                markersize=6,
                markeredgewidth=1.1,
                linestyle="",
                label="one training seed",
            ),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    return figure


def text_use(records: str | Path) -> str:
    """What `experiments.text_use` measured, in Markdown; "" where it has not been run."""
    if not (path := Path(records) / TEXT_USE).is_file():
        return ""
    found = read_json(path)
    lines = [
        [
            arm_label(one["arm"]),
            one["seed"],
            one["what"],
            f"{one['mean']:+.1f}" if " minus " in one["what"] else f"{one['mean']:.1f}",
            f"{one['low']:.1f} to {one['high']:.1f}",
        ]
        for one in found["lines"]
    ]
    frames = f"a frame of each of {found['episodes']} demonstrations, most of them trained on"
    about = f"The same by the error of the commanded movement (sum over x, y and z), on {frames}:"
    return f"{about}\n\n{markdown(['arm', 'seed', 'movement', 'error, mm', '95 % over episodes'], lines)}"


def results_text(results: Results, texts: str = "") -> str:
    """The report in Markdown. `texts`: of `text_use`."""
    study, parts = results.study, list[str]()
    bases, data = study["bases"], study["data"]
    blocks = results.profile.blocks
    planned = {(block.name, arm.name, seed) for block in blocks for arm in block.arms for seed in block.seeds}
    played = {(block.name, one.policy, one.seed) for block in blocks for one in of_block(results, block)}
    parts.append(
        f"Profile `{results.profile.name}`: {len(study['runs'])} training runs, "
        f"{len(results.records):,} episodes; {len(planned & played)} of {len(planned)} stages of the "
        f"plan are done. Bases: {', '.join(f'{name} {digest}' for name, digest in bases.items() if digest)}; "
        f"{data['episodes']} demonstrations, {data['frames']:,} frames (content {data['hash']}); "
        f"{study['assets']} assets; "
        f"{study['machine']['cores']} cores."
    )
    if study["not_run"]:
        parts.append(
            "Not run: " + "; ".join(f"{name} ({reason})" for name, reason in study["not_run"].items()) + "."
        )
    main = [
        one for block in results.profile.blocks if not block.exploratory for one in contrasts(results, block)
    ] + interactions(results)
    if main:
        rule = RULES[results.profile.blocks[0].rule]
        parts += [
            f"### Main comparison, average of the tasks, {rule}",
            _comparisons(main, lambda one: conclusion(results, one)),
        ]
        anywhere = [
            one
            for block in results.profile.blocks
            if not block.exploratory
            for one in contrasts(results, block, "any")
        ]
        parts += ["The same with success at any step:", _comparisons(anywhere)]
    for block in (one for one in results.profile.blocks if not one.exploratory):
        if by_task := [
            one
            for task in results.profile.tasks_of(block)
            for one in contrasts(results, block, task=task)
            if (one.a, one.b) == PRIMARY
        ]:
            parts += [
                f"### Where it helps and where not: tasks, {label(block.setting)}",
                _comparisons(by_task, name=lambda one: label(one.task)),
            ]
    if variants := by_variant(results, *PRIMARY):
        names = {id(one): name.replace("_", " ") for name, one in variants.items()}
        parts += [
            "### Where it helps and where not: variants",
            _comparisons(list(variants.values()), name=lambda one: names[id(one)]),
        ]
    for block in (one for one in results.profile.blocks if one.exploratory):
        if found := contrasts(results, block):
            parts += [
                f"### Exploratory, {block.name}: {block.question}",
                _comparisons(found),
                *([texts] if block.name == "order" and texts else []),
            ]
    for block in _kinds(results):
        if success := _success(results, block):
            words = f"{RULES[block.rule]} by arm, {label(block.setting)}, checkpoints as they are"
            parts += [f"### {words[0].upper()}{words[1:]}", success]
    parts += ["### What it costs", _costs(results)]
    return "\n\n".join(parts) + "\n"


def insert(document: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of `name` in a Markdown file.

    Raises:
        KitError: the markers are not there.
    """
    begin, end = BEGIN.format(name), END.format(name)
    old = document.read_text(encoding="utf-8")
    if begin not in old or end not in old:
        raise KitError(
            f"{document} has no place for {name}", f"put the lines {begin!r} and {end!r} where it belongs"
        )
    before, after = old.split(begin)[0], old.split(end)[1]
    with replacing(document) as part:
        part.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}", encoding="utf-8")


def publish(records: Path) -> Path:
    """Make the records in `records` the repository's, with their pictures and the generated sections of
    their page.
    """
    profile = load_results(records).profile  # before anything is replaced
    shipped = SHIPPED.with_name(profile.experiment)
    document = DOCUMENTS / f"{profile.experiment}.md"
    shipped.mkdir(parents=True, exist_ok=True)
    copy_records(Path(records), shipped)
    if (demonstrations := Path(records).parent / DEMONSTRATIONS).exists():
        with replacing(shipped / DEMONSTRATIONS) as part:
            shutil.copytree(demonstrations, part)
    for folder in (shipped / DEMONSTRATIONS, shipped):
        if folder.exists():
            cards.write(folder, cards.dataset_text(folder))
    report = write_report(shipped, REPOSITORY / "figures")
    insert(document, "results", report.read_text(encoding="utf-8"))
    report.unlink()
    insert(document, "power", power_text(profile.experiment))
    return document


def power_text(experiment: str = "experiment") -> str:
    """What the main comparison of an experiment's profiles can find, in Markdown."""
    parts = []
    for profile in (PROFILES | FOLLOWING).values():
        if profile.experiment != experiment or profile.name.endswith("smoke"):
            continue
        main, tasks = profile.blocks[0], len(profile.tasks_of(profile.blocks[0]))
        starts = episodes(profile, Stage(main, main.arms[0], main.seeds[0])) // tasks
        where = " in all variants together" if starts > main.starts else ""
        parts.append(f"`{profile.name}`: {len(main.seeds)} seeds of {starts} starts{where}, {tasks} tasks.")
        parts.append(power_table(len(main.seeds), starts, tasks))
    return "\n\n".join(parts)


def _comparisons(
    rows: Sequence[SeedComparison],
    say: Callable[[SeedComparison], str] | None = None,
    name: Callable[[SeedComparison], str] | None = None,
) -> str:
    """Markdown of contrasts, one a line."""
    heads = [
        "contrast" if name is None else "",
        "setting",
        "seeds",
        "episodes",
        "each seed, points",
        "difference, points",
        "95 % over seeds",
        "p",
        "spread of runs",
        "checkpoints as they are",
        "exact p",
    ] + (["says"] if say else [])
    lines = []
    for one in rows:
        found, pooled = one.estimate, one.pooled
        cells = [
            (name or _pair)(one),
            label(one.setting),
            f"{len(one.seeds)}",
            f"{pooled.episodes:,}" if pooled else "",
            " ".join(f"{100 * value:+.1f}" for value in one.differences),
            f"**{100 * found.mean:+.1f}**",
            interval_text(found.low, found.high) if found.known else "",
            p_text(found.p_value) if found.known else "",
            f"{100 * one.between:.1f}" if one.between == one.between else "",
            interval_text(pooled.low, pooled.high) if pooled else "",
            p_text(pooled.p_value) if pooled else "",
        ]
        lines.append(cells + ([say(one)] if say else []))
    return markdown(heads, lines)


def _kinds(results: Results) -> list[Block]:
    """One block of each kind of episodes, visual matching first."""
    kinds = {
        (block.setting != VISUAL_MATCHING, results.profile.tasks_of(block)): block
        for block in reversed(results.profile.blocks)
    }
    return [kinds[kind] for kind in sorted(kinds, key=lambda kind: kind[0])]


def _success(results: Results, block: Block) -> str:
    found = rates(results, block.setting, block.rule, of_block(results, block))
    tasks = [*results.profile.tasks_of(block), AVERAGE]
    lines = [
        [
            arm_label(arm),
            *(rate_text(by_task[task], counts=task != AVERAGE) if task in by_task else "" for task in tasks),
        ]
        for arm, by_task in found.items()
    ]
    return markdown(["arm", *map(label, tasks)], lines) if found else ""


def _costs(results: Results) -> str:
    heads = [
        "arm",
        "runs",
        "training, s",
        "a training step, s",
        "a control step, s",
        "held-out action accuracy",
        "held-out rationale loss, nats a token",
    ]
    lines = [
        [
            arm_label(row["arm"]),
            str(row["runs"]),
            f"{row['training']:.0f}",
            f"{row['step']:.3f}",
            f"{row['control step']:.3f}",
            *(f"{row[key]:.3f}" if key in row else "" for key in ("action_accuracy", "loss_reasoning")),
        ]
        for row in costs(results)
    ]
    return markdown(heads, lines)


def _pair(one: SeedComparison) -> str:
    return _named(one.a, one.b)


def _named(a: str, b: str) -> str:
    return f"{arm_label(a)} minus {arm_label(b)}"


def arm_label(name: str) -> str:
    """What an arm is called: one of the main comparison as everywhere, one of a sweep with what is different
    about it.
    """
    if (known := label(name)) != name:
        return known
    main = next((one for one in PRIMARY if name.startswith(f"{one}_")), "")
    rest = re.sub(r"data (\d+)", r"\1 % of the data", name.removeprefix(f"{main}_").replace("_", " "))
    rest = (
        re.sub(r"depth (\d+)", r"\1 frozen", rest)
        .replace("lambda ", "lambda = ")
        .replace("grounded", "grounded base")
    )
    return f"{label(main)}, {rest}" if main else rest


def main(arguments: list[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--records", type=Path, default=SHIPPED)
    parser.add_argument(
        "--publish",
        action="store_true",
        help="into the repository: its data, figures, its page",
    )
    given = parser.parse_args(arguments)
    try:
        print(
            publish(given.records)
            if given.publish
            else write_report(given.records, given.records.parent / "report")
        )
    except KitError as error:
        raise SystemExit(f"experiment: {error}") from None


if __name__ == "__main__":
    main()
