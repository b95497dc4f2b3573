"""What teachers behind a server share, apart from any API: see test_gemini and test_openai for whole
calls.
"""

from __future__ import annotations

import pickle

import httpx
import pytest

from refinevla_kit.teacher.client import Received, problem, scrub, usage
from refinevla_kit.teacher.schema import Usage

KEY = "sk-not/a+real.key"


@pytest.mark.parametrize("name", ["GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY"])
def test_no_key_of_the_process_stays_in_a_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, f" {KEY}\n")
    assert scrub(f"key={KEY}, url?key=sk-not%2Fa%2Breal.key") == "key=<key>, url?key=<key>"
    received = Received(500, "", f"the key is {KEY}".encode())
    assert received.raw == "the key is <key>"
    assert KEY not in repr(received) + str(received.failure())
    assert KEY.encode() not in pickle.dumps(problem(httpx.ConnectError(f"no route for {KEY}")))


def test_a_word_that_servers_take_for_a_key_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    assert scrub("none of them is held") == "none of them is held"


def test_counts_that_make_no_sense_are_no_counts() -> None:
    assert usage(900, 120, 30, 1050) == Usage(900, 150)
    assert usage(900, None, None, 1050) == Usage(900, 150)
    assert usage("9", 1.0, 0, 0) == Usage(9, 1)
    for counts in (
        (None, None, None, None),
        (-1, 5, 0, 0),
        (10**12, 5, 0, 0),
        ("many", 5, 0, 0),
        (float("inf"), 5, 0, 0),
    ):
        assert usage(*counts) is None


def test_errors_are_told_apart_by_what_they_were_made_from() -> None:
    refused = httpx.ReadError("broken")
    refused.__cause__ = ConnectionRefusedError(111, "refused")
    kinds = {
        httpx.ConnectError("x"): "unreachable",
        refused: "unreachable",
        httpx.ReadTimeout("x"): "timeout",
        httpx.RemoteProtocolError("x"): "connection",
        OSError(5, "x"): "connection",
        ValueError("x"): "bad_request",
    }
    assert {error: problem(error).kind for error in kinds} == kinds


@pytest.mark.parametrize(
    ("status", "body", "kind", "reason"),
    [
        (
            429,
            b'{"error": {"message": "50 requests per day"}}',
            "daily_quota",
            "HTTP 429: 50 requests per day",
        ),
        (429, b'{"detail": "slow down"}', "quota", "HTTP 429: slow down"),
        (404, b'"no route"', "not_found", "HTTP 404: no route"),
        (400, b'{"error": {"message": "API key not valid"}}', "unauthorised", "HTTP 400: API key not valid"),
        (500, b"", "server", "HTTP 500: no reason given"),
        (418, b"<html>\n  teapot</html>", "bad_request", "HTTP 418: <html> teapot</html>"),
    ],
)
def test_a_failure_is_read_in_any_shape(status: int, body: bytes, kind: str, reason: str) -> None:
    failure = Received(status, "3", body).failure()
    assert (failure.kind, failure.reason, failure.retry_after) == (kind, reason, 3.0)
