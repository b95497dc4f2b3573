"""The doctor looks for real and never gives a secret away."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from refinevla_kit import doctor
from refinevla_kit.errors import KitError


def test_every_requirement_has_one_line_and_each_lack_its_fix() -> None:
    """The command's JSON holds what its lines hold: one finding a requirement, all met on a machine that was
    set up.
    """
    run = subprocess.run(
        [sys.executable, "-m", "refinevla_kit.cli", "doctor", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(run.stdout)
    findings = [doctor.Finding(**each) for each in report["findings"]]
    names = [finding.name for finding in findings]
    assert names == [
        "Python",
        "torch",
        "transformers",
        "Vulkan device",
        "simulator",
        "assets",
        "official assets",
        "GPU",
        "teacher key",
        "disk",
    ]
    for finding in findings:
        assert len(finding.line().splitlines()) == 1
        assert finding.state == "ok" or finding.remedy
    assert (run.returncode, report["ready"]) == (0, True)


def test_no_vulkan_driver_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VK_DRIVER_FILES", "/nonexistent.json")
    monkeypatch.setenv("VK_ICD_FILENAMES", "/nonexistent.json")
    [finding] = doctor.examine(["Vulkan device"])
    assert finding.state == "missing"
    assert "rendering device" in finding.detail and "Mesa" in finding.remedy


def test_python_without_sapien_is_found_out() -> None:
    drawn, reason = doctor.render_probe("/nonexistent/python")
    assert not drawn and "cannot be run" in reason


def test_key_is_seen_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in doctor.TEACHER_KEYS:
        monkeypatch.delenv(name, raising=False)
    assert doctor.examine(["teacher key"])[0].state == "optional"
    monkeypatch.setenv("GOOGLE_API_KEY", "secret-value")
    [finding] = doctor.examine(["teacher key"])
    assert finding.state == "ok"
    assert "secret-value" not in finding.line()


def test_failing_check_does_not_hide_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_check() -> str:
        raise RuntimeError("two\nlines")

    monkeypatch.setitem(doctor.CHECKS, "broken", broken_check)
    broken, python = doctor.examine(["broken", "Python"])
    assert (broken.state, broken.name, python.state) == ("missing", "broken", "ok")
    assert not doctor.summary([broken, python])["ready"]


def test_other_release_is_missing() -> None:
    for distribution, why in (
        ("torch", "the kit is checked with 1.0.x"),
        ("no-such-package", "not installed"),
    ):
        with pytest.raises(KitError, match=why):
            doctor._series(distribution, "1.0")
