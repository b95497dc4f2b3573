"""`refinevla annotate`: any teacher, limits and prices from a command line; nothing paid for that was not
agreed to.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from refinevla_kit.cli import app
from refinevla_kit.errors import KitError
from refinevla_kit.teacher import check_teacher, make_teacher
from tests.conftest import REPOSITORY
from tests.teacher.gemini_server import GeminiServer
from tests.teacher.plain_teacher import write_dataset

GEMINI = (
    "--teacher",
    "gemini",
    "--model",
    "gemini-x",
    "--granularity",
    "trajectory",
    "--prices",
    "1,10,EUR,2026-11-24",
)


def annotate(*arguments: object) -> tuple[list[str], dict]:
    """Lines printed, and the JSON object on the last one."""
    result = CliRunner().invoke(app, ["annotate", *map(str, arguments)], catch_exceptions=False)
    lines = result.stdout.splitlines()
    return lines, json.loads(lines[-1])


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "noise", 5, 8).path


def test_a_budgeted_run_from_the_command_line(
    noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AIza-key-of-the-tests")
    output = tmp_path / "r.parquet"
    with GeminiServer(("ok",)) as server:
        arguments = (
            noise,
            *GEMINI,
            "-o",
            f"base_url={server.url}",
            "-o",
            "max_output_tokens=500",
            "--output",
            output,
        )
        lines, expected = annotate(*arguments, "--dry-run")
        assert (server.count, output.exists(), expected["requests"]) == (0, False, 5)
        assert 0 < expected["money"] < expected["worst_money"]
        assert lines[0].startswith("requests  5 of 5")
        with pytest.raises(KitError, match="not confirmed"):  # standard input is no terminal here
            annotate(*arguments)
        assert (server.count, output.exists()) == (0, False)
        lines, found = annotate(*arguments, "--yes", "--budget-calls", 3, "--concurrency", 2)
        assert (server.count, found["answers"], found["rationales"]) == (3, 3, str(output))
        assert "budget_calls=3" in found["stopped"]
        lines, found = annotate(*arguments, "--yes")
        assert (server.count, found["answers"], found["refusals"], found["stopped"]) == (5, 5, {}, "")
        assert annotate(*arguments, "--dry-run")[1]["requests"] == 0


def failing(*arguments: object) -> tuple[int, dict, str]:
    """Exit status, the JSON object on the last line, and standard error's last line, of the command
    itself.
    """
    command = [sys.executable, "-m", "refinevla_kit.cli", "annotate", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    lines = result.stdout.splitlines()
    return result.returncode, json.loads(lines[-1]) if lines else {}, result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_run_without_a_rationale_says_why_and_has_exit_status_1(
    noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AIza-key-of-the-tests")
    with GeminiServer(("all_thought",)) as server:
        output = tmp_path / "thought.parquet"
        status, found, line = failing(
            noise,
            *GEMINI,
            "-o",
            f"base_url={server.url}",
            "--granularity",
            "step",
            "--yes",
            "--output",
            output,
        )
        assert (status, server.count) == (1, 10)
        assert (found["rationales"], found["answers"], found["refusals"]) == (
            str(output),
            0,
            {"truncated": 10},
        )
        assert found["money"] == pytest.approx(10 * (900 * 1e-6 + 150 * 1e-5))
        assert found["stopped"] in line and "max_output_tokens" in line
    with GeminiServer(("daily_quota",)) as server:
        status, found, line = failing(
            noise, *GEMINI, "-o", f"base_url={server.url}", "--yes", "--output", tmp_path / "quota.parquet"
        )
        assert (status, server.count, found["answers"], found["money"]) == (1, 1, 0, 0.0)
        assert "the daily quota is used up" in line
    status, found, line = failing(
        noise,
        *GEMINI,
        "-o",
        f"base_url={server.url}",
        "--yes",
        "--max-attempts",
        1,
        "--output",
        tmp_path / "off.parquet",
    )
    assert (status, found["answers"], found["refusals"], found["money"]) == (
        1,
        0,
        {"unreachable": 1},
        0.0,
    )  # that server is gone
    assert "the server cannot be reached" in line


def test_what_can_be_known_is_said_before_the_first_call(
    noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AIza-key-of-the-tests")
    (tmp_path / "there").mkdir()
    with GeminiServer(("ok",)) as server:
        arguments = (noise, *GEMINI, "-o", f"base_url={server.url}", "--yes")
        for output in (tmp_path / "there", "/proc/none/r.parquet", noise / "meta/info.json/r.parquet"):
            with pytest.raises(KitError, match="--output"):
                annotate(*arguments, "--output", output)
        assert server.count == 0
    assert {path.name for path in tmp_path.iterdir()} == {"there"}


@pytest.mark.parametrize("teacher", ["gemini", "gemini-legacy"])
def test_a_missing_key_is_said_before_anything_is_opened_and_an_estimate_needs_none(
    noise: Path, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("never read"))
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    arguments = ("--teacher", teacher, "--model", "m", "--granularity", "trajectory")
    with pytest.raises(KitError, match="there is no Gemini API key"):
        annotate("no/dataset/here", *arguments, "--yes")
    assert annotate(noise, *arguments, "--dry-run")[1]["requests"] == 5


def test_columns_are_given_as_other_values_are(noise: Path) -> None:
    with pytest.raises(KitError, match="'action' is not name=value"):
        annotate(noise, "--column", "action")
    with pytest.raises(KitError, match="command"):
        annotate(noise, "--column", "action=command")


def test_a_teacher_is_checked_before_anything_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("never read"))  # nobody is there
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("gemini", "gemini-legacy"):
        with pytest.raises(KitError, match=r"needs a model -> give model=\.\.\."):
            check_teacher(name)
        with pytest.raises(KitError, match="there is no Gemini API key"):
            check_teacher(name, model="m")
    monkeypatch.setenv("GEMINI_API_KEY", "AIza-key-of-the-tests")
    wrong: dict[str, dict] = {
        "prices are 'cheap'": {"prices": "cheap"},
        "budget_money is set without prices": {"budget_money": 5.0},
        "max_output_tokens is 0": {"max_output_tokens": 0},
        "timeout is 'long'": {"timeout": "long"},
        "an option that its SDK refuses": {"base_url": 5},
        "thinking is 0.5": {"thinking": 0.5},
        "unknown gemini option 'modle'": {"modle": "m"},
        "nobody is here to confirm it": {"confirm": None},
        "no prompt 'mine'": {"prompt": "mine"},
    }
    for why, options in wrong.items():
        with pytest.raises(KitError, match=why):
            check_teacher("gemini", model="m", **options)
    assert (
        check_teacher("gemini", model="m", prices="0.3,2.5,USD,2026-11-24", budget_money=5.0).version == "m"
    )
    assert check_teacher("gemini", model="m", prices="0,0,USD,2026-11-24", confirm=None).version == "m"
    assert check_teacher("oracle", 3, confirm=None).seed == 3
    monkeypatch.setitem(sys.modules, "google.generativeai", None)
    with pytest.raises(KitError, match=r"pip install -e '\.\[gemini\]'"):
        check_teacher("gemini-legacy", model="m")


def test_a_teacher_or_option_that_does_not_exist_is_one_line(noise: Path) -> None:
    with pytest.raises(
        KitError, match=r"unknown teacher 'gemni' .* -> choose one of oracle, gemini, gemini-legacy, openai"
    ):
        annotate(noise, "--teacher", "gemni")
    with pytest.raises(KitError, match="unknown gemini option 'modle'"):
        make_teacher("gemini", modle="gemini-x")
    with pytest.raises(KitError, match="unknown oracle option 'model' -> choose one of seed"):
        make_teacher("oracle", model="x")
