"""The `refinevla` command. Thin: each verb calls one function and prints what it returned.

Results go to standard output, the last line being one JSON object; a `KitError` goes to standard error as one
line, with exit status 2.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Exit, Option, Typer

from refinevla_kit.errors import KitError

app = Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Profile = Annotated[str, Option(help="smoke | laptop | gpu | paper")]
Output = Annotated[Path | None, Option(help="folder of the run; default runs/<profile>")]
Parameters = Annotated[
    list[str] | None,
    Option("-p", "--parameter", help="name=value, for every notebook that has the parameter; repeatable"),
]
Threads = Annotated[int | None, Option(help="compute threads; default all cores")]
Checkpoint = Annotated[Path, Argument(help="folder of a checkpoint of the kit")]
Tasks = Annotated[list[str] | None, Option("--task", help="repeatable; default the four WidowX tasks")]
Seed = Annotated[int, Option(min=0)]


@app.command()
def doctor(
    as_json: Annotated[bool, Option("--json", help="print one JSON object instead")] = False,
) -> None:
    """One line a requirement, each with the fix. Exit status 1 if a required one is missing."""
    from refinevla_kit.doctor import examine, summary

    findings = examine()
    report = summary(findings)
    if as_json:
        _print_json(report)
    else:
        print(*(finding.line() for finding in findings), sep="\n")
    raise Exit(0 if report["ready"] else 1)


@app.command()
def init(folder: Annotated[Path, Argument(help="a new folder")]) -> None:
    """Write the notebooks, their profiles and pictures into a folder; from there, yours are what is run."""
    from refinevla_kit.notebook_runner import copy_notebooks

    written = copy_notebooks(folder)
    print(f"open them: {sys.executable} -m jupyter lab --notebook-dir={folder}")
    _print_json({"folder": str(folder), "written": written})


@app.command()
def reproduce(
    profile: Profile = "laptop",
    output: Output = None,
    only: Annotated[str, Option(help="numbers of notebooks, such as 01,03; default 01 to 06")] = "",
    parameter: Parameters = None,
    threads: Threads = None,
) -> None:
    """Run the six notebooks of the loop headlessly and say where everything is; `run 00` is a first look."""
    from refinevla_kit.notebook_runner import failure_line, parse_parameter, run_notebooks

    chosen = [word.strip() for word in only.split(",") if word.strip()]
    result = run_notebooks(chosen, profile, output, dict(map(parse_parameter, parameter or ())), threads)
    print(f"executed notebooks, records and pictures: {result['output']}")
    _print_json(result)
    if result["failed"]:
        raise SystemExit(_fail(failure_line(result["failed"], len(chosen) == 1), 1))


@app.command()
def run(
    notebook: Annotated[str, Argument(help="number or name, such as 03 or 03_simpler_evaluation")],
    profile: Profile = "laptop",
    output: Output = None,
    parameter: Parameters = None,
    threads: Threads = None,
) -> None:
    """Run one notebook headlessly, with other parameters; 00 is a first look at what is shipped."""
    if not notebook.strip():
        raise KitError("no notebook is named", "give a number or name, such as 03")
    reproduce(profile, output, notebook, parameter, threads)


@app.command()
def record(
    output: Annotated[Path, Argument(help="folder of the LeRobot dataset to write")],
    task: Tasks = None,
    episodes: Annotated[int, Option(min=1, help="episodes a task")] = 1,
    assets: Annotated[str, Option(help="embedded | official | a folder")] = "embedded",
    start: Annotated[str, Option(help="random | grid")] = "random",
    seed: Seed = 0,
    workers: Annotated[int, Option(min=1)] = 1,
    random_moves: Annotated[int, Option(min=0, help="random actions before the recording starts")] = 0,
    disturb: Annotated[float, Option(min=0, max=1, help="chance a step that random moves take over")] = 0.0,
    noise: Annotated[float, Option(min=0, max=1, help="in each motion, part of 15 mm, 0.15 rad")] = 0.0,
    settle: Annotated[int, Option(min=1, help="frames of success after which a recording ends")] = 3,
    setting: Annotated[str, Option(help="visual_matching | variant_aggregation")] = "visual_matching",
    variant: Annotated[list[str] | None, Option(help="repeatable; default those that SIMPLER scores")] = None,
) -> None:
    """Record the scripted demonstrator's episodes as a LeRobot dataset, labelled with what it would do."""
    from refinevla_kit.rollouts.recording import record as record_episodes
    from refinevla_kit.tasks import WIDOWX_TASKS

    result = record_episodes(
        output,
        task or WIDOWX_TASKS,
        episodes,
        assets=assets,
        start=start,
        seed=seed,
        workers=workers,
        random_moves=random_moves,
        setting=setting,
        variants=variant,
        disturb=disturb,
        noise=noise,
        settle=settle,
    )
    _print_json(result)


@app.command()
def annotate(
    dataset: Annotated[Path, Argument(help="folder of a LeRobot dataset")],
    teacher: Annotated[str, Option(help="oracle | gemini | gemini-legacy | openai")] = "oracle",
    model: Annotated[str | None, Option(help="the model, as the teacher's server names it")] = None,
    option: Annotated[
        list[str] | None,
        Option("-o", "--option", help="name=value, a further option of the teacher; repeatable"),
    ] = None,
    granularity: Annotated[str, Option(help="step | segment | trajectory")] = "segment",
    keyframes: Annotated[int, Option(min=1, help="pictures a request")] = 3,
    output: Annotated[Path | None, Option(help="parquet; beside the dataset, or here for a hub's")] = None,
    seed: Seed = 0,
    executor: Annotated[str, Option(help="threads | ray | batch (half the price, within a day)")] = "threads",
    concurrency: Annotated[int, Option(min=1, help="calls in flight")] = 8,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    budget_calls: int | None = None,
    budget_tokens: int | None = None,
    budget_money: Annotated[float | None, Option(help="in the currency of the prices")] = None,
    prices: Annotated[
        str | None,
        Option(help="INPUT,OUTPUT,CURRENCY,DATE: of a million tokens, as you looked them up on that day"),
    ] = None,
    max_attempts: Annotated[int, Option(min=1, help="calls about one request before it is given up")] = 6,
    dry_run: Annotated[bool, Option("--dry-run", help="print the estimate and make no call")] = False,
    yes: Annotated[bool, Option("--yes", help="do not ask before calls that cost something")] = False,
    camera: Annotated[
        str | None,
        Option(help="the camera to show, or a part of its name; default the first that is no depth map"),
    ] = None,
    episodes: Annotated[str | None, Option(help="which, e.g. 0-9,12; default all")] = None,
    column: Annotated[
        list[str] | None,
        Option(help="action=NAME, state=NAME or instruction=NAME of a feature; repeatable"),
    ] = None,
    deltas: Annotated[
        bool | None,
        Option("--deltas/--positions", help="what the actions are; default inferred where that is safe"),
    ] = None,
    gripper: Annotated[
        float | None,
        Option(help="the gripper command's value that means open: 1, 0 or -1; default inferred"),
    ] = None,
    strict: Annotated[
        bool, Option("--strict", help="refuse a dataset with episodes that cannot be read")
    ] = False,
    share: Annotated[
        float, Option(min=0.0001, max=1, help="of the episodes, each instruction with its part of them")
    ] = 1.0,
    trial: Annotated[
        int, Option(min=0, help="episodes that are annotated first and audited before the rest is paid")
    ] = 0,
    least_true: Annotated[
        float, Option(min=0, max=1, help="share of a trial's statements that has to be true")
    ] = 0.8,
) -> None:
    """Have a teacher write rationales for a dataset; they are stored beside it. Run it again to continue."""
    from refinevla_kit import teacher as teachers
    from refinevla_kit.episodes import open_dataset
    from refinevla_kit.notebook_runner import parse_parameter
    from refinevla_kit.teacher import trial as trials

    options = dict(map(parse_parameter, option or ())) | ({"model": model} if model else {})
    teaching = teachers.make_teacher(teacher, seed, **options)
    # An estimate needs no key, and the workers of a Ray cluster may have one that this machine has not.
    if not dry_run and executor != "ray":
        getattr(teaching, "check", lambda: None)()
    limits = teachers.Limits(
        concurrency,
        requests_per_minute,
        tokens_per_minute,
        budget_calls,
        budget_tokens,
        budget_money,
        teachers.parse_prices(prices) if prices else None,
        max_attempts,
        seed,
    )
    data = open_dataset(
        dataset,
        deltas,
        camera=camera,
        episodes=episodes,
        columns=dict(parse_parameter(each, literal=False) for each in column or ()) or None,
        gripper=gripper,
        strict=strict,
    )
    print(data, file=sys.stderr, flush=True)
    if share < 1:
        chosen = math.ceil(share * len(data.episodes))
        data = trials.only(data, trials.stratified(data, chosen, seed))
    if dry_run:
        expected = teachers.estimate(data, teaching, granularity, keyframes, output, limits, executor)
        print(expected)
        _print_json({key: getattr(expected, key) for key in ("requests", "money", "worst_money", "hours")})
        return
    failure = ""
    how: dict[str, Any] = {
        "granularity": granularity,
        "keyframes": keyframes,
        "output": output,
        "limits": limits,
        "executor": executor,
        "confirm": True if yes else None if sys.stdin.isatty() else False,
    }
    try:
        if trial:
            print(trials.annotate_trial(data, teaching, trial, least_true, seed, **how), flush=True)
        path = teachers.annotate_dataset(data, teaching, **how)
    except teachers.RunFailed as error:
        path, failure = error.path or Path(), str(error)
    _report_annotation(path, failure)


def _report_annotation(path: Path, failure: str) -> None:
    """Print what an annotation run left at `path`; a run that failed ends with exit status 1, but not one in
    which the oracle only found nothing to speak from.
    """
    from refinevla_kit.teacher import summarise

    status = 1
    result = {"rationales": str(path), "answers": 0, "refusals": {}, "money": 0.0, "stopped": failure}
    if path.is_file():
        summary = summarise(path)
        print(summary)
        result |= {"answers": summary.rationales, "refusals": summary.refusals, "money": summary.money}
        if not (failure or summary.stopped or summary.rationales):
            failure = _nothing_answered(summary.refusals)
            status = 0 if [*summary.refusals] == ["no_state"] else 1
        result["stopped"] = failure or summary.stopped
    _print_json(result)
    if failure:
        raise SystemExit(_fail(failure, status))


def _nothing_answered(refusals: dict[str, int]) -> str:
    """Why a table holds no rationale, and what to do."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in refusals.items()) or "there was no request"
    remedy = "look into the table's refusal_reason, and give another teacher or prompt"
    if "no_state" in refusals:
        remedy = "the oracle writes from a simulator's state: give recorded data another --teacher"
    return f"no rationale was written ({kinds}) -> {remedy}"


@app.command()
def plan(
    base: Annotated[
        str, Option(help="spatialvla | openvla (released sizes), a checkpoint's folder, a hub name")
    ],
    gpus: Annotated[str, Option(help="COUNTxGIGABYTES of one, such as 1x80")] = "1x80",
    dataset: Annotated[str | None, Option(help="folder or hub name, whose frames are counted")] = None,
    frames: Annotated[int | None, Option(min=1, help="instead of a dataset")] = None,
    batch: Annotated[int, Option(min=1, help="frames a step, over all GPUs")] = 32,
    epochs: Annotated[float, Option(min=0.001, max=1e6, help="how often each frame is seen")] = 1.0,
    rationale: Annotated[int, Option(min=0, help="words of a rationale")] = 90,
    upper: Annotated[int, Option(min=1, help="language layers that train where the upper ones do")] = 2,
    tflops: Annotated[
        float | None, Option(help="10^12 operations a second of one GPU, half precision")
    ] = None,
    price: Annotated[float | None, Option(help="of one GPU for an hour, in your currency")] = None,
) -> None:
    """Say what fine-tuning would take: memory, what fits, hours, money. Nothing is downloaded but sizes."""
    from refinevla_kit.episodes.meta import count_frames
    from refinevla_kit.training import plan as planning

    if (dataset is None) == (frames is None):
        raise KitError("plan needs to know how much data", "give either --dataset or --frames")
    job = planning.Job(frames or count_frames(str(dataset)), batch, epochs, rationale)
    machines = planning.parse_gpus(gpus, tflops, price)
    ways = planning.plan(base, job, machines, upper)
    print(planning.table(ways, job, machines))
    fitting = {way.name: {"peak": way.peak, "fits": way.fits, "hours": way.hours} for way in ways}
    _print_json({"base": base, "frames": job.frames, "steps": job.steps, "ways": fitting})


@app.command()
def serve(
    checkpoint: Checkpoint,
    host: Annotated[
        str, Option(help="address to listen on; another than this machine's own opens it to the network")
    ] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="0 takes a free one")] = 8000,
    name: Annotated[str | None, Option(help="what records call it; default the folder's name")] = None,
    robot: Annotated[str | None, Option(help="whose action statistics a released model takes")] = None,
) -> None:
    """Serve a policy in openpi's protocol, for `RemotePolicy(url)` or an openpi client, until interrupted."""
    from refinevla_kit.policies import load_policy
    from refinevla_kit.policies.remote import serve as serve_policy

    policy = load_policy(checkpoint, name)
    serve_policy(policy.on(robot) if robot else policy, host, port)


@app.command()
def preflight(
    checkpoint: Checkpoint,
    task: Tasks = None,
    episodes: Annotated[int, Option(min=1, help="grid starts a task")] = 24,
    workers: Annotated[int, Option(min=0, help="simulator processes; 0 plays in this one")] = 0,
) -> None:
    """Compare a policy's conventions with the tasks', and measure what its action encoding leaves of
    demonstrations. Exit status 1 if they differ.
    """
    from refinevla_kit.evaluation import line_up
    from refinevla_kit.evaluation.preflight import preflight_each
    from refinevla_kit.policies import load_policy
    from refinevla_kit.tasks import WIDOWX_TASKS

    policy = load_policy(checkpoint)
    reports = []
    players = line_up([policy], task or WIDOWX_TASKS)
    for report in preflight_each(players, episodes, workers=workers, progress=sys.stderr.isatty()):
        print(report, flush=True)
        reports.append(report)
    ceiling = {report.task: report.ceiling and report.ceiling.rate for report in reports}
    _print_json({"policy": policy.name, "ceiling": ceiling})
    raise Exit(int(any(report.mismatches for report in reports)))


@app.command()
def publish(
    folder: Annotated[Path, Argument(help="of a checkpoint, a dataset or records, with its card")],
    repo_id: Annotated[str, Argument(help="OWNER/NAME on the Hugging Face Hub")],
    dry_run: Annotated[bool, Option("--dry-run", help="check and list, and upload nothing")] = False,
    private: Annotated[bool, Option("--private", help="a new one is seen by its owner alone")] = False,
) -> None:
    """Upload a folder to the Hugging Face Hub, after a check that each of its files may be public."""
    from refinevla_kit import hub

    kind, files = hub.to_upload(folder, repo_id)
    for file in files:
        print(f"{file.upload_info.size:>13,} {file.path_in_repo}")
    size = sum(file.upload_info.size for file in files)
    url = None if dry_run else hub.upload(files, kind, repo_id, private)
    _print_json({"repo": repo_id, "type": kind, "files": len(files), "bytes": size, "url": url})


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
