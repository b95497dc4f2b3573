"""The `refinevla` command. Thin: each verb calls one function and prints what it returned.

Results go to standard output, the last line being one JSON object; a `KitError` goes to standard error as one
line, with exit status 2.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from refinevla_kit.errors import KitError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Parameters = Annotated[
    list[str] | None,
    typer.Option(
        "-p", "--parameter", help="name=value, for every notebook that has the parameter; repeatable"
    ),
]
Profile = Annotated[str, typer.Option(help="smoke | laptop | gpu | paper")]


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object instead")] = False,
) -> None:
    """One line a requirement, each with the fix. Exit status 1 if a required one is missing."""
    from refinevla_kit.doctor import examine, summary

    findings = examine()
    if as_json:
        _print_json(summary(findings))
    else:
        for finding in findings:
            print(finding.line())
    raise typer.Exit(0 if summary(findings)["ready"] else 1)


@app.command()
def reproduce(
    profile: Profile = "laptop",
    output: Annotated[Path | None, typer.Option(help="folder of the run; default runs/<profile>")] = None,
    only: Annotated[
        str, typer.Option(help="comma-separated numbers of notebooks, such as 01,03; default all")
    ] = "",
    parameter: Parameters = None,
    threads: Annotated[int | None, typer.Option(help="compute threads; default all cores")] = None,
) -> None:
    """Run the five notebooks headlessly and say where everything is."""
    _run([word.strip() for word in only.split(",") if word.strip()], profile, output, parameter, threads)


@app.command()
def run(
    notebook: Annotated[str, typer.Argument(help="number or name, such as 03 or 03_simpler_evaluation")],
    profile: Profile = "laptop",
    output: Annotated[Path | None, typer.Option(help="folder of the run; default runs/<profile>")] = None,
    parameter: Parameters = None,
    threads: Annotated[int | None, typer.Option(help="compute threads; default all cores")] = None,
) -> None:
    """Run one notebook headlessly with other parameters."""
    _run([notebook], profile, output, parameter, threads)


@app.command()
def assets(
    check: Annotated[str | None, typer.Option(help="a folder to check, or `embedded` or `official`")] = None,
) -> None:
    """Say where the simulator's assets are, or check a folder."""
    from refinevla_kit.simulator.maniskill import resolve_assets

    if check is not None:
        _print_json({"assets": check, "folder": str(resolve_assets(check))})
    else:
        found: dict[str, Any] = {}
        for name in ("embedded", "official"):
            try:
                found[name] = str(resolve_assets(name))
            except KitError as error:
                found[name] = f"absent: {error}"
        _print_json(found)


@app.command()
def record(
    output: Annotated[Path, typer.Argument(help="folder of the LeRobot dataset to write")],
    task: Annotated[list[str] | None, typer.Option(help="repeatable; default the four WidowX tasks")] = None,
    episodes: Annotated[int, typer.Option(min=1, help="episodes a task")] = 1,
    assets: Annotated[str, typer.Option(help="embedded | official | a folder")] = "embedded",
    start: Annotated[str, typer.Option(help="random | grid")] = "random",
    seed: int = 0,
    workers: Annotated[int, typer.Option(min=1)] = 1,
    random_moves: Annotated[int, typer.Option(min=0, help="random actions before the recording starts")] = 0,
    disturb: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="chance a step that random moves take over; labels stay the demonstrator's"
        ),
    ] = 0.0,
    noise: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="noise in each motion, part of 15 mm, 0.15 rad; labels stay the demonstrator's"
        ),
    ] = 0.0,
    settle: Annotated[int, typer.Option(min=1, help="frames of success after which a recording ends")] = 3,
    setting: Annotated[str, typer.Option(help="visual_matching | variant_aggregation")] = "visual_matching",
    variant: Annotated[
        list[str] | None, typer.Option(help="repeatable; default those that SIMPLER scores")
    ] = None,
) -> None:
    """Record the scripted demonstrator's episodes as a LeRobot dataset."""
    from refinevla_kit.rollouts.recording import record as record_episodes
    from refinevla_kit.tasks import WIDOWX_TASKS, find_task

    tasks = task or [each.name for each in WIDOWX_TASKS]
    named = variant or [each.name for each in find_task(tasks[0]).protocol(setting).variants if each.scored]
    result = record_episodes(
        output,
        tasks,
        episodes,
        assets=assets,
        start=start,
        seed=seed,
        workers=workers,
        random_moves=random_moves,
        setting=setting,
        variants=named,
        disturb=disturb,
        noise=noise,
        settle=settle,
    )
    _print_json(result)


@app.command()
def annotate(
    dataset: Annotated[Path, typer.Argument(help="folder of a LeRobot dataset")],
    teacher: Annotated[str, typer.Option(help="oracle | gemini | gemini-legacy | openai")] = "oracle",
    model: Annotated[str | None, typer.Option(help="the model, as the teacher's server names it")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("-o", "--option", help="name=value, a further option of the teacher; repeatable"),
    ] = None,
    granularity: Annotated[str, typer.Option(help="step | segment | trajectory")] = "segment",
    keyframes: Annotated[int, typer.Option(min=1, help="pictures a request")] = 3,
    output: Annotated[Path | None, typer.Option(help="parquet file; default beside the dataset")] = None,
    seed: int = 0,
    executor: Annotated[str, typer.Option(help="threads | ray")] = "threads",
    concurrency: Annotated[int, typer.Option(min=1, help="calls in flight")] = 8,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    budget_calls: int | None = None,
    budget_tokens: int | None = None,
    budget_money: Annotated[float | None, typer.Option(help="in the currency of the prices")] = None,
    prices: Annotated[
        str | None,
        typer.Option(
            help="INPUT,OUTPUT,CURRENCY,DATE: of a million tokens, as you looked them up on that day"
        ),
    ] = None,
    max_attempts: Annotated[
        int, typer.Option(min=1, help="calls about one request before it is given up")
    ] = 6,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the estimate and make no call")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask before calls that cost something")] = False,
    export: Annotated[
        Path | None,
        typer.Option(help="then write the dataset with the rationales in LeRobot's language columns here"),
    ] = None,
    camera: Annotated[
        str | None,
        typer.Option(
            help="the camera to show, or a part of its name; default the first that is no depth map"
        ),
    ] = None,
    episodes: Annotated[str | None, typer.Option(help="which, e.g. 0-9,12; default all")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="action=NAME, state=NAME or instruction=NAME of a feature; repeatable"),
    ] = None,
    deltas: Annotated[
        bool | None,
        typer.Option(
            "--deltas/--positions", help="what the actions are; default inferred where that is safe"
        ),
    ] = None,
    gripper: Annotated[
        float | None,
        typer.Option(help="the gripper command's value that means open: 1, 0 or -1; default inferred"),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="refuse a dataset with episodes that cannot be read")
    ] = False,
) -> None:
    """Have a teacher write rationales for a dataset; they are stored beside it. Run it again to continue."""
    from refinevla_kit.episodes import open_dataset
    from refinevla_kit.episodes.language import check_export, export_language
    from refinevla_kit.notebook_runner import parse_parameter
    from refinevla_kit.teacher import (
        Limits,
        RunFailed,
        annotate_dataset,
        estimate,
        load_rationales,
        make_teacher,
        parse_prices,
        summarise,
    )

    columns = dict(pair.partition("=")[::2] for pair in column or [])
    opened = open_dataset(
        dataset,
        deltas,
        camera=camera,
        episodes=episodes,
        columns=columns or None,
        gripper=gripper,
        strict=strict,
    )
    print(opened, file=sys.stderr, flush=True)
    options = dict(parse_parameter(text) for text in option or []) | ({"model": model} if model else {})
    teaching = make_teacher(teacher, seed, **options)
    paid = parse_prices(prices) if prices else None
    limits = Limits(
        concurrency,
        requests_per_minute,
        tokens_per_minute,
        budget_calls,
        budget_tokens,
        budget_money,
        paid,
        max_attempts,
        seed,
    )
    if dry_run:
        expected = estimate(opened, teaching, granularity, keyframes, output, limits)
        print(expected)
        _print_json(
            {
                "requests": expected.requests,
                "money": expected.money,
                "worst_money": expected.worst_money,
                "hours": expected.hours,
            }
        )
        return
    if export is not None:
        try:
            check_export(opened, export)
        except KitError as error:
            raise KitError(f"{error.what} (calls 0: nothing was asked or paid)", error.remedy) from None
    agreed = yes or (None if sys.stdin.isatty() else False)
    try:
        path = annotate_dataset(
            opened,
            teaching,
            granularity,
            keyframes,
            output=output,
            limits=limits,
            executor=executor,
            confirm=agreed,
        )
        failure = ""
    except RunFailed as error:
        path, failure = error.path or Path(), str(error)
    result = {"rationales": str(path), "answers": 0, "refusals": {}, "money": 0.0, "stopped": failure}
    if path.is_file():
        found = summarise(path)
        print(found)
        result |= {"answers": found.rationales, "refusals": found.refusals, "money": found.money}
        result["stopped"] = failure or found.stopped
    if export is not None and not failure:
        print(f"with language columns: {export_language(opened, load_rationales(path), export)}")
    _print_json(result)
    if failure:
        raise SystemExit(_fail(failure, 1))


@app.command()
def serve(
    checkpoint: Annotated[Path, typer.Argument(help="folder of a checkpoint of the kit")],
    host: Annotated[
        str,
        typer.Option(
            help="address to listen on; another than this machine's own loopback opens it to the network"
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one")] = 8000,
    name: Annotated[str | None, typer.Option(help="what records call it; default the folder's name")] = None,
) -> None:
    """Serve a policy in openpi's protocol, for `RemotePolicy(url)` or an openpi client, until interrupted."""
    from refinevla_kit.policies import load_policy
    from refinevla_kit.policies.remote import serve as serve_policy

    serve_policy(load_policy(checkpoint, name), host, port)


@app.command()
def preflight(
    checkpoint: Annotated[Path, typer.Argument(help="folder of a checkpoint of the kit")],
    task: Annotated[list[str] | None, typer.Option(help="repeatable; default the four WidowX tasks")] = None,
    episodes: Annotated[int, typer.Option(min=1, help="grid starts a task")] = 24,
) -> None:
    """Compare a policy's conventions with the tasks', and measure what its action encoding leaves of
    demonstrations. Exit status 1 if they differ.
    """
    from refinevla_kit.evaluation.preflight import preflight as fly
    from refinevla_kit.policies import load_policy
    from refinevla_kit.tasks import WIDOWX_TASKS

    policy, ceilings, differ = load_policy(checkpoint), {}, False
    for each in task or [each.name for each in WIDOWX_TASKS]:
        report = fly(policy, each, episodes, progress=sys.stderr.isatty())
        print(report, flush=True)
        ceilings[each] = report.ceiling and report.ceiling.rate
        differ = differ or bool(report.mismatches)
    _print_json({"policy": policy.name, "ceiling": ceilings})
    raise typer.Exit(1 if differ else 0)


def _run(
    only: list[str], profile: str, output: Path | None, parameters: list[str] | None, threads: int | None
) -> None:
    from refinevla_kit.notebook_runner import failure_line, parse_parameter, run_notebooks

    result = run_notebooks(
        only, profile, output, dict(parse_parameter(text) for text in parameters or []), threads
    )
    print(f"executed notebooks, records and pictures: {result['output']}")
    _print_json(result)
    if result["failed"]:
        raise SystemExit(_fail(failure_line(result["failed"]), 1))


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, default=str), flush=True)


def _fail(line: str, status: int) -> int:
    print(f"refinevla: {line}", file=sys.stderr, flush=True)
    return status


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except KitError as error:
        raise SystemExit(_fail(str(error), 2)) from None


if __name__ == "__main__":
    main()
