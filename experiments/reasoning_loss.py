"""The controlled experiments on the reasoning loss that the paper does not report. docs/experiment.md,
docs/experiment_2.md and docs/experiment_2_google.md say what is asked and how it is answered.

    python -m experiments.reasoning_loss --profile smoke|laptop|full [--only main,variants] [--published]
    [--dry-run] [--output DIR]
    python -m experiments.reasoning_loss --profile following_smoke|following_laptop|following_full|
        following_google ...

One command, started again after any stop. Records of what is finished are always in DIR/records, the report
in DIR/report; `python -m experiments.report --records DIR/records --publish` makes them the repository's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.design import PROFILES, plan
from experiments.estimate import describe
from experiments.following import FOLLOWING
from experiments.report import SHIPPED, write_report
from experiments.runner import Study, carry_out, possible, start_from
from refinevla_kit.errors import KitError
from refinevla_kit.settings import REPOSITORY
from refinevla_kit.tasks import find_task

CHECKPOINTS = REPOSITORY / "data" / "checkpoints"


def main(arguments: list[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.reasoning_loss",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    profiles = PROFILES | FOLLOWING
    parser.add_argument("--profile", choices=profiles, default="laptop")
    parser.add_argument("--only", default="", help="comma-separated blocks; default all")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan, its episodes and about how long it takes; do nothing",
    )
    parser.add_argument("--output", type=Path, help="default runs/experiment/<profile>")
    parser.add_argument(
        "--base",
        type=Path,
        help="default earlier_base, which knew no texts; of following_* the robot's own base",
    )
    twins = [CHECKPOINTS / "grounded_base", CHECKPOINTS / "ungrounded_base"]
    parser.add_argument(
        "--grounding",
        type=Path,
        nargs=2,
        metavar=("WITH", "WITHOUT"),
        default=twins,
        help="bases of that block, made alike",
    )
    parser.add_argument(
        "--wordless", type=Path, default=CHECKPOINTS / "acting_base", help="a base that has read no sentence"
    )
    parser.add_argument(
        "--published",
        action="store_true",
        help="go on from the records and demonstrations in data/, where the profile's are there",
    )
    parser.add_argument("--assets", default="embedded", help="embedded | official | a folder")
    parser.add_argument("--workers", type=int, help="simulator processes; default one a core, 0 for none")
    parser.add_argument("--threads", type=int, help="of torch, in training; default all cores")
    given = parser.parse_args(arguments)
    profile = profiles[given.profile]
    base, others = CHECKPOINTS / "earlier_base", dict(zip(("grounded", "ungrounded"), given.grounding))
    if given.profile in FOLLOWING:
        robot = find_task(profile.tasks[0]).robot
        base = CHECKPOINTS / ("google_base" if robot == "google_robot" else "compact_base")
        others = {"wordless": given.wordless}
    named = {arm.base for arm in profile.arms().values()}
    others = {name: path for name, path in others.items() if name in named}
    try:
        stages, whole = plan(profile, [name for name in given.only.split(",") if name]), plan(profile)
        output = given.output or REPOSITORY / "runs/experiment" / profile.name
        study = Study(
            profile,
            given.base or base,
            output,
            others,
            given.assets,
            given.workers,
            given.threads,
            sys.stderr.isatty(),
        )
        doable, reasons = possible(study, stages)
        how = (
            f"{profile.steps} steps of {profile.batch_size} frames a run, {profile.episodes_per_task} "
            f"demonstrations a task, {given.assets} assets"
        )
        print(f"from {study.base} into {output}: {how}\n{describe(profile, doable, reasons)}")
        if not given.dry_run:
            if given.published:
                start_from(SHIPPED.with_name(profile.experiment), output)
            records = carry_out(study, stages, [stage for stage in whole if stage not in stages])
            print(write_report(records, output / "report"))
    except KitError as error:
        raise SystemExit(f"experiment: {error}") from None


if __name__ == "__main__":
    main()
