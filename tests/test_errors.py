"""A user's mistake is one line with its remedy, in a terminal and in a notebook."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinevla_kit import errors
from refinevla_kit.errors import KitError, as_kit_error, check_choice


@given(st.text(), st.text())
def test_always_one_line(what: str, remedy: str) -> None:
    assert len(str(KitError(what, remedy)).splitlines()) <= 1


def test_says_what_and_how_to_mend_it() -> None:
    error = KitError("no space\n   left", "free\nspace")
    assert str(error) == "no space left -> free space"


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (KeyError("provenance"), "KeyError('provenance')"),
        (TypeError(), "TypeError()"),
        (FileNotFoundError(2, "No such file", "rows.jsonl"), "No such file: rows.jsonl"),
        (FileNotFoundError(2, "No such file", "state"), "No such file"),
        (ValueError("not a number"), "not a number"),
    ],
)
def test_what_was_raised_is_quoted_with_its_file_or_its_kind(raised: Exception, said: str) -> None:
    expected = re.escape(f"the state is damaged ({said}) -> copy it")
    with pytest.raises(KitError, match=expected), as_kit_error("the state is damaged", "copy it"):
        raise raised


def test_where_nothing_can_be_chosen_it_says_so() -> None:
    with pytest.raises(KitError, match="unknown option 'layer' -> leave it out"):
        check_choice("option", "layer", ())


def test_what_to_install_is_said_for_a_checkout_and_for_a_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert errors.install("ray") == f"in the kit's folder: {sys.executable} -m pip install -e '.[ray]'"
    assert errors.set_up() == "run `make setup`"
    monkeypatch.setattr(errors, "SHIPPED", tmp_path)
    assert errors.install("ray").startswith(f"{sys.executable} -m pip install 'PATH[ray]', PATH being ")
    assert "PATH[maniskill]" in errors.set_up()


def test_ipython_shows_one_line() -> None:
    code = "from refinevla_kit.errors import KitError; raise KitError('bad', 'mend it')"
    command = [sys.executable, "-m", "IPython", "--no-banner", "--colors=nocolor", "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    shown = (run.stdout + run.stderr).strip().splitlines()
    assert shown == ["KitError: bad -> mend it"]


def test_a_script_shows_one_line_and_leaves_other_errors_whole() -> None:
    for raised, shown in (("KitError('bad', 'mend it')", 1), ("ValueError('bad')", 3)):
        code = f"from refinevla_kit.errors import KitError; raise {raised}"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (run.returncode, len(run.stderr.splitlines())) == (1, shown)


def test_command_line_shows_one_line_and_fails() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "refinevla_kit.cli", "reproduce", "--profile", "lapto"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.splitlines() == [
        "refinevla: unknown profile 'lapto' (did you mean 'laptop'?) -> choose one of gpu, laptop, "
        "paper, smoke",
    ]
