"""`refinevla annotate`: any teacher, limits and prices from a command line; nothing paid for that was not agreed to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from refinevla_kit.cli import app
from refinevla_kit.errors import KitError
from refinevla_kit.teacher import make_teacher
from tests.teacher.gemini_server import GeminiServer
from tests.teacher.plain_teacher import write_dataset

GEMINI = ("--teacher", "gemini", "--model", "gemini-x", "--granularity", "trajectory", "--prices", "1,10,EUR,2026-11-24")


def annotate(*arguments: object) -> tuple[list[str], dict]:
    """Lines printed, and the JSON object on the last one."""
    result = CliRunner().invoke(app, ["annotate", *map(str, arguments)], catch_exceptions=False)
    lines = result.stdout.splitlines()
    return lines, json.loads(lines[-1])


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "noise", 5, 8).path


def test_a_budgeted_run_from_the_command_line(noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AIza-key-of-the-tests")
    output = tmp_path / "r.parquet"
    with GeminiServer(("ok",)) as server:
        arguments = (noise, *GEMINI, "-o", f"base_url={server.url}", "-o", "max_output_tokens=500", "--output", output)
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


def test_a_teacher_or_option_that_does_not_exist_is_one_line(noise: Path) -> None:
    with pytest.raises(KitError, match="unknown teacher 'gemni' -> choose one of oracle, gemini, gemini-legacy, local"):
        annotate(noise, "--teacher", "gemni")
    with pytest.raises(KitError, match="has no option 'modle'"):
        make_teacher("gemini", modle="gemini-x")
    with pytest.raises(KitError, match="has no option 'model' -> choose from seed"):
        make_teacher("oracle", model="x")
